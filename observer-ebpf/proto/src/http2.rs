//! HTTP/2 framing (RFC 9113), and the calls that are open on a connection.
//!
//! A frame's head is assembled over any segmentation, its payload passed over unread, but for header blocks and, in gRPC,
//! the five bytes before each message. As with HTTP/1, each direction may be read on a processor of its own: a call's
//! words are written by one direction only, or shared, and whichever ends it counts it. Only the request direction makes
//! calls.

use core::hint::black_box;

use observer_common::{
    GRPC_NONE, GRPC_UNKNOWN, IGNORED, PROTOCOL_GRPC, PROTOCOL_HTTP, PROTOCOL_UNKNOWN, STATUS_UNKNOWN, health::Counter,
    latency,
};

use crate::{
    hpack::{self, WIDE_MISSING, WIDE_UNUSED, WIDE_USED, WIDE_WANTED, Walk, Wide},
    shared,
    socket::{self, Connection, DESTINATION, Env, Finished, LATE, REQUEST, RESPONSE, SOURCE},
    stream::{Stream, Token},
};

/// Calls that have room in [`Http2`], by their id.
pub const CALLS: usize = 32;
/// Calls that have room in [`More`], by their id. With those in [`Http2`] they are as many as follow each other.
pub const MORE: usize = 96;
/// Calls of one connection that have room in the map. It bounds what one close can cost.
pub const MAPPED: usize = 2_048;
/// Slots that a call may have there.
const PROBES: u32 = 4;
/// Between them: odd, so that they are all slots, and far apart, so that calls in a row do not meet.
const STRIDE: u32 = 1_265;
/// [`Http2::tallies`]: that of the close, which may come while both directions are read.
pub const CLOSE: usize = 2;
/// Turns for one packet. One of 64 KiB that is full of the smallest answers needs some 16,000; what needs more than this is no
/// traffic but an attack, whose position is lost.
pub const TURNS: u32 = 1 << 15;
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
/// State: the frame has ended its call.
const COUNT: u32 = 8;
/// State: a call that has ended is to be tallied.
const TALLY: u32 = 9;
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

/// The part of [`Call::status`] that is the status plus one.
const STATUS_MASK: u16 = (1 << 10) - 1;
/// In the place of a status plus one: that of an answer whose status could not be read.
const UNKNOWN: u16 = 1_001;
/// Bit of [`Call::status`]: there is a gRPC status.
const HAS_GRPC_STATUS: u16 = 1 << 10;
/// Bit of [`Call::status`]: there is, or may be, one that could not be read.
const LACKS_GRPC_STATUS: u16 = 1 << 11;
/// In the place of a direction, plus one: what came in it was no HTTP/2.
const BROKEN: u32 = 3;
/// The status of gRPC that a proxy gives for an application that did not answer.
const UNAVAILABLE: u64 = 14;

/// Bit of [`Call::state`]: the request is complete.
pub const REQUEST_DONE: u32 = 1;
/// Bit of [`Call::state`]: the response is complete.
pub const RESPONSE_DONE: u32 = 1 << 1;
/// Bit of [`Call::state`]: counted.
pub const FINISHED: u32 = 1 << 2;
/// Bit of [`Call::state`]: gRPC, by the request's content type.
pub const IS_GRPC: u32 = 1 << 3;
/// Bit of [`Call::state`]: begun on a connection whose header tables are not known from their begin.
const IS_BLIND: u32 = 1 << 4;
/// Bit of [`Call::state`]: an upgrade by extended CONNECT, which the proxy's log has as one of HTTP/1.
const IS_UPGRADE: u32 = 1 << 5;
/// Bit of [`Call::state`]: the request's header block is read.
const IS_ASKED: u32 = 1 << 6;
/// Bit of [`Call::state`]: the request's content type could not be read.
const MAY_BE_GRPC: u32 = 1 << 7;
/// Position of the security in [`Call::state`].
const SECURITY_SHIFT: u32 = 8;
/// Bit of [`Call::state`]: gRPC, as only the answer said.
const IS_LATE_GRPC: u32 = 1 << 10;
/// Bit of [`Call::state`]: not gRPC, as only the answer said.
const IS_NO_GRPC: u32 = 1 << 11;
/// Bit of [`Call::state`]: begun where the position in the answers was not known, so that its answer may have begun unseen.
const MAY_BE_ANSWERED: u32 = 1 << 12;
/// Bit of [`Call::state`]: the proxy refuses a header block with so many fields, and resets the call.
const IS_TOO_LONG: u32 = 1 << 13;

