//! HPACK (RFC 7541), walked only as far as five fields need: `:status`, `grpc-status`, `content-type`, `:protocol` and
//! `:method`.
//!
//! The dynamic table is not kept. Every insertion is counted, and a ring holds what each of the last ones means here;
//! an index is turned into the number of its insertion. Eviction needs no model: a valid encoder never names an evicted
//! entry, and a table of 4,096 bytes holds at most 128 entries of 32 bytes or more, as many as the ring. An entry too
//! large to be stored empties the table (section 4.4); counting it does no harm, since all before it are gone.
//!
//! Indices count back from the newest entry. So what was inserted since the walk began is known whatever was in the table
//! before; only what reaches further back is not.
//!
//! Strings are compared as they are sent: a Huffman code (Appendix B) is as good as its text for that.

use observer_common::{GRPC_NONE, GRPC_UNKNOWN};

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
/// `grpc-status` with a value that an entry has no room for: the value is its index in [`Walk::large`].
const LARGE: u32 = 5;
/// `:method`; its value is 1 for POST, else 0.
const METHOD: u32 = 6;
/// A field that no message of HTTP/2 may have (section 8.2 of RFC 9113); its value says nothing here.
const FORBIDDEN: u32 = 7;
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
/// Most digits of a number, leading zeros and a sign included.
const DIGITS: u32 = 16;
/// Beside the number of digits: they have a sign.
const SIGN: u32 = 32;
/// Distinct values of [`Walk::large`]; the last one is not kept.
const LARGES: usize = 8;
/// Most changes of the table's size in one block (section 4.2).
const SIZES: u32 = 2;

/// Fact: an index could not be resolved.
pub const UNSURE: u32 = 1;
/// Fact: the block has `:protocol`.
pub const EXTENDED: u32 = 2;
/// Fact: the block has a `:method` that is not POST.
pub const NO_POST: u32 = 4;
/// Fact: the block has a field that it may not have.
pub const REFUSED: u32 = 8;
/// A value not found in the block.
pub const NONE: u32 = u32::MAX;

/// Insertions of an encoder with a large table that the ring has no more.
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
    /// Fields of the block.
    pub fields: u32,
    /// Changes of the table's size in the block, [`SIZES`] once none may come any more.
    pub sizes: u32,
    /// `grpc-status` of the block, [`GRPC_NONE`] or [`GRPC_UNKNOWN`].
    pub grpc_status: u64,
    /// Is the block's `content-type` gRPC's? [`NONE`] if it has none.
    pub grpc: u32,
    /// Facts of the block.
    pub facts: u32,
    /// 1 if the table may hold more than was inserted so far.
    pub partial: u32,
    /// The field's entry in the table, or what would be; handed over by storage, since what the verifier does not know it does
    /// not follow.
    pub entry: u32,
    /// The entry of the ring whose place the last insertion took.
    pub replaced: u32,
    /// The oldest insertion that the larger rings have.
    pub oldest: u32,
    /// What the string says; handed over by storage too.
    pub read: u32,
    /// Bits of a number's string that are not read.
    pub bits: u32,
    /// The number that a string is as far as read.
    pub decimal: u64,
    /// Statuses of gRPC from [`UNREADABLE`] on; those in use are never replaced, since entries name them.
    pub large: [u32; LARGES],
    /// How many of them are in use.
    pub larges: u32,
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
    w.grpc_status = GRPC_NONE;
    w.grpc = NONE;
    w.facts = 0;
    w.fields = 0;
    w.sizes = 0;
}

/// Begins a table that may hold what was not seen to be inserted.
#[inline(always)]
pub fn forget(w: &mut Walk) {
    w.partial = 1;
    w.inserted = 0;
    w.oldest = 0;
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
        if !look_up(w, byte & 0x7f) {
            return;
        }
        found(w);
        w.sizes = SIZES;
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
        if number == 0 {
            w.name = FORBIDDEN;
            return Ok(());
        }
        // All names of interest are among these, and whatever is spelt out is looked at for what no name may have.
        let candidate = if w.huffman == 0 { number <= LOOK } else { (5..=12).contains(&number) };
        if candidate {
            w.state = NAME;
        } else {
            pass(w, s, left, number);
        }
        return Ok(());
    }
    if w.name != OTHER && w.name != FORBIDDEN && number != 0 {
        w.state = VALUE;
        return Ok(());
    }
    w.state = FIRST;
    let sure = w.name == FORBIDDEN || (w.name == OTHER && w.facts & UNSURE == 0);
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
        if w.sizes == SIZES {
            return Err(Malformed);
        }
        w.sizes += 1;
        if index > RING_BYTES && w.wide == WIDE_UNUSED {
            w.wide = WIDE_WANTED;
        }
        return Ok(());
    }
    w.sizes = SIZES;
    if index == 0 {
        w.state = NAME_LENGTH;
        return if form == INDEXED { Err(Malformed) } else { Ok(()) };
    }
    if !look_up(w, index) {
        let back = index - 62;
        if back >= w.inserted && w.partial == 0 {
            return Err(Malformed);
        }
        if w.partial != 0 && back >= RING as u32 && w.wide == WIDE_UNUSED {
            // It was made larger before.
            w.wide = WIDE_WANTED;
        }
        w.state = FAR;
        return Ok(());
    }
    resolve(w);
    Ok(())
}

