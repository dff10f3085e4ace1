//! Requests of the small mesh as spans, for the tests of every format.

use std::{sync::Arc, time::Duration};

use observer_common::{GRPC_NONE, Leg, Protocol, SeriesKey};

use crate::{
    Inputs, Model, SelfMetrics, Snapshot,
    fixture::{HOSTILE, at, http, key, peers, reading, sidecar, sidecars, workload},
    identity::Role,
    span::{SpanReading, Target},
};

/// A request of span 7 in trace 5 that took 1.5 s from second 100 on.
pub(super) fn request(leg: Leg, protocol: Protocol, status: u16, grpc_status: u64) -> SpanReading {
    let (method, path) = if protocol == Protocol::GRPC { ("POST", "/shop.Cart/Add") } else { ("GET", "/books") };
    let series = SeriesKey { grpc_status, ..key(1, leg, "10.96.0.1:80", protocol, status) };
    SpanReading {
        key: series,
        trace_id: 5,
        parent_id: 7,
        start: at(100),
        duration: Duration::from_millis(1_500),
        bytes: [120, 340],
        target: Target { method: method.into(), path: path.into() },
    }
}

/// As many requests that differ in their parents, and so in their ids, at both legs.
pub(super) fn many(count: u64) -> Vec<SpanReading> {
    let leg = |number: u64| if number.is_multiple_of(3) { Leg::DESTINATION } else { Leg::SOURCE };
    let numbered =
        |number| SpanReading { parent_id: number + 1, ..request(leg(number), Protocol::HTTP, 200, GRPC_NONE) };
    (0..count).map(numbered).collect()
}

/// One request of each kind: with and without failures, with a status and without, as short as one can be.
pub(super) fn every_kind() -> Vec<SpanReading> {
    vec![
        request(Leg::SOURCE, Protocol::HTTP, 200, GRPC_NONE),
        request(Leg::DESTINATION, Protocol::HTTP, 404, GRPC_NONE),
        SpanReading {
            parent_id: u64::MAX,
            trace_id: u128::MAX,
            ..request(Leg::SOURCE, Protocol::HTTP, 503, GRPC_NONE)
        },
        request(Leg::SOURCE, Protocol::HTTP, 0, GRPC_NONE),
        SpanReading { duration: Duration::from_nanos(1), ..request(Leg::DESTINATION, Protocol::GRPC, 200, 0) },
        SpanReading { parent_id: 0, ..request(Leg::SOURCE, Protocol::GRPC, 200, 14) },
        SpanReading {
            target: Target { method: "FETCH".into(), path: "/\"a b\"\u{fffd}|".into() },
            ..request(Leg::SOURCE, Protocol::HTTP, 200, GRPC_NONE)
        },
        SpanReading { target: Target::default(), ..request(Leg::DESTINATION, Protocol::HTTP, 200, GRPC_NONE) },
        SpanReading {
            target: Target { method: String::new(), path: "/\"a b\"\u{fffd}|/".into() },
            ..request(Leg::SOURCE, Protocol::GRPC, 200, 0)
        },
    ]
}

/// Returns these requests as spans of the mesh.
pub(super) fn snapshot(requests: Vec<SpanReading>) -> Arc<Snapshot> {
    snapshot_of(&sidecars(), requests)
}

/// Returns a request as span of a workload with hostile names.
pub(super) fn hostile() -> Arc<Snapshot> {
    let named = workload(HOSTILE, &[("app", HOSTILE), ("service.istio.io/canonical-name", HOSTILE)]);
    snapshot_of(&[sidecar(1, Role::Sidecar, "10.0.0.1", named)], every_kind())
}

fn snapshot_of(running: &[Arc<crate::identity::Sidecar>], requests: Vec<SpanReading>) -> Arc<Snapshot> {
    let mut model = Model::new(at(0), Duration::from_mins(15));
    model.update(Inputs {
        reading: &reading(1, vec![http(requests[0].key, &[1])]),
        running,
        ended: &[],
        components: &[],
        peers: &peers(),
        own: &SelfMetrics::default(),
        closes_interval: false,
    });
    Arc::new(Snapshot::of_spans(at(110), model.spans(requests)))
}
