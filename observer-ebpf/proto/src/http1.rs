//! HTTP/1.0 and HTTP/1.1 framing, just enough to know where messages begin and end (RFC 9112 sections 2 to 7).
//!
//! Of a message only the start line and six headers are read; bodies are passed over arithmetically.

use crate::{
    shared,
    stream::{CARRY, Stream, bytes_equal},
};

/// Phase: between messages.
pub const START: u32 = 0;
/// Phase: in the header lines.
pub const HEADERS: u32 = 1;
/// Phase: in a body of known length.
pub const BODY: u32 = 2;
/// Phase: at a chunk-size line.
pub const CHUNK: u32 = 3;
/// Phase: in a chunk's data and the line end behind it.
pub const CHUNK_DATA: u32 = 4;
/// Phase: in the trailer lines.
pub const TRAILERS: u32 = 5;
/// Phase: in a body that lasts until the connection ends.
pub const UNTIL_CLOSE: u32 = 6;
/// Phase: in a tunnel, or behind a request that nothing but its answer ends: one that asks for a tunnel, or a malformed one.
pub const TUNNEL: u32 = 7;
/// Phase: behind the last message that is read. What follows belongs to none.
pub const SPENT: u32 = 8;
/// Phase: where a PROXY protocol header may begin.
pub const PREAMBLE: u32 = 9;
/// Phase: in a PROXY protocol header of version 1, which is a line.
pub const PROXY_LINE: u32 = 10;
/// Phase: in a PROXY protocol header of version 2, which is binary.
pub const PROXY_BINARY: u32 = 11;

/// Fact: the message has begun.
pub const BEGUN: u32 = 1;
/// Fact: the rest of the current line is of no interest.
pub const LONG: u32 = 1 << 1;
/// Fact: the value of a Content-Length was read.
pub const LENGTH: u32 = 1 << 2;
/// Fact: the only transfer coding is `chunked`.
pub const CHUNKED: u32 = 1 << 3;
/// Fact: Envoy refuses the message.
pub const MALFORMED: u32 = 1 << 4;
/// Fact: an Upgrade header other than `h2c`, which Envoy ignores, is there.
pub const UPGRADE: u32 = 1 << 5;
/// Fact: a HEAD request.
pub const HEAD: u32 = 1 << 6;
/// Fact: a CONNECT request.
pub const CONNECT: u32 = 1 << 7;
/// Fact: the status read is not an interim one.
pub const FINAL: u32 = 1 << 8;
/// Fact: the last header line was Content-Length, which a folded line continues.
const IN_LENGTH: u32 = 1 << 9;
/// Fact: the last header line was Transfer-Encoding.
const IN_CODING: u32 = 1 << 10;
/// Fact: a Content-Length header is there.
const HAS_LENGTH: u32 = 1 << 11;
/// Fact: a Transfer-Encoding header is there.
const HAS_CODING: u32 = 1 << 12;
/// Fact: the version is not HTTP/1.1, so that the connection ends with the message unless it says otherwise.
const OLD: u32 = 1 << 13;
/// Fact: the connection option `close`.
pub const CLOSE: u32 = 1 << 14;
/// Fact: the connection option `keep-alive`.
const KEEP_ALIVE: u32 = 1 << 15;
/// Fact: the connection option `upgrade`.
pub const SWITCH: u32 = 1 << 16;
/// Fact: the content type is gRPC's.
pub const GRPC: u32 = 1 << 17;

/// First eight bytes of the HTTP/2 connection preface (RFC 9113 section 3.4).
const PREFACE: u64 = text(b"PRI * HT");
/// The next eight.
const PREFACE_REST: u64 = text(b"TP/2.0\r\n");
/// First eight bytes of a PROXY protocol header of version 2.
/// Source: haproxy `doc/proxy-protocol.txt`, section 2.2.
const PROXY_V2: u64 = text(b"\r\n\r\n\0\r\nQ");
/// And the last four of its signature.
const PROXY_V2_REST: u64 = text(b"UIT\n\0\0\0\0");
/// First six bytes of one of version 1, section 2.1.
const PROXY_V1: u64 = text(b"PROXY \0\0");
/// Bytes of a header of version 2 up to and with the length of its rest.
const PROXY_HEAD: u32 = 16;

