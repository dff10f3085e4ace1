//! Aggregates kernel series into exposed series whose totals never decrease.
//!
//! Many *source series* (of one process and address in the kernel) can belong to one *aggregated series* (a label set).
//! The latter grows by the deltas of its sources, so a source that ends, restarts or moves to other labels takes
//! nothing back. An aggregated series whose sidecars have ended is retired after the retention time without a change;
//! its total is kept while the kernel still reports one of its sources, so that it returns undiminished, and is dropped
//! with its last source.
//!
//! Cells are cumulated for native histograms once they are wanted. A histogram's cells must have as many values as its
//! exact buckets, though both are read one after the other and cells can be lost: values that the buckets do not have yet
//! are left for the next reading, and values whose cells are unknown are put in the middle of their bucket.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use crate::{
    exemplar::{Exemplar, Exemplars},
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
    /// Whether cells are cumulated, and whether a reading of this round had any.
    cumulates: bool,
    has_cells: bool,
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
    /// Cells of the last reading that are in the series.
    cells: PackedCells,
    /// Round in which it was reported last.
    seen: u32,
    /// Whether an earlier process may have exposed more of it than its last state has.
    is_inherited: bool,
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
    /// Values since the last interval.
    pending: Option<Arc<PackedCells>>,
    /// Values of the total by cell, if they are cumulated.
    pub cells: Option<Arc<PackedCells>>,
    /// Exemplars of the durations, if there are any.
    pub exemplars: Option<Arc<Exemplars>>,
    /// Whether an earlier process exposed it. What that one knew of values whose sources have ended is lost.
    is_restored: bool,
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
    /// Values of the totals by cell, if they are cumulated.
    pub cells: Option<Arc<PackedCells>>,
    /// Exemplars of the durations, if there are any.
    pub exemplars: Option<Arc<Exemplars>>,
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
            cumulates: false,
            has_cells: false,
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
                pending: None,
                cells: None,
                exemplars: None,
                is_restored: true,
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
            let cells = PackedCells::default();
            let source_series = SourceSeries { series, totals, cells, seen: 0, is_inherited: true };
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
                series.recent = series.pending.take();
            }
        }
        self.has_cells = false;
    }

    /// Returns whether a known source has exactly the totals that `is_same` accepts: then [`Aggregator::mark_seen`]
    /// suffices.
    pub fn is_unchanged(&self, key: &K, is_same: impl FnOnce(&T) -> bool) -> bool {
        self.sources.get(key).is_some_and(|source| is_same(&source.totals))
    }

    /// Returns whether a source is as an earlier process left it: what that one has exposed since is under its labels.
    pub fn is_inherited(&self, key: &K) -> bool {
        self.sources.get(key).is_some_and(|source| source.is_inherited)
    }

    /// Marks a source as still reported, and nothing of it as exposed by an earlier process alone.
    pub fn mark_unchanged(&mut self, key: &K, alive: bool) {
        self.mark_seen(key, alive);
        if let Some(source) = self.sources.get_mut(key) {
            source.is_inherited = false;
        }
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
        self.sources.insert(key, SourceSeries { series: index, totals, cells, seen: self.round, is_inherited: false });
    }

    /// Cumulates cells from now on, those that were read before included.
    pub fn cumulate_cells(&mut self) {
        if std::mem::replace(&mut self.cumulates, true) {
            return;
        }
        for series in &mut self.series {
            series.cells = Some(Arc::default());
        }
        for source in self.sources.values_mut() {
            source.cells = self.series[source.series].cumulate(&source.cells);
        }
    }

    /// Cumulates cells no more, and forgets them: as if none had ever been read.
    pub fn forget_cells(&mut self) {
        self.cumulates = false;
        for series in &mut self.series {
            (series.cells, series.recent, series.pending) = (None, None, None);
        }
        for source in self.sources.values_mut() {
            source.cells = PackedCells::default();
        }
    }

    /// Records the cells of a source: the difference to the last ones belongs to the interval, which may end with this
    /// round.
    pub fn record_cells(&mut self, key: &K, newer: [&[Cell]; 3], closes_interval: bool) {
        self.has_cells |= newer.iter().any(|cells| !cells.is_empty());
        let Some(source) = self.sources.get_mut(key) else { return };
        if source.cells.equals(newer) {
            return;
        }
        let series = &mut self.series[source.series];
        let new = series.cumulate(&source.cells.difference(&PackedCells::new(newer)));
        source.cells = source.cells.advanced_by(&new);
        series.add_interval(&Arc::new(new), closes_interval);
    }

    /// Returns the labels under which a source is counted now.
    pub fn labels(&self, key: &K) -> Option<&Arc<L>> {
        Some(&self.series[self.sources.get(key)?.series].labels)
    }

    /// Records exemplars of a source. They stay with the series under whose labels the source is now.
    pub fn record_exemplars(&mut self, key: &K, newer: &[Exemplar]) {
        let Some(source) = self.sources.get(key) else { return };
        let exemplars = &mut self.series[source.series].exemplars;
        if let Some(new) = exemplars.as_deref().unwrap_or(&Exemplars::default()).with(newer) {
            *exemplars = Some(Arc::new(new));
        }
    }

    /// Adds values of the last interval to the series of a source.
    pub fn add_interval(&mut self, key: &K, interval: &Arc<PackedCells>) {
        if let Some(source) = self.sources.get(key) {
            self.series[source.series].add_interval(interval, true);
        }
    }

    /// Returns the totals that a source had last.
    pub fn totals(&self, key: &K) -> Option<&T> {
        self.sources.get(key).map(|source| &*source.totals)
    }

    /// Forgets a source, which counts from 0 if it returns; what was counted stays.
    pub fn forget(&mut self, key: &K) {
        self.changed |= self.sources.remove(key).is_some();
    }

    /// Moves every source to the labels that `labels` returns now, given the old ones; what was counted before stays where
    /// it was counted. Returns whether some stay for now, because an earlier process has exposed more of them.
    pub fn relabel(&mut self, round: Round, mut labels: impl FnMut(&K, &L) -> Option<L>) -> bool {
        let before = self.sources.len();
        let own = self.sources.iter().filter(|(_, source)| !source.is_inherited);
        let keys: Vec<K> = own.map(|(key, _)| key.clone()).collect();
        let has_inherited = keys.len() < before;
        for key in keys {
            if let Some(new) = labels(&key, &self.series[self.sources[&key].series].labels) {
                self.relabel_source(&key, new, round);
            }
        }
        has_inherited
    }

    /// Moves one source, if it is known, to these labels; what was counted before stays where it was counted.
    pub fn relabel_source(&mut self, key: &K, labels: L, round: Round) {
        if self.sources.get(key).is_none_or(|source| *self.series[source.series].labels == labels) {
            return;
        }
        let series = self.get_or_insert(labels, round);
        self.changed = true;
        if let Some(source) = self.sources.get_mut(key) {
            source.series = series;
        }
    }

    /// Ends a round: sources that were not reported are dropped (one that returns counts from 0), and unused series are
    /// retired or dropped.
    pub fn end(&mut self, now: SystemTime, retention: Duration) {
        let before = self.sources.len();
        self.sources.retain(|_, source| source.seen == self.round);
        self.changed |= self.sources.len() != before;
        if self.has_cells {
            self.series.iter_mut().for_each(AggregatedSeries::fill_cells);
        }
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
            pending: None,
            cells: self.cumulates.then(Arc::default),
            exemplars: None,
            is_restored: false,
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

    /// Adds values to the cells, as far as the total has them; returns those that were added.
    fn cumulate(&mut self, values: &PackedCells) -> PackedCells {
        let Some(cells) = &mut self.cells else { return values.clone() };
        let added = values.limited_to(self.total.room(cells));
        *cells = Arc::new(cells.plus(&added));
        added
    }

    /// Adds what the cells lack. An earlier process may have known better: its histogram would seem to fall, so there is
    /// none.
    fn fill_cells(&mut self) {
        let Some(filled) = self.cells.as_ref().and_then(|cells| self.total.filled(cells)) else {
            self.is_restored = false;
            return;
        };
        self.cells = (!self.is_restored).then(|| Arc::new(filled));
    }

    fn add_interval(&mut self, cells: &Arc<PackedCells>, closes_interval: bool) {
        let values = if closes_interval { &mut self.recent } else { &mut self.pending };
        *values = Some(match &*values {
            Some(values) => Arc::new(values.plus(cells)),
            None => cells.clone(),
        });
    }
}

