//! HTTP/2 framing (RFC 9113), and the calls that are open on a connection.
//!
//! A frame's head is assembled over any segmentation, its payload passed over unread, but for header blocks and, in gRPC,
//! the five bytes before each message. As with HTTP/1, each direction may be read on a processor of its own: a call's
//! words are written by one direction only, or shared, and whichever ends it counts it. Only the request direction makes
//! calls.

use crate::{
    GRPC_NONE, GRPC_UNKNOWN, PROTOCOL_GRPC, PROTOCOL_HTTP, STATUS_UNKNOWN,
    health::Counter,
    hpack::{self, UNREADABLE, WIDE_MISSING, WIDE_UNUSED, WIDE_USED, WIDE_WANTED, Walk, Wide},
    shared,
    socket::{self, Connection, DESTINATION, Env, Finished, LATE, REQUEST, RESPONSE, SOURCE, ended_at},
    stream::{Stream, Token},
};

/// Calls that have room in the connection's own storage, by their id; further ones go to a map.
pub const CALLS: usize = 32;
/// Bytes of the connection preface (section 3.4).
const PREFACE: u64 = 24;

/// State: at a frame's head.
pub const HEAD: u32 = 0;
/// State: between a frame's head and its header block.
const PROLOGUE: u32 = 1;
/// State: in a header block.
const FIELDS: u32 = 2;
/// State: in the data of a gRPC call.
const MESSAGES: u32 = 3;
/// State: at the last stream's id in GOAWAY.
const GOAWAY_ID: u32 = 4;
/// State: behind the payload.
const END: u32 = 5;
/// State: a call that has ended is to be counted.
const COUNT: u32 = 8;
/// State: looking for a segment that begins with a frame.
const LOST: u32 = 6;
/// State: following frames from the begin of a segment, to be sure.
const PROVING: u32 = 7;

const DATA: u32 = 0;
const HEADERS: u32 = 1;
const PRIORITY: u32 = 2;
const RST_STREAM: u32 = 3;
const SETTINGS: u32 = 4;
const PUSH_PROMISE: u32 = 5;
const PING: u32 = 6;
const GOAWAY: u32 = 7;
const WINDOW_UPDATE: u32 = 8;
const CONTINUATION: u32 = 9;

const END_STREAM: u32 = 1;
const END_HEADERS: u32 = 4;
const PADDED: u32 = 8;
const HAS_PRIORITY: u32 = 0x20;
/// Not of the protocol: the header block belongs to a PUSH_PROMISE, and only the table is concerned.
const PROMISED: u32 = 1 << 16;

/// Bytes of a frame's head.
const HEAD_BYTES: u32 = 9;
/// What the meter of Envoy adds for a RST_STREAM that it receives.
const RESET_BYTES: u64 = 13;
/// Largest frame that is believed: that of a peer which the proxy has allowed no larger one (section 4.2).
const BELIEVED: u32 = 1 << 14;
/// Frames in a row that prove a position, unless a segment ends with the first of them.
const PROOF: u32 = 3;

/// [`Call::status`] of an answer whose status could not be read.
const UNKNOWN: u32 = STATUS_UNKNOWN as u32 + 1;
/// In the place of a direction, plus one: what came in it was no HTTP/2.
const BROKEN: u32 = 3;
/// The status of gRPC that a proxy gives for an application that did not answer.
const UNAVAILABLE: u32 = 14;

/// Bit of [`Call::state`]: the request is complete.
pub const REQUEST_DONE: u32 = 1;
/// Bit of [`Call::state`]: the response is complete.
pub const RESPONSE_DONE: u32 = 1 << 1;
/// Bit of [`Call::state`]: counted.
pub const FINISHED: u32 = 1 << 2;
/// Bit of [`Call::state`]: gRPC, by the request's content type.
pub const IS_GRPC: u32 = 1 << 3;
/// Bit of [`Call::state`]: begun on a connection whose header tables are not known.
const IS_BLIND: u32 = 1 << 4;
/// Bit of [`Call::state`]: an upgrade by extended CONNECT, which the proxy's log has as one of HTTP/1.
const IS_UPGRADE: u32 = 1 << 5;
/// Position of the security in [`Call::state`].
const SECURITY_SHIFT: u32 = 8;

/// A stream of HTTP/2: one request and its response.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Stream id, or 0 where there is no call; shared.
    pub id: u32,
    /// Bits above; shared.
    pub state: u32,
    /// First byte of the first HEADERS frame, nanoseconds of `CLOCK_MONOTONIC`.
    pub start_ns: u64,
    /// Wire bytes, as Envoy's meter has them, by direction.
    pub bytes: [u64; 2],
    /// gRPC messages begun, by direction.
    pub messages: [u32; 2],
    /// Bytes to come of the current gRPC message, or its length as far as read, by direction.
    pub left: [u32; 2],
    /// Bytes of the current message's prefix that are read, by direction; 0 in the message or before one.
    pub prefix: [u32; 2],
    /// Status plus one, 0 before the response's header; written by the response direction.
    pub status: u32,
    /// gRPC status plus one, 0 where there is none; written by the response direction.
    pub grpc_status: u32,
}

