//! cgroup_skb: every packet of the sidecar's sockets, in both directions.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::generated::{bpf_loop, bpf_skb_cgroup_id, bpf_skb_load_bytes},
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use core::ffi::c_void;
use observer_ebpf::{
    Endpoint, MODE_GATEWAY, MODE_TPROXY, PORT_EXCLUDED,
    health::Counter,
    shared,
    socket::{
        self, ANCHORED, Connection, DESTINATION, ENDED, Env, Finished, GATEWAY, INBOUND, LATE, REQUEST, RESPONSE,
        SOURCE, UNDECIDED,
    },
    stream::{FILL, Stream},
    tls,
};

use super::{
    context::{local_of, opaque, read, remote_of},
    maps, record,
    sock_ops::OUTBOUND_PORT,
};

/// Turns for one packet: a 64 KiB packet of one-byte chunks needs 33,000; more than this has BIG TCP.
const TURNS: u32 = 1 << 17;
/// Tries to enter a direction that another processor is in: about a millisecond.
const TRIES: u32 = 1 << 16;
const FIN: u8 = 1;
const RST: u8 = 4;
const ESTABLISHED: u32 = 1;
const TCP: u8 = 6;
const HOP_BY_HOP: u8 = 0;

/// What the sidecar's sockets receive.
#[cgroup_skb]
#[inline(always)]
pub(crate) fn mesh_ingress(ctx: SkBuffContext) -> i32 {
    packet(ctx.skb.skb, false);
    1
}

/// What they send.
#[cgroup_skb]
#[inline(always)]
pub(crate) fn mesh_egress(ctx: SkBuffContext) -> i32 {
    packet(ctx.skb.skb, true);
    1
}

/// A segment's place in the packet and in the stream.
struct Segment {
    seq: u32,
    offset: u32,
    length: u32,
    flags: u8,
}

#[inline(always)]
fn packet(skb: *mut __sk_buff, egress: bool) -> Option<()> {
    let sk = read!(skb, __bindgen_anon_2.sk);
    if sk.is_null() {
        return None;
    }
    let c = match maps::connection(sk) {
        Some(c) => c,
        None => late(skb, sk)?,
    };
    if c.leg == socket::IGNORED || c.flags & ENDED != 0 {
        return None;
    }
    if c.sidecar == 0 || c.leg == UNDECIDED {
        attribute(c, skb, sk);
    }
    let leg = c.leg;
    if leg == INBOUND {
        return opening(c, skb, egress);
    }
    if leg != SOURCE && leg != DESTINATION {
        return None;
    }
    let protocol = shared::load(&c.protocol);
    if protocol == socket::HTTP2 || protocol == socket::ENCRYPTED {
        return None;
    }
    let segment = segment(skb)?;
    if segment.length == 0 && segment.flags & (FIN | RST) == 0 {
        return None;
    }
    if c.flags & (ANCHORED | LATE) == 0 {
        joined_late(c);
    }
    if egress && leg == SOURCE && c.destination.port == 0 {
        dialled(c, skb);
    }
    if egress == (leg == DESTINATION) {
        segment_of(c, skb, &segment, egress, REQUEST);
    } else {
        segment_of(c, skb, &segment, egress, RESPONSE);
    }
    Some(())
}

#[inline(always)]
fn segment_of(c: &mut Connection, skb: *mut __sk_buff, segment: &Segment, egress: bool, direction: usize) {
    let mut env = Packet { skb };
    // What a socket sends is serialised by its lock; what it receives can be on two processors at once.
    if !egress && !enter(&mut c.streams[direction]) {
        maps::count(Counter::SyncContended, 1);
        return;
    }
    if segment.length != 0 {
        socket::payload(c, &mut env, direction, segment.seq, segment.offset, segment.length);
    }
    if segment.flags & (FIN | RST) != 0 {
        socket::ending(c, &mut env, direction, segment.flags & RST != 0);
        // Without the state callback, which an older connection lacks, its end shows only here.
        if c.flags & LATE != 0 && (segment.flags & RST != 0 || c.first_end != direction as u32 + 1) {
            socket::ended(c, &mut env);
        }
    }
    if !egress {
        shared::store(&mut c.streams[direction].busy, 0);
    }
}

