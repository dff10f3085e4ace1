//! HPACK (RFC 7541), walked only as far as four fields need: `:status`, `grpc-status`, `content-type` and `:protocol`.
//!
//! The dynamic table is not kept. Every insertion is counted, and a ring holds what each of the last ones means here;
//! an index is turned into the number of its insertion. Eviction needs no model: a valid encoder never names an evicted
//! entry, and a table of 4,096 bytes holds at most 128 entries of 32 bytes or more, as many as the ring. An entry too
//! large to be stored empties the table (section 4.4); counting it does no harm, since all before it are gone.
//!
//! Strings are compared as they are sent: a Huffman code (Appendix B) is as good as its text for that.

use crate::{shared, stream::Stream};

/// Insertions remembered in the connection: all that a table of 4,096 bytes can hold.
pub const RING: usize = 128;
/// Insertions remembered for an encoder that announced a larger table: all that 65,536 bytes can hold.
pub const WIDE: usize = 2048;
/// Table size from which on [`RING`] may not suffice.
const RING_BYTES: u32 = 4_096;

/// A name that says nothing here.
pub const OTHER: u32 = 0;
/// `:status`.
pub const STATUS: u32 = 1;
/// `grpc-status`.
pub const GRPC_STATUS: u32 = 2;
/// `content-type`; its value is 1 for gRPC, else 0.
pub const CONTENT_TYPE: u32 = 3;
/// `:protocol`, which makes CONNECT an upgrade (RFC 8441); its value says nothing here.
pub const PROTOCOL: u32 = 4;
/// Position of the name in an entry of the ring; the value is below it.
const NAME_SHIFT: u32 = 13;
/// Value of an entry that was not understood.
pub const UNREADABLE: u32 = (1 << NAME_SHIFT) - 1;

/// State: at the first byte of a field.
pub const FIRST: u32 = 0;
/// State: in the field's index.
const INDEX: u32 = 1;
/// State: at the length of the name.
const NAME_LENGTH: u32 = 2;
/// State: in the name.
const NAME: u32 = 3;
/// State: at the length of the value.
const VALUE_LENGTH: u32 = 4;
/// State: in the value.
const VALUE: u32 = 5;
/// State: at an index that the ring does not reach; [`resolve`] goes on.
pub const FAR: u32 = 6;

/// Form: an indexed field (section 6.1).
const INDEXED: u32 = 0;
/// Form: a literal that enters the table (section 6.2.1).
const INSERTED: u32 = 1;
/// Form: a literal that does not (sections 6.2.2 and 6.2.3).
const PLAIN: u32 = 2;
/// Form: a change of the table's size (section 6.3).
const SIZE: u32 = 3;

/// [`Walk::wide`]: the ring holds the whole table.
pub const WIDE_UNUSED: u32 = 0;
/// [`Walk::wide`]: a [`Wide`] is to be made before the next step.
pub const WIDE_WANTED: u32 = 1;
/// [`Walk::wide`]: there is a [`Wide`].
pub const WIDE_USED: u32 = 2;
/// [`Walk::wide`]: there is no room for one.
pub const WIDE_MISSING: u32 = 3;

/// Most fields that [`indexed`] reads.
const RUN: u32 = 8;
/// Most bytes of a string that are looked at.
const LOOK: u32 = 32;

/// Fact: an index could not be resolved.
pub const UNSURE: u32 = 1;
/// Fact: the block has `:protocol`.
pub const EXTENDED: u32 = 2;
/// A value not found in the block.
pub const NONE: u32 = u32::MAX;

/// Insertions of an encoder with a large table.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Wide {
    /// By the insertion's number modulo [`WIDE`].
    pub entries: [u16; WIDE],
}

