//! Watches for new and ended sidecars and control-plane processes, without polling.
//!
//! Three sources, each eventually complete:
//! - `execve` events of the kernel ([`ExecEvents`]): a new sidecar is found within a millisecond. The event precedes listening
//!   and maybe the move to the final cgroup, so a candidate is examined again after each of [`RESCAN_BACKOFF`], and then every
//!   second while it is not observed, or its /metrics endpoint is unknown. An endpoint whose port is a guess is located again
//!   by every examination;
//! - a pidfd for each process that was found, which signals its exit;
//! - a full scan every ten seconds, or every second without events.
//!
//! Measured on two shared cores, Linux 6.18, with 1,000 processes: a full scan takes 5.5 ms of CPU, i.e. 0.06 % of a core
//! every ten seconds and 0.6 % every second; an `execve` event 46 µs, including the wake-up; from process start to
//! [`Change::Found`] 0.9 ms (median of 20); watching a quiet node is not measurable.

#![expect(unsafe_code, reason = "AsyncFd takes a descriptor")]

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    os::fd::OwnedFd,
    sync::Arc,
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::{
    io::unix::AsyncFd,
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep_until},
};

use super::{
    Change, DiscoveryConfig, Finding, ProcessId, Sidecar,
    error::DiscoveryError,
    events::{Event, ExecEvents},
    printable,
    registry::Registry,
    scan::Scanner,
};

/// Delays of further examinations of a new candidate.
pub const RESCAN_BACKOFF: [Duration; 3] =
    [Duration::from_millis(50), Duration::from_millis(200), Duration::from_millis(1000)];
/// Interval of full scans with events.
pub const FULL_SCAN_INTERVAL: Duration = Duration::from_secs(10);
/// Interval of full scans without events.
pub const SCAN_INTERVAL: Duration = Duration::from_secs(1);

/// Watches the node.
#[derive(Debug)]
pub struct Watcher {
    scanner: Scanner,
    events: Result<AsyncFd<ExecEvents>, String>,
    own_namespace: bool,
    exits: JoinSet<ProcessId>,
    exit_tasks: HashMap<ProcessId, AbortHandle>,
    rescans: BTreeMap<u32, Rescan>,
    next_scan: Instant,
    logged: BTreeSet<String>,
}

/// When a candidate is examined next.
#[derive(Clone, Copy, Debug)]
struct Rescan {
    since: Instant,
    done: usize,
    next: Instant,
}

impl Watcher {
    /// Starts to watch; the first [`Watcher::next`] returns what runs already. Requires a tokio runtime.
    pub fn new(config: DiscoveryConfig) -> Result<Self, DiscoveryError> {
        let scanner = Scanner::new(config)?;
        let own_namespace = scanner.files().is_own_namespace();
        let events = if own_namespace {
            ExecEvents::subscribe().and_then(|events| {
                // SAFETY: `ExecEvents` owns its socket and keeps it open until dropped.
                unsafe { AsyncFd::register(events) }.map_err(|error| error.to_string())
            })
        } else {
            Err("the proc file system is that of another pid namespace".to_owned())
        };
        match &events {
            Ok(_) => tracing::debug!("execve events are available"),
            Err(reason) => {
                tracing::info!(reason, interval = ?SCAN_INTERVAL, "new sidecars are found by periodic scans")
            }
        }
        Ok(Self {
            scanner,
            events,
            own_namespace,
            exits: JoinSet::new(),
            exit_tasks: HashMap::new(),
            rescans: BTreeMap::new(),
            next_scan: Instant::now(),
            logged: BTreeSet::new(),
        })
    }

    /// Returns the next changes, at least one. Cancel-safe.
    pub async fn next(&mut self) -> Vec<Change> {
        loop {
            let changes = self.step().await;
            self.await_exits(&changes);
            if !changes.is_empty() {
                return changes;
            }
        }
    }

    /// Scans every process now.
    pub fn scan(&mut self) -> Vec<Change> {
        let changes = self.full_scan();
        self.await_exits(&changes);
        changes
    }