#[cfg(test)]
mod tests {
    use observer_common::{
        SeriesKey,
        histogram::{SUB_BUCKETS, bucket, sub_bucket},
    };
    use proptest::prelude::*;

    use super::*;
    use crate::{
        HistogramView, encode::native_histogram::NativeHistogram, histogram::HttpTotals, reading::SeriesReading,
    };

    const ROUND: Round = Round { now: SystemTime::UNIX_EPOCH, previous: SystemTime::UNIX_EPOCH };

    type Model = Aggregator<u8, &'static str, HttpTotals>;

    /// Requests counted in buckets, and those counted in cells: both are read at a time of their own.
    #[derive(Clone, Debug, Default)]
    struct Source {
        buckets: Vec<u64>,
        cells: Vec<u64>,
    }

    fn read(model: &mut Model, key: u8, source: &Source, reads_cells: bool, closes_interval: bool) {
        let mut reading = SeriesReading::empty(SeriesKey::default());
        for microseconds in &source.buckets {
            reading.histograms[0].buckets[bucket(microseconds / 1_000) as usize] += 1;
        }
        let totals = HttpTotals::of(&reading);
        if model.is_unchanged(&key, |own| *own == totals) {
            model.mark_seen(&key, true);
        } else if !totals.is_zero() {
            model.ingest(key, Arc::new(totals), true, ROUND, || "labels");
        }
        let mut cells = std::collections::BTreeMap::new();
        for microseconds in source.cells.iter().filter(|_| reads_cells) {
            let (page, cell) = sub_bucket(*microseconds);
            *cells.entry((page * SUB_BUCKETS as u32 + cell) as u16).or_insert(0) += 1;
        }
        if reads_cells {
            let cells: Vec<Cell> = cells.into_iter().collect();
            model.record_cells(&key, [&cells, &[], &[]], closes_interval);
        }
    }

