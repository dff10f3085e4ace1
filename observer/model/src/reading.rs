//! What was read, raw and cumulative: no rates, no labels, no identity.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use observer_common::{SeriesKey, health::Counter, histogram::BUCKETS};

use crate::{identity::ProcessId, page::Page};

/// Everything read in one round.
#[derive(Clone, Debug)]
pub struct Reading {
    /// When the round began, by the wall clock.
    pub at: SystemTime,
    /// The same as time since the observer began, by a clock that nobody sets.
    pub steady: Duration,
    /// What the kernel programs counted, or why it could not be read.
    pub kernel: Option<KernelReading>,
    /// What the kernel accounts for the processes of the mesh, those that could be read.
    pub processes: Vec<ProcessReading>,
    /// What the control plane's pages said last.
    pub control_plane: Vec<ScrapeReading>,
    /// How each collector fared.
    pub outcomes: Vec<Outcome>,
}

/// How one collector fared in one round.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// `kernel`, `procfs`, …
    pub collector: &'static str,
    /// How long it took.
    pub duration: Duration,
    /// What went wrong, if anything.
    pub error: Option<String>,
}

/// The kernel maps at one instant.
#[derive(Clone, Debug, Default)]
pub struct KernelReading {
    /// Every series in use, cumulative since the programs were loaded.
    pub series: Vec<SeriesReading>,
    /// Health counters, cumulative.
    pub health: Vec<(Counter, u64)>,
    /// Programs as the kernel accounts for them.
    pub programs: Vec<ProgramReading>,
    /// Most series that the map holds.
    pub series_capacity: u64,
}

/// One series' figures, cumulative.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeriesReading {
    /// What it is counted under; the overflow series has sidecar 0.
    pub key: SeriesKey,
    /// Duration (µs), request bytes, response bytes, in the order of `observer_ebpf::{DURATION, REQUEST_BYTES, RESPONSE_BYTES}`.
    pub histograms: [HistogramReading; 3],
    /// TCP connections opened.
    pub opened: u64,
    /// TCP connections closed.
    pub closed: u64,
    /// Payload bytes client to server.
    pub received: u64,
    /// Payload bytes server to client.
    pub sent: u64,
    /// gRPC messages client to server, and server to client.
    pub messages: [u64; 2],
}

impl SeriesReading {
    /// Of a series in which nothing was counted yet.
    #[must_use]
    pub fn empty(key: SeriesKey) -> Self {
        let histograms = Default::default();
        Self { key, histograms, opened: 0, closed: 0, received: 0, sent: 0, messages: [0; 2] }
    }
}

/// One histogram, cumulative.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HistogramReading {
    /// Values by exposed bucket, not cumulative over `le`.
    pub buckets: [u64; BUCKETS],
    /// Sum of values, microseconds or bytes.
    pub sum: u64,
    /// Non-empty log-linear cells as (block × 32 + cell, count modulo 2^32), ascending; empty unless percentiles are wanted.
    pub cells: Vec<(u16, u32)>,
}

/// One program's account.
#[derive(Clone, Debug)]
pub struct ProgramReading {
    /// Name, one of `observer_common::names::PROGRAMS`.
    pub name: &'static str,
    /// Cgroups it is attached to.
    pub links: u64,
    /// Runs, where the kernel counts them (`kernel.bpf_stats_enabled`).
    pub runs: u64,
    /// Time spent, likewise.
    pub run_time: Duration,
}

/// One process's account, from `/proc/PID` [proc_pid_stat(5), proc_pid_limits(5)]. What may not be read is absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessReading {
    /// Which process.
    pub process: ProcessId,
    /// User and system time of all its threads, those that ended included.
    pub cpu: Duration,
    /// Resident memory.
    pub resident_bytes: u64,
    /// Address space in use.
    pub virtual_bytes: u64,
    /// Threads.
    pub threads: u64,
    /// When it started, by the wall clock.
    pub started: Option<SystemTime>,
    /// File descriptors in use.
    pub open_files: Option<u64>,
    /// Most that it may have (soft limit).
    pub most_open_files: Option<u64>,
    /// Its cgroup's account.
    pub cgroup: CgroupReading,
}

/// One cgroup's account, from its cgroup v2 directory; absent where the controller is off or sets no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupReading {
    /// Memory charged to it, page cache included (`memory.current`).
    pub memory_bytes: Option<u64>,
    /// Its limit (`memory.max`).
    pub most_memory_bytes: Option<u64>,
    /// Enforcement periods of its CPU limit (`cpu.stat`, `nr_periods`).
    pub periods: Option<u64>,
    /// Those in which it was throttled (`nr_throttled`).
    pub throttled_periods: Option<u64>,
    /// How long it was throttled (`throttled_usec`).
    pub throttled: Option<Duration>,
}

/// How one scraped instance fares.
#[derive(Clone, Debug)]
pub struct ScrapeReading {
    /// Whose page.
    pub instance: Instance,
    /// What the last scrape said; `None` before the first one and after one that failed.
    pub page: Option<Arc<Page>>,
    /// Whether any scrape has ended yet.
    pub tried: bool,
    /// How long the last scrape took.
    pub took: Duration,
    /// Scrapes by outcome: `ok`, or the kind of error.
    pub scrapes: Counts,
    /// Lines passed over, by reason.
    pub skipped: Counts,
}

/// Counts by outcome or reason.
pub type Counts = BTreeMap<&'static str, u64>;

/// Whose page it is: the labels of every point of a scraped instance.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instance {
    /// `address:port`, the label that tells instances apart.
    pub instance: String,
    /// `istiod`, …
    pub app: String,
    /// Pod, if known.
    pub pod: Option<String>,
    /// Namespace, if known.
    pub namespace: Option<String>,
    /// Which node scrapes it, of a page that others may scrape too: their series would be one otherwise.
    pub node: Option<String>,
}

impl Instance {
    /// Names of all labels, in the order they are written.
    pub const LABELS: [&str; 5] = ["instance", "app", "pod", "namespace", "scraper_node"];

    /// Names of the labels that its points get: a page that was found has no `scraper_node`.
    #[must_use]
    pub fn labels(&self) -> &'static [&'static str] {
        if self.node.is_some() { &Self::LABELS } else { Self::LABELS.split_at(4).0 }
    }
}
