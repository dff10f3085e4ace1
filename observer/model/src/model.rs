//! Turns readings into snapshots, keeping what must survive from one round to the next.

use std::{
    collections::{BTreeMap, HashSet},
    hash::Hash,
    sync::Arc,
    time::{Duration, SystemTime},
};

use observer_common::{Direction, Leg, Protocol, Security, SeriesKey};

use crate::{
    aggregate::{Aggregator, Round, Series},
    callers::{Callers, Source},
    catalogue,
    histogram::HttpTotals,
    identity::{Component, Sidecar, SidecarId},
    kubernetes::{Cluster, Unresolved},
    labels::{self, GatewayLabels, MeshLabels, Peer},
    merge::ScrapedFamilies,
    process_metrics,
    reading::{KernelPart, Reading, SeriesReading},
    recorded::RecordedFamilies,
    self_metrics::{self, SelfMetrics},
    snapshot::Snapshot,
    span::{Span, SpanReading},
    totals::{TcpTotals, Totals},
    waiting::Waiting,
    workload_index::{StaticPeers, WorkloadIndex},
};

/// Interval at which pods that no series names any more are dropped.
const SWEEP_INTERVAL: Duration = Duration::from_mins(5);

/// Input of one round.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// Raw values.
    pub reading: &'a Reading,
    /// Sidecars and gateways that run.
    pub running: &'a [Arc<Sidecar>],
    /// Ended sidecars whose totals or addresses may still be needed, the latest first.
    pub ended: &'a [Arc<Sidecar>],
    /// Control-plane processes that run.
    pub components: &'a [Arc<Component>],
    /// Configured peers; compared by pointer, so a change needs a new `Arc`.
    pub peers: &'a Arc<StaticPeers>,
    /// The observer's own stats.
    pub own: &'a SelfMetrics,
    /// Whether this round ends a reporting interval: percentiles then cover the values since the last such round.
    pub closes_interval: bool,
}

/// State kept between rounds.
#[derive(Debug)]
pub struct Model {
    pub(crate) started: SystemTime,
    /// Since when the kernel maps count.
    pub(crate) counting_since: SystemTime,
    pub(crate) previous: SystemTime,
    closed: Duration,
    retention: Duration,
    known: Vec<Arc<Sidecar>>,
    peers: Arc<StaticPeers>,
    index: WorkloadIndex,
    callers: Callers,
    cluster: Cluster,
    /// Generation of the cluster that the index was built from.
    generation: u64,
    pub(crate) waiting: Waiting,
    /// When unused pods were dropped last.
    swept: SystemTime,
    /// Whether there may be series of which an earlier process has exposed more than its state has: the next rebuild keeps
    /// their labels, and the one after it may change them.
    pub(crate) has_inherited: bool,
    pub(crate) http: Aggregator<SeriesKey, MeshLabels, HttpTotals>,
    pub(crate) tcp: Aggregator<SeriesKey, MeshLabels, TcpTotals>,
    pub(crate) encrypted: Aggregator<SeriesKey, GatewayLabels, TcpTotals>,
    collectors: BTreeMap<&'static str, CollectorStats>,
}

#[derive(Debug, Default)]
struct CollectorStats {
    succeeded: u64,
    failed: u64,
    duration: Duration,
}

impl Model {
    /// Returns a model without history. `started` is when the eBPF programs were loaded; an idle series is exposed for
    /// `retention` after its sidecar has ended ([`DEFAULT_RETENTION`](crate::aggregate::DEFAULT_RETENTION)).
    #[must_use]
    pub fn new(started: SystemTime, retention: Duration) -> Self {
        let peers = Arc::new(StaticPeers::default());
        let mut cluster = Cluster::default();
        Self {
            started,
            counting_since: started,
            previous: started,
            closed: Duration::ZERO,
            retention,
            known: Vec::new(),
            index: WorkloadIndex::new([].iter(), &peers, &mut cluster),
            peers,
            callers: Callers::new(started),
            cluster,
            generation: 0,
            waiting: Waiting::new(started),
            swept: started,
            has_inherited: false,
            http: Aggregator::default(),
            tcp: Aggregator::default(),
            encrypted: Aggregator::default(),
            collectors: BTreeMap::new(),
        }
    }

