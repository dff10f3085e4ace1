//! Every map, with who writes and who reads it. Sizes marked "user side" are set at load time.

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    btf_maps::{Array, HashMap, PerCpuArray, ProgramArray, SkStorage, Stack},
    helpers::generated::bpf_sk_storage_get,
    macros::btf_map,
    programs::{SkBuffContext, SockOpsContext},
};
use core::ffi::c_void;
use observer_common::{
    Block, Cgroup, Door, INSERTED, InboundKey, NEXT_BLOCK, NEXT_DOOR, NEXT_SLOT, Series, SeriesKey, WITHOUT_PORT,
    health::Counter,
};
use observer_proto::{
    early::{Greeting, PLACES, Place},
    hpack::Wide,
    http2::{Call, CallKey, Http2, More},
    shared,
    socket::Connection,
};

/// Programs only. Freed with the socket.
#[btf_map]
static CONNECTIONS: SkStorage<Connection> = SkStorage::new();
/// Programs only. Freed with the socket; only connections that speak HTTP/2 have one.
#[btf_map]
static HTTP2: SkStorage<Http2> = SkStorage::new();
/// Programs only. Freed with the socket; only connections with a large header table have one.
#[btf_map]
static WIDE: SkStorage<[Wide; 2]> = SkStorage::new();
/// Programs only. Freed with the socket; sockets that are older than the programs and that nothing is counted of have one.
#[btf_map]
static UNOBSERVED: SkStorage<u32> = SkStorage::new();
/// Programs only. Freed with the socket; only connections with many open calls have one.
#[btf_map]
static MORE: SkStorage<More> = SkStorage::new();
/// Programs insert and remove calls that no storage has room for; the user side removes what outlived its sidecar.
#[btf_map]
static CALLS: HashMap<CallKey, Call, 131072, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
/// Programs only.
#[btf_map]
static EARLY: Array<Place, { PLACES as usize }> = Array::new();
/// Programs only. A processor's own: what a packet for a listener leaves, the same processor reads before it takes another.
#[btf_map]
static GREETINGS: PerCpuArray<Greeting, 1> = PerCpuArray::new();
/// Written by the user side before the programs are attached.
#[btf_map]
static NEXT_PROGRAMS: ProgramArray<4> = ProgramArray::new();
/// Written by the user side before the programs are attached.
#[btf_map]
static NEXT_EVENTS: ProgramArray<2> = ProgramArray::new();
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
/// Programs add, the user side reads. Slot 0 is the overflow series.
#[btf_map]
static NEXT: Array<u32, 5> = Array::new();
/// The user side pushes, programs pop. Size: user side, as that of `SERIES`.
#[btf_map]
static FREE_SLOTS: Stack<u32, 10240> = Stack::new();
/// The user side pushes, programs pop. Size: user side, as that of `BLOCKS`.
#[btf_map]
static FREE_BLOCKS: Stack<u32, 65536> = Stack::new();
/// The user side pushes, programs pop.
#[btf_map]
static FREE_DOORS: Stack<u32, 8192> = Stack::new();
/// Programs add, the user side reads.
#[btf_map]
static HEALTH: Array<u64, 64> = Array::new();
/// Programs insert, the user side removes.
#[btf_map]
static INBOUND: HashMap<InboundKey, u32, 8192, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
/// Programs only; the user side clears what it frees.
#[btf_map]
static DOORS: Array<Door, 8192> = Array::new();

/// The socket's storage, if it has one.
#[inline(always)]
pub(super) fn connection(sk: *mut bpf_sock) -> Option<&'static mut Connection> {
    // SAFETY: it lives as long as the socket does, which is longer than the program runs. Words that another processor may
    // write are accessed through `shared`.
    unsafe { storage(&raw const CONNECTIONS, sk, 0).cast::<Connection>().as_mut() }
}

/// The socket's storage, made if it has none. Where there is no room, that is counted once, if there is room to remember it.
#[inline(always)]
pub(super) fn new_connection(sk: *mut bpf_sock) -> Option<&'static mut Connection> {
    // SAFETY: as above.
    let connection = unsafe { storage(&raw const CONNECTIONS, sk, CREATE).cast::<Connection>().as_mut() };
    if connection.is_none() {
        count(Counter::LossStorage as u32, 1);
        leave_unobserved(sk);
    }
    connection
}

