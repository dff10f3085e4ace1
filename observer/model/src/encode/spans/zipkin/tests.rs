//! Arrays, read again by the JSON parser.

use observer_common::{GRPC_NONE, Leg, Protocol};

use super::*;
use crate::{
    encode::spans::fixture::{every_kind, hostile, many, request, snapshot},
    fixture::{HOSTILE, assert_golden},
};

fn encode(snapshot: &Arc<Snapshot>) -> Vec<Batch> {
    ZipkinEncoder::new("node-1").encode(snapshot.clone()).collect()
}

fn spans(batch: &Batch) -> Vec<Value> {
    let spans: Vec<Value> = serde_json::from_slice(&batch.body).unwrap();
    assert_eq!((spans.len() as u64, batch.form), (batch.points, Form::Zipkin));
    spans
}

#[test]
fn a_client_span_has_every_field_that_zipkin_has_for_it() {
    let batches = encode(&snapshot(vec![request(Leg::SOURCE, Protocol::HTTP, 503, GRPC_NONE)]));
    let [span] = &*spans(&batches[0]) else { panic!("one span") };
    for (field, value) in [
        ("traceId", json!("00000000000000000000000000000005")),
        ("parentId", json!("0000000000000007")),
        ("kind", json!("CLIENT")),
        ("name", json!("get")),
        ("timestamp", json!(1_700_000_100_000_000_u64)),
        ("duration", json!(1_500_000)),
        ("localEndpoint", json!({ "serviceName": "productpage.default" })),
        ("remoteEndpoint", json!({ "serviceName": "reviews.default" })),
    ] {
        assert_eq!(span[field], value, "{field}");
    }
    assert!(span["id"].as_str().is_some_and(|id| id.len() == 16 && id != "0000000000000000"), "{span}");
    for (tag, value) in [
        ("error", "503"),
        ("http.request.method", "GET"),
        ("url.path", "/books"),
        ("http.response.status_code", "503"),
        ("http.request.size", "120"),
        ("http.response.size", "340"),
        ("istio.namespace", "default"),
        ("k8s.node.name", "node-1"),
    ] {
        assert_eq!(span["tags"][tag], value, "{tag}");
    }
}

#[test]
fn every_kind_of_request_and_hostile_names_are_the_golden_ones() {
    let mut text = String::new();
    let [known, hostile] = [snapshot(every_kind()), hostile()];
    for batch in [encode(&known), encode(&hostile)].into_iter().flatten() {
        for span in spans(&batch) {
            // Tags are texts, and the shortest duration is a microsecond.
            assert!(span["tags"].as_object().unwrap().values().all(Value::is_string), "{span}");
            assert!(span["duration"].as_u64().unwrap() >= 1, "{span}");
            text += &(span.to_string() + "\n");
        }
    }
    assert_golden("spans.zipkin", &text);
    let named = spans(&encode(&hostile)[0]);
    assert!(named.iter().any(|span| span["tags"]["istio.canonical_service"] == HOSTILE), "{named:?}");
}

#[test]
fn many_spans_are_many_batches_and_each_splits_in_halves() {
    let batches = encode(&snapshot(many(6_000)));
    assert!(batches.len() > 1 && batches.iter().all(|batch| batch.body.len() < 2 * MAX_BATCH_BYTES));
    assert_eq!(batches.iter().map(|batch| spans(batch).len()).sum::<usize>(), 6_000);
    for batch in &batches {
        let (first, second) = batch.split().unwrap();
        assert_eq!([spans(&first), spans(&second)].concat(), spans(batch));
    }
    let one = encode(&snapshot(many(1))).remove(0);
    assert_eq!(one.split(), None);
    // From a disk that was written to by somebody else.
    for body in ["", "[", "{}", "[1,2]"] {
        assert_eq!(Batch { body: body.into(), points: 3, ..one.clone() }.split(), None, "{body}");
    }
}
