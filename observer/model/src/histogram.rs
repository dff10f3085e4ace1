//! Histograms: sparse totals of Istio's buckets, and percentiles over the reporting interval.

use hdrhistogram::Histogram;
use observer_common::{
    DURATION, Direction,
    histogram::{self, BUCKET_PAGES, BUCKETS, SUB_BUCKETS},
};

use serde::{Deserialize, Serialize};

use crate::{
    reading::{HistogramReading, SeriesReading},
    totals::{self, Totals},
};

/// Upper bounds of the exposed buckets as Envoy prints them.
pub const LE: [&str; BUCKETS] = [
    "0.5", "1", "5", "10", "25", "50", "100", "250", "500", "1000", "2500", "5000", "10000", "30000", "60000",
    "300000", "600000", "1800000", "3600000", "+Inf",
];

/// Reported percentiles, by name and quantile.
pub const QUANTILES: [(&str, f64); 6] =
    [("p50", 0.5), ("p75", 0.75), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99), ("p999", 0.999)];

/// A log-linear cell: (block × 32 + cell, count).
pub type Cell = (u16, u32);

/// Totals of an HTTP series: three histograms, and the messages of gRPC. Only non-empty buckets take space, since a
/// series (one status of one service) seldom fills more than a handful of sixty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "PersistedTotals")]
pub struct HttpTotals {
    /// gRPC messages by direction.
    messages: [u64; 2],
    sums: [u64; 3],
    /// Bit i is set if bucket i is not empty.
    masks: [u32; 3],
    /// Counts of the non-empty buckets, histogram by histogram.
    counts: Box<[u64]>,
}

/// Persisted form, possibly of another build.
#[derive(Deserialize)]
struct PersistedTotals {
    messages: [u64; 2],
    sums: [u64; 3],
    masks: [u32; 3],
    counts: Box<[u64]>,
}

impl TryFrom<PersistedTotals> for HttpTotals {
    type Error = &'static str;

    fn try_from(persisted: PersistedTotals) -> Result<Self, Self::Error> {
        let PersistedTotals { messages, sums, masks, counts } = persisted;
        let bits: u32 = masks.iter().map(|mask| mask.count_ones()).sum();
        if masks.iter().any(|mask| mask >> BUCKETS != 0) || bits as usize != counts.len() {
            return Err("a histogram's buckets do not match its mask");
        }
        Ok(Self { messages, sums, masks, counts })
    }
}

impl HttpTotals {
    /// Returns the number of requests.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.buckets(DURATION).iter().sum()
    }

    /// Returns the values by bucket of one histogram (`observer_common::{DURATION, REQUEST_BYTES, RESPONSE_BYTES}`),
    /// not cumulative.
    #[must_use]
    pub fn buckets(&self, histogram: usize) -> [u64; BUCKETS] {
        let before: u32 = self.masks[..histogram].iter().map(|mask| mask.count_ones()).sum();
        let mut counts = self.counts[before as usize..].iter();
        std::array::from_fn(|bucket| match self.masks[histogram] >> bucket & 1 {
            0 => 0,
            _ => *counts.next().expect("as many counts as bits"),
        })
    }

    /// Returns the sum of the values of one histogram, microseconds or bytes.
    #[must_use]
    pub fn sum(&self, histogram: usize) -> u64 {
        self.sums[histogram]
    }

    /// gRPC messages of a direction.
    #[must_use]
    pub fn messages(&self, direction: Direction) -> u64 {
        self.messages[direction]
    }

    fn from_dense(messages: [u64; 2], sums: [u64; 3], dense: &[[u64; BUCKETS]; 3]) -> Self {
        let masks = std::array::from_fn(|histogram| {
            let set = |bucket: usize| u32::from(dense[histogram][bucket] != 0) << bucket;
            (0..BUCKETS).map(set).sum()
        });
        Self { messages, sums, masks, counts: dense.iter().flatten().copied().filter(|count| *count != 0).collect() }
    }

    fn dense(&self) -> [[u64; BUCKETS]; 3] {
        std::array::from_fn(|histogram| self.buckets(histogram))
    }
}