/// One direction's header blocks.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Walk {
    /// State above.
    pub state: u32,
    /// Form of the field.
    pub form: u32,
    /// The integer being read.
    pub number: u32,
    /// Bits of it that are read; 0 at its first byte.
    pub shift: u32,
    /// Name of the field.
    pub name: u32,
    /// Whether the string is Huffman coded.
    pub huffman: u32,
    /// Bytes of the string in `text`.
    pub have: u32,
    /// Bytes of the string to pass over in the next fragment.
    pub rest: u32,
    /// The string's first bytes, first byte lowest.
    pub text: [u64; LOOK as usize / 8],
    /// Insertions so far.
    pub inserted: u32,
    /// One of the `WIDE_` states: may the encoder's table be larger than the ring?
    pub wide: u32,
    /// `:status` of the block, or [`NONE`].
    pub status: u32,
    /// `grpc-status` of the block, or [`NONE`].
    pub grpc_status: u32,
    /// Is the block's `content-type` gRPC's? [`NONE`] if it has none.
    pub grpc: u32,
    /// Facts of the block.
    pub facts: u32,
    /// 1 if the table may hold more than was inserted so far.
    pub partial: u32,
    /// What the string says; handed over by storage, since what the verifier does not know it does not follow.
    pub read: u32,
    /// By the insertion's number modulo [`RING`].
    pub ring: [u16; RING],
}

/// A header block that is not HPACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Begins a header block.
#[inline(always)]
pub fn begin(w: &mut Walk) {
    w.state = FIRST;
    w.shift = 0;
    w.rest = 0;
    w.status = NONE;
    w.grpc_status = NONE;
    w.grpc = NONE;
    w.facts = 0;
}

/// Begins a table that may hold what was not seen to be inserted.
#[inline(always)]
pub fn forget(w: &mut Walk) {
    w.partial = 1;
    w.inserted = 0;
}

/// Could a header block end here (section 4.3 of RFC 9113: it is one whole)?
#[inline(always)]
#[must_use]
pub fn is_whole(w: &Walk) -> bool {
    w.state == FIRST && w.shift == 0 && w.rest == 0
}

/// Reads the fields that are next in the window and sent as an index of one byte, which are most once an encoder knows its peer.
#[inline(never)]
pub fn indexed(w: &mut Walk, s: &mut Stream, left: &mut u32) {
    if w.state != FIRST || w.shift != 0 || w.rest != 0 {
        return;
    }
    let mut i = 0;
    while i < RUN {
        // Loaded anew for each field: what one field says of a register would be followed through all after it.
        let line = shared::load(&s.line);
        let left_now = shared::load(left);
        if line == shared::load(&s.have) || left_now == 0 {
            return;
        }
        let byte = u32::from(s.byte(line));
        if !(0x81..0xff).contains(&byte) {
            return;
        }
        let Some(entry) = entry(w, byte & 0x7f) else { return };
        found(w, entry);
        shared::store(&mut s.line, line.wrapping_add(1));
        shared::store(left, left_now.wrapping_sub(1));
        i += 1;
    }
}

/// Reads on in a block of which `left` bytes are in this frame; at least one of them is in the window. What is passed
/// over unread is taken from `left` and given to the stream to skip. [`FAR`] may be the state then.
#[inline(never)]
pub fn step(w: &mut Walk, s: &mut Stream, left: &mut u32) -> Result<(), Malformed> {
    if w.rest != 0 {
        let rest = w.rest;
        w.rest = 0;
        pass(w, s, left, rest);
        return Ok(());
    }
    let state = w.state;
    if state == NAME || state == VALUE {
        text(w, s, left);
        return Ok(());
    }
    let byte = u32::from(s.byte(s.line));
    s.line = s.line.wrapping_add(1);
    *left = left.wrapping_sub(1);
    if w.shift != 0 {
        return integer(w, s, left, byte);
    }
    if state == FIRST {
        let (form, mask) = if byte & 0x80 != 0 {
            (INDEXED, 0x7f)
        } else if byte & 0x40 != 0 {
            (INSERTED, 0x3f)
        } else if byte & 0x20 != 0 {
            (SIZE, 0x1f)
        } else {
            (PLAIN, 0x0f)
        };
        w.form = form;
        w.state = INDEX;
        return prefix(w, s, left, byte & mask, mask);
    }
    w.huffman = byte >> 7;
    prefix(w, s, left, byte & 0x7f, 0x7f)
}

/// The first byte of an integer (section 5.1), without the bits that are not its own.
#[inline(always)]
fn prefix(w: &mut Walk, s: &mut Stream, left: &mut u32, value: u32, mask: u32) -> Result<(), Malformed> {
    w.number = value;
    if value == mask {
        // Seven bits are counted from here, so that the shift tells that the integer goes on.
        w.shift = 7;
        return Ok(());
    }
    number(w, s, left)
}

