//! Spans: sampled requests that have ended, as one end of the traces that their headers name.

mod id;
mod target;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use observer_common::{GRPC_NONE, GRPC_UNKNOWN, Leg, Method, STATUS_UNKNOWN, SeriesKey};

pub use self::target::Target;
use crate::{
    catalogue::span_tags,
    labels::{MeshLabels, Peer, Protocol, Service, UNKNOWN},
};

/// A sampled request, as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpanReading {
    /// The series in which it was counted.
    pub key: SeriesKey,
    /// Its trace.
    pub trace_id: u128,
    /// The span that its header names.
    pub parent_id: u64,
    /// Its first byte.
    pub start: SystemTime,
    /// First request byte to last response byte.
    pub duration: Duration,
    /// Wire bytes by direction.
    pub bytes: [u64; 2],
    /// What it asks for.
    pub target: Target,
}

impl SpanReading {
    /// Returns which end it is of.
    #[must_use]
    pub fn kind(&self) -> SpanKind {
        if self.key.leg == Leg::SOURCE { SpanKind::Client } else { SpanKind::Server }
    }
}

/// Which end of a request a span is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    /// The caller's: the source leg.
    Client,
    /// The application's: the destination leg.
    Server,
}

/// A span.
#[derive(Clone, Debug)]
pub struct Span {
    /// Its request, as the kernel has it.
    pub request: SpanReading,
    /// Which end it is of.
    pub kind: SpanKind,
    /// Its id; never zero.
    pub id: u64,
    labels: Arc<MeshLabels>,
}

/// Value of an attribute.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Attribute<'a> {
    /// A text.
    Text(&'a str),
    /// A whole number.
    Integer(i64),
}

impl Span {
    /// Returns the span of a request with these labels.
    #[must_use]
    pub(crate) fn new(labels: Arc<MeshLabels>, request: SpanReading) -> Self {
        Self { kind: request.kind(), id: id::of(&request), labels, request }
    }

    /// Returns its name: the method of gRPC, else that of HTTP. A path is not of a bounded number of names (semantic
    /// conventions of HTTP and of gRPC, "Name").
    #[must_use]
    pub fn name(&self) -> &str {
        let Target { method, path } = &self.request.target;
        if self.is_grpc() {
            let call = path.strip_prefix('/').unwrap_or_default();
            if call.is_empty() { "grpc" } else { call }
        } else if is_method(method) {
            method
        } else {
            "HTTP"
        }
    }

    /// Returns its end.
    #[must_use]
    pub fn end(&self) -> SystemTime {
        self.request.start.checked_add(self.request.duration).unwrap_or(self.request.start)
    }

    /// Returns the workload that it is of.
    #[must_use]
    pub fn own(&self) -> &Arc<Peer> {
        if self.kind == SpanKind::Client { &self.labels.source } else { &self.labels.destination }
    }

    /// Returns the workload at the other end.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        if self.kind == SpanKind::Client { &self.labels.destination } else { &self.labels.source }
    }

    /// Returns the service that was called.
    #[must_use]
    pub fn service(&self) -> &Service {
        &self.labels.service
    }

    /// Returns whether it is of gRPC.
    #[must_use]
    pub fn is_grpc(&self) -> bool {
        self.labels.protocol == Protocol::Grpc
    }

    /// Returns the HTTP status; `None` if there was none, or it is not known.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        Some(self.request.key.status).filter(|status| *status != 0 && *status != STATUS_UNKNOWN)
    }

    /// Returns the gRPC status; `None` if there was none, or it is not known.
    #[must_use]
    pub fn grpc_status(&self) -> Option<u32> {
        let status = self.request.key.grpc_status;
        let is_known = status != GRPC_NONE && status != GRPC_UNKNOWN;
        u32::try_from(status).ok().filter(|_| is_known)
    }

    /// Returns what failed, as the attribute `error.type`; `None` if nothing did. For a server what its client did wrong is not
    /// its own failure (semantic conventions of HTTP and of gRPC, "Span status").
    #[must_use]
    pub fn error(&self) -> Option<String> {
        let is_client = self.kind == SpanKind::Client;
        if let Some(status) = self.grpc_status().filter(|_| self.is_grpc()) {
            let fails = status != 0 && is_client || matches!(status, 2 | 4 | 12 | 13 | 14 | 15);
            return fails.then(|| status.to_string());
        }
        match self.status() {
            Some(status) => (status >= 500 || is_client && status >= 400).then(|| status.to_string()),
            None => Some("no_response".to_owned()),
        }
    }

    /// Calls `each` with the name and value of every attribute, by OpenTelemetry's semantic conventions and Istio's tags.
    pub fn attributes(&self, mut each: impl FnMut(&'static str, Attribute<'_>)) {
        let Target { method, path } = &self.request.target;
        if self.is_grpc() {
            each("rpc.system", Attribute::Text("grpc"));
            if let Some((service, method)) = path.strip_prefix('/').and_then(|call| call.rsplit_once('/')) {
                each("rpc.service", Attribute::Text(service));
                each("rpc.method", Attribute::Text(method));
            }
        } else if !path.is_empty() {
            each("url.path", Attribute::Text(path));
        }
        if is_method(method) {
            each("http.request.method", Attribute::Text(method));
        } else if !method.is_empty() {
            each("http.request.method", Attribute::Text("_OTHER"));
            each("http.request.method_original", Attribute::Text(method));
        }
        if let Some(status) = self.status() {
            each("http.response.status_code", Attribute::Integer(status.into()));
        }
        if let Some(status) = self.grpc_status() {
            each("rpc.grpc.status_code", Attribute::Integer(status.into()));
        }
        if let Some(error) = self.error() {
            each("error.type", Attribute::Text(&error));
        }
        let [request, response] = self.request.bytes.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
        each("http.request.size", Attribute::Integer(request));
        each("http.response.size", Attribute::Integer(response));
        let (own, peer) = (&**self.own(), self.peer());
        let called = if self.kind == SpanKind::Client { &*peer.canonical_service } else { UNKNOWN };
        for (name, value) in [
            ("server.address", &*self.service().host),
            ("peer.service", called),
            (span_tags::CANONICAL_SERVICE, &*own.canonical_service),
            (span_tags::CANONICAL_REVISION, &*own.canonical_revision),
            (span_tags::NAMESPACE, &*own.namespace),
            (span_tags::CLUSTER_ID, &*own.cluster),
        ] {
            if is_known(value) {
                each(name, Attribute::Text(value));
            }
        }
    }
}

/// Returns whether a method is one that the semantic conventions know.
fn is_method(method: &str) -> bool {
    Method::NAMES.contains(&method) || method == "TRACE"
}

/// Returns whether a label says something.
pub(crate) fn is_known(value: &str) -> bool {
    !value.is_empty() && value != UNKNOWN
}
