//! A connection without a kernel: packets go in, finished requests come out.
#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod frames;
pub(crate) mod library;

use std::{collections::HashMap, ptr::null_mut};

use observer_common::{SECURITY_NONE, health::Counter};
use observer_proto::{
    early::Places,
    hpack::{WIDE, Wide},
    http2::{self, Book, CLOSE, Call, CallKey, Calls, Http2, MAPPED, More, Tally},
    shared,
    socket::{self, ANCHORED, Connection, DESTINATION, ENDED, Env, Finished, HTTP2, LATE, REQUEST, RESPONSE},
    stream::Stream,
};

/// What came out, and the maps that the programs would use.
#[derive(Default)]
pub(crate) struct Bed {
    pub(crate) clock: u64,
    pub(crate) packet: Vec<u8>,
    pub(crate) finished: Vec<Finished>,
    pub(crate) counts: Vec<(Counter, u64)>,
    pub(crate) opened: u64,
    pub(crate) closed: u64,
    pub(crate) bytes: [u64; 2],
    pub(crate) turns: u64,
    /// Boxed, so that a call stays where it is while others come and go.
    pub(crate) calls: HashMap<CallKey, Box<Call>>,
    /// Calls for which that map has no room, by their stream.
    pub(crate) refused: Vec<u32>,
    /// Calls beyond those of the connection's own, once there are some.
    pub(crate) more: Option<Box<More>>,
    /// How often requests were counted, one or some at a time.
    pub(crate) booked: u64,
    /// Both directions' larger rings, once they are wanted.
    pub(crate) wide: Option<Box<[Wide; 2]>>,
    /// There is no room for larger rings and further calls.
    pub(crate) narrow: bool,
    /// The places for early segments.
    pub(crate) places: Places,
    /// There is none.
    pub(crate) crowded: bool,
}

impl Bed {
    pub(crate) fn count_of(&self, counter: Counter) -> u64 {
        self.counts.iter().filter(|(other, _)| *other == counter).map(|(_, by)| by).sum()
    }
}

impl Env for Bed {
    fn now(&mut self) -> u64 {
        self.clock += 1_000;
        self.clock
    }
    fn take_place(&mut self) -> u32 {
        if self.crowded { 0 } else { self.places.take(self.clock) }
    }
    fn keep(&mut self, stream: &mut Stream, at: u32, offset: u32, length: u32) -> bool {
        self.places.keep(stream.ticket, at, &self.packet[offset as usize..(offset + length) as usize])
    }
    fn holds(&mut self, stream: &Stream) -> bool {
        self.places.held(stream.ticket).is_some()
    }
    fn release(&mut self, stream: &mut Stream) {
        self.places.release(std::mem::take(&mut stream.ticket));
    }
    fn load(&mut self, stream: &mut Stream, offset: u32, length: u32, at: u32) -> bool {
        assert!((1..=256).contains(&length) && at < 128, "load of {length} at {at}");
        let bytes = if stream.source == 0 {
            &self.packet[offset as usize..(offset + length) as usize]
        } else {
            let Some(bytes) = self.places.held(stream.ticket).and_then(|place| place.read(offset)) else {
                return false;
            };
            &bytes[..length as usize]
        };
        let window = stream.window.as_mut_ptr().cast::<u8>();
        for (i, byte) in bytes.iter().enumerate() {
            // SAFETY: at most 127 + 256 bytes into a window of 400.
            unsafe { *window.add(at as usize + i) = *byte };
        }
        true
    }
    fn turns(&mut self, c: &mut Connection, direction: usize) -> bool {
        for _ in 0..1 << 17 {
            self.turns += 1;
            if socket::turn(c, self, direction) {
                return true;
            }
        }
        false
    }
    fn count(&mut self, counter: Counter, by: u64) {
        self.counts.push((counter, by));
    }
    fn finished(&mut self, c: &mut Connection, direction: usize) {
        self.finished.push(c.finished[direction]);
    }
    fn transferred(&mut self, _: &mut Connection, opened: u64, closed: u64, direction: usize, bytes: u64) {
        self.opened += opened;
        self.closed += closed;
        self.bytes[direction] += bytes;
    }
    fn security(&mut self, _: &mut Connection) -> u8 {
        SECURITY_NONE
    }
}