/// Which call of which connection: the key of the `CALLS` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CallKey {
    /// The connection's cookie.
    pub cookie: u64,
    /// Stream id.
    pub id: u32,
    /// Zero.
    pub padding: u32,
}

/// The frames of one direction.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Frames {
    /// State above.
    pub state: u32,
    /// Type of the frame.
    pub kind: u32,
    /// Its flags; those of HEADERS while its header block goes on in CONTINUATION.
    pub flags: u32,
    /// Its stream.
    pub stream: u32,
    /// Bytes of its payload not yet read or given to be skipped, without the padding.
    pub left: u32,
    /// Padding behind the payload.
    pub padding: u32,
    /// The stream whose header block is not complete, or 0.
    pub block: u32,
    /// Packet offset of the first frame of a position to be proven.
    pub proof: u32,
    /// Frames that spoke for it.
    pub proven: u32,
    /// Why the position is to be given up: a counter plus one, or 0.
    pub failure: u32,
    /// 1 if the calls that are open cannot be followed any more, [`BROKEN`] if the protocol was.
    pub abandoned: u32,
    /// Last stream id of GOAWAY plus one, until the calls above it are ended, or 0.
    pub going: u32,
    /// The direction that gave `ended` up, plus one; 0 if it ended by itself.
    pub ended_by: u32,
    /// 1 once this direction was begun to be read.
    pub begun: u32,
    /// What the frame adds to its call's wire bytes once it is whole.
    pub wire: u64,
    /// When the first byte of a frame's head came whose rest is missing, or 0; nanoseconds of `CLOCK_MONOTONIC`.
    pub began_ns: u64,
    /// When the packet came that is being read; nanoseconds of `CLOCK_MONOTONIC`.
    pub now_ns: u64,
    /// Header blocks.
    pub walk: Walk,
    /// A call that has ended, to be counted.
    pub ended: Call,
}

/// What a connection that speaks HTTP/2 needs beside its [`Connection`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Http2 {
    /// Both directions.
    pub frames: [Frames; 2],
    /// Open calls, each where its id puts it.
    pub calls: [Call; CALLS],
    /// Tells the connection's calls in the map from those of others.
    pub cookie: u64,
    /// Open calls in the map; shared.
    pub elsewhere: u32,
    /// Largest stream id that a client has begun.
    pub last: u32,
}

const _: () = assert!(size_of::<Call>() == 64);
const _: () = assert!(size_of::<CallKey>() == 16);
const _: () = assert!(size_of::<Http2>() <= 3328);

/// What the calls of a connection need from where it runs, beside [`Env`].
pub trait Calls: Env {
    /// Takes turns until one says that it was the last; false if there were too many.
    fn frame_turns(&mut self, c: &mut Connection, h: &mut Http2, direction: usize) -> bool;
    /// A call in the map, or null.
    fn call(&mut self, key: &CallKey) -> *mut Call;
    /// Puts a call in the map; false if there is no room.
    fn insert(&mut self, key: &CallKey, call: &Call) -> bool;
    /// Takes a call out of the map.
    fn remove(&mut self, key: &CallKey);
    /// Calls [`reap`] with each of the connection's own calls above `above`, then with those in the map.
    fn each(&mut self, c: &mut Connection, h: &mut Http2, reaping: &Reaping);
    /// Larger rings of both directions, made if there are none; null if there is no room.
    fn wide(&mut self, direction: usize) -> *mut Wide;
}

/// Why calls are ended that did not end by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reaping {
    /// Only those with a larger id.
    pub above: u32,
    /// They are counted under this reason and in no Istio family; as requests that ended early if there is none.
    pub uncounted: Option<Counter>,
    /// The direction that ended them, plus one, or 0.
    pub by: u32,
    /// When, nanoseconds of `CLOCK_MONOTONIC`.
    pub at_ns: u64,
}

/// Takes payload `[seq, seq + length)` that lies at packet offset `offset`.
#[inline(always)]
pub fn payload<E: Calls>(
    c: &mut Connection,
    h: &mut Http2,
    env: &mut E,
    direction: usize,
    seq: u32,
    offset: u32,
    length: u32,
) {
    begin(c, h, direction);
    let s = &mut c.streams[direction];
    if !s.place(seq, offset, length) {
        return;
    }
    if s.gap() != 0 {
        if h.frames[direction].state != LOST {
            socket::wait(env, s, seq, offset, length);
        }
        return;
    }
    s.advance(seq.wrapping_add(length));
    if h.frames[direction].state == LOST {
        s.clear();
        s.skip = 0;
        h.frames[direction].state = PROVING;
        h.frames[direction].proof = s.offset;
        h.frames[direction].proven = 0;
    }
    h.frames[direction].now_ns = env.now();
    let complete = env.frame_turns(c, h, direction);
    let failure = h.frames[direction].failure;
    if failure == Counter::SyncMalformed as u32 + 1 {
        lose(c, h, env, direction, Counter::SyncMalformed);
    } else if failure == Counter::SyncGap as u32 + 1 {
        lose(c, h, env, direction, Counter::SyncGap);
    } else if failure != 0 {
        lose(c, h, env, direction, Counter::SyncUnreadable);
    } else if !complete {
        lose(c, h, env, direction, Counter::SyncSteps);
    }
    if h.frames[direction].state == PROVING {
        h.frames[direction].state = LOST;
    }
    socket::wait_no_more(env, &mut c.streams[direction]);
}

