//! Streams that do not end by themselves: after a desync, GOAWAY, or the end of the connection.

use observer_common::{Direction, health::Counter};

use crate::{
    connection::{ConnLeg, Connection},
    env::{Recorder, Runtime},
    option::{OptionU32, Peer},
};

use super::resync::is_desynced;
use super::{
    batch::CloseReason,
    state::{Abandoned, Http2},
    table::StreamStore,
};
use Direction::{Request, Response};

/// Closes the streams that a segment in `direction` has left without an end of their own; `is_closed` is set if it has
/// ended the connection.
#[inline(never)]
pub fn on_segment_end<E: Recorder + Runtime + StreamStore>(
    c: &mut Connection,
    h: &mut Http2,
    env: &mut E,
    direction: Direction,
    is_closed: bool,
) {
    let frames = &mut h.frames[direction];
    let (abandoned, goaway) = (frames.abandoned, frames.goaway.get());
    frames.abandoned = Abandoned::NO;
    frames.goaway = OptionU32::NONE;
    // The last stream id of a graceful GOAWAY is above all of them.
    let refused_above = match goaway {
        Some(last_id) if last_id < h.table.last_id => Some(last_id),
        _ => None,
    };
    if abandoned == Abandoned::NO && !is_closed && refused_above.is_none() {
        return;
    }
    // The proxy ends the connection of a peer that violates the protocol, and with it the open streams.
    let is_violated = abandoned == Abandoned::VIOLATION && !c.is_sent_by_proxy(direction);
    let is_lost = abandoned != Abandoned::NO || is_any_desynced(c, h);
    let all = is_closed || abandoned != Abandoned::NO;
    h.batches[direction].close_reason = CloseReason {
        above: if all { 0 } else { refused_above.unwrap_or(0) },
        uncounted: if is_violated {
            OptionU32::NONE
        } else if is_lost {
            OptionU32::some(Counter::RequestDesync as u32)
        } else if c.leg == ConnLeg::SOURCE && !is_closed {
            // A stream that a proxy refuses by GOAWAY never began for it.
            OptionU32::some(Counter::RequestAbandoned as u32)
        } else {
            OptionU32::NONE
        },
        streams: 0,
        by: if is_violated {
            Peer::PROXY
        } else if is_closed {
            c.first_end.load()
        } else {
            Peer::SERVER
        },
        at_ns: if is_closed { ended_ns(c, env) } else { env.now() },
    };
    h.table.close(c, env, &mut h.batches[direction]);
}

/// Closes all streams of a connection whose socket has closed.
#[inline(never)]
pub fn on_close<E: Recorder + Runtime + StreamStore>(c: &mut Connection, h: &mut Http2, env: &mut E) {
    let is_lost = is_any_desynced(c, h);
    h.close_batch.close_reason = CloseReason {
        above: 0,
        uncounted: if is_lost { OptionU32::some(Counter::RequestDesync as u32) } else { OptionU32::NONE },
        streams: 0,
        by: c.first_end.load(),
        at_ns: ended_ns(c, env),
    };
    h.table.close(c, env, &mut h.close_batch);
}

#[inline(always)]
fn is_any_desynced(c: &Connection, h: &Http2) -> bool {
    is_desynced(c, &h.frames[Request]) || is_desynced(c, &h.frames[Response])
}

#[inline(always)]
fn ended_ns<E: Recorder>(c: &Connection, env: &mut E) -> u64 {
    if c.ended_ns != 0 { c.ended_ns } else { env.now() }
}
