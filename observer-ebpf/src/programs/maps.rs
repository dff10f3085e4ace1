//! Every map, with who writes and who reads it. Sizes marked "user side" are set at load time.

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    btf_maps::{Array, HashMap, SkStorage},
    helpers::generated::bpf_sk_storage_get,
    macros::btf_map,
};
use observer_ebpf::{Block, Cgroup, Door, InboundKey, Series, SeriesKey, health::Counter, shared, socket::Connection};

/// Programs only. Freed with the socket.
#[btf_map]
static CONNECTIONS: SkStorage<Connection> = SkStorage::new();
/// Written by the user side.
#[btf_map]
static PROCESSES: HashMap<u32, u32, 16384, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
/// Written by the user side.
#[btf_map]
static CGROUPS: HashMap<u64, Cgroup, 4096, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
/// Written by the user side before the programs are attached.
#[btf_map]
static PORTS: HashMap<u32, u32, 65536, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
/// Programs insert, the user side reads. Size: user side.
#[btf_map]
static SLOTS: HashMap<SeriesKey, u32, 10240, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
/// Programs add, the user side reads. Size: user side.
#[btf_map]
static SERIES: Array<Series, 10240> = Array::new();
/// Programs add, the user side reads. Size: user side.
#[btf_map]
static BLOCKS: Array<Block, 65536> = Array::new();
/// Programs only: next slot, block and door. Slot 0 is the overflow series.
#[btf_map]
static NEXT: Array<u32, 3> = Array::new();
/// Programs add, the user side reads.
#[btf_map]
static HEALTH: Array<u64, 64> = Array::new();
/// Programs only.
#[btf_map]
static INBOUND: HashMap<InboundKey, u32, 8192, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
/// Programs only.
#[btf_map]
static DOORS: Array<Door, 8192> = Array::new();

const SLOT: u32 = 0;
const BLOCK: u32 = 1;
const DOOR: u32 = 2;

/// The socket's storage, if it has one.
#[inline(always)]
pub(super) fn connection(sk: *mut bpf_sock) -> Option<&'static mut Connection> {
    storage(sk, 0)
}

/// The socket's storage, made if it has none.
#[inline(always)]
pub(super) fn new_connection(sk: *mut bpf_sock) -> Option<&'static mut Connection> {
    let connection = storage(sk, BPF_SK_STORAGE_GET_F_CREATE as u64);
    if connection.is_none() {
        count(Counter::LossStorage, 1);
    }
    connection
}

#[inline(always)]
fn storage(sk: *mut bpf_sock, flags: u64) -> Option<&'static mut Connection> {
    let map = (&raw const CONNECTIONS).cast_mut().cast();
    // SAFETY: the helper gives a pointer to the socket's storage or null; it lives as long as the socket does, which is
    // longer than the program runs. Words that another processor may write are accessed through `shared`.
    unsafe { bpf_sk_storage_get(map, sk.cast(), core::ptr::null_mut(), flags).cast::<Connection>().as_mut() }
}

/// Sidecar id of a process, [`observer_ebpf::IGNORED`], or 0 if it is not known.
#[inline(always)]
pub(super) fn sidecar_of(process: u32) -> u32 {
    // SAFETY: values are words that the user side replaces whole.
    unsafe { PROCESSES.get(&process) }.copied().unwrap_or(0)
}

/// What the user side says of a cgroup.
#[inline(always)]
pub(super) fn cgroup(id: u64) -> Option<&'static Cgroup> {
    // SAFETY: as above; an element is replaced, never changed in place.
    unsafe { CGROUPS.get(&id) }
}

/// The flags of a port.
#[inline(always)]
pub(super) fn port_flags(port: u16) -> u32 {
    // SAFETY: as above.
    unsafe { PORTS.get(&u32::from(port)) }.copied().unwrap_or(0)
}

