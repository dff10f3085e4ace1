//! A packet as the programs read it: where its payload lies, and what reading it needs.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::generated::{bpf_loop, bpf_skb_load_bytes, bpf_tcp_sock},
};
use core::ffi::c_void;
use observer_common::health::Counter;
use observer_proto::{
    early::HELD_NS,
    segment::{Segment, Socket},
    shared,
    socket::{self, Connection, Env, REQUEST, RESPONSE},
    stream::{FILL, Stream},
};

use super::{
    context::{length_within, read},
    early, maps, record,
};

/// Turns for one packet: a 64 KiB packet of one-byte chunks needs 33,000; more than this has BIG TCP.
pub(super) const TURNS: u32 = 1 << 17;
/// Tries to enter a direction that another processor is in: some fifteen milliseconds, since a virtual one can be stopped
/// for that long. The kernel itself waits for a socket without a limit. Only a segment with new bytes that TCP will take gets so
/// far, and who is inside waits for nothing: a wait is never longer than the reading of one packet but for such a stop.
pub(super) const TRIES: u32 = 1 << 20;
const TCP: u8 = 6;
const HOP_BY_HOP: u8 = 0;

/// Finds the segment in a packet whose first header is IPv4 or IPv6 and whose second is TCP.
#[inline(always)]
pub(super) fn segment(skb: *mut __sk_buff) -> Option<Segment> {
    // SAFETY: context fields; every byte behind `data` is checked against `data_end` before it is read.
    unsafe {
        let (data, end) = ((*skb).data as usize, (*skb).data_end as usize);
        let byte = |at: usize| *(at as *const u8);
        let mut header = 40usize;
        if data + 40 > end {
            maps::count(Counter::LossHeaders as u32, 1);
            return None;
        }
        let mut next = byte(data + 6);
        if byte(data) >> 4 == 4 {
            header = (byte(data) as usize & 15) * 4;
            next = byte(data + 9);
        } else if next == HOP_BY_HOP && data + 48 <= end {
            // A packet above 64 KiB (BIG TCP) has its length in a jumbo option of eight bytes.
            header = 48;
            next = if byte(data + 41) == 0 { byte(data + 40) } else { next };
        }
        if next != TCP || header < 20 {
            maps::count(Counter::LossHeaders as u32, 1);
            return None;
        }
        let tcp = data + header;
        if tcp + 20 > end {
            maps::count(Counter::LossHeaders as u32, 1);
            return None;
        }
        let offset = header as u32 + (byte(tcp + 12) as u32 >> 4) * 4;
        let length = (*skb).len;
        Some(Segment {
            seq: u32::from_be(core::ptr::read_unaligned((tcp + 4) as *const u32)),
            ack: u32::from_be(core::ptr::read_unaligned((tcp + 8) as *const u32)),
            offset,
            length: if length > offset { length - offset } else { 0 },
            flags: byte(tcp + 13),
        })
    }
}

/// Where TCP is with a socket.
#[inline(always)]
pub(super) fn state_of(sk: *mut bpf_sock) -> Option<Socket> {
    // SAFETY: `sk` is a socket of the context's, not null; the helper gives null for what is no TCP socket.
    let tcp = unsafe { bpf_tcp_sock(sk) };
    if tcp.is_null() {
        return None;
    }
    Some(Socket {
        state: read!(sk, state),
        rcv_nxt: read!(tcp, rcv_nxt),
        snd_una: read!(tcp, snd_una),
        snd_nxt: read!(tcp, snd_nxt),
        acknowledged: read!(tcp, bytes_acked),
    })
}

/// As [`state_of`], if a received segment brings something that TCP will take; `None` for what it refuses, and for what has been
/// read before.
#[inline(always)]
pub(super) fn examine(sk: *mut bpf_sock, segment: &Segment, received: &Stream, sent: &Stream) -> Option<Socket> {
    if !segment.ends() && received.has_seen(segment.end()) {
        return None;
    }
    let socket = state_of(sk)?;
    let read = if received.anchored != 0 { shared::load(&received.next) } else { socket.rcv_nxt };
    let sent = if sent.anchored != 0 { shared::load(&sent.next) } else { socket.snd_nxt };
    socket.accepts(segment, read, sent).then_some(socket)
}

/// A segment to be read, in a direction that is entered: the sequence number up to which TCP has taken everything, and whether the
/// proxy has closed the socket and reads no more of it. In one word, so that no way by which it came is remembered.
#[derive(Clone, Copy)]
pub(super) struct Arrival(u64);

const IS_CLOSED: u64 = 1 << 32;
const REFUSED: u64 = 1 << 33;

impl Arrival {
    #[inline(always)]
    pub(super) fn accepted(self) -> u32 {
        self.0 as u32
    }
    #[inline(always)]
    pub(super) fn is_closed(self) -> bool {
        self.0 & IS_CLOSED != 0
    }
}

/// Looks at a segment and enters its direction, which is to be left with [`leave`] if it is one that is received.
#[inline(always)]
pub(super) fn arrived(
    c: &mut Connection,
    sk: *mut bpf_sock,
    segment: &Segment,
    egress: bool,
    direction: usize,
) -> Option<Arrival> {
    // What a socket sends is serialised by its lock, and all in front of it has been sent.
    let word = if egress { u64::from(segment.seq) } else { received(c, sk, segment, direction) };
    if word & REFUSED != 0 {
        return None;
    }
    // By storage: what is read there the verifier does not know, so that both ways are one from here on.
    let s = &mut c.streams[direction];
    // SAFETY: a reference is valid; volatile, so that the compiler does not hand the value on itself.
    let word = unsafe {
        core::ptr::write_volatile(&mut s.number, word);
        core::ptr::read_volatile(&s.number)
    };
    Some(Arrival(word))
}

