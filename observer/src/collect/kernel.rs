//! The kernel side as the daemon sees it: programs attached to cgroups, and maps read whole.

mod attach;
mod batch;
pub mod btf;
mod error;
pub mod folder;
pub mod layout;
pub mod past;
mod recycle;
mod resume;
pub mod shape;
pub mod store;
mod sys;

use std::{
    collections::{BTreeMap, HashMap as Table, HashSet},
    os::fd::AsFd,
    path::Path,
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData, ProgramArray},
};
use aya_log::EbpfLogger;
use observer_common::{
    Block, CGROUP_BY_THREAD, CGROUP_SHARED, Cgroup, Histogram, IGNORED, INSERTED, MODE_GATEWAY, MODE_REDIRECT,
    MODE_TPROXY, OVERFLOW_SLOT, PORT_EXCLUDED, PORT_HTTP, PORT_TCP, Series, SeriesKey, health::Counter, latency::CELLS,
    names,
};

use self::recycle::Tenants;
use super::{HistogramReading, KernelReading, ProgramReading, SeriesReading};
use crate::discovery::{ProcessId, Role, Sidecar, SidecarId};
use attach::{Link, Sizes};
use batch::{Blocks, Elements};
pub use error::Error;
use folder::Folder;
pub use resume::{Pins, Remembered};
pub use store::Store;

/// Ports whose traffic Istio takes for TCP whatever its bytes say.
/// Source: istio `pkg/config/protocol`, well-known server-first ports.
pub const TCP_PORTS: [u16; 4] = [25, 53, 3306, 27017];
/// Istio's own ports, never counted.
/// Source: istio.io, application requirements.
pub const EXCLUDED_PORTS: [u16; 7] = [15000, 15004, 15012, 15020, 15021, 15053, 15090];

/// Series that are in memory together while they are read, some half a megabyte.
const TOGETHER: usize = 512;

/// What the programs are told at load time.
#[derive(Clone, Debug)]
pub struct Options {
    /// Most series that are held apart; further ones share the overflow series.
    pub max_series: u32,
    /// Most open calls of HTTP/2 connections that have more than 32 of them.
    pub max_open_calls: u32,
    /// Destination ports that are TCP, beside [`TCP_PORTS`].
    pub tcp_ports: Vec<u16>,
    /// Destination ports that are HTTP.
    pub http_ports: Vec<u16>,
    /// Ports that are never counted, beside [`EXCLUDED_PORTS`].
    pub excluded_ports: Vec<u16>,
}

impl Options {
    fn sizes(&self) -> Sizes {
        Sizes { max_series: self.max_series, max_open_calls: self.max_open_calls }
    }
}

/// One program and whether this kernel takes it.
#[derive(Clone, Debug)]
pub struct ProgramProbe {
    /// Name, one of `observer_common::names::PROGRAMS`.
    pub name: &'static str,
    /// Instructions the verifier went through, of the million it allows; or why it refused.
    pub result: Result<u32, String>,
}

/// The loaded programs, their links and their maps. Dropping it detaches what is not pinned.
pub struct Kernel {
    #[expect(dead_code, reason = "the kernel empties a table when its last owner lets it go")]
    next_programs: Vec<ProgramArray<MapData>>,
    ebpf: Ebpf,
    /// By cgroup, the attachments by program.
    links: Table<u64, BTreeMap<&'static str, Link>>,
    tenants: Tenants,
    /// Every series, with the slot it is counted in if it is not only of the past.
    slots: Vec<(SeriesKey, Option<u32>)>,
    /// How many keys had been inserted when the list was read; `None` before.
    inserted: Option<u32>,
    max_series: u32,
    /// Whether process ids here are not the kernel's own.
    is_nested: bool,
    /// Where attachments are pinned, if they outlive the process.
    folder: Option<Folder>,
    remembered: Remembered,
}

/// Loads each program and drops it again: what can this kernel do, with these privileges?
///
/// # Errors
/// If not even the maps can be made; the message says what to do.
pub fn probe() -> Result<Vec<ProgramProbe>, Error> {
    let mut ebpf = attach::open(Sizes { max_series: 16, max_open_calls: 16 }, None)?;
    Ok(names::PROGRAMS
        .iter()
        .map(|&name| ProgramProbe { name, result: probe_one(&mut ebpf, name).map_err(|error| error.to_string()) })
        .collect())
}

/// The short name of the layout of this build's maps.
///
/// # Errors
/// No kernel object in this build.
pub fn layout_name(options: &Options) -> Result<String, Error> {
    attach::layout(options.sizes()).map(|layout| layout.name())
}

