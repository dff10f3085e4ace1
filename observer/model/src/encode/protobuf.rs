//! Prometheus' protobuf exposition: delimited `io.prometheus.client.MetricFamily` messages [prometheus/client_model
//! `io/prometheus/client/metrics.proto`], streamed.
//!
//! The only format in which Prometheus takes native histograms; classic buckets stand beside them, and each counter and
//! histogram has the time at which it was 0. prost is not used: its messages own every string, and a family would be in
//! memory as a whole. A message's length precedes it, so a family larger than a chunk is rendered twice: to be measured,
//! and to be sent.

use std::{
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use bytes::Bytes;

use super::{
    native_histogram::FieldNumbers,
    prometheus::CHUNK,
    selection::Selection,
    wire::{put_bytes, put_double, put_length, put_message, put_pair, put_uint, put_varint, varint_size},
};
use crate::{
    Cursor, Family, HistogramView, Labels, Point, Snapshot, Value, exemplar::Exemplar, exposition::MetricType,
    scraped::Suffix,
};

/// `Content-Type` of this format.
pub const CONTENT_TYPE: &str =
    "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";

/// An exposition in chunks of at most [`CHUNK`] bytes, rendered on demand.
#[derive(Debug)]
pub struct ProtobufExposition {
    snapshot: Arc<Snapshot>,
    selection: Selection,
    family: usize,
    metrics: Metrics,
    /// Whether the beginning of the family is written, and its metrics are being.
    is_open: bool,
    /// The metrics of a family, up to the size of a chunk.
    first: Vec<u8>,
    bytes: Vec<u8>,
}

impl ProtobufExposition {
    /// Renders the selected families.
    #[must_use]
    pub fn of(snapshot: Arc<Snapshot>, selection: Selection) -> Self {
        Self {
            snapshot,
            selection,
            family: 0,
            metrics: Metrics::default(),
            is_open: false,
            first: Vec::new(),
            bytes: Vec::new(),
        }
    }

    /// Writes the next metric, or the next family up to its first metric, or all of it; `false` at the end.
    fn advance(&mut self) -> bool {
        let Self { snapshot, selection, family: index, metrics, is_open, first, bytes } = self;
        let Some(family) = snapshot.family(*index) else { return false };
        if *is_open {
            match metrics.next(&family) {
                Some(metric) => put_bytes(bytes, METRIC, metric),
                None => (*index, *is_open) = (*index + 1, false),
            }
            return true;
        }
        if !selection.contains(family.name()) {
            *index += 1;
            return true;
        }
        let mut length = 0;
        first.clear();
        metrics.restart();
        while let Some(metric) = metrics.next(&family) {
            if length == first.len() && length < CHUNK {
                put_bytes(first, METRIC, metric);
            }
            length += 1 + varint_size(metric.len() as u64) + metric.len();
        }
        if length > 0 {
            let header = header(&family);
            put_varint(bytes, (header.len() + length) as u64);
            bytes.extend_from_slice(&header);
        }
        if length == first.len() {
            bytes.append(first);
            *index += 1;
        } else {
            metrics.restart();
            *is_open = true;
        }
        true
    }
}

impl Iterator for ProtobufExposition {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        while self.bytes.len() < CHUNK && self.advance() {}
        if self.bytes.is_empty() {
            return None;
        }
        let rest = self.bytes.split_off(self.bytes.len().min(CHUNK));
        Some(std::mem::replace(&mut self.bytes, rest).into())
    }
}

/// `MetricFamily.metric`.
const METRIC: u32 = 4;
/// Fields of `Histogram`.
const NATIVE: FieldNumbers = FieldNumbers { schema: 5, zero_threshold: 6, zero_count: 7, spans: 12, deltas: 13 };

/// Returns name, help and type of a family.
fn header(family: &Family<'_>) -> Vec<u8> {
    let mut header = Vec::new();
    put_bytes(&mut header, 1, family.name().as_bytes());
    put_bytes(&mut header, 2, family.help().as_bytes());
    put_uint(&mut header, 3, type_number(family.metric_type()));
    if !family.unit().is_empty() {
        put_bytes(&mut header, 5, family.unit().as_bytes());
    }
    header
}

