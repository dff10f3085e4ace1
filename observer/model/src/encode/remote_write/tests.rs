//! Requests, decoded by prost from messages that are declared here once more.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::{Inputs, Model, SelfMetrics, Value, exposition::MetricType, fixture, scraped::Suffix};
use prost::Message;

#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(string, repeated, tag = "4")]
    symbols: Vec<String>,
    #[prost(message, repeated, tag = "5")]
    timeseries: Vec<TimeSeries>,
}

#[derive(Clone, PartialEq, Message)]
struct TimeSeries {
    #[prost(uint32, repeated, tag = "1")]
    labels_refs: Vec<u32>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<Sample>,
    #[prost(message, repeated, tag = "3")]
    histograms: Vec<Histogram>,
    #[prost(message, repeated, tag = "4")]
    exemplars: Vec<ProtoExemplar>,
    #[prost(message, optional, tag = "5")]
    metadata: Option<Metadata>,
}

#[derive(Clone, PartialEq, Message)]
struct Histogram {
    #[prost(uint64, tag = "1")]
    count_int: u64,
    #[prost(double, tag = "3")]
    sum: f64,
    #[prost(sint32, tag = "4")]
    schema: i32,
    #[prost(double, tag = "5")]
    zero_threshold: f64,
    #[prost(uint64, tag = "6")]
    zero_count_int: u64,
    #[prost(message, repeated, tag = "11")]
    positive_spans: Vec<BucketSpan>,
    #[prost(sint64, repeated, tag = "12")]
    positive_deltas: Vec<i64>,
    #[prost(int64, tag = "15")]
    timestamp: i64,
    #[prost(int64, tag = "17")]
    start_timestamp: i64,
}

#[derive(Clone, PartialEq, Message)]
struct BucketSpan {
    #[prost(sint32, tag = "1")]
    offset: i32,
    #[prost(uint32, tag = "2")]
    length: u32,
}

#[derive(Clone, PartialEq, Message)]
struct ProtoExemplar {
    #[prost(uint32, repeated, tag = "1")]
    labels_refs: Vec<u32>,
    #[prost(double, tag = "2")]
    value: f64,
    #[prost(int64, tag = "3")]
    timestamp: i64,
}

#[derive(Clone, PartialEq, Message)]
struct OldExemplar {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<OldLabel>,
    #[prost(double, tag = "2")]
    value: f64,
    #[prost(int64, tag = "3")]
    timestamp: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(double, tag = "1")]
    value: f64,
    #[prost(int64, tag = "2")]
    timestamp: i64,
    #[prost(int64, tag = "3")]
    start_timestamp: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Metadata {
    #[prost(int32, tag = "1")]
    metric_type: i32,
    #[prost(uint32, tag = "3")]
    help_ref: u32,
    #[prost(uint32, tag = "4")]
    unit_ref: u32,
}

#[derive(Clone, PartialEq, Message)]
struct WriteRequest {
    #[prost(message, repeated, tag = "1")]
    timeseries: Vec<OldSeries>,
}

#[derive(Clone, PartialEq, Message)]
struct OldSeries {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<OldLabel>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<Sample>,
    #[prost(message, repeated, tag = "3")]
    exemplars: Vec<OldExemplar>,
}