/// Goes on at `accepted`, the sequence number up to which TCP has taken everything, whatever was seen of it.
#[inline(never)]
pub fn catch_up<E: Calls>(c: &mut Connection, h: &mut Http2, env: &mut E, direction: usize, accepted: u32) {
    let s = &mut c.streams[direction];
    let missing = accepted.wrapping_sub(s.next);
    if s.anchored == 0 || (missing as i32) <= 0 {
        return;
    }
    s.find_unseen(accepted);
    let unseen = s.gap();
    if unseen != 0 {
        env.count(Counter::AuditUnseen, u64::from(unseen));
    }
    begin(c, h, direction);
    let s = &mut c.streams[direction];
    if s.covers(missing) {
        s.skip = s.skip.wrapping_sub(u64::from(missing));
    } else {
        lose(c, h, env, direction, Counter::SyncGap);
        settle(c, h, env, direction, false);
    }
    c.streams[direction].advance(accepted);
}

/// Once in each direction, which alone may say where it is: is it read from the preface, or must its frames be found first?
#[inline(always)]
fn begin(c: &mut Connection, h: &mut Http2, direction: usize) {
    let f = &mut h.frames[direction];
    if f.begun != 0 {
        return;
    }
    f.begun = 1;
    if c.flags & LATE != 0 {
        f.state = LOST;
        hpack::forget(&mut f.walk);
    } else if direction == REQUEST {
        c.streams[REQUEST].skip = PREFACE.wrapping_sub(c.streams[REQUEST].seen);
    }
}

/// Is the position in a direction not known? On an older connection it is not before its first packet either.
#[inline(always)]
fn is_lost(c: &Connection, f: &Frames) -> bool {
    f.state == LOST || f.state == PROVING || (f.begun == 0 && c.flags & LATE != 0)
}

/// Goes on with a segment that came early, now that the bytes in front of it are here; false if there is none.
#[inline(never)]
fn rejoin<E: Calls>(s: &mut Stream, f: &mut Frames, env: &mut E) -> bool {
    let brought = s.unpark();
    if brought == 0 {
        return false;
    }
    let is_body = s.covers(brought);
    if !is_body && env.holds(s) {
        s.reopen(brought);
        return true;
    }
    let end = s.next.wrapping_add(brought);
    s.advance(end);
    if !is_body {
        return !fail(f, Counter::SyncGap);
    }
    s.skip = s.skip.wrapping_sub(u64::from(brought));
    true
}

/// Gives up the position in one direction, and with it the header table; what was open is counted and forgotten.
#[inline(never)]
fn lose<E: Calls>(c: &mut Connection, h: &mut Http2, env: &mut E, direction: usize, reason: Counter) {
    let f = &mut h.frames[direction];
    if f.state == LOST {
        return;
    }
    f.state = LOST;
    f.failure = 0;
    hpack::forget(&mut f.walk);
    f.block = 0;
    f.began_ns = 0;
    let s = &mut c.streams[direction];
    s.clear();
    s.skip = 0;
    s.forget_parked();
    h.frames[direction].abandoned = if reason as u32 == Counter::SyncMalformed as u32 { BROKEN } else { 1 };
    env.count(reason, 1);
}

/// Ends the reading of this packet: the position is to be given up for this reason.
#[inline(always)]
fn fail(f: &mut Frames, reason: Counter) -> bool {
    f.failure = reason as u32 + 1;
    true
}

/// Takes one turn through the packet; true if it was the last.
#[inline(always)]
pub fn turn<E: Calls>(c: &mut Connection, h: &mut Http2, env: &mut E, direction: usize) -> bool {
    if !step(c, h, env, direction) {
        return false;
    }
    let (s, f) = (&mut c.streams[direction], &mut h.frames[direction]);
    s.waiting == 0 || f.failure != 0 || !rejoin(s, f, env)
}

