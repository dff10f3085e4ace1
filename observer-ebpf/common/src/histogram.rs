//! Log-linear sub-buckets for percentiles, and Istio's bucket boundaries; the same code on both sides.
//!
//! A value keeps its top bit and the five bits under it: 32 sub-buckets per octave, so the midpoint of a sub-bucket is
//! within 1/64 of every value in it. Sub-buckets live in *pages* of one octave, allocated when the first value falls
//! there. Istio's exposed buckets are counted separately and exactly: a scrape reads no page, and a missing page costs
//! no bucket.

use core::hint::black_box;

/// Bits kept under the top bit of a value.
pub const MANTISSA_BITS: u32 = 5;
/// Sub-buckets per page: one octave, or the values 0 to 31 in page 0.
pub const SUB_BUCKETS: usize = 1 << MANTISSA_BITS;
/// Pages per histogram; the last one holds everything from 2^39 (six days of microseconds, 512 GiB) up.
pub const BUCKET_PAGES: usize = 36;
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

/// Larger than all bounds, and small enough for differences to keep their sign bit.
const LARGE: u64 = 1 << 62;

/// Returns the index of the exposed bucket of `value` (whole milliseconds or bytes), 0 to 19.
///
/// Adds up sign bits instead of comparing: twenty comparisons would be twenty paths for the verifier.
#[inline(always)]
#[must_use]
pub fn bucket(value: u64) -> u32 {
    // Hidden from the compiler, which would turn this back into comparisons.
    let value = black_box(if value > LARGE { LARGE } else { value });
    let mut index = 0;
    let mut i = 0;
    while i < BUCKETS - 1 {
        index += BOUNDS[i].wrapping_sub(value) >> 63;
        i += 1;
    }
    index as u32
}

/// Returns page and sub-bucket of `value` (microseconds or bytes); values too large fall in the last sub-bucket.
#[inline(always)]
#[must_use]
pub fn sub_bucket(value: u64) -> (u32, u32) {
    if value < SUB_BUCKETS as u64 {
        return (0, value as u32);
    }
    let top = 63 - value.leading_zeros();
    let page = top - MANTISSA_BITS + 1;
    if page as usize >= BUCKET_PAGES {
        return (BUCKET_PAGES as u32 - 1, SUB_BUCKETS as u32 - 1);
    }
    (page, (value >> (top - MANTISSA_BITS)) as u32 & (SUB_BUCKETS as u32 - 1))
}

/// Returns the smallest and largest value of a sub-bucket, both inclusive. The very last one also holds all values above.
#[must_use]
pub fn bounds(page: u32, sub_bucket: u32) -> (u64, u64) {
    if page == 0 {
        return (u64::from(sub_bucket), u64::from(sub_bucket));
    }
    let width = 1u64 << (page - 1);
    let low = (SUB_BUCKETS as u64 + u64::from(sub_bucket)) * width;
    (low, low + (width - 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_value_lies_in_its_sub_bucket_within_a_sixty_fourth(value in 0u64..1 << 40) {
            let (page, sub_bucket) = sub_bucket(value);
            let (low, high) = bounds(page, sub_bucket);
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
    fn sub_buckets_follow_each_other_without_hole_or_overlap() {
        let mut next = 0;
        for page in 0..BUCKET_PAGES as u32 {
            for sub_index in 0..SUB_BUCKETS as u32 {
                let (low, high) = bounds(page, sub_index);
                assert_eq!(low, next);
                assert_eq!(sub_bucket(low), (page, sub_index));
                assert_eq!(sub_bucket(high), (page, sub_index));
                next = high + 1;
            }
        }
        assert_eq!(sub_bucket(u64::MAX), (BUCKET_PAGES as u32 - 1, SUB_BUCKETS as u32 - 1));
    }
}
