//! Requests, decoded by the message types of opentelemetry-proto.

use std::collections::BTreeMap;

use super::*;
use crate::{catalogue, fixture, scraped::Suffix};
use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value},
    metrics::v1::{AggregationTemporality, Metric, exemplar, metric::Data, number_data_point},
};
use proptest::prelude::*;
use prost::Message as _;

/// Name and labels of a sample, as on `/metrics`.
type Sample = (String, BTreeMap<String, String>);

fn decode(batch: &Batch) -> ExportMetricsServiceRequest {
    assert_eq!(batch.form, super::super::Form::Otlp);
    ExportMetricsServiceRequest::decode(&*batch.body).unwrap()
}

fn encode(encoder: &mut OtlpEncoder, snapshot: &Arc<Snapshot>) -> Vec<Metric> {
    let batches: Vec<Batch> = encoder.encode(snapshot.clone()).collect();
    batches.iter().flat_map(metrics).collect()
}

fn metrics(batch: &Batch) -> Vec<Metric> {
    let request = decode(batch);
    let metrics: Vec<Metric> = request
        .resource_metrics
        .into_iter()
        .flat_map(|resource| resource.scope_metrics)
        .flat_map(|scope| scope.metrics)
        .collect();
    assert_eq!(metrics.iter().map(points).sum::<u64>(), batch.points);
    metrics
}

fn points(metric: &Metric) -> u64 {
    let points = match metric.data.as_ref().unwrap() {
        Data::Gauge(data) => data.data_points.len(),
        Data::Sum(data) => data.data_points.len(),
        Data::Histogram(data) => data.data_points.len(),
        Data::ExponentialHistogram(data) => data.data_points.len(),
        Data::Summary(data) => data.data_points.len(),
    };
    points as u64
}

fn labels(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Option<AnyValue>| match value.as_ref().unwrap().value.as_ref().unwrap() {
        any_value::Value::StringValue(text) => text.clone(),
        any_value::Value::IntValue(number) => number.to_string(),
        other => panic!("{other:?}"),
    };
    let labels: BTreeMap<_, _> = attributes.iter().map(|own| (own.key.clone(), text(&own.value))).collect();
    assert_eq!(labels.len(), attributes.len(), "no attribute comes twice");
    labels
}

#[expect(clippy::cast_precision_loss, reason = "as Prometheus reads it")]
fn number(value: Option<number_data_point::Value>) -> f64 {
    match value.unwrap() {
        number_data_point::Value::AsDouble(value) => value,
        number_data_point::Value::AsInt(value) => value as f64,
    }
}

/// Returns what a request says, as the samples of text 0.0.4.
#[expect(clippy::cast_precision_loss, reason = "as Prometheus reads it")]
fn samples(metrics: &[Metric]) -> BTreeMap<Sample, f64> {
    let mut samples = BTreeMap::new();
    let mut insert = |name: String, labels: BTreeMap<String, String>, value: f64| {
        assert!(samples.insert((name.clone(), labels.clone()), value).is_none(), "{name} {labels:?} comes twice");
    };
    for metric in metrics {
        let name = &metric.name;
        match metric.data.as_ref().unwrap() {
            Data::Gauge(data) => {
                data.data_points
                    .iter()
                    .for_each(|own| insert(name.clone(), labels(&own.attributes), number(own.value)));
            }
            Data::Sum(data) => {
                assert!(data.is_monotonic);
                data.data_points
                    .iter()
                    .for_each(|own| insert(name.clone(), labels(&own.attributes), number(own.value)));
            }
            Data::Histogram(data) => {
                for own in &data.data_points {
                    let labels = labels(&own.attributes);
                    assert_eq!(own.bucket_counts.iter().sum::<u64>(), own.count);
                    assert_eq!(own.bucket_counts.len(), own.explicit_bounds.len() + 1);
                    let mut upto = 0;
                    for (count, bound) in
                        own.bucket_counts.iter().zip(own.explicit_bounds.iter().chain(&[f64::INFINITY]))
                    {
                        upto += count;
                        let mut labels = labels.clone();
                        labels.insert("le".to_owned(), bound.to_string());
                        insert(format!("{name}_bucket"), labels, upto as f64);
                    }
                    insert(format!("{name}_count"), labels.clone(), own.count as f64);
                    own.sum.into_iter().for_each(|sum| insert(format!("{name}_sum"), labels.clone(), sum));
                }
            }
            Data::Summary(data) => {
                for own in &data.data_points {
                    let labels = labels(&own.attributes);
                    for quantile in &own.quantile_values {
                        let mut labels = labels.clone();
                        labels.insert("quantile".to_owned(), quantile.quantile.to_string());
                        insert(name.clone(), labels, quantile.value);
                    }
                    insert(format!("{name}_count"), labels.clone(), own.count as f64);
                    insert(format!("{name}_sum"), labels, own.sum);
                }
            }
            Data::ExponentialHistogram(_) => {}
        }
    }
    samples
}

