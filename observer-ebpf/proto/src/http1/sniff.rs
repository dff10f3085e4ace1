//! Protocol sniffing: what the first bytes of a connection, or of a message after a desync, can be.

use crate::{
    atomic,
    flow::{CARRY, Flow, HIGH, byte_bits, bytes_equal},
};

use super::{
    state::{flags::CONNECT, phase},
    syntax::trim_cr,
    text::{LOWER, is_version, low_bytes, run, text},
};

/// First eight bytes of the HTTP/2 connection preface (RFC 9113 section 3.4).
const PREFACE: u64 = text(b"PRI * HT");
/// The next eight.
const PREFACE_REST: u64 = text(b"TP/2.0\r\n");
/// First eight bytes of a PROXY protocol header of version 2.
/// Source: haproxy `doc/proxy-protocol.txt`, section 2.2.
const PROXY_V2: u64 = text(b"\r\n\r\n\0\r\nQ");
/// The last four bytes of its signature.
const PROXY_V2_REST: u64 = text(b"UIT\n\0\0\0\0");
/// First six bytes of a header of version 1, section 2.1.
const PROXY_V1: u64 = text(b"PROXY \0\0");
/// Bytes of a header of version 2 up to and including its length field.
const PROXY_HEAD: u32 = 16;

/// Protocol of the first bytes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sniffed {
    /// An HTTP/1 request line, or as much of one as there is.
    Http1,
    /// The HTTP/2 preface.
    Http2,
    /// Neither.
    Other,
}

/// Sniffs the line of `length` bytes at window index `at`, or its beginning (not `whole`), as the first one of a
/// connection: an HTTP/1 request line is a method, a target, and a version or nothing behind it.
/// Source: envoy `source/extensions/filters/listener/http_inspector/http_inspector.cc`, `OnRequestFirstLineInput`
/// in `source/common/http/http1/balsa_parser.cc`.
#[inline(never)]
pub(crate) fn sniff(flow: &mut Flow, at: u32, length: u32, whole: bool) -> Sniffed {
    if is_preface(flow, at, length) {
        return Sniffed::Http2;
    }
    let method = flow.word(at);
    let invalid = not_in_tokens(method);
    if invalid & 0xff != 0 {
        return Sniffed::Other;
    }
    if !whole && length < CARRY {
        return Sniffed::Http1;
    }
    mark_blanks(flow, at);
    let blanks = flow.number;
    let method = blanks.trailing_zeros();
    let target = method + (!(blanks >> (method & 63))).trailing_zeros();
    let end = target + (blanks >> (target & 63)).trailing_zeros();
    if invalid & low_bytes(method) != 0 || target >= length || target >= 64 || !is_target(flow, at.wrapping_add(target))
    {
        return Sniffed::Other;
    }
    if !whole || end >= length {
        return Sniffed::Http1;
    }
    // The version is the third and last word; of a long line only the last word is visible.
    let version = end.wrapping_add((!(blanks >> (end & 63))).trailing_zeros());
    let version = if end < 64 { version } else { length.wrapping_sub(8) };
    let left = length.wrapping_sub(version);
    let behind = run(flow.word(at.wrapping_add(version).wrapping_add(8)), b' ').wrapping_add(8);
    let ends = version >= length || (is_version(flow.word(at.wrapping_add(version))) && left >= 8 && left <= behind);
    if ends { Sniffed::Http1 } else { Sniffed::Other }
}

/// Returns what a server's first bytes begin: a SETTINGS frame on stream 0 (RFC 9113 section 3.4), or a status line. They
/// are all bytes in the window, at least nine; with `refusal_only`, only Envoy's own refusal counts as HTTP/1.
#[inline(always)]
pub(crate) fn sniff_server(flow: &Flow, refusal_only: bool) -> Sniffed {
    let word = flow.word(0);
    let size = (word as u32).swap_bytes() >> 8;
    if size < 256 && size.is_multiple_of(6) && word >> 24 == 4 && flow.byte(8) == 0 {
        Sniffed::Http2
    } else if is_status_line(flow) && (!refusal_only || is_envoy_refusal(flow)) {
        Sniffed::Http1
    } else {
        Sniffed::Other
    }
}

