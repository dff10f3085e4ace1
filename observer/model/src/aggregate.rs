//! Aggregates kernel series into exposed series whose totals never decrease.
//!
//! Many *source series* (of one process and address in the kernel) can belong to one *aggregated series* (a label set).
//! The latter grows by the deltas of its sources, so a source that ends, restarts or moves to other labels takes
//! nothing back. An aggregated series whose sidecars have ended is retired after the retention time without a change;
//! its total is kept while the kernel still reports one of its sources, so that it returns undiminished, and is dropped
//! with its last source.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use crate::{
    histogram::{Cell, PackedCells},
    labels::MeshLabels,
    totals::Totals,
};

/// Default time for which a series without a sidecar is exposed after its last change.
pub const DEFAULT_RETENTION: Duration = Duration::from_mins(15);

/// Times of a round.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// This round.
    pub now: SystemTime,
    /// The previous round, in which a series that is new now was 0.
    pub previous: SystemTime,
}

/// Aggregated series under labels `L`, from source series under keys `K`.
#[derive(Debug)]
pub struct Aggregator<K, L, T> {
    sources: HashMap<K, SourceSeries<T>>,
    series: Vec<AggregatedSeries<L, T>>,
    by_labels: HashMap<Arc<L>, usize>,
    round: u32,
    retired: u64,
    resets: u64,
    /// Whether state that cannot be derived from the sources has changed since [`Aggregator::take_changed`].
    changed: bool,
}

/// Persisted form of an [`Aggregator`], with other types of keys and labels.
#[derive(Debug, Serialize, Deserialize)]
pub struct PersistedAggregator<K, L, T> {
    /// Key, index of the aggregated series, and totals unless equal to the aggregated ones.
    #[serde(rename = "feeds")]
    sources: Vec<(K, usize, Option<Arc<T>>)>,
    #[serde(rename = "accounts")]
    series: Vec<PersistedSeries<L, T>>,
    retired: u64,
    resets: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct PersistedSeries<L, T> {
    labels: L,
    total: Arc<T>,
    created: SystemTime,
    changed: SystemTime,
    exposed: bool,
}

#[derive(Debug)]
struct SourceSeries<T> {
    /// Index of the aggregated series.
    series: usize,
    totals: Arc<T>,
    /// Cells at the end of the last interval.
    cells: PackedCells,
    /// Round in which it was reported last.
    seen: u32,
}

/// One label set with its totals.
#[derive(Debug)]
pub struct AggregatedSeries<L, T> {
    /// Labels.
    pub labels: Arc<L>,
    /// Totals since `created`; shared with the source where there is only one.
    pub total: Arc<T>,
    /// Values of the last reporting interval by cell; `None` if there were none or cells are not read.
    pub recent: Option<Arc<PackedCells>>,
    /// When the total was 0.
    pub created: SystemTime,
    changed: SystemTime,
    /// A source of it has a running sidecar.
    alive: bool,
    /// A source of it is still reported.
    has_source: bool,
    exposed: bool,
}

/// An exposed series of Istio's families.
#[derive(Clone, Debug)]
pub struct Series<T> {
    /// Labels.
    pub labels: Arc<MeshLabels>,
    /// Cumulative totals.
    pub totals: Arc<T>,
    /// Values of the last reporting interval by cell, if there were any.
    pub recent: Option<Arc<PackedCells>>,
    /// When the totals were 0.
    pub created: SystemTime,
}

impl<K, L, T> Default for Aggregator<K, L, T> {
    fn default() -> Self {
        Self {
            sources: HashMap::new(),
            series: Vec::new(),
            by_labels: HashMap::new(),
            round: 0,
            retired: 0,
            resets: 0,
            changed: false,
        }
    }
}

impl<K: Eq + Hash + Clone, L: Eq + Hash, T: Totals> Aggregator<K, L, T> {
    /// Returns the persisted form as of the last round.
    pub fn persist<PK, PL>(
        &self,
        key: impl Fn(&K) -> PK,
        mut labels: impl FnMut(&L) -> PL,
    ) -> PersistedAggregator<PK, PL, T> {
        let sources = self.sources.iter().map(|(own, SourceSeries { series, totals, .. })| {
            let is_total = Arc::ptr_eq(totals, &self.series[*series].total);
            (key(own), *series, (!is_total).then(|| totals.clone()))
        });
        let series = self.series.iter().map(|series| PersistedSeries {
            labels: labels(&series.labels),
            total: series.total.clone(),
            created: series.created,
            changed: series.changed,
            exposed: series.exposed,
        });
        let (sources, series) = (sources.collect(), series.collect());
        PersistedAggregator { sources, series, retired: self.retired, resets: self.resets }
    }

