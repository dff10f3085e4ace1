//! Reassembly of out-of-order TCP segments: a pool of buffers, and the ranges of a flow that are in its buffer.
//!
//! A few buffers are shared by all connections, since segments are rarely out of order and never for long. A buffer is
//! leased: one that was not freed in time can be allocated again, which invalidates the first handle.

use crate::{
    atomic,
    env::{ByteSource, Pool},
    flow::{BufferHandle, FILL, Flow, MAX_RANGES, Source},
};

/// Number of buffers.
pub const BUFFERS: u32 = 16;
/// Sequence numbers that a buffer covers, from the first byte that was missing when it was allocated.
pub const WINDOW_BYTES: u32 = 1 << 20;
/// Longest segment that is buffered, bytes.
pub const MAX_SEGMENT: u32 = 1 << 16;
/// Bytes of a buffer: the last segment may begin at the end of the window.
const BYTES: u32 = WINDOW_BYTES + MAX_SEGMENT;
/// Lease of a buffer, nanoseconds: a retransmission arrives in that time or never.
pub const LEASE_NS: u64 = 10_000_000_000;
/// The first buffer available to packets to a listener: whoever sends those leaves the others to open connections.
pub const FIRST_FOR_HANDSHAKES: u32 = BUFFERS / 2;
/// Lease of handshake data, nanoseconds: the kernel makes a connection of it at once or never, unless a virtual CPU is
/// stopped meanwhile.
pub const HANDSHAKE_LEASE_NS: u64 = 10_000_000;

const IN_USE: u32 = 1 << 7;
const GENERATION: u32 = 1 << 8;

impl BufferHandle {
    /// Returns the number of the buffer.
    #[inline(always)]
    pub fn index(self) -> u32 {
        self.0 & (BUFFERS - 1)
    }
}

/// A reassembly buffer.
#[repr(C)]
#[derive(Debug)]
pub struct Buffer {
    /// The valid handle: the buffer's number, [`IN_USE`], and a generation; atomic.
    pub handle: BufferHandle,
    /// Zero.
    pub padding: u32,
    /// End of the lease, nanoseconds of `CLOCK_MONOTONIC`.
    pub until_ns: u64,
    /// Byte `i` has the sequence number of the first missing one plus `i`. The last [`FILL`] are never written: they let
    /// a read of that length begin anywhere.
    pub bytes: [u8; (BYTES + FILL) as usize],
}

impl Buffer {
    /// Leases buffer `number` until `until_ns`; returns no handle if it is in use.
    #[inline(always)]
    pub fn alloc(&mut self, number: u32, now_ns: u64, until_ns: u64) -> BufferHandle {
        let valid = atomic::load(&self.handle.0);
        if valid & IN_USE != 0 && now_ns < self.until_ns {
            return BufferHandle::NONE;
        }
        self.until_ns = until_ns;
        let handle = (valid & !(GENERATION - 1)).wrapping_add(GENERATION) | IN_USE | number;
        if atomic::compare_exchange(&mut self.handle.0, valid, handle) {
            BufferHandle(handle)
        } else {
            BufferHandle::NONE
        }
    }

    /// Returns whether this handle is the valid one.
    #[inline(always)]
    pub fn is_valid(&self, handle: BufferHandle) -> bool {
        !handle.is_none() && atomic::load(&self.handle.0) == handle.0
    }

    /// Returns [`FILL`] bytes from `from` on, written or not; `None` behind the last.
    #[inline(always)]
    pub fn read(&self, from: u32) -> Option<&[u8; FILL as usize]> {
        if from >= BYTES {
            return None;
        }
        // SAFETY: FILL more bytes follow the last that `from` can be.
        Some(unsafe { &*self.bytes.as_ptr().add(from as usize).cast() })
    }

    /// Frees the buffer if this handle is the valid one.
    #[inline(always)]
    pub fn free(&mut self, handle: BufferHandle) {
        atomic::compare_exchange(&mut self.handle.0, handle.0, handle.0 & !IN_USE);
    }
}

/// Payload of the last packet to a listener, with which the connection that it establishes begins.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HandshakeData {
    /// Buffer that holds it, from the buffer's first byte on.
    pub buffer: BufferHandle,
    /// Sequence number of the first byte.
    pub seq: u32,
    /// Number of bytes.
    pub length: u32,
    /// Zero.
    pub padding: u32,
    /// Cgroup of the listener.
    pub cgroup: u64,
}

