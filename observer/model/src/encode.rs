//! Encoders: each renders the [families](crate::Family) of a snapshot in one format.

#![cfg_attr(
    not(test),
    deny(
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice,
        clippy::unreachable,
        clippy::unwrap_used
    )
)]

mod delta;
pub mod json;
pub mod native_histogram;
pub mod otlp;
pub mod prometheus;
pub mod protobuf;
pub mod remote_write;
pub mod selection;
pub mod spans;
pub mod wavefront;
mod wire;
mod words;

use std::sync::Arc;

use bytes::Bytes;

use crate::Snapshot;

/// Part of a push, sent in one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The encoded points, without compression.
    pub body: Bytes,
    /// Number of points.
    pub points: u64,
    /// Encoding and content of the body.
    pub form: Form,
}

/// Encoding and content of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Wavefront lines of one value.
    Points,
    /// Wavefront lines of many values, for which some receivers have an endpoint of their own.
    Distributions,
    /// An OTLP `ExportMetricsServiceRequest`.
    Otlp,
    /// A `Request` of Prometheus remote write 2.0.
    RemoteWrite,
    /// An OTLP `ExportTraceServiceRequest`.
    OtlpSpans,
    /// An array of Zipkin's spans.
    Zipkin,
    /// Wavefront lines of spans.
    WavefrontSpans,
}

impl Form {
    /// All forms.
    pub const ALL: [Self; 7] = [
        Self::Points,
        Self::Distributions,
        Self::Otlp,
        Self::RemoteWrite,
        Self::OtlpSpans,
        Self::Zipkin,
        Self::WavefrontSpans,
    ];

    /// Returns the word for it in file names.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Points => "points",
            Self::Distributions => "distributions",
            Self::Otlp => "otlp",
            Self::RemoteWrite => "remote-write",
            Self::OtlpSpans => "otlp-spans",
            Self::Zipkin => "zipkin",
            Self::WavefrontSpans => "wavefront-spans",
        }
    }
}

impl Batch {
    /// Splits the batch in about half; `None` if it has only one point, or cannot be read.
    #[must_use]
    pub fn split(&self) -> Option<(Self, Self)> {
        match self.form {
            Form::Points | Form::Distributions | Form::WavefrontSpans => wavefront::split(self),
            Form::Otlp => otlp::split(self),
            Form::RemoteWrite => remote_write::split(self),
            Form::OtlpSpans => spans::otlp::split(self),
            Form::Zipkin => spans::zipkin::split(self),
        }
    }
}

/// Renders snapshots as batches.
pub trait Encoder: Send + 'static {
    /// Returns the batches of one push, rendered on demand.
    fn encode(&mut self, snapshot: Arc<Snapshot>) -> Box<dyn Iterator<Item = Batch> + Send + '_>;

    /// Whether it renders the spans of snapshots, and no families.
    fn takes_spans(&self) -> bool {
        false
    }

    /// Returns the batches that end what was sent: none for most receivers.
    fn end(&mut self) -> Box<dyn Iterator<Item = Batch> + Send + '_> {
        Box::new(std::iter::empty())
    }

    /// Returns how many points broke the format's rules so far, by reason.
    fn rejected(&self) -> Vec<(&'static str, u64)>;

    /// Returns how many points the configured filters held back so far.
    fn filtered(&self) -> u64;
}