/// Takes one step through the packet; true if there is nothing left to read.
#[inline(always)]
fn step<E: Calls>(c: &mut Connection, h: &mut Http2, env: &mut E, direction: usize) -> bool {
    let s = &mut c.streams[direction];
    if s.skip > 0 && s.pass() == Token::Empty {
        return true;
    }
    let state = h.frames[direction].state;
    if state == FIELDS {
        return fields(c, h, env, direction);
    }
    if state == END {
        return end(c, h, env, direction);
    }
    if state == MESSAGES {
        return messages(c, h, env, direction);
    }
    if state == COUNT {
        let f = &mut h.frames[direction];
        f.state = HEAD;
        let finished = counted(c, &f.ended, f.ended_by != 0, f.ended_by, f.now_ns);
        Finished::put(&mut c.finished[direction], &finished);
        env.finished(c, direction);
        return false;
    }
    let f = &h.frames[direction];
    let need = match state {
        HEAD | PROVING => HEAD_BYTES,
        PROLOGUE => prologue(f),
        GOAWAY_ID => 4,
        _ => return true,
    };
    if c.streams[direction].pending() < need {
        return supply(c, h, env, direction);
    }
    if state == HEAD {
        return head(c, h, env, direction);
    }
    if state == PROVING {
        return prove(c, h, direction);
    }
    let s = &mut c.streams[direction];
    let first = s.word(s.line);
    s.line = s.line.wrapping_add(need);
    let f = &mut h.frames[direction];
    f.left = f.left.wrapping_sub(need);
    if state == GOAWAY_ID {
        let last = (first as u32).swap_bytes() & 0x7fff_ffff;
        s.skip = u64::from(f.left);
        f.left = 0;
        f.state = END;
        // Kept until the frame is whole.
        f.stream = last;
        return false;
    }
    if f.flags & PADDED != 0 {
        let padding = first as u32 & 0xff;
        if padding > f.left {
            return fail(&mut h.frames[direction], Counter::SyncMalformed);
        }
        f.padding = padding;
        f.left -= padding;
    }
    begin_payload(h, direction);
    false
}

/// Loads more of the packet into the window; true if there is no more.
#[inline(never)]
fn supply<E: Calls>(c: &mut Connection, h: &mut Http2, env: &mut E, direction: usize) -> bool {
    let s = &mut c.streams[direction];
    match s.supply() {
        Token::Load(offset, length) => {
            let at = s.have;
            if !env.load(s, offset, length, at) {
                return fail(&mut h.frames[direction], Counter::SyncUnreadable);
            }
            s.loaded(length);
            false
        }
        _ => {
            let f = &mut h.frames[direction];
            if f.state == HEAD && s.pending() > 0 && f.began_ns == 0 {
                f.began_ns = f.now_ns;
            }
            true
        }
    }
}

/// Bytes between a frame's head and what it is about.
#[inline(always)]
fn prologue(f: &Frames) -> u32 {
    let padding = u32::from(f.flags & PADDED != 0);
    if f.kind == HEADERS && f.flags & HAS_PRIORITY != 0 {
        padding + 5
    } else if f.kind == PUSH_PROMISE {
        padding + 4
    } else {
        padding
    }
}

/// A frame's head, from its nine bytes.
#[derive(Clone, Copy)]
struct Header {
    length: u32,
    kind: u32,
    flags: u32,
    stream: u32,
}

#[inline(always)]
fn header(s: &Stream) -> Header {
    let word = s.word(s.line);
    let last = u64::from(s.byte(s.line.wrapping_add(8)));
    Header {
        length: ((word as u32).swap_bytes()) >> 8,
        kind: (word >> 24) as u32 & 0xff,
        flags: (word >> 32) as u32 & 0xff,
        stream: (((word >> 40) | last << 24) as u32).swap_bytes() & 0x7fff_ffff,
    }
}

/// Reads a frame's head.
#[inline(never)]
fn head<E: Calls>(c: &mut Connection, h: &mut Http2, env: &mut E, direction: usize) -> bool {
    let received = is_received(c, direction);
    let s = &mut c.streams[direction];
    let Header { length, kind, flags, stream } = header(s);
    s.line = s.line.wrapping_add(HEAD_BYTES);
    let f = &mut h.frames[direction];
    let began_ns = f.began_ns;
    f.began_ns = 0;
    let block = f.block;
    if (received && length > BELIEVED) || (block != 0) != (kind == CONTINUATION) || (block != 0 && block != stream) {
        return fail(&mut h.frames[direction], Counter::SyncMalformed);
    }
    f.kind = kind;
    f.left = length;
    f.padding = 0;
    if kind == CONTINUATION {
        f.flags |= flags & END_HEADERS;
        f.state = FIELDS;
        // Envoy's meter has the block whole, without the heads inside; and what is promised not at all.
        f.wire = if f.flags & PROMISED != 0 { 0 } else { u64::from(length) };
        return false;
    }
    f.flags = flags;
    f.stream = stream;
    f.wire = 0;
    match kind {
        DATA | HEADERS => {
            if stream == 0 {
                return fail(&mut h.frames[direction], Counter::SyncMalformed);
            }
            f.wire = u64::from(length) + u64::from(HEAD_BYTES);
            if kind == HEADERS && direction == REQUEST && stream > h.last {
                call_begins(c, h, env, stream, began_ns);
            }
        }
        PUSH_PROMISE => {}
        GOAWAY if length >= 8 => {
            h.frames[direction].state = GOAWAY_ID;
            return false;
        }
        _ => {
            // It acts once it is whole.
            if kind == RST_STREAM && length != 4 {
                return fail(&mut h.frames[direction], Counter::SyncMalformed);
            }
            // Envoy's meter has the window updates that it sends.
            if kind == WINDOW_UPDATE && stream != 0 && !received {
                h.frames[direction].wire = u64::from(length) + u64::from(HEAD_BYTES);
            }
            c.streams[direction].skip = u64::from(length);
            h.frames[direction].left = 0;
            h.frames[direction].state = END;
            return false;
        }
    }
    let f = &mut h.frames[direction];
    let need = prologue(f);
    if need > length {
        return fail(&mut h.frames[direction], Counter::SyncMalformed);
    }
    if need > 0 {
        f.state = PROLOGUE;
        return false;
    }
    if kind == DATA {
        data_begins(c, h, env, direction);
    } else {
        begin_payload(h, direction);
    }
    false
}

