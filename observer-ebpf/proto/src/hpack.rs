//! HPACK decoder (RFC 7541) for the fields that matter: `:status`, `grpc-status`, `content-type`, `:protocol` and `:method`.
//!
//! The dynamic table is not stored. Every insertion is counted, and a ring holds the meaning of the last ones; an index
//! is translated to the number of its insertion. Eviction needs no model: a valid encoder never refers to an evicted
//! entry, and a table of 4,096 bytes holds at most 128 entries of 32 bytes or more, as many as the ring. An entry too
//! large for the table empties it (section 4.4); counting it does no harm, since all before it are gone.
//!
//! Indices count back from the newest entry. Insertions since decoding began are therefore known whatever the table held
//! before; only indices that reach further back are not.
//!
//! Strings are compared as they are sent: a Huffman code (Appendix B) identifies its text.

use observer_common::{CallerId, GRPC_NONE, GRPC_UNKNOWN, Method};

use crate::{
    atomic,
    flow::Flow,
    option::OptionU32,
    trace::{self, kind},
};

/// Insertions that the ring holds: all of a table of 4,096 bytes.
pub const RING: usize = 128;
/// Insertions that a [`LargeTable`] holds, for an encoder that announced one: all of a table of 65,536 bytes.
pub const LARGE_TABLE: usize = 2048;
/// Largest table size for which [`RING`] suffices.
const RING_BYTES: u32 = 4_096;

/// Any other name.
pub const OTHER: u32 = 0;
/// `:status`.
pub const STATUS: u32 = 1;
/// `grpc-status`.
pub const GRPC_STATUS: u32 = 2;
/// `content-type`; its value is 1 for gRPC, else 0.
pub const CONTENT_TYPE: u32 = 3;
/// `:protocol`, which makes CONNECT an upgrade (RFC 8441); its value does not matter.
pub const PROTOCOL: u32 = 4;
/// `grpc-status` with a value that an entry has no room for: the value is its index in [`HpackDecoder::large`].
const LARGE: u32 = 5;
/// `:method`; its value is that of a [`Method`], or 0 for all but POST.
const METHOD: u32 = 6;
/// A field that no message of HTTP/2 may have (section 8.2 of RFC 9113); its value does not matter.
const FORBIDDEN: u32 = 7;
/// `x-forwarded-client-cert`. Its entry is [`CALLER_ENTRY`], the id is kept apart.
const CALLER: u32 = 8;
/// Entry of a field that names the caller: [`FORBIDDEN`] with a value of its own.
const CALLER_ENTRY: u32 = FORBIDDEN << NAME_SHIFT | 1;
/// Name of a field of a trace context, less its [`kind`].
const TRACE: u32 = 16;
/// Entry of a field of a trace context, less its [`kind`]: [`FORBIDDEN`] with a value of its own. The field is kept apart.
const TRACE_ENTRY: u32 = CALLER_ENTRY;
/// Position of the caller's id in an entry that has left the ring.
const ID_SHIFT: u32 = 16;
/// Position of the name in an entry of the ring; the value is below it.
const NAME_SHIFT: u32 = 13;
/// Value of an entry that could not be read.
pub const UNREADABLE: u32 = (1 << NAME_SHIFT) - 1;

/// Position in a field.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct FieldState(u32);

impl FieldState {
    /// At the first byte of a field.
    pub const FIRST: Self = Self(0);
    /// In the field's index.
    const INDEX: Self = Self(1);
    /// At the length of the name.
    const NAME_LENGTH: Self = Self(2);
    /// In the name.
    const NAME: Self = Self(3);
    /// At the length of the value.
    const VALUE_LENGTH: Self = Self(4);
    /// In the value.
    const VALUE: Self = Self(5);
    /// At an index beyond the ring; [`resolve_far`] goes on.
    pub const FAR: Self = Self(6);
    /// In the value of a field that names the caller; [`end_caller`] goes on.
    pub(crate) const CALLER: Self = Self(7);
    /// In the value of a field of a trace context; [`end_trace`] goes on.
    pub(crate) const TRACE: Self = Self(8);

    /// Returns whether it is in a value that is kept apart.
    #[inline(always)]
    pub(crate) fn is_kept_apart(self) -> bool {
        self >= Self::CALLER
    }
}

/// Representation of a field.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Form(u32);

impl Form {
    /// An indexed field (section 6.1).
    const INDEXED: Self = Self(0);
    /// A literal that is inserted into the table (section 6.2.1).
    const INSERTED: Self = Self(1);
    /// A literal that is not (sections 6.2.2 and 6.2.3).
    const NOT_INSERTED: Self = Self(2);
    /// A table size update (section 6.3).
    const SIZE_UPDATE: Self = Self(3);
}

/// Storage of the dynamic table.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableSize(u32);

impl TableSize {
    /// The ring holds the whole table.
    pub const RING: Self = Self(0);
    /// A [`LargeTable`] is to be created before the next step.
    pub const LARGE_WANTED: Self = Self(1);
    /// There is a [`LargeTable`].
    pub const LARGE: Self = Self(2);
    /// There is no room for one.
    pub const LARGE_MISSING: Self = Self(3);
}

