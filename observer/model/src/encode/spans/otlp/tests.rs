//! Requests of spans, decoded by messages of their own.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use observer_common::{GRPC_NONE, Leg, Protocol};
use prost::Message;

use super::*;
use crate::{
    encode::spans::fixture::{many, request, snapshot},
    fixture::at,
};

/// The messages of `trace/v1/trace.proto`, as far as they are used.
#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, repeated, tag = "2")]
    spans: Vec<ProtoSpan>,
}

#[derive(Clone, PartialEq, Message)]
struct ProtoSpan {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start: u64,
    #[prost(fixed64, tag = "8")]
    end: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
    #[prost(message, optional, tag = "15")]
    status: Option<Status>,
    #[prost(fixed32, tag = "16")]
    flags: u32,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "3")]
    code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(string, optional, tag = "1")]
    text: Option<String>,
    #[prost(int64, optional, tag = "3")]
    integer: Option<i64>,
}

fn attributes(pairs: &[KeyValue]) -> BTreeMap<&str, String> {
    let value = |value: &AnyValue| value.text.clone().or_else(|| value.integer.map(|number| number.to_string()));
    pairs.iter().map(|own| (&*own.key, own.value.as_ref().and_then(value).expect("a value"))).collect()
}

fn encode(snapshot: &Arc<Snapshot>) -> Vec<Batch> {
    OtlpSpanEncoder::new(vec![("k8s.cluster.name".to_owned(), "c9".to_owned())], "node-1")
        .encode(snapshot.clone())
        .collect()
}

fn spans(batch: &Batch) -> Vec<ProtoSpan> {
    let request = Request::decode(&*batch.body).unwrap();
    let spans: Vec<_> =
        request.resource_spans.into_iter().flat_map(|own| own.scope_spans).flat_map(|own| own.spans).collect();
    assert_eq!((spans.len() as u64, batch.form), (batch.points, Form::OtlpSpans));
    spans
}

fn nanoseconds_of(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64
}

#[test]
fn a_client_span_has_the_workload_as_its_resource_and_what_was_counted_as_attributes() {
    let snapshot = snapshot(vec![request(Leg::SOURCE, Protocol::HTTP, 503, GRPC_NONE)]);
    let batches = encode(&snapshot);
    let decoded = Request::decode(&*batches[0].body).unwrap();
    let resource = attributes(&decoded.resource_spans[0].resource.as_ref().unwrap().attributes);
    for (name, value) in [
        ("service.name", "productpage"),
        ("service.namespace", "default"),
        ("k8s.node.name", "node-1"),
        ("k8s.cluster.name", "c9"),
    ] {
        assert_eq!(resource.get(name).map(String::as_str), Some(value), "{resource:?}");
    }
    let [span] = &*spans(&batches[0]) else { panic!("one span") };
    assert_eq!((&*span.trace_id, &*span.parent_span_id), (&5u128.to_be_bytes()[..], &7u64.to_be_bytes()[..]));
    assert!(span.span_id.len() == 8 && span.span_id != [0; 8] && span.span_id != span.parent_span_id);
    assert_eq!((&*span.name, span.kind, span.flags), ("GET", 3, 0x301));
    assert_eq!((span.start, span.end), (nanoseconds_of(at(100)), nanoseconds_of(at(100)) + 1_500_000_000));
    assert_eq!(span.status, Some(Status { code: 2 }));
    let own = attributes(&span.attributes);
    for (name, value) in [
        ("http.request.method", "GET"),
        ("url.path", "/books"),
        ("http.response.status_code", "503"),
        ("error.type", "503"),
        ("http.request.size", "120"),
        ("http.response.size", "340"),
        ("istio.namespace", "default"),
    ] {
        assert_eq!(own.get(name).map(String::as_str), Some(value), "{own:?}");
    }
}

#[test]
fn what_a_client_does_wrong_is_no_failure_of_the_server() {
    let failed = |leg, protocol, status, grpc_status| {
        spans(&encode(&snapshot(vec![request(leg, protocol, status, grpc_status)]))[0])[0].status.is_some()
    };
    for (protocol, status, grpc_status, client, server) in [
        (Protocol::HTTP, 200, GRPC_NONE, false, false),
        (Protocol::HTTP, 404, GRPC_NONE, true, false),
        (Protocol::HTTP, 500, GRPC_NONE, true, true),
        (Protocol::HTTP, 0, GRPC_NONE, true, true),
        (Protocol::GRPC, 200, 0, false, false),
        (Protocol::GRPC, 200, 5, true, false),
        (Protocol::GRPC, 200, 14, true, true),
    ] {
        let found = [Leg::SOURCE, Leg::DESTINATION].map(|leg| failed(leg, protocol, status, grpc_status));
        assert_eq!(found, [client, server], "{status} {grpc_status}");
    }
}

#[test]
fn many_spans_are_many_batches_and_each_splits_in_halves() {
    let snapshot = snapshot(many(6_000));
    let batches = encode(&snapshot);
    assert!(batches.len() > 1 && batches.iter().all(|batch| batch.body.len() < 2 * MAX_BATCH_BYTES));
    let all: Vec<_> = batches.iter().flat_map(spans).collect();
    let ids: std::collections::BTreeSet<_> = all.iter().map(|span| span.span_id.clone()).collect();
    assert_eq!((all.len(), ids.len()), (6_000, 6_000));
    for batch in &batches {
        let (first, second) = batch.split().unwrap();
        assert_eq!([spans(&first), spans(&second)].concat(), spans(batch));
    }
    let one = encode(&Arc::new(Snapshot::of_spans(at(1), snapshot.spans[..1].to_vec())));
    assert!(one[0].split().is_none());
    assert!(encode(&Arc::new(Snapshot::of_spans(at(1), Vec::new()))).is_empty());
}
