//! The lines of one report, a batch at a time.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
    vec,
};

use observer_common::{DURATION, Direction, REQUEST_BYTES, RESPONSE_BYTES};

use super::{
    Names, Options,
    line::{CENTROIDS, Number, Tags, Writer, tag_value},
};
use crate::{
    FamilyPoints, HistogramView, MESH_FAMILIES, Snapshot, Value,
    catalogue::{self, Family, Kind, Origin},
    control_plane::{ScrapedFamily, ScrapedLine},
    counter::{self, TcpFigures},
    encode::{Batch, Form},
    exposition,
    histogram::{HttpFigures, LE, PackedCells, QUANTILES},
    labels::Projection,
    page::Suffix,
};

/// Histograms of HTTP and gRPC, with their index.
const HISTOGRAMS: [(&Family, usize); 3] = [
    (&catalogue::REQUEST_DURATION, DURATION),
    (&catalogue::REQUEST_BYTES, REQUEST_BYTES),
    (&catalogue::RESPONSE_BYTES, RESPONSE_BYTES),
];

/// One label set of the HTTP families.
pub(super) struct Requests {
    pub(super) labels: Arc<Projection>,
    pub(super) total: Arc<HttpFigures>,
    pub(super) recent: Option<Arc<PackedCells>>,
    /// Totals of the last report and the time since, where buckets are rates.
    pub(super) grown: Option<(Arc<HttpFigures>, Duration)>,
    pub(super) created: SystemTime,
}

/// One label set of the TCP families.
pub(super) struct Connections {
    pub(super) labels: Arc<Projection>,
    pub(super) total: Arc<TcpFigures>,
    pub(super) created: SystemTime,
}

/// One point of any other family.
struct Single {
    name: Arc<str>,
    /// Neighbours mostly have the same ones.
    tags: Arc<Tags>,
    le: Option<Box<str>>,
    value: Number,
    /// Of a counter: whose it is and when it was 0.
    counter: Option<(Origin, SystemTime)>,
}

/// The batches of one snapshot: points first, then distributions, which have a door of their own.
pub(super) struct Report<'a> {
    options: &'a Options,
    requests: Vec<Requests>,
    /// How many of them have their points, and how many their distributions.
    pointed: usize,
    distributed: usize,
    connections: vec::IntoIter<Connections>,
    snapshot: Arc<Snapshot>,
    /// The next family of the observer's own and of the control plane's.
    family: usize,
    scraped: usize,
    singles: vec::IntoIter<Single>,
    writer: Writer<'a>,
}

impl<'a> Report<'a> {
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
            // Istio's own families are sent added up.
            family: MESH_FAMILIES,
            scraped: 0,
            singles: Vec::new().into_iter(),
            writer,
        }
    }
}

impl Iterator for Report<'_> {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        while self.writer.has_room() && self.points() {}
        if let Some(batch) = self.writer.take(Form::Points) {
            return Some(batch);
        }
        while self.writer.has_room() && self.distributions() {}
        let batch = self.writer.take(Form::Distributions);
        if batch.is_none() {
            self.writer.finish();
        }
        batch
    }
}

