//! Lines of whole reports, read back by a decoder of its own.

use super::*;
use crate::{
    discovery::{Role, Workload},
    model::{Inputs, Model, Own, fixture, labels::Peers},
};
use observer_ebpf::{LEG_SOURCE, PROTOCOL_HTTP, PROTOCOL_TCP};
use proptest::prelude::*;
use std::collections::{BTreeMap, HashSet};

#[derive(Clone, Debug, PartialEq)]
struct Point {
    name: String,
    value: f64,
    seconds: u64,
    source: String,
    tags: BTreeMap<String, String>,
}

/// A decoder of its own, written from the rules of the receivers' tokeniser and validation, taking the strictest of
/// each: whitespace parts tokens, `=` is a token, a backslash escapes only the quote that is open.
fn decode(line: &str) -> Result<Point, String> {
    if line.contains('\u{4}') || line.len() > 32 * 1024 {
        return Err("line refused whole".to_owned());
    }
    let mut tokens = Vec::new();
    let mut rest = line.chars().peekable();
    loop {
        while rest.next_if(|c| c.is_whitespace()).is_some() {}
        let Some(first) = rest.next() else { break };
        let mut token = String::new();
        match first {
            '=' => token.push('='),
            quote @ ('"' | '\'') => loop {
                match rest.next().ok_or("unmatched quote")? {
                    end if end == quote => break,
                    '\\' if rest.peek() == Some(&quote) => token.extend(rest.next()),
                    other => token.push(other),
                }
            },
            other => {
                token.push(other);
                while let Some(more) = rest.next_if(|c| !matches!(c, ' ' | '\t' | '=')) {
                    token.push(more);
                }
            }
        }
        tokens.push((token, matches!(first, '"' | '\'')));
    }
    let mut tokens = tokens.into_iter();
    let mut next = |what: &str| tokens.next().ok_or(format!("{what} is missing"));
    let (name, _) = next("name")?;
    let allowed = |text: &str| text.chars().all(|c| matches!(c, 'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '_' | '.'));
    if name.is_empty() || name.len() > 256 || !allowed(&name) || !name.contains('.') {
        return Err(format!("name {name:?}"));
    }
    let (value, quoted) = next("value")?;
    if quoted || !value.chars().all(|c| matches!(c, '0'..='9' | '.' | '-')) {
        return Err(format!("value {value:?}"));
    }
    let (seconds, quoted) = next("timestamp")?;
    if quoted || seconds.len() != 10 {
        return Err(format!("timestamp {seconds:?}"));
    }
    let (mut source, mut tags) = (None, BTreeMap::new());
    let mut previous = String::new();
    while let Ok((key, _)) = next("key") {
        if next("=")? != ("=".to_owned(), false) {
            return Err(format!("no = after {key:?}"));
        }
        let (value, _) = next("value")?;
        if value.trim().is_empty() || matches!(value.as_str(), "-" | "/") {
            return Err(format!("blank value of {key:?}"));
        }
        if key == "source" {
            source = Some(value);
            continue;
        }
        if key.is_empty() || key.len() > 64 || !allowed(&key) || key == "host" {
            return Err(format!("key {key:?}"));
        }
        if key.encode_utf16().count() + value.encode_utf16().count() > 254 {
            return Err(format!("tag {key:?} is too long"));
        }
        if key <= previous {
            return Err(format!("key {key:?} after {previous:?}"));
        }
        previous.clone_from(&key);
        tags.insert(key, value);
    }
    if tags.len() > 20 {
        return Err(format!("{} tags", tags.len()));
    }
    Ok(Point {
        name,
        value: value.parse().map_err(|error| format!("{value:?}: {error}"))?,
        seconds: seconds.parse().map_err(|error| format!("{seconds:?}: {error}"))?,
        source: source.filter(|own| own.len() <= 128 && allowed(own)).ok_or("source is missing")?,
        tags,
    })
}

fn text(lines: &mut Lines, snapshot: &Arc<Snapshot>) -> String {
    let batches: Vec<Batch> = lines.encode(snapshot.clone()).collect();
    for batch in &batches {
        assert_eq!(batch.text.iter().filter(|byte| **byte == b'\n').count() as u64, batch.points);
    }
    batches.iter().map(|batch| std::str::from_utf8(&batch.text).unwrap()).collect()
}

fn points(text: &str) -> Vec<Point> {
    text.split_terminator('\n').map(|line| decode(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

fn named<'a>(points: &'a [Point], name: &str) -> Vec<&'a Point> {
    points.iter().filter(|point| point.name == name).collect()
}

fn snapshot(app: &str, workload: &str) -> Arc<Snapshot> {
    let workload = Workload {
        name: Some(workload.to_owned()),
        labels: [("app".to_owned(), app.to_owned())].into(),
        ..Workload::default()
    };
    let sidecars = [fixture::sidecar(1, Role::Sidecar, "10.0.0.1", Arc::new(workload))];
    let series = vec![
        fixture::tcp(fixture::key(1, LEG_SOURCE, "10.0.0.9:1", PROTOCOL_TCP, 0), 1, 0, 5, 0),
        fixture::http(fixture::key(1, LEG_SOURCE, "10.0.0.9:1", PROTOCOL_HTTP, 200), &[1]),
    ];
    Model::new(fixture::at(0), Duration::ZERO).update(Inputs {
        reading: &fixture::reading(1, series),
        running: &sidecars,
        ended: &[],
        peers: &Arc::new(Peers::default()),
        own: &Own::default(),
        closes_interval: true,
    })
}

#[test]
fn the_lines_are_the_golden_ones() {
    for (names, golden) in [(Names::Documented, "documented.wavefront"), (Names::Collector, "collector.wavefront")] {
        let mut lines = Lines::new(names, "node-1").unwrap();
        let [first, second] = fixture::snapshots();
        points(&text(&mut lines, &first));
        let lines = text(&mut lines, &second);
        points(&lines);
        fixture::assert_golden(golden, &lines);
    }
}

#[test]
fn no_two_points_of_a_report_are_the_same_series() {
    for names in [Names::Documented, Names::Collector] {
        let [_, snapshot] = fixture::snapshots();
        let points = points(&text(&mut Lines::new(names, "node-1").unwrap(), &snapshot));
        let distinct: HashSet<_> = points.iter().map(|point| (&point.name, &point.tags)).collect();
        assert_eq!(distinct.len(), points.len());
    }
}

#[test]
fn documented_buckets_are_cumulative_and_percentiles_have_their_names() {
    let [_, snapshot] = fixture::snapshots();
    let points = points(&text(&mut Lines::new(Names::Documented, "node-1").unwrap(), &snapshot));
    let family = &catalogue::REQUEST_DURATION;
    let all =
        |point: &&&Point| point.tags["destination_service_name"] == "reviews" && point.tags["reporter"] == "source";
    let buckets = named(&points, &statistic(family, "bucket"));
    let values: Vec<_> = buckets.iter().filter(all).map(|point| point.value).collect();
    assert_eq!(values[..6], [2.0, 2.0, 6.0, 6.0, 6.0, 6.0]);
    assert_eq!(values.last(), Some(&8.0));
    let count = named(&points, &statistic(family, "count"));
    assert_eq!(count.iter().find(|point| all(point)).map(|point| point.value), Some(8.0));
    for (name, _) in QUANTILES {
        assert!(!named(&points, &statistic(family, name)).is_empty());
    }
    assert!(points.iter().all(|point| point.source == "node-1" && point.seconds == 1_700_000_020));
}

#[test]
fn collector_buckets_are_rates_and_absent_in_the_first_report() {
    let [first, second] = fixture::snapshots();
    let mut lines = Lines::new(Names::Collector, "node-1").unwrap();
    let bucket = statistic(&catalogue::REQUEST_DURATION, "bucket");
    assert!(named(&points(&text(&mut lines, &first)), &bucket).is_empty());
    let points = points(&text(&mut lines, &second));
    let infinite: Vec<_> = named(&points, &bucket)
        .into_iter()
        .filter(|point| point.tags["le"] == "+Inf" && point.tags["source_workload"] == "productpage-v1")
        .collect();
    // Four requests to reviews and one to ratings more in ten seconds.
    let mut rates: Vec<_> = infinite.iter().map(|point| point.value).collect();
    rates.sort_by(f64::total_cmp);
    assert_eq!(rates, [0.1, 0.4]);
    let names: HashSet<_> = infinite[0].tags.keys().map(String::as_str).collect();
    let kept = [
        "app",
        "reporter",
        "response_code",
        "source_workload",
        "source_workload_namespace",
        "destination_workload",
        "destination_workload_namespace",
        "le",
    ];
    assert_eq!(names, kept.into());
    assert_eq!(infinite[0].tags["app"], "productpage");
    assert!(!named(&points, &statistic(&catalogue::REQUEST_DURATION, "bucket.p999")).is_empty());
}

#[test]
fn a_sum_keeps_the_past_of_series_that_retire_and_does_not_count_it_twice() {
    let mut lines = Lines::new(Names::Collector, "node-1").unwrap();
    let mut model = Model::new(fixture::at(0), Duration::ZERO);
    let mut running = fixture::sidecars();
    running.truncate(1);
    // Two services' ports behind one workload: one label set for the collector, two in the model.
    let mut peers = Peers::clone(&fixture::peers());
    peers.services[1].workload = Some("reviews-v2".to_owned());
    let peers = Arc::new(peers);
    let mut total = |seconds, running: &[Arc<_>], counts: [usize; 2]| {
        let series =
            ["10.96.0.1:80", "10.96.0.2:80"].into_iter().zip(counts).enumerate().map(|(index, (to, count))| {
                let id = index as u32 + 1;
                fixture::http(fixture::key(id, LEG_SOURCE, to, PROTOCOL_HTTP, 200), &vec![1; count])
            });
        let snapshot = model.update(Inputs {
            reading: &fixture::reading(seconds, series.collect()),
            running,
            ended: &[],
            peers: &peers,
            own: &Own::default(),
            closes_interval: true,
        });
        let points = points(&text(&mut lines, &snapshot));
        named(&points, catalogue::REQUESTS.documented_name).iter().map(|point| point.value).sum::<f64>()
    };
    let second = fixture::sidecar(2, Role::Sidecar, "10.0.0.2", running[0].workload.clone());
    let both = [running[0].clone(), second];
    assert_eq!(total(10, &both, [3, 4]), 7.0);
    assert_eq!(total(20, &running, [3, 4]), 7.0, "the second retires");
    assert_eq!(total(30, &running, [5, 4]), 9.0);
    assert_eq!(total(40, &both, [5, 6]), 11.0, "the second is back");
}

#[test]
fn what_breaks_the_rules_is_counted_by_reason() {
    let mut lines = Lines::new(Names::Documented, "node-1").unwrap();
    let long = "x".repeat(300);
    points(&text(&mut lines, &snapshot(&long, "w")));
    let rejected: HashMap<_, _> = lines.rejected().into_iter().collect();
    // One count, three histograms of 20 buckets, 6 percentiles, count and sum, and four TCP figures.
    assert_eq!(rejected["tag_length"], 1 + 3 * 28 + 4);
    assert_eq!(rejected.values().sum::<u64>(), 89);
}

#[test]
fn limits_of_names_tags_and_values_hold_at_their_edges() {
    let mut rejected = [0; REASONS.len()];
    let mut writer = Writer {
        text: String::new(),
        points: 0,
        ending: " 1700000000 source=\"n\"".to_owned(),
        rejected: &mut rejected,
    };
    let tags = |value: &str| Tags::new(|each| each("key", value));
    writer.line("a.b", &1, &tags(&"é".repeat(251)), None);
    writer.line("a.b", &1, &tags(&"é".repeat(252)), None);
    writer.line(&format!("a.{}", "b".repeat(254)), &1, &tags("v"), None);
    writer.line(&format!("a.{}", "b".repeat(255)), &1, &tags("v"), None);
    writer.line("a b", &1, &tags("v"), None);
    writer.real("a.b", f64::NAN, &tags("v"), None);
    writer.real("a.b", f64::INFINITY, &tags("v"), None);
    writer.real("a.b", 1e300, &tags("v"), None);
    writer.line("a.b", &1, &Tags::new(|each| each("bad key", "v")), None);
    let keys: Vec<&'static str> = labels_of_twenty();
    writer.line("a.b", &1, &Tags::new(|each| keys.iter().for_each(|key| each(key, "v"))), None);
    writer.line("a.b", &1, &Tags::new(|each| keys.iter().for_each(|key| each(key, "v"))), Some("1"));
    let batch = writer.take().unwrap();
    assert_eq!(batch.points, 4);
    assert_eq!(points(std::str::from_utf8(&batch.text).unwrap()).len(), 4);
    assert_eq!(rejected, [2, 1, 1, 1, 2, 0]);
}

fn labels_of_twenty() -> Vec<&'static str> {
    crate::model::labels::HTTP[..20].to_vec()
}

#[test]
fn a_source_must_be_a_node_name() {
    for bad in ["", "a b", "a\"b", "ü", &"n".repeat(129)] {
        assert!(Lines::new(Names::Documented, bad).is_err(), "{bad:?}");
    }
    assert!(Lines::new(Names::Documented, "ip-10-0-0-1.eu_west.example").is_ok());
}

proptest! {
    #[test]
    fn every_line_decodes_to_what_was_meant(
        app in prop_oneof![any::<String>(), "[\"'\\\\\n\r\t =#-/a\u{4}]{0,20}"],
        workload in "\\PC{0,40}",
        collector: bool,
    ) {
        let names = if collector { Names::Collector } else { Names::Documented };
        let mut lines = Lines::new(names, "node-1").unwrap();
        let found = points(&text(&mut lines, &snapshot(&app, &workload)));
        let rejected: u64 = lines.rejected().iter().map(|(_, count)| count).sum();
        prop_assert!(rejected > 0 || found.iter().any(|point| point.name == catalogue::REQUESTS.documented_name));
        // Independent of the encoder: what a reader may expect to find of a value.
        let expected = app.replace('\n', "\\n").replace('\r', "\\r").replace(|c: char| c.is_control(), " ");
        let expected = expected.trim().trim_end_matches(|c: char| c == '\\' || c.is_whitespace());
        let key = if collector { "app" } else { "source_app" };
        for point in found.iter().filter(|point| point.name == catalogue::REQUESTS.documented_name) {
            let value = point.tags.get(key).map(String::as_str);
            prop_assert_eq!(value, (!matches!(expected, "" | "-" | "/")).then_some(expected));
        }
    }
}