const LOWER: u64 = 0x2020_2020_2020_2020;
const ZEROS: u64 = 0x3030_3030_3030_3030;
const HIGH: u64 = 0x8080_8080_8080_8080;
const POWERS: [u64; 16] = [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 0, 0, 0, 0, 0, 0, 0];

/// A message that is not HTTP/1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// What the first bytes of a connection say of its protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// An HTTP/1 request line, or as much of one as there is.
    Http1,
    /// The HTTP/2 preface.
    Http2,
    /// Neither.
    Other,
}

/// Judges the line of `length` bytes at window index `at`, or its head (not `whole`), as the beginning of a connection: HTTP/1
/// is a method, a target, and a version or nothing behind it.
/// Source: envoy `source/extensions/filters/listener/http_inspector/http_inspector.cc`, `OnRequestFirstLineInput` in
/// `source/common/http/http1/balsa_parser.cc`.
#[inline(never)]
#[must_use]
pub fn opening(s: &mut Stream, at: u32, length: u32, whole: bool) -> Opening {
    if is_preface(s, at, length) {
        return Opening::Http2;
    }
    let method = s.word(at);
    let odd = not_in_tokens(method);
    if odd & 0xff != 0 {
        return Opening::Other;
    }
    if !whole && length < CARRY {
        return Opening::Http1;
    }
    mark_blanks(s, at);
    let blanks = s.number;
    let method = blanks.trailing_zeros();
    let target = method + (!(blanks >> (method & 63))).trailing_zeros();
    let end = target + (blanks >> (target & 63)).trailing_zeros();
    if odd & known(method) != 0 || target >= length || target >= 64 || !is_target(s, at.wrapping_add(target)) {
        return Opening::Other;
    }
    if !whole || end >= length {
        return Opening::Http1;
    }
    // The version is the third word and the last; in a long line only that it is the last one is seen.
    let version = end.wrapping_add((!(blanks >> (end & 63))).trailing_zeros());
    let version = if end < 64 { version } else { length.wrapping_sub(8) };
    let left = length.wrapping_sub(version);
    let behind = run(s.word(at.wrapping_add(version).wrapping_add(8)), b' ').wrapping_add(8);
    let ends = version >= length || (is_version(s.word(at.wrapping_add(version))) && left >= 8 && left <= behind);
    if ends { Opening::Http1 } else { Opening::Other }
}

/// Do the bytes at hand begin the HTTP/2 preface?
#[inline(always)]
fn is_preface(s: &Stream, at: u32, length: u32) -> bool {
    let first = (s.word(at) ^ PREFACE) & known(length);
    let rest = (s.word(at.wrapping_add(8)) ^ PREFACE_REST) & known(length.saturating_sub(8));
    length >= 4 && first | rest == 0
}

/// The bits of a word's first `length` bytes.
#[inline(always)]
fn known(length: u32) -> u64 {
    if length >= 8 { !0 } else { (1u64 << ((length & 7) * 8)).wrapping_sub(1) }
}

/// 0x80 in each byte of `word` that can be in no token (RFC 9110 section 5.6.2).
#[inline(always)]
fn not_in_tokens(word: u64) -> u64 {
    // Up to the space, and all that is not ASCII.
    let low = !((word & !HIGH) + 0x5f5f_5f5f_5f5f_5f5f) & HIGH;
    let mut odd = low | (word & HIGH) | bytes_equal(word, 0x7f);
    let mut i = 0;
    while i < SEPARATORS.len() {
        odd |= bytes_equal(word, SEPARATORS[i]);
        i += 1;
    }
    odd
}

const SEPARATORS: [u8; 17] = *b"\"(),/:;<=>?@[\\]{}";

