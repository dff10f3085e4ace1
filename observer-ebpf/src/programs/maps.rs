//! Every map, with who writes and who reads it. Sizes marked "userspace" are set at load time.

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    btf_maps::{Array, HashMap, PerCpuArray, ProgramArray, SkStorage, Stack},
    helpers::generated::bpf_sk_storage_get,
    macros::btf_map,
    programs::{SkBuffContext, SockOpsContext},
};
use core::ffi::c_void;
use observer_common::{
    ALLOCATED_INBOUND_PORTS, ALLOCATED_PAGES, ALLOCATED_SLOTS, BucketPage, COUNTED_WITHOUT_PORT, Cgroup, Direction,
    INSERTED_KEYS, InboundKey, InboundPort, OVERFLOW_SLOT, Series, SeriesKey, health::Counter,
};
use observer_proto::{
    Connection, OptionU32, atomic,
    hpack::LargeTable,
    http2::{H2Stream, Http2, MoreStreams, StreamKey},
    reassembly::{BUFFERS, Buffer, HandshakeData},
};

/// Programs only. Freed with the socket.
#[btf_map]
static CONNECTIONS: SkStorage<Connection> = SkStorage::new();
/// Programs only. Freed with the socket; only connections that speak HTTP/2 have one.
#[btf_map]
static HTTP2: SkStorage<Http2> = SkStorage::new();
/// Programs only. Freed with the socket; only connections with a large HPACK table have one.
#[btf_map]
static LARGE_TABLES: SkStorage<[LargeTable; 2]> = SkStorage::new();
/// Programs only. Freed with the socket; only preexisting sockets that are not counted have one.
#[btf_map]
static UNOBSERVED: SkStorage<u32> = SkStorage::new();
/// Programs only. Freed with the socket; only connections with many open streams have one.
#[btf_map]
static MORE_STREAMS: SkStorage<MoreStreams> = SkStorage::new();
/// Programs insert and remove streams that no storage has room for; userspace removes those that outlived their sidecar.
/// Size: userspace.
#[btf_map]
static H2_STREAMS: HashMap<StreamKey, H2Stream, 131072, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
/// Programs only.
#[btf_map]
static REASSEMBLY: Array<Buffer, { BUFFERS as usize }> = Array::new();
/// Programs only. Per CPU: the data of a packet to a listener is read on the same CPU before the next one is stored.
#[btf_map]
static HANDSHAKE_DATA: PerCpuArray<HandshakeData, 1> = PerCpuArray::new();
/// Written by userspace before the programs are attached.
#[btf_map]
static TAIL_CALLS_SKB: ProgramArray<4> = ProgramArray::new();
/// Written by userspace before the programs are attached.
#[btf_map]
static TAIL_CALLS_OPS: ProgramArray<2> = ProgramArray::new();
/// Written by userspace.
#[btf_map]
static PROCESSES: HashMap<u32, u32, 16384, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
/// Written by userspace.
#[btf_map]
static CGROUPS: HashMap<u64, Cgroup, 4096, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
/// Written by userspace before the programs are attached.
#[btf_map]
static PORTS: HashMap<u32, u32, 65536, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
/// Programs insert, userspace reads. Size: userspace.
#[btf_map]
static SLOTS: HashMap<SeriesKey, u32, 10240, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
/// Programs add, userspace reads. Size: userspace.
#[btf_map]
static SERIES: Array<Series, 10240> = Array::new();
/// Programs add, userspace reads. Size: userspace.
#[btf_map]
static BUCKET_PAGES: Array<BucketPage, 65536> = Array::new();
/// Programs add, userspace reads. Slot 0 is the overflow series.
#[btf_map]
static ALLOCATED: Array<u32, 5> = Array::new();
/// Userspace pushes, programs pop. Size: userspace, as that of `SERIES`.
#[btf_map]
static FREE_SLOTS: Stack<u32, 10240> = Stack::new();
/// Userspace pushes, programs pop. Size: userspace, as that of `BUCKET_PAGES`.
#[btf_map]
static FREE_PAGES: Stack<u32, 65536> = Stack::new();
/// Userspace pushes, programs pop.
#[btf_map]
static FREE_PORTS: Stack<u32, 8192> = Stack::new();
/// Programs add, userspace reads.
#[btf_map]
static HEALTH: Array<u64, 64> = Array::new();
/// Programs insert, userspace removes.
#[btf_map]
static INBOUND: HashMap<InboundKey, OptionU32, 8192, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
/// Programs only; userspace clears what it frees.
#[btf_map]
static INBOUND_PORTS: Array<InboundPort, 8192> = Array::new();

