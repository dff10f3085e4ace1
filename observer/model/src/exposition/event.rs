//! What a line holds.

use super::text::{Labels, Word};

/// Longest line, bytes.
pub const LINE_BYTES: usize = 64 * 1024;
/// Most labels of one sample.
pub const LABELS: usize = 128;

/// Exposition format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text 0.0.4: timestamps in milliseconds, no end mark.
    Text,
    /// OpenMetrics 1.0: timestamps in seconds, exemplars, `# UNIT`, `# EOF`.
    OpenMetrics,
}

impl Format {
    /// Returns the `Content-Type`.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Type of a metric family, of both formats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MetricType {
    /// A total that only increases.
    Counter,
    /// A value that goes up and down.
    Gauge,
    /// Counts of values by upper bound.
    Histogram,
    /// Quantiles made by the exporter.
    Summary,
    /// A histogram that may fall.
    GaugeHistogram,
    /// One of several states.
    StateSet,
    /// Facts in labels.
    Info,
    /// `untyped`, `unknown` or not declared.
    #[default]
    Unknown,
}

impl MetricType {
    /// Returns the name as `# TYPE` lines have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Summary => "summary",
            Self::GaugeHistogram => "gaugehistogram",
            Self::StateSet => "stateset",
            Self::Info => "info",
            Self::Unknown => "unknown",
        }
    }
}

/// Which sample of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The value itself, or one quantile of a summary.
    Value,
    /// `_created`: when the total was 0.
    Created,
    /// `_bucket`: values up to the bound in the label `le`.
    Bucket,
    /// `_sum` or `_gsum`.
    Sum,
    /// `_count` or `_gcount`.
    Count,
}

/// Content of a line.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// `# HELP`.
    Help {
        /// The family.
        family: &'a str,
        /// Help text.
        text: Word<'a>,
    },
    /// `# TYPE`.
    Type {
        /// The family.
        family: &'a str,
        /// Its type.
        metric_type: MetricType,
    },
    /// `# UNIT`, OpenMetrics only.
    Unit {
        /// The family.
        family: &'a str,
        /// Its unit.
        unit: &'a str,
    },
    /// A sample.
    Sample(Sample<'a>),
    /// A line that cannot be parsed.
    Problem(Problem),
}

/// A line that cannot be parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line number, from 1.
    pub line: u64,
    /// Why.
    pub reason: Reason,
}

/// Why a line cannot be parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// Longer than [`LINE_BYTES`].
    TooLong,
    /// Not UTF-8.
    NotUtf8,
    /// No metric name where one is expected.
    Name,
    /// A label without name, `=`, quotes or separator.
    Label,
    /// The same label twice.
    LabelTwice,
    /// More labels than [`LABELS`].
    TooManyLabels,
    /// No number where the value is expected.
    Value,
    /// No number where the timestamp is expected, or text behind it.
    Timestamp,
    /// An invalid exemplar.
    Exemplar,
    /// An unknown type.
    Type,
    /// Text behind `# EOF`.
    AfterEnd,
    /// The exposition ends inside a line.
    Unended,
    /// OpenMetrics without `# EOF`: the exposition was cut.
    NoEnd,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 13] = [
        Self::TooLong,
        Self::NotUtf8,
        Self::Name,
        Self::Label,
        Self::LabelTwice,
        Self::TooManyLabels,
        Self::Value,
        Self::Timestamp,
        Self::Exemplar,
        Self::Type,
        Self::AfterEnd,
        Self::Unended,
        Self::NoEnd,
    ];

    /// Returns the label value it is counted under.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TooLong => "line_too_long",
            Self::NotUtf8 => "not_utf8",
            Self::Name => "name",
            Self::Label => "label",
            Self::LabelTwice => "label_twice",
            Self::TooManyLabels => "too_many_labels",
            Self::Value => "value",
            Self::Timestamp => "timestamp",
            Self::Exemplar => "exemplar",
            Self::Type => "type",
            Self::AfterEnd => "after_end",
            Self::Unended => "unended",
            Self::NoEnd => "no_end",
        }
    }
}

/// One sample.
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    /// Name of its family: that of the last `TYPE` or `HELP` if it matches, else its own.
    pub family: &'a str,
    /// Name on the line, suffix included.
    pub name: &'a str,
    /// Type of the family.
    pub metric_type: MetricType,
    /// Which sample of the family.
    pub part: Part,
    /// Labels in their order on the line.
    pub labels: Labels<'a>,
    /// The value.
    pub value: f64,
    /// Seconds since 1970, if given.
    pub timestamp: Option<f64>,
    /// One of the observed values, with its labels.
    pub exemplar: Option<Exemplar<'a>>,
}

/// An exemplar (OpenMetrics).
#[derive(Clone, Copy, Debug)]
pub struct Exemplar<'a> {
    /// Labels, often a trace.
    pub labels: Labels<'a>,
    /// The value.
    pub value: f64,
    /// Seconds since 1970, if given.
    pub timestamp: Option<f64>,
}
