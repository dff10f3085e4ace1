//! HTTP/2: reads the frames of a connection (RFC 9113), and follows its streams.
//!
//! A frame header is assembled over any segmentation, its payload skipped unread, except for header blocks and, in gRPC,
//! the five bytes before each message. As with HTTP/1, each direction may run on a CPU of its own: a field of a stream is
//! written by one direction only, or atomic, and whichever direction ends the stream counts it. Only the request
//! direction creates streams.

mod batch;
mod close;
mod frame;
mod resync;
mod state;
mod stream;
mod table;

use observer_common::{
    CallerId,
    Direction::{self, Request, Response},
    Method,
    health::Counter,
};

use crate::{
    atomic, caller,
    connection::{Connection, flags::PREEXISTING},
    env::{ByteSource, Recorder, Step, TraceStore},
    flow::{Flow, Refill},
    hpack::{self, FieldState, HpackDecoder, TableSize},
    option::{OptionU32, Peer},
    reassembly::{buffer_segment, free_if_drained},
    trace::{self, TraceText, kind},
};

use self::{
    frame::{END_HEADERS, END_STREAM, FrameHeader, FrameKind, HAS_PRIORITY, HEADER_BYTES, MAX_PLAUSIBLE_FRAME, PADDED},
    resync::{desync, is_desynced, resync_step},
    stream::state::{
        FINISHED, HAS_TOO_MANY_FIELDS, HAS_TRACE, IS_BLIND, MAY_BE_ANSWERED, REQUEST_DONE, RESPONSE_DONE,
        SECURITY_SHIFT,
    },
};

pub use batch::{Batch, CloseReason};
pub use close::{on_close, on_segment_end};
pub use state::{FrameState, Frames, Http2};
pub use stream::{H2Stream, ResponseStatus, state as stream_state};
pub use table::{
    MAX_MAPPED, MORE_STREAMS, MoreStreams, OWN_STREAMS, StreamKey, StreamSource, StreamStore, StreamTable,
};

/// Most steps per packet. One of 64 KiB full of the smallest responses needs some 16,000; one that needs more than this is
/// an attack, and costs the position.
pub const MAX_STEPS: u32 = 1 << 15;
/// Bytes of the connection preface (section 3.4).
const PREFACE: u64 = 24;
/// Flag of our own: the header block belongs to a PUSH_PROMISE, and only the HPACK table matters.
const PROMISED: u32 = 1 << 16;
/// What Envoy's byte meter adds for a RST_STREAM that it receives.
const RESET_BYTES: u64 = 13;
/// Most fields that a proxy accepts in a header block.
/// Source: envoy `api/envoy/config/core/v3/protocol.proto`, `max_headers_count`.
const MAX_FIELDS: u32 = 100;

/// Handles payload `[seq, seq + length)` that lies at packet offset `offset`.
#[inline(always)]
pub fn on_payload<E: StreamSource>(
    c: &mut Connection,
    h: &mut Http2,
    env: &mut E,
    direction: Direction,
    seq: u32,
    offset: u32,
    length: u32,
) {
    start(c, h, direction);
    let flow = &mut c.flows[direction];
    if !flow.locate(seq, offset, length) {
        return;
    }
    if flow.gap() != 0 {
        if h.frames[direction].state != FrameState::DESYNCED {
            buffer_segment(env, flow, seq, offset, length);
        }
        return;
    }
    flow.advance(seq.wrapping_add(length));
    if h.frames[direction].state == FrameState::DESYNCED {
        flow.clear();
        flow.skip = 0;
        h.frames[direction].state = FrameState::RESYNCING;
        h.frames[direction].resync_offset = flow.offset;
        h.frames[direction].resync_frames = 0;
    }
    h.frames[direction].now_ns = env.now();
    let is_done = run(c, h, env, direction);
    let failure = h.frames[direction].failure;
    if failure == OptionU32::some(Counter::DesyncMalformed as u32) {
        desync(c, h, env, direction, Counter::DesyncMalformed);
    } else if failure == OptionU32::some(Counter::DesyncGap as u32) {
        desync(c, h, env, direction, Counter::DesyncGap);
    } else if failure.is_some() {
        desync(c, h, env, direction, Counter::DesyncUnreadable);
    } else if !is_done {
        desync(c, h, env, direction, Counter::DesyncSteps);
    }
    if h.frames[direction].state == FrameState::RESYNCING {
        h.frames[direction].state = FrameState::DESYNCED;
    }
    free_if_drained(env, &mut c.flows[direction]);
}

/// Reads the packet; returns false if it takes too many steps. Each direction is a loop of its own, so that the verifier
/// knows it.
#[inline(always)]
fn run<E: StreamSource>(c: &mut Connection, h: &mut Http2, env: &mut E, direction: Direction) -> bool {
    match direction {
        Request => env.take_steps(MAX_STEPS, |env| env.step(c, h, Request)),
        Response => env.take_steps(MAX_STEPS, |env| env.step(c, h, Response)),
    }
}

