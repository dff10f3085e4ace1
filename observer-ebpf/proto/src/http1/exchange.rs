//! Exchanges: a request and its response, from the first byte to the counted request.

use observer_common::{
    CallerId,
    Direction::{self, Request, Response},
    GRPC_NONE, GRPC_UNKNOWN, Protocol, STATUS_UNKNOWN, Security,
    health::Counter,
};

use crate::{
    atomic,
    connection::{
        ConnLeg, Connection, MAX_EXCHANGES,
        exchange_state::{ANSWERED, CALLER_SHIFT, FINISHED, HAS_TRACE, IS_GRPC, REQUEST_DONE, SECURITY_SHIFT},
        flags::CLOSING,
    },
    env::Recorder,
    finished::FinishedRequest,
    flow::Flow,
    option::{OptionU32, Peer},
    trace,
};

use super::{
    resync,
    state::{
        UNREADABLE_GRPC_STATUS,
        flags::{BEGUN, FINAL},
        phase,
    },
};

/// Author of a response.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Author {
    /// The application.
    Application,
    /// Its proxy, in the application's place.
    Proxy,
}

/// Envoy's status in place of an application that does not answer.
const SERVICE_UNAVAILABLE: u32 = 503;
/// Envoy's status in place of a response that it refuses.
pub(super) const BAD_GATEWAY: u32 = 502;
/// The gRPC status that goes with both.
const GRPC_UNAVAILABLE: u32 = 14;

/// Result of an exchange.
struct Outcome {
    status: u32,
    author: Author,
    ended_early: bool,
    bytes: u64,
    at_ns: u64,
}

/// Opens an exchange for the request that begins here, unless it is open; returns false if there is no room.
#[inline(never)]
pub(super) fn open<E: Recorder>(c: &mut Connection, env: &mut E) -> bool {
    if c.flows[Request].flags & BEGUN != 0 {
        return true;
    }
    let tail = c.tail;
    if tail.wrapping_sub(atomic::load(&c.head)) >= MAX_EXCHANGES as u32 {
        resync::desync(c, env, Counter::DesyncPipeline);
        return false;
    }
    let security = u32::from(env.client_security(c).0);
    let now = env.now();
    let flow = &mut c.flows[Request];
    flow.flags |= BEGUN;
    let begin = flow.next.wrapping_sub(flow.unread() as u32).wrapping_sub(flow.message_bytes as u32);
    let exchange = c.exchange(tail);
    exchange.start_ns = now;
    exchange.request_bytes = 0;
    exchange.begin = begin;
    atomic::store(&mut exchange.state, security << SECURITY_SHIFT);
    atomic::store(&mut c.tail, tail.wrapping_add(1));
    true
}

/// Answers the oldest open exchange with the response in its flow. It is counted now, or with the request's end: an
/// application may answer first and read on.
#[inline(always)]
pub(super) fn answer<E: Recorder>(c: &mut Connection, env: &mut E, author: Author) {
    let number = atomic::load(&c.head);
    let now = env.now();
    let flow = &c.flows[Response];
    let outcome = Outcome { status: flow.status, author, ended_early: false, bytes: flow.message_bytes, at_ns: now };
    write_finished(c, number, &outcome, Response);
    let reads_on =
        c.leg == ConnLeg::DESTINATION && author == Author::Application && c.flows[Request].phase != phase::TUNNEL;
    let state = atomic::fetch_or(&mut c.exchange(number).state, if reads_on { ANSWERED } else { 0 });
    let is_due = state & REQUEST_DONE != 0 || !reads_on;
    c.is_awaited = u32::from(!is_due);
    if is_due {
        // Else the bytes of the complete request stand.
        if state & REQUEST_DONE == 0 || atomic::load(&c.flags) & CLOSING != 0 {
            settle_request_bytes(c, number);
        }
        c.flows[Response].due = OptionU32::some(number);
    }
    atomic::store(&mut c.head, number.wrapping_add(1));
}

/// Sets the bytes of a request that is not complete to those sent of it. Where Envoy closes the connection, it has read
/// what was sent behind a complete one as well.
#[inline(never)]
fn settle_request_bytes(c: &mut Connection, number: u32) {
    let flow = &c.flows[Request];
    let sent = flow.message_bytes + unfinished_line(flow);
    let next = flow.next;
    let has_followers = atomic::load(&c.tail).wrapping_sub(number) > 1;
    let closing = atomic::load(&c.flags) & CLOSING != 0;
    let exchange = c.exchange(number);
    if atomic::load(&exchange.state) & REQUEST_DONE == 0 {
        exchange.request_bytes = sent;
    } else if closing && has_followers {
        exchange.request_bytes = u64::from(next.wrapping_sub(exchange.begin));
    }
}

/// Makes the last answered exchange due if it still waits for its request's end.
#[inline(always)]
pub(super) fn finish_answered(c: &mut Connection) {
    if c.is_awaited == 0 {
        return;
    }
    c.is_awaited = 0;
    let last = atomic::load(&c.head).wrapping_sub(1);
    if atomic::load(&c.exchange(last).state) & (ANSWERED | FINISHED) == ANSWERED {
        settle_request_bytes(c, last);
        c.flows[Response].due = OptionU32::some(last);
    }
}

