//! The batches of one push.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
    vec,
};

use observer_common::{DURATION, Direction, REQUEST_BYTES, RESPONSE_BYTES};

use super::{
    limits::MAX_CENTROIDS,
    line::{Number, Tags, Writer, tag_value},
    options::{Names, Options},
};
use crate::{
    Family, HistogramView, Labels, MESH_FAMILIES, Snapshot, Value,
    catalogue::{self, Descriptor, Origin},
    encode::{Batch, Form},
    exposition::MetricType,
    histogram::{HttpTotals, PackedCells, QUANTILES},
    labels::LabelSubset,
    scraped::Suffix,
    totals::{self, TcpTotals},
};

/// Histograms of HTTP and gRPC, with their index.
const HISTOGRAMS: [(&Descriptor, usize); 3] = [
    (&catalogue::REQUEST_DURATION, DURATION),
    (&catalogue::REQUEST_BYTES, REQUEST_BYTES),
    (&catalogue::RESPONSE_BYTES, RESPONSE_BYTES),
];

/// One reduced label set of the HTTP families.
pub(super) struct Requests {
    pub(super) labels: Arc<LabelSubset>,
    pub(super) total: Arc<HttpTotals>,
    pub(super) recent: Option<Arc<PackedCells>>,
    /// Totals of the last push and the time since, where buckets are rates.
    pub(super) previous: Option<(Arc<HttpTotals>, Duration)>,
    pub(super) created: SystemTime,
}

/// One reduced label set of the TCP families.
pub(super) struct Connections {
    pub(super) labels: Arc<LabelSubset>,
    pub(super) total: Arc<TcpTotals>,
    pub(super) created: SystemTime,
}

/// One point of any other family.
struct Single {
    name: Arc<str>,
    /// Shared by neighbours with the same labels.
    tags: Arc<Tags>,
    le: Option<Box<str>>,
    value: Number,
    /// Of a counter: its origin and when it was 0.
    counter: Option<(Origin, SystemTime)>,
}

/// The batches of one snapshot: points first, then distributions, which have an endpoint of their own.
pub(super) struct Batches<'a> {
    options: &'a Options,
    requests: Vec<Requests>,
    /// How many of them have their points written, and how many their distributions.
    pointed: usize,
    distributed: usize,
    connections: vec::IntoIter<Connections>,
    snapshot: Arc<Snapshot>,
    /// The next family that is not Istio's.
    family: usize,
    singles: vec::IntoIter<Single>,
    /// Tags of points that have the labels of their instance alone, as most of a control plane do, by their place in memory.
    instances: HashMap<usize, Arc<Tags>>,
    writer: Writer<'a>,
}

impl<'a> Batches<'a> {
    pub(super) fn new(
        options: &'a Options,
        requests: Vec<Requests>,
        connections: Vec<Connections>,
        snapshot: Arc<Snapshot>,
        writer: Writer<'a>,
    ) -> Self {
        Self {
            options,
            requests,
            pointed: 0,
            distributed: 0,
            connections: connections.into_iter(),
            snapshot,
            // Istio's families have more labels than a point may have tags: they are sent reduced.
            family: MESH_FAMILIES,
            singles: Vec::new().into_iter(),
            instances: HashMap::new(),
            writer,
        }
    }
}

impl Iterator for Batches<'_> {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        while self.writer.has_room() && self.write_points() {}
        if let Some(batch) = self.writer.take(Form::Points) {
            return Some(batch);
        }
        while self.writer.has_room() && self.write_distributions() {}
        let batch = self.writer.take(Form::Distributions);
        if batch.is_none() {
            self.writer.finish();
        }
        batch
    }
}

