//! Data points: attributes, times and values.

use std::time::SystemTime;

use super::{
    conventions::Attribute,
    exponential::{Buckets, Values},
    nanoseconds,
    stream::{Number, StreamValue, Summary},
};
use crate::{
    encode::{
        delta::Total,
        wire::{
            put_bytes, put_double, put_fixed64, put_length, put_message, put_uint, put_varint, varint_size, zigzag,
        },
    },
    exemplar::Exemplar,
};

/// Fields that all kinds of points have in common.
const START_TIME: u32 = 2;
const TIME: u32 = 3;
/// Fields of the exemplars of histograms and exponential histograms.
pub(super) const EXEMPLARS: u32 = 8;
pub(super) const EXPONENTIAL_EXEMPLARS: u32 = 11;
/// Fields of histograms and summaries.
const COUNT: u32 = 4;
const SUM: u32 = 5;

/// The numbers of a point that are totals.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Numbers {
    /// An integer, or the counts of a histogram by bucket.
    counts: Box<[u64]>,
    /// A real number, or the sum of a histogram's values.
    real: Option<f64>,
}

impl Numbers {
    /// Returns the numbers of a value.
    pub(super) fn of(value: &StreamValue<'_>) -> Self {
        match value {
            StreamValue::Number(Number::Integer(value)) => Self { counts: [*value].into(), real: None },
            StreamValue::Number(Number::Real(value)) => Self { counts: [].into(), real: Some(*value) },
            StreamValue::Histogram(histogram) => {
                let mut below = 0;
                let counts = histogram.buckets().map(|(_, upto)| upto - std::mem::replace(&mut below, upto));
                Self { counts: counts.collect(), real: Some(histogram.sum()) }
            }
            StreamValue::Scraped(histogram) => Self { counts: histogram.counts.clone().into(), real: histogram.sum },
            StreamValue::Summary(_) | StreamValue::Other { .. } => Self { counts: [].into(), real: None },
        }
    }

    /// Returns the number where `value` was, or `value` itself if it is not a total.
    pub(super) fn like(&self, value: Number) -> Number {
        match value {
            Number::Integer(own) => Number::Integer(self.counts.first().copied().unwrap_or(own)),
            Number::Real(own) => Number::Real(self.real.unwrap_or(own)),
        }
    }
}

impl Total for Numbers {
    fn since(&self, older: &Self) -> Option<Self> {
        let counts = self.counts.iter().zip(&older.counts).map(|(own, older)| own.checked_sub(*older));
        let real = match (self.real, older.real) {
            // The sum of a histogram may fall if values are negative; its counts tell whether it restarted.
            (Some(own), Some(older)) if older <= own || !self.counts.is_empty() => Some(own - older),
            (None, None) => None,
            _ => return None,
        };
        (self.counts.len() == older.counts.len()).then_some(())?;
        Some(Self { counts: counts.collect::<Option<_>>()?, real })
    }
}

/// Writes one point after the other.
#[derive(Debug)]
pub(super) struct PointWriter {
    at: u64,
    /// The point so far.
    pub(super) message: Vec<u8>,
    /// Size of the attributes, which come first.
    attributes: usize,
}

impl PointWriter {
    /// Returns a writer of points at this time.
    pub(super) fn new(at: SystemTime) -> Self {
        Self { at: nanoseconds(at), message: Vec::new(), attributes: 0 }
    }