/// Counts the exchange that a direction has ended, if there is one.
#[inline(always)]
pub(crate) fn count_due<E: Recorder>(c: &mut Connection, env: &mut E, direction: Direction) {
    if let Some(number) = c.flows[direction].due.get() {
        c.flows[direction].due = OptionU32::NONE;
        count(c, env, number, Response);
    }
}

/// Writes the finished request of an exchange to a direction's entry.
#[inline(never)]
fn write_finished(c: &mut Connection, number: u32, outcome: &Outcome, direction: Direction) {
    let exchange = c.exchange(number);
    let state = atomic::load(&exchange.state);
    // A request sent before the response to the previous one is processed from that response on.
    let start = exchange.start_ns;
    let start = if start < c.answered_ns { c.answered_ns } else { start };
    c.answered_ns = outcome.at_ns;
    let is_grpc = state & IS_GRPC != 0;
    let mut status = outcome.status;
    let mut grpc_status = c.flows[Response].grpc_status;
    c.flows[Response].grpc_status = OptionU32::NONE;
    if is_grpc && outcome.author == Author::Proxy {
        status = 200;
        grpc_status = OptionU32::some(GRPC_UNAVAILABLE);
    }
    let finished = FinishedRequest {
        duration_ns: outcome.at_ns.saturating_sub(start),
        bytes: [0, outcome.bytes],
        messages: [0; 2],
        status: if status < 1000 { status as u16 } else { STATUS_UNKNOWN },
        grpc_status: match grpc_status.get() {
            Some(UNREADABLE_GRPC_STATUS) if is_grpc => GRPC_UNKNOWN,
            Some(status) if is_grpc => u64::from(status),
            _ => GRPC_NONE,
        },
        protocol: if is_grpc { Protocol::GRPC } else { Protocol::HTTP },
        security: Security((state >> SECURITY_SHIFT) as u8),
        outcome: if outcome.ended_early { Counter::RequestEndedEarly } else { Counter::RequestOk } as u16,
        caller: CallerId((state >> CALLER_SHIFT) as u16),
        trace: if trace::is_on() && state & HAS_TRACE != 0 { OptionU32::some(number) } else { OptionU32::NONE },
    };
    finished.write(&mut c.flows[direction].finished);
}

/// Counts an exchange once, as written to a direction's entry.
#[inline(never)]
fn count<E: Recorder>(c: &mut Connection, env: &mut E, number: u32, direction: Direction) {
    let exchange = c.exchange(number);
    let bytes = exchange.request_bytes;
    if atomic::fetch_or(&mut exchange.state, FINISHED) & FINISHED == 0 {
        c.flows[direction].finished.bytes[Request] = bytes;
        env.record_request(c, direction);
    }
}

/// Counts the exchange that the connection's end interrupts; the proxy never began those behind it.
#[inline(never)]
pub(crate) fn close_exchanges<E: Recorder>(c: &mut Connection, env: &mut E) {
    finish_answered(c);
    count_due(c, env, Response);
    let (head, tail) = (atomic::load(&c.head), atomic::load(&c.tail));
    if head == tail {
        return;
    }
    let open = tail.wrapping_sub(head);
    if atomic::load(&c.flags) & CLOSING != 0 {
        env.count(Counter::RequestAbandoned, u64::from(open));
        return;
    }
    let at_ns = if c.ended_ns != 0 { c.ended_ns } else { env.now() };
    let flow = &c.flows[Response];
    let phase = flow.phase;
    let bytes = flow.message_bytes + unfinished_line(flow);
    let ended_by_application = c.leg == ConnLeg::DESTINATION && c.first_end == Peer::SERVER;
    let has_header = phase != phase::START && (phase != phase::HEADERS || c.leg != ConnLeg::DESTINATION);
    let (status, author) = if flow.flags & FINAL != 0 && has_header {
        (flow.status, Author::Application)
    } else if !ended_by_application {
        // Envoy logs the status that it has forwarded, even an interim one.
        let is_interim = flow.message_bytes != 0 && phase == phase::START && flow.status < 200;
        (if is_interim { flow.status } else { 0 }, Author::Application)
    } else if phase == phase::HEADERS || flow.pending() != 0 {
        (BAD_GATEWAY, Author::Proxy)
    } else {
        (SERVICE_UNAVAILABLE, Author::Proxy)
    };
    let ended_early = phase != phase::UNTIL_CLOSE && phase != phase::TUNNEL;
    write_finished(c, head, &Outcome { status, author, ended_early, bytes, at_ns }, Request);
    if open == 1 {
        settle_request_bytes(c, head);
    }
    count(c, env, head, Request);
    if open > 1 {
        env.count(Counter::RequestAbandoned, u64::from(open - 1));
    }
}

/// Returns the bytes of an unfinished line, if a message has begun.
#[inline(always)]
fn unfinished_line(flow: &Flow) -> u64 {
    if flow.flags & BEGUN != 0 || flow.phase == phase::START { u64::from(flow.pending()) } else { 0 }
}
