//! Reassembly buffers in the `REASSEMBLY` map.

use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_skb_load_bytes};
use observer_common::health::Counter;
use observer_proto::{
    env::Step,
    flow::{BufferHandle, FILL, Flow},
    reassembly::{BUFFERS, LEASE_NS, MAX_SEGMENT, WINDOW_BYTES},
};

use super::{
    bpf_loop::repeat,
    context::{length_within, opaque},
    maps, record,
};

/// Allocates a free buffer numbered `first` or higher, for a lease of `lease_ns`; none if all are in use.
#[inline(never)]
pub(super) fn alloc(first: u32, lease_ns: u64) -> BufferHandle {
    let now_ns = record::now();
    let mut handle = BufferHandle::NONE;
    repeat(BUFFERS.wrapping_sub(first), |number| {
        let number = first.wrapping_add(number);
        let Some(buffer) = maps::buffer(number) else { return Step::Done };
        handle = buffer.alloc(number, now_ns, now_ns.wrapping_add(lease_ns));
        if handle.is_none() { Step::More } else { Step::Done }
    });
    if handle.is_none() {
        maps::count(Counter::LossReassembly as u32, 1);
    }
    handle
}

/// Extends the lease of a buffer to that of others.
#[inline(always)]
pub(super) fn extend_lease(handle: BufferHandle) {
    if let Some(buffer) = maps::buffer(handle.index())
        && buffer.is_valid(handle)
    {
        buffer.until_ns = record::now().wrapping_add(LEASE_NS);
    }
}

/// Copies packet bytes `[offset, offset + length)` to byte `at` of a buffer; returns whether it could.
#[inline(never)]
pub(super) fn store(skb: *mut __sk_buff, handle: BufferHandle, at: u32, offset: u32, length: u32) -> bool {
    let Some(buffer) = maps::buffer(handle.index()) else { return false };
    let at = opaque(at);
    let Some(length) = length_within(length, MAX_SEGMENT) else { return false };
    if !buffer.is_valid(handle) || at >= WINDOW_BYTES {
        return false;
    }
    // SAFETY: checked just here; the buffer has WINDOW_BYTES + MAX_SEGMENT bytes.
    unsafe { bpf_skb_load_bytes(skb.cast(), offset, buffer.bytes.as_mut_ptr().add(at as usize).cast(), length) == 0 }
}

/// Returns whether this handle is a buffer's valid one.
#[inline(always)]
pub(super) fn is_valid(handle: BufferHandle) -> bool {
    maps::buffer(handle.index()).is_some_and(|buffer| buffer.is_valid(handle))
}

/// Copies [`FILL`] bytes of a buffer, from `from` on, to byte `at` of the window; returns whether it could.
#[inline(never)]
pub(super) fn load(flow: &mut Flow, handle: BufferHandle, from: u32, at: u32) -> bool {
    let Some(buffer) = maps::buffer(handle.index()) else { return false };
    let at = opaque(at) as usize & 127;
    let Some(bytes) = buffer.read(opaque(from)) else { return false };
    let mut i = 0;
    while i < FILL as usize {
        // SAFETY: `i + 8` is at most FILL, and `at` at most 127 of the window's 400 bytes.
        unsafe {
            let word = bytes.as_ptr().add(i).cast::<u64>().read_unaligned();
            flow.window.as_mut_ptr().cast::<u8>().add(at + i).cast::<u64>().write_unaligned(word);
        }
        i += 8;
    }
    // Another user of the buffer may have written to it meanwhile.
    buffer.is_valid(handle)
}

/// Frees the flow's buffer.
#[inline(never)]
pub(super) fn free_of(flow: &mut Flow) {
    free(flow.buffer);
    flow.buffer = BufferHandle::NONE;
}

/// Frees a buffer, if the handle is valid.
#[inline(always)]
pub(super) fn free(handle: BufferHandle) {
    if !handle.is_none()
        && let Some(buffer) = maps::buffer(handle.index())
    {
        buffer.free(handle);
    }
}
