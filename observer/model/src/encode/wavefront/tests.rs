//! Lines of whole pushes, decoded by an independent decoder.

mod decoder;

use super::{filter::Filters, *};
use crate::{
    HistogramView, Inputs, Model, SelfMetrics,
    catalogue::{self, Descriptor},
    encode::Form,
    exposition::MetricType,
    fixture,
    histogram::QUANTILES,
    identity::{Role, Workload},
    workload_index::StaticPeers,
};
use decoder::{Decoded, Point, decode};
use line::{Number, Tags};
use observer_common::{DURATION, Leg, Protocol};
use proptest::prelude::*;
use std::{collections::HashSet, time::Duration};

fn lines(names: Names) -> WavefrontEncoder {
    WavefrontEncoder::new(Options { names, ..Options::default() }, "node-1").unwrap()
}

fn statistic(family: &Descriptor, statistic: &str) -> String {
    family.documented_name.replace('*', statistic)
}

fn text(encoder: &mut WavefrontEncoder, snapshot: &Arc<Snapshot>) -> String {
    let batches: Vec<Batch> = encoder.encode(snapshot.clone()).collect();
    for batch in &batches {
        assert_eq!(batch.body.iter().filter(|byte| **byte == b'\n').count() as u64, batch.points);
    }
    batches.iter().map(|batch| std::str::from_utf8(&batch.body).unwrap()).collect()
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
        fixture::tcp(fixture::key(1, Leg::SOURCE, "10.0.0.9:1", Protocol::TCP, 0), 1, 0, 5, 0),
        fixture::http(fixture::key(1, Leg::SOURCE, "10.0.0.9:1", Protocol::HTTP, 200), &[1]),
    ];
    Model::new(fixture::at(0), Duration::ZERO).update(Inputs {
        reading: &fixture::reading(1, series),
        running: &sidecars,
        ended: &[],
        components: &[],
        peers: &Arc::new(StaticPeers::default()),
        own: &SelfMetrics::default(),
        closes_interval: true,
    })
}

#[test]
fn the_lines_are_the_golden_ones_and_have_every_documented_name() {
    let documented = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/documented_names.txt"));
    assert_eq!(documented.lines().count(), 46);
    for (names, golden) in [(Names::Documented, "documented.wavefront"), (Names::Collector, "collector.wavefront")] {
        let mut encoder = lines(names);
        let [first, second] = fixture::snapshots_of_everything();
        points(&text(&mut encoder, &first));
        let lines = text(&mut encoder, &second);
        let sent: HashSet<String> = points(&lines).into_iter().map(|point| point.name).collect();
        for name in documented.lines() {
            let percentile = match names {
                Names::Documented => "",
                Names::Collector => "bucket.",
            };
            let statistics = QUANTILES.iter().map(|(name, _)| format!("{percentile}{name}"));
            for statistic in statistics.chain(["bucket", "count", "sum"].map(str::to_owned)) {
                let name = name.replace('*', &statistic);
                assert!(sent.contains(&name), "{name} is not sent");
            }
        }
        assert_eq!(encoder.rejected().iter().map(|(_, count)| count).sum::<u64>(), 0);
        fixture::assert_golden(golden, &lines);
    }
}

/// Values that a decoder could stumble over.
fn hostile() -> Vec<String> {
    let mut values: Vec<String> = (0..=0x20)
        .chain([0x7f, 0x85, 0xa0, 0xad, 0x2028, 0xfeff, 0x1f600])
        .filter_map(char::from_u32)
        .flat_map(|character| [format!("{character}"), format!("a{character}b"), format!("{character}{character}a")])
        .collect();
    let words = [
        "\"",
        "'",
        "\\",
        "\\\"",
        "a\\",
        "a\\\\",
        "a\\\"",
        "\"a\"",
        "a\"b'c",
        "\\n",
        "a\nb\r\nc",
        "=",
        "a=b",
        "a=\"b\"",
        "#1",
        "#",
        "!M",
        "@Event",
        "source=x",
        "\" source=\"x",
        "∆a",
        "Δ",
        "-",
        "/",
        "--",
        "-a",
        " a ",
        "a  b",
        "1",
        "NaN",
        "+Inf",
        "${x}",
        "%s",
        "{}",
        "日本語",
        "e\u{301}",
        "\u{202e}abc",
    ];
    values.extend(words.map(str::to_owned));
    values.extend([250, 251, 252, 253, 254, 300].map(|length| "v".repeat(length)));
    values.extend([120, 121, 122, 123].map(|length| "😀".repeat(length)));
    values
}

