//! Draws one call: both sides' figures, response codes, and the last minutes.

use std::collections::BTreeMap;

use ratatui::{
    Frame,
    layout::{Constraint, Flex, Layout, Rect},
    text::Line,
    widgets::Sparkline,
};

use super::{cut, fill, top};
use crate::{
    app::App,
    calls::{Call, Health},
    clean::Clean,
    document::{Counts, Sampled, SampledRequest, Side},
    format::{self, known},
    history::Course,
};

/// Widths of a figure's name and of its values.
const NAME: usize = 18;
const VALUE: usize = 11;
/// Width of the part with both sides' figures.
const SIDES: u16 = 43;
/// Widths of a course's name, of the history's columns, and of the largest value.
const COURSE_NAME: u16 = 10;
const COURSE: u16 = 60;
const COURSE_MOST: u16 = 16;
/// Steps between the smallest and the largest value of a course.
const STEPS: f64 = 1_000.0;

/// A figure of one side: its name, and how it is made of totals and of what is recent.
type Figure = (&'static str, fn(&Side) -> Option<String>);

pub(super) fn draw(app: &App, frame: &mut Frame<'_>, area: Rect) {
    let Some(call) = app.selected() else {
        return frame.render_widget(Line::raw(" this call is not in the list any more"), area);
    };
    let figures = if call.is_tcp() { TCP } else { HTTP };
    let height = u16::try_from(figures.len() + 1).unwrap_or(u16::MAX);
    let parts = [Constraint::Length(2), Constraint::Length(height), Constraint::Min(0)];
    let [head, middle, course] = Layout::vertical(parts).areas(area);
    draw_head(app, call, frame, head);
    let [sides, codes] = Layout::horizontal([Constraint::Length(SIDES), Constraint::Min(0)]).areas(middle);
    draw_lines(frame, sides, app, &side_lines(call, figures));
    draw_lines(frame, codes, app, &[code_lines(call), sampled_lines(call)].concat());
    if let Some(history) = &app.history {
        draw_course(app, frame, course, call.is_tcp(), &history.course(call.edge.id));
    }
}

fn draw_head(app: &App, call: &Call, frame: &mut Frame<'_>, area: Rect) {
    let edge = &call.edge;
    let texts = |texts: &[Clean]| texts.iter().map(|text| text.to_string()).collect::<Vec<_>>().join(", ");
    let security = if edge.security.is_empty() { String::new() } else { format!(" · {}", texts(&edge.security)) };
    let ends = format!(" {} → {} · {}{security}", &*edge.from, &*edge.to, call.protocol());
    let lines = [(ends, app.palette.title()), (format!(" {}", texts(&edge.services)), app.palette.aside())];
    for ((text, style), row) in lines.into_iter().zip(area.rows()) {
        frame.render_widget(Line::styled(cut(&text, area.width.into()), style), row);
    }
}

/// Draws lines, the first as their title.
fn draw_lines(frame: &mut Frame<'_>, area: Rect, app: &App, lines: &[String]) {
    for ((number, line), row) in lines.iter().enumerate().zip(top(area, lines.len()).rows()) {
        let style = if number == 0 { app.palette.aside() } else { app.palette.of(Health::Good) };
        frame.render_widget(Line::styled(cut(line, area.width.into()), style), row);
    }
}

const HTTP: &[Figure] = &[
    ("requests", |side| Some(format::count(side.totals.requests))),
    ("per second", |side| recent(side, |recent| Some(format::short(recent.requests)))),
    ("errors", |side| share(side, |counts| counts.errors)),
    ("client errors", |side| share(side, |counts| counts.client_errors)),
    ("mean", |side| duration(side, |counts| counts.latency_ms.mean)),
    ("p50", |side| duration(side, |counts| counts.latency_ms.p50)),
    ("p75", |side| duration(side, |counts| counts.latency_ms.p75)),
    ("p90", |side| duration(side, |counts| counts.latency_ms.p90)),
    ("p95", |side| duration(side, |counts| counts.latency_ms.p95)),
    ("p99", |side| duration(side, |counts| counts.latency_ms.p99)),
    ("p99.9", |side| duration(side, |counts| counts.latency_ms.p999)),
    ("request bytes/s", |side| bytes(side, |counts| counts.request_bytes)),
    ("response bytes/s", |side| bytes(side, |counts| counts.response_bytes)),
    ("messages/s", |side| recent(side, messages)),
];

const TCP: &[Figure] = &[
    ("connections", |side| Some(format::count(side.totals.opened))),
    ("open", |side| Some(format::count(side.totals.opened - side.totals.closed))),
    ("opened per second", |side| recent(side, |recent| Some(format::short(recent.opened)))),
    ("closed per second", |side| recent(side, |recent| Some(format::short(recent.closed)))),
    ("received", |side| Some(format::bytes(side.totals.received_bytes))),
    ("sent", |side| Some(format::bytes(side.totals.sent_bytes))),
    ("received bytes/s", |side| bytes(side, |counts| counts.received_bytes)),
    ("sent bytes/s", |side| bytes(side, |counts| counts.sent_bytes)),
];

fn side_lines(call: &Call, figures: &[Figure]) -> Vec<String> {
    let line = |name: &str, values: [&str; 2]| {
        let [source, destination] = values.map(|value| format!("{value:>VALUE$}"));
        format!(" {}{source} {destination}", fill(name, NAME))
    };
    let value = |side: &Option<Side>, figure: fn(&Side) -> Option<String>| {
        side.as_ref().and_then(figure).unwrap_or_else(|| format::NONE.to_owned())
    };
    let sides = [&call.edge.source, &call.edge.destination];
    let figures = figures.iter().map(|(name, figure)| {
        let [source, destination] = sides.map(|side| value(side, *figure));
        line(name, [&source, &destination])
    });
    [line("counted by", ["caller", "callee"])].into_iter().chain(figures).collect()
}

/// Returns a line per response code and gRPC status of the side that is shown.
fn code_lines(call: &Call) -> Vec<String> {
    let Some(side) = call.side().filter(|_| !call.is_tcp()) else { return Vec::new() };
    let line = |name: &str, total: &str, rate: &str| format!("  {}{total:>11} {rate:>8}", fill(name, 12));
    let mut lines = vec![line("answers", "total", "/s")];
    type Codes = fn(&Counts) -> &BTreeMap<Clean, f64>;
    let kinds: [(&str, Codes); 2] = [("", |counts| &counts.codes), ("gRPC ", |counts| &counts.grpc_statuses)];
    for (kind, codes) in kinds {
        for (code, total) in codes(&side.totals) {
            let rate = side.recent.as_ref().and_then(|recent| codes(recent).get(code).copied());
            let name =
                if kind.is_empty() && &**code == "0" { "no answer".to_owned() } else { format!("{kind}{}", &**code) };
            lines.push(line(&name, &format::count(*total), &known(rate, format::short)));
        }
    }
    lines
}

/// Returns the sampled requests of the side that is shown, each with its trace below it.
fn sampled_lines(call: &Call) -> Vec<String> {
    let Some(Sampled { slowest, failed }) = call.side().map(|side| &side.sampled) else { return Vec::new() };
    let requests = [("slowest trace", slowest), ("failed trace", failed)].into_iter();
    let lines = |(name, request): (&str, &Option<SampledRequest>)| {
        let SampledRequest { trace_id, duration_ms, code, grpc_status } = request.as_ref()?;
        let status = grpc_status.as_ref().map_or_else(|| (**code).to_owned(), |status| format!("gRPC {}", &**status));
        let took = format::milliseconds(*duration_ms);
        Some([format!("  {}{took:>9} {status:>8}", fill(name, 14)), format!("  {}", &**trace_id)])
    };
    requests.filter_map(lines).flatten().collect()
}

fn draw_course(app: &App, frame: &mut Frame<'_>, area: Rect, is_tcp: bool, course: &Course) {
    let per_second = |value: f64| format!("{}/s", format::short(value));
    let bytes_per_second = |value: f64| format!("{}/s", format::bytes(value));
    let at_most = |value: f64| match value {
        0.0 => format::NONE.to_owned(),
        value => format!("≤ {}", format::milliseconds(value)),
    };
    type Text<'a> = &'a dyn Fn(f64) -> String;
    let courses: [(&str, &[f64], Text<'_>); 4] = [
        ("rate", &course.rate, &per_second),
        ("errors", &course.errors, &format::percent),
        ("p99", &course.p99, &at_most),
        ("bytes", &course.bytes, &bytes_per_second),
    ];
    let over = format!(" the last {}; at the right the largest value", format::duration(course.seconds));
    let mut rows = area.rows();
    // On a small screen the courses matter more than their title.
    if area.height > 4
        && let Some(row) = rows.next()
    {
        frame.render_widget(Line::styled(over, app.palette.aside()), row);
    }
    // Connections have neither errors nor durations.
    let courses = courses.into_iter().filter(|(name, ..)| !is_tcp || matches!(*name, "rate" | "bytes"));
    for ((name, values, text), row) in courses.zip(rows) {
        let parts = [Constraint::Length(COURSE_NAME), Constraint::Max(COURSE), Constraint::Length(COURSE_MOST)];
        let [left, middle, right] = Layout::horizontal(parts).flex(Flex::Start).areas(row);
        let values = values.get(values.len().saturating_sub(middle.width.into())..).unwrap_or_default();
        let most = values.iter().copied().fold(0.0, f64::max);
        frame.render_widget(Line::raw(format!(" {name}")), left);
        frame.render_widget(Line::raw(text(most)).right_aligned(), right);
        // Values below the smallest bar are not nothing.
        let bars = values.iter().map(|value| if *value > 0.0 { (value / most * STEPS).max(STEPS / 8.0) } else { 0.0 });
        let bars = bars.map(|bar| bar as u64).collect::<Vec<_>>();
        frame.render_widget(Sparkline::default().data(&bars).max(STEPS as u64).style(app.palette.course()), middle);
    }
}

fn recent(side: &Side, figure: impl Fn(&Counts) -> Option<String>) -> Option<String> {
    side.recent.as_ref().and_then(figure)
}

fn share(side: &Side, of: fn(&Counts) -> f64) -> Option<String> {
    recent(side, |recent| (recent.requests > 0.0).then(|| format::percent(of(recent) / recent.requests)))
}

fn duration(side: &Side, of: fn(&Counts) -> Option<f64>) -> Option<String> {
    recent(side, |recent| of(recent).map(format::milliseconds))
}

fn bytes(side: &Side, of: fn(&Counts) -> f64) -> Option<String> {
    recent(side, |recent| Some(format::bytes(of(recent))))
}

/// Returns gRPC messages in both directions, if there are any.
fn messages(Counts { request_messages, response_messages, .. }: &Counts) -> Option<String> {
    (request_messages + response_messages > 0.0)
        .then(|| format!("{}/{}", format::short(*request_messages), format::short(*response_messages)))
}
