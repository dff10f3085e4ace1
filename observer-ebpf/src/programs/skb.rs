//! cgroup_skb: every packet of the sidecar's sockets, in both directions.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::generated::{bpf_loop, bpf_skb_cgroup_id},
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use core::ffi::c_void;
use observer_common::{CGROUP_SHARED, Cgroup, Endpoint, MODE_GATEWAY, MODE_TPROXY, health::Counter};
use observer_proto::{
    shared,
    socket::{
        self, ANCHORED, Connection, DESTINATION, ENDED, GATEWAY, INBOUND, LATE, REQUEST, RESPONSE, SOURCE, TENTATIVE,
        UNDECIDED,
    },
    tls,
};

use super::{
    context::{local_of, read, remote_of},
    http1, http2, maps,
    packet::{Packet, arrived, enter, examine, leave, segment},
    preexisting, record,
    sock_ops::disowned,
};

/// What the sidecar's sockets receive.
#[cgroup_skb]
#[inline(always)]
pub(crate) fn mesh_ingress(ctx: SkBuffContext) -> i32 {
    match packet(ctx.skb.skb, false) {
        Some(Next::Http1(direction)) => http1::hand_over(&ctx, direction),
        Some(Next::Http2) => http2::hand_over(&ctx, false),
        None => {}
    }
    1
}

/// What they send.
#[cgroup_skb]
#[inline(always)]
pub(crate) fn mesh_egress(ctx: SkBuffContext) -> i32 {
    match packet(ctx.skb.skb, true) {
        Some(Next::Http1(direction)) => http1::hand_over(&ctx, direction),
        Some(Next::Http2) => http2::hand_over(&ctx, true),
        None => {}
    }
    1
}

/// The program that a packet is for. What is not known to be TCP yet may be HTTP/1.
enum Next {
    Http1(usize),
    Http2,
}

#[inline(always)]
fn packet(skb: *mut __sk_buff, egress: bool) -> Option<Next> {
    let sk = read!(skb, __bindgen_anon_2.sk);
    if sk.is_null() {
        return None;
    }
    let c = match maps::connection(sk) {
        Some(c) => c,
        None => preexisting::connection(skb, sk, egress)?,
    };
    if c.leg == socket::IGNORED || c.flags & ENDED != 0 {
        return None;
    }
    if c.sidecar == 0 || c.leg == UNDECIDED {
        // SAFETY: the context is valid.
        attribute(c, unsafe { bpf_skb_cgroup_id(skb) }, sk);
    }
    let leg = c.leg;
    if leg == INBOUND {
        opening(c, skb, sk, egress);
        return None;
    }
    if leg != SOURCE && leg != DESTINATION {
        return None;
    }
    let is_unaddressed = egress && leg == SOURCE && c.destination.port == 0;
    let protocol = shared::load(&c.protocol);
    if protocol == socket::HTTP2 && !is_unaddressed {
        return Some(Next::Http2);
    }
    if protocol == socket::ENCRYPTED {
        return None;
    }
    let segment = segment(skb)?;
    if segment.length == 0 && !segment.ends() {
        return None;
    }
    let direction = if egress == (leg == DESTINATION) { REQUEST } else { RESPONSE };
    if is_unaddressed {
        // Whoever answers has accepted it, and would have asked where it was going if it were redirected.
        if disowned(c) {
            return None;
        }
        dialled(c, skb);
    }
    if protocol == socket::HTTP2 {
        return Some(Next::Http2);
    }
    if protocol != socket::TCP {
        return Some(Next::Http1(direction));
    }
    let arrival = arrived(c, sk, &segment, egress, direction)?;
    preexisting(c);
    let mut env = Packet { skb };
    socket::catch_up(c, &mut env, direction, arrival.accepted());
    socket::pass_over(c, &mut env, direction, &segment);
    if socket::reached_end(c, &mut env, direction, &segment) {
        socket::ended(c, &mut env);
    }
    if !egress {
        leave(&mut c.streams[direction]);
    }
    None
}

/// The opening of a peer's connection: only until it is clear what it came with.
#[inline(never)]
fn opening(c: &mut Connection, skb: *mut __sk_buff, sk: *mut bpf_sock, egress: bool) -> Option<()> {
    if c.flags & LATE != 0 {
        return older_opening(c, skb, egress);
    }
    if c.opening != 0 {
        if c.flags & socket::LISTED == 0 {
            record::list(c);
        } else if !egress && segment(skb)?.length != 0 {
            record::received(c);
        }
        return None;
    }
    if egress || c.flags & ANCHORED == 0 {
        return None;
    }
    let segment = segment(skb)?;
    if segment.length == 0 {
        return None;
    }
    let [request, response] = &c.streams;
    let accepted = examine(sk, &segment, request, response)?.accepted();
    if !enter(&mut c.streams[REQUEST]) {
        return None;
    }
    if c.opening == 0 {
        tls::payload(c, &mut Packet { skb }, accepted, &segment, |c, _| {
            let mut walk = Walk { c, skb };
            // SAFETY: the callback gets back the pointer given here.
            let steps = unsafe { bpf_loop(tls::STEPS, hello as *mut c_void, (&raw mut walk).cast(), 0) };
            steps < i64::from(tls::STEPS)
        });
    }
    leave(&mut c.streams[REQUEST]);
    record::list(c);
    None
}

