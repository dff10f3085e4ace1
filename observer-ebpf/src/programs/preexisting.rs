//! Sockets without storage that carry data: those that were open before the programs were attached.
//!
//! Each is classified once. Those that are not counted (a proxy's connections to other proxies, preexisting or not) are
//! marked in a small storage of their own.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock, bpf_sock_tuple},
    helpers::generated::{bpf_sk_lookup_tcp, bpf_sk_release, bpf_skb_cgroup_id},
};
use observer_common::{Cgroup, CgroupMode, Endpoint, Security};
use observer_proto::{
    ConnLeg, Connection, OptionU32, address, atomic,
    connection::flags::{GATEWAY, PREEXISTING, SEQ_KNOWN},
    env::Step,
    segment::{ESTABLISHED, LISTEN, SYN_RECV},
};

use super::{
    attribution::{
        INBOUND_PORT, OUTBOUND_PORT, TUNNEL_PORT, accepted_leg, is_application, is_excluded, is_own_address,
        record_switch,
    },
    bpf_loop::repeat,
    context::{is_inbound_passthrough, local_endpoint, local_of, read, remote_of},
    handshake,
    lock::MAX_TRIES,
    maps,
    packet::{segment, state_of},
};

/// Returns a new connection for a socket that has none, if it is to be observed.
#[inline(never)]
pub(super) fn connection(skb: *mut __sk_buff, sk: *mut bpf_sock, is_egress: bool) -> Option<&'static mut Connection> {
    let state = read!(sk, state);
    if state == LISTEN {
        if !is_egress {
            handshake::capture(skb);
        }
        return None;
    }
    if state == SYN_RECV {
        return await_establishment(sk);
    }
    if state != ESTABLISHED || maps::is_unobserved(sk) {
        return None;
    }
    let segment = segment(skb)?;
    if segment.length == 0 {
        return None;
    }
    if !is_egress {
        let socket = state_of(sk)?;
        if !socket.accepts(&segment, socket.rcv_nxt, socket.snd_nxt) {
            return None;
        }
    }
    // SAFETY: the context is valid.
    let cgroup = unsafe { bpf_skb_cgroup_id(skb) };
    let role = role_of(skb, sk, cgroup)?;
    if role.leg == ConnLeg::IGNORED {
        maps::mark_unobserved(sk);
        return None;
    }
    observe(sk, &role, cgroup)
}

/// Role of a preexisting connection.
struct Role {
    leg: ConnLeg,
    /// Whether the local address is the original destination: at a gateway's or a transparent listener.
    is_local_destination: bool,
}

/// Waits for the event of a socket that another CPU has created and is about to report as established: its first data can
/// arrive before that. The other CPU does not wait for anything; without room for the connection this one does not either.
#[inline(always)]
fn await_establishment(sk: *mut bpf_sock) -> Option<&'static mut Connection> {
    if is_excluded(read!(sk, src_port) as u16) {
        return None;
    }
    maps::new_connection(sk)?;
    repeat(MAX_TRIES, |_| {
        let is_established = maps::connection(sk).is_some_and(|c| atomic::load(&c.flags) & SEQ_KNOWN != 0);
        if is_established { Step::Done } else { Step::More }
    });
    maps::connection(sk)
}

