//! Which of the series that were sent last are gone.

use std::{
    collections::HashSet,
    hash::{BuildHasher as _, Hash},
    sync::Arc,
    vec,
};

use foldhash::{fast, quality};

use crate::{MESH_FAMILIES, Point, Snapshot, Value, labels::MeshLabels};

/// Number of Istio's families that have HTTP series; the others have TCP series.
const HTTP_FAMILIES: usize = 6;

/// A snapshot that was sent.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) snapshot: Arc<Snapshot>,
    /// Hashes of name and labels of the points behind Istio's families, in their order: 100,000 collide once in four billion
    /// runs.
    others: Vec<u64>,
}

impl Sent {
    /// Returns what is to be known of a snapshot until the next one; all of them with the same hasher.
    pub(super) fn new(snapshot: Arc<Snapshot>, hasher: &quality::RandomState) -> Self {
        let (mut others, mut text, mut last) = (Vec::new(), String::new(), None);
        for family in snapshot.families().skip(MESH_FAMILIES) {
            let name = hasher.hash_one(family.name());
            for point in family.points() {
                let labels = match last {
                    Some((last, hash)) if point.labels.is_same(&last) => hash,
                    _ => {
                        text.clear();
                        point.labels.write(&mut text);
                        hasher.hash_one(&text)
                    }
                };
                last = Some((point.labels, labels));
                let sample = match point.value {
                    Value::Sample { suffix, bound, .. } => (suffix.text(), bound),
                    _ => ("", None),
                };
                others.push(hasher.hash_one((name, sample, labels)));
            }
        }
        Self { snapshot, others }
    }
}

/// The points of a snapshot that the next one does not have, asked for in their order.
#[derive(Debug)]
pub(super) struct Ended {
    http: HashSet<Arc<MeshLabels>, fast::RandomState>,
    tcp: HashSet<Arc<MeshLabels>, fast::RandomState>,
    others: vec::IntoIter<bool>,
    has_others: bool,
}

impl Ended {
    /// Compares what was sent with what is sent now.
    pub(super) fn new(before: &Sent, now: &Sent) -> Self {
        let others: HashSet<u64, fast::RandomState> = now.others.iter().copied().collect();
        let ended: Vec<bool> = before.others.iter().map(|hash| !others.contains(hash)).collect();
        Self {
            http: set(now.snapshot.http.iter().map(|series| &series.labels)),
            tcp: set(now.snapshot.tcp.iter().map(|series| &series.labels)),
            has_others: ended.contains(&true),
            others: ended.into_iter(),
        }
    }

    /// Returns whether there is none from the family at `index` on.
    pub(super) const fn is_over(&self, index: usize) -> bool {
        index >= MESH_FAMILIES && !self.has_others
    }

    /// Returns whether the next point, of the family at `index`, is one of them.
    pub(super) fn next(&mut self, index: usize, point: &Point<'_>) -> bool {
        match point.labels.of_mesh() {
            Some(labels) if index < HTTP_FAMILIES => !self.http.contains(labels),
            Some(labels) => !self.tcp.contains(labels),
            None => self.others.next().unwrap_or_default(),
        }
    }
}

fn set<'a, T: Clone + Eq + Hash + 'a>(all: impl Iterator<Item = &'a T>) -> HashSet<T, fast::RandomState> {
    all.cloned().collect()
}