/// Buffers a segment until the bytes in front of it arrive, without those of its bytes that will be skipped. A segment
/// that cannot be buffered counts as not seen: once TCP has accepted it, `catch_up` finds it missing.
#[inline(never)]
pub fn buffer_segment<E: ByteSource>(env: &mut E, flow: &mut Flow, seq: u32, offset: u32, length: u32) {
    let end = seq.wrapping_add(length);
    let skipped = flow.skip_ahead();
    if end.wrapping_sub(flow.next) <= skipped {
        flow.insert_range(seq, end);
        return;
    }
    if flow.buffer.is_none() {
        alloc(env, flow, skipped);
    }
    if !store(env, flow, seq, offset, length) {
        if (flow.next.wrapping_sub(flow.buffer_seq) as i32) <= 0 {
            return;
        }
        // The flow is past the buffer's first byte: only ranges that never joined it still need the buffer.
        flow.clear_ranges();
        env.free(flow);
        alloc(env, flow, skipped);
        if !store(env, flow, seq, offset, length) {
            return;
        }
    }
    flow.insert_range(seq, end);
}

/// Allocates a buffer for the bytes behind the next `skipped` ones.
#[inline(always)]
fn alloc<E: ByteSource>(env: &mut E, flow: &mut Flow, skipped: u32) {
    flow.buffer_seq = flow.next.wrapping_add(skipped);
    flow.buffer = env.alloc();
}

/// Copies a segment into the flow's buffer, without the bytes in front of the buffer; returns whether it could.
#[inline(always)]
fn store<E: ByteSource>(env: &mut E, flow: &mut Flow, seq: u32, offset: u32, length: u32) -> bool {
    let at = seq.wrapping_sub(flow.buffer_seq);
    let cut = if (at as i32) < 0 { at.wrapping_neg() } else { 0 };
    env.store(flow, at.wrapping_add(cut), offset.wrapping_add(cut), length.wrapping_sub(cut))
}

/// Frees the flow's buffer once no range is left.
#[inline(always)]
pub fn free_if_drained<E: Pool>(env: &mut E, flow: &mut Flow) {
    if flow.ranges_used == 0 && !flow.buffer.is_none() {
        env.free(flow);
    }
}

impl Flow {
    /// Inserts a range of out-of-order bytes, merging it with one that it touches.
    #[inline(never)]
    pub fn insert_range(&mut self, seq: u32, end: u32) {
        let mut i = 0;
        while i < MAX_RANGES {
            let (from, to) = self.ranges[i];
            let touches = from != to && (seq.wrapping_sub(to) as i32) <= 0 && (from.wrapping_sub(end) as i32) <= 0;
            if touches {
                if (seq.wrapping_sub(from) as i32) < 0 {
                    self.ranges[i].0 = seq;
                }
                if (end.wrapping_sub(to) as i32) > 0 {
                    self.ranges[i].1 = end;
                }
                return;
            }
            i += 1;
        }
        // If all are used, the farthest one is replaced: a forged segment can lie anywhere, the next ones cannot.
        let mut farthest = 0;
        let mut ahead = seq.wrapping_sub(self.next);
        let mut i = 0;
        while i < MAX_RANGES {
            let (from, to) = self.ranges[i];
            if from == to {
                self.ranges[i] = (seq, end);
                self.ranges_used += 1;
                return;
            }
            if from.wrapping_sub(self.next) > ahead {
                ahead = from.wrapping_sub(self.next);
                farthest = i + 1;
            }
            i += 1;
        }
        if farthest != 0 {
            self.ranges[(farthest - 1) & (MAX_RANGES - 1)] = (seq, end);
        }
    }

    /// Removes a range that reaches `next`; returns the number of its bytes from there on, 0 if there is none.
    #[inline(never)]
    pub fn pop_contiguous(&mut self) -> u32 {
        let mut i = 0;
        while i < MAX_RANGES {
            let (from, to) = self.ranges[i];
            if from != to && (from.wrapping_sub(self.next) as i32) <= 0 {
                self.ranges[i] = (0, 0);
                self.ranges_used = self.ranges_used.wrapping_sub(1);
                let length = to.wrapping_sub(self.next);
                if length as i32 > 0 {
                    return length;
                }
            }
            i += 1;
        }
        0
    }

