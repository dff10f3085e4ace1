//! Segments that came early, in the kernel.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{bpf_loop, bpf_skb_load_bytes},
};
use core::ffi::c_void;
use observer_common::health::Counter;
use observer_proto::{
    early::{self, HELD_NS, PLACES, SEGMENT, SPAN},
    stream::{FILL, Stream},
};

use super::{
    context::{length_within, opaque},
    maps, record,
};

/// Takes a free place numbered `first` or more for so many nanoseconds; 0 if there is none.
#[inline(never)]
pub(super) fn take(first: u32, held_ns: u64) -> u32 {
    let now_ns = record::now();
    let mut taking = Taking { first, now_ns, until_ns: now_ns.wrapping_add(held_ns), ticket: 0 };
    // SAFETY: the callback gets back the pointer given here.
    unsafe { bpf_loop(PLACES.wrapping_sub(first), take_place as *mut c_void, (&raw mut taking).cast(), 0) };
    if taking.ticket == 0 {
        maps::count(Counter::LossEarly as u32, 1);
    }
    taking.ticket
}

struct Taking {
    first: u32,
    now_ns: u64,
    until_ns: u64,
    ticket: u32,
}

unsafe extern "C" fn take_place(number: u32, taking: *mut Taking) -> i64 {
    // SAFETY: the pointer that `take` gave.
    let taking = unsafe { &mut *taking };
    let number = taking.first.wrapping_add(number);
    let Some(place) = maps::place(number) else { return 1 };
    taking.ticket = place.take(number, taking.now_ns, taking.until_ns);
    i64::from(taking.ticket != 0)
}

/// Holds a place for as long as others are held.
#[inline(always)]
pub(super) fn hold(ticket: u32) {
    if let Some(place) = maps::place(early::number(ticket))
        && place.is_held(ticket)
    {
        place.until_ns = record::now().wrapping_add(HELD_NS);
    }
}

/// Copies packet bytes `[offset, offset + length)` to byte `at` of the place held with a ticket.
#[inline(never)]
pub(super) fn keep(skb: *mut __sk_buff, ticket: u32, at: u32, offset: u32, length: u32) -> bool {
    let Some(place) = maps::place(early::number(ticket)) else { return false };
    let at = opaque(at);
    let Some(length) = length_within(length, SEGMENT) else { return false };
    if !place.is_held(ticket) || at >= SPAN {
        return false;
    }
    // SAFETY: checked just here; the place has SPAN + SEGMENT bytes.
    unsafe { bpf_skb_load_bytes(skb.cast(), offset, place.bytes.as_mut_ptr().add(at as usize).cast(), length) == 0 }
}

/// Is the place still the stream's?
#[inline(always)]
pub(super) fn is_held(s: &Stream) -> bool {
    maps::place(early::number(s.ticket)).is_some_and(|place| place.is_held(s.ticket))
}

/// Copies the place's bytes from `from` on to byte `at` of the window, [`FILL`] of them whatever they are.
#[inline(never)]
pub(super) fn load(s: &mut Stream, ticket: u32, from: u32, at: u32) -> bool {
    let Some(place) = maps::place(early::number(ticket)) else { return false };
    let at = opaque(at) as usize & 127;
    let Some(bytes) = place.read(opaque(from)) else { return false };
    let mut i = 0;
    while i < FILL as usize {
        // SAFETY: `i + 8` is at most FILL, and `at` at most 127 of the window's 400 bytes.
        unsafe {
            let word = bytes.as_ptr().add(i).cast::<u64>().read_unaligned();
            s.window.as_mut_ptr().cast::<u8>().add(at + i).cast::<u64>().write_unaligned(word);
        }
        i += 8;
    }
    // Whoever took it meanwhile may have written to it.
    place.is_held(ticket)
}

/// Gives the stream's place back.
#[inline(never)]
pub(super) fn release(s: &mut Stream) {
    give_back(s.ticket);
    s.ticket = 0;
}

/// Gives back the place that a ticket is for, if it is still held with it.
#[inline(always)]
pub(super) fn give_back(ticket: u32) {
    if ticket != 0
        && let Some(place) = maps::place(early::number(ticket))
    {
        place.release(ticket);
    }
}
