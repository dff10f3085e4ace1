//! cgroup_skb, second part: packets of connections that speak HTTP/1, or may, reached by a tail call. Each direction has a
//! program, whichever hook sees it.

use aya_ebpf::{bindings::__sk_buff, macros::cgroup_skb, programs::SkBuffContext};
use observer_common::Direction::{self, Request, Response};
use observer_proto::{ConnProtocol, Connection, close, http1, segment::Segment};

use crate::programs::{
    attribution::mark_preexisting,
    context::read,
    env::{Kernel, Packet},
    lock::unlock,
    maps,
    packet::{Arrival, admit, kept_segment},
    tail_call,
};

const PASS: i32 = 1;

/// Outcome of reading a packet.
enum Verdict {
    /// Read, or not to be read.
    Done,
    /// To be read as HTTP/2 by the program for a hook: egress or not.
    Http2(bool),
}

/// What clients send.
#[cgroup_skb]
pub(crate) fn mesh_request_h1(ctx: SkBuffContext) -> i32 {
    match on_packet(ctx.skb.skb, Request) {
        Verdict::Http2(is_egress) => tail_call::http2(&ctx, is_egress),
        Verdict::Done => {}
    }
    PASS
}

/// What servers send.
#[cgroup_skb]
pub(crate) fn mesh_response_h1(ctx: SkBuffContext) -> i32 {
    match on_packet(ctx.skb.skb, Response) {
        Verdict::Http2(is_egress) => tail_call::http2(&ctx, is_egress),
        Verdict::Done => {}
    }
    PASS
}

#[inline(always)]
fn on_packet(skb: *mut __sk_buff, direction: Direction) -> Verdict {
    let sk = read!(skb, __bindgen_anon_2.sk);
    if sk.is_null() {
        return Verdict::Done;
    }
    let Some(c) = maps::connection(sk) else { return Verdict::Done };
    let segment = kept_segment(skb);
    // Whether the proxy sends it is loaded wherever it matters, so that the verifier follows one path.
    let is_egress = c.is_sent_by_proxy(direction);
    let Some(arrival) = admit(c, sk, &segment, is_egress, direction) else { return Verdict::Done };
    mark_preexisting(c);
    // Another CPU may have classified the connection while this one waited for the lock.
    if c.protocol() != ConnProtocol::HTTP2 {
        on_segment(c, skb, &segment, arrival, direction);
    }
    if !c.is_sent_by_proxy(direction) {
        unlock(&mut c.flows[direction]);
    }
    if c.protocol() == ConnProtocol::HTTP2 {
        return Verdict::Http2(c.is_sent_by_proxy(direction));
    }
    Verdict::Done
}

#[inline(always)]
fn on_segment(c: &mut Connection, skb: *mut __sk_buff, segment: &Segment, arrival: Arrival, direction: Direction) {
    let mut env = Kernel(Packet(skb));
    http1::catch_up(c, &mut env, direction, arrival.accepted());
    if segment.length != 0 && !(arrival.is_closed() && http1::is_discarded(c, direction)) {
        http1::on_payload(c, &mut env, direction, segment.seq, segment.offset, segment.length);
        if c.protocol() == ConnProtocol::HTTP2 {
            return;
        }
    }
    if close::on_segment_end(c, &mut env, direction, segment) {
        close::on_close(c, &mut env);
    }
}