/// Goes on at `accepted`, the sequence number up to which TCP has accepted everything, seen or not. Returns true if that
/// costs the position: the open streams are then to be closed before anything else is read, and the segment to be skipped.
#[inline(always)]
pub fn catch_up<E: ByteSource>(
    c: &mut Connection,
    h: &mut Http2,
    env: &mut E,
    direction: Direction,
    accepted: u32,
) -> bool {
    c.flows[direction].is_behind(accepted) && pass_over(c, h, env, direction, accepted)
}

/// Goes on behind bytes that TCP has accepted; returns as [`catch_up`].
#[inline(never)]
fn pass_over<E: ByteSource>(
    c: &mut Connection,
    h: &mut Http2,
    env: &mut E,
    direction: Direction,
    accepted: u32,
) -> bool {
    let flow = &mut c.flows[direction];
    let missing = accepted.wrapping_sub(flow.next);
    flow.find_unseen(accepted);
    let unseen = flow.gap();
    if unseen != 0 {
        env.count(Counter::AuditUnseen, u64::from(unseen));
    }
    start(c, h, direction);
    let flow = &mut c.flows[direction];
    let is_skipped = flow.skips_gap(missing);
    let is_lost = !is_skipped && h.frames[direction].state != FrameState::DESYNCED;
    if is_skipped {
        flow.skip = flow.skip.wrapping_sub(u64::from(missing));
    } else if is_lost {
        desync(c, h, env, direction, Counter::DesyncGap);
    }
    c.flows[direction].advance(accepted);
    is_lost
}

/// Marks a segment as seen that is not read.
#[inline(always)]
pub fn skip_payload(flow: &mut Flow, seq: u32, offset: u32, length: u32) {
    if flow.locate(seq, offset, length) && flow.gap() == 0 {
        flow.advance(seq.wrapping_add(length));
    }
}

/// Prepares a direction for its first bytes: reading begins at the preface, or with a resync on a preexisting connection.
#[inline(always)]
fn start(c: &mut Connection, h: &mut Http2, direction: Direction) {
    let frames = &mut h.frames[direction];
    if frames.is_started != 0 {
        return;
    }
    frames.is_started = 1;
    frames.decoder.reads_callers = u32::from(direction == Request && caller::is_read(c));
    if c.flags & PREEXISTING != 0 {
        frames.state = FrameState::DESYNCED;
        hpack::reset(&mut frames.decoder);
    } else if direction == Request {
        // What a gateway's PROXY protocol header has is counted already, and lies in front of the preface.
        let flow = &mut c.flows[Request];
        flow.skip = flow.counted_bytes.wrapping_add(PREFACE).wrapping_sub(flow.seen_bytes);
    }
}

/// Goes on with a buffered segment once the bytes in front of it are here.
#[inline(never)]
fn resume_buffered<E: ByteSource>(flow: &mut Flow, frames: &mut Frames, env: &mut E) -> Step {
    let length = flow.pop_contiguous();
    if length == 0 {
        return Step::Done;
    }
    let is_skipped = flow.skips_gap(length);
    if !is_skipped && env.is_valid(flow) {
        flow.read_buffered(length);
        return Step::More;
    }
    let end = flow.next.wrapping_add(length);
    flow.advance(end);
    if !is_skipped {
        return fail(frames, Counter::DesyncGap);
    }
    flow.skip = flow.skip.wrapping_sub(u64::from(length));
    Step::More
}

/// Ends the reading of this packet by a desync.
#[inline(always)]
fn fail(frames: &mut Frames, reason: Counter) -> Step {
    frames.failure = OptionU32::some(reason as u32);
    Step::Done
}

/// Takes one step through the packet, then through the segments that were buffered behind it, then counts the batch.
#[inline(always)]
pub fn step<E: StreamSource>(c: &mut Connection, h: &mut Http2, env: &mut E, direction: Direction) -> Step {
    if atomic::load(&h.batches[direction].due) != 0 {
        h.batches[direction].flush(c, env);
        return Step::More;
    }
    if read_step(c, h, env, direction) == Step::More {
        return Step::More;
    }
    let (flow, frames) = (&mut c.flows[direction], &mut h.frames[direction]);
    if flow.ranges_used != 0 && frames.failure.is_none() && resume_buffered(flow, frames, env) == Step::More {
        return Step::More;
    }
    let batch = &mut h.batches[direction];
    batch.due = batch.times;
    if batch.due == 0 { Step::Done } else { Step::More }
}

