//! The ClientHello of an inbound connection, read only as far as its application protocols (RFC 8446 section 4.1.2,
//! RFC 7301): a peer with Istio's mutual TLS offers names that begin with `istio`.
//! Source: istio `pilot/pkg/networking/util/util.go`, the ALPN lists for mesh traffic.

use crate::{
    SECURITY_MUTUAL_TLS, SECURITY_NONE,
    socket::{Connection, Env, REQUEST},
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

/// Takes one step through the packet's part of the ClientHello; true if it was the last.
///
/// Leaves its finding in [`Connection::opening`].
#[inline(always)]
pub fn step<E: Env>(c: &mut Connection, env: &mut E) -> bool {
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
            c.opening = u32::from(SECURITY_NONE) + 1;
            return true;
        }
        s.loaded(length);
        if s.phase == HELLO && !plausible(s) {
            c.opening = u32::from(SECURITY_NONE) + 1;
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
                c.opening = u32::from(SECURITY_NONE) + 1;
                return true;
            }
            s.length -= size + 4;
            s.skip = size;
            return false;
        }
        _ => {
            let istio = word >> 24 == u64::from_le_bytes(*b"istio\0\0\0");
            c.opening = u32::from(if istio { SECURITY_MUTUAL_TLS } else { SECURITY_NONE }) + 1;
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
