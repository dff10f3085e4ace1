//! ClientHello of an inbound connection, read only as far as its application protocols (RFC 8446 section 4.1.2,
//! RFC 7301): a peer with Istio's mutual TLS offers names that begin with `istio`.
//! Source: istio `pilot/pkg/networking/util/util.go`, the ALPN lists for mesh traffic.

use observer_common::{Direction::Request, Security};

use crate::{
    connection::Connection,
    env::{ByteSource, Step},
    flow::{Flow, Phase},
    option::OptionU32,
    reassembly::{buffer_segment, free_if_drained},
    segment::Segment,
};

/// Record header, handshake header, version, random, length of the session id.
const HELLO: Phase = Phase(0);
/// Length of the cipher suites.
const CIPHERS: Phase = Phase(1);
/// Length of the compression methods.
const COMPRESSION: Phase = Phase(2);
/// Length of the extensions.
const EXTENSIONS: Phase = Phase(3);
/// Type and length of an extension.
const EXTENSION: Phase = Phase(4);
/// Header of the list of application protocols.
const PROTOCOLS: Phase = Phase(5);

/// Most steps per packet: one per field, and one per segment.
pub const MAX_STEPS: u32 = 256;
const ALPN: u64 = 16;

/// Handles a segment of a peer's connection of which TCP has accepted everything up to `accepted`. Sets
/// [`Connection::peer_security`] once it is known.
#[inline(always)]
pub fn on_payload<E: ByteSource>(c: &mut Connection, env: &mut E, accepted: u32, segment: &Segment) {
    let &Segment { seq, offset, length, .. } = segment;
    let flow = &mut c.flows[Request];
    if (accepted.wrapping_sub(flow.next) as i32) > 0 {
        // The first bytes were not seen.
        decide(c, Security::UNKNOWN);
    } else if flow.locate(seq, offset, length) {
        if flow.gap() != 0 {
            buffer_segment(env, flow, seq, offset, length);
        } else {
            flow.advance(seq.wrapping_add(length));
            if !env.repeat(MAX_STEPS, |env, _| step(c, env)) {
                // More extensions than any client of a mesh sends.
                decide(c, Security::UNKNOWN);
            }
        }
    }
    let flow = &mut c.flows[Request];
    if c.peer_security.is_some() {
        flow.clear_ranges();
    }
    free_if_drained(env, flow);
}

#[inline(always)]
fn decide(c: &mut Connection, security: Security) {
    c.peer_security = OptionU32::some(u32::from(security.0));
}

/// Takes one step through the packet, and then through the segments that were buffered behind it.
#[inline(always)]
fn step<E: ByteSource>(c: &mut Connection, env: &mut E) -> Step {
    match read_step(c, env) {
        Step::Done if c.peer_security.is_none() && c.flows[Request].ranges_used != 0 => resume_buffered(c, env),
        step => step,
    }
}

/// Goes on with a buffered segment once the bytes in front of it are here.
#[inline(never)]
fn resume_buffered<E: ByteSource>(c: &mut Connection, env: &mut E) -> Step {
    let flow = &mut c.flows[Request];
    let length = flow.pop_contiguous();
    if length == 0 {
        return Step::Done;
    }
    let skipped = u64::from(length);
    if flow.skip >= skipped {
        flow.skip -= skipped;
        let end = flow.next.wrapping_add(length);
        flow.advance(end);
        return Step::More;
    }
    if !env.is_valid(flow) {
        decide(c, Security::UNKNOWN);
        return Step::Done;
    }
    flow.read_buffered(length);
    Step::More
}

/// Takes one step through the packet.
#[inline(always)]
fn read_step<E: ByteSource>(c: &mut Connection, env: &mut E) -> Step {
    let flow = &mut c.flows[Request];
    let left = flow.unloaded();
    if flow.skip > 0 {
        let skipped = if flow.skip < u64::from(left) { flow.skip } else { u64::from(left) };
        flow.skip -= skipped;
        flow.offset = flow.offset.wrapping_add(skipped as u32);
        return if flow.skip > 0 { Step::Done } else { Step::More };
    }
    let need = match flow.phase {
        HELLO => 44,
        COMPRESSION => 1,
        EXTENSION => 4,
        PROTOCOLS => 8,
        _ => 2,
    };
    if flow.filled < need {
        let missing = need - flow.filled;
        let length = if missing < left { missing } else { left };
        if length == 0 {
            return Step::Done;
        }
        let (offset, at) = (flow.offset, flow.filled);
        if !env.load(flow, offset, length, at) {
            decide(c, Security::UNKNOWN);
            return Step::Done;
        }
        flow.loaded(length);
        if flow.phase == HELLO && !is_plausible(flow) {
            decide(c, Security::NONE);
            return Step::Done;
        }
        return Step::More;
    }
    flow.filled = 0;
    let word = flow.word(0);
    match flow.phase {
        HELLO => flow.skip = u64::from(flow.byte(43)),
        COMPRESSION => flow.skip = word & 0xff,
        CIPHERS => flow.skip = be16(word),
        EXTENSIONS => flow.body_length = be16(word),
        EXTENSION => {
            let size = be16(word >> 16);
            if be16(word) == ALPN {
                flow.phase = PROTOCOLS;
                return Step::More;
            }
            if flow.body_length <= size + 4 {
                decide(c, Security::NONE);
                return Step::Done;
            }
            flow.body_length -= size + 4;
            flow.skip = size;
            return Step::More;
        }
        _ => {
            let is_istio = word >> 24 == u64::from_le_bytes(*b"istio\0\0\0");
            decide(c, if is_istio { Security::MUTUAL_TLS } else { Security::NONE });
            return Step::Done;
        }
    }
    flow.phase.0 += 1;
    Step::More
}

/// Returns whether the bytes so far can begin a ClientHello: a handshake record of version 3.x with a message of type 1.
#[inline(always)]
fn is_plausible(flow: &Flow) -> bool {
    let known = if flow.filled >= 6 { 0xff00_0000_ffff } else { (1u64 << (flow.filled * 8)).wrapping_sub(1) & 0xffff };
    (flow.word(0) ^ 0x0100_0000_0316) & known == 0
}

/// Returns the first two bytes of a word as a number in network order.
#[inline(always)]
fn be16(word: u64) -> u64 {
    (word & 0xff) << 8 | (word >> 8 & 0xff)
}
