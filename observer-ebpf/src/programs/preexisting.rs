//! Sockets without storage that carry data: those that were open before the programs were attached.
//!
//! What one of them is, is asked once. Those of which nothing is counted (a proxy's connections to other proxies, older or not)
//! remember it in a small storage of their own.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock, bpf_sock_tuple},
    helpers::generated::{bpf_loop, bpf_sk_lookup_tcp, bpf_sk_release, bpf_skb_cgroup_id},
};
use core::ffi::c_void;
use observer_common::{CGROUP_SHARED, Cgroup, Endpoint, MODE_GATEWAY, MODE_TPROXY, PORT_EXCLUDED, SECURITY_UNKNOWN};
use observer_proto::{
    segment::{ESTABLISHED, LISTEN, SYN_RECV},
    shared,
    socket::{self, ANCHORED, Connection, DESTINATION, GATEWAY, IGNORED, INBOUND, LATE, SOURCE},
};

use super::{
    context::{is_magic, local_of, read, remote_of},
    handshake, maps,
    packet::{TRIES, segment, state_of},
    skb::accepted_leg,
    sock_ops::{INBOUND_PORT, OUTBOUND_PORT, TUNNEL_PORT},
};

/// The connection of a socket that has none, if it is one to be observed; made now.
#[inline(never)]
pub(super) fn connection(skb: *mut __sk_buff, sk: *mut bpf_sock, egress: bool) -> Option<&'static mut Connection> {
    let state = read!(sk, state);
    if state == LISTEN {
        if !egress {
            handshake::keep(skb);
        }
        return None;
    }
    if state == SYN_RECV {
        return accepted_elsewhere(sk);
    }
    if state != ESTABLISHED || maps::is_unobserved(sk) {
        return None;
    }
    let segment = segment(skb)?;
    if segment.length == 0 {
        return None;
    }
    if !egress {
        let socket = state_of(sk)?;
        if !socket.accepts(&segment, socket.rcv_nxt, socket.snd_nxt) {
            return None;
        }
    }
    // SAFETY: the context is valid.
    let Older { leg, is_addressed } = leg_of(skb, sk, unsafe { bpf_skb_cgroup_id(skb) })?;
    if leg == IGNORED {
        maps::leave_unobserved(sk);
        return None;
    }
    observe(sk, leg, is_addressed)
}

/// What an older socket is.
struct Older {
    leg: u32,
    /// Whether it was accepted where it was going: at a gateway's door or by a transparent listener.
    is_addressed: bool,
}

/// Another processor has made this socket and is about to say that it is established: from then on the connection is there. Its
/// first data can be here before that. Nobody can make that other processor slower, and where there is no room nothing is waited for.
#[inline(always)]
fn accepted_elsewhere(sk: *mut bpf_sock) -> Option<&'static mut Connection> {
    if maps::port_flags(read!(sk, src_port) as u16) & PORT_EXCLUDED != 0 {
        return None;
    }
    maps::new_connection(sk)?;
    let mut pointer = sk;
    // SAFETY: the callback gets back the pointer given here.
    unsafe { bpf_loop(TRIES, is_established as *mut c_void, (&raw mut pointer).cast(), 0) };
    maps::connection(sk)
}

unsafe extern "C" fn is_established(_: u32, sk: *mut *mut bpf_sock) -> i64 {
    // SAFETY: the pointer that `accepted_elsewhere` gave.
    let c = maps::connection(unsafe { *sk });
    i64::from(c.is_some_and(|c| shared::load(&c.flags) & ANCHORED != 0))
}

