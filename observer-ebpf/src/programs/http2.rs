//! cgroup_skb, second part: packets of connections that speak HTTP/2, handed on by a tail call so that the verifier looks
//! at each part alone.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::generated::{bpf_get_socket_cookie, bpf_loop},
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use core::ffi::c_void;
use observer_common::health::Counter;
use observer_proto::{
    hpack::Wide,
    http2::{self, Book, CALLS, CLOSE, Call, CallKey, Calls, Http2, MAPPED, MORE, More, Tally},
    segment::Segment,
    shared,
    socket::{self, Connection, DESTINATION, REQUEST, RESPONSE},
};

use super::{
    context::{opaque, read},
    maps,
    packet::{Arrival, Packet, arrived, leave, segment},
    record,
    sock_ops::Event,
};

/// What the sidecar's sockets receive.
#[cgroup_skb]
pub(crate) fn mesh_ingress_h2(ctx: SkBuffContext) -> i32 {
    packet(ctx.skb.skb, false);
    1
}

/// What they send.
#[cgroup_skb]
pub(crate) fn mesh_egress_h2(ctx: SkBuffContext) -> i32 {
    packet(ctx.skb.skb, true);
    1
}

/// Goes on in the program for HTTP/2; returns only if there is none.
#[inline(always)]
pub(super) fn hand_over(ctx: &SkBuffContext, egress: bool) {
    maps::hand_over(ctx, u32::from(egress));
    maps::count(Counter::LossHandOver as u32, 1);
}

#[inline(always)]
fn packet(skb: *mut __sk_buff, egress: bool) -> Option<()> {
    let sk = read!(skb, __bindgen_anon_2.sk);
    if sk.is_null() {
        return None;
    }
    let c = maps::connection(sk)?;
    let h = match maps::http2(sk) {
        Some(h) => h,
        None => begun(skb, sk)?,
    };
    let segment = segment(skb)?;
    if segment.length == 0 && !segment.ends() {
        return None;
    }
    let direction = if egress == (c.leg == DESTINATION) { REQUEST } else { RESPONSE };
    let arrival = arrived(c, sk, &segment, egress, direction)?;
    if direction == REQUEST {
        segment_of(c, h, (skb, sk), &segment, arrival, REQUEST);
    } else {
        segment_of(c, h, (skb, sk), &segment, arrival, RESPONSE);
    }
    if !egress {
        leave(&mut c.streams[direction]);
    }
    Some(())
}

#[inline(never)]
fn begun(skb: *mut __sk_buff, sk: *mut bpf_sock) -> Option<&'static mut Http2> {
    let h = maps::new_http2(sk)?;
    // SAFETY: the context is valid.
    h.cookie = unsafe { bpf_get_socket_cookie(skb.cast()) };
    Some(h)
}

#[inline(always)]
fn segment_of(
    c: &mut Connection,
    h: &mut Http2,
    (skb, sk): (*mut __sk_buff, *mut bpf_sock),
    segment: &Segment,
    arrival: Arrival,
    direction: usize,
) {
    let mut env = Packet { skb };
    if http2::catch_up(c, h, &mut env, direction, arrival.accepted()) {
        http2::pass_over(&mut c.streams[direction], segment.seq, segment.offset, segment.length);
    } else if segment.length != 0 && !arrival.is_closed() {
        http2::payload(c, h, &mut env, direction, segment.seq, segment.offset, segment.length);
    }
    let over = socket::reached_end(c, &mut env, direction, segment) && socket::ended(c, &mut env);
    settle(c, h, sk, direction, over);
}

/// What the loops' callbacks work on.
struct Walk {
    c: *mut Connection,
    h: *mut Http2,
    skb: *mut __sk_buff,
    last: u32,
}

unsafe extern "C" fn request_turn(_: u32, walk: *mut Walk) -> i64 {
    // SAFETY: the pointer that `frame_turns` gave; the connection outlives the program.
    let (walk, c, h) = unsafe { (&mut *walk, &mut *(*walk).c, &mut *(*walk).h) };
    let last = http2::turn(c, h, &mut Packet { skb: walk.skb }, REQUEST);
    walk.last = u32::from(last);
    i64::from(last)
}

unsafe extern "C" fn response_turn(_: u32, walk: *mut Walk) -> i64 {
    // SAFETY: as above.
    let (walk, c, h) = unsafe { (&mut *walk, &mut *(*walk).c, &mut *(*walk).h) };
    let last = http2::turn(c, h, &mut Packet { skb: walk.skb }, RESPONSE);
    walk.last = u32::from(last);
    i64::from(last)
}

impl Book for Packet {
    #[inline(always)]
    fn book(&mut self, c: &mut Connection, tally: &mut Tally) {
        record::tallied(c, tally);
    }
    #[inline(always)]
    fn count_by_number(&mut self, counter: u32, by: u32) {
        maps::count(counter, by.into());
    }
}

