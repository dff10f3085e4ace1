//! Words of eight bytes as text: comparisons and numbers without a branch per byte.

use crate::flow::{Flow, HIGH, bytes_equal};

/// The bit that makes a letter of each byte a small one.
pub(crate) const LOWER: u64 = 0x2020_2020_2020_2020;
const ZEROS: u64 = 0x3030_3030_3030_3030;

/// Returns eight bytes as a word, the first one lowest.
pub(crate) const fn text(bytes: &[u8; 8]) -> u64 {
    u64::from_le_bytes(*bytes)
}

/// Returns the mask of a word's first `length` bytes.
#[inline(always)]
pub(crate) fn low_bytes(length: u32) -> u64 {
    if length >= 8 { !0 } else { (1u64 << ((length & 7) * 8)).wrapping_sub(1) }
}

/// Returns whether the word is `HTTP/`, a digit, a point and a digit.
#[inline(always)]
pub(crate) fn is_version(word: u64) -> bool {
    let digits = word & 0xff00_ff00_0000_0000 ^ 0x3000_3000_0000_0000;
    let others = word & 0x00ff_00ff_ffff_ffff == text(b"HTTP/\0.\0");
    others && digits >> 40 & 0xff < 10 && digits >> 56 < 10
}

/// Returns the number of spaces and tabs at window index `at`, at most 16.
#[inline(always)]
pub(crate) fn blank_run(flow: &Flow, at: u32) -> u32 {
    let first = run(flow.word(at), b' ');
    if first == 8 { 8 + run(flow.word(at.wrapping_add(8)), b' ') } else { first }
}

/// Returns the number of leading spaces, tabs and bytes `also` of a word.
#[inline(always)]
pub(crate) fn run(word: u64, also: u8) -> u32 {
    let blank = bytes_equal(word, b' ') | bytes_equal(word, b'\t') | bytes_equal(word, also);
    let other = !blank & HIGH;
    other.trailing_zeros() / 8
}

/// Returns number and value of the leading decimal digits of a word.
#[inline(always)]
pub(crate) fn decimal(word: u64) -> (u32, u64) {
    let digits = word ^ ZEROS;
    let other = (((digits & !HIGH) + 0x7676_7676_7676_7676) | digits) & HIGH;
    let count = other.trailing_zeros() / 8;
    // In two steps: a shift by 64 is undefined.
    let digits = digits << ((8 - count) * 4) << ((8 - count) * 4);
    let pairs = (digits * 10 + (digits >> 8)) & 0x00ff_00ff_00ff_00ff;
    let fours = (pairs * 100 + (pairs >> 16)) & 0x0000_ffff_0000_ffff;
    (count, (fours.wrapping_mul(10_000) + (fours >> 32)) & 0xffff_ffff)
}

/// Returns number and value of the leading hexadecimal digits of a word.
#[inline(always)]
pub(crate) fn hexadecimal(word: u64) -> (u32, u64) {
    let digits = word ^ ZEROS;
    let digit = !(((digits & !HIGH) + 0x7676_7676_7676_7676) | digits);
    let letters = (word | LOWER) ^ 0x6060_6060_6060_6060;
    let low = letters & !HIGH;
    let letter = !((low + 0x7979_7979_7979_7979) | letters) & (low + !HIGH);
    let other = !(digit | letter) & HIGH;
    let count = other.trailing_zeros() / 8;
    let nibbles = (word & 0x0f0f_0f0f_0f0f_0f0f) + (word >> 6 & 0x0101_0101_0101_0101) * 9;
    let nibbles = nibbles << ((8 - count) * 4) << ((8 - count) * 4);
    let pairs = (nibbles * 16 + (nibbles >> 8)) & 0x00ff_00ff_00ff_00ff;
    let fours = (pairs * 256 + (pairs >> 16)) & 0x0000_ffff_0000_ffff;
    (count, (fours.wrapping_mul(65_536) + (fours >> 32)) & 0xffff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(text: &str) -> u64 {
        let mut bytes = [0; 8];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        u64::from_le_bytes(bytes)
    }

    #[test]
    fn digits_are_read_up_to_the_first_other_byte() {
        for (text, expected) in
            [("0", (1, 0)), ("7\r\n", (1, 7)), ("1024 x", (4, 1024)), ("12345678", (8, 12_345_678)), ("x1", (0, 0))]
        {
            assert_eq!(decimal(word(text)), expected, "{text:?}");
        }
        for (text, expected) in [
            ("0\r", (1, 0)),
            ("a", (1, 10)),
            ("FF;x", (2, 255)),
            ("deadBEEF", (8, 0xdead_beef)),
            ("g", (0, 0)),
            ("@", (0, 0)),
            ("`", (0, 0)),
        ] {
            assert_eq!(hexadecimal(word(text)), expected, "{text:?}");
        }
    }
}