/// Most fields that a proxy takes in a header block.
/// Source: envoy `api/envoy/config/core/v3/protocol.proto`, `max_headers_count`.
const MOST_FIELDS: u32 = 100;

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
    /// gRPC status, if there is one; written by the response direction.
    pub grpc_status: u32,
    /// Status plus one, 0 before the response's header, and bits above; written by the response direction.
    pub status: u16,
    /// Bytes of the current message's prefix that are read, by direction; 0 in the message or before one.
    pub prefix: [u8; 2],
}

/// Which call of which connection: the key of the `CALLS` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CallKey {
    /// The connection's cookie.
    pub cookie: u64,
    /// The connection's sidecar, with which what it left behind is removed.
    pub sidecar: u32,
    /// The call's slot, below [`MAPPED`].
    pub slot: u32,
}

/// Calls that [`Http2`] has no room for.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct More {
    /// Open calls, each where its id puts it.
    pub calls: [Call; MORE],
}

/// Requests that ended alike and are counted together.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Tally {
    /// One of them.
    pub finished: Finished,
    /// The next one.
    pub next: Finished,
    /// The next one's call.
    pub call: Call,
    /// How many; 0 is none.
    pub times: u32,
    /// Not 0 if they are to be counted before anything else.
    pub due: u32,
    /// Cell and bucket of their durations.
    pub like: u32,
    /// Those of the next one's.
    pub next_like: u32,
    /// Sum of their durations, microseconds.
    pub microseconds: u64,
    /// Why they are ended, where that is not their own doing.
    pub reaping: Reaping,
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
    /// The direction that gave the call up which the frame has ended, plus one; 0 if it ended by itself.
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
}

/// What a connection that speaks HTTP/2 needs beside its [`Connection`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Http2 {
    /// Both directions.
    pub frames: [Frames; 2],
    /// Open calls, each where its id puts it.
    pub calls: [Call; CALLS],
    /// What is to be counted of each direction, and of the close.
    pub tallies: [Tally; 3],
    /// Slots of calls in the map, a bit each; shared.
    pub slots: [u32; MAPPED / 32],
    /// Tells the connection's calls in the map from those of others.
    pub cookie: u64,
    /// The sidecar that they are kept for.
    pub sidecar: u32,
    /// Open calls that are not in `calls`; shared.
    pub elsewhere: u32,
    /// Those of them in the map; shared.
    pub mapped: u32,
    /// Largest stream id that a client has begun.
    pub last: u32,
}

const _: () = assert!(size_of::<Call>() == 56);
const _: () = assert!(size_of::<CallKey>() == 16);
const _: () = assert!(size_of::<Http2>() <= 3_952);
const _: () = assert!(size_of::<More>() <= 5_376);

/// Where ended requests are counted, beside [`Env`].
pub trait Book: Env {
    /// Counts what a tally has.
    fn book(&mut self, c: &mut Connection, tally: &mut Tally);
    /// As [`Env::count`], by the counter's number.
    fn count_by_number(&mut self, counter: u32, by: u32);
}

/// What the calls of a connection need from where it runs.
pub trait Calls: Book {
    /// Takes turns until one says that it was the last; false if there were too many.
    fn frame_turns(&mut self, c: &mut Connection, h: &mut Http2, direction: usize) -> bool;
    /// The connection's [`More`]; if it has none it is made where `create` says so. Null if there is none.
    fn more(&mut self, create: bool) -> *mut More;
    /// A call in the map, or null.
    fn call(&mut self, key: &CallKey) -> *mut Call;
    /// Puts a call in the map; false if there is no room.
    fn insert(&mut self, key: &CallKey, call: &Call) -> bool;
    /// Takes a call out of the map.
    fn remove(&mut self, key: &CallKey);
    /// Larger rings of both directions, made if there are none; null if there is no room.
    fn wide(&mut self, direction: usize) -> *mut Wide;
}

/// Why calls are ended that did not end by themselves.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Reaping {
    /// Only those with a larger id.
    pub above: u32,
    /// They are counted under this reason, a [`Counter`] plus one, and in no Istio family; as requests that ended early if it is 0.
    pub uncounted: u32,
    /// How many of those.
    pub calls: u32,
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

