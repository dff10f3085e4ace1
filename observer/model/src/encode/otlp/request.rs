//! Requests: metrics of one resource and one scope, put together and split again.

use super::{
    MAX_BATCH_BYTES,
    conventions::{Kind, unit},
    is_monotonic,
    options::{Histograms, Options, Temporality},
    stream::StreamValue,
};
use crate::{
    Family,
    encode::{
        Batch, Form,
        wire::{Field, Fields, put_bytes, put_length, put_message, put_uint, varint_size},
    },
    scraped::Suffix,
};

/// Field of a request, and of each message below it, in which the next one is.
const RESOURCE_METRICS: u32 = 1;
const SCOPE_METRICS: u32 = 2;
const METRICS: u32 = 2;
pub(super) const DATA_POINTS: u32 = 1;
/// Field of the resource and of the scope beside them.
const OWN: u32 = 1;
/// `aggregation_temporality` and `is_monotonic` of a sum or histogram.
const TEMPORALITY: u32 = 2;
const MONOTONIC: u32 = 3;

/// Kinds of data: the number is the field of `Metric`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Data {
    Gauge = 5,
    Sum = 7,
    Histogram = 9,
    Exponential = 10,
    Summary = 11,
}

/// A metric without its points.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MetricHead {
    pub(super) name: String,
    /// Encoded name, description and unit.
    fields: Vec<u8>,
    data: Data,
    /// Suffix of the name, of samples that are metrics of their own.
    sample: Suffix,
    /// Encoded fields behind the points.
    suffix: Vec<u8>,
}

impl MetricHead {
    /// Returns the metric that a point of `family` belongs to.
    pub(super) fn new(family: &Family<'_>, kind: Kind, value: &StreamValue<'_>, options: &Options) -> Self {
        let (data, sample) = shape(family, value, options);
        let name = format!("{}{}", kind.name(family), sample.text());
        let mut fields = Vec::new();
        put_bytes(&mut fields, 1, name.as_bytes());
        put_bytes(&mut fields, 2, family.help().as_bytes());
        let unit = kind.unit().map_or_else(|| unit(family.name(), family.unit()), Into::into);
        if !unit.is_empty() {
            put_bytes(&mut fields, 3, unit.as_bytes());
        }
        let mut suffix = Vec::new();
        if matches!(data, Data::Sum | Data::Histogram | Data::Exponential) {
            let temporality = if options.temporality == Temporality::Delta { 1 } else { 2 };
            put_uint(&mut suffix, TEMPORALITY, temporality);
        }
        if data == Data::Sum {
            put_uint(&mut suffix, MONOTONIC, 1);
        }
        Self { name, fields, data, sample, suffix }
    }

    /// Returns whether another point of the same family and kind belongs to it.
    pub(super) fn has(&self, family: &Family<'_>, value: &StreamValue<'_>, options: &Options) -> bool {
        (self.data, self.sample) == shape(family, value, options)
    }

    /// Returns the field of a data point's attributes.
    pub(super) const fn attributes_field(&self) -> u32 {
        match self.data {
            Data::Gauge | Data::Sum | Data::Summary => 7,
            Data::Histogram => 9,
            Data::Exponential => 1,
        }
    }

    /// Whether its points are totals, of which a receiver of deltas gets the increase.
    pub(super) const fn is_cumulative(&self) -> bool {
        matches!(self.data, Data::Sum | Data::Histogram | Data::Exponential)
    }
}

/// Returns the kind of data that a point is, and the suffix of its metric's name.
fn shape(family: &Family<'_>, value: &StreamValue<'_>, options: &Options) -> (Data, Suffix) {
    let is_exponential = options.histograms == Histograms::Exponential;
    match value {
        StreamValue::Histogram(histogram) if is_exponential && histogram.has_cells() => {
            (Data::Exponential, Suffix::None)
        }
        StreamValue::Histogram(_) | StreamValue::Scraped(_) => (Data::Histogram, Suffix::None),
        StreamValue::Summary(_) => (Data::Summary, Suffix::None),
        StreamValue::Number(_) if is_monotonic(family, value) => (Data::Sum, Suffix::None),
        StreamValue::Number(_) => (Data::Gauge, Suffix::None),
        StreamValue::Other { suffix, .. } => (Data::Gauge, *suffix),
    }
}

/// A request that is put together.
#[derive(Debug)]
pub(super) struct RequestBuilder {
    /// Encoded resource and scope, with their keys.
    resource: Vec<u8>,
    scope: Vec<u8>,
    /// Encoded metrics that are complete, with their keys.
    metrics: Vec<u8>,
    open: Option<Open>,
    points: u64,
}

/// The metric to which points are added.
#[derive(Debug)]
struct Open {
    fields: Vec<u8>,
    data: u32,
    suffix: Vec<u8>,
    /// Encoded points, with their keys.
    points: Vec<u8>,
}

impl RequestBuilder {
    /// Begins a request of a resource with these attributes.
    pub(super) fn new(attributes: &[(String, String)]) -> Self {
        let (mut resource, mut scope) = (Vec::new(), Vec::new());
        put_message(&mut resource, OWN, |out| {
            for (name, value) in attributes {
                super::point::put_text_attribute(out, 1, name, value);
            }
        });
        put_message(&mut scope, OWN, |out| {
            put_bytes(out, 1, b"mesh-observer");
            put_bytes(out, 2, env!("CARGO_PKG_VERSION").as_bytes());
        });
        Self::of(resource, scope)
    }

