//! One observed connection: which leg it is, what it speaks, and the exchanges open on it.
//!
//! The request direction writes an exchange, the response direction answers it; each may run on a processor of its own.
//! They meet only in [`crate::shared`] words, and whichever finishes an exchange last counts it.

use observer_common::{
    Endpoint, GRPC_NONE, GRPC_UNKNOWN, LEG_DESTINATION, LEG_SOURCE, PROTOCOL_GRPC, PROTOCOL_HTTP, STATUS_UNKNOWN,
    health::Counter,
};

use crate::{
    http1::{self, Malformed, Opening},
    segment::{FIN, RST, Segment},
    shared,
    stream::{CARRY, Stream, Token},
};

pub use observer_common::{REQUEST, RESPONSE};
/// Exchanges that can be open at once: requests pipelined behind each other.
pub const EXCHANGES: usize = 32;

/// [`Connection::leg`]: not decided yet.
pub const UNDECIDED: u32 = 0;
/// [`Connection::leg`]: the application's connection to its sidecar, or a client's to a gateway.
pub const SOURCE: u32 = LEG_SOURCE as u32;
/// [`Connection::leg`]: the sidecar's connection to its application.
pub const DESTINATION: u32 = LEG_DESTINATION as u32;
/// [`Connection::leg`]: a peer's connection to the sidecar; only its opening is read.
pub const INBOUND: u32 = 3;
/// [`Connection::leg`]: not to be counted.
pub const IGNORED: u32 = 4;

/// [`Connection::protocol`]: raw TCP.
pub const TCP: u32 = 1;
/// [`Connection::protocol`]: HTTP/1.
pub const HTTP1: u32 = 2;
/// [`Connection::protocol`]: HTTP/2.
pub const HTTP2: u32 = 3;
/// [`Connection::protocol`]: encrypted, at a gateway's door.
pub const ENCRYPTED: u32 = 4;

/// Flag: open before the programs were attached.
pub const LATE: u32 = 1;
/// Flag: accepted by a gateway.
pub const GATEWAY: u32 = 1 << 1;
/// Flag: the configuration says that the destination port is TCP.
pub const DECLARED_TCP: u32 = 1 << 2;
/// Flag: the end has been dealt with.
pub const ENDED: u32 = 1 << 3;
/// Flag: counted in the table of open inbound connections.
pub const LISTED: u32 = 1 << 4;
/// Flag: counted as an opened TCP connection.
pub const OPENED: u32 = 1 << 5;
/// Flag: the establishment was seen, so the first sequence numbers are known.
pub const ANCHORED: u32 = 1 << 6;
/// Flag: taken for a connection to the sidecar until it is seen who accepted it.
pub const TENTATIVE: u32 = 1 << 7;
/// Flag: the configuration says that the destination port is HTTP.
pub const DECLARED_HTTP: u32 = 1 << 8;
/// Flag: the sidecar has announced that it closes the connection: no further request is read.
const CLOSING: u32 = 1 << 9;
/// Flag: the client's first line is no request line, or not the first. A sidecar that speaks HTTP there refuses it.
const DOUBTFUL: u32 = 1 << 10;
/// Flag: the FIN of [`REQUEST`] was seen, and nothing in front of it is missing; that of [`RESPONSE`] is the next.
pub const FIN_SEEN: u32 = 1 << 16;

/// Bit of [`Exchange::state`]: the request is complete.
pub const REQUEST_DONE: u32 = 1;
/// Bit of [`Exchange::state`]: the response is complete and waits to be counted in [`Connection::finished`].
const ANSWERED: u32 = 1 << 1;
/// Bit of [`Exchange::state`]: counted.
pub const FINISHED: u32 = 1 << 2;
/// Bit of [`Exchange::state`]: a HEAD request.
const IS_HEAD: u32 = 1 << 3;
/// Bit of [`Exchange::state`]: a CONNECT request.
const IS_CONNECT: u32 = 1 << 4;
/// Bit of [`Exchange::state`]: a request to upgrade the connection.
const IS_UPGRADE: u32 = 1 << 5;
/// Bit of [`Exchange::state`]: gRPC, by the request's content type.
const IS_GRPC: u32 = 1 << 6;
/// Position of the security in [`Exchange::state`].
const SECURITY_SHIFT: u32 = 8;

/// A request and its response.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    /// First byte of the request, nanoseconds of `CLOCK_MONOTONIC`.
    pub start_ns: u64,
    /// Wire bytes of the request, once it is complete.
    pub request_bytes: u64,
    /// Bits above; shared.
    pub state: u32,
    /// Sequence number of the request's first byte.
    pub begin: u32,
}

/// One observed connection: the value of its socket's storage.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    /// Both directions.
    pub streams: [Stream; 2],
    /// Open exchanges; a ring.
    pub exchanges: [Exchange; EXCHANGES],
    /// First FIN or RST, nanoseconds of `CLOCK_MONOTONIC`.
    pub ended_ns: u64,
    /// End of the last response, nanoseconds of `CLOCK_MONOTONIC`; written by the response direction.
    pub answered_ns: u64,
    /// Number of the oldest unanswered exchange; written by the response direction.
    pub head: u32,
    /// Number of the next exchange; written by the request direction.
    pub tail: u32,
    /// Flags above; shared.
    pub flags: u32,
    /// Odd while the position in HTTP/1 is lost; shared.
    pub sync: u32,
    /// Direction of the last payload, plus one.
    pub turn: u32,
    /// Direction of the first FIN or RST, plus one; shared.
    pub first_end: u32,
    /// Which leg.
    pub leg: u32,
    /// What it speaks; shared.
    pub protocol: u32,
    /// Sidecar id, or 0 while unknown.
    pub sidecar: u32,
    /// Process (thread-group id) that opened or accepted it, or 0.
    pub process: u32,
    /// What the peer came with: one of the `SECURITY_` constants plus one, 0 while unknown. Inbound leg only.
    pub opening: u32,
    /// Where clients' connections to this leg's application are booked, plus one; 0 while unknown.
    pub door: u32,
    /// Series last used and its slot in one word, so that the next request like it needs no look-up; 0 is none.
    pub cached: u64,
    /// Requests being counted: one by the direction that completed it, at the close by [`REQUEST`].
    pub finished: [Finished; 2],
    /// Original destination (source leg), application (destination leg), original destination (inbound leg).
    pub destination: Endpoint,
    /// Zero.
    pub padding_end: u32,
}

const _: () = assert!(size_of::<Connection>() <= 2240);
const _: () = assert!(size_of::<Connection>().is_multiple_of(8));

/// A request to count.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// First request byte to last response byte, nanoseconds.
    pub duration_ns: u64,
    /// Wire bytes by direction.
    pub bytes: [u64; 2],
    /// gRPC messages by direction.
    pub messages: [u32; 2],
    /// gRPC status of 32 bits, [`observer_common::GRPC_NONE`] or [`observer_common::GRPC_UNKNOWN`].
    pub grpc_status: u64,
    /// HTTP status, 0, or [`STATUS_UNKNOWN`].
    pub status: u16,
    /// [`observer_common::PROTOCOL_HTTP`], [`observer_common::PROTOCOL_GRPC`] or [`observer_common::PROTOCOL_UNKNOWN`].
    pub protocol: u8,
    /// One of the `SECURITY_` constants.
    pub security: u8,
    /// How much of it was seen: the [`Counter`] of the requests like it.
    pub outcome: u16,
}

