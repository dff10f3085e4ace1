//! Exponential histograms from the kernel's log-linear cells.
//!
//! A cell has a width of 1/32 of its octave's start and counts at its midpoint, which is within 1/64 of each value in it.
//! With half of a bucket's width a percentile is within 2.1 % at scale 6, which spans ten octaves, within 2.7 % at scale
//! 5 for twenty, and within 3.8 % at scale 4 for all.
//!
//! The kernel's cells are read as those of the last interval. What came before an encoder's first push is not known by
//! cells, so a histogram starts at that push, and again after one that was dropped.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, RandomState},
    time::{Duration, SystemTime},
};

use observer_common::DURATION;

use crate::{
    Snapshot,
    encode::delta::NoRoom,
    histogram::{Cell, midpoint},
};

/// Largest scale: 64 buckets per octave.
const MAX_SCALE: i32 = 6;
/// Smallest scale, at which all values fit into [`MAX_BUCKETS`].
const MIN_SCALE: i32 = 4;
const MAX_BUCKETS: usize = 640;
/// Most histograms kept.
const MAX_HISTOGRAMS: usize = 200_000;
/// How far the clock of two pushes may be from the length of an interval.
const TOLERANCE: Duration = Duration::from_millis(1);

/// The values of each histogram since it started.
#[derive(Debug, Default)]
pub(super) struct Exponentials {
    histograms: HashMap<u64, Values>,
    hasher: RandomState,
    /// Time of the last push on the monotonic clock.
    pushed: Option<Duration>,
    /// Begin and end of the interval that is added.
    interval: Option<(SystemTime, SystemTime)>,
}

/// The values of one histogram.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Values {
    /// Counts by cell, ascending.
    pub(super) cells: Vec<(u16, u64)>,
    /// Sum of the values, milliseconds or bytes.
    pub(super) sum: f64,
    /// When it was empty.
    pub(super) since: SystemTime,
    /// The series' sum then.
    sum_before: f64,
    /// When the series' totals were 0.
    created: SystemTime,
    seen: SystemTime,
}

impl Exponentials {
    /// Begins a push. Forgets everything if an interval is missing.
    pub(super) fn begin(&mut self, snapshot: &Snapshot) {
        let interval = snapshot.interval.unwrap_or_default();
        let is_next = |pushed| snapshot.steady.saturating_sub(pushed).abs_diff(interval) <= TOLERANCE;
        if !self.pushed.is_some_and(is_next) {
            self.histograms.clear();
        }
        self.pushed = Some(snapshot.steady);
        let begin = snapshot.at.checked_sub(interval + TOLERANCE).unwrap_or(snapshot.at);
        self.interval = Some((begin, snapshot.at));
    }

    /// Adds the cells of an interval to a histogram and returns its values; `None` if they are not known yet. `sum` is
    /// that of the series since `created`. With `is_delta` the histogram starts again behind it.
    ///
    /// # Errors
    /// It is new and the limit is reached.
    pub(super) fn add(
        &mut self,
        series: impl Hash,
        cells: &[Cell],
        sum: f64,
        created: SystemTime,
        is_delta: bool,
    ) -> Result<Option<Values>, NoRoom> {
        let key = self.hasher.hash_one(series);
        let (begin, at) = self.interval.unwrap_or((created, created));
        let known = self.histograms.get(&key).is_some_and(|values| values.created == created);
        if !known && self.histograms.len() >= MAX_HISTOGRAMS && !self.histograms.contains_key(&key) {
            return Err(NoRoom);
        }
        let values = self.histograms.entry(key).or_insert_with(|| Values::new(at, sum, created));
        if !known {
            *values = Values::new(at, sum, created);
            // A series that began within this interval has all of its values in these cells.
            if created < begin {
                return Ok((!is_delta).then(|| values.clone()));
            }
            (values.since, values.sum_before) = (created.min(at), 0.0);
        }
        values.seen = at;
        add(&mut values.cells, cells);
        values.sum = sum - values.sum_before;
        let added = values.clone();
        if is_delta {
            (values.cells, values.since, values.sum_before) = (Vec::new(), at, sum);
        }
        Ok(Some(added))
    }

    /// Ends a push: forgets series that are gone.
    pub(super) fn end(&mut self, at: SystemTime) {
        self.histograms.retain(|_, values| values.seen == at);
    }
}

impl Values {
    fn new(at: SystemTime, sum: f64, created: SystemTime) -> Self {
        Self { cells: Vec::new(), sum: 0.0, since: at, sum_before: sum, created, seen: at }
    }
}

/// Adds cells of an interval, which are ascending as well.
fn add(total: &mut Vec<(u16, u64)>, cells: &[Cell]) {
    for (index, count) in cells {
        match total.binary_search_by_key(index, |(own, _)| *own) {
            Ok(at) => {
                if let Some((_, own)) = total.get_mut(at) {
                    *own += u64::from(*count);
                }
            }
            Err(at) => total.insert(at, (*index, u64::from(*count))),
        }
    }
}

