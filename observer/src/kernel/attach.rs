//! Attaches programs to cgroups, each by a link of its own.

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use aya::Ebpf;
use aya_obj::generated::bpf_attach_type;
use observer_common::names;

use super::{error::KernelError, sys};

/// A link of a program to a cgroup.
pub(super) struct Link {
    fd: OwnedFd,
    /// Where it is pinned; without a pin it ends when dropped.
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
            // It is detached already if its cgroup was removed.
            let _ = sys::detach_link(self.fd.as_fd());
            // The next observer finds and removes a pin that stays.
            let _ = std::fs::remove_file(path);
        }
    }

    /// Whether the kernel has detached it: its cgroup was removed, and its last socket closed.
    pub(super) fn is_defunct(&self) -> bool {
        sys::linked_cgroup(self.fd.as_fd()).is_ok_and(|id| id == 0)
    }
}

/// Attaches one of [`names::ATTACHED`] to the cgroup.
pub(super) fn attach(ebpf: &Ebpf, path: &Path, name: &'static str) -> Result<OwnedFd, KernelError> {
    let cgroup = File::open(path).map_err(|source| match source.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => KernelError::TooManyFiles { name, path: path.to_owned() },
        _ => KernelError::Cgroup { path: path.to_owned(), source },
    })?;
    let program = ebpf.program(name).ok_or(KernelError::Missing { name })?;
    let program = program.fd().map_err(|source| KernelError::load(name, source))?;
    let (_, attach_type) = names::ATTACHED
        .into_iter()
        .zip(ATTACH_TYPES)
        .find(|(known, _)| *known == name)
        .ok_or(KernelError::Missing { name })?;
    sys::create_link(program.as_fd(), cgroup.as_fd(), attach_type)
        .map_err(|source| KernelError::attach(name, path, source))
}

/// Attach type of each of [`names::ATTACHED`].
const ATTACH_TYPES: [bpf_attach_type; 6] = [
    bpf_attach_type::BPF_CGROUP_INET4_CONNECT,
    bpf_attach_type::BPF_CGROUP_INET6_CONNECT,
    bpf_attach_type::BPF_CGROUP_SOCK_OPS,
    bpf_attach_type::BPF_CGROUP_GETSOCKOPT,
    bpf_attach_type::BPF_CGROUP_INET_INGRESS,
    bpf_attach_type::BPF_CGROUP_INET_EGRESS,
];
