//! Draws the node's lines, as many as there is room for.

use ratatui::{Frame, layout::Rect, text::Line};

use super::cut;
use crate::{app::App, node};

pub(super) fn draw(app: &mut App, frame: &mut Frame<'_>, area: Rect) {
    let width = usize::from(area.width);
    let mut lines: Vec<Line<'_>> = Vec::new();
    for line in node::lines(&app.loaded.document) {
        let style = if line.is_title { app.palette.title() } else { app.palette.of(line.health) };
        let indent = if line.is_title { " " } else { "   " };
        let room = width.saturating_sub(indent.len());
        lines.extend(wrapped(&line.text, room).into_iter().map(|text| Line::styled(format!("{indent}{text}"), style)));
    }
    let room = usize::from(area.height);
    app.scrolled = app.scrolled.min(lines.len().saturating_sub(room));
    for (line, row) in lines.into_iter().skip(app.scrolled).zip(area.rows()) {
        frame.render_widget(line, row);
    }
}

/// Returns the text in lines of at most this width, broken between words.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if Line::raw(line.as_str()).width() + 1 + Line::raw(word).width() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(cut(word, width)),
        }
    }
    lines
}
