//! Metric families of a snapshot as the encoders see them, whether counted here or scraped.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use observer_common::{DURATION, latency::BUCKETS};

use crate::{
    catalogue::{self, Descriptor, Origin},
    delay::DelayHistogram,
    exposition::MetricType,
    histogram::{self, HttpTotals, LE, PackedCells, QUANTILES},
    label_text::{self, push_label},
    labels::{self, Label, MeshLabels},
    merge::{MergedFamily, ScrapedFamilies},
    scraped::Suffix,
    snapshot::Series,
    totals::TcpTotals,
};

/// One metric family of a [`Snapshot`](crate::Snapshot).
#[derive(Clone, Copy, Debug)]
pub struct Family<'a> {
    pub(crate) recorded: Option<Recorded<'a>>,
    pub(crate) scraped: Option<MergedFamily<'a>>,
}

/// Points counted by this observer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Recorded<'a> {
    pub(crate) descriptor: &'static Descriptor,
    pub(crate) points: Points<'a>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Points<'a> {
    Requests(&'a [Series<HttpTotals>]),
    Histograms(&'a [Series<HttpTotals>], usize),
    Messages(&'a [Series<HttpTotals>], usize),
    Tcp(&'a [Series<TcpTotals>], fn(&TcpTotals) -> u64),
    Recorded(&'a [RecordedPoint]),
}

/// Position in the points of a family, for encoders that pause between two of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// 0 for the recorded points, then one per scraped instance.
    part: usize,
    index: usize,
}

impl<'a> Family<'a> {
    /// Returns the name in text 0.0.4.
    #[must_use]
    pub fn name(&self) -> &'a str {
        self.recorded.map_or_else(|| self.scraped().name(), |recorded| recorded.descriptor.prometheus_name)
    }

    /// Returns the name without `_total`, which OpenMetrics reserves for a counter's samples; `None` where another
    /// family has that name. The Go runtime has a gauge `x` beside a counter `x_total`.
    #[must_use]
    pub fn counter_name(&self) -> Option<&'a str> {
        match self.recorded {
            Some(Recorded { descriptor: Descriptor { prometheus_name, .. }, .. }) => {
                Some(prometheus_name.strip_suffix("_total").unwrap_or(prometheus_name))
            }
            None => self.scraped().counter_name(),
        }
    }

    /// Returns the documented name in Wavefront; `*` stands for a histogram's statistic.
    #[must_use]
    pub fn documented_name(&self) -> Cow<'a, str> {
        match self.recorded {
            Some(recorded) => Cow::Borrowed(recorded.descriptor.documented_name),
            None => Cow::Owned(self.statistic_name(Suffix::None)),
        }
    }

    /// Returns the documented name of one statistic; undocumented families are named by the same scheme.
    #[must_use]
    pub fn statistic_name(&self, suffix: Suffix) -> String {
        let documented = match self.recorded {
            Some(Recorded { descriptor: Descriptor { documented_name, .. }, .. }) => Some(*documented_name),
            None => catalogue::by_prometheus_name(self.name()).map(|known| known.documented_name),
        };
        if let Some(pattern) = documented.filter(|name| name.contains('*')) {
            return pattern.replace('*', suffix.text().trim_start_matches('_'));
        }
        let stem = documented.and_then(|name| name.strip_suffix(".value"));
        let stem = stem.map_or_else(|| Cow::Owned(self.name().replace('_', ".")), Cow::Borrowed);
        let stem = stem.strip_suffix(".bucket").unwrap_or(&stem);
        format!("{stem}{}.value", suffix.text().replace('_', "."))
    }

    /// Returns the type.
    #[must_use]
    pub fn metric_type(&self) -> MetricType {
        self.recorded.map_or_else(|| self.scraped().metric_type(), |recorded| recorded.descriptor.metric_type)
    }

    /// Returns one sentence of help, that of the exporter or else of the catalogue.
    #[must_use]
    pub fn help(&self) -> &'a str {
        self.recorded.map_or_else(|| self.scraped().help(), |recorded| recorded.descriptor.help)
    }

    /// Returns the unit, empty if none is known.
    #[must_use]
    pub fn unit(&self) -> &'a str {
        self.recorded.map_or_else(|| self.scraped().unit(), |recorded| recorded.descriptor.unit)
    }

    /// Returns where the values come from, which decides whether a first total is an increase.
    #[must_use]
    pub fn origin(&self) -> Origin {
        self.recorded.map_or(Origin::Istiod, |recorded| recorded.descriptor.origin)
    }

    /// Returns the point at the cursor and advances it; `None` behind the last one.
    pub fn next(&self, cursor: &mut Cursor) -> Option<Point<'a>> {
        let parts = self.scraped.map_or(0, |scraped| scraped.parts());
        loop {
            let point = match cursor.part {
                0 => self.recorded.and_then(|recorded| recorded.get(cursor.index)),
                part => self.scraped.and_then(|scraped| scraped.get(part - 1, cursor.index)),
            };
            if point.is_some() {
                cursor.index += 1;
                return point;
            }
            if cursor.part == parts {
                return None;
            }
            *cursor = Cursor { part: cursor.part + 1, index: 0 };
        }
    }

    /// Returns all points.
    pub fn points(self) -> impl Iterator<Item = Point<'a>> {
        let mut cursor = Cursor::default();
        std::iter::from_fn(move || self.next(&mut cursor))
    }

    fn scraped(&self) -> MergedFamily<'a> {
        self.scraped.expect("a family is recorded, scraped or both")
    }
}

