//! A peer's security as its first segments show it, in whatever order they come.

mod fixture;

use fixture::Wire;
use observer_common::{Direction, Security};
use observer_proto::{
    ConnLeg, OptionU32,
    segment::{ACK, Segment},
    tls,
};

/// A ClientHello with a key share as large as those of post-quantum exchanges (RFC 8446 section 4.1.2), then another record.
fn hello(protocol: &str) -> Vec<u8> {
    hello_behind(&extension(51, &[9; 1_200]), protocol)
}

/// The application protocols behind other extensions.
fn hello_behind(extensions: &[u8], protocol: &str) -> Vec<u8> {
    let name = [&[u8::try_from(protocol.len()).unwrap()], protocol.as_bytes()].concat();
    let protocols = [&u16::try_from(name.len()).unwrap().to_be_bytes()[..], &name].concat();
    let extensions = [extensions, &extension(16, &protocols)].concat();
    let length = u16::try_from(extensions.len()).unwrap().to_be_bytes();
    let body = [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 1], &[1, 0], &length, &extensions].concat();
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    let message = [&[1], &length[1..], &body].concat();
    let length = u16::try_from(message.len()).unwrap().to_be_bytes();
    [&[0x16, 3, 1][..], &length, &message, &[0x14, 3, 3, 0, 1, 1]].concat()
}

fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &u16::try_from(body.len()).unwrap().to_be_bytes(), body].concat()
}

/// The finding, once the pieces `[from, to)` came in this order; up to where TCP has taken everything is given with each.
fn finding(stream: &[u8], pieces: &[(usize, usize, usize)]) -> OptionU32 {
    let mut wire = Wire::new(ConnLeg::INBOUND);
    let base = wire.base[Direction::Request];
    for &(from, to, accepted) in pieces {
        if wire.c.peer_security.is_some() {
            break;
        }
        wire.env.packet = [&[0xee; 52], &stream[from..to]].concat();
        let seq = base.wrapping_add(from as u32);
        let segment = Segment { seq, ack: 0, offset: 52, length: (to - from) as u32, flags: ACK };
        tls::on_payload(&mut wire.c, &mut wire.env, base.wrapping_add(accepted as u32), &segment);
    }
    assert!(wire.c.peer_security.is_none() || wire.env.buffers.is_empty());
    wire.c.peer_security
}

const fn found(security: Security) -> OptionU32 {
    OptionU32::some(security.0 as u32)
}

#[test]
fn it_is_read_in_order_however_it_comes() {
    for (protocol, expected) in [("istio-peer-exchange", Security::MUTUAL_TLS), ("h2", Security::NONE)] {
        let stream = hello(protocol);
        let whole = stream.len();
        assert_eq!(finding(&stream, &[(0, whole, 0)]), found(expected));
        for cut in [1, 5, 43, 60, 300, 1_000, whole - 8, whole - 6] {
            let halves = [(0, cut, 0), (cut, whole, cut)];
            assert_eq!(finding(&stream, &halves), found(expected), "{protocol} cut at {cut}");
            let swapped = [(cut, whole, 0), (0, cut, 0)];
            assert_eq!(finding(&stream, &swapped), found(expected), "{protocol} cut at {cut}, swapped");
            let third = cut + (whole - cut) / 2;
            let backwards = [(third, whole, 0), (cut, third, 0), (0, cut, 0)];
            assert_eq!(finding(&stream, &backwards), found(expected), "{protocol} cut at {cut} and {third}, backwards");
        }
    }
}

/// The hooks did not see its first half, which TCP has: the record after it is not its beginning.
#[test]
fn what_was_not_seen_is_unknown() {
    let stream = hello("istio");
    let whole = stream.len();
    assert_eq!(finding(&stream, &[(1_000, whole, 1_000)]), found(Security::UNKNOWN));
    assert_eq!(finding(&stream, &[(0, 500, 0), (whole - 6, whole, whole - 6)]), found(Security::UNKNOWN));
}

#[test]
fn what_is_missing_is_waited_for() {
    let stream = hello("istio");
    assert_eq!(finding(&stream, &[(stream.len() - 6, stream.len(), 0)]), OptionU32::NONE);
    assert_eq!(finding(&stream, &[(0, 500, 0), (1_000, 1_100, 500)]), OptionU32::NONE);
}

/// Nobody's clients send hundreds of extensions: what comes with a segment is read as far as the steps go, then given up.
#[test]
fn extensions_without_end_are_given_up() {
    let [few, many] = [50, 300].map(|count| hello_behind(&extension(0xfafa, &[]).repeat(count), "istio"));
    assert_eq!(finding(&few, &[(0, few.len(), 0)]), found(Security::MUTUAL_TLS));
    let whole = many.len();
    for cut in [600, 800, whole - 6] {
        let first = finding(&many, &[(0, cut, 0), (cut, whole, cut)]);
        assert!([found(Security::UNKNOWN), found(Security::MUTUAL_TLS)].contains(&first), "cut at {cut}: {first:?}");
    }
    assert_eq!(finding(&many, &[(0, whole, 0)]), found(Security::UNKNOWN));
}