/// Most fields per call of [`read_indexed`].
const MAX_INDEXED: u32 = 8;
/// Most bytes of a string that are read.
const MAX_TEXT: u32 = 32;
/// Lengths of the names that matter, Huffman coded: `b3`, `:path`, most of them, and `x-forwarded-client-cert`.
const HUFFMAN_NAMES: u32 = 1 << 2 | (trace::is_on() as u32) << 4 | 0xff << 5 | 1 << MAX_HUFFMAN_NAME;
const MAX_HUFFMAN_NAME: u32 = 17;
/// Most digits of a number, leading zeros and a sign included.
const MAX_DIGITS: u32 = 16;
/// Bit beside the number of digits: the number has a sign.
const SIGN: u32 = 32;
/// Distinct values in [`HpackDecoder::large`]; the last one is temporary.
const MAX_LARGE: usize = 8;
/// Most table size updates per block (section 4.2).
const MAX_SIZE_UPDATES: u32 = 2;

/// Flag of a block: an index could not be resolved.
pub const UNRESOLVED: u32 = 1;
/// Flag of a block: it has `:protocol`.
pub const EXTENDED_CONNECT: u32 = 2;
/// Flag of a block: it has a `:method` that is not POST.
pub const NOT_POST: u32 = 4;
/// Flag of a block: it has a field that it may not have.
pub const REFUSED: u32 = 8;
/// Flag of a block: it has a field of a trace context.
pub(crate) const TRACED: u32 = 16;
/// Flag of a block: it refers to a field of a trace context that is no longer kept.
pub(crate) const TRACE_MISSED: u32 = 32;
/// Flag of a block: its path is kept.
pub(crate) const HAS_PATH: u32 = 64;
/// Flag of a block: its path is `/`.
pub(crate) const HAS_ROOT_PATH: u32 = 128;
/// Flag of a block: its path is `/index.html`.
pub(crate) const HAS_INDEX_PATH: u32 = 256;
/// Trace contexts are read.
pub(crate) const READS_TRACES: u32 = 1;
/// So are paths and methods.
pub(crate) const READS_LINES: u32 = 2;
/// In place of a value that is not in the block.
pub const NONE: u32 = u32::MAX;

/// Insertions into a large table that are no longer in the ring.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LargeTable {
    /// By the insertion's number modulo [`LARGE_TABLE`]; those that name a caller with its id in the upper half.
    pub entries: [u32; LARGE_TABLE],
}

/// Decoder of one direction's header blocks.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HpackDecoder {
    /// Position in the field.
    pub state: FieldState,
    /// Representation of the field.
    pub form: Form,
    /// The integer being read.
    pub number: u32,
    /// Number of its bits that are read; 0 at its first byte.
    pub shift: u32,
    /// Name of the field.
    pub name: u32,
    /// Whether the string is Huffman coded.
    pub huffman: u32,
    /// Bytes of the string in `text`.
    pub text_length: u32,
    /// Bytes of the string to skip in the next fragment.
    pub rest: u32,
    /// The string's first bytes, first byte lowest.
    pub text: [u64; MAX_TEXT as usize / 8],
    /// Insertions so far.
    pub inserted: u32,
    /// Storage of the table.
    pub table_size: TableSize,
    /// `:status` of the block, or [`NONE`].
    pub status: u32,
    /// Fields of the block.
    pub fields: u32,
    /// Table size updates in the block; [`MAX_SIZE_UPDATES`] once none may follow.
    pub size_updates: u32,
    /// `grpc-status` of the block, [`GRPC_NONE`] or [`GRPC_UNKNOWN`].
    pub grpc_status: u64,
    /// 1 if the block's `content-type` is gRPC's, 0 if it is not, [`NONE`] if there is none.
    pub content_is_grpc: u32,
    /// Flags of the block.
    pub flags: u32,
    /// 1 if the table may hold entries whose insertion was not seen.
    pub is_partial: u32,
    /// The field as an entry of the table; passed through storage, so that the verifier does not track it.
    pub entry: u32,
    /// The entry of the ring that the last insertion replaced.
    pub replaced: u32,
    /// The first insertion that the large table holds.
    pub large_from: u32,
    /// Parsed value of the string; passed through storage too.
    pub parsed: u32,
    /// Bits of a number's string that are not read.
    pub bits: u32,
    /// The number in the string as far as read.
    pub decimal: u64,
    /// gRPC statuses from [`UNREADABLE`] on; those in use are never replaced, since entries refer to them.
    pub large: [u32; MAX_LARGE],
    /// How many of them are in use.
    pub large_count: u32,
    /// 1 if callers are read.
    pub reads_callers: u32,
    /// Id of the block's caller, or 0.
    pub caller: u32,
    /// Insertion to which the block refers for its caller, if its id is yet to be looked up.
    pub caller_insertion: OptionU32,
    /// [`READS_TRACES`] and [`READS_LINES`].
    pub reads_traces: u32,
    /// Insertion to which the block has just referred for a field of its trace context.
    pub trace_insertion: OptionU32,
    /// `:method` of the block, as its value in an entry.
    pub method: u32,
    /// By the insertion's number modulo [`RING`].
    pub ring: [u16; RING],
}

/// A header block that is not HPACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Begins a header block.
#[inline(always)]
pub(crate) fn begin(decoder: &mut HpackDecoder) {
    decoder.state = FieldState::FIRST;
    decoder.shift = 0;
    decoder.rest = 0;
    decoder.status = NONE;
    decoder.grpc_status = GRPC_NONE;
    decoder.content_is_grpc = NONE;
    decoder.flags = 0;
    decoder.fields = 0;
    decoder.size_updates = 0;
    decoder.caller = 0;
    decoder.caller_insertion = OptionU32::NONE;
    if trace::is_on() {
        decoder.trace_insertion = OptionU32::NONE;
        decoder.method = 0;
    }
}

