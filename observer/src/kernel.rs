//! The kernel side as the daemon sees it: programs attached to cgroups, and maps read whole.

pub mod attach;
mod callers;
pub mod cgroup_usage;
mod clock;
pub mod error;
mod exemplars;
mod idle_peers;
mod idle_series;
pub mod limit_warnings;
pub mod load;
mod mapped;
pub mod port_protocols;
mod preexisting_peers;
pub mod read;
pub mod reclaim;
pub mod resume;
mod spans;
pub mod sys;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap as Table},
    net::IpAddr,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData, MapError, ProgramArray},
};
use aya_log::EbpfLogger;
use observer_common::{Cgroup, CgroupMode, IGNORED, PORT_EXCLUDED, PORT_HTTP, PORT_TCP, PortKey, SeriesKey, names};

use self::{
    attach::Link, callers::CallerMaps, cgroup_usage::CgroupUsage, error::KernelError, idle_peers::IdlePeers,
    idle_series::IdleSeries, load::Sizes, spans::SpanRing,
};
use crate::{
    discovery::{ProcessId, Role, Sidecar, SidecarId, proc_files::ProcFiles},
    persist::{pin_dir::PinDir, pins::MapState},
};

/// Ports whose traffic Istio handles as TCP regardless of its bytes.
/// Source: istio `pkg/config/protocol`, well-known server-first ports.
pub const TCP_PORTS: [u16; 4] = [25, 53, 3306, 27017];
/// Istio's own ports, never counted.
/// Source: istio.io, application requirements.
pub const EXCLUDED_PORTS: [u16; 7] = [15000, 15004, 15012, 15020, 15021, 15053, 15090];

/// What of sampled requests is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Traces {
    /// Nothing.
    Off,
    /// Those of sampled requests, for exemplars.
    Exemplars,
    /// The same, and each sampled request is a span.
    Spans,
    /// The same, with their methods and paths.
    Targets,
}

/// Sizes of maps, and port flags.
#[derive(Clone, Debug)]
pub struct KernelOptions {
    /// Maximum number of series; further ones share the overflow series.
    pub max_series: u32,
    /// Maximum number of open streams of HTTP/2 connections with more than 32 of them.
    pub max_open_calls: u32,
    /// Destination ports that are TCP, besides [`TCP_PORTS`].
    pub tcp_ports: Vec<u16>,
    /// Destination ports that are HTTP.
    pub http_ports: Vec<u16>,
    /// Ports that are never counted, besides [`EXCLUDED_PORTS`].
    pub excluded_ports: Vec<u16>,
    /// Whether callers at the destination leg are read.
    pub callers: bool,
    /// What of the trace contexts of requests is read.
    pub traces: Traces,
    /// The proc file system.
    pub proc_root: PathBuf,
}

impl KernelOptions {
    fn sizes(&self) -> Sizes {
        Sizes { max_series: self.max_series, max_open_calls: self.max_open_calls, traces: self.traces }
    }
}

/// One program, and whether this kernel accepts it.
#[derive(Clone, Debug)]
pub struct ProgramProbe {
    /// Name, one of `observer_common::names::PROGRAMS`.
    pub name: &'static str,
    /// Instructions that the verifier processed, of the million it allows; or why it rejected the program.
    pub result: Result<u32, String>,
}

/// The loaded programs, their links and their maps. Dropping it detaches what is not pinned.
pub struct Kernel {
    #[expect(dead_code, reason = "the kernel empties a table when its last owner lets it go")]
    next_programs: Vec<ProgramArray<MapData>>,
    ebpf: Ebpf,
    /// Links by cgroup and program.
    links: Table<u64, BTreeMap<&'static str, Link>>,
    usage: CgroupUsage,
    /// Every series, with the slot it is counted in; `None` if it is only carried over.
    slots: Vec<(SeriesKey, Option<u32>)>,
    /// Number of keys inserted when `slots` was read; `None` before.
    inserted: Option<u32>,
    callers: CallerMaps,
    /// Whether there are exemplars.
    reads_traces: bool,
    spans: SpanRing,
    idle: IdleSeries,
    idle_peers: IdlePeers,
    max_series: u32,
    /// Whether process ids are those of a nested pid namespace, which the kernel does not use.
    is_nested: bool,
    /// Where links are pinned, if they outlive the process.
    pin_dir: Option<PinDir>,
    map_state: MapState,
    /// Ports whose protocol the configuration declares.
    configured_ports: BTreeSet<u16>,
    /// What the map of declared protocols holds; `None` before it was read.
    declared: Option<Table<PortKey, u32>>,
}

/// Loads each program, with or without the reading of traces, and drops it again, to learn what this kernel and these
/// privileges allow.
///
/// # Errors
/// Not even the maps can be created; the message has the remedy.
pub fn probe(traces: Traces) -> Result<Vec<ProgramProbe>, KernelError> {
    let mut ebpf = load::open(Sizes { max_series: 16, max_open_calls: 16, traces }, None)?;
    Ok(names::PROGRAMS
        .iter()
        .map(|&name| ProgramProbe { name, result: probe_one(&mut ebpf, name).map_err(|error| error.to_string()) })
        .collect())
}