const fn type_number(metric_type: MetricType) -> u64 {
    match metric_type {
        MetricType::Counter => 0,
        MetricType::Gauge | MetricType::Info | MetricType::StateSet => 1,
        MetricType::Summary => 2,
        MetricType::Unknown | MetricType::GaugeHistogram => 3,
        MetricType::Histogram => 4,
    }
}

/// The metrics of a family. Samples of one scraped histogram or summary, which are adjacent, are one metric.
#[derive(Debug, Default)]
struct Metrics {
    cursor: Cursor,
    is_over: bool,
    /// `Metric.label` of the samples that are collected, and of the next ones.
    labels: Vec<u8>,
    next_labels: Vec<u8>,
    /// Buckets or quantiles, sum and count of the samples that are collected.
    parts: Vec<u8>,
    sum: Option<f64>,
    count: Option<f64>,
    has_samples: bool,
    value: Vec<u8>,
    metric: Vec<u8>,
}

impl Metrics {
    /// Goes back to the first metric.
    fn restart(&mut self) {
        (self.cursor, self.is_over) = (Cursor::default(), false);
    }

    /// Returns the next `Metric`.
    fn next(&mut self, family: &Family<'_>) -> Option<&[u8]> {
        let metric_type = family.metric_type();
        // Those of the point before, if `next_labels` has them.
        let mut last: Option<Labels<'_>> = None;
        while !self.is_over {
            let Some(point) = family.next(&mut self.cursor) else {
                self.is_over = true;
                break;
            };
            if last.is_some_and(|last| last.is_same(&point.labels)) && metric_type == MetricType::Histogram {
                self.collect(&point.value, None);
                continue;
            }
            let quantile = self.read_labels(&point, metric_type);
            last = Some(point.labels);
            match (metric_type, point.value) {
                (MetricType::Histogram | MetricType::Summary, Value::Sample { .. } | Value::Real(_)) => {
                    let is_other = self.has_samples && self.labels != self.next_labels;
                    if is_other {
                        self.flush(metric_type);
                    }
                    self.labels.clone_from(&self.next_labels);
                    self.collect(&point.value, quantile);
                    if is_other {
                        return Some(&self.metric);
                    }
                }
                _ => {
                    self.single(metric_type, &point);
                    return Some(&self.metric);
                }
            }
        }
        if std::mem::take(&mut self.has_samples) {
            self.flush(metric_type);
            return Some(&self.metric);
        }
        None
    }

    /// Encodes a point's labels; returns the quantile, which is not one of them in a summary.
    fn read_labels(&mut self, point: &Point<'_>, metric_type: MetricType) -> Option<f64> {
        let labels = &mut self.next_labels;
        let mut quantile = None;
        labels.clear();
        point.labels.each(|name, value| {
            if metric_type == MetricType::Summary && name == "quantile" {
                quantile = value.parse().ok();
                return;
            }
            put_pair(labels, 1, name, value);
        });
        quantile
    }

    /// Adds a sample to the histogram or summary that is being collected.
    fn collect(&mut self, value: &Value<'_>, quantile: Option<f64>) {
        self.has_samples = true;
        self.value.clear();
        match *value {
            Value::Sample { suffix: Suffix::Sum, value, .. } => self.sum = Some(value),
            Value::Sample { suffix: Suffix::Count, value, .. } => self.count = Some(value),
            Value::Sample { suffix: Suffix::Bucket, bound: Some(bound), value } => {
                if let Ok(bound) = bound.parse() {
                    put_bucket(&mut self.parts, bound, whole(value));
                    // The last one has all values.
                    self.count = self.count.or((bound == f64::INFINITY).then_some(value));
                }
            }
            Value::Real(value) => {
                put_double(&mut self.value, 1, quantile.unwrap_or(f64::NAN));
                put_double(&mut self.value, 2, value);
                put_bytes(&mut self.parts, 3, &self.value);
            }
            _ => {}
        }
    }

