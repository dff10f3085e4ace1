//! Draws the keys, and what columns mean.

use ratatui::{Frame, layout::Rect, text::Line};

use super::cut;
use crate::{app::App, calls::Health};

const HELP: [&str; 21] = [
    "↑ ↓ j k        choose a call       PgUp PgDn g G  by pages, first, last",
    "Enter          its details: percentiles, response codes, the last minutes",
    "Esc            back; in the table: no filter",
    "s  S           sort by the next column; reverse the order",
    "/              filter: part of a name, a protocol or a host",
    "p  Space       pause: what is shown stands still, and nothing is read",
    "Tab            findings, what is not seen and why, control plane, processes",
    "?  F1          this help           q  Ctrl-C      quit",
    "",
    "RATE/s         requests, of TCP opened connections, per second",
    "ERRORS         share of 5xx, of no answer, and of a gRPC status other than 0",
    "P50 P90 …      percentiles of the durations",
    "BYTES/s        bytes of both directions",
    "TOTAL          requests or connections, as in /metrics",
    "!  !!          errors from 0.1 % and from 5 % on",
    "",
    "Rates and percentiles are over the last ten seconds. Each request counts once,",
    "as its caller's proxy counts it, or its callee's if the caller is elsewhere.",
    "A name that exists in several namespaces has its namespace before it.",
    "",
    "Times are UTC. NO_COLOR=1 turns colours off.",
];

pub(super) fn draw(app: &App, frame: &mut Frame<'_>, area: Rect) {
    for (text, row) in HELP.iter().zip(area.rows()) {
        let text = cut(&format!(" {text}"), area.width.into());
        frame.render_widget(Line::styled(text, app.palette.of(Health::Good)), row);
    }
}
