//! HTTP/1.0 and HTTP/1.1 syntax: start lines, the six headers that matter, chunk sizes (RFC 9112 sections 2 to 7).

use observer_common::Direction;

use crate::{
    atomic,
    flow::{Flow, HIGH, bytes_equal},
    option::OptionU32,
    trace,
};

use super::{
    state::{
        UNREADABLE_GRPC_STATUS,
        flags::{
            CHUNKED, CLOSE, CONNECT, CONNECTION_UPGRADE, FINAL, GRPC, HAS_CODING, HAS_LENGTH, HEAD, IN_CODING,
            IN_LENGTH, KEEP_ALIVE, LENGTH_READ, LONG_LINE, MALFORMED, NOT_HTTP11, UPGRADE,
        },
        phase,
    },
    text::{LOWER, blank_run, decimal, hexadecimal, is_version, run, text},
};

const POWERS: [u64; 16] = [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 0, 0, 0, 0, 0, 0, 0];

/// A message that is not HTTP/1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Returns the length without the carriage return that ends the line.
#[inline(always)]
pub(crate) fn trim_cr(flow: &Flow, at: u32, length: u32) -> u32 {
    if length > 0 && flow.byte(at.wrapping_add(length).wrapping_sub(1)) == b'\r' { length - 1 } else { length }
}

/// Reads a request line, or the beginning of one (not `whole`), whose version is not visible.
#[inline(always)]
pub(crate) fn request_line(flow: &mut Flow, at: u32, length: u32, whole: bool) {
    let word = flow.word(at);
    if word == text(b"CONNECT ") {
        flow.flags |= CONNECT;
    } else if word << 24 == text(b"HEAD \0\0\0") << 24 {
        flow.flags |= HEAD;
    }
    if whole {
        let last = at.wrapping_add(length);
        // A blank or two may be behind it.
        let blank = flow.byte(last.wrapping_sub(1)) == b' ';
        let version = flow.word(last.wrapping_sub(if blank { 9 } else { 8 }));
        if version != text(b"HTTP/1.1") {
            flow.flags |= NOT_HTTP11;
        }
        if !is_version(version) {
            flow.flags |= MALFORMED;
        }
    }
}

/// Reads a status line.
#[inline(always)]
pub(crate) fn status_line(flow: &mut Flow, at: u32, length: u32) -> Result<(), Malformed> {
    let gap = blank_run(flow, at.wrapping_add(8));
    let digits = at.wrapping_add(8).wrapping_add(gap);
    let (count, value) = decimal(flow.word(digits));
    let behind = flow.byte(digits.wrapping_add(count));
    let end = count.wrapping_add(gap).wrapping_add(8);
    if !is_version(flow.word(at)) || gap == 0 || count < 3 || value < 100 || end > length {
        return Err(Malformed);
    }
    if end < length && behind != b' ' && behind != b'\t' {
        return Err(Malformed);
    }
    let status = value as u32;
    flow.status = status;
    if status >= 200 || status == 101 {
        flow.flags |= FINAL;
    }
    Ok(())
}

/// Returns whether Envoy refuses the message whose header has been read. It accepts no transfer coding but
/// `chunked`, one length, and no length beside a coding.
/// Source: envoy `source/common/http/http1/codec_impl.cc`.
#[inline(always)]
pub(crate) fn is_malformed(flow: &Flow) -> bool {
    let flags = flow.flags;
    flags & MALFORMED != 0
        || flags & (HAS_LENGTH | LENGTH_READ) == HAS_LENGTH
        || flags & (HAS_CODING | CHUNKED) == HAS_CODING
        || flags & (HAS_CODING | HAS_LENGTH) == HAS_CODING | HAS_LENGTH
}

/// Returns whether no request is read behind one with these flags.
#[inline(always)]
pub(crate) fn is_last(flags: u32) -> bool {
    flags & CLOSE != 0 || flags & (NOT_HTTP11 | KEEP_ALIVE) == NOT_HTTP11
}

/// Skips the header lines at hand that are neither among those that matter nor the end of the header.
#[inline(always)]
pub(crate) fn skip_lines(flow: &mut Flow, direction: Direction) {
    if flow.phase != phase::HEADERS || flow.flags & LONG_LINE != 0 {
        return;
    }
    let mut i = 0;
    while i < MAX_SKIPPED_LINES && flow.newlines != 0 {
        if may_matter(flow, flow.line, direction) {
            return;
        }
        let (_, length) = flow.next_line();
        flow.message_bytes += u64::from(length) + 1;
        flow.flags &= !(IN_LENGTH | IN_CODING);
        i += 1;
    }
}