impl Totals for HttpTotals {
    fn of(reading: &SeriesReading) -> Self {
        let histograms = &reading.histograms;
        Self::from_dense(
            reading.messages,
            std::array::from_fn(|histogram| histograms[histogram].sum),
            &std::array::from_fn(|histogram| histograms[histogram].buckets),
        )
    }

    fn equals(&self, reading: &SeriesReading) -> bool {
        self.messages == reading.messages
            && (0..3).all(|histogram| {
                let HistogramReading { buckets, sum, .. } = &reading.histograms[histogram];
                self.sums[histogram] == *sum && self.buckets(histogram) == *buckets
            })
    }

    fn is_zero(&self) -> bool {
        self.counts.is_empty()
    }

    fn events(&self) -> u64 {
        self.requests()
    }

    fn difference(&self, newer: &Self) -> Option<Self> {
        let (older_buckets, mut buckets, mut sums) = (self.dense(), newer.dense(), newer.sums);
        let mut messages = newer.messages;
        for (newer, older) in messages.iter_mut().zip(self.messages) {
            *newer = totals::difference(older, *newer)?;
        }
        for histogram in 0..3 {
            sums[histogram] = totals::difference(self.sums[histogram], sums[histogram])?;
            for (newer, older) in buckets[histogram].iter_mut().zip(older_buckets[histogram]) {
                *newer = totals::difference(older, *newer)?;
            }
        }
        Some(Self::from_dense(messages, sums, &buckets))
    }

    fn room(&self, cells: &PackedCells) -> [u64; 3] {
        let counted = cells.counts();
        std::array::from_fn(|histogram| {
            let all: u64 = self.buckets(histogram).iter().sum();
            all.saturating_sub(counted[histogram])
        })
    }

    fn filled(&self, cells: &PackedCells) -> Option<PackedCells> {
        let room = self.room(cells);
        (room != [0; 3]).then(|| {
            let missing: [Vec<(u16, u64)>; 3] =
                std::array::from_fn(|histogram| missing(self.buckets(histogram), cells, histogram, room[histogram]));
            let missing = (0..3).zip(&missing).flat_map(|(histogram, cells)| {
                cells.iter().map(move |(index, count)| (histogram * HISTOGRAM_CELLS + index, *count))
            });
            cells.plus(&PackedCells::pack(missing))
        })
    }

    fn add(&mut self, other: &Self) {
        let (mut messages, mut buckets, mut sums) = (self.messages, self.dense(), self.sums);
        for (own, more) in messages.iter_mut().zip(other.messages) {
            *own = own.saturating_add(more);
        }
        for histogram in 0..3 {
            sums[histogram] = sums[histogram].saturating_add(other.sums[histogram]);
            for (own, more) in buckets[histogram].iter_mut().zip(other.buckets(histogram)) {
                *own = own.saturating_add(more);
            }
        }
        *self = Self::from_dense(messages, sums, &buckets);
    }
}

/// Counts of the non-empty cells of a series' three histograms, packed into about two bytes each: with percentiles they
/// are most of a series' memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackedCells(Box<[u8]>);

impl PackedCells {
    /// Packs the cells of the three histograms, each in ascending order.
    #[must_use]
    pub fn new(histograms: [&[Cell]; 3]) -> Self {
        Self::pack(joined(histograms))
    }

    /// Returns whether these are the cells of `histograms`.
    #[must_use]
    pub fn equals(&self, histograms: [&[Cell]; 3]) -> bool {
        self.iter().eq(joined(histograms))
    }

    /// Returns whether all cells are empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the cells of one histogram, ascending.
    #[must_use]
    pub fn of(&self, histogram: usize) -> Vec<Cell> {
        self.totals(histogram).map(|(index, count)| (index, u32::try_from(count).unwrap_or(u32::MAX))).collect()
    }

    /// Returns the cells of one histogram as [`PackedCells::of`] does, with counts that do not wrap.
    pub fn totals(&self, histogram: usize) -> impl Iterator<Item = (u16, u64)> {
        let first = HISTOGRAM_CELLS * histogram as u16;
        let cells = self.iter().filter(move |(index, _)| index / HISTOGRAM_CELLS == histogram as u16);
        cells.map(move |(index, count)| (index - first, count))
    }