/// Begins a table that may hold entries whose insertion was not seen.
#[inline(always)]
pub fn reset(decoder: &mut HpackDecoder) {
    decoder.is_partial = 1;
    decoder.inserted = 0;
    decoder.large_from = 0;
}

/// Returns whether a header block can end here (section 4.3 of RFC 9113).
#[inline(always)]
pub fn is_complete(decoder: &HpackDecoder) -> bool {
    decoder.state == FieldState::FIRST && decoder.shift == 0 && decoder.rest == 0
}

/// Reads the next fields in the window that are an index of one byte, and takes one step beyond them. Returns 0, or 1 if
/// the block is not HPACK.
#[cfg_attr(target_arch = "bpf", unsafe(no_mangle))]
#[inline(never)]
pub(crate) extern "C" fn read_fields(decoder: *mut HpackDecoder, flow: *mut Flow, left: *mut u32) -> u32 {
    // SAFETY: null or valid: they are parts of a connection's storage.
    let (Some(decoder), Some(flow), Some(left)) = (unsafe { (decoder.as_mut(), flow.as_mut(), left.as_mut()) }) else {
        return 1;
    };
    read_indexed(decoder, flow, left);
    if trace::is_on() && decoder.trace_insertion.is_some() {
        return 0;
    }
    u32::from(*left != 0 && flow.pending() != 0 && step(decoder, flow, left).is_err())
}

/// Reads the next fields in the window that are an index of one byte, as most are once the table is filled.
#[inline(never)]
pub fn read_indexed(decoder: &mut HpackDecoder, flow: &mut Flow, left: &mut u32) {
    if decoder.state != FieldState::FIRST || decoder.shift != 0 || decoder.rest != 0 {
        return;
    }
    let mut i = 0;
    while i < MAX_INDEXED {
        // Loaded for each field: the verifier would track what one field reveals of a register through all that follow.
        let line = atomic::load(&flow.line);
        let left_now = atomic::load(left);
        if line == atomic::load(&flow.filled) || left_now == 0 {
            return;
        }
        let byte = u32::from(flow.byte(line));
        if !(0x81..0xff).contains(&byte) {
            return;
        }
        if !look_up(decoder, byte & 0x7f) {
            return;
        }
        on_field(decoder);
        decoder.size_updates = MAX_SIZE_UPDATES;
        atomic::store(&mut flow.line, line.wrapping_add(1));
        atomic::store(left, left_now.wrapping_sub(1));
        if trace::is_on() && decoder.trace_insertion.is_some() {
            return;
        }
        i += 1;
    }
}

/// Reads on in a block of which `left` bytes are in this frame; at least one of them is in the window. Skipped bytes are
/// moved from `left` to the flow's skip count. The state may be [`FieldState::FAR`] afterwards.
#[inline(never)]
pub fn step(decoder: &mut HpackDecoder, flow: &mut Flow, left: &mut u32) -> Result<(), Malformed> {
    if decoder.rest != 0 {
        let rest = decoder.rest;
        decoder.rest = 0;
        skip(decoder, flow, left, rest);
        return Ok(());
    }
    let state = decoder.state;
    if state == FieldState::NAME || state == FieldState::VALUE {
        text(decoder, flow, left);
        return Ok(());
    }
    if state.is_kept_apart() {
        return Ok(());
    }
    let byte = u32::from(flow.byte(flow.line));
    flow.line = flow.line.wrapping_add(1);
    *left = left.wrapping_sub(1);
    if decoder.shift != 0 {
        return integer(decoder, flow, left, byte);
    }
    if state == FieldState::FIRST {
        let (form, mask) = if byte & 0x80 != 0 {
            (Form::INDEXED, 0x7f)
        } else if byte & 0x40 != 0 {
            (Form::INSERTED, 0x3f)
        } else if byte & 0x20 != 0 {
            (Form::SIZE_UPDATE, 0x1f)
        } else {
            (Form::NOT_INSERTED, 0x0f)
        };
        decoder.form = form;
        decoder.state = FieldState::INDEX;
        return prefix(decoder, flow, left, byte & mask, mask);
    }
    decoder.huffman = byte >> 7;
    prefix(decoder, flow, left, byte & 0x7f, 0x7f)
}

/// Reads the first byte of an integer (section 5.1), without the bits in front of it.
#[inline(always)]
fn prefix(decoder: &mut HpackDecoder, flow: &mut Flow, left: &mut u32, value: u32, mask: u32) -> Result<(), Malformed> {
    decoder.number = value;
    if value == mask {
        // Counted from seven, so that a shift of 0 means the first byte.
        decoder.shift = 7;
        return Ok(());
    }
    number(decoder, flow, left)
}

/// Reads a further byte of an integer.
#[inline(always)]
fn integer(decoder: &mut HpackDecoder, flow: &mut Flow, left: &mut u32, byte: u32) -> Result<(), Malformed> {
    let shift = decoder.shift.wrapping_sub(7);
    if shift > 21 {
        return Err(Malformed);
    }
    decoder.number = decoder.number.wrapping_add((byte & 0x7f) << shift);
    if byte & 0x80 != 0 {
        decoder.shift += 7;
        return Ok(());
    }
    decoder.shift = 0;
    number(decoder, flow, left)
}