/// Was this socket without a connection looked at before, and found to be none of ours?
#[inline(always)]
pub(super) fn is_unobserved(sk: *mut bpf_sock) -> bool {
    !storage(&raw const UNOBSERVED, sk, 0).is_null()
}

/// Remembers it, if there is room.
#[inline(always)]
pub(super) fn leave_unobserved(sk: *mut bpf_sock) {
    storage(&raw const UNOBSERVED, sk, CREATE);
}

/// The HTTP/2 part of a connection, if it has one.
#[inline(always)]
pub(super) fn http2(sk: *mut bpf_sock) -> Option<&'static mut Http2> {
    // SAFETY: as in `connection`.
    unsafe { storage(&raw const HTTP2, sk, 0).cast::<Http2>().as_mut() }
}

/// The HTTP/2 part of a connection, made if it has none.
#[inline(always)]
pub(super) fn new_http2(sk: *mut bpf_sock) -> Option<&'static mut Http2> {
    // SAFETY: as in `connection`.
    let http2 = unsafe { storage(&raw const HTTP2, sk, CREATE).cast::<Http2>().as_mut() };
    if http2.is_none() {
        count(Counter::LossStorage as u32, 1);
    }
    http2
}

/// The calls that a connection's HTTP/2 part has no room for; null if there are none, and if they are to be made and there is no
/// room.
#[inline(always)]
pub(super) fn more(sk: *mut bpf_sock, create: bool) -> *mut More {
    storage(&raw const MORE, sk, if create { CREATE } else { 0 }).cast()
}

/// The larger header table of a direction, made if there is none; null if there is no room.
#[inline(always)]
pub(super) fn wide(sk: *mut bpf_sock, direction: usize) -> *mut Wide {
    let both = storage(&raw const WIDE, sk, CREATE).cast::<[Wide; 2]>();
    // SAFETY: not null, and the direction is 0 or 1.
    if both.is_null() { core::ptr::null_mut() } else { unsafe { &raw mut (*both)[direction & 1] } }
}

const CREATE: u64 = BPF_SK_STORAGE_GET_F_CREATE as u64;

/// The helper gives a pointer to the socket's storage or null.
#[inline(always)]
fn storage<T>(map: *const T, sk: *mut bpf_sock, flags: u64) -> *mut c_void {
    let map = map.cast_mut().cast();
    // SAFETY: `sk` is a socket of the context's, not null.
    unsafe {
        let found = bpf_sk_storage_get(map, sk.cast(), core::ptr::null_mut(), flags);
        if flags == 0 || !found.is_null() {
            return found;
        }
        // Where both directions make it at once, one of them is refused, and then it is there.
        bpf_sk_storage_get(map, sk.cast(), core::ptr::null_mut(), 0)
    }
}

/// A call that the connection's storage had no room for, or null.
#[inline(always)]
pub(super) fn call(key: &CallKey) -> *mut Call {
    CALLS.get_ptr_mut(key).unwrap_or(core::ptr::null_mut())
}

/// Keeps a call; false if there is no room.
#[inline(always)]
pub(super) fn insert_call(key: &CallKey, call: &Call) -> bool {
    CALLS.insert(key, call, BPF_NOEXIST as u64).is_ok()
}

/// Forgets a call.
#[inline(always)]
pub(super) fn remove_call(key: &CallKey) {
    // Nobody else removes it; if it is gone all the same, nothing is left to do.
    let _ = CALLS.remove(key);
}

/// A place for bytes that came early.
#[inline(always)]
pub(super) fn place(number: u32) -> Option<&'static mut Place> {
    // SAFETY: array elements never move; who has the ticket alone writes to it.
    EARLY.get_ptr_mut(number).map(|place| unsafe { &mut *place })
}

/// Goes on in another program; returns only if there is none.
#[inline(always)]
pub(super) fn hand_over(ctx: &SkBuffContext, number: u32) {
    // SAFETY: nothing here waits to be dropped.
    unsafe { NEXT_PROGRAMS.tail_call(ctx, number) }
}

/// As [`tail_call_failed`], for a connection's event.
#[inline(always)]
pub(super) fn hand_over_event(ctx: &SockOpsContext, number: u32) {
    // SAFETY: nothing here waits to be dropped.
    unsafe { NEXT_EVENTS.tail_call(ctx, number) }
}

