//! The kernel's HTTP/2 reading on connections between a client and a server that nobody here wrote: what they said to
//! each other, cut in any way, yields the requests they made.

mod fixture;

use fixture::{
    Wire,
    frames::meter_both,
    library::{Exchange, Setup, record},
};
use observer_common::{Direction, GRPC_NONE, Protocol, health::Counter};
use observer_proto::{ConnLeg, FinishedRequest};
use proptest::{collection::vec, prelude::*};

/// What is compared: status, gRPC status, protocol, bytes, messages.
type Outcome = (u16, u64, Protocol, [u64; 2], [u32; 2]);

fn outcome(f: &FinishedRequest) -> Outcome {
    assert_eq!(f.outcome, Counter::RequestOk as u16);
    (f.status, f.grpc_status, f.protocol, f.bytes, f.messages)
}

/// Has exchanges made and read, cut as given.
fn check(exchanges: &[Exchange], setup: &Setup, cuts: &[usize]) {
    let (written, ids) = record(exchanges, setup);
    let mut streams = [Vec::new(), Vec::new()];
    let mut wire = Wire::new(ConnLeg::DESTINATION);
    let mut cuts = cuts.iter().cycle();
    for (direction, bytes) in &written {
        let stream = &mut streams[*direction];
        let mut from = stream.len();
        stream.extend_from_slice(bytes);
        while from < stream.len() {
            let to = (from + cuts.next().unwrap()).min(stream.len());
            wire.deliver(*direction, stream, from, to);
            from = to;
        }
    }
    assert_eq!(wire.open(), 0);
    wire.close();
    let meters = meter_both(&written, Direction::Request);
    let expected = |(exchange, id): (&Exchange, &u32)| {
        let bytes = meters[id];
        let messages =
            [Direction::Request, Direction::Response].map(|direction| exchange.bodies[direction].len() as u32);
        match exchange.grpc {
            Some(grpc) => (exchange.status, grpc.into(), Protocol::GRPC, bytes, messages),
            None => (exchange.status, GRPC_NONE, Protocol::HTTP, bytes, [0; 2]),
        }
    };
    let mut expected: Vec<Outcome> = exchanges.iter().zip(&ids).map(expected).collect();
    let mut finished: Vec<Outcome> = wire.env.finished.iter().map(outcome).collect();
    expected.sort_unstable();
    finished.sort_unstable();
    assert_eq!(finished, expected, "{:?}", wire.env.counts);
    assert_eq!(wire.env.counts, [(Counter::ConnectionHttp2, 1)]);
}

fn exchange() -> impl Strategy<Value = Exchange> {
    let body = || vec(prop_oneof![0..40usize, 0..3_000usize, Just(20_000)], 0..4);
    let status = prop_oneof![Just(200u16), Just(204), 200..1000u16];
    (prop::option::of(0..17u16), status, body(), body(), "[ -~]{0,80}", 0..2usize).prop_map(
        |(grpc, status, asked, answered, field, interim)| Exchange {
            // A gRPC stream is answered by 200 and whatever its status is.
            status: if grpc.is_some() { 200 } else { status },
            grpc,
            // A body that is forbidden is not written.
            bodies: [asked, if status == 204 || status == 304 { Vec::new() } else { answered }],
            field,
            interim,
        },
    )
}

fn setup() -> impl Strategy<Value = Setup> {
    let table = || prop_oneof![Just(0u32), Just(60), Just(4_096), Just(65_536)];
    (table(), table(), 1..50usize, prop_oneof![Just(64usize), Just(4_096), Just(1 << 20)])
        .prop_map(|(asked, answered, concurrency, pipe)| Setup { tables: [asked, answered], concurrency, pipe })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_connection_yields_the_requests_that_were_made(
        exchanges in vec(exchange(), 1..60), setup in setup(), cuts in vec(prop_oneof![1..20usize, 1..1_500usize, Just(65_000)], 1..40),
    ) {
        check(&exchanges, &setup, &cuts);
    }
}

#[test]
fn ten_thousand_distinct_values_leave_every_status_readable() {
    for table in [0, 300, 4_096, 65_536] {
        let exchange = |number: u16| Exchange {
            status: 200 + number % 800,
            field: format!("value number {number}"),
            ..Exchange::default()
        };
        let exchanges: Vec<Exchange> = (0..10_000).map(exchange).collect();
        check(&exchanges, &Setup { tables: [table; 2], concurrency: 100, pipe: 1 << 20 }, &[1_448]);
    }
}