/// Returns the samples of a snapshot, without empty labels and with bounds as numbers.
#[expect(clippy::cast_precision_loss, reason = "as Prometheus reads it")]
fn exposed(snapshot: &Snapshot) -> BTreeMap<Sample, f64> {
    let mut samples = BTreeMap::new();
    for family in snapshot.families() {
        for point in family.points() {
            let mut labels = BTreeMap::new();
            point.labels.each(|name, value| {
                if !value.is_empty() {
                    let value =
                        if name == "quantile" { value.parse::<f64>().unwrap().to_string() } else { value.to_owned() };
                    labels.insert(name.to_owned(), value);
                }
            });
            let mut insert = |suffix: Suffix, bound: Option<&str>, value: f64| {
                let mut labels = labels.clone();
                labels.extend(bound.map(|bound| ("le".to_owned(), bound.parse::<f64>().unwrap().to_string())));
                samples.insert((format!("{}{}", family.name(), suffix.text()), labels), value);
            };
            match point.value {
                crate::Value::Integer(value) => insert(Suffix::None, None, value as f64),
                crate::Value::Real(value) => insert(Suffix::None, None, value),
                crate::Value::Sample { suffix, bound, value } => insert(suffix, bound, value),
                crate::Value::Histogram(histogram) => {
                    histogram.buckets().for_each(|(bound, count)| insert(Suffix::Bucket, Some(bound), count as f64));
                    insert(Suffix::Sum, None, histogram.sum());
                    insert(Suffix::Count, None, histogram.count() as f64);
                }
            }
        }
    }
    samples
}

fn assert_same(sent: &BTreeMap<Sample, f64>, expected: &BTreeMap<Sample, f64>) {
    for (sample, value) in expected {
        let own = sent.get(sample).unwrap_or_else(|| panic!("{sample:?} is missing"));
        assert!(own.total_cmp(value).is_eq(), "{sample:?}: {own} for {value}");
    }
    let more: Vec<_> = sent.keys().filter(|sample| !expected.contains_key(sample)).collect();
    assert!(more.is_empty(), "{more:?}");
}

#[test]
fn a_request_says_what_the_page_says() {
    for snapshot in fixture::snapshots().into_iter().chain(fixture::snapshots_of_everything()) {
        let mut encoder = OtlpEncoder::new(Options::default(), "node-1");
        assert_same(&samples(&encode(&mut encoder, &snapshot)), &exposed(&snapshot));
    }
}

#[test]
fn resource_start_times_and_units_are_those_of_the_series() {
    let [_, snapshot] = fixture::snapshots();
    let options = Options { resource: vec![("service.name".to_owned(), "own".to_owned())], ..Options::default() };
    let mut encoder = OtlpEncoder::new(options, "node-1");
    let batches: Vec<Batch> = encoder.encode(snapshot.clone()).collect();
    let resource = decode(&batches[0]).resource_metrics[0].resource.clone().unwrap();
    let attributes = labels(&resource.attributes);
    for (name, value) in
        [("service.name", "own"), ("k8s.node.name", "node-1"), ("host.name", "node-1"), ("k8s.cluster.name", "c1")]
    {
        assert_eq!(attributes[name], value);
    }
    let metrics: Vec<Metric> = batches.iter().flat_map(metrics).collect();
    let named = |name: &str| metrics.iter().find(|metric| metric.name == name).unwrap();
    assert_eq!(named(catalogue::REQUEST_DURATION.prometheus_name).unit, "ms");
    assert_eq!(named(catalogue::REQUEST_BYTES.prometheus_name).unit, "By");
    assert_eq!(named(catalogue::REQUESTS.prometheus_name).unit, "{requests}");
    let Some(Data::Sum(sum)) = &named(catalogue::REQUESTS.prometheus_name).data else { panic!("a sum") };
    assert_eq!(sum.aggregation_temporality(), AggregationTemporality::Cumulative);
    for (point, series) in sum.data_points.iter().zip(&snapshot.http) {
        assert_eq!(point.start_time_unix_nano, nanoseconds(series.created));
        assert_eq!(point.time_unix_nano, nanoseconds(snapshot.at));
    }
}

