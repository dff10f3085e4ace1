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
    config::Config,
    discovery::{Component, Sidecar},
    emit::Emitter,
    kernel::{Kernel, limit_warnings::LimitWarnings},
    model::{
        EndpointStats, Model, SelfMetrics, Snapshot, aggregate, delay::DelayHistogram, persisted::PersistedModel,
        reading::ScrapeReading, workload_index::StaticPeers,
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
    limit_warnings: LimitWarnings,
    proc_root: PathBuf,
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
        let model = match model {
            Some(persisted) => Model::restore(started, retention, persisted)
                .context("--pin: the persisted state is incomplete: discard it with `observer detach --pin DIR`")?,
            None => Model::new(started, retention),
        };
        Ok(Self {
            model,
            peers: Arc::new(config.peers()),
            collection_delay: DelayHistogram::default(),
            emitters: Vec::new(),
            serve_stats: None,
            reads_percentiles,
            limit_warnings: LimitWarnings::default(),
            proc_root: config.proc_root().to_owned(),
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

    /// Whether rounds that close an interval read percentiles.
    #[must_use]
    pub fn reads_percentiles(&self) -> bool {
        self.reads_percentiles
    }

    /// Records how late a round begins that was due then.
    pub fn record_delay(&mut self, due: Instant) {
        self.collection_delay.record(due.elapsed());
    }

    /// Reads everything once.
    pub fn round(&mut self, kernel: &mut Kernel, scope: Scope<'_>, closes_interval: bool) -> Arc<Snapshot> {
        let at = SystemTime::now();
        let start = Instant::now();
        let wants_cells = closes_interval && self.reads_percentiles;
        let mut round = self.model.begin(at, scope.running, scope.ended, &self.peers, closes_interval);
        let (reading, error) = match kernel.read(wants_cells, |series| round.series(series)) {
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
        let mut outcomes = vec![Outcome { collector: "kernel", duration: start.elapsed(), error }];
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
        };
        let steady = self.started.elapsed();
        let reading = Reading { at, steady, kernel: reading, processes, scrapes: scope.scraped, outcomes };
        round.finish(&reading, scope.components, &own)
    }

    /// Offers a snapshot to every emitter.
    pub fn push(&self, snapshot: &Arc<Snapshot>) {
        self.emitters.iter().for_each(|emitter| emitter.offer(snapshot.clone()));
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