/// Takes one step through the packet.
#[inline(always)]
fn read_step<E: StreamSource>(c: &mut Connection, h: &mut Http2, env: &mut E, direction: Direction) -> Step {
    let flow = &mut c.flows[direction];
    if flow.skip > 0 && !flow.skip_bytes() {
        return Step::Done;
    }
    let state = h.frames[direction].state;
    if state == FrameState::HEADER_BLOCK {
        return read_header_block(c, h, env, direction);
    }
    if state == FrameState::END {
        return end_frame(c, h, env, direction);
    }
    if state == FrameState::MESSAGES {
        return read_messages(c, h, env, direction);
    }
    if state == FrameState::STREAM_END {
        end_stream(h, env, direction);
        return Step::More;
    }
    if state == FrameState::BATCH {
        h.frames[direction].state = FrameState::HEADER;
        let batch = &mut h.batches[direction];
        let is_early = !batch.close_reason.by.is_none();
        batch.finish_stream(c, is_early);
        if !batch.push() {
            h.frames[direction].state = FrameState::BATCH;
        }
        return Step::More;
    }
    let frames = &h.frames[direction];
    let need = match state {
        FrameState::HEADER | FrameState::RESYNCING => HEADER_BYTES,
        FrameState::PROLOGUE => prologue_length(frames),
        FrameState::GOAWAY_ID => 4,
        _ => return Step::Done,
    };
    if c.flows[direction].pending() < need {
        return refill(c, h, env, direction);
    }
    if state == FrameState::HEADER {
        return begin_frame(c, h, env, direction);
    }
    if state == FrameState::RESYNCING {
        return resync_step(c, h, env, direction);
    }
    let flow = &mut c.flows[direction];
    let first = flow.word(flow.line);
    flow.line = flow.line.wrapping_add(need);
    let frames = &mut h.frames[direction];
    frames.left = frames.left.wrapping_sub(need);
    if state == FrameState::GOAWAY_ID {
        let last_id = (first as u32).swap_bytes() & 0x7fff_ffff;
        flow.skip = u64::from(frames.left);
        frames.left = 0;
        frames.state = FrameState::END;
        // Kept until the frame is whole.
        frames.stream_id = last_id;
        return Step::More;
    }
    if frames.flags & PADDED != 0 {
        let padding = first as u32 & 0xff;
        if padding > frames.left {
            return fail(&mut h.frames[direction], Counter::DesyncMalformed);
        }
        frames.padding = padding;
        frames.left -= padding;
    }
    begin_payload(h, env, direction);
    Step::More
}

/// Loads more of the packet into the window.
#[inline(never)]
fn refill<E: ByteSource>(c: &mut Connection, h: &mut Http2, env: &mut E, direction: Direction) -> Step {
    let flow = &mut c.flows[direction];
    match flow.refill() {
        Refill::Load(offset, length) => {
            let at = flow.filled;
            if !env.load(flow, offset, length, at) {
                return fail(&mut h.frames[direction], Counter::DesyncUnreadable);
            }
            flow.loaded(length);
            Step::More
        }
        _ => {
            let frames = &mut h.frames[direction];
            if frames.state == FrameState::HEADER && flow.pending() > 0 && frames.began_ns == 0 {
                frames.began_ns = frames.now_ns;
            }
            Step::Done
        }
    }
}

/// Returns the number of bytes between a frame header and its data or header block.
#[inline(always)]
fn prologue_length(frames: &Frames) -> u32 {
    let padding = u32::from(frames.flags & PADDED != 0);
    if frames.kind == FrameKind::HEADERS && frames.flags & HAS_PRIORITY != 0 {
        padding + 5
    } else if frames.kind == FrameKind::PUSH_PROMISE {
        padding + 4
    } else {
        padding
    }
}