    /// Lets names come from the cluster from now on.
    pub fn turn_cluster_on(&mut self) {
        self.cluster.turn_on();
        self.waiting.start();
    }

    /// Returns the cluster, to apply changes to.
    pub fn cluster_mut(&mut self) -> &mut Cluster {
        &mut self.cluster
    }

    /// Returns the cluster.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Returns how many destinations of this node's traffic are not resolved by the cluster, by reason.
    #[must_use]
    pub fn unresolved(&self) -> BTreeMap<Unresolved, u64> {
        self.index.unresolved()
    }

    /// Returns whether a series waits for the names of its ends, which another round may have.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.waiting.is_any_waiting()
    }

    /// Lets no series wait for names any more: the next round is the last.
    pub fn stop_waiting(&mut self) {
        self.waiting.stop();
    }

    /// Returns whether the persisted state must be rewritten before the next snapshot is published, and resets that.
    pub fn take_changed(&mut self) -> bool {
        let Self { http, tcp, encrypted, .. } = self;
        http.take_changed() | tcp.take_changed() | encrypted.take_changed()
    }

    /// Leaves callers at the destination leg unknown.
    pub fn turn_callers_off(&mut self) {
        self.callers.turn_off();
    }

    #[cfg(test)]
    pub(crate) fn callers_unresolved(&self) -> Vec<(crate::callers::Reason, u64)> {
        self.callers.unresolved().collect()
    }

    /// Ingests one round. Without a kernel reading the totals of the last one stay.
    pub fn update(&mut self, inputs: Inputs<'_>) -> Arc<Snapshot> {
        let Inputs { reading, running, ended, components, peers, own, closes_interval } = inputs;
        let mut update = self.begin(reading.at, running, ended, peers, closes_interval);
        if let Some(kernel) = &reading.kernel {
            update.ingest(KernelPart::Callers(&kernel.callers));
        }
        for series in reading.kernel.iter().flat_map(|kernel| &kernel.series) {
            update.ingest(KernelPart::Series(series));
        }
        for (key, exemplars) in reading.kernel.iter().flat_map(|kernel| &kernel.exemplars) {
            update.ingest(KernelPart::Exemplars(key, exemplars));
        }
        update.finish(reading, components, own)
    }

    /// Returns whether a sidecar is known, so that its workload is.
    #[must_use]
    pub fn knows(&self, sidecar: SidecarId) -> bool {
        self.index.contains(sidecar)
    }

    /// Returns the spans of requests, with the labels under which those are counted.
    pub fn spans(&mut self, requests: Vec<SpanReading>) -> Vec<Span> {
        requests.into_iter().map(|request| Span::new(self.labels(&request.key), request)).collect()
    }

    /// Returns the labels of a series, which may not have been read yet.
    fn labels(&mut self, key: &SeriesKey) -> Arc<MeshLabels> {
        if let Some(labels) = self.http.labels(key) {
            return labels.clone();
        }
        let Self { index, cluster, callers, .. } = self;
        Arc::new(if key.leg == Leg::DESTINATION && callers.is_on() {
            let Source { labels, is_authenticated, has_certificate, .. } = callers.source(key, 1);
            called_labels(index, cluster, key, (&labels, is_authenticated), has_certificate)
        } else {
            index.resolve(cluster, key)
        })
    }

    /// Cumulates cells for native histograms from now on, if it does not yet. A snapshot of readings with cells then has
    /// them.
    pub fn cumulate_cells(&mut self) {
        self.http.cumulate_cells();
    }

    /// Cumulates cells no more, and forgets those of the past.
    pub fn forget_cells(&mut self) {
        self.http.forget_cells();
    }

    /// Begins a round whose series are passed to [`Update::ingest`] one by one, so that they need not be in memory together.
    /// The arguments are those of [`Inputs`].
    pub fn begin<'a>(
        &'a mut self,
        at: SystemTime,
        running: &'a [Arc<Sidecar>],
        ended: &[Arc<Sidecar>],
        peers: &Arc<StaticPeers>,
        closes_interval: bool,
    ) -> Update<'a> {
        let round = Round { now: at, previous: self.previous };
        self.waiting.begin(at, round.previous);
        self.rebuild_index(running, ended, peers, round);
        self.callers.begin(at, round.previous);
        self.http.begin(closes_interval);
        self.tcp.begin(false);
        self.encrypted.begin(false);
        let alive = running.iter().map(|sidecar| sidecar.id).collect();
        Update { model: self, round, running, alive, closes_interval, series: 0 }
    }

    /// Rebuilds the index if sidecars or peers have changed, and moves series to their new labels.
    fn rebuild_index(
        &mut self,
        running: &[Arc<Sidecar>],
        ended: &[Arc<Sidecar>],
        peers: &Arc<StaticPeers>,
        round: Round,
    ) {
        let sidecars = running.iter().chain(ended);
        self.cluster.prepare(round.now);
        let age = round.now.duration_since(self.swept).unwrap_or_default();
        let is_sweep_due = self.cluster.is_on() && age >= SWEEP_INTERVAL;
        let is_same = self.known.len() == running.len() + ended.len()
            && self.generation == self.cluster.generation()
            && self.waiting.is_empty()
            && !self.has_inherited
            && !is_sweep_due
            && self.known.iter().zip(sidecars.clone()).all(|(old, new)| Arc::ptr_eq(old, new))
            && Arc::ptr_eq(&self.peers, peers);
        if is_same {
            return;
        }
        self.generation = self.cluster.generation();
        self.index = WorkloadIndex::new(sidecars.clone(), peers, &mut self.cluster);
        self.known = sidecars.cloned().collect();
        self.peers = peers.clone();
        self.callers.set_pods(running, ended, peers);
        let Self { index, cluster, callers, waiting, .. } = self;
        let is_synced = cluster.is_synced();
        // While an answer is awaited, a series keeps its labels: until then it waits, or nothing contradicts them.
        let mut labels = |key: &SeriesKey, old: &MeshLabels| {
            let waits = !is_synced || !waiting.is_over(key);
            if !index.contains(key.sidecar) || waits && index.is_pending(cluster, key) {
                return None;
            }
            if !callers.is_on() || key.leg != Leg::DESTINATION {
                return Some(index.resolve(cluster, key));
            }
            // The source of a destination leg is that of what it counted last, until it counts again.
            let has_certificate = old.security == labels::Security::MutualTls;
            Some(called_labels(index, cluster, key, (&old.source, old.source_authenticated), has_certificate))
        };
        self.has_inherited = self.http.relabel(round, &mut labels) | self.tcp.relabel(round, labels);
        // All that is used was resolved just now.
        if is_sweep_due {
            self.cluster.sweep();
            self.swept = round.now;
        }
        let index = &self.index;
        self.has_inherited |=
            self.encrypted.relabel(round, |key, _| index.contains(key.sidecar).then(|| index.gateway(key)));
    }
}

