//! The ClientHello of an inbound connection, read only as far as its application protocols (RFC 8446 section 4.1.2,
//! RFC 7301): a peer with Istio's mutual TLS offers names that begin with `istio`.
//! Source: istio `pilot/pkg/networking/util/util.go`, the ALPN lists for mesh traffic.

use observer_common::{SECURITY_MUTUAL_TLS, SECURITY_NONE, SECURITY_UNKNOWN};

use crate::{
    segment::Segment,
    socket::{self, Connection, Env, REQUEST},
    stream::Stream,
};

/// Record header, handshake header, version, random, length of the session id.
const HELLO: u32 = 0;
/// Length of the cipher suites.
const CIPHERS: u32 = 1;
/// Length of the compression methods.
const COMPRESSION: u32 = 2;
/// Length of the extensions.
const EXTENSIONS: u32 = 3;
/// Type and length of an extension.
const EXTENSION: u32 = 4;
/// Head of the list of application protocols.
const PROTOCOLS: u32 = 5;

/// Most steps that a ClientHello takes: one a field, and one a segment it is split into.
pub const STEPS: u32 = 256;
const ALPN: u64 = 16;

/// Takes a segment of a peer's connection, of which TCP has taken everything up to `accepted`; `turns` takes turns until one says
/// that it was the last, and returns false if [`STEPS`] were not enough. Leaves its finding in [`Connection::opening`].
#[inline(always)]
pub fn payload<E: Env>(
    c: &mut Connection,
    env: &mut E,
    accepted: u32,
    segment: &Segment,
    turns: impl FnOnce(&mut Connection, &mut E) -> bool,
) {
    let &Segment { seq, offset, length, .. } = segment;
    let s = &mut c.streams[REQUEST];
    if (accepted.wrapping_sub(s.next) as i32) > 0 {
        // What it began with was not seen.
        found(c, SECURITY_UNKNOWN);
    } else if s.place(seq, offset, length) {
        if s.gap() != 0 {
            socket::wait(env, s, seq, offset, length);
        } else {
            s.advance(seq.wrapping_add(length));
            if !turns(c, env) {
                // More extensions than any client of a mesh sends.
                found(c, SECURITY_UNKNOWN);
            }
        }
    }
    let s = &mut c.streams[REQUEST];
    if c.opening != 0 {
        s.forget_parked();
    }
    socket::wait_no_more(env, s);
}

/// Takes one turn through the packet's part of the ClientHello, and what of it came early; true if it was the last.
#[inline(always)]
pub fn turn<E: Env>(c: &mut Connection, env: &mut E) -> bool {
    if !step(c, env) {
        return false;
    }
    c.opening != 0 || c.streams[REQUEST].waiting == 0 || !rejoin(c, env)
}

/// Goes on with a segment that came early, now that the bytes in front of it are here; false if there is none.
#[inline(never)]
fn rejoin<E: Env>(c: &mut Connection, env: &mut E) -> bool {
    let s = &mut c.streams[REQUEST];
    let brought = s.unpark();
    if brought == 0 {
        return false;
    }
    let skipped = u64::from(brought);
    if s.skip >= skipped {
        s.skip -= skipped;
        let end = s.next.wrapping_add(brought);
        s.advance(end);
        return true;
    }
    if !env.holds(s) {
        found(c, SECURITY_UNKNOWN);
        return false;
    }
    s.reopen(brought);
    true
}

#[inline(always)]
fn found(c: &mut Connection, security: u8) {
    c.opening = u32::from(security) + 1;
}

/// Takes one step; true if there is nothing left to read.
#[inline(always)]
fn step<E: Env>(c: &mut Connection, env: &mut E) -> bool {
    let s = &mut c.streams[REQUEST];
    let left = s.end.wrapping_sub(s.offset);
    if s.skip > 0 {
        let passed = if s.skip < u64::from(left) { s.skip } else { u64::from(left) };
        s.skip -= passed;
        s.offset = s.offset.wrapping_add(passed as u32);
        return s.skip > 0;
    }
    let need = match s.phase {
        HELLO => 44,
        COMPRESSION => 1,
        EXTENSION => 4,
        PROTOCOLS => 8,
        _ => 2,
    };
    if s.have < need {
        let missing = need - s.have;
        let length = if missing < left { missing } else { left };
        if length == 0 {
            return true;
        }
        let (offset, at) = (s.offset, s.have);
        if !env.load(s, offset, length, at) {
            found(c, SECURITY_UNKNOWN);
            return true;
        }
        s.loaded(length);
        if s.phase == HELLO && !plausible(s) {
            found(c, SECURITY_NONE);
            return true;
        }
        return false;
    }
    s.have = 0;
    let word = s.word(0);
    match s.phase {
        HELLO => s.skip = u64::from(s.byte(43)),
        COMPRESSION => s.skip = word & 0xff,
        CIPHERS => s.skip = big(word),
        EXTENSIONS => s.length = big(word),
        EXTENSION => {
            let size = big(word >> 16);
            if big(word) == ALPN {
                s.phase = PROTOCOLS;
                return false;
            }
            if s.length <= size + 4 {
                found(c, SECURITY_NONE);
                return true;
            }
            s.length -= size + 4;
            s.skip = size;
            return false;
        }
        _ => {
            let istio = word >> 24 == u64::from_le_bytes(*b"istio\0\0\0");
            found(c, if istio { SECURITY_MUTUAL_TLS } else { SECURITY_NONE });
            return true;
        }
    }
    s.phase += 1;
    false
}

/// Could the bytes so far begin a ClientHello: a handshake record of version 3.x with a message of type 1?
#[inline(always)]
fn plausible(s: &Stream) -> bool {
    let known = if s.have >= 6 { 0xff00_0000_ffff } else { (1u64 << (s.have * 8)).wrapping_sub(1) & 0xffff };
    (s.word(0) ^ 0x0100_0000_0316) & known == 0
}

/// The first two bytes of a word as a number in network order.
#[inline(always)]
fn big(word: u64) -> u64 {
    (word & 0xff) << 8 | (word >> 8 & 0xff)
}
