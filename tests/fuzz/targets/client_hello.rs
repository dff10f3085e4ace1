//! The first bytes of a peer's connection, in segments of any size.
//!
//! Input: a byte for the size of the segments, then the stream. Whatever comes, it ends, nothing outside the packet is
//! read, and the segmentation does not change the finding, unless it was given up.
#![no_main]

use fuzz::{Packet, connection};
use libfuzzer_sys::fuzz_target;
use observer_common::{Direction, Security};
use observer_proto::{
    ConnLeg, OptionU32,
    segment::{ACK, Segment},
    tls,
};

const OFFSET: u32 = 40;

fuzz_target!(|input: &[u8]| {
    let Some((size, stream)) = input.split_first() else { return };
    let whole = finding(stream, stream.len().max(1));
    let cut = finding(stream, usize::from(*size).max(1));
    let open = |finding| [OptionU32::NONE, OptionU32::some(Security::UNKNOWN.0.into())].contains(&finding);
    assert!(whole == cut || open(whole) || open(cut), "whole: {whole:?}, in pieces of {size}: {cut:?}");
});

fn finding(stream: &[u8], size: usize) -> OptionU32 {
    let mut connection = connection(ConnLeg::INBOUND);
    for (number, segment) in stream.chunks(size).enumerate() {
        let mut packet = Packet { bytes: [&[0; OFFSET as usize], segment].concat(), ..Packet::default() };
        let length = u32::try_from(segment.len()).expect("inputs are small");
        let seq = u32::try_from(number * size).expect("inputs are small");
        let segment = Segment { seq, ack: 0, offset: OFFSET, length, flags: ACK };
        tls::on_payload(&mut connection, &mut packet, seq, &segment);
        let is_known = connection.peer_security.is_some();
        assert!(is_known || connection.flows[Direction::Request].next == seq + length, "nothing is missing");
        if is_known {
            break;
        }
    }
    connection.peer_security
}
