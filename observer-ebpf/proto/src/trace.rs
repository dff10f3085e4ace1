//! Trace contexts of requests: `traceparent` (W3C Trace Context), `b3` and `x-b3-*` (B3); and what these requests ask for.
//!
//! Nothing is kept of a request whose context says that it is not sampled. A value is read once it is whole; what a header
//! table refers to is kept by insertion. Where a request has both forms, that of the W3C counts, unless only the other one
//! is sampled.
//! Source: w3.org/TR/trace-context, section 3.2; github.com/openzipkin/b3-propagation.

use core::hint::black_box;

use observer_common::{Exemplar, LINE_WORDS, LineForm, Method, OpenRequest, RequestLine, health::Counter};

use crate::{
    atomic,
    env::{Recorder, TraceStore},
    flow::Flow,
    hpack::{HpackDecoder, RING},
    http1::text::{LOWER, blank_run, hexadecimal, text},
    huffman,
};

/// Returns whether contexts are read. A constant: programs that do not read them are the same as if none could.
#[must_use]
pub const fn is_on() -> bool {
    cfg!(any(feature = "traces", not(target_arch = "bpf")))
}

/// Longest value that is read; the longest valid one has 68 bytes.
const MAX_VALUE: u32 = 80;
/// Words of it.
const VALUE_WORDS: usize = MAX_VALUE as usize / 8;
/// Bytes that are kept of a request line or a path.
pub(crate) const MAX_LINE: u32 = LINE_WORDS as u32 * 8;
/// Words in which a byte is written at an index below 128, and a word read behind it.
const TEXT_WORDS: usize = 128 / 8 + 2;

/// Header that a context, or a part of one, is from.
pub mod kind {
    /// `traceparent`.
    pub const TRACEPARENT: u32 = 1;
    /// `b3`.
    pub const B3: u32 = 2;
    /// `x-b3-traceid`.
    pub const B3_TRACE_ID: u32 = 3;
    /// `x-b3-spanid`.
    pub const B3_SPAN_ID: u32 = 4;
    /// `x-b3-sampled`.
    pub const B3_SAMPLED: u32 = 5;
    /// `x-b3-flags`.
    pub const B3_FLAGS: u32 = 6;
    /// `:path`, which is no part of a context.
    pub const PATH: u32 = 7;
    /// `:path` of the value `/`, which the static table has.
    pub const ROOT_PATH: u32 = 8;
    /// `:path` of the value `/index.html`, likewise.
    pub const INDEX_PATH: u32 = 9;
}

use kind::{B3, B3_FLAGS, B3_SAMPLED, B3_SPAN_ID, B3_TRACE_ID, PATH, TRACEPARENT};

/// Flag of a context: sampled.
pub const SAMPLED: u32 = 1;
/// Flag of a context: sampled for debugging, whatever [`SAMPLED`] is.
pub const DEBUG: u32 = 1 << 1;

/// A context, or the part of one that a header holds; zeros where it holds nothing valid.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceField {
    /// Trace id, its first half first.
    pub trace_id: [u64; 2],
    /// Span id.
    pub span_id: u64,
    /// [`SAMPLED`] and [`DEBUG`].
    pub flags: u32,
    /// One of [`kind`].
    pub kind: u32,
}

impl TraceField {
    /// Returns whether it is a whole context of a sampled request.
    #[inline(always)]
    fn is_sampled(&self) -> bool {
        (self.trace_id[0] | self.trace_id[1]) != 0 && self.span_id != 0 && self.flags & (SAMPLED | DEBUG) != 0
    }
}

/// The context of the request whose header is read: the value of its socket's storage.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TraceText {
    /// By `traceparent`.
    pub w3c: TraceField,
    /// By the headers of B3.
    pub b3: TraceField,
    /// The header read last.
    pub field: TraceField,
    /// The request to be kept.
    pub request: OpenRequest,
    /// Length of the value.
    pub length: u32,
    /// State of the Huffman decoder.
    pub huffman: u32,
    /// Bytes of the value in `coded`.
    pub coded_length: u32,
    /// 1 once the code has an error.
    pub is_broken: u32,
    /// The value as it was sent.
    pub coded: [u64; TEXT_WORDS],
    /// The value.
    pub text: [u64; TEXT_WORDS],
}

/// Insertions that a [`LineTable`] holds.
const LINES: usize = 32;

/// Paths that were inserted into a header table: the value of a socket's storage.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LineTable {
    /// Number of each insertion plus one, by its remainder.
    pub insertions: [u32; LINES],
    /// Their paths.
    pub lines: [RequestLine; LINES],
}