/// Adds to a health counter.
#[inline(always)]
pub(super) fn count(counter: Counter, by: u64) {
    if let Some(word) = HEALTH.get_ptr_mut(counter as u32) {
        // SAFETY: array elements never move.
        shared::add(unsafe { &mut *word }, by);
    }
}

/// The slot of a series, taken now if it has none; the overflow slot if there is no room.
#[inline(always)]
pub(super) fn slot_of(key: &SeriesKey) -> u32 {
    // SAFETY: values are written once, when they are inserted.
    if let Some(slot) = unsafe { SLOTS.get(key) } {
        return *slot;
    }
    let Some(next) = NEXT.get_ptr_mut(SLOT) else { return observer_ebpf::OVERFLOW_SLOT };
    // SAFETY: array elements never move.
    let next = unsafe { &mut *next };
    let slot = shared::load(next).wrapping_add(1);
    if SERIES.get_ptr(slot).is_none() {
        count(Counter::LossSeries, 1);
        return observer_ebpf::OVERFLOW_SLOT;
    }
    let slot = shared::take(next, 1).wrapping_add(1);
    if SLOTS.insert(key, &slot, BPF_NOEXIST as u64).is_ok() {
        return slot;
    }
    // SAFETY: as above. Another processor was first, or the map is full.
    if let Some(slot) = unsafe { SLOTS.get(key) } {
        return *slot;
    }
    count(Counter::LossSeries, 1);
    observer_ebpf::OVERFLOW_SLOT
}

/// The figures of a slot.
#[inline(always)]
pub(super) fn series(slot: u32) -> Option<&'static mut Series> {
    // SAFETY: array elements never move; every word of one is only added to, through `shared`.
    SERIES.get_ptr_mut(slot).map(|series| unsafe { &mut *series })
}

/// The block that `word` names, taken now if it names none.
#[inline(never)]
pub(super) fn block(word: &mut u32) -> Option<&'static mut Block> {
    let mut name = shared::load(word);
    if name == 0 {
        // SAFETY: array elements never move.
        let next = unsafe { &mut *NEXT.get_ptr_mut(BLOCK)? };
        if BLOCKS.get_ptr(shared::load(next)).is_none() {
            count(Counter::LossBlocks, 1);
            return None;
        }
        let taken = shared::take(next, 1).wrapping_add(1);
        // If another processor was first, its block is used and this one stays empty.
        name = if shared::claim(word, 0, taken) { taken } else { shared::load(word) };
    }
    // SAFETY: as above.
    BLOCKS.get_ptr_mut(name.wrapping_sub(1)).map(|block| unsafe { &mut *block })
}

/// The number, plus one, of the door that has this key; 0 if there is none.
#[inline(always)]
pub(super) fn door_of(key: &InboundKey) -> u32 {
    // SAFETY: values are written once, when they are inserted.
    unsafe { INBOUND.get(key) }.copied().unwrap_or(0)
}

/// As [`door_of`], made if there is none and if there is room.
#[inline(never)]
pub(super) fn new_door(key: &InboundKey) -> u32 {
    let known = door_of(key);
    if known != 0 {
        return known;
    }
    let Some(next) = NEXT.get_ptr_mut(DOOR) else { return 0 };
    // SAFETY: array elements never move.
    let next = unsafe { &mut *next };
    if DOORS.get_ptr(shared::load(next)).is_none() {
        count(Counter::LossInbound, 1);
        return 0;
    }
    let number = shared::take(next, 1).wrapping_add(1);
    // If another processor was first, its door is used and this one stays empty.
    let _ = INBOUND.insert(key, &number, BPF_NOEXIST as u64);
    door_of(key)
}

/// What is booked at a door, by its number plus one.
#[inline(always)]
pub(super) fn door(number: u32) -> Option<&'static mut Door> {
    // SAFETY: array elements never move; their counters are only added to.
    DOORS.get_ptr_mut(number.wrapping_sub(1)).map(|door| unsafe { &mut *door })
}