/// A peer's connection whose opening was not seen. Nobody tells of its close but a FIN or RST.
#[inline(always)]
fn older_opening(c: &mut Connection, skb: *mut __sk_buff, egress: bool) -> Option<()> {
    let segment = segment(skb)?;
    if segment.ends() {
        shared::set(&mut c.flags, ENDED);
        record::unlist(c);
        return None;
    }
    if egress && c.destination.port == 0 {
        record::unlist(c);
        dialled(c, skb);
    }
    if c.flags & socket::LISTED == 0 {
        record::list(c);
    } else if !egress && segment.length != 0 {
        record::received(c);
    }
    None
}

/// What the loop's callback works on.
struct Walk {
    c: *mut Connection,
    skb: *mut __sk_buff,
}

unsafe extern "C" fn hello(_: u32, walk: *mut Walk) -> i64 {
    // SAFETY: the pointer that `opening` gave; the connection outlives the program.
    let (walk, c) = unsafe { (&mut *walk, &mut *(*walk).c) };
    i64::from(tls::turn(c, &mut Packet { skb: walk.skb }))
}

/// Notes a connection whose establishment was not seen, once.
#[inline(always)]
pub(super) fn preexisting(c: &mut Connection) {
    if c.flags & (ANCHORED | LATE) == 0 && shared::set(&mut c.flags, LATE) & LATE == 0 {
        shared::set(&mut c.sync, 1);
        maps::count(Counter::ConnectionLate as u32, 1);
    }
}

/// Says by the socket's cgroup whose connection this is, and what an accepted one is to its owner.
#[inline(never)]
pub(super) fn attribute(c: &mut Connection, cgroup: u64, sk: *mut bpf_sock) {
    let Some(cgroup) = maps::cgroup(cgroup) else { return };
    if c.process == 0 {
        c.sidecar = cgroup.sidecar;
    }
    if c.leg != UNDECIDED {
        return;
    }
    let door = Endpoint { address: local_of(sk), port: read!(sk, src_port) as u16, padding: 0 };
    if cgroup.mode == MODE_GATEWAY {
        shared::set(&mut c.flags, GATEWAY);
        c.destination = door;
        c.leg = SOURCE;
        return;
    }
    c.leg = accepted_leg(cgroup, &door.address, &remote_of(sk));
    if c.leg == INBOUND && cgroup.mode == MODE_TPROXY {
        c.destination = door;
    } else if c.leg == SOURCE && cgroup.flags & CGROUP_SHARED != 0 {
        shared::set(&mut c.flags, TENTATIVE);
    }
}

/// Which leg a connection is that a sidecar accepted, by its addresses: its application's if it is from the same pod, which means
/// redirected on its way out, and so to a loopback address, or dialled as it is; else a peer's.
#[inline(always)]
pub(super) fn accepted_leg(cgroup: &Cgroup, local: &[u8; 16], remote: &[u8; 16]) -> u32 {
    let dialled = cgroup.mode != MODE_TPROXY && socket::same(local, remote);
    if socket::is_loopback_network(local) || dialled { SOURCE } else { INBOUND }
}

/// The source of a sidecar's reply is what the application dialled: translation back has been done at this point.
/// Source: kernel `net/netfilter/nf_nat_core.c`, manipulation at POST_ROUTING for the reply direction.
#[inline(always)]
fn dialled(c: &mut Connection, skb: *mut __sk_buff) {
    // SAFETY: context fields; bounds are checked before the reads.
    unsafe {
        let (data, end) = ((*skb).data as usize, (*skb).data_end as usize);
        if data + 42 > end {
            return;
        }
        let word = |at: usize| core::ptr::read_unaligned((data + at) as *const u32);
        let half = |at: usize| u16::from_be(core::ptr::read_unaligned((data + at) as *const u16));
        let first = *(data as *const u8);
        let (address, port) = if first == 0x45 {
            (socket::mapped(word(12)), half(20))
        } else if first >> 4 == 6 {
            (socket::address([word(8), word(12), word(16), word(20)]), half(40))
        } else {
            return;
        };
        c.destination = Endpoint { address, port, padding: 0 };
    }
}