/// Returns the connection of a socket, if it has one.
#[inline(always)]
pub(super) fn connection(sk: *mut bpf_sock) -> Option<&'static mut Connection> {
    // SAFETY: it lives as long as the socket, which outlives the program. Fields that another CPU may write are accessed
    // through `atomic`.
    unsafe { storage(&raw const CONNECTIONS, sk, 0).cast::<Connection>().as_mut() }
}

/// Returns the connection of a socket, created if it has none. A lack of room is counted once, if there is room to mark it.
#[inline(always)]
pub(super) fn new_connection(sk: *mut bpf_sock) -> Option<&'static mut Connection> {
    // SAFETY: as above.
    let connection = unsafe { storage(&raw const CONNECTIONS, sk, CREATE).cast::<Connection>().as_mut() };
    if connection.is_none() {
        count(Counter::LossStorage as u32, 1);
        mark_unobserved(sk);
    }
    connection
}

/// Returns whether this socket was marked as not observed.
#[inline(always)]
pub(super) fn is_unobserved(sk: *mut bpf_sock) -> bool {
    !storage(&raw const UNOBSERVED, sk, 0).is_null()
}

/// Marks a socket as not observed, if there is room.
#[inline(always)]
pub(super) fn mark_unobserved(sk: *mut bpf_sock) {
    storage(&raw const UNOBSERVED, sk, CREATE);
}

/// Returns the HTTP/2 state of a socket, if it has one.
#[inline(always)]
pub(super) fn http2(sk: *mut bpf_sock) -> Option<&'static mut Http2> {
    // SAFETY: as in `connection`.
    unsafe { storage(&raw const HTTP2, sk, 0).cast::<Http2>().as_mut() }
}

/// Returns the HTTP/2 state of a socket, created if it has none.
#[inline(always)]
pub(super) fn new_http2(sk: *mut bpf_sock) -> Option<&'static mut Http2> {
    // SAFETY: as in `connection`.
    let http2 = unsafe { storage(&raw const HTTP2, sk, CREATE).cast::<Http2>().as_mut() };
    if http2.is_none() {
        count(Counter::LossStorage as u32, 1);
    }
    http2
}

/// Returns the further streams of a socket, created if `create` is set and there is room; else null.
#[inline(always)]
pub(super) fn more_streams(sk: *mut bpf_sock, create: bool) -> *mut MoreStreams {
    storage(&raw const MORE_STREAMS, sk, if create { CREATE } else { 0 }).cast()
}

/// Returns the large HPACK table of a direction, created if there is none; null if there is no room.
#[inline(always)]
pub(super) fn large_table(sk: *mut bpf_sock, direction: Direction) -> *mut LargeTable {
    let tables = storage(&raw const LARGE_TABLES, sk, CREATE).cast::<[LargeTable; 2]>();
    // SAFETY: not null.
    if tables.is_null() { core::ptr::null_mut() } else { unsafe { &raw mut (&mut *tables)[direction] } }
}

const CREATE: u64 = BPF_SK_STORAGE_GET_F_CREATE as u64;

/// Returns a pointer to the socket's storage, or null.
#[inline(always)]
fn storage<T>(map: *const T, sk: *mut bpf_sock, flags: u64) -> *mut c_void {
    let map = map.cast_mut().cast();
    // SAFETY: `sk` is a socket of the context's, not null.
    unsafe {
        let found = bpf_sk_storage_get(map, sk.cast(), core::ptr::null_mut(), flags);
        if flags == 0 || !found.is_null() {
            return found;
        }
        // If both directions create it at once, one of them is refused, and then it is there.
        bpf_sk_storage_get(map, sk.cast(), core::ptr::null_mut(), 0)
    }
}

/// Returns a stream that no storage had room for, or null.
#[inline(always)]
pub(super) fn stream(key: &StreamKey) -> *mut H2Stream {
    H2_STREAMS.get_ptr_mut(key).unwrap_or(core::ptr::null_mut())
}

