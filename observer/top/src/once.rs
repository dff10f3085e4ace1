//! `observer top --once`: what is shown now as plain text.

use std::fmt::Write as _;

use ratatui::text::Span;

use crate::{
    calls::{Call, Sums, calls},
    column::{Column, Order},
    document::Document,
    format, node,
    palette::mark,
};

/// Returns the text: figures over all calls, a line per call that matches the filter, the node in short.
#[must_use]
pub fn page(mut document: Document, order: Order, filter: &str) -> String {
    let calls = calls(std::mem::take(&mut document.edges));
    let mut rows: Vec<&Call> = calls.iter().filter(|call| call.matches(&filter.trim().to_lowercase())).collect();
    rows.sort_by(|one, other| order.compare(one, other));
    let over = document.window_seconds.map(|seconds| format!(" · over {}", format::duration(seconds)));
    let mut page = format!(
        "mesh observer {} · {} · {}{}\n{}\n\n",
        &*document.version,
        &*document.node,
        format::clock(document.at),
        over.unwrap_or_default(),
        node::summary(&document, &Sums::of(&calls)),
    );
    table(&mut page, &rows);
    page.push('\n');
    for line in node::brief(&document) {
        page.push_str(&line.text);
        page.push('\n');
    }
    page
}

fn table(page: &mut String, rows: &[&Call]) {
    let head = Column::ALL.map(|column| column.title().to_owned());
    let lines: Vec<_> = [("", head)]
        .into_iter()
        .chain(rows.iter().map(|call| (mark(call.health()), Column::ALL.map(|column| column.text(call)))))
        .collect();
    let width = |text: &str| Span::raw(text).width();
    let widths: Vec<usize> = (0..Column::ALL.len())
        .map(|place| lines.iter().filter_map(|(_, cells)| cells.get(place)).map(|text| width(text)).max().unwrap_or(0))
        .collect();
    for (mark, cells) in &lines {
        let mut line = format!("{mark:<2}");
        for ((column, text), most) in Column::ALL.iter().zip(cells).zip(&widths) {
            let space = " ".repeat(most - width(text));
            let [before, after] = if column.is_text() { ["", &space] } else { [&*space, ""] };
            // Writing to a text cannot fail.
            let _ = write!(line, " {before}{text}{after} ");
        }
        page.push_str(line.trim_end());
        page.push('\n');
    }
}
