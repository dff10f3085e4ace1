//! Reading the kernel's contexts in the way the verifier wants it.
//!
//! The verifier takes a context field only at a constant offset from the context's pointer. Left to itself the compiler
//! merges two loads behind a choice into one load at a chosen address; volatile reads of everything, before the choice,
//! keep it from that.

use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr, bpf_sock_ops};
use observer_proto::socket;

const AF_INET: u32 = 2;

/// Reads fields of a context, each on its own.
macro_rules! read {
    ($context:expr, $($field:tt)+) => {
        // SAFETY: the kernel gives a valid context; the verifier checks every field read.
        unsafe { core::ptr::read_volatile(&raw const (*$context).$($field)+) }
    };
}
pub(super) use read;

macro_rules! address {
    ($context:expr, $family:expr, $ip4:ident, $ip6:ident) => {{
        let ip4 = read!($context, $ip4);
        let ip6 =
            [read!($context, $ip6[0]), read!($context, $ip6[1]), read!($context, $ip6[2]), read!($context, $ip6[3])];
        if $family == AF_INET { socket::mapped(ip4) } else { socket::address(ip6) }
    }};
}

/// Local address of a socket.
#[inline(always)]
pub(super) fn local_of(sk: *mut bpf_sock) -> [u8; 16] {
    address!(sk, read!(sk, family), src_ip4, src_ip6)
}

/// Is the local address of a socket 127.0.0.6 or ::6? Asked of nearly every packet, so with few reads.
#[inline(always)]
pub(super) fn is_magic(sk: *mut bpf_sock) -> bool {
    if read!(sk, family) == AF_INET {
        read!(sk, src_ip4) == u32::from_ne_bytes([127, 0, 0, 6])
    } else {
        socket::is_magic(&local_of(sk))
    }
}

/// Remote address of a socket.
#[inline(always)]
pub(super) fn remote_of(sk: *mut bpf_sock) -> [u8; 16] {
    address!(sk, read!(sk, family), dst_ip4, dst_ip6)
}

/// Remote address of a connection event.
#[inline(always)]
pub(super) fn remote_of_event(ops: *mut bpf_sock_ops) -> [u8; 16] {
    address!(ops, read!(ops, family), remote_ip4, remote_ip6)
}

/// Address that a task connects to, of the family its hook is for.
#[inline(always)]
pub(super) fn dialled(context: *mut bpf_sock_addr, ipv6: bool) -> [u8; 16] {
    if ipv6 {
        socket::address([
            read!(context, user_ip6[0]),
            read!(context, user_ip6[1]),
            read!(context, user_ip6[2]),
            read!(context, user_ip6[3]),
        ])
    } else {
        socket::mapped(read!(context, user_ip4))
    }
}

/// Hides a value's range from the compiler, so that the check behind it stays for the verifier to see.
#[inline(always)]
pub(super) fn opaque(value: u32) -> u32 {
    let mut hidden = u64::from(value);
    // SAFETY: an instruction that changes nothing. (An empty one would leave two line records for one offset.)
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) hidden) };
    hidden as u32
}

/// A length of 1 to `most`, or nothing, so that the verifier sees both ends: before Linux 6.8 it learns nothing from a
/// comparison with zero.
#[inline(always)]
pub(super) fn length_within(length: u32, most: u32) -> Option<u32> {
    let beyond_one = opaque(length.wrapping_sub(1));
    if beyond_one < most { Some(beyond_one + 1) } else { None }
}