    /// Begins a point with the attributes that `each` is called with. Empty ones are left out, as they equal absent ones.
    pub(super) fn begin(&mut self, field: u32, attributes: impl FnOnce(&mut dyn FnMut(&str, Attribute<'_>))) {
        self.message.clear();
        attributes(&mut |name, value| match value {
            Attribute::Text("") => {}
            Attribute::Text(value) => put_text_attribute(&mut self.message, field, name, value),
            Attribute::Integer(value) => put_message(&mut self.message, field, |out| {
                put_bytes(out, 1, name.as_bytes());
                put_message(out, 2, |out| put_uint(out, 3, value));
            }),
        });
        self.attributes = self.message.len();
    }

    /// Returns the encoded attributes of the current point.
    pub(super) fn attributes(&self) -> &[u8] {
        self.message.get(..self.attributes).unwrap_or_default()
    }

    /// Writes a number, of a total that was 0 at `since`.
    pub(super) fn number(&mut self, value: Number, since: Option<SystemTime>) {
        self.times(since);
        match value {
            Number::Integer(value) => match i64::try_from(value) {
                Ok(value) => put_fixed64(&mut self.message, 6, value as u64),
                #[expect(clippy::cast_precision_loss, reason = "no signed integer is as large")]
                Err(_) => put_double(&mut self.message, 4, value as f64),
            },
            Number::Real(value) => put_double(&mut self.message, 4, value),
        }
    }

    /// Writes a histogram with these upper bounds, which are multiplied by `factor` as its sum is.
    pub(super) fn histogram(
        &mut self,
        Numbers { counts, real }: &Numbers,
        bounds: impl Iterator<Item = f64>,
        factor: f64,
        since: Option<SystemTime>,
    ) {
        self.times(since);
        let out = &mut self.message;
        put_fixed64(out, COUNT, counts.iter().sum());
        if let Some(sum) = real {
            put_double(out, SUM, sum * factor);
        }
        put_length(out, 6, counts.len() * 8);
        counts.iter().for_each(|count| out.extend_from_slice(&count.to_le_bytes()));
        put_length(out, 7, counts.len().saturating_sub(1) * 8);
        for bound in bounds.filter(|bound| bound.is_finite()) {
            out.extend_from_slice(&(bound * factor).to_le_bytes());
        }
    }

    /// Adds the exemplars of a histogram since `since`, in the field of its kind of point.
    pub(super) fn exemplars<'a>(
        &mut self,
        field: u32,
        exemplars: impl Iterator<Item = &'a Exemplar>,
        factor: f64,
        since: Option<SystemTime>,
    ) {
        for exemplar in exemplars.filter(|exemplar| since.is_none_or(|since| exemplar.at >= since)) {
            put_message(&mut self.message, field, |out| {
                put_fixed64(out, 2, nanoseconds(exemplar.at).min(self.at));
                put_double(out, 3, exemplar.milliseconds() * factor);
                put_bytes(out, 4, &exemplar.span_id.to_be_bytes());
                put_bytes(out, 5, &exemplar.trace_id.to_be_bytes());
            });
        }
    }

    /// Writes an exponential histogram of histogram `index` of a series.
    pub(super) fn exponential(&mut self, values: &Values, index: usize, factor: f64) {
        self.times(Some(values.since));
        let buckets = Buckets::new(&values.cells, index, factor);
        let out = &mut self.message;
        put_fixed64(out, COUNT, values.cells.iter().map(|(_, count)| count).sum());
        put_double(out, SUM, values.sum * factor);
        put_uint(out, 6, zigzag(buckets.scale.into()));
        put_fixed64(out, 7, buckets.zeroes);
        if !buckets.counts.is_empty() {
            put_message(out, 8, |out| {
                put_uint(out, 1, zigzag(buckets.offset.into()));
                put_length(out, 2, buckets.counts.iter().map(|count| varint_size(*count)).sum());
                buckets.counts.iter().for_each(|count| put_varint(out, *count));
            });
        }
    }

    /// Writes a summary.
    pub(super) fn summary(&mut self, summary: &Summary, since: Option<SystemTime>) {
        self.times(since);
        put_fixed64(&mut self.message, COUNT, summary.count);
        put_double(&mut self.message, SUM, summary.sum);
        for (quantile, value) in &summary.quantiles {
            put_message(&mut self.message, 6, |out| {
                put_double(out, 1, *quantile);
                put_double(out, 2, *value);
            });
        }
    }

    fn times(&mut self, since: Option<SystemTime>) {
        if let Some(since) = since {
            // A clock that was set back must not make a point end before it starts.
            put_fixed64(&mut self.message, START_TIME, nanoseconds(since).min(self.at));
        }
        put_fixed64(&mut self.message, TIME, self.at);
    }
}

/// Appends a `KeyValue` with a whole number.
pub(crate) fn put_integer_attribute(out: &mut Vec<u8>, field: u32, name: &str, value: i64) {
    put_message(out, field, |pair| {
        put_bytes(pair, 1, name.as_bytes());
        put_message(pair, 2, |any| put_uint(any, 3, value as u64));
    });
}

/// Appends a `KeyValue` with a string.
pub(crate) fn put_text_attribute(out: &mut Vec<u8>, field: u32, name: &str, value: &str) {
    let text = 1 + varint_size(value.len() as u64) + value.len();
    let pair = 1 + varint_size(name.len() as u64) + name.len() + 1 + varint_size(text as u64) + text;
    put_length(out, field, pair);
    put_bytes(out, 1, name.as_bytes());
    put_length(out, 2, text);
    put_bytes(out, 1, value.as_bytes());
}