impl LineTable {
    /// Keeps the path of an insertion.
    #[inline(always)]
    pub(crate) fn keep(&mut self, insertion: u32, line: &RequestLine) {
        let at = insertion as usize & (LINES - 1);
        // SAFETY: the length is a power of two.
        unsafe {
            *self.insertions.get_unchecked_mut(at) = insertion.wrapping_add(1);
            *self.lines.get_unchecked_mut(at) = *line;
        }
    }

    /// Returns the path of an insertion, if no later one has taken its place.
    #[inline(always)]
    pub(crate) fn line(&self, insertion: u32) -> Option<&RequestLine> {
        let at = insertion as usize & (LINES - 1);
        // SAFETY: as above.
        let (kept, line) = unsafe { (*self.insertions.get_unchecked(at), self.lines.get_unchecked(at)) };
        if kept == insertion.wrapping_add(1) { Some(line) } else { None }
    }
}

/// What the insertions into a header table say of traces: the value of a socket's storage.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TraceTable {
    /// By the insertion's number modulo [`RING`].
    pub fields: [TraceField; RING],
}

impl TraceTable {
    /// Returns the entry of an insertion.
    #[inline(always)]
    pub(crate) fn field(&mut self, insertion: u32) -> &mut TraceField {
        // SAFETY: the length is a power of two.
        unsafe { self.fields.get_unchecked_mut(insertion as usize & (RING - 1)) }
    }
}

impl TraceText {
    /// Returns the eight bytes of the value from `at` on, the first one lowest.
    #[inline(always)]
    fn word(&self, at: u32) -> u64 {
        word(&self.text, at)
    }

    #[inline(always)]
    fn byte(&self, at: u32) -> u8 {
        self.word(at) as u8
    }

    /// Returns the number of 16 hexadecimal digits, or 0.
    #[inline(always)]
    fn number(&self, at: u32) -> u64 {
        let (first, high) = hexadecimal(self.word(at));
        let (second, low) = hexadecimal(self.word(at.wrapping_add(8)));
        if first.wrapping_add(second) == 16 { high << 32 | low } else { 0 }
    }

    /// Returns the number of two hexadecimal digits.
    #[inline(always)]
    fn octet(&self, at: u32) -> Option<u64> {
        let (digits, number) = hexadecimal(self.word(at) & 0xffff);
        if digits == 2 { Some(number) } else { None }
    }

    /// Appends a byte to the value; its length tells whether all had room.
    #[inline(always)]
    fn push(&mut self, byte: u32) {
        let length = atomic::load(&self.length);
        // SAFETY: masked to less than the 144 bytes of the text.
        unsafe { *self.text.as_mut_ptr().cast::<u8>().add((length & 127) as usize) = byte as u8 };
        self.length = length.wrapping_add(1);
    }
}

/// Returns the eight bytes of a value from `at` on, the first one lowest.
#[inline(always)]
fn word(words: &[u64; TEXT_WORDS], at: u32) -> u64 {
    let index = (at >> 3) as usize & 15;
    // SAFETY: 16 at most, of 18 words.
    let (low, high) = unsafe { (*words.get_unchecked(index), *words.get_unchecked(index + 1)) };
    let shift = (at & 7) * 8;
    low >> shift | high << 1 << (63 - shift)
}

/// Begins a request's header.
#[inline(always)]
pub(crate) fn begin(text: &mut TraceText) {
    text.w3c = TraceField::default();
    text.b3 = TraceField::default();
}

/// Returns whether the first eight bytes of a line, in small letters, may be those of one that is read here.
#[inline(always)]
pub(crate) fn may_name(word: u64) -> bool {
    word == text(b"tracepar") || word << 24 == text(b"x-b3-\0\0\0") << 24 || word << 40 == text(b"b3:\0\0\0\0\0") << 40
}

/// Returns the kind of a line and the length of its name with the colon; 0 for other lines.
#[inline(always)]
fn name_in_line(flow: &Flow, at: u32) -> (u32, u32) {
    let first = flow.word(at) | LOWER;
    let second = flow.word(at.wrapping_add(8)) | LOWER;
    let (kind, length) = if first == text(b"tracepar") && second << 32 == text(b"ent:\0\0\0\0") << 32 {
        (TRACEPARENT, 12)
    } else if first << 40 == text(b"b3:\0\0\0\0\0") << 40 {
        (B3, 3)
    } else if first == text(b"x-b3-tra") && second << 24 == text(b"ceid:\0\0\0") << 24 {
        (B3_TRACE_ID, 13)
    } else if first == text(b"x-b3-spa") && second << 32 == text(b"nid:\0\0\0\0") << 32 {
        (B3_SPAN_ID, 12)
    } else if first == text(b"x-b3-sam") && second << 24 == text(b"pled:\0\0\0") << 24 {
        (B3_SAMPLED, 13)
    } else if first == text(b"x-b3-fla") && second << 40 == text(b"gs:\0\0\0\0\0") << 40 {
        (B3_FLAGS, 11)
    } else {
        return (0, 0);
    };
    // The colon in small letters may have been another byte.
    if flow.byte(at.wrapping_add(length).wrapping_sub(1)) == b':' { (kind, length) } else { (0, 0) }
}