/// Inserts a stream; returns false if there is no room.
#[inline(always)]
pub(super) fn insert_stream(key: &StreamKey, stream: &H2Stream) -> bool {
    H2_STREAMS.insert(key, stream, BPF_NOEXIST as u64).is_ok()
}

/// Removes a stream.
#[inline(always)]
pub(super) fn remove_stream(key: &StreamKey) {
    // Only userspace removes others; a missing one needs no removal.
    let _ = H2_STREAMS.remove(key);
}

/// Returns a reassembly buffer.
#[inline(always)]
pub(super) fn buffer(number: u32) -> Option<&'static mut Buffer> {
    // SAFETY: array elements never move; only the holder of the handle writes to it.
    REASSEMBLY.get_ptr_mut(number).map(|buffer| unsafe { &mut *buffer })
}

/// Continues in another packet program; returns only if that fails.
#[inline(always)]
pub(super) fn tail_call_skb(ctx: &SkBuffContext, index: u32) {
    // SAFETY: nothing here is to be dropped.
    unsafe { TAIL_CALLS_SKB.tail_call(ctx, index) }
}

/// Continues in another sock_ops program; returns only if that fails.
#[inline(always)]
pub(super) fn tail_call_ops(ctx: &SockOpsContext, index: u32) {
    // SAFETY: nothing here is to be dropped.
    unsafe { TAIL_CALLS_OPS.tail_call(ctx, index) }
}

/// Returns the data of the last packet to a listener on this CPU.
#[inline(always)]
pub(super) fn handshake_data() -> Option<&'static mut HandshakeData> {
    // SAFETY: array elements never move, and no other CPU has this one.
    HANDSHAKE_DATA.get_ptr_mut(0).map(|data| unsafe { &mut *data })
}

/// Returns the sidecar id of a process, [`observer_common::IGNORED`], or 0 if it is not known.
#[inline(always)]
pub(super) fn sidecar_of(process: u32) -> u32 {
    // SAFETY: values are words that userspace replaces as a whole.
    unsafe { PROCESSES.get(&process) }.copied().unwrap_or(0)
}

/// Returns the description of a cgroup.
#[inline(always)]
pub(super) fn cgroup(id: u64) -> Option<&'static Cgroup> {
    // SAFETY: as above; an element is replaced, never changed in place.
    unsafe { CGROUPS.get(&id) }
}

/// Returns the flags of a port.
#[inline(always)]
pub(super) fn port_flags(port: u16) -> u32 {
    // SAFETY: as above.
    unsafe { PORTS.get(&u32::from(port)) }.copied().unwrap_or(0)
}

/// Adds to a health counter, by its number.
#[inline(always)]
pub(super) fn count(counter: u32, by: u64) {
    if let Some(value) = HEALTH.get_ptr_mut(counter) {
        // SAFETY: array elements never move.
        atomic::add64(unsafe { &mut *value }, by);
    }
}

/// Returns the slot of a series, allocated if it has none; the overflow slot if there is no room.
#[inline(always)]
pub(super) fn slot_of(key: &SeriesKey) -> u32 {
    // SAFETY: values are written once, when they are inserted.
    if let Some(slot) = unsafe { SLOTS.get(key) } {
        return *slot;
    }
    let slot = match FREE_SLOTS.pop() {
        Ok(Some(slot)) => slot,
        _ => match allocate(ALLOCATED_SLOTS, |next| SERIES.get_ptr(next.wrapping_add(1)).is_some()) {
            Some(next) => next.wrapping_add(1),
            None => {
                count(Counter::LossSeries as u32, 1);
                return OVERFLOW_SLOT;
            }
        },
    };
    if SLOTS.insert(key, &slot, BPF_NOEXIST as u64).is_ok() {
        if let Some(inserted) = ALLOCATED.get_ptr_mut(INSERTED_KEYS) {
            // SAFETY: array elements never move. After the insertion: userspace looks for new keys when this has grown.
            atomic::fetch_add(unsafe { &mut *inserted }, 1);
        }
        return slot;
    }
    // Another CPU was first, or the map has no memory: the slot is unused. The stack has room for every slot.
    let _ = FREE_SLOTS.push(slot, 0);
    // SAFETY: as above.
    if let Some(slot) = unsafe { SLOTS.get(key) } {
        return *slot;
    }
    count(Counter::LossSeries as u32, 1);
    OVERFLOW_SLOT
}

