//! Edges of the mesh: the series of one caller and one callee, as either side counts them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::SystemTime,
};

use super::{
    figures::{Code, Figures},
    node::{Kind, NodeKey},
    sampled::Sampled,
};
use crate::{
    Snapshot,
    aggregate::Series,
    histogram::{HttpTotals, PackedCells},
    labels::{MeshLabels, Protocol, Reporter, Security},
    totals::{TcpTotals, Totals},
};

/// Maximum number of edges; series of further ones are counted, and not shown.
pub const MAX_EDGES: usize = 2_000;
/// Maximum number of services named at one edge.
const MAX_SERVICES: usize = 16;

/// What was counted at one edge between two snapshots.
#[derive(Debug)]
pub(super) struct Delta {
    pub(super) edge: u32,
    pub(super) side: Side,
    pub(super) figures: Figures,
}

/// Which proxy counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Side {
    Source,
    Destination,
}

/// Figures by edge and side.
pub(super) type BySide = BTreeMap<(u32, Side), Figures>;

/// Returns the sums by edge and side.
pub(super) fn sum<'a>(deltas: impl Iterator<Item = &'a Delta>) -> BySide {
    let mut sums = BySide::new();
    deltas.for_each(|delta| sums.entry((delta.edge, delta.side)).or_default().add(&delta.figures));
    sums
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct EdgeKey {
    pub(super) from: NodeKey,
    pub(super) to: NodeKey,
    pub(super) protocol: Protocol,
}

/// One edge.
#[derive(Debug)]
pub(super) struct Edge {
    pub(super) key: EdgeKey,
    /// Labels of one of its series, for what they say of its ends.
    pub(super) labels: Arc<MeshLabels>,
    pub(super) totals: [Figures; 2],
    pub(super) sampled: [Sampled; 2],
    pub(super) services: BTreeSet<Box<str>>,
    /// How its connections are secured, as its destination counts them.
    pub(super) security: BTreeSet<&'static str>,
}

impl Edge {
    /// Returns the side whose figures are shown: the caller's, which includes the way there.
    pub(super) fn shown_side(&self) -> Side {
        if self.totals[0].is_zero() { Side::Destination } else { Side::Source }
    }
}

/// A series as it was in the last snapshot.
#[derive(Debug)]
struct Seen<T> {
    /// Kept so that the address stays its own.
    labels: Arc<MeshLabels>,
    totals: Arc<T>,
    cells: Option<Arc<PackedCells>>,
    place: Option<(u32, Side)>,
    round: u64,
}

/// Series by the address of their labels.
type BySeries<T> = HashMap<usize, Seen<T>>;

/// Every edge, by its id.
#[derive(Debug, Default)]
pub(super) struct Edges {
    edges: BTreeMap<u32, Edge>,
    by_key: HashMap<EdgeKey, u32>,
    next: u32,
    round: u64,
    previous: Option<SystemTime>,
    http: BySeries<HttpTotals>,
    tcp: BySeries<TcpTotals>,
    /// Series that are not shown, for there are too many edges.
    pub(super) unlisted: u64,
}

impl Edges {
    /// Adds the series of a snapshot up to edges, and returns what they have counted since the last one.
    pub(super) fn record(&mut self, snapshot: &Snapshot) -> Vec<Delta> {
        self.round += 1;
        self.unlisted = 0;
        for edge in self.edges.values_mut() {
            (edge.totals, edge.sampled) = Default::default();
        }
        let previous = self.previous.replace(snapshot.at);
        let (mut http, mut tcp) = (std::mem::take(&mut self.http), std::mem::take(&mut self.tcp));
        let mut deltas = Vec::new();
        let figures = |labels: &MeshLabels, totals: &HttpTotals, cells| Figures::of_http(labels, totals, cells);
        snapshot.http.iter().for_each(|series| self.add(&mut http, series, previous, figures, &mut deltas));
        let figures = |_: &MeshLabels, totals: &TcpTotals, _| Figures::of_tcp(totals);
        snapshot.tcp.iter().for_each(|series| self.add(&mut tcp, series, previous, figures, &mut deltas));
        http.retain(|_, seen| seen.round == self.round);
        tcp.retain(|_, seen| seen.round == self.round);
        (self.http, self.tcp) = (http, tcp);
        self.edges.retain(|_, edge| edge.totals.iter().any(|side| !side.is_zero()));
        if self.edges.len() < self.by_key.len() {
            self.by_key.retain(|_, id| self.edges.contains_key(id));
        }
        deltas
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Edge)> {
        self.edges.iter().map(|(id, edge)| (*id, edge))
    }

    /// Returns whether a delta is of the side that is shown of its edge.
    pub(super) fn is_shown(&self, delta: &Delta) -> bool {
        self.edges.get(&delta.edge).is_some_and(|edge| edge.shown_side() == delta.side)
    }

    fn add<T: Totals>(
        &mut self,
        all: &mut BySeries<T>,
        series: &Series<T>,
        previous: Option<SystemTime>,
        figures: impl Fn(&MeshLabels, &T, PackedCells) -> Figures,
        deltas: &mut Vec<Delta>,
    ) {
        let labels = &series.labels;
        let side = match labels.reporter {
            Reporter::Source => Side::Source,
            Reporter::Destination => Side::Destination,
            // The overflow series is nobody's; its own counter is shown.
            Reporter::Unknown => return,
        };
        let address = Arc::as_ptr(labels).addr();
        let before = all.remove(&address);
        let known = before.as_ref().and_then(|seen| seen.place).filter(|(edge, _)| self.edges.contains_key(edge));
        let place = known.or_else(|| Some((self.find_or_insert(labels)?, side)));
        let Some((id, _)) = place else {
            self.unlisted += 1;
            return;
        };
        if let Some(edge) = self.edges.get_mut(&id) {
            edge.totals[side as usize].add(&figures(labels, &series.totals, PackedCells::default()));
            edge.describe(labels);
            if let Some(exemplars) = &series.exemplars {
                edge.sampled[side as usize].add(Code::of(labels), exemplars);
            }
        }
        // A series that is new to the snapshot was 0 in the round before, unless it returns with its past.
        let is_new = previous.is_some_and(|previous| series.created >= previous);
        let delta = match &before {
            Some(seen) if Arc::ptr_eq(&seen.totals, &series.totals) => None,
            Some(seen) => seen.totals.difference(&series.totals).map(|delta| {
                let cells = match (&seen.cells, &series.cells) {
                    (Some(older), Some(newer)) => older.difference(newer),
                    _ => PackedCells::default(),
                };
                figures(labels, &delta, cells.only_durations())
            }),
            None if is_new => {
                let cells = series.cells.as_deref().map(PackedCells::only_durations).unwrap_or_default();
                Some(figures(labels, &series.totals, cells))
            }
            None => None,
        };
        deltas.extend(delta.filter(|delta| !delta.is_zero()).map(|figures| Delta { edge: id, side, figures }));
        let seen = Seen {
            labels: labels.clone(),
            totals: series.totals.clone(),
            cells: series.cells.clone(),
            place,
            round: self.round,
        };
        debug_assert_eq!(Arc::as_ptr(&seen.labels).addr(), address);
        all.insert(address, seen);
    }

    /// Returns the edge of a series; `None` if it has none, and there are too many.
    fn find_or_insert(&mut self, labels: &Arc<MeshLabels>) -> Option<u32> {
        let key =
            EdgeKey { from: NodeKey::source(labels), to: NodeKey::destination(labels), protocol: labels.protocol };
        if let Some(id) = self.by_key.get(&key) {
            return Some(*id);
        }
        if self.edges.len() >= MAX_EDGES {
            return None;
        }
        let id = self.next;
        self.next = self.next.checked_add(1)?;
        self.by_key.insert(key.clone(), id);
        let edge = Edge {
            key,
            labels: labels.clone(),
            totals: Default::default(),
            sampled: Default::default(),
            services: BTreeSet::new(),
            security: BTreeSet::new(),
        };
        self.edges.insert(id, edge);
        Some(id)
    }
}

impl Edge {
    fn describe(&mut self, labels: &MeshLabels) {
        let host = &labels.service.host;
        if self.key.to.kind != Kind::Unknown && self.services.len() < MAX_SERVICES && !self.services.contains(host) {
            self.services.insert(host.clone());
        }
        match labels.security {
            Security::Unknown => {}
            Security::None => drop(self.security.insert("none")),
            Security::MutualTls => drop(self.security.insert("mutual_tls")),
        }
    }
}
