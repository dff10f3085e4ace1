//! Snapshot -> Wavefront metric lines.
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
//! Tags that the filters leave out are left out before that, so what becomes alike is added up and not sent twice.
//!
//! A proxy answers 202 even for lines it rejects later, so every limit is checked here and every rejected point counted.

mod delta;
pub mod filter;
pub mod glob;
mod line;
mod report;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, SystemTime},
};

pub use self::line::point_tag;
use self::{
    filter::Filters,
    line::{Ledger, REASONS, SOURCE_LENGTH, TAGS, Writer},
    report::{Connections, Report, Requests},
};
use super::{Batch, Encoder};
use crate::{
    Series, Snapshot,
    cardinality::{Accounts, Moment},
    counter::{Figures, TcpFigures},
    histogram::HttpFigures,
    labels::{self, MeshLabels, Projection, REPORTING_APP},
};

/// Labels sent under documented names, by index of `labels::HTTP`: all but principals and canonical names.
const DOCUMENTED: &[usize] = &[0, 1, 4, 6, 7, 8, 9, 10, 12, 13, 14, 17, 18, 19, 20, 21, 22, 23, 24];
/// The same without what TCP families lack.
const DOCUMENTED_TCP: &[usize] = &[0, 1, 4, 6, 7, 8, 9, 10, 12, 13, 14, 17, 18, 19, 20, 23, 24];
/// The label that sockets do not show.
const RESPONSE_FLAGS: &str = "response_flags";
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

/// What is sent, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Which names.
    pub names: Names,
    /// Tags of every point, made by [`point_tag`]; they count more than a label of the same name.
    pub tags: BTreeMap<String, String>,
    /// Which points and which of their tags.
    pub filters: Filters,
    /// Counters as delta counters: their increase since the last report, under the name with ∆ before it.
    pub delta_counters: bool,
    /// Histograms also as distributions of the last interval, which add up across nodes as percentiles do not.
    pub distributions: bool,
}

/// Points that could never be sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// No source.
    #[error(
        "{0:?} cannot be the source of Wavefront points: it needs 1 to 128 letters, digits, dots, dashes or underscores; set the node's name"
    )]
    Source(String),
    /// Too many tags.
    #[error(
        "[wavefront] tags: {own} tags and {labels} labels are more than the {TAGS} that a point takes, so that some would never be sent; leave tags out, leave labels out with tag_exclude, or send wavefront_names = \"collector\", which has 7"
    )]
    TooManyTags {
        /// Tags that are configured.
        own: usize,
        /// Labels that a bucket of Istio's has, `le` included.
        labels: usize,
    },
}

/// A series of the snapshot: forgotten and begun anew it is another one.
type SeriesId = (Arc<MeshLabels>, SystemTime);

/// Makes lines of snapshots. Remembers totals, which must not go back when series that were added up retire.
#[derive(Debug)]
pub struct Lines {
    options: Options,
    source: String,
    /// Labels that are sent, by index of `labels::HTTP`.
    kept_http: Arc<[usize]>,
    kept_tcp: Arc<[usize]>,
    http: Accounts<SeriesId, Projection, HttpFigures>,
    tcp: Accounts<SeriesId, Projection, TcpFigures>,
    /// Totals of the last report, for rates.
    previous: HashMap<Arc<Projection>, Arc<HttpFigures>>,
    /// When the last report was, by the wall clock and by the steady one.
    reported: Option<(SystemTime, Duration)>,
    ledger: Ledger,
}

impl Options {
    /// Refuses more tags than a point takes besides the labels of Istio's families that are sent.
    fn check(&self, kept: &[usize]) -> Result<(), SetupError> {
        // `response_flags` is always `-`, which is no tag, and a tag takes the place of a label of its name.
        let is_sent = |index: &&usize| {
            let name = labels::projected_name(**index);
            name != RESPONSE_FLAGS && !self.tags.contains_key(name)
        };
        let (own, labels) = (self.tags.len(), kept.iter().filter(is_sent).count() + 1);
        if own + labels > TAGS { Err(SetupError::TooManyTags { own, labels }) } else { Ok(()) }
    }
}

