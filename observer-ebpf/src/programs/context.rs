//! Access to the kernel's contexts in forms that the verifier accepts.
//!
//! The verifier accepts a context field only at a constant offset from the context's pointer. The compiler would merge
//! the loads of two branches into one load at a computed address; volatile reads of everything, before the branch,
//! prevent that.

use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr, bpf_sock_ops};
use observer_common::Endpoint;
use observer_proto::address;

const AF_INET: u32 = 2;

/// Reads a field of a context.
macro_rules! read {
    ($context:expr, $($field:tt)+) => {
        // SAFETY: the kernel gives a valid context; the verifier checks every field read.
        unsafe { core::ptr::read_volatile(&raw const (*$context).$($field)+) }
    };
}
pub(super) use read;

macro_rules! ip_address {
    ($context:expr, $family:expr, $ip4:ident, $ip6:ident) => {{
        let ip4 = read!($context, $ip4);
        let ip6 =
            [read!($context, $ip6[0]), read!($context, $ip6[1]), read!($context, $ip6[2]), read!($context, $ip6[3])];
        if $family == AF_INET { address::mapped(ip4) } else { address::from_words(ip6) }
    }};
}

/// Returns the local address of a socket.
#[inline(always)]
pub(super) fn local_of(sk: *mut bpf_sock) -> [u8; 16] {
    ip_address!(sk, read!(sk, family), src_ip4, src_ip6)
}

/// Returns whether the local address of a socket is 127.0.0.6 or ::6, with few reads: nearly every packet needs it.
#[inline(always)]
pub(super) fn is_inbound_passthrough(sk: *mut bpf_sock) -> bool {
    if read!(sk, family) == AF_INET {
        read!(sk, src_ip4) == u32::from_ne_bytes([127, 0, 0, 6])
    } else {
        address::is_inbound_passthrough_source(&local_of(sk))
    }
}

/// Returns the local endpoint of a socket.
#[inline(always)]
pub(super) fn local_endpoint(sk: *mut bpf_sock) -> Endpoint {
    Endpoint { address: local_of(sk), port: read!(sk, src_port) as u16, padding: 0 }
}

/// Returns the remote address of a socket.
#[inline(always)]
pub(super) fn remote_of(sk: *mut bpf_sock) -> [u8; 16] {
    ip_address!(sk, read!(sk, family), dst_ip4, dst_ip6)
}

/// Returns the remote address of a connection event.
#[inline(always)]
pub(super) fn remote_of_event(ops: *mut bpf_sock_ops) -> [u8; 16] {
    ip_address!(ops, read!(ops, family), remote_ip4, remote_ip6)
}

/// Returns the socket of a connection event.
#[inline(always)]
pub(super) fn socket_of(ops: *mut bpf_sock_ops) -> Option<*mut bpf_sock> {
    if read!(ops, is_fullsock) == 0 {
        return None;
    }
    let sk = read!(ops, __bindgen_anon_2.sk);
    if sk.is_null() { None } else { Some(sk) }
}

/// Returns the address that a task connects to.
#[inline(always)]
pub(super) fn connect_address(context: *mut bpf_sock_addr, is_ipv6: bool) -> [u8; 16] {
    if is_ipv6 {
        address::from_words([
            read!(context, user_ip6[0]),
            read!(context, user_ip6[1]),
            read!(context, user_ip6[2]),
            read!(context, user_ip6[3]),
        ])
    } else {
        address::mapped(read!(context, user_ip4))
    }
}

/// Hides a value's range from the compiler, so that a following bounds check stays for the verifier.
#[inline(always)]
pub(super) fn opaque(value: u32) -> u32 {
    let mut hidden = u64::from(value);
    // SAFETY: an instruction that changes nothing. (An empty one would leave two line records for one offset.)
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) hidden) };
    hidden as u32
}

/// Checks that a length is 1 to `most` in a way that shows the verifier both bounds: before Linux 6.8 a comparison with
/// zero gives it none.
#[inline(always)]
pub(super) fn length_within(length: u32, most: u32) -> Option<u32> {
    let beyond_one = opaque(length.wrapping_sub(1));
    if beyond_one < most { Some(beyond_one + 1) } else { None }
}
