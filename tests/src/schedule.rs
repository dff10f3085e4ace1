//! How long Envoy's threads ran and waited for a processor, which is how late its timestamps may be.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

/// Times of threads, summed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// On a processor.
    pub ran: Duration,
    /// Ready to run, without a processor.
    pub waited: Duration,
}

/// Times of each of a sidecar's worker threads so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Schedule(BTreeMap<u32, Times>);

impl Schedule {
    /// Reads the times of the workers in a pod's containers, without threads that end meanwhile.
    pub(crate) fn of(pod: &Path) -> Self {
        let containers = fs::read_dir(pod).into_iter().flatten().flatten();
        let threads = containers.map(|container| fs::read_to_string(container.path().join("cgroup.threads")));
        let ids = threads.flat_map(|threads| threads.unwrap_or_default().lines().map(str::parse).collect::<Vec<_>>());
        Self(ids.flatten().filter_map(|id: u32| Some((id, times(id)?))).collect())
    }

    /// Returns the increase since `before`, summed over all threads.
    pub(crate) fn since(&self, before: &Self) -> Times {
        let mut sum = Times::default();
        for (id, now) in &self.0 {
            let then = before.0.get(id).copied().unwrap_or_default();
            sum.ran += now.ran.saturating_sub(then.ran);
            sum.waited += now.waited.saturating_sub(then.waited);
        }
        sum
    }
}

/// Returns the first two values of `/proc/ID/schedstat`, nanoseconds "spent on the cpu" and "waiting on a runqueue" (kernel
/// sched-stats.rst).
fn times(id: u32) -> Option<Times> {
    let name = fs::read_to_string(format!("/proc/{id}/comm")).ok()?;
    let summary = fs::read_to_string(format!("/proc/{id}/schedstat")).ok()?;
    let mut nanoseconds = summary.split(' ').map_while(|value| value.parse().ok()).map(Duration::from_nanos);
    name.starts_with("wrk:").then_some(Times { ran: nanoseconds.next()?, waited: nanoseconds.next()? })
}