    fn native(model: &Model) -> Option<NativeHistogram> {
        let series = model.exposed().next()?;
        HistogramView::new(&series.total, None, 0).with_cells(series.cells.as_deref()).native()
    }

    fn counts(model: &Model) -> std::collections::BTreeMap<u16, u64> {
        model
            .exposed()
            .next()
            .and_then(|series| series.cells.as_ref())
            .map(|cells| cells.totals(0).collect())
            .unwrap_or_default()
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// A request, seen in the buckets, in the cells, or in both.
        Request {
            source: u8,
            microseconds: u64,
            in_buckets: bool,
            in_cells: bool,
        },
        /// What was not seen yet is.
        Settle,
        Round {
            reads_cells: bool,
            closes_interval: bool,
        },
        Wanted,
        End {
            source: u8,
        },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0u8..2, prop_oneof![0u64..50, 0u64..100_000, 0u64..1 << 36], any::<bool>(), any::<bool>()).prop_map(
                |(source, microseconds, in_buckets, in_cells)| Step::Request { source, microseconds, in_buckets, in_cells }
            ),
            1 => Just(Step::Settle),
            3 => (any::<bool>(), any::<bool>()).prop_map(|(reads_cells, closes_interval)| Step::Round { reads_cells, closes_interval }),
            1 => Just(Step::Wanted),
            1 => (0u8..2).prop_map(|source| Step::End { source }),
        ]
    }

    proptest! {
        #[test]
        fn cells_have_as_many_values_as_the_buckets_and_never_fall(steps in proptest::collection::vec(step(), 1..60)) {
            let mut model = Model::default();
            let mut sources = [Source::default(), Source::default()];
            let (mut is_wanted, mut before) = (false, std::collections::BTreeMap::new());
            let mut ended = [false; 2];
            for step in steps {
                match step {
                    Step::Request { source, microseconds, in_buckets, in_cells } => {
                        let source = &mut sources[usize::from(source)];
                        source.buckets.extend(in_buckets.then_some(microseconds));
                        source.cells.extend(in_cells.then_some(microseconds));
                    }
                    Step::Settle => sources.iter_mut().for_each(|source| source.cells.clone_from(&source.buckets)),
                    Step::Wanted => {
                        model.cumulate_cells();
                        is_wanted = true;
                    }
                    Step::End { source } => ended[usize::from(source)] = true,
                    Step::Round { reads_cells, closes_interval } => {
                        model.begin(closes_interval);
                        for (key, source) in (0..).zip(&sources).filter(|(key, _)| !ended[usize::from(*key)]) {
                            read(&mut model, key, source, reads_cells, closes_interval);
                        }
                        model.end(SystemTime::UNIX_EPOCH, DEFAULT_RETENTION);
                        let has_cells = reads_cells && model.has_cells;
                        if is_wanted && has_cells && model.exposed().next().is_some() {
                            prop_assert!(native(&model).is_some(), "{:?}", counts(&model));
                        }
                        let now = counts(&model);
                        prop_assert!(before.iter().all(|(cell, count)| now.get(cell) >= Some(count)), "{before:?} {now:?}");
                        before = now;
                    }
                }
            }
        }
    }

    #[test]
    fn an_interval_has_the_values_of_every_reading_in_it() {
        let mut model = Model::default();
        let mut source = Source::default();
        for (value, closes_interval, recent) in
            [(1_000, true, 1), (2_000, false, 1), (3_000, false, 1), (4_000, true, 3)]
        {
            source.buckets.push(value);
            source.cells.push(value);
            model.begin(closes_interval);
            read(&mut model, 0, &source, true, closes_interval);
            model.end(SystemTime::UNIX_EPOCH, DEFAULT_RETENTION);
            let series = model.exposed().next().unwrap();
            assert_eq!(series.recent.as_ref().unwrap().counts()[0], recent, "{value}");
        }
    }

    #[test]
    fn what_an_earlier_process_knew_better_is_not_guessed() {
        let source = Source { buckets: vec![5_000; 3], cells: vec![5_000; 3] };
        let mut model = Model::default();
        for key in [0, 1] {
            model.begin(false);
            read(&mut model, 0, &source, true, false);
            if key == 0 {
                read(&mut model, 1, &source, true, false);
            }
            model.end(SystemTime::UNIX_EPOCH, DEFAULT_RETENTION);
        }
        let restore = |model: &Model| {
            let persisted = model.persist(|key| *key, |labels| labels.to_string());
            Model::restore(persisted, |key| key, |_| Some("labels")).unwrap()
        };
        // The source that ended counted three values, whose cells nobody knows any more.
        let mut restored = restore(&model);
        restored.cumulate_cells();
        restored.begin(false);
        read(&mut restored, 0, &source, true, false);
        restored.end(SystemTime::UNIX_EPOCH, DEFAULT_RETENTION);
        assert_eq!((restored.exposed().count(), native(&restored)), (1, None));
    }
}