impl Finished {
    /// Writes what is to be counted to its place. Whoever counts it reads it from there: what comes out of storage the
    /// verifier does not know, and need not follow.
    #[inline(always)]
    pub fn put(place: &mut Self, finished: &Self) {
        // SAFETY: references are valid; volatile, so that the compiler does not hand the values on itself.
        unsafe {
            core::ptr::write_volatile(&mut place.duration_ns, finished.duration_ns);
            core::ptr::write_volatile(&mut place.bytes[REQUEST], finished.bytes[REQUEST]);
            core::ptr::write_volatile(&mut place.bytes[RESPONSE], finished.bytes[RESPONSE]);
            core::ptr::write_volatile(&mut place.messages[REQUEST], finished.messages[REQUEST]);
            core::ptr::write_volatile(&mut place.messages[RESPONSE], finished.messages[RESPONSE]);
            core::ptr::write_volatile(&mut place.status, finished.status);
            core::ptr::write_volatile(&mut place.grpc_status, finished.grpc_status);
            core::ptr::write_volatile(&mut place.protocol, finished.protocol);
            core::ptr::write_volatile(&mut place.security, finished.security);
            core::ptr::write_volatile(&mut place.outcome, finished.outcome);
        }
    }
}

/// What a connection needs from where it runs: the kernel, or a test.
pub trait Env {
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    fn now(&mut self) -> u64;
    /// Takes a place for segments that come early and returns its ticket; 0 if there is none.
    fn take_place(&mut self) -> u32;
    /// Copies packet bytes `[offset, offset + length)` to byte `at` of the stream's place; false if that cannot be.
    fn keep(&mut self, stream: &mut Stream, at: u32, offset: u32, length: u32) -> bool;
    /// Has the stream a place, and nobody taken it away?
    fn holds(&mut self, stream: &Stream) -> bool;
    /// Gives the stream's place back.
    fn release(&mut self, stream: &mut Stream);
    /// Copies bytes `[offset, offset + length)` of the packet, or of the stream's place if that is its source, to byte `at`
    /// of the window; `length` is 1 to 256.
    fn load(&mut self, stream: &mut Stream, offset: u32, length: u32, at: u32) -> bool;
    /// Takes turns until one says that it was the last; false if there were too many.
    fn turns(&mut self, c: &mut Connection, direction: usize) -> bool;
    /// Adds to a health counter.
    fn count(&mut self, counter: Counter, by: u64);
    /// Counts the request in [`Connection::finished`] of a direction.
    fn finished(&mut self, c: &mut Connection, direction: usize);
    /// Adds to the connection's TCP counters: opened, closed, and bytes of a direction.
    fn transferred(&mut self, c: &mut Connection, opened: u64, closed: u64, direction: usize, bytes: u64);
    /// How clients are now connected to the application behind this destination leg: one of the `SECURITY_` constants.
    fn security(&mut self, c: &mut Connection) -> u8;
}

/// An IPv4 address in network order as it stands in memory, mapped into IPv6.
#[inline(always)]
#[must_use]
pub fn mapped(ip4: u32) -> [u8; 16] {
    address([0, 0, 0xffff_0000_u32.to_le(), ip4])
}

/// An IPv6 address given as four words in network order as they stand in memory.
#[inline(always)]
#[must_use]
pub fn address(words: [u32; 4]) -> [u8; 16] {
    // SAFETY: both are 16 bytes without padding.
    unsafe { core::mem::transmute(words) }
}

/// Are these the same address?
#[inline(always)]
#[must_use]
pub fn same(a: &[u8; 16], b: &[u8; 16]) -> bool {
    u128::from_ne_bytes(*a) == u128::from_ne_bytes(*b)
}

/// Is this 127.0.0.6 or ::6, the source address of an inbound sidecar's connections to its application?
/// Source: istio `pilot/pkg/networking/core/cluster.go`.
#[inline(always)]
#[must_use]
pub fn is_magic(a: &[u8; 16]) -> bool {
    same(a, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 6])
        || same(a, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6])
}

/// Is this 127.0.0.1 or ::1?
#[inline(always)]
#[must_use]
pub fn is_loopback(a: &[u8; 16]) -> bool {
    same(a, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1])
        || same(a, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])
}

/// Is this any loopback address: 127.0.0.0/8 or ::1?
#[inline(always)]
#[must_use]
pub fn is_loopback_network(a: &[u8; 16]) -> bool {
    let mut first = *a;
    (first[13], first[14], first[15]) = (0, 0, 1);
    is_loopback(&first) && a[10] == 0xff || is_loopback(a)
}

/// Takes payload `[seq, seq + length)` that lies at packet offset `offset`. If the connection turns out to speak HTTP/2, the
/// payload is as if it had not been taken, and is to be given to [`crate::http2::payload`].
#[inline(always)]
pub fn payload<E: Env>(c: &mut Connection, env: &mut E, direction: usize, seq: u32, offset: u32, length: u32) {
    let s = &c.streams[direction];
    let before = (if s.anchored == 0 { seq } else { s.next }, s.seen);
    take(c, env, direction, seq, offset, length);
    if shared::load(&c.protocol) == HTTP2 {
        let s = &mut c.streams[direction];
        (s.next, s.seen) = before;
        s.clear();
        s.skip = 0;
    }
    wait_no_more(env, &mut c.streams[direction]);
}

/// Takes the payload of a connection that is TCP, whose bytes are counted only.
#[inline(always)]
pub fn pass_over<E: Env>(c: &mut Connection, env: &mut E, direction: usize, segment: &Segment) {
    let s = &mut c.streams[direction];
    if segment.length == 0 || !s.place(segment.seq, segment.offset, segment.length) {
        return;
    }
    if s.gap() != 0 {
        s.park(segment.seq, segment.end());
        return;
    }
    s.advance(segment.end());
    if s.waiting != 0 {
        s.forget_passed();
    }
    record(c, env, direction);
    wait_no_more(env, &mut c.streams[direction]);
}

/// Lets a segment wait for the bytes in front of it, with those of its bytes that will have to be read. One that cannot wait is as
/// if it had not come: once TCP has accepted it, [`catch_up`] finds that it is missing.
#[inline(never)]
pub fn wait<E: Env>(env: &mut E, s: &mut Stream, seq: u32, offset: u32, length: u32) {
    let end = seq.wrapping_add(length);
    let unread = s.unread_ahead();
    if end.wrapping_sub(s.next) <= unread {
        s.park(seq, end);
        return;
    }
    if s.ticket == 0 {
        prepare(env, s, unread);
    }
    if !keep(env, s, seq, offset, length) {
        if (s.next.wrapping_sub(s.base) as i32) <= 0 {
            return;
        }
        // The stream has passed what the place was taken for, but for something that never joined it.
        s.forget_parked();
        env.release(s);
        prepare(env, s, unread);
        if !keep(env, s, seq, offset, length) {
            return;
        }
    }
    s.park(seq, end);
}

/// Takes a place for what follows the next `unread` bytes.
#[inline(always)]
fn prepare<E: Env>(env: &mut E, s: &mut Stream, unread: u32) {
    s.base = s.next.wrapping_add(unread);
    s.ticket = env.take_place();
}