/// Allocates the next never used number of a kind, if it `exists`.
#[inline(always)]
fn allocate(kind: u32, exists: impl Fn(u32) -> bool) -> Option<u32> {
    // SAFETY: array elements never move.
    let next = unsafe { &mut *ALLOCATED.get_ptr_mut(kind)? };
    if !exists(atomic::load(next)) {
        return None;
    }
    // Another CPU may allocate the last one meanwhile.
    let number = atomic::fetch_add(next, 1);
    exists(number).then_some(number)
}

/// Returns the values of a slot.
#[inline(always)]
pub(super) fn series(slot: u32) -> Option<&'static mut Series> {
    // SAFETY: array elements never move; every value is only added to, through `atomic`.
    SERIES.get_ptr_mut(slot).map(|series| unsafe { &mut *series })
}

/// Returns the bucket page in `slot`, as its number plus one, allocated if there is none.
#[inline(never)]
pub(super) fn bucket_page(slot: &mut u32) -> Option<&'static mut BucketPage> {
    let mut page = atomic::load(slot);
    if page == 0 {
        let allocated = match FREE_PAGES.pop() {
            Ok(Some(number)) => number,
            _ => match allocate(ALLOCATED_PAGES, |next| BUCKET_PAGES.get_ptr(next).is_some()) {
                Some(number) => number,
                None => {
                    count(Counter::LossPages as u32, 1);
                    return None;
                }
            },
        };
        if atomic::compare_exchange(slot, 0, allocated.wrapping_add(1)) {
            page = allocated.wrapping_add(1);
        } else {
            // Another CPU was first. The stack has room for every page.
            let _ = FREE_PAGES.push(allocated, 0);
            page = atomic::load(slot);
        }
    }
    // SAFETY: array elements never move.
    BUCKET_PAGES.get_ptr_mut(page.wrapping_sub(1)).map(|page| unsafe { &mut *page })
}

/// Returns the number of an inbound port.
#[inline(always)]
pub(super) fn inbound_number(key: &InboundKey) -> OptionU32 {
    // SAFETY: values are written once, when they are inserted.
    unsafe { INBOUND.get(key) }.copied().unwrap_or_default()
}

/// Returns the number of an inbound port, allocated if there is none and there is room.
#[inline(never)]
pub(super) fn new_inbound_number(key: &InboundKey) -> OptionU32 {
    let known = inbound_number(key);
    if known.is_some() {
        return known;
    }
    let number = match FREE_PORTS.pop() {
        Ok(Some(number)) => number,
        _ => match allocate(ALLOCATED_INBOUND_PORTS, |next| INBOUND_PORTS.get_ptr(next).is_some()) {
            Some(number) => number,
            None => {
                count(Counter::LossInbound as u32, 1);
                return OptionU32::NONE;
            }
        },
    };
    if INBOUND.insert(key, &OptionU32::some(number), BPF_NOEXIST as u64).is_err() {
        // As in `slot_of`.
        let _ = FREE_PORTS.push(number, 0);
    }
    inbound_number(key)
}

/// Records that a connection is counted as open whose port is not known.
#[inline(always)]
pub(super) fn record_counted_without_port() {
    if let Some(value) = ALLOCATED.get_ptr_mut(COUNTED_WITHOUT_PORT) {
        // SAFETY: array elements never move.
        atomic::add32(unsafe { &mut *value }, 1);
    }
}

/// Returns whether there ever was such a connection.
#[inline(always)]
pub(super) fn has_counted_without_port() -> bool {
    // SAFETY: as above.
    ALLOCATED.get_ptr(COUNTED_WITHOUT_PORT).is_some_and(|value| atomic::load(unsafe { &*value }) != 0)
}

/// Returns an inbound port.
#[inline(always)]
pub(super) fn inbound_port(number: OptionU32) -> Option<&'static mut InboundPort> {
    // SAFETY: array elements never move; their counters are only added to.
    INBOUND_PORTS.get_ptr_mut(number.get()?).map(|port| unsafe { &mut *port })
}