impl Batches<'_> {
    /// Writes the points of one label set, or one point of another family; `false` at the end.
    fn write_points(&mut self) -> bool {
        if let Some(requests) = self.requests.get(self.pointed) {
            self.pointed += 1;
            write_requests(self.options, requests, &mut self.writer);
        } else if let Some(connections) = self.connections.next() {
            write_connections(self.options, &connections, &mut self.writer);
        } else if let Some(Single { name, tags, le, value, counter }) = self.singles.next() {
            match counter {
                Some((origin, created)) => self.writer.counter(&name, value, &tags, origin, created),
                None => self.writer.line(&name, value, &tags, le.as_deref()),
            }
        } else if let Some(family) = self.snapshot.family(self.family) {
            self.family += 1;
            self.singles = merge_equal(self.options, singles(self.options, family, &mut self.instances)).into_iter();
        } else {
            return false;
        }
        true
    }

    /// Writes the distributions of one label set; `false` at the end.
    fn write_distributions(&mut self) -> bool {
        let requests = self.requests.get(self.distributed).filter(|_| self.options.distributions);
        let Some(requests) = requests else { return false };
        self.distributed += 1;
        if let Some(recent) = &requests.recent {
            let tags = Tags::new(self.options, |each| requests.labels.each(each));
            for (family, index) in HISTOGRAMS {
                let view = HistogramView::new(&requests.total, Some(recent), index);
                // The service appends `.m`.
                let name = family.documented_name.replace(".*.value", "");
                self.writer.distribution(&name, &centroids(&view.recent_values()), &tags);
            }
        }
        true
    }
}

fn write_requests(options: &Options, requests: &Requests, writer: &mut Writer<'_>) {
    let tags = Tags::new(options, |each| requests.labels.each(each));
    let family = &catalogue::REQUESTS;
    let total = Number::Integer(requests.total.requests());
    writer.counter(family.documented_name, total, &tags, family.origin, requests.created);
    for (family, direction) in
        [(&catalogue::REQUEST_MESSAGES, Direction::Request), (&catalogue::RESPONSE_MESSAGES, Direction::Response)]
    {
        let messages = requests.total.messages(direction);
        if messages > 0 {
            let messages = Number::Integer(messages);
            writer.counter(family.documented_name, messages, &tags, family.origin, requests.created);
        }
    }
    for (family, index) in HISTOGRAMS {
        let statistic = |name: &str| family.documented_name.replace('*', name);
        let view = HistogramView::new(&requests.total, requests.recent.as_deref(), index);
        let bucket = statistic("bucket");
        match (options.names, &requests.previous) {
            (Names::Documented, _) => {
                for (le, count) in view.buckets() {
                    writer.line(&bucket, Number::Integer(count), &tags, Some(le));
                }
            }
            (Names::Collector, Some((older, elapsed))) => {
                let older = HistogramView::new(older, None, index);
                for ((le, newer), (_, older)) in view.buckets().zip(older.buckets()) {
                    if let Some(rate) = totals::rate(older, newer, *elapsed) {
                        writer.line(&bucket, Number::Real(rate), &tags, Some(le));
                    }
                }
            }
            (Names::Collector, None) => {}
        }
        for ((name, _), value) in QUANTILES.into_iter().zip(view.quantiles().into_iter().flatten()) {
            let name = match options.names {
                Names::Documented => statistic(name),
                Names::Collector => statistic(&format!("bucket.{name}")),
            };
            writer.line(&name, Number::Real(value), &tags, None);
        }
        writer.line(&statistic("count"), Number::Integer(view.count()), &tags, None);
        writer.line(&statistic("sum"), Number::Real(view.sum()), &tags, None);
    }
}

fn write_connections(options: &Options, connections: &Connections, writer: &mut Writer<'_>) {
    let Connections { labels, total, created } = connections;
    let tags = Tags::new(options, |each| labels.each(each));
    for (family, value) in [
        (&catalogue::TCP_OPENED, total.opened),
        (&catalogue::TCP_CLOSED, total.closed),
        (&catalogue::TCP_RECEIVED_BYTES, total.received_bytes),
        (&catalogue::TCP_SENT_BYTES, total.sent_bytes),
    ] {
        writer.counter(family.documented_name, Number::Integer(value), &tags, family.origin, *created);
    }
}

