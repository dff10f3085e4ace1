//! Connections to inbound listeners that are older than the programs, or that the map of peers had no room for.
//!
//! They are read from the sidecar's network namespace, and looked at again until they have ended.

use std::{
    collections::{BTreeSet, HashMap},
    fs, io,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::{Duration, Instant},
};

use super::{EXCLUDED_PORTS, callers::peer_key};
use crate::{
    collect::InboundPeerReading,
    discovery::{ProcessId, Role, Sidecar, SidecarId, proc_files::ProcFiles, process::INBOUND_PORT},
};

/// Interval in which connections are looked at again.
const REFRESH_INTERVAL: Duration = Duration::from_secs(30);

/// Preexisting connections by sidecar.
#[derive(Debug)]
pub(super) struct PreexistingPeers {
    proc_files: ProcFiles,
    by_sidecar: HashMap<SidecarId, Peers>,
    refreshed: Option<Instant>,
}

#[derive(Debug)]
struct Peers {
    process: ProcessId,
    /// The process, and its files; `None` if there is none that can be read.
    files: Option<(u32, ProcFiles)>,
    /// Whether connections keep the port they were opened to.
    has_tproxy: bool,
    /// `None` if they could not be read.
    connections: Option<BTreeSet<SocketAddr>>,
    /// Whether they were read just now: those that the programs have counted are among them.
    is_new: bool,
    /// Those that had ended when they were read: whose last requests are among those that are counted next.
    ended: BTreeSet<SocketAddr>,
}

impl PreexistingPeers {
    pub(super) fn new(proc_root: &Path) -> Self {
        Self { proc_files: ProcFiles::new(proc_root.to_owned()), by_sidecar: HashMap::new(), refreshed: None }
    }

    /// Reads the connections of a sidecar, once per process. Those that have ended matter only to programs that are new:
    /// others have counted them.
    pub(super) fn read(&mut self, sidecar: &Sidecar, has_new_programs: bool) {
        let is_known = self.by_sidecar.get(&sidecar.id).is_some_and(|peers| peers.process == sidecar.process);
        if sidecar.role == Role::Gateway || is_known {
            return;
        }
        let pid = sidecar.pids().next().or_else(|| any_process(&sidecar.cgroup));
        let files = pid.and_then(|pid| Some((pid, self.proc_files.with_open_dir(pid).ok()?)));
        let has_tproxy = sidecar.role == Role::TproxySidecar;
        let mut peers = Peers {
            process: sidecar.process,
            files,
            has_tproxy,
            connections: None,
            is_new: false,
            ended: BTreeSet::new(),
        };
        peers.read_all();
        if !has_new_programs {
            peers.ended.clear();
        }
        self.by_sidecar.insert(sidecar.id, peers);
    }

    /// Reads the connections of all sidecars again.
    pub(super) fn read_all(&mut self) {
        self.by_sidecar.values_mut().for_each(Peers::read_all);
    }

    /// Forgets connections that have ended, and reads what could not be read; from time to time.
    pub(super) fn refresh(&mut self) {
        if self.refreshed.is_some_and(|at| at.elapsed() < REFRESH_INTERVAL) {
            return;
        }
        self.refreshed = Some(Instant::now());
        self.by_sidecar.values_mut().for_each(Peers::refresh);
    }

    /// Forgets sidecars that can no longer be counted.
    pub(super) fn forget(&mut self, sidecars: &BTreeSet<SidecarId>) {
        self.by_sidecar.retain(|id, _| !sidecars.contains(id));
    }

    /// Adds the connections to what the kernel has counted; those that had ended once.
    pub(super) fn add_to(&mut self, peers: &mut Vec<InboundPeerReading>) {
        let mut open = HashMap::<_, u64>::new();
        for InboundPeerReading { key, opened, closed, .. } in &*peers {
            *open.entry((key.sidecar, key.address)).or_default() += opened.saturating_sub(*closed);
        }
        let mut more = HashMap::<_, [u64; 2]>::new();
        for (&sidecar, own) in &mut self.by_sidecar {
            own.drop_counted(|address| {
                open.get(&(sidecar, peer_key(sidecar, address).address)).copied().unwrap_or_default()
            });
            for connection in own.connections.iter().flatten() {
                more.entry(peer_key(sidecar, connection.ip())).or_default()[0] += 1;
            }
            for connection in std::mem::take(&mut own.ended) {
                let [opened, closed] = more.entry(peer_key(sidecar, connection.ip())).or_default();
                (*opened, *closed) = (*opened + 1, *closed + 1);
            }
        }
        for peer in &mut *peers {
            let [opened, closed] = more.remove(&peer.key).unwrap_or_default();
            (peer.opened, peer.closed) = (peer.opened + opened, peer.closed + closed);
            if closed > 0 {
                peer.closed_for = Duration::ZERO;
            }
        }
        let closed_for = Duration::ZERO;
        let more = more.into_iter();
        peers.extend(more.map(|(key, [opened, closed])| InboundPeerReading { key, opened, closed, closed_for }));
    }

    /// Returns all sidecars.
    pub(super) fn sidecars(&self) -> impl Iterator<Item = SidecarId> {
        self.by_sidecar.keys().copied()
    }

    /// Returns the sidecars whose connections could not be read.
    pub(super) fn unread(&self) -> impl Iterator<Item = SidecarId> {
        self.by_sidecar.iter().filter(|(_, peers)| peers.connections.is_none()).map(|(&id, _)| id)
    }
}

impl Peers {
    fn read_all(&mut self) {
        let is_inbound = |port| port == INBOUND_PORT || (self.has_tproxy && !EXCLUDED_PORTS.contains(&port));
        let Some((pid, files)) = &self.files else { return };
        self.connections = match files.inbound_connections(*pid, is_inbound) {
            Ok([open, ended]) => {
                (self.ended, self.is_new) = (ended, true);
                Some(open)
            }
            // The process has ended, and its connections with it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Some(BTreeSet::new()),
            Err(_) => None,
        };
    }

    /// Drops the connections of addresses with no more connections than the programs have counted as `open`.
    fn drop_counted(&mut self, open: impl Fn(IpAddr) -> u64) {
        let Some(connections) = self.connections.as_mut().filter(|_| std::mem::take(&mut self.is_new)) else { return };
        let mut by_address = HashMap::<_, u64>::new();
        for connection in &*connections {
            *by_address.entry(connection.ip()).or_default() += 1;
        }
        connections.retain(|connection| {
            let address = connection.ip();
            by_address.get(&address).is_some_and(|&all| all > open(address))
        });
    }

    fn refresh(&mut self) {
        let Some(mut before) = self.connections.take() else { return self.read_all() };
        if !before.is_empty() {
            self.read_all();
            self.ended.clear();
            self.is_new = false;
            // Those opened since are counted by the programs. If none can be read now, none is known to have ended.
            if let Some(now) = &self.connections {
                before.retain(|connection| now.contains(connection));
            }
        }
        self.connections = Some(before);
    }
}

/// Returns a process of a cgroup that no process is known of.
fn any_process(cgroup: &Path) -> Option<u32> {
    fs::read_to_string(cgroup.join("cgroup.procs")).ok()?.lines().next()?.parse().ok()
}
