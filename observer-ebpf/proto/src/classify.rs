//! Protocol of a connection: decided once, by whichever direction is first; and the TCP counters that depend on it.

use observer_common::{Direction, health::Counter};

use crate::{
    atomic,
    connection::{
        ConnProtocol, Connection,
        flags::{DECLARED_HTTP, DECLARED_TCP, OPENED, PREEXISTING},
    },
    env::Recorder,
};

/// Classifies an undecided connection as TCP.
#[inline(always)]
pub(crate) fn classify_tcp<E: Recorder>(c: &mut Connection, env: &mut E) {
    if c.change_protocol(ConnProtocol::UNDECIDED, ConnProtocol::TCP) {
        env.count(Counter::ConnectionTcp, 1);
    }
}

/// Classifies an undecided connection as HTTP/1.
#[inline(always)]
pub(crate) fn classify_http1<E: Recorder>(c: &mut Connection, env: &mut E) {
    if c.change_protocol(ConnProtocol::UNDECIDED, ConnProtocol::HTTP1) {
        env.count(Counter::ConnectionHttp1, 1);
    }
}

/// Classifies an undecided connection as HTTP/2.
#[inline(always)]
pub(crate) fn classify_http2<E: Recorder>(c: &mut Connection, env: &mut E) {
    if c.change_protocol(ConnProtocol::UNDECIDED, ConnProtocol::HTTP2) {
        env.count(Counter::ConnectionHttp2, 1);
    }
}

/// Classifies an undecided connection to a gateway as encrypted.
#[inline(always)]
pub(crate) fn classify_encrypted<E: Recorder>(c: &mut Connection, env: &mut E) {
    if c.change_protocol(ConnProtocol::UNDECIDED, ConnProtocol::ENCRYPTED) {
        env.count(Counter::ConnectionEncrypted, 1);
        count_opened(c, env);
    }
}

/// Handles the establishment of a connection whose destination is known.
#[inline(always)]
pub fn on_established<E: Recorder>(c: &mut Connection, env: &mut E) {
    if c.flags & DECLARED_TCP != 0 {
        classify_tcp(c, env);
        count_opened(c, env);
    }
}

/// Handles that the destination has become known, and with it the declared protocol of its port.
#[inline(always)]
pub fn on_destination<E: Recorder>(c: &mut Connection, env: &mut E) {
    if c.flags & DECLARED_TCP != 0 {
        classify_tcp(c, env);
    } else if c.flags & DECLARED_HTTP != 0 && atomic::load(&c.tail) != 0 {
        classify_http1(c, env);
    }
    if c.protocol() == ConnProtocol::TCP {
        count_bytes(c, env, Direction::Request);
        count_bytes(c, env, Direction::Response);
    }
}

/// Counts the connection as opened, once; a preexisting one was opened before counting began.
#[inline(always)]
fn count_opened<E: Recorder>(c: &mut Connection, env: &mut E) {
    if c.flags & (PREEXISTING | OPENED) == 0 && c.set_flags(OPENED) & OPENED == 0 {
        env.record_opened(c);
    }
}

/// Adds the bytes of a direction to the TCP counters that are not in them yet.
#[inline(never)]
pub(crate) fn count_bytes<E: Recorder>(c: &mut Connection, env: &mut E, direction: Direction) {
    count_opened(c, env);
    let flow = &mut c.flows[direction];
    let seen = flow.seen_bytes;
    let bytes = seen.wrapping_sub(atomic::swap(&mut flow.counted_bytes, seen));
    if bytes != 0 {
        env.record_bytes(c, direction, bytes);
    }
}
