//! A whole HTTP/2 connection of arbitrary packets after the preface: calls, answers, gaps, repetitions, ends.
//!
//! Input: a byte for the leg and whether the connection is preexisting, without a preface; then packets of a header
//! (two bytes: kind, length) and that many payload bytes. For any input, nothing panics, nothing outside the
//! packet is read, every packet ends, no call stays open, and nothing is counted that was not there.
#![no_main]

use fuzz::{Packet, connection, each};
use libfuzzer_sys::fuzz_target;
use observer_common::{STATUS_UNKNOWN, health::Counter};
use observer_proto::{
    http2::{self, CLOSE, Http2},
    socket::{self, Connection, HTTP2, LATE, REQUEST, RESPONSE},
};

/// The payload begins after the headers.
const OFFSET: u32 = 40;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes of a frame's header: a call needs one, and so does its end.
const HEAD: u64 = 9;

/// Both halves of a connection's storage, and the peers' positions.
struct Wire {
    c: Box<Connection>,
    h: Box<Http2>,
    packet: Packet,
    next: [u32; 2],
    seen: [u64; 2],
}

impl Wire {
    fn new(leg: u32, late: bool) -> Self {
        // SAFETY: integers and arrays of integers, for which all zero is valid.
        let h = Box::new(unsafe { std::mem::zeroed() });
        // Close to the end of the number space, so that it wraps.
        let next = [u32::MAX - 100; 2];
        let mut wire = Self { c: connection(leg), h, packet: Packet::default(), next, seen: [0; 2] };
        if late {
            wire.c.flags = LATE;
            wire.c.sync = 1;
            return wire;
        }
        for (stream, next) in wire.c.streams.iter_mut().zip(wire.next) {
            stream.anchored = 1;
            stream.next = next;
        }
        wire.deliver(REQUEST, wire.next[REQUEST], PREFACE);
        wire
    }

    fn deliver(&mut self, direction: usize, seq: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).expect("a byte");
        if length == 0 || self.c.flags & socket::ENDED != 0 {
            return;
        }
        self.packet.bytes = [&[0; OFFSET as usize], payload].concat();
        if self.c.streams[direction].anchored == 0 {
            // An older connection's first segment is where its stream begins.
            self.next[direction] = seq;
        }
        let end = seq.wrapping_add(length);
        let new = end.wrapping_sub(self.next[direction]);
        if new.cast_signed() > 0 {
            self.seen[direction] += u64::from(new);
            self.next[direction] = end;
        }
        let (c, h, packet) = (&mut self.c, &mut self.h, &mut self.packet);
        if c.protocol != HTTP2 {
            socket::payload(c, packet, direction, seq, OFFSET, length);
        }
        if c.protocol == HTTP2 {
            let before = packet.turns;
            http2::payload(c, h, packet, direction, seq, OFFSET, length);
            if http2::settle(c, h, direction, false, || 0) {
                each(c, h, packet, direction);
            }
            let turns = packet.turns - before;
            assert!(turns <= 20 * u64::from(length) + 100, "{turns} turns for {length} bytes");
        }
    }

    fn end(&mut self, direction: usize, reset: bool) {
        socket::ending(&mut self.c, &mut self.packet, direction, reset);
        if self.c.flags & LATE != 0 && (reset || self.c.first_end != direction as u32 + 1) {
            self.close();
        }
    }

    fn close(&mut self) {
        if socket::ended(&mut self.c, &mut self.packet) && self.c.protocol == HTTP2 {
            let Self { c, h, packet, .. } = self;
            if http2::settle(c, h, CLOSE, true, || 0) {
                each(c, h, packet, CLOSE);
            }
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((first, mut rest)) = input.split_first() else { return };
    let leg = if first & 1 == 0 { socket::SOURCE } else { socket::DESTINATION };
    let mut wire = Wire::new(leg, first & 2 != 0);
    while let [what, length, after @ ..] = rest {
        let direction = if what & 1 == 0 { REQUEST } else { RESPONSE };
        let payload = &after[..after.len().min(usize::from(*length))];
        rest = &after[payload.len()..];
        let next = wire.next[direction];
        let seq = match what >> 1 & 7 {
            0 => next.wrapping_sub(u32::from(*length)),
            1 => next.wrapping_sub(7),
            2 => next.wrapping_add(13),
            3 => next.wrapping_add(1 << 20),
            _ => next,
        };
        wire.deliver(direction, seq, payload);
        match what >> 4 & 7 {
            6 => wire.end(direction, false),
            7 => wire.end(direction, true),
            _ => {}
        }
    }
    wire.close();
    wire.close();
    if wire.c.protocol == HTTP2 {
        judge(&wire);
    }
});

fn judge(wire: &Wire) {
    let Wire { c: _, h, packet, seen, .. } = wire;
    assert!(h.calls.iter().all(|call| call.id == 0), "a call stays open");
    let further = packet.more.iter().flat_map(|more| &more.calls);
    assert!(further.into_iter().all(|call| call.id == 0), "a further call stays open");
    assert!(packet.calls.is_empty() && h.elsewhere == 0 && h.mapped == 0, "a call stays in the map");
    assert!(h.slots.iter().all(|&word| word == 0), "a slot stays taken");
    let count = |wanted| packet.counts.iter().filter(|(counter, _)| *counter == wanted).map(|(_, by)| by).sum::<u64>();
    let uncounted = [Counter::RequestLostSync, Counter::RequestAbandoned, Counter::RequestNoRoom].map(count);
    let finished = packet.finished.len() as u64;
    let begun = finished + uncounted.iter().sum::<u64>();
    assert!(begun * HEAD <= seen[REQUEST], "{begun} requests in {} bytes", seen[REQUEST]);
    for direction in [REQUEST, RESPONSE] {
        let bytes: u64 = packet.finished.iter().map(|finished| finished.bytes[direction]).sum();
        // A RST_STREAM that is cut short counts as if it were not.
        assert!(bytes <= seen[direction] + 4 * finished, "{bytes} of {} bytes", seen[direction]);
        let messages: u64 = packet.finished.iter().map(|finished| u64::from(finished.messages[direction])).sum();
        assert!(messages <= seen[direction], "{messages} messages in {} bytes", seen[direction]);
    }
    for finished in &packet.finished {
        assert!(matches!(finished.status, 0 | 100..=999 | STATUS_UNKNOWN), "status {}", finished.status);
    }
    let gone = count(Counter::SyncSteps) + count(Counter::SyncUnreadable);
    assert!(gone == 0 && packet.transferred == [0; 2], "{:?}", packet.counts);
}