    fn full_scan(&mut self) -> Vec<Change> {
        self.next_scan = Instant::now() + if self.events.is_ok() { FULL_SCAN_INTERVAL } else { SCAN_INTERVAL };
        let known: BTreeSet<u32> = self.scanner.candidates().collect();
        let changes = self.scanner.scan().unwrap_or_else(|error| {
            tracing::warn!(%error, "scan failed: sidecars are unchanged");
            Vec::new()
        });
        let new: Vec<u32> = self.scanner.candidates().filter(|pid| !known.contains(pid)).collect();
        new.into_iter().for_each(|pid| self.schedule_rescan(pid));
        changes
    }

    /// Continues with the ids of an earlier observer, and scans every process.
    pub fn resume(&mut self, registry: Registry) -> Vec<Change> {
        self.scanner.resume(registry);
        let changes = self.scan();
        self.scanner.release_ended();
        changes
    }

    /// Returns the assigned ids.
    pub fn registry(&self) -> &Registry {
        self.scanner.registry()
    }

    /// Returns all observed sidecars.
    pub fn sidecars(&self) -> impl Iterator<Item = &Arc<Sidecar>> {
        self.scanner.sidecars()
    }

    /// Returns what is observed, what is not and why, and warnings.
    pub fn findings(&self) -> Vec<Finding> {
        self.scanner.findings()
    }

    /// Returns warnings and what is not observed, as they were logged.
    pub fn problems(&self) -> impl Iterator<Item = String> {
        self.logged.iter().cloned()
    }

    /// Returns why new processes are found by scans, if the kernel does not announce them.
    pub fn why_scanning(&self) -> Option<&str> {
        self.events.as_ref().err().map(String::as_str)
    }

    /// Waits for one event and returns its changes. Nothing is kept across an await.
    async fn step(&mut self) -> Vec<Change> {
        let due =
            self.rescans.values().map(|rescan| rescan.next).chain([self.next_scan]).min().unwrap_or(self.next_scan);
        tokio::select! {
            events = next_events(&self.events) => self.handle_events(events),
            Some(ended) = self.exits.join_next() => match ended {
                Ok(process) => {
                    self.exit_tasks.remove(&process);
                    self.scanner.ended(process)
                }
                // The task was aborted because its sidecar is gone.
                Err(_) => Vec::new(),
            },
            () = sleep_until(due) => self.handle_timer(Instant::now()),
        }
    }

    fn handle_events(&mut self, events: io::Result<Vec<Event>>) -> Vec<Change> {
        let mut changes = Vec::new();
        let events = events.unwrap_or_else(|error| {
            tracing::warn!(%error, interval = ?SCAN_INTERVAL, "new sidecars are found by periodic scans from now on");
            self.events = Err(error.to_string());
            vec![Event::Lost]
        });
        for event in events {
            match event {
                Event::Executed(pid) => {
                    changes.extend(self.scanner.examine_process(pid));
                    if self.scanner.is_candidate(pid) {
                        self.schedule_rescan(pid);
                    }
                }
                Event::Lost => self.next_scan = Instant::now(),
            }
        }
        changes
    }

    fn handle_timer(&mut self, now: Instant) -> Vec<Change> {
        let mut changes = Vec::new();
        let due: Vec<u32> = self.rescans.iter().filter(|(_, rescan)| rescan.next <= now).map(|(pid, _)| *pid).collect();
        for pid in due {
            changes.extend(self.scanner.examine_process(pid));
            self.reschedule(pid, now);
        }
        if self.next_scan <= now {
            changes.extend(self.full_scan());
        }
        self.log_findings();
        changes
    }

    fn schedule_rescan(&mut self, pid: u32) {
        let since = Instant::now();
        self.rescans.insert(pid, Rescan { since, done: 0, next: since + RESCAN_BACKOFF[0] });
    }

    fn reschedule(&mut self, pid: u32, now: Instant) {
        let Some(rescan) = self.rescans.get_mut(&pid) else { return };
        rescan.done += 1;
        match RESCAN_BACKOFF.get(rescan.done) {
            Some(&after) => rescan.next = rescan.since + after,
            None if self.scanner.is_pending(pid) => rescan.next = now + SCAN_INTERVAL,
            None => {
                self.rescans.remove(&pid);
            }
        }
    }

