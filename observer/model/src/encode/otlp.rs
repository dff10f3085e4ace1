//! OTLP metrics: `ExportMetricsServiceRequest` messages of the OpenTelemetry protocol 1.x.
//!
//! Names and labels are Istio's, as attributes of the data points: dashboards for Istio work behind any collector, and
//! Prometheus' own receiver keeps both unchanged. Start times are those of the series, which a pinned state continues.
//! Source of the messages: opentelemetry-proto `metrics/v1/metrics.proto`.

pub mod answer;
mod conventions;
mod exponential;
mod options;
mod point;
mod request;
mod stream;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

pub(super) use self::point::{put_integer_attribute, put_text_attribute};
use self::{
    exponential::Exponentials,
    point::{EXEMPLARS, EXPONENTIAL_EXEMPLARS, Numbers, PointWriter},
    request::{MetricHead, RequestBuilder},
    stream::{Number, Stream, StreamValue},
};
pub use self::{
    options::{Histograms, Names, Options, Temporality},
    request::split,
};
use super::{
    Batch, Encoder,
    delta::{Deltas, NoRoom},
};
use crate::{
    Cursor, Family, Snapshot,
    catalogue::Origin,
    exposition::MetricType,
    labels::{Reporter, UNKNOWN},
};

/// Size at which a batch is complete, without compression: a quarter of what gRPC servers accept by default.
const MAX_BATCH_BYTES: usize = 1 << 20;
/// Reason for points that are not sent.
const TOO_MANY_SERIES: &str = "too_many_series";
const CLUSTER: &str = "k8s.cluster.name";

/// Renders snapshots as OTLP requests.
#[derive(Debug)]
pub struct OtlpEncoder {
    options: Options,
    /// Attributes of the resource, in their order.
    resource: Vec<(String, String)>,
    deltas: Deltas<Numbers>,
    exponentials: Exponentials,
    /// Points that were not sent since too many series would have to be remembered.
    too_many_series: u64,
}

impl OtlpEncoder {
    /// Returns an encoder for one node; `node` is its name.
    #[must_use]
    pub fn new(options: Options, node: &str) -> Self {
        let own = [
            ("service.name", "mesh-observer"),
            ("service.instance.id", node),
            ("host.name", node),
            ("k8s.node.name", node),
        ];
        let is_replaced = |name: &str| options.resource.iter().any(|(other, _)| other == name);
        let own = own.into_iter().filter(|(name, _)| !is_replaced(name));
        let mut resource: Vec<_> = own.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        resource.extend(options.resource.iter().cloned());
        Self { options, resource, deltas: Deltas::default(), exponentials: Exponentials::default(), too_many_series: 0 }
    }

    /// Adds the cluster's name, once a sidecar of this node has one.
    fn find_cluster(&mut self, snapshot: &Snapshot) {
        if self.resource.iter().any(|(name, _)| name == CLUSTER) {
            return;
        }
        let http = snapshot.http.iter().map(|series| &series.labels);
        let cluster = http.chain(snapshot.tcp.iter().map(|series| &series.labels)).find_map(|labels| {
            let own = match labels.reporter {
                Reporter::Source => &labels.source.cluster,
                Reporter::Destination => &labels.destination.cluster,
                Reporter::Unknown => return None,
            };
            (&**own != UNKNOWN && !own.is_empty()).then(|| own.to_string())
        });
        self.resource.extend(cluster.map(|cluster| (CLUSTER.to_owned(), cluster)));
    }
}

impl Encoder for OtlpEncoder {
    fn encode(&mut self, snapshot: Arc<Snapshot>) -> Box<dyn Iterator<Item = Batch> + Send + '_> {
        self.find_cluster(&snapshot);
        self.deltas.begin(snapshot.began);
        self.exponentials.begin(&snapshot);
        let request = RequestBuilder::new(&self.resource);
        let point = PointWriter::new(snapshot.at);
        let cursor = Cursor::default();
        Box::new(Batches { encoder: self, snapshot, family: 0, kind: 0, cursor, head: None, request, point })
    }

    fn rejected(&self) -> Vec<(&'static str, u64)> {
        vec![(TOO_MANY_SERIES, self.too_many_series)]
    }

    fn filtered(&self) -> u64 {
        0
    }
}

/// The batches of one snapshot, rendered on demand.
struct Batches<'a> {
    encoder: &'a mut OtlpEncoder,
    snapshot: Arc<Snapshot>,
    /// Position: the family, which of the metrics that it is sent as, and the point.
    family: usize,
    kind: usize,
    cursor: Cursor,
    /// The metric of the last point.
    head: Option<MetricHead>,
    request: RequestBuilder,
    point: PointWriter,
}