/// Returns the ABI hash of this build's maps.
///
/// # Errors
/// No kernel object in this build.
pub fn abi_hash(options: &KernelOptions) -> Result<String, KernelError> {
    load::abi_hash(options.sizes())
}

fn probe_one(ebpf: &mut Ebpf, name: &'static str) -> Result<u32, KernelError> {
    load::load(ebpf, name)?;
    let program = ebpf.program(name).ok_or(KernelError::Missing { name })?;
    let info = program.info().map_err(|source| KernelError::load(name, source))?;
    Ok(info.verified_instruction_count().unwrap_or(0))
}

impl Kernel {
    /// Creates the maps and loads the programs; nothing is attached yet.
    ///
    /// # Errors
    /// There is no kernel object in this build, a privilege is missing, or the kernel lacks a feature; the message names it.
    pub fn load(options: &KernelOptions) -> Result<Self, KernelError> {
        Self::load_with(options, None)
    }

    /// Uses the maps pinned in `pins`, if given, and creates those that are missing.
    fn load_with(options: &KernelOptions, pins: Option<&Path>) -> Result<Self, KernelError> {
        let mut ebpf = load::open(options.sizes(), pins)?;
        for name in names::PROGRAMS {
            load::load(&mut ebpf, name)?;
        }
        let spans = (options.traces >= Traces::Spans).then(|| spans::open(&mut ebpf)).transpose()?;
        let mut kernel = Self {
            next_programs: load::link_tail_calls(&mut ebpf)?,
            ebpf,
            links: Table::new(),
            usage: CgroupUsage::default(),
            slots: Vec::new(),
            inserted: None,
            callers: CallerMaps::new(options.callers, &options.proc_root),
            reads_traces: options.traces != Traces::Off,
            spans,
            idle: IdleSeries::default(),
            idle_peers: IdlePeers::default(),
            max_series: options.max_series,
            is_nested: ProcFiles::new(options.proc_root.clone()).is_nested(),
            pin_dir: None,
            map_state: MapState::default(),
            configured_ports: options.tcp_ports.iter().chain(&options.http_ports).copied().collect(),
            declared: None,
        };
        kernel.write_ports(options)?;
        Ok(kernel)
    }

    /// Writes the port flags, and removes entries left by an earlier observer.
    fn write_ports(&mut self, options: &KernelOptions) -> Result<(), KernelError> {
        let tcp = TCP_PORTS.iter().chain(&options.tcp_ports).map(|&port| (port, PORT_TCP));
        let http = options.http_ports.iter().map(|&port| (port, PORT_HTTP));
        let excluded = EXCLUDED_PORTS.iter().chain(&options.excluded_ports).map(|&port| (port, PORT_EXCLUDED));
        let mut flags = Table::<u32, u32>::new();
        for (port, flag) in tcp.chain(http).chain(excluded) {
            *flags.entry(port.into()).or_default() |= flag;
        }
        let wrong = |source| KernelError::map(names::PORTS, source);
        let mut ports: HashMap<_, u32, u32> = self.map_mut(names::PORTS)?;
        for (port, flags) in &flags {
            ports.insert(port, flags, 0).map_err(wrong)?;
        }
        let present: Vec<u32> = ports.keys().collect::<Result<_, _>>().map_err(wrong)?;
        present.iter().filter(|port| !flags.contains_key(port)).try_for_each(|port| ports.remove(port)).map_err(wrong)
    }

    /// Whether process ids are those of a nested pid namespace. The kernel's own differ, so that a sidecar is
    /// distinguished from its agent by the names of its threads.
    #[must_use]
    pub fn has_nested_pids(&self) -> bool {
        self.is_nested
    }

