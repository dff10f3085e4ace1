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
};

use crate::programs::{
    context::read,
    env::{Kernel, Packet},
    lock::unlock,
    maps,
    packet::{Arrival, admit, kept_segment},
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
    let segment = kept_segment(skb);
    let direction = if is_egress == (c.leg == ConnLeg::DESTINATION) { Request } else { Response };
    let Some(arrival) = admit(c, sk, &segment, is_egress, direction) else { return };
    match direction {
        Request => on_segment(c, h, skb, arrival, Request),
        Response => on_segment(c, h, skb, arrival, Response),
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
fn on_segment(c: &mut Connection, h: &mut Http2, skb: *mut __sk_buff, arrival: Arrival, direction: Direction) {
    let mut env = Kernel(Packet(skb));
    // Read again behind the payload, so that it takes no room on the stack meanwhile.
    let segment = kept_segment(skb);
    if http2::catch_up(c, h, &mut env, direction, arrival.accepted()) {
        http2::skip_payload(&mut c.flows[direction], segment.seq, segment.offset, segment.length);
    } else if segment.length != 0 && !arrival.is_closed() {
        http2::on_payload(c, h, &mut env, direction, segment.seq, segment.offset, segment.length);
    }
    let is_closed = close::on_segment_end(c, &mut env, direction, &kept_segment(skb)) && close::on_close(c, &mut env);
    end_segment_h2(skb, c, h, direction as u32, u32::from(is_closed));
}

/// Closes the streams that a segment has left. Global, so that the verifier checks it on its own.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn end_segment_h2(
    skb: *mut __sk_buff,
    c: *mut Connection,
    h: *mut Http2,
    direction: u32,
    is_closed: u32,
) -> u32 {
    // SAFETY: null or storage of the packet's socket.
    let (Some(c), Some(h)) = (unsafe { (c.as_mut(), h.as_mut()) }) else { return 0 };
    let direction = if direction == Request as u32 { Request } else { Response };
    http2::on_segment_end(c, h, &mut Kernel(Packet(skb)), direction, is_closed != 0);
    0
}
