//! Lost positions in HTTP/1, and how they are found again: at the first message after the direction has changed.

use observer_common::{
    Direction::{self, Request, Response},
    health::Counter,
};

use crate::{
    atomic,
    classify::{classify_encrypted, classify_http1, classify_http2, classify_tcp},
    connection::{
        ConnProtocol, Connection,
        exchange_state::{ANSWERED, FINISHED},
        flags::{CLOSING, GATEWAY},
    },
    env::{ByteSource, Recorder},
    flow::{CARRY, Flow},
};

use super::{
    sniff::{Found, find_request, found, is_frame_header, is_server_control_frame, is_status_line, is_tls_record},
    state::phase,
};

/// Prepares a direction for reading, and tries to find a lost position; returns whether the position is known.
#[inline(always)]
pub(super) fn ensure_sync<E: ByteSource>(
    c: &mut Connection,
    env: &mut E,
    direction: Direction,
    direction_changed: bool,
) -> bool {
    let epoch = atomic::load(&c.epoch);
    let flow = &mut c.flows[direction];
    if epoch & 1 == 0 {
        if flow.epoch != epoch {
            restart(flow, epoch);
        }
        if direction == Request {
            begin_next_request(c, epoch);
        } else if flow.phase == phase::SPENT && atomic::load(&c.head) != atomic::load(&c.tail) {
            // There was a request since.
            restart(flow, epoch);
        }
        return true;
    }
    find_sync(c, env, direction, direction_changed)
}

/// Tries to find a lost position; returns whether it did.
#[inline(never)]
fn find_sync<E: ByteSource>(c: &mut Connection, env: &mut E, direction: Direction, direction_changed: bool) -> bool {
    let epoch = atomic::load(&c.epoch);
    let flow = &mut c.flows[direction];
    flow.clear_ranges();
    if !direction_changed {
        return false;
    }
    // After a change of direction a message of HTTP/1 begins here, or the connection has another protocol.
    flow.clear();
    let left = flow.unloaded();
    let length = if left < CARRY { left } else { CARRY };
    let offset = flow.offset;
    if length < 8 || !env.load(flow, offset, length, 0) {
        return false;
    }
    if direction == Response {
        if is_status_line(flow) {
            classify_http1(c, env);
        } else if is_server_control_frame(flow) {
            classify_http2(c, env);
        }
        return false;
    }
    find_request(flow, length);
    match found(flow) {
        Found::REQUEST => {
            classify_http1(c, env);
            if c.protocol() != ConnProtocol::HTTP1 {
                return false;
            }
            let head = atomic::load(&c.tail);
            atomic::store(&mut c.head, head);
            restart(&mut c.flows[Request], epoch.wrapping_add(1));
            atomic::store(&mut c.epoch, epoch.wrapping_add(1));
            true
        }
        Found::PREFACE => {
            classify_http2(c, env);
            false
        }
        Found::OTHER => {
            if c.protocol == ConnProtocol::UNDECIDED {
                classify_preexisting(c, env);
            }
            false
        }
        _ => false,
    }
}

/// Begins the next request behind one that only its response ends; none is read once the connection is to be closed.
#[inline(always)]
fn begin_next_request(c: &mut Connection, epoch: u32) {
    let phase = c.flows[Request].phase;
    let closing = atomic::load(&c.flags) & CLOSING != 0;
    let last = atomic::load(&c.tail).wrapping_sub(1);
    let answered = phase == phase::TUNNEL && atomic::load(&c.exchange(last).state) & FINISHED != 0;
    let flow = &mut c.flows[Request];
    if closing && (phase == phase::START || answered) {
        stop(flow);
    } else if answered {
        restart(flow, epoch);
    }
}

/// Classifies a preexisting connection whose client does not begin a message where HTTP/1 would: as HTTP/2 if a frame
/// header is there, else as TCP.
#[inline(always)]
fn classify_preexisting<E: Recorder>(c: &mut Connection, env: &mut E) {
    // A TLS record in the middle of a connection does not reveal what is inside.
    if c.flags & GATEWAY != 0 && is_tls_record(&c.flows[Request]) {
        classify_encrypted(c, env);
    } else if is_frame_header(&c.flows[Request]) {
        classify_http2(c, env);
    } else if c.flows[Response].seen_bytes > 0 {
        classify_tcp(c, env);
    }
}

/// Puts a flow between messages, at the next byte.
#[inline(always)]
fn restart(flow: &mut Flow, epoch: u32) {
    flow.clear();
    flow.clear_ranges();
    flow.phase = phase::START;
    flow.skip = 0;
    flow.message_bytes = 0;
    flow.flags = 0;
    flow.epoch = epoch;
}

/// Puts a flow behind the last message that is read.
#[inline(always)]
pub(super) fn stop(flow: &mut Flow) {
    flow.clear();
    flow.phase = phase::SPENT;
    flow.skip = u64::MAX;
    flow.message_bytes = 0;
    flow.flags = 0;
}

/// Gives up the position in the connection, and counts the open requests as lost.
#[inline(never)]
pub(super) fn desync<E: Recorder>(c: &mut Connection, env: &mut E, reason: Counter) {
    if atomic::fetch_or(&mut c.epoch, 1) & 1 != 0 {
        return;
    }
    env.count(reason, 1);
    let open = atomic::load(&c.tail).wrapping_sub(atomic::load(&c.head));
    let last = atomic::load(&c.head).wrapping_sub(1);
    let answered = atomic::fetch_or(&mut c.exchange(last).state, FINISHED) & (ANSWERED | FINISHED) == ANSWERED;
    let open = open.wrapping_add(u32::from(answered));
    env.count(Counter::RequestDesync, u64::from(open));
}