/// Returns whether a line may be one of those that matter, by a few letters of their names, or is the end of the header or
/// the folded continuation of a line. What a response's type is does not matter, nor who a response names as a caller.
#[inline(always)]
fn may_matter(flow: &Flow, at: u32, direction: Direction) -> bool {
    let word = flow.word(at);
    let name = word as u32 | LOWER as u32;
    if name == prefix(b"cont") {
        let ninth = flow.byte(at.wrapping_add(8)) | 0x20;
        return ninth == b'l' || (ninth == b't' && direction == Direction::Request);
    }
    if name == prefix(b"x-fo") {
        return direction == Direction::Request && names_caller(flow, at);
    }
    word as u8 <= b' '
        || name == prefix(b"conn")
        || name == prefix(b"tran")
        || name == prefix(b"upgr")
        || name == prefix(b"grpc")
        || trace::is_on() && trace::may_name(word | LOWER)
}

const fn prefix(name: &[u8; 4]) -> u32 {
    u32::from_le_bytes(*name)
}

/// Bytes of the name `x-forwarded-client-cert` and the colon behind it.
pub(crate) const CALLER_NAME: u32 = 24;

/// Returns whether a line names the request's caller.
#[inline(always)]
pub(crate) fn names_caller(flow: &Flow, at: u32) -> bool {
    let word = |offset: u32| flow.word(at.wrapping_add(offset)) | LOWER;
    word(0) == text(b"x-forwar")
        && word(8) == text(b"ded-clie")
        && word(16) == text(b"nt-cert:")
        && flow.byte(at.wrapping_add(23)) == b':'
}

/// Most lines skipped per step.
const MAX_SKIPPED_LINES: u32 = 8;

/// Reads a header line, or the folded continuation of one.
#[inline(always)]
pub(crate) fn header_line(flow: &mut Flow, at: u32, length: u32) {
    read_header_line(flow, at, length);
}

/// Does so. Global, so that the verifier checks it on its own.
#[cfg_attr(target_arch = "bpf", unsafe(no_mangle))]
#[inline(never)]
extern "C" fn read_header_line(flow: *mut Flow, at: u32, length: u32) -> u32 {
    // SAFETY: null or in a connection's storage.
    let Some(flow) = (unsafe { flow.as_mut() }) else { return 0 };
    let word = flow.word(at);
    let first = word as u8;
    let mut number_at = 0;
    if first == b' ' || first == b'\t' {
        if flow.flags & IN_CODING != 0 {
            transfer_coding(flow, at, length);
        }
        if flow.flags & IN_LENGTH == 0 {
            return 0;
        }
    } else {
        number_at = unfolded_line(flow, at, length);
    }
    if number_at != NO_NUMBER {
        numeric_value(flow, at.wrapping_add(number_at), length.wrapping_sub(number_at));
    }
    0
}

/// The line has no number to read.
const NO_NUMBER: u32 = u32::MAX;

/// Reads a line that is not a folded one; returns the offset of a number to be read, or [`NO_NUMBER`].
#[inline(always)]
fn unfolded_line(flow: &mut Flow, at: u32, length: u32) -> u32 {
    flow.flags &= !(IN_LENGTH | IN_CODING);
    let name = flow.word(at) | LOWER;
    let next = flow.word(at.wrapping_add(8)) | LOWER;
    if name == text(b"content-") {
        if next << 16 == text(b"length\0\0") << 16 {
            if framing_header(flow, at.wrapping_add(14), HAS_LENGTH) {
                flow.flags |= IN_LENGTH;
                return 15;
            }
        } else if next << 24 == text(b"type:\0\0\0") << 24 {
            content_type(flow, at.wrapping_add(13), length.wrapping_sub(13));
        }
    } else if name == text(b"transfer") && next == text(b"-encodin") && flow.byte(at.wrapping_add(16)) | 0x20 == b'g' {
        if framing_header(flow, at.wrapping_add(17), HAS_CODING) {
            flow.flags |= IN_CODING;
            transfer_coding(flow, at.wrapping_add(18), length.wrapping_sub(18));
        }
    } else if name == text(b"connecti") {
        if next << 40 == text(b"on:\0\0\0\0\0") << 40 {
            connection_options(flow, at.wrapping_add(11), length.wrapping_sub(11));
        }
    } else if name == text(b"upgrade:") {
        upgrade(flow, at.wrapping_add(8), length.wrapping_sub(8));
    } else if name == text(b"grpc-sta") && next << 32 == text(b"tus:\0\0\0\0") << 32 {
        return 12;
    }
    NO_NUMBER
}