    /// Restores an aggregator; `None` if the persisted form is inconsistent.
    pub fn restore<PK, PL>(
        persisted: PersistedAggregator<PK, PL, T>,
        key: impl Fn(PK) -> K,
        labels: impl Fn(&PL) -> Option<L>,
    ) -> Option<Self> {
        let PersistedAggregator { sources, series, retired, resets } = persisted;
        let mut restored = Self { retired, resets, ..Self::default() };
        for PersistedSeries { labels: own, total, created, changed, exposed } in series {
            let labels = Arc::new(labels(&own)?);
            restored.by_labels.insert(labels.clone(), restored.series.len());
            let (recent, alive, has_source) = (None, false, false);
            restored.series.push(AggregatedSeries {
                labels,
                total,
                recent,
                created,
                changed,
                alive,
                has_source,
                exposed,
            });
        }
        for (source, series, totals) in sources {
            let total = &restored.series.get(series)?.total;
            let totals = totals.unwrap_or_else(|| total.clone());
            let source_series = SourceSeries { series, totals, cells: PackedCells::default(), seen: 0 };
            restored.sources.insert(key(source), source_series);
        }
        Some(restored)
    }

    /// Returns whether the persisted form has changed other than by the sources' totals since the last call.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Begins a round. If it closes an interval, the values of the interval before are dropped.
    pub fn begin(&mut self, closes_interval: bool) {
        self.round = self.round.wrapping_add(1);
        for series in &mut self.series {
            (series.alive, series.has_source) = (false, false);
            if closes_interval {
                series.recent = None;
            }
        }
    }

    /// Returns whether a known source has exactly the totals that `is_same` accepts: then [`Aggregator::mark_seen`]
    /// suffices.
    pub fn is_unchanged(&self, key: &K, is_same: impl FnOnce(&T) -> bool) -> bool {
        self.sources.get(key).is_some_and(|source| is_same(&source.totals))
    }

    /// Marks a source as still reported, with unchanged totals.
    pub fn mark_seen(&mut self, key: &K, alive: bool) {
        if let Some(source) = self.sources.get_mut(key) {
            source.seen = self.round;
            let series = &mut self.series[source.series];
            series.has_source = true;
            series.alive |= alive;
        }
    }

    /// Ingests the totals of a source; `labels` is called for a new one.
    pub fn ingest(&mut self, key: K, totals: Arc<T>, alive: bool, round: Round, labels: impl FnOnce() -> L) {
        let previous = self.sources.remove(&key);
        let index = match &previous {
            Some(source) => source.series,
            None => self.get_or_insert(labels(), round),
        };
        let series = &mut self.series[index];
        series.has_source = true;
        series.alive |= alive;
        let mut cells = PackedCells::default();
        self.changed |= previous.is_none() || !series.exposed;
        match previous {
            None => series.add_delta(None, &totals, T::clone(&totals), round),
            Some(source) => {
                cells = source.cells;
                match source.totals.difference(&totals) {
                    Some(delta) if delta.is_zero() => {}
                    Some(delta) => series.add_delta(Some(&source.totals), &totals, delta, round),
                    None => {
                        self.resets += 1;
                        self.changed = true;
                        cells = PackedCells::default();
                        series.add_delta(None, &totals, T::clone(&totals), round);
                    }
                }
            }
        }
        self.sources.insert(key, SourceSeries { series: index, totals, cells, seen: self.round });
    }

    /// Records the cells of a source at the end of an interval: the difference to the last ones is the interval's.
    pub fn record_interval(&mut self, key: &K, newer: [&[Cell]; 3]) {
        let Some(source) = self.sources.get_mut(key) else { return };
        if source.cells.equals(newer) {
            return;
        }
        let newer = PackedCells::new(newer);
        let interval = source.cells.difference(&newer);
        source.cells = newer;
        self.series[source.series].add_interval(&Arc::new(interval));
    }

    /// Adds values of the last interval to the series of a source.
    pub fn add_interval(&mut self, key: &K, interval: &Arc<PackedCells>) {
        if let Some(source) = self.sources.get(key) {
            self.series[source.series].add_interval(interval);
        }
    }