#[test]
fn increases_add_up_to_the_totals() {
    let options = Options { temporality: Temporality::Delta, ..Options::default() };
    let mut encoder = OtlpEncoder::new(options, "node-1");
    let [first, second] = fixture::snapshots();
    let (one, two) = (samples(&encode(&mut encoder, &first)), samples(&encode(&mut encoder, &second)));
    let expected = exposed(&second);
    let is_istio = |sample: &&Sample| sample.0.starts_with("istio_");
    let mut checked = 0;
    for sample in expected.keys().filter(is_istio) {
        let sum = one.get(sample).copied().unwrap_or_default() + two[sample];
        assert!((sum - expected[sample]).abs() < 1e-6, "{sample:?}: {sum} for {}", expected[sample]);
        checked += 1;
    }
    assert!(checked > 100);
    let metrics = encode(&mut encoder, &second);
    let Some(Data::Sum(sum)) = &metrics[0].data else { panic!("a sum") };
    assert_eq!(sum.aggregation_temporality(), AggregationTemporality::Delta);
    assert!(sum.data_points.iter().all(|point| number(point.value) == 0.0));
    assert!(sum.data_points.iter().all(|point| point.start_time_unix_nano == nanoseconds(second.at)));
}

#[test]
fn exponential_histograms_have_the_count_and_the_sum_of_the_series() {
    for temporality in [Temporality::Cumulative, Temporality::Delta] {
        let options = Options { histograms: Histograms::Exponential, temporality, ..Options::default() };
        let mut encoder = OtlpEncoder::new(options, "node-1");
        let [first, second] = fixture::snapshots();
        let rounds = [encode(&mut encoder, &first), encode(&mut encoder, &second)];
        let mut sums: BTreeMap<Sample, (u64, f64)> = BTreeMap::new();
        for metric in rounds.iter().flatten() {
            let Some(Data::ExponentialHistogram(data)) = &metric.data else { continue };
            for own in &data.data_points {
                let buckets: u64 = own.positive.iter().flat_map(|own| &own.bucket_counts).sum();
                assert_eq!(own.zero_count + buckets, own.count);
                assert!((4..=6).contains(&own.scale) && own.start_time_unix_nano <= own.time_unix_nano);
                let sum = sums.entry((metric.name.clone(), labels(&own.attributes))).or_default();
                if temporality == Temporality::Cumulative {
                    *sum = (0, 0.0);
                }
                *sum = (sum.0 + own.count, sum.1 + own.sum.unwrap());
            }
        }
        let mut checked = 0;
        for ((name, labels), (count, sum)) in &sums {
            let expected = exposed(&second);
            let of = |suffix: &str| expected[&(format!("{name}{suffix}"), labels.clone())];
            #[expect(clippy::cast_precision_loss, reason = "small")]
            let count = *count as f64;
            assert!(count == of("_count") && (sum - of("_sum")).abs() < 1e-6, "{name} {labels:?}: {count} {sum}");
            checked += 1;
        }
        assert_eq!(checked, 3 * second.http.len());
    }
}

#[test]
fn a_missing_interval_starts_exponential_histograms_again() {
    let options = Options { histograms: Histograms::Exponential, ..Options::default() };
    let mut encoder = OtlpEncoder::new(options, "node-1");
    let [first, second] = fixture::snapshots();
    encode(&mut encoder, &first);
    let late = Arc::new(Snapshot {
        at: second.at,
        steady: second.steady + Duration::from_secs(10),
        began: second.began,
        interval: second.interval,
        http: second.http.clone(),
        grpc: Vec::new(),
        spans: Vec::new(),
        tcp: Vec::new(),
        recorded: Vec::new(),
        scraped: crate::merge::ScrapedFamilies::default(),
        others: Vec::new(),
    });
    let metrics = encode(&mut encoder, &late);
    let Some(Data::ExponentialHistogram(data)) = &metrics[1].data else { panic!("a histogram") };
    assert!(data.data_points.iter().all(|own| own.start_time_unix_nano == nanoseconds(late.at) || own.count > 0));
    assert!(data.data_points.iter().any(|own| own.count == 0 && own.sum == Some(0.0)));
}

#[test]
fn conventions_name_requests_and_keep_every_point() {
    let [_, snapshot] = fixture::snapshots();
    let options = Options { names: Names::Semconv, ..Options::default() };
    let metrics = encode(&mut OtlpEncoder::new(options, "node-1"), &snapshot);
    let mut durations = 0;
    for metric in &metrics {
        let Some(Data::Histogram(data)) = &metric.data else { continue };
        if metric.name.ends_with(".duration") {
            assert_eq!(metric.unit, "s");
            for own in &data.data_points {
                durations += 1;
                assert_eq!(own.explicit_bounds[..3], [0.0005, 0.001, 0.005]);
                let labels = labels(&own.attributes);
                assert!(labels.contains_key("destination_workload") && !labels.contains_key("reporter"));
                match metric.name.starts_with("http.") {
                    true => assert!(labels["http.request.method"] == "_OTHER" && labels["url.scheme"] == "http"),
                    false => assert_eq!(labels["rpc.system.name"], "grpc"),
                }
            }
        }
        if metric.name == catalogue::REQUEST_DURATION.prometheus_name {
            durations += data.data_points.len();
        }
    }
    assert_eq!(durations, snapshot.http.len());
    let istio = encode(&mut OtlpEncoder::new(Options::default(), "node-1"), &snapshot);
    let count = |metrics: &[Metric]| metrics.iter().map(points).sum::<u64>();
    assert_eq!(count(&metrics), count(&istio));
    let names: Vec<&str> = metrics.iter().map(|metric| metric.name.as_str()).collect();
    for name in ["http.server.request.duration", "http.client.request.duration", "http.client.request.body.size"] {
        assert!(names.contains(&name), "{names:?}");
    }
}

