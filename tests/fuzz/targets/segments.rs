//! Received segments with arbitrary headers: any sequence and acknowledgement number, flags, lengths, in any order.
//!
//! Input: a byte for the leg, then segments of a header (kind, offset of its numbers, length) and that many payload
//! bytes. Segments that TCP refuses are not read and cost no step; the bytes that TCP accepted are the bytes read; and
//! no segment costs more than reading what has come.
#![no_main]

use fuzz::{Packet, connection};
use libfuzzer_sys::fuzz_target;
use observer_common::Direction;
use observer_proto::{
    ConnLeg, ConnProtocol, close,
    connection::flags::ENDED,
    flow::SEQ_KNOWN,
    http1,
    segment::{ACK, ESTABLISHED, Segment, Socket},
};

/// The payload begins after the headers.
const OFFSET: u32 = 40;
/// What the socket takes behind the next byte.
const WINDOW: u32 = 1 << 16;
/// Steps that a segment without payload may cost.
const IDLE: u64 = 300;

/// State of a receiving TCP.
struct Receiver {
    socket: Socket,
    early: Vec<(u32, u32)>,
}

impl Receiver {
    fn take(&mut self, segment: &Segment) -> bool {
        let (seq, end) = (segment.seq, segment.end());
        let ahead = |number: u32| number.wrapping_sub(self.socket.rcv_nxt).cast_signed();
        let takes = ahead(end) > 0 && ahead(end) <= WINDOW.cast_signed();
        if takes {
            self.early.push((seq, end));
            while let Some(at) = self.early.iter().position(|(from, to)| {
                let next = self.socket.rcv_nxt;
                from.wrapping_sub(next).cast_signed() <= 0 && to.wrapping_sub(next).cast_signed() > 0
            }) {
                self.socket.rcv_nxt = self.early.swap_remove(at).1;
            }
        }
        takes
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((first, mut rest)) = input.split_first() else { return };
    let leg = if first & 1 == 0 { ConnLeg::SOURCE } else { ConnLeg::DESTINATION };
    let direction = if leg == ConnLeg::SOURCE { Direction::Request } else { Direction::Response };
    let mut connection = connection(leg);
    // Close to the end of the number space, so that it wraps.
    let start = u32::MAX - 100;
    for stream in &mut connection.flows {
        (stream.seq_state, stream.next) = (SEQ_KNOWN, start);
    }
    let socket = Socket { state: ESTABLISHED, rcv_nxt: start, snd_una: start, snd_nxt: start, acknowledged: 0 };
    let mut receiver = Receiver { socket, early: Vec::new() };
    let mut packet = Packet::default();
    let mut came = 0;
    while let [what, off, length, after @ ..] = rest {
        let payload = &after[..after.len().min(usize::from(*length))];
        rest = &after[payload.len()..];
        let off = u32::from(*off) << ((what >> 3 & 7) * 3);
        let honest = Segment {
            seq: receiver.socket.rcv_nxt,
            ack: start,
            offset: OFFSET,
            length: u32::try_from(payload.len()).expect("a byte"),
            flags: ACK,
        };
        let segment = match what & 7 {
            0 => Segment { seq: honest.seq.wrapping_add(off), ..honest },
            1 => Segment { seq: honest.seq.wrapping_sub(off), ..honest },
            2 => Segment { ack: honest.ack.wrapping_add(off), ..honest },
            3 => Segment { ack: honest.ack.wrapping_sub(off), ..honest },
            4 => Segment { flags: off.to_le_bytes()[0], ..honest },
            _ => honest,
        };
        let streams = &connection.flows;
        let known = !segment.is_end() && streams[direction].has_seen(segment.end());
        let read = streams[direction].next;
        if known || !receiver.socket.accepts(&segment, read, streams[direction.opposite()].next) {
            continue;
        }
        packet.bytes = [&[0; OFFSET as usize], payload].concat();
        came += u64::from(segment.length);
        let before = packet.steps;
        http1::catch_up(&mut connection, &mut packet, direction, receiver.socket.accepted());
        if segment.length != 0 {
            http1::on_payload(&mut connection, &mut packet, direction, segment.seq, OFFSET, segment.length);
        }
        if close::on_segment_end(&mut connection, &mut packet, direction, &segment) {
            close::on_close(&mut connection, &mut packet);
        }
        let steps = packet.steps - before;
        assert!(steps <= IDLE + 60 * came, "{steps} steps when {came} bytes have come");
        receiver.take(&segment);
        if connection.protocol == ConnProtocol::HTTP2 || connection.flags & ENDED != 0 {
            return;
        }
    }
    http1::catch_up(&mut connection, &mut packet, direction, receiver.socket.accepted());
    let stream = &connection.flows[direction];
    let accepted = receiver.socket.accepted().wrapping_sub(start);
    assert!(stream.next.wrapping_sub(start) >= accepted, "what TCP has taken is seen");
    assert_eq!(u64::from(stream.next.wrapping_sub(start)), stream.seen_bytes, "bytes by sequence number");
    close::on_close(&mut connection, &mut packet);
    assert!(packet.buffers.is_empty(), "no buffer is in use for a connection that has ended");
});
