//! A whole HTTP/2 connection of arbitrary packets behind the preface: streams, responses, gaps, repetitions, ends.
//!
//! Input: a byte for the leg and whether the connection is a preexisting one, which has no preface; then packets of a
//! header (two bytes: what it is, how long) and that many payload bytes. Whatever comes, nothing panics, nothing outside
//! the packet is read, every packet ends, no stream stays open, and nothing is counted that was not there.
#![no_main]

use fuzz::{Packet, connection};
use libfuzzer_sys::fuzz_target;
use observer_common::{Direction, STATUS_UNKNOWN, health::Counter};
use observer_proto::{
    ConnLeg, ConnProtocol, Connection, Peer, close,
    connection::flags::{ENDED, PREEXISTING},
    http1,
    http2::{self, Http2},
};

/// The payload begins after the headers.
const OFFSET: u32 = 40;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes of a frame header: a stream needs one, and so does its end.
const HEADER: u64 = 9;

/// Both halves of a connection's storage, and the peers' positions.
struct Wire {
    c: Box<Connection>,
    h: Box<Http2>,
    packet: Packet,
    next: [u32; 2],
    seen: [u64; 2],
}

impl Wire {
    fn new(leg: ConnLeg, is_preexisting: bool) -> Self {
        // SAFETY: integers and arrays of integers, for which all zero is valid.
        let h = Box::new(unsafe { std::mem::zeroed() });
        // Close to the end of the number space, so that it wraps.
        let next = [u32::MAX - 100; 2];
        let mut wire = Self { c: connection(leg), h, packet: Packet::default(), next, seen: [0; 2] };
        if is_preexisting {
            wire.c.flags = PREEXISTING;
            wire.c.epoch = 1;
            return wire;
        }
        for (flow, next) in wire.c.flows.iter_mut().zip(wire.next) {
            flow.seq_state = 1;
            flow.next = next;
        }
        wire.deliver(Direction::Request, wire.next[Direction::Request], PREFACE);
        wire
    }

    fn deliver(&mut self, direction: Direction, seq: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).expect("a byte");
        if length == 0 || self.c.flags & ENDED != 0 {
            return;
        }
        self.packet.bytes = [&[0; OFFSET as usize], payload].concat();
        if self.c.flows[direction].seq_state == 0 {
            // A preexisting connection's first segment is where its stream begins.
            self.next[direction] = seq;
        }
        let end = seq.wrapping_add(length);
        let new = end.wrapping_sub(self.next[direction]);
        if new.cast_signed() > 0 {
            self.seen[direction] += u64::from(new);
            self.next[direction] = end;
        }
        let (c, h, packet) = (&mut self.c, &mut self.h, &mut self.packet);
        if c.protocol != ConnProtocol::HTTP2 {
            http1::on_payload(c, packet, direction, seq, OFFSET, length);
        }
        if c.protocol == ConnProtocol::HTTP2 {
            let before = packet.steps;
            http2::on_payload(c, h, packet, direction, seq, OFFSET, length);
            let steps = packet.steps - before;
            http2::on_segment_end(c, h, packet, direction, false);
            assert!(steps <= 20 * u64::from(length) + 100, "{steps} steps for {length} bytes");
        }
    }

    fn end(&mut self, direction: Direction, reset: bool) {
        close::on_end(&mut self.c, &mut self.packet, direction, reset);
        if self.c.flags & PREEXISTING != 0 && (reset || self.c.first_end != Peer::sender(direction)) {
            self.close();
        }
    }

    fn close(&mut self) {
        if close::on_close(&mut self.c, &mut self.packet) && self.c.protocol == ConnProtocol::HTTP2 {
            let Self { c, h, packet, .. } = self;
            http2::on_close(c, h, packet);
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((first, mut rest)) = input.split_first() else { return };
    let leg = if first & 1 == 0 { ConnLeg::SOURCE } else { ConnLeg::DESTINATION };
    let mut wire = Wire::new(leg, first & 2 != 0);
    while let [what, length, after @ ..] = rest {
        let direction = if what & 1 == 0 { Direction::Request } else { Direction::Response };
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
    if wire.c.protocol == ConnProtocol::HTTP2 {
        judge(&wire);
    }
});

fn judge(wire: &Wire) {
    let Wire { c: _, h, packet, seen, .. } = wire;
    let table = &h.table;
    assert!(table.streams.iter().all(|stream| stream.id == 0), "a stream stays open");
    let further = packet.more.iter().flat_map(|more| &more.streams);
    assert!(further.into_iter().all(|stream| stream.id == 0), "a further stream stays open");
    assert!(packet.streams.is_empty() && table.overflowed == 0 && table.mapped == 0, "a stream stays in the map");
    assert!(table.slots.iter().all(|&word| word == 0), "a slot stays in use");
    let count = |wanted| packet.counts.iter().filter(|(counter, _)| *counter == wanted).map(|(_, by)| by).sum::<u64>();
    let uncounted = [Counter::RequestDesync, Counter::RequestAbandoned, Counter::RequestNoRoom].map(count);
    let finished = packet.finished.len() as u64;
    let begun = finished + uncounted.iter().sum::<u64>();
    assert!(begun * HEADER <= seen[Direction::Request], "{begun} requests in {} bytes", seen[Direction::Request]);
    for direction in [Direction::Request, Direction::Response] {
        let bytes: u64 = packet.finished.iter().map(|finished| finished.bytes[direction]).sum();
        // A RST_STREAM that is cut short counts as if it were not.
        assert!(bytes <= seen[direction] + 4 * finished, "{bytes} of {} bytes", seen[direction]);
        let messages: u64 = packet.finished.iter().map(|finished| u64::from(finished.messages[direction])).sum();
        assert!(messages <= seen[direction], "{messages} messages in {} bytes", seen[direction]);
    }
    for finished in &packet.finished {
        assert!(matches!(finished.status, 0 | 100..=999 | STATUS_UNKNOWN), "status {}", finished.status);
    }
    let gone = count(Counter::DesyncSteps) + count(Counter::DesyncUnreadable);
    assert!(gone == 0 && packet.transferred == [0; 2], "{:?}", packet.counts);
}
