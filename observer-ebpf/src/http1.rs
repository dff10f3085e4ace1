//! HTTP/1.0 and HTTP/1.1 framing, just enough to know where messages begin and end (RFC 9112 sections 2 to 7).
//!
//! Of a message only the start line and four headers are read; bodies are passed over arithmetically.

use crate::stream::{Stream, bytes_equal};

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
/// Phase: behind a request that asks for a tunnel, or in the tunnel.
pub const TUNNEL: u32 = 7;

/// Fact: the message has begun.
pub const BEGUN: u32 = 1;
/// Fact: the rest of the current line is of no interest.
pub const LONG: u32 = 1 << 1;
/// Fact: a Content-Length was read.
pub const LENGTH: u32 = 1 << 2;
/// Fact: `chunked` is the last transfer coding.
pub const CHUNKED: u32 = 1 << 3;
/// Fact: there is a Transfer-Encoding whose last coding is not `chunked`.
pub const CODED: u32 = 1 << 4;
/// Fact: an Upgrade header is there.
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

/// Methods that Envoy's sniffing and parser know, as their first eight bytes with the space behind them.
/// Source: envoy `source/common/http/http1/balsa_parser.cc`.
const METHODS: [(u64, u64); 34] = [
    method(b"ACL "),
    method(b"BIND "),
    method(b"CHECKOUT"),
    method(b"CONNECT "),
    method(b"COPY "),
    method(b"DELETE "),
    method(b"GET "),
    method(b"HEAD "),
    method(b"LINK "),
    method(b"LOCK "),
    method(b"MERGE "),
    method(b"MKACTIVI"),
    method(b"MKCALEND"),
    method(b"MKCOL "),
    method(b"MOVE "),
    method(b"MSEARCH "),
    method(b"NOTIFY "),
    method(b"OPTIONS "),
    method(b"PATCH "),
    method(b"POST "),
    method(b"PROPFIND"),
    method(b"PROPPATC"),
    method(b"PURGE "),
    method(b"PUT "),
    method(b"REBIND "),
    method(b"REPORT "),
    method(b"SEARCH "),
    method(b"SOURCE "),
    method(b"SUBSCRIB"),
    method(b"TRACE "),
    method(b"UNBIND "),
    method(b"UNLINK "),
    method(b"UNLOCK "),
    method(b"UNSUBSCR"),
];
/// First eight bytes of the HTTP/2 connection preface (RFC 9113 section 3.4).
const PREFACE: u64 = text(b"PRI * HT");

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

/// Judges the `length` bytes at window index `at` as the beginning of a connection.
#[inline(never)]
#[must_use]
pub fn opening(s: &Stream, at: u32, length: u32) -> Opening {
    let known = if length >= 8 { !0 } else { (1u64 << (length * 8)).wrapping_sub(1) };
    let word = s.word(at);
    if (word ^ PREFACE) & known == 0 && length >= 4 {
        return Opening::Http2;
    }
    let mut i = 0;
    while i < METHODS.len() {
        let (name, mask) = METHODS[i];
        if (word ^ name) & mask & known == 0 {
            return Opening::Http1;
        }
        i += 1;
    }
    if (word ^ PREFACE) & known == 0 { Opening::Http1 } else { Opening::Other }
}

/// Length without the carriage return that ends the line.
#[inline(always)]
#[must_use]
pub fn trimmed(s: &Stream, at: u32, length: u32) -> u32 {
    if length > 0 && s.byte(at.wrapping_add(length).wrapping_sub(1)) == b'\r' { length - 1 } else { length }
}

/// Reads a request line; `whole` says that its end was seen and the version can be checked.
#[inline(never)]
pub fn request_line(s: &mut Stream, at: u32, length: u32, whole: bool) -> Result<(), Malformed> {
    let word = s.word(at);
    let first = word as u8;
    if !first.is_ascii_uppercase() || length < 14 {
        return Err(Malformed);
    }
    if whole {
        let version = s.word(at.wrapping_add(length).wrapping_sub(8));
        if version | (1 << 56) != text(b"HTTP/1.1") {
            return Err(Malformed);
        }
    }
    if word == text(b"CONNECT ") {
        s.facts |= CONNECT;
    } else if word << 24 == text(b"HEAD \0\0\0") << 24 {
        s.facts |= HEAD;
    }
    Ok(())
}