impl Book for Bed {
    fn book(&mut self, _: &mut Connection, tally: &mut Tally) {
        // Each as if it had ended alone, but for what is not known any more: its own duration.
        assert_ne!(tally.times, 0);
        let each = u64::from(tally.times);
        let rest = tally.microseconds % each;
        for number in 0..each {
            let microseconds = tally.microseconds / each + u64::from(number < rest);
            self.finished.push(Finished { duration_ns: microseconds * 1_000, ..tally.finished });
        }
        self.booked += 1;
    }
    fn count_by_number(&mut self, counter: u32, by: u32) {
        if by > 0 {
            self.counts.push((Counter::ALL[counter as usize], by.into()));
        }
    }
}

impl Calls for Bed {
    fn frame_turns(&mut self, c: &mut Connection, h: &mut Http2, direction: usize) -> bool {
        for _ in 0..1 << 17 {
            self.turns += 1;
            if http2::turn(c, h, self, direction) {
                return true;
            }
        }
        false
    }
    fn more(&mut self, create: bool) -> *mut More {
        if self.more.is_none() && create && !self.narrow {
            // SAFETY: integers only; zero is how the kernel hands a new storage out.
            self.more = Some(Box::new(unsafe { std::mem::zeroed() }));
        }
        self.more.as_deref_mut().map_or(null_mut(), |more| &raw mut *more)
    }
    fn call(&mut self, key: &CallKey) -> *mut Call {
        self.calls.get_mut(key).map_or(null_mut(), |call| &raw mut **call)
    }
    fn insert(&mut self, key: &CallKey, call: &Call) -> bool {
        let room = !self.refused.contains(&call.id);
        if room {
            self.calls.insert(*key, Box::new(*call));
        }
        room
    }
    fn remove(&mut self, key: &CallKey) {
        self.calls.remove(key);
    }
    fn wide(&mut self, direction: usize) -> *mut Wide {
        if self.narrow {
            return null_mut();
        }
        &raw mut self.wide.get_or_insert_with(|| Box::new([Wide { entries: [0; WIDE] }; 2]))[direction]
    }
}

/// Reaps the connection's calls, as the programs do.
fn each(c: &mut Connection, h: &mut Http2, bed: &mut Bed, number: usize) {
    let mut t = h.tallies[number];
    for call in &mut h.calls {
        if http2::reap(&mut t, call) {
            shared::store(&mut call.id, 0);
            http2::reaped(c, bed, &mut t);
        }
    }
    if let Some(mut more) = bed.more.take() {
        for call in &mut more.calls {
            if http2::reap(&mut t, call) {
                shared::store(&mut call.id, 0);
                shared::lower(&mut h.elsewhere);
                http2::reaped(c, bed, &mut t);
            }
        }
        bed.more = Some(more);
    }
    for slot in 0..MAPPED as u32 {
        if *http2::slot_word(h, slot) & 1 << (slot % 32) == 0 {
            continue;
        }
        let call = bed.call(&CallKey { cookie: h.cookie, sidecar: h.sidecar, slot });
        // SAFETY: a bit says that there is a call, and it is boxed.
        if http2::reap(&mut t, unsafe { &mut *call }) {
            http2::vacate(h, slot, |key| bed.remove(key));
            shared::lower(&mut h.elsewhere);
            http2::reaped(c, bed, &mut t);
        }
    }
    http2::all_reaped(c, bed, &mut t);
    h.tallies[number] = t;
}

/// A connection and both its byte streams' starting sequence numbers, close to the wrap.
pub(crate) struct Wire {
    pub(crate) c: Box<Connection>,
    pub(crate) h: Box<Http2>,
    pub(crate) bed: Bed,
    pub(crate) base: [u32; 2],
    receivers: [Receiver; 2],
}

/// What TCP has taken of a direction.
#[derive(Default)]
struct Receiver {
    accepted: Option<usize>,
    early: Vec<(usize, usize)>,
}

impl Receiver {
    fn take(&mut self, from: usize, to: usize) {
        let accepted = self.accepted.get_or_insert(from);
        self.early.push((from, to));
        while let Some(at) = self.early.iter().position(|(from, _)| from <= accepted) {
            *accepted = (*accepted).max(self.early.swap_remove(at).1);
        }
    }
}

impl Wire {
    /// A fresh connection whose establishment was seen.
    pub(crate) fn new(leg: u32) -> Self {
        // SAFETY: integers only; zero is how the kernel hands a new storage out.
        let (c, h) = unsafe { (Box::new(std::mem::zeroed()), Box::new(std::mem::zeroed())) };
        let mut wire = Self { c, h, bed: Bed::default(), base: [u32::MAX - 700, 12], receivers: Default::default() };
        wire.h.cookie = 7;
        wire.c.leg = leg;
        wire.c.sidecar = 1;
        wire.c.destination.port = 8080;
        wire.c.flags = ANCHORED;
        for direction in [REQUEST, RESPONSE] {
            wire.c.streams[direction].anchored = 1;
            wire.c.streams[direction].next = wire.base[direction];
            wire.receivers[direction].accepted = Some(0);
        }
        wire
    }

