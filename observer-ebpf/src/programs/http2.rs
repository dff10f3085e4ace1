//! cgroup_skb, second part: packets of connections that speak HTTP/2, handed on by a tail call so that the verifier looks
//! at each part alone.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::generated::{bpf_for_each_map_elem, bpf_get_socket_cookie, bpf_loop},
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use core::ffi::c_void;
use observer_ebpf::{
    health::Counter,
    hpack::Wide,
    http2::{self, CALLS, Call, CallKey, Calls, Http2, Reaping},
    segment::Segment,
    shared,
    socket::{self, Connection, DESTINATION, REQUEST, RESPONSE},
};

use super::{
    context::read,
    maps,
    packet::{Arrival, Packet, TURNS, arrived, leave, segment},
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
        segment_of(c, h, skb, &segment, arrival, REQUEST);
    } else {
        segment_of(c, h, skb, &segment, arrival, RESPONSE);
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
    skb: *mut __sk_buff,
    segment: &Segment,
    arrival: Arrival,
    direction: usize,
) {
    let mut env = Packet { skb };
    http2::catch_up(c, h, &mut env, direction, arrival.accepted());
    if segment.length != 0 && !arrival.is_closed() {
        http2::payload(c, h, &mut env, direction, segment.seq, segment.offset, segment.length);
    }
    let over = socket::reached_end(c, &mut env, direction, segment) && socket::ended(c, &mut env);
    http2::settle(c, h, &mut env, direction, over);
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

impl Calls for Packet {
    #[inline(always)]
    fn frame_turns(&mut self, c: &mut Connection, h: &mut Http2, direction: usize) -> bool {
        let mut walk = Walk { c, h, skb: self.skb, last: 0 };
        let callback = if direction == REQUEST { request_turn as *mut c_void } else { response_turn as *mut c_void };
        // SAFETY: the callback gets back the pointer given here.
        unsafe { bpf_loop(TURNS, callback, (&raw mut walk).cast(), 0) };
        walk.last != 0
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
    fn each(&mut self, c: &mut Connection, h: &mut Http2, reaping: &Reaping) {
        each(c, h, reaping);
    }
    #[inline(always)]
    fn wide(&mut self, direction: usize) -> *mut Wide {
        let sk = read!(self.skb, __bindgen_anon_2.sk);
        if sk.is_null() { core::ptr::null_mut() } else { maps::wide(sk, direction) }
    }
}

/// At the close there is no packet, but there are calls.
impl Calls for Event {
    #[inline(always)]
    fn frame_turns(&mut self, _: &mut Connection, _: &mut Http2, _: usize) -> bool {
        false
    }
    #[inline(always)]
    fn call(&mut self, key: &CallKey) -> *mut Call {
        maps::call(key)
    }
    #[inline(always)]
    fn insert(&mut self, _: &CallKey, _: &Call) -> bool {
        false
    }
    #[inline(always)]
    fn remove(&mut self, key: &CallKey) {
        maps::remove_call(key);
    }
    #[inline(always)]
    fn each(&mut self, c: &mut Connection, h: &mut Http2, reaping: &Reaping) {
        each(c, h, reaping);
    }
    #[inline(always)]
    fn wide(&mut self, _: usize) -> *mut Wide {
        core::ptr::null_mut()
    }
}

/// What the callbacks over calls work on.
struct Walker {
    c: *mut Connection,
    h: *mut Http2,
    reaping: Reaping,
}

#[inline(never)]
pub(super) fn each(c: &mut Connection, h: &mut Http2, reaping: &Reaping) {
    let elsewhere = shared::load(&h.elsewhere) != 0;
    let mut walker = Walker { c, h, reaping: *reaping };
    // SAFETY: the callbacks get back the pointer given here.
    unsafe {
        bpf_loop(CALLS as u32, own_call as *mut c_void, (&raw mut walker).cast(), 0);
        if elsewhere {
            bpf_for_each_map_elem(maps::calls(), map_call as *mut c_void, (&raw mut walker).cast(), 0);
        }
    }
}

unsafe extern "C" fn own_call(number: u32, walker: *mut Walker) -> i64 {
    // SAFETY: the pointer that `each` gave; the connection outlives the program. The index is masked.
    let (c, call, reaping) = unsafe {
        let h = &mut *(*walker).h;
        (&mut *(*walker).c, h.calls.get_unchecked_mut(number as usize & (CALLS - 1)), &(*walker).reaping)
    };
    if http2::reap(c, &mut Event, call, reaping) {
        shared::store(&mut call.id, 0);
    }
    0
}

unsafe extern "C" fn map_call(_: *mut c_void, key: *const CallKey, call: *mut Call, walker: *mut Walker) -> i64 {
    // SAFETY: as above; the kernel gives a key and its value.
    let (c, h, key, call, reaping) =
        unsafe { (&mut *(*walker).c, &mut *(*walker).h, &*key, &mut *call, &(*walker).reaping) };
    if key.cookie == h.cookie && http2::reap(c, &mut Event, call, reaping) {
        maps::remove_call(key);
        shared::lower(&mut h.elsewhere);
    }
    0
}
