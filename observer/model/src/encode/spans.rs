//! Spans in the formats of tracing systems.

#[cfg(test)]
mod fixture;
pub mod otlp;
pub mod wavefront;
pub mod zipkin;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use crate::{Snapshot, span::Span};

/// Returns the spans of a snapshot by the workload that they are of, those of one beside each other.
fn by_workload(snapshot: &Snapshot) -> Vec<&Span> {
    let mut spans: Vec<&Span> = snapshot.spans.iter().collect();
    // Of most workloads there is one copy; a second one is only another group.
    spans.sort_by_key(|span| Arc::as_ptr(span.own()));
    spans
}

/// Returns microseconds since 1970.
fn microseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