/// Goes on behind the index of a field, whose entry is known.
#[inline(always)]
fn resolve(w: &mut Walk) {
    if w.form == INDEXED {
        w.state = FIRST;
        found(w);
    } else {
        let entry = shared::load(&w.entry);
        let name = entry >> NAME_SHIFT;
        if name == OTHER && entry != 0 {
            // Itself inserted under a name that could not be resolved.
            w.facts |= UNSURE;
        }
        w.name = if name == LARGE { GRPC_STATUS } else { name };
        w.state = VALUE_LENGTH;
    }
}

/// Finds what the table has at an index (section 2.3.3, Appendix A): [`Walk::entry`]. False if the ring does not reach so far.
#[inline(never)]
fn look_up(w: &mut Walk, index: u32) -> bool {
    if index < 62 {
        w.entry = match index {
            2 => METHOD << NAME_SHIFT,
            3 => METHOD << NAME_SHIFT | 1,
            8 => STATUS << NAME_SHIFT | 200,
            9 => STATUS << NAME_SHIFT | 204,
            10 => STATUS << NAME_SHIFT | 206,
            11 => STATUS << NAME_SHIFT | 304,
            12 => STATUS << NAME_SHIFT | 400,
            13 => STATUS << NAME_SHIFT | 404,
            14 => STATUS << NAME_SHIFT | 500,
            31 => CONTENT_TYPE << NAME_SHIFT,
            // `transfer-encoding`.
            57 => FORBIDDEN << NAME_SHIFT,
            _ => 0,
        };
        return true;
    }
    let back = index - 62;
    let inserted = shared::load(&w.inserted);
    if back >= inserted || back >= RING as u32 {
        return false;
    }
    let number = inserted.wrapping_sub(1).wrapping_sub(back) as usize;
    // SAFETY: the ring's length is a power of two.
    w.entry = u32::from(unsafe { *w.ring.get_unchecked(number & (RING - 1)) });
    true
}

/// Goes on behind the index of a field that the ring did not reach, knowing what the larger ring has there, if there is one and
/// it does.
#[inline(always)]
pub fn resolve_far(w: &mut Walk, wide: Option<&Wide>) {
    let back = w.number.wrapping_sub(62);
    let number = w.inserted.wrapping_sub(1).wrapping_sub(back) as usize;
    match wide {
        Some(wide) if back < WIDE as u32 && back < w.inserted && number as u32 >= w.oldest => {
            // SAFETY: the ring's length is a power of two.
            w.entry = u32::from(unsafe { *wide.entries.get_unchecked(number & (WIDE - 1)) });
        }
        _ => {
            w.facts |= UNSURE;
            w.entry = 0;
        }
    }
    resolve(w);
}

/// Begins a larger ring. It has what the ring has no more: nothing yet.
#[inline(always)]
pub fn begin_wide(w: &mut Walk) {
    w.oldest = w.inserted.saturating_sub(RING as u32);
}

/// Puts what the last insertion took the place of into the larger ring.
#[inline(always)]
pub fn keep_in_wide(w: &Walk, wide: &mut Wide) {
    let number = w.inserted.wrapping_sub(1 + RING as u32) as usize;
    // SAFETY: the ring's length is a power of two.
    unsafe { *wide.entries.get_unchecked_mut(number & (WIDE - 1)) = w.replaced as u16 };
}