/// A further byte of an integer.
#[inline(always)]
fn integer(w: &mut Walk, s: &mut Stream, left: &mut u32, byte: u32) -> Result<(), Malformed> {
    let shift = w.shift.wrapping_sub(7);
    if shift > 21 {
        return Err(Malformed);
    }
    w.number = w.number.wrapping_add((byte & 0x7f) << shift);
    if byte & 0x80 != 0 {
        w.shift += 7;
        return Ok(());
    }
    w.shift = 0;
    number(w, s, left)
}

/// The integer is whole: an index, the length of a name or that of a value.
#[inline(always)]
fn number(w: &mut Walk, s: &mut Stream, left: &mut u32) -> Result<(), Malformed> {
    let state = w.state;
    if state == INDEX {
        return index(w);
    }
    let number = w.number;
    w.have = 0;
    if state == NAME_LENGTH {
        w.name = OTHER;
        w.state = VALUE_LENGTH;
        let candidate = if w.huffman == 0 {
            number == 7 || number == 9 || number == 11 || number == 12
        } else {
            number == 5 || number == 7 || number == 8 || number == 9
        };
        if candidate {
            w.state = NAME;
        } else {
            pass(w, s, left, number);
        }
        return Ok(());
    }
    if w.name != OTHER && number != 0 {
        w.state = VALUE;
        return Ok(());
    }
    w.state = FIRST;
    let sure = w.name == OTHER && w.facts & UNSURE == 0;
    value(w, if sure { 0 } else { UNREADABLE });
    pass(w, s, left, number);
    Ok(())
}

/// The index of a field's name, or of a whole field; or a table size.
#[inline(always)]
fn index(w: &mut Walk) -> Result<(), Malformed> {
    let index = w.number;
    let form = w.form;
    w.state = FIRST;
    if form == SIZE {
        if index > RING_BYTES && w.wide == WIDE_UNUSED {
            w.wide = WIDE_WANTED;
        }
        return Ok(());
    }
    if index == 0 {
        w.state = NAME_LENGTH;
        return if form == INDEXED { Err(Malformed) } else { Ok(()) };
    }
    let Some(entry) = entry(w, index) else {
        if index - 62 >= w.inserted && w.partial == 0 {
            return Err(Malformed);
        }
        w.state = FAR;
        return Ok(());
    };
    resolve(w, entry);
    Ok(())
}

/// Goes on behind the index of a field, knowing what the table has there.
#[inline(always)]
pub fn resolve(w: &mut Walk, entry: u32) {
    if w.form == INDEXED {
        w.state = FIRST;
        found(w, entry);
    } else {
        w.name = entry >> NAME_SHIFT;
        w.state = VALUE_LENGTH;
    }
}

/// What the table has at an index (section 2.3.3, Appendix A); nothing if the ring does not reach so far.
#[inline(always)]
fn entry(w: &Walk, index: u32) -> Option<u32> {
    if index < 62 {
        return Some(match index {
            8 => STATUS << NAME_SHIFT | 200,
            9 => STATUS << NAME_SHIFT | 204,
            10 => STATUS << NAME_SHIFT | 206,
            11 => STATUS << NAME_SHIFT | 304,
            12 => STATUS << NAME_SHIFT | 400,
            13 => STATUS << NAME_SHIFT | 404,
            14 => STATUS << NAME_SHIFT | 500,
            31 => CONTENT_TYPE << NAME_SHIFT,
            _ => 0,
        });
    }
    let back = index - 62;
    let inserted = shared::load(&w.inserted);
    if back >= inserted || back >= RING as u32 {
        return None;
    }
    let number = inserted.wrapping_sub(1).wrapping_sub(back) as usize;
    // SAFETY: the ring's length is a power of two.
    Some(u32::from(unsafe { *w.ring.get_unchecked(number & (RING - 1)) }))
}

/// What the larger ring has at the index that the ring did not reach; nothing if it does not reach so far either.
#[inline(always)]
#[must_use]
pub fn far_entry(w: &Walk, wide: &Wide) -> Option<u32> {
    let back = w.number.wrapping_sub(62);
    let number = w.inserted.wrapping_sub(1).wrapping_sub(back) as usize;
    // SAFETY: the ring's length is a power of two.
    (back < WIDE as u32 && back < w.inserted)
        .then(|| u32::from(unsafe { *wide.entries.get_unchecked(number & (WIDE - 1)) }))
}