/// Returns whether the window begins with a status line of HTTP/1.
#[inline(always)]
pub(crate) fn is_status_line(flow: &Flow) -> bool {
    flow.word(0) << 8 == text(b"HTTP/1.\0") << 8
}

/// Returns whether the window begins with a TLS record of any type (RFC 8446 section 5.1).
#[inline(always)]
pub(crate) fn is_tls_record(flow: &Flow) -> bool {
    let word = flow.word(0);
    (0x14..=0x17).contains(&(word as u8)) && word >> 8 & 0xff == 3
}

/// Returns whether the bytes at hand begin the HTTP/2 preface.
#[inline(always)]
fn is_preface(flow: &Flow, at: u32, length: u32) -> bool {
    let first = (flow.word(at) ^ PREFACE) & low_bytes(length);
    let rest = (flow.word(at.wrapping_add(8)) ^ PREFACE_REST) & low_bytes(length.saturating_sub(8));
    length >= 4 && first | rest == 0
}

/// Returns 0x80 in each byte of `word` that no token can have (RFC 9110 section 5.6.2).
#[inline(always)]
fn not_in_tokens(word: u64) -> u64 {
    // Up to the space, and all that is not ASCII.
    let low = !((word & !HIGH) + 0x5f5f_5f5f_5f5f_5f5f) & HIGH;
    let mut invalid = low | (word & HIGH) | bytes_equal(word, 0x7f);
    let mut i = 0;
    while i < SEPARATORS.len() {
        invalid |= bytes_equal(word, SEPARATORS[i]);
        i += 1;
    }
    invalid
}

const SEPARATORS: [u8; 17] = *b"\"(),/:;<=>?@[\\]{}";

/// Marks the blanks among the 64 bytes at window index `at` in [`Flow::number`], one bit per byte.
#[inline(never)]
fn mark_blanks(flow: &mut Flow, at: u32) {
    let mut marks = 0;
    let mut i = 0;
    while i < 8 {
        let word = flow.word(at.wrapping_add(i * 8));
        let blank = bytes_equal(word, b' ') | bytes_equal(word, b'\t');
        marks |= byte_bits(blank) << (8 * i);
        i += 1;
    }
    flow.number = marks;
}

/// Returns whether a request target begins here: a path, a scheme, or an authority as in CONNECT.
#[inline(never)]
fn is_target(flow: &Flow, at: u32) -> bool {
    let word = flow.word(at);
    let first = word as u8;
    if first == b'/' || first == b'*' || flow.flags & CONNECT != 0 {
        return true;
    }
    // Letters, then "://"; the longest scheme looked at has eight.
    let letters = (word | LOWER) ^ 0x6060_6060_6060_6060;
    let low = letters & !HIGH;
    let other = ((low + 0x6565_6565_6565_6565) | letters | !(low + !HIGH)) & HIGH;
    let count = other.trailing_zeros() / 8;
    count != 0 && flow.word(at.wrapping_add(count)) << 40 == text(b"://\0\0\0\0\0") << 40
}

/// Result of [`find_request`].
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found(u32);

impl Found {
    /// An unfinished line, which may yet become a request line.
    const UNFINISHED: Self = Self(0);
    /// A request line.
    pub(crate) const REQUEST: Self = Self(1);
    /// The HTTP/2 preface.
    pub(crate) const PREFACE: Self = Self(2);
    /// Neither.
    pub(crate) const OTHER: Self = Self(3);
}

/// Returns whether a request begins with the `length` bytes in the window, in the middle of a connection: only a
/// whole line with its version counts, or one so long that its method and target were checked. The result goes
/// through storage, so that the verifier does not track how it was found.
#[inline(never)]
pub(crate) fn find_request(flow: &mut Flow, length: u32) {
    let line = first_line(flow, length);
    let whole = line < length;
    let line = trim_cr(flow, 0, line);
    let found = match sniff(flow, 0, line, whole) {
        Sniffed::Http1 if !whole && length < CARRY => Found::UNFINISHED,
        Sniffed::Http1 if !whole || has_version(flow, line) => Found::REQUEST,
        Sniffed::Http2 => Found::PREFACE,
        Sniffed::Http1 | Sniffed::Other => Found::OTHER,
    };
    atomic::store(&mut flow.scratch, found.0);
}