/// Marks the blanks among the 64 bytes at window index `at` in [`Stream::number`], one bit a byte.
#[inline(never)]
fn mark_blanks(s: &mut Stream, at: u32) {
    let mut marks = 0;
    let mut i = 0;
    while i < 8 {
        let word = s.word(at.wrapping_add(i * 8));
        let blank = bytes_equal(word, b' ') | bytes_equal(word, b'\t');
        marks |= (blank >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56 << (8 * i);
        i += 1;
    }
    s.number = marks;
}

/// Does a request's target begin here: a path, a scheme, or an authority as CONNECT has it?
#[inline(never)]
fn is_target(s: &Stream, at: u32) -> bool {
    let word = s.word(at);
    let first = word as u8;
    if first == b'/' || first == b'*' || s.facts & CONNECT != 0 {
        return true;
    }
    // Letters, then "://"; the longest scheme looked at has eight.
    let letters = (word | LOWER) ^ 0x6060_6060_6060_6060;
    let low = letters & !HIGH;
    let other = ((low + 0x6565_6565_6565_6565) | letters | !(low + !HIGH)) & HIGH;
    let count = other.trailing_zeros() / 8;
    count != 0 && s.word(at.wrapping_add(count)) << 40 == text(b"://\0\0\0\0\0") << 40
}

/// Is it `HTTP/`, a digit, a point and a digit?
#[inline(always)]
fn is_version(word: u64) -> bool {
    let digits = word & 0xff00_ff00_0000_0000 ^ 0x3000_3000_0000_0000;
    let others = word & 0x00ff_00ff_ffff_ffff == text(b"HTTP/\0.\0");
    others && digits >> 40 & 0xff < 10 && digits >> 56 < 10
}

/// Found by [`look_for_request`]: an unfinished line, which may yet become a request line.
const FOUND_UNFINISHED: u32 = 0;
/// Found by [`look_for_request`]: a request line.
pub const FOUND_REQUEST: u32 = 1;
/// Found by [`look_for_request`]: the HTTP/2 preface.
pub const FOUND_PREFACE: u32 = 2;
/// Found by [`look_for_request`]: neither.
pub const FOUND_OTHER: u32 = 3;

/// Looks whether a request begins with the `length` bytes in the window, in the midst of a connection: only a whole line with its
/// version is believed, or one so long that its method and target were looked at. Leaves what it finds in [`Stream::found`], so
/// that the verifier does not follow how it was found.
#[inline(never)]
pub fn look_for_request(s: &mut Stream, length: u32) {
    let line = first_line(s, length);
    let whole = line < length;
    let line = trimmed(s, 0, line);
    let found = match opening(s, 0, line, whole) {
        Opening::Http1 if !whole && length < CARRY => FOUND_UNFINISHED,
        Opening::Http1 if !whole || has_version(s, line) => FOUND_REQUEST,
        Opening::Http2 => FOUND_PREFACE,
        Opening::Http1 | Opening::Other => FOUND_OTHER,
    };
    shared::store(&mut s.found, found);
}

/// Does the line of `length` bytes at the window's start end in the version of HTTP/1.0 or 1.1?
#[inline(always)]
fn has_version(s: &Stream, length: u32) -> bool {
    length > 8 && s.word(length.wrapping_sub(8)) | (1 << 56) == text(b"HTTP/1.1")
}

/// What the first bytes of a gateway's connection say of a PROXY protocol header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preamble {
    /// More bytes are needed.
    Unknown,
    /// The phase says what begins.
    Begun,
}