#[test]
fn halves_have_all_points_once() {
    let [_, snapshot] = fixture::snapshots();
    let batches: Vec<Batch> = OtlpEncoder::new(Options::default(), "node-1").encode(snapshot.clone()).collect();
    let points: u64 = batches.iter().map(|batch| batch.points).sum();
    let mut waiting = batches;
    let (mut single, mut all) = (0, BTreeMap::new());
    while let Some(batch) = waiting.pop() {
        match batch.split() {
            Some((first, second)) => {
                assert_eq!(first.points + second.points, batch.points);
                assert!(first.points.abs_diff(second.points) <= 1);
                waiting.extend([first, second]);
            }
            None => {
                assert_eq!(batch.points, 1);
                single += 1;
                all.extend(samples(&metrics(&batch)));
            }
        }
    }
    assert_eq!(single, points);
    assert_same(&all, &exposed(&snapshot));
}

proptest! {
    #[test]
    fn any_answer_and_any_file_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300), points: u64) {
        let _ = answer::partial_success(&bytes);
        let _ = answer::retry_delay(&bytes);
        let _ = answer::status_message(&bytes);
        for form in super::super::Form::ALL {
            let batch = Batch { body: bytes.clone().into(), points, form };
            let _ = batch.split();
        }
        let _ = crate::encode::remote_write::version_1(&bytes);
    }
}

#[test]
fn partial_success_is_read() {
    use opentelemetry_proto::tonic::collector::metrics::v1::{
        ExportMetricsPartialSuccess, ExportMetricsServiceResponse,
    };
    let partial = ExportMetricsPartialSuccess { rejected_data_points: 7, error_message: "too old".to_owned() };
    let response = ExportMetricsServiceResponse { partial_success: Some(partial) };
    assert_eq!(answer::partial_success(&response.encode_to_vec()), Some((7, "too old".to_owned())));
    assert_eq!(answer::partial_success(&[]), None);
    let partial = ExportMetricsPartialSuccess { rejected_data_points: -7, error_message: String::new() };
    let response = ExportMetricsServiceResponse { partial_success: Some(partial) };
    assert_eq!(answer::partial_success(&response.encode_to_vec()), None);
}

#[test]
fn histograms_of_either_kind_have_exemplars_in_their_unit() {
    let [first, second] = fixture::snapshots();
    let (_, exemplars) = fixture::exemplars(2);
    for (histograms, names) in [
        (Histograms::Explicit, Names::Istio),
        (Histograms::Exponential, Names::Istio),
        (Histograms::Explicit, Names::Semconv),
    ] {
        let options = Options { histograms, names, ..Options::default() };
        let mut encoder = OtlpEncoder::new(options, "node-1");
        // An exponential histogram that begins with a push has no values yet, and no exemplars.
        encode(&mut encoder, &first);
        let metrics = encode(&mut encoder, &second);
        let found: Vec<_> = metrics
            .iter()
            .flat_map(|metric| match metric.data.as_ref().unwrap() {
                Data::Histogram(data) => data.data_points.iter().flat_map(|own| own.exemplars.clone()).collect(),
                Data::ExponentialHistogram(data) => {
                    data.data_points.iter().flat_map(|own| own.exemplars.clone()).collect()
                }
                _ => Vec::new(),
            })
            .collect();
        assert_eq!(found.len(), exemplars.len(), "{histograms:?} {names:?}");
        let factor = if names == Names::Semconv { 1e-3 } else { 1.0 };
        for (found, exemplar) in found.iter().zip(&exemplars) {
            assert_eq!(found.trace_id, exemplar.trace_id.to_be_bytes());
            assert_eq!(found.span_id, exemplar.span_id.to_be_bytes());
            let Some(exemplar::Value::AsDouble(value)) = found.value else { panic!("{found:?}") };
            assert!((value - exemplar.milliseconds() * factor).abs() < 1e-9, "{value}");
            assert_eq!(u128::from(found.time_unix_nano), exemplar.since_epoch().as_nanos());
        }
    }
}