fn probe_one(ebpf: &mut Ebpf, name: &'static str) -> Result<u32, Error> {
    attach::load(ebpf, name)?;
    let program = ebpf.program(name).ok_or(Error::Missing { name })?;
    let info = program.info().map_err(|source| Error::load(name, source))?;
    Ok(info.verified_instruction_count().unwrap_or(0))
}

impl Kernel {
    /// Makes the maps and loads the programs; nothing is attached yet.
    ///
    /// # Errors
    /// No kernel object in this build, privileges missing, or a kernel without a feature; the message names it.
    pub fn load(options: &Options) -> Result<Self, Error> {
        Self::load_with(options, None)
    }

    /// With the maps that are pinned in a folder, if one is given; those not there are made.
    fn load_with(options: &Options, pins: Option<&Path>) -> Result<Self, Error> {
        let mut ebpf = attach::open(options.sizes(), pins)?;
        for name in names::PROGRAMS {
            attach::load(&mut ebpf, name)?;
        }
        let mut kernel = Self {
            next_programs: attach::link(&mut ebpf)?,
            ebpf,
            links: Table::new(),
            tenants: Tenants::default(),
            slots: Vec::new(),
            inserted: None,
            max_series: options.max_series,
            is_nested: false,
            folder: None,
            remembered: Remembered::default(),
        };
        kernel.tell_ports(options)?;
        Ok(kernel)
    }

    /// Says which ports are special, and no longer what an earlier observer said.
    fn tell_ports(&mut self, options: &Options) -> Result<(), Error> {
        let tcp = TCP_PORTS.iter().chain(&options.tcp_ports).map(|&port| (port, PORT_TCP));
        let http = options.http_ports.iter().map(|&port| (port, PORT_HTTP));
        let excluded = EXCLUDED_PORTS.iter().chain(&options.excluded_ports).map(|&port| (port, PORT_EXCLUDED));
        let mut flags = Table::<u32, u32>::new();
        for (port, flag) in tcp.chain(http).chain(excluded) {
            *flags.entry(port.into()).or_default() |= flag;
        }
        let wrong = |source| Error::map(names::PORTS, source);
        let mut ports: HashMap<_, u32, u32> = self.map_mut(names::PORTS)?;
        for (port, flags) in &flags {
            ports.insert(port, flags, 0).map_err(wrong)?;
        }
        let told: Vec<u32> = ports.keys().collect::<Result<_, _>>().map_err(wrong)?;
        told.iter().filter(|port| !flags.contains_key(port)).try_for_each(|port| ports.remove(port)).map_err(wrong)
    }

    /// Says that process ids are those of a pid namespace below the kernel's initial one: its own are others, and a sidecar is
    /// told from its agent by the names of its threads.
    pub fn tell_nested(&mut self, is_nested: bool) {
        self.is_nested = is_nested;
    }

