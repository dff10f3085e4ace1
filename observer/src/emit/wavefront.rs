//! Snapshot -> Wavefront metric lines. Pure; `file` and `http` send them.
//!
//! Form of a line: `"name" value seconds source="node" "key"="value" …`, everything quoted, tags sorted, numbers without
//! exponent. That is the part of the grammar which every known decoder reads alike. There is no escape for a backslash,
//! so trailing ones are cut; line feeds become the two characters `\n`; empty values, `-` and `/` are no tag.
//!
//! A point takes at most 20 tags, `le` included, and Istio has 25 labels. So the principals, the canonical services
//! and the canonical revisions are left out, and series that differ in nothing else are added up. The collector's
//! names ([`Names::Collector`]) reproduce the recording rules of the integration for Prometheus, which keep eight labels.
//! There a bucket is a rate over the last interval, elsewhere a cumulative count.
//!
//! A proxy answers 202 even for lines it rejects later, so every limit is checked here and every rejected point counted.

pub mod file;
pub mod http;
mod line;
pub mod token;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
    vec,
};

use observer_ebpf::{DURATION, REQUEST_BYTES, RESPONSE_BYTES};

use self::line::{REASONS, SOURCE_LENGTH, Tags, Writer};
use super::{Batch, Encoder};
use crate::model::{
    HistogramView, Labels, Series, Snapshot, Value,
    cardinality::{Accounts, Moment},
    catalogue::{self, Family},
    counter::{self, Figures, TcpFigures},
    histogram::{HttpFigures, LE, PackedCells, QUANTILES},
    labels::{MeshLabels, Projection, REPORTING_APP},
};

/// Lines in one batch at most, the default of Wavefront's own senders.
const BATCH_POINTS: u64 = 10_000;
/// Bytes at which a batch is full; a proxy takes 16 MiB.
const BATCH_BYTES: usize = 512 * 1024;
/// Labels sent under documented names, by index of `labels::HTTP`: all but principals and canonical names.
const DOCUMENTED: &[usize] = &[0, 1, 4, 6, 7, 8, 9, 10, 12, 13, 14, 17, 18, 19, 20, 21, 22, 23, 24];
/// The same without what TCP families lack.
const DOCUMENTED_TCP: &[usize] = &[0, 1, 4, 6, 7, 8, 9, 10, 12, 13, 14, 17, 18, 19, 20, 23, 24];
/// Labels that the integration's recording rules keep.
const COLLECTOR: &[usize] = &[0, 1, 4, 9, 10, 21, 23, REPORTING_APP];
/// The same without what TCP families lack.
const COLLECTOR_TCP: &[usize] = &[0, 1, 4, 9, 10, 23, REPORTING_APP];

/// Which names are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Names {
    /// `istio.request.bytes.p99.value`.
    #[default]
    Documented,
    /// `istio.request.bytes.bucket.p99.value`, buckets as rates, and eight labels: what the chain of Prometheus,
    /// recording rules and collector sent.
    Collector,
}

/// A source that cannot be sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} cannot be the source of Wavefront points: it needs 1 to 128 letters, digits, dots, dashes or underscores; set the node's name"
)]
pub struct SourceError(String);

/// A series of the snapshot: forgotten and begun anew it is another one.
type SeriesId = (Arc<MeshLabels>, SystemTime);

/// Makes lines of snapshots. Remembers totals, which must not go back when series that were added up retire.
#[derive(Debug)]
pub struct Lines {
    names: Names,
    source: String,
    http: Accounts<SeriesId, Projection, HttpFigures>,
    tcp: Accounts<SeriesId, Projection, TcpFigures>,
    /// Totals of the last report, for rates.
    previous: HashMap<Arc<Projection>, Arc<HttpFigures>>,
    reported: Option<SystemTime>,
    rejected: [u64; REASONS.len()],
}

