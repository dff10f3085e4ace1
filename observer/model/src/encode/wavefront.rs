//! Wavefront metric lines.
//!
//! Form of a line: `"name" value seconds source="node" "key"="value" …`, everything quoted, tags sorted, numbers
//! without exponent: the part of the grammar that every known decoder reads equally. There is no escape for a
//! backslash, so trailing ones are cut; line feeds become the two characters `\n`; empty values, `-` and `/` are not
//! sent.
//!
//! A point has at most 20 tags, `le` included, and Istio has 25 labels. So principals, canonical services and canonical
//! revisions are dropped, and series that differ in nothing else are added up. The collector's names
//! ([`Names::Collector`]) reproduce the recording rules of the legacy pipeline, which keep eight labels. There a bucket
//! is a rate over the last interval, elsewhere a cumulative count.
//!
//! Tags that the filters exclude are dropped before that, so that series that become equal are added up.
//!
//! A proxy responds with 202 even to lines it rejects later, so every limit is checked here and rejections are counted.

mod batches;
pub mod filter;
pub mod glob;
mod limits;
mod line;
mod options;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;

pub(super) use self::line::{tag_value, write_tag};
use self::{
    batches::{Batches, Connections, Requests},
    limits::MAX_SOURCE_LENGTH,
    line::{REASONS, Writer, WriterState},
};
pub use self::{
    line::point_tag,
    options::{Names, Options, SetupError},
};
use super::{Batch, Encoder};
use crate::{
    Series, Snapshot,
    aggregate::{Aggregator, Round},
    histogram::HttpTotals,
    labels::{Label, LabelSubset, MeshLabels},
    totals::{TcpTotals, Totals},
};

/// Labels under documented names: all but principals and canonical names.
const DOCUMENTED: &[Label] = &[
    Label::Reporter,
    Label::SourceWorkload,
    Label::SourceWorkloadNamespace,
    Label::SourceApp,
    Label::SourceVersion,
    Label::SourceCluster,
    Label::DestinationWorkload,
    Label::DestinationWorkloadNamespace,
    Label::DestinationApp,
    Label::DestinationVersion,
    Label::DestinationService,
    Label::DestinationServiceName,
    Label::DestinationServiceNamespace,
    Label::DestinationCluster,
    Label::RequestProtocol,
    Label::ResponseCode,
    Label::GrpcResponseStatus,
    Label::ResponseFlags,
    Label::ConnectionSecurityPolicy,
];
/// Labels that the legacy pipeline's recording rules keep.
const COLLECTOR: &[Label] = &[
    Label::Reporter,
    Label::SourceWorkload,
    Label::SourceWorkloadNamespace,
    Label::DestinationWorkload,
    Label::DestinationWorkloadNamespace,
    Label::ResponseCode,
    Label::ResponseFlags,
    Label::App,
];

/// A series of the snapshot; one that restarts from 0 is another one.
type SeriesId = (Arc<MeshLabels>, SystemTime);

/// Renders snapshots as lines. Keeps totals, which must not decrease when series that were added up retire.
#[derive(Debug)]
pub struct WavefrontEncoder {
    options: Options,
    source: String,
    /// Labels that are sent.
    kept_http: Arc<[Label]>,
    kept_tcp: Arc<[Label]>,
    http: Aggregator<SeriesId, LabelSubset, HttpTotals>,
    tcp: Aggregator<SeriesId, LabelSubset, TcpTotals>,
    /// Totals of the last push, for rates.
    previous: HashMap<Arc<LabelSubset>, Arc<HttpTotals>>,
    /// When the last push was, on the wall clock and on the monotonic one.
    pushed: Option<(SystemTime, Duration)>,
    state: WriterState,
}

impl WavefrontEncoder {
    /// Returns an encoder for one node; `source` is its name.
    ///
    /// # Errors
    /// The name is not a valid source, or points would exceed the limits of every receiver.
    pub fn new(options: Options, source: &str) -> Result<Self, SetupError> {
        check_source(source)?;
        let labels = match options.names {
            Names::Documented => DOCUMENTED,
            Names::Collector => COLLECTOR,
        };
        let kept = labels.iter().copied().filter(|label| options.filters.keeps_tag(label.name()));
        let kept_http: Arc<[Label]> = kept.clone().collect();
        let kept_tcp = kept.filter(|label| !matches!(label, Label::ResponseCode | Label::GrpcResponseStatus)).collect();
        options.check(&kept_http)?;
        Ok(Self {
            source: source.to_owned(),
            kept_http,
            kept_tcp,
            http: Aggregator::default(),
            tcp: Aggregator::default(),
            previous: HashMap::new(),
            pushed: None,
            state: WriterState::default(),
            options,
        })
    }