impl Report<'_> {
    /// Writes the points of one label set, or one point of another family; `false` at the end.
    fn points(&mut self) -> bool {
        if let Some(requests) = self.requests.get(self.pointed) {
            self.pointed += 1;
            request_lines(self.options, requests, &mut self.writer);
        } else if let Some(connections) = self.connections.next() {
            connection_lines(self.options, &connections, &mut self.writer);
        } else if let Some(Single { name, tags, le, value, counter }) = self.singles.next() {
            match counter {
                Some((origin, created)) => self.writer.counter(&name, value, &tags, origin, created),
                None => self.writer.line(&name, value, &tags, le.as_deref()),
            }
        } else if let Some(points) = self.snapshot.family(self.family) {
            self.family += 1;
            self.singles = together(self.options, own(self.options, points)).into_iter();
        } else if let Some(family) = self.snapshot.control_plane.family(self.scraped) {
            self.scraped += 1;
            self.singles = together(self.options, scraped(self.options, family)).into_iter();
        } else {
            return false;
        }
        true
    }

    /// Writes the distributions of one label set; `false` at the end.
    fn distributions(&mut self) -> bool {
        let requests = self.requests.get(self.distributed).filter(|_| self.options.distributions);
        let Some(requests) = requests else { return false };
        self.distributed += 1;
        if let Some(recent) = &requests.recent {
            let tags = Tags::new(self.options, |each| requests.labels.each(each));
            for (family, index) in HISTOGRAMS {
                let view = HistogramView::new(&requests.total, Some(recent), index);
                self.writer.distribution(&distribution(family), &centroids(&view.recent_values()), &tags);
            }
        }
        true
    }
}

fn request_lines(options: &Options, requests: &Requests, writer: &mut Writer<'_>) {
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
        let view = HistogramView::new(&requests.total, requests.recent.as_deref(), index);
        let cumulative = view.cumulative();
        let bucket = statistic(family, "bucket");
        match (options.names, &requests.grown) {
            (Names::Documented, _) => {
                for (le, count) in LE.into_iter().zip(cumulative) {
                    writer.line(&bucket, Number::Integer(count), &tags, Some(le));
                }
            }
            (Names::Collector, Some((older, elapsed))) => {
                let older = HistogramView::new(older, None, index).cumulative();
                for ((le, older), newer) in LE.into_iter().zip(older).zip(cumulative) {
                    if let Some(rate) = counter::rate(older, newer, *elapsed) {
                        writer.line(&bucket, Number::Real(rate), &tags, Some(le));
                    }
                }
            }
            (Names::Collector, None) => {}
        }
        for ((name, _), value) in QUANTILES.into_iter().zip(view.quantiles().into_iter().flatten()) {
            let name = match options.names {
                Names::Documented => statistic(family, name),
                Names::Collector => statistic(family, &format!("bucket.{name}")),
            };
            writer.line(&name, Number::Real(value), &tags, None);
        }
        writer.line(&statistic(family, "count"), Number::Integer(view.count()), &tags, None);
        writer.line(&statistic(family, "sum"), Number::Real(view.sum()), &tags, None);
    }
}