#[test]
fn lines_of_every_mode_and_of_hostile_values_are_the_golden_ones() {
    let tags = [("cluster".to_owned(), "prod".to_owned())].into();
    let every_option = Options { tags, delta_counters: true, distributions: true, ..Options::default() };
    let mut encoder = WavefrontEncoder::new(every_option.clone(), "node-1").unwrap();
    let [first, second] = fixture::snapshots();
    text(&mut encoder, &first);
    let lines = text(&mut encoder, &second);
    points(&lines);
    fixture::assert_golden("options.wavefront", &lines);

    let mut lines = String::new();
    for value in hostile() {
        for names in [Names::Documented, Names::Collector] {
            let mut encoder = WavefrontEncoder::new(Options { names, ..every_option.clone() }, "node-1").unwrap();
            let all = text(&mut encoder, &snapshot(&value, &value));
            points(&all);
            let wanted = |line: &&str| line.contains("requests.total") || line.starts_with("!M");
            lines.extend(all.split_inclusive('\n').filter(wanted).take(2));
        }
    }
    fixture::assert_golden("hostile.wavefront", &lines);
}

#[test]
fn no_two_points_of_a_report_are_the_same_series() {
    for names in [Names::Documented, Names::Collector] {
        let [_, snapshot] = fixture::snapshots();
        let points = points(&text(&mut lines(names), &snapshot));
        let distinct: HashSet<_> = points.iter().map(|point| (&point.name, &point.tags)).collect();
        assert_eq!(distinct.len(), points.len());
    }
}

#[test]
fn documented_buckets_are_cumulative_and_percentiles_have_their_names() {
    let [_, snapshot] = fixture::snapshots();
    let points = points(&text(&mut lines(Names::Documented), &snapshot));
    let family = &catalogue::REQUEST_DURATION;
    let all =
        |point: &&&Point| point.tags["destination_service_name"] == "reviews" && point.tags["reporter"] == "source";
    let buckets = named(&points, &statistic(family, "bucket"));
    let values: Vec<_> = buckets.iter().filter(all).map(|point| point.single()).collect();
    assert_eq!(values[..6], [2.0, 2.0, 6.0, 6.0, 6.0, 6.0]);
    assert_eq!(values.last(), Some(&8.0));
    let count = named(&points, &statistic(family, "count"));
    assert_eq!(count.iter().find(|point| all(point)).map(|point| point.single()), Some(8.0));
    for (name, _) in QUANTILES {
        assert!(!named(&points, &statistic(family, name)).is_empty());
    }
    assert!(points.iter().all(|point| point.source == "node-1" && point.seconds == 1_700_000_020));
}