/// What the last packet for a listener on this processor carried.
#[inline(always)]
pub(super) fn greeting() -> Option<&'static mut Greeting> {
    // SAFETY: array elements never move, and no other processor has this one.
    GREETINGS.get_ptr_mut(0).map(|greeting| unsafe { &mut *greeting })
}

/// Sidecar id of a process, [`observer_common::IGNORED`], or 0 if it is not known.
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

/// Adds to a health counter, by its number.
#[inline(always)]
pub(super) fn count(counter: u32, by: u64) {
    if let Some(word) = HEALTH.get_ptr_mut(counter) {
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
    let slot = match FREE_SLOTS.pop() {
        Ok(Some(slot)) => slot,
        _ => match first_use(NEXT_SLOT, |next| SERIES.get_ptr(next.wrapping_add(1)).is_some()) {
            Some(next) => next.wrapping_add(1),
            None => {
                count(Counter::LossSeries as u32, 1);
                return observer_common::OVERFLOW_SLOT;
            }
        },
    };
    if SLOTS.insert(key, &slot, BPF_NOEXIST as u64).is_ok() {
        if let Some(inserted) = NEXT.get_ptr_mut(INSERTED) {
            // SAFETY: array elements never move. The user side looks for new keys when this has grown: after the insertion.
            shared::take(unsafe { &mut *inserted }, 1);
        }
        return slot;
    }
    // Another processor was first, or the map has no memory: the slot is as it was. Every slot has room there.
    let _ = FREE_SLOTS.push(slot, 0);
    // SAFETY: as above.
    if let Some(slot) = unsafe { SLOTS.get(key) } {
        return *slot;
    }
    count(Counter::LossSeries as u32, 1);
    observer_common::OVERFLOW_SLOT
}

/// The next number of a kind that was never used, if it `exists`.
#[inline(always)]
fn first_use(kind: u32, exists: impl Fn(u32) -> bool) -> Option<u32> {
    // SAFETY: array elements never move.
    let next = unsafe { &mut *NEXT.get_ptr_mut(kind)? };
    if !exists(shared::load(next)) {
        return None;
    }
    // Another processor may take the last one meanwhile.
    let taken = shared::take(next, 1);
    exists(taken).then_some(taken)
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
        let taken = match FREE_BLOCKS.pop() {
            Ok(Some(block)) => block,
            _ => match first_use(NEXT_BLOCK, |next| BLOCKS.get_ptr(next).is_some()) {
                Some(block) => block,
                None => {
                    count(Counter::LossBlocks as u32, 1);
                    return None;
                }
            },
        };
        if shared::claim(word, 0, taken.wrapping_add(1)) {
            name = taken.wrapping_add(1);
        } else {
            // Another processor was first: its block is used. Every block has room there.
            let _ = FREE_BLOCKS.push(taken, 0);
            name = shared::load(word);
        }
    }
    // SAFETY: array elements never move.
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
    let door = match FREE_DOORS.pop() {
        Ok(Some(door)) => door,
        _ => match first_use(NEXT_DOOR, |next| DOORS.get_ptr(next).is_some()) {
            Some(door) => door,
            None => {
                count(Counter::LossInbound as u32, 1);
                return 0;
            }
        },
    };
    if INBOUND.insert(key, &door.wrapping_add(1), BPF_NOEXIST as u64).is_err() {
        // As in `slot_of`.
        let _ = FREE_DOORS.push(door, 0);
    }
    door_of(key)
}

/// Notes that a connection is listed whose port is not known.
#[inline(always)]
pub(super) fn listed_without_port() {
    if let Some(word) = NEXT.get_ptr_mut(WITHOUT_PORT) {
        // SAFETY: array elements never move.
        shared::bump(unsafe { &mut *word });
    }
}

/// Was there ever such a connection?
#[inline(always)]
pub(super) fn has_listed_without_port() -> bool {
    // SAFETY: as above.
    NEXT.get_ptr(WITHOUT_PORT).is_some_and(|word| shared::load(unsafe { &*word }) != 0)
}

/// What is booked at a door, by its number plus one.
#[inline(always)]
pub(super) fn door(number: u32) -> Option<&'static mut Door> {
    // SAFETY: array elements never move; their counters are only added to.
    DOORS.get_ptr_mut(number.wrapping_sub(1)).map(|door| unsafe { &mut *door })
}