#[inline(never)]
fn received(c: &mut Connection, sk: *mut bpf_sock, segment: &Segment, direction: usize) -> u64 {
    let [request, response] = &c.streams;
    let (into, back) = if direction == REQUEST { (request, response) } else { (response, request) };
    let Some(socket) = examine(sk, segment, into, back) else { return REFUSED };
    // What it receives can be on two processors at once.
    if !enter(&mut c.streams[direction]) {
        maps::count(Counter::SyncContended as u32, 1);
        return REFUSED;
    }
    u64::from(socket.accepted()) | if socket.is_closed() { IS_CLOSED } else { 0 }
}

unsafe extern "C" fn try_enter(_: u32, s: *mut *mut Stream) -> i64 {
    // SAFETY: the pointer that `enter` gave.
    let s = unsafe { &mut **s };
    i64::from(shared::claim(&mut s.busy, 0, 1))
}

/// Takes a direction for this processor.
#[inline(never)]
pub(super) fn enter(s: &mut Stream) -> bool {
    if shared::claim(&mut s.busy, 0, 1) {
        return true;
    }
    let mut pointer: *mut Stream = s;
    // SAFETY: the callback gets back the pointer given here.
    let tries = unsafe { bpf_loop(TRIES, try_enter as *mut c_void, (&raw mut pointer).cast(), 0) };
    tries < TRIES as i64
}

/// Leaves it to others.
#[inline(always)]
pub(super) fn leave(s: &mut Stream) {
    shared::store(&mut s.busy, 0);
}

/// What a loop's callback works on.
struct Walk {
    c: *mut Connection,
    skb: *mut __sk_buff,
    last: u32,
}

unsafe extern "C" fn request_turn(_: u32, walk: *mut Walk) -> i64 {
    // SAFETY: the pointer that `turns` gave; the connection outlives the program.
    let (walk, c) = unsafe { (&mut *walk, &mut *(*walk).c) };
    let last = socket::turn(c, &mut Packet { skb: walk.skb }, REQUEST);
    walk.last = u32::from(last);
    i64::from(last)
}

unsafe extern "C" fn response_turn(_: u32, walk: *mut Walk) -> i64 {
    // SAFETY: as above.
    let (walk, c) = unsafe { (&mut *walk, &mut *(*walk).c) };
    let last = socket::turn(c, &mut Packet { skb: walk.skb }, RESPONSE);
    walk.last = u32::from(last);
    i64::from(last)
}

/// A packet, where a connection's logic needs one.
pub(super) struct Packet {
    pub(super) skb: *mut __sk_buff,
}

impl Env for Packet {
    #[inline(always)]
    fn now(&mut self) -> u64 {
        record::now()
    }
    #[inline(always)]
    fn take_place(&mut self) -> u32 {
        early::take(0, HELD_NS)
    }
    #[inline(always)]
    fn keep(&mut self, stream: &mut Stream, at: u32, offset: u32, length: u32) -> bool {
        early::keep(self.skb, stream.ticket, at, offset, length)
    }
    #[inline(always)]
    fn holds(&mut self, stream: &Stream) -> bool {
        early::is_held(stream)
    }
    #[inline(always)]
    fn release(&mut self, stream: &mut Stream) {
        early::release(stream);
    }
    #[inline(always)]
    fn load(&mut self, stream: &mut Stream, offset: u32, length: u32, at: u32) -> bool {
        if shared::load(&stream.source) != 0 {
            return early::load(stream, stream.ticket, offset, at);
        }
        let window = stream.window.as_mut_ptr().cast::<u8>();
        let at = at as usize & 127;
        let Some(length) = length_within(length, FILL) else { return false };
        // SAFETY: `at` is below 128 and `length` at most 256; the window has 400 bytes.
        unsafe { bpf_skb_load_bytes(self.skb.cast(), offset, window.add(at).cast(), length) == 0 }
    }
    #[inline(always)]
    fn turns(&mut self, c: &mut Connection, direction: usize) -> bool {
        let mut walk = Walk { c, skb: self.skb, last: 0 };
        let callback = if direction == REQUEST { request_turn as *mut c_void } else { response_turn as *mut c_void };
        // SAFETY: the callback gets back the pointer given here.
        unsafe { bpf_loop(TURNS, callback, (&raw mut walk).cast(), 0) };
        walk.last != 0
    }
    #[inline(always)]
    fn count(&mut self, counter: Counter, by: u64) {
        maps::count(counter as u32, by);
    }
    #[inline(always)]
    fn finished(&mut self, c: &mut Connection, direction: usize) {
        record::finished(c, direction);
    }
    #[inline(always)]
    fn transferred(&mut self, c: &mut Connection, opened: u64, closed: u64, direction: usize, bytes: u64) {
        record::transferred(c, opened, closed, direction, bytes);
    }
    #[inline(always)]
    fn security(&mut self, c: &mut Connection) -> u8 {
        record::security(c)
    }
}