/// Behind head and prologue: the header block, or data without messages.
#[inline(always)]
fn begin_payload(h: &mut Http2, direction: usize) {
    let f = &mut h.frames[direction];
    if f.kind == DATA {
        // Padded data is not looked into before its call is known; see `messages`.
        f.state = MESSAGES;
        return;
    }
    if f.kind == PUSH_PROMISE {
        f.flags |= PROMISED;
    }
    f.block = f.stream;
    f.state = FIELDS;
    hpack::begin(&mut f.walk);
}

/// Data: passed over, unless it is gRPC's.
#[inline(always)]
fn data_begins<E: Calls>(c: &mut Connection, h: &mut Http2, env: &mut E, direction: usize) {
    let stream = h.frames[direction].stream;
    let mut state = 0;
    with(h, env, stream, |call| state = shared::load(&call.state));
    let f = &mut h.frames[direction];
    if state & IS_GRPC != 0 {
        f.state = MESSAGES;
        return;
    }
    c.streams[direction].skip = u64::from(f.left);
    f.left = 0;
    f.state = END;
}

/// In the data of a call: the five bytes before each message of gRPC, and the messages passed over.
/// Source: gRPC over HTTP/2, Length-Prefixed-Message.
#[inline(never)]
fn messages<E: Calls>(c: &mut Connection, h: &mut Http2, env: &mut E, direction: usize) -> bool {
    let f = &h.frames[direction];
    let (left, padding, stream) = (f.left, f.padding, f.stream);
    if left == 0 {
        c.streams[direction].skip = u64::from(padding);
        h.frames[direction].state = END;
        return false;
    }
    let call = find(h, env, stream);
    // SAFETY: `find` gives null or a call that lives as long as the program runs.
    let call = unsafe { call.as_mut() };
    let mut used = left;
    if let Some(call) = call
        && shared::load(&call.state) & IS_GRPC != 0
    {
        let message = call.left[direction];
        let read = call.prefix[direction];
        if read == 0 && message != 0 {
            used = if message < left { message } else { left };
            call.left[direction] = message.wrapping_sub(used);
        } else {
            let s = &mut c.streams[direction];
            let pending = s.pending();
            if pending == 0 {
                return supply(c, h, env, direction);
            }
            if read == 0 {
                call.messages[direction] = call.messages[direction].wrapping_add(1);
            }
            if read == 0 && pending >= 5 && left >= 5 {
                call.left[direction] = ((s.word(s.line) >> 8) as u32).swap_bytes();
                s.line = s.line.wrapping_add(5);
                used = 5;
            } else {
                let byte = u32::from(s.byte(s.line));
                call.left[direction] = if read == 0 { 0 } else { message << 8 | byte };
                call.prefix[direction] = if read == 4 { 0 } else { read + 1 };
                s.line = s.line.wrapping_add(1);
                used = 1;
            }
            h.frames[direction].left = left.wrapping_sub(used);
            return false;
        }
    }
    c.streams[direction].skip = u64::from(used);
    h.frames[direction].left = left.wrapping_sub(used);
    false
}

/// In a header block.
#[inline(never)]
fn fields<E: Calls>(c: &mut Connection, h: &mut Http2, env: &mut E, direction: usize) -> bool {
    let f = &mut h.frames[direction];
    if f.left == 0 {
        fields_end(f, &mut c.streams[direction]);
        return false;
    }
    if c.streams[direction].pending() == 0 {
        return supply(c, h, env, direction);
    }
    let s = &mut c.streams[direction];
    let inserted = f.walk.inserted;
    hpack::indexed(&mut f.walk, s, &mut f.left);
    if f.left != 0 && s.pending() != 0 && hpack::step(&mut f.walk, s, &mut f.left).is_err() {
        return fail(f, Counter::SyncMalformed);
    }
    let wide = f.walk.wide;
    if f.walk.state == hpack::FAR || wide == WIDE_WANTED || (wide == WIDE_USED && f.walk.inserted != inserted) {
        widen(&mut f.walk, env, direction);
    }
    let f = &mut h.frames[direction];
    if f.left == 0 {
        fields_end(f, &mut c.streams[direction]);
    }
    false
}

