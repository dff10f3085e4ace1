//! sock_ops: connections established and closed, and where their sequence numbers begin.

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_ops},
    helpers::generated::bpf_sock_ops_cb_flags_set,
    macros::sock_ops,
    programs::SockOpsContext,
};
use observer_common::{Endpoint, PORT_EXCLUDED, PORT_HTTP, PORT_TCP, health::Counter};
use observer_proto::{
    segment::{CLOSE, Socket},
    shared,
    socket::{
        self, ANCHORED, Connection, DECLARED_HTTP, DECLARED_TCP, DESTINATION, Env, FIN_SEEN, INBOUND, LATE, REQUEST,
        RESPONSE, SOURCE, TENTATIVE, UNDECIDED,
    },
    stream::{self, Stream},
};

use super::{
    context::{read, remote_of_event},
    early, handshake, http2, maps, record,
};

const ACTIVE_ESTABLISHED: u32 = 4;
const PASSIVE_ESTABLISHED: u32 = 5;
const STATE: u32 = 10;
const STATE_FLAG: i32 = 1 << 2;
pub(super) const OUTBOUND_PORT: u32 = 15001;
pub(super) const INBOUND_PORT: u32 = 15006;
pub(super) const TUNNEL_PORT: u32 = 15008;

/// Is this one of the ports that Istio's sidecars usually accept redirected connections at?
#[inline(always)]
pub(super) fn has_usual_port(port: u32) -> bool {
    matches!(port, OUTBOUND_PORT | INBOUND_PORT | TUNNEL_PORT)
}

/// Established and closed.
#[sock_ops]
pub(crate) fn mesh_sock_ops(ctx: SockOpsContext) -> u32 {
    let ops = ctx.ops;
    let op = read!(ops, op);
    if op == ACTIVE_ESTABLISHED || op == PASSIVE_ESTABLISHED {
        note!(&ctx, "established, operation {}, local port {}", op, read!(ops, local_port));
    }
    match op {
        ACTIVE_ESTABLISHED => connected(ops),
        PASSIVE_ESTABLISHED => {
            accepted(ops);
            handshake::hand_over(&ctx);
            None
        }
        STATE if read!(ops, __bindgen_anon_1.args[1]) == CLOSE => closed(ops),
        _ => None,
    };
    1
}

#[inline(always)]
fn connected(ops: *mut bpf_sock_ops) -> Option<()> {
    let c = maps::connection(socket_of(ops)?)?;
    if c.leg != DESTINATION {
        return None;
    }
    let port = u32::from_be(read!(ops, remote_port)) as u16;
    c.destination = Endpoint { address: remote_of_event(ops), port, padding: 0 };
    anchor(c, read!(ops, snd_nxt), read!(ops, rcv_nxt));
    watch(ops);
    declared(c, port);
    socket::connected(c, &mut Event);
    Some(())
}

/// Notes what the configuration says of the connection's destination port.
#[inline(always)]
pub(super) fn declared(c: &mut Connection, port: u16) {
    let port = maps::port_flags(port);
    if port & PORT_TCP != 0 {
        shared::set(&mut c.flags, DECLARED_TCP);
    } else if port & PORT_HTTP != 0 {
        shared::set(&mut c.flags, DECLARED_HTTP);
    }
}

#[inline(always)]
fn accepted(ops: *mut bpf_sock_ops) -> Option<()> {
    let port = read!(ops, local_port);
    if maps::port_flags(port as u16) & PORT_EXCLUDED != 0 {
        return None;
    }
    let c = maps::new_connection(socket_of(ops)?)?;
    c.leg = match port {
        OUTBOUND_PORT => SOURCE,
        INBOUND_PORT | TUNNEL_PORT => INBOUND,
        // A gateway's door, a transparent listener, a listener that was moved or one for the application alone: its cgroup
        // tells, with the first packet, or Envoy, which asks where it was going.
        _ => UNDECIDED,
    };
    anchor(c, read!(ops, rcv_nxt), read!(ops, snd_nxt));
    watch(ops);
    Some(())
}

