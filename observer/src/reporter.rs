//! Rounds: reads everything once, updates the model, and offers the snapshot to the emitters.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Error, Result};
use tokio::task::JoinSet;

use crate::{
    collect::{Outcome, Reading, procfs, self_usage},
    config::{
        Config,
        values::{Callers, TraceKinds, TracePaths},
    },
    discovery::{Component, Sidecar, SidecarId, kubernetes::KubernetesHandle},
    emit::Emitter,
    kernel::{Kernel, limit_warnings::LimitWarnings},
    model::{
        EndpointStats, Model, SelfMetrics, Snapshot, aggregate,
        delay::DelayHistogram,
        kubernetes::{Change, Cluster},
        persisted::PersistedModel,
        reading::ScrapeReading,
        span::SpanReading,
        workload_index::StaticPeers,
    },
};

/// Everything that a round covers besides the kernel maps.
pub struct Scope<'a> {
    /// Sidecars that run.
    pub running: &'a [Arc<Sidecar>],
    /// Sidecars that have ended.
    pub ended: &'a [Arc<Sidecar>],
    /// Number of sidecars to which the programs cannot be attached.
    pub refused: u64,
    /// Control-plane processes.
    pub components: &'a [Arc<Component>],
    /// Last results of the scrapes.
    pub scraped: Vec<ScrapeReading>,
}

/// The model, and everything that it is delivered to.
pub struct Reporter {
    model: Model,
    peers: Arc<StaticPeers>,
    collection_delay: DelayHistogram,
    emitters: Vec<Emitter>,
    serve_stats: Option<Box<dyn Fn() -> EndpointStats + Send + Sync>>,
    reads_percentiles: bool,
    /// Whether the next round reads cells even if it closes no interval.
    wants_cells: bool,
    /// Whether somebody looks now: then rounds that close an interval read cells as well.
    is_watched: bool,
    /// Whether scrapes want cells, which are cumulated for them.
    has_scraped_cells: bool,
    /// When the last round ended, whether it has cells for scrapes, and its snapshot.
    last: Option<(Instant, bool, Arc<Snapshot>)>,
    limit_warnings: LimitWarnings,
    kubernetes: Option<KubernetesHandle>,
    proc_root: PathBuf,
    masks_paths: bool,
    span_kinds: TraceKinds,
    started: Instant,
}

impl Reporter {
    /// Creates a reporter that continues from a persisted model. Percentiles cost reading the log-linear cells.
    ///
    /// # Errors
    /// The persisted model is incomplete.
    pub fn new(
        config: &Config,
        started: SystemTime,
        model: Option<PersistedModel>,
        reads_percentiles: bool,
    ) -> Result<Self> {
        let retention = aggregate::DEFAULT_RETENTION;
        let mut model = match model {
            Some(persisted) => Model::restore(started, retention, persisted)
                .context("--pin: the persisted state is incomplete: discard it with `observer detach --pin DIR`")?,
            None => Model::new(started, retention),
        };
        if config.callers == Callers::Off {
            model.turn_callers_off();
        }
        Ok(Self {
            model,
            peers: Arc::new(config.peers()),
            collection_delay: DelayHistogram::default(),
            emitters: Vec::new(),
            serve_stats: None,
            reads_percentiles,
            wants_cells: false,
            is_watched: false,
            has_scraped_cells: false,
            last: None,
            limit_warnings: LimitWarnings::default(),
            kubernetes: None,
            proc_root: config.proc_root().to_owned(),
            masks_paths: config.trace_paths == TracePaths::Masked,
            span_kinds: config.trace_kinds,
            started: Instant::now(),
        })
    }

    /// Starts to deliver.
    pub fn start(&mut self, emitters: Vec<Emitter>, serve_stats: Box<dyn Fn() -> EndpointStats + Send + Sync>) {
        (self.emitters, self.serve_stats) = (emitters, Some(serve_stats));
    }