/// Reads the value of a Content-Length, which may be in the next line (RFC 9112 section 6.3), or of `grpc-status`.
#[inline(always)]
fn numeric_value(flow: &mut Flow, at: u32, length: u32) {
    let gap = blank_run(flow, at);
    let length = length.wrapping_sub(gap);
    if length as i32 <= 0 {
        return;
    }
    number(flow, at.wrapping_add(gap), length);
    let valid = atomic::load(&flow.scratch) != 0 && flow.flags & LONG_LINE == 0;
    if flow.flags & IN_LENGTH == 0 {
        let fits = valid && flow.number <= u64::from(u32::MAX - 2);
        flow.grpc_status = OptionU32::some(if fits { flow.number as u32 } else { UNREADABLE_GRPC_STATUS });
        return;
    }
    if !valid || flow.flags & LENGTH_READ != 0 {
        flow.flags |= MALFORMED;
    }
    flow.body_length = flow.number;
    flow.flags |= LENGTH_READ;
}

/// Checks what follows the name of a header that determines the length of the message and may occur only once;
/// returns whether it is the colon.
#[inline(always)]
fn framing_header(flow: &mut Flow, at: u32, flag: u32) -> bool {
    let behind = flow.byte(at);
    if behind == b' ' || behind == b'\t' || (behind == b':' && flow.flags & flag != 0) {
        flow.flags |= MALFORMED;
    }
    if behind != b':' {
        return false;
    }
    flow.flags |= flag;
    true
}

/// Sets the flag for gRPC's content type.
/// Source: envoy `source/common/grpc/common.cc`, `hasGrpcContentType`.
#[inline(never)]
fn content_type(flow: &mut Flow, at: u32, length: u32) {
    let gap = blank_run(flow, at);
    let at = at.wrapping_add(gap);
    let length = length.wrapping_sub(gap);
    let behind = flow.byte(at.wrapping_add(16));
    let ends = length == 16 || behind == b'+' || behind == b' ' || behind == b'\t';
    if flow.word(at) == text(b"applicat")
        && flow.word(at.wrapping_add(8)) == text(b"ion/grpc")
        && length as i32 >= 16
        && ends
    {
        flow.flags |= GRPC;
    }
}

/// Sets the flag for an upgrade to anything but `h2c`, which Envoy ignores.
#[inline(never)]
fn upgrade(flow: &mut Flow, at: u32, length: u32) {
    let gap = blank_run(flow, at);
    let at = at.wrapping_add(gap);
    let length = length.wrapping_sub(gap);
    let behind = flow.byte(at.wrapping_add(3));
    let ends = length == 3 || behind == b' ' || behind == b'\t';
    if !ends || (flow.word(at) | LOWER) << 40 != text(b"h2c\0\0\0\0\0") << 40 {
        flow.flags |= UPGRADE;
    }
}

/// Most options read of a Connection header.
const OPTIONS: u32 = 4;

/// Reads the options of a Connection header (RFC 9110 section 7.6.1).
#[inline(never)]
fn connection_options(flow: &mut Flow, at: u32, length: u32) {
    atomic::store(&mut flow.scratch, at);
    let end = at.wrapping_add(length);
    let mut i = 0;
    while i < OPTIONS {
        let at = atomic::load(&flow.scratch);
        let at = at.wrapping_add(run(flow.word(at), b','));
        let option = flow.word(at) | LOWER;
        let more = flow.word(at.wrapping_add(8)) | LOWER;
        let left = end.wrapping_sub(at);
        let size = option_end(flow, at);
        let size = if left < size { left } else { size };
        if left as i32 <= 0 {
            return;
        }
        if size == 5 && option << 24 == text(b"close\0\0\0") << 24 {
            flow.flags |= CLOSE;
        } else if size == 7 && option << 8 == text(b"upgrade\0") << 8 {
            flow.flags |= CONNECTION_UPGRADE;
        } else if size == 10 && option == text(b"keep-ali") && more << 48 == text(b"ve\0\0\0\0\0\0") << 48 {
            flow.flags |= KEEP_ALIVE;
        }
        atomic::store(&mut flow.scratch, at.wrapping_add(size));
        i += 1;
    }
}

/// Returns the length of the option at window index `at`, 16 at most.
#[inline(always)]
fn option_end(flow: &Flow, at: u32) -> u32 {
    let separators = |word| bytes_equal(word, b',') | bytes_equal(word, b' ') | bytes_equal(word, b'\t');
    let first = separators(flow.word(at));
    let second = separators(flow.word(at.wrapping_add(8)));
    if first != 0 { first.trailing_zeros() / 8 } else { 8 + second.trailing_zeros() / 8 }
}

