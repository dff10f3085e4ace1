//! Receivers of spans, each with a reader of its own: what the observer has sent, as it was understood.

pub mod otlp;
pub mod wavefront;
pub mod zipkin;

use std::collections::BTreeMap;

use anyhow::Result;

/// Receives spans in one format.
pub trait Receiver: Send {
    /// Returns the URL for `--emit`.
    fn url(&self) -> String;

    /// Returns the spans so far.
    fn spans(&self) -> Result<Vec<Span>>;
}

/// A span as a receiver has it.
#[derive(Clone, Debug)]
pub struct Span {
    /// Trace id.
    pub trace_id: u128,
    /// Id.
    pub id: u64,
    /// Parent's id; 0 without one.
    pub parent_id: u64,
    /// Whether it is a client's; else a server's.
    pub is_client: bool,
    /// Service that it is of.
    pub service: String,
    /// Start, nanoseconds since 1970.
    pub start_ns: u64,
    /// End, nanoseconds since 1970.
    pub end_ns: u64,
    /// Whether it is marked as failed.
    pub is_error: bool,
    /// Its attributes or tags, those of its resource included.
    pub attributes: BTreeMap<String, String>,
}

impl Span {
    /// Returns an attribute, empty if it is absent.
    pub fn attribute(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }

    /// Returns the duration in milliseconds.
    #[expect(clippy::cast_precision_loss, reason = "a duration of a test")]
    pub fn milliseconds(&self) -> f64 {
        self.end_ns.saturating_sub(self.start_ns) as f64 / 1e6
    }
}