/// Handles a whole integer: an index, the length of a name or that of a value.
#[inline(always)]
fn number(decoder: &mut HpackDecoder, flow: &mut Flow, left: &mut u32) -> Result<(), Malformed> {
    let state = decoder.state;
    if state == FieldState::INDEX {
        return index(decoder);
    }
    let number = decoder.number;
    decoder.text_length = 0;
    if state == FieldState::NAME_LENGTH {
        decoder.name = OTHER;
        decoder.state = FieldState::VALUE_LENGTH;
        if number == 0 {
            decoder.name = FORBIDDEN;
            return Ok(());
        }
        // All names that matter have these lengths, and plain ones are checked for bytes that no name may have.
        let is_short = number <= MAX_HUFFMAN_NAME && HUFFMAN_NAMES >> number & 1 != 0;
        let candidate = if decoder.huffman == 0 { number <= MAX_TEXT } else { is_short };
        if candidate {
            decoder.state = FieldState::NAME;
        } else {
            skip(decoder, flow, left, number);
        }
        return Ok(());
    }
    if decoder.name >= CALLER {
        let is_trace = trace::is_on() && decoder.name != CALLER;
        decoder.state = if is_trace { FieldState::TRACE } else { FieldState::CALLER };
        return Ok(());
    }
    if decoder.name != OTHER && decoder.name != FORBIDDEN && number != 0 {
        decoder.state = FieldState::VALUE;
        return Ok(());
    }
    decoder.state = FieldState::FIRST;
    let sure = decoder.name == FORBIDDEN || (decoder.name == OTHER && decoder.flags & UNRESOLVED == 0);
    on_literal(decoder, if sure { 0 } else { UNREADABLE });
    skip(decoder, flow, left, number);
    Ok(())
}

/// Handles the index of a field or of its name, or a table size.
#[inline(always)]
fn index(decoder: &mut HpackDecoder) -> Result<(), Malformed> {
    let index = decoder.number;
    let form = decoder.form;
    decoder.state = FieldState::FIRST;
    if form == Form::SIZE_UPDATE {
        if decoder.size_updates == MAX_SIZE_UPDATES {
            return Err(Malformed);
        }
        decoder.size_updates += 1;
        if index > RING_BYTES && decoder.table_size == TableSize::RING {
            decoder.table_size = TableSize::LARGE_WANTED;
        }
        return Ok(());
    }
    decoder.size_updates = MAX_SIZE_UPDATES;
    if index == 0 {
        decoder.state = FieldState::NAME_LENGTH;
        return if form == Form::INDEXED { Err(Malformed) } else { Ok(()) };
    }
    if !look_up(decoder, index) {
        let back = index - 62;
        if back >= decoder.inserted && decoder.is_partial == 0 {
            return Err(Malformed);
        }
        if decoder.is_partial != 0 && back >= RING as u32 && decoder.table_size == TableSize::RING {
            // The table was enlarged before the first byte seen.
            decoder.table_size = TableSize::LARGE_WANTED;
        }
        decoder.state = FieldState::FAR;
        return Ok(());
    }
    resolve(decoder);
    Ok(())
}

/// Goes on behind an index whose entry is known.
#[inline(always)]
fn resolve(decoder: &mut HpackDecoder) {
    if decoder.form == Form::INDEXED {
        decoder.state = FieldState::FIRST;
        on_field(decoder);
    } else {
        let entry = atomic::load(&decoder.entry);
        let name = (entry & 0xffff) >> NAME_SHIFT;
        if name == OTHER && entry != 0 {
            // An entry whose own name could not be resolved.
            decoder.flags |= UNRESOLVED;
        }
        decoder.name = if name == LARGE {
            GRPC_STATUS
        } else if entry & 0xffff < CALLER_ENTRY {
            name
        } else if trace::is_on() && is_trace(entry) {
            decoder.trace_insertion = OptionU32::NONE;
            let kind = (entry & 0xffff) - TRACE_ENTRY;
            TRACE + if kind > kind::PATH { kind::PATH } else { kind }
        } else {
            CALLER
        };
        decoder.state = FieldState::VALUE_LENGTH;
    }
}

/// Sets [`HpackDecoder::entry`] to the entry of an index (section 2.3.3, Appendix A); returns false if it is not in the
/// ring.
#[inline(never)]
fn look_up(decoder: &mut HpackDecoder, index: u32) -> bool {
    if index < 62 {
        decoder.entry = match index {
            2 => METHOD << NAME_SHIFT | if trace::is_on() { u32::from(Method::GET.0) } else { 0 },
            3 => METHOD << NAME_SHIFT | 1,
            8 => STATUS << NAME_SHIFT | 200,
            9 => STATUS << NAME_SHIFT | 204,
            10 => STATUS << NAME_SHIFT | 206,
            11 => STATUS << NAME_SHIFT | 304,
            12 => STATUS << NAME_SHIFT | 400,
            13 => STATUS << NAME_SHIFT | 404,
            14 => STATUS << NAME_SHIFT | 500,
            31 => CONTENT_TYPE << NAME_SHIFT,
            4 if trace::is_on() && decoder.reads_traces & READS_LINES != 0 => TRACE_ENTRY + kind::ROOT_PATH,
            5 if trace::is_on() && decoder.reads_traces & READS_LINES != 0 => TRACE_ENTRY + kind::INDEX_PATH,
            // `transfer-encoding`.
            57 => FORBIDDEN << NAME_SHIFT,
            _ => 0,
        };
        return true;
    }
    let back = index - 62;
    let inserted = atomic::load(&decoder.inserted);
    if back >= inserted || back >= RING as u32 {
        return false;
    }
    let number = inserted.wrapping_sub(1).wrapping_sub(back) as usize;
    // SAFETY: the ring's length is a power of two.
    let entry = u32::from(unsafe { *decoder.ring.get_unchecked(number & (RING - 1)) });
    decoder.entry = entry;
    if entry >= CALLER_ENTRY {
        let insertion = OptionU32::some(number as u32);
        if trace::is_on() && is_trace(entry) {
            decoder.trace_insertion = insertion;
        } else {
            decoder.caller_insertion = insertion;
        }
    }
    true
}

