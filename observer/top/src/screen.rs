//! Draws what is shown: title, one of the views, and a line of keys.

mod call;
mod help;
mod node;
mod table;

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::Style,
    text::{Line, Span},
};

use crate::{
    app::{App, Lost, View},
    calls::Health,
    format,
};

/// Below this size nothing is legible.
const LEAST: (u16, u16) = (40, 8);

impl App {
    /// Draws everything.
    pub fn draw(&mut self, frame: &mut Frame<'_>) {
        let area = frame.area();
        self.width = area.width;
        if area.width < LEAST.0 || area.height < LEAST.1 {
            let text = format!("{}x{} at least", LEAST.0, LEAST.1);
            return frame.render_widget(Line::raw(text), area);
        }
        let [title, body, keys] =
            Layout::vertical([Constraint::Length(1), Constraint::Min(0), Constraint::Length(1)]).areas(area);
        frame.render_widget(self.title(title.width), title);
        frame.render_widget(self.keys(keys.width), keys);
        if self.is_helping {
            help::draw(self, frame, body);
            return;
        }
        match self.view {
            View::Calls => table::draw(self, frame, body),
            View::Call => call::draw(self, frame, body),
            View::Node => node::draw(self, frame, body),
        }
    }

    fn title(&self, width: u16) -> Line<'static> {
        let document = &self.loaded.document;
        let name = format!("mesh observer {} · {} · {}", &*document.version, &*document.node, self.source);
        let at = format::clock(document.at);
        let (state, health) = match &self.lost {
            Some(Lost { since, .. }) => (format!("not reachable since {}", format::clock(*since)), Health::Bad),
            None if self.is_paused => (format!("PAUSED {at}"), Health::Warning),
            None => (format!("live {at}"), Health::Good),
        };
        let room = usize::from(width).saturating_sub(Span::raw(&state).width() + 3);
        let name = fill(&name, room);
        let style = self.palette.title();
        Line::from(vec![
            Span::styled(format!(" {name} "), style),
            Span::styled(state, style.patch(self.palette.of(health))),
        ])
    }

    fn keys(&self, width: u16) -> Line<'static> {
        if let Some(Lost { reason, .. }) = &self.lost {
            return Line::styled(cut(&format!(" {reason}"), width.into()), self.palette.of(Health::Bad));
        }
        if self.edited.is_some() {
            return Line::raw(cut(&format!(" filter: {}▏  Enter keep · Esc undo", self.filter), width.into()));
        }
        let keys = match self.view {
            _ if self.is_helping => "Esc back · q quit",
            View::Calls => "? help · s S sort · / filter · p pause · Enter details · Tab node · q quit",
            View::Call => "Esc back · ↑↓ other call · p pause · Tab node · ? help · q quit",
            View::Node => "Esc back · ↑↓ scroll · p pause · ? help · q quit",
        };
        let is_filtered = self.view == View::Calls && !self.is_helping && !self.filter.is_empty();
        let filter = if is_filtered { format!("filter: {} · ", self.filter) } else { String::new() };
        Line::styled(cut(&format!(" {filter}{keys}"), width.into()), self.palette.aside())
    }
}

/// Returns a text of at most this width; what is missing is marked.
fn cut(text: &str, width: usize) -> String {
    if Span::raw(text).width() <= width {
        return text.to_owned();
    }
    let mut room = width.saturating_sub(1);
    let mut short = String::new();
    for grapheme in Span::raw(text).styled_graphemes(Style::new()) {
        let Some(left) = room.checked_sub(Span::raw(grapheme.symbol).width()) else { break };
        room = left;
        short.push_str(grapheme.symbol);
    }
    if width > 0 {
        short.push('…');
    }
    short
}

/// Returns a text of exactly this width.
fn fill(text: &str, width: usize) -> String {
    let mut text = cut(text, width);
    let missing = width.saturating_sub(Span::raw(&text).width());
    text.extend(std::iter::repeat_n(' ', missing));
    text
}

/// Returns a part of an area as high as these lines, as far as there is room.
fn top(area: Rect, height: usize) -> Rect {
    Rect { height: area.height.min(height.try_into().unwrap_or(u16::MAX)), ..area }
}
