//! cgroup_skb: every packet of the sidecar's sockets, in both directions.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::generated::{bpf_loop, bpf_skb_cgroup_id},
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use core::ffi::c_void;
use observer_ebpf::{
    Endpoint, MODE_GATEWAY, MODE_TPROXY, PORT_EXCLUDED,
    health::Counter,
    shared,
    socket::{
        self, ANCHORED, Connection, DESTINATION, ENDED, GATEWAY, INBOUND, LATE, REQUEST, RESPONSE, SOURCE, UNDECIDED,
    },
    tls,
};

use super::{
    context::{is_magic, local_of, read, remote_of},
    handshake, http2, maps,
    packet::{FIN, Packet, RST, Segment, TRIES, await_room, enter, leave, segment},
    record,
    sock_ops::OUTBOUND_PORT,
};

const ESTABLISHED: u32 = 1;
const SYN_RECV: u32 = 3;
const LISTEN: u32 = 10;

/// What the sidecar's sockets receive.
#[cgroup_skb]
#[inline(always)]
pub(crate) fn mesh_ingress(ctx: SkBuffContext) -> i32 {
    if packet(ctx.skb.skb, false) == Some(Next::Http2) {
        http2::hand_over(&ctx, false);
    }
    1
}

/// What they send.
#[cgroup_skb]
#[inline(always)]
pub(crate) fn mesh_egress(ctx: SkBuffContext) -> i32 {
    if packet(ctx.skb.skb, true) == Some(Next::Http2) {
        http2::hand_over(&ctx, true);
    }
    1
}

/// What is left to do with a packet.
#[derive(PartialEq, Eq)]
enum Next {
    Nothing,
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
        None => late(skb, sk)?,
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
        opening(c, skb, egress);
        return None;
    }
    if leg != SOURCE && leg != DESTINATION {
        return None;
    }
    let protocol = shared::load(&c.protocol);
    if protocol == socket::HTTP2 {
        return Some(Next::Http2);
    }
    if protocol == socket::ENCRYPTED {
        return None;
    }
    let segment = segment(skb)?;
    if segment.length == 0 && segment.flags & (FIN | RST) == 0 {
        return None;
    }
    if c.flags & (ANCHORED | LATE) == 0 {
        joined_late(c);
    }
    if egress && leg == SOURCE && c.destination.port == 0 {
        dialled(c, skb);
    }
    if egress == (leg == DESTINATION) {
        segment_of(c, skb, &segment, egress, REQUEST)
    } else {
        segment_of(c, skb, &segment, egress, RESPONSE)
    }
}

#[inline(always)]
fn segment_of(
    c: &mut Connection,
    skb: *mut __sk_buff,
    segment: &Segment,
    egress: bool,
    direction: usize,
) -> Option<Next> {
    let mut env = Packet { skb };
    // What a socket sends is serialised by its lock; what it receives can be on two processors at once.
    if !egress && segment.length != 0 && shared::load(&c.protocol) == socket::HTTP1 {
        await_room(&mut c.streams[direction], segment);
    }
    if !egress && !enter(&mut c.streams[direction]) {
        maps::count(Counter::SyncContended as u32, 1);
        return None;
    }
    if segment.length != 0 {
        socket::payload(c, &mut env, direction, segment.seq, segment.offset, segment.length);
    }
    let next = if shared::load(&c.protocol) == socket::HTTP2 { Next::Http2 } else { Next::Nothing };
    if next == Next::Nothing && segment.flags & (FIN | RST) != 0 {
        socket::ending(c, &mut env, direction, segment.flags & RST != 0);
        // Without the state callback, which an older connection lacks, its end shows only here.
        if c.flags & LATE != 0 && (segment.flags & RST != 0 || c.first_end != direction as u32 + 1) {
            socket::ended(c, &mut env);
        }
    }
    if !egress {
        leave(&mut c.streams[direction]);
    }
    Some(next)
}

/// The opening of a peer's connection: only until it is clear what it came with.
#[inline(never)]
fn opening(c: &mut Connection, skb: *mut __sk_buff, egress: bool) -> Option<()> {
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
    if segment.length == 0 || !enter(&mut c.streams[REQUEST]) {
        return None;
    }
    let s = &mut c.streams[REQUEST];
    if s.place(segment.seq, segment.offset, segment.length) {
        s.advance(segment.seq.wrapping_add(segment.length));
        if s.gap() == 0 {
            let mut walk = Walk { c, skb };
            // SAFETY: the callback gets back the pointer given here.
            unsafe { bpf_loop(tls::STEPS, hello as *mut c_void, (&raw mut walk).cast(), 0) };
        }
    }
    leave(&mut c.streams[REQUEST]);
    record::list(c);
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
    i64::from(tls::step(c, &mut Packet { skb: walk.skb }))
}

/// A socket without storage: a listener, or one that was open before the programs were attached and carries data.
#[inline(never)]
fn late(skb: *mut __sk_buff, sk: *mut bpf_sock) -> Option<&'static mut Connection> {
    if read!(sk, state) == LISTEN {
        handshake::keep(skb);
        return None;
    }
    if read!(sk, state) == SYN_RECV {
        return accepted_elsewhere(sk);
    }
    let accepted = read!(sk, src_port) == OUTBOUND_PORT;
    if !accepted && !is_magic(sk) {
        return None;
    }
    let leg = if accepted { SOURCE } else { DESTINATION };
    let port = u16::from_be(read!(sk, dst_port));
    let excluded = leg == DESTINATION && maps::port_flags(port) & PORT_EXCLUDED != 0;
    if excluded || read!(sk, state) != ESTABLISHED || segment(skb)?.length == 0 {
        return None;
    }
    let c = maps::new_connection(sk)?;
    c.leg = leg;
    if leg == DESTINATION {
        c.destination = Endpoint { address: remote_of(sk), port, padding: 0 };
    }
    Some(c)
}

/// Another processor has made this socket and is about to say that it is established: from then on the connection is there. Its
/// first data can be here before that.
#[inline(always)]
fn accepted_elsewhere(sk: *mut bpf_sock) -> Option<&'static mut Connection> {
    if maps::port_flags(read!(sk, src_port) as u16) & PORT_EXCLUDED != 0 {
        return None;
    }
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

#[inline(always)]
fn joined_late(c: &mut Connection) {
    if shared::set(&mut c.flags, LATE) & LATE == 0 {
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
    match cgroup.mode {
        MODE_GATEWAY => {
            shared::set(&mut c.flags, GATEWAY);
            c.destination = door;
            c.leg = SOURCE;
        }
        MODE_TPROXY => {
            c.destination = door;
            c.leg = INBOUND;
        }
        _ => c.leg = socket::IGNORED,
    }
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