/// Keeps a segment's bytes in the stream's place, those in front of what that is for excepted; false if that cannot be.
#[inline(always)]
fn keep<E: Env>(env: &mut E, s: &mut Stream, seq: u32, offset: u32, length: u32) -> bool {
    let at = seq.wrapping_sub(s.base);
    let cut = if (at as i32) < 0 { at.wrapping_neg() } else { 0 };
    env.keep(s, at.wrapping_add(cut), offset.wrapping_add(cut), length.wrapping_sub(cut))
}

/// Gives the place for early segments back once none waits.
#[inline(always)]
pub fn wait_no_more<E: Env>(env: &mut E, s: &mut Stream) {
    if s.waiting == 0 && s.ticket != 0 {
        env.release(s);
    }
}

#[inline(always)]
fn take<E: Env>(c: &mut Connection, env: &mut E, direction: usize, seq: u32, offset: u32, length: u32) {
    if !c.streams[direction].place(seq, offset, length) {
        return;
    }
    let is_read = is_read(c);
    let s = &mut c.streams[direction];
    if s.gap() != 0 {
        if is_read {
            wait(env, &mut c.streams[direction], seq, offset, length);
        } else {
            c.streams[direction].park(seq, seq.wrapping_add(length));
        }
        return;
    }
    s.advance(seq.wrapping_add(length));
    if s.waiting != 0 && !is_read {
        s.forget_passed();
    }
    let turned = shared::load(&c.turn) != direction as u32 + 1;
    shared::store(&mut c.turn, direction as u32 + 1);
    if shared::load(&c.protocol) == UNDECIDED {
        decide_without_parsing(c, env, direction);
    }
    let protocol = shared::load(&c.protocol);
    if protocol == UNDECIDED || protocol == HTTP1 {
        if direction == RESPONSE {
            count_held(c);
        }
        if in_sync(c, env, direction, turned) && !env.turns(c, direction) {
            lose(c, env, Counter::SyncSteps);
        }
    }
    record(c, env, direction);
}

/// Counts what the packet has ended or moved.
#[inline(always)]
fn record<E: Env>(c: &mut Connection, env: &mut E, direction: usize) {
    count_due(c, env, direction);
    if shared::load(&c.protocol) == TCP && is_addressed(c) {
        transfer(c, env, direction);
    }
}

/// Takes one turn through the packet, and what of it was waited for; true if it was the last.
#[inline(always)]
pub fn turn<E: Env>(c: &mut Connection, env: &mut E, direction: usize) -> bool {
    count_due(c, env, direction);
    step(c, env, direction) && (c.streams[direction].waiting == 0 || !rejoin(c, env, direction))
}

/// Takes one step through the packet; true if there is nothing left to read.
#[inline(always)]
fn step<E: Env>(c: &mut Connection, env: &mut E, direction: usize) -> bool {
    let s = &mut c.streams[direction];
    if s.skip > 0 {
        if s.pass() == Token::Empty {
            return true;
        }
        passed(c, env, direction);
        return false;
    }
    if direction == REQUEST && s.phase == http1::PREAMBLE {
        return preamble(c, env);
    }
    if s.is_read() {
        match s.refill() {
            Token::Load(offset, length) => {
                let at = s.have;
                if !env.load(s, offset, length, at) {
                    return lost(c, env, Counter::SyncUnreadable);
                }
                c.streams[direction].loaded(length);
            }
            Token::Head(at, length) => {
                if s.facts & http1::LONG != 0 {
                    return false;
                }
                s.facts |= http1::LONG;
                shared::store(&mut s.line_at, at);
                shared::store(&mut s.line_length, length);
                return read(c, env, direction);
            }
            _ => {
                suspended(c, env, direction);
                return true;
            }
        }
    }
    let s = &mut c.streams[direction];
    if s.marks == 0 {
        s.mark();
    }
    http1::pass_lines(s);
    if s.marks == 0 {
        return false;
    }
    let (at, length) = s.next_line();
    s.message += u64::from(length) + 1;
    if s.facts & http1::LONG != 0 {
        s.facts &= !http1::LONG;
        if s.phase == http1::CHUNK {
            http1::chunk_begins(s);
        }
        return false;
    }
    let length = http1::trimmed(s, at, length);
    shared::store(&mut s.line_at, at);
    shared::store(&mut s.line_length, length);
    read(c, env, direction)
}

/// Notes the end of `direction`, if the segment is one or the bytes have come that an earlier one waited for; says whether it has
/// ended a connection whose close nothing else will tell of.
#[inline(always)]
pub fn reached_end<E: Env>(c: &mut Connection, env: &mut E, direction: usize, segment: &Segment) -> bool {
    let reset = segment.flags & RST != 0;
    let s = &mut c.streams[direction];
    let fin = segment.flags & FIN != 0 && s.fin(segment.end());
    let over = reset || fin || s.fin_is_due();
    if over {
        ending(c, env, direction, reset);
    }
    count_due(c, env, direction);
    if !over {
        return false;
    }
    // An older connection lacks the state callback.
    c.flags & LATE != 0 && (reset || c.first_end != direction as u32 + 1)
}

/// Notes that `direction` has ended, by a reset or by a FIN whose place in the stream is reached.
#[inline(always)]
pub fn ending<E: Env>(c: &mut Connection, env: &mut E, direction: usize, reset: bool) {
    if shared::claim(&mut c.first_end, 0, direction as u32 + 1) {
        c.ended_ns = env.now();
    }
    if !reset {
        shared::set(&mut c.flags, FIN_SEEN << direction);
    }
    let s = &c.streams[direction];
    let answered = direction == RESPONSE && c.protocol == HTTP1 && s.phase == http1::UNTIL_CLOSE && !reset;
    if answered && shared::load(&c.sync) & 1 == 0 {
        response_complete(c, env);
    }
}

/// Is what comes in `direction` of a connection whose socket the proxy has closed not read by anybody? Only a proxy of TCP goes on
/// reading what it has ended to write to.
#[inline(always)]
#[must_use]
pub fn is_deaf(c: &Connection, direction: usize) -> bool {
    shared::load(&c.protocol) == HTTP1 && c.streams[direction].phase != http1::TUNNEL
}

/// When the connection's first FIN or RST came, or now, nanoseconds of `CLOCK_MONOTONIC`.
#[inline(always)]
pub fn ended_at<E: Env>(c: &Connection, env: &mut E) -> u64 {
    if c.ended_ns != 0 { c.ended_ns } else { env.now() }
}

/// Deals with the end of the connection, once: a further call does nothing and returns false. The calls of HTTP/2 are
/// another's business, [`crate::http2::ended`].
#[inline(never)]
pub fn ended<E: Env>(c: &mut Connection, env: &mut E) -> bool {
    if shared::set(&mut c.flags, ENDED) & ENDED != 0 {
        return false;
    }
    for stream in &mut c.streams {
        if stream.ticket != 0 {
            env.release(stream);
        }
    }
    if shared::load(&c.protocol) == UNDECIDED {
        decide_at_the_end(c, env);
    }
    match shared::load(&c.protocol) {
        HTTP1 if shared::load(&c.sync) & 1 == 0 => leave_exchanges(c, env),
        TCP => {
            transfer(c, env, REQUEST);
            transfer(c, env, RESPONSE);
            if c.flags & OPENED != 0 {
                env.transferred(c, 0, 1, REQUEST, 0);
            }
        }
        ENCRYPTED if c.flags & OPENED != 0 => env.transferred(c, 0, 1, REQUEST, 0),
        UNDECIDED if c.leg == SOURCE || c.leg == DESTINATION => env.count(Counter::ConnectionSilent, 1),
        _ => {}
    }
    true
}

