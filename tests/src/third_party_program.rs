//! An eBPF program of a third party, attached without a link; the simplest one lets every packet of a cgroup pass.

use std::{fs::File, os::fd::OwnedFd, path::Path};

use anyhow::{Context, Result};

use crate::bpf::{self, ALLOW_MULTI, CGROUP_INET_INGRESS, CGROUP_SKB, PASS, descriptor};

const PROG_ATTACH: libc::c_long = 8;
const PROG_DETACH: libc::c_long = 9;

/// An attached program; detached when dropped.
#[derive(Debug)]
pub struct ThirdPartyProgram {
    /// The loaded program.
    pub program: OwnedFd,
    target: OwnedFd,
    attach_type: u32,
}

impl ThirdPartyProgram {
    /// Attaches to the ingress of `cgroup`; `exclusive` allows no other program beside it.
    pub fn attach(cgroup: &Path, exclusive: bool) -> Result<Self> {
        let cgroup = File::open(cgroup).with_context(|| format!("{}", cgroup.display()))?;
        let flags = if exclusive { 0 } else { ALLOW_MULTI };
        Self::load(CGROUP_SKB, &PASS, cgroup.into(), CGROUP_INET_INGRESS, flags)
    }

    /// Loads a program of some type and attaches it to a hook of `target`.
    pub fn load(
        program_type: u32,
        instructions: &[u64],
        target: OwnedFd,
        attach_type: u32,
        flags: u32,
    ) -> Result<Self> {
        let program = bpf::load(program_type, instructions).context("the third-party program cannot be loaded")?;
        let attached = Self { program, target, attach_type };
        bpf::call(PROG_ATTACH, &mut attached.attributes(flags))
            .context("the third-party program cannot be attached")?;
        Ok(attached)
    }

    /// Returns the number of programs at the hook, those attached by links included.
    pub fn programs(&self) -> Result<usize> {
        Ok(bpf::attached(&self.target, self.attach_type).context("the cgroup's programs cannot be listed")?.len())
    }

    /// Returns `struct { target_fd, attach_bpf_fd, attach_type, attach_flags }`.
    fn attributes(&self, flags: u32) -> [u64; 16] {
        let mut attributes = [0; 16];
        attributes[0] = descriptor(&self.target) | descriptor(&self.program) << 32;
        attributes[1] = u64::from(self.attach_type) | u64::from(flags) << 32;
        attributes
    }
}

impl Drop for ThirdPartyProgram {
    fn drop(&mut self) {
        // It goes with its target, which may be gone already.
        let _ = bpf::call(PROG_DETACH, &mut self.attributes(0));
    }
}
