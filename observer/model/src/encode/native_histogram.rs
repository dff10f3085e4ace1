//! Native histograms of Prometheus, from the log-linear cells. Pure.
//!
//! Schema 8 has buckets of 2^(1/256), 0.27 % wide. A cell is counted in the bucket of its midpoint, from which no value
//! of the cell is farther than 1/64: a percentile is within 1.84 % of the true one, whatever a reader interpolates. A
//! coarser schema saves nothing: cells, of which 32 divide an octave, stay apart down to schema 6.

use std::sync::LazyLock;

use observer_common::histogram::{BUCKET_PAGES, SUB_BUCKETS};

use super::wire::{put_double, put_length, put_message, put_uint, put_varint, varint_size, zigzag};
use crate::histogram::midpoint;

/// Resolution: buckets grow by 2^(2^-8).
const SCHEMA: i32 = 8;
/// Largest value in the zero bucket, 2^-128 as usual: only 0 is there.
const ZERO_THRESHOLD: f64 = f64::from_bits((1023 - 128) << 52);

const CELLS: usize = BUCKET_PAGES * SUB_BUCKETS;

/// Unit of the exposed values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CellUnit {
    /// Cells are microseconds.
    Milliseconds,
    /// Cells are bytes.
    Bytes,
}

/// Adjacent buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Index of the first one, or its distance from the end of the span before.
    pub offset: i32,
    /// Number of buckets.
    pub length: u32,
}

/// Numbers of the fields that a message has for a native histogram: Prometheus' two messages differ in nothing else.
#[derive(Clone, Copy, Debug)]
pub(super) struct FieldNumbers {
    /// `sint32`.
    pub(super) schema: u32,
    /// `double`.
    pub(super) zero_threshold: u32,
    /// `uint64`.
    pub(super) zero_count: u32,
    /// Repeated message of an offset and a length.
    pub(super) spans: u32,
    /// Repeated `sint64`, packed.
    pub(super) deltas: u32,
}

/// A histogram whose bucket `i` has the values up to 2^(i/256) and above 2^((i-1)/256).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NativeHistogram {
    /// Number of values, the sum of all buckets.
    pub count: u64,
    /// Number of zeroes.
    pub zero_count: u64,
    /// Non-empty buckets, ascending.
    pub spans: Vec<Span>,
    /// Count of each, as its difference from the one before.
    pub deltas: Vec<i64>,
}

impl NativeHistogram {
    /// Converts cells, ascending, with cumulative counts.
    #[must_use]
    pub fn new(cells: impl IntoIterator<Item = (u16, u64)>, unit: CellUnit) -> Self {
        let [durations, sizes] = &*INDICES;
        let table = match unit {
            CellUnit::Bytes => sizes,
            CellUnit::Milliseconds => durations,
        };
        let mut histogram = Self::default();
        // The next bucket behind the last one, and the last one's count.
        let (mut next, mut last) = (None::<i32>, 0);
        for (cell, count) in cells {
            histogram.count = histogram.count.saturating_add(count);
            match table.get(usize::from(cell)).copied().flatten() {
                None => histogram.zero_count = histogram.zero_count.saturating_add(count),
                Some(index) => {
                    let count = i64::try_from(count).unwrap_or(i64::MAX);
                    match (next, histogram.spans.last_mut()) {
                        (Some(next), Some(span)) if index == next => span.length += 1,
                        _ => histogram.spans.push(Span { offset: index - next.unwrap_or(0), length: 1 }),
                    }
                    histogram.deltas.push(count - last);
                    (next, last) = (Some(index + 1), count);
                }
            }
        }
        histogram
    }

    /// Appends everything but count and sum.
    pub(super) fn write(&self, out: &mut Vec<u8>, fields: FieldNumbers) {
        put_uint(out, fields.schema, zigzag(SCHEMA.into()));
        put_double(out, fields.zero_threshold, ZERO_THRESHOLD);
        put_uint(out, fields.zero_count, self.zero_count);
        for span in &self.spans {
            put_message(out, fields.spans, |out| {
                put_uint(out, 1, zigzag(span.offset.into()));
                put_uint(out, 2, span.length.into());
            });
        }
        if !self.deltas.is_empty() {
            let deltas = || self.deltas.iter().map(|delta| zigzag(*delta));
            put_length(out, fields.deltas, deltas().map(varint_size).sum());
            deltas().for_each(|delta| put_varint(out, delta));
        }
    }
}

