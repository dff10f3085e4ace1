//! Bytes that came before the bytes in front of them, kept until those are here.
//!
//! A few places are shared by all connections, since segments rarely come early and never for long. Whoever takes one has
//! a ticket; a place that was not given back in time can be taken from its holder, whose ticket is then worth nothing.

use crate::{shared, stream::FILL};

/// Number of places.
pub const PLACES: u32 = 16;
/// Sequence numbers a place is for, from the first byte that was missing when it was taken.
pub const SPAN: u32 = 1 << 20;
/// Longest segment that is kept, bytes.
pub const SEGMENT: u32 = 1 << 16;
/// Bytes of a place: the last segment may begin at the span's end.
const BYTES: u32 = SPAN + SEGMENT;
/// How long a place is its holder's, nanoseconds: retransmission has long come then, or never will.
pub const HELD_NS: u64 = 10_000_000_000;
/// The first place that a packet for a listener may take: whoever sends such packets leaves the others to open connections.
pub const GREETINGS: u32 = PLACES / 2;
/// How long what a packet for a listener carries is kept, nanoseconds: the kernel makes a connection of it at once or never, but for
/// a virtual processor that is stopped meanwhile.
pub const GREETED_NS: u64 = 10_000_000;

const TAKEN: u32 = 1 << 7;
const GENERATION: u32 = 1 << 8;

/// A place.
#[repr(C)]
#[derive(Debug)]
pub struct Place {
    /// The valid ticket: the place's number, [`TAKEN`], and how often it was taken; shared.
    pub ticket: u32,
    /// Zero.
    pub padding: u32,
    /// Until when it is its holder's, nanoseconds of `CLOCK_MONOTONIC`.
    pub until_ns: u64,
    /// Byte `i` has the sequence number of the first missing one plus `i`. Behind the last are some that are never written, so
    /// that as many can be read from each.
    pub bytes: [u8; (BYTES + FILL) as usize],
}

impl Place {
    /// Takes place `number` until `until_ns`; 0 if it is another's.
    #[inline(always)]
    pub fn take(&mut self, number: u32, now_ns: u64, until_ns: u64) -> u32 {
        let valid = shared::load(&self.ticket);
        if valid & TAKEN != 0 && now_ns < self.until_ns {
            return 0;
        }
        self.until_ns = until_ns;
        let ticket = (valid & !(GENERATION - 1)).wrapping_add(GENERATION) | TAKEN | number;
        if shared::claim(&mut self.ticket, valid, ticket) { ticket } else { 0 }
    }

    /// Is it somebody's?
    #[cfg(not(target_arch = "bpf"))]
    fn is_taken(&self) -> bool {
        shared::load(&self.ticket) & TAKEN != 0
    }

    /// Is it still held with this ticket?
    #[inline(always)]
    #[must_use]
    pub fn is_held(&self, ticket: u32) -> bool {
        ticket != 0 && shared::load(&self.ticket) == ticket
    }

    /// The bytes from `from` on, whatever they are; `None` behind the last.
    #[inline(always)]
    #[must_use]
    pub fn read(&self, from: u32) -> Option<&[u8; FILL as usize]> {
        if from >= BYTES {
            return None;
        }
        // SAFETY: FILL more bytes follow the last that `from` can be.
        Some(unsafe { &*self.bytes.as_ptr().add(from as usize).cast() })
    }

    /// Gives it back, if it is still held.
    #[inline(always)]
    pub fn release(&mut self, ticket: u32) {
        shared::claim(&mut self.ticket, ticket, ticket & !TAKEN);
    }
}

/// What the last packet for a listener carried, which the connection that it establishes begins with.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Greeting {
    /// Ticket of the place that has it, from the place's first byte on; 0 if there is nothing.
    pub ticket: u32,
    /// Sequence number of the first byte.
    pub seq: u32,
    /// Number of bytes.
    pub length: u32,
    /// Zero.
    pub padding: u32,
    /// Cgroup of the listener.
    pub cgroup: u64,
}

/// The place that a ticket is for.
#[inline(always)]
#[must_use]
pub fn number(ticket: u32) -> u32 {
    ticket & (PLACES - 1)
}

#[cfg(not(target_arch = "bpf"))]
mod host {
    extern crate alloc;

    use alloc::boxed::Box;

    use super::{HELD_NS, PLACES, Place, SEGMENT, SPAN, number};

    /// All places where no map has them: a kernel's stand-in for tests.
    #[derive(Debug, Default)]
    pub struct Places([Option<Box<Place>>; PLACES as usize]);

    impl Places {
        /// Takes any free place and returns its ticket; 0 if there is none.
        pub fn take(&mut self, now_ns: u64) -> u32 {
            let fresh = || {
                // SAFETY: integers only. It is never on the stack, which it is too large for.
                let mut place = unsafe { Box::<Place>::new_zeroed().assume_init() };
                // What was never kept shows if it is read.
                place.bytes.fill(0xdd);
                place
            };
            let mut tickets = (0..PLACES).zip(&mut self.0).map(|(number, place)| {
                let place = place.get_or_insert_with(fresh);
                place.take(number, now_ns, now_ns + HELD_NS)
            });
            tickets.find(|ticket| *ticket != 0).unwrap_or(0)
        }

        /// Keeps a segment from byte `at` of the place on; false if that cannot be.
        pub fn keep(&mut self, ticket: u32, at: u32, segment: &[u8]) -> bool {
            let Some(place) = self.0[number(ticket) as usize].as_mut().filter(|place| place.is_held(ticket)) else {
                return false;
            };
            let fits = at < SPAN && segment.len() <= SEGMENT as usize;
            if fits {
                place.bytes[at as usize..][..segment.len()].copy_from_slice(segment);
            }
            fits
        }

        /// A place that is still held.
        #[must_use]
        pub fn held(&self, ticket: u32) -> Option<&Place> {
            self.0[number(ticket) as usize].as_deref().filter(|place| place.is_held(ticket))
        }

        /// Gives a place back, if it is still held.
        pub fn release(&mut self, ticket: u32) {
            if let Some(place) = &mut self.0[number(ticket) as usize] {
                place.release(ticket);
            }
        }

        /// Is no place held?
        #[must_use]
        pub fn is_empty(&self) -> bool {
            self.0.iter().flatten().all(|place| !place.is_taken())
        }
    }
}

#[cfg(not(target_arch = "bpf"))]
pub use host::Places;