impl Lines {
    /// An encoder for one node; `source` is its name.
    ///
    /// # Errors
    /// The name cannot be a source.
    pub fn new(names: Names, source: &str) -> Result<Self, SourceError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if source.is_empty() || source.len() > SOURCE_LENGTH || !source.bytes().all(allowed) {
            return Err(SourceError(source.to_owned()));
        }
        Ok(Self {
            names,
            source: source.to_owned(),
            http: Accounts::default(),
            tcp: Accounts::default(),
            previous: HashMap::new(),
            reported: None,
            rejected: [0; REASONS.len()],
        })
    }

    /// Adds up what differs only in labels that are not sent.
    fn aggregate(&mut self, snapshot: &Snapshot) {
        let at = Moment { now: snapshot.at, before: self.reported.unwrap_or(snapshot.at) };
        let (http, tcp) = match self.names {
            Names::Documented => (DOCUMENTED, DOCUMENTED_TCP),
            Names::Collector => (COLLECTOR, COLLECTOR_TCP),
        };
        add_up(&mut self.http, &snapshot.http, http, at);
        add_up(&mut self.tcp, &snapshot.tcp, tcp, at);
    }

    /// The rate of every bucket since the last report needs that report's totals; none before the second.
    fn requests(&mut self, snapshot: &Snapshot) -> vec::IntoIter<Requests> {
        let elapsed = self.reported.and_then(|before| snapshot.at.duration_since(before).ok());
        let requests: Vec<_> = self
            .http
            .exposed()
            .map(|account| Requests {
                labels: account.labels.clone(),
                total: account.total.clone(),
                recent: account.recent.clone(),
                grown: elapsed.filter(|_| self.names == Names::Collector).map(|elapsed| {
                    // What was not there in the last report was 0 then.
                    (self.previous.get(&account.labels).cloned().unwrap_or_default(), elapsed)
                }),
            })
            .collect();
        if self.names == Names::Collector {
            self.previous = requests.iter().map(|own| (own.labels.clone(), own.total.clone())).collect();
        }
        self.reported = Some(snapshot.at);
        requests.into_iter()
    }
}

fn add_up<F: Figures>(
    accounts: &mut Accounts<SeriesId, Projection, F>,
    series: &[Series<F>],
    kept: &'static [usize],
    at: Moment,
) {
    accounts.begin(true);
    for series in series {
        let labels = || Projection::new(series.labels.clone(), kept);
        let id = (series.labels.clone(), series.created);
        accounts.feed(id.clone(), series.figures.clone(), true, at, labels);
        if let Some(recent) = &series.recent {
            accounts.recent(&id, recent);
        }
    }
    // A series that retired may come back with its whole past, which is in what was added up already.
    accounts.end_with_absent_feeds(at.now);
}

impl Encoder for Lines {
    fn encode(&mut self, snapshot: Arc<Snapshot>) -> Box<dyn Iterator<Item = Batch> + Send + '_> {
        self.aggregate(&snapshot);
        let seconds = snapshot.at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let ending = format!(" {seconds} source=\"{}\"", self.source);
        let requests = self.requests(&snapshot);
        let tcp: Vec<_> = self.tcp.exposed().map(|own| (own.labels.clone(), own.total.clone())).collect();
        let writer = Writer { text: String::new(), points: 0, ending, rejected: &mut self.rejected };
        // Istio's families come first in a snapshot; they are sent added up.
        Box::new(Report { names: self.names, requests, tcp: tcp.into_iter(), snapshot, family: 8, writer })
    }

    fn rejected(&self) -> Vec<(&'static str, u64)> {
        REASONS.iter().zip(self.rejected).map(|((_, name), count)| (*name, count)).collect()
    }
}

/// One label set of the HTTP families.
struct Requests {
    labels: Arc<Projection>,
    total: Arc<HttpFigures>,
    recent: Option<Arc<PackedCells>>,
    /// Totals of the last report and the time since, where buckets are rates.
    grown: Option<(Arc<HttpFigures>, Duration)>,
}

