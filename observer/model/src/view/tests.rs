//! Two rounds of the fixture's mesh, and what is shown of them.

use std::{sync::Arc, time::Duration};

use observer_common::GRPC_NONE;
use serde_json::Value as Json;

use super::{figures::Code, sampled::Sampled, *};
use crate::{
    Inputs, Model, encode,
    exemplar::{Exemplar, Exemplars},
    fixture::{self, at, every_kind, own, peers, reading, sidecars},
    merge::ScrapedFamilies,
    reading::SeriesReading,
    recorded::RecordedFamilies,
};

struct Testbed {
    model: Model,
    view: View,
    columns: usize,
}

impl Testbed {
    fn new() -> Self {
        let mut model = Model::new(at(0), Duration::from_mins(15));
        model.cumulate_cells();
        Self { model, view: View::default(), columns: 0 }
    }

    fn round(&mut self, seconds: u64, series: Vec<SeriesReading>) -> Arc<Snapshot> {
        let snapshot = self.model.update(Inputs {
            reading: &reading(seconds, series),
            running: &sidecars(),
            ended: &[],
            components: &[fixture::istiod(9)],
            peers: &peers(),
            own: &own(),
            closes_interval: false,
        });
        self.columns += usize::from(self.view.record(&snapshot).is_some());
        snapshot
    }

    fn state(&self, snapshot: &Snapshot) -> Json {
        serde_json::to_value(self.view.state(snapshot, "node-1", &[])).unwrap()
    }

    fn history(&self) -> Json {
        serde_json::to_value(self.view.history().document()).unwrap()
    }
}

/// Returns the HTTP series of a snapshot as if they were older than all others.
fn aged(snapshot: &Snapshot) -> Snapshot {
    let mut aged = Snapshot::new(RecordedFamilies::new(at(0)), ScrapedFamilies::default());
    (aged.at, aged.steady) = (snapshot.at, snapshot.steady);
    aged.http.clone_from(&snapshot.http);
    aged.http.iter_mut().for_each(|series| series.created = at(0));
    aged
}

fn edge<'a>(state: &'a Json, from: &str, to: &str) -> &'a Json {
    let edges = state["edges"].as_array().unwrap();
    let found = edges.iter().find(|edge| edge["from"] == from && edge["to"] == to);
    found.unwrap_or_else(|| panic!("no edge from {from} to {to}: {edges:#?}"))
}

const PRODUCTPAGE: &str = "workload/default/productpage-v1";
const REVIEWS: &str = "workload/default/reviews-v2";

#[test]
fn totals_are_those_of_the_snapshot_and_rates_begin_with_the_second_one() {
    let mut testbed = Testbed::new();
    let first = testbed.round(10, every_kind(1));
    let state = testbed.state(&first);
    assert_eq!((&state["node"], &state["window_seconds"]), (&Json::from("node-1"), &Json::Null));
    let called = &edge(&state, PRODUCTPAGE, REVIEWS)["source"];
    assert_eq!(called["totals"]["requests"], 4);
    assert!(called.get("recent").is_none(), "{called:#}");
    let second = testbed.round(12, every_kind(2));
    let state = testbed.state(&second);
    assert_eq!(state["window_seconds"], 2.0);
    let called = &edge(&state, PRODUCTPAGE, REVIEWS)["source"];
    assert_eq!((&called["totals"]["requests"], &called["recent"]["requests"]), (&Json::from(8), &Json::from(2.0)));
    assert_eq!(called["recent"]["codes"]["200"], 2.0);
    // 0, 3, 3 and 70 ms and a quarter of each.
    let latency = &called["recent"]["latency_ms"];
    assert!((3.2..3.3).contains(&latency["p50"].as_f64().unwrap()), "{latency}");
    assert!((69.0..71.5).contains(&latency["p99"].as_f64().unwrap()), "{latency}");
    assert!((19.2..19.3).contains(&latency["mean"].as_f64().unwrap()), "{latency}");
    let failed = edge(&state, PRODUCTPAGE, "workload/default/ratings-v1");
    assert_eq!(failed["protocol"], "grpc");
    assert_eq!(
        (&failed["source"]["recent"]["errors"], &failed["source"]["totals"]["errors"]),
        (&0.5.into(), &2.into())
    );
    assert_eq!(failed["source"]["totals"]["grpc_statuses"]["14"], 2);
    assert_eq!(edge(&state, "unknown", REVIEWS)["security"][0], "mutual_tls");
}

#[test]
fn every_request_of_the_exposition_is_at_one_edge_and_side() {
    let mut testbed = Testbed::new();
    testbed.round(10, every_kind(1));
    let snapshot = testbed.round(11, every_kind(3));
    let state = testbed.state(&snapshot);
    let sum = |family: &str| -> f64 {
        let document = encode::json::document(&snapshot);
        let families = document["families"].as_array().unwrap();
        let found = families.iter().find(|own| own["name"] == family).unwrap();
        let points = found["points"].as_array().unwrap().iter();
        let of_someone = points.filter(|point| point["labels"]["reporter"] != "unknown");
        of_someone.map(|point| point["value"].as_f64().unwrap()).sum()
    };
    for (family, figure) in [
        (&crate::catalogue::REQUESTS, "requests"),
        (&crate::catalogue::TCP_OPENED, "opened"),
        (&crate::catalogue::TCP_SENT_BYTES, "sent_bytes"),
        (&crate::catalogue::REQUEST_MESSAGES, "request_messages"),
    ] {
        let sides = state["edges"].as_array().unwrap().iter().flat_map(|edge| [&edge["source"], &edge["destination"]]);
        let shown: f64 = sides.filter_map(|side| side["totals"][figure].as_f64()).sum();
        assert_eq!(shown, sum(family.prometheus_name), "{figure}");
        assert!(shown > 0.0);
    }
}

