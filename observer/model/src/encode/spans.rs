//! Spans in the formats of tracing systems.

pub mod otlp;

use std::sync::Arc;

use crate::{Snapshot, span::Span};

/// Returns the spans of a snapshot by the workload that they are of, those of one beside each other.
fn by_workload(snapshot: &Snapshot) -> Vec<&Span> {
    let mut spans: Vec<&Span> = snapshot.spans.iter().collect();
    // Of most workloads there is one copy; a second one is only another group.
    spans.sort_by_key(|span| Arc::as_ptr(span.own()));
    spans
}