    /// Returns the programs' log lines, in a build with `--kernel-log`; they go to the `log` facade.
    #[must_use]
    pub fn log(&mut self) -> Option<EbpfLogger<&'static dyn log::Log>> {
        EbpfLogger::init(&mut self.ebpf).ok()
    }

    /// Attaches to the sidecar's cgroup and registers its processes. Returns whether anything was attached that was not before.
    ///
    /// # Errors
    /// The cgroup does not exist, or another program is attached there exclusively; nothing stays attached then.
    pub fn attach(&mut self, sidecar: &Sidecar) -> Result<bool, KernelError> {
        self.usage.attached(sidecar.id, sidecar.cgroup_id, &sidecar.cgroup);
        self.register(sidecar)?;
        let mut links = self.links.remove(&sidecar.cgroup_id).unwrap_or_default();
        let before = links.len();
        let attached = self.attach_missing(sidecar, &mut links);
        if attached.is_err() && before == 0 {
            links.into_values().for_each(Link::detach);
        } else {
            self.links.insert(sidecar.cgroup_id, links);
        }
        if attached.is_ok() {
            self.read_preexisting_peers(sidecar, before < names::ATTACHED.len());
        }
        attached.map(|()| before < names::ATTACHED.len())
    }

    /// Tells the programs the sidecar's cgroup and processes.
    fn register(&mut self, sidecar: &Sidecar) -> Result<(), KernelError> {
        self.set_cgroup_owner(sidecar)?;
        self.set_process_owner(sidecar.process, sidecar.id)?;
        sidecar.coresidents.iter().try_for_each(|&companion| self.set_process_owner(companion, IGNORED))
    }

    /// Attaches the missing programs: those that register sockets first, those that read packets last, so that no packet
    /// is seen of a socket whose setup was missed needlessly.
    fn attach_missing(
        &mut self,
        sidecar: &Sidecar,
        links: &mut BTreeMap<&'static str, Link>,
    ) -> Result<(), KernelError> {
        for &name in &names::ATTACHED {
            if links.contains_key(name) {
                continue;
            }
            let link = attach::attach(&self.ebpf, &sidecar.cgroup, name)?;
            let link = match &self.pin_dir {
                None => Link::held(link),
                Some(pin_dir) => {
                    let path = pin_dir.link(sidecar.cgroup_id, name);
                    sys::pin(link.as_fd(), &path).map_err(|error| KernelError::link(&path, error))?;
                    Link::pinned(link, path)
                }
            };
            links.insert(name, link);
        }
        Ok(())
    }

    /// Makes a sidecar the owner of sockets in its cgroup on which no process was seen.
    ///
    /// # Errors
    /// The map update fails.
    pub fn set_cgroup_owner(&mut self, sidecar: &Sidecar) -> Result<(), KernelError> {
        let mode = match sidecar.role {
            Role::Sidecar => CgroupMode::REDIRECT,
            Role::TproxySidecar => CgroupMode::TPROXY,
            Role::Gateway => CgroupMode::GATEWAY,
        };
        let mut addresses = [[0; 16]; 2];
        for (slot, address) in addresses.iter_mut().zip(&sidecar.addresses) {
            *slot = match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            };
        }
        let shared = if sidecar.is_cgroup_shared { Cgroup::SHARED } else { 0 };
        let by_thread = if self.is_nested && sidecar.process.is_process() { Cgroup::BY_THREAD } else { 0 };
        let without_callers = if self.callers.is_on { 0 } else { Cgroup::WITHOUT_CALLERS };
        let flags = shared | by_thread | without_callers;
        let value = Cgroup { sidecar: sidecar.id, mode, addresses, flags, padding: 0 };
        let mut cgroups: HashMap<_, u64, Cgroup> = self.map_mut(names::CGROUPS)?;
        cgroups.insert(sidecar.cgroup_id, value, 0).map_err(|source| KernelError::map(names::CGROUPS, source))
    }

    /// Removes a process that has ended.
    pub fn forget_process(&mut self, pid: u32) {
        if let Ok(mut processes) = self.map_mut::<HashMap<_, u32, u32>>(names::PROCESSES) {
            // It may not be in the map.
            let _ = processes.remove(&pid);
        }
    }

    /// Whether a cgroup was removed and its last socket closed: the kernel has detached the programs.
    #[must_use]
    pub fn is_defunct(&self, cgroup_id: u64) -> bool {
        let links = self.links.get(&cgroup_id);
        links.is_some_and(|links| links.values().all(Link::is_defunct))
    }

    /// Detaches from a cgroup. Its values stay readable.
    pub fn detach(&mut self, cgroup_id: u64) {
        self.links.remove(&cgroup_id).into_iter().flatten().for_each(|(_, link)| link.detach());
        self.usage.detached(cgroup_id);
        if let Ok(mut cgroups) = self.map_mut::<HashMap<_, u64, Cgroup>>(names::CGROUPS) {
            let _ = cgroups.remove(&cgroup_id);
        }
    }

    /// Records that all values were read, with cells where wanted: entries of cgroups detached before can be reclaimed.
    pub fn mark_read(&mut self) {
        self.usage.read();
    }

    /// Whether a cgroup was detached and its values not read since.
    #[must_use]
    pub fn has_unread(&self) -> bool {
        self.usage.has_unread()
    }

    fn set_process_owner(&mut self, process: ProcessId, id: SidecarId) -> Result<(), KernelError> {
        if process.pid == 0 || self.is_nested {
            return Ok(());
        }
        let mut processes: HashMap<_, u32, u32> = self.map_mut(names::PROCESSES)?;
        processes.insert(process.pid, id, 0).map_err(|source| KernelError::map(names::PROCESSES, source))
    }

    fn map<'a, M>(&'a self, name: &'static str) -> Result<M, KernelError>
    where
        M: TryFrom<&'a Map, Error = MapError>,
    {
        let map = self.ebpf.map(name).ok_or(KernelError::Missing { name })?;
        M::try_from(map).map_err(|source| KernelError::map(name, source))
    }

    fn map_mut<'a, M>(&'a mut self, name: &'static str) -> Result<M, KernelError>
    where
        M: TryFrom<&'a mut Map, Error = MapError>,
    {
        let map = self.ebpf.map_mut(name).ok_or(KernelError::Missing { name })?;
        M::try_from(map).map_err(|source| KernelError::map(name, source))
    }
}
