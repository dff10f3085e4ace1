//! The kernel's side of a connection, played by the fuzz targets: packets in, findings out.

mod calls;

pub use calls::each;

use std::collections::HashMap;

use observer_common::health::Counter;
use observer_proto::{
    early::Places,
    hpack::Wide,
    http2::{Call, CallKey, More},
    socket::{self, Connection, Env, Finished},
    stream::{FILL, Stream, WINDOW},
};

/// As many steps as the kernel allows per packet.
const TURNS: u32 = 1 << 17;

/// Returns a connection as the programs first see it: all zero but the leg, the process known.
pub fn connection(leg: u32) -> Box<Connection> {
    // SAFETY: integers and arrays of integers, for which all zero is valid.
    let mut connection: Box<Connection> = Box::new(unsafe { std::mem::zeroed() });
    connection.leg = leg;
    connection.sidecar = 1;
    connection.flags = socket::ANCHORED;
    connection
}

/// One packet's bytes, and the connection's records.
#[derive(Default)]
pub struct Packet {
    /// The packet with its headers; the caller gives the payload's offset.
    pub bytes: Vec<u8>,
    /// A clock that advances by one at every read.
    pub now: u64,
    /// Requests counted.
    pub finished: Vec<Finished>,
    /// Connections opened and closed.
    pub connections: (u64, u64),
    /// TCP payload bytes of both directions.
    pub transferred: [u64; 2],
    /// Steps through packets.
    pub turns: u64,
    /// Health counters that were raised.
    pub counts: Vec<(Counter, u64)>,
    /// HTTP/2 calls in the overflow map.
    pub calls: HashMap<CallKey, Box<Call>>,
    /// Calls in the overflow map, if any.
    pub more: Option<Box<More>>,
    /// Buffers of larger header tables, if any.
    pub wide: Option<Box<[Wide; 2]>>,
    /// Out-of-order bytes.
    pub places: Places,
}

impl Env for Packet {
    fn now(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    fn take_place(&mut self) -> u32 {
        self.places.take(self.now)
    }

    fn keep(&mut self, stream: &mut Stream, at: u32, offset: u32, length: u32) -> bool {
        self.places.keep(stream.ticket, at, &self.bytes[offset as usize..(offset + length) as usize])
    }

    fn holds(&mut self, stream: &Stream) -> bool {
        self.places.held(stream.ticket).is_some()
    }

    fn release(&mut self, stream: &mut Stream) {
        self.places.release(std::mem::take(&mut stream.ticket));
    }

    fn load(&mut self, stream: &mut Stream, offset: u32, length: u32, at: u32) -> bool {
        assert!((1..=FILL).contains(&length), "{length} bytes cannot be loaded at once");
        assert!(at + length <= WINDOW, "{length} bytes at {at} overflow the window");
        let bytes = if stream.source == 0 {
            self.bytes.get(offset as usize..(offset + length) as usize)
        } else {
            self.places.held(stream.ticket).and_then(|place| place.read(offset)?.get(..length as usize))
        };
        let Some(bytes) = bytes else {
            panic!("bytes {offset} to {} of a packet of {} or of a place are read", offset + length, self.bytes.len());
        };
        for (index, byte) in bytes.iter().enumerate() {
            let index = at as usize + index;
            let shift = index % 8 * 8;
            let word = &mut stream.window[index / 8];
            *word = *word & !(0xff << shift) | u64::from(*byte) << shift;
        }
        true
    }

    fn turns(&mut self, c: &mut Connection, direction: usize) -> bool {
        (0..TURNS).any(|_| {
            self.turns += 1;
            socket::turn(c, self, direction)
        })
    }

    fn count(&mut self, counter: Counter, by: u64) {
        self.counts.push((counter, by));
    }

    fn finished(&mut self, c: &mut Connection, direction: usize) {
        self.finished.push(c.finished[direction]);
    }

    fn transferred(&mut self, _: &mut Connection, opened: u64, closed: u64, direction: usize, bytes: u64) {
        self.connections.0 += opened;
        self.connections.1 += closed;
        self.transferred[direction] += bytes;
    }

    fn security(&mut self, _: &mut Connection) -> u8 {
        0
    }
}