/// Looks whether a PROXY protocol header begins the stream, and puts it into the phase for that.
#[inline(never)]
pub fn preamble(s: &mut Stream) -> Preamble {
    let at = s.line;
    let length = s.pending();
    let (first, second) = (s.word(at), s.word(at.wrapping_add(8)));
    if (first ^ PROXY_V1) & known(if length < 6 { length } else { 6 }) == 0 && length < 6 {
        return Preamble::Unknown;
    }
    if (first ^ PROXY_V1) & known(6) == 0 {
        s.phase = PROXY_LINE;
        return Preamble::Begun;
    }
    let rest = (second ^ PROXY_V2_REST) & known(if length < 12 { length.saturating_sub(8) } else { 4 });
    if (first ^ PROXY_V2) & known(length) | rest != 0 {
        s.phase = START;
        return Preamble::Begun;
    }
    if length < PROXY_HEAD {
        return Preamble::Unknown;
    }
    s.phase = PROXY_BINARY;
    s.skip = (second >> 48).swap_bytes() >> 48;
    s.skip += u64::from(PROXY_HEAD);
    Preamble::Begun
}

/// Length of the first line in the window, `length` if it is not whole.
#[inline(never)]
fn first_line(s: &mut Stream, length: u32) -> u32 {
    shared::store(&mut s.found, length);
    let mut i = 0;
    while i < CARRY / 8 {
        let end = bytes_equal(s.word(i * 8), b'\n');
        if end != 0 {
            let at = i * 8 + end.trailing_zeros() / 8;
            if at < length {
                shared::store(&mut s.found, at);
            }
            break;
        }
        i += 1;
    }
    shared::load(&s.found)
}

/// Is the response in the window Envoy's own refusal of what it could not read?
/// Source: envoy `sendLocalReply` in `source/common/http/utility.cc`, with the body of the reason.
#[inline(always)]
#[must_use]
pub fn is_refusal(s: &Stream) -> bool {
    const TEXT: &[u8; 56] = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 11\r\ncontent-\0\0";
    let mut i = 0;
    while i < 48 {
        let expected =
            [TEXT[i], TEXT[i + 1], TEXT[i + 2], TEXT[i + 3], TEXT[i + 4], TEXT[i + 5], TEXT[i + 6], TEXT[i + 7]];
        if s.word(i as u32) != text(&expected) {
            return false;
        }
        i += 8;
    }
    true
}

/// Length without the carriage return that ends the line.
#[inline(always)]
#[must_use]
pub fn trimmed(s: &Stream, at: u32, length: u32) -> u32 {
    if length > 0 && s.byte(at.wrapping_add(length).wrapping_sub(1)) == b'\r' { length - 1 } else { length }
}

/// Reads a request line, or the head of one (not `whole`), whose version is not seen.
#[inline(never)]
pub fn request_line(s: &mut Stream, at: u32, length: u32, whole: bool) {
    let word = s.word(at);
    if word == text(b"CONNECT ") {
        s.facts |= CONNECT;
    } else if word << 24 == text(b"HEAD \0\0\0") << 24 {
        s.facts |= HEAD;
    }
    if whole {
        let last = at.wrapping_add(length);
        // A blank or two may be behind it.
        let blank = s.byte(last.wrapping_sub(1)) == b' ';
        let version = s.word(last.wrapping_sub(if blank { 9 } else { 8 }));
        if version != text(b"HTTP/1.1") {
            s.facts |= OLD;
        }
        if !is_version(version) {
            s.facts |= MALFORMED;
        }
    }
}

/// Reads a status line.
#[inline(never)]
pub fn status_line(s: &mut Stream, at: u32, length: u32) -> Result<(), Malformed> {
    let gap = blanks(s, at.wrapping_add(8));
    let digits = at.wrapping_add(8).wrapping_add(gap);
    let (count, value) = decimal(s.word(digits));
    let behind = s.byte(digits.wrapping_add(count));
    let end = count.wrapping_add(gap).wrapping_add(8);
    if !is_version(s.word(at)) || gap == 0 || count < 3 || value < 100 || end > length {
        return Err(Malformed);
    }
    if end < length && behind != b' ' && behind != b'\t' {
        return Err(Malformed);
    }
    let status = value as u32;
    s.status = status;
    if status >= 200 || status == 101 {
        s.facts |= FINAL;
    }
    Ok(())
}

