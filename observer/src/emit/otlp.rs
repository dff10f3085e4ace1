//! Delivery of OTLP requests: over HTTP/1.1, or to a gRPC server.

pub mod grpc;
pub mod http;

use observer_model::encode::otlp::answer::partial_success;

use super::{Accepted, http::readable};

/// Reads an `ExportMetricsServiceResponse`.
fn accepted(response: &[u8]) -> Accepted {
    let (refused, reason) = partial_success(response).unwrap_or_default();
    Accepted { refused, reason: readable(&reason) }
}
