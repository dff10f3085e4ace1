//! Open streams of a connection: in its HTTP/2 storage, then in a second storage, then in a map shared by all.

use core::hint::black_box;

use observer_common::{IGNORED, health::Counter};

use crate::{
    atomic,
    connection::Connection,
    env::{ByteSource, Recorder, Runtime, Step},
    hpack::LargeTable,
};
use observer_common::Direction;

use super::{batch::Batch, state::Http2, stream::H2Stream};

/// Streams that [`StreamTable`] holds, by their id.
pub const OWN_STREAMS: usize = 32;
/// Streams that [`MoreStreams`] holds, by their id. With those of [`StreamTable`] they are as many consecutive ones.
pub const MORE_STREAMS: usize = 96;
/// Most streams of one connection in the map. Bounds the cost of one close.
pub const MAX_MAPPED: usize = 2_048;
/// Slots that a stream may have in the map.
const PROBES: u32 = 4;
/// Distance between them: odd, so that they cover all slots, and large, so that consecutive streams do not collide.
const STRIDE: u32 = 1_265;

/// Identity of a stream in the `H2_STREAMS` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct StreamKey {
    /// The socket's cookie.
    pub cookie: u64,
    /// The connection's sidecar, by which userspace removes leftovers.
    pub sidecar: u32,
    /// The stream's slot, below [`MAX_MAPPED`].
    pub slot: u32,
}

const _: () = assert!(size_of::<StreamKey>() == 16);

/// Streams that [`StreamTable`] has no room for.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MoreStreams {
    /// Open streams, each at the index of its id.
    pub streams: [H2Stream; MORE_STREAMS],
}

const _: () = assert!(size_of::<MoreStreams>() <= 5_376);

impl MoreStreams {
    /// Returns the entry of an id.
    #[inline(always)]
    fn get(&mut self, id: u32) -> &mut H2Stream {
        // The verifier has no bound for a remainder, and the compiler drops the check that gives it one.
        let index = black_box((id >> 1) as usize % MORE_STREAMS);
        // SAFETY: checked just here.
        unsafe { self.streams.get_unchecked_mut(if index < MORE_STREAMS { index } else { 0 }) }
    }
}

/// Open streams of a connection.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct StreamTable {
    /// Open streams, each at the index of its id.
    pub streams: [H2Stream; OWN_STREAMS],
    /// Slots in use in the map, one bit each; atomic.
    pub slots: [u32; MAX_MAPPED / 32],
    /// Distinguishes the connection's streams in the map from others.
    pub cookie: u64,
    /// Sidecar under which they are in the map.
    pub sidecar: u32,
    /// Number of open streams that are not in `streams`; atomic.
    pub overflowed: u32,
    /// Number of those that are in the map; atomic.
    pub mapped: u32,
    /// Largest stream id that a client has begun.
    pub last_id: u32,
}

/// Storage for what has no room in [`super::Http2`]. Pointers are null or valid as long as the program runs.
pub trait StreamStore {
    /// Returns the connection's [`MoreStreams`], created if `create` is set and there is room; else null.
    fn more_streams(&mut self, create: bool) -> *mut MoreStreams;
    /// Returns a stream in the map, or null.
    fn mapped_stream(&mut self, key: &StreamKey) -> *mut H2Stream;
    /// Inserts a stream into the map; returns false if there is no room.
    fn insert_stream(&mut self, key: &StreamKey, stream: &H2Stream) -> bool;
    /// Removes a stream from the map.
    fn remove_stream(&mut self, key: &StreamKey);
    /// Returns the large HPACK table of a direction, created if there is none; null if there is no room.
    fn large_table(&mut self, direction: Direction) -> *mut LargeTable;
}

/// All that reading HTTP/2 needs.
pub trait StreamSource: ByteSource + StreamStore + Sized {
    /// Takes one step through the packet. The programs for packets put a function in between that the verifier checks on
    /// its own.
    #[inline(always)]
    fn step(&mut self, c: &mut Connection, h: &mut Http2, direction: Direction) -> Step {
        super::step(c, h, self, direction)
    }
}

impl StreamTable {
    /// Returns the entry of an id in the table itself.
    #[inline(always)]
    fn own(&mut self, id: u32) -> &mut H2Stream {
        // SAFETY: the length is a power of two.
        unsafe { self.streams.get_unchecked_mut((id >> 1) as usize & (OWN_STREAMS - 1)) }
    }