    /// Replaces the services and workloads that are not on this node.
    pub fn set_peers(&mut self, peers: StaticPeers) {
        self.peers = Arc::new(peers);
    }

    /// Lets names come from the Kubernetes API from now on.
    pub fn set_kubernetes(&mut self, kubernetes: KubernetesHandle) {
        self.kubernetes = Some(kubernetes);
        self.model.turn_cluster_on();
    }

    /// Applies changes of the cluster.
    pub fn apply(&mut self, changes: Vec<Change>) {
        let now = SystemTime::now();
        changes.into_iter().for_each(|change| self.model.cluster_mut().apply(change, now));
    }

    /// Returns the cluster.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        self.model.cluster()
    }

    /// Returns the cluster, to ask it.
    pub fn cluster_mut(&mut self) -> &mut Cluster {
        self.model.cluster_mut()
    }

    /// Returns whether series wait for names, which another round may have.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.model.is_waiting()
    }

    /// Lets no series wait for names any more: the next round is the last.
    pub fn stop_waiting(&mut self) {
        self.model.stop_waiting();
    }

    /// Whether rounds that close an interval read percentiles.
    #[must_use]
    pub fn reads_percentiles(&self) -> bool {
        self.reads_percentiles
    }

    /// Makes the next round read cells, and from now on every one that closes an interval, so that none are lost with
    /// their sidecar.
    pub fn want_cells(&mut self) {
        (self.wants_cells, self.reads_percentiles, self.has_scraped_cells) = (true, true, true);
        self.model.cumulate_cells();
    }

    /// Makes the next round read cells, for whoever looks now, and every one that closes an interval until
    /// [`Reporter::stop_watching`].
    pub fn watch(&mut self) {
        (self.wants_cells, self.is_watched) = (true, true);
        self.model.cumulate_cells();
    }

    /// Forgets cells, unless rounds read them anyway.
    pub fn stop_watching(&mut self) {
        self.is_watched = false;
        if !self.reads_percentiles {
            self.model.forget_cells();
        }
    }

    /// Records how late a round begins that was due then.
    pub fn record_delay(&mut self, due: Instant) {
        self.collection_delay.record(due.elapsed());
    }

    /// Returns the snapshot of the last round if it ended after a scrape was asked for, and has what that wants.
    #[must_use]
    pub fn last_since(&self, asked: Instant, with_cells: bool) -> Option<Arc<Snapshot>> {
        let last = self.last.as_ref().filter(|(ended, has_cells, _)| *ended >= asked && (*has_cells || !with_cells));
        last.map(|(.., snapshot)| snapshot.clone())
    }

    /// Lets go of the last snapshot, unless it is in use.
    pub fn forget_last(&mut self) {
        self.last = None;
    }

    /// Reads everything once.
    pub fn round(&mut self, kernel: &mut Kernel, scope: Scope<'_>, closes_interval: bool) -> Arc<Snapshot> {
        self.forget_last();
        let at = SystemTime::now();
        let start = Instant::now();
        let is_due = closes_interval && (self.reads_percentiles || self.is_watched);
        let wants_cells = std::mem::take(&mut self.wants_cells) || is_due;
        let mut round = self.model.begin(at, scope.running, scope.ended, &self.peers, closes_interval);
        let (reading, error) = match kernel.read(wants_cells, |part| round.ingest(part)) {
            Ok(reading) => (Some(reading), None),
            Err(error) => (None, Some(format!("{:#}", Error::from(error)))),
        };
        match &error {
            Some(error) => tracing::error!("kernel maps cannot be read: {error}"),
            None if wants_cells || !self.reads_percentiles => kernel.mark_read(),
            None => {}
        }
        for limit in reading.iter().flat_map(|reading| self.limit_warnings.newly_reached(&reading.health)) {
            tracing::warn!("{limit}");
        }
        // A failed reading has no time of its own.
        let duration = reading.as_ref().map_or_else(|| start.elapsed(), |reading| reading.duration);
        let mut outcomes = vec![Outcome { collector: "kernel", duration, error }];
        let start = Instant::now();
        let sidecars = scope.running.iter().map(|sidecar| (sidecar.process, Some(&*sidecar.cgroup)));
        let components = scope.components.iter().map(|component| (component.process, component.cgroup.as_deref()));
        let (processes, error) = procfs::read(&self.proc_root, sidecars.chain(components));
        outcomes.push(Outcome { collector: "procfs", duration: start.elapsed(), error });
        let usage = self_usage::usage();
        let own = SelfMetrics {
            cpu: usage.cpu,
            resident_bytes: usage.resident_bytes,
            unattached: Some(scope.refused),
            collection_delay: self.collection_delay.clone(),
            emitters: self.emitters.iter().map(Emitter::stats).collect(),
            endpoint: self.serve_stats.as_ref().map(|stats| stats()),
            kubernetes: self.kubernetes.as_ref().map(KubernetesHandle::stats),
        };
        let steady = self.started.elapsed();
        let reading = Reading { at, steady, kernel: reading, processes, scrapes: scope.scraped, outcomes };
        let snapshot = round.finish(&reading, scope.components, &own);
        if let Some(kubernetes) = &self.kubernetes {
            kubernetes.ask(self.model.cluster_mut().take_wanted(at));
        }
        self.last = Some((Instant::now(), wants_cells && self.has_scraped_cells, snapshot.clone()));
        snapshot
    }

    /// Offers a snapshot to every emitter of metrics.
    pub fn push(&self, snapshot: &Arc<Snapshot>) {
        self.emitters
            .iter()
            .filter(|emitter| !emitter.takes_spans())
            .for_each(|emitter| emitter.offer(snapshot.clone()));
    }

    /// Offers requests as spans to every emitter of spans.
    pub fn push_spans(&mut self, mut requests: Vec<SpanReading>) {
        if self.masks_paths {
            requests.iter_mut().for_each(|request| request.target.mask());
        }
        requests.retain(|request| self.span_kinds.has(request.kind()));
        let snapshot = Arc::new(Snapshot::of_spans(SystemTime::now(), self.model.spans(requests)));
        self.emitters
            .iter()
            .filter(|emitter| emitter.takes_spans())
            .for_each(|emitter| emitter.offer(snapshot.clone()));
    }

    /// Returns whether the workload of a sidecar is known.
    #[must_use]
    pub fn knows(&self, sidecar: SidecarId) -> bool {
        self.model.knows(sidecar)
    }

    /// Returns whether the model must be persisted again.
    pub fn take_changed(&mut self) -> bool {
        self.model.take_changed()
    }

    /// Returns the state of the model to be persisted.
    #[must_use]
    pub fn persisted_model(&self) -> PersistedModel {
        self.model.persist()
    }

    /// Stops all emitters; the returned tasks wait up to `timeout` for their last pushes.
    pub fn finish(&mut self, timeout: Duration) -> JoinSet<()> {
        let emitters = std::mem::take(&mut self.emitters).into_iter();
        emitters.map(|emitter| async move { drop(emitter.finish(timeout).await) }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixture;

    #[test]
    fn a_scrape_shares_a_reading_that_was_under_way_if_it_has_what_is_wanted() {
        let mut reporter = Reporter::new(&Config::default(), SystemTime::now(), None, false).unwrap();
        let (before, ended) = (Instant::now(), Instant::now());
        let after = ended + Duration::from_nanos(1);
        assert!(reporter.last_since(before, false).is_none());
        for has_cells in [false, true] {
            reporter.last = Some((ended, has_cells, fixture::snapshots()[0].clone()));
            assert!(reporter.last_since(before, false).is_some());
            assert_eq!(reporter.last_since(before, true).is_some(), has_cells);
            assert!(reporter.last_since(after, false).is_none());
        }
        reporter.forget_last();
        assert!(reporter.last_since(before, false).is_none());
    }
}
