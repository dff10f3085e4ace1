//! cgroup_skb: every packet of the sidecar's sockets, in both directions.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::generated::bpf_skb_cgroup_id,
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use observer_common::Direction::{self, Request, Response};
use observer_proto::{
    ConnLeg, ConnProtocol, Connection, close,
    connection::flags::{COUNTED_OPEN, ENDED, PREEXISTING, SEQ_KNOWN},
    http1, tls,
};

use crate::programs::{
    attribution::{attribute, drop_unconfirmed, mark_preexisting},
    context::read,
    env::{Kernel, Packet},
    lock::{lock, unlock},
    maps,
    packet::{accepting_state, admit, keep_segment, segment, source_of},
    preexisting, record, tail_call,
};

const PASS: i32 = 1;

/// Outcome of a packet.
enum Verdict {
    /// Not to be observed, or not a segment that matters.
    Ignored,
    /// Handled here: a peer's, or of a TCP connection.
    Done,
    /// To be read as HTTP/1, which any connection may be that is not known to be TCP.
    Http1(Direction),
    /// To be read as HTTP/2.
    Http2,
}

/// What the sidecar's sockets receive.
#[cgroup_skb]
#[inline(always)]
pub(crate) fn mesh_ingress(ctx: SkBuffContext) -> i32 {
    match on_packet(ctx.skb.skb, false) {
        Verdict::Http1(direction) => tail_call::http1(&ctx, direction),
        Verdict::Http2 => tail_call::http2(&ctx, false),
        Verdict::Ignored | Verdict::Done => {}
    }
    PASS
}

/// What they send.
#[cgroup_skb]
#[inline(always)]
pub(crate) fn mesh_egress(ctx: SkBuffContext) -> i32 {
    match on_packet(ctx.skb.skb, true) {
        Verdict::Http1(direction) => tail_call::http1(&ctx, direction),
        Verdict::Http2 => tail_call::http2(&ctx, true),
        Verdict::Ignored | Verdict::Done => {}
    }
    PASS
}

#[inline(always)]
fn on_packet(skb: *mut __sk_buff, is_egress: bool) -> Verdict {
    let sk = read!(skb, __bindgen_anon_2.sk);
    if sk.is_null() {
        return Verdict::Ignored;
    }
    let known = match maps::connection(sk) {
        Some(c) => Some(c),
        None => preexisting::connection(skb, sk, is_egress),
    };
    let Some(c) = known else { return Verdict::Ignored };
    if c.leg == ConnLeg::IGNORED || c.flags & ENDED != 0 {
        return Verdict::Ignored;
    }
    if c.sidecar == 0 || c.leg == ConnLeg::UNDECIDED {
        // SAFETY: the context is valid.
        attribute(c, unsafe { bpf_skb_cgroup_id(skb) }, sk);
    }
    let leg = c.leg;
    if leg == ConnLeg::INBOUND {
        on_peer_packet(c, skb, sk, is_egress);
        return Verdict::Done;
    }
    if leg != ConnLeg::SOURCE && leg != ConnLeg::DESTINATION {
        return Verdict::Ignored;
    }
    let needs_destination = is_egress && leg == ConnLeg::SOURCE && c.destination.port == 0;
    let protocol = c.protocol();
    if protocol == ConnProtocol::ENCRYPTED {
        return Verdict::Ignored;
    }
    let Some(segment) = segment(skb) else { return Verdict::Ignored };
    if segment.length == 0 && !segment.is_end() {
        return Verdict::Ignored;
    }
    let direction = if is_egress == (leg == ConnLeg::DESTINATION) { Request } else { Response };
    if needs_destination {
        // A process that answers has accepted it, and would have asked for the original destination of a redirected one.
        if drop_unconfirmed(c) {
            return Verdict::Ignored;
        }
        set_destination_by_reply(c, skb);
    }
    if protocol != ConnProtocol::TCP {
        keep_segment(skb, &segment);
        return if protocol == ConnProtocol::HTTP2 { Verdict::Http2 } else { Verdict::Http1(direction) };
    }
    let Some(arrival) = admit(c, sk, &segment, is_egress, direction) else { return Verdict::Ignored };
    mark_preexisting(c);
    let mut env = Kernel(Packet(skb));
    http1::catch_up(c, &mut env, direction, arrival.accepted());
    http1::on_tcp_payload(c, &mut env, direction, &segment);
    if close::on_segment_end(c, &mut env, direction, &segment) {
        close::on_close(c, &mut env);
    }
    if !is_egress {
        unlock(&mut c.flows[direction]);
    }
    Verdict::Done
}

/// Handles a packet of a peer's connection: its ClientHello, and then only when it was last active.
#[inline(never)]
fn on_peer_packet(c: &mut Connection, skb: *mut __sk_buff, sk: *mut bpf_sock, is_egress: bool) {
    if c.flags & PREEXISTING != 0 {
        on_preexisting_peer_packet(c, skb, is_egress);
        return;
    }
    if c.peer_security.is_some() {
        if c.flags & COUNTED_OPEN == 0 {
            record::count_open(c);
        } else if !is_egress && segment(skb).is_some_and(|segment| segment.length != 0) {
            record::touch(c);
        }
        return;
    }
    if is_egress || c.flags & SEQ_KNOWN == 0 {
        return;
    }
    let Some(segment) = segment(skb) else { return };
    if segment.length == 0 {
        return;
    }
    let Some(socket) = accepting_state(sk, &segment, &c.flows[Request], &c.flows[Response]) else { return };
    let accepted = socket.accepted();
    if !lock(&mut c.flows[Request]) {
        return;
    }
    if c.peer_security.is_none() {
        tls::on_payload(c, &mut Kernel(Packet(skb)), accepted, &segment);
    }
    unlock(&mut c.flows[Request]);
    record::count_open(c);
}

/// Handles a packet of a peer's connection whose ClientHello was not seen. It has no state callback: only a FIN or RST
/// reports its end.
#[inline(always)]
fn on_preexisting_peer_packet(c: &mut Connection, skb: *mut __sk_buff, is_egress: bool) {
    let Some(segment) = segment(skb) else { return };
    if segment.is_end() {
        c.set_flags(ENDED);
        record::count_closed(c);
        return;
    }
    if is_egress && c.destination.port == 0 {
        record::count_closed(c);
        set_destination_by_reply(c, skb);
    }
    if c.flags & COUNTED_OPEN == 0 {
        record::count_open(c);
    } else if !is_egress && segment.length != 0 {
        record::touch(c);
    }
}

/// Sets the original destination to the source of a sidecar's reply, in which the translation is undone at this point.
/// Source: kernel `net/netfilter/nf_nat_core.c`, manipulation at POST_ROUTING for the reply direction.
#[inline(always)]
fn set_destination_by_reply(c: &mut Connection, skb: *mut __sk_buff) {
    if let Some(source) = source_of(skb) {
        c.destination = source;
    }
}