    /// The programs' own log lines, in a build with `--kernel-log`; they go to the `log` facade.
    #[must_use]
    pub fn log(&mut self) -> Option<EbpfLogger<&'static dyn log::Log>> {
        EbpfLogger::init(&mut self.ebpf).ok()
    }

    /// Attaches to the sidecar's cgroup, unless that is done, and makes its processes known; says whether it attached now.
    ///
    /// # Errors
    /// The cgroup is gone or no cgroup, or another program forbids company there; nothing stays attached then.
    pub fn attach(&mut self, sidecar: &Sidecar) -> Result<bool, Error> {
        self.tenants.came(sidecar.id, sidecar.cgroup_id, &sidecar.cgroup);
        self.know_cgroup(sidecar)?;
        self.name_process(sidecar.process, sidecar.id)?;
        for &companion in &sidecar.companions {
            self.name_process(companion, IGNORED)?;
        }
        let mut links = self.links.remove(&sidecar.cgroup_id).unwrap_or_default();
        let before = links.len();
        let attached = self.attach_rest(sidecar, &mut links);
        if attached.is_err() && before == 0 {
            links.into_values().for_each(Link::detach);
        } else {
            self.links.insert(sidecar.cgroup_id, links);
        }
        attached.map(|()| before < names::ATTACHED.len())
    }

    /// Attaches every program that is not: those that name sockets first, those that read packets last, so that no packet is
    /// seen of a socket whose beginning was missed without need.
    fn attach_rest(&mut self, sidecar: &Sidecar, links: &mut BTreeMap<&'static str, Link>) -> Result<(), Error> {
        for &name in &names::ATTACHED {
            if links.contains_key(name) {
                continue;
            }
            let link = attach::attach(&self.ebpf, &sidecar.cgroup, name)?;
            let link = match &self.folder {
                None => Link::held(link),
                Some(folder) => {
                    let path = folder.link(sidecar.cgroup_id, name);
                    sys::pin(link.as_fd(), &path).map_err(|error| Error::link(&path, error))?;
                    Link::pinned(link, path)
                }
            };
            links.insert(name, link);
        }
        Ok(())
    }

    /// Makes a sidecar the owner of what no process was seen on in its cgroup, before or after programs are attached there.
    ///
    /// # Errors
    /// A map refuses the entry.
    pub fn know_cgroup(&mut self, sidecar: &Sidecar) -> Result<(), Error> {
        let mode = match sidecar.role {
            Role::Sidecar => MODE_REDIRECT,
            Role::TproxySidecar => MODE_TPROXY,
            Role::Gateway => MODE_GATEWAY,
        };
        let mut addresses = [[0; 16]; 2];
        for (place, address) in addresses.iter_mut().zip(&sidecar.addresses) {
            *place = match address {
                std::net::IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                std::net::IpAddr::V6(address) => address.octets(),
            };
        }
        let shared = if sidecar.is_cgroup_shared { CGROUP_SHARED } else { 0 };
        let by_thread = if self.is_nested && sidecar.process.is_process() { CGROUP_BY_THREAD } else { 0 };
        let value = Cgroup { sidecar: sidecar.id, mode, addresses, flags: shared | by_thread, padding: 0 };
        let mut cgroups: HashMap<_, u64, Cgroup> = self.map_mut(names::CGROUPS)?;
        cgroups.insert(sidecar.cgroup_id, value, 0).map_err(|source| Error::map(names::CGROUPS, source))
    }

    /// Forgets a process that has ended, by its number.
    pub fn forget_process(&mut self, pid: u32) {
        if let Ok(mut processes) = self.map_mut::<HashMap<_, u32, u32>>(names::PROCESSES) {
            // It may never have been known.
            let _ = processes.remove(&pid);
        }
    }

    /// Whether a cgroup was removed and its last socket is gone: the kernel itself has detached the programs then.
    #[must_use]
    pub fn is_severed(&self, cgroup_id: u64) -> bool {
        let links = self.links.get(&cgroup_id);
        links.is_some_and(|links| links.values().all(Link::is_severed))
    }

    /// Detaches from a cgroup. What was counted stays readable.
    pub fn detach(&mut self, cgroup_id: u64) {
        self.links.remove(&cgroup_id).into_iter().flatten().for_each(|(_, link)| link.detach());
        self.tenants.left(cgroup_id);
        if let Ok(mut cgroups) = self.map_mut::<HashMap<_, u64, Cgroup>>(names::CGROUPS) {
            let _ = cgroups.remove(&cgroup_id);
        }
    }

    /// Reads every counter, and hands every series on, one by one, so that they need never be in memory together.
    /// `cells` says whether the log-linear cells are wanted too.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn read(&mut self, cells: bool, mut each: impl FnMut(&SeriesReading)) -> Result<KernelReading, Error> {
        self.refresh_slots()?;
        let mut series = self.elements::<Series>(names::SERIES)?;
        let mut blocks = self.elements::<Block>(names::BLOCKS)?;
        let health: Array<_, u64> = self.map(names::HEALTH)?;
        let mut reading = KernelReading { series_capacity: u64::from(self.max_series), ..KernelReading::default() };
        for chunk in self.slots.chunks(TOGETHER) {
            let slots: Vec<u32> = chunk.iter().filter_map(|&(_, slot)| slot).collect();
            let figures = series.read(&slots)?;
            let cells = if cells { batch::blocks(&mut blocks, &figures)? } else { Blocks::new() };
            let mut figures = figures.iter();
            for &(key, slot) in chunk {
                let counted = slot.and_then(|_| figures.next());
                let mut reading =
                    counted.map_or_else(|| SeriesReading::empty(key), |own| series_reading(key, own, &cells));
                self.remembered.past.complete(&mut reading);
                if slot != Some(OVERFLOW_SLOT) || !is_unused(&reading) {
                    each(&reading);
                }
            }
        }
        for &counter in Counter::ALL {
            let value = health.get(&(counter as u32), 0).map_err(|source| Error::map(names::HEALTH, source))?;
            reading.health.push((counter, self.remembered.past.health(counter).saturating_add(value)));
        }
        for name in names::PROGRAMS {
            reading.programs.push(self.read_program(name)?);
        }
        Ok(reading)
    }

    /// The last reading was whole: with cells, where those are wanted. What ended before it can be freed.
    pub fn mark_read(&mut self) {
        self.tenants.read();
    }

    /// Whether something ended that no whole reading has seen since.
    #[must_use]
    pub fn has_unread_ends(&self) -> bool {
        self.tenants.has_unread()
    }

    /// The list of slots is read again when there are more than it has.
    fn refresh_slots(&mut self) -> Result<(), Error> {
        let next: Array<_, u32> = self.map(names::NEXT)?;
        // Before the keys are read: what is inserted meanwhile is found next time.
        let inserted = next.get(&INSERTED, 0).map_err(|source| Error::map(names::NEXT, source))?;
        if self.inserted == Some(inserted) {
            return Ok(());
        }
        let slots: HashMap<_, SeriesKey, u32> = self.map(names::SLOTS)?;
        let read: Result<Vec<_>, _> = slots.iter().collect();
        let mut read = read.map_err(|source| Error::map(names::SLOTS, source))?;
        read.sort_unstable_by_key(|&(_, slot)| slot);
        self.inserted = Some(inserted);
        let overflow = (SeriesKey::default(), OVERFLOW_SLOT);
        self.slots = [overflow].into_iter().chain(read).map(|(key, slot)| (key, Some(slot))).collect();
        let counted: HashSet<SeriesKey> = self.slots.iter().map(|&(key, _)| key).collect();
        self.slots.extend(self.remembered.past.keys().filter(|key| !counted.contains(key)).map(|&key| (key, None)));
        Ok(())
    }

    fn read_program(&self, name: &'static str) -> Result<ProgramReading, Error> {
        let program = self.ebpf.program(name).ok_or(Error::Missing { name })?;
        let fd = program.fd().map_err(|source| Error::load(name, source))?;
        let (runs, run_time_ns) = sys::run_statistics(fd.as_fd());
        let links = if names::ATTACHED.contains(&name) { self.links.len() as u64 } else { 0 };
        Ok(ProgramReading { name, links, runs, run_time: Duration::from_nanos(run_time_ns) })
    }

    fn name_process(&mut self, process: ProcessId, id: SidecarId) -> Result<(), Error> {
        if process.pid == 0 || self.is_nested {
            return Ok(());
        }
        let mut processes: HashMap<_, u32, u32> = self.map_mut(names::PROCESSES)?;
        processes.insert(process.pid, id, 0).map_err(|source| Error::map(names::PROCESSES, source))
    }

    fn elements<V: aya::Pod>(&self, name: &'static str) -> Result<Elements<'_, V>, Error> {
        Elements::new(name, self.ebpf.map(name).ok_or(Error::Missing { name })?)
    }

    fn map<'a, M>(&'a self, name: &'static str) -> Result<M, Error>
    where
        M: TryFrom<&'a aya::maps::Map, Error = aya::maps::MapError>,
    {
        let map = self.ebpf.map(name).ok_or(Error::Missing { name })?;
        M::try_from(map).map_err(|source| Error::map(name, source))
    }

    fn map_mut<'a, M>(&'a mut self, name: &'static str) -> Result<M, Error>
    where
        M: TryFrom<&'a mut aya::maps::Map, Error = aya::maps::MapError>,
    {
        let map = self.ebpf.map_mut(name).ok_or(Error::Missing { name })?;
        M::try_from(map).map_err(|source| Error::map(name, source))
    }
}

/// With the log-linear cells of the blocks that were read.
fn series_reading(key: SeriesKey, figures: &Series, blocks: &Blocks) -> SeriesReading {
    let histograms = figures.histograms.each_ref().map(|histogram| HistogramReading {
        buckets: histogram.buckets,
        sum: histogram.sum,
        cells: cells(blocks, histogram),
    });
    let &Series { opened, closed, received, sent, messages, .. } = figures;
    SeriesReading { key, histograms, opened, closed, received, sent, messages }
}

fn is_unused(series: &SeriesReading) -> bool {
    series.opened == 0
        && series.closed == 0
        && series.received == 0
        && series.sent == 0
        && series.histograms[0].buckets.iter().all(|&count| count == 0)
}

fn cells(blocks: &Blocks, histogram: &Histogram) -> Vec<(u16, u32)> {
    let mut cells = Vec::new();
    for (octave, name) in histogram.blocks.iter().enumerate() {
        let Some(block) = blocks.get(name) else { continue };
        let used = block.cells.iter().enumerate().filter(|&(_, &count)| count != 0);
        cells.extend(used.map(|(cell, &count)| ((octave * CELLS + cell) as u16, count)));
    }
    cells
}