/// Reads a whole header line of HTTP/1.
#[inline(always)]
pub(crate) fn line(text: &mut TraceText, flow: &Flow, at: u32, length: u32) {
    read_trace_line(text, flow, at, length);
}

/// Does so. Global, so that the verifier checks it on its own, as those below.
#[cfg_attr(target_arch = "bpf", unsafe(no_mangle))]
#[inline(never)]
extern "C" fn read_trace_line(text: *mut TraceText, flow: *const Flow, at: u32, length: u32) -> u32 {
    // SAFETY: null or in a socket's storage.
    let (Some(text), Some(flow)) = (unsafe { (text.as_mut(), flow.as_ref()) }) else { return 0 };
    let (kind, name) = name_in_line(flow, at);
    if kind == 0 {
        return 0;
    }
    let skipped = name.wrapping_add(blank_run(flow, at.wrapping_add(name)));
    let at = at.wrapping_add(skipped);
    let left = length.wrapping_sub(skipped);
    atomic::store(&mut text.length, if left <= MAX_VALUE { left } else { 0 });
    let mut i = 0;
    while i < VALUE_WORDS {
        text.text[i] = flow.word(at.wrapping_add(i as u32 * 8));
        i += 1;
    }
    // A blank or two may be behind it.
    let mut i = 0;
    while i < 2 {
        let length = atomic::load(&text.length);
        let last = text.byte(length.wrapping_sub(1));
        if length != 0 && (last == b' ' || last == b'\t') {
            text.length = length.wrapping_sub(1);
        }
        i += 1;
    }
    parse(text, kind);
    0
}

/// Reads on in the value of a field of HPACK; returns whether it is read to its end.
#[inline(always)]
pub(crate) fn value(
    text: &mut TraceText,
    decoder: &mut HpackDecoder,
    flow: &mut Flow,
    left: *mut u32,
    kind: u32,
) -> bool {
    read_trace_value(text, decoder, flow, left, kind) != 0
}

#[cfg_attr(target_arch = "bpf", unsafe(no_mangle))]
#[inline(never)]
extern "C" fn read_trace_value(
    text: *mut TraceText,
    decoder: *mut HpackDecoder,
    flow: *mut Flow,
    left: *mut u32,
    kind: u32,
) -> u32 {
    // SAFETY: null or in a socket's storage.
    let (Some(text), Some(decoder)) = (unsafe { (text.as_mut(), decoder.as_mut()) }) else { return 1 };
    // SAFETY: as above.
    let (Some(flow), Some(left)) = (unsafe { (flow.as_mut(), left.as_mut()) }) else { return 1 };
    let length = decoder.number;
    if kind == PATH {
        return u32::from(read_path(text, decoder, flow, left));
    }
    if length > MAX_VALUE {
        crate::hpack::skip(decoder, flow, left, length);
        text.length = 0;
    } else if !collect(text, decoder, flow, left, length) {
        return 0;
    } else if decoder.huffman != 0 {
        if kind == TRACEPARENT && ends_unsampled(text) {
            text.length = 0;
        } else {
            decode(text);
        }
    } else {
        text.text = text.coded;
        text.length = length;
    }
    parse(text, kind);
    1
}

/// Reads on in a path; returns whether it is read to its end.
#[inline(never)]
fn read_path(text: &mut TraceText, decoder: &mut HpackDecoder, flow: &mut Flow, left: &mut u32) -> bool {
    let length = decoder.number;
    let want = if length < MAX_LINE { length } else { MAX_LINE };
    if !collect(text, decoder, flow, left, want) {
        return false;
    }
    let line = &mut text.request.line;
    let mut i = 0;
    while i < LINE_WORDS {
        line.text[i] = text.coded[i];
        i += 1;
    }
    line.length = length;
    line.form = if decoder.huffman != 0 { LineForm::CODED_PATH } else { LineForm::PATH };
    crate::hpack::skip(decoder, flow, left, length.wrapping_sub(want));
    true
}