#[test]
fn collector_buckets_are_rates_and_absent_in_the_first_report() {
    let [first, second] = fixture::snapshots();
    let mut encoder = lines(Names::Collector);
    let bucket = statistic(&catalogue::REQUEST_DURATION, "bucket");
    assert!(named(&points(&text(&mut encoder, &first)), &bucket).is_empty());
    let points = points(&text(&mut encoder, &second));
    let infinite: Vec<_> = named(&points, &bucket)
        .into_iter()
        .filter(|point| point.tags["le"] == "+Inf" && point.tags["source_workload"] == "productpage-v1")
        .collect();
    // Four requests to reviews and one to ratings more in ten seconds.
    let mut rates: Vec<_> = infinite.iter().map(|point| point.single()).collect();
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
    let mut encoder = lines(Names::Collector);
    let mut model = Model::new(fixture::at(0), Duration::ZERO);
    let mut running = fixture::sidecars();
    running.truncate(1);
    // Two services' ports behind one workload: one label set for the collector, two in the model.
    let mut peers = StaticPeers::clone(&fixture::peers());
    peers.services[1].workload = Some("reviews-v2".to_owned());
    let peers = Arc::new(peers);
    let mut total = |seconds, running: &[Arc<_>], counts: [usize; 2]| {
        let series =
            ["10.96.0.1:80", "10.96.0.2:80"].into_iter().zip(counts).enumerate().map(|(index, (to, count))| {
                let id = index as u32 + 1;
                fixture::http(fixture::key(id, Leg::SOURCE, to, Protocol::HTTP, 200), &vec![1; count])
            });
        let snapshot = model.update(Inputs {
            reading: &fixture::reading(seconds, series.collect()),
            running,
            ended: &[],
            components: &[],
            peers: &peers,
            own: &SelfMetrics::default(),
            closes_interval: true,
        });
        let points = points(&text(&mut encoder, &snapshot));
        named(&points, catalogue::REQUESTS.documented_name).iter().map(|point| point.single()).sum::<f64>()
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
    let mut encoder = lines(Names::Documented);
    let long = "x".repeat(300);
    points(&text(&mut encoder, &snapshot(&long, "w")));
    let rejected: HashMap<_, _> = encoder.rejected().into_iter().collect();
    // One count, three histograms of 20 buckets, 6 percentiles, count and sum, and four TCP values.
    assert_eq!(rejected["tag_length"], 1 + 3 * 28 + 4);
    assert_eq!(rejected.values().sum::<u64>(), 89);
}

#[test]
fn limits_of_names_tags_and_values_hold_at_their_edges() {
    let (options, mut state) = (Options::default(), WriterState::default());
    let mut writer = Writer::new(&options, "n", fixture::at(0), &mut state);
    let tags = |key: &str, value: &str| Tags::new(&options, |each| each(key, value));
    let many =
        |count: usize| Tags::new(&options, |each| (0..count).for_each(|number| each(&format!("key-{number:02}"), "v")));
    let one = Number::Integer(1);
    writer.line("a.b", one, &tags("key", &"é".repeat(251)), None);
    writer.line("a.b", one, &tags("key", &"é".repeat(252)), None);
    writer.line("a.b", one, &tags(&"k".repeat(64), &"v".repeat(190)), None);
    writer.line("a.b", one, &tags(&"k".repeat(65), "v"), None);
    writer.line("a.b", one, &tags("bad key", "v"), None);
    writer.line(&format!("a.{}", "b".repeat(254)), one, &tags("k", "v"), None);
    writer.line(&format!("a.{}", "b".repeat(255)), one, &tags("k", "v"), None);
    writer.line("a b", one, &tags("k", "v"), None);
    for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e300] {
        writer.line("a.b", Number::Real(value), &tags("k", "v"), None);
    }
    writer.line("a.b", one, &many(20), None);
    writer.line("a.b", one, &many(20), Some("1"));
    let endless: Vec<_> = (0..3_000).map(|number| (f64::from(number) + 0.123_456_789, 1)).collect();
    writer.distribution("a.b", &endless, &tags("k", "v"));
    let batch = writer.take(Form::Points).unwrap();
    assert_eq!(batch.points, 5);
    assert_eq!(points(std::str::from_utf8(&batch.body).unwrap()).len(), 5);
    assert_eq!(state.rejected, [2, 2, 1, 1, 3, 1, 0]);
}

