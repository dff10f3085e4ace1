//! The maps that calls of HTTP/2 need.

use std::ptr::null_mut;

use observer_ebpf::{
    hpack::{WIDE, Wide},
    http2::{self, Call, CallKey, Calls, Http2, Reaping},
    shared,
    socket::Connection,
};

use crate::{Packet, TURNS};

/// Calls that have room in the map; few, so that it is filled.
const ROOM: usize = 8;

impl Calls for Packet {
    fn frame_turns(&mut self, c: &mut Connection, h: &mut Http2, direction: usize) -> bool {
        (0..TURNS).any(|_| {
            self.turns += 1;
            http2::turn(c, h, self, direction)
        })
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

    fn each(&mut self, c: &mut Connection, h: &mut Http2, reaping: &Reaping) {
        for call in &mut h.calls {
            if http2::reap(c, self, call, reaping) {
                shared::store(&mut call.id, 0);
            }
        }
        let mut calls = std::mem::take(&mut self.calls);
        calls.retain(|_, call| {
            let over = http2::reap(c, self, call, reaping);
            if over {
                shared::lower(&mut h.elsewhere);
            }
            !over
        });
        self.calls = calls;
    }

    fn wide(&mut self, direction: usize) -> *mut Wide {
        &raw mut self.wide.get_or_insert_with(|| Box::new([Wide { entries: [0; WIDE] }; 2]))[direction]
    }
}