/// Does Envoy refuse the message whose header has been read? It takes a transfer coding only if it is `chunked`, one length,
/// and no length beside a coding.
/// Source: envoy `source/common/http/http1/codec_impl.cc`.
#[inline(always)]
#[must_use]
pub fn is_malformed(s: &Stream) -> bool {
    let facts = s.facts;
    facts & MALFORMED != 0
        || facts & (HAS_LENGTH | LENGTH) == HAS_LENGTH
        || facts & (HAS_CODING | CHUNKED) == HAS_CODING
        || facts & (HAS_CODING | HAS_LENGTH) == HAS_CODING | HAS_LENGTH
}

/// Is a request the last one that is read on its connection?
#[inline(always)]
#[must_use]
pub fn is_last(facts: u32) -> bool {
    facts & CLOSE != 0 || facts & (OLD | KEEP_ALIVE) == OLD
}

/// Passes over the header lines at hand that cannot be one of those that are read, nor the end of the header.
#[inline(always)]
pub fn pass_lines(s: &mut Stream) {
    if s.phase != HEADERS || s.facts & LONG != 0 {
        return;
    }
    let mut i = 0;
    while i < LINES_AT_ONCE && s.marks != 0 {
        if FIRST_BYTES >> (s.byte(s.line) & 31) & 1 != 0 {
            return;
        }
        let (_, length) = s.next_line();
        s.message += u64::from(length) + 1;
        s.facts &= !(IN_LENGTH | IN_CODING);
        i += 1;
    }
}

/// Lines passed over in one turn.
const LINES_AT_ONCE: u32 = 8;
/// The lower five bits of the bytes that a line may begin with which is looked into: the names' first letters in either
/// case, line ends, and the space or tab of a folded line. A few others have the same.
const FIRST_BYTES: u32 =
    bit(b'c') | bit(b'g') | bit(b't') | bit(b'u') | bit(b'\r') | bit(b'\n') | bit(b' ') | bit(b'\t');

const fn bit(byte: u8) -> u32 {
    1 << (byte & 31)
}

/// Reads a header line, or the folded continuation of one; what makes Envoy refuse the message is a fact.
#[inline(never)]
pub fn header_line(s: &mut Stream, at: u32, length: u32) {
    let word = s.word(at);
    let first = word as u8;
    let mut number_at = 0;
    if first == b' ' || first == b'\t' {
        if s.facts & IN_CODING != 0 {
            transfer_coding(s, at, length);
        }
        if s.facts & IN_LENGTH == 0 {
            return;
        }
    } else {
        number_at = named_line(s, at, length);
    }
    if number_at != NO_NUMBER {
        number_line(s, at.wrapping_add(number_at), length.wrapping_sub(number_at));
    }
}

/// There is no number in the line.
const NO_NUMBER: u32 = u32::MAX;

/// Reads a line that is no folded one; returns how far behind its begin a number is to be read.
#[inline(always)]
fn named_line(s: &mut Stream, at: u32, length: u32) -> u32 {
    s.facts &= !(IN_LENGTH | IN_CODING);
    let name = s.word(at) | LOWER;
    let next = s.word(at.wrapping_add(8)) | LOWER;
    if name == text(b"content-") {
        if next << 16 == text(b"length\0\0") << 16 {
            if named(s, at.wrapping_add(14), HAS_LENGTH) {
                s.facts |= IN_LENGTH;
                return 15;
            }
        } else if next << 24 == text(b"type:\0\0\0") << 24 {
            content_type(s, at.wrapping_add(13), length.wrapping_sub(13));
        }
    } else if name == text(b"transfer") && next == text(b"-encodin") && s.byte(at.wrapping_add(16)) | 0x20 == b'g' {
        if named(s, at.wrapping_add(17), HAS_CODING) {
            s.facts |= IN_CODING;
            transfer_coding(s, at.wrapping_add(18), length.wrapping_sub(18));
        }
    } else if name == text(b"connecti") {
        if next << 40 == text(b"on:\0\0\0\0\0") << 40 {
            connection_options(s, at.wrapping_add(11), length.wrapping_sub(11));
        }
    } else if name == text(b"upgrade:") {
        upgrade(s, at.wrapping_add(8), length.wrapping_sub(8));
    } else if name == text(b"grpc-sta") && next << 32 == text(b"tus:\0\0\0\0") << 32 {
        return 12;
    }
    NO_NUMBER
}

