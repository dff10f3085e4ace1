//! A program of somebody else's, attached the old way (no link); the plainest is on a cgroup and lets every packet pass.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
};

use anyhow::{Context, Result};

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_PROG_DETACH: libc::c_long = 9;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_PROG_TYPE_CGROUP_SKB: u32 = 8;
const BPF_CGROUP_INET_INGRESS: u32 = 0;
pub(crate) const BPF_F_ALLOW_MULTI: u32 = 2;

/// An attached program; detached when dropped.
#[derive(Debug)]
pub struct Foreign {
    program: OwnedFd,
    target: OwnedFd,
    hook: u32,
}

impl Foreign {
    /// Attaches to the ingress of `cgroup`; `exclusive` allows no other program beside it.
    pub fn attach(cgroup: &Path, exclusive: bool) -> Result<Self> {
        // r0 = 1; exit
        let instructions = [0x0000_0001_0000_00b7, 0x0000_0000_0000_0095];
        let cgroup = File::open(cgroup).with_context(|| format!("{}", cgroup.display()))?;
        let flags = if exclusive { 0 } else { BPF_F_ALLOW_MULTI };
        Self::load(BPF_PROG_TYPE_CGROUP_SKB, &instructions, cgroup.into(), BPF_CGROUP_INET_INGRESS, flags)
    }

    /// Loads a program of some kind and attaches it to a hook of `target`.
    pub(crate) fn load(kind: u32, instructions: &[u64], target: OwnedFd, hook: u32, flags: u32) -> Result<Self> {
        let license = c"GPL";
        let mut load = [0_u64; 16];
        load[0] = u64::from(kind) | (instructions.len() as u64) << 32;
        load[1] = instructions.as_ptr() as u64;
        load[2] = license.as_ptr() as u64;
        let program = new(BPF_PROG_LOAD, &mut load).context("the foreign program cannot be loaded")?;
        let foreign = Self { program, target, hook };
        bpf(BPF_PROG_ATTACH, &mut foreign.attributes(flags)).context("the foreign program cannot be attached")?;
        Ok(foreign)
    }

    /// Number of programs where it is attached, links included.
    pub fn programs(&self) -> Result<u32> {
        let mut query = [0_u64; 16];
        let mut found = [0_u32; 64];
        query[0] = u64::from(descriptor(&self.target)) | u64::from(self.hook) << 32;
        query[2] = found.as_mut_ptr() as u64;
        query[3] = found.len() as u64;
        bpf(BPF_PROG_QUERY, &mut query).context("the cgroup's programs cannot be listed")?;
        Ok(u32::try_from(query[3] & u64::from(u32::MAX)).expect("masked"))
    }

    /// `struct { target_fd, attach_bpf_fd, attach_type, attach_flags }`
    fn attributes(&self, flags: u32) -> [u64; 16] {
        let mut attributes = [0; 16];
        attributes[0] = u64::from(descriptor(&self.target)) | u64::from(descriptor(&self.program)) << 32;
        attributes[1] = u64::from(self.hook) | u64::from(flags) << 32;
        attributes
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        // It goes with what it is attached to, which may be gone already.
        let _ = bpf(BPF_PROG_DETACH, &mut self.attributes(0));
    }
}

pub(crate) fn descriptor(of: &impl AsRawFd) -> u32 {
    of.as_raw_fd().cast_unsigned()
}

/// As [`bpf`], for a call that makes something.
pub(crate) fn new(command: libc::c_long, attributes: &mut [u64; 16]) -> io::Result<OwnedFd> {
    // SAFETY: a descriptor that the kernel has just given us.
    bpf(command, attributes).map(|descriptor| unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Calls bpf(2); pointers in `attributes` must be valid.
pub(crate) fn bpf(command: libc::c_long, attributes: &mut [u64; 16]) -> io::Result<i32> {
    // SAFETY: the kernel reads and writes within the given length; pointers in it outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size_of_val(attributes)) };
    i32::try_from(result).ok().filter(|result| *result >= 0).ok_or_else(io::Error::last_os_error)
}