/// Decides a connection that ends undecided: without a whole first line, where the port is not declared, Envoy looks no further.
#[inline(never)]
fn decide_at_the_end<E: Env>(c: &mut Connection, env: &mut E) {
    let tail = shared::load(&c.tail);
    let complete = shared::load(&exchange(c, tail.wrapping_sub(1)).state) & REQUEST_DONE != 0;
    let begun = c.streams[REQUEST].phase != http1::START || complete;
    if tail != 0 && (c.flags & DECLARED_HTTP != 0 || (begun && c.flags & DOUBTFUL == 0)) {
        is_http1(c, env);
    } else if c.streams[REQUEST].seen | c.streams[RESPONSE].seen != 0 {
        is_tcp(c, env);
    }
}

/// Makes the connection TCP, if nothing else was decided.
#[inline(always)]
fn is_tcp<E: Env>(c: &mut Connection, env: &mut E) {
    if !shared::claim(&mut c.protocol, UNDECIDED, TCP) {
        return;
    }
    env.count(Counter::ConnectionTcp, 1);
}

/// The connection is established, and its destination known with it.
#[inline(always)]
pub fn connected<E: Env>(c: &mut Connection, env: &mut E) {
    if c.flags & DECLARED_TCP != 0 {
        is_tcp(c, env);
        open(c, env);
    }
}

/// The connection's destination has become known, and with it what its port is declared as.
#[inline(always)]
pub fn addressed<E: Env>(c: &mut Connection, env: &mut E) {
    if c.flags & DECLARED_TCP != 0 {
        is_tcp(c, env);
    } else if c.flags & DECLARED_HTTP != 0 && shared::load(&c.tail) != 0 {
        is_http1(c, env);
    }
    if shared::load(&c.protocol) == TCP {
        transfer(c, env, REQUEST);
        transfer(c, env, RESPONSE);
    }
}

/// Counts the connection as opened, once; an older one was opened before counting began.
#[inline(always)]
fn open<E: Env>(c: &mut Connection, env: &mut E) {
    if c.flags & (LATE | OPENED) == 0 && shared::set(&mut c.flags, OPENED) & OPENED == 0 {
        env.transferred(c, 1, 0, REQUEST, 0);
    }
}

/// Is it known where this connection goes? At the source it is once Envoy has accepted it and asked.
#[inline(always)]
fn is_addressed(c: &Connection) -> bool {
    c.leg != SOURCE || c.destination.port != 0
}

/// Decides what can be decided before the bytes are read.
#[inline(never)]
fn decide_without_parsing<E: Env>(c: &mut Connection, env: &mut E, direction: usize) {
    let s = &mut c.streams[direction];
    let first = s.seen == u64::from(s.end.wrapping_sub(s.offset));
    if c.flags & DECLARED_TCP != 0 {
        is_tcp(c, env);
    } else if c.flags & LATE != 0 {
        // Its first bytes are not these.
    } else if direction == RESPONSE {
        // Where the client's bytes leave it open, the server's decide: one of HTTP/2 may send its settings before the client's
        // preface has come, one of HTTP/1 answers, and all else is TCP.
        match server_opening(c, env) {
            Opening::Http2 => is_http2(c, env),
            Opening::Http1 => is_http1(c, env),
            Opening::Other => is_tcp(c, env),
        }
    } else if c.flags & DOUBTFUL != 0 {
        // A sidecar that speaks HTTP would have refused it.
        if is_addressed(c) && c.flags & DECLARED_HTTP == 0 {
            is_tcp(c, env);
        }
    } else if first && c.flags & GATEWAY != 0 {
        s.phase = http1::PREAMBLE;
    }
}

/// Do a server's first bytes begin a SETTINGS frame on stream 0 (RFC 9113 section 3.4), or a status line?
#[inline(always)]
fn server_opening<E: Env>(c: &mut Connection, env: &mut E) -> Opening {
    let doubtful = c.flags & DOUBTFUL != 0;
    let s = &mut c.streams[RESPONSE];
    let (offset, left) = (s.offset, s.end.wrapping_sub(s.offset));
    let length = if left < CARRY { left } else { CARRY };
    if s.seen != u64::from(left) || length < 9 || !env.load(s, offset, length, 0) {
        return Opening::Other;
    }
    let word = s.word(0);
    let size = (word as u32).swap_bytes() >> 8;
    if size < 256 && size.is_multiple_of(6) && word >> 24 == 4 && s.byte(8) == 0 {
        Opening::Http2
    } else if word << 8 == u64::from_le_bytes(*b"HTTP/1.\0") << 8 && (!doubtful || http1::is_refusal(s)) {
        Opening::Http1
    } else {
        Opening::Other
    }
}

/// Makes the connection HTTP/2, if nothing else was decided.
#[inline(always)]
fn is_http2<E: Env>(c: &mut Connection, env: &mut E) {
    if shared::claim(&mut c.protocol, UNDECIDED, HTTP2) {
        env.count(Counter::ConnectionHttp2, 1);
    }
}

/// Makes the connection an encrypted one at a gateway, if nothing else was decided.
#[inline(always)]
fn is_encrypted<E: Env>(c: &mut Connection, env: &mut E) {
    if shared::claim(&mut c.protocol, UNDECIDED, ENCRYPTED) {
        env.count(Counter::ConnectionEncrypted, 1);
        open(c, env);
    }
}

/// Books the bytes of a direction that the TCP counters do not have yet.
#[inline(never)]
fn transfer<E: Env>(c: &mut Connection, env: &mut E, direction: usize) {
    open(c, env);
    let s = &mut c.streams[direction];
    let seen = s.seen;
    let bytes = seen.wrapping_sub(shared::swap(&mut s.reported, seen));
    if bytes != 0 {
        env.transferred(c, 0, 0, direction, bytes);
    }
}

/// Is the content read of what comes, so that it must come in order?
#[inline(always)]
fn is_read(c: &Connection) -> bool {
    let protocol = shared::load(&c.protocol);
    (protocol == UNDECIDED && c.flags & DECLARED_TCP == 0 || protocol == HTTP1) && shared::load(&c.sync) & 1 == 0
}

/// Goes on at `accepted`, the sequence number up to which TCP has taken everything, whatever was seen of it. Only this gives a
/// position up: what a segment says of itself may be forged.
#[inline(never)]
pub fn catch_up<E: Env>(c: &mut Connection, env: &mut E, direction: usize, accepted: u32) {
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
    pass_unseen(c, env, direction, missing);
    c.streams[direction].advance(accepted);
}

