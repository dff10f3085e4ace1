//! Points of a family: labels and value.

use std::time::SystemTime;

use observer_common::{DURATION, histogram::BUCKETS};

use crate::{
    delay::DelayHistogram,
    encode::native_histogram::{CellUnit, NativeHistogram},
    exemplar::{Exemplar, Exemplars},
    histogram::{self, Cell, HttpTotals, LE, PackedCells, QUANTILES},
    label_text::{self, push_label},
    labels::{Label, MeshLabels},
    scraped::Suffix,
};

/// One point of a family.
#[derive(Clone, Copy, Debug)]
pub struct Point<'a> {
    /// Labels.
    pub labels: Labels<'a>,
    /// Value.
    pub value: Value<'a>,
    /// When a counter or histogram was 0; `None` for scraped points.
    pub created: Option<SystemTime>,
}

impl<'a> Point<'a> {
    pub(crate) fn new(labels: Labels<'a>, value: Value<'a>, created: SystemTime) -> Self {
        Self { labels, value, created: Some(created) }
    }
}

/// Labels of a point, `le` aside.
#[derive(Clone, Copy, Debug)]
pub struct Labels<'a>(LabelSource<'a>);

#[derive(Clone, Copy, Debug)]
enum LabelSource<'a> {
    Mesh(&'a MeshLabels, &'static [Label]),
    Recorded(&'static [&'static str], &'a [Box<str>]),
    /// Labels of the instance, never empty, and of the sample, both as [`push_label`] writes them.
    Scraped(&'a str, &'a str),
}

impl<'a> Labels<'a> {
    pub(crate) fn mesh(labels: &'a MeshLabels, kept: &'static [Label]) -> Self {
        Self(LabelSource::Mesh(labels, kept))
    }

    pub(crate) fn recorded(names: &'static [&'static str], values: &'a [Box<str>]) -> Self {
        Self(LabelSource::Recorded(names, values))
    }

    pub(crate) fn scraped(instance: &'a str, sample: &'a str) -> Self {
        Self(LabelSource::Scraped(instance, sample))
    }

    /// Calls `each` with every name and value, in the family's order.
    pub fn each(&self, mut each: impl FnMut(&'a str, &str)) {
        match self.0 {
            LabelSource::Mesh(labels, names) => labels.each(names, |name, value| each(name, value)),
            LabelSource::Recorded(names, values) => {
                names.iter().zip(values).for_each(|(name, value)| each(name, value));
            }
            LabelSource::Scraped(instance, sample) => {
                for text in [instance, sample] {
                    for (name, value) in label_text::labels(text) {
                        each(name, &value);
                    }
                }
            }
        }
    }

    /// Appends the labels as both exposition formats write them, without braces.
    pub fn write(&self, text: &mut String) {
        match self.0 {
            LabelSource::Scraped(instance, sample) => {
                text.push_str(instance);
                if !sample.is_empty() {
                    text.push(',');
                    text.push_str(sample);
                }
            }
            _ => {
                let start = text.len();
                self.each(|name, value| push_label(text, start, name, value));
            }
        }
    }

    /// Returns the labels of Istio's metrics, if these are such.
    pub(crate) const fn of_mesh(&self) -> Option<&'a MeshLabels> {
        match self.0 {
            LabelSource::Mesh(labels, _) => Some(labels),
            _ => None,
        }
    }

    /// Returns where the labels of an instance are in memory, if the point has no others: within a snapshot, points with the
    /// same place have the same labels.
    pub(crate) fn instance_place(&self) -> Option<usize> {
        match self.0 {
            LabelSource::Scraped(instance, "") => Some(instance.as_ptr().addr()),
            _ => None,
        }
    }

    /// Returns whether both are the same labels in memory: equal labels that are stored twice are not.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        match (self.0, other.0) {
            (LabelSource::Mesh(own, _), LabelSource::Mesh(other, _)) => std::ptr::eq(own, other),
            (LabelSource::Scraped(own, own_sample), LabelSource::Scraped(other, other_sample)) => {
                std::ptr::eq(own, other) && std::ptr::eq(own_sample, other_sample)
            }
            _ => false,
        }
    }
}

/// Value of a point.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    /// A whole number.
    Integer(u64),
    /// A real number.
    Real(f64),
    /// A histogram.
    Histogram(HistogramView<'a>),
    /// One sample of a scraped histogram or summary.
    Sample {
        /// Which sample of the family.
        suffix: Suffix,
        /// Upper bound of a bucket.
        bound: Option<&'a str>,
        /// The value.
        value: f64,
    },
}

/// A histogram, in the unit it is exposed in.
#[derive(Clone, Copy, Debug)]
pub struct HistogramView<'a>(HistogramSource<'a>);

#[derive(Clone, Copy, Debug)]
enum HistogramSource<'a> {
    Series {
        totals: &'a HttpTotals,
        recent: Option<&'a PackedCells>,
        cells: Option<&'a PackedCells>,
        exemplars: Option<&'a Exemplars>,
        index: usize,
    },
    Delay(&'a DelayHistogram),
}