/// Returns whether an entry is of a field of a trace context; no other one is above [`CALLER_ENTRY`].
#[inline(always)]
fn is_trace(entry: u32) -> bool {
    entry & 0xffff > TRACE_ENTRY
}

/// Goes on behind an index that is not in the ring, with the large table's entry, if there is one.
#[inline(always)]
pub fn resolve_far(decoder: &mut HpackDecoder, table: Option<&LargeTable>) {
    let back = decoder.number.wrapping_sub(62);
    let number = decoder.inserted.wrapping_sub(1).wrapping_sub(back) as usize;
    match table {
        Some(table) if back < LARGE_TABLE as u32 && back < decoder.inserted && number as u32 >= decoder.large_from => {
            // SAFETY: the ring's length is a power of two.
            decoder.entry = unsafe { *table.entries.get_unchecked(number & (LARGE_TABLE - 1)) };
            if trace::is_on() && decoder.form == Form::INDEXED && is_trace(decoder.entry) && !is_path(decoder) {
                decoder.flags |= TRACE_MISSED;
            }
        }
        _ => {
            decoder.flags |= UNRESOLVED;
            decoder.entry = 0;
        }
    }
    resolve(decoder);
}

/// Begins a large table. It holds what the ring no longer holds: nothing yet.
#[inline(always)]
pub fn begin_large_table(decoder: &mut HpackDecoder) {
    decoder.large_from = decoder.inserted.saturating_sub(RING as u32);
}

/// Moves the entry that the last insertion replaced into the large table.
#[inline(always)]
pub fn store_in_large_table(decoder: &HpackDecoder, table: &mut LargeTable) {
    let number = decoder.inserted.wrapping_sub(1 + RING as u32) as usize;
    // SAFETY: the ring's length is a power of two.
    unsafe { *table.entries.get_unchecked_mut(number & (LARGE_TABLE - 1)) = decoder.replaced };
}

/// Returns whether the entry that the last insertion replaced names a caller, whose id is not with it yet.
#[inline(always)]
pub(crate) fn replaces_caller(decoder: &HpackDecoder) -> bool {
    decoder.replaced == CALLER_ENTRY
}

/// Adds the caller's id to the entry that the last insertion replaced.
#[inline(always)]
pub(crate) fn set_replaced_id(decoder: &mut HpackDecoder, id: CallerId) {
    decoder.replaced = CALLER_ENTRY | u32::from(id.0) << ID_SHIFT;
}

/// Returns whether the value of a field that is kept apart is read to its end.
#[inline(always)]
pub(crate) fn is_at_value_end(decoder: &HpackDecoder) -> bool {
    decoder.state.is_kept_apart() && decoder.number == 0
}

/// Ends a literal field that names the caller; returns the number of its insertion, if it is to be inserted.
#[inline(always)]
pub(crate) fn end_caller(decoder: &mut HpackDecoder, id: CallerId) -> OptionU32 {
    let number = decoder.inserted;
    decoder.state = FieldState::FIRST;
    decoder.name = FORBIDDEN;
    on_literal(decoder, 1);
    decoder.caller = u32::from(id.0);
    decoder.caller_insertion = OptionU32::NONE;
    if decoder.form == Form::INSERTED { OptionU32::some(number) } else { OptionU32::NONE }
}

/// Returns the [`kind`] of the field of a trace context that is read.
#[inline(always)]
pub(crate) fn trace_kind(decoder: &HpackDecoder) -> u32 {
    decoder.name.wrapping_sub(TRACE)
}

/// Returns the value that a kind has in an entry.
const fn trace_value(kind: u32) -> u32 {
    (TRACE_ENTRY & UNREADABLE) + kind
}

/// Returns whether the entry looked up last is of a path.
#[inline(always)]
pub(crate) fn is_path(decoder: &HpackDecoder) -> bool {
    decoder.entry & 0xffff == TRACE_ENTRY + kind::PATH
}

/// Ends a literal field of a trace context; returns the number of its insertion, if it is to be inserted.
#[inline(always)]
pub(crate) fn end_trace(decoder: &mut HpackDecoder) -> OptionU32 {
    let (number, kind) = (decoder.inserted, trace_kind(decoder));
    decoder.state = FieldState::FIRST;
    decoder.name = FORBIDDEN;
    on_literal(decoder, trace_value(kind));
    if decoder.form == Form::INSERTED { OptionU32::some(number) } else { OptionU32::NONE }
}

