//! The sidecars of this node, from discovery until nothing is attached for them any more.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Error;

use crate::{
    discovery::{ProcessId, Role, Sidecar, cgroup_defaults},
    kernel::Kernel,
};

/// How long programs stay attached for the sockets of an ended sidecar, which the kernel closes after up to a minute
/// (`tcp_fin_timeout`).
const DETACH_GRACE: Duration = Duration::from_secs(75);
/// Maximum number of ended sidecars whose values and addresses are kept.
const MAX_ENDED: usize = 1024;
/// How long there may be no sidecar before that is logged.
const NO_SIDECAR_WARNING: Duration = Duration::from_secs(60);

/// The sidecars that run, and those that have ended.
pub struct Sidecars {
    /// Those that ended last come last.
    entries: Vec<Entry>,
    /// Since when there has been no sidecar; `None` once that is logged.
    none_since: Option<Instant>,
}

struct Entry {
    sidecar: Arc<Sidecar>,
    /// Cgroups that it has left while running: its older listeners still accept there.
    former_cgroups: Vec<u64>,
    state: Lifecycle,
}

/// `Starting` -> `Attached` -> `Draining` -> `Gone`; back to `Starting` when attaching fails after a change.
#[derive(Debug, PartialEq, Eq)]
enum Lifecycle {
    /// It runs, and nothing is attached for it yet.
    Starting {
        /// Attaching has failed and is retried.
        is_refused: bool,
    },
    /// It runs, and programs are attached to its cgroup.
    Attached,
    /// It has ended; programs stay attached until the deadline or until the last socket is closed.
    Draining { deadline: Instant, cgroups: Vec<u64> },
    /// It has ended, and nothing is attached for it.
    Gone,
}

impl Entry {
    fn is_running(&self) -> bool {
        matches!(self.state, Lifecycle::Starting { .. } | Lifecycle::Attached)
    }

    fn is_refused(&self) -> bool {
        self.state == Lifecycle::Starting { is_refused: true }
    }

    fn cgroups(&self) -> impl Iterator<Item = u64> {
        let current = self.is_running().then_some(self.sidecar.cgroup_id);
        let draining = match &self.state {
            Lifecycle::Draining { cgroups, .. } => cgroups.as_slice(),
            _ => &[],
        };
        current.into_iter().chain(self.former_cgroups.iter().copied()).chain(draining.iter().copied())
    }
}

impl Sidecars {
    /// Restores the sidecars of an earlier observer. Those that ran count as starting until [`Sidecars::end_others`].
    #[must_use]
    pub fn restore(running: &[Arc<Sidecar>], ended: &[Arc<Sidecar>], moved: &[(ProcessId, u64)]) -> Self {
        let ended = ended.iter().take(MAX_ENDED).rev();
        let gone =
            ended.map(|sidecar| Entry { sidecar: sidecar.clone(), former_cgroups: Vec::new(), state: Lifecycle::Gone });
        let starting = running.iter().map(|sidecar| Entry {
            sidecar: sidecar.clone(),
            former_cgroups: moved.iter().filter(|(it, _)| *it == sidecar.process).map(|&(_, id)| id).collect(),
            state: Lifecycle::Starting { is_refused: false },
        });
        Self { entries: gone.chain(starting).collect(), none_since: Some(Instant::now()) }
    }