/// Reads a frame header.
#[inline(never)]
fn begin_frame<E: StreamSource>(c: &mut Connection, h: &mut Http2, env: &mut E, direction: Direction) -> Step {
    let is_received = !c.is_sent_by_proxy(direction);
    let flow = &mut c.flows[direction];
    let header = FrameHeader::read(flow);
    flow.line = flow.line.wrapping_add(HEADER_BYTES);
    if is_received && is_violation(c, h, direction, &header) {
        return fail(&mut h.frames[direction], Counter::DesyncMalformed);
    }
    let FrameHeader { length, kind, flags, stream_id } = header;
    let frames = &mut h.frames[direction];
    let began_ns = frames.began_ns;
    frames.began_ns = 0;
    let block = frames.block_stream;
    if (is_received && length > MAX_PLAUSIBLE_FRAME)
        || (block != 0) != (kind == FrameKind::CONTINUATION)
        || (block != 0 && block != stream_id)
    {
        return fail(&mut h.frames[direction], Counter::DesyncMalformed);
    }
    frames.kind = kind;
    frames.left = length;
    frames.padding = 0;
    if kind == FrameKind::CONTINUATION {
        frames.flags |= flags & END_HEADERS;
        frames.state = FrameState::HEADER_BLOCK;
        // Envoy's meter counts the block as a whole, without the inner frame headers, and a promised one not at all.
        frames.wire_bytes = if frames.flags & PROMISED != 0 { 0 } else { u64::from(length) };
        return Step::More;
    }
    frames.flags = flags;
    frames.stream_id = stream_id;
    frames.wire_bytes = 0;
    match kind {
        FrameKind::DATA | FrameKind::HEADERS => {
            if stream_id == 0 {
                return fail(&mut h.frames[direction], Counter::DesyncMalformed);
            }
            frames.wire_bytes = u64::from(length) + u64::from(HEADER_BYTES);
            if kind == FrameKind::HEADERS && direction == Request && stream_id > h.table.last_id {
                begin_stream(c, h, env, stream_id, began_ns);
            }
        }
        FrameKind::PUSH_PROMISE => {}
        FrameKind::GOAWAY if length >= 8 => {
            h.frames[direction].state = FrameState::GOAWAY_ID;
            return Step::More;
        }
        _ => {
            if kind == FrameKind::RST_STREAM && length != 4 {
                return fail(&mut h.frames[direction], Counter::DesyncMalformed);
            }
            // Envoy's meter counts the window updates that it sends.
            if kind == FrameKind::WINDOW_UPDATE && stream_id != 0 && !is_received {
                h.frames[direction].wire_bytes = u64::from(length) + u64::from(HEADER_BYTES);
            }
            c.flows[direction].skip = u64::from(length);
            h.frames[direction].left = 0;
            h.frames[direction].state = FrameState::END;
            return Step::More;
        }
    }
    let frames = &mut h.frames[direction];
    let need = prologue_length(frames);
    if need > length {
        return fail(&mut h.frames[direction], Counter::DesyncMalformed);
    }
    if need > 0 {
        frames.state = FrameState::PROLOGUE;
        return Step::More;
    }
    if kind == FrameKind::DATA {
        begin_data(c, h, env, direction);
    } else {
        begin_payload(h, env, direction);
    }
    Step::More
}

/// Returns whether the proxy ends the connection that it receives this frame header on (sections 5.1 and 6).
#[inline(always)]
fn is_violation(c: &Connection, h: &Http2, direction: Direction, header: &FrameHeader) -> bool {
    let &FrameHeader { length, kind, stream_id, .. } = header;
    match kind {
        FrameKind::SETTINGS => stream_id != 0 || !length.is_multiple_of(6),
        FrameKind::PING => stream_id != 0 || length != 8,
        FrameKind::WINDOW_UPDATE => length != 4,
        FrameKind::PUSH_PROMISE => true,
        // A response without a request, if all requests are known.
        FrameKind::DATA | FrameKind::HEADERS
            if direction == Response && c.flags & PREEXISTING == 0 && h.frames[Request].decoder.is_partial == 0 =>
        {
            stream_id & 1 == 0 || stream_id > h.table.last_id
        }
        _ => false,
    }
}

/// Begins a header block, or data behind a prologue.
#[inline(always)]
fn begin_payload<E: TraceStore>(h: &mut Http2, env: &mut E, direction: Direction) {
    let frames = &mut h.frames[direction];
    if frames.kind == FrameKind::DATA {
        // Whether padded data has messages is seen when its stream is looked up; see `read_messages`.
        frames.state = FrameState::MESSAGES;
        return;
    }
    if frames.kind == FrameKind::PUSH_PROMISE {
        frames.flags |= PROMISED;
    }
    frames.block_stream = frames.stream_id;
    frames.state = FrameState::HEADER_BLOCK;
    hpack::begin(&mut frames.decoder);
    if trace::is_on() {
        let lines = if env.reads_lines() { hpack::READS_LINES } else { 0 };
        frames.decoder.reads_traces = if direction == Request { hpack::READS_TRACES | lines } else { 0 };
    }
}

/// Begins data: skipped unless it is gRPC's.
#[inline(always)]
fn begin_data<E: StreamSource>(c: &mut Connection, h: &mut Http2, env: &mut E, direction: Direction) {
    let stream_id = h.frames[direction].stream_id;
    let stream = h.table.find(env, stream_id);
    let frames = &mut h.frames[direction];
    if stream.is_some_and(|stream| stream.has_messages(direction)) {
        frames.state = FrameState::MESSAGES;
        return;
    }
    c.flows[direction].skip = u64::from(frames.left);
    frames.left = 0;
    frames.state = FrameState::END;
}

