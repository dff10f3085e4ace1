//! Bytes that came before the bytes in front of them, kept until those are here.
//!
//! A few places are shared by all connections, since segments rarely come early and never for long. Whoever takes one has
//! a ticket; a place that was not given back in time can be taken from its holder, whose ticket is then worth nothing.

use crate::shared;

/// Number of places.
pub const PLACES: u32 = 16;
/// Sequence numbers a place is for, from the first byte that was missing when it was taken.
pub const SPAN: u32 = 1 << 18;
/// Longest segment that is kept, bytes.
pub const SEGMENT: u32 = 1 << 16;
/// How long a place is its holder's, nanoseconds: retransmission has long come then, or never will.
pub const HELD_NS: u64 = 10_000_000_000;

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
    /// When it was taken, nanoseconds of `CLOCK_MONOTONIC`.
    pub taken_ns: u64,
    /// Byte `i` has the sequence number of the first missing one plus `i`.
    pub bytes: [u8; (SPAN + SEGMENT) as usize],
}

impl Place {
    /// Takes place `number`; 0 if it is another's.
    #[inline(always)]
    pub fn take(&mut self, number: u32, now_ns: u64) -> u32 {
        let valid = shared::load(&self.ticket);
        if valid & TAKEN != 0 && now_ns.wrapping_sub(self.taken_ns) < HELD_NS {
            return 0;
        }
        self.taken_ns = now_ns;
        let ticket = (valid & !(GENERATION - 1)).wrapping_add(GENERATION) | TAKEN | number;
        if shared::claim(&mut self.ticket, valid, ticket) { ticket } else { 0 }
    }

    /// Is it still held with this ticket?
    #[inline(always)]
    #[must_use]
    pub fn is_held(&self, ticket: u32) -> bool {
        shared::load(&self.ticket) == ticket
    }

    /// Gives it back, if it is still held.
    #[inline(always)]
    pub fn release(&mut self, ticket: u32) {
        shared::claim(&mut self.ticket, ticket, ticket & !TAKEN);
    }
}

/// The place that a ticket is for.
#[inline(always)]
#[must_use]
pub fn number(ticket: u32) -> u32 {
    ticket & (PLACES - 1)
}