/// Returns the points of a family that is not reduced.
fn singles(options: &Options, family: Family<'_>, instances: &mut HashMap<usize, Arc<Tags>>) -> Vec<Single> {
    let mut singles = Vec::new();
    let mut names = BTreeMap::new();
    let mut neighbour: Option<(Labels<'_>, Arc<Tags>)> = None;
    for point in family.points() {
        let tags = match &neighbour {
            Some((labels, tags)) if labels.is_same(&point.labels) => tags.clone(),
            _ => {
                let tags = || Arc::new(Tags::new(options, |each| point.labels.each(|key, value| each(key, value))));
                let tags = match point.labels.instance_place() {
                    Some(place) => instances.entry(place).or_insert_with(tags).clone(),
                    None => tags(),
                };
                neighbour.insert((point.labels, tags)).1.clone()
            }
        };
        let is_counter = family.metric_type() == MetricType::Counter;
        let counter = is_counter.then(|| (family.origin(), point.created.unwrap_or(UNIX_EPOCH)));
        let mut push = |suffix: Suffix, value, le: Option<&str>| {
            for name in names.entry(suffix.text()).or_insert_with(|| statistic_names(options, &family, suffix)) {
                let le = le.and_then(tag_value);
                singles.push(Single { name: name.clone(), tags: tags.clone(), le, value, counter });
            }
        };
        match point.value {
            Value::Integer(value) => push(Suffix::None, Number::Integer(value), None),
            Value::Real(value) => push(Suffix::None, Number::Real(value), None),
            Value::Sample { suffix, bound, value } => push(suffix, Number::Real(value), bound),
            Value::Histogram(histogram) => {
                for (le, count) in histogram.buckets() {
                    push(Suffix::Bucket, Number::Integer(count), Some(le));
                }
                push(Suffix::Count, Number::Integer(histogram.count()), None);
                push(Suffix::Sum, Number::Real(histogram.sum()), None);
            }
        }
    }
    singles
}

/// Returns the names under which a statistic is sent. The legacy pipeline sent one family under istiod's own spelling,
/// which is not the documented one: its names include both.
fn statistic_names(options: &Options, family: &Family<'_>, suffix: Suffix) -> Vec<Arc<str>> {
    let documented = family.statistic_name(suffix);
    let spelled = format!("{}{}", family.name(), suffix.text()).replace('_', ".") + ".value";
    let has_both = options.names == Names::Collector && spelled != documented;
    [Some(documented), Some(spelled).filter(|_| has_both)].into_iter().flatten().map(Arc::from).collect()
}

/// Adds up points that have become equal because tags were left out.
fn merge_equal(options: &Options, all: Vec<Single>) -> Vec<Single> {
    if !options.filters.drops_tags() {
        return all;
    }
    let mut singles: Vec<Single> = Vec::new();
    type Seen = (Arc<str>, String, Option<Box<str>>);
    let mut equal: HashMap<Seen, usize> = HashMap::new();
    for single in all {
        match equal.entry((single.name.clone(), single.tags.text(), single.le.clone())) {
            Entry::Occupied(known) => {
                let Some(known) = singles.get_mut(*known.get()) else { continue };
                known.value = known.value.plus(single.value);
                known.counter = known.counter.zip(single.counter).map(|(own, other)| (own.0, own.1.min(other.1)));
            }
            Entry::Vacant(free) => {
                free.insert(singles.len());
                singles.push(single);
            }
        }
    }
    singles
}

/// Merges neighbours at their mean until at most [`MAX_CENTROIDS`] values are left.
fn centroids(values: &[(f64, u64)]) -> Vec<(f64, u64)> {
    let group_size = values.len().div_ceil(MAX_CENTROIDS).max(1);
    let mean = |values: &[(f64, u64)]| {
        let count: u64 = values.iter().map(|(_, count)| count).sum();
        #[expect(clippy::cast_precision_loss, reason = "weights of a mean")]
        let sum: f64 = values.iter().map(|(value, count)| value * *count as f64).sum();
        #[expect(clippy::cast_precision_loss, reason = "weights of a mean")]
        (sum / count as f64, count)
    };
    match group_size {
        1 => values.to_vec(),
        _ => values.chunks(group_size).map(mean).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn centroids_keep_count_and_sum() {
        let values: Vec<_> = (0..1_000_u32).map(|value| (f64::from(value), u64::from(value % 7 + 1))).collect();
        let few = centroids(&values);
        assert_eq!(few.len(), MAX_CENTROIDS);
        assert!(few.is_sorted_by(|a, b| a.0 < b.0));
        let total = |values: &[(f64, u64)]| values.iter().map(|(_, count)| count).sum::<u64>();
        let sum = |values: &[(f64, u64)]| values.iter().map(|(value, count)| value * *count as f64).sum::<f64>();
        assert_eq!(total(&few), total(&values));
        assert!((sum(&few) - sum(&values)).abs() < 1e-6);
        assert_eq!(centroids(&values[..MAX_CENTROIDS]), values[..MAX_CENTROIDS]);
    }
}
