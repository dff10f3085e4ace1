//! bpf(2) as far as measuring needs it: the kernel's own statistics, what is attached to a cgroup, and a program that
//! does nothing.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
};

use anyhow::{Context as _, Result};

/// Incoming packets.
pub(super) const INGRESS: u32 = 0;
/// Outgoing packets.
pub(super) const EGRESS: u32 = 1;
/// Every kind of attachment the observer uses: the two above, `sock_ops`, connect4, connect6, getsockopt.
/// Source: kernel `include/uapi/linux/bpf.h`, `enum bpf_attach_type`.
pub(super) const ATTACH_TYPES: [u32; 6] = [INGRESS, EGRESS, 3, 10, 11, 21];

const PROG_LOAD: libc::c_long = 5;
const PROG_GET_FD_BY_ID: libc::c_long = 13;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const PROG_QUERY: libc::c_long = 16;
const LINK_CREATE: libc::c_long = 28;
const ENABLE_STATS: libc::c_long = 32;
const CGROUP_SKB: u64 = 8;

/// Attributes of a call, or a buffer for what it tells.
type Words = [u64; 32];

/// While this lives, the kernel counts and times every program; it stops by itself however this process ends.
pub(super) struct Statistics {
    _descriptor: OwnedFd,
}

impl Statistics {
    /// Switches them on.
    pub(super) fn enable() -> Result<Self> {
        let descriptor = bpf(ENABLE_STATS, &mut [0; 32]).context("the kernel does not count programs' runs")?;
        Ok(Self { _descriptor: owned(descriptor) })
    }
}

/// What the kernel counted of one program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Runs {
    pub(super) count: u64,
    pub(super) nanoseconds: u64,
}

impl Runs {
    /// Since an earlier reading.
    pub(super) fn since(self, before: Self) -> Self {
        Self { count: self.count - before.count, nanoseconds: self.nanoseconds - before.nanoseconds }
    }

    /// Nanoseconds a run.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    pub(super) fn each(self) -> f64 {
        self.nanoseconds as f64 / self.count as f64
    }
}

/// A program of two instructions that lets every packet pass; detached when dropped.
pub(super) struct Empty {
    program: OwnedFd,
    _link: OwnedFd,
}

impl Empty {
    /// Attaches to one direction of `cgroup`, beside what is there.
    pub(super) fn attach(cgroup: &File, direction: u32) -> Result<Self> {
        // r0 = 1; exit
        let instructions: [u64; 2] = [0x0000_0001_0000_00b7, 0x0000_0000_0000_0095];
        let license = c"GPL";
        let mut load = [0; 32];
        load[0] = CGROUP_SKB | (instructions.len() as u64) << 32;
        load[1] = instructions.as_ptr() as u64;
        load[2] = license.as_ptr() as u64;
        let program = owned(bpf(PROG_LOAD, &mut load).context("the empty program cannot be loaded")?);
        let mut link = [0; 32];
        link[0] = number(&program) | number(cgroup) << 32;
        link[1] = u64::from(direction);
        let link = owned(bpf(LINK_CREATE, &mut link).context("the empty program cannot be attached")?);
        Ok(Self { program, _link: link })
    }

    /// Its runs so far.
    pub(super) fn runs(&self) -> Result<Runs> {
        Ok(info(&self.program)?.1)
    }
}

/// Opens a cgroup's directory for the calls below.
pub(super) fn open(cgroup: &Path) -> Result<File> {
    File::open(cgroup).with_context(|| format!("{} cannot be opened", cgroup.display()))
}

/// Ids of the programs attached to a cgroup, links included.
pub(super) fn attached(cgroup: &File, attach_type: u32) -> Result<Vec<u32>> {
    let mut found = [0_u32; 64];
    let mut query = [0; 32];
    query[0] = number(cgroup) | u64::from(attach_type) << 32;
    query[2] = found.as_mut_ptr() as u64;
    query[3] = found.len() as u64;
    bpf(PROG_QUERY, &mut query).context("the cgroup's programs cannot be listed")?;
    let count = usize::try_from(query[3] & u64::from(u32::MAX)).expect("at most 64");
    Ok(found[..count].to_vec())
}

/// Runs so far of the programs attached to a cgroup whose name begins with `prefix`, by name.
pub(super) fn runs_of(cgroup: &File, prefix: &str) -> Result<BTreeMap<String, Runs>> {
    let mut all = BTreeMap::new();
    for attach_type in ATTACH_TYPES {
        for id in attached(cgroup, attach_type)? {
            let mut words = [0; 32];
            words[0] = u64::from(id);
            let program = owned(bpf(PROG_GET_FD_BY_ID, &mut words).context("a program is gone")?);
            let (name, runs) = info(&program)?;
            if name.starts_with(prefix) {
                all.insert(name, runs);
            }
        }
    }
    Ok(all)
}

/// Name and runs of a program. Source: kernel `include/uapi/linux/bpf.h`, `struct bpf_prog_info`.
fn info(program: &OwnedFd) -> Result<(String, Runs)> {
    let mut info: Words = [0; 32];
    let mut words = [0; 32];
    words[0] = number(program) | (size_of_val(&info) as u64) << 32;
    words[1] = info.as_mut_ptr() as u64;
    bpf(OBJ_GET_INFO_BY_FD, &mut words).context("the kernel tells nothing of a program")?;
    let name: Vec<u8> = info[8..10].iter().flat_map(|word| word.to_ne_bytes()).take_while(|byte| *byte != 0).collect();
    Ok((String::from_utf8_lossy(&name).into_owned(), Runs { nanoseconds: info[24], count: info[25] }))
}

fn number(of: &impl AsRawFd) -> u64 {
    of.as_raw_fd().cast_unsigned().into()
}

fn owned(descriptor: i32) -> OwnedFd {
    // SAFETY: every caller passes a descriptor that the kernel has just given it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

fn bpf(command: libc::c_long, attributes: &mut Words) -> io::Result<i32> {
    // The kernel refuses words it does not know only if they are not zero, and a length over a page.
    // SAFETY: the kernel reads and writes within the given length; pointers in it outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size_of_val(attributes)) };
    i32::try_from(result).ok().filter(|result| *result >= 0).ok_or_else(io::Error::last_os_error)
}