impl<'a> HistogramView<'a> {
    /// Returns histogram `index` (`observer_common::{DURATION, REQUEST_BYTES, RESPONSE_BYTES}`) of `totals`.
    #[must_use]
    pub fn new(totals: &'a HttpTotals, recent: Option<&'a PackedCells>, index: usize) -> Self {
        Self(HistogramSource::Series { totals, recent, cells: None, exemplars: None, index })
    }

    /// Returns it with the values of the totals by cell.
    #[must_use]
    pub fn with_cells(mut self, known: Option<&'a PackedCells>) -> Self {
        if let HistogramSource::Series { cells, .. } = &mut self.0 {
            *cells = known;
        }
        self
    }

    /// Returns it with exemplars, if it is one of durations.
    #[must_use]
    pub(crate) fn with_exemplars(mut self, known: Option<&'a Exemplars>) -> Self {
        if let HistogramSource::Series { exemplars, index: DURATION, .. } = &mut self.0 {
            *exemplars = known;
        }
        self
    }

    /// Returns its exemplars.
    pub fn exemplars(&self) -> impl Iterator<Item = &'a Exemplar> + use<'a> {
        let exemplars = match self.0 {
            HistogramSource::Series { exemplars, .. } => exemplars,
            HistogramSource::Delay(_) => None,
        };
        exemplars.into_iter().flat_map(Exemplars::iter)
    }

    /// Returns the exemplar of a bucket, by its place in [`HistogramView::buckets`].
    #[must_use]
    pub fn exemplar(&self, bucket: usize) -> Option<&'a Exemplar> {
        self.exemplars().find(|exemplar| exemplar.bucket as usize == bucket)
    }

    /// Returns the native histogram; `None` if the cells are not known, or are of another round than the totals.
    #[must_use]
    pub fn native(&self) -> Option<NativeHistogram> {
        let HistogramSource::Series { cells, index, .. } = self.0 else { return None };
        let unit = if index == DURATION { CellUnit::Milliseconds } else { CellUnit::Bytes };
        Some(NativeHistogram::new(cells?.totals(index), unit)).filter(|histogram| histogram.count == self.count())
    }

    pub(crate) fn delay(delay: &'a DelayHistogram) -> Self {
        Self(HistogramSource::Delay(delay))
    }

    /// Returns upper bounds and the number of values up to each.
    pub fn buckets(&self) -> impl Iterator<Item = (&'static str, u64)> + use<'a> {
        let (series, delay) = match self.0 {
            HistogramSource::Series { totals, index, .. } => {
                (Some(LE.into_iter().zip(cumulative(totals, index))), None)
            }
            HistogramSource::Delay(delay) => (None, Some(delay.buckets())),
        };
        series.into_iter().flatten().chain(delay.into_iter().flatten())
    }

    /// Returns the number of values.
    #[must_use]
    pub fn count(&self) -> u64 {
        match self.0 {
            HistogramSource::Series { totals, index, .. } => totals.buckets(index).iter().sum(),
            HistogramSource::Delay(delay) => delay.count(),
        }
    }

    /// Returns the sum of the values: milliseconds or bytes, seconds of delays.
    #[must_use]
    pub fn sum(&self) -> f64 {
        match self.0 {
            HistogramSource::Series { totals, index, .. } => exposed(index, totals.sum(index)),
            HistogramSource::Delay(delay) => delay.sum(),
        }
    }

    /// Returns [`QUANTILES`] of the last reporting interval, milliseconds or bytes; `None` without values.
    #[must_use]
    pub fn quantiles(&self) -> Option<[f64; QUANTILES.len()]> {
        let HistogramSource::Series { recent, index, .. } = self.0 else { return None };
        let quantiles = histogram::quantiles(&recent?.of(index))?;
        Some(quantiles.map(|value| exposed(index, value)))
    }

    /// Returns whether the kernel has cells of it.
    pub(crate) const fn has_cells(&self) -> bool {
        matches!(self.0, HistogramSource::Series { .. })
    }

    /// Returns which histogram of a series it is, and its cells of the last reporting interval, ascending; `None` if the
    /// kernel has none.
    pub(crate) fn recent_cells(&self) -> Option<(usize, Vec<Cell>)> {
        let HistogramSource::Series { recent, index, .. } = self.0 else { return None };
        Some((index, recent.map(|recent| recent.of(index)).unwrap_or_default()))
    }

    /// Returns the values of the last reporting interval, ascending, milliseconds or bytes, each with its count. A
    /// value is its cell's midpoint, within 1/64 of the true one.
    #[must_use]
    pub fn recent_values(&self) -> Vec<(f64, u64)> {
        let HistogramSource::Series { recent: Some(recent), index, .. } = self.0 else { return Vec::new() };
        let cells = recent.of(index).into_iter();
        cells.map(|(cell, count)| (exposed(index, histogram::midpoint(cell)), u64::from(count))).collect()
    }
}

fn cumulative(totals: &HttpTotals, index: usize) -> [u64; BUCKETS] {
    let mut buckets = totals.buckets(index);
    for bucket in 1..BUCKETS {
        buckets[bucket] += buckets[bucket - 1];
    }
    buckets
}

#[expect(clippy::cast_precision_loss, reason = "exposed as a double by both formats")]
fn exposed(index: usize, value: u64) -> f64 {
    if index == DURATION { value as f64 / 1_000.0 } else { value as f64 }
}