    /// Returns the number of values of each histogram.
    #[must_use]
    pub fn counts(&self) -> [u64; 3] {
        let mut counts = [0_u64; 3];
        for (index, count) in self.iter() {
            let histogram = &mut counts[usize::from(index / HISTOGRAM_CELLS)];
            *histogram = histogram.saturating_add(count);
        }
        counts
    }

    /// Returns the cells of durations alone.
    #[must_use]
    pub fn only_durations(&self) -> Self {
        Self::pack(self.totals(DURATION))
    }

    /// Returns durations with so many cells joined into one.
    #[must_use]
    pub fn coarser(&self, cells: u16) -> Self {
        let mut joined: Vec<(u16, u64)> = Vec::new();
        for (index, count) in self.totals(DURATION) {
            match joined.last_mut() {
                Some((last, total)) if *last == index / cells => *total += count,
                _ => joined.push((index / cells, count)),
            }
        }
        Self::pack(joined.into_iter())
    }

    /// Returns the size of the allocation.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.len()
    }

    /// Returns at most this many values of each histogram, the smallest ones.
    #[must_use]
    pub fn limited_to(&self, mut room: [u64; 3]) -> Self {
        let cells = self.iter().map(|(index, count)| {
            let room = &mut room[usize::from(index / HISTOGRAM_CELLS)];
            let taken = count.min(*room);
            *room -= taken;
            (index, taken)
        });
        Self::pack(cells.filter(|(_, count)| *count != 0))
    }

    /// Returns the last reading's cells after `self`, with these values more. Cells wrap at 2^32.
    #[must_use]
    pub fn advanced_by(&self, values: &Self) -> Self {
        Self::pack(merge(self.iter(), values.iter(), |older, more| (older + more) & u64::from(u32::MAX)))
    }

    /// Returns `newer` minus `self`. Cells wrap at 2^32, and so does the difference.
    #[must_use]
    pub fn difference(&self, newer: &Self) -> Self {
        Self::pack(merge(newer.iter(), self.iter(), |newer, older| newer.wrapping_sub(older) & u64::from(u32::MAX)))
    }

    /// Returns the sum of two series' values.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self::pack(merge(self.iter(), other.iter(), u64::saturating_add))
    }

    /// Encodes every cell as the step from the previous one and its count, both as varints (last byte marked).
    fn pack(cells: impl Iterator<Item = (u16, u64)>) -> Self {
        let mut packed = Vec::new();
        let mut previous = 0;
        for (index, count) in cells {
            for mut number in [u64::from(index - previous), count] {
                while number >= 0x80 {
                    packed.push(number as u8 & 0x7f);
                    number >>= 7;
                }
                packed.push(number as u8 | 0x80);
            }
            previous = index;
        }
        Self(packed.into())
    }

    fn iter(&self) -> impl Iterator<Item = (u16, u64)> {
        let mut bytes = self.0.iter();
        let mut number = move || {
            let mut number = 0_u64;
            for shift in (0..).step_by(7) {
                let byte = bytes.next()?;
                number |= u64::from(byte & 0x7f) << shift;
                if byte & 0x80 != 0 {
                    break;
                }
            }
            Some(number)
        };
        let mut index = 0;
        std::iter::from_fn(move || {
            index += number()? as u16;
            Some((index, number()?))
        })
    }
}

/// Returns values that the exact buckets have and `cells` lack, each in the middle of its bucket.
fn missing(buckets: [u64; BUCKETS], cells: &PackedCells, histogram: usize, mut room: u64) -> Vec<(u16, u64)> {
    let scale = if histogram == DURATION { 1_000 } else { 1 };
    let mut lacking = buckets;
    for (index, count) in cells.totals(histogram) {
        let lacks = &mut lacking[histogram::bucket(midpoint(index) / scale) as usize];
        *lacks = lacks.saturating_sub(count);
    }
    let mut missing = Vec::new();
    for (bucket, lacks) in lacking.into_iter().enumerate() {
        let low = bucket.checked_sub(1).map_or(0, |below| histogram::BOUNDS[below] + 1);
        let high = histogram::BOUNDS.get(bucket).map_or(low, |bound| *bound);
        let (page, cell) = histogram::sub_bucket((low + (high - low) / 2) * scale);
        let count = lacks.min(room);
        room -= count;
        if count > 0 {
            missing.push(((page * SUB_BUCKETS as u32 + cell) as u16, count));
        }
    }
    missing
}