/// Behind this frame's part of a header block, of which some bytes may still be to be skipped.
#[inline(always)]
fn fields_end(f: &mut Frames, s: &mut Stream) {
    s.skip = s.skip.wrapping_add(u64::from(f.padding));
    f.padding = 0;
    f.state = END;
}

/// Keeps the larger ring, which there may be, in step, and looks up in it.
#[inline(never)]
fn widen<E: Calls>(w: &mut Walk, env: &mut E, direction: usize) {
    let rings = if w.wide == WIDE_UNUSED { core::ptr::null_mut() } else { env.wide(direction) };
    // SAFETY: `wide` gives null or rings that live as long as the socket.
    let rings = unsafe { rings.as_mut() };
    if w.wide == WIDE_WANTED {
        w.wide = if rings.is_some() { WIDE_USED } else { WIDE_MISSING };
        env.count(Counter::LossTables, u64::from(rings.is_none()));
        if let Some(rings) = rings {
            hpack::copy_to_wide(w, rings, hpack::RING as u32);
        }
    } else if w.state == hpack::FAR {
        match rings.and_then(|rings| hpack::far_entry(w, rings)) {
            Some(entry) => hpack::resolve(w, entry),
            None => {
                w.facts |= hpack::UNSURE;
                hpack::resolve(w, 0);
            }
        }
    } else if let Some(rings) = rings {
        hpack::copy_to_wide(w, rings, 1);
    }
}

/// A frame is whole.
#[inline(never)]
fn end<E: Calls>(c: &mut Connection, h: &mut Http2, env: &mut E, direction: usize) -> bool {
    let f = &mut h.frames[direction];
    f.state = HEAD;
    let (kind, flags, stream, wire) = (f.kind, f.flags, f.stream, f.wire);
    if wire != 0 {
        with(h, env, stream, |call| call.bytes[direction] += wire);
    }
    let f = &mut h.frames[direction];
    match kind {
        DATA if flags & END_STREAM != 0 => side_ends(h, env, direction, stream),
        HEADERS | PUSH_PROMISE | CONTINUATION if flags & END_HEADERS != 0 => {
            f.block = 0;
            if !hpack::is_whole(&f.walk) {
                return fail(&mut h.frames[direction], Counter::SyncMalformed);
            }
            if flags & PROMISED == 0 {
                block_ends(c, h, env, direction, stream);
                if flags & END_STREAM != 0 {
                    side_ends(h, env, direction, stream);
                }
            }
        }
        RST_STREAM => reset(c, h, env, direction, stream),
        GOAWAY if direction == RESPONSE => f.going = stream.wrapping_add(1),
        _ => {}
    }
    false
}

/// A header block is read: what does it say of its call?
#[inline(always)]
fn block_ends<E: Calls>(c: &Connection, h: &mut Http2, env: &mut E, direction: usize, stream: u32) {
    let Walk { status, grpc_status, grpc, facts, .. } = h.frames[direction].walk;
    let unsure = facts & hpack::UNSURE != 0;
    // Where an answer may be joined within, its messages cannot be told.
    let grpc = grpc == 1 && !is_lost(c, &h.frames[RESPONSE]);
    with(h, env, stream, |call| {
        if direction == REQUEST {
            if grpc {
                shared::set(&mut call.state, IS_GRPC);
            }
            if facts & hpack::EXTENDED != 0 {
                shared::set(&mut call.state, IS_UPGRADE);
            }
            return;
        }
        if status != hpack::NONE && call.status == 0 {
            let status = known(status);
            // The others announce another block.
            if status >= 200 || status == 101 {
                call.status = status + 1;
            }
        } else if unsure && status == hpack::NONE && call.status == 0 {
            call.status = UNKNOWN;
        }
        if grpc_status != hpack::NONE {
            call.grpc_status = grpc_status + 1;
        } else if unsure && call.grpc_status == 0 {
            call.grpc_status = UNREADABLE + 1;
        }
    });
}

/// A status as it is counted: one that cannot be is unknown.
#[inline(always)]
fn known(status: u32) -> u32 {
    if !(100..=999).contains(&status) { u32::from(STATUS_UNKNOWN) } else { status }
}

/// One direction of a call has ended; the second one ends the call.
#[inline(always)]
fn side_ends<E: Calls>(h: &mut Http2, env: &mut E, direction: usize, stream: u32) {
    let call = find(h, env, stream);
    // SAFETY: `find` gives null or a call that lives as long as the program runs.
    let Some(call) = (unsafe { call.as_mut() }) else { return };
    let (own, other) = if direction == REQUEST { (REQUEST_DONE, RESPONSE_DONE) } else { (RESPONSE_DONE, REQUEST_DONE) };
    if shared::set(&mut call.state, own) & other != 0 {
        call_ends(h, env, direction, call, stream, 0);
    }
}

/// Does the proxy receive what comes in a direction? At the source it does requests, at the destination responses.
#[inline(always)]
fn is_received(c: &Connection, direction: usize) -> bool {
    (c.leg == SOURCE) == (direction == REQUEST)
}