/// Reads the result of [`find_request`].
#[inline(always)]
pub(crate) fn found(flow: &Flow) -> Found {
    Found(atomic::load(&flow.scratch))
}

/// Returns whether the line of `length` bytes at the window's start ends in the version of HTTP/1.0 or 1.1.
#[inline(always)]
fn has_version(flow: &Flow, length: u32) -> bool {
    length > 8 && flow.word(length.wrapping_sub(8)) | (1 << 56) == text(b"HTTP/1.1")
}

/// Detects a PROXY protocol header at the beginning of the flow, and sets the phase that follows; returns false if
/// more bytes are needed.
#[inline(never)]
pub(crate) fn detect_proxy_header(flow: &mut Flow) -> bool {
    let at = flow.line;
    let length = flow.pending();
    let (first, second) = (flow.word(at), flow.word(at.wrapping_add(8)));
    if (first ^ PROXY_V1) & low_bytes(if length < 6 { length } else { 6 }) == 0 && length < 6 {
        return false;
    }
    if (first ^ PROXY_V1) & low_bytes(6) == 0 {
        flow.phase = phase::PROXY_LINE;
        return true;
    }
    let rest = (second ^ PROXY_V2_REST) & low_bytes(if length < 12 { length.saturating_sub(8) } else { 4 });
    if (first ^ PROXY_V2) & low_bytes(length) | rest != 0 {
        flow.phase = phase::START;
        return true;
    }
    if length < PROXY_HEAD {
        return false;
    }
    flow.phase = phase::PROXY_BINARY;
    flow.skip = (second >> 48).swap_bytes() >> 48;
    flow.skip += u64::from(PROXY_HEAD);
    true
}

/// Returns the length of the first line in the window, `length` if it is not whole.
#[inline(never)]
fn first_line(flow: &mut Flow, length: u32) -> u32 {
    atomic::store(&mut flow.scratch, length);
    let mut i = 0;
    while i < CARRY / 8 {
        let end = bytes_equal(flow.word(i * 8), b'\n');
        if end != 0 {
            let at = i * 8 + end.trailing_zeros() / 8;
            if at < length {
                atomic::store(&mut flow.scratch, at);
            }
            break;
        }
        i += 1;
    }
    atomic::load(&flow.scratch)
}

/// Returns whether the response in the window is Envoy's own refusal of what it could not parse.
/// Source: envoy `sendLocalReply` in `source/common/http/utility.cc`, with the body of the reason.
#[inline(always)]
pub(crate) fn is_envoy_refusal(flow: &Flow) -> bool {
    const TEXT: &[u8; 56] = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 11\r\ncontent-\0\0";
    let mut i = 0;
    while i < 48 {
        let expected =
            [TEXT[i], TEXT[i + 1], TEXT[i + 2], TEXT[i + 3], TEXT[i + 4], TEXT[i + 5], TEXT[i + 6], TEXT[i + 7]];
        if flow.word(i as u32) != text(&expected) {
            return false;
        }
        i += 8;
    }
    true
}

/// Returns whether the window begins with the header of an HTTP/2 frame that a peer could send (RFC 9113 section
/// 4.1).
#[inline(always)]
pub(crate) fn is_frame_header(flow: &Flow) -> bool {
    let word = flow.word(0);
    let size = (word & 0xff) << 16 | (word >> 8 & 0xff) << 8 | (word >> 16 & 0xff);
    let kind = word >> 24 & 0xff;
    let reserved = word >> 47 & 1;
    size <= 1 << 14 && kind <= 9 && reserved == 0
}

/// Returns whether the window begins with an HTTP/2 frame that a server sends between data: WINDOW_UPDATE, or PING
/// or its answer.
#[inline(always)]
pub(crate) fn is_server_control_frame(flow: &Flow) -> bool {
    let head = flow.word(0) << 24;
    head == text(b"\0\0\x04\x08\0\0\0\0") << 24 || head & !(1 << 56) == text(b"\0\0\x08\x06\0\0\0\0") << 24
}
