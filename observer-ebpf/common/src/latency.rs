//! Log-linear histogram cells and Istio's bucket boundaries, the same code on both sides.
//!
//! A value keeps its top bit and the five bits under it: 32 cells an octave, so a cell's midpoint is within 1/64 of
//! every value in it. Cells live in *blocks* of one octave that a series takes only when a value falls there.
//! Istio's exposed buckets are counted apart, exactly, so a scrape needs no cell and a missing block no estimate.

use core::hint::black_box;

/// Bits kept under the top bit of a value.
pub const MANTISSA_BITS: u32 = 5;
/// Cells in a block: one octave, or the values 0 to 31 in block 0.
pub const CELLS: usize = 1 << MANTISSA_BITS;
/// Blocks a histogram can have; the last one holds everything from 2^39 (six days of microseconds, 512 GiB) up.
pub const BLOCKS: usize = 36;
/// Exposed buckets, the `+Inf` one included.
pub const BUCKETS: usize = 20;

/// Upper bounds of the exposed buckets, inclusive, in whole milliseconds or bytes.
///
/// Istio's first bound is 0.5; a whole number is at most 0.5 when it is 0.
/// Source: envoy `source/common/stats/histogram_impl.cc`, default supported buckets.
pub const BOUNDS: [u64; BUCKETS - 1] = [
    0, 1, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000, 600_000, 1_800_000,
    3_600_000,
];

/// A value that lies above all bounds, and to which every difference has a sign.
const LARGE: u64 = 1 << 62;

/// Index of the exposed bucket that `value` (whole milliseconds or bytes) falls in, 0 to 19.
///
/// Signs are added up rather than comparisons made: each of those would be a branch, and twenty paths for the verifier.
#[inline(always)]
#[must_use]
pub fn bucket(value: u64) -> u32 {
    // Hidden, since the compiler knows how to make comparisons of this again.
    let value = black_box(if value > LARGE { LARGE } else { value });
    let mut index = 0;
    let mut i = 0;
    while i < BUCKETS - 1 {
        index += BOUNDS[i].wrapping_sub(value) >> 63;
        i += 1;
    }
    index as u32
}

/// Block and cell of `value` (microseconds or bytes); values too large fall in the last cell.
#[inline(always)]
#[must_use]
pub fn cell(value: u64) -> (u32, u32) {
    if value < CELLS as u64 {
        return (0, value as u32);
    }
    let top = 63 - value.leading_zeros();
    let block = top - MANTISSA_BITS + 1;
    if block as usize >= BLOCKS {
        return (BLOCKS as u32 - 1, CELLS as u32 - 1);
    }
    (block, (value >> (top - MANTISSA_BITS)) as u32 & (CELLS as u32 - 1))
}

/// Smallest and largest value of a cell, both inclusive. The last cell of the last block has no upper end of its own.
#[must_use]
pub fn bounds(block: u32, cell: u32) -> (u64, u64) {
    if block == 0 {
        return (u64::from(cell), u64::from(cell));
    }
    let width = 1u64 << (block - 1);
    let low = (CELLS as u64 + u64::from(cell)) * width;
    (low, low + (width - 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_value_lies_in_its_cell_within_a_sixty_fourth(value in 0u64..1 << 40) {
            let (block, cell) = cell(value);
            let (low, high) = bounds(block, cell);
            prop_assert!(low <= value && value <= high);
            let middle = low + (high - low) / 2;
            prop_assert!(middle.abs_diff(value) * 64 <= value.max(1) + 63);
        }

        #[test]
        fn every_value_lies_in_exactly_one_bucket(value in prop_oneof![0u64..4_000_000, any::<u64>()]) {
            let index = bucket(value) as usize;
            prop_assert!(index == BUCKETS - 1 || value <= BOUNDS[index]);
            prop_assert!(index == 0 || value > BOUNDS[index - 1]);
        }
    }

    #[test]
    fn cells_follow_each_other_without_hole_or_overlap() {
        let mut next = 0;
        for block in 0..BLOCKS as u32 {
            for cell_index in 0..CELLS as u32 {
                let (low, high) = bounds(block, cell_index);
                assert_eq!(low, next);
                assert_eq!(cell(low), (block, cell_index));
                assert_eq!(cell(high), (block, cell_index));
                next = high + 1;
            }
        }
        assert_eq!(cell(u64::MAX), (BLOCKS as u32 - 1, CELLS as u32 - 1));
    }
}