/// Returns the role of an established socket; nothing if its cgroup is not known yet.
#[inline(always)]
fn role_of(skb: *mut __sk_buff, sk: *mut bpf_sock, cgroup: u64) -> Option<Role> {
    let redirected = |leg| Some(Role { leg, is_local_destination: false });
    let (local, remote) = (read!(sk, src_port), u32::from(u16::from_be(read!(sk, dst_port))));
    if local == OUTBOUND_PORT {
        return redirected(ConnLeg::SOURCE);
    }
    let is_remote_excluded = is_excluded(remote as u16);
    if is_inbound_passthrough(sk) {
        return redirected(if is_remote_excluded { ConnLeg::IGNORED } else { ConnLeg::DESTINATION });
    }
    if local == INBOUND_PORT || local == TUNNEL_PORT {
        return redirected(ConnLeg::INBOUND);
    }
    let cgroup = maps::cgroup(cgroup)?;
    if is_excluded(local as u16) {
        return redirected(ConnLeg::IGNORED);
    }
    let is_accepted = is_listened_on(skb, sk, local as u16);
    if cgroup.mode == CgroupMode::GATEWAY {
        let leg = if is_accepted { ConnLeg::SOURCE } else { ConnLeg::IGNORED };
        return Some(Role { leg, is_local_destination: true });
    }
    if !is_accepted {
        let is_destination = !is_remote_excluded && is_application(cgroup, &remote_of(sk));
        return redirected(if is_destination { ConnLeg::DESTINATION } else { ConnLeg::IGNORED });
    }
    let leg = accepted_leg(cgroup, &local_of(sk), &remote_of(sk));
    if cgroup.mode == CgroupMode::TPROXY && leg == ConnLeg::INBOUND {
        let leg = if is_own_address(cgroup, &local_of(sk)) { ConnLeg::INBOUND } else { ConnLeg::IGNORED };
        return Some(Role { leg, is_local_destination: true });
    }
    // The process that accepted it will not be seen any more.
    redirected(if cgroup.flags & Cgroup::SHARED != 0 { ConnLeg::IGNORED } else { leg })
}

/// Returns whether the socket's local port has a listener. Then it was accepted: an ephemeral port has none.
#[inline(always)]
fn is_listened_on(skb: *mut __sk_buff, sk: *mut bpf_sock, port: u16) -> bool {
    const THIS_NAMESPACE: u64 = -1i32 as u32 as u64;
    let (local, remote) = (local_of(sk), remote_of(sk));
    // SAFETY: integers only. No connection comes from port 0, so that only a listener can be found.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let size = if local[..12] == address::mapped(0)[..12] {
        let last = |address: [u8; 16]| u32::from_ne_bytes([address[12], address[13], address[14], address[15]]);
        // SAFETY: the tuple's first member in its form for IPv4.
        let ipv4 = unsafe { &mut tuple.__bindgen_anon_1.ipv4 };
        (ipv4.saddr, ipv4.daddr, ipv4.dport) = (last(remote), last(local), port.to_be());
        size_of_val(ipv4)
    } else {
        // SAFETY: as above, for IPv6; both are 16 bytes.
        let ipv6 = unsafe { &mut tuple.__bindgen_anon_1.ipv6 };
        unsafe { (ipv6.saddr, ipv6.daddr) = (core::mem::transmute(remote), core::mem::transmute(local)) };
        ipv6.dport = port.to_be();
        size_of_val(ipv6)
    };
    // SAFETY: the tuple has this size; a socket that is found is released.
    unsafe {
        let found = bpf_sk_lookup_tcp(skb.cast(), &raw mut tuple, size as u32, THIS_NAMESPACE, 0);
        if found.is_null() {
            return false;
        }
        let is_listener = core::ptr::read_volatile(&raw const (*found).state) == LISTEN;
        bpf_sk_release(found.cast());
        is_listener
    }
}

/// Creates the connection of a preexisting socket.
#[inline(always)]
fn observe(sk: *mut bpf_sock, role: &Role, cgroup: u64) -> Option<&'static mut Connection> {
    let c = maps::new_connection(sk)?;
    record_switch(c, maps::cgroup(cgroup));
    let leg = role.leg;
    c.leg = leg;
    if leg == ConnLeg::DESTINATION {
        c.destination = Endpoint { address: remote_of(sk), port: u16::from_be(read!(sk, dst_port)), padding: 0 };
        return Some(c);
    }
    if leg == ConnLeg::INBOUND {
        c.set_flags(PREEXISTING);
        c.peer_security = OptionU32::some(u32::from(Security::UNKNOWN.0));
    }
    if role.is_local_destination {
        if leg == ConnLeg::SOURCE {
            c.set_flags(GATEWAY);
        }
        c.destination = local_endpoint(sk);
    }
    Some(c)
}
