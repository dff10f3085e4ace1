//! End of a connection: FIN, RST, and the socket's close.

use observer_common::{Direction, health::Counter};

use crate::{
    classify::count_bytes,
    connection::{
        ConnLeg, ConnProtocol, Connection,
        flags::{ENDED, FIN_SEEN, OPENED, PREEXISTING},
    },
    env::{Pool, Recorder},
    http1,
    option::Peer,
    segment::{FIN, RST, Segment},
};

/// Handles the FIN or RST of a segment, and a FIN whose missing bytes have arrived; returns whether that has ended a
/// connection that has no state callback.
#[inline(always)]
pub fn on_segment_end<E: Recorder>(c: &mut Connection, env: &mut E, direction: Direction, segment: &Segment) -> bool {
    let is_reset = segment.flags & RST != 0;
    let flow = &mut c.flows[direction];
    let is_fin = segment.flags & FIN != 0 && flow.record_fin(segment.end());
    let ends = is_reset || is_fin || flow.is_fin_due();
    if ends {
        on_end(c, env, direction, is_reset);
    }
    http1::count_due(c, env, direction);
    if !ends {
        return false;
    }
    c.flags & PREEXISTING != 0 && (is_reset || c.first_end != Peer::sender(direction))
}

/// Handles the end of `direction`, by a reset or by a FIN with nothing missing in front of it.
#[inline(always)]
pub fn on_end<E: Recorder>(c: &mut Connection, env: &mut E, direction: Direction, is_reset: bool) {
    if c.first_end.set_once(Peer::sender(direction)) {
        c.ended_ns = env.now();
    }
    if !is_reset {
        c.set_flags(FIN_SEEN << direction as u32);
        http1::on_fin(c, env, direction);
    }
}

/// Handles the end of the connection, once: returns false if that was done before. Open HTTP/2 streams are not closed by
/// this, but by [`crate::http2::begin_close`].
#[inline(never)]
pub fn on_close<E: Recorder + Pool>(c: &mut Connection, env: &mut E) -> bool {
    if c.set_flags(ENDED) & ENDED != 0 {
        return false;
    }
    for flow in &mut c.flows {
        if !flow.buffer.is_none() {
            env.free(flow);
        }
    }
    if c.protocol() == ConnProtocol::UNDECIDED {
        http1::classify_at_close(c, env);
    }
    match c.protocol() {
        ConnProtocol::HTTP1 if !c.is_desynced() => http1::close_exchanges(c, env),
        ConnProtocol::TCP => {
            count_bytes(c, env, Direction::Request);
            count_bytes(c, env, Direction::Response);
            if c.flags & OPENED != 0 {
                env.record_closed(c);
            }
        }
        ConnProtocol::ENCRYPTED if c.flags & OPENED != 0 => env.record_closed(c),
        ConnProtocol::UNDECIDED if c.leg == ConnLeg::SOURCE || c.leg == ConnLeg::DESTINATION => {
            env.count(Counter::ConnectionSilent, 1);
        }
        _ => {}
    }
    true
}