/// One side has given a call up.
#[inline(always)]
fn reset<E: Calls>(c: &mut Connection, h: &mut Http2, env: &mut E, direction: usize, stream: u32) {
    let call = find(h, env, stream);
    // SAFETY: as above.
    let Some(call) = (unsafe { call.as_mut() }) else { return };
    // For the proxy a call has ended with its answer; what it receives of it later its meter does not have.
    let answered = direction == RESPONSE && shared::load(&call.state) & RESPONSE_DONE != 0;
    if is_received(c, direction) && !answered {
        call.bytes[direction] += RESET_BYTES;
    }
    call_ends(h, env, direction, call, stream, direction as u32 + 1);
}

/// Takes a call out of its place, unless the other direction has done so; it is counted with the next turn.
#[inline(always)]
fn call_ends<E: Calls>(h: &mut Http2, env: &mut E, direction: usize, call: &mut Call, id: u32, by: u32) {
    if shared::set(&mut call.state, FINISHED) & FINISHED != 0 {
        return;
    }
    let f = &mut h.frames[direction];
    f.ended = *call;
    f.ended_by = by;
    f.state = COUNT;
    let place = own(h, id);
    if shared::load(&place.id) == id {
        shared::store(&mut place.id, 0);
        return;
    }
    env.remove(&CallKey { cookie: h.cookie, id, padding: 0 });
    shared::lower(&mut h.elsewhere);
}

/// A call that has ended as it is counted: it ended by itself, or early, by the direction `by` less one.
#[inline(always)]
fn counted(c: &Connection, call: &Call, early: bool, by: u32, at_ns: u64) -> Finished {
    let state = call.state;
    let grpc = state & IS_GRPC != 0;
    let (mut status, mut grpc_status) = (call.status, if grpc { call.grpc_status } else { 0 });
    let mut outcome = if early { Counter::RequestEndedEarly } else { Counter::RequestOk };
    if state & IS_BLIND != 0 {
        status = UNKNOWN;
        grpc_status = if grpc { UNREADABLE + 1 } else { 0 };
        outcome = Counter::RequestLate;
    } else if status == UNKNOWN || grpc_status == UNREADABLE + 1 {
        outcome = Counter::RequestStatusUnknown;
    } else if status == 0 && c.leg == DESTINATION && (by == RESPONSE as u32 + 1 || by == BROKEN) {
        // The application ended it without an answer, or broke the protocol, and its proxy answers in its place.
        let answered = if by == BROKEN { 502 } else { 503 };
        status = if grpc { 200 + 1 } else { answered + 1 };
        grpc_status = if grpc { UNAVAILABLE + 1 } else { 0 };
    } else if status == 200 + 1 && state & IS_UPGRADE != 0 {
        status = 101 + 1;
    }
    Finished {
        duration_ns: at_ns.saturating_sub(call.start_ns),
        bytes: call.bytes,
        messages: call.messages,
        status: if status == 0 { 0 } else { (status - 1) as u16 },
        grpc_status: match grpc_status {
            0 => GRPC_NONE,
            status if status > UNREADABLE => GRPC_UNKNOWN,
            status => (status - 1) as u16,
        },
        protocol: if grpc { PROTOCOL_GRPC } else { PROTOCOL_HTTP },
        security: (state >> SECURITY_SHIFT) as u8,
        outcome: outcome as u16,
    }
}

/// A client has begun a stream.
#[inline(always)]
fn call_begins<E: Calls>(c: &mut Connection, h: &mut Http2, env: &mut E, id: u32, began_ns: u64) {
    h.last = id;
    if id & 1 == 0 {
        return;
    }
    let blind = h.frames[REQUEST].walk.partial | h.frames[RESPONSE].walk.partial | c.flags & LATE;
    let security = u32::from(env.security(c)) << SECURITY_SHIFT;
    let call = Call {
        id,
        state: security | if blind != 0 { IS_BLIND } else { 0 },
        start_ns: if began_ns != 0 { began_ns } else { h.frames[REQUEST].now_ns },
        bytes: [0; 2],
        messages: [0; 2],
        left: [0; 2],
        prefix: [0; 2],
        status: 0,
        grpc_status: 0,
    };
    let place = own(h, id);
    if shared::load(&place.id) == 0 {
        *place = Call { id: 0, ..call };
        shared::store(&mut place.id, id);
        return;
    }
    let key = CallKey { cookie: h.cookie, id, padding: 0 };
    if env.insert(&key, &call) {
        shared::bump(&mut h.elsewhere);
    } else {
        env.count(Counter::RequestNoRoom, 1);
    }
}

/// The call of a stream, or null.
#[inline(always)]
fn find<E: Calls>(h: &mut Http2, env: &mut E, id: u32) -> *mut Call {
    let place = own(h, id);
    if shared::load(&place.id) == id && id != 0 {
        return place;
    }
    if shared::load(&h.elsewhere) == 0 {
        return core::ptr::null_mut();
    }
    env.call(&CallKey { cookie: h.cookie, id, padding: 0 })
}