/// The opening of a peer's connection: only until it is clear what it came with.
#[inline(never)]
fn opening(c: &mut Connection, skb: *mut __sk_buff, egress: bool) -> Option<()> {
    if c.opening != 0 {
        if c.flags & socket::LISTED == 0 {
            record::list(c);
        } else if !egress && segment(skb)?.length != 0 {
            record::received(c);
        }
        return None;
    }
    if egress || c.flags & ANCHORED == 0 {
        return None;
    }
    let segment = segment(skb)?;
    if segment.length == 0 || !enter(&mut c.streams[REQUEST]) {
        return None;
    }
    if let Some((gap, known)) = c.streams[REQUEST].place(segment.seq, segment.length) {
        let s = &mut c.streams[REQUEST];
        s.advance(segment.seq.wrapping_add(segment.length));
        s.offset = segment.offset + known;
        s.end = segment.offset + segment.length;
        if gap == 0 {
            let mut walk = Walk { c, skb, last: 0 };
            // SAFETY: the callback gets back the pointer given here.
            unsafe { bpf_loop(tls::STEPS, hello as *mut c_void, (&raw mut walk).cast(), 0) };
        }
    }
    shared::store(&mut c.streams[REQUEST].busy, 0);
    record::list(c);
    None
}

/// What a loop's callback works on.
struct Walk {
    c: *mut Connection,
    skb: *mut __sk_buff,
    last: u32,
}

unsafe extern "C" fn hello(_: u32, walk: *mut Walk) -> i64 {
    // SAFETY: the pointer that `opening` gave; the connection outlives the program.
    let (walk, c) = unsafe { (&mut *walk, &mut *(*walk).c) };
    i64::from(tls::step(c, &mut Packet { skb: walk.skb }))
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

unsafe extern "C" fn try_enter(_: u32, s: *mut *mut Stream) -> i64 {
    // SAFETY: the pointer that `enter` gave.
    let s = unsafe { &mut **s };
    i64::from(shared::claim(&mut s.busy, 0, 1))
}

/// Takes a direction for this processor.
#[inline(always)]
fn enter(s: &mut Stream) -> bool {
    if shared::claim(&mut s.busy, 0, 1) {
        return true;
    }
    let mut pointer: *mut Stream = s;
    // SAFETY: the callback gets back the pointer given here.
    let tries = unsafe { bpf_loop(TRIES, try_enter as *mut c_void, (&raw mut pointer).cast(), 0) };
    tries < TRIES as i64
}

/// Finds sequence number and payload of a packet whose first header is IPv4 or IPv6 and whose second is TCP.
#[inline(always)]
fn segment(skb: *mut __sk_buff) -> Option<Segment> {
    // SAFETY: context fields; every byte behind `data` is checked against `data_end` before it is read.
    unsafe {
        let (data, end) = ((*skb).data as usize, (*skb).data_end as usize);
        let byte = |at: usize| *(at as *const u8);
        let mut header = 40usize;
        if data + 40 > end {
            maps::count(Counter::LossHeaders, 1);
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
            maps::count(Counter::LossHeaders, 1);
            return None;
        }
        let tcp = data + header;
        if tcp + 20 > end {
            maps::count(Counter::LossHeaders, 1);
            return None;
        }
        let offset = header as u32 + (byte(tcp + 12) as u32 >> 4) * 4;
        let length = (*skb).len;
        Some(Segment {
            seq: u32::from_be(core::ptr::read_unaligned((tcp + 4) as *const u32)),
            offset,
            length: if length > offset { length - offset } else { 0 },
            flags: byte(tcp + 13),
        })
    }
}

/// A socket without storage that carries data: it was open before the programs were attached.
#[inline(never)]
fn late(skb: *mut __sk_buff, sk: *mut bpf_sock) -> Option<&'static mut Connection> {
    if read!(sk, state) != ESTABLISHED {
        return None;
    }
    let port = u16::from_be(read!(sk, dst_port));
    let leg = if read!(sk, src_port) == OUTBOUND_PORT {
        SOURCE
    } else if socket::is_magic(&local_of(sk)) && maps::port_flags(port) & PORT_EXCLUDED == 0 {
        DESTINATION
    } else {
        return None;
    };
    if segment(skb)?.length == 0 {
        return None;
    }
    let c = maps::new_connection(sk)?;
    c.leg = leg;
    if leg == DESTINATION {
        c.destination = Endpoint { address: remote_of(sk), port, padding: 0 };
    }
    Some(c)
}