fn connection_lines(options: &Options, connections: &Connections, writer: &mut Writer<'_>) {
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

/// The points of a family of the observer's own.
fn own(options: &Options, points: FamilyPoints<'_>) -> Vec<Single> {
    let family = points.family;
    let name: Arc<str> = family.documented_name.into();
    let mut singles = Vec::new();
    for point in points.iter() {
        let tags = Arc::new(Tags::new(options, |each| point.labels.each(|key, value| each(key, value))));
        let counter = (family.kind == Kind::Counter).then_some((family.origin, point.created));
        let mut single = |name: &Arc<str>, value, le: Option<&str>| {
            singles.push(Single { name: name.clone(), tags: tags.clone(), le: le.map(Box::from), value, counter });
        };
        match point.value {
            Value::Integer(value) => single(&name, Number::Integer(value), None),
            Value::Real(value) => single(&name, Number::Real(value), None),
            Value::Lateness(lateness) => {
                let [bucket, count, sum] = ["bucket", "count", "sum"].map(|own| statistic(family, own).into());
                lateness.buckets().for_each(|(le, count)| single(&bucket, Number::Integer(count), Some(le)));
                single(&count, Number::Integer(lateness.count()), None);
                single(&sum, Number::Real(lateness.sum()), None);
            }
            // Istio's families are sent added up.
            Value::Histogram(_) => {}
        }
    }
    singles
}

/// The points of a family that was scraped. The chain sent one of them under istiod's own spelling, which is not the
/// documented one: among the collector's names it has both.
fn scraped(options: &Options, family: ScrapedFamily<'_>) -> Vec<Single> {
    let mut singles = Vec::new();
    let mut names = BTreeMap::new();
    let mut labelled: Option<(ScrapedLine<'_>, Arc<Tags>)> = None;
    for line in family.lines() {
        let names = names.entry(line.suffix.text()).or_insert_with(|| scraped_names(options, family, line.suffix));
        let tags = match &labelled {
            Some((before, tags)) if before.has_labels_of(&line) => tags.clone(),
            _ => {
                let tags = Arc::new(Tags::new(options, |each| line.each(|key, value| each(key, value))));
                labelled.insert((line, tags)).1.clone()
            }
        };
        let le = line.bound.and_then(tag_value);
        // When a scraped counter was 0 nobody says.
        let counts = family.kind() == exposition::Kind::Counter && line.suffix == Suffix::None;
        let counter = counts.then_some((Origin::Istiod, UNIX_EPOCH));
        for name in &*names {
            let (name, tags, le) = (name.clone(), tags.clone(), le.clone());
            singles.push(Single { name, tags, le, value: Number::Real(line.value), counter });
        }
    }
    singles
}

fn scraped_names(options: &Options, family: ScrapedFamily<'_>, suffix: Suffix) -> Vec<Arc<str>> {
    let documented = family.documented_name(suffix);
    let spelled = format!("{}{}", family.name(), suffix.text()).replace('_', ".") + ".value";
    let both = options.names == Names::Collector && spelled != documented;
    [Some(documented), Some(spelled).filter(|_| both)].into_iter().flatten().map(Arc::from).collect()
}

/// Where tags are left out, points that become alike are added up.
fn together(options: &Options, all: Vec<Single>) -> Vec<Single> {
    if !options.filters.drops_tags() {
        return all;
    }
    let mut singles: Vec<Single> = Vec::new();
    type Seen = (Arc<str>, String, Option<Box<str>>);
    let mut alike: HashMap<Seen, usize> = HashMap::new();
    for single in all {
        match alike.entry((single.name.clone(), single.tags.text(), single.le.clone())) {
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

fn statistic(family: &Family, statistic: &str) -> String {
    family.documented_name.replace('*', statistic)
}

/// The name of a family's distributions, to which the service adds `.m`.
fn distribution(family: &Family) -> String {
    family.documented_name.replace(".*.value", "")
}

/// At most [`CENTROIDS`] of as many values, neighbours put together at their mean.
fn centroids(values: &[(f64, u64)]) -> Vec<(f64, u64)> {
    let together = values.len().div_ceil(CENTROIDS).max(1);
    let mean = |values: &[(f64, u64)]| {
        let count: u64 = values.iter().map(|(_, count)| count).sum();
        #[expect(clippy::cast_precision_loss, reason = "weights of a mean")]
        let sum: f64 = values.iter().map(|(value, count)| value * *count as f64).sum();
        #[expect(clippy::cast_precision_loss, reason = "weights of a mean")]
        (sum / count as f64, count)
    };
    match together {
        1 => values.to_vec(),
        _ => values.chunks(together).map(mean).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn centroids_keep_count_and_sum() {
        let values: Vec<_> = (0..1_000_u32).map(|value| (f64::from(value), u64::from(value % 7 + 1))).collect();
        let few = centroids(&values);
        assert_eq!(few.len(), CENTROIDS);
        assert!(few.is_sorted_by(|a, b| a.0 < b.0));
        let total = |values: &[(f64, u64)]| values.iter().map(|(_, count)| count).sum::<u64>();
        let sum = |values: &[(f64, u64)]| values.iter().map(|(value, count)| value * *count as f64).sum::<f64>();
        assert_eq!(total(&few), total(&values));
        assert!((sum(&few) - sum(&values)).abs() < 1e-6);
        assert_eq!(centroids(&values[..CENTROIDS]), values[..CENTROIDS]);
    }
}