    /// Returns the word with a slot's bit.
    #[inline(always)]
    fn slot_word(&mut self, slot: u32) -> &mut u32 {
        // SAFETY: the length is a power of two.
        unsafe { self.slots.get_unchecked_mut((slot >> 5) as usize & (MAX_MAPPED / 32 - 1)) }
    }

    #[inline(always)]
    fn is_slot_used(&mut self, slot: u32) -> bool {
        atomic::load(self.slot_word(slot)) & 1 << (slot & 31) != 0
    }

    #[inline(always)]
    fn key(&self, slot: u32) -> StreamKey {
        StreamKey { cookie: self.cookie, sidecar: self.sidecar, slot }
    }

    /// Finds an open stream. It stays at its address as long as the program runs.
    #[inline(always)]
    pub(super) fn find<'a, E: StreamStore>(&mut self, env: &mut E, id: u32) -> Option<&'a mut H2Stream> {
        let own = self.own(id);
        let found = if atomic::load(&own.id) == id && id != 0 {
            &raw mut *own
        } else if atomic::load(&self.overflowed) == 0 {
            core::ptr::null_mut()
        } else {
            self.find_overflowed(env, id)
        };
        // SAFETY: null or valid, see `StreamStore`; the table is in storage that outlives the program.
        unsafe { found.as_mut() }
    }

    #[inline(never)]
    fn find_overflowed<E: StreamStore>(&mut self, env: &mut E, id: u32) -> *mut H2Stream {
        // SAFETY: null or valid, see `StreamStore`.
        if let Some(more) = unsafe { env.more_streams(false).as_mut() } {
            let stream = more.get(id);
            if atomic::load(&stream.id) == id && id != 0 {
                return stream;
            }
        }
        if atomic::load(&self.mapped) == 0 {
            return core::ptr::null_mut();
        }
        let slot = self.slot_of(env, id);
        env.mapped_stream(&self.key(slot))
    }

    /// Returns the slot of a stream in the map; [`MAX_MAPPED`] if it is not there.
    #[inline(never)]
    fn slot_of<E: StreamStore>(&mut self, env: &mut E, id: u32) -> u32 {
        let mut probe = 0;
        while probe < PROBES {
            let slot = probed_slot(id, probe);
            if self.is_slot_used(slot) {
                let stream = env.mapped_stream(&self.key(slot));
                // SAFETY: null or valid, see `StreamStore`.
                if unsafe { stream.as_ref() }.is_some_and(|stream| atomic::load(&stream.id) == id) {
                    return slot;
                }
            }
            probe += 1;
        }
        MAX_MAPPED as u32
    }

    /// Inserts a stream where there is room.
    #[inline(always)]
    pub(super) fn insert<E: Recorder + StreamStore>(&mut self, c: &Connection, env: &mut E, stream: &H2Stream) {
        let own = self.own(stream.id);
        if atomic::load(&own.id) == 0 {
            occupy(own, stream);
        } else {
            self.insert_overflowed(c, env, stream);
        }
    }

    #[inline(never)]
    fn insert_overflowed<E: Recorder + StreamStore>(&mut self, c: &Connection, env: &mut E, stream: &H2Stream) {
        // SAFETY: null or valid, see `StreamStore`.
        if let Some(more) = unsafe { env.more_streams(true).as_mut() } {
            let entry = more.get(stream.id);
            if atomic::load(&entry.id) == 0 {
                occupy(entry, stream);
                atomic::add32(&mut self.overflowed, 1);
                return;
            }
        }
        if self.sidecar == 0 {
            self.sidecar = c.sidecar;
        }
        if self.sidecar == 0 || self.sidecar == IGNORED {
            env.count(Counter::RequestUnattributed, 1);
            return;
        }
        let mut probe = 0;
        while probe < PROBES {
            let slot = probed_slot(stream.id, probe);
            if !self.is_slot_used(slot) {
                if env.insert_stream(&self.key(slot), stream) {
                    atomic::fetch_or(self.slot_word(slot), 1 << (slot & 31));
                    atomic::add32(&mut self.mapped, 1);
                    atomic::add32(&mut self.overflowed, 1);
                    return;
                }
                break;
            }
            probe += 1;
        }
        env.count(Counter::RequestNoRoom, 1);
    }

    /// Removes a stream.
    #[inline(always)]
    pub(super) fn remove<E: StreamStore>(&mut self, env: &mut E, id: u32) {
        let own = self.own(id);
        if atomic::load(&own.id) == id {
            atomic::store(&mut own.id, 0);
        } else {
            self.remove_overflowed(env, id);
        }
    }