    /// Ends the histogram or summary that was collected.
    fn flush(&mut self, metric_type: MetricType) {
        self.value.clear();
        put_uint(&mut self.value, 1, whole(self.count.take().unwrap_or(0.0)));
        put_double(&mut self.value, 2, self.sum.take().unwrap_or(f64::NAN));
        self.value.append(&mut self.parts);
        self.metric.clear();
        self.metric.extend_from_slice(&self.labels);
        put_bytes(&mut self.metric, if metric_type == MetricType::Summary { 4 } else { 7 }, &self.value);
    }

    /// Encodes a point that is a metric by itself.
    fn single(&mut self, metric_type: MetricType, point: &Point<'_>) {
        let (metric, value) = (&mut self.metric, &mut self.value);
        metric.clear();
        metric.extend_from_slice(&self.next_labels);
        value.clear();
        #[expect(clippy::cast_precision_loss, reason = "every value of this format is a double")]
        match point.value {
            Value::Integer(number) => put_double(value, 1, number as f64),
            Value::Real(number) | Value::Sample { value: number, .. } => put_double(value, 1, number),
            Value::Histogram(histogram) => {
                write_histogram(value, &histogram);
                write_created(value, 15, point);
                put_bytes(metric, 7, value);
                return;
            }
        }
        let number = match metric_type {
            MetricType::Counter => {
                write_created(value, 3, point);
                3
            }
            MetricType::Gauge | MetricType::Info | MetricType::StateSet => 2,
            _ => 5,
        };
        put_bytes(metric, number, value);
    }
}

fn write_histogram(bytes: &mut Vec<u8>, histogram: &HistogramView<'_>) {
    put_uint(bytes, 1, histogram.count());
    put_double(bytes, 2, histogram.sum());
    for (index, (bound, count)) in histogram.buckets().enumerate() {
        let Ok(bound) = bound.parse::<f64>() else { continue };
        match histogram.exemplar(index) {
            Some(exemplar) => put_bucket_with_exemplar(bytes, bound, count, exemplar),
            None if bound < f64::INFINITY => put_bucket(bytes, bound, count),
            // It has nothing that the count has not.
            None => {}
        }
    }
    if let Some(native) = histogram.native() {
        native.write(bytes, NATIVE);
    }
}

fn write_created(bytes: &mut Vec<u8>, number: u32, point: &Point<'_>) {
    let Some(created) = point.created else { return };
    put_time(bytes, number, created.duration_since(UNIX_EPOCH).unwrap_or_default());
}

/// Appends a `google.protobuf.Timestamp`.
fn put_time(bytes: &mut Vec<u8>, number: u32, since: Duration) {
    put_message(bytes, number, |timestamp| {
        put_uint(timestamp, 1, since.as_secs());
        put_uint(timestamp, 2, since.subsec_nanos().into());
    });
}

/// Appends `Histogram.bucket`.
fn put_bucket(bytes: &mut Vec<u8>, bound: f64, cumulative_count: u64) {
    put_length(bytes, 3, 1 + varint_size(cumulative_count) + 9);
    put_uint(bytes, 1, cumulative_count);
    put_double(bytes, 2, bound);
}

/// Appends `Histogram.bucket` with its `Exemplar`.
fn put_bucket_with_exemplar(bytes: &mut Vec<u8>, bound: f64, cumulative_count: u64, exemplar: &Exemplar) {
    put_message(bytes, 3, |bucket| {
        put_uint(bucket, 1, cumulative_count);
        put_double(bucket, 2, bound);
        put_message(bucket, 3, |out| {
            put_pair(out, 1, "trace_id", &exemplar.trace_text());
            put_pair(out, 1, "span_id", &exemplar.span_text());
            put_double(out, 2, exemplar.milliseconds());
            put_time(out, 3, exemplar.since_epoch());
        });
    });
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
fn whole(count: f64) -> u64 {
    count as u64
}

#[cfg(test)]
mod tests;
