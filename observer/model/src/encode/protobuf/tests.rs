//! The decoded page has what the text page has.

use std::collections::BTreeMap;

use prost::Message;

use super::*;
use crate::{
    encode::prometheus::{Exposition, Format},
    exposition::{Event, Parser},
    fixture,
};

/// client_model's messages, for prost, an independent decoder.
#[derive(Clone, PartialEq, Message)]
struct MetricFamily {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    help: String,
    #[prost(int32, tag = "3")]
    metric_type: i32,
    #[prost(message, repeated, tag = "4")]
    metric: Vec<Metric>,
    #[prost(string, tag = "5")]
    unit: String,
}

#[derive(Clone, PartialEq, Message)]
struct Metric {
    #[prost(message, repeated, tag = "1")]
    label: Vec<LabelPair>,
    #[prost(message, optional, tag = "2")]
    gauge: Option<Number>,
    #[prost(message, optional, tag = "3")]
    counter: Option<Number>,
    #[prost(message, optional, tag = "4")]
    summary: Option<Summary>,
    #[prost(message, optional, tag = "5")]
    untyped: Option<Number>,
    #[prost(message, optional, tag = "7")]
    histogram: Option<Histogram>,
}

#[derive(Clone, PartialEq, Message)]
struct LabelPair {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct Number {
    #[prost(double, tag = "1")]
    value: f64,
    #[prost(message, optional, tag = "3")]
    created: Option<Timestamp>,
}

#[derive(Clone, PartialEq, Message)]
struct Timestamp {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(uint64, tag = "1")]
    sample_count: u64,
    #[prost(double, tag = "2")]
    sample_sum: f64,
    #[prost(message, repeated, tag = "3")]
    quantile: Vec<Quantile>,
}

#[derive(Clone, PartialEq, Message)]
struct Quantile {
    #[prost(double, tag = "1")]
    quantile: f64,
    #[prost(double, tag = "2")]
    value: f64,
}

#[derive(Clone, PartialEq, Message)]
struct Histogram {
    #[prost(uint64, tag = "1")]
    sample_count: u64,
    #[prost(double, tag = "2")]
    sample_sum: f64,
    #[prost(message, repeated, tag = "3")]
    bucket: Vec<Bucket>,
    #[prost(sint32, optional, tag = "5")]
    schema: Option<i32>,
    #[prost(double, tag = "6")]
    zero_threshold: f64,
    #[prost(uint64, tag = "7")]
    zero_count: u64,
    #[prost(message, repeated, tag = "12")]
    positive_span: Vec<BucketSpan>,
    #[prost(sint64, repeated, tag = "13")]
    positive_delta: Vec<i64>,
    #[prost(message, optional, tag = "15")]
    created: Option<Timestamp>,
}

#[derive(Clone, PartialEq, Message)]
struct Bucket {
    #[prost(uint64, tag = "1")]
    cumulative_count: u64,
    #[prost(double, tag = "2")]
    upper_bound: f64,
    #[prost(message, optional, tag = "3")]
    exemplar: Option<ProtoExemplar>,
}

#[derive(Clone, PartialEq, Message)]
struct ProtoExemplar {
    #[prost(message, repeated, tag = "1")]
    label: Vec<LabelPair>,
    #[prost(double, tag = "2")]
    value: f64,
    #[prost(message, optional, tag = "3")]
    timestamp: Option<Timestamp>,
}

#[derive(Clone, PartialEq, Message)]
struct BucketSpan {
    #[prost(sint32, tag = "1")]
    offset: i32,
    #[prost(uint32, tag = "2")]
    length: u32,
}

fn families(snapshot: &Arc<Snapshot>, selection: Selection) -> Vec<MetricFamily> {
    let pieces: Vec<Bytes> = ProtobufExposition::of(snapshot.clone(), selection).collect();
    assert!(pieces.iter().all(|piece| !piece.is_empty() && piece.len() <= CHUNK));
    let all = pieces.concat();
    let mut rest = all.as_slice();
    let mut families = Vec::new();
    while !rest.is_empty() {
        families.push(MetricFamily::decode_length_delimited(&mut rest).unwrap());
    }
    families
}

