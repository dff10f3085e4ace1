//! One data point of a family. A scraped histogram or summary has a sample per bucket or quantile, which are neighbours:
//! they become one point.

use std::time::SystemTime;

use crate::{Cursor, Family, HistogramView, Labels, Point, Value, exposition::MetricType, scraped::Suffix};

/// Label of a summary's samples.
pub(super) const QUANTILE: &str = "quantile";

/// Labels and value of one data point.
pub(super) struct Stream<'a> {
    pub(super) labels: Labels<'a>,
    pub(super) value: StreamValue<'a>,
    /// When it was 0, if that is known.
    pub(super) created: Option<SystemTime>,
}

pub(super) enum StreamValue<'a> {
    Number(Number),
    Histogram(HistogramView<'a>),
    Scraped(ScrapedHistogram),
    Summary(Summary),
    /// A sample of any other type that has several.
    Other {
        suffix: Suffix,
        bound: Option<&'a str>,
        value: Number,
    },
}

/// An integer or a real number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Number {
    Integer(u64),
    Real(f64),
}

/// A histogram of one instance.
#[derive(Debug, Default, PartialEq)]
pub(super) struct ScrapedHistogram {
    /// Upper bounds, without the infinite one.
    pub(super) bounds: Vec<f64>,
    /// Number of values by bucket, the unbounded one included.
    pub(super) counts: Vec<u64>,
    pub(super) sum: Option<f64>,
}

/// A summary of one instance.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Summary {
    /// Quantiles and their values.
    pub(super) quantiles: Vec<(f64, f64)>,
    pub(super) count: u64,
    pub(super) sum: f64,
}

impl<'a> Stream<'a> {
    /// Returns the data point at the cursor and advances it; `None` behind the last one.
    pub(super) fn next(family: &Family<'a>, cursor: &mut Cursor) -> Option<Self> {
        let point = family.next(cursor)?;
        let value = match (family.metric_type(), point.value) {
            (_, Value::Histogram(histogram)) => StreamValue::Histogram(histogram),
            (MetricType::Histogram, Value::Sample { .. }) => {
                let is_same = |next: &Point<'_>| next.labels.is_same(&point.labels);
                let (mut histogram, mut below) = (ScrapedHistogram::default(), 0);
                neighbours(family, cursor, point, is_same, |point| histogram.add(point, &mut below));
                StreamValue::Scraped(histogram)
            }
            (MetricType::Summary, _) => {
                let own = without_quantile(&point.labels);
                let is_same = |next: &Point<'_>| without_quantile(&next.labels) == own;
                let mut summary = Summary::default();
                neighbours(family, cursor, point, is_same, |point| summary.add(point));
                StreamValue::Summary(summary)
            }
            (_, Value::Integer(value)) => StreamValue::Number(Number::Integer(value)),
            (_, Value::Real(value)) => StreamValue::Number(Number::Real(value)),
            (_, Value::Sample { suffix, bound, value }) => {
                StreamValue::Other { suffix, bound, value: Number::Real(value) }
            }
        };
        Some(Self { labels: point.labels, value, created: point.created })
    }
}

/// Passes `first`, and the points behind it for which `is_same` holds, to `each`.
fn neighbours<'a>(
    family: &Family<'a>,
    cursor: &mut Cursor,
    first: Point<'a>,
    is_same: impl Fn(&Point<'a>) -> bool,
    mut each: impl FnMut(&Point<'a>),
) {
    each(&first);
    loop {
        let mut ahead = *cursor;
        let Some(point) = family.next(&mut ahead).filter(&is_same) else { return };
        each(&point);
        *cursor = ahead;
    }
}

fn without_quantile(labels: &Labels<'_>) -> Vec<(String, String)> {
    let mut rest = Vec::new();
    labels.each(|name, value| {
        if name != QUANTILE {
            rest.push((name.to_owned(), value.to_owned()));
        }
    });
    rest
}

impl ScrapedHistogram {
    /// Adds a sample; `below` is the number of values below its bound.
    fn add(&mut self, point: &Point<'_>, below: &mut u64) {
        match point.value {
            Value::Sample { suffix: Suffix::Bucket, bound, value } => {
                // Bounds were checked when the page was read, and so was their order.
                let bound = bound.and_then(|bound| bound.parse().ok()).unwrap_or(f64::INFINITY);
                if bound.is_finite() {
                    self.bounds.push(bound);
                }
                self.counts.push(whole(value).saturating_sub(*below));
                *below = (*below).max(whole(value));
            }
            Value::Sample { suffix: Suffix::Sum, value, .. } => self.sum = Some(value),
            _ => {}
        }
    }
}

impl Summary {
    fn add(&mut self, point: &Point<'_>) {
        match point.value {
            Value::Sample { suffix: Suffix::Sum, value, .. } => self.sum = value,
            Value::Sample { suffix: Suffix::Count, value, .. } => self.count = whole(value),
            Value::Sample { value, .. } | Value::Real(value) => {
                point.labels.each(|name, text| {
                    if let (QUANTILE, Ok(quantile)) = (name, text.parse()) {
                        self.quantiles.push((quantile, value));
                    }
                });
            }
            _ => {}
        }
    }
}

/// Returns a count, which exporters write as a real number.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, and 0 is no number's count")]
fn whole(value: f64) -> u64 {
    value as u64
}