    fn of(resource: Vec<u8>, scope: Vec<u8>) -> Self {
        Self { resource, scope, metrics: Vec::new(), open: None, points: 0 }
    }

    /// Adds an encoded point to the current metric, or to a new one of this head.
    pub(super) fn add(&mut self, head: &MetricHead, point: &[u8]) {
        let MetricHead { fields, data, suffix, .. } = head;
        let open = self.open.get_or_insert_with(|| Open {
            fields: fields.clone(),
            data: *data as u32,
            suffix: suffix.clone(),
            points: Vec::new(),
        });
        put_bytes(&mut open.points, DATA_POINTS, point);
        self.points += 1;
    }

    /// Completes the current metric.
    pub(super) fn close(&mut self) {
        let Some(Open { fields, data, suffix, points, .. }) = self.open.take() else { return };
        let length = points.len() + suffix.len();
        let size = fields.len() + varint_size(u64::from(data << 3)) + varint_size(length as u64) + length;
        put_length(&mut self.metrics, METRICS, size);
        self.metrics.extend_from_slice(&fields);
        put_length(&mut self.metrics, data, length);
        self.metrics.extend_from_slice(&points);
        self.metrics.extend_from_slice(&suffix);
    }

    /// Returns the size of the metrics so far.
    pub(super) fn size(&self) -> usize {
        self.metrics.len() + self.open.as_ref().map_or(0, |open| open.points.len())
    }

    /// Returns the request, and begins another one; `None` without points.
    pub(super) fn take(&mut self) -> Option<Batch> {
        self.close();
        let points = std::mem::take(&mut self.points);
        if points == 0 {
            return None;
        }
        let scope_metrics = self.scope.len() + self.metrics.len();
        let resource_metrics = self.resource.len() + 1 + varint_size(scope_metrics as u64) + scope_metrics;
        let mut body = Vec::with_capacity(resource_metrics + 8);
        put_length(&mut body, RESOURCE_METRICS, resource_metrics);
        body.extend_from_slice(&self.resource);
        put_length(&mut body, SCOPE_METRICS, scope_metrics);
        body.extend_from_slice(&self.scope);
        body.extend_from_slice(&self.metrics);
        self.metrics.clear();
        self.metrics.reserve(MAX_BATCH_BYTES.min(body.len()));
        Some(Batch { body: body.into(), points, form: Form::Otlp })
    }
}

/// Splits a request in half between data points; `None` if it has only one, or is not one of this encoder.
pub fn split(batch: &Batch) -> Option<(Batch, Batch)> {
    let resource_metrics = only(&batch.body, RESOURCE_METRICS)?.1;
    let (resource, scope_metrics) = only(resource_metrics, SCOPE_METRICS)?;
    let (scope, metrics) = only_first(scope_metrics, OWN)?;
    let half = batch.points / 2;
    let mut builders =
        [RequestBuilder::of(resource.to_vec(), scope.to_vec()), RequestBuilder::of(resource.to_vec(), scope.to_vec())];
    let mut seen = 0;
    for (field, value, _) in Fields::new(metrics) {
        let (METRICS, Field::Bytes(metric)) = (field, value) else { return None };
        let (fields, data, content) = parts(metric)?;
        let mut points = Vec::new();
        let mut suffix = Vec::new();
        for (field, value, range) in Fields::new(content) {
            match (field, value) {
                (DATA_POINTS, Field::Bytes(_)) => points.push(content.get(range)?),
                _ => suffix.extend_from_slice(content.get(range)?),
            }
        }
        for builder in &mut builders {
            builder.close();
        }
        for point in points {
            let builder = builders.get_mut(usize::from(seen >= half))?;
            let open = builder.open.get_or_insert_with(|| Open {
                fields: fields.to_vec(),
                data,
                suffix: suffix.clone(),
                points: Vec::new(),
            });
            open.points.extend_from_slice(point);
            builder.points += 1;
            seen += 1;
        }
    }
    let [mut first, mut second] = builders;
    (seen == batch.points).then_some(())?;
    Some((first.take()?, second.take()?))
}

/// Returns what is before the only message of this field, and the message, which is the last field.
fn only(message: &[u8], field: u32) -> Option<(&[u8], &[u8])> {
    let (_, value, range) = Fields::new(message).find(|(own, ..)| *own == field)?;
    let Field::Bytes(content) = value else { return None };
    (range.end == message.len()).then_some((message.get(..range.start)?, content))
}

/// Returns the first field with its key, and what is behind it.
fn only_first(message: &[u8], field: u32) -> Option<(&[u8], &[u8])> {
    let (own, _, range) = Fields::new(message).next()?;
    (own == field).then_some((message.get(..range.end)?, message.get(range.end..)?))
}

/// Returns name, description and unit of a metric with their keys, and its data with the field's number.
fn parts(metric: &[u8]) -> Option<(&[u8], u32, &[u8])> {
    let (field, value, range) = Fields::new(metric).find(|(field, ..)| *field > 3)?;
    let Field::Bytes(content) = value else { return None };
    (range.end == metric.len()).then_some((metric.get(..range.start)?, field, content))
}