impl Lines {
    /// An encoder for one node; `source` is its name.
    ///
    /// # Errors
    /// The name cannot be a source, or the options make points that no receiver takes.
    pub fn new(options: Options, source: &str) -> Result<Self, SetupError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if source.is_empty() || source.len() > SOURCE_LENGTH || !source.bytes().all(allowed) {
            return Err(SetupError::Source(source.to_owned()));
        }
        let (http, tcp) = match options.names {
            Names::Documented => (DOCUMENTED, DOCUMENTED_TCP),
            Names::Collector => (COLLECTOR, COLLECTOR_TCP),
        };
        let kept = |all: &[usize]| -> Arc<[usize]> {
            let stays = |index: &&usize| options.filters.keeps_tag(labels::projected_name(**index));
            all.iter().filter(stays).copied().collect()
        };
        let kept_http = kept(http);
        options.check(&kept_http)?;
        Ok(Self {
            source: source.to_owned(),
            kept_http,
            kept_tcp: kept(tcp),
            http: Accounts::default(),
            tcp: Accounts::default(),
            previous: HashMap::new(),
            reported: None,
            ledger: Ledger::default(),
            options,
        })
    }

    /// Adds up what differs only in labels that are not sent.
    fn aggregate(&mut self, snapshot: &Snapshot) {
        let at = Moment { now: snapshot.at, before: self.reported.map_or(snapshot.at, |(at, _)| at) };
        add_up(&mut self.http, &snapshot.http, &self.kept_http, at);
        add_up(&mut self.tcp, &snapshot.tcp, &self.kept_tcp, at);
    }

    /// The rate of every bucket since the last report needs that report's totals; none before the second.
    fn requests(&mut self, snapshot: &Snapshot) -> Vec<Requests> {
        let rates = self.options.names == Names::Collector;
        let elapsed = self.reported.map(|(_, before)| snapshot.steady.saturating_sub(before));
        let requests: Vec<_> = self
            .http
            .exposed()
            .map(|account| Requests {
                labels: account.labels.clone(),
                total: account.total.clone(),
                recent: account.recent.clone(),
                grown: elapsed.filter(|_| rates).map(|elapsed| {
                    // What was not there in the last report was 0 then.
                    (self.previous.get(&account.labels).cloned().unwrap_or_default(), elapsed)
                }),
                created: account.created,
            })
            .collect();
        if rates {
            self.previous = requests.iter().map(|own| (own.labels.clone(), own.total.clone())).collect();
        }
        self.reported = Some((snapshot.at, snapshot.steady));
        requests
    }
}

fn add_up<F: Figures>(
    accounts: &mut Accounts<SeriesId, Projection, F>,
    series: &[Series<F>],
    kept: &Arc<[usize]>,
    at: Moment,
) {
    accounts.begin(true);
    for series in series {
        let labels = || Projection::new(series.labels.clone(), kept.clone());
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
        let requests = self.requests(&snapshot);
        let connections = self.tcp.exposed().map(|account| Connections {
            labels: account.labels.clone(),
            total: account.total.clone(),
            created: account.created,
        });
        let connections = connections.collect();
        self.ledger.deltas.begin(snapshot.began);
        let writer = Writer::new(&self.options, &self.source, snapshot.at, &mut self.ledger);
        Box::new(Report::new(&self.options, requests, connections, snapshot, writer))
    }

    fn rejected(&self) -> Vec<(&'static str, u64)> {
        REASONS.iter().zip(self.ledger.rejected).map(|((_, name), count)| (*name, count)).collect()
    }

    fn filtered(&self) -> u64 {
        self.ledger.filtered
    }
}

#[cfg(test)]
mod tests;