/// Reads the value of a Content-Length, which may be in the next line (RFC 9112 section 6.3), or of `grpc-status`.
#[inline(never)]
fn number_line(s: &mut Stream, at: u32, length: u32) {
    let gap = blanks(s, at);
    let length = length.wrapping_sub(gap);
    if length as i32 <= 0 {
        return;
    }
    number(s, at.wrapping_add(gap), length);
    let valid = shared::load(&s.found) != 0 && s.facts & LONG == 0;
    if s.facts & IN_LENGTH == 0 {
        let fits = valid && s.number <= u64::from(u32::MAX - 2);
        s.grpc_status = if fits { s.number as u32 + 1 } else { u32::MAX };
        return;
    }
    if !valid || s.facts & LENGTH != 0 {
        s.facts |= MALFORMED;
    }
    s.length = s.number;
    s.facts |= LENGTH;
}

/// Behind the name of a header that may be there once only and says where the message ends: is it followed by its colon?
#[inline(always)]
fn named(s: &mut Stream, at: u32, fact: u32) -> bool {
    let behind = s.byte(at);
    if behind == b' ' || behind == b'\t' || (behind == b':' && s.facts & fact != 0) {
        s.facts |= MALFORMED;
    }
    if behind != b':' {
        return false;
    }
    s.facts |= fact;
    true
}

/// Is it gRPC's?
/// Source: envoy `source/common/grpc/common.cc`, `hasGrpcContentType`.
#[inline(never)]
fn content_type(s: &mut Stream, at: u32, length: u32) {
    let gap = blanks(s, at);
    let at = at.wrapping_add(gap);
    let length = length.wrapping_sub(gap);
    let behind = s.byte(at.wrapping_add(16));
    let ends = length == 16 || behind == b'+' || behind == b' ' || behind == b'\t';
    if s.word(at) == text(b"applicat") && s.word(at.wrapping_add(8)) == text(b"ion/grpc") && length as i32 >= 16 && ends
    {
        s.facts |= GRPC;
    }
}

/// Anything but `h2c`, which Envoy drops, asks for another protocol.
#[inline(never)]
fn upgrade(s: &mut Stream, at: u32, length: u32) {
    let gap = blanks(s, at);
    let at = at.wrapping_add(gap);
    let length = length.wrapping_sub(gap);
    let behind = s.byte(at.wrapping_add(3));
    let ends = length == 3 || behind == b' ' || behind == b'\t';
    if !ends || (s.word(at) | LOWER) << 40 != text(b"h2c\0\0\0\0\0") << 40 {
        s.facts |= UPGRADE;
    }
}

/// Options looked at in a Connection header.
const OPTIONS: u32 = 4;

/// Reads the options of a Connection header (RFC 9110 section 7.6.1).
#[inline(never)]
fn connection_options(s: &mut Stream, at: u32, length: u32) {
    shared::store(&mut s.found, at);
    let end = at.wrapping_add(length);
    let mut i = 0;
    while i < OPTIONS {
        let at = shared::load(&s.found);
        let at = at.wrapping_add(run(s.word(at), b','));
        let option = s.word(at) | LOWER;
        let more = s.word(at.wrapping_add(8)) | LOWER;
        let left = end.wrapping_sub(at);
        let size = option_end(s, at);
        let size = if left < size { left } else { size };
        if left as i32 <= 0 {
            return;
        }
        if size == 5 && option << 24 == text(b"close\0\0\0") << 24 {
            s.facts |= CLOSE;
        } else if size == 7 && option << 8 == text(b"upgrade\0") << 8 {
            s.facts |= SWITCH;
        } else if size == 10 && option == text(b"keep-ali") && more << 48 == text(b"ve\0\0\0\0\0\0") << 48 {
            s.facts |= KEEP_ALIVE;
        }
        shared::store(&mut s.found, at.wrapping_add(size));
        i += 1;
    }
}