    /// A connection that was open before the programs were attached.
    pub(crate) fn late(leg: u32) -> Self {
        let mut wire = Self::new(leg);
        wire.c.flags = LATE;
        wire.c.sync = 1;
        for stream in &mut wire.c.streams {
            stream.anchored = 0;
            stream.next = 0;
        }
        wire.receivers = Default::default();
        wire
    }

    /// Delivers bytes `[from, to)` of a direction's stream as one packet.
    pub(crate) fn deliver(&mut self, direction: usize, stream: &[u8], from: usize, to: usize) {
        if self.c.flags & ENDED != 0 {
            return;
        }
        self.bed.packet = vec![0xee; 52];
        self.bed.packet.extend_from_slice(&stream[from..to]);
        let seq = self.base[direction].wrapping_add(from as u32);
        let length = (to - from) as u32;
        let lost = self.catch_up(direction);
        self.receivers[direction].take(from, to);
        if lost {
            http2::pass_over(&mut self.c.streams[direction], seq, 52, length);
            return;
        }
        if self.c.protocol != HTTP2 {
            socket::payload(&mut self.c, &mut self.bed, direction, seq, 52, length);
        }
        if self.c.protocol == HTTP2 {
            http2::payload(&mut self.c, &mut self.h, &mut self.bed, direction, seq, 52, length);
            self.settle(direction, false);
        }
    }

    /// TCP takes bytes `[from, to)` that no hook sees.
    pub(crate) fn miss(&mut self, direction: usize, from: usize, to: usize) {
        self.receivers[direction].take(from, to);
    }

    /// Goes on at what TCP has taken, as every further packet does first; true if that costs the position.
    pub(crate) fn catch_up(&mut self, direction: usize) -> bool {
        let Some(accepted) = self.receivers[direction].accepted else { return false };
        let accepted = self.base[direction].wrapping_add(accepted as u32);
        if self.c.protocol != HTTP2 {
            socket::catch_up(&mut self.c, &mut self.bed, direction, accepted);
            return false;
        }
        let lost = http2::catch_up(&mut self.c, &mut self.h, &mut self.bed, direction, accepted);
        if lost {
            self.settle(direction, false);
        }
        lost
    }

    /// A FIN or RST of a direction.
    pub(crate) fn end(&mut self, direction: usize, reset: bool) {
        socket::ending(&mut self.c, &mut self.bed, direction, reset);
        if self.c.flags & LATE != 0 && (reset || self.c.first_end != direction as u32 + 1) {
            self.close();
        }
    }

    /// The socket's close.
    pub(crate) fn close(&mut self) {
        if self.c.protocol != HTTP2 {
            self.catch_up(REQUEST);
            self.catch_up(RESPONSE);
        }
        if socket::ended(&mut self.c, &mut self.bed) && self.c.protocol == HTTP2 {
            self.settle(CLOSE, true);
        }
    }

    fn settle(&mut self, direction: usize, over: bool) {
        let Self { c, h, bed, .. } = self;
        if http2::settle(c, h, direction, over, || bed.now()) {
            each(c, h, bed, direction);
        }
    }

    /// Calls of HTTP/2 that are open.
    pub(crate) fn open(&self) -> usize {
        let open = |calls: &[Call]| calls.iter().filter(|call| call.id != 0).count();
        let elsewhere = self.bed.more.as_ref().map_or(0, |more| open(&more.calls)) + self.bed.calls.len();
        assert_eq!(self.h.mapped as usize, self.bed.calls.len(), "calls in the map");
        assert_eq!(self.h.slots.iter().map(|word| word.count_ones()).sum::<u32>(), self.h.mapped);
        assert_eq!(self.h.elsewhere as usize, elsewhere);
        open(&self.h.calls) + elsewhere
    }
}

/// Destination-leg connection with both streams delivered whole, then closed by the server.
pub(crate) fn exchange(requests: &[u8], responses: &[u8]) -> Wire {
    let mut wire = Wire::new(DESTINATION);
    if !requests.is_empty() {
        wire.deliver(REQUEST, requests, 0, requests.len());
    }
    if !responses.is_empty() {
        wire.deliver(RESPONSE, responses, 0, responses.len());
    }
    wire
}