/// A round in progress. Dropped without [`Update::finish`], it leaves the totals as far as series were passed.
#[derive(Debug)]
pub struct Update<'a> {
    model: &'a mut Model,
    round: Round,
    running: &'a [Arc<Sidecar>],
    alive: HashSet<SidecarId>,
    closes_interval: bool,
    series: u64,
}

impl Update<'_> {
    /// Ingests a part of what was read from the kernel.
    pub fn ingest(&mut self, part: KernelPart<'_>) {
        match part {
            KernelPart::Callers(reading) if self.model.callers.is_on() => {
                let Model { callers, index, cluster, http, tcp, .. } = &mut *self.model;
                callers.ingest(reading, index, cluster);
                for key in &reading.freed {
                    http.forget(key);
                    tcp.forget(key);
                }
            }
            KernelPart::Callers(_) => {}
            KernelPart::Series(series) => self.series(series),
            KernelPart::Exemplars(key, exemplars) => self.model.http.record_exemplars(key, exemplars),
        }
    }

    /// Ingests one series; each at most once per round.
    fn series(&mut self, reading: &SeriesReading) {
        let (key, round) = (&reading.key, self.round);
        // The overflow series has no sidecar that could end, and counts both HTTP and TCP.
        let is_overflow = key.sidecar == 0;
        let is_alive = is_overflow || self.alive.contains(&key.sidecar);
        self.series += u64::from(!is_overflow);
        let Model { index, cluster, callers, waiting, http, tcp, encrypted, has_inherited, .. } = &mut *self.model;
        // What an earlier observer has exposed stands at once, and under its labels.
        let is_inherited = *has_inherited && (http.is_inherited(key) || tcp.is_inherited(key));
        // The kernel keeps what it counted while the sidecar runs, so that waiting loses nothing.
        let may_wait = is_alive && key.protocol != Protocol::ENCRYPTED && !is_inherited;
        if may_wait && index.is_pending(cluster, key) && waiting.waits(key) {
            http.mark_seen(key, is_alive);
            tcp.mark_seen(key, is_alive);
            return;
        }
        if key.protocol == Protocol::ENCRYPTED && !is_overflow {
            ingest(encrypted, reading, is_alive, round, || index.gateway(key));
        } else if key.leg == Leg::DESTINATION && callers.is_on() && !is_inherited {
            if key.protocol == Protocol::TCP {
                ingest_called(tcp, callers, reading, is_alive, round, (index, cluster), waiting);
            } else if ingest_called(http, callers, reading, is_alive, round, (index, cluster), waiting) {
                record_cells(http, reading, self.closes_interval);
            }
        } else {
            if key.protocol == Protocol::TCP || is_overflow {
                ingest(tcp, reading, is_alive, round, || index.resolve(cluster, key));
            }
            if key.protocol != Protocol::TCP || is_overflow {
                ingest(http, reading, is_alive, round, || index.resolve(cluster, key));
                record_cells(http, reading, self.closes_interval);
            }
        }
    }

    /// Ends the round with everything else that was read; the series in `reading` are ignored. Without a kernel
    /// reading, series that were not passed keep their totals.
    #[must_use]
    pub fn finish(self, reading: &Reading, components: &[Arc<Component>], own: &SelfMetrics) -> Arc<Snapshot> {
        let (model, now) = (&mut *self.model, self.round.now);
        if reading.kernel.is_some() {
            model.http.end(now, model.retention);
            model.tcp.end(now, model.retention);
            model.encrypted.end(now, model.retention);
            model.callers.end();
            model.waiting.end();
            model.previous = now;
        }
        for outcome in &reading.outcomes {
            let stats = model.collectors.entry(outcome.collector).or_default();
            stats.duration += outcome.duration;
            match outcome.error {
                None => stats.succeeded += 1,
                Some(_) => stats.failed += 1,
            }
        }
        let interval = self.closes_interval.then(|| {
            let length = reading.steady.saturating_sub(model.closed);
            model.closed = reading.steady;
            length
        });
        let (http, tcp) = (exposed(&model.http), exposed(&model.tcp));
        let has_messages = |series: &Series<HttpTotals>| {
            series.labels.is_grpc() || Direction::BOTH.iter().any(|&way| series.totals.messages(way) > 0)
        };
        let grpc = http.iter().filter(|series| has_messages(series)).cloned().collect();
        let mut scraped = ScrapedFamilies::new(&reading.scrapes);
        let recorded = self.record(reading, components, own, &mut scraped);
        let (at, steady, began) = (now, reading.steady, self.model.started);
        Arc::new(Snapshot { at, steady, began, interval, http, grpc, tcp, ..Snapshot::new(recorded, scraped) })
    }

    /// Records every family that is neither Istio's nor scraped.
    fn record(
        &self,
        reading: &Reading,
        components: &[Arc<Component>],
        own: &SelfMetrics,
        scraped: &mut ScrapedFamilies,
    ) -> RecordedFamilies {
        let Model { http, tcp, encrypted, .. } = &*self.model;
        let mut families = RecordedFamilies::new(self.model.started);
        self_metrics::record_process(own, self.running, &mut families);
        if let Some(kernel) = &reading.kernel {
            self_metrics::record_programs(&kernel.programs, &mut families);
            families.created = self.model.counting_since;
            self_metrics::record_kernel(kernel, &mut families);
            families.add(&catalogue::SERIES_IN_USE).point(&[], self.series);
            families.add(&catalogue::SERIES_CAPACITY).point(&[], kernel.series_capacity);
        }
        let exposed = http.exposed().count() + tcp.exposed().count();
        families.add(&catalogue::SERIES_EXPOSED).point(&[], exposed as u64);
        families.add(&catalogue::SERIES_RETIRED).point(&[], http.retired() + tcp.retired());
        families.add(&catalogue::SERIES_RESETS).point(&[], http.resets() + tcp.resets() + encrypted.resets());
        families.created = self.model.started;
        let unresolved = families.add(&catalogue::UNRESOLVED_CALLERS);
        self.model.callers.unresolved().for_each(|(reason, count)| unresolved.point(&[reason.label()], count));
        let runs = families.add(&catalogue::COLLECTOR_RUNS);
        for (name, stats) in &self.model.collectors {
            runs.point(&[name, "ok"], stats.succeeded);
            runs.point(&[name, "error"], stats.failed);
        }
        let seconds = families.add(&catalogue::COLLECTOR_SECONDS);
        for (name, stats) in &self.model.collectors {
            seconds.point(&[name], stats.duration);
        }
        if own.collection_delay.count() > 0 {
            families.add(&catalogue::COLLECTION_DELAY).point(&[], own.collection_delay.clone());
        }
        self_metrics::record_outputs(own, &mut families);
        let (cluster, unresolved) = (&self.model.cluster, self.model.unresolved());
        self_metrics::record_kubernetes(own, cluster, &unresolved, &mut families);
        process_metrics::record(&reading.processes, self.running, components, &mut families);
        self_metrics::record_scrapes(&reading.scrapes, scraped.conflicting, &mut families);
        families.override_scraped(scraped);
        let gateways = families.add(&catalogue::GATEWAY_ENCRYPTED);
        for series in encrypted.exposed() {
            let GatewayLabels { workload, namespace, cluster, port } = &*series.labels;
            let port = port.to_string();
            gateways.created = series.created;
            gateways.point(&[workload, namespace, cluster, &port, "opened"], series.total.opened);
            gateways.point(&[workload, namespace, cluster, &port, "closed"], series.total.closed);
        }
        families.retain_non_empty();
        families
    }
}

