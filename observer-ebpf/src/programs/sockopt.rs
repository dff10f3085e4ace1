//! getsockopt: the answer to Envoy's own `SO_ORIGINAL_DST`, and the process that accepted the socket. Whatever port it was
//! accepted at, Envoy asks this only of connections that may have been redirected to it.
//!
//! Source: envoy `source/extensions/filters/listener/original_dst/original_dst.cc`.

use aya_ebpf::{bindings::bpf_sock, macros::cgroup_sockopt, programs::SockoptContext};
use observer_common::{Cgroup, Endpoint, IGNORED, MODE_GATEWAY};
use observer_proto::socket::{self, Connection, INBOUND, REQUEST, SOURCE, UNDECIDED};

use super::{
    context::{local_of, read},
    maps, owner, record,
    sock_ops::{Event, declared, has_usual_port},
};

const SOL_IP: i32 = 0;
const SOL_IPV6: i32 = 41;
const SO_ORIGINAL_DST: i32 = 80;

/// Reads the answer, changes nothing.
#[cgroup_sockopt(getsockopt)]
pub(crate) fn mesh_getsockopt(ctx: SockoptContext) -> i32 {
    answered(&ctx);
    1
}

#[inline(always)]
fn answered(ctx: &SockoptContext) -> Option<()> {
    let context = ctx.sockopt;
    if read!(context, optname) != SO_ORIGINAL_DST {
        return None;
    }
    let level = read!(context, level);
    let ipv6 = level == SOL_IPV6;
    if !ipv6 && level != SOL_IP {
        return None;
    }
    let sk: *mut bpf_sock = read!(context, __bindgen_anon_1.sk);
    let start = read!(context, __bindgen_anon_2.optval) as usize;
    let end = read!(context, __bindgen_anon_3.optval_end) as usize;
    if sk.is_null() {
        return None;
    }
    let c = maps::connection(sk)?;
    if c.leg != SOURCE && c.leg != INBOUND && c.leg != UNDECIDED {
        return None;
    }
    let read = |offset: usize| {
        // SAFETY: within `start..end`, which is checked below before the first call.
        unsafe { core::ptr::read((start + offset) as *const u32) }
    };
    let address = if ipv6 {
        if start + 28 > end {
            return None;
        }
        socket::address([read(8), read(12), read(16), read(20)])
    } else {
        if start + 16 > end {
            return None;
        }
        socket::mapped(read(4))
    };
    let port = u16::from_be((read(0) >> 16) as u16);
    note!(ctx, "original destination has port {}", port);
    let cgroup = owner::cgroup();
    let owner = owner::current(cgroup);
    let accepted = Endpoint { address: local_of(sk), port: read!(sk, src_port) as u16, padding: 0 };
    if !has_usual_port(u32::from(accepted.port)) {
        if owner.sidecar == IGNORED {
            c.leg = socket::IGNORED;
            return None;
        }
        if let Some(cgroup) = cgroup {
            redirected(c, cgroup, &accepted, &Endpoint { address, port, padding: 0 });
        }
    }
    c.destination = Endpoint { address, port, padding: 0 };
    c.process = owner.process;
    if owner.sidecar != 0 && owner.sidecar != IGNORED {
        c.sidecar = owner.sidecar;
    }
    if c.leg == INBOUND {
        record::list(c);
    } else if c.leg == SOURCE {
        declared(c, port);
        socket::addressed(c, &mut Event);
    }
    Some(())
}

/// Says which leg a connection is that was redirected to another port than Istio's usual ones: a peer's if it was going to the
/// pod itself, else the application's.
#[inline(always)]
fn redirected(c: &mut Connection, cgroup: &Cgroup, accepted: &Endpoint, wanted: &Endpoint) {
    let same = accepted.port == wanted.port && socket::same(&accepted.address, &wanted.address);
    if same || cgroup.mode == MODE_GATEWAY {
        return;
    }
    // What comes from outside is redirected to the address that it came to.
    let to_pod = socket::same(&accepted.address, &wanted.address)
        || socket::same(&cgroup.addresses[0], &wanted.address)
        || socket::same(&cgroup.addresses[1], &wanted.address);
    if to_pod {
        // If it was taken for the application's so far, what it began with has not been read as a peer's.
        c.leg = if c.leg == SOURCE && c.streams[REQUEST].seen != 0 { socket::IGNORED } else { INBOUND };
    } else if c.leg == UNDECIDED || c.streams[REQUEST].seen == 0 {
        c.leg = SOURCE;
    }
}