/// Passes over bytes that were not seen: in a body their content does not matter, elsewhere the position is lost.
#[inline(always)]
fn pass_unseen<E: Env>(c: &mut Connection, env: &mut E, direction: usize, missing: u32) {
    if !is_read(c) {
        return;
    }
    let s = &mut c.streams[direction];
    if !s.covers(missing) {
        lose(c, env, Counter::SyncGap);
        return;
    }
    let missing = u64::from(missing);
    s.message += missing;
    if s.phase != http1::UNTIL_CLOSE && s.phase != http1::TUNNEL {
        s.skip -= missing;
        if s.skip == 0 {
            passed(c, env, direction);
        }
    }
}

/// Goes on with a segment that came early, now that the bytes in front of it are here; false if there is none.
#[inline(never)]
fn rejoin<E: Env>(c: &mut Connection, env: &mut E, direction: usize) -> bool {
    if !is_read(c) {
        return false;
    }
    let s = &mut c.streams[direction];
    let brought = s.unpark();
    if brought == 0 {
        return false;
    }
    if !s.covers(brought) && env.holds(s) {
        s.reopen(brought);
        return true;
    }
    pass_unseen(c, env, direction, brought);
    let s = &mut c.streams[direction];
    let end = s.next.wrapping_add(brought);
    s.advance(end);
    s.offset = s.end;
    true
}

/// Is the position in this direction known? If it was lost, tries to find it again.
#[inline(never)]
fn in_sync<E: Env>(c: &mut Connection, env: &mut E, direction: usize, turned: bool) -> bool {
    let sync = shared::load(&c.sync);
    let s = &mut c.streams[direction];
    if sync & 1 == 0 {
        if s.sync != sync {
            restart(s, sync);
        }
        if direction == REQUEST {
            go_on(c, sync);
        } else if s.phase == http1::SPENT && shared::load(&c.head) != shared::load(&c.tail) {
            // Something was asked since.
            restart(s, sync);
        }
        return true;
    }
    s.forget_parked();
    if !turned {
        return false;
    }
    // The direction has just changed: with HTTP/1 a message begins here, or the connection speaks something else.
    s.clear();
    let left = s.end.wrapping_sub(s.offset);
    let length = if left < CARRY { left } else { CARRY };
    let offset = s.offset;
    if length < 8 || !env.load(s, offset, length, 0) {
        return false;
    }
    if direction == RESPONSE {
        if s.word(0) << 8 == u64::from_le_bytes(*b"HTTP/1.\0") << 8 {
            is_http1(c, env);
        } else if http1::between_data(s) {
            is_http2(c, env);
        }
        return false;
    }
    http1::look_for_request(s, length);
    match shared::load(&s.found) {
        http1::FOUND_REQUEST => {
            is_http1(c, env);
            if shared::load(&c.protocol) != HTTP1 {
                return false;
            }
            let head = shared::load(&c.tail);
            shared::store(&mut c.head, head);
            restart(&mut c.streams[REQUEST], sync.wrapping_add(1));
            shared::store(&mut c.sync, sync.wrapping_add(1));
            true
        }
        http1::FOUND_PREFACE => {
            is_http2(c, env);
            false
        }
        http1::FOUND_OTHER => {
            if c.protocol == UNDECIDED {
                late_and_no_http1(c, env);
            }
            false
        }
        _ => false,
    }
}

/// Where a request that only its answer ends was answered, the next packet begins another; but none is read any more once the
/// connection is to be closed.
#[inline(always)]
fn go_on(c: &mut Connection, sync: u32) {
    let phase = c.streams[REQUEST].phase;
    let closing = shared::load(&c.flags) & CLOSING != 0;
    let last = shared::load(&c.tail).wrapping_sub(1);
    let answered = phase == http1::TUNNEL && shared::load(&exchange(c, last).state) & FINISHED != 0;
    let s = &mut c.streams[REQUEST];
    if closing && (phase == http1::START || answered) {
        spend(s);
    } else if answered {
        restart(s, sync);
    }
}

/// An older connection whose client does not begin a message where HTTP/1 would: HTTP/2 by the look of a frame, or TCP.
#[inline(always)]
fn late_and_no_http1<E: Env>(c: &mut Connection, env: &mut E) {
    let word = c.streams[REQUEST].word(0);
    // Any TLS record (RFC 8446 section 5.1): of one inside the connection nothing tells what it holds.
    if c.flags & GATEWAY != 0 && (0x14..=0x17).contains(&(word as u8)) && word >> 8 & 0xff == 3 {
        is_encrypted(c, env);
    } else if http1::frame_head(&c.streams[REQUEST]) {
        is_http2(c, env);
    } else if c.streams[RESPONSE].seen > 0 {
        is_tcp(c, env);
    }
}

/// Puts a stream between messages, at the next byte it sees.
#[inline(always)]
fn restart(s: &mut Stream, sync: u32) {
    s.clear();
    s.forget_parked();
    s.phase = http1::START;
    s.skip = 0;
    s.message = 0;
    s.facts = 0;
    s.sync = sync;
}

/// Puts a stream behind the last message that is read.
#[inline(always)]
fn spend(s: &mut Stream) {
    s.clear();
    s.phase = http1::SPENT;
    s.skip = u64::MAX;
    s.message = 0;
    s.facts = 0;
}

/// Gives up the position in the connection and counts what was open.
#[inline(never)]
fn lose<E: Env>(c: &mut Connection, env: &mut E, reason: Counter) {
    if shared::set(&mut c.sync, 1) & 1 != 0 {
        return;
    }
    env.count(reason, 1);
    let open = shared::load(&c.tail).wrapping_sub(shared::load(&c.head));
    let last = shared::load(&c.head).wrapping_sub(1);
    let held = shared::set(&mut exchange(c, last).state, FINISHED) & (ANSWERED | FINISHED) == ANSWERED;
    let open = open.wrapping_add(u32::from(held));
    env.count(Counter::RequestLostSync, u64::from(open));
}

/// Reads a line, or the head of a long one; true if the packet is not to be read further.
#[inline(never)]
fn read<E: Env>(c: &mut Connection, env: &mut E, direction: usize) -> bool {
    let s = &mut c.streams[direction];
    let (at, length) = (shared::load(&s.line_at), shared::load(&s.line_length));
    let whole = s.facts & http1::LONG == 0;
    let phase = s.phase;
    let result = if phase == http1::START {
        if length == 0 && (direction == REQUEST || c.leg == SOURCE) {
            return direction == REQUEST && passed_over(c, env);
        }
        return if direction == REQUEST {
            request_start(c, env, at, length, whole)
        } else {
            response_start(c, env, at, length)
        };
    } else if phase == http1::HEADERS || phase == http1::TRAILERS {
        if length == 0 && whole {
            if phase == http1::TRAILERS {
                complete(c, env, direction);
                return false;
            }
            return if direction == REQUEST { request_headers(c, env) } else { response_headers(c, env) };
        }
        let facts = s.facts;
        http1::header_line(s, at, length);
        // Asked anew, so that both phases are one way for the verifier.
        if shared::load(&s.phase) == http1::TRAILERS {
            // Only a gRPC status is of interest there.
            s.facts = facts;
        }
        Ok(())
    } else if phase == http1::CHUNK {
        let result = http1::chunk_line(s, at, length);
        if whole {
            http1::chunk_begins(s);
        }
        result
    } else if direction == REQUEST && phase == http1::PROXY_LINE {
        if whole {
            behind_preamble(s);
        }
        Ok(())
    } else {
        Err(Malformed)
    };
    if result.is_err() { broken(c, env, direction) } else { false }
}