/// Length of the option at window index `at`, 16 at most.
#[inline(always)]
fn option_end(s: &Stream, at: u32) -> u32 {
    let separators = |word| bytes_equal(word, b',') | bytes_equal(word, b' ') | bytes_equal(word, b'\t');
    let first = separators(s.word(at));
    let second = separators(s.word(at.wrapping_add(8)));
    if first != 0 { first.trailing_zeros() / 8 } else { 8 + second.trailing_zeros() / 8 }
}

/// Reads a chunk-size line, or the head of a long one. Its end must be a carriage return and a newline.
#[inline(never)]
pub fn chunk_line(s: &mut Stream, at: u32, length: u32) -> Result<(), Malformed> {
    let zeros = leading_zeros(s, at);
    let (count, value) = hexadecimal(s.word(at.wrapping_add(zeros)));
    let (more, next) = hexadecimal(s.word(at.wrapping_add(zeros).wrapping_add(8)));
    let more = if count == 8 { more } else { 0 };
    let digits = zeros.wrapping_add(count).wrapping_add(more);
    let behind = s.byte(at.wrapping_add(digits));
    if digits == 0 || digits > length || (s.facts & LONG == 0 && s.byte(at.wrapping_add(length)) != b'\r') {
        return Err(Malformed);
    }
    if digits < length && behind != b';' && behind != b' ' && behind != b'\t' {
        return Err(Malformed);
    }
    s.length = if more == 0 { value } else { value.wrapping_shl(more * 4) | next };
    Ok(())
}

/// Goes on behind the chunk-size line, whose size was read: to the chunk's data, or to the trailers behind the last.
#[inline(always)]
pub fn chunk_begins(s: &mut Stream) {
    if s.length == 0 {
        s.phase = TRAILERS;
    } else {
        s.phase = CHUNK_DATA;
        s.skip = s.length.saturating_add(2);
    }
}

/// Is `word` the head of an HTTP/2 frame that a peer could send (RFC 9113 section 4.1)?
#[inline(always)]
#[must_use]
pub fn frame_head(s: &Stream) -> bool {
    let word = s.word(0);
    let size = (word & 0xff) << 16 | (word >> 8 & 0xff) << 8 | (word >> 16 & 0xff);
    let kind = word >> 24 & 0xff;
    let reserved = word >> 47 & 1;
    size <= 1 << 14 && kind <= 9 && reserved == 0
}

/// Does the stream begin with a frame of HTTP/2 that a server sends to a client in the middle of its data: an update of the
/// window, or a ping or its answer?
#[inline(always)]
#[must_use]
pub fn between_data(s: &Stream) -> bool {
    let head = s.word(0) << 24;
    head == text(b"\0\0\x04\x08\0\0\0\0") << 24 || head & !(1 << 56) == text(b"\0\0\x08\x06\0\0\0\0") << 24
}

/// Looks whether the value, which may be in the next line, is `chunked` (RFC 9112 section 7).
#[inline(never)]
fn transfer_coding(s: &mut Stream, at: u32, length: u32) {
    let gap = blanks(s, at);
    let at = at.wrapping_add(gap);
    let length = length.wrapping_sub(gap);
    if length as i32 <= 0 {
        return;
    }
    let behind = blanks(s, at.wrapping_add(7)).wrapping_add(7);
    let only = (s.word(at) | LOWER) << 8 == text(b"chunked\0") << 8 && length <= behind;
    if only && s.facts & (LONG | CHUNKED) == 0 {
        s.facts |= CHUNKED;
    } else {
        s.facts |= MALFORMED;
    }
}

