//! Which pods a certificate can be of, by its hash.
//!
//! A certificate is one pod's: its key never leaves the pod. Whenever a request of it is counted, that pod was
//! connected; so it is among the candidates of every such round, and in the intersection of them all. A pod may have
//! several certificates, old and renewed: that one is known says nothing of another.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::pods::Pod;

/// Time without a request after which a certificate is forgotten.
const UNSEEN: Duration = Duration::from_hours(24);
/// Maximum number of certificates.
const MAX_BINDINGS: usize = 16_384;

/// The certificates that were seen.
#[derive(Debug, Default)]
pub(super) struct Bindings {
    by_hash: HashMap<Box<str>, Binding>,
    pruned: Option<SystemTime>,
}

#[derive(Debug)]
struct Binding {
    pods: Vec<Arc<Pod>>,
    seen: SystemTime,
}

impl Bindings {
    /// Returns which pods a certificate can be of; `None` if it was never seen among a complete set of candidates.
    pub(super) fn get(&self, hash: &str) -> Option<&[Arc<Pod>]> {
        self.by_hash.get(hash).map(|binding| binding.pods.as_slice())
    }

    /// Narrows a certificate down to a complete set of candidates, and returns what is left; without a hash that set.
    pub(super) fn narrow(&mut self, hash: &str, mut candidates: Vec<Arc<Pod>>, now: SystemTime) -> Vec<Arc<Pod>> {
        if hash.is_empty() {
            return candidates;
        }
        if let Some(before) = self.by_hash.get(hash) {
            candidates.retain(|pod| before.pods.iter().any(|known| known.id == pod.id));
        }
        if candidates.is_empty() {
            // What was assumed of it was wrong, e.g. a pod's address.
            self.by_hash.remove(hash);
        } else if self.by_hash.contains_key(hash) || self.by_hash.len() < MAX_BINDINGS {
            self.by_hash.insert(hash.into(), Binding { pods: candidates.clone(), seen: now });
        }
        candidates
    }

    /// Forgets what was not seen for a day; at most once per hour.
    pub(super) fn prune(&mut self, now: SystemTime) {
        let is_due = self.pruned.is_none_or(|last| now.duration_since(last).is_ok_and(|age| age >= UNSEEN / 24));
        if is_due {
            self.pruned = Some(now);
            self.by_hash.retain(|_, binding| now.duration_since(binding.seen).is_ok_and(|age| age < UNSEEN));
            self.by_hash.shrink_to(2 * self.by_hash.len());
        }
    }
}