    /// Moves every source to the labels that `labels` returns now; what was counted before stays where it was counted.
    pub fn relabel(&mut self, round: Round, mut labels: impl FnMut(&K) -> Option<L>) {
        let keys: Vec<K> = self.sources.keys().cloned().collect();
        for key in keys {
            let Some(new) = labels(&key) else { continue };
            if *self.series[self.sources[&key].series].labels == new {
                continue;
            }
            let series = self.get_or_insert(new, round);
            self.changed = true;
            if let Some(source) = self.sources.get_mut(&key) {
                source.series = series;
            }
        }
    }

    /// Ends a round: sources that were not reported are dropped (one that returns counts from 0), and unused series are
    /// retired or dropped.
    pub fn end(&mut self, now: SystemTime, retention: Duration) {
        let before = self.sources.len();
        self.sources.retain(|_, source| source.seen == self.round);
        self.changed |= self.sources.len() != before;
        self.retire(now, retention);
    }

    /// Ends a round after which absent sources may return with their totals: they are kept while another source keeps
    /// their series.
    pub fn end_keeping_absent(&mut self, now: SystemTime) {
        self.retire(now, Duration::ZERO);
    }

    fn retire(&mut self, now: SystemTime, retention: Duration) {
        let mut has_unused = false;
        for series in &mut self.series {
            let is_idle = now.duration_since(series.changed).unwrap_or_default() >= retention;
            if is_idle && !series.alive && series.exposed {
                series.exposed = false;
                self.retired += 1;
                self.changed = true;
            }
            if series.alive {
                series.exposed = true;
            }
            has_unused |= !series.exposed && !series.has_source;
        }
        if has_unused {
            self.changed = true;
            self.drop_unused();
        }
    }

    /// Returns series that are exposed and not zero, in order of their first appearance.
    pub fn exposed(&self) -> impl Iterator<Item = &AggregatedSeries<L, T>> {
        self.series.iter().filter(|series| series.exposed && !series.total.is_zero())
    }

    /// Returns how many series have been retired.
    #[must_use]
    pub fn retired(&self) -> u64 {
        self.retired
    }

    /// Returns how often the totals of a source decreased.
    #[must_use]
    pub fn resets(&self) -> u64 {
        self.resets
    }

    fn get_or_insert(&mut self, labels: L, round: Round) -> usize {
        if let Some(index) = self.by_labels.get(&labels) {
            return *index;
        }
        let labels = Arc::new(labels);
        self.by_labels.insert(labels.clone(), self.series.len());
        self.series.push(AggregatedSeries {
            labels,
            total: Arc::new(T::default()),
            recent: None,
            created: round.previous,
            changed: round.now,
            alive: true,
            has_source: true,
            exposed: true,
        });
        self.series.len() - 1
    }

    fn drop_unused(&mut self) {
        let is_used = |series: &AggregatedSeries<L, T>| series.exposed || series.has_source;
        let mut kept = 0..;
        let moved: Vec<Option<usize>> =
            self.series.iter().map(|series| is_used(series).then(|| kept.next()).flatten()).collect();
        self.series.retain(is_used);
        self.by_labels = self.series.iter().enumerate().map(|(index, series)| (series.labels.clone(), index)).collect();
        self.sources.retain(|_, source| moved[source.series].map(|index| source.series = index).is_some());
        // Memory of a peak is released.
        self.series.shrink_to(2 * self.series.len());
        self.sources.shrink_to(2 * self.sources.len());
    }
}

impl<L, T: Totals> AggregatedSeries<L, T> {
    /// Adds `delta`, by which a source grew from `older` to `newer`.
    fn add_delta(&mut self, older: Option<&Arc<T>>, newer: &Arc<T>, delta: T, round: Round) {
        // While there was never more than one source, its totals are shared instead of copied.
        let is_only_source = match older {
            Some(older) => Arc::ptr_eq(&self.total, older),
            None => self.total.is_zero(),
        };
        if is_only_source {
            self.total = newer.clone();
        } else {
            Arc::make_mut(&mut self.total).add(&delta);
        }
        self.changed = round.now;
        self.exposed = true;
    }

    fn add_interval(&mut self, cells: &Arc<PackedCells>) {
        self.recent = Some(match &self.recent {
            Some(recent) => Arc::new(recent.plus(cells)),
            None => cells.clone(),
        });
    }
}