/// Handles a whole field, [`HpackDecoder::entry`].
#[inline(never)]
fn on_field(decoder: &mut HpackDecoder) {
    let entry = atomic::load(&decoder.entry);
    let value = entry & UNREADABLE;
    decoder.fields = decoder.fields.wrapping_add(1);
    match (entry & 0xffff) >> NAME_SHIFT {
        STATUS => {
            // The only field with a colon in a response, and so the first (section 8.3 of RFC 9113).
            decoder.flags |= if decoder.fields == 1 { 0 } else { REFUSED };
            decoder.status = value;
        }
        FORBIDDEN if value == 0 => decoder.flags |= REFUSED,
        FORBIDDEN if trace::is_on() && is_trace(entry) => {
            if value == trace_value(kind::ROOT_PATH) {
                decoder.flags |= HAS_ROOT_PATH;
            } else if value == trace_value(kind::INDEX_PATH) {
                decoder.flags |= HAS_INDEX_PATH;
            }
        }
        FORBIDDEN => decoder.caller = entry >> ID_SHIFT,
        GRPC_STATUS => decoder.grpc_status = if value == UNREADABLE { GRPC_UNKNOWN } else { u64::from(value) },
        LARGE => {
            // SAFETY: the length is a power of two.
            decoder.grpc_status = u64::from(unsafe { *decoder.large.get_unchecked(value as usize & (MAX_LARGE - 1)) });
        }
        METHOD => {
            decoder.flags |= if value == 1 { 0 } else { NOT_POST };
            if trace::is_on() {
                decoder.method = value;
            }
        }
        PROTOCOL => decoder.flags |= EXTENDED_CONNECT,
        CONTENT_TYPE => decoder.content_is_grpc = u32::from(value == 1),
        // An entry whose name could not be resolved.
        _ if value != 0 => decoder.flags |= UNRESOLVED,
        _ => {}
    }
}

/// Handles a literal field with its value, and inserts it if it is to be.
#[inline(always)]
fn on_literal(decoder: &mut HpackDecoder, value: u32) {
    let entry = decoder.name << NAME_SHIFT | value;
    atomic::store(&mut decoder.entry, entry);
    on_field(decoder);
    if decoder.form != Form::INSERTED {
        return;
    }
    // A value without room in `large` is used once.
    let once = entry == LARGE << NAME_SHIFT | (MAX_LARGE as u32 - 1);
    let entry = if once { GRPC_STATUS << NAME_SHIFT | UNREADABLE } else { entry };
    let number = decoder.inserted as usize;
    decoder.inserted = decoder.inserted.wrapping_add(1);
    // SAFETY: the ring's length is a power of two.
    let slot = unsafe { decoder.ring.get_unchecked_mut(number & (RING - 1)) };
    decoder.replaced = u32::from(*slot);
    *slot = entry as u16;
}

/// Reads a name or a value that matters.
#[inline(always)]
fn text(decoder: &mut HpackDecoder, flow: &mut Flow, left: &mut u32) {
    if !collect(decoder, flow, left) {
        return;
    }
    if decoder.state == FieldState::NAME {
        let name = name_of_text(decoder);
        decoder.name = name;
        if name >= CALLER {
            let is_trace = trace::is_on() && name != CALLER;
            let reads = if !is_trace {
                decoder.reads_callers
            } else if name == TRACE + kind::PATH {
                decoder.reads_traces & READS_LINES
            } else {
                decoder.reads_traces
            };
            decoder.name = if reads == 0 { OTHER } else { name };
        }
        decoder.state = FieldState::VALUE_LENGTH;
        return;
    }
    interpret(decoder);
    decoder.state = FieldState::FIRST;
    let read = decoder.parsed;
    on_literal(decoder, read);
    let rest = decoder.number.saturating_sub(MAX_TEXT);
    skip(decoder, flow, left, rest);
}

/// Collects a string's first bytes: at once if they are in the window, else byte by byte; returns true once they are
/// there.
#[inline(never)]
fn collect(decoder: &mut HpackDecoder, flow: &mut Flow, left: &mut u32) -> bool {
    let want = if decoder.number < MAX_TEXT { decoder.number } else { MAX_TEXT };
    let line = flow.line;
    if decoder.text_length == 0 && flow.pending() >= want && *left >= want {
        decoder.text = [flow.word(line), flow.word(line + 8), flow.word(line + 16), flow.word(line + 24)];
        decoder.text_length = want;
        flow.line = line.wrapping_add(want);
        *left = left.wrapping_sub(want);
        return true;
    }
    let at = decoder.text_length & (MAX_TEXT - 1);
    let byte = u64::from(flow.byte(line));
    // SAFETY: `at` is below 32.
    let word = unsafe { decoder.text.get_unchecked_mut((at >> 3) as usize) };
    let shift = (at & 7) * 8;
    *word = *word & !(0xff << shift) | byte << shift;
    decoder.text_length = at + 1;
    flow.line = line.wrapping_add(1);
    *left = left.wrapping_sub(1);
    decoder.text_length >= want
}

/// Skips bytes of a string, those in later frames too.
#[inline(always)]
pub(crate) fn skip(decoder: &mut HpackDecoder, flow: &mut Flow, left: &mut u32, length: u32) {
    let here = if length < *left { length } else { *left };
    if here <= flow.pending() {
        flow.line = flow.line.wrapping_add(here);
    } else {
        flow.skip = u64::from(here);
    }
    *left = left.wrapping_sub(here);
    decoder.rest = length.wrapping_sub(here);
}

