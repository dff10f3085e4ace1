//! The first bytes of a peer's connection, in segments of any size.
//!
//! Input: a byte for the size of the segments, then the stream. For any input it terminates, nothing outside the packet
//! is read, and the segmentation does not change the result, unless parsing was given up.
#![no_main]

use fuzz::{Packet, connection};
use libfuzzer_sys::fuzz_target;
use observer_common::SECURITY_UNKNOWN;
use observer_proto::{
    segment::{ACK, Segment},
    socket::{INBOUND, REQUEST},
    tls,
};

const OFFSET: u32 = 40;

fuzz_target!(|input: &[u8]| {
    let Some((size, stream)) = input.split_first() else { return };
    let whole = finding(stream, stream.len().max(1));
    let cut = finding(stream, usize::from(*size).max(1));
    let open = |finding| [0, u32::from(SECURITY_UNKNOWN) + 1].contains(&finding);
    assert!(whole == cut || open(whole) || open(cut), "whole: {whole}, in pieces of {size}: {cut}");
});

fn finding(stream: &[u8], size: usize) -> u32 {
    let mut connection = connection(INBOUND);
    for (number, segment) in stream.chunks(size).enumerate() {
        let mut packet = Packet { bytes: [&[0; OFFSET as usize], segment].concat(), ..Packet::default() };
        let length = u32::try_from(segment.len()).expect("inputs are small");
        let seq = u32::try_from(number * size).expect("inputs are small");
        let segment = Segment { seq, ack: 0, offset: OFFSET, length, flags: ACK };
        tls::payload(&mut connection, &mut packet, seq, &segment, |connection, packet| {
            (1..tls::STEPS).any(|_| tls::turn(connection, packet))
        });
        assert!(connection.opening != 0 || connection.streams[REQUEST].next == seq + length, "nothing is missing");
        if connection.opening != 0 {
            break;
        }
    }
    connection.opening
}