/// An empty line is of no meaning before a request (RFC 9112 section 2.2), and the proxy's meter has its bytes with it; but no
/// connection is recognised as HTTP that begins with one. True if the packet is not to be read further.
#[inline(always)]
fn passed_over<E: Env>(c: &mut Connection, env: &mut E) -> bool {
    if shared::load(&c.protocol) != UNDECIDED || c.flags & DECLARED_HTTP != 0 {
        return false;
    }
    if c.leg == DESTINATION {
        is_tcp(c, env);
        return true;
    }
    shared::set(&mut c.flags, DOUBTFUL);
    false
}

/// Looks for a PROXY protocol header, which a gateway may be told to expect in front of everything; true if the packet is read.
#[inline(never)]
fn preamble<E: Env>(c: &mut Connection, env: &mut E) -> bool {
    let s = &mut c.streams[REQUEST];
    match http1::preamble(s) {
        http1::Preamble::Unknown => {}
        http1::Preamble::Begun => {
            if s.phase == http1::PROXY_BINARY && s.skip == 0 {
                behind_preamble(s);
            }
            return false;
        }
    }
    match s.supply() {
        Token::Load(offset, length) => {
            let at = s.have;
            if !env.load(s, offset, length, at) {
                return lost(c, env, Counter::SyncUnreadable);
            }
            c.streams[REQUEST].loaded(length);
            false
        }
        _ => true,
    }
}

/// What the connection is about begins here: the bytes so far are of no message.
#[inline(always)]
fn behind_preamble(s: &mut Stream) {
    s.phase = http1::START;
    s.reported = s.seen.wrapping_sub(to_come(s));
    s.message = 0;
}

/// Bytes of the packet that are not read yet.
#[inline(always)]
fn to_come(s: &Stream) -> u64 {
    u64::from(s.pending()) + u64::from(s.end.wrapping_sub(s.offset))
}

/// A message that Envoy refuses: of a request nothing more is read before its answer; an answer ends with it, and what the packet
/// has behind it is Envoy's too. True if the packet is not to be read further.
///
/// Elsewhere it was Envoy that wrote it, so that the position is lost, or the connection is no HTTP.
#[inline(never)]
fn broken<E: Env>(c: &mut Connection, env: &mut E, direction: usize) -> bool {
    let head = shared::load(&c.head);
    if direction == REQUEST && c.leg == SOURCE {
        let s = &mut c.streams[REQUEST];
        s.phase = http1::TUNNEL;
        s.skip = u64::MAX;
        return false;
    }
    if direction == RESPONSE && c.leg == DESTINATION && head != shared::load(&c.tail) {
        let s = &mut c.streams[RESPONSE];
        let headless = s.phase == http1::START || s.phase == http1::HEADERS;
        s.message += to_come(s);
        if headless {
            s.status = BAD_GATEWAY;
        }
        s.clear();
        s.offset = s.end;
        respond(c, env, if headless { PROXY } else { APPLICATION });
        spend(&mut c.streams[RESPONSE]);
        return true;
    }
    let first = direction == RESPONSE && head == 0 && c.flags & (LATE | DECLARED_HTTP) == 0;
    if first && shared::claim(&mut c.protocol, HTTP1, TCP) {
        env.count(Counter::ConnectionTcp, 1);
        return true;
    }
    lost(c, env, Counter::SyncMalformed)
}

#[inline(always)]
fn lost<E: Env>(c: &mut Connection, env: &mut E, reason: Counter) -> bool {
    lose(c, env, reason);
    true
}

/// Reads a status line; true if the packet is not to be read further.
#[inline(never)]
fn response_start<E: Env>(c: &mut Connection, env: &mut E, at: u32, length: u32) -> bool {
    let s = &mut c.streams[RESPONSE];
    let valid = http1::status_line(s, at, length).is_ok();
    if shared::load(&c.head) == shared::load(&c.tail) {
        if valid || c.leg != DESTINATION {
            return lost(c, env, Counter::SyncUnasked);
        }
        // Envoy closes a connection on which something comes that it has not asked for.
        spend(&mut c.streams[RESPONSE]);
        return false;
    }
    if shared::load(&c.protocol) == UNDECIDED {
        if !valid {
            is_tcp(c, env);
            return true;
        }
        is_http1(c, env);
    }
    if !valid {
        return broken(c, env, RESPONSE);
    }
    let s = &mut c.streams[RESPONSE];
    s.facts |= http1::BEGUN;
    s.phase = http1::HEADERS;
    false
}

/// Reads a request line; true if the packet is not to be read further.
#[inline(never)]
fn request_start<E: Env>(c: &mut Connection, env: &mut E, at: u32, length: u32, whole: bool) -> bool {
    let s = &mut c.streams[REQUEST];
    let facts = s.facts;
    http1::request_line(s, at, length, whole);
    if shared::load(&c.protocol) == UNDECIDED && !recognise(c, env, at, length, whole) {
        return true;
    }
    let s = &mut c.streams[REQUEST];
    let read = s.facts;
    s.facts = facts;
    if !begin(c, env) {
        return true;
    }
    let s = &mut c.streams[REQUEST];
    s.facts |= read;
    s.phase = http1::HEADERS;
    false
}

/// Makes the connection HTTP/1, if nothing else was decided.
#[inline(always)]
fn is_http1<E: Env>(c: &mut Connection, env: &mut E) {
    if shared::claim(&mut c.protocol, UNDECIDED, HTTP1) {
        env.count(Counter::ConnectionHttp1, 1);
    }
}

/// Decides an undecided connection by the client's first line, or what there is of it; false if it is not HTTP/1.
#[inline(never)]
fn recognise<E: Env>(c: &mut Connection, env: &mut E, at: u32, length: u32, whole: bool) -> bool {
    let opening = http1::opening(&mut c.streams[REQUEST], at, length, whole);
    let declared = c.flags & DECLARED_HTTP != 0;
    if opening == Opening::Http2 {
        is_http2(c, env);
        return false;
    }
    if declared || (opening == Opening::Http1 && c.flags & DOUBTFUL == 0) {
        // Before the original destination is known its port may yet turn out to be declared TCP.
        if is_addressed(c) && (declared || whole || length >= CARRY) {
            is_http1(c, env);
        }
        return true;
    }
    if c.flags & GATEWAY != 0 && c.streams[REQUEST].word(at) as u16 == 0x0316 {
        is_encrypted(c, env);
        return false;
    }
    if c.leg == DESTINATION {
        is_tcp(c, env);
        return false;
    }
    shared::set(&mut c.flags, DOUBTFUL);
    true
}

/// Opens an exchange for the request that begins here, unless that is done; false if there is no room.
#[inline(never)]
fn begin<E: Env>(c: &mut Connection, env: &mut E) -> bool {
    if c.streams[REQUEST].facts & http1::BEGUN != 0 {
        return true;
    }
    let tail = c.tail;
    if tail.wrapping_sub(shared::load(&c.head)) >= EXCHANGES as u32 {
        lose(c, env, Counter::SyncPipeline);
        return false;
    }
    let security = u32::from(env.security(c));
    let now = env.now();
    let s = &mut c.streams[REQUEST];
    s.facts |= http1::BEGUN;
    let begin = s.next.wrapping_sub(to_come(s) as u32).wrapping_sub(s.message as u32);
    let exchange = exchange(c, tail);
    exchange.start_ns = now;
    exchange.request_bytes = 0;
    exchange.begin = begin;
    shared::store(&mut exchange.state, security << SECURITY_SHIFT);
    shared::store(&mut c.tail, tail.wrapping_add(1));
    true
}

