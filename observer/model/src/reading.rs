//! Raw readings, cumulative: no rates, no labels, no identity.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use observer_common::{CallerId, CallerKind, InboundPeerKey, SeriesKey, health::Counter, histogram::BUCKETS};

use crate::{
    exemplar::Exemplar,
    identity::{Instance, ProcessId, SidecarId},
    scraped::ScrapedExposition,
};

/// Everything read in one round.
#[derive(Clone, Debug)]
pub struct Reading {
    /// Wall-clock time at which the round began.
    pub at: SystemTime,
    /// The same on the monotonic clock, since the observer started.
    pub steady: Duration,
    /// The kernel maps; `None` if they could not be read.
    pub kernel: Option<KernelReading>,
    /// Resource usage of the mesh's processes that could be read.
    pub processes: Vec<ProcessReading>,
    /// The last scrape of every instance.
    pub scrapes: Vec<ScrapeReading>,
    /// Outcome of each collector.
    pub outcomes: Vec<Outcome>,
}

/// Outcome of one collector in one round.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// `kernel`, `procfs`, …
    pub collector: &'static str,
    /// Duration of the run.
    pub duration: Duration,
    /// Error, if it failed.
    pub error: Option<String>,
}

/// The kernel maps at one instant.
#[derive(Clone, Debug, Default)]
pub struct KernelReading {
    /// Every series in use, cumulative since the maps were created.
    pub series: Vec<SeriesReading>,
    /// Health counters, cumulative.
    pub health: Vec<(Counter, u64)>,
    /// Stats of the eBPF programs.
    pub programs: Vec<ProgramReading>,
    /// Capacity of the series map.
    pub series_capacity: u64,
    /// Callers and inbound connections, read after the series.
    pub callers: CallersReading,
    /// Exemplars of the durations of series, read before the series.
    pub exemplars: Vec<(SeriesKey, Vec<Exemplar>)>,
    /// Time that reading took.
    pub duration: Duration,
}

/// The callers in the keys of series, and who is connected to the inbound listeners of sidecars.
#[derive(Clone, Debug, Default)]
pub struct CallersReading {
    /// Every caller of which the kernel has the text; empty if that is as it was.
    pub callers: Vec<CallerReading>,
    /// Every peer.
    pub peers: Vec<InboundPeerReading>,
    /// Peers that were removed from the kernel since the last reading, before they were read again.
    pub removed: Vec<InboundPeerKey>,
    /// Series of idle callers that were freed since the last reading: if they are there again, they count from 0.
    pub freed: Vec<SeriesKey>,
    /// Sidecars of which peers may be missing: connections older than the programs that could not be read, or for which
    /// the map had no room.
    pub incomplete: Vec<SidecarId>,
}

/// A part of the kernel maps.
#[derive(Clone, Copy, Debug)]
pub enum KernelPart<'a> {
    /// Callers and connections, read after the values of all series that follow up to the next such part.
    Callers(&'a CallersReading),
    /// One series.
    Series(&'a SeriesReading),
    /// Exemplars of the durations of the series before.
    Exemplars(&'a SeriesKey, &'a [Exemplar]),
}

/// A caller, as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallerReading {
    /// Id in the keys of series.
    pub id: CallerId,
    /// Where the text is from.
    pub kind: CallerKind,
    /// The text.
    pub text: Box<[u8]>,
}

/// The connections of one address to one port of one sidecar, cumulative.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InboundPeerReading {
    /// Sidecar, port, security and address.
    pub key: InboundPeerKey,
    /// Connections that were opened.
    pub opened: u64,
    /// Connections that were closed.
    pub closed: u64,
    /// Time since one was closed last; zero if that is not known.
    pub closed_for: Duration,
}

/// One series, cumulative.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeriesReading {
    /// Key; the overflow series has sidecar 0.
    pub key: SeriesKey,
    /// Duration (µs), request bytes, response bytes, in the order of `observer_common::{DURATION, REQUEST_BYTES,
    /// RESPONSE_BYTES}`.
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
    /// Returns a series in which nothing has been counted.
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
    /// Non-empty log-linear cells as (block × 32 + cell, count modulo 2^32), ascending; empty unless percentiles are
    /// wanted.
    pub cells: Vec<(u16, u32)>,
}

/// Stats of one eBPF program.
#[derive(Clone, Debug)]
pub struct ProgramReading {
    /// Name, one of `observer_common::names::PROGRAMS`.
    pub name: &'static str,
    /// Number of cgroups it is attached to.
    pub links: u64,
    /// Number of runs, where the kernel counts them (`kernel.bpf_stats_enabled`).
    pub runs: u64,
    /// Time spent, likewise.
    pub run_time: Duration,
}

/// Resource usage of a process, from `/proc/PID` [proc_pid_stat(5), proc_pid_limits(5)]; absent where not readable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessReading {
    /// The process.
    pub process: ProcessId,
    /// User and system time of all threads, ended ones included.
    pub cpu: Duration,
    /// Resident memory.
    pub resident_bytes: u64,
    /// Address space in use.
    pub virtual_bytes: u64,
    /// Threads.
    pub threads: u64,
    /// Wall-clock time of its start.
    pub started: Option<SystemTime>,
    /// File descriptors in use.
    pub open_files: Option<u64>,
    /// Soft limit of file descriptors.
    pub max_open_files: Option<u64>,
    /// Resource usage of its cgroup.
    pub cgroup: CgroupReading,
}

/// Resource usage of a cgroup v2; absent where the controller is off or sets no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupReading {
    /// Memory charged to it, exposition cache included (`memory.current`).
    pub memory_bytes: Option<u64>,
    /// Memory limit (`memory.max`).
    pub max_memory_bytes: Option<u64>,
    /// Enforcement periods of its CPU limit (`cpu.stat`, `nr_periods`).
    pub periods: Option<u64>,
    /// Periods in which it was throttled (`nr_throttled`).
    pub throttled_periods: Option<u64>,
    /// Throttled time (`throttled_usec`).
    pub throttled: Option<Duration>,
}

/// The last scrape of one instance, and counts of all.
#[derive(Clone, Debug)]
pub struct ScrapeReading {
    /// The instance.
    pub instance: Instance,
    /// Result of the last scrape; `None` before the first one and after a failed one.
    pub exposition: Option<Arc<ScrapedExposition>>,
    /// Whether any scrape has finished.
    pub tried: bool,
    /// Duration of the last scrape.
    pub duration: Duration,
    /// Scrapes by outcome: `ok` or the kind of error.
    pub scrapes: Counts,
    /// Skipped lines, by reason.
    pub skipped: Counts,
}

/// Counts by outcome or reason.
pub type Counts = BTreeMap<&'static str, u64>;
