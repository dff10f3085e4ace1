//! connect4, connect6: a process opens a socket towards the application.

use aya_ebpf::{bindings::bpf_sock_addr, macros::cgroup_sock_addr, programs::SockAddrContext};
use observer_common::IGNORED;
use observer_proto::{ConnLeg, address, connection::flags::WITHOUT_CALLERS};

use crate::programs::{
    attribution::{current_cgroup, current_owner, is_application, is_excluded, record_switch},
    context::{connect_address, local_of, read},
    maps, pairing,
};

const ALLOW: i32 = 1;
const SOCK_STREAM: u32 = 1;

/// IPv4.
#[cgroup_sock_addr(connect4)]
pub(crate) fn mesh_connect4(ctx: SockAddrContext) -> i32 {
    on_connect(ctx.sock_addr, false);
    ALLOW
}

/// IPv6.
#[cgroup_sock_addr(connect6)]
pub(crate) fn mesh_connect6(ctx: SockAddrContext) -> i32 {
    on_connect(ctx.sock_addr, true);
    ALLOW
}

#[inline(always)]
fn on_connect(context: *mut bpf_sock_addr, is_ipv6: bool) {
    if read!(context, type_) != SOCK_STREAM {
        return;
    }
    let sk = read!(context, __bindgen_anon_1.sk);
    if sk.is_null() {
        return;
    }
    let remote = connect_address(context, is_ipv6);
    let is_passthrough = address::is_inbound_passthrough_source(&local_of(sk));
    let cgroup = current_cgroup();
    if !is_passthrough && !cgroup.is_some_and(|cgroup| is_application(cgroup, &remote)) {
        return;
    }
    let is_excluded = is_excluded(u16::from_be(read!(context, user_port) as u16));
    if is_excluded && !is_passthrough {
        return;
    }
    let owner = current_owner(cgroup);
    let Some(c) = maps::new_connection(sk) else { return };
    c.process = owner.process;
    c.sidecar = owner.sidecar;
    c.leg = if is_excluded || c.sidecar == IGNORED { ConnLeg::IGNORED } else { ConnLeg::DESTINATION };
    record_switch(c, cgroup);
    if c.leg == ConnLeg::DESTINATION && c.flags & WITHOUT_CALLERS == 0 && c.sidecar != 0 {
        pairing::on_connect(c, u16::from_be(read!(context, user_port) as u16));
    }
}