/// The batches of one snapshot.
struct Report<'a> {
    names: Names,
    requests: vec::IntoIter<Requests>,
    tcp: vec::IntoIter<(Arc<Projection>, Arc<TcpFigures>)>,
    snapshot: Arc<Snapshot>,
    family: usize,
    writer: Writer<'a>,
}

impl Iterator for Report<'_> {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        while self.writer.points < BATCH_POINTS && self.writer.text.len() < BATCH_BYTES && self.advance() {}
        self.writer.take()
    }
}

impl Report<'_> {
    /// Writes one label set or one family of the observer's own; `false` at the end.
    fn advance(&mut self) -> bool {
        if let Some(requests) = self.requests.next() {
            self.request_lines(&requests);
        } else if let Some((labels, total)) = self.tcp.next() {
            let tags = Tags::new(|each| labels.each(each));
            for (family, value) in [
                (&catalogue::TCP_OPENED, total.opened),
                (&catalogue::TCP_CLOSED, total.closed),
                (&catalogue::TCP_RECEIVED_BYTES, total.received_bytes),
                (&catalogue::TCP_SENT_BYTES, total.sent_bytes),
            ] {
                self.writer.line(family.documented_name, &value, &tags, None);
            }
        } else if let Some(points) = self.snapshot.family(self.family) {
            self.family += 1;
            for point in points.iter() {
                let Labels::Own(..) = point.labels else { continue };
                let tags = Tags::new(|each| point.labels.each(each));
                match point.value {
                    Value::Integer(value) => self.writer.line(points.family.documented_name, &value, &tags, None),
                    Value::Real(value) => self.writer.real(points.family.documented_name, value, &tags, None),
                    Value::Histogram(_) => {}
                }
            }
        } else {
            return false;
        }
        true
    }

    fn request_lines(&mut self, requests: &Requests) {
        let tags = Tags::new(|each| requests.labels.each(each));
        let total = &requests.total;
        self.writer.line(catalogue::REQUESTS.documented_name, &total.requests(), &tags, None);
        for (family, index) in [
            (&catalogue::REQUEST_DURATION, DURATION),
            (&catalogue::REQUEST_BYTES, REQUEST_BYTES),
            (&catalogue::RESPONSE_BYTES, RESPONSE_BYTES),
        ] {
            let view = HistogramView::new(total, requests.recent.as_deref(), index);
            let cumulative = view.cumulative();
            let bucket = statistic(family, "bucket");
            match (self.names, &requests.grown) {
                (Names::Documented, _) => {
                    for (le, count) in LE.into_iter().zip(cumulative) {
                        self.writer.line(&bucket, &count, &tags, Some(le));
                    }
                }
                (Names::Collector, Some((older, elapsed))) => {
                    let older = HistogramView::new(older, None, index).cumulative();
                    for ((le, older), newer) in LE.into_iter().zip(older).zip(cumulative) {
                        if let Some(rate) = counter::rate(older, newer, *elapsed) {
                            self.writer.real(&bucket, rate, &tags, Some(le));
                        }
                    }
                }
                (Names::Collector, None) => {}
            }
            for ((name, _), value) in QUANTILES.into_iter().zip(view.quantiles().into_iter().flatten()) {
                let name = match self.names {
                    Names::Documented => statistic(family, name),
                    Names::Collector => statistic(family, &format!("bucket.{name}")),
                };
                self.writer.real(&name, value, &tags, None);
            }
            self.writer.line(&statistic(family, "count"), &cumulative[LE.len() - 1], &tags, None);
            self.writer.real(&statistic(family, "sum"), view.sum(), &tags, None);
        }
    }
}

fn statistic(family: &Family, statistic: &str) -> String {
    family.documented_name.replace('*', statistic)
}

#[cfg(test)]
mod tests;