/// Parses the collected string as a value of the field's name, as in an entry.
#[inline(never)]
fn interpret(decoder: &mut HpackDecoder) {
    if decoder.name == CONTENT_TYPE {
        decoder.parsed = content_type(decoder);
    } else if decoder.name == METHOD {
        decoder.parsed = method(decoder);
    } else if decoder.name == PROTOCOL {
        decoder.parsed = 0;
    } else {
        parse_number(decoder);
        let (symbols, number) = (decoder.text_length, decoder.decimal);
        let is_number = symbols & !SIGN != 0;
        decoder.parsed = UNREADABLE;
        if decoder.name == STATUS {
            // Three digits (RFC 9113 section 8.3.2, RFC 9110 section 15).
            if symbols == 3 && number < 1_000 {
                decoder.parsed = number as u32;
            }
        } else if is_number && number < u64::from(UNREADABLE) {
            decoder.parsed = number as u32;
        } else if is_number && number <= u64::from(u32::MAX) {
            decoder.name = LARGE;
            decoder.parsed = intern_large(decoder, number as u32);
        }
    }
}

/// Returns the entry of a value in [`HpackDecoder::large`], inserted if there is room, else the temporary last entry.
#[inline(never)]
fn intern_large(decoder: &mut HpackDecoder, value: u32) -> u32 {
    let mut i = 0;
    while i < MAX_LARGE - 1 && i < decoder.large_count as usize {
        if decoder.large[i] == value {
            return i as u32;
        }
        i += 1;
    }
    decoder.large[i] = value;
    if i < MAX_LARGE - 1 {
        decoder.large_count = i as u32 + 1;
    }
    i as u32
}

/// Returns the name in the collected string.
#[inline(always)]
fn name_of_text(decoder: &HpackDecoder) -> u32 {
    let [first, second, third, fourth] = decoder.text;
    let (length, huffman) = (decoder.number, decoder.huffman);
    let is = |head: &[u8; 8], head_bytes: u32, tail: &[u8; 8], tail_bytes: u32| {
        (first ^ word(head)) & ones(head_bytes) == 0 && (second ^ word(tail)) & ones(tail_bytes) == 0
    };
    const NO: &[u8; 8] = &[0; 8];
    if trace::is_on() {
        let kind = match (huffman, length) {
            (0, 2) if is(b"b3\0\0\0\0\0\0", 2, NO, 0) => kind::B3,
            (0, 5) if is(b":path\0\0\0", 5, NO, 0) => kind::PATH,
            (0, 10) if is(b"x-b3-fla", 8, b"gs\0\0\0\0\0\0", 2) => kind::B3_FLAGS,
            (0, 11) if is(b"tracepar", 8, b"ent\0\0\0\0\0", 3) => kind::TRACEPARENT,
            (0, 11) if is(b"x-b3-spa", 8, b"nid\0\0\0\0\0", 3) => kind::B3_SPAN_ID,
            (0, 12) if is(b"x-b3-tra", 8, b"ceid\0\0\0\0", 4) => kind::B3_TRACE_ID,
            (0, 12) if is(b"x-b3-sam", 8, b"pled\0\0\0\0", 4) => kind::B3_SAMPLED,
            (1, 2) if is(b"\x8d\x9f\0\0\0\0\0\0", 2, NO, 0) => kind::B3,
            (1, 4) if is(b"\xb9\x58\xd3\x3f\0\0\0\0", 4, NO, 0) => kind::PATH,
            (1, 8) if is(b"\xf2\xb4\x6c\xad\x2d\x03\x99\x1f", 8, NO, 0) => kind::B3_FLAGS,
            (1, 8) if is(b"\x4d\x83\x21\x6b\x1d\x85\xa9\x3f", 8, NO, 0) => kind::TRACEPARENT,
            (1, 8) if is(b"\xf2\xb4\x6c\xac\x8a\xc7\x51\xa4", 8, NO, 0) => kind::B3_SPAN_ID,
            (1, 9) if is(b"\xf2\xb4\x6c\xac\x9b\x06\x42\x9a", 8, b"\x4f\0\0\0\0\0\0\0", 1) => kind::B3_TRACE_ID,
            (1, 9) if is(b"\xf2\xb4\x6c\xac\x81\xd3\x5d\x05", 8, b"\x93\0\0\0\0\0\0\0", 1) => kind::B3_SAMPLED,
            _ => 0,
        };
        if kind != 0 {
            return TRACE + kind;
        }
    }
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
            23 if is(b"x-forwar", 8, b"ded-clie", 8) && (third ^ word(b"nt-cert\0")) & ones(7) == 0 => CALLER,
            _ => {
                let rest = |before: u32| ones(length.saturating_sub(before));
                let bad = not_in_names(first) & rest(0)
                    | not_in_names(second) & rest(8)
                    | not_in_names(third) & rest(16)
                    | not_in_names(fourth) & rest(24);
                // Few names begin with a colon, of these lengths.
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
        MAX_HUFFMAN_NAME
            if is(b"\xf2\xb4\xa7\xb3\xc0\xec\x90\xb2", 8, b"\x2c\x4a\x0c\x5a\x92\xb1\x0b\x62", 8)
                && third as u8 == 0x7f =>
        {
            CALLER
        }
        _ => OTHER,
    }
}

/// Returns 0x80 in each byte of a word that no name may have: a capital letter, a space or a control character (section
/// 8.2.1 of RFC 9113).
#[inline(always)]
const fn not_in_names(word: u64) -> u64 {
    const ONES: u64 = u64::MAX / 255;
    const HIGH: u64 = ONES << 7;
    let low = word & !HIGH;
    let capital = (low + ONES * (0x80 - b'A' as u64)) & !(low + ONES * (0x7f - b'Z' as u64));
    let small = !(low + ONES * (0x80 - 0x21));
    (capital | small) & !word & HIGH
}

