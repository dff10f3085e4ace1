//! The maps that calls of HTTP/2 need.

use std::ptr::null_mut;

use observer_common::health::Counter;
use observer_proto::{
    hpack::{WIDE, Wide},
    http2::{self, Book, Call, CallKey, Calls, Http2, MAPPED, More, Tally},
    shared,
    socket::Connection,
};

use crate::{Packet, TURNS};

/// Calls that have room in the map; few, so that it is filled.
const ROOM: usize = 8;

impl Book for Packet {
    fn book(&mut self, _: &mut Connection, tally: &mut Tally) {
        assert!(tally.times > 0, "nothing is counted");
        self.finished.extend((0..tally.times).map(|_| tally.finished));
    }

    fn count_by_number(&mut self, counter: u32, by: u32) {
        self.counts.push((Counter::ALL[counter as usize], by.into()));
    }
}

impl Calls for Packet {
    fn frame_turns(&mut self, c: &mut Connection, h: &mut Http2, direction: usize) -> bool {
        (0..TURNS).any(|_| {
            self.turns += 1;
            http2::turn(c, h, self, direction)
        })
    }

    fn more(&mut self, create: bool) -> *mut More {
        if self.more.is_none() && create {
            // SAFETY: integers only, for which all zero is valid.
            self.more = Some(Box::new(unsafe { std::mem::zeroed() }));
        }
        self.more.as_deref_mut().map_or(null_mut(), |more| &raw mut *more)
    }

    fn call(&mut self, key: &CallKey) -> *mut Call {
        self.calls.get_mut(key).map_or(null_mut(), |call| &raw mut **call)
    }

    fn insert(&mut self, key: &CallKey, call: &Call) -> bool {
        let room = self.calls.len() < ROOM;
        if room {
            assert!(self.calls.insert(*key, Box::new(*call)).is_none(), "an open call is begun again");
        }
        room
    }

    fn remove(&mut self, key: &CallKey) {
        assert!(self.calls.remove(key).is_some(), "a call is removed that is not there");
    }

    fn wide(&mut self, direction: usize) -> *mut Wide {
        &raw mut self.wide.get_or_insert_with(|| Box::new([Wide { entries: [0; WIDE] }; 2]))[direction]
    }
}

/// Reaps the connection's calls, as the programs do.
pub fn each(c: &mut Connection, h: &mut Http2, packet: &mut Packet, number: usize) {
    let mut t = h.tallies[number];
    for call in &mut h.calls {
        if http2::reap(&mut t, call) {
            shared::store(&mut call.id, 0);
            http2::reaped(c, packet, &mut t);
        }
    }
    if let Some(mut more) = packet.more.take() {
        for call in &mut more.calls {
            if http2::reap(&mut t, call) {
                shared::store(&mut call.id, 0);
                shared::lower(&mut h.elsewhere);
                http2::reaped(c, packet, &mut t);
            }
        }
        packet.more = Some(more);
    }
    for slot in 0..MAPPED as u32 {
        if *http2::slot_word(h, slot) & 1 << (slot % 32) == 0 {
            continue;
        }
        let call = packet.call(&CallKey { cookie: h.cookie, sidecar: h.sidecar, slot });
        // SAFETY: a bit says that there is a call, and it is boxed.
        if http2::reap(&mut t, unsafe { &mut *call }) {
            http2::vacate(h, slot, |key| packet.remove(key));
            shared::lower(&mut h.elsewhere);
            http2::reaped(c, packet, &mut t);
        }
    }
    http2::all_reaped(c, packet, &mut t);
    h.tallies[number] = t;
}