/// Reads data of a stream: the five bytes before each gRPC message, and the messages skipped.
/// Source: gRPC over HTTP/2, Length-Prefixed-Message.
#[inline(never)]
fn read_messages<E: StreamSource>(c: &mut Connection, h: &mut Http2, env: &mut E, direction: Direction) -> Step {
    let frames = &h.frames[direction];
    let (left, padding, stream_id) = (frames.left, frames.padding, frames.stream_id);
    if left == 0 {
        c.flows[direction].skip = u64::from(padding);
        h.frames[direction].state = FrameState::END;
        return Step::More;
    }
    let mut used = left;
    if let Some(stream) = h.table.find(env, stream_id)
        && stream.has_messages(direction)
    {
        let message_left = stream.message_left[direction];
        let read = u32::from(stream.prefix_read[direction]);
        if read == 0 && message_left != 0 {
            used = if message_left < left { message_left } else { left };
            stream.message_left[direction] = message_left.wrapping_sub(used);
        } else {
            let flow = &mut c.flows[direction];
            let pending = flow.pending();
            if pending == 0 {
                return refill(c, h, env, direction);
            }
            if read == 0 {
                stream.messages[direction] = stream.messages[direction].wrapping_add(1);
            }
            if read == 0 && pending >= 5 && left >= 5 {
                stream.message_left[direction] = ((flow.word(flow.line) >> 8) as u32).swap_bytes();
                flow.line = flow.line.wrapping_add(5);
                used = 5;
            } else {
                let byte = u32::from(flow.byte(flow.line));
                stream.message_left[direction] = if read == 0 { 0 } else { message_left << 8 | byte };
                stream.prefix_read[direction] = if read == 4 { 0 } else { read as u8 + 1 };
                flow.line = flow.line.wrapping_add(1);
                used = 1;
            }
            h.frames[direction].left = left.wrapping_sub(used);
            return Step::More;
        }
    }
    c.flows[direction].skip = u64::from(used);
    h.frames[direction].left = left.wrapping_sub(used);
    Step::More
}

/// Reads on in a header block.
#[inline(never)]
fn read_header_block<E: StreamSource>(c: &mut Connection, h: &mut Http2, env: &mut E, direction: Direction) -> Step {
    let frames = &mut h.frames[direction];
    if frames.left == 0 && !hpack::is_at_value_end(&frames.decoder) {
        end_fragment(frames, &mut c.flows[direction]);
        return Step::More;
    }
    if c.flows[direction].pending() == 0 && !hpack::is_at_value_end(&frames.decoder) {
        return refill(c, h, env, direction);
    }
    let flow = &mut c.flows[direction];
    let decoder = &mut frames.decoder;
    if decoder.state.is_kept_apart() {
        if trace::is_on() && decoder.state == FieldState::TRACE {
            return read_trace(c, h, env, direction);
        }
        return read_caller(c, h, env, direction);
    }
    let inserted = decoder.inserted;
    if hpack::read_fields(decoder, flow, &raw mut frames.left) != 0 {
        return fail(frames, Counter::DesyncMalformed);
    }
    let decoder = &mut frames.decoder;
    if decoder.caller_insertion.is_some() {
        look_up_caller(decoder, env);
    }
    if trace::is_on() && decoder.trace_insertion.is_some() {
        look_up_trace(decoder, env);
    }
    if decoder.inserted != inserted && hpack::replaces_caller(decoder) {
        set_replaced_id(decoder, env);
    }
    let table_size = decoder.table_size;
    if decoder.state == FieldState::FAR
        || table_size == TableSize::LARGE_WANTED
        || (table_size == TableSize::LARGE && decoder.inserted != inserted)
    {
        use_large_table(decoder, env, direction);
    }
    let frames = &mut h.frames[direction];
    if frames.left == 0 && !hpack::is_at_value_end(&frames.decoder) {
        end_fragment(frames, &mut c.flows[direction]);
    }
    Step::More
}

/// Reads on in the value of a field that names the caller.
#[inline(never)]
fn read_caller<E: StreamSource>(c: &mut Connection, h: &mut Http2, env: &mut E, direction: Direction) -> Step {
    let (flow, frames) = (&mut c.flows[direction], &mut h.frames[direction]);
    let decoder = &mut frames.decoder;
    let (pending, left, number) = (flow.pending(), frames.left, decoder.number);
    let here = if pending < left { pending } else { left };
    let length = if here < number { here } else { number };
    // SAFETY: null or valid, see `CallerStore`.
    let text = unsafe { env.caller_text().as_mut() };
    let mut id = caller::NO_ROOM;
    if let Some(text) = text {
        if decoder.text_length == 0 {
            caller::begin(text, decoder.huffman != 0);
        }
        caller::feed(text, env, flow, flow.line, length);
        if length == number {
            id = caller::end(text, env, flow);
        }
    }
    decoder.text_length = 1;
    decoder.number = number.wrapping_sub(length);
    frames.left = left.wrapping_sub(length);
    flow.line = flow.line.wrapping_add(length);
    let inserted = decoder.inserted;
    if length == number {
        end_caller(decoder, env, id);
    }
    end_value(frames, flow, env, direction, inserted)
}