    /// Adds up series that differ only in labels that are not sent.
    fn aggregate(&mut self, snapshot: &Snapshot) {
        let round = Round { now: snapshot.at, previous: self.pushed.map_or(snapshot.at, |(at, _)| at) };
        add_up(&mut self.http, &snapshot.http, &self.kept_http, round);
        add_up(&mut self.tcp, &snapshot.tcp, &self.kept_tcp, round);
    }

    /// Returns the HTTP label sets; rates since the last push are known from the second push on.
    fn requests(&mut self, snapshot: &Snapshot) -> Vec<Requests> {
        let rates = self.options.names == Names::Collector;
        let elapsed = self.pushed.map(|(_, before)| snapshot.steady.saturating_sub(before));
        let requests: Vec<_> = self
            .http
            .exposed()
            .map(|series| Requests {
                labels: series.labels.clone(),
                total: series.total.clone(),
                recent: series.recent.clone(),
                previous: elapsed.filter(|_| rates).map(|elapsed| {
                    // A series that is new was 0 at the last push.
                    (self.previous.get(&series.labels).cloned().unwrap_or_default(), elapsed)
                }),
                created: series.created,
            })
            .collect();
        if rates {
            self.previous = requests.iter().map(|own| (own.labels.clone(), own.total.clone())).collect();
        }
        self.pushed = Some((snapshot.at, snapshot.steady));
        requests
    }
}

/// Refuses a name that is not a valid source.
pub(super) fn check_source(source: &str) -> Result<(), SetupError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let is_valid = !source.is_empty() && source.len() <= MAX_SOURCE_LENGTH && source.bytes().all(allowed);
    if is_valid { Ok(()) } else { Err(SetupError::Source(source.to_owned())) }
}

/// Splits a batch in half between lines; `None` if it has only one.
pub(super) fn split(batch: &Batch) -> Option<(Batch, Batch)> {
    let middle = batch.body.len() / 2;
    let (one, other) = batch.body.split_at(middle);
    let before = one.iter().rposition(|byte| *byte == b'\n');
    let after = || other.iter().position(|byte| *byte == b'\n').map(|at| middle + at);
    let cut = before.or_else(after)? + 1;
    let half = |body: Bytes| {
        let points = body.iter().filter(|byte| **byte == b'\n').count() as u64;
        Batch { body, points, form: batch.form }
    };
    (cut < batch.body.len()).then(|| (half(batch.body.slice(..cut)), half(batch.body.slice(cut..))))
}

fn add_up<T: Totals>(
    aggregator: &mut Aggregator<SeriesId, LabelSubset, T>,
    series: &[Series<T>],
    kept: &Arc<[Label]>,
    round: Round,
) {
    aggregator.begin(true);
    for series in series {
        let labels = || LabelSubset::new(series.labels.clone(), kept.clone());
        let id = (series.labels.clone(), series.created);
        aggregator.ingest(id.clone(), series.totals.clone(), true, round, labels);
        if let Some(recent) = &series.recent {
            aggregator.add_interval(&id, recent);
        }
    }
    // A retired series may return with its total, which has been added up already.
    aggregator.end_keeping_absent(round.now);
}

impl Encoder for WavefrontEncoder {
    fn encode(&mut self, snapshot: Arc<Snapshot>) -> Box<dyn Iterator<Item = Batch> + Send + '_> {
        self.aggregate(&snapshot);
        let requests = self.requests(&snapshot);
        let connections = self.tcp.exposed().map(|series| Connections {
            labels: series.labels.clone(),
            total: series.total.clone(),
            created: series.created,
        });
        let connections = connections.collect();
        self.state.deltas.begin(snapshot.began);
        let writer = Writer::new(&self.options, &self.source, snapshot.at, &mut self.state);
        Box::new(Batches::new(&self.options, requests, connections, snapshot, writer))
    }

    fn rejected(&self) -> Vec<(&'static str, u64)> {
        REASONS.iter().zip(self.state.rejected).map(|((_, name), count)| (*name, count)).collect()
    }

    fn filtered(&self) -> u64 {
        self.state.filtered
    }
}

#[cfg(test)]
mod tests;