    /// Returns all sidecars, running or not.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Sidecar>> {
        self.entries.iter().map(|entry| &entry.sidecar)
    }

    /// Returns the sidecars that run.
    #[must_use]
    pub fn running(&self) -> Vec<Arc<Sidecar>> {
        self.entries_running().map(|entry| entry.sidecar.clone()).collect()
    }

    fn entries_running(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.is_running())
    }

    /// Returns the sidecars that have ended, the last one first, without those whose id runs again.
    #[must_use]
    pub fn ended(&self) -> Vec<Arc<Sidecar>> {
        let mut seen: HashSet<_> = self.entries_running().map(|entry| entry.sidecar.id).collect();
        let ended = self.entries.iter().rev().filter(|entry| !entry.is_running());
        ended.map(|entry| &entry.sidecar).filter(|sidecar| seen.insert(sidecar.id)).take(MAX_ENDED).cloned().collect()
    }

    /// Returns the cgroups that running sidecars have left.
    #[must_use]
    pub fn moved(&self) -> Vec<(ProcessId, u64)> {
        let of = |entry: &'_ Entry| -> Vec<_> {
            entry.former_cgroups.iter().map(|&cgroup| (entry.sidecar.process, cgroup)).collect()
        };
        self.entries_running().flat_map(of).collect()
    }

    /// Returns the number of cgroups whose sidecars run and to which the programs cannot be attached.
    #[must_use]
    pub fn refused(&self) -> u64 {
        let refused = self.entries.iter().filter(|entry| entry.is_refused());
        refused.map(|entry| entry.sidecar.cgroup_id).collect::<BTreeSet<_>>().len() as u64
    }

    /// Attaches to a sidecar that was found or has changed.
    pub fn observe(&mut self, kernel: &mut Kernel, sidecar: Arc<Sidecar>) {
        let before = self.position(sidecar.process).map(|at| self.entries.remove(at));
        let (mut former_cgroups, mut is_refused) = (Vec::new(), false);
        if let Some(before) = &before {
            former_cgroups.clone_from(&before.former_cgroups);
            if before.sidecar.cgroup_id == sidecar.cgroup_id {
                is_refused = before.is_refused();
            } else {
                former_cgroups.push(before.sidecar.cgroup_id);
            }
            if before.sidecar.role != sidecar.role {
                let (pid, role, reason) = (sidecar.process.pid, sidecar.role, &sidecar.evidence);
                tracing::info!(pid, sidecar = name(&sidecar), "role is now {role}: {reason}");
            }
        }
        former_cgroups.retain(|&cgroup| cgroup != sidecar.cgroup_id);
        let is_refused =
            is_refused || self.entries.iter().any(|it| it.is_refused() && it.sidecar.cgroup_id == sidecar.cgroup_id);
        let mut entry = Entry { sidecar, former_cgroups, state: Lifecycle::Starting { is_refused } };
        attach(kernel, &mut entry);
        self.entries.push(entry);
        if let Some(before) = before {
            self.forget_processes(kernel, &before.sidecar);
        }
        self.set_cgroup_owners(kernel);
    }

    /// Ends a sidecar: its programs stay attached for [`DETACH_GRACE`].
    pub fn end(&mut self, kernel: &mut Kernel, process: ProcessId) {
        let Some(at) = self.position(process) else { return };
        let mut entry = self.entries.remove(at);
        let cgroups: Vec<u64> = entry.cgroups().collect();
        for other in &mut self.entries {
            if let Lifecycle::Draining { cgroups: draining, .. } = &mut other.state {
                draining.retain(|cgroup| !cgroups.contains(cgroup));
            }
        }
        self.forget_processes(kernel, &entry.sidecar);
        tracing::info!(pid = process.pid, sidecar = name(&entry.sidecar), "ended");
        entry.former_cgroups.clear();
        entry.state = Lifecycle::Draining { deadline: Instant::now() + DETACH_GRACE, cgroups };
        self.entries.push(entry);
        self.set_cgroup_owners(kernel);
    }

    /// Ends all sidecars but those of these processes: they ended while no observer ran. Detaches from all other cgroups.
    pub fn end_others(&mut self, kernel: &mut Kernel, present: &HashSet<ProcessId>) {
        let running = self.entries_running().map(|entry| entry.sidecar.process);
        let ended: Vec<ProcessId> = running.filter(|process| !present.contains(process)).collect();
        ended.into_iter().for_each(|process| self.end(kernel, process));
        let cgroups = self.entries.iter().flat_map(Entry::cgroups).collect();
        let processes = self.entries_running().flat_map(|entry| entry.sidecar.pids()).collect();
        kernel.retain(&cgroups, &processes);
    }

    /// Detaches from cgroups that have drained, and attaches again where that failed: the obstacle may be gone.
    pub fn keep_house(&mut self, kernel: &mut Kernel) {
        self.detach_drained(kernel);
        self.entries.iter_mut().filter(|entry| entry.is_refused()).for_each(|entry| attach(kernel, entry));
        match self.none_since {
            _ if self.entries_running().next().is_some() => self.none_since = Some(Instant::now()),
            Some(since) if since.elapsed() >= NO_SIDECAR_WARNING => {
                self.none_since = None;
                tracing::warn!("no sidecar has been found for a minute; run `observer check` for the reasons");
            }
            _ => {}
        }
    }

    fn detach_drained(&mut self, kernel: &mut Kernel) {
        let now = Instant::now();
        let mut drained = Vec::new();
        for entry in &mut self.entries {
            drained.extend(entry.former_cgroups.extract_if(.., |cgroup| kernel.is_defunct(*cgroup)));
            if let Lifecycle::Draining { deadline, cgroups } = &mut entry.state {
                drained.extend(cgroups.extract_if(.., |cgroup| *deadline <= now || kernel.is_defunct(*cgroup)));
                if cgroups.is_empty() {
                    entry.state = Lifecycle::Gone;
                }
            }
        }
        for cgroup in drained {
            if self.entries_running().flat_map(Entry::cgroups).all(|other| other != cgroup) {
                kernel.detach(cgroup);
            }
        }
        let kept: HashSet<*const Sidecar> = self.ended().iter().map(Arc::as_ptr).collect();
        self.entries.retain(|entry| entry.state != Lifecycle::Gone || kept.contains(&Arc::as_ptr(&entry.sidecar)));
    }

    fn position(&self, process: ProcessId) -> Option<usize> {
        self.entries.iter().position(|entry| entry.is_running() && entry.sidecar.process == process)
    }

    /// Removes a sidecar's processes from the maps, except pids that belong to another sidecar now.
    fn forget_processes(&self, kernel: &mut Kernel, sidecar: &Sidecar) {
        let living: HashSet<u32> = self.entries_running().flat_map(|entry| entry.sidecar.pids()).collect();
        sidecar.pids().filter(|pid| !living.contains(pid)).for_each(|pid| kernel.forget_process(pid));
    }

    /// Makes the oldest sidecar of each cgroup the owner of sockets on which no process was seen.
    fn set_cgroup_owners(&self, kernel: &mut Kernel) {
        for sidecar in cgroup_defaults(self.entries_running().map(|entry| &entry.sidecar)).into_values() {
            if let Err(error) = kernel.set_cgroup_owner(sidecar) {
                tracing::error!(sidecar = name(sidecar), "{:#}", Error::from(error));
            }
        }
    }
}