/// The packet ended inside a line, a body or between messages.
#[inline(never)]
fn suspended<E: Env>(c: &mut Connection, env: &mut E, direction: usize) {
    let s = &c.streams[direction];
    if s.phase != http1::START {
        return;
    }
    let (at, length) = (s.line, s.pending());
    if direction == RESPONSE {
        // Of an answer Envoy wants the first byte to be right at once.
        let odd = length != 0 && s.byte(at) != b'H' && c.leg == DESTINATION;
        if odd && shared::load(&c.protocol) == HTTP1 {
            broken(c, env, RESPONSE);
        }
        return;
    }
    if length == 0 && s.message == 0 {
        return;
    }
    // With its first byte, be it an empty line's, a request has begun for Envoy; so has what may become one.
    let undecided = shared::load(&c.protocol) == UNDECIDED;
    // A longer line is read as one. The verifier is to know, so that it sees no more of the judgement than this needs.
    let length = if length < CARRY { length } else { CARRY - 1 };
    if undecided && length != 0 && !recognise(c, env, at, length, false) {
        return;
    }
    begin(c, env);
}

/// The request's header has ended.
#[inline(never)]
fn request_headers<E: Env>(c: &mut Connection, env: &mut E) -> bool {
    let tail = c.tail;
    let s = &mut c.streams[REQUEST];
    let facts = s.facts;
    let malformed = http1::is_malformed(s);
    let upgrade = facts & (http1::UPGRADE | http1::SWITCH) == http1::UPGRADE | http1::SWITCH;
    let mut kind = 0;
    if facts & http1::HEAD != 0 {
        kind |= IS_HEAD;
    }
    if facts & http1::CONNECT != 0 {
        kind |= IS_CONNECT;
    }
    if upgrade {
        kind |= IS_UPGRADE;
    }
    if facts & http1::GRPC != 0 {
        kind |= IS_GRPC;
    }
    shared::set(&mut exchange(c, tail.wrapping_sub(1)).state, kind);
    let s = &mut c.streams[REQUEST];
    if malformed {
        return broken(c, env, REQUEST);
    }
    if upgrade || facts & http1::CONNECT != 0 {
        s.phase = http1::TUNNEL;
        s.skip = u64::MAX;
    } else if facts & http1::CHUNKED != 0 {
        s.phase = http1::CHUNK;
    } else if facts & http1::LENGTH != 0 && s.length > 0 {
        s.phase = http1::BODY;
        s.skip = s.length;
    } else {
        request_complete(c);
    }
    false
}

/// The response's header has ended: how long is its body (RFC 9112 section 6.3)?
#[inline(never)]
fn response_headers<E: Env>(c: &mut Connection, env: &mut E) -> bool {
    let head = c.head;
    let kind = shared::load(&exchange(c, head).state);
    let s = &mut c.streams[RESPONSE];
    let facts = s.facts;
    let status = s.status;
    let framed = facts & http1::CHUNKED != 0 || (facts & http1::LENGTH != 0 && s.length != 0);
    let bodiless = status < 200 || status == 204;
    if http1::is_malformed(s) || (bodiless && framed) {
        return broken(c, env, RESPONSE);
    }
    let switched = facts & (http1::UPGRADE | http1::SWITCH) == http1::UPGRADE | http1::SWITCH;
    let upgraded = status == 101 && switched && kind & IS_UPGRADE != 0;
    if upgraded || (kind & IS_CONNECT != 0 && (200..300).contains(&status)) {
        s.phase = http1::TUNNEL;
        s.skip = u64::MAX;
    } else if status < 200 && status != 101 {
        // An interim response: the final one follows, and its bytes are added to these.
        s.phase = http1::START;
        s.facts = http1::BEGUN;
    } else if kind & IS_HEAD != 0 || bodiless || status == 304 {
        response_complete(c, env);
    } else if facts & http1::CHUNKED != 0 {
        s.phase = http1::CHUNK;
    } else if facts & http1::LENGTH != 0 {
        if s.length == 0 {
            response_complete(c, env);
        } else {
            s.phase = http1::BODY;
            s.skip = s.length;
        }
    } else {
        s.phase = http1::UNTIL_CLOSE;
        s.skip = u64::MAX;
    }
    false
}

/// The bytes to skip are passed: what comes next?
#[inline(always)]
fn passed<E: Env>(c: &mut Connection, env: &mut E, direction: usize) {
    let s = &mut c.streams[direction];
    if s.phase == http1::CHUNK_DATA {
        s.phase = http1::CHUNK;
    } else if s.phase == http1::BODY {
        complete(c, env, direction);
    } else if direction == REQUEST && s.phase == http1::PROXY_BINARY {
        behind_preamble(s);
    }
}

#[inline(always)]
fn complete<E: Env>(c: &mut Connection, env: &mut E, direction: usize) {
    if direction == REQUEST { request_complete(c) } else { response_complete(c, env) }
}

/// The request has ended.
#[inline(never)]
fn request_complete(c: &mut Connection) {
    let number = c.tail.wrapping_sub(1);
    let source = c.leg == SOURCE;
    let s = &mut c.streams[REQUEST];
    let mut bytes = s.message;
    if source && http1::is_last(s.facts) {
        // Nothing more is read, but what the proxy has read with it is in its meter.
        bytes += to_come(s);
        s.offset = s.end;
        spend(s);
    } else {
        s.message = 0;
        s.facts = 0;
        s.phase = http1::START;
    }
    let exchange = exchange(c, number);
    exchange.request_bytes = bytes;
    if shared::set(&mut exchange.state, REQUEST_DONE) & ANSWERED != 0 {
        c.streams[REQUEST].due = number.wrapping_add(1);
    }
}

/// The response has ended. At the destination the bytes that come with its end and belong to nothing are in Envoy's meter too, and
/// make it close the connection.
#[inline(never)]
fn response_complete<E: Env>(c: &mut Connection, env: &mut E) {
    let open = shared::load(&c.tail).wrapping_sub(shared::load(&c.head));
    let destination = c.leg == DESTINATION;
    let s = &mut c.streams[RESPONSE];
    let closing = !destination && s.facts & http1::CLOSE != 0;
    let surplus = to_come(s);
    if destination && surplus != 0 && open == 1 {
        s.message += surplus;
        s.offset = s.end;
        respond(c, env, APPLICATION);
        spend(&mut c.streams[RESPONSE]);
        return;
    }
    if closing {
        shared::set(&mut c.flags, CLOSING);
    }
    respond(c, env, APPLICATION);
    let s = &mut c.streams[RESPONSE];
    s.message = 0;
    s.facts = 0;
    s.skip = 0;
    s.phase = http1::START;
}