#[test]
fn whoever_has_no_workload_is_a_service_or_unknown() {
    let mut testbed = Testbed::new();
    let snapshot = testbed.round(10, every_kind(1));
    let state = testbed.state(&snapshot);
    let node = |id: &str| state["nodes"].as_array().unwrap().iter().find(|node| node["id"] == id).unwrap().clone();
    assert_eq!(node(PRODUCTPAGE)["is_local"], true);
    assert_eq!(node("workload/default/ratings-v1")["is_local"], false);
    assert_eq!(node("unknown")["kind"], "unknown");
    assert_eq!(edge(&state, "workload/default/odd", "unknown")["source"]["totals"]["errors"], 1, "no response");
}

#[test]
fn the_history_has_what_was_counted_in_steps_and_no_more_than_its_bounds() {
    let mut testbed = Testbed::new();
    for second in 0..=10 {
        testbed.round(second, every_kind(second + 1));
    }
    let history = testbed.history();
    let columns = history["columns"].as_array().unwrap();
    assert_eq!((columns.len(), testbed.columns), (2, 2));
    let snapshot = testbed.round(11, every_kind(12));
    let id = edge(&testbed.state(&snapshot), PRODUCTPAGE, REVIEWS)["id"].clone();
    let own = columns[1]["edges"].as_array().unwrap().iter().find(|edge| edge["id"] == id).unwrap();
    assert_eq!(own["requests"], 20, "four a second for five seconds");
    let rows: u64 = own["latency"].as_array().unwrap().iter().map(|pair| pair[1].as_u64().unwrap()).sum();
    assert_eq!(rows, 20);
    for second in 12..500 {
        testbed.round(second, every_kind(second + 1));
    }
    assert_eq!(testbed.history()["columns"].as_array().unwrap().len(), history::MAX_COLUMNS);
}

#[test]
fn a_series_that_returns_with_its_past_was_not_counted_just_now() {
    let mut testbed = Testbed::new();
    testbed.round(1, Vec::new());
    let snapshot = testbed.round(3, every_kind(5));
    assert_eq!(
        edge(&testbed.state(&snapshot), PRODUCTPAGE, REVIEWS)["source"]["recent"]["requests"],
        10.0,
        "it is new"
    );
    let mut view = View::default();
    view.record(&Testbed::new().round(2, Vec::new()));
    // The same series, which the model has known for longer than the view has looked.
    let old = aged(&snapshot);
    view.record(&old);
    let state = serde_json::to_value(view.state(&old, "node-1", &[])).unwrap();
    let old = &edge(&state, PRODUCTPAGE, REVIEWS)["source"];
    assert_eq!(old["totals"]["requests"], 20);
    assert!(old.get("recent").is_none(), "{old:#}");
}

#[test]
fn the_slowest_and_the_last_failed_sampled_request_are_at_their_edge() {
    let [_, snapshot] = fixture::snapshots();
    let mut view = View::default();
    view.record(&snapshot);
    let state = serde_json::to_value(view.state(&snapshot, "node-1", &[])).unwrap();
    let sampled = &edge(&state, PRODUCTPAGE, REVIEWS)["source"]["sampled"];
    let slowest = &sampled["slowest"];
    assert_eq!(slowest["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!((&slowest["duration_ms"], &slowest["code"]), (&70.25.into(), &"200".into()));
    assert!(sampled.get("failed").is_none(), "{sampled}");
    assert!(edge(&state, "unknown", REVIEWS)["destination"].get("sampled").is_none());

    let exemplars = |seconds| Exemplars::default().with(&[exemplar(4, seconds)]).unwrap();
    let mut own = Sampled::default();
    for (http, seconds) in [(503, 5), (200, 9), (500, 7), (0, 6)] {
        own.add(Code { http, grpc: GRPC_NONE }, &exemplars(seconds));
    }
    let view = serde_json::to_value(own.view()).unwrap();
    assert_eq!((&view["slowest"]["code"], &view["failed"]["code"]), (&"200".into(), &"500".into()), "{view}");
}

fn exemplar(bucket: u32, seconds: u64) -> Exemplar {
    Exemplar { bucket, trace_id: 7, span_id: seconds, microseconds: 1_500, at: at(seconds) }
}

#[test]
fn processes_and_what_is_not_seen_are_listed() {
    let mut testbed = Testbed::new();
    testbed.round(10, every_kind(1));
    let snapshot = testbed.round(20, every_kind(2));
    let state = testbed.state(&snapshot);
    let processes = state["processes"].as_array().unwrap();
    assert!(processes.iter().any(|process| process["pod"] == "productpage-v1-0" && process["resident_bytes"] == 52e6));
    let unseen = state["unseen"].as_array().unwrap();
    assert!(unseen.iter().any(|own| own["labels"]["reason"] == "series_full" && own["value"] == 5.0), "{unseen:?}");
    assert!(unseen.iter().all(|own| own["value"].as_f64().unwrap() > 0.0 && own["help"].is_string()));
    assert!(state["observer"]["resident_bytes"] == 12e6 && state["observer"]["families"].as_array().unwrap().len() > 5);
    assert!(state["findings"].as_array().unwrap().iter().all(|finding| finding["level"] != Json::Null));
}
