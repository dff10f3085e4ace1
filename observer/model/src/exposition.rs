//! Streaming parser of Prometheus text 0.0.4 and OpenMetrics 1.0, without copies and in bounded memory.
//!
//! [`Parser::feed`] accepts chunks of any size and passes on an [`Event`] per line; only a line that spans two chunks
//! is buffered. A line that cannot be parsed becomes a [`Problem`] with its number and reason and is skipped.
//!
//! Deviations of exporters with an unambiguous meaning are accepted: CRLF, blanks between tokens, families without
//! `HELP` or `TYPE`, counters with and without `_total`. An unterminated last line is not, since its number may be cut.
//!
//! ```
//! use observer_model::exposition::{Event, Format, Parser};
//!
//! let mut values = Vec::new();
//! Parser::new(Format::Text).feed(b"a{x=\"1\"} 2\n", &mut |event| {
//!     if let Event::Sample(sample) = event {
//!         values.push((sample.name.to_owned(), sample.value));
//!     }
//! });
//! assert_eq!(values, [("a".to_owned(), 2.0)]);
//! ```

mod cursor;
mod event;
mod parser;
mod series_set;
#[cfg(test)]
mod tests;
mod text;

pub(crate) use self::text::unescape;
pub use self::{
    event::{Event, Exemplar, Format, LABELS, LINE_BYTES, MetricType, Part, Problem, Reason, Sample},
    parser::Parser,
    series_set::SeriesSet,
    text::{Labels, Word},
};
