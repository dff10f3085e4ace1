//! getsockopt: the answer to Envoy's `SO_ORIGINAL_DST`, and the process that accepted the socket. Envoy asks for it only on
//! connections that may have been redirected, whatever port they were accepted at.
//!
//! Source: envoy `source/extensions/filters/listener/original_dst/original_dst.cc`.

use aya_ebpf::{bindings::bpf_sock, macros::cgroup_sockopt, programs::SockoptContext};
use observer_common::{Cgroup, CgroupMode, Direction::Request, Endpoint, IGNORED};
use observer_proto::{ConnLeg, Connection, address, connection::flags::PREEXISTING, on_destination};

use crate::programs::{
    attribution::{
        INBOUND_PORT, OUTBOUND_PORT, TUNNEL_PORT, current_cgroup, current_owner, is_own_address,
        record_declared_protocol, record_switch,
    },
    context::{local_endpoint, read},
    env::{Kernel, NoSource},
    maps, pairing, record,
};

const ALLOW: i32 = 1;
const SOL_IP: i32 = 0;
const SOL_IPV6: i32 = 41;
const SO_ORIGINAL_DST: i32 = 80;

/// Reads the answer, changes nothing.
#[cgroup_sockopt(getsockopt)]
pub(crate) fn mesh_getsockopt(ctx: SockoptContext) -> i32 {
    if let Some((sk, destination)) = original_destination(&ctx) {
        debug!(&ctx, "original destination has port {}", destination.port);
        on_original_destination(sk, destination);
    }
    ALLOW
}

/// Returns the socket and the answer, a `sockaddr_in` or `sockaddr_in6`.
#[inline(always)]
fn original_destination(ctx: &SockoptContext) -> Option<(*mut bpf_sock, Endpoint)> {
    let context = ctx.sockopt;
    if read!(context, optname) != SO_ORIGINAL_DST {
        return None;
    }
    let level = read!(context, level);
    let is_ipv6 = level == SOL_IPV6;
    if !is_ipv6 && level != SOL_IP {
        return None;
    }
    let sk: *mut bpf_sock = read!(context, __bindgen_anon_1.sk);
    let start = read!(context, __bindgen_anon_2.optval) as usize;
    let end = read!(context, __bindgen_anon_3.optval_end) as usize;
    if sk.is_null() {
        return None;
    }
    let word = |offset: usize| {
        // SAFETY: within `start..end`, which is checked below before the first call.
        unsafe { core::ptr::read((start + offset) as *const u32) }
    };
    let address = if is_ipv6 {
        if start + 28 > end {
            return None;
        }
        address::from_words([word(8), word(12), word(16), word(20)])
    } else {
        if start + 16 > end {
            return None;
        }
        address::mapped(word(4))
    };
    Some((sk, Endpoint { address, port: u16::from_be((word(0) >> 16) as u16), padding: 0 }))
}

#[inline(always)]
fn on_original_destination(sk: *mut bpf_sock, destination: Endpoint) {
    let Some(c) = maps::connection(sk) else { return };
    if c.leg != ConnLeg::SOURCE && c.leg != ConnLeg::INBOUND && c.leg != ConnLeg::UNDECIDED {
        return;
    }
    let cgroup = current_cgroup();
    let owner = current_owner(cgroup);
    let local = local_endpoint(sk);
    if !matches!(u32::from(local.port), OUTBOUND_PORT | INBOUND_PORT | TUNNEL_PORT) {
        if owner.sidecar == IGNORED {
            c.leg = ConnLeg::IGNORED;
            return;
        }
        if let Some(cgroup) = cgroup {
            set_redirected_leg(c, cgroup, &local, &destination);
        }
    }
    c.destination = destination;
    c.process = owner.process;
    if owner.sidecar != 0 && owner.sidecar != IGNORED {
        c.sidecar = owner.sidecar;
    }
    record_switch(c, cgroup);
    if c.leg == ConnLeg::INBOUND {
        record::count_open(c);
        // A transparent socket has its original destination without Envoy's query, whose order means nothing then.
        if cgroup.is_some_and(|cgroup| cgroup.mode != CgroupMode::TPROXY) && c.flags & PREEXISTING == 0 {
            pairing::on_accepted(c);
        }
    } else if c.leg == ConnLeg::SOURCE {
        record_declared_protocol(c);
        on_destination(c, &mut Kernel(NoSource));
    }
}

/// Sets the role of a connection that was redirected to another port than Istio's usual ones: a peer's if its destination is
/// the pod itself, else the application's.
#[inline(always)]
fn set_redirected_leg(c: &mut Connection, cgroup: &Cgroup, local: &Endpoint, destination: &Endpoint) {
    let is_same_address = address::is_same(&local.address, &destination.address);
    if (local.port == destination.port && is_same_address) || cgroup.mode == CgroupMode::GATEWAY {
        return;
    }
    let has_payload = c.flows[Request].seen_bytes != 0;
    // Redirection of inbound traffic keeps the address.
    if is_same_address || is_own_address(cgroup, &destination.address) {
        // If it was taken for the application's so far, its first bytes were not read as a peer's.
        c.leg = if c.leg == ConnLeg::SOURCE && has_payload { ConnLeg::IGNORED } else { ConnLeg::INBOUND };
    } else if c.leg == ConnLeg::UNDECIDED || !has_payload {
        c.leg = ConnLeg::SOURCE;
    }
}