#[derive(Clone, PartialEq, Message)]
struct OldLabel {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

type Labels = BTreeMap<String, String>;

fn classic() -> RemoteWriteEncoder {
    RemoteWriteEncoder::new("node-1", Histograms::Classic)
}

fn encode(encoder: &mut RemoteWriteEncoder, snapshot: &Arc<Snapshot>) -> Vec<Batch> {
    encoder.encode(snapshot.clone()).collect()
}

/// Returns series and samples of a batch.
fn read(batch: &Batch) -> Vec<(Labels, Sample)> {
    let series = series(batch).into_iter();
    series
        .filter(|(_, series)| series.histograms.is_empty())
        .map(|(labels, series)| (labels, series.samples[0].clone()))
        .collect()
}

/// Returns series and native histograms of a batch.
fn native(batch: &Batch) -> Vec<(Labels, Histogram)> {
    series(batch)
        .into_iter()
        .filter_map(|(labels, series)| Some((labels, series.histograms.first()?.clone())))
        .collect()
}

fn series(batch: &Batch) -> Vec<(Labels, TimeSeries)> {
    let request = Request::decode(&*batch.body).unwrap();
    assert_eq!(request.symbols[0], "");
    let unique: BTreeSet<&String> = request.symbols.iter().collect();
    assert_eq!(unique.len(), request.symbols.len(), "each text is there once");
    assert_eq!(request.timeseries.len() as u64, batch.points);
    let series = request.timeseries.iter().map(|series| {
        let texts = series.labels_refs.iter().map(|index| request.symbols[*index as usize].clone());
        let texts: Vec<String> = texts.collect();
        let names: Vec<&String> = texts.iter().step_by(2).collect();
        assert!(names.is_sorted_by(|a, b| a < b), "sorted, and none twice: {names:?}");
        assert!(texts.iter().all(|text| !text.is_empty()));
        let metadata = series.metadata.as_ref().unwrap();
        assert!(!request.symbols[metadata.help_ref as usize].is_empty() || metadata.metric_type >= 0);
        let labels = texts.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect();
        assert_eq!(series.samples.len() + series.histograms.len(), 1);
        (labels, series.clone())
    });
    series.collect()
}

/// Returns what a scrape of `node-1` would store of a snapshot.
#[expect(clippy::cast_precision_loss, reason = "samples are doubles")]
fn exposed(snapshot: &Snapshot) -> BTreeMap<Labels, f64> {
    let mut samples = BTreeMap::new();
    for family in snapshot.families() {
        for point in family.points() {
            let mut labels: Labels = [("job", "mesh-observer"), ("instance", "node-1")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into();
            point.labels.each(|name, value| drop(labels.insert(name.to_owned(), value.to_owned())));
            labels.retain(|_, value| !value.is_empty());
            let mut insert = |suffix: Suffix, bound: Option<&str>, value: f64| {
                let mut labels = labels.clone();
                labels.insert("__name__".to_owned(), format!("{}{}", family.name(), suffix.text()));
                labels.extend(bound.map(|bound| ("le".to_owned(), bound.to_owned())));
                assert!(samples.insert(labels, value).is_none());
            };
            match point.value {
                Value::Integer(value) => insert(Suffix::None, None, value as f64),
                Value::Real(value) => insert(Suffix::None, None, value),
                Value::Sample { suffix, bound, value } => insert(suffix, bound, value),
                Value::Histogram(histogram) => {
                    histogram.buckets().for_each(|(bound, count)| insert(Suffix::Bucket, Some(bound), count as f64));
                    insert(Suffix::Sum, None, histogram.sum());
                    insert(Suffix::Count, None, histogram.count() as f64);
                }
            }
        }
    }
    samples
}

fn assert_same(sent: &[(Labels, Sample)], expected: &BTreeMap<Labels, f64>) {
    let values: BTreeMap<_, _> = sent.iter().map(|(labels, sample)| (labels, sample.value)).collect();
    assert_eq!((values.len(), sent.len()), (expected.len(), expected.len()));
    for (labels, value) in expected {
        assert!(values[labels].total_cmp(value).is_eq(), "{labels:?}: {} for {value}", values[labels]);
    }
}

#[test]
fn a_push_has_what_a_scrape_stores() {
    for snapshot in fixture::snapshots().into_iter().chain(fixture::snapshots_of_everything()) {
        let batches = encode(&mut classic(), &snapshot);
        let sent: Vec<_> = batches.iter().flat_map(read).collect();
        assert_same(&sent, &exposed(&snapshot));
        let at = i64::try_from(snapshot.at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis()).unwrap();
        assert!(sent.iter().all(|(_, sample)| sample.timestamp == at && sample.start_timestamp <= at));
        let requests =
            sent.iter().filter(|(labels, _)| labels["__name__"] == crate::catalogue::REQUESTS.prometheus_name);
        for ((_, sample), series) in requests.zip(&snapshot.http) {
            let created = series.created.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
            assert_eq!(u128::try_from(sample.start_timestamp).unwrap(), created);
        }
    }
}

#[test]
fn the_older_version_says_the_same() {
    let [_, snapshot] = fixture::snapshots();
    for batch in encode(&mut classic(), &snapshot) {
        let old = WriteRequest::decode(&*version_1(&batch.body).unwrap().body).unwrap();
        let new = read(&batch);
        assert_eq!(old.timeseries.len(), new.len());
        for (old, (labels, sample)) in old.timeseries.iter().zip(new) {
            let own: Vec<_> = old.labels.iter().map(|own| (own.name.clone(), own.value.clone())).collect();
            assert_eq!(own, labels.into_iter().collect::<Vec<_>>());
            assert_eq!(old.samples, [Sample { start_timestamp: 0, ..sample }]);
        }
    }
    assert_eq!(version_1(b"\x22\x05ab"), None, "cut off");
}

#[test]
fn halves_have_all_series_once() {
    let [_, snapshot] = fixture::snapshots();
    let mut waiting = encode(&mut classic(), &snapshot);
    let mut all = Vec::new();
    while let Some(batch) = waiting.pop() {
        match batch.split() {
            Some((first, second)) => {
                assert_eq!(first.points + second.points, batch.points);
                assert!(second.body.len() < batch.body.len());
                waiting.extend([first, second]);
            }
            None => all.extend(read(&batch)),
        }
    }
    assert_same(&all, &exposed(&snapshot));
}

#[test]
fn the_request_is_the_golden_one() {
    let [_, snapshot] = fixture::snapshots();
    let batches = encode(&mut classic(), &snapshot);
    let text: String =
        batches.iter().flat_map(read).map(|(labels, sample)| format!("{labels:?} {sample:?}\n")).collect();
    fixture::assert_golden("metrics.remote-write", &text.replace(env!("CARGO_PKG_VERSION"), "VERSION"));
}

#[test]
fn series_that_are_gone_are_ended_and_all_at_the_end() {
    let mut encoder = classic();
    let [_, full] = fixture::snapshots();
    encode(&mut encoder, &full);
    let empty = Model::new(fixture::at(0), Duration::ZERO).update(Inputs {
        reading: &fixture::reading(30, Vec::new()),
        running: &[],
        ended: &[],
        components: &[],
        peers: &fixture::peers(),
        own: &SelfMetrics::default(),
        closes_interval: true,
    });
    let sent: Vec<_> = encode(&mut encoder, &empty).iter().flat_map(read).collect();
    let is_stale = |sample: &Sample| sample.value.to_bits() == STALE;
    let ended: BTreeSet<Labels> = sent.iter().filter(|own| is_stale(&own.1)).map(|own| own.0.clone()).collect();
    let (before, after) = (exposed(&full), exposed(&empty));
    let gone: BTreeSet<Labels> = before.keys().filter(|labels| !after.contains_key(*labels)).cloned().collect();
    assert!(gone.len() > 100);
    assert_eq!(ended, gone);
    assert!(sent.iter().filter(|own| is_stale(&own.1)).all(|own| own.1.start_timestamp == 0));
    let rest: Vec<_> = sent.into_iter().filter(|own| !is_stale(&own.1)).collect();
    assert_same(&rest, &after);
    let last: Vec<_> = encoder.end().collect::<Vec<_>>().iter().flat_map(read).collect();
    let time = rest[0].1.timestamp + 1;
    assert!(last.iter().all(|own| is_stale(&own.1) && own.1.timestamp == time));
    assert_eq!(last.iter().map(|own| own.0.clone()).collect::<BTreeSet<_>>(), after.into_keys().collect());
    assert_eq!(encoder.end().count(), 0);
}

#[test]
fn what_comes_back_is_not_ended() {
    let mut encoder = classic();
    for snapshot in fixture::snapshots() {
        let sent: Vec<_> = encode(&mut encoder, &snapshot).iter().flat_map(read).collect();
        assert!(sent.iter().all(|(_, sample)| sample.value.to_bits() != STALE));
    }
    let types: BTreeSet<_> = fixture::snapshots()[0].families().map(|family| family.metric_type().name()).collect();
    assert!(types.contains(MetricType::Histogram.name()));
}

/// Count of the zero bucket, sum, spans as offset and length, and deltas.
type Native = (u64, f64, Vec<(i32, u32)>, Vec<i64>);

/// Returns the native histograms that a snapshot has.
fn natives(snapshot: &Snapshot) -> BTreeMap<Labels, Native> {
    let mut all = BTreeMap::new();
    for family in snapshot.families() {
        for point in family.points() {
            let Value::Histogram(histogram) = point.value else { continue };
            let Some(native) = histogram.native() else { continue };
            let mut labels: Labels = [("job", "mesh-observer"), ("instance", "node-1"), ("__name__", family.name())]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into();
            point.labels.each(|name, value| drop(labels.insert(name.to_owned(), value.to_owned())));
            labels.retain(|_, value| !value.is_empty());
            let spans = native.spans.iter().map(|span| (span.offset, span.length)).collect();
            assert!(all.insert(labels, (native.zero_count, histogram.sum(), spans, native.deltas)).is_none());
        }
    }
    all
}

#[test]
fn native_histograms_stand_beside_classic_ones_and_end_with_them() {
    let snapshot = fixture::cumulated();
    let expected = natives(&snapshot);
    assert!(expected.len() > 3 && expected.values().any(|(.., deltas)| deltas.len() > 1));
    let mut encoder = RemoteWriteEncoder::new("node-1", Histograms::Native);
    let batches = encode(&mut encoder, &snapshot);
    assert_same(&batches.iter().flat_map(read).collect::<Vec<_>>(), &exposed(&snapshot));
    let at = i64::try_from(milliseconds_of(&snapshot)).unwrap();
    let check = |sent: Vec<(Labels, Histogram)>| {
        assert_eq!(sent.len(), expected.len());
        for (labels, own) in sent {
            let (zeroes, sum, spans, deltas) = &expected[&labels];
            assert_eq!((own.schema, own.zero_threshold, own.zero_count_int), (8, 2f64.powi(-128), *zeroes));
            assert!(own.sum.total_cmp(sum).is_eq() && own.timestamp == at && own.start_timestamp <= at);
            let own_spans: Vec<_> = own.positive_spans.iter().map(|span| (span.offset, span.length)).collect();
            assert_eq!((&own_spans, &own.positive_deltas), (spans, deltas));
            let mut last = 0;
            let counted: i64 = deltas
                .iter()
                .map(|delta| {
                    last += delta;
                    last
                })
                .sum();
            assert_eq!(own.count_int, counted.unsigned_abs() + zeroes);
        }
    };
    check(batches.iter().flat_map(native).collect());
    let halves = batches.iter().flat_map(|batch| {
        let (one, other) = batch.split().unwrap();
        [one, other]
    });
    check(halves.flat_map(|batch| native(&batch)).collect());
    for batch in &batches {
        let old = version_1(&batch.body).unwrap();
        let sent = WriteRequest::decode(&*old.body).unwrap().timeseries;
        assert_eq!(sent.len() as u64 + old.left_out, batch.points);
        assert_eq!(old.left_out, native(batch).len() as u64);
        assert!(sent.iter().all(|series| series.samples.len() == 1));
    }
    let ended: BTreeMap<_, _> = encoder.end().collect::<Vec<_>>().iter().flat_map(native).collect();
    assert!(expected.keys().all(|labels| ended.contains_key(labels)));
    for own in ended.values() {
        assert_eq!((own.sum.to_bits(), own.count_int, own.positive_spans.len()), (STALE, 0, 0));
        assert_eq!((own.timestamp, own.start_timestamp), (at + 1, 0));
    }
    assert!(encode(&mut classic(), &snapshot).iter().flat_map(native).next().is_none(), "only if they are wanted");
}

fn milliseconds_of(snapshot: &Snapshot) -> u128 {
    snapshot.at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis()
}

#[test]
fn labels_of_any_shape_follow_each_other() {
    let pages = [
        (
            "a",
            "# TYPE x gauge\nx{b=\"1\",zz=\"2\"} 1\nx{job=\"own\"} 2\nx 3\nx{b=\"\",job=\"\"} 4\nx{zz=\"2\",b=\"3\"} 5\n",
        ),
        ("b", "# TYPE x gauge\nx{instance=\"i\",a=\"\"} 6\nx{a=\"1\"} 7\nx{job=\"j\",m=\"\\\"\"} 8\n"),
    ];
    let snapshot = fixture::snapshot_of(pages.map(|(instance, page)| fixture::scraped(instance, page)).into());
    let sent: Vec<_> = encode(&mut classic(), &snapshot).iter().flat_map(read).collect();
    let mut expected = exposed(&snapshot);
    // An empty label is replaced as an absent one is.
    let without: Vec<Labels> = expected.keys().filter(|labels| !labels.contains_key("job")).cloned().collect();
    for mut labels in without {
        let value = expected.remove(&labels).unwrap();
        labels.insert("job".to_owned(), "mesh-observer".to_owned());
        expected.insert(labels, value);
    }
    assert_same(&sent, &expected);
}

/// Returns the exemplars of a batch: labels, value and time.
fn exemplars(batch: &Batch) -> Vec<(Labels, f64, i64)> {
    let request = Request::decode(&*batch.body).unwrap();
    let text = |index: &u32| request.symbols[*index as usize].clone();
    let all = request.timeseries.iter().flat_map(|series| &series.exemplars);
    all.map(|own| {
        let labels = own.labels_refs.chunks(2).map(|pair| (text(&pair[0]), text(&pair[1])));
        (labels.collect(), own.value, own.timestamp)
    })
    .collect()
}

#[test]
fn exemplars_are_in_both_versions_and_survive_a_split() {
    let [_, snapshot] = fixture::snapshots();
    let (_, known) = fixture::exemplars(2);
    let expected: Vec<_> = known
        .iter()
        .map(|own| {
            let labels = [("span_id", own.span_text()), ("trace_id", own.trace_text())];
            let labels: Labels = labels.map(|(name, value)| (name.to_owned(), value)).into();
            (labels, own.milliseconds(), i64::try_from(own.since_epoch().as_millis()).unwrap())
        })
        .collect();
    let batches = encode(&mut classic(), &snapshot);
    let mut halves = Vec::new();
    let (mut new, mut old) = (Vec::new(), Vec::new());
    for batch in &batches {
        new.extend(exemplars(batch));
        let (first, second) = batch.split().unwrap();
        halves.extend([exemplars(&first), exemplars(&second)].concat());
        let request = WriteRequest::decode(&*version_1(&batch.body).unwrap().body).unwrap();
        for own in request.timeseries.iter().flat_map(|series| &series.exemplars) {
            let labels: Labels = own.labels.iter().map(|own| (own.name.clone(), own.value.clone())).collect();
            old.push((labels, own.value, own.timestamp));
        }
    }
    assert_eq!((&new, &old, &halves), (&expected, &expected, &expected));
}
