//! Sampled requests of an edge, by which a reader finds their traces.

use serde::Serialize;

use super::figures::Code;
use crate::exemplar::{Exemplar, Exemplars};

/// The sampled requests of one side that deserve a look.
#[derive(Debug, Default)]
pub(super) struct Sampled {
    slowest: Option<(Code, Exemplar)>,
    failed: Option<(Code, Exemplar)>,
}

impl Sampled {
    /// Adds those of a series with this response code.
    pub(super) fn add(&mut self, code: Code, exemplars: &Exemplars) {
        for exemplar in exemplars.iter() {
            // Of one bucket's requests the last one.
            let is_slower = |(_, other): &(Code, Exemplar)| (exemplar.bucket, exemplar.at) > (other.bucket, other.at);
            if self.slowest.as_ref().is_none_or(is_slower) {
                self.slowest = Some((code, *exemplar));
            }
            if code.is_error() && self.failed.as_ref().is_none_or(|(_, other)| exemplar.at > other.at) {
                self.failed = Some((code, *exemplar));
            }
        }
    }

    /// Returns what is shown of them; `None` if there are none.
    pub(super) fn view(&self) -> Option<SampledView> {
        let view = |request: &(Code, Exemplar)| RequestView::of(request.0, &request.1);
        let slowest = self.slowest.as_ref().map(view)?;
        Some(SampledView { slowest, failed: self.failed.as_ref().map(view) })
    }
}

/// The last request of the slowest bucket, and the last one that failed.
#[derive(Debug, Serialize)]
pub(super) struct SampledView {
    slowest: RequestView,
    #[serde(skip_serializing_if = "Option::is_none")]
    failed: Option<RequestView>,
}

#[derive(Debug, Serialize)]
struct RequestView {
    trace_id: String,
    span_id: String,
    duration_ms: f64,
    code: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    grpc_status: Option<String>,
    /// Its end, in seconds since 1970.
    at: f64,
}

impl RequestView {
    fn of(code: Code, exemplar: &Exemplar) -> Self {
        let (code, grpc_status) = code.texts();
        Self {
            trace_id: exemplar.trace_text(),
            span_id: exemplar.span_text(),
            duration_ms: exemplar.milliseconds(),
            code,
            grpc_status,
            at: exemplar.since_epoch().as_secs_f64(),
        }
    }
}