/// Reads a status line.
#[inline(never)]
pub fn status_line(s: &mut Stream, at: u32, length: u32) -> Result<(), Malformed> {
    if length < 12 || s.word(at) | (1 << 56) != text(b"HTTP/1.1") {
        return Err(Malformed);
    }
    let word = s.word(at.wrapping_add(8));
    let (count, value) = decimal(word >> 8);
    let behind = (word >> 32) as u8;
    if word as u8 != b' ' || count != 3 || value < 100 || (length > 12 && behind != b' ') {
        return Err(Malformed);
    }
    let status = value as u32;
    s.status = status;
    if status >= 200 || status == 101 {
        s.facts |= FINAL;
    }
    Ok(())
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
const FIRST_BYTES: u32 = bit(b'c') | bit(b't') | bit(b'u') | bit(b'\r') | bit(b'\n') | bit(b' ') | bit(b'\t');

const fn bit(byte: u8) -> u32 {
    1 << (byte & 31)
}

/// Reads a header line, or the folded continuation of one.
#[inline(never)]
pub fn header_line(s: &mut Stream, at: u32, length: u32, whole: bool) -> Result<(), Malformed> {
    let word = s.word(at);
    let first = word as u8;
    if first == b' ' || first == b'\t' {
        if s.facts & IN_LENGTH != 0 {
            return content_length(s, at, length, whole);
        }
        if s.facts & IN_CODING != 0 {
            return transfer_coding(s, at, length, whole);
        }
        return Ok(());
    }
    s.facts &= !(IN_LENGTH | IN_CODING);
    let name = word | LOWER;
    if name == text(b"content-") && (word >> 56) as u8 == b'-' {
        if (s.word(at.wrapping_add(8)) | LOWER) << 8 == text(b"length:\0") << 8 {
            s.facts |= IN_LENGTH;
            return content_length(s, at.wrapping_add(15), length.wrapping_sub(15), whole);
        }
    } else if name == text(b"transfer") {
        if s.word(at.wrapping_add(8)) | LOWER == text(b"-encodin")
            && (s.word(at.wrapping_add(16)) | LOWER) << 48 == text(b"g:\0\0\0\0\0\0") << 48
        {
            s.facts |= IN_CODING;
            return transfer_coding(s, at.wrapping_add(18), length.wrapping_sub(18), whole);
        }
    } else if name == text(b"upgrade:") {
        s.facts |= UPGRADE;
    }
    Ok(())
}

/// Reads a chunk-size line.
#[inline(never)]
pub fn chunk_line(s: &mut Stream, at: u32, length: u32) -> Result<(), Malformed> {
    let (count, value) = hexadecimal(s.word(at));
    if count == 0 || count > length {
        return Err(Malformed);
    }
    let mut digits = count;
    let mut size = value;
    if count == 8 {
        let (more, value) = hexadecimal(s.word(at.wrapping_add(8)));
        size = (size << ((more & 7) * 4)) | value;
        digits += more;
        if more == 8 {
            return Err(Malformed);
        }
    }
    let behind = s.byte(at.wrapping_add(digits));
    if digits < length && behind != b';' && behind != b' ' && behind != b'\t' {
        return Err(Malformed);
    }
    s.length = size;
    Ok(())
}

/// Goes on behind the chunk-size line, whose size was read: to the chunk's data, or to the trailers behind the last.
#[inline(always)]
pub fn chunk_begins(s: &mut Stream) {
    if s.length == 0 {
        s.phase = TRAILERS;
    } else {
        s.phase = CHUNK_DATA;
        s.skip = s.length.wrapping_add(2);
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

/// Reads the digits of a Content-Length; a second one must agree with the first (RFC 9112 section 6.3).
#[inline(never)]
fn content_length(s: &mut Stream, at: u32, length: u32, whole: bool) -> Result<(), Malformed> {
    let spaces = blanks(s, at);
    let at = at.wrapping_add(spaces);
    let length = length.wrapping_sub(spaces);
    if length as i32 <= 0 {
        return Ok(());
    }
    let (count, first) = decimal(s.word(at));
    let mut digits = count;
    let mut value = first;
    if count == 8 {
        let (more, second) = decimal(s.word(at.wrapping_add(8)));
        value = value.wrapping_mul(POWERS[(more & 15) as usize]).wrapping_add(second);
        digits += more;
        if more == 8 {
            let (last, third) = decimal(s.word(at.wrapping_add(16)));
            // More than 18 digits are refused below, so that what wraps here is never used.
            value = value.wrapping_mul(POWERS[(last & 15) as usize]).wrapping_add(third);
            digits += last;
        }
    }
    let behind = s.byte(at.wrapping_add(digits));
    if count == 0 || digits > 18 || !whole || (digits < length && behind != b' ' && behind != b'\t') {
        return Err(Malformed);
    }
    if s.facts & LENGTH != 0 && s.length != value {
        return Err(Malformed);
    }
    s.length = value;
    s.facts |= LENGTH;
    Ok(())
}

/// Looks whether the value ends in `chunked` (RFC 9112 section 7).
#[inline(never)]
fn transfer_coding(s: &mut Stream, at: u32, length: u32, whole: bool) -> Result<(), Malformed> {
    if !whole {
        return Err(Malformed);
    }
    let end = at.wrapping_add(length);
    let mut tail = s.word(end.wrapping_sub(8));
    let mut i = 0;
    while i < 4 {
        let last = (tail >> 56) as u8;
        if last == b' ' || last == b'\t' {
            tail = s.word(end.wrapping_sub(9 + i));
        }
        i += 1;
    }
    let before = tail as u8;
    let separated = before == b' ' || before == b',' || before == b'\t' || before == b':';
    if separated && (tail | LOWER) >> 8 == text(b"chunked\0") {
        s.facts = (s.facts | CHUNKED) & !CODED;
    } else if blanks(s, at) < length {
        s.facts = (s.facts | CODED) & !CHUNKED;
    }
    Ok(())
}

/// Number of spaces and tabs at window index `at`, at most 16.
#[inline(always)]
fn blanks(s: &Stream, at: u32) -> u32 {
    let first = run(s.word(at));
    if first == 8 { 8 + run(s.word(at.wrapping_add(8))) } else { first }
}

/// Number of leading spaces and tabs in a word.
#[inline(always)]
fn run(word: u64) -> u32 {
    let blank = bytes_equal(word, b' ') | bytes_equal(word, b'\t');
    let other = !blank & HIGH;
    if other == 0 { 8 } else { other.trailing_zeros() / 8 }
}

/// Number and value of the leading decimal digits of a word.
#[inline(always)]
fn decimal(word: u64) -> (u32, u64) {
    let digits = word ^ ZEROS;
    let other = (((digits & !HIGH) + 0x7676_7676_7676_7676) | digits) & HIGH;
    let count = if other == 0 { 8 } else { other.trailing_zeros() / 8 };
    if count == 0 {
        return (0, 0);
    }
    let digits = digits << ((8 - count) * 8);
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
    let count = if other == 0 { 8 } else { other.trailing_zeros() / 8 };
    if count == 0 {
        return (0, 0);
    }
    let nibbles = (word & 0x0f0f_0f0f_0f0f_0f0f) + (word >> 6 & 0x0101_0101_0101_0101) * 9;
    let nibbles = nibbles << ((8 - count) * 8);
    let pairs = (nibbles * 16 + (nibbles >> 8)) & 0x00ff_00ff_00ff_00ff;
    let fours = (pairs * 256 + (pairs >> 16)) & 0x0000_ffff_0000_ffff;
    (count, (fours.wrapping_mul(65_536) + (fours >> 32)) & 0xffff_ffff)
}

const fn text(bytes: &[u8; 8]) -> u64 {
    u64::from_le_bytes(*bytes)
}

/// A method's bytes and which of the eight they are.
const fn method(name: &[u8]) -> (u64, u64) {
    let mut word = 0;
    let mut mask = 0;
    let mut i = 0;
    while i < name.len() && i < 8 {
        word |= (name[i] as u64) << (8 * i);
        mask |= 0xff << (8 * i);
        i += 1;
    }
    (word, mask)
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