/// Which leg an established socket is; nothing if its cgroup is not known yet.
#[inline(always)]
fn leg_of(skb: *mut __sk_buff, sk: *mut bpf_sock, cgroup: u64) -> Option<Older> {
    let redirected = |leg| Some(Older { leg, is_addressed: false });
    let (local, remote) = (read!(sk, src_port), u32::from(u16::from_be(read!(sk, dst_port))));
    if local == OUTBOUND_PORT {
        return redirected(SOURCE);
    }
    let excluded = maps::port_flags(remote as u16) & PORT_EXCLUDED != 0;
    if is_magic(sk) {
        return redirected(if excluded { IGNORED } else { DESTINATION });
    }
    if local == INBOUND_PORT || local == TUNNEL_PORT {
        return redirected(INBOUND);
    }
    let cgroup = maps::cgroup(cgroup)?;
    if maps::port_flags(local as u16) & PORT_EXCLUDED != 0 {
        return redirected(IGNORED);
    }
    let accepted = is_listened_on(skb, sk, local as u16);
    if cgroup.mode == MODE_GATEWAY {
        return Some(Older { leg: if accepted { SOURCE } else { IGNORED }, is_addressed: true });
    }
    if !accepted {
        return redirected(if !excluded && is_application(cgroup, &remote_of(sk)) { DESTINATION } else { IGNORED });
    }
    let leg = accepted_leg(cgroup, &local_of(sk), &remote_of(sk));
    if cgroup.mode == MODE_TPROXY && leg == INBOUND {
        return Some(Older { leg: if is_own(cgroup, &local_of(sk)) { INBOUND } else { IGNORED }, is_addressed: true });
    }
    // Who accepted it will not be seen any more.
    redirected(if cgroup.flags & CGROUP_SHARED != 0 { IGNORED } else { leg })
}

/// Does a sidecar that is connected with `remote`, from no special address, mean its application?
#[inline(always)]
pub(super) fn is_application(cgroup: &Cgroup, remote: &[u8; 16]) -> bool {
    cgroup.mode != MODE_GATEWAY
        && (socket::is_loopback(remote) || (cgroup.mode == MODE_TPROXY && is_own(cgroup, remote)))
}

#[inline(always)]
fn is_own(cgroup: &Cgroup, address: &[u8; 16]) -> bool {
    socket::same(&cgroup.addresses[0], address) || socket::same(&cgroup.addresses[1], address)
}

/// Does anybody listen on the socket's local port? Then it was accepted: a port that a connecting socket is given has no listener.
#[inline(always)]
fn is_listened_on(skb: *mut __sk_buff, sk: *mut bpf_sock, port: u16) -> bool {
    const THIS_NAMESPACE: u64 = -1i32 as u32 as u64;
    let (local, remote) = (local_of(sk), remote_of(sk));
    // SAFETY: integers only. No connection comes from port 0, so that a listener is all that can be found.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let size = if local[..12] == socket::mapped(0)[..12] {
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
    // SAFETY: the tuple is as large as is said; what is found is given back.
    unsafe {
        let found = bpf_sk_lookup_tcp(skb.cast(), &raw mut tuple, size as u32, THIS_NAMESPACE, 0);
        if found.is_null() {
            return false;
        }
        let listens = core::ptr::read_volatile(&raw const (*found).state) == LISTEN;
        bpf_sk_release(found.cast());
        listens
    }
}

/// Makes the connection of an older socket.
#[inline(always)]
fn observe(sk: *mut bpf_sock, leg: u32, is_addressed: bool) -> Option<&'static mut Connection> {
    let c = maps::new_connection(sk)?;
    c.leg = leg;
    if leg == DESTINATION {
        c.destination = Endpoint { address: remote_of(sk), port: u16::from_be(read!(sk, dst_port)), padding: 0 };
        return Some(c);
    }
    if leg == INBOUND {
        shared::set(&mut c.flags, LATE);
        c.opening = u32::from(SECURITY_UNKNOWN) + 1;
    }
    if is_addressed {
        if leg == SOURCE {
            shared::set(&mut c.flags, GATEWAY);
        }
        c.destination = Endpoint { address: local_of(sk), port: read!(sk, src_port) as u16, padding: 0 };
    }
    Some(c)
}