/// Reads a decimal number of `length` bytes with blanks behind it into [`Stream::number`]; [`Stream::found`] is 1 if it is one, of
/// 64 bits at most, and else 0.
#[inline(never)]
fn number(s: &mut Stream, at: u32, length: u32) {
    let zeros = leading_zeros(s, at);
    let at = at.wrapping_add(zeros);
    let (first, high) = decimal(s.word(at));
    let (second, middle) = decimal(s.word(at.wrapping_add(8)));
    let (third, low) = decimal(s.word(at.wrapping_add(16)));
    let second = if first == 8 { second } else { 0 };
    let third = if second == 8 { third } else { 0 };
    s.number = high;
    append(s, second, middle);
    append(s, third, low);
    let digits = first.wrapping_add(second).wrapping_add(third);
    // Twenty digits fit up to 18446744073709551615; the last twelve are not looked at.
    let fits = digits < 20 || (digits == 20 && high <= 18_446_744);
    let end = zeros.wrapping_add(digits);
    let behind = blanks(s, at.wrapping_add(digits));
    let whole = end != 0 && length >= end && length <= end.wrapping_add(behind);
    shared::store(&mut s.found, u32::from(fits && whole));
}

/// Puts `count` digits, whose value is given, behind those of [`Stream::number`].
#[inline(always)]
fn append(s: &mut Stream, count: u32, value: u64) {
    // By storage: the verifier is to see the index checked, and the compiler knows that it is small.
    if count == 0 {
        return;
    }
    shared::store(&mut s.found, count);
    let power = POWERS[(shared::load(&s.found) & 15) as usize];
    s.number = s.number.wrapping_mul(power).wrapping_add(value);
}

/// Number of zeros at window index `at`, at most 32.
#[inline(always)]
fn leading_zeros(s: &mut Stream, at: u32) -> u32 {
    shared::store(&mut s.found, 0);
    let mut i = 0;
    while i < 4 {
        let zeros = shared::load(&s.found);
        let other = !bytes_equal(s.word(at.wrapping_add(zeros)), b'0') & HIGH;
        let more = other.trailing_zeros() / 8;
        shared::store(&mut s.found, zeros.wrapping_add(more));
        i += 1;
    }
    shared::load(&s.found)
}

/// Number of spaces and tabs at window index `at`, at most 16.
#[inline(always)]
fn blanks(s: &Stream, at: u32) -> u32 {
    let first = run(s.word(at), b' ');
    if first == 8 { 8 + run(s.word(at.wrapping_add(8)), b' ') } else { first }
}

/// Number of leading spaces, tabs and `also` in a word.
#[inline(always)]
fn run(word: u64, also: u8) -> u32 {
    let blank = bytes_equal(word, b' ') | bytes_equal(word, b'\t') | bytes_equal(word, also);
    let other = !blank & HIGH;
    other.trailing_zeros() / 8
}

/// Number and value of the leading decimal digits of a word.
#[inline(always)]
fn decimal(word: u64) -> (u32, u64) {
    let digits = word ^ ZEROS;
    let other = (((digits & !HIGH) + 0x7676_7676_7676_7676) | digits) & HIGH;
    let count = other.trailing_zeros() / 8;
    // In two steps, since there may be none.
    let digits = digits << ((8 - count) * 4) << ((8 - count) * 4);
    let pairs = (digits * 10 + (digits >> 8)) & 0x00ff_00ff_00ff_00ff;
    let fours = (pairs * 100 + (pairs >> 16)) & 0x0000_ffff_0000_ffff;
    (count, (fours.wrapping_mul(10_000) + (fours >> 32)) & 0xffff_ffff)
}

/// Number and value of the leading hexadecimal digits of a word.
#[inline(always)]
fn hexadecimal(word: u64) -> (u32, u64) {
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

const fn text(bytes: &[u8; 8]) -> u64 {
    u64::from_le_bytes(*bytes)
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