/// Keeps a request line of HTTP/1, or the beginning of a long one.
#[inline(always)]
pub(crate) fn request_line(text: &mut TraceText, flow: &Flow, at: u32, length: u32) {
    let line = &mut text.request.line;
    let mut i = 0;
    while i < LINE_WORDS {
        line.text[i] = flow.word(at.wrapping_add(i as u32 * 8));
        i += 1;
    }
    line.length = length;
    line.form = LineForm::LINE;
}

/// Sets the path of a request to one of the static table by its length, or to none.
#[inline(always)]
pub(crate) fn set_path<E: TraceStore>(env: &mut E, length: u32) {
    // SAFETY: null or valid, see `TraceStore`.
    let Some(storage) = (unsafe { env.trace_text().as_mut() }) else { return };
    let line = &mut storage.request.line;
    line.text[0] = text(b"/index.h");
    line.text[1] = text(b"tml\0\0\0\0\0");
    line.length = length;
    line.form = if length != 0 { LineForm::PATH } else { LineForm::NONE };
}

/// Collects the first `want` bytes of a value: at once if they are in the window, else byte by byte; returns true once they
/// are there.
#[inline(never)]
fn collect(text: &mut TraceText, decoder: &mut HpackDecoder, flow: &mut Flow, left: &mut u32, want: u32) -> bool {
    let (line, have) = (flow.line, decoder.text_length);
    if have == 0 && flow.pending() >= want && *left >= want {
        let mut i = 0;
        while i < LINE_WORDS {
            text.coded[i] = flow.word(line.wrapping_add(i as u32 * 8));
            i += 1;
        }
        text.coded_length = want;
        flow.line = line.wrapping_add(want);
        *left = left.wrapping_sub(want);
        return true;
    }
    let byte = flow.byte(line);
    // SAFETY: masked to less than the 144 bytes of the value.
    unsafe { *text.coded.as_mut_ptr().cast::<u8>().add((have & 127) as usize) = byte };
    text.coded_length = have.wrapping_add(1);
    decoder.text_length = have.wrapping_add(1);
    flow.line = line.wrapping_add(1);
    *left = left.wrapping_sub(1);
    decoder.text_length >= want
}

/// Returns whether the Huffman code of a `traceparent` of version 0 shows without being decoded that it is not sampled, as
/// most are not. Zero is five zeros, and a hyphen 010110: before less than a byte of ones, `-00` has eleven zeros, and `-01`
/// ten.
#[inline(always)]
fn ends_unsampled(text: &TraceText) -> bool {
    let length = atomic::load(&text.coded_length);
    let end = word(&text.coded, length.wrapping_sub(8)).swap_bytes();
    let zeros = end.wrapping_shr(end.trailing_ones()).trailing_zeros();
    let is_version_0 = text.coded[0].swap_bytes() >> 54 == 0;
    length > 8 && is_version_0 && zeros == 11
}

/// Decodes the value; it is empty if it is not a Huffman code, or that of a text that is too long.
#[inline(never)]
fn decode(text: &mut TraceText) {
    text.length = 0;
    text.is_broken = 0;
    text.huffman = huffman::MAY_END;
    let mut i = 0;
    while i < MAX_VALUE {
        if i >= atomic::load(&text.coded_length) {
            break;
        }
        // Hidden, so that the compiler does not drop the mask, which the verifier needs.
        let at = black_box(i) & 127;
        // SAFETY: masked just here; there are 144 bytes.
        let byte = u32::from(unsafe { *text.coded.as_ptr().cast::<u8>().add(at as usize) });
        decode_bits(text, byte >> 4);
        decode_bits(text, byte);
        i += 1;
    }
    let is_cut = atomic::load(&text.huffman) & huffman::MAY_END == 0 || atomic::load(&text.length) > MAX_VALUE;
    if is_cut || text.is_broken != 0 {
        text.length = 0;
    }
}

/// Decodes four bits.
#[inline(never)]
fn decode_bits(text: &mut TraceText, bits: u32) {
    let entry = huffman::next(atomic::load(&text.huffman), bits);
    text.huffman = entry;
    if entry & huffman::FAILS != 0 {
        text.is_broken = 1;
    }
    if entry & huffman::HAS_SYMBOL != 0 {
        text.push(entry >> 8 & 0xff);
    }
}

