//! Options of the encoder.

use crate::encode::words::words;

/// Naming scheme.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Names {
    /// Names and labels of `/metrics`.
    #[default]
    Istio,
    /// Durations and sizes of requests under the names, units and attributes of OpenTelemetry's semantic conventions,
    /// beside Istio's labels; the rest as in [`Names::Istio`].
    Semconv,
}

/// What a total covers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Temporality {
    /// Everything since the series began.
    #[default]
    Cumulative,
    /// What was added since the last push.
    Delta,
}

/// How the histograms of requests are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Histograms {
    /// With Istio's buckets.
    #[default]
    Explicit,
    /// With exponential buckets, from the log-linear cells of the kernel.
    Exponential,
}

/// Encoder options.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Naming scheme.
    pub names: Names,
    /// What totals cover.
    pub temporality: Temporality,
    /// How histograms are sent.
    pub histograms: Histograms,
    /// Further attributes of the resource; they replace the observer's own.
    pub resource: Vec<(String, String)>,
}

words!(Names: "istio or semconv", "istio" = Istio, "semconv" = Semconv);
words!(Temporality: "cumulative or delta", "cumulative" = Cumulative, "delta" = Delta);
words!(Histograms: "explicit or exponential", "explicit" = Explicit, "exponential" = Exponential);