/// Copies the last `count` insertions, at most [`RING`], into the larger ring.
#[inline(always)]
pub fn copy_to_wide(w: &Walk, wide: &mut Wide, count: u32) {
    let mut back = 1;
    while back <= count && back <= RING as u32 {
        let number = w.inserted.wrapping_sub(back) as usize;
        // SAFETY: both lengths are powers of two.
        unsafe {
            *wide.entries.get_unchecked_mut(number & (WIDE - 1)) = *w.ring.get_unchecked(number & (RING - 1));
        }
        back += 1;
    }
}

/// Notes a whole field.
#[inline(always)]
fn found(w: &mut Walk, entry: u32) {
    let value = entry & UNREADABLE;
    match entry >> NAME_SHIFT {
        STATUS => w.status = value,
        GRPC_STATUS => w.grpc_status = value,
        PROTOCOL => w.facts |= EXTENDED,
        CONTENT_TYPE => w.grpc = u32::from(value == 1),
        // Inserted under a name that could not be resolved.
        _ if value != 0 => w.facts |= UNSURE,
        _ => {}
    }
}

/// Notes a literal field's value, and the insertion if it is one.
#[inline(always)]
fn value(w: &mut Walk, value: u32) {
    let entry = w.name << NAME_SHIFT | value;
    found(w, entry);
    if w.form != INSERTED {
        return;
    }
    let number = w.inserted as usize;
    w.inserted = w.inserted.wrapping_add(1);
    // SAFETY: the ring's length is a power of two.
    unsafe { *w.ring.get_unchecked_mut(number & (RING - 1)) = entry as u16 };
}

/// Reads a string that is a name or a value to be known.
#[inline(always)]
fn text(w: &mut Walk, s: &mut Stream, left: &mut u32) {
    if !collect(w, s, left) {
        return;
    }
    if w.state == NAME {
        w.name = name_of(w);
        w.state = VALUE_LENGTH;
        return;
    }
    interpret(w);
    w.state = FIRST;
    let read = w.read;
    value(w, read);
    let rest = w.number.saturating_sub(LOOK);
    pass(w, s, left, rest);
}

/// Collects a string's first bytes: at once where enough of it is in the window, else byte by byte; true once they are there.
#[inline(never)]
fn collect(w: &mut Walk, s: &mut Stream, left: &mut u32) -> bool {
    let want = if w.number < LOOK { w.number } else { LOOK };
    let line = s.line;
    if w.have == 0 && s.pending() >= want && *left >= want {
        w.text = [s.word(line), s.word(line + 8), s.word(line + 16), s.word(line + 24)];
        w.have = want;
        s.line = line.wrapping_add(want);
        *left = left.wrapping_sub(want);
        return true;
    }
    let at = w.have & (LOOK - 1);
    let byte = u64::from(s.byte(line));
    // SAFETY: `at` is below 32.
    let word = unsafe { w.text.get_unchecked_mut((at >> 3) as usize) };
    let shift = (at & 7) * 8;
    *word = *word & !(0xff << shift) | byte << shift;
    w.have = at + 1;
    s.line = line.wrapping_add(1);
    *left = left.wrapping_sub(1);
    w.have >= want
}

/// Passes over bytes of a string, those in later frames too.
#[inline(always)]
fn pass(w: &mut Walk, s: &mut Stream, left: &mut u32, length: u32) {
    let here = if length < *left { length } else { *left };
    if here <= s.pending() {
        s.line = s.line.wrapping_add(here);
    } else {
        s.skip = u64::from(here);
    }
    *left = left.wrapping_sub(here);
    w.rest = length.wrapping_sub(here);
}

/// Reads the collected string as a value of the field's name.
#[inline(never)]
fn interpret(w: &mut Walk) {
    w.read = if w.name == CONTENT_TYPE { content_type(w) } else { digits(w) };
}