#[inline(always)]
fn closed(ops: *mut bpf_sock_ops) -> Option<()> {
    let (received, acknowledged) = (read!(ops, bytes_received), read!(ops, bytes_acked));
    let sk = socket_of(ops)?;
    let c = maps::connection(sk)?;
    if c.leg == INBOUND {
        record::unlist(c);
        return None;
    }
    if c.leg != SOURCE && c.leg != DESTINATION || disowned(c) {
        return None;
    }
    let direction = if c.leg == SOURCE { REQUEST } else { RESPONSE };
    let rcv_nxt = read!(ops, rcv_nxt);
    let protocol = shared::load(&c.protocol);
    if protocol != socket::HTTP2 {
        socket::catch_up(
            c,
            &mut Event,
            direction,
            accepted_of(c, direction, rcv_nxt, read!(ops, __bindgen_anon_1.args[0])),
        );
    }
    if !socket::ended(c, &mut Event) {
        return None;
    }
    if protocol == socket::HTTP2 {
        http2::closed(c, sk);
    }
    if c.flags & LATE == 0 && c.flags & ANCHORED != 0 && protocol != socket::ENCRYPTED {
        audit(c.streams[direction].seen, received, 1, c.streams[1 - direction].seen, acknowledged);
    }
    Some(())
}

/// Sequence number behind the last payload byte that a closing socket has received: FIN has a number of its own.
#[inline(always)]
fn accepted_of(c: &Connection, direction: usize, rcv_nxt: u32, state: u32) -> u32 {
    let socket = Socket { state, rcv_nxt, snd_una: 0, snd_nxt: 0, acknowledged: 0 };
    let fin = c.flags & (FIN_SEEN << direction) != 0 || socket.received_fin();
    rcv_nxt.wrapping_sub(u32::from(fin))
}

/// Gives up a connection of which nothing has told that it is the sidecar's, if it is such.
#[inline(never)]
pub(super) fn disowned(c: &mut Connection) -> bool {
    if shared::load(&c.flags) & TENTATIVE == 0 || c.destination.port != 0 {
        return false;
    }
    c.leg = socket::IGNORED;
    for stream in &mut c.streams {
        if stream.ticket != 0 {
            early::release(stream);
        }
    }
    maps::count(Counter::LossShared as u32, 1);
    true
}

/// Compares what was seen with what the kernel counted; its figures include FIN and, of the opener, SYN.
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

#[inline(always)]
pub(super) fn socket_of(ops: *mut bpf_sock_ops) -> Option<*mut bpf_sock> {
    if read!(ops, is_fullsock) == 0 {
        return None;
    }
    let sk = read!(ops, __bindgen_anon_2.sk);
    if sk.is_null() { None } else { Some(sk) }
}

/// The first payload byte of each direction has the next sequence number.
#[inline(always)]
fn anchor(c: &mut Connection, request: u32, response: u32) {
    c.streams[REQUEST].next = request;
    c.streams[REQUEST].anchored = stream::ANCHORED;
    c.streams[RESPONSE].next = response;
    c.streams[RESPONSE].anchored = stream::ANCHORED;
    shared::set(&mut c.flags, ANCHORED);
}

/// Asks for the state callback, which tells of the close.
#[inline(always)]
fn watch(ops: *mut bpf_sock_ops) {
    // SAFETY: the context is valid.
    unsafe { bpf_sock_ops_cb_flags_set(ops, STATE_FLAG) };
}

/// An event without a packet.
pub(super) struct Event;

impl Env for Event {
    #[inline(always)]
    fn now(&mut self) -> u64 {
        record::now()
    }
    #[inline(always)]
    fn take_place(&mut self) -> u32 {
        0
    }
    #[inline(always)]
    fn keep(&mut self, _: &mut Stream, _: u32, _: u32, _: u32) -> bool {
        false
    }
    #[inline(always)]
    fn holds(&mut self, _: &Stream) -> bool {
        false
    }
    #[inline(always)]
    fn release(&mut self, stream: &mut Stream) {
        early::release(stream);
    }
    #[inline(always)]
    fn load(&mut self, _: &mut Stream, _: u32, _: u32, _: u32) -> bool {
        false
    }
    #[inline(always)]
    fn turns(&mut self, _: &mut Connection, _: usize) -> bool {
        false
    }
    #[inline(always)]
    fn count(&mut self, counter: Counter, by: u64) {
        maps::count(counter as u32, by);
    }
    #[inline(always)]
    fn finished(&mut self, c: &mut Connection, direction: usize) {
        record::finished(c, direction);
    }
    #[inline(always)]
    fn transferred(&mut self, c: &mut Connection, opened: u64, closed: u64, direction: usize, bytes: u64) {
        record::transferred(c, opened, closed, direction, bytes);
    }
    #[inline(always)]
    fn security(&mut self, c: &mut Connection) -> u8 {
        record::security(c)
    }
}