#[test]
fn a_delta_counts_its_sign_and_a_distribution_its_values() {
    let (options, mut state) = (Options { delta_counters: true, ..Options::default() }, WriterState::default());
    let mut writer = Writer::new(&options, "n", fixture::at(0), &mut state);
    let tags = Tags::new(&options, |each| each("k", "v"));
    let origin = catalogue::Origin::Observer;
    for length in [253, 254] {
        let name = format!("a.{}", "b".repeat(length));
        writer.counter(&name, Number::Integer(1), &tags, origin, fixture::at(0));
    }
    writer.distribution("a.b", &[(1.5, 2), (2.0, 3 << 31)], &tags);
    writer.distribution("a.b", &[], &tags);
    let batch = writer.take(Form::Distributions).unwrap();
    let points = points(std::str::from_utf8(&batch.body).unwrap());
    assert_eq!(points.len(), 2);
    let Decoded::Minute(centroids) = &points[1].value else { panic!("{points:?}") };
    assert_eq!(centroids[0], (2, 1.5));
    assert_eq!(centroids[1..].iter().map(|(count, _)| u64::from(*count)).sum::<u64>(), 3 << 31);
    assert_eq!(state.rejected, [1, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_source_must_be_a_node_name() {
    for bad in ["", "a b", "a\"b", "ü", &"n".repeat(129)] {
        assert!(WavefrontEncoder::new(Options::default(), bad).is_err(), "{bad:?}");
    }
    assert!(WavefrontEncoder::new(Options::default(), "ip-10-0-0-1.eu_west.example").is_ok());
}

fn globs(patterns: &[&str]) -> Vec<glob::Glob> {
    patterns.iter().map(|pattern| pattern.parse().unwrap()).collect()
}

/// Both fixture reports; the second one's points.
fn second_report(encoder: &mut WavefrontEncoder) -> Vec<Point> {
    let [first, second] = fixture::snapshots();
    text(encoder, &first);
    points(&text(encoder, &second))
}

#[test]
fn filters_keep_points_back_and_count_them() {
    let filters = Filters {
        metric_allow: globs(&["istio.*"]),
        metric_deny: globs(&["*.bucket.*"]),
        metric_tag_allow: vec![("reporter".to_owned(), globs(&["source"]))],
        metric_tag_deny: vec![("destination_service_name".to_owned(), globs(&["ratings*"]))],
        ..Filters::default()
    };
    let all = second_report(&mut lines(Names::Documented));
    let mut encoder = WavefrontEncoder::new(Options { filters, ..Options::default() }, "node-1").unwrap();
    let sent = second_report(&mut encoder);
    let expected: Vec<_> = all
        .into_iter()
        .filter(|point| point.name.starts_with("istio.") && !point.name.contains(".bucket."))
        .filter(|point| point.tags.get("reporter").is_some_and(|reporter| reporter == "source"))
        .filter(|point| point.tags.get("destination_service_name").is_none_or(|name| !name.starts_with("ratings")))
        .collect();
    assert!(!sent.is_empty() && sent == expected);
    assert!(encoder.filtered() > 0);
}

#[test]
fn tags_that_are_left_out_leave_no_two_points_alike() {
    for patterns in [&["source_*", "reporter"][..], &["*"]] {
        let filters = Filters { tag_exclude: globs(patterns), ..Filters::default() };
        let mut encoder = WavefrontEncoder::new(Options { filters, ..Options::default() }, "node-1").unwrap();
        let sent = second_report(&mut encoder);
        let distinct: HashSet<_> = sent.iter().map(|point| (&point.name, &point.tags)).collect();
        assert_eq!(distinct.len(), sent.len());
        assert!(sent.iter().flat_map(|point| point.tags.keys()).all(|key| key != "reporter"));
        for family in [&catalogue::REQUESTS, &catalogue::TCP_SENT_BYTES, &catalogue::EMITTER_DROPPED] {
            let total = |points: &[Point]| {
                named(points, family.documented_name).iter().map(|point| point.single()).sum::<f64>()
            };
            assert_eq!(
                total(&sent),
                total(&second_report(&mut lines(Names::Documented))),
                "{}",
                family.prometheus_name
            );
        }
    }
}

#[test]
fn tags_of_every_point_count_more_than_labels() {
    let tags = [("cluster", "prod \"1\""), ("source_app", "mine")];
    let tags = tags.into_iter().map(|(key, value)| point_tag(key, value).unwrap()).collect();
    let mut encoder = WavefrontEncoder::new(Options { tags, ..Options::default() }, "node-1").unwrap();
    let sent = second_report(&mut encoder);
    assert!(sent.iter().all(|point| point.tags["cluster"] == "prod \"1\"" && point.tags["source_app"] == "mine"));
    for (key, value) in [("", "v"), ("a b", "v"), ("source", "v"), ("le", "v"), ("k", " "), ("k", &"v".repeat(254))] {
        assert!(point_tag(key, value).is_err(), "{key:?} {value:?}");
    }
}

#[test]
fn a_label_named_tag_is_sent_as_the_charts_know_it() {
    let [_, snapshot] = fixture::snapshots_of_everything();
    let sent = points(&text(&mut lines(Names::Documented), &snapshot));
    let builds = named(&sent, catalogue::ISTIO_BUILD.documented_name);
    assert!(builds.len() == 1 && builds[0].tags["_tag"] == "a tag" && !builds[0].tags.contains_key("tag"));
}

#[test]
fn what_was_scraped_is_sent_with_its_tags_and_cannot_break_a_line() {
    let exposition = "# TYPE pilot_x counter\npilot_x{a=\"b \\\"c\\\" \\\\\",le=\"x\\\"\"} 3\n# TYPE \"odd name\" gauge\n{\"odd name\"} 1\n\
                # TYPE pilot_h histogram\npilot_h_bucket{le=\"1\"} 1\npilot_h_bucket{le=\"+Inf\"} 1\npilot_h_sum 1\npilot_h_count 1\n";
    let snapshot = fixture::snapshot_of(vec![fixture::scraped("10.0.0.8:15014", exposition)]);
    for names in [Names::Documented, Names::Collector] {
        let sent = points(&text(&mut lines(names), &snapshot));
        let scraped: Vec<_> = sent.iter().filter(|point| point.name.starts_with("pilot.")).collect();
        assert!(scraped.iter().all(|point| point.tags["instance"] == "10.0.0.8:15014"), "{scraped:?}");
        let counter = named(&sent, "pilot.x.value");
        assert_eq!((counter.len(), counter[0].tags["a"].as_str()), (1, "b \"c\""));
        assert!(named(&sent, "pilot.h.bucket.value").iter().any(|point| point.tags["le"] == "+Inf"));
    }
}

#[test]
fn numbers_are_written_as_the_standard_library_writes_them() {
    for value in [0.0, -0.0, 1.0, -1.0, 0.5, 1e15, 9_007_199_254_740_991.0, 9_007_199_254_740_992.0, 1e300, f64::NAN] {
        assert_eq!(Number::Real(value).to_string(), value.to_string());
    }
}

#[test]
fn each_scraped_line_has_its_own_labels_and_bound() {
    let exposition = "# TYPE pilot_h histogram\npilot_h_bucket{a=\"1\",le=\"1\"} 1\npilot_h_bucket{a=\"1\",le=\"+Inf\"} 2\n\
                pilot_h_bucket{a=\"2\",le=\"1\"} 3\npilot_h_bucket{a=\"2\",le=\"+Inf\"} 4\npilot_h_bucket{le=\"+Inf\"} 5\n\
                pilot_h_bucket{a=\"3\",le=\"+Inf\"} 6\npilot_h_count{a=\"3\"} 6\npilot_h_sum{a=\"3\"} 7\n";
    let snapshot = fixture::snapshot_of(vec![fixture::scraped("10.0.0.8:15014", exposition)]);
    let sent = points(&text(&mut lines(Names::Documented), &snapshot));
    let tag = |point: &Point, key: &str| point.tags.get(key).cloned().unwrap_or_default();
    let mut found: Vec<_> = sent
        .iter()
        .filter(|point| point.name.starts_with("pilot.h."))
        .map(|point| (point.single(), tag(point, "a"), tag(point, "le")))
        .collect();
    found.sort_by(|one, other| one.0.total_cmp(&other.0));
    let expected = [
        (1.0, "1", "1"),
        (2.0, "1", "+Inf"),
        (3.0, "2", "1"),
        (4.0, "2", "+Inf"),
        (5.0, "", "+Inf"),
        (6.0, "3", "+Inf"),
        (6.0, "3", ""),
        (7.0, "3", ""),
    ];
    assert_eq!(found, expected.map(|(value, a, le)| (value, a.to_owned(), le.to_owned())));
}

#[test]
fn both_spellings_of_a_scraped_name_are_among_the_collectors() {
    let [_, snapshot] = fixture::snapshots_of_everything();
    let family = &catalogue::CITADEL_SERVER_CSR_SIGN_ERR_COUNT;
    let spelled = family.prometheus_name.replace('_', ".") + ".value";
    for (names, expected) in [(Names::Documented, 0), (Names::Collector, 1)] {
        let sent = points(&text(&mut lines(names), &snapshot));
        assert_eq!(named(&sent, family.documented_name).len(), 1);
        assert_eq!(named(&sent, &spelled).len(), expected);
    }
}

#[test]
fn delta_counters_add_up_to_the_totals() {
    let mut encoder = WavefrontEncoder::new(Options { delta_counters: true, ..Options::default() }, "node-1").unwrap();
    let mut sums: HashMap<_, f64> = HashMap::new();
    for snapshot in fixture::snapshots() {
        for point in points(&text(&mut encoder, &snapshot)) {
            if point.is_delta() {
                *sums.entry((point.name.trim_start_matches('\u{2206}').to_owned(), point.tags.clone())).or_default() +=
                    point.single();
            } else {
                let family = catalogue::FAMILIES.iter().find(|family| family.documented_name == point.name);
                assert!(family.is_none_or(|family| family.metric_type != MetricType::Counter), "{}", point.name);
            }
        }
    }
    let totals = second_report(&mut lines(Names::Documented));
    assert!(!sums.is_empty());
    for ((name, tags), sum) in &sums {
        let family = catalogue::FAMILIES.iter().find(|family| family.documented_name == *name);
        // What was counted before the observer came is in the totals only.
        if family.is_some_and(|family| family.origin == catalogue::Origin::Procfs) {
            continue;
        }
        let total = totals.iter().find(|point| point.name == *name && point.tags == *tags).unwrap();
        assert!((total.single() - sum).abs() < 1e-9, "{name} {tags:?}");
    }
}

#[test]
fn distributions_hold_the_values_of_the_interval() {
    let options = Options { distributions: true, ..Options::default() };
    let mut encoder = WavefrontEncoder::new(options, "node-1").unwrap();
    let [_, snapshot] = fixture::snapshots();
    let batches: Vec<Batch> = encoder.encode(snapshot.clone()).collect();
    let (distributions, plain): (Vec<_>, Vec<_>) = batches.iter().partition(|batch| batch.form == Form::Distributions);
    let decoded = |batches: &[&Batch]| {
        let text: String = batches.iter().map(|batch| std::str::from_utf8(&batch.body).unwrap()).collect();
        points(&text)
    };
    assert!(decoded(&plain).iter().all(|point| matches!(point.value, Decoded::Single(_))));
    let counts = |points: &[Point]| {
        let count = |point: &Point| match &point.value {
            Decoded::Minute(centroids) => centroids.iter().map(|(count, _)| u64::from(*count)).sum::<u64>(),
            Decoded::Single(_) => panic!("{} is no distribution", point.name),
        };
        let name = statistic(&catalogue::REQUEST_DURATION, "").replace("..value", "");
        named(points, &name).into_iter().map(count).sum::<u64>()
    };
    let recent = |series: &Series<HttpTotals>| {
        let view = HistogramView::new(&series.totals, series.recent.as_deref(), DURATION);
        view.recent_values().iter().map(|(_, count)| count).sum::<u64>()
    };
    let expected: u64 = snapshot.http.iter().map(recent).sum();
    assert!(expected > 0);
    assert_eq!(counts(&decoded(&distributions)), expected);
}

proptest! {
    #[test]
    fn every_line_decodes_to_what_was_meant(
        app in prop_oneof![any::<String>(), "[\"'\\\\\n\r\t =#-/a\u{4}]{0,20}"],
        workload in "\\PC{0,40}",
        collector: bool,
        delta_counters: bool,
        distributions: bool,
    ) {
        let names = if collector { Names::Collector } else { Names::Documented };
        let options = Options { names, delta_counters, distributions, ..Options::default() };
        let mut encoder = WavefrontEncoder::new(options, "node-1").unwrap();
        let found = points(&text(&mut encoder, &snapshot(&app, &workload)));
        let rejected: u64 = encoder.rejected().iter().map(|(_, count)| count).sum();
        prop_assert!(rejected > 0 || found.iter().any(|point| point.name.ends_with(catalogue::REQUESTS.documented_name)));
        // Independent of the encoder: what a reader may expect to find of a value.
        let expected = app.replace('\n', "\\n").replace('\r', "\\r").replace(|c: char| c.is_control(), " ");
        let expected = expected.trim().trim_end_matches(|c: char| c == '\\' || c.is_whitespace());
        let key = if collector { "app" } else { "source_app" };
        for point in found.iter().filter(|point| point.name.ends_with(catalogue::REQUESTS.documented_name)) {
            let value = point.tags.get(key).map(String::as_str);
            prop_assert_eq!(value, (!matches!(expected, "" | "-" | "/")).then_some(expected));
        }
    }
}

#[test]
fn a_configuration_whose_points_no_receiver_takes_is_refused() {
    let tags = |count: usize| (0..count).map(|number| (format!("tag{number}"), "x".to_owned())).collect();
    let made =
        |names, tags, filters| WavefrontEncoder::new(Options { names, tags, filters, ..Options::default() }, "node-1");
    assert!(made(Names::Documented, tags(1), Filters::default()).is_ok());
    let error = made(Names::Documented, tags(2), Filters::default()).unwrap_err();
    assert_eq!(error, SetupError::TooManyTags { own: 2, labels: 19 });
    assert!(error.to_string().contains("tag_exclude"), "{error}");
    let without = Filters { tag_exclude: vec!["source_*".parse().unwrap()], ..Filters::default() };
    assert!(made(Names::Documented, tags(2), without).is_ok());
    let instead = [("reporter".to_owned(), "x".to_owned()), ("tag".to_owned(), "x".to_owned())].into();
    assert!(made(Names::Documented, instead, Filters::default()).is_ok(), "it takes the place of a label");
    assert!(made(Names::Collector, tags(12), Filters::default()).is_ok());
    assert!(made(Names::Collector, tags(13), Filters::default()).is_err());
}

#[test]
fn rates_are_those_of_a_clock_that_nobody_sets() {
    let rates = |step: i64| {
        let (mut model, mut encoder) = (Model::new(fixture::at(0), Duration::from_mins(15)), lines(Names::Collector));
        let sidecars = fixture::sidecars();
        let mut sent = Vec::new();
        for (seconds, requests) in [(10, 10), (20, 30)] {
            let key = fixture::key(1, Leg::SOURCE, "10.96.0.1:80", Protocol::HTTP, 200);
            let mut reading = fixture::reading(seconds, vec![fixture::http(key, &vec![1; requests])]);
            if seconds == 20 {
                reading.at = fixture::at(seconds.saturating_add_signed(step));
            }
            let snapshot = model.update(Inputs {
                reading: &reading,
                running: &sidecars,
                ended: &[],
                components: &[],
                peers: &fixture::peers(),
                own: &SelfMetrics::default(),
                closes_interval: true,
            });
            sent = points(&text(&mut encoder, &snapshot));
        }
        let name = statistic(&catalogue::REQUEST_DURATION, "bucket");
        named(&sent, &name).into_iter().map(Point::single).fold(0.0, f64::max)
    };
    assert_eq!([rates(0), rates(-15), rates(3600)], [2.0; 3]);
}
