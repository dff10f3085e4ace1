//! Attribution of connections: which sidecar owns a socket, and which role the connection has.
//!
//! Envoy and pilot-agent share cgroup, user and source address; only a program that runs in the task that opens or accepts
//! a socket can distinguish them.

use aya_ebpf::{
    bindings::bpf_sock,
    helpers::{
        bpf_get_current_comm,
        generated::{bpf_get_current_cgroup_id, bpf_get_current_pid_tgid},
    },
};
use observer_common::{Cgroup, CgroupMode, IGNORED, PORT_EXCLUDED, PORT_HTTP, PORT_TCP, PortKey, health::Counter};
use observer_proto::{
    ConnLeg, Connection, address, atomic,
    connection::flags::{DECLARED_HTTP, DECLARED_TCP, GATEWAY, PREEXISTING, SEQ_KNOWN, TENTATIVE, WITHOUT_CALLERS},
};

use super::{
    context::{local_endpoint, remote_of},
    maps, reassembly,
};

/// Port of a sidecar's outbound listener.
pub(super) const OUTBOUND_PORT: u32 = 15001;
/// Port of a sidecar's inbound listener.
pub(super) const INBOUND_PORT: u32 = 15006;
/// Port of a sidecar's HBONE listener.
pub(super) const TUNNEL_PORT: u32 = 15008;

/// Process of the running task, and its sidecar: [`IGNORED`], or 0 if it is not known.
pub(super) struct Owner {
    pub(super) process: u32,
    pub(super) sidecar: u32,
}

/// Returns the description of the running task's cgroup.
#[inline(always)]
pub(super) fn current_cgroup() -> Option<&'static Cgroup> {
    // SAFETY: the helper takes nothing and cannot fail.
    maps::cgroup(unsafe { bpf_get_current_cgroup_id() })
}