/// Ingests one series; a series that counts nothing is not aggregated.
fn ingest<L: Eq + Hash, T: Totals>(
    aggregator: &mut Aggregator<SeriesKey, L, T>,
    reading: &SeriesReading,
    is_alive: bool,
    round: Round,
    labels: impl FnOnce() -> L,
) {
    if aggregator.is_unchanged(&reading.key, |totals| totals.equals(reading)) {
        aggregator.mark_unchanged(&reading.key, is_alive);
        return;
    }
    let totals = T::of(reading);
    if !totals.is_zero() {
        aggregator.ingest(reading.key, Arc::new(totals), is_alive, round, labels);
    }
}

/// Ingests one series of a destination leg under the labels of whoever called since the last round. Returns false if it
/// waits for the next round.
fn ingest_called<T: Totals>(
    aggregator: &mut Aggregator<SeriesKey, MeshLabels, T>,
    callers: &mut Callers,
    reading: &SeriesReading,
    is_alive: bool,
    round: Round,
    (index, cluster): (&mut WorkloadIndex, &mut Cluster),
    waiting: &mut Waiting,
) -> bool {
    let key = &reading.key;
    if aggregator.is_unchanged(key, |totals| totals.equals(reading)) {
        aggregator.mark_seen(key, is_alive);
        return true;
    }
    let totals = T::of(reading);
    if totals.is_zero() {
        return true;
    }
    let source = callers.source(key, waiting.rounds(key));
    // The kernel forgets the series of a sidecar that has ended.
    if source.is_pending && is_alive && waiting.waits(key) {
        aggregator.mark_seen(key, is_alive);
        return false;
    }
    if let Some(reason) = source.unresolved {
        let before = aggregator.totals(key).and_then(|before| before.difference(&totals));
        callers.count_unresolved(reason, before.as_ref().unwrap_or(&totals).events());
    }
    let Source { labels, is_authenticated, has_certificate, .. } = source;
    let labels = called_labels(index, cluster, key, (&labels, is_authenticated), has_certificate);
    aggregator.relabel_source(key, labels.clone(), round);
    aggregator.ingest(*key, Arc::new(totals), is_alive, round, || labels);
    true
}

