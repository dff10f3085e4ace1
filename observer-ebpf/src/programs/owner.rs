//! Whose the running task is.
//!
//! Envoy and pilot-agent share cgroup, user and source address; only a program that runs in the task that opens or accepts a
//! socket can tell them apart.

use aya_ebpf::helpers::{
    bpf_get_current_comm,
    generated::{bpf_get_current_cgroup_id, bpf_get_current_pid_tgid},
};
use observer_common::{CGROUP_BY_THREAD, Cgroup, IGNORED};

use super::maps;

/// The running task's process, and the sidecar that this is: [`IGNORED`], or 0 if it is not known.
pub(super) struct Owner {
    pub(super) process: u32,
    pub(super) sidecar: u32,
}

/// What the user side says of the running task's cgroup.
#[inline(always)]
pub(super) fn cgroup() -> Option<&'static Cgroup> {
    // SAFETY: the helper takes nothing and cannot fail.
    maps::cgroup(unsafe { bpf_get_current_cgroup_id() })
}

/// Whose the running task is.
#[inline(always)]
pub(super) fn current(cgroup: Option<&Cgroup>) -> Owner {
    // SAFETY: the helper takes nothing and cannot fail.
    let process = (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32;
    let sidecar = match cgroup {
        Some(cgroup) if cgroup.flags & CGROUP_BY_THREAD != 0 => {
            if is_worker() {
                cgroup.sidecar
            } else {
                IGNORED
            }
        }
        _ => maps::sidecar_of(process),
    };
    Owner { process, sidecar }
}

/// Is it one of Envoy's worker threads, which do all that connections need? They are named `wrk:worker_N`
/// [envoy `source/server/worker_impl.cc`].
#[inline(always)]
fn is_worker() -> bool {
    bpf_get_current_comm().is_ok_and(|name| name[..4] == *b"wrk:")
}