/// Attaches the programs; logs changes only.
fn attach(kernel: &mut Kernel, entry: &mut Entry) {
    let (sidecar, started) = (&entry.sidecar, Instant::now());
    let pid = sidecar.process.pid;
    match kernel.attach(sidecar) {
        Ok(is_new) => {
            if is_new {
                let (role, cgroup, took) = (sidecar.role, sidecar.cgroup.display(), started.elapsed());
                tracing::info!(pid, sidecar = name(sidecar), ?role, "observing {cgroup}, attached in {took:.1?}");
            }
            entry.state = Lifecycle::Attached;
        }
        Err(error) => {
            if !entry.is_refused() {
                tracing::error!(pid, sidecar = name(sidecar), "not observed: {:#}", Error::from(error));
            }
            entry.state = Lifecycle::Starting { is_refused: true };
        }
    }
}

/// Counts sidecars and gateways.
#[must_use]
pub fn by_role(sidecars: &[Arc<Sidecar>]) -> (usize, usize) {
    let gateways = sidecars.iter().filter(|sidecar| sidecar.role == Role::Gateway).count();
    (sidecars.len() - gateways, gateways)
}

fn name(sidecar: &Sidecar) -> String {
    let workload = &sidecar.workload;
    match (&workload.namespace, workload.pod.as_ref().or(workload.name.as_ref())) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
        (None, Some(name)) => name.clone(),
        _ if sidecar.process.is_process() => format!("process {}", sidecar.process.pid),
        _ => "a named cgroup".to_owned(),
    }
}
