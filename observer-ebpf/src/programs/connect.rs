//! connect4, connect6: which process opens a socket towards the application.
//!
//! Only here does a program run in the task that opens the socket.

use aya_ebpf::{bindings::bpf_sock_addr, macros::cgroup_sock_addr, programs::SockAddrContext};
use observer_common::{IGNORED, PORT_EXCLUDED};
use observer_proto::socket::{self, DESTINATION};

use super::{
    context::{dialled, local_of, read},
    maps, owner,
    preexisting::is_application,
};

const STREAM: u32 = 1;

/// IPv4.
#[cgroup_sock_addr(connect4)]
pub(crate) fn mesh_connect4(ctx: SockAddrContext) -> i32 {
    connecting(ctx.sock_addr, false);
    1
}

/// IPv6.
#[cgroup_sock_addr(connect6)]
pub(crate) fn mesh_connect6(ctx: SockAddrContext) -> i32 {
    connecting(ctx.sock_addr, true);
    1
}

#[inline(always)]
fn connecting(context: *mut bpf_sock_addr, ipv6: bool) {
    if read!(context, type_) != STREAM {
        return;
    }
    let sk = read!(context, __bindgen_anon_1.sk);
    if sk.is_null() {
        return;
    }
    let remote = dialled(context, ipv6);
    let local = local_of(sk);
    let magic = socket::is_magic(&local);
    let cgroup = owner::cgroup();
    if !magic && !cgroup.is_some_and(|cgroup| is_application(cgroup, &remote)) {
        return;
    }
    let port = u16::from_be(read!(context, user_port) as u16);
    let excluded = maps::port_flags(port) & PORT_EXCLUDED != 0;
    if excluded && !magic {
        return;
    }
    let owner = owner::current(cgroup);
    let Some(c) = maps::new_connection(sk) else { return };
    c.process = owner.process;
    c.sidecar = owner.sidecar;
    c.leg = if excluded || c.sidecar == IGNORED { socket::IGNORED } else { DESTINATION };
}