/// Works on the call of a stream, if there is one.
#[inline(always)]
fn with<E: Calls>(h: &mut Http2, env: &mut E, id: u32, work: impl FnOnce(&mut Call)) {
    let call = find(h, env, id);
    // SAFETY: `find` gives null or a call that lives as long as the program runs.
    if let Some(call) = unsafe { call.as_mut() } {
        work(call);
    }
}

/// The place in the connection's own storage that an id has.
#[inline(always)]
fn own(h: &mut Http2, id: u32) -> &mut Call {
    // SAFETY: the length is a power of two.
    unsafe { h.calls.get_unchecked_mut((id >> 1) as usize & (CALLS - 1)) }
}

/// Ends one call for a reason that is not its own; its place is not freed. Called by [`Calls::each`].
#[inline(always)]
pub fn reap<E: Calls>(c: &mut Connection, env: &mut E, call: &mut Call, reaping: &Reaping) -> bool {
    let id = shared::load(&call.id);
    if id == 0 || id <= reaping.above {
        return false;
    }
    if shared::set(&mut call.state, FINISHED) & FINISHED == 0 {
        match reaping.uncounted {
            Some(reason) => env.count(reason, 1),
            None => {
                let finished = counted(c, call, true, reaping.by, reaping.at_ns);
                Finished::put(&mut c.finished[REQUEST], &finished);
                env.finished(c, REQUEST);
            }
        }
    }
    true
}

/// Ends the calls that what came in `direction` has left without an end of their own; `over` says that it has ended the
/// connection.
#[inline(never)]
pub fn settle<E: Calls>(c: &mut Connection, h: &mut Http2, env: &mut E, direction: usize, over: bool) {
    let f = &mut h.frames[direction];
    let (abandoned, going) = (f.abandoned, f.going);
    if abandoned | going == 0 && !over {
        return;
    }
    f.abandoned = 0;
    f.going = 0;
    let lost = abandoned != 0 || is_lost(c, &h.frames[REQUEST]) || is_lost(c, &h.frames[RESPONSE]);
    // The proxy gives calls to an application up that breaks the protocol.
    let broken = abandoned == BROKEN && direction == RESPONSE && c.leg == DESTINATION;
    let uncounted = if broken {
        None
    } else if lost {
        Some(Counter::RequestLostSync)
    } else if c.leg == SOURCE && !over {
        // What a proxy refuses by GOAWAY never began for it.
        Some(Counter::RequestAbandoned)
    } else {
        None
    };
    let reaping = Reaping {
        above: if over || abandoned != 0 { 0 } else { going.wrapping_sub(1) },
        uncounted,
        by: if broken {
            BROKEN
        } else if over {
            shared::load(&c.first_end)
        } else {
            RESPONSE as u32 + 1
        },
        at_ns: if over { ended_at(c, env) } else { env.now() },
    };
    env.each(c, h, &reaping);
}

/// Follows frames from the begin of a segment: enough of them in a row, or one that ends with the segment, prove that the
/// segment began with a frame, and reading begins there.
#[inline(always)]
fn prove(c: &mut Connection, h: &mut Http2, direction: usize) -> bool {
    let s = &mut c.streams[direction];
    let header = header(s);
    let f = &mut h.frames[direction];
    // The block that a CONTINUATION goes on with would have no begin.
    if !believable(&header) || (f.proven == 0 && header.kind == CONTINUATION) {
        f.state = LOST;
        return true;
    }
    f.proven += 1;
    s.line = s.line.wrapping_add(HEAD_BYTES);
    let inside = u64::from(s.pending()) + u64::from(s.end.wrapping_sub(s.offset));
    let exact = inside == u64::from(header.length);
    if exact || f.proven == PROOF {
        f.state = HEAD;
        s.offset = f.proof;
        s.clear();
        s.skip = 0;
        return false;
    }
    s.skip = u64::from(header.length);
    if inside < s.skip {
        f.state = LOST;
        s.skip = 0;
        return true;
    }
    false
}

/// Could a peer send a frame with this head (section 6)?
#[inline(always)]
fn believable(header: &Header) -> bool {
    let &Header { length, kind, flags, stream } = header;
    let (on_stream, size, known) = match kind {
        // Nobody sends empty data for nothing, but a padding's zeros look like it.
        DATA => (true, length > 0 || flags & END_STREAM != 0, END_STREAM | PADDED),
        HEADERS => (true, length > 0, END_STREAM | END_HEADERS | PADDED | HAS_PRIORITY),
        PRIORITY => (true, length == 5, 0),
        RST_STREAM => (true, length == 4, 0),
        SETTINGS => (false, length.is_multiple_of(6), 1),
        PING => (false, length == 8, 1),
        GOAWAY => (false, length >= 8, 0),
        WINDOW_UPDATE => (stream != 0, length == 4, 0),
        CONTINUATION => (true, true, END_HEADERS),
        _ => return false,
    };
    size && length <= BELIEVED && (stream != 0) == on_stream && flags & !known == 0
}