/// Goes on at `accepted`, the sequence number up to which TCP has taken everything, whatever was seen of it. True if that costs the
/// position: what is open is then to be settled before anything else is read, and the segment to be passed over.
#[inline(never)]
pub fn catch_up<E: Calls>(c: &mut Connection, h: &mut Http2, env: &mut E, direction: usize, accepted: u32) -> bool {
    let s = &mut c.streams[direction];
    let missing = accepted.wrapping_sub(s.next);
    if s.anchored == 0 || (missing as i32) <= 0 {
        return false;
    }
    s.find_unseen(accepted);
    let unseen = s.gap();
    if unseen != 0 {
        env.count(Counter::AuditUnseen, u64::from(unseen));
    }
    begin(c, h, direction);
    let s = &mut c.streams[direction];
    let covered = s.covers(missing);
    let is_lost = !covered && h.frames[direction].state != LOST;
    if covered {
        s.skip = s.skip.wrapping_sub(u64::from(missing));
    } else if is_lost {
        lose(c, h, env, direction, Counter::SyncGap);
    }
    c.streams[direction].advance(accepted);
    is_lost
}

/// Books a segment as seen that is not read.
#[inline(always)]
pub fn pass_over(s: &mut Stream, seq: u32, offset: u32, length: u32) {
    if s.place(seq, offset, length) && s.gap() == 0 {
        s.advance(seq.wrapping_add(length));
    }
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
    // Where the position was found anew it may have been wrong.
    let broken = reason as u32 == Counter::SyncMalformed as u32 && f.walk.partial == 0;
    f.abandoned = if broken { BROKEN } else { 1 };
    hpack::forget(&mut f.walk);
    f.block = 0;
    f.began_ns = 0;
    let s = &mut c.streams[direction];
    s.clear();
    s.skip = 0;
    s.forget_parked();
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
    if shared::load(&h.tallies[direction].due) != 0 {
        flush(c, env, &mut h.tallies[direction]);
        return false;
    }
    if !step(c, h, env, direction) {
        return false;
    }
    let (s, f) = (&mut c.streams[direction], &mut h.frames[direction]);
    if s.waiting != 0 && f.failure == 0 && rejoin(s, f, env) {
        return false;
    }
    let t = &mut h.tallies[direction];
    t.due = t.times;
    t.due == 0
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
        call_ends(h, env, direction);
        return false;
    }
    if state == TALLY {
        h.frames[direction].state = HEAD;
        let t = &mut h.tallies[direction];
        let by = t.reaping.by;
        conclude(c, t, by != 0);
        if !tally(t) {
            h.frames[direction].state = TALLY;
        }
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
        return prove(c, h, env, direction);
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
    let header = header(s);
    s.line = s.line.wrapping_add(HEAD_BYTES);
    if received && is_refused(c, h, direction, &header) {
        return fail(&mut h.frames[direction], Counter::SyncMalformed);
    }
    let Header { length, kind, flags, stream } = header;
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

/// Does the proxy end the connection that it receives this on, for the frame itself (sections 5.1 and 6)?
#[inline(always)]
fn is_refused(c: &Connection, h: &Http2, direction: usize, header: &Header) -> bool {
    let &Header { length, kind, stream, .. } = header;
    match kind {
        SETTINGS => stream != 0 || !length.is_multiple_of(6),
        PING => stream != 0 || length != 8,
        WINDOW_UPDATE => length != 4,
        PUSH_PROMISE => true,
        // An answer to nothing, as far as it is known what was asked.
        DATA | HEADERS if direction == RESPONSE && c.flags & LATE == 0 && h.frames[REQUEST].walk.partial == 0 => {
            stream & 1 == 0 || stream > h.last
        }
        _ => false,
    }
}

/// Does the proxy end the connection that it receives this on, for what it says of a call?
#[inline(never)]
fn is_bent(w: &Walk, call: &Call, direction: usize, kind: u32, flags: u32) -> bool {
    if kind == DATA {
        let unanswered = call.status & STATUS_MASK == 0 && shared::load(&call.state) & MAY_BE_ANSWERED == 0;
        return direction == RESPONSE && unanswered;
    }
    if w.facts & hpack::REFUSED != 0 {
        return true;
    }
    if direction == REQUEST {
        return false;
    }
    let (ends, status) = (flags & END_STREAM != 0, w.status);
    if call.status & STATUS_MASK != 0 {
        // Trailers; those of an answer whose begin could not be read may be its begin.
        return call.status & STATUS_MASK != UNKNOWN && (status != hpack::NONE || !ends);
    }
    if status == hpack::NONE {
        return w.facts & hpack::UNSURE == 0 && shared::load(&call.state) & MAY_BE_ANSWERED == 0;
    }
    status == hpack::UNREADABLE || (ends && (100..200).contains(&status))
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
    let mut grpc = false;
    with(h, env, stream, |call| grpc = has_messages(call, direction));
    let f = &mut h.frames[direction];
    if grpc {
        f.state = MESSAGES;
        return;
    }
    c.streams[direction].skip = u64::from(f.left);
    f.left = 0;
    f.state = END;
}

/// Is what comes in a direction of a call gRPC's messages, and known from the first on?
#[inline(always)]
fn has_messages(call: &Call, direction: usize) -> bool {
    let state = shared::load(&call.state);
    state & IS_GRPC != 0 && direction == REQUEST
        || state & (IS_GRPC | IS_LATE_GRPC) != 0 && direction == RESPONSE && call.status & STATUS_MASK != 0
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
        && has_messages(call, direction)
    {
        let message = call.left[direction];
        let read = u32::from(call.prefix[direction]);
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
                call.prefix[direction] = if read == 4 { 0 } else { read as u8 + 1 };
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
        hpack::begin_wide(w);
        if w.state == hpack::FAR {
            hpack::resolve_far(w, None);
        }
    } else if w.state == hpack::FAR {
        hpack::resolve_far(w, rings.as_deref());
    } else if let Some(rings) = rings {
        hpack::keep_in_wide(w, rings);
    }
}

/// A frame is whole.
#[inline(never)]
fn end<E: Calls>(c: &mut Connection, h: &mut Http2, env: &mut E, direction: usize) -> bool {
    let f = &mut h.frames[direction];
    f.state = HEAD;
    let (kind, flags, stream, wire) = (f.kind, f.flags, f.stream, f.wire);
    if kind == GOAWAY {
        if direction == RESPONSE {
            f.going = stream.wrapping_add(1);
        }
        return false;
    }
    let mut block = matches!(kind, HEADERS | PUSH_PROMISE | CONTINUATION) && flags & END_HEADERS != 0;
    if block {
        f.block = 0;
        if !hpack::is_whole(&f.walk) {
            return fail(f, Counter::SyncMalformed);
        }
        block = flags & PROMISED == 0;
    }
    let call = find(h, env, stream);
    // SAFETY: `find` gives null or a call that lives as long as the program runs.
    let Some(call) = (unsafe { call.as_mut() }) else { return false };
    let received = is_received(c, direction);
    let f = &mut h.frames[direction];
    if received && (block || kind == DATA) && is_bent(&f.walk, call, direction, kind, flags) {
        return fail(f, Counter::SyncMalformed);
    }
    if received && block && f.walk.fields > MOST_FIELDS {
        // Envoy's meter does not have it, and has the reset instead.
        shared::set(&mut call.state, IS_TOO_LONG);
        if direction == RESPONSE && call.status & STATUS_MASK == 0 {
            call.status |= 503 + 1;
        }
        return false;
    }
    call.bytes[direction] += wire;
    if block {
        if direction == REQUEST {
            asked(&f.walk, call);
        } else {
            answered(&f.walk, call);
        }
    }
    if kind == RST_STREAM {
        // For the proxy a call has ended with its answer; what it receives of it later its meter does not have.
        let state = shared::load(&call.state);
        let answered = direction == RESPONSE && state & RESPONSE_DONE != 0;
        if (received && !answered) || (!received && state & IS_TOO_LONG != 0) {
            call.bytes[direction] += RESET_BYTES;
        }
        f.ended_by = direction as u32 + 1;
        f.state = COUNT;
    } else if flags & END_STREAM != 0 && (block || kind == DATA) {
        // The second direction to end ends the call.
        let (own, other) =
            if direction == REQUEST { (REQUEST_DONE, RESPONSE_DONE) } else { (RESPONSE_DONE, REQUEST_DONE) };
        if shared::set(&mut call.state, own) & other != 0 {
            f.ended_by = 0;
            f.state = COUNT;
        }
    }
    false
}

/// Notes what a request's header block says; what trailers say is nothing to its kind.
#[inline(never)]
fn asked(w: &Walk, call: &mut Call) {
    if shared::load(&call.state) & IS_ASKED != 0 {
        return;
    }
    let mut bits = IS_ASKED;
    if w.grpc == 1 {
        bits |= IS_GRPC;
    } else if w.grpc == hpack::NONE && w.facts & (hpack::UNSURE | hpack::NO_POST) == hpack::UNSURE {
        bits |= MAY_BE_GRPC;
    }
    if w.facts & hpack::EXTENDED != 0 {
        bits |= IS_UPGRADE;
    }
    shared::set(&mut call.state, bits);
}

/// Notes what an answer's header block, interim, final or trailing, says.
#[inline(never)]
fn answered(w: &Walk, call: &mut Call) {
    let unsure = w.facts & hpack::UNSURE != 0;
    let (status, read) = (w.status, call.status & STATUS_MASK);
    let mut next = call.status & !STATUS_MASK | read;
    if status != hpack::NONE && (read == 0 || read == UNKNOWN) {
        // Those announce another block.
        if !(100..200).contains(&status) || status == 101 {
            let known = status != hpack::UNREADABLE;
            next = next & !STATUS_MASK | if known { status as u16 + 1 } else { UNKNOWN };
        }
    } else if unsure && status == hpack::NONE && read == 0 {
        next |= UNKNOWN;
    }
    if w.grpc_status == GRPC_UNKNOWN {
        next = next & !HAS_GRPC_STATUS | LACKS_GRPC_STATUS;
    } else if w.grpc_status != GRPC_NONE {
        call.grpc_status = w.grpc_status as u32;
        next = next & !LACKS_GRPC_STATUS | HAS_GRPC_STATUS;
    } else if unsure && next & HAS_GRPC_STATUS == 0 {
        next |= LACKS_GRPC_STATUS;
    }
    call.status = next;
    if shared::load(&call.state) & MAY_BE_GRPC != 0 {
        if w.grpc == 1 || w.grpc_status != GRPC_NONE {
            shared::set(&mut call.state, IS_LATE_GRPC);
        } else if w.grpc == 0 {
            shared::set(&mut call.state, IS_NO_GRPC);
        }
    }
}

/// Does the proxy receive what comes in a direction? At the source it does requests, at the destination responses.
#[inline(always)]
fn is_received(c: &Connection, direction: usize) -> bool {
    (c.leg == SOURCE) == (direction == REQUEST)
}

/// Takes the call whose last frame is whole out of its place, unless the other direction has done so; it is tallied with the
/// next turn.
#[inline(never)]
fn call_ends<E: Calls>(h: &mut Http2, env: &mut E, direction: usize) {
    let f = &mut h.frames[direction];
    f.state = HEAD;
    let (id, by, now_ns) = (f.stream, f.ended_by, f.now_ns);
    let call = find(h, env, id);
    // SAFETY: `find` gives null or a call that lives as long as the program runs.
    let Some(call) = (unsafe { call.as_mut() }) else { return };
    if shared::set(&mut call.state, FINISHED) & FINISHED != 0 {
        return;
    }
    let t = &mut h.tallies[direction];
    t.call = *call;
    t.reaping.by = by;
    t.reaping.at_ns = now_ns;
    h.frames[direction].state = TALLY;
    let place = own(h, id);
    if shared::load(&place.id) == id {
        shared::store(&mut place.id, 0);
    } else {
        release(h, env, id);
    }
}

/// Takes a call out of where [`overflow`] has put it.
#[inline(never)]
fn release<E: Calls>(h: &mut Http2, env: &mut E, id: u32) {
    shared::lower(&mut h.elsewhere);
    // SAFETY: `more` gives null or calls that live as long as the socket.
    if let Some(more) = unsafe { env.more(false).as_mut() }
        && shared::load(&beyond(more, id).id) == id
    {
        shared::store(&mut beyond(more, id).id, 0);
        return;
    }
    let slot = slot_of(h, env, id);
    if slot < MAPPED as u32 {
        vacate(h, slot, |key| env.remove(key));
    }
}

/// Takes a call out of the map: out of it first, so that a slot that is free has none.
#[inline(always)]
pub fn vacate(h: &mut Http2, slot: u32, remove: impl FnOnce(&CallKey)) {
    remove(&CallKey { cookie: h.cookie, sidecar: h.sidecar, slot });
    shared::clear(slot_word(h, slot), 1 << (slot & 31));
    shared::lower(&mut h.mapped);
}

/// A call that has ended as it is counted: it ended by itself, or early, by the direction `by` less one.
#[inline(always)]
fn counted(c: &Connection, call: &Call, early: bool, by: u32, at_ns: u64) -> Finished {
    let (state, blind) = (call.state, call.state & IS_BLIND != 0);
    let grpc = state & (IS_GRPC | IS_LATE_GRPC) != 0;
    let mut protocol = if grpc { PROTOCOL_GRPC } else { PROTOCOL_HTTP };
    if state & (IS_GRPC | IS_LATE_GRPC | IS_NO_GRPC | MAY_BE_GRPC) == MAY_BE_GRPC {
        protocol = PROTOCOL_UNKNOWN;
    }
    let mut status = call.status & STATUS_MASK;
    let mut grpc_status = match call.status & (HAS_GRPC_STATUS | LACKS_GRPC_STATUS) {
        HAS_GRPC_STATUS if grpc => u64::from(call.grpc_status),
        LACKS_GRPC_STATUS if grpc => GRPC_UNKNOWN,
        _ => GRPC_NONE,
    };
    let mut outcome = if early { Counter::RequestEndedEarly } else { Counter::RequestOk };
    let unanswered = status == 0 && c.leg == DESTINATION && (by == RESPONSE as u32 + 1 || by == BROKEN);
    // What a proxy answers in place of an application depends on what it was asked.
    if status == 0 && (state & MAY_BE_ANSWERED != 0 || unanswered && protocol == PROTOCOL_UNKNOWN) {
        status = UNKNOWN;
    }
    if status == UNKNOWN || grpc_status == GRPC_UNKNOWN || protocol == PROTOCOL_UNKNOWN {
        outcome = if blind { Counter::RequestLate } else { Counter::RequestStatusUnknown };
    } else if unanswered {
        // The application ended it without an answer, or broke the protocol, and its proxy answers in its place.
        let answered = if by == BROKEN { 502 } else { 503 };
        status = if grpc { 200 + 1 } else { answered + 1 };
        grpc_status = if grpc { UNAVAILABLE } else { GRPC_NONE };
    } else if status == 200 + 1 && state & IS_UPGRADE != 0 {
        status = 101 + 1;
    }
    Finished {
        duration_ns: at_ns.saturating_sub(call.start_ns),
        bytes: call.bytes,
        messages: call.messages,
        grpc_status,
        status: match status {
            0 => 0,
            UNKNOWN => STATUS_UNKNOWN,
            status => status - 1,
        },
        protocol,
        security: (state >> SECURITY_SHIFT) as u8 & 3,
        outcome: outcome as u16,
    }
}

/// Adds the next request to those that ended like it; false if those that are there are not like it, and are due first.
#[inline(always)]
fn tally(t: &mut Tally) -> bool {
    if t.times != 0 && !is_alike(t) {
        t.due = 1;
        return false;
    }
    if t.times == 0 {
        t.finished = t.next;
        t.like = t.next_like;
        t.microseconds = 0;
    }
    t.microseconds += t.next.duration_ns / 1_000;
    t.times = t.times.wrapping_add(1);
    true
}

/// Writes down what the next call is counted as.
#[inline(never)]
fn conclude(c: &Connection, t: &mut Tally, early: bool) {
    let finished = counted(c, &t.call, early, t.reaping.by, t.reaping.at_ns);
    Finished::put(&mut t.next, &finished);
    let microseconds = t.next.duration_ns / 1_000;
    let (block, cell) = latency::cell(microseconds);
    t.next_like = block << 16 | cell << 8 | latency::bucket(microseconds / 1_000);
}

/// Counts what a tally has.
#[inline(always)]
pub fn flush<B: Book>(c: &mut Connection, env: &mut B, t: &mut Tally) {
    if shared::load(&t.times) != 0 {
        env.book(c, t);
    }
    t.times = 0;
    t.due = 0;
}

/// Does the next request differ from those that are there in nothing but its duration, and in that by no cell and no bucket?
///
/// Differences are added up rather than compared, since each comparison would be a branch.
#[inline(always)]
fn is_alike(t: &Tally) -> bool {
    let (a, b) = (&t.finished, &t.next);
    let differences = (a.bytes[REQUEST] ^ b.bytes[REQUEST])
        | (a.bytes[RESPONSE] ^ b.bytes[RESPONSE])
        | (a.grpc_status ^ b.grpc_status)
        | u64::from(a.messages[REQUEST] ^ b.messages[REQUEST])
        | u64::from(a.messages[RESPONSE] ^ b.messages[RESPONSE])
        | u64::from(a.status ^ b.status)
        | u64::from(a.outcome ^ b.outcome)
        | u64::from(a.protocol ^ b.protocol)
        | u64::from(a.security ^ b.security)
        | u64::from(t.like ^ t.next_like);
    differences == 0
}

/// A client has begun a stream.
#[inline(always)]
fn call_begins<E: Calls>(c: &mut Connection, h: &mut Http2, env: &mut E, id: u32, began_ns: u64) {
    h.last = id;
    if id & 1 == 0 {
        return;
    }
    let blind = h.frames[REQUEST].walk.partial | h.frames[RESPONSE].walk.partial | c.flags & LATE;
    let mut state = u32::from(env.security(c)) << SECURITY_SHIFT;
    if blind != 0 {
        state |= IS_BLIND;
    }
    if is_lost(c, &h.frames[RESPONSE]) {
        state |= MAY_BE_ANSWERED;
    }
    let call = Call {
        id,
        state,
        start_ns: if began_ns != 0 { began_ns } else { h.frames[REQUEST].now_ns },
        bytes: [0; 2],
        messages: [0; 2],
        left: [0; 2],
        grpc_status: 0,
        status: 0,
        prefix: [0; 2],
    };
    let place = own(h, id);
    if shared::load(&place.id) == 0 {
        settle_in(place, &call);
        return;
    }
    overflow(c, h, env, &call);
}

/// Puts a call into a place that is free.
#[inline(always)]
fn settle_in(place: &mut Call, call: &Call) {
    *place = Call { id: 0, ..*call };
    shared::store(&mut place.id, call.id);
}

/// Puts a call where there is room once its place in [`Http2`] is taken.
#[inline(never)]
fn overflow<E: Calls>(c: &mut Connection, h: &mut Http2, env: &mut E, call: &Call) {
    // SAFETY: `more` gives null or calls that live as long as the socket.
    if let Some(more) = unsafe { env.more(true).as_mut() } {
        let place = beyond(more, call.id);
        if shared::load(&place.id) == 0 {
            settle_in(place, call);
            shared::bump(&mut h.elsewhere);
            return;
        }
    }
    if h.sidecar == 0 {
        h.sidecar = c.sidecar;
    }
    if h.sidecar == 0 || h.sidecar == IGNORED {
        env.count(Counter::RequestUnattributed, 1);
        return;
    }
    let mut probe = 0;
    while probe < PROBES {
        let slot = probed(call.id, probe);
        let bit = 1 << (slot & 31);
        if shared::load(slot_word(h, slot)) & bit == 0 {
            if env.insert(&CallKey { cookie: h.cookie, sidecar: h.sidecar, slot }, call) {
                shared::set(slot_word(h, slot), bit);
                shared::bump(&mut h.mapped);
                shared::bump(&mut h.elsewhere);
                return;
            }
            break;
        }
        probe += 1;
    }
    env.count(Counter::RequestNoRoom, 1);
}

/// A slot of the map that a stream may have.
#[inline(always)]
fn probed(id: u32, probe: u32) -> u32 {
    (id >> 1).wrapping_add(probe.wrapping_mul(STRIDE)) & (MAPPED as u32 - 1)
}

/// The word with a slot's bit.
#[inline(always)]
pub fn slot_word(h: &mut Http2, slot: u32) -> &mut u32 {
    // SAFETY: the length is a power of two.
    unsafe { h.slots.get_unchecked_mut((slot >> 5) as usize & (MAPPED / 32 - 1)) }
}

/// The slot of a stream's call in the map; [`MAPPED`] if it is not there.
#[inline(never)]
fn slot_of<E: Calls>(h: &mut Http2, env: &mut E, id: u32) -> u32 {
    let mut probe = 0;
    while probe < PROBES {
        let slot = probed(id, probe);
        if shared::load(slot_word(h, slot)) & 1 << (slot & 31) != 0 {
            let call = env.call(&CallKey { cookie: h.cookie, sidecar: h.sidecar, slot });
            // SAFETY: `call` gives null or a call that lives as long as the program runs.
            if unsafe { call.as_ref() }.is_some_and(|call| shared::load(&call.id) == id) {
                return slot;
            }
        }
        probe += 1;
    }
    MAPPED as u32
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
    find_elsewhere(h, env, id)
}

/// As [`find`], where it is not in [`Http2`].
#[inline(never)]
fn find_elsewhere<E: Calls>(h: &mut Http2, env: &mut E, id: u32) -> *mut Call {
    // SAFETY: `more` gives null or calls that live as long as the socket.
    if let Some(more) = unsafe { env.more(false).as_mut() } {
        let place = beyond(more, id);
        if shared::load(&place.id) == id && id != 0 {
            return place;
        }
    }
    if shared::load(&h.mapped) == 0 {
        return core::ptr::null_mut();
    }
    let slot = slot_of(h, env, id);
    env.call(&CallKey { cookie: h.cookie, sidecar: h.sidecar, slot })
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

/// The place in [`More`] that an id has.
#[inline(always)]
fn beyond(more: &mut More, id: u32) -> &mut Call {
    // The verifier knows nothing of remainders, and the compiler not that it does not.
    let index = black_box((id >> 1) as usize % MORE);
    // SAFETY: checked just here.
    unsafe { more.calls.get_unchecked_mut(if index < MORE { index } else { 0 }) }
}

/// Ends one call for a reason that is not its own; true if its place is to be freed, and [`reaped`] to be called then.
#[inline(always)]
pub fn reap(t: &mut Tally, call: &mut Call) -> bool {
    let id = shared::load(&call.id);
    if id == 0 || id <= t.reaping.above || shared::set(&mut call.state, FINISHED) & FINISHED != 0 {
        return false;
    }
    if t.reaping.uncounted != 0 {
        t.reaping.calls = t.reaping.calls.wrapping_add(1);
    } else {
        t.call = *call;
        t.due = 1;
    }
    true
}

/// Tallies the call that was reaped, if it is to be counted.
#[inline(always)]
pub fn reaped<B: Book>(c: &mut Connection, env: &mut B, t: &mut Tally) {
    if shared::load(&t.due) == 0 {
        return;
    }
    t.due = 0;
    conclude(c, t, true);
    if !tally(t) {
        flush(c, env, t);
        tally(t);
    }
}

/// All calls are reaped.
#[inline(always)]
pub fn all_reaped<B: Book>(c: &mut Connection, env: &mut B, t: &mut Tally) {
    if t.reaping.uncounted != 0 {
        env.count_by_number(t.reaping.uncounted - 1, t.reaping.calls);
    }
    flush(c, env, t);
}

/// Has what came in `direction`, or the close ([`CLOSE`]), left calls without an end of their own? Then those are to be reaped for
/// what the tally of that number says. `over` says that it has ended the connection.
#[inline(always)]
pub fn settle(c: &Connection, h: &mut Http2, direction: usize, over: bool, now_ns: impl FnOnce() -> u64) -> bool {
    let (mut abandoned, mut going) = (0, 0);
    if direction != CLOSE {
        let f = &mut h.frames[direction];
        (abandoned, going) = (f.abandoned, f.going);
        f.abandoned = 0;
        f.going = 0;
    }
    // The last stream of a graceful GOAWAY is beyond all of them.
    if abandoned == 0 && !over && (going == 0 || going > h.last) {
        return false;
    }
    let lost = abandoned != 0 || is_lost(c, &h.frames[REQUEST]) || is_lost(c, &h.frames[RESPONSE]);
    // The proxy ends the connection of a peer that breaks the protocol, and with it what is open there.
    let broken = abandoned == BROKEN && is_received(c, direction);
    h.tallies[direction].reaping = Reaping {
        above: if over || abandoned != 0 { 0 } else { going.wrapping_sub(1) },
        uncounted: if broken {
            0
        } else if lost {
            Counter::RequestLostSync as u32 + 1
        } else if c.leg == SOURCE && !over {
            // What a proxy refuses by GOAWAY never began for it.
            Counter::RequestAbandoned as u32 + 1
        } else {
            0
        },
        calls: 0,
        by: if broken {
            BROKEN
        } else if over {
            shared::load(&c.first_end)
        } else {
            RESPONSE as u32 + 1
        },
        at_ns: if over && c.ended_ns != 0 { c.ended_ns } else { now_ns() },
    };
    true
}

/// Follows frames from the begin of a segment, to prove that it began with one, where reading then begins: enough of them in
/// a row, one that ends with the segment, two of the same stream, or an answer to a call that is open.
#[inline(never)]
fn prove<E: Calls>(c: &mut Connection, h: &mut Http2, env: &mut E, direction: usize) -> bool {
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
    let same = f.proven > 1 && header.stream != 0 && header.stream == f.stream;
    f.stream = header.stream;
    let mut proven = inside == u64::from(header.length) || f.proven == PROOF || same;
    if !proven && direction == RESPONSE && header.kind == HEADERS {
        proven = !find(h, env, header.stream).is_null();
    }
    let (s, f) = (&mut c.streams[direction], &mut h.frames[direction]);
    if proven {
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
