//! Span lines. Wavefront's own decoder judges the golden ones in the end-to-end tests.

use observer_common::{GRPC_NONE, Leg, Protocol};

use super::*;
use crate::{
    encode::spans::fixture::{every_kind, hostile, many, request, snapshot},
    fixture::assert_golden,
};

fn encoder(tags: &[(&str, &str)]) -> WavefrontSpanEncoder {
    let tags = tags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    WavefrontSpanEncoder::new(tags.collect(), "node-1").unwrap()
}

fn text(encoder: &mut WavefrontSpanEncoder, snapshot: &Arc<Snapshot>) -> String {
    let batches = encoder.encode(snapshot.clone());
    batches.map(|batch| String::from_utf8(batch.body.to_vec()).unwrap()).collect()
}

#[test]
fn a_line_has_what_the_service_groups_by_and_the_ids_as_uuids() {
    let snapshot = snapshot(vec![request(Leg::SOURCE, Protocol::HTTP, 503, GRPC_NONE)]);
    let line = text(&mut encoder(&[]), &snapshot);
    assert!(line.starts_with("\"GET\" source=\"node-1\" ") && line.ends_with(" 1700000100000 1500\n"), "{line}");
    for tag in [
        "\"traceId\"=\"00000000-0000-0000-0000-000000000005\"",
        "\"parent\"=\"00000000-0000-0000-0000-000000000007\"",
        "\"spanId\"=\"00000000-0000-0000-",
        "\"application\"=\"default\"",
        "\"service\"=\"productpage\"",
        "\"cluster\"=\"c1\"",
        "\"shard\"=\"none\"",
        "\"span.kind\"=\"client\"",
        "\"component\"=\"mesh-observer\"",
        "\"error\"=\"true\"",
        "\"http.response.status_code\"=\"503\"",
    ] {
        assert!(line.contains(tag), "{tag}: {line}");
    }
}

#[test]
fn configured_tags_replace_all_but_what_identifies_a_span() {
    let mut encoder = encoder(&[("application", "shop"), ("spanId", "x"), ("span.kind", "x"), ("team", "a")]);
    let line = text(&mut encoder, &snapshot(vec![request(Leg::SOURCE, Protocol::HTTP, 200, GRPC_NONE)]));
    for tag in ["\"application\"=\"shop\"", "\"team\"=\"a\"", "\"span.kind\"=\"client\""] {
        assert!(line.contains(tag), "{tag}: {line}");
    }
    assert!(!line.contains("\"x\"") && !line.contains("\"error\""), "{line}");
}

#[test]
fn every_kind_of_request_and_hostile_names_are_the_golden_lines() {
    let mut encoder = encoder(&[("team", "a")]);
    let lines = [snapshot(every_kind()), hostile()].map(|snapshot| text(&mut encoder, &snapshot)).concat();
    assert_eq!(lines.matches('\n').count(), 2 * every_kind().len());
    assert_golden("spans.wavefront-spans", &lines);
}

#[test]
fn a_long_value_is_cut_where_a_character_ends() {
    assert_eq!(shortened(&"v".repeat(130)), "v".repeat(128));
    assert_eq!(shortened(&"😀".repeat(65)), "😀".repeat(64));
    assert_eq!(shortened("v"), "v");
}

#[test]
fn many_spans_are_many_batches_and_each_splits_in_halves() {
    let snapshot = snapshot(many(3_000));
    let mut encoder = encoder(&[]);
    let batches: Vec<_> = encoder.encode(snapshot).collect();
    assert!(batches.len() > 1 && batches.iter().map(|batch| batch.points).sum::<u64>() == 3_000);
    for batch in &batches {
        let (first, second) = batch.split().unwrap();
        assert_eq!((first.points + second.points, first.form), (batch.points, Form::WavefrontSpans));
        assert_eq!([first.body, second.body].concat(), batch.body);
    }
}

#[test]
fn a_name_that_is_no_source_is_refused() {
    assert!(WavefrontSpanEncoder::new(BTreeMap::new(), "a node").is_err());
}