/// Notes a whole field: [`Walk::entry`].
#[inline(never)]
fn found(w: &mut Walk) {
    let entry = shared::load(&w.entry);
    let value = entry & UNREADABLE;
    w.fields = w.fields.wrapping_add(1);
    match entry >> NAME_SHIFT {
        STATUS => {
            // The only one with a colon, and so the first (section 8.3 of RFC 9113).
            w.facts |= if w.fields == 1 { 0 } else { REFUSED };
            w.status = value;
        }
        FORBIDDEN => w.facts |= REFUSED,
        GRPC_STATUS => w.grpc_status = if value == UNREADABLE { GRPC_UNKNOWN } else { u64::from(value) },
        // SAFETY: the length is a power of two.
        LARGE => w.grpc_status = u64::from(unsafe { *w.large.get_unchecked(value as usize & (LARGES - 1)) }),
        METHOD => w.facts |= if value == 1 { 0 } else { NO_POST },
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
    shared::store(&mut w.entry, entry);
    found(w);
    if w.form != INSERTED {
        return;
    }
    // What there was no room for is read once.
    let once = entry == LARGE << NAME_SHIFT | (LARGES as u32 - 1);
    let entry = if once { GRPC_STATUS << NAME_SHIFT | UNREADABLE } else { entry };
    let number = w.inserted as usize;
    w.inserted = w.inserted.wrapping_add(1);
    // SAFETY: the ring's length is a power of two.
    let place = unsafe { w.ring.get_unchecked_mut(number & (RING - 1)) };
    w.replaced = u32::from(*place);
    *place = entry as u16;
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

/// Reads the collected string as a value of the field's name: what an entry of the ring has below its name.
#[inline(never)]
fn interpret(w: &mut Walk) {
    if w.name == CONTENT_TYPE {
        w.read = content_type(w);
    } else if w.name == METHOD {
        w.read = is_post(w);
    } else if w.name == PROTOCOL {
        w.read = 0;
    } else {
        number_of(w);
        let (symbols, number) = (w.have, w.decimal);
        let is_number = symbols & !SIGN != 0;
        w.read = UNREADABLE;
        if w.name == STATUS {
            // Three digits (RFC 9113 section 8.3.2, RFC 9110 section 15).
            if symbols == 3 && number < 1_000 {
                w.read = number as u32;
            }
        } else if is_number && number < u64::from(UNREADABLE) {
            w.read = number as u32;
        } else if is_number && number <= u64::from(u32::MAX) {
            w.name = LARGE;
            w.read = keep_large(w, number as u32);
        }
    }
}

/// Where [`Walk::large`] has a value, which is put there if there is room; else in the last place, from where it is read once.
#[inline(never)]
fn keep_large(w: &mut Walk, value: u32) -> u32 {
    let mut i = 0;
    while i < LARGES - 1 && i < w.larges as usize {
        if w.large[i] == value {
            return i as u32;
        }
        i += 1;
    }
    w.large[i] = value;
    if i < LARGES - 1 {
        w.larges = i as u32 + 1;
    }
    i as u32
}

/// Which name the collected string is.
#[inline(always)]
fn name_of(w: &Walk) -> u32 {
    let [first, second, third, fourth] = w.text;
    let (length, huffman) = (w.number, w.huffman);
    let is = |head: &[u8; 8], head_bytes: u32, tail: &[u8; 8], tail_bytes: u32| {
        (first ^ word(head)) & ones(head_bytes) == 0 && (second ^ word(tail)) & ones(tail_bytes) == 0
    };
    const NO: &[u8; 8] = &[0; 8];
    if huffman == 0 {
        return match length {
            7 if is(b":status\0", 7, NO, 0) => STATUS,
            7 if is(b":method\0", 7, NO, 0) => METHOD,
            9 if is(b":protoco", 8, b"l\0\0\0\0\0\0\0", 1) => PROTOCOL,
            11 if is(b"grpc-sta", 8, b"tus\0\0\0\0\0", 3) => GRPC_STATUS,
            12 if is(b"content-", 8, b"type\0\0\0\0", 4) => CONTENT_TYPE,
            7 if is(b"upgrade\0", 7, NO, 0) => FORBIDDEN,
            10 if is(b"connecti", 8, b"on\0\0\0\0\0\0", 2) => FORBIDDEN,
            10 if is(b"keep-ali", 8, b"ve\0\0\0\0\0\0", 2) => FORBIDDEN,
            16 if is(b"proxy-co", 8, b"nnection", 8) => FORBIDDEN,
            17 if is(b"transfer", 8, b"-encodin", 8) => FORBIDDEN,
            _ => {
                let rest = |before: u32| ones(length.saturating_sub(before));
                let bad = no_name(first) & rest(0)
                    | no_name(second) & rest(8)
                    | no_name(third) & rest(16)
                    | no_name(fourth) & rest(24);
                // Of names with a colon there are few, and these lengths have more.
                let unknown = first as u8 == b':' && !matches!(length, 5 | 7 | 9 | 10);
                if bad == 0 && !unknown { OTHER } else { FORBIDDEN }
            }
        };
    }
    match length {
        5 if is(b"\xb8\x84\x8d\x36\xa3\0\0\0", 5, NO, 0) => STATUS,
        5 if is(b"\xb9\x49\x53\x39\xe4\0\0\0", 5, NO, 0) => METHOD,
        7 if is(b"\xb9\x5d\x87\x49\xc8\x7a\x3f\0", 7, NO, 0) => PROTOCOL,
        8 if is(b"\x9a\xca\xc8\xb2\x12\x34\xda\x8f", 8, NO, 0) => GRPC_STATUS,
        9 if is(b"\x21\xea\x49\x6a\x4a\xc9\xf5\x59", 8, b"\x7f\0\0\0\0\0\0\0", 1) => CONTENT_TYPE,
        5 if is(b"\xb6\xb9\xac\x1c\x85\0\0\0", 5, NO, 0) => FORBIDDEN,
        7 if is(b"\x21\xea\xa8\xa4\x49\x8f\x57\0", 7, NO, 0) => FORBIDDEN,
        8 if is(b"\xea\x52\xd6\xb0\xe8\x37\x72\xff", 8, NO, 0) => FORBIDDEN,
        12 if is(b"\x4d\x83\xa9\x12\x96\xc5\x8b\x51", 8, b"\x0f\x21\xaa\x9b\0\0\0\0", 4) => FORBIDDEN,
        12 if is(b"\xae\xc3\xf9\xf4\xb1\x0f\x55\x45", 8, b"\x22\x4c\x7a\xbf\0\0\0\0", 4) => FORBIDDEN,
        _ => OTHER,
    }
}

/// Has a word of a name a byte that no name may have: a capital letter, a space or a control character (section 8.2.1 of RFC 9113)?
#[inline(always)]
const fn no_name(word: u64) -> u64 {
    const ONES: u64 = u64::MAX / 255;
    const HIGH: u64 = ONES << 7;
    let low = word & !HIGH;
    let capital = (low + ONES * (0x80 - b'A' as u64)) & !(low + ONES * (0x7f - b'Z' as u64));
    let small = !(low + ONES * (0x80 - 0x21));
    (capital | small) & !word & HIGH
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

/// 1 if the collected string is `POST`, else 0.
#[inline(always)]
fn is_post(w: &Walk) -> u32 {
    let post = if w.huffman == 0 { *b"POST" } else { *b"\xd7\xab\x76\xff" };
    u32::from(w.number == 4 && w.text[0] as u32 == u32::from_le_bytes(post))
}

/// Reads the collected string as a decimal number, which may have leading zeros and a plus sign: [`Walk::decimal`], and in
/// [`Walk::have`] the number of its digits and [`SIGN`], 0 if it is none. The string is used up.
/// Source: what envoy reads with, abseil `strings/numbers.cc`, `safe_parse_sign_and_base`.
#[inline(always)]
fn number_of(w: &mut Walk) {
    let length = w.number;
    w.have = 0;
    w.decimal = 0;
    if length == 0 || length > DIGITS {
        return;
    }
    // The bits from the top down; what follows the string is ones, as its padding is.
    let (first, second) = (w.text[0].swap_bytes(), w.text[1].swap_bytes());
    w.text[0] = if length < 8 { first | (u64::MAX >> ((length * 8) & 63)) } else { first };
    w.text[1] = if length <= 8 {
        u64::MAX
    } else if length < 16 {
        second | (u64::MAX >> (((length - 8) * 8) & 63))
    } else {
        second
    };
    w.bits = length * 8;
    // The padding may need a turn too.
    let mut i = 0;
    while i <= DIGITS && shared::load(&w.bits) != 0 {
        symbol(w);
        i += 1;
    }
}

/// Takes the next symbol of a number off the collected string. All that it works on is in storage: what the verifier knows of
/// one symbol would be followed through all after it.
#[inline(never)]
fn symbol(w: &mut Walk) {
    let (top, bits) = (w.text[0], w.bits);
    let (symbol, width) = if w.huffman == 0 {
        (top >> 56, 8)
    } else if top >> 56 == 0xff && bits < 8 {
        w.bits = 0;
        return;
    } else if top >> 59 < 3 {
        ((top >> 59) + 48, 5)
    } else if top >> 58 >= 0x19 && top >> 58 < 0x20 {
        ((top >> 58) + 0x1a, 6)
    } else if top >> 53 == 0x7fb {
        (43, 11)
    } else {
        (0, 6)
    };
    let digit = symbol.wrapping_sub(48);
    let symbols = (w.have & !SIGN) + w.have / SIGN;
    if width > bits || symbols == DIGITS || (digit > 9 && (symbol != 43 || symbols != 0)) {
        w.have = 0;
        w.bits = 0;
        return;
    }
    if digit <= 9 {
        w.decimal = w.decimal.wrapping_mul(10).wrapping_add(digit);
        w.have += 1;
    } else {
        w.have = SIGN;
    }
    w.text[0] = top << width | w.text[1] >> (64 - width);
    w.text[1] = w.text[1] << width | ((1 << width) - 1);
    w.bits = bits - width;
}

/// The lowest `bytes` bytes of a word.
#[inline(always)]
const fn ones(bytes: u32) -> u64 {
    if bytes >= 8 { u64::MAX } else { (1 << (bytes * 8)) - 1 }
}

const fn word(bytes: &[u8; 8]) -> u64 {
    u64::from_le_bytes(*bytes)
}