/// Goes on behind what was read of a value that is kept apart; before that, `inserted` insertions had been made.
#[inline(always)]
fn end_value<E: StreamSource>(
    frames: &mut Frames,
    flow: &mut Flow,
    env: &mut E,
    direction: Direction,
    inserted: u32,
) -> Step {
    let decoder = &mut frames.decoder;
    if decoder.table_size == TableSize::LARGE && decoder.inserted != inserted {
        use_large_table(decoder, env, direction);
    }
    if frames.left == 0 {
        end_fragment(frames, flow);
    }
    Step::More
}

/// Ends a field that names the caller, and keeps its id with its insertion.
#[inline(never)]
fn end_caller<E: StreamSource>(decoder: &mut HpackDecoder, env: &mut E, id: CallerId) {
    let Some(insertion) = hpack::end_caller(decoder, id).get() else { return };
    // SAFETY: null or valid, see `CallerStore`.
    let Some(text) = (unsafe { env.caller_text().as_mut() }) else { return };
    let kept = text.id(insertion);
    if hpack::replaces_caller(decoder) {
        hpack::set_replaced_id(decoder, CallerId(*kept));
    }
    *kept = id.0;
}

/// Looks up the caller of an insertion to which the block has referred.
#[inline(never)]
fn look_up_caller<E: StreamSource>(decoder: &mut HpackDecoder, env: &mut E) {
    let insertion = decoder.caller_insertion.get().unwrap_or(0);
    decoder.caller_insertion = OptionU32::NONE;
    // SAFETY: null or valid, see `CallerStore`.
    let text = unsafe { env.caller_text().as_mut() };
    decoder.caller = u32::from(text.map_or(caller::NO_ROOM.0, |text| *text.id(insertion)));
}

/// Reads on in the value of a field of a trace context.
#[inline(never)]
fn read_trace<E: StreamSource>(c: &mut Connection, h: &mut Http2, env: &mut E, direction: Direction) -> Step {
    let (flow, frames) = (&mut c.flows[direction], &mut h.frames[direction]);
    let inserted = frames.decoder.inserted;
    let (number, kind) = (frames.decoder.number, hpack::trace_kind(&frames.decoder));
    // SAFETY: null or valid, see `TraceStore`.
    if let Some(text) = unsafe { env.trace_text().as_mut() } {
        begin_trace(&mut frames.decoder, text, kind == kind::PATH);
        if !trace::value(text, &mut frames.decoder, flow, &raw mut frames.left, kind) {
            if frames.left == 0 {
                end_fragment(frames, flow);
            }
            return Step::More;
        }
        let insertion = hpack::end_trace(&mut frames.decoder);
        if let Some(insertion) = insertion.get() {
            keep_insertion(text, env, insertion, kind == kind::PATH);
        }
    } else {
        if kind != kind::PATH {
            env.count(Counter::TracesFull, 1);
        }
        hpack::skip(&mut frames.decoder, flow, &mut frames.left, number);
        hpack::end_trace(&mut frames.decoder);
    }
    let decoder = &mut frames.decoder;
    if decoder.inserted != inserted && hpack::replaces_caller(decoder) {
        set_replaced_id(decoder, env);
    }
    end_value(frames, flow, env, direction, inserted)
}

/// Notes that a block has a field of a trace context, or a path.
#[inline(always)]
fn begin_trace(decoder: &mut HpackDecoder, text: &mut TraceText, is_path: bool) {
    if is_path {
        decoder.flags |= hpack::HAS_PATH;
    } else if decoder.flags & hpack::TRACED == 0 {
        decoder.flags |= hpack::TRACED;
        trace::begin(text);
    }
}

/// Keeps the field read last with its insertion into the header table.
#[inline(never)]
fn keep_insertion<E: StreamSource>(text: &TraceText, env: &mut E, insertion: u32, is_path: bool) {
    if is_path {
        // SAFETY: null or valid, see `TraceStore`.
        if let Some(table) = unsafe { env.line_table().as_mut() } {
            table.keep(insertion, &text.request.line);
        }
    // SAFETY: as above.
    } else if let Some(table) = unsafe { env.trace_table().as_mut() } {
        *table.field(insertion) = text.field;
    }
}