/// Cells a histogram can have.
const HISTOGRAM_CELLS: u16 = (BUCKET_PAGES * SUB_BUCKETS) as u16;

/// Returns the cells of three histograms as one ascending list.
fn joined(histograms: [&[Cell]; 3]) -> impl Iterator<Item = (u16, u64)> {
    (0..3).zip(histograms).flat_map(|(histogram, cells)| {
        cells.iter().map(move |(index, count)| (histogram * HISTOGRAM_CELLS + index, u64::from(*count)))
    })
}

/// Returns [`QUANTILES`] of the values in `cells`, in the unit of the cells; `None` if there are none.
/// A value is its cell's midpoint, within 1/64 of the true one.
#[must_use]
pub fn quantiles(cells: &[Cell]) -> Option<[u64; QUANTILES.len()]> {
    let highest = cells.last().map(|(index, _)| midpoint(*index))?;
    // Two digits give 256 steps an octave where a cell has 32: every step lies in one cell.
    let mut histogram = Histogram::<u64>::new_with_max(highest.max(2), 2).ok()?;
    for (index, count) in cells {
        histogram.record_n(midpoint(*index), u64::from(*count)).ok()?;
    }
    let quantile = |(_, quantile)| {
        let (block, cell) = histogram::sub_bucket(histogram.value_at_quantile(quantile));
        middle(block, cell)
    };
    (!histogram.is_empty()).then(|| QUANTILES.map(quantile))
}

/// Joins two ascending lists, with missing cells as 0; cells that become 0 are dropped.
fn merge(
    left: impl Iterator<Item = (u16, u64)>,
    right: impl Iterator<Item = (u16, u64)>,
    join: fn(u64, u64) -> u64,
) -> impl Iterator<Item = (u16, u64)> {
    let (mut left, mut right) = (left.peekable(), right.peekable());
    let joined = std::iter::from_fn(move || {
        let index = match (left.peek(), right.peek()) {
            (Some((a, _)), Some((b, _))) => *a.min(b),
            (Some((index, _)), None) | (None, Some((index, _))) => *index,
            (None, None) => return None,
        };
        let a = left.next_if(|(own, _)| *own == index).map_or(0, |(_, count)| count);
        let b = right.next_if(|(own, _)| *own == index).map_or(0, |(_, count)| count);
        Some((index, join(a, b)))
    });
    joined.filter(|(_, count)| *count != 0)
}

/// Returns the value that represents a cell, in the unit of the cells.
#[must_use]
pub fn midpoint(index: u16) -> u64 {
    middle(u32::from(index) / SUB_BUCKETS as u32, u32::from(index) % SUB_BUCKETS as u32)
}

