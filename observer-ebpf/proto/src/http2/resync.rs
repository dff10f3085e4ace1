//! Lost positions in the frames of a direction, and how they are found again.

use observer_common::{
    Direction::{self, Response},
    health::Counter,
};

use crate::{
    connection::{Connection, flags::PREEXISTING},
    env::{Recorder, Step},
    hpack,
    option::OptionU32,
};

use super::{
    frame::{FrameHeader, FrameKind, HEADER_BYTES},
    state::{Abandoned, FrameState, Frames, Http2},
    table::StreamSource,
};

/// Frames in a row that confirm a position, unless a segment ends with the first of them.
const CONFIRMING_FRAMES: u32 = 3;

/// Returns whether the position in a direction is unknown. On a preexisting connection it is until the first packet.
#[inline(always)]
pub(super) fn is_desynced(c: &Connection, frames: &Frames) -> bool {
    frames.state == FrameState::DESYNCED
        || frames.state == FrameState::RESYNCING
        || (frames.is_started == 0 && c.flags & PREEXISTING != 0)
}

/// Gives up the position in one direction, and with it the HPACK table; the open streams are closed behind this segment.
#[inline(never)]
pub(super) fn desync<E: Recorder>(
    c: &mut Connection,
    h: &mut Http2,
    env: &mut E,
    direction: Direction,
    reason: Counter,
) {
    let frames = &mut h.frames[direction];
    if frames.state == FrameState::DESYNCED {
        return;
    }
    frames.state = FrameState::DESYNCED;
    frames.failure = OptionU32::NONE;
    // A resynchronised position may have been wrong.
    let is_violation = reason as u32 == Counter::DesyncMalformed as u32 && frames.decoder.is_partial == 0;
    frames.abandoned = if is_violation { Abandoned::VIOLATION } else { Abandoned::DESYNC };
    hpack::reset(&mut frames.decoder);
    frames.block_stream = 0;
    frames.began_ns = 0;
    let flow = &mut c.flows[direction];
    flow.clear();
    flow.skip = 0;
    flow.clear_ranges();
    env.count(reason, 1);
}

/// Follows frames from the beginning of a segment, to confirm that it began with one, where reading then begins: enough of
/// them in a row, one that ends with the segment, two of the same stream, or a response to an open stream.
#[inline(never)]
pub(super) fn resync_step<E: StreamSource>(
    c: &mut Connection,
    h: &mut Http2,
    env: &mut E,
    direction: Direction,
) -> Step {
    let flow = &mut c.flows[direction];
    let header = FrameHeader::read(flow);
    let frames = &mut h.frames[direction];
    // The block that a CONTINUATION goes on with would have no beginning.
    if !header.is_plausible() || (frames.resync_frames == 0 && header.kind == FrameKind::CONTINUATION) {
        frames.state = FrameState::DESYNCED;
        return Step::Done;
    }
    frames.resync_frames += 1;
    flow.line = flow.line.wrapping_add(HEADER_BYTES);
    let unread = flow.unread();
    let is_same_stream = frames.resync_frames > 1 && header.stream_id != 0 && header.stream_id == frames.stream_id;
    frames.stream_id = header.stream_id;
    let mut is_confirmed =
        unread == u64::from(header.length) || frames.resync_frames == CONFIRMING_FRAMES || is_same_stream;
    if !is_confirmed && direction == Response && header.kind == FrameKind::HEADERS {
        is_confirmed = h.table.find(env, header.stream_id).is_some();
    }
    let (flow, frames) = (&mut c.flows[direction], &mut h.frames[direction]);
    if is_confirmed {
        frames.state = FrameState::HEADER;
        flow.offset = frames.resync_offset;
        flow.clear();
        flow.skip = 0;
        return Step::More;
    }
    flow.skip = u64::from(header.length);
    if unread < flow.skip {
        frames.state = FrameState::DESYNCED;
        flow.skip = 0;
        return Step::Done;
    }
    Step::More
}