/// Which name the collected string is.
#[inline(always)]
fn name_of(w: &Walk) -> u32 {
    let (first, second) = (w.text[0], w.text[1]);
    let (length, huffman) = (w.number, w.huffman);
    let is = |head: u64, head_bytes: u32, tail: u64, tail_bytes: u32| {
        (first ^ head) & ones(head_bytes) == 0 && (second ^ tail) & ones(tail_bytes) == 0
    };
    if huffman == 0 {
        match length {
            7 if is(word(b":status\0"), 7, 0, 0) => STATUS,
            9 if is(word(b":protoco"), 8, word(b"l\0\0\0\0\0\0\0"), 1) => PROTOCOL,
            11 if is(word(b"grpc-sta"), 8, word(b"tus\0\0\0\0\0"), 3) => GRPC_STATUS,
            12 if is(word(b"content-"), 8, word(b"type\0\0\0\0"), 4) => CONTENT_TYPE,
            _ => OTHER,
        }
    } else {
        match length {
            5 if is(word(b"\xb8\x84\x8d\x36\xa3\0\0\0"), 5, 0, 0) => STATUS,
            7 if is(word(b"\xb9\x5d\x87\x49\xc8\x7a\x3f\0"), 7, 0, 0) => PROTOCOL,
            8 if is(word(b"\x9a\xca\xc8\xb2\x12\x34\xda\x8f"), 8, 0, 0) => GRPC_STATUS,
            9 if is(word(b"\x21\xea\x49\x6a\x4a\xc9\xf5\x59"), 8, 0x7f, 1) => CONTENT_TYPE,
            _ => OTHER,
        }
    }
}

/// 1 if the collected string is `application/grpc`, alone or with a suffix behind `+`; else 0.
/// Source: envoy `source/common/grpc/common.cc`, `hasGrpcContentType`.
#[inline(always)]
fn content_type(w: &Walk) -> u32 {
    let length = w.number;
    let [first, second, third, _] = w.text;
    let is = if w.huffman == 0 {
        first == word(b"applicat")
            && second == word(b"ion/grpc")
            && (length == 16 || (length > 16 && third as u8 == b'+'))
    } else {
        // Eighty-eight bits; then nothing, or the eleven bits of `+`.
        first == word(b"\x1d\x75\xd0\x62\x0d\x26\x3d\x4c")
            && second & ones(3) == word(b"\x4d\x65\x64\0\0\0\0\0")
            && (length == 11 || (length > 12 && second >> 24 & 0xe0ff == 0x60ff))
    };
    u32::from(is)
}

/// The collected string as a number of one to five decimal digits below [`UNREADABLE`], or [`UNREADABLE`].
#[inline(always)]
fn digits(w: &Walk) -> u32 {
    let length = w.number;
    let text = w.text[0];
    let mut value = 0;
    if w.huffman == 0 {
        if length == 0 || length > 4 {
            return UNREADABLE;
        }
        let mut i = 0;
        while i < 4 {
            if i < length {
                let digit = ((text >> (8 * i)) as u32 & 0xff).wrapping_sub(48);
                if digit > 9 {
                    return UNREADABLE;
                }
                value = value * 10 + digit;
            }
            i += 1;
        }
        return if value < UNREADABLE { value } else { UNREADABLE };
    }
    if length == 0 || length > 3 {
        return UNREADABLE;
    }
    // The bits from the top down; what follows the string is ones, as its padding is.
    let mut bits = (text.swap_bytes() >> 32) as u32 | (u32::MAX >> (length * 8));
    let mut used = 0;
    let mut i = 0;
    while i < 4 {
        let five = bits >> 27;
        if five < 3 {
            value = value * 10 + five;
            bits = bits << 5 | 0x1f;
            used += 5;
        } else if five < 16 && bits >> 26 >= 0x19 {
            value = value * 10 + (bits >> 26) - 0x16;
            bits = bits << 6 | 0x3f;
            used += 6;
        }
        i += 1;
    }
    let whole = used != 0 && bits == u32::MAX && used <= length * 8 && used + 7 >= length * 8;
    if whole && value < UNREADABLE { value } else { UNREADABLE }
}

/// The lowest `bytes` bytes of a word.
#[inline(always)]
const fn ones(bytes: u32) -> u64 {
    if bytes >= 8 { u64::MAX } else { (1 << (bytes * 8)) - 1 }
}

const fn word(bytes: &[u8; 8]) -> u64 {
    u64::from_le_bytes(*bytes)
}
