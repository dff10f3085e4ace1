//! cgroup_skb, second part: packets of connections that speak HTTP/2, reached by a tail call.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::generated::bpf_get_socket_cookie,
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use observer_common::Direction::{self, Request, Response};
use observer_proto::{
    ConnLeg, Connection, close,
    http2::{self, Http2},
    segment::Segment,
};

use crate::programs::{
    context::read,
    env::{Kernel, Packet},
    lock::unlock,
    maps,
    packet::{Arrival, admit, segment},
};

const PASS: i32 = 1;

/// What the sidecar's sockets receive.
#[cgroup_skb]
pub(crate) fn mesh_ingress_h2(ctx: SkBuffContext) -> i32 {
    on_packet(ctx.skb.skb, false);
    PASS
}

/// What they send.
#[cgroup_skb]
pub(crate) fn mesh_egress_h2(ctx: SkBuffContext) -> i32 {
    on_packet(ctx.skb.skb, true);
    PASS
}

#[inline(always)]
fn on_packet(skb: *mut __sk_buff, is_egress: bool) {
    let sk = read!(skb, __bindgen_anon_2.sk);
    if sk.is_null() {
        return;
    }
    let Some(c) = maps::connection(sk) else { return };
    let Some(h) = maps::http2(sk).or_else(|| new_http2(skb, sk)) else { return };
    let Some(segment) = segment(skb) else { return };
    if segment.length == 0 && !segment.is_end() {
        return;
    }
    let direction = if is_egress == (c.leg == ConnLeg::DESTINATION) { Request } else { Response };
    let Some(arrival) = admit(c, sk, &segment, is_egress, direction) else { return };
    match direction {
        Request => on_segment(c, h, skb, &segment, arrival, Request),
        Response => on_segment(c, h, skb, &segment, arrival, Response),
    }
    if !is_egress {
        unlock(&mut c.flows[direction]);
    }
}

#[inline(never)]
fn new_http2(skb: *mut __sk_buff, sk: *mut bpf_sock) -> Option<&'static mut Http2> {
    let h = maps::new_http2(sk)?;
    // SAFETY: the context is valid.
    h.table.cookie = unsafe { bpf_get_socket_cookie(skb.cast()) };
    Some(h)
}

#[inline(always)]
fn on_segment(
    c: &mut Connection,
    h: &mut Http2,
    skb: *mut __sk_buff,
    segment: &Segment,
    arrival: Arrival,
    direction: Direction,
) {
    let mut env = Kernel(Packet(skb));
    if http2::catch_up(c, h, &mut env, direction, arrival.accepted()) {
        http2::skip_payload(&mut c.flows[direction], segment.seq, segment.offset, segment.length);
    } else if segment.length != 0 && !arrival.is_closed() {
        http2::on_payload(c, h, &mut env, direction, segment.seq, segment.offset, segment.length);
    }
    let is_closed = close::on_segment_end(c, &mut env, direction, segment) && close::on_close(c, &mut env);
    http2::on_segment_end(c, h, &mut env, direction, is_closed);
}
