//! Loads the programs and attaches them to cgroups, each attachment a link of its own that ends with it.

use std::{fs::File, path::Path};

use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, ProgramArray},
    programs::{
        CgroupAttachMode, Program, ProgramError,
        cgroup_skb::{CgroupSkbAttachType, CgroupSkbLink},
        cgroup_sock_addr::CgroupSockAddrLink,
        cgroup_sockopt::CgroupSockoptLink,
        sock_ops::SockOpsLink,
    },
};
use observer_ebpf::names;

use super::Error;

/// The kernel object, or nothing in a build without one.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/kernel.o"));

/// The six attachments to one cgroup. Dropping them detaches.
#[expect(dead_code, reason = "held for their drop")]
pub(super) struct Links(Vec<Link>);

#[expect(dead_code, reason = "held for their drop")]
enum Link {
    SockAddr(CgroupSockAddrLink),
    SockOps(SockOpsLink),
    Sockopt(CgroupSockoptLink),
    Skb(CgroupSkbLink),
}

/// Opens the object and makes its maps; `max_series` sizes those that hold series.
pub(super) fn open(max_series: u32) -> Result<Ebpf, Error> {
    if OBJECT.is_empty() {
        return Err(Error::NoObject);
    }
    let slots = max_series.saturating_add(1);
    EbpfLoader::new()
        // The kernel's own types are not needed: no program reads kernel memory.
        .btf(None)
        .map_max_entries(names::SLOTS, max_series)
        .map_max_entries(names::SERIES, slots)
        .map_max_entries(names::BLOCKS, slots.saturating_mul(BLOCKS_PER_SERIES))
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

/// Attaches to the cgroup every program that is attached: those that name sockets first, those that read packets last, so that no packet
/// is seen of a socket whose beginning was missed without need.
pub(super) fn attach(ebpf: &mut Ebpf, path: &Path) -> Result<Links, Error> {
    let cgroup = File::open(path).map_err(|source| Error::Cgroup { path: path.to_owned(), source })?;
    let links = names::ATTACHED.iter().map(|&name| {
        let program = ebpf.program_mut(name).ok_or(Error::Missing { name })?;
        attach_one(program, name, &cgroup).map_err(|source| Error::attach(name, path, source))
    });
    Ok(Links(links.collect::<Result<_, _>>()?))
}

fn attach_one(program: &mut Program, name: &str, cgroup: &File) -> Result<Link, ProgramError> {
    // With links this mode is multi-attach: the kernel adds BPF_F_ALLOW_MULTI itself (kernel/bpf/cgroup.c).
    let mode = CgroupAttachMode::Single;
    match program {
        Program::CgroupSockAddr(program) => {
            let id = program.attach(cgroup, mode)?;
            program.take_link(id).map(Link::SockAddr)
        }
        Program::SockOps(program) => {
            let id = program.attach(cgroup, mode)?;
            program.take_link(id).map(Link::SockOps)
        }
        Program::CgroupSockopt(program) => {
            let id = program.attach(cgroup, mode)?;
            program.take_link(id).map(Link::Sockopt)
        }
        Program::CgroupSkb(program) => {
            let direction =
                if name == names::ATTACHED[5] { CgroupSkbAttachType::Egress } else { CgroupSkbAttachType::Ingress };
            let id = program.attach(cgroup, direction, mode)?;
            program.take_link(id).map(Link::Skb)
        }
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}