/// Buckets of a scale that suits the values.
#[derive(Debug, PartialEq)]
pub(super) struct Buckets {
    pub(super) scale: i32,
    /// Number of values that are 0.
    pub(super) zeroes: u64,
    /// Index of the first bucket: bucket i has the values above 2^(i/2^scale), up to the next bound.
    pub(super) offset: i32,
    pub(super) counts: Vec<u64>,
}

impl Buckets {
    /// Returns the buckets of cells of histogram `index`, whose exposed unit is multiplied by `factor`.
    pub(super) fn new(cells: &[(u16, u64)], index: usize, factor: f64) -> Self {
        let factor = if index == DURATION { factor / 1_000.0 } else { factor };
        let zeroes = cells.iter().filter(|(cell, _)| midpoint(*cell) == 0).map(|(_, count)| count).sum();
        let filled = || cells.iter().filter(|(cell, _)| midpoint(*cell) > 0);
        #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "below 2^40")]
        let bucket =
            |cell: u16, scale: i32| ((midpoint(cell) as f64 * factor).log2() * f64::from(1 << scale)).ceil() as i32 - 1;
        let range = |scale| {
            let indices = || filled().map(|(cell, _)| bucket(*cell, scale));
            Some((indices().next()?, indices().next_back()?))
        };
        let span = |(first, last): (i32, i32)| usize::try_from(last.abs_diff(first)).unwrap_or(usize::MAX);
        let fits = |scale: &i32| range(*scale).is_none_or(|range| span(range) < MAX_BUCKETS);
        let scale = (MIN_SCALE..=MAX_SCALE).rev().find(fits).unwrap_or(MIN_SCALE);
        let Some((offset, last)) = range(scale) else { return Self { scale, zeroes, offset: 0, counts: Vec::new() } };
        let mut counts = vec![0; span((offset, last)) + 1];
        for (cell, count) in filled() {
            let place = usize::try_from(bucket(*cell, scale) - offset).ok();
            if let Some(own) = place.and_then(|place| counts.get_mut(place)) {
                *own += count;
            }
        }
        Self { scale, zeroes, offset, counts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use observer_common::{
        REQUEST_BYTES,
        histogram::{SUB_BUCKETS, sub_bucket},
    };
    use proptest::prelude::*;

    fn cells_of(values: &[u64]) -> Vec<(u16, u64)> {
        let mut cells = Vec::new();
        for value in values {
            let (page, cell) = sub_bucket(*value);
            add(&mut cells, &[(u16::try_from(page as usize * SUB_BUCKETS + cell as usize).unwrap(), 1)]);
        }
        cells
    }

    proptest! {
        #[test]
        fn a_percentile_is_within_the_stated_error(
            mut values in proptest::collection::vec(prop_oneof![0u64..100, 0u64..1 << 20, 0u64..1 << 39], 1..200),
            quantile in 0.0..1.0f64, duration: bool,
        ) {
            let index = if duration { DURATION } else { REQUEST_BYTES };
            let unit = if duration { 1_000.0 } else { 1.0 };
            let Buckets { scale, zeroes, offset, counts } = Buckets::new(&cells_of(&values), index, 1.0);
            prop_assert_eq!(zeroes + counts.iter().sum::<u64>(), values.len() as u64);
            prop_assert!(counts.len() <= MAX_BUCKETS);
            values.sort_unstable();
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "small")]
            let rank = ((quantile * values.len() as f64) as usize).min(values.len() - 1);
            let exact = values[rank] as f64 / unit;
            let mut seen = zeroes;
            let place = counts.iter().position(|count| { seen += count; seen > rank as u64 });
            let Some(place) = place.filter(|_| rank as u64 >= zeroes) else { prop_assert_eq!(values[rank], 0); return Ok(()) };
            let middle = ((f64::from(offset) + place as f64 + 0.5) / f64::from(1 << scale)).exp2();
            let allowed = [0.038, 0.027, 0.0213][usize::try_from(scale - MIN_SCALE).unwrap()];
            // The cell's midpoint is rounded down to a whole number.
            prop_assert!((middle - exact).abs() <= exact * allowed + 1.0 / unit, "{} for {} at scale {}", middle, exact, scale);
        }
    }

    #[test]
    fn powers_of_two_are_upper_bounds() {
        let buckets = Buckets::new(&cells_of(&[0, 1, 2, 4]), REQUEST_BYTES, 1.0);
        assert_eq!((buckets.scale, buckets.zeroes, buckets.offset, buckets.counts.len()), (6, 1, -1, 129));
        assert_eq!((buckets.counts[0], buckets.counts[64], buckets.counts[128]), (1, 1, 1));
    }
}
