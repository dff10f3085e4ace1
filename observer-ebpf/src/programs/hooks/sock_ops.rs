//! sock_ops: connections established and closed, and where their sequence numbers begin.

use aya_ebpf::{
    bindings::bpf_sock_ops, helpers::generated::bpf_sock_ops_cb_flags_set, macros::sock_ops, programs::SockOpsContext,
};
use observer_common::{
    Direction::{self, Request, Response},
    Endpoint,
    health::Counter,
};
use observer_proto::{
    ConnLeg, ConnProtocol, Connection, close,
    connection::flags::{ENDED, FIN_SEEN, PREEXISTING, SEQ_KNOWN},
    flow, http1, http2, on_established,
    segment::{CLOSE, Socket},
};

use crate::programs::{
    attribution::{INBOUND_PORT, OUTBOUND_PORT, TUNNEL_PORT, drop_unconfirmed, is_excluded, record_declared_protocol},
    context::{read, remote_of_event, socket_of},
    env::{Event, Kernel},
    maps, pairing, record, tail_call,
};

const OK: u32 = 1;
const ACTIVE_ESTABLISHED: u32 = 4;
const PASSIVE_ESTABLISHED: u32 = 5;
const STATE: u32 = 10;
const STATE_FLAG: i32 = 1 << 2;

/// Established and closed.
#[sock_ops]
pub(crate) fn mesh_sock_ops(ctx: SockOpsContext) -> u32 {
    let ops = ctx.ops;
    let op = read!(ops, op);
    if op == ACTIVE_ESTABLISHED || op == PASSIVE_ESTABLISHED {
        debug!(&ctx, "established, operation {}, local port {}", op, read!(ops, local_port));
    }
    match op {
        ACTIVE_ESTABLISHED => on_connected(ops),
        PASSIVE_ESTABLISHED => {
            on_accepted(ops);
            if maps::handshake_data().is_some_and(|data| !data.buffer.is_none()) {
                tail_call::first_data(&ctx);
            }
        }
        STATE if read!(ops, __bindgen_anon_1.args[1]) == CLOSE => on_closed(ops),
        _ => {}
    }
    OK
}

#[inline(always)]
fn on_connected(ops: *mut bpf_sock_ops) {
    let Some(c) = socket_of(ops).and_then(maps::connection) else { return };
    if c.leg != ConnLeg::DESTINATION {
        return;
    }
    let port = u32::from_be(read!(ops, remote_port)) as u16;
    c.destination = Endpoint { address: remote_of_event(ops), port, padding: 0 };
    set_first_seq(c, read!(ops, snd_nxt), read!(ops, rcv_nxt));
    request_state_callback(ops);
    record_declared_protocol(c);
    on_established(c, &mut Kernel(Event(ops)));
}

#[inline(always)]
fn on_accepted(ops: *mut bpf_sock_ops) {
    let port = read!(ops, local_port);
    if is_excluded(port as u16) {
        return;
    }
    let Some(c) = socket_of(ops).and_then(maps::new_connection) else { return };
    c.leg = match port {
        OUTBOUND_PORT => ConnLeg::SOURCE,
        INBOUND_PORT | TUNNEL_PORT => ConnLeg::INBOUND,
        // The listener of a gateway, a transparent one, one at another port or one of the application alone: decided by the
        // cgroup, with the first packet, or by Envoy's SO_ORIGINAL_DST.
        _ => ConnLeg::UNDECIDED,
    };
    c.peer.address = remote_of_event(ops);
    set_first_seq(c, read!(ops, rcv_nxt), read!(ops, snd_nxt));
    request_state_callback(ops);
}

#[inline(always)]
fn on_closed(ops: *mut bpf_sock_ops) {
    let (received, acknowledged) = (read!(ops, bytes_received), read!(ops, bytes_acked));
    let Some(sk) = socket_of(ops) else { return };
    let Some(c) = maps::connection(sk) else { return };
    if c.leg == ConnLeg::INBOUND {
        // A socket with unread data sends its reset after this.
        c.set_flags(ENDED);
        record::count_closed(c);
        pairing::on_closed(c);
        return;
    }
    if c.leg != ConnLeg::SOURCE && c.leg != ConnLeg::DESTINATION || drop_unconfirmed(c) {
        return;
    }
    let direction = if c.leg == ConnLeg::SOURCE { Request } else { Response };
    let rcv_nxt = read!(ops, rcv_nxt);
    let protocol = c.protocol();
    let mut env = Kernel(Event(ops));
    if protocol != ConnProtocol::HTTP2 {
        let accepted = accepted_of(c, direction, rcv_nxt, read!(ops, __bindgen_anon_1.args[0]));
        http1::catch_up(c, &mut env, direction, accepted);
    }
    if !close::on_close(c, &mut env) {
        return;
    }
    if protocol == ConnProtocol::HTTP2
        && let Some(h) = maps::http2(sk)
    {
        http2::on_close(c, h, &mut env);
    }
    if c.flags & PREEXISTING == 0 && c.flags & SEQ_KNOWN != 0 && protocol != ConnProtocol::ENCRYPTED {
        let seen_in = c.flows[direction].seen_bytes;
        let seen_out = c.flows[direction.opposite()].seen_bytes;
        audit(seen_in, received, 1, seen_out, acknowledged);
    }
}

/// Returns the sequence number behind the last payload byte that a closing socket has accepted: FIN has a number of its own.
#[inline(always)]
fn accepted_of(c: &Connection, direction: Direction, rcv_nxt: u32, state: u32) -> u32 {
    let socket = Socket { state, rcv_nxt, snd_una: 0, snd_nxt: 0, acknowledged: 0 };
    let has_fin = c.flags & (FIN_SEEN << direction as u32) != 0 || socket.has_received_fin();
    rcv_nxt.wrapping_sub(u32::from(has_fin))
}

/// Compares the bytes seen with the kernel's counts, which include FIN and, on the side that connects, SYN.
#[inline(always)]
fn audit(seen_in: u64, received: u64, fin: u64, seen_out: u64, acknowledged: u64) {
    maps::count(Counter::AuditConnections as u32, 1);
    if seen_in == 0 && seen_out == 0 {
        maps::count(Counter::AuditEmpty as u32, 1);
    }
    let mut unseen = 0;
    if received > seen_in + fin {
        unseen += received - seen_in - fin;
    }
    if acknowledged > seen_out + fin + 1 {
        unseen += acknowledged - seen_out - fin - 1;
    }
    if unseen > 0 {
        maps::count(Counter::AuditUnseen as u32, unseen);
    }
    if seen_out > acknowledged {
        maps::count(Counter::AuditUnacknowledged as u32, seen_out - acknowledged);
    }
}

/// Sets the sequence numbers of the first payload byte of each direction.
#[inline(always)]
fn set_first_seq(c: &mut Connection, request: u32, response: u32) {
    c.flows[Request].next = request;
    c.flows[Request].seq_state = flow::SEQ_KNOWN;
    c.flows[Response].next = response;
    c.flows[Response].seq_state = flow::SEQ_KNOWN;
    c.set_flags(SEQ_KNOWN);
}

/// Requests the state callback, which reports the close.
#[inline(always)]
fn request_state_callback(ops: *mut bpf_sock_ops) {
    // SAFETY: the context is valid.
    unsafe { bpf_sock_ops_cb_flags_set(ops, STATE_FLAG) };
}
