//! Families recorded in a round, other than Istio's.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use crate::{
    catalogue::{self, Descriptor, Origin},
    delay::DelayHistogram,
    merge::ScrapedFamilies,
};

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
    pub(crate) labels: Box<[Box<str>]>,
    pub(crate) value: RecordedValue,
    pub(crate) created: SystemTime,
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
}