impl Calls for Packet {
    #[inline(always)]
    fn frame_turns(&mut self, c: &mut Connection, h: &mut Http2, direction: usize) -> bool {
        let mut walk = Walk { c, h, skb: self.skb, last: 0 };
        let callback = if direction == REQUEST { request_turn as *mut c_void } else { response_turn as *mut c_void };
        // SAFETY: the callback gets back the pointer given here.
        unsafe { bpf_loop(http2::TURNS, callback, (&raw mut walk).cast(), 0) };
        walk.last != 0
    }
    #[inline(always)]
    fn more(&mut self, create: bool) -> *mut More {
        let sk = read!(self.skb, __bindgen_anon_2.sk);
        if sk.is_null() { core::ptr::null_mut() } else { maps::more(sk, create) }
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
        let sk = read!(self.skb, __bindgen_anon_2.sk);
        if sk.is_null() { core::ptr::null_mut() } else { maps::wide(sk, direction) }
    }
}

impl Book for Event {
    #[inline(always)]
    fn book(&mut self, c: &mut Connection, tally: &mut Tally) {
        record::tallied(c, tally);
    }
    #[inline(always)]
    fn count_by_number(&mut self, counter: u32, by: u32) {
        maps::count(counter, by.into());
    }
}

/// Counts what is left open by what came in a direction.
#[inline(never)]
pub(super) fn settle(c: &mut Connection, h: &mut Http2, sk: *mut bpf_sock, direction: usize, over: bool) {
    if http2::settle(c, h, direction, over, record::now) {
        let t = &raw mut h.tallies[direction];
        each(c, h, sk, t);
    }
}

/// Counts what is open on a connection that has closed.
#[inline(never)]
pub(super) fn closed(c: &mut Connection, sk: *mut bpf_sock) {
    let Some(h) = maps::http2(sk) else { return };
    settle(c, h, sk, CLOSE, true);
}

/// What the callback over calls works on.
struct Walker {
    c: *mut Connection,
    h: *mut Http2,
    t: *mut Tally,
    more: *mut More,
}

/// Reaps the connection's calls, wherever they are, and counts them.
#[inline(never)]
fn each(c: &mut Connection, h: &mut Http2, sk: *mut bpf_sock, t: *mut Tally) {
    let (elsewhere, mapped) = (shared::load(&h.elsewhere) != 0, shared::load(&h.mapped) != 0);
    let more = if elsewhere { maps::more(sk, false) } else { core::ptr::null_mut() };
    let calls = if mapped {
        CALLS + MORE + MAPPED
    } else if elsewhere {
        CALLS + MORE
    } else {
        CALLS
    };
    let mut walker = Walker { c, h, t, more };
    // SAFETY: the callback gets back the pointer given here, and what it points to outlives the program.
    unsafe {
        bpf_loop(calls as u32, reap as *mut c_void, (&raw mut walker).cast(), 0);
        http2::all_reaped(&mut *walker.c, &mut Event, &mut *walker.t);
    }
}

unsafe extern "C" fn reap(number: u32, walker: *mut Walker) -> i64 {
    // SAFETY: the pointer that `each` gave; the connection outlives the program. Every index is masked or checked.
    let (c, h, t, more) = unsafe { (&mut *(*walker).c, &mut *(*walker).h, &mut *(*walker).t, (*walker).more.as_mut()) };
    let mut index = number;
    if index < CALLS as u32 {
        // SAFETY: as above.
        let call = unsafe { h.calls.get_unchecked_mut(index as usize & (CALLS - 1)) };
        if !http2::reap(t, call) {
            return 0;
        }
        shared::store(&mut call.id, 0);
    } else if index < (CALLS + MORE) as u32 {
        index = opaque(index - CALLS as u32);
        let Some(more) = more else { return 0 };
        if index >= MORE as u32 {
            return 0;
        }
        // SAFETY: as above.
        let call = unsafe { more.calls.get_unchecked_mut(index as usize) };
        if !http2::reap(t, call) {
            return 0;
        }
        shared::store(&mut call.id, 0);
        shared::lower(&mut h.elsewhere);
    } else {
        let slot = index - (CALLS + MORE) as u32;
        if shared::load(http2::slot_word(h, slot)) & 1 << (slot & 31) == 0 {
            return 0;
        }
        // SAFETY: a call in the map outlives the program.
        let call = unsafe { maps::call(&CallKey { cookie: h.cookie, sidecar: h.sidecar, slot }).as_mut() };
        let Some(call) = call else { return 0 };
        if !http2::reap(t, call) {
            return 0;
        }
        http2::vacate(h, slot, maps::remove_call);
        shared::lower(&mut h.elsewhere);
    }
    http2::reaped(c, &mut Event, t);
    0
}
