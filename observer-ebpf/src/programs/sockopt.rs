//! getsockopt: the answer to Envoy's own `SO_ORIGINAL_DST`, and the process that accepted the socket.
//!
//! Source: envoy `source/extensions/filters/listener/original_dst/original_dst.cc`.

use aya_ebpf::{
    bindings::bpf_sock, helpers::generated::bpf_get_current_pid_tgid, macros::cgroup_sockopt, programs::SockoptContext,
};
use observer_ebpf::{
    Endpoint, IGNORED, PORT_TCP, shared,
    socket::{self, DECLARED_TCP, INBOUND, SOURCE, UNDECIDED},
};

use super::{context::read, maps, record, sock_ops::Event};

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
    c.destination = Endpoint { address, port, padding: 0 };
    // SAFETY: the helper takes nothing and cannot fail.
    c.process = (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32;
    let sidecar = maps::sidecar_of(c.process);
    if sidecar != 0 && sidecar != IGNORED {
        c.sidecar = sidecar;
    }
    if c.leg == INBOUND {
        record::list(c);
    } else if c.leg == SOURCE {
        if maps::port_flags(port) & PORT_TCP != 0 {
            shared::set(&mut c.flags, DECLARED_TCP);
        }
        socket::addressed(c, &mut Event);
    }
    Some(())
}