/// Reads a chunk-size line, or the beginning of a long one. It must end with a carriage return and a newline.
#[inline(never)]
pub(crate) fn chunk_line(flow: &mut Flow, at: u32, length: u32) -> Result<(), Malformed> {
    let zeros = leading_zeros(flow, at);
    let (count, value) = hexadecimal(flow.word(at.wrapping_add(zeros)));
    let (more, next) = hexadecimal(flow.word(at.wrapping_add(zeros).wrapping_add(8)));
    let more = if count == 8 { more } else { 0 };
    let digits = zeros.wrapping_add(count).wrapping_add(more);
    let behind = flow.byte(at.wrapping_add(digits));
    if digits == 0 || digits > length || (flow.flags & LONG_LINE == 0 && flow.byte(at.wrapping_add(length)) != b'\r') {
        return Err(Malformed);
    }
    if digits < length && behind != b';' && behind != b' ' && behind != b'\t' {
        return Err(Malformed);
    }
    flow.body_length = if more == 0 { value } else { value.wrapping_shl(more * 4) | next };
    Ok(())
}

/// Goes on behind a chunk-size line: to the chunk's data, or to the trailers behind the last chunk.
#[inline(always)]
pub(crate) fn begin_chunk(flow: &mut Flow) {
    if flow.body_length == 0 {
        flow.phase = phase::TRAILERS;
    } else {
        flow.phase = phase::CHUNK_DATA;
        flow.skip = flow.body_length.saturating_add(2);
    }
}

/// Reads a transfer coding, which may be in the next line: only `chunked` is accepted (RFC 9112 section 7).
#[inline(never)]
fn transfer_coding(flow: &mut Flow, at: u32, length: u32) {
    let gap = blank_run(flow, at);
    let at = at.wrapping_add(gap);
    let length = length.wrapping_sub(gap);
    if length as i32 <= 0 {
        return;
    }
    let behind = blank_run(flow, at.wrapping_add(7)).wrapping_add(7);
    let only = (flow.word(at) | LOWER) << 8 == text(b"chunked\0") << 8 && length <= behind;
    if only && flow.flags & (LONG_LINE | CHUNKED) == 0 {
        flow.flags |= CHUNKED;
    } else {
        flow.flags |= MALFORMED;
    }
}

/// Reads a decimal number of `length` bytes, which may have blanks behind it, into [`Flow::number`]; sets
/// [`Flow::scratch`] to 1 if it is one of at most 64 bits, else to 0.
#[inline(always)]
fn number(flow: &mut Flow, at: u32, length: u32) {
    let (count, value) = decimal(flow.word(at));
    if count == length && count != 0 {
        flow.number = value;
        atomic::store(&mut flow.scratch, 1);
        return;
    }
    let zeros = leading_zeros(flow, at);
    let at = at.wrapping_add(zeros);
    let (first, high) = decimal(flow.word(at));
    let (second, middle) = decimal(flow.word(at.wrapping_add(8)));
    let (third, low) = decimal(flow.word(at.wrapping_add(16)));
    let second = if first == 8 { second } else { 0 };
    let third = if second == 8 { third } else { 0 };
    flow.number = high;
    append(flow, second, middle);
    append(flow, third, low);
    let digits = first.wrapping_add(second).wrapping_add(third);
    // Twenty digits fit up to 18446744073709551615; the last twelve are not looked at.
    let fits = digits < 20 || (digits == 20 && high <= 18_446_744);
    let end = zeros.wrapping_add(digits);
    let behind = blank_run(flow, at.wrapping_add(digits));
    let whole = end != 0 && length >= end && length <= end.wrapping_add(behind);
    atomic::store(&mut flow.scratch, u32::from(fits && whole));
}

/// Appends `count` digits, whose value is given, to [`Flow::number`].
#[inline(always)]
fn append(flow: &mut Flow, count: u32, value: u64) {
    // Through storage: the verifier must see the index masked, which the compiler knows to be small and would not mask.
    if count == 0 {
        return;
    }
    atomic::store(&mut flow.scratch, count);
    let power = POWERS[(atomic::load(&flow.scratch) & 15) as usize];
    flow.number = flow.number.wrapping_mul(power).wrapping_add(value);
}

/// Returns the number of zeros at window index `at`, at most 32.
#[inline(always)]
fn leading_zeros(flow: &mut Flow, at: u32) -> u32 {
    atomic::store(&mut flow.scratch, 0);
    let mut i = 0;
    while i < 4 {
        let zeros = atomic::load(&flow.scratch);
        let other = !bytes_equal(flow.word(at.wrapping_add(zeros)), b'0') & HIGH;
        let more = other.trailing_zeros() / 8;
        atomic::store(&mut flow.scratch, zeros.wrapping_add(more));
        i += 1;
    }
    atomic::load(&flow.scratch)
}
