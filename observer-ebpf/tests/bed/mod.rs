//! A connection without a kernel: packets go in, finished requests come out.
#![allow(dead_code, reason = "each test file uses its part")]

use observer_ebpf::{
    SECURITY_NONE,
    health::Counter,
    socket::{self, ANCHORED, Connection, DESTINATION, Env, Finished, REQUEST, RESPONSE},
    stream::Stream,
};

/// What came out.
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
    fn load(&mut self, stream: &mut Stream, offset: u32, length: u32, at: u32) -> bool {
        assert!((1..=256).contains(&length) && at < 128, "load of {length} at {at}");
        let bytes = &self.packet[offset as usize..(offset + length) as usize];
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

/// A connection and both its byte streams' starting sequence numbers, close to the wrap.
pub(crate) struct Wire {
    pub(crate) c: Box<Connection>,
    pub(crate) bed: Bed,
    pub(crate) base: [u32; 2],
}

impl Wire {
    /// A fresh connection whose establishment was seen.
    pub(crate) fn new(leg: u32) -> Self {
        let mut wire = Self { c: zeroed(), bed: Bed::default(), base: [u32::MAX - 700, 12] };
        wire.c.leg = leg;
        wire.c.sidecar = 1;
        wire.c.destination.port = 8080;
        wire.c.flags = ANCHORED;
        for direction in [REQUEST, RESPONSE] {
            wire.c.streams[direction].anchored = 1;
            wire.c.streams[direction].next = wire.base[direction];
        }
        wire
    }

    /// Delivers bytes `[from, to)` of a direction's stream as one packet.
    pub(crate) fn deliver(&mut self, direction: usize, stream: &[u8], from: usize, to: usize) {
        self.bed.packet = vec![0xee; 52];
        self.bed.packet.extend_from_slice(&stream[from..to]);
        let seq = self.base[direction].wrapping_add(from as u32);
        socket::payload(&mut self.c, &mut self.bed, direction, seq, 52, (to - from) as u32);
    }

    /// A FIN or RST of a direction.
    pub(crate) fn end(&mut self, direction: usize, reset: bool) {
        socket::ending(&mut self.c, &mut self.bed, direction, reset);
    }

    /// The socket's close.
    pub(crate) fn close(&mut self) {
        socket::ended(&mut self.c, &mut self.bed);
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

fn zeroed() -> Box<Connection> {
    // SAFETY: integers only; zero is how the kernel hands a new storage out.
    unsafe { Box::new(std::mem::zeroed()) }
}