    /// Logs warnings and what is not observed, each once while it lasts. New candidates are not reported yet.
    fn log_findings(&mut self) {
        let is_new = |pid| self.rescans.get(&pid).is_some_and(|rescan| rescan.done < RESCAN_BACKOFF.len());
        let findings = self.scanner.findings().into_iter().filter_map(|finding| match finding {
            Finding::Observed(_) => None,
            Finding::Component(component) if is_new(component.process.pid) => None,
            Finding::Component(component) => {
                let problem = component.problem()?;
                Some(format!("{}, process {}: {problem}", component.app, component.process.pid))
            }
            Finding::Refused { process, .. } if is_new(process.pid) => None,
            Finding::Refused { process, executable, reason } => {
                Some(format!("{executable}, process {}, is not observed: {reason}", process.pid))
            }
            Finding::Warning(warning) => Some(warning),
        });
        let now: BTreeSet<String> = findings.collect();
        now.difference(&self.logged).for_each(|finding| tracing::warn!("{finding}"));
        self.logged = now;
    }

    /// Awaits the exit of each process that was found, and no longer that of processes that are gone.
    fn await_exits(&mut self, changes: &[Change]) {
        for change in changes {
            log_change(change);
            let process = change.process();
            match change {
                Change::Found(_) | Change::ComponentFound(_) if self.own_namespace && process.is_process() => {
                    self.await_exit(process);
                }
                Change::Gone(_) | Change::ComponentGone(_) => {
                    if let Some(task) = self.exit_tasks.remove(&process) {
                        task.abort();
                    }
                }
                _ => {}
            }
        }
    }

    fn await_exit(&mut self, process: ProcessId) {
        let pidfd = || -> Option<AsyncFd<OwnedFd>> {
            let pid = Pid::from_raw(process.pid.cast_signed())?;
            let pidfd = pidfd_open(pid, PidfdFlags::NONBLOCK).ok()?;
            // The process may have ended before, and its pid may be reused.
            let same = self.scanner.files().start_time(process.pid).ok()? == process.start_time;
            // SAFETY: an `OwnedFd` is open until dropped.
            same.then_some(pidfd).and_then(|pidfd| unsafe { AsyncFd::register(pidfd) }.ok())
        };
        let pidfd = pidfd();
        let task = self.exits.spawn(async move {
            if let Some(pidfd) = pidfd {
                // A pidfd is readable once its process has ended.
                let _ = pidfd.readable().await;
            }
            process
        });
        self.exit_tasks.insert(process, task);
    }
}

fn log_change(change: &Change) {
    let pid = change.process().pid;
    let what = match change {
        Change::Found(_) | Change::ComponentFound(_) => "found",
        Change::Updated(_) | Change::ComponentUpdated(_) => "changed",
        Change::Gone(_) | Change::ComponentGone(_) => "ended",
    };
    match change {
        Change::Found(sidecar) | Change::Updated(sidecar) | Change::Gone(sidecar) => {
            let pod = sidecar.workload.pod.as_deref().unwrap_or("-");
            let cgroup = printable(&sidecar.cgroup);
            tracing::debug!(id = sidecar.id, pid, pod, cgroup, "{} {what}", sidecar.role);
        }
        Change::ComponentFound(component) | Change::ComponentUpdated(component) | Change::ComponentGone(component) => {
            let pod = component.workload.pod.as_deref().unwrap_or("-");
            tracing::debug!(pid, pod, endpoint = ?component.endpoint, "{} {what}", component.app);
        }
    }
}

/// Returns the next events; never resolves without a subscription.
async fn next_events(events: &Result<AsyncFd<ExecEvents>, String>) -> io::Result<Vec<Event>> {
    let Ok(events) = events else { return std::future::pending().await };
    loop {
        let mut ready = events.readable().await?;
        let received = events.get_ref().read()?;
        ready.clear_ready();
        if !received.is_empty() {
            return Ok(received);
        }
    }
}