/// Returns 1 if the collected string is `application/grpc`, alone or with a suffix behind `+`; else 0.
/// Source: envoy `source/common/grpc/common.cc`, `hasGrpcContentType`.
#[inline(always)]
fn content_type(decoder: &HpackDecoder) -> u32 {
    let length = decoder.number;
    let [first, second, third, _] = decoder.text;
    let is = if decoder.huffman == 0 {
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

/// Returns the value of the collected string as a method.
#[inline(always)]
fn method(decoder: &HpackDecoder) -> u32 {
    let post = if decoder.huffman == 0 { *b"POST" } else { *b"\xd7\xab\x76\xff" };
    if decoder.number == 4 && decoder.text[0] as u32 == u32::from_le_bytes(post) {
        return u32::from(Method::POST.0);
    }
    if trace::is_on() { any_method(decoder) } else { 0 }
}

/// Returns the value of the collected string as a method other than POST.
#[inline(never)]
fn any_method(decoder: &HpackDecoder) -> u32 {
    let (length, huffman) = (decoder.number, decoder.huffman);
    let text = decoder.text[0] & ones(length);
    let mut i = 0;
    while i < METHODS.len() {
        let (plain, coded) = METHODS[i];
        if length <= 8 && text == if huffman == 0 { plain } else { coded } {
            return i as u32 + u32::from(Method::POST.0) + 1;
        }
        i += 1;
    }
    u32::from(Method::OTHER.0)
}

/// Methods behind the first of [`Method::NAMES`], plain and Huffman coded.
const METHODS: [(u64, u64); 7] = [
    (word(b"GET\0\0\0\0\0"), word(b"\xc5\x83\x7f\0\0\0\0\0")),
    (word(b"PUT\0\0\0\0\0"), word(b"\xd7\xc3\x7f\0\0\0\0\0")),
    (word(b"DELETE\0\0"), word(b"\xbf\x83>\x0d\xf8?\0\0")),
    (word(b"HEAD\0\0\0\0"), word(b"\xc7\x82\x1b\xff\0\0\0\0")),
    (word(b"OPTIONS\0"), word(b"\xd5\xaf~MZw\x7f\0")),
    (word(b"PATCH\0\0\0"), word(b"\xd7\x0e\xfb\xd8\xff\0\0\0")),
    (word(b"CONNECT\0"), word(b"\xbd\xabN\x9c\x17\xb7\xff\0")),
];

/// Parses the collected string as a decimal number, which may have leading zeros and a plus sign. Sets
/// [`HpackDecoder::decimal`], and [`HpackDecoder::text_length`] to the number of its digits and [`SIGN`], 0 if it is not
/// a number. The string is used up.
/// Source: abseil `strings/numbers.cc`, `safe_parse_sign_and_base`, as envoy uses it.
#[inline(always)]
fn parse_number(decoder: &mut HpackDecoder) {
    let length = decoder.number;
    decoder.text_length = 0;
    decoder.decimal = 0;
    if length == 0 || length > MAX_DIGITS {
        return;
    }
    // The bits from the top down; what follows the string is ones, as its padding is.
    let (first, second) = (decoder.text[0].swap_bytes(), decoder.text[1].swap_bytes());
    decoder.text[0] = if length < 8 { first | (u64::MAX >> ((length * 8) & 63)) } else { first };
    decoder.text[1] = if length <= 8 {
        u64::MAX
    } else if length < 16 {
        second | (u64::MAX >> (((length - 8) * 8) & 63))
    } else {
        second
    };
    decoder.bits = length * 8;
    // The padding may take a step too.
    let mut i = 0;
    while i <= MAX_DIGITS && atomic::load(&decoder.bits) != 0 {
        symbol(decoder);
        i += 1;
    }
}

/// Takes the next symbol of a number off the collected string. All its state is in storage: the verifier would track what
/// one symbol reveals through all that follow.
#[inline(never)]
fn symbol(decoder: &mut HpackDecoder) {
    let (top, bits) = (decoder.text[0], decoder.bits);
    let (symbol, width) = if decoder.huffman == 0 {
        (top >> 56, 8)
    } else if top >> 56 == 0xff && bits < 8 {
        decoder.bits = 0;
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
    let symbols = (decoder.text_length & !SIGN) + decoder.text_length / SIGN;
    if width > bits || symbols == MAX_DIGITS || (digit > 9 && (symbol != 43 || symbols != 0)) {
        decoder.text_length = 0;
        decoder.bits = 0;
        return;
    }
    if digit <= 9 {
        decoder.decimal = decoder.decimal.wrapping_mul(10).wrapping_add(digit);
        decoder.text_length += 1;
    } else {
        decoder.text_length = SIGN;
    }
    decoder.text[0] = top << width | decoder.text[1] >> (64 - width);
    decoder.text[1] = decoder.text[1] << width | ((1 << width) - 1);
    decoder.bits = bits - width;
}

/// Returns the mask of the lowest `bytes` bytes of a word.
#[inline(always)]
const fn ones(bytes: u32) -> u64 {
    if bytes >= 8 { u64::MAX } else { (1 << (bytes * 8)) - 1 }
}

const fn word(bytes: &[u8; 8]) -> u64 {
    u64::from_le_bytes(*bytes)
}
