//! Bytes that came with the packet that ended the handshake.
//!
//! The kernel shows that packet to the listener's programs and hands it to the new socket without showing it again; on the
//! way, and on the same processor, it says that the connection is established. So what the last packet for a listener
//! carried is what an established connection begins with.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock_ops},
    helpers::generated::{bpf_get_socket_cookie, bpf_loop, bpf_skb_cgroup_id},
    macros::sock_ops,
    programs::SockOpsContext,
};
use core::ffi::c_void;
use observer_common::health::Counter;
use observer_proto::{
    early::{GREETED_NS, GREETINGS, Greeting},
    hpack::Wide,
    http2::{self, Book, Call, CallKey, Calls, Http2, More, Tally},
    segment::{RST, SYN, Segment},
    shared,
    socket::{self, Connection, Env, INBOUND, REQUEST, SOURCE, UNDECIDED},
    stream::Stream,
    tls,
};

use super::{
    early,
    http2::settle,
    maps,
    packet::{TURNS, enter, leave, segment},
    record,
    skb::attribute,
    sock_ops::socket_of,
};

/// Keeps what a packet for a listener carries, until the next one.
#[inline(never)]
pub(super) fn keep(skb: *mut __sk_buff) -> Option<()> {
    let greeting = maps::greeting()?;
    early::give_back(greeting.ticket);
    greeting.ticket = 0;
    let segment = segment(skb)?;
    if segment.length == 0 || segment.flags & RST != 0 {
        return None;
    }
    let ticket = early::take(GREETINGS, GREETED_NS);
    if ticket == 0 {
        return None;
    }
    if !early::keep(skb, ticket, 0, segment.offset, segment.length) {
        early::give_back(ticket);
        maps::count(Counter::LossEarly as u32, 1);
        return None;
    }
    // A SYN takes a sequence number of its own.
    greeting.seq = segment.seq.wrapping_add(u32::from(segment.flags & SYN != 0));
    greeting.length = segment.length;
    greeting.ticket = ticket;
    // SAFETY: the context is valid.
    greeting.cgroup = unsafe { bpf_skb_cgroup_id(skb) };
    Some(())
}

/// Goes on in a program that reads what was kept; returns if nothing was.
#[inline(always)]
pub(super) fn hand_over(ctx: &SockOpsContext) {
    if maps::greeting().is_some_and(|greeting| greeting.ticket != 0) {
        maps::hand_over_event(ctx, 0);
        maps::count(Counter::LossHandOver as u32, 1);
    }
}

/// Reads it, whatever the connection is and speaks.
#[sock_ops]
pub(crate) fn mesh_greeting(ctx: SockOpsContext) -> u32 {
    if greeted(ctx.ops) == Some(socket::HTTP2) {
        maps::hand_over_event(&ctx, 1);
        maps::count(Counter::LossHandOver as u32, 1);
    }
    1
}

/// Reads it, as HTTP/2.
#[sock_ops]
pub(crate) fn mesh_greeting_h2(ctx: SockOpsContext) -> u32 {
    greeted_h2(ctx.ops);
    1
}

#[inline(always)]
fn greeted(ops: *mut bpf_sock_ops) -> Option<u32> {
    let greeting = maps::greeting()?;
    let Some(c) = established(ops, greeting.cgroup) else {
        done(0, greeting);
        return None;
    };
    let mut env = Kept { ops, greeting };
    if c.leg == SOURCE && entered(c) {
        socket::payload(c, &mut env, REQUEST, greeting.seq, 0, greeting.length);
        leave(&mut c.streams[REQUEST]);
    } else if c.leg == INBOUND && entered(c) {
        opening(c, &mut env, greeting);
        leave(&mut c.streams[REQUEST]);
        record::list(c);
    }
    let protocol = shared::load(&c.protocol);
    if protocol != socket::HTTP2 {
        done(c.streams[REQUEST].ticket, greeting);
    }
    Some(protocol)
}

/// The connection, if it is one that is observed.
#[inline(always)]
fn established(ops: *mut bpf_sock_ops, cgroup: u64) -> Option<&'static mut Connection> {
    let sk = socket_of(ops)?;
    let c = maps::connection(sk)?;
    if c.sidecar == 0 || c.leg == UNDECIDED {
        attribute(c, cgroup, sk);
    }
    Some(c)
}

/// Another processor may be at the connection's next packet already.
#[inline(always)]
fn entered(c: &mut Connection) -> bool {
    let entered = enter(&mut c.streams[REQUEST]);
    if !entered {
        maps::count(Counter::SyncContended as u32, 1);
    }
    entered
}

/// Of a peer's connection, only what it came with.
#[inline(always)]
fn opening(c: &mut Connection, kept: &mut Kept, greeting: &Greeting) {
    let &Greeting { seq, length, .. } = greeting;
    let segment = Segment { seq, ack: 0, offset: 0, length, flags: 0 };
    let accepted = c.streams[REQUEST].next;
    tls::payload(c, kept, accepted, &segment, |c, kept| {
        let mut walk = Walk { c, h: core::ptr::null_mut(), kept, last: 0 };
        // SAFETY: the callback gets back the pointer given here.
        let steps = unsafe { bpf_loop(tls::STEPS, hello as *mut c_void, (&raw mut walk).cast(), 0) };
        steps < i64::from(tls::STEPS)
    });
}

unsafe extern "C" fn hello(_: u32, walk: *mut Walk) -> i64 {
    // SAFETY: the pointer that `opening` gave; the connection outlives the program.
    let (c, kept) = unsafe { (&mut *(*walk).c, &mut *(*walk).kept) };
    i64::from(tls::turn(c, kept))
}

