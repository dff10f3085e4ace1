//! Loads the programs and attaches them to cgroups, each attachment a link of its own that ends with it.

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{MapData, ProgramArray},
    programs::{Program, ProgramType},
    sys::{BpfHelper, is_helper_supported},
};
use aya_obj::{Object, generated::bpf_attach_type};
use observer_common::names;

use super::{Error, layout::Layout, sys};

/// The kernel object, or nothing in a build without one.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/kernel.o"));

/// One attachment of a program to a cgroup.
pub(super) struct Link {
    fd: OwnedFd,
    /// Where it is pinned, if it outlives the process; else it ends when dropped.
    pin: Option<PathBuf>,
}

impl Link {
    pub(super) fn held(fd: OwnedFd) -> Self {
        Self { fd, pin: None }
    }

    pub(super) fn pinned(fd: OwnedFd, path: PathBuf) -> Self {
        Self { fd, pin: Some(path) }
    }

    pub(super) fn detach(self) {
        if let Some(path) = self.pin {
            // It may be detached already, its cgroup being gone.
            let _ = sys::detach_link(self.fd.as_fd());
            // A pin that cannot be removed is found by the next observer, and leads nowhere.
            let _ = std::fs::remove_file(path);
        }
    }

    /// Whether the kernel has detached it: its cgroup was removed, and its last socket is gone.
    pub(super) fn is_severed(&self) -> bool {
        sys::linked_cgroup(self.fd.as_fd()).is_ok_and(|id| id == 0)
    }
}

/// How many entries maps are to have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) max_series: u32,
    pub(super) max_open_calls: u32,
}

/// Opens the object and makes its maps, or takes those that are pinned in `pins`.
pub(super) fn open(sizes: Sizes, pins: Option<&Path>) -> Result<Ebpf, Error> {
    if OBJECT.is_empty() {
        return Err(Error::NoObject);
    }
    let lacks = lacks();
    if !lacks.is_empty() {
        return Err(Error::Lacks { features: lacks.join(" and ") });
    }
    let mut loader = EbpfLoader::new();
    // What is refused is loaded once more for its log. A trace of every instruction would be megabytes, for which it would be
    // loaded ten times more, and takes seconds each time.
    let traced = tracing::enabled!(tracing::Level::TRACE);
    loader.verifier_log_level(
        VerifierLogLevel::STATS | if traced { VerifierLogLevel::DEBUG } else { VerifierLogLevel::DISABLE },
    );
    // The kernel's own types are not needed: no program reads kernel memory.
    loader.btf(None);
    for (name, size) in sizes.by_map() {
        loader.map_max_entries(name, size);
    }
    for name in names::MAPS {
        if let Some(pins) = pins {
            loader.map_pin_path(name, pins.join(name));
        }
    }
    loader.load(OBJECT).map_err(Error::open)
}

/// Features that the programs need and that this kernel was tried for in vain. Loading is tried with programs of a type that
/// only those may load who may use every helper: others get an error, which the maps' own will explain.
fn lacks() -> Vec<&'static str> {
    let mut lacks = Vec::new();
    if let Ok(false) = is_helper_supported(ProgramType::SockOps, BpfHelper::BPF_FUNC_loop) {
        lacks.push("bpf_loop");
    }
    if !sys::takes_fetching_atomics() {
        lacks.push("atomics that return a value");
    }
    lacks
}

/// The layout of the maps that [`open`] makes.
pub(super) fn layout(sizes: Sizes) -> Result<Layout, Error> {
    if OBJECT.is_empty() {
        return Err(Error::NoObject);
    }
    let object = Object::parse(OBJECT).map_err(|error| Error::open(error.into()))?;
    Layout::of(&object, &sizes.by_map()).ok_or(Error::Missing { name: ".BTF" })
}

impl Sizes {
    fn by_map(self) -> [(&'static str, u32); 6] {
        let slots = self.max_series.saturating_add(1);
        let blocks = slots.saturating_mul(BLOCKS_PER_SERIES);
        [
            (names::SLOTS, self.max_series),
            (names::CALLS, self.max_open_calls),
            (names::SERIES, slots),
            (names::FREE_SLOTS, slots),
            (names::BLOCKS, blocks),
            (names::FREE_BLOCKS, blocks),
        ]
    }
}

/// Octaves that a series' three histograms touch between them; measured: 4 to 9.
const BLOCKS_PER_SERIES: u32 = 12;

/// Loads one program into the kernel.
pub(super) fn load(ebpf: &mut Ebpf, name: &'static str) -> Result<(), Error> {
    let program = ebpf.program_mut(name).ok_or(Error::Missing { name })?;
    let result = match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::CgroupSockopt(program) => program.load(),
        Program::CgroupSkb(program) => program.load(),
        _ => return Err(Error::Missing { name }),
    };
    result.map_err(|source| Error::load(name, source))
}

/// Tells the attached programs where they hand on to. The tables' owner must outlive the programs' use of them.
pub(super) fn link(ebpf: &mut Ebpf) -> Result<Vec<ProgramArray<MapData>>, Error> {
    names::HANDED.iter().map(|(table, programs)| fill(ebpf, table, programs)).collect()
}

fn fill(
    ebpf: &mut Ebpf,
    name: &'static str,
    programs: &'static [&'static str],
) -> Result<ProgramArray<MapData>, Error> {
    let map = ebpf.take_map(name).ok_or(Error::Missing { name })?;
    let mut table = ProgramArray::try_from(map).map_err(|source| Error::map(name, source))?;
    for (number, &program) in programs.iter().enumerate() {
        let loaded = ebpf.program(program).ok_or(Error::Missing { name: program })?;
        let fd = loaded.fd().map_err(|source| Error::load(program, source))?;
        table.set(number as u32, fd, 0).map_err(|source| Error::map(name, source))?;
    }
    Ok(table)
}

/// Attaches to the cgroup a program that is attached.
pub(super) fn attach(ebpf: &Ebpf, path: &Path, name: &'static str) -> Result<OwnedFd, Error> {
    let cgroup = File::open(path).map_err(|source| match source.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => Error::Files { name, path: path.to_owned() },
        _ => Error::Cgroup { path: path.to_owned(), source },
    })?;
    let program = ebpf.program(name).ok_or(Error::Missing { name })?;
    let program = program.fd().map_err(|source| Error::load(name, source))?;
    let (_, place) =
        names::ATTACHED.into_iter().zip(PLACES).find(|(known, _)| *known == name).ok_or(Error::Missing { name })?;
    sys::create_link(program.as_fd(), cgroup.as_fd(), place).map_err(|source| Error::attach(name, path, source))
}

/// Where each of `names::ATTACHED` is attached.
const PLACES: [bpf_attach_type; 6] = [
    bpf_attach_type::BPF_CGROUP_INET4_CONNECT,
    bpf_attach_type::BPF_CGROUP_INET6_CONNECT,
    bpf_attach_type::BPF_CGROUP_SOCK_OPS,
    bpf_attach_type::BPF_CGROUP_GETSOCKOPT,
    bpf_attach_type::BPF_CGROUP_INET_INGRESS,
    bpf_attach_type::BPF_CGROUP_INET_EGRESS,
];