/// Name and labels, to the value.
type Samples = BTreeMap<(String, Vec<(String, String)>), f64>;

fn add(samples: &mut Samples, name: String, labels: &[LabelPair], extra: Option<(&str, f64)>, value: f64) {
    let mut labels: Vec<_> = labels.iter().map(|own| (own.name.clone(), own.value.clone())).collect();
    labels.extend(extra.map(|(name, value)| (name.to_owned(), value.to_string())));
    labels.sort();
    assert_eq!(samples.insert((name.clone(), labels.clone()), value), None, "{name} {labels:?}");
}

/// The samples that a scraper makes of the messages.
#[expect(clippy::cast_precision_loss, reason = "as scrapers do")]
fn decoded(snapshot: &Arc<Snapshot>) -> Samples {
    let mut samples = Samples::new();
    for family in families(snapshot, Selection::default()) {
        for Metric { label, gauge, counter, summary, untyped, histogram } in &family.metric {
            let number = [gauge, counter, untyped].into_iter().flatten().next();
            assert_eq!(
                [gauge.is_some(), counter.is_some(), summary.is_some(), untyped.is_some(), histogram.is_some()],
                [1, 0, 2, 3, 4].map(|metric_type| metric_type == family.metric_type),
                "{}",
                family.name
            );
            if let Some(number) = number {
                add(&mut samples, family.name.clone(), label, None, number.value);
            }
            if let Some(Summary { sample_count, sample_sum, quantile }) = summary {
                add(&mut samples, format!("{}_count", family.name), label, None, *sample_count as f64);
                add(&mut samples, format!("{}_sum", family.name), label, None, *sample_sum);
                for own in quantile {
                    add(&mut samples, family.name.clone(), label, Some(("quantile", own.quantile)), own.value);
                }
            }
            if let Some(Histogram { sample_count, sample_sum, bucket, .. }) = histogram {
                add(&mut samples, format!("{}_count", family.name), label, None, *sample_count as f64);
                add(&mut samples, format!("{}_sum", family.name), label, None, *sample_sum);
                let has_all = bucket.last().is_some_and(|last| last.upper_bound == f64::INFINITY);
                let all = (!has_all).then_some((f64::INFINITY, *sample_count));
                for (bound, count) in bucket.iter().map(|own| (own.upper_bound, own.cumulative_count)).chain(all) {
                    add(&mut samples, format!("{}_bucket", family.name), label, Some(("le", bound)), count as f64);
                }
            }
        }
    }
    samples
}

fn parsed(snapshot: &Arc<Snapshot>) -> Samples {
    let text = Exposition::new(snapshot.clone(), Format::Text).collect::<Vec<_>>().concat();
    let mut samples = Samples::new();
    Parser::new(Format::Text).feed(&text, &mut |event| {
        if let Event::Sample(sample) = event {
            let number = |name: &str, value: &str| match name {
                "le" | "quantile" => value.parse::<f64>().unwrap().to_string(),
                _ => value.to_owned(),
            };
            let labels = sample.labels.iter().map(|(name, value)| {
                let (name, value) = (name.plain(), value.plain());
                LabelPair { value: number(&name, &value), name: name.into_owned() }
            });
            add(&mut samples, sample.name.to_owned(), &labels.collect::<Vec<_>>(), None, sample.value);
        }
    });
    samples
}

const PAGE: &str = "# TYPE pushes histogram\npushes_bucket{t=\"a\",le=\"0.1\"} 1\npushes_bucket{t=\"a\",le=\"+Inf\"} 3\n\
    pushes_sum{t=\"a\"} 4.5\npushes_count{t=\"a\"} 3\npushes_bucket{t=\"b\",le=\"+Inf\"} 0\npushes_sum{t=\"b\"} 0\n\
    pushes_count{t=\"b\"} 0\n# TYPE gc summary\ngc{quantile=\"0.5\"} 0.25\ngc{quantile=\"1\"} 2\ngc_sum 9\ngc_count 12\n\
    # TYPE services gauge\nservices 7\n# TYPE odd untyped\nodd{x=\"\\\"\\\\\\n\"} 1\n# TYPE c_total counter\nc_total 5\n";