impl<'a> Recorded<'a> {
    fn get(&self, index: usize) -> Option<Point<'a>> {
        let http = |labels: &'a MeshLabels| Labels(LabelSource::Mesh(labels, &labels::HTTP));
        Some(match self.points {
            Points::Requests(series) => {
                let series = series.get(index)?;
                Point::new(http(&series.labels), Value::Integer(series.totals.requests()), series.created)
            }
            Points::Histograms(series, histogram) => {
                let series = series.get(index)?;
                let view = HistogramView::new(&series.totals, series.recent.as_deref(), histogram);
                Point::new(http(&series.labels), Value::Histogram(view), series.created)
            }
            Points::Messages(series, direction) => {
                let series = series.get(index)?;
                Point::new(http(&series.labels), Value::Integer(series.totals.messages(direction)), series.created)
            }
            Points::Tcp(series, total) => {
                let series = series.get(index)?;
                let labels = Labels(LabelSource::Mesh(&series.labels, &labels::TCP));
                Point::new(labels, Value::Integer(total(&series.totals)), series.created)
            }
            Points::Recorded(points) => {
                let point = points.get(index)?;
                let value = match &point.value {
                    RecordedValue::Integer(value) => Value::Integer(*value),
                    RecordedValue::Real(value) => Value::Real(*value),
                    RecordedValue::Delay(delay) => Value::Histogram(HistogramView(HistogramSource::Delay(delay))),
                };
                let labels = Labels(LabelSource::Recorded(self.descriptor.labels, &point.labels));
                Point::new(labels, value, point.created)
            }
        })
    }
}

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
    fn new(labels: Labels<'a>, value: Value<'a>, created: SystemTime) -> Self {
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
    Series { totals: &'a HttpTotals, recent: Option<&'a PackedCells>, index: usize },
    Delay(&'a DelayHistogram),
}

impl<'a> HistogramView<'a> {
    /// Returns histogram `index` (`observer_common::{DURATION, REQUEST_BYTES, RESPONSE_BYTES}`) of `totals`.
    #[must_use]
    pub fn new(totals: &'a HttpTotals, recent: Option<&'a PackedCells>, index: usize) -> Self {
        Self(HistogramSource::Series { totals, recent, index })
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

    /// Returns the values of the last reporting interval, ascending, milliseconds or bytes, each with its count. A value
    /// is its cell's midpoint, within 1/64 of the true one.
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

/// Families recorded in one round: the observer's own and those of procfs.
#[derive(Debug)]
pub(crate) struct RecordedFamilies {
    /// When counters of families that are added from now on were 0.
    pub(crate) created: SystemTime,
    pub(crate) families: Vec<RecordedFamily>,
}

#[derive(Debug)]
pub(crate) struct RecordedFamily {
    pub(crate) descriptor: &'static Descriptor,
    pub(crate) points: Vec<RecordedPoint>,
    /// When counters of points that are added from now on were 0.
    pub(crate) created: SystemTime,
}

#[derive(Debug)]
pub(crate) struct RecordedPoint {
    labels: Box<[Box<str>]>,
    value: RecordedValue,
    created: SystemTime,
}

#[derive(Clone, Debug)]
pub(crate) enum RecordedValue {
    Integer(u64),
    Real(f64),
    Delay(Box<DelayHistogram>),
}

impl RecordedFamilies {
    pub(crate) fn new(created: SystemTime) -> Self {
        Self { created, families: Vec::new() }
    }

    pub(crate) fn add(&mut self, descriptor: &'static Descriptor) -> &mut RecordedFamily {
        self.families.push(RecordedFamily { descriptor, points: Vec::new(), created: self.created });
        self.families.last_mut().expect("just pushed")
    }

    pub(crate) fn retain_non_empty(&mut self) {
        self.families.retain(|family| !family.points.is_empty());
    }

    /// Replaces scraped samples of processes that procfs knows as well, and records by how much both differ.
    pub(crate) fn override_scraped(&mut self, scraped: &mut ScrapedFamilies) {
        let mut drift = Vec::new();
        for recorded in self.families.iter().filter(|recorded| recorded.descriptor.origin == Origin::Procfs) {
            let Some(label) = recorded.descriptor.labels.iter().position(|label| *label == "instance") else {
                continue;
            };
            let points = recorded.points.iter();
            let known: BTreeMap<&str, f64> =
                points.filter_map(|point| Some((&*point.labels[label], point.value.real()?))).collect();
            for (instance, value) in scraped.take_overridden(recorded.descriptor, |name| known.contains_key(name)) {
                let difference = value - known[instance.as_str()];
                drift.push((instance, recorded.descriptor.prometheus_name, difference));
            }
        }
        let family = self.add(&catalogue::PROCESS_DRIFT);
        drift.into_iter().for_each(|(instance, metric, difference)| family.point(&[&instance, metric], difference));
    }
}

impl RecordedFamily {
    /// Adds a point; `labels` are values in the descriptor's order.
    pub(crate) fn point(&mut self, labels: &[&str], value: impl Into<RecordedValue>) {
        let labels: Box<[Box<str>]> = labels.iter().map(|label| Box::from(*label)).collect();
        debug_assert_eq!(labels.len(), self.descriptor.labels.len());
        self.points.push(RecordedPoint { labels, value: value.into(), created: self.created });
    }
}

impl RecordedValue {
    /// Returns the number; `None` for a histogram.
    #[expect(clippy::cast_precision_loss, reason = "compared with a double")]
    const fn real(&self) -> Option<f64> {
        match self {
            Self::Integer(value) => Some(*value as f64),
            Self::Real(value) => Some(*value),
            Self::Delay(_) => None,
        }
    }
}

impl From<f64> for RecordedValue {
    fn from(value: f64) -> Self {
        Self::Real(value)
    }
}

impl From<u64> for RecordedValue {
    fn from(value: u64) -> Self {
        Self::Integer(value)
    }
}

impl From<DelayHistogram> for RecordedValue {
    fn from(value: DelayHistogram) -> Self {
        Self::Delay(Box::new(value))
    }
}

impl From<Duration> for RecordedValue {
    /// Returns the nearest double, which prints with the digits of the duration; `as_secs_f64` rounds twice.
    #[expect(clippy::cast_precision_loss, reason = "exact up to 104 days, then to microseconds")]
    fn from(value: Duration) -> Self {
        const EXACT: u128 = 1 << f64::MANTISSA_DIGITS;
        let nanoseconds = value.as_nanos();
        Self::Real(if nanoseconds <= EXACT { nanoseconds as f64 / 1e9 } else { value.as_micros() as f64 / 1e6 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::snapshots;

    #[test]
    fn seconds_are_written_with_the_digits_that_they_have() {
        for (microseconds, text) in [
            (1_950_956, "1.950956"),
            (0, "0"),
            (100, "0.0001"),
            (86_400_000_001, "86400.000001"),
            (20_000_000_000_003, "20000000.000003"),
        ] {
            let RecordedValue::Real(value) = RecordedValue::from(Duration::from_micros(microseconds)) else {
                panic!("a number")
            };
            assert_eq!(value.to_string(), text);
        }
    }

    #[test]
    fn every_point_has_its_familys_labels() {
        let [snapshot, _] = snapshots();
        for family in snapshot.families() {
            for point in family.points() {
                let mut names = Vec::new();
                point.labels.each(|name, _| names.push(name));
                assert_eq!(names, family.recorded.unwrap().descriptor.labels, "{}", family.name());
            }
        }
    }
}