/// Bucket of each cell's midpoint, as milliseconds and as bytes; `None` for 0. No two cells have the same one.
static INDICES: LazyLock<[[Option<i32>; CELLS]; 2]> = LazyLock::new(|| {
    [1_000.0, 1.0]
        .map(|scale| std::array::from_fn(|cell| index(midpoint(u16::try_from(cell).unwrap_or(u16::MAX)), scale)))
});

#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "midpoints are below 2^41")]
fn index(midpoint: u64, scale: f64) -> Option<i32> {
    (midpoint > 0).then(|| ((midpoint as f64 / scale).log2() * f64::from(1 << SCHEMA)).ceil() as i32)
}

#[cfg(test)]
mod tests {
    use observer_common::histogram::{bounds, sub_bucket};
    use proptest::prelude::*;

    use super::*;

    fn buckets(histogram: &NativeHistogram) -> Vec<(i32, i64)> {
        let (mut at, mut count) = (0, 0);
        let mut deltas = histogram.deltas.iter();
        let mut buckets = Vec::new();
        for span in &histogram.spans {
            at += span.offset;
            for _ in 0..span.length {
                count += deltas.next().unwrap();
                buckets.push((at, count));
                at += 1;
            }
        }
        assert_eq!(deltas.next(), None);
        buckets
    }

    #[test]
    fn every_cell_has_a_bucket_of_its_own_whose_bounds_hold_its_midpoint() {
        for table in &*INDICES {
            assert_eq!(table[0], None);
            assert!(table[1..].is_sorted_by(|one, other| one.is_some() && one < other));
        }
        for (unit, scale) in [(0, 1_000.0), (1, 1.0)] {
            for cell in 1..u16::try_from(CELLS).unwrap() {
                let index = f64::from(INDICES[unit][usize::from(cell)].unwrap());
                #[expect(clippy::cast_precision_loss, reason = "below 2^41")]
                let value = midpoint(cell) as f64 / scale;
                let (low, high) = (((index - 1.0) / 256.0).exp2(), (index / 256.0).exp2());
                assert!(low < value * (1.0 + 1e-12) && value <= high * (1.0 + 1e-12), "{cell}: {low} {value} {high}");
            }
        }
    }

    #[test]
    fn any_point_of_a_bucket_is_within_the_stated_error_of_any_value_of_its_cell() {
        let mut worst: f64 = 0.0;
        // The last cell has no upper bound.
        for cell in 1..u16::try_from(CELLS - 1).unwrap() {
            let index = f64::from(INDICES[1][usize::from(cell)].unwrap());
            let (low, high) = bounds(u32::from(cell) / 32, u32::from(cell) % 32);
            for value in [low, high] {
                for estimate in [((index - 1.0) / 256.0).exp2(), (index / 256.0).exp2()] {
                    #[expect(clippy::cast_precision_loss, reason = "below 2^41")]
                    let value = value as f64;
                    worst = worst.max((estimate - value).abs() / value);
                }
            }
        }
        assert!(worst < 0.0184, "{worst}");
    }

    proptest! {
        #[test]
        fn nothing_is_lost(values in proptest::collection::vec(prop_oneof![0u64..40, 0u64..1 << 20, any::<u64>()], 0..200), bytes: bool) {
            let mut cells = std::collections::BTreeMap::new();
            for value in &values {
                let (page, cell) = sub_bucket(*value);
                *cells.entry(u16::try_from(page * 32 + cell).unwrap()).or_insert(0u64) += 1;
            }
            let unit = if bytes { CellUnit::Bytes } else { CellUnit::Milliseconds };
            let histogram = NativeHistogram::new(cells.clone(), unit);
            let buckets = buckets(&histogram);
            prop_assert_eq!(histogram.count, values.len() as u64);
            prop_assert_eq!(histogram.zero_count, values.iter().filter(|value| **value == 0).count() as u64);
            let counted: i64 = buckets.iter().map(|(_, count)| count).sum();
            prop_assert_eq!(counted.unsigned_abs() + histogram.zero_count, histogram.count);
            prop_assert!(buckets.is_sorted_by(|one, other| one.0 < other.0));
            prop_assert_eq!(buckets.len(), cells.keys().filter(|cell| **cell > 0).count());
        }
    }
}
