//! Protocol buffers on the wire: writes fields, and reads those of messages of any origin.
//!
//! prost's own primitives are hidden from its documentation, and its messages would hold every label of every point on
//! the heap. Independent decoders check what is written in the tests.

use std::ops::Range;

/// Bits of a key that hold the wire type.
const TYPE_BITS: u32 = 3;
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const LENGTH: u64 = 2;
const FIXED32: u64 = 5;
/// Maximum size of a varint.
const MAX_VARINT: usize = 10;

/// Appends a varint.
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Returns the size of a varint.
pub(super) const fn varint_size(value: u64) -> usize {
    let bits = u64::BITS - (value | 1).leading_zeros();
    bits.div_ceil(7) as usize
}

/// Maps small signed numbers to small unsigned ones, as `sint32` and `sint64` do.
pub(super) const fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

/// Appends a varint field. 0 is the default and could be left out, but not in a `oneof`.
pub(super) fn put_uint(out: &mut Vec<u8>, field: u32, value: u64) {
    put_key(out, field, VARINT);
    put_varint(out, value);
}

/// Appends a field of eight bytes.
pub(super) fn put_fixed64(out: &mut Vec<u8>, field: u32, bits: u64) {
    put_key(out, field, FIXED64);
    out.extend_from_slice(&bits.to_le_bytes());
}

/// Appends a field of four bytes.
pub(super) fn put_fixed32(out: &mut Vec<u8>, field: u32, bits: u32) {
    put_key(out, field, FIXED32);
    out.extend_from_slice(&bits.to_le_bytes());
}

/// Appends a `double` field.
pub(super) fn put_double(out: &mut Vec<u8>, field: u32, value: f64) {
    put_fixed64(out, field, value.to_bits());
}

/// Appends a field of bytes: a string, or an encoded message.
pub(super) fn put_bytes(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    put_length(out, field, bytes.len());
    out.extend_from_slice(bytes);
}

/// Appends a message of two strings.
pub(super) fn put_pair(out: &mut Vec<u8>, field: u32, name: &str, value: &str) {
    let length = |text: &str| 1 + varint_size(text.len() as u64) + text.len();
    put_length(out, field, length(name) + length(value));
    put_bytes(out, 1, name.as_bytes());
    put_bytes(out, 2, value.as_bytes());
}

/// Appends key and length of a field whose bytes follow.
pub(super) fn put_length(out: &mut Vec<u8>, field: u32, length: usize) {
    put_key(out, field, LENGTH);
    put_varint(out, length as u64);
}

/// Appends a message that `write` writes. Its length is not known before, so a short or a long one is moved once.
pub(super) fn put_message(out: &mut Vec<u8>, field: u32, write: impl FnOnce(&mut Vec<u8>)) {
    /// Room left for the length.
    const ROOM: usize = 2;
    put_key(out, field, LENGTH);
    let at = out.len();
    out.extend_from_slice(&[0; ROOM]);
    write(out);
    let length = out.len().saturating_sub(at + ROOM);
    let size = varint_size(length as u64);
    if size != ROOM {
        out.resize(at + size.max(ROOM) + length, 0);
        out.copy_within(at + ROOM..at + ROOM + length, at + size);
        out.truncate(at + size + length);
    }
    let mut rest = length;
    for byte in out.iter_mut().skip(at).take(size) {
        *byte = rest as u8 | 0x80;
        rest >>= 7;
    }
    if let Some(last) = out.get_mut(at + size - 1) {
        *last &= 0x7f;
    }
}

fn put_key(out: &mut Vec<u8>, field: u32, wire_type: u64) {
    put_varint(out, u64::from(field) << TYPE_BITS | wire_type);
}

/// A field's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field<'a> {
    /// An integer.
    Varint(u64),
    /// The bits of a double or of a fixed integer.
    Fixed64(u64),
    /// A string or message.
    Bytes(&'a [u8]),
    /// Four bytes, which no message here has.
    Fixed32,
}

/// The fields of a message: number, value, and where key and value are in it. Ends early where the message is
/// malformed, see [`Fields::is_whole`].
#[derive(Clone, Debug)]
pub(super) struct Fields<'a> {
    message: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    pub(super) const fn new(message: &'a [u8]) -> Self {
        Self { message, at: 0 }
    }

    /// Whether all of the message was read.
    pub(super) const fn is_whole(&self) -> bool {
        self.at == self.message.len()
    }

    fn read(&self) -> Option<(u32, Field<'a>, usize)> {
        let mut at = self.at;
        let key = self.varint(&mut at)?;
        let field = u32::try_from(key >> TYPE_BITS).ok().filter(|field| *field > 0)?;
        let value = match key & ((1 << TYPE_BITS) - 1) {
            VARINT => Field::Varint(self.varint(&mut at)?),
            FIXED64 => Field::Fixed64(u64::from_le_bytes(self.take(&mut at, 8)?.try_into().ok()?)),
            FIXED32 => self.take(&mut at, 4).map(|_| Field::Fixed32)?,
            LENGTH => {
                let length = usize::try_from(self.varint(&mut at)?).ok()?;
                Field::Bytes(self.take(&mut at, length)?)
            }
            _ => return None,
        };
        Some((field, value, at))
    }

    fn varint(&self, at: &mut usize) -> Option<u64> {
        let mut value = 0;
        for index in 0..MAX_VARINT {
            let byte = *self.message.get(*at)?;
            *at += 1;
            value |= u64::from(byte & 0x7f).checked_shl(7 * index as u32)?;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&self, at: &mut usize, length: usize) -> Option<&'a [u8]> {
        let end = at.checked_add(length)?;
        let taken = self.message.get(*at..end)?;
        *at = end;
        Some(taken)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = (u32, Field<'a>, Range<usize>);

    fn next(&mut self) -> Option<Self::Item> {
        let (field, value, end) = self.read()?;
        let range = self.at..end;
        self.at = end;
        Some((field, value, range))
    }
}

/// Reads the varints of a packed field; `None` in place of a malformed one.
pub(super) fn packed(bytes: &[u8]) -> impl Iterator<Item = Option<u64>> {
    let fields = Fields::new(bytes);
    let mut at = 0;
    std::iter::from_fn(move || (at < fields.message.len()).then(|| fields.varint(&mut at))).take(bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fields(message: &[u8]) -> Vec<(u32, Field<'_>)> {
        let mut fields = Fields::new(message);
        let read = fields.by_ref().map(|(field, value, _)| (field, value)).collect();
        assert!(fields.is_whole());
        read
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(number: u64, real: f64, bytes in proptest::collection::vec(any::<u8>(), 0..40_000), signed: i64) {
            let mut out = Vec::new();
            put_uint(&mut out, 1, number);
            put_double(&mut out, 2, real);
            put_message(&mut out, 1000, |out| out.extend_from_slice(&bytes));
            put_bytes(&mut out, 4, b"end");
            let read = [
                (1, Field::Varint(number)), (2, Field::Fixed64(real.to_bits())), (1000, Field::Bytes(&bytes)),
                (4, Field::Bytes(b"end")),
            ];
            prop_assert_eq!(fields(&out), read);
            let mut varint = Vec::new();
            put_varint(&mut varint, number);
            prop_assert_eq!(varint.len(), varint_size(number));
            let coded = zigzag(signed);
            prop_assert_eq!((coded >> 1) as i64 ^ -((coded & 1) as i64), signed);
        }

        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut read = Fields::new(&bytes);
            prop_assert!(read.by_ref().count() <= bytes.len());
            prop_assert!(packed(&bytes).count() <= bytes.len());
        }
    }
}