    #[inline(never)]
    fn remove_overflowed<E: StreamStore>(&mut self, env: &mut E, id: u32) {
        atomic::decrement(&mut self.overflowed);
        // SAFETY: null or valid, see `StreamStore`.
        if let Some(more) = unsafe { env.more_streams(false).as_mut() }
            && atomic::load(&more.get(id).id) == id
        {
            atomic::store(&mut more.get(id).id, 0);
            return;
        }
        let slot = self.slot_of(env, id);
        if slot < MAX_MAPPED as u32 {
            self.free_slot(env, slot);
        }
    }

    /// Removes a stream from the map, before its slot is free: a free slot has no stream.
    #[inline(always)]
    fn free_slot<E: StreamStore>(&mut self, env: &mut E, slot: u32) {
        env.remove_stream(&self.key(slot));
        atomic::fetch_and(self.slot_word(slot), !(1 << (slot & 31)));
        atomic::decrement(&mut self.mapped);
    }

    /// Closes streams, wherever they are, for the batch's reason, and counts them.
    #[inline(never)]
    pub(super) fn close<E: Recorder + Runtime + StreamStore>(
        &mut self,
        c: &mut Connection,
        env: &mut E,
        batch: &mut Batch,
    ) {
        let has_overflowed = atomic::load(&self.overflowed) != 0;
        let has_mapped = atomic::load(&self.mapped) != 0;
        let more = if has_overflowed { env.more_streams(false) } else { core::ptr::null_mut() };
        let entries = if has_mapped {
            OWN_STREAMS + MORE_STREAMS + MAX_MAPPED
        } else if has_overflowed {
            OWN_STREAMS + MORE_STREAMS
        } else {
            OWN_STREAMS
        };
        env.repeat(entries as u32, |env, entry| {
            if self.close_entry(env, batch, more, entry) {
                batch.push_closed(c, env);
            }
            Step::More
        });
        batch.end_closing(c, env);
    }

    /// Closes the stream of an entry, numbered through all three storages; returns whether it did.
    #[inline(always)]
    fn close_entry<E: StreamStore>(
        &mut self,
        env: &mut E,
        batch: &mut Batch,
        more: *mut MoreStreams,
        entry: u32,
    ) -> bool {
        if entry < OWN_STREAMS as u32 {
            // SAFETY: checked just here, masked for the verifier.
            let stream = unsafe { self.streams.get_unchecked_mut(entry as usize & (OWN_STREAMS - 1)) };
            if !batch.close(stream) {
                return false;
            }
            atomic::store(&mut stream.id, 0);
        } else if entry < (OWN_STREAMS + MORE_STREAMS) as u32 {
            // Hidden from the compiler, so that the check below stays for the verifier.
            let index = black_box(entry - OWN_STREAMS as u32);
            // SAFETY: null or valid, see `StreamStore`.
            let Some(more) = (unsafe { more.as_mut() }) else { return false };
            if index >= MORE_STREAMS as u32 {
                return false;
            }
            // SAFETY: checked just here.
            let stream = unsafe { more.streams.get_unchecked_mut(index as usize) };
            if !batch.close(stream) {
                return false;
            }
            atomic::store(&mut stream.id, 0);
            atomic::decrement(&mut self.overflowed);
        } else {
            let slot = entry - (OWN_STREAMS + MORE_STREAMS) as u32;
            if !self.is_slot_used(slot) {
                return false;
            }
            // SAFETY: null or valid, see `StreamStore`.
            let Some(stream) = (unsafe { env.mapped_stream(&self.key(slot)).as_mut() }) else { return false };
            if !batch.close(stream) {
                return false;
            }
            self.free_slot(env, slot);
            atomic::decrement(&mut self.overflowed);
        }
        true
    }
}

/// Writes a stream to a free entry.
#[inline(always)]
fn occupy(entry: &mut H2Stream, stream: &H2Stream) {
    *entry = H2Stream { id: 0, ..*stream };
    atomic::store(&mut entry.id, stream.id);
}

/// Returns a slot of the map that a stream may have.
#[inline(always)]
fn probed_slot(id: u32, probe: u32) -> u32 {
    (id >> 1).wrapping_add(probe.wrapping_mul(STRIDE)) & (MAX_MAPPED as u32 - 1)
}
