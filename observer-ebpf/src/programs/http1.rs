//! cgroup_skb, second part: packets of connections that speak HTTP/1, or may, handed on by a tail call. Each direction has a
//! program, whichever hook sees it.

use aya_ebpf::{bindings::__sk_buff, macros::cgroup_skb, programs::SkBuffContext};
use observer_common::health::Counter;
use observer_proto::{
    segment::Segment,
    shared,
    socket::{self, Connection, DESTINATION, HTTP2, REQUEST, RESPONSE},
};

use super::{
    context::read,
    http2, maps,
    packet::{Arrival, Packet, arrived, leave, segment},
    skb::preexisting,
};

/// Where the program for a direction is in the table, behind those for HTTP/2.
const FIRST: u32 = 2;

/// What clients send.
#[cgroup_skb]
pub(crate) fn mesh_request_h1(ctx: SkBuffContext) -> i32 {
    packet(&ctx, REQUEST);
    1
}

/// What servers send.
#[cgroup_skb]
pub(crate) fn mesh_response_h1(ctx: SkBuffContext) -> i32 {
    packet(&ctx, RESPONSE);
    1
}

/// Goes on in the program for a direction of HTTP/1; returns only if there is none.
#[inline(always)]
pub(super) fn hand_over(ctx: &SkBuffContext, direction: usize) {
    maps::hand_over(ctx, FIRST + direction as u32);
    maps::count(Counter::LossHandOver as u32, 1);
}

#[inline(always)]
fn packet(ctx: &SkBuffContext, direction: usize) -> Option<()> {
    let skb = ctx.skb.skb;
    let sk = read!(skb, __bindgen_anon_2.sk);
    if sk.is_null() {
        return None;
    }
    let c = maps::connection(sk)?;
    let segment = segment(skb)?;
    let arrival = arrived(c, sk, &segment, is_sent(c, direction), direction)?;
    preexisting(c);
    // Another processor may have decided it while this one was about to enter.
    if shared::load(&c.protocol) != HTTP2 {
        segment_of(c, skb, &segment, arrival, direction);
    }
    if !is_sent(c, direction) {
        leave(&mut c.streams[direction]);
    }
    if shared::load(&c.protocol) == HTTP2 {
        http2::hand_over(ctx, is_sent(c, direction));
    }
    Some(())
}

/// Does the proxy send what goes in a direction? Asked anew wherever it matters, so that the verifier follows one way.
#[inline(always)]
fn is_sent(c: &Connection, direction: usize) -> bool {
    (shared::load(&c.leg) == DESTINATION) == (direction == REQUEST)
}

#[inline(always)]
fn segment_of(c: &mut Connection, skb: *mut __sk_buff, segment: &Segment, arrival: Arrival, direction: usize) {
    let mut env = Packet { skb };
    socket::catch_up(c, &mut env, direction, arrival.accepted());
    if segment.length != 0 && !(arrival.is_closed() && socket::is_deaf(c, direction)) {
        socket::payload(c, &mut env, direction, segment.seq, segment.offset, segment.length);
        if shared::load(&c.protocol) == HTTP2 {
            return;
        }
    }
    if socket::reached_end(c, &mut env, direction, segment) {
        socket::ended(c, &mut env);
    }
}
