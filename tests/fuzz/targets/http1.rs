//! A whole connection of arbitrary packets: requests, answers, gaps, repetitions, ends.
//!
//! Input: packets of a header (two bytes: kind, length) and that many payload bytes. For any input, nothing
//! panics, nothing outside the packet is read, and no request is counted with more bytes than there were.
#![no_main]

use fuzz::{Packet, connection};
use libfuzzer_sys::fuzz_target;
use observer_common::Direction;
use observer_proto::{ConnLeg, close, http1};

/// The payload begins after the headers.
const OFFSET: u32 = 40;

fuzz_target!(|input: &[u8]| {
    let Some((first, mut rest)) = input.split_first() else { return };
    let leg = if first & 1 == 0 { ConnLeg::SOURCE } else { ConnLeg::DESTINATION };
    let mut connection = connection(leg);
    let mut packet = Packet::default();
    // Close to the end of the number space, so that it wraps.
    let mut next = [u32::MAX - 100; 2];
    let mut seen = [0_u64; 2];
    for stream in &mut connection.flows {
        stream.seq_state = 1;
        stream.next = next[0];
    }
    while let [what, length, after @ ..] = rest {
        let direction = if what & 1 == 0 { Direction::Request } else { Direction::Response };
        let payload = &after[..after.len().min(usize::from(*length))];
        rest = &after[payload.len()..];
        let seq = match what >> 1 & 7 {
            0 => next[direction].wrapping_sub(u32::from(*length)),
            1 => next[direction].wrapping_sub(7),
            2 => next[direction].wrapping_add(13),
            3 => next[direction].wrapping_add(1 << 20),
            _ => next[direction],
        };
        let length = u32::try_from(payload.len()).expect("a byte");
        if length > 0 {
            packet.bytes = [&[0; OFFSET as usize], payload].concat();
            let end = seq.wrapping_add(length);
            let new = end.wrapping_sub(next[direction]);
            if new.cast_signed() > 0 {
                seen[direction] += u64::from(new);
                next[direction] = end;
            }
            http1::on_payload(&mut connection, &mut packet, direction, seq, OFFSET, length);
            // Segments that wait for those in front of them are not seen yet.
            assert!(connection.flows[direction].seen_bytes <= seen[direction], "bytes by sequence number");
        }
        match what >> 4 & 7 {
            6 => close::on_end(&mut connection, &mut packet, direction, false),
            7 => close::on_end(&mut connection, &mut packet, direction, true),
            _ => {}
        }
    }
    close::on_close(&mut connection, &mut packet);
    close::on_close(&mut connection, &mut packet);
    let [sent, answered] = seen;
    let requests: u64 = packet.finished.iter().map(|finished| finished.bytes[Direction::Request]).sum();
    let responses: u64 = packet.finished.iter().map(|finished| finished.bytes[Direction::Response]).sum();
    assert!(requests <= sent && responses <= answered, "{requests}/{responses} of {sent}/{answered} bytes");
    let (opened, closed) = packet.connections;
    assert!(closed <= opened && opened <= 1, "opened {opened} times, closed {closed} times");
    for (bytes, seen) in packet.transferred.into_iter().zip(seen) {
        assert!(bytes <= seen, "{bytes} of {seen} bytes transferred");
        assert!(packet.finished.is_empty() || bytes == 0, "both HTTP and TCP");
    }
});
