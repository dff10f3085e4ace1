//! Draws the table of calls, between the figures over all of them and the node in short.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    text::{Line, Span},
    widgets::{Cell, Row, Table, TableState},
};

use super::cut;
use crate::{
    app::{App, Loaded},
    calls::{Call, Sums},
    column::Column,
    node,
    palette::mark,
};

/// Width of the marks before the rows.
const MARKS: u16 = 2;

pub(super) fn draw(app: &mut App, frame: &mut Frame<'_>, area: Rect) {
    let [summary, table, brief] =
        Layout::vertical([Constraint::Length(1), Constraint::Min(3), Constraint::Length(3)]).areas(area);
    let Loaded { document, calls } = &app.loaded;
    let width = area.width.into();
    let text = format!(" {}", node::summary(document, &Sums::of(calls)));
    frame.render_widget(Line::raw(cut(&text, width)), summary);
    let lines = node::brief(document);
    for (line, place) in lines.iter().zip(brief.rows()) {
        let text = cut(&format!(" {}", line.text), width);
        frame.render_widget(Line::styled(text, app.palette.of(line.health)), place);
    }
    draw_rows(app, frame, table);
}

fn draw_rows(app: &mut App, frame: &mut Frame<'_>, area: Rect) {
    let columns = Column::shown(area.width);
    let rows = app.rows();
    let place = app.place_in(&rows);
    let widths = widths(columns, &rows, area.width);
    let head = Row::new(
        [Cell::default()].into_iter().chain(columns.iter().map(|column| cell(*column, head(app, *column), u16::MAX))),
    );
    let lines = rows.iter().map(|call| {
        let health = call.health();
        let cells = columns.iter().zip(&widths).map(|(column, width)| cell(*column, column.text(call), *width));
        Row::new([Cell::from(mark(health))].into_iter().chain(cells)).style(app.palette.of(health))
    });
    let table = Table::new(lines, [MARKS].iter().chain(&widths).map(|width| Constraint::Length(*width)))
        .header(head.style(app.palette.title()))
        .row_highlight_style(app.palette.selected());
    let mut state = TableState::new().with_offset(app.offset).with_selected(place);
    frame.render_stateful_widget(table, area, &mut state);
    if rows.is_empty() {
        let nothing = if app.filter.is_empty() { "no call has been seen yet" } else { "no call matches the filter" };
        let below = Rect { y: area.y + 1, height: 1, ..area };
        frame.render_widget(Line::styled(format!("   {nothing}"), app.palette.aside()), below);
    }
    (app.offset, app.place) = (state.offset(), place.unwrap_or(0));
}

fn head(app: &App, column: Column) -> String {
    let arrow = match app.order {
        order if order.column != column => "",
        order if order.is_descending => "▼",
        _ => "▲",
    };
    format!("{}{arrow}", column.title())
}

fn cell(column: Column, text: String, width: u16) -> Cell<'static> {
    let line = Line::raw(cut(&text, width.into()));
    Cell::from(if column.is_text() { line } else { line.right_aligned() })
}

/// Returns the widths of columns: names share what the figures leave, and take no more than they need.
fn widths(columns: &[Column], rows: &[&Call], width: u16) -> Vec<u16> {
    let fixed: u16 = columns.iter().filter_map(|column| column.width()).sum();
    let gaps = u16::try_from(columns.len()).unwrap_or(0);
    let room = width.saturating_sub(MARKS + fixed + gaps);
    let need = |of: fn(&Call) -> &str| {
        let longest = rows.iter().map(|call| Span::raw(of(call)).width()).max().unwrap_or(0);
        u16::try_from(longest).unwrap_or(u16::MAX).max(5)
    };
    let (from, to) = (need(|call| &call.from), need(|call| &call.to));
    let from = from.min((room / 2).max(room.saturating_sub(to)));
    let of = |column: &Column| match column {
        Column::From => from,
        Column::To => to.min(room - from),
        other => other.width().unwrap_or(0),
    };
    columns.iter().map(of).collect()
}