/// Returns the labels of a destination leg whose caller is known. A certificate was verified in a connection with mutual
/// TLS.
fn called_labels(
    index: &mut WorkloadIndex,
    cluster: &mut Cluster,
    key: &SeriesKey,
    (source, source_authenticated): (&Arc<Peer>, bool),
    has_certificate: bool,
) -> MeshLabels {
    let security = if has_certificate { Security::MUTUAL_TLS } else { key.security };
    let own = index.resolve(cluster, &SeriesKey { security, ..*key });
    MeshLabels { source: source.clone(), source_authenticated, ..own }
}

fn record_cells(
    http: &mut Aggregator<SeriesKey, MeshLabels, HttpTotals>,
    reading: &SeriesReading,
    closes_interval: bool,
) {
    let cells = reading.histograms.each_ref().map(|histogram| histogram.cells.as_slice());
    if closes_interval || cells.iter().any(|cells| !cells.is_empty()) {
        http.record_cells(&reading.key, cells, closes_interval);
    }
}

fn exposed<T: Totals>(aggregator: &Aggregator<SeriesKey, MeshLabels, T>) -> Vec<Series<T>> {
    aggregator
        .exposed()
        .map(|series| Series {
            labels: series.labels.clone(),
            totals: series.total.clone(),
            recent: series.recent.clone(),
            cells: series.cells.clone(),
            exemplars: series.exemplars.clone(),
            created: series.created,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Value,
        fixture::{at, http, key, peers, reading, sidecar, sidecars, snapshots},
        identity::Role,
    };
    use observer_common::Leg;

    struct Testbed {
        model: Model,
        running: Vec<Arc<Sidecar>>,
        ended: Vec<Arc<Sidecar>>,
        peers: Arc<StaticPeers>,
    }

    impl Testbed {
        fn new() -> Self {
            let model = Model::new(at(0), Duration::from_mins(15));
            Self { model, running: sidecars(), ended: Vec::new(), peers: peers() }
        }

        fn round(&mut self, seconds: u64, series: Vec<SeriesReading>, closes_interval: bool) -> Arc<Snapshot> {
            self.model.update(Inputs {
                reading: &reading(seconds, series),
                running: &self.running,
                ended: &self.ended,
                components: &[],
                peers: &self.peers,
                own: &SelfMetrics::default(),
                closes_interval,
            })
        }
    }

    fn call(sidecar: u32) -> SeriesKey {
        key(sidecar, Leg::SOURCE, "10.96.0.1:80", Protocol::HTTP, 200)
    }

    fn requests(snapshot: &Snapshot) -> Vec<u64> {
        snapshot.http.iter().map(|series| series.totals.requests()).collect()
    }

    #[test]
    fn series_with_equal_labels_are_added_up_and_keep_the_past_of_those_that_end() {
        let mut testbed = Testbed::new();
        testbed.running[1] = sidecar(2, Role::Sidecar, "10.0.0.2", testbed.running[0].workload.clone());
        let round = |testbed: &mut Testbed, seconds, counts: &[(u32, usize)]| {
            let series = counts.iter().map(|(id, count)| http(call(*id), &vec![1; *count])).collect();
            requests(&testbed.round(seconds, series, false))
        };
        assert_eq!(round(&mut testbed, 1, &[(1, 3), (2, 4)]), [7]);
        assert_eq!(round(&mut testbed, 2, &[(1, 5), (2, 4)]), [9]);
        // The second one's series is dropped from the kernel, then restarts.
        assert_eq!(round(&mut testbed, 3, &[(1, 6)]), [10]);
        assert_eq!(round(&mut testbed, 4, &[(1, 6), (2, 2)]), [12]);
        // The first one's decreases.
        assert_eq!(round(&mut testbed, 5, &[(1, 1), (2, 2)]), [13]);
        assert_eq!(round(&mut testbed, 6, &[(1, 2), (2, 3)]), [15]);
        assert_eq!(testbed.model.http.resets(), 1);
    }

    #[test]
    fn an_idle_series_is_retired_after_its_sidecar_and_comes_back_with_its_past() {
        let mut testbed = Testbed::new();
        let series = || vec![http(call(1), &[1, 2, 3])];
        assert_eq!(requests(&testbed.round(1, series(), false)), [3]);
        assert_eq!(requests(&testbed.round(10_000, series(), false)), [3], "its sidecar runs");
        let gone = testbed.running.remove(0);
        testbed.ended.push(gone);
        assert!(requests(&testbed.round(10_001, series(), false)).is_empty());
        assert_eq!(testbed.model.http.retired(), 1);
        // It moves once more (its last connections end), with its whole past.
        assert_eq!(requests(&testbed.round(10_002, vec![http(call(1), &[1, 2, 3, 3])], false)), [4]);
        assert_eq!(requests(&testbed.round(10_902 - 1, vec![http(call(1), &[1, 2, 3, 3])], false)), [4]);
        assert!(requests(&testbed.round(10_902, vec![http(call(1), &[1, 2, 3, 3])], false)).is_empty());
        // The kernel forgets it, so does the model.
        testbed.round(10_903, Vec::new(), false);
        assert!(testbed.model.http.exposed().next().is_none());
        assert_eq!(requests(&testbed.round(10_904, vec![http(call(1), &[1; 2])], false)), [2]);
    }

    #[test]
    fn what_was_counted_before_a_peer_became_known_stays_where_it_was() {
        let mut testbed = Testbed::new();
        let known = std::mem::take(&mut testbed.peers);
        assert_eq!(requests(&testbed.round(1, vec![http(call(1), &[1; 3])], false)), [3]);
        testbed.peers = known;
        let snapshot = testbed.round(2, vec![http(call(1), &[1; 5])], false);
        assert_eq!(requests(&snapshot), [3, 2]);
        let mut services = Vec::new();
        for series in &snapshot.http {
            series.labels.each(&labels::HTTP, |name, value| {
                if name == "destination_service_name" {
                    services.push(value.to_owned());
                }
            });
        }
        assert_eq!(services, ["unknown", "reviews"]);
        assert_eq!(snapshot.http[1].created, at(1), "it was 0 in the round before");
    }

    #[test]
    fn percentiles_are_over_the_interval_whatever_scrapes_come_between() {
        let mut testbed = Testbed::new();
        let quantiles = |snapshot: &Snapshot| {
            snapshot.family(1).unwrap().points().next().and_then(|point| match point.value {
                Value::Histogram(histogram) => histogram.quantiles(),
                _ => None,
            })
        };
        let first = testbed.round(10, vec![http(call(1), &[10, 10])], true);
        assert!(quantiles(&first).is_some_and(|values| values.iter().all(|value| (9.9..10.5).contains(value))));
        assert_eq!(first.interval, Some(Duration::from_secs(10)));
        let mut without_cells = http(call(1), &[10, 10, 500]);
        without_cells.histograms.iter_mut().for_each(|histogram| histogram.cells.clear());
        let scraped = testbed.round(12, vec![without_cells], false);
        assert_eq!(quantiles(&scraped), quantiles(&first));
        let second = testbed.round(20, vec![http(call(1), &[10, 10, 500])], true);
        assert!(quantiles(&second).is_some_and(|values| values.iter().all(|value| (492.0..508.0).contains(value))));
        assert_eq!(quantiles(&testbed.round(30, vec![http(call(1), &[10, 10, 500])], true)), None);
    }

    #[test]
    fn without_a_kernel_reading_the_last_figures_stand() {
        let mut testbed = Testbed::new();
        testbed.round(1, vec![http(call(1), &[1; 3])], false);
        let mut failed = reading(2, Vec::new());
        failed.kernel = None;
        let snapshot = testbed.model.update(Inputs {
            reading: &failed,
            running: &testbed.running,
            ended: &[],
            components: &[],
            peers: &testbed.peers,
            own: &SelfMetrics::default(),
            closes_interval: false,
        });
        assert_eq!(requests(&snapshot), [3]);
    }

    #[test]
    fn encrypted_gateway_connections_and_the_overflow_have_their_own_places() {
        let [snapshot, _] = snapshots();
        let name = catalogue::GATEWAY_ENCRYPTED.prometheus_name;
        let gateway = snapshot.families().find(|family| family.name() == name);
        let points: Vec<_> = gateway.unwrap().points().collect();
        assert!(matches!(points[0].value, Value::Integer(1)) && matches!(points[1].value, Value::Integer(0)));
        let mut values = Vec::new();
        points[0].labels.each(|_, value| values.push(value.to_owned()));
        assert_eq!(values, ["gateway", "default", "c1", "8443", "opened"]);
        assert_eq!(snapshot.tcp.len(), 2, "one service and the overflow");
        let mut overflow = HashSet::new();
        snapshot.tcp[1].labels.each(&labels::TCP, |name, value| {
            if name != "response_flags" {
                overflow.insert(value.to_owned());
            }
        });
        assert_eq!(overflow.into_iter().collect::<Vec<_>>(), ["unknown"]);
    }
}