#[inline(always)]
fn greeted_h2(ops: *mut bpf_sock_ops) -> Option<()> {
    let sk = socket_of(ops)?;
    let c = maps::connection(sk)?;
    let h = maps::new_http2(sk)?;
    // SAFETY: the context is valid.
    h.cookie = unsafe { bpf_get_socket_cookie(ops.cast()) };
    let greeting = maps::greeting()?;
    let mut env = Kept { ops, greeting };
    if entered(c) {
        http2::payload(c, h, &mut env, REQUEST, greeting.seq, 0, greeting.length);
        settle(c, h, sk, REQUEST, false);
        leave(&mut c.streams[REQUEST]);
    }
    done(c.streams[REQUEST].ticket, greeting);
    Some(())
}

/// Gives the place back, unless the stream, which has the one of `ticket`, has taken it over for bytes in front of which others
/// are missing.
#[inline(always)]
fn done(ticket: u32, greeting: &mut Greeting) {
    if ticket != greeting.ticket {
        early::give_back(greeting.ticket);
    }
    greeting.ticket = 0;
}

/// What was kept, where a connection's logic needs a packet.
struct Kept {
    ops: *mut bpf_sock_ops,
    greeting: *const Greeting,
}

impl Kept {
    #[inline(always)]
    fn ticket(&self) -> u32 {
        // SAFETY: a map's element, which never moves.
        unsafe { core::ptr::read_volatile(&raw const (*self.greeting).ticket) }
    }
}

struct Walk {
    c: *mut Connection,
    h: *mut Http2,
    kept: *mut Kept,
    last: u32,
}

unsafe extern "C" fn turn(_: u32, walk: *mut Walk) -> i64 {
    // SAFETY: the pointer that `turns` gave; the connection outlives the program.
    let (walk, c, kept) = unsafe { (&mut *walk, &mut *(*walk).c, &mut *(*walk).kept) };
    let last = socket::turn(c, kept, REQUEST);
    walk.last = u32::from(last);
    i64::from(last)
}

unsafe extern "C" fn frame_turn(_: u32, walk: *mut Walk) -> i64 {
    // SAFETY: as above.
    let (walk, c, h, kept) = unsafe { (&mut *walk, &mut *(*walk).c, &mut *(*walk).h, &mut *(*walk).kept) };
    let last = http2::turn(c, h, kept, REQUEST);
    walk.last = u32::from(last);
    i64::from(last)
}

impl Env for Kept {
    #[inline(always)]
    fn now(&mut self) -> u64 {
        record::now()
    }
    #[inline(always)]
    fn take_place(&mut self) -> u32 {
        early::hold(self.ticket());
        self.ticket()
    }
    /// It is there already, at the place's beginning.
    #[inline(always)]
    fn keep(&mut self, stream: &mut Stream, at: u32, _: u32, _: u32) -> bool {
        stream.base = stream.base.wrapping_add(at);
        stream.ticket == self.ticket()
    }
    #[inline(always)]
    fn holds(&mut self, stream: &Stream) -> bool {
        early::is_held(stream)
    }
    #[inline(always)]
    fn release(&mut self, stream: &mut Stream) {
        early::release(stream);
    }
    /// What another processor had to let wait is in a place of its own.
    #[inline(always)]
    fn load(&mut self, stream: &mut Stream, offset: u32, _: u32, at: u32) -> bool {
        let ticket = if shared::load(&stream.source) != 0 { stream.ticket } else { self.ticket() };
        early::load(stream, ticket, offset, at)
    }
    #[inline(always)]
    fn turns(&mut self, c: &mut Connection, _: usize) -> bool {
        let mut walk = Walk { c, h: core::ptr::null_mut(), kept: self, last: 0 };
        // SAFETY: the callback gets back the pointer given here.
        unsafe { bpf_loop(TURNS, turn as *mut c_void, (&raw mut walk).cast(), 0) };
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

impl Book for Kept {
    #[inline(always)]
    fn book(&mut self, c: &mut Connection, tally: &mut Tally) {
        record::tallied(c, tally);
    }
    #[inline(always)]
    fn count_by_number(&mut self, counter: u32, by: u32) {
        maps::count(counter, by.into());
    }
}

impl Calls for Kept {
    #[inline(always)]
    fn frame_turns(&mut self, c: &mut Connection, h: &mut Http2, _: usize) -> bool {
        let mut walk = Walk { c, h, kept: self, last: 0 };
        // SAFETY: the callback gets back the pointer given here.
        unsafe { bpf_loop(http2::TURNS, frame_turn as *mut c_void, (&raw mut walk).cast(), 0) };
        walk.last != 0
    }
    #[inline(always)]
    fn more(&mut self, create: bool) -> *mut More {
        socket_of(self.ops).map_or(core::ptr::null_mut(), |sk| maps::more(sk, create))
    }
    #[inline(always)]
    fn call(&mut self, key: &CallKey) -> *mut Call {
        maps::call(key)
    }
    #[inline(always)]
    fn insert(&mut self, key: &CallKey, call: &Call) -> bool {
        maps::insert_call(key, call)
    }
    #[inline(always)]
    fn remove(&mut self, key: &CallKey) {
        maps::remove_call(key);
    }
    #[inline(always)]
    fn wide(&mut self, direction: usize) -> *mut Wide {
        socket_of(self.ops).map_or(core::ptr::null_mut(), |sk| maps::wide(sk, direction))
    }
}
