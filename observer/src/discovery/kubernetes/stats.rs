//! What was asked of the API, and how old its answers are.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use crate::model::{KubernetesStats, kubernetes::Resource};

#[derive(Default)]
pub(super) struct Stats(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    requests: BTreeMap<(Resource, &'static str), u64>,
    watches: BTreeMap<Resource, Watch>,
}

struct Watch {
    /// When the API was last heard of.
    heard: Instant,
    /// Whether a watch is open, so that nothing is missed.
    is_open: bool,
}

impl Stats {
    pub(super) fn count(&self, resource: Resource, outcome: &'static str) {
        *self.lock().requests.entry((resource, outcome)).or_default() += 1;
    }

    /// Records that a watch is open or that it was heard of, or that it has ended.
    pub(super) fn set_open(&self, resource: Resource, is_open: bool) {
        let mut inner = self.lock();
        match inner.watches.get_mut(&resource) {
            Some(watch) if !is_open => {
                // Until now nothing was missed.
                if watch.is_open {
                    watch.heard = Instant::now();
                }
                watch.is_open = false;
            }
            None if !is_open => {}
            _ => drop(inner.watches.insert(resource, Watch { heard: Instant::now(), is_open })),
        }
    }

    pub(super) fn read(&self) -> KubernetesStats {
        let inner = self.lock();
        let requests = inner.requests.iter().map(|((resource, outcome), count)| (resource.name(), *outcome, *count));
        let staleness = inner.watches.iter().map(|(resource, watch)| {
            let age = if watch.is_open { std::time::Duration::ZERO } else { watch.heard.elapsed() };
            (resource.name(), watch.is_open, age)
        });
        KubernetesStats { requests: requests.collect(), watches: staleness.collect() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