    /// Sets [`Flow::gap`] to the number of bytes between `next` and `end` that are in no range.
    #[inline(never)]
    pub fn find_unseen(&mut self, end: u32) {
        let mut unseen = end.wrapping_sub(self.next);
        let mut i = 0;
        while i < MAX_RANGES {
            let (from, to) = self.ranges[i];
            let from = if (from.wrapping_sub(self.next) as i32) < 0 { self.next } else { from };
            let to = if (to.wrapping_sub(end) as i32) > 0 { end } else { to };
            if (to.wrapping_sub(from) as i32) > 0 {
                unseen = unseen.wrapping_sub(to.wrapping_sub(from));
            }
            i += 1;
        }
        atomic::store(&mut self.scratch, unseen);
    }

    /// Removes the ranges that have nothing behind `next`.
    #[inline(never)]
    pub fn remove_seen_ranges(&mut self) {
        let mut i = 0;
        while i < MAX_RANGES {
            let (from, to) = self.ranges[i];
            if from != to && (to.wrapping_sub(self.next) as i32) <= 0 {
                self.ranges[i] = (0, 0);
                self.ranges_used = self.ranges_used.wrapping_sub(1);
            }
            i += 1;
        }
    }

    /// Makes the next `length` bytes, which are buffered, those to be read.
    #[inline(always)]
    pub fn read_buffered(&mut self, length: u32) {
        self.source = Source::BUFFER;
        self.offset = self.next.wrapping_sub(self.buffer_seq);
        self.end = self.offset.wrapping_add(length);
        let end = self.next.wrapping_add(length);
        self.advance(end);
    }

    /// Removes all ranges.
    #[inline(always)]
    pub fn clear_ranges(&mut self) {
        if self.ranges_used != 0 {
            self.ranges_used = 0;
            self.ranges = [(0, 0); MAX_RANGES];
        }
    }
}

#[cfg(not(target_arch = "bpf"))]
mod host {
    extern crate alloc;

    use alloc::boxed::Box;

    use super::{BUFFERS, Buffer, BufferHandle, IN_USE, LEASE_NS, MAX_SEGMENT, WINDOW_BYTES, atomic};

    /// All buffers, outside of a map: the kernel's pool for tests.
    #[derive(Debug, Default)]
    pub struct BufferPool([Option<Box<Buffer>>; BUFFERS as usize]);

    impl BufferPool {
        /// Allocates any free buffer.
        pub fn alloc(&mut self, now_ns: u64) -> BufferHandle {
            let fresh = || {
                // SAFETY: integers only. It is never on the stack, which it is too large for.
                let mut buffer = unsafe { Box::<Buffer>::new_zeroed().assume_init() };
                // Makes reads of bytes that were never stored visible.
                buffer.bytes.fill(0xdd);
                buffer
            };
            let mut handles = (0..BUFFERS).zip(&mut self.0).map(|(number, buffer)| {
                let buffer = buffer.get_or_insert_with(fresh);
                buffer.alloc(number, now_ns, now_ns + LEASE_NS)
            });
            handles.find(|handle| !handle.is_none()).unwrap_or_default()
        }

        /// Stores a segment from byte `at` of the buffer on; returns whether it could.
        pub fn store(&mut self, handle: BufferHandle, at: u32, segment: &[u8]) -> bool {
            let Some(buffer) = self.0[handle.index() as usize].as_mut().filter(|buffer| buffer.is_valid(handle)) else {
                return false;
            };
            let fits = at < WINDOW_BYTES && segment.len() <= MAX_SEGMENT as usize;
            if fits {
                buffer.bytes[at as usize..][..segment.len()].copy_from_slice(segment);
            }
            fits
        }

        /// Returns the buffer of a valid handle.
        pub fn get(&self, handle: BufferHandle) -> Option<&Buffer> {
            self.0[handle.index() as usize].as_deref().filter(|buffer| buffer.is_valid(handle))
        }

        /// Frees a buffer, if the handle is valid.
        pub fn free(&mut self, handle: BufferHandle) {
            if let Some(buffer) = &mut self.0[handle.index() as usize] {
                buffer.free(handle);
            }
        }

        /// Returns whether no buffer is in use.
        pub fn is_empty(&self) -> bool {
            self.0.iter().flatten().all(|buffer| atomic::load(&buffer.handle.0) & IN_USE == 0)
        }
    }
}

#[cfg(not(target_arch = "bpf"))]
pub use host::BufferPool;
