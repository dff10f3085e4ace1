//! The kernel's statistics of eBPF programs, and an empty program to compare with.

use std::{collections::BTreeMap, fs::File, os::fd::OwnedFd, path::Path};

use anyhow::{Context as _, Result};
use harness::{
    bpf::{self, ALLOW_MULTI, CGROUP_INET_EGRESS, CGROUP_INET_INGRESS, CGROUP_SKB, PASS, descriptor},
    third_party_program::ThirdPartyProgram,
};

/// Every attach type that the observer uses: the packet hooks, `sock_ops`, connect4, connect6, getsockopt.
/// Source: kernel `include/uapi/linux/bpf.h`, `enum bpf_attach_type`.
pub(crate) const ATTACH_TYPES: [u32; 6] = [CGROUP_INET_INGRESS, CGROUP_INET_EGRESS, 3, 10, 11, 21];

const PROG_GET_FD_BY_ID: libc::c_long = 13;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const ENABLE_STATS: libc::c_long = 32;

/// Has the kernel count and time the runs of every program while it is open, and stops with the process.
pub(crate) struct Statistics {
    _descriptor: OwnedFd,
}

impl Statistics {
    /// Switches them on.
    pub(crate) fn enable() -> Result<Self> {
        let descriptor = bpf::create(ENABLE_STATS, &mut [0; 16]).context("the kernel does not count programs' runs")?;
        Ok(Self { _descriptor: descriptor })
    }
}

/// Runs of one program, as the kernel counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Runs {
    pub(crate) count: u64,
    pub(crate) nanoseconds: u64,
}

impl Runs {
    /// Returns the runs since an earlier reading.
    pub(crate) fn since(self, before: Self) -> Self {
        Self { count: self.count - before.count, nanoseconds: self.nanoseconds - before.nanoseconds }
    }

    /// Returns the nanoseconds per run.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    pub(crate) fn each(self) -> f64 {
        self.nanoseconds as f64 / self.count as f64
    }
}

/// A program of two instructions that lets every packet pass; detached when dropped.
struct Empty(ThirdPartyProgram);

impl Empty {
    /// Attaches to one direction of `cgroup`, beside the programs that are there.
    fn attach(cgroup: &File, attach_type: u32) -> Result<Self> {
        let cgroup = cgroup.try_clone()?.into();
        ThirdPartyProgram::load(CGROUP_SKB, &PASS, cgroup, attach_type, ALLOW_MULTI).map(Self)
    }

    /// Returns its runs so far.
    fn runs(&self) -> Result<Runs> {
        Ok(info(&self.0.program)?.1)
    }
}

/// An empty program on each direction of a cgroup.
pub(crate) struct EmptyPair([Empty; 2]);

impl EmptyPair {
    /// Attaches both.
    pub(crate) fn attach(cgroup: &File) -> Result<Self> {
        Ok(Self([Empty::attach(cgroup, CGROUP_INET_INGRESS)?, Empty::attach(cgroup, CGROUP_INET_EGRESS)?]))
    }

    /// Returns their runs so far, incoming and outgoing.
    pub(crate) fn runs(&self) -> Result<[Runs; 2]> {
        Ok([self.0[0].runs()?, self.0[1].runs()?])
    }
}

/// Opens a cgroup's directory for the calls below.
pub(crate) fn open(cgroup: &Path) -> Result<File> {
    File::open(cgroup).with_context(|| format!("{} cannot be opened", cgroup.display()))
}

/// Returns the runs so far of the programs on a cgroup whose name begins with `prefix`, by name.
pub(crate) fn runs_of(cgroup: &File, prefix: &str) -> Result<BTreeMap<String, Runs>> {
    let mut all = BTreeMap::new();
    for attach_type in ATTACH_TYPES {
        for id in bpf::attached(cgroup, attach_type).context("the cgroup's programs cannot be listed")? {
            let mut attributes = [0; 16];
            attributes[0] = u64::from(id);
            let program = bpf::create(PROG_GET_FD_BY_ID, &mut attributes).context("a program is gone")?;
            let (name, runs) = info(&program)?;
            if name.starts_with(prefix) {
                all.insert(name, runs);
            }
        }
    }
    Ok(all)
}

/// Returns the runs since an earlier reading.
pub(crate) fn since(after: BTreeMap<String, Runs>, before: &BTreeMap<String, Runs>) -> BTreeMap<String, Runs> {
    let since = |(name, runs): (String, Runs)| {
        let runs = runs.since(before.get(&name).copied().unwrap_or_default());
        (name, runs)
    };
    after.into_iter().map(since).collect()
}

/// Returns the name and the runs of a program. Source: kernel `include/uapi/linux/bpf.h`, `struct bpf_prog_info`.
fn info(program: &OwnedFd) -> Result<(String, Runs)> {
    let mut info = [0_u64; 32];
    let mut attributes = [0; 16];
    attributes[0] = descriptor(program) | (size_of_val(&info) as u64) << 32;
    attributes[1] = info.as_mut_ptr() as u64;
    bpf::call(OBJ_GET_INFO_BY_FD, &mut attributes).context("the kernel has no information on a program")?;
    let name: Vec<u8> = info[8..10].iter().flat_map(|word| word.to_ne_bytes()).take_while(|byte| *byte != 0).collect();
    Ok((String::from_utf8_lossy(&name).into_owned(), Runs { nanoseconds: info[24], count: info[25] }))
}
