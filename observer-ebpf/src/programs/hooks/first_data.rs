//! sock_ops, second part: handshake data of a connection that has just been accepted.

use aya_ebpf::{
    bindings::bpf_sock_ops, helpers::generated::bpf_get_socket_cookie, macros::sock_ops, programs::SockOpsContext,
};
use observer_common::{Direction::Request, health::Counter};
use observer_proto::{
    ConnLeg, ConnProtocol, Connection, flow::BufferHandle, http1, http2, reassembly::HandshakeData, segment::Segment,
    tls,
};

use crate::programs::{
    attribution::attribute,
    context::socket_of,
    env::{FirstData, Kernel},
    handshake,
    lock::{lock, unlock},
    maps, record, tail_call,
};

const OK: u32 = 1;

/// Outcome of reading handshake data.
#[derive(PartialEq, Eq)]
enum Verdict {
    /// Read, or not to be read.
    Done,
    /// To be read as HTTP/2.
    Http2,
}

/// Reads the data, whatever the connection's role and protocol.
#[sock_ops]
pub(crate) fn mesh_first_data(ctx: SockOpsContext) -> u32 {
    if on_first_data(ctx.ops) == Verdict::Http2 {
        tail_call::first_data_h2(&ctx);
    }
    OK
}

/// Reads the data as HTTP/2.
#[sock_ops]
pub(crate) fn mesh_first_data_h2(ctx: SockOpsContext) -> u32 {
    on_first_data_h2(ctx.ops);
    OK
}

#[inline(always)]
fn on_first_data(ops: *mut bpf_sock_ops) -> Verdict {
    let Some(data) = maps::handshake_data() else { return Verdict::Done };
    let Some(c) = accepted_connection(ops, data.cgroup) else {
        handshake::release(data, BufferHandle::NONE);
        return Verdict::Done;
    };
    let mut env = Kernel(FirstData { ops, data });
    if c.leg == ConnLeg::SOURCE && lock_request(c) {
        http1::on_payload(c, &mut env, Request, data.seq, 0, data.length);
        unlock(&mut c.flows[Request]);
    } else if c.leg == ConnLeg::INBOUND && lock_request(c) {
        read_client_hello(c, &mut env, data);
        unlock(&mut c.flows[Request]);
        record::count_open(c);
    }
    if c.protocol() == ConnProtocol::HTTP2 {
        return Verdict::Http2;
    }
    handshake::release(data, c.flows[Request].buffer);
    Verdict::Done
}

#[inline(always)]
fn on_first_data_h2(ops: *mut bpf_sock_ops) {
    let Some(sk) = socket_of(ops) else { return };
    let Some(c) = maps::connection(sk) else { return };
    let Some(h) = maps::new_http2(sk) else { return };
    // SAFETY: the context is valid.
    h.table.cookie = unsafe { bpf_get_socket_cookie(ops.cast()) };
    let Some(data) = maps::handshake_data() else { return };
    let mut env = Kernel(FirstData { ops, data });
    if lock_request(c) {
        http2::on_payload(c, h, &mut env, Request, data.seq, 0, data.length);
        http2::on_segment_end(c, h, &mut env, Request, false);
        unlock(&mut c.flows[Request]);
    }
    handshake::release(data, c.flows[Request].buffer);
}

/// Returns the connection of the event, attributed, if it is observed.
#[inline(always)]
fn accepted_connection(ops: *mut bpf_sock_ops, cgroup: u64) -> Option<&'static mut Connection> {
    let sk = socket_of(ops)?;
    let c = maps::connection(sk)?;
    if c.sidecar == 0 || c.leg == ConnLeg::UNDECIDED {
        attribute(c, cgroup, sk);
    }
    Some(c)
}

/// Locks the request direction: another CPU may be reading the connection's next packet already.
#[inline(always)]
fn lock_request(c: &mut Connection) -> bool {
    let is_locked = lock(&mut c.flows[Request]);
    if !is_locked {
        maps::count(Counter::DesyncContended as u32, 1);
    }
    is_locked
}

#[inline(always)]
fn read_client_hello(c: &mut Connection, env: &mut Kernel<FirstData>, data: &HandshakeData) {
    let segment = Segment { seq: data.seq, ack: 0, offset: 0, length: data.length, flags: 0 };
    let accepted = c.flows[Request].next;
    tls::on_payload(c, env, accepted, &segment);
}
