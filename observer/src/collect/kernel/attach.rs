//! Loads the programs and attaches them to cgroups, each attachment a link of its own that ends with it.

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, ProgramArray},
    programs::{Program, ProgramType},
    sys::{BpfHelper, is_helper_supported},
};
use aya_obj::generated::bpf_attach_type;
use observer_ebpf::names;

use super::{Error, sys};

/// The kernel object, or nothing in a build without one.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/kernel.o"));

/// Opens the object and makes its maps; `max_series` sizes those that hold series, `max_open_calls` that of calls.
pub(super) fn open(max_series: u32, max_open_calls: u32) -> Result<Ebpf, Error> {
    if OBJECT.is_empty() {
        return Err(Error::NoObject);
    }
    // Of a type that only those may load who may use every helper: others get an error, which the maps' own will explain.
    if let Ok(false) = is_helper_supported(ProgramType::SockOps, BpfHelper::BPF_FUNC_loop) {
        return Err(Error::Lacks { feature: "bpf_loop" });
    }
    let slots = max_series.saturating_add(1);
    EbpfLoader::new()
        // The kernel's own types are not needed: no program reads kernel memory.
        .btf(None)
        .map_max_entries(names::SLOTS, max_series)
        .map_max_entries(names::CALLS, max_open_calls)
        .map_max_entries(names::SERIES, slots)
        .map_max_entries(names::FREE_SLOTS, slots)
        .map_max_entries(names::BLOCKS, slots.saturating_mul(BLOCKS_PER_SERIES))
        .map_max_entries(names::FREE_BLOCKS, slots.saturating_mul(BLOCKS_PER_SERIES))
        .load(OBJECT)
        .map_err(Error::open)
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