/// Adds the field of an insertion to which the block has referred to the request's trace context.
#[inline(never)]
fn look_up_trace<E: StreamSource>(decoder: &mut HpackDecoder, env: &mut E) {
    let insertion = decoder.trace_insertion.get().unwrap_or(0);
    decoder.trace_insertion = OptionU32::NONE;
    if hpack::is_path(decoder) {
        return look_up_path(decoder, env, insertion);
    }
    // SAFETY: null or valid, see `TraceStore`.
    let (text, table) = unsafe { (env.trace_text().as_mut(), env.trace_table().as_mut()) };
    let (Some(text), Some(table)) = (text, table) else {
        decoder.flags |= hpack::TRACE_MISSED;
        return;
    };
    begin_trace(decoder, text, false);
    text.field = *table.field(insertion);
    trace::apply(text);
}

/// Looks up the path of an insertion to which the block has referred; it stays unknown where it is no longer kept.
#[inline(never)]
fn look_up_path<E: StreamSource>(decoder: &mut HpackDecoder, env: &mut E, insertion: u32) {
    // SAFETY: null or valid, see `TraceStore`.
    let (text, table) = unsafe { (env.trace_text().as_mut(), env.line_table().as_mut()) };
    if let (Some(text), Some(table)) = (text, table)
        && let Some(line) = table.line(insertion)
    {
        text.request.line = *line;
        decoder.flags |= hpack::HAS_PATH;
    }
}

/// Ends this frame's fragment of a header block, of which some bytes may still be to be skipped.
#[inline(always)]
fn end_fragment(frames: &mut Frames, flow: &mut Flow) {
    flow.skip = flow.skip.wrapping_add(u64::from(frames.padding));
    frames.padding = 0;
    frames.state = FrameState::END;
}

/// Updates the large HPACK table, if there is one, and resolves an index in it.
#[inline(never)]
fn use_large_table<E: StreamSource>(decoder: &mut HpackDecoder, env: &mut E, direction: Direction) {
    let table = if decoder.table_size == TableSize::RING { core::ptr::null_mut() } else { env.large_table(direction) };
    // SAFETY: null or valid, see `StreamStore`.
    let table = unsafe { table.as_mut() };
    if decoder.table_size == TableSize::LARGE_WANTED {
        decoder.table_size = if table.is_some() { TableSize::LARGE } else { TableSize::LARGE_MISSING };
        env.count(Counter::LossTables, u64::from(table.is_none()));
        hpack::begin_large_table(decoder);
        if decoder.state == FieldState::FAR {
            hpack::resolve_far(decoder, None);
        }
    } else if decoder.state == FieldState::FAR {
        hpack::resolve_far(decoder, table.as_deref());
    } else if let Some(table) = table {
        hpack::store_in_large_table(decoder, table);
    }
}

/// Adds the caller's id to the entry that an insertion of another name has replaced.
#[inline(never)]
fn set_replaced_id<E: StreamSource>(decoder: &mut HpackDecoder, env: &mut E) {
    // SAFETY: null or valid, see `CallerStore`.
    let text = unsafe { env.caller_text().as_mut() };
    let id = text.map_or(caller::NO_ROOM.0, |text| *text.id(decoder.inserted.wrapping_sub(1)));
    hpack::set_replaced_id(decoder, CallerId(id));
}

/// Handles a whole frame.
#[inline(never)]
fn end_frame<E: StreamSource>(c: &mut Connection, h: &mut Http2, env: &mut E, direction: Direction) -> Step {
    let frames = &mut h.frames[direction];
    frames.state = FrameState::HEADER;
    let (kind, flags, stream_id, wire_bytes) = (frames.kind, frames.flags, frames.stream_id, frames.wire_bytes);
    if kind == FrameKind::GOAWAY {
        if direction == Response {
            frames.goaway = OptionU32::some(stream_id);
        }
        return Step::More;
    }
    let mut ends_block = matches!(kind, FrameKind::HEADERS | FrameKind::PUSH_PROMISE | FrameKind::CONTINUATION)
        && flags & END_HEADERS != 0;
    if ends_block {
        frames.block_stream = 0;
        if !hpack::is_complete(&frames.decoder) {
            return fail(frames, Counter::DesyncMalformed);
        }
        ends_block = flags & PROMISED == 0;
    }
    let Some(stream) = h.table.find(env, stream_id) else { return Step::More };
    let is_received = !c.is_sent_by_proxy(direction);
    let frames = &mut h.frames[direction];
    let decoder = &frames.decoder;
    if is_received && (ends_block || kind == FrameKind::DATA) && stream.is_violated_by(decoder, direction, kind, flags)
    {
        return fail(frames, Counter::DesyncMalformed);
    }
    if is_received && ends_block && decoder.fields > MAX_FIELDS {
        // Envoy's meter does not count it, but the reset that follows.
        atomic::fetch_or(&mut stream.state, HAS_TOO_MANY_FIELDS);
        if direction == Response && stream.status.is_none() {
            stream.status.set(503);
        }
        return Step::More;
    }
    stream.bytes[direction] += wire_bytes;
    if ends_block {
        if direction == Request {
            if !stream.has_request_header() {
                let caller = caller_of(decoder, env);
                if trace::is_on() && keep_trace(decoder, env, stream_id) {
                    atomic::fetch_or(&mut stream.state, HAS_TRACE);
                }
                stream.record_request_header(decoder, caller);
            }
        } else {
            stream.record_response_header(decoder);
        }
    }
    if kind == FrameKind::RST_STREAM {
        // For the proxy a stream has ended with its response; its meter does not count what it receives later.
        let state = atomic::load(&stream.state);
        let is_answered = direction == Response && state & RESPONSE_DONE != 0;
        if (is_received && !is_answered) || (!is_received && state & HAS_TOO_MANY_FIELDS != 0) {
            stream.bytes[direction] += RESET_BYTES;
        }
        frames.ended_by = Peer::sender(direction);
        frames.state = FrameState::STREAM_END;
    } else if flags & END_STREAM != 0 && (ends_block || kind == FrameKind::DATA) {
        // The second direction to end ends the stream.
        let (own, other) =
            if direction == Request { (REQUEST_DONE, RESPONSE_DONE) } else { (RESPONSE_DONE, REQUEST_DONE) };
        if atomic::fetch_or(&mut stream.state, own) & other != 0 {
            frames.ended_by = Peer::NONE;
            frames.state = FrameState::STREAM_END;
        }
    }
    Step::More
}