/// Parses the value as one of a header, and adds it to the request's context.
#[inline(never)]
fn parse(text: &mut TraceText, kind: u32) {
    text.field = TraceField { kind, ..TraceField::default() };
    let length = atomic::load(&text.length);
    let first = text.byte(0);
    match kind {
        TRACEPARENT => parse_traceparent(text, length),
        B3 => parse_b3(text, length),
        B3_TRACE_ID => {
            if length == 32 {
                text.field.trace_id = [text.number(0), text.number(16)];
            } else if length == 16 {
                text.field.trace_id[1] = text.number(0);
            }
        }
        B3_SPAN_ID if length == 16 => text.field.span_id = text.number(0),
        // Old libraries write `true`.
        B3_SAMPLED if length == 1 && first == b'1' || length == 4 && first == b't' => text.field.flags = SAMPLED,
        B3_FLAGS if length == 1 && first == b'1' => text.field.flags = DEBUG,
        _ => {}
    }
    apply(text);
}

/// Parses `VERSION-TRACE-SPAN-FLAGS`; later versions may have more behind it (section 3.2.4 of the recommendation).
#[inline(always)]
fn parse_traceparent(text: &mut TraceText, length: u32) {
    let (version, flags) = (text.octet(0).unwrap_or(0xff), text.octet(53));
    let is_delimited = text.byte(2) == b'-' && text.byte(35) == b'-' && text.byte(52) == b'-';
    let is_whole = length == 55 || length > 55 && version != 0 && text.byte(55) == b'-';
    if let Some(flags) = flags
        && version != 0xff
        && is_delimited
        && is_whole
    {
        text.field.trace_id = [text.number(3), text.number(19)];
        text.field.span_id = text.number(36);
        text.field.flags = flags as u32 & SAMPLED;
    }
}

/// Parses `TRACE-SPAN-STATE-PARENT`, of which the last two may be missing, and the trace id may have 16 digits.
#[inline(always)]
fn parse_b3(text: &mut TraceText, length: u32) {
    let is_long = text.byte(32) == b'-' && length > 32;
    // Where the trace id ends, through storage: the verifier need not follow both.
    atomic::store(&mut text.coded_length, if is_long { 32 } else { 16 });
    let trace = atomic::load(&text.coded_length);
    let (state, last) = (trace.wrapping_add(18), trace.wrapping_add(17));
    if text.byte(trace) != b'-' || length < last || length > last && text.byte(last) != b'-' {
        return;
    }
    text.field.trace_id = if is_long { [text.number(0), text.number(16)] } else { [0, text.number(0)] };
    text.field.span_id = text.number(trace.wrapping_add(1));
    // What is behind the value is another one's.
    let state = if length > state { text.byte(state) } else { 0 };
    if state == b'1' {
        text.field.flags = SAMPLED;
    } else if state == b'd' {
        text.field.flags = DEBUG;
    }
}

/// Adds the header read last to the request's context; of several the last one counts.
#[inline(always)]
pub(crate) fn apply(text: &mut TraceText) {
    add_trace_field(text);
}

#[cfg_attr(target_arch = "bpf", unsafe(no_mangle))]
#[inline(never)]
extern "C" fn add_trace_field(text: *mut TraceText) -> u32 {
    // SAFETY: null or in a socket's storage.
    let Some(text) = (unsafe { text.as_mut() }) else { return 0 };
    let field = text.field;
    match field.kind {
        TRACEPARENT => text.w3c = field,
        B3 => text.b3 = field,
        B3_TRACE_ID => text.b3.trace_id = field.trace_id,
        B3_SPAN_ID => text.b3.span_id = field.span_id,
        B3_SAMPLED => text.b3.flags = text.b3.flags & !SAMPLED | field.flags,
        B3_FLAGS => text.b3.flags = text.b3.flags & !DEBUG | field.flags,
        _ => {}
    }
    0
}

/// Ends the header of a request that has had at least one of the headers; keeps it if it is sampled, by the number of the
/// exchange or stream. Returns whether it is kept.
#[inline(never)]
pub(crate) fn keep<E: Recorder + TraceStore>(env: &mut E, number: u32, method: Method) -> bool {
    // SAFETY: null or valid, see `TraceStore`.
    let Some(text) = (unsafe { env.trace_text().as_mut() }) else { return false };
    let context = if text.w3c.is_sampled() { &text.w3c } else { &text.b3 };
    if !context.is_sampled() {
        return false;
    }
    text.request.exemplar =
        Exemplar { trace_id: context.trace_id, span_id: context.span_id, microseconds: 0, at_ns: 0 };
    text.request.line.method = method;
    let is_kept = env.keep_trace(number, &text.request);
    if !is_kept {
        env.count(Counter::TracesFull, 1);
    }
    is_kept
}