/// Returns the owner of sockets that the running task opens or accepts.
#[inline(always)]
pub(super) fn current_owner(cgroup: Option<&Cgroup>) -> Owner {
    // SAFETY: the helper takes nothing and cannot fail.
    let process = (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32;
    let sidecar = match cgroup {
        Some(cgroup) if cgroup.flags & Cgroup::BY_THREAD != 0 => {
            if is_worker_thread() {
                cgroup.sidecar
            } else {
                IGNORED
            }
        }
        _ => maps::sidecar_of(process),
    };
    Owner { process, sidecar }
}

/// Returns whether the task is one of Envoy's worker threads, which handle all connections. They are named `wrk:worker_N`
/// [envoy `source/server/worker_impl.cc`].
#[inline(always)]
fn is_worker_thread() -> bool {
    bpf_get_current_comm().is_ok_and(|name| name[..4] == *b"wrk:")
}

/// Sets a connection's sidecar by its socket's cgroup, and the role of an accepted one.
#[inline(never)]
pub(super) fn attribute(c: &mut Connection, cgroup: u64, sk: *mut bpf_sock) {
    let Some(cgroup) = maps::cgroup(cgroup) else { return };
    if c.process == 0 {
        c.sidecar = cgroup.sidecar;
    }
    record_switch(c, Some(cgroup));
    if c.leg != ConnLeg::UNDECIDED {
        return;
    }
    let local = local_endpoint(sk);
    if cgroup.mode == CgroupMode::GATEWAY {
        c.set_flags(GATEWAY);
        c.destination = local;
        c.leg = ConnLeg::SOURCE;
        return;
    }
    c.leg = accepted_leg(cgroup, &local.address, &remote_of(sk));
    if c.leg == ConnLeg::INBOUND && cgroup.mode == CgroupMode::TPROXY {
        c.destination = local;
    } else if c.leg == ConnLeg::SOURCE && cgroup.flags & Cgroup::SHARED != 0 {
        c.set_flags(TENTATIVE);
    }
}

/// Records whether callers are read.
#[inline(always)]
pub(super) fn record_switch(c: &mut Connection, cgroup: Option<&Cgroup>) {
    if cgroup.is_some_and(|cgroup| cgroup.flags & Cgroup::WITHOUT_CALLERS != 0) {
        c.set_flags(WITHOUT_CALLERS);
    }
}

/// Returns the role of a connection that a sidecar accepted, by its addresses: its application's if it comes from the same
/// pod, i.e. it was redirected on its way out, to a loopback address, or connected to the sidecar itself; else a peer's.
#[inline(always)]
pub(super) fn accepted_leg(cgroup: &Cgroup, local: &[u8; 16], remote: &[u8; 16]) -> ConnLeg {
    let is_direct = cgroup.mode != CgroupMode::TPROXY && address::is_same(local, remote);
    if address::is_loopback(local) || is_direct { ConnLeg::SOURCE } else { ConnLeg::INBOUND }
}

/// Returns whether a sidecar that connects to `remote`, from an ordinary address, connects to its application.
#[inline(always)]
pub(super) fn is_application(cgroup: &Cgroup, remote: &[u8; 16]) -> bool {
    cgroup.mode != CgroupMode::GATEWAY
        && (address::is_localhost(remote) || (cgroup.mode == CgroupMode::TPROXY && is_own_address(cgroup, remote)))
}

/// Returns whether an address is the pod's own.
#[inline(always)]
pub(super) fn is_own_address(cgroup: &Cgroup, address: &[u8; 16]) -> bool {
    address::is_same(&cgroup.addresses[0], address) || address::is_same(&cgroup.addresses[1], address)
}

/// Returns whether a port is never counted.
#[inline(always)]
pub(super) fn is_excluded(port: u16) -> bool {
    maps::port_flags(port) & PORT_EXCLUDED != 0
}

/// Records the declared protocol of the connection's destination.
#[inline(never)]
pub(super) fn record_declared_protocol(c: &mut Connection) {
    let flags = declared_protocol(c);
    if flags & PORT_TCP != 0 {
        c.set_flags(DECLARED_TCP);
    } else if flags & PORT_HTTP != 0 {
        c.set_flags(DECLARED_HTTP);
    }
}

/// Returns the flags of the sidecar's listener for the destination: that for its address and port, else for its port, else
/// the configured one; what an application opens without a listener has the default.
#[inline(always)]
fn declared_protocol(c: &Connection) -> u32 {
    let is_source = c.leg == ConnLeg::SOURCE;
    let port = u32::from(c.destination.port);
    let mut key = PortKey { sidecar: 0, port, address: c.destination.address };
    if is_source && let Some(flags) = maps::declared_protocol(&key) {
        return flags;
    }
    key.address = [0; 16];
    if !is_source {
        key.sidecar = c.sidecar;
    }
    if (is_source || key.sidecar != 0)
        && let Some(flags) = maps::declared_protocol(&key)
    {
        return flags;
    }
    let configured = maps::port_flags(c.destination.port) & (PORT_TCP | PORT_HTTP);
    if configured != 0 || !is_source || c.flags & GATEWAY != 0 {
        return configured;
    }
    key.port = 0;
    maps::declared_protocol(&key).unwrap_or(0)
}

/// Marks a connection as preexisting whose establishment was not seen, and counts it once.
#[inline(always)]
pub(super) fn mark_preexisting(c: &mut Connection) {
    if c.flags & (SEQ_KNOWN | PREEXISTING) == 0 && c.set_flags(PREEXISTING) & PREEXISTING == 0 {
        atomic::fetch_or(&mut c.epoch, 1);
        maps::count(Counter::ConnectionPreexisting as u32, 1);
    }
}

/// Ignores a tentative connection that nothing has confirmed as the sidecar's; returns whether it did.
#[inline(never)]
pub(super) fn drop_unconfirmed(c: &mut Connection) -> bool {
    if atomic::load(&c.flags) & TENTATIVE == 0 || c.destination.port != 0 {
        return false;
    }
    c.leg = ConnLeg::IGNORED;
    for flow in &mut c.flows {
        if !flow.buffer.is_none() {
            reassembly::free_of(flow);
        }
    }
    maps::count(Counter::LossShared as u32, 1);
    true
}