/// Returns the caller that a request's header block names.
#[inline(always)]
fn caller_of<E: Recorder>(decoder: &HpackDecoder, env: &mut E) -> CallerId {
    let is_missed = decoder.caller == 0 && decoder.flags & hpack::UNRESOLVED != 0 && decoder.reads_callers != 0;
    caller::record(env, if is_missed { CallerId::MISSED } else { CallerId(decoder.caller as u16) })
}

/// Keeps the trace context of a request's header block if it is sampled; returns whether it did.
#[inline(always)]
fn keep_trace<E: StreamSource>(decoder: &HpackDecoder, env: &mut E, stream_id: u32) -> bool {
    let flags = decoder.flags;
    if flags & hpack::TRACED != 0 {
        if flags & hpack::HAS_PATH == 0 {
            let path = if flags & hpack::HAS_ROOT_PATH != 0 {
                "/"
            } else if flags & hpack::HAS_INDEX_PATH != 0 {
                "/index.html"
            } else {
                ""
            };
            trace::set_path(env, path.len() as u32);
        }
        if trace::keep(env, stream_id, Method(decoder.method as u16)) {
            return true;
        }
    }
    let is_unknown = flags & (hpack::TRACED | hpack::UNRESOLVED) == hpack::UNRESOLVED && decoder.reads_traces != 0;
    if is_unknown || flags & hpack::TRACE_MISSED != 0 {
        env.count(Counter::TraceMissed, 1);
    }
    false
}

/// Removes the stream that the frame has ended, unless the other direction has done so; the next step adds it to the batch.
#[inline(never)]
fn end_stream<E: StreamSource>(h: &mut Http2, env: &mut E, direction: Direction) {
    let frames = &mut h.frames[direction];
    frames.state = FrameState::HEADER;
    let (id, by, now_ns) = (frames.stream_id, frames.ended_by, frames.now_ns);
    let Some(stream) = h.table.find(env, id) else { return };
    if atomic::fetch_or(&mut stream.state, FINISHED) & FINISHED != 0 {
        return;
    }
    let batch = &mut h.batches[direction];
    batch.stream = *stream;
    batch.close_reason.by = by;
    batch.close_reason.at_ns = now_ns;
    h.frames[direction].state = FrameState::BATCH;
    h.table.remove(env, id);
}

/// Handles the first HEADERS frame of a client's stream.
#[inline(always)]
fn begin_stream<E: StreamSource>(c: &mut Connection, h: &mut Http2, env: &mut E, id: u32, began_ns: u64) {
    h.table.last_id = id;
    if id & 1 == 0 {
        return;
    }
    let is_blind = h.frames[Request].decoder.is_partial | h.frames[Response].decoder.is_partial | c.flags & PREEXISTING;
    let mut state = u32::from(env.client_security(c).0) << SECURITY_SHIFT;
    if is_blind != 0 {
        state |= IS_BLIND;
    }
    if is_desynced(c, &h.frames[Response]) {
        state |= MAY_BE_ANSWERED;
    }
    let start_ns = if began_ns != 0 { began_ns } else { h.frames[Request].now_ns };
    h.table.insert(c, env, &H2Stream::new(id, state, start_ns));
}