fn middle(block: u32, cell: u32) -> u64 {
    let (low, high) = histogram::bounds(block, cell);
    low + (high - low) / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use observer_common::SeriesKey;
    use proptest::prelude::*;

    fn dense() -> impl Strategy<Value = [[u64; BUCKETS]; 3]> {
        proptest::collection::vec(prop_oneof![3 => Just(0u64), 1 => 1u64..1 << 40], 3 * BUCKETS)
            .prop_map(|counts| std::array::from_fn(|row| std::array::from_fn(|column| counts[row * BUCKETS + column])))
    }

    #[test]
    fn what_was_kept_with_other_buckets_than_it_says_is_refused() {
        let read = |masks: [u32; 3], counts: &[u64]| {
            let text = serde_json::json!({ "messages": [0, 0], "sums": [7, 0, 0], "masks": masks, "counts": counts });
            serde_json::from_value::<HttpTotals>(text)
        };
        assert_eq!(read([0b101, 0, 1], &[2, 3, 4]).unwrap().requests(), 5);
        assert!(read([0b101, 0, 1], &[2, 3]).is_err());
        assert!(read([0b101, 0, 0], &[2, 3, 4]).is_err());
        assert!(read([1 << BUCKETS, 0, 0], &[2]).is_err());
    }

    fn cell_index(value: u64) -> u16 {
        let (block, cell) = histogram::sub_bucket(value);
        u16::try_from(block * SUB_BUCKETS as u32 + cell).unwrap()
    }

    fn cells() -> impl Strategy<Value = [Vec<Cell>; 3]> {
        let one = proptest::collection::btree_map(0..HISTOGRAM_CELLS, prop_oneof![1u32..300, 1u32..], 0..30);
        proptest::array::uniform3(one.prop_map(|cells| cells.into_iter().collect()))
    }

    fn cells_of(values: &[u64]) -> Vec<Cell> {
        let mut counted = std::collections::BTreeMap::new();
        for value in values {
            *counted.entry(cell_index(*value)).or_insert(0u32) += 1;
        }
        counted.into_iter().collect()
    }

    proptest! {
        #[test]
        fn sparse_figures_hold_what_dense_ones_do(older in dense(), difference in dense(), sums: [u32; 3]) {
            let sums = sums.map(u64::from);
            let (older, difference) = (HttpTotals::from_dense([0; 2], sums, &older), HttpTotals::from_dense([0; 2], sums, &difference));
            let mut newer = older.clone();
            newer.add(&difference);
            prop_assert_eq!(older.difference(&newer), Some(difference.clone()));
            let histograms = std::array::from_fn(|histogram| HistogramReading {
                buckets: newer.buckets(histogram),
                sum: newer.sum(histogram),
                cells: Vec::new(),
            });
            let reading = SeriesReading { key: SeriesKey::default(), histograms, opened: 0, closed: 0, received: 0, sent: 0, messages: [0; 2] };
            prop_assert_eq!(&HttpTotals::of(&reading), &newer);
            prop_assert!(newer.equals(&reading));
            prop_assert_eq!(older.equals(&reading), older == newer);
        }

        #[test]
        fn quantiles_lie_within_a_sixty_fourth_of_the_exact_ones(
            mut values in proptest::collection::vec(prop_oneof![0u64..100, 0u64..1 << 20, 0u64..1 << 38], 1..300),
        ) {
            let found = quantiles(&cells_of(&values)).unwrap();
            values.sort_unstable();
            for ((_, quantile), found) in QUANTILES.into_iter().zip(found) {
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "small")]
                let rank = ((quantile * values.len() as f64).ceil() as usize).clamp(1, values.len());
                let exact = values[rank - 1];
                prop_assert!(found.abs_diff(exact) * 64 <= exact + 63, "{quantile}: {found} for {exact}");
            }
        }

        #[test]
        fn what_fell_between_two_readings_is_found_even_across_the_wrap(older in cells(), fell in cells()) {
            let (older, fell) = (PackedCells::new(older.each_ref().map(Vec::as_slice)), PackedCells::new(fell.each_ref().map(Vec::as_slice)));
            let newer = older.advanced_by(&fell);
            prop_assert_eq!(older.difference(&newer), fell);
        }

        #[test]
        fn packing_loses_nothing(cells in cells(), other in cells()) {
            let slices = cells.each_ref().map(Vec::as_slice);
            let packed = PackedCells::new(slices);
            prop_assert!(packed.equals(slices));
            prop_assert_eq!(packed.equals(other.each_ref().map(Vec::as_slice)), cells == other);
            for (histogram, cells) in cells.iter().enumerate() {
                prop_assert_eq!(&packed.of(histogram), cells);
            }
        }
    }

    #[test]
    fn an_interval_without_values_has_no_percentile() {
        assert_eq!(quantiles(&[]), None);
        let cells = cells_of(&[1_000, 2_000]);
        let packed = PackedCells::new([&cells, &[], &cells]);
        assert!(packed.difference(&packed).is_empty());
        assert_eq!(quantiles(&packed.of(1)), None);
    }

    #[test]
    fn bounds_are_printed_as_envoy_prints_them() {
        for (text, bound) in LE.into_iter().zip(histogram::BOUNDS) {
            let printed: f64 = text.parse().unwrap();
            // Whole values are at most 0.5 when they are 0.
            assert!((printed - bound as f64).abs() < 0.6 && (printed == bound as f64 || bound == 0));
        }
        assert_eq!(LE.last(), Some(&"+Inf"));
    }
}