#[test]
fn it_says_what_text_says() {
    let [_, snapshot] = fixture::snapshots();
    assert!(decoded(&snapshot).len() > 300);
    assert_eq!(decoded(&snapshot), parsed(&snapshot));
    let scraped =
        fixture::snapshot_of(vec![fixture::scraped("10.0.0.9:15014", PAGE), fixture::scraped("10.0.0.8:1", PAGE)]);
    assert!(decoded(&scraped).len() > 30);
    assert_eq!(decoded(&scraped), parsed(&scraped));
}

#[test]
fn times_of_creation_and_selections_are_those_of_text() {
    let [_, snapshot] = fixture::snapshots();
    let chosen = families(&snapshot, Selection::of([("name[]".into(), "istio_requests_total".into())].into_iter()));
    let [family] = &chosen[..] else { panic!("{} families", chosen.len()) };
    assert_eq!((family.name.as_str(), family.metric.len()), ("istio_requests_total", snapshot.http.len()));
    for (metric, series) in family.metric.iter().zip(&snapshot.http) {
        let created = metric.counter.as_ref().unwrap().created.as_ref().unwrap();
        let expected = series.created.duration_since(UNIX_EPOCH).unwrap();
        assert_eq!(
            (created.seconds.unsigned_abs(), created.nanos.unsigned_abs()),
            (expected.as_secs(), expected.subsec_nanos())
        );
    }
}

#[test]
fn native_histograms_have_the_values_of_classic_ones() {
    let snapshot = fixture::cumulated();
    let mut seen = 0;
    for family in families(&snapshot, Selection::of([("family".into(), "istio_*".into())].into_iter())) {
        for histogram in family.metric.iter().filter_map(|metric| metric.histogram.as_ref()) {
            assert_eq!(histogram.schema, Some(8));
            let mut count = 0;
            let counts: Vec<i64> = histogram
                .positive_delta
                .iter()
                .map(|delta| {
                    count += delta;
                    count
                })
                .collect();
            assert!(counts.iter().all(|count| *count > 0));
            let sum = counts.iter().sum::<i64>().unsigned_abs() + histogram.zero_count;
            assert_eq!(sum, histogram.sample_count, "{}", family.name);
            let length: u32 = histogram.positive_span.iter().map(|span| span.length).sum();
            assert_eq!(length as usize, counts.len());
            assert!(histogram.zero_threshold > 0.0 && histogram.created.is_some());
            seen += 1;
        }
    }
    assert_eq!(seen, 3 * snapshot.http.len());
}

#[test]
fn buckets_have_their_exemplars() {
    let [_, snapshot] = fixture::snapshots();
    let families = families(&snapshot, Selection::default());
    let histograms = families.iter().flat_map(|family| &family.metric).filter_map(|metric| metric.histogram.as_ref());
    let found: Vec<_> = histograms
        .flat_map(|histogram| &histogram.bucket)
        .filter_map(|bucket| Some((bucket.upper_bound, bucket.exemplar.as_ref()?)))
        .collect();
    let (_, exemplars) = fixture::exemplars(2);
    assert_eq!(found.len(), exemplars.len());
    for ((bound, found), exemplar) in found.into_iter().zip(exemplars) {
        let labels: Vec<_> = found.label.iter().map(|own| (&*own.name, own.value.clone())).collect();
        assert_eq!(labels, [("trace_id", exemplar.trace_text()), ("span_id", exemplar.span_text())]);
        assert!(found.value <= bound && (found.value - exemplar.milliseconds()).abs() < 1e-9);
        let at = found.timestamp.as_ref().unwrap();
        assert_eq!(at.seconds as u64, exemplar.since_epoch().as_secs());
    }
}