/// Whose word an answer is: the application's, or that of its proxy in its place.
const APPLICATION: u32 = 0;
const PROXY: u32 = 1;
/// What Envoy answers for an application that does not.
const UNAVAILABLE: u32 = 503;
/// What it answers for one whose answer it refuses.
const BAD_GATEWAY: u32 = 502;
/// The status of gRPC with both.
const GRPC_UNAVAILABLE: u32 = 14;

/// The oldest open exchange is answered by what the response's stream holds. It is counted now, or with the request's end: an
/// application may answer first and read on.
#[inline(always)]
fn respond<E: Env>(c: &mut Connection, env: &mut E, by: u32) {
    let number = shared::load(&c.head);
    let now = env.now();
    let s = &c.streams[RESPONSE];
    let given = Answer { status: s.status, by, early: false, bytes: s.message, at_ns: now };
    write_down(c, number, &given, RESPONSE);
    let reads_on = c.leg == DESTINATION && by == APPLICATION && c.streams[REQUEST].phase != http1::TUNNEL;
    let state = shared::set(&mut exchange(c, number).state, if reads_on { ANSWERED } else { 0 });
    if state & REQUEST_DONE != 0 || !reads_on {
        settle(c, number);
        c.streams[RESPONSE].due = number.wrapping_add(1);
    }
    shared::store(&mut c.head, number.wrapping_add(1));
}

/// Says how many bytes a request has that is not complete: what was sent of it. Where Envoy closes the connection, what was sent
/// behind a complete one was read with it.
#[inline(never)]
fn settle(c: &mut Connection, number: u32) {
    let s = &c.streams[REQUEST];
    let sent = s.message + unread(s);
    let next = s.next;
    let behind = shared::load(&c.tail).wrapping_sub(number) > 1;
    let closing = shared::load(&c.flags) & CLOSING != 0;
    let exchange = exchange(c, number);
    if shared::load(&exchange.state) & REQUEST_DONE == 0 {
        exchange.request_bytes = sent;
    } else if closing && behind {
        exchange.request_bytes = u64::from(next.wrapping_sub(exchange.begin));
    }
}

/// The last answered exchange is to be counted, if it still waits for its request's end.
#[inline(always)]
fn count_held(c: &mut Connection) {
    let last = shared::load(&c.head).wrapping_sub(1);
    if shared::load(&exchange(c, last).state) & (ANSWERED | FINISHED) == ANSWERED {
        settle(c, last);
        c.streams[RESPONSE].due = last.wrapping_add(1);
    }
}

/// Counts the exchange that a direction has ended, if there is one.
#[inline(always)]
fn count_due<E: Env>(c: &mut Connection, env: &mut E, direction: usize) {
    let due = c.streams[direction].due;
    if due != 0 {
        c.streams[direction].due = 0;
        count(c, env, due.wrapping_sub(1), RESPONSE);
    }
}

/// How a request was answered.
struct Answer {
    status: u32,
    by: u32,
    early: bool,
    bytes: u64,
    at_ns: u64,
}

/// Writes what is to be counted of an exchange to a direction's place.
#[inline(never)]
fn write_down(c: &mut Connection, number: u32, answer: &Answer, direction: usize) {
    let exchange = exchange(c, number);
    let state = shared::load(&exchange.state);
    // A request that was sent before the answer to the one before it is taken up with that.
    let start = exchange.start_ns;
    let start = if start < c.answered_ns { c.answered_ns } else { start };
    c.answered_ns = answer.at_ns;
    let grpc = state & IS_GRPC != 0;
    let mut status = answer.status;
    let mut grpc_status = c.streams[RESPONSE].grpc_status;
    c.streams[RESPONSE].grpc_status = 0;
    if grpc && answer.by == PROXY {
        status = 200;
        grpc_status = GRPC_UNAVAILABLE + 1;
    }
    let finished = Finished {
        duration_ns: answer.at_ns.saturating_sub(start),
        bytes: [0, answer.bytes],
        messages: [0; 2],
        status: if status < 1000 { status as u16 } else { STATUS_UNKNOWN },
        grpc_status: if !grpc || grpc_status == 0 {
            GRPC_NONE
        } else if grpc_status == u32::MAX {
            GRPC_UNKNOWN
        } else {
            u64::from(grpc_status - 1)
        },
        protocol: if grpc { PROTOCOL_GRPC } else { PROTOCOL_HTTP },
        security: (state >> SECURITY_SHIFT) as u8,
        outcome: if answer.early { Counter::RequestEndedEarly } else { Counter::RequestOk } as u16,
    };
    Finished::put(&mut c.finished[direction], &finished);
}

/// Counts an exchange once, as it stands in a direction's place.
#[inline(never)]
fn count<E: Env>(c: &mut Connection, env: &mut E, number: u32, direction: usize) {
    let exchange = exchange(c, number);
    let bytes = exchange.request_bytes;
    if shared::set(&mut exchange.state, FINISHED) & FINISHED == 0 {
        c.finished[direction].bytes[REQUEST] = bytes;
        env.finished(c, direction);
    }
}

/// The connection has ended: the exchange it was in is counted, those behind it never began for the proxy.
#[inline(never)]
fn leave_exchanges<E: Env>(c: &mut Connection, env: &mut E) {
    count_held(c);
    count_due(c, env, RESPONSE);
    let (head, tail) = (shared::load(&c.head), shared::load(&c.tail));
    if head == tail {
        return;
    }
    let open = tail.wrapping_sub(head);
    if shared::load(&c.flags) & CLOSING != 0 {
        env.count(Counter::RequestAbandoned, u64::from(open));
        return;
    }
    let at = ended_at(c, env);
    let s = &c.streams[RESPONSE];
    let phase = s.phase;
    let bytes = s.message + unread(s);
    let ended_by_application = c.leg == DESTINATION && c.first_end == RESPONSE as u32 + 1;
    let headless = phase == http1::START || (phase == http1::HEADERS && c.leg == DESTINATION);
    let (status, by) = if s.facts & http1::FINAL != 0 && !headless {
        (s.status, APPLICATION)
    } else if !ended_by_application {
        // Envoy has the code of what it has passed on, be it an interim one.
        let interim = s.message != 0 && phase == http1::START && s.status < 200;
        (if interim { s.status } else { 0 }, APPLICATION)
    } else if phase == http1::HEADERS || s.pending() != 0 {
        (BAD_GATEWAY, PROXY)
    } else {
        (UNAVAILABLE, PROXY)
    };
    let early = phase != http1::UNTIL_CLOSE && phase != http1::TUNNEL;
    write_down(c, head, &Answer { status, by, early, bytes, at_ns: at }, REQUEST);
    if open == 1 {
        settle(c, head);
    }
    count(c, env, head, REQUEST);
    if open > 1 {
        env.count(Counter::RequestAbandoned, u64::from(open - 1));
    }
}

/// Bytes of an unfinished line, if a message has begun.
#[inline(always)]
fn unread(s: &Stream) -> u64 {
    if s.facts & http1::BEGUN != 0 || s.phase == http1::START { u64::from(s.pending()) } else { 0 }
}

#[inline(always)]
fn exchange(c: &mut Connection, number: u32) -> &mut Exchange {
    // SAFETY: the ring's length is a power of two.
    unsafe { c.exchanges.get_unchecked_mut(number as usize & (EXCHANGES - 1)) }
}