#[inline(always)]
fn joined_late(c: &mut Connection) {
    if shared::set(&mut c.flags, LATE) & LATE == 0 {
        shared::set(&mut c.sync, 1);
        maps::count(Counter::ConnectionLate, 1);
    }
}

/// Says by the socket's cgroup whose connection this is, and what an accepted one is to its owner.
#[inline(never)]
fn attribute(c: &mut Connection, skb: *mut __sk_buff, sk: *mut bpf_sock) {
    // SAFETY: the context is valid.
    let Some(cgroup) = maps::cgroup(unsafe { bpf_skb_cgroup_id(skb) }) else { return };
    if c.process == 0 {
        c.sidecar = cgroup.sidecar;
    }
    if c.leg != UNDECIDED {
        return;
    }
    let door = Endpoint { address: local_of(sk), port: read!(sk, src_port) as u16, padding: 0 };
    match cgroup.mode {
        MODE_GATEWAY => {
            shared::set(&mut c.flags, GATEWAY);
            c.destination = door;
            c.leg = SOURCE;
        }
        MODE_TPROXY => {
            c.destination = door;
            c.leg = INBOUND;
        }
        _ => c.leg = socket::IGNORED,
    }
}

/// The source of a sidecar's reply is what the application dialled: translation back has been done at this point.
/// Source: kernel `net/netfilter/nf_nat_core.c`, manipulation at POST_ROUTING for the reply direction.
#[inline(always)]
fn dialled(c: &mut Connection, skb: *mut __sk_buff) {
    // SAFETY: context fields; bounds are checked before the reads.
    unsafe {
        let (data, end) = ((*skb).data as usize, (*skb).data_end as usize);
        if data + 42 > end {
            return;
        }
        let word = |at: usize| core::ptr::read_unaligned((data + at) as *const u32);
        let half = |at: usize| u16::from_be(core::ptr::read_unaligned((data + at) as *const u16));
        let first = *(data as *const u8);
        let (address, port) = if first == 0x45 {
            (socket::mapped(word(12)), half(20))
        } else if first >> 4 == 6 {
            (socket::address([word(8), word(12), word(16), word(20)]), half(40))
        } else {
            return;
        };
        c.destination = Endpoint { address, port, padding: 0 };
    }
}

/// A packet, where a connection's logic needs one.
struct Packet {
    skb: *mut __sk_buff,
}

impl Env for Packet {
    #[inline(always)]
    fn now(&mut self) -> u64 {
        record::now()
    }
    #[inline(always)]
    fn load(&mut self, stream: &mut Stream, offset: u32, length: u32, at: u32) -> bool {
        let window = stream.window.as_mut_ptr().cast::<u8>();
        let at = at as usize & 127;
        let length = opaque(length);
        if length == 0 || length > FILL {
            return false;
        }
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
        maps::count(counter, by);
    }
    #[inline(always)]
    fn finished(&mut self, c: &mut Connection, finished: &Finished) {
        record::finished(c, finished);
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