impl Iterator for Batches<'_> {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        let snapshot = self.snapshot.clone();
        while let Some(family) = snapshot.family(self.family) {
            let kinds = conventions::kinds(self.encoder.options.names, &family);
            while let Some(kind) = kinds.get(self.kind) {
                while let Some(stream) = Stream::next(&family, &mut self.cursor) {
                    if kind.includes(&family, &stream.labels) {
                        self.write(&family, *kind, &stream);
                    }
                    if self.request.size() >= MAX_BATCH_BYTES {
                        return self.request.take();
                    }
                }
                self.request.close();
                self.head = None;
                (self.kind, self.cursor) = (self.kind + 1, Cursor::default());
            }
            (self.family, self.kind) = (self.family + 1, 0);
        }
        let last = self.request.take();
        if last.is_none() {
            self.encoder.deltas.end(snapshot.at);
            self.encoder.exponentials.end(snapshot.at);
        }
        last
    }
}

impl Batches<'_> {
    fn write(&mut self, family: &Family<'_>, kind: conventions::Kind, stream: &Stream<'_>) {
        let Self { encoder, snapshot, head, request, point, .. } = self;
        let is_delta = encoder.options.temporality == Temporality::Delta;
        if !head.as_ref().is_some_and(|head| head.has(family, &stream.value, &encoder.options)) {
            request.close();
            *head = Some(MetricHead::new(family, kind, &stream.value, &encoder.options));
        }
        let Some(head) = head else { return };
        point.begin(head.attributes_field(), |each| {
            kind.attributes(&stream.labels, each);
            if let StreamValue::Other { bound: Some(bound), .. } = &stream.value {
                each("le", conventions::Attribute::Text(bound));
            }
        });
        let series = (&*head.name, point.attributes());
        let created = stream.created;
        let scale = kind.factor();
        let exponential = encoder.options.histograms == Histograms::Exponential;
        if let (StreamValue::Histogram(histogram), true) = (&stream.value, exponential)
            && let Some((index, cells)) = histogram.recent_cells()
        {
            let (sum, created) = (histogram.sum(), created.unwrap_or(snapshot.at));
            match encoder.exponentials.add(series, &cells, sum, created, is_delta) {
                Ok(Some(values)) => {
                    point.exponential(&values, index, scale);
                    point.exemplars(EXPONENTIAL_EXEMPLARS, histogram.exemplars(), scale, Some(values.since));
                }
                Ok(None) => return,
                Err(NoRoom) => return encoder.too_many_series += 1,
            }
        } else {
            let mut numbers = Numbers::of(&stream.value);
            let mut since = created;
            if is_delta && head.is_cumulative() {
                let created = created.unwrap_or(SystemTime::UNIX_EPOCH);
                let origin = if stream.created.is_some() { family.origin() } else { Origin::Istiod };
                match encoder.deltas.increase(series, numbers, origin, created, snapshot.at) {
                    Ok(Some(increase)) => (numbers, since) = (increase.by, Some(increase.since)),
                    Ok(None) => return,
                    Err(NoRoom) => return encoder.too_many_series += 1,
                }
            }
            let since = since.filter(|_| head.is_cumulative());
            match &stream.value {
                StreamValue::Number(number) | StreamValue::Other { value: number, .. } => {
                    point.number(numbers.like(*number), since);
                }
                StreamValue::Histogram(histogram) => {
                    let bounds = histogram.buckets().filter_map(|(bound, _)| bound.parse().ok());
                    point.histogram(&numbers, bounds, scale, since);
                    point.exemplars(EXEMPLARS, histogram.exemplars(), scale, since);
                }
                StreamValue::Scraped(histogram) => {
                    point.histogram(&numbers, histogram.bounds.iter().copied(), scale, since);
                }
                StreamValue::Summary(summary) => point.summary(summary, since),
            }
        }
        request.add(head, &point.message);
    }
}

/// Returns nanoseconds since 1970.
pub(super) fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

impl Number {
    fn is_negative(self) -> bool {
        matches!(self, Self::Real(value) if value < 0.0)
    }
}

/// Whether a family is a total that only grows.
fn is_monotonic(family: &Family<'_>, value: &StreamValue<'_>) -> bool {
    family.metric_type() == MetricType::Counter && matches!(value, StreamValue::Number(number) if !number.is_negative())
}

#[cfg(test)]
mod tests;
