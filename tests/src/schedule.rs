//! How long Envoy's threads waited for a processor, which is how late its timestamps may be.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

/// For each of a sidecar's worker threads, how long it has waited so far, ready to run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Waits(BTreeMap<u32, Duration>);

impl Waits {
    /// Reads the waits of the workers in a pod's containers, without threads that end meanwhile.
    pub(crate) fn of(pod: &Path) -> Self {
        let containers = fs::read_dir(pod).into_iter().flatten().flatten();
        let threads = containers.map(|container| fs::read_to_string(container.path().join("cgroup.threads")));
        let ids = threads.flat_map(|threads| threads.unwrap_or_default().lines().map(str::parse).collect::<Vec<_>>());
        Self(ids.flatten().filter_map(|id: u32| Some((id, waited(id)?))).collect())
    }

    /// Returns the increase since `before`, summed over all threads.
    pub(crate) fn since(&self, before: &Self) -> Duration {
        let then = |id| before.0.get(id).copied().unwrap_or_default();
        self.0.iter().map(|(id, now)| now.saturating_sub(then(id))).sum()
    }
}

/// Returns the second value of `/proc/ID/schedstat`, nanoseconds "waiting on a runqueue" (kernel sched-stats.rst).
fn waited(id: u32) -> Option<Duration> {
    let name = fs::read_to_string(format!("/proc/{id}/comm")).ok()?;
    let summary = fs::read_to_string(format!("/proc/{id}/schedstat")).ok()?;
    let nanoseconds = summary.split(' ').nth(1)?.parse().ok()?;
    name.starts_with("wrk:").then_some(Duration::from_nanos(nanoseconds))
}
