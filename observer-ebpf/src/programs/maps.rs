//! Every map, with who writes and who reads it. Sizes marked "userspace" are set at load time.

use aya_ebpf::{
    bindings::{
        BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_NOEXIST, BPF_RB_NO_WAKEUP, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock,
    },
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, ProgramArray, RingBuf, SkStorage, Stack},
    helpers::generated::bpf_sk_storage_get,
    macros::btf_map,
    programs::{SkBuffContext, SockOpsContext},
};
use core::ffi::c_void;
use observer_common::{
    ALLOCATED_CALLERS, ALLOCATED_INBOUND_PORTS, ALLOCATED_PAGES, ALLOCATED_SLOTS, BucketPage, COUNTED_WITHOUT_PORT,
    Caller, CallerId, Cgroup, Direction, Exemplar, ExemplarKey, INSERTED_KEYS, INSERTED_PEERS, InboundKey, InboundPeer,
    InboundPeerKey, InboundPort, MAX_CALLER_TEXT, OVERFLOW_SLOT, OpenRequest, PortKey, RECLAIM_EPOCH, SENDS_TARGETS,
    Series, SeriesKey, SpanRecord, TraceKey, health::Counter,
};
use observer_proto::{
    Connection, OptionU32, atomic,
    caller::{self, CallerText},
    hpack::LargeTable,
    http2::{H2Stream, Http2, MoreStreams, StreamKey},
    pairing::{Accepted, AcceptedKey},
    reassembly::{BUFFERS, Buffer, HandshakeData},
    trace::{LineTable, TraceTable, TraceText},
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
/// Written by userspace.
#[btf_map]
static PORT_PROTOCOLS: HashMap<PortKey, u32, 65536, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
/// Programs insert, userspace reads. Size: userspace.
#[btf_map]
static SLOTS: HashMap<SeriesKey, u32, 10240, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
/// Programs add, userspace maps it to read. Size: userspace.
#[btf_map]
static SERIES: Array<Series, 10240, { BPF_F_MMAPABLE as usize }> = Array::new();
/// Programs add, userspace maps it to read. Size: userspace.
#[btf_map]
static BUCKET_PAGES: Array<BucketPage, 65536, { BPF_F_MMAPABLE as usize }> = Array::new();
/// Programs add, userspace reads. Slot 0 is the overflow series.
#[btf_map]
static ALLOCATED: Array<u32, 8> = Array::new();
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

/// Programs only. Freed with the socket; only connections whose requests name their callers have one.
#[btf_map]
static CALLER_TEXTS: SkStorage<CallerText> = SkStorage::new();
/// Programs insert and remove; userspace removes those that outlived their sidecar.
#[btf_map]
static ACCEPTED: HashMap<AcceptedKey, Accepted, 16384, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
/// Programs insert, userspace reads and removes. The key is a hash of kind and text.
#[btf_map]
static CALLERS: HashMap<u64, Caller, 4096, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
/// Programs insert and add, userspace reads and removes.
#[btf_map]
static INBOUND_PEERS: HashMap<InboundPeerKey, InboundPeer, 16384, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
/// Programs only. Freed with the socket; only connections whose requests have trace contexts have one.
#[btf_map]
static TRACE_TEXTS: SkStorage<TraceText> = SkStorage::new();
/// Programs only. Freed with the socket; only connections of HTTP/2 whose requests have trace contexts have one.
#[btf_map]
static TRACE_TABLES: SkStorage<TraceTable> = SkStorage::new();
/// Programs only. Freed with the socket; only connections of HTTP/2 that insert paths into their header table have one.
#[btf_map]
static LINE_TABLES: SkStorage<LineTable> = SkStorage::new();
/// Programs only: sampled requests that are open. What has no room is forgotten, the oldest first. Size: userspace.
#[btf_map]
static TRACES: LruHashMap<TraceKey, OpenRequest, 16384> = LruHashMap::new();
/// Programs insert, userspace reads and removes. The bucket that was counted in longest ago yields to another. Size: userspace.
#[btf_map]
static EXEMPLARS: LruHashMap<ExemplarKey, Exemplar, 40960> = LruHashMap::new();
/// Programs write, userspace reads. What has no room is counted. Size: userspace.
#[btf_map]
static SPANS: RingBuf<SpanRecord, 4096> = RingBuf::new();

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

/// Returns the caller text of a socket, created if it has none; null if there is no room.
#[inline(always)]
pub(super) fn caller_text(sk: *mut bpf_sock) -> *mut CallerText {
    storage(&raw const CALLER_TEXTS, sk, CREATE).cast()
}

/// Returns the trace text of a socket, created if it has none; null if there is no room.
#[inline(always)]
pub(super) fn trace_text(sk: *mut bpf_sock) -> *mut TraceText {
    storage(&raw const TRACE_TEXTS, sk, CREATE).cast()
}

/// Returns the trace table of a socket, created if it has none; null if there is no room.
#[inline(always)]
pub(super) fn trace_table(sk: *mut bpf_sock) -> *mut TraceTable {
    storage(&raw const TRACE_TABLES, sk, CREATE).cast()
}

/// Returns the line table of a socket, created if it has none; null if there is no room.
#[inline(always)]
pub(super) fn line_table(sk: *mut bpf_sock) -> *mut LineTable {
    storage(&raw const LINE_TABLES, sk, CREATE).cast()
}

/// Keeps an open request; returns whether there was room.
#[inline(always)]
pub(super) fn keep_trace(key: &TraceKey, request: &OpenRequest) -> bool {
    TRACES.insert(key, request, 0).is_ok()
}

/// Returns an open request, if it is kept. Valid until [`forget_trace`].
#[inline(always)]
pub(super) fn trace(key: &TraceKey) -> Option<&'static mut OpenRequest> {
    // SAFETY: the memory stays the map's. Whoever ends the request has it alone, unless the map gives it to a new request at
    // this very moment: then that one, sampled too, is the exemplar.
    TRACES.get_ptr_mut(key).map(|trace| unsafe { &mut *trace })
}

/// Forgets a request that has ended.
#[inline(always)]
pub(super) fn forget_trace(key: &TraceKey) {
    // It may be forgotten already.
    let _ = TRACES.remove(key);
}

/// Makes a request the exemplar of its series' bucket.
#[inline(always)]
pub(super) fn set_exemplar(key: &ExemplarKey, exemplar: &Exemplar) {
    if EXEMPLARS.insert(key, exemplar, 0).is_err() {
        count(Counter::TracesFull as u32, 1);
    }
}

/// See [`observer_common::names::SENDS_SPANS`]. Set by the loader before the programs are loaded: a constant for the verifier.
#[unsafe(no_mangle)]
static SENDS_SPANS: u32 = 0;

/// Returns whether sampled requests become records.
#[inline(always)]
pub(super) fn sends_spans() -> bool {
    what_is_sent() != 0
}

/// Returns whether the records say what was asked for.
#[inline(always)]
pub(super) fn reads_lines() -> bool {
    what_is_sent() == SENDS_TARGETS
}

#[inline(always)]
fn what_is_sent() -> u32 {
    // SAFETY: a constant; volatile, since the loader changes it.
    unsafe { core::ptr::read_volatile(&raw const SENDS_SPANS) }
}

/// Passes a record to userspace, which looks for them from time to time.
#[inline(always)]
pub(super) fn send_span(write: impl FnOnce(*mut SpanRecord)) {
    let Some(mut record) = SPANS.reserve(0) else { return count(Counter::SpansFull as u32, 1) };
    write(record.as_mut_ptr());
    record.submit(BPF_RB_NO_WAKEUP.into());
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

/// Returns the declared protocol of a port, if one is declared.
#[inline(always)]
pub(super) fn declared_protocol(key: &PortKey) -> Option<u32> {
    // SAFETY: as above.
    unsafe { PORT_PROTOCOLS.get(key) }.copied()
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
#[inline(always)]
pub(super) fn bucket_page(slot: &mut u32) -> Option<&'static mut BucketPage> {
    let page = atomic::load(slot);
    let page = if page != 0 { page } else { new_bucket_page(slot) };
    // SAFETY: array elements never move.
    BUCKET_PAGES.get_ptr_mut(page.wrapping_sub(1)).map(|page| unsafe { &mut *page })
}

/// Allocates a bucket page for `slot`; returns its number plus one, 0 if there is no room.
#[inline(never)]
fn new_bucket_page(slot: &mut u32) -> u32 {
    let allocated = match FREE_PAGES.pop() {
        Ok(Some(number)) => number,
        _ => match allocate(ALLOCATED_PAGES, |next| BUCKET_PAGES.get_ptr(next).is_some()) {
            Some(number) => number,
            None => {
                count(Counter::LossPages as u32, 1);
                return 0;
            }
        },
    };
    if atomic::compare_exchange(slot, 0, allocated.wrapping_add(1)) {
        return allocated.wrapping_add(1);
    }
    // Another CPU was first. The stack has room for every page.
    let _ = FREE_PAGES.push(allocated, 0);
    atomic::load(slot)
}

/// Returns the id of a caller, allocated if it has none; [`caller::NO_ROOM`] if there is no room. Not global: Linux 6.1
/// lets a map have no value that a global function was given.
#[inline(never)]
pub(super) fn intern(caller: &mut Caller, hash: u64) -> CallerId {
    if let Some(known) = CALLERS.get_ptr(&hash) {
        // SAFETY: values are written once, when they are inserted.
        return id_if_same(unsafe { &*known }, caller);
    }
    let Some(number) = allocate(ALLOCATED_CALLERS, |next| next < caller::MAX_CALLER_ID) else {
        return caller::NO_ROOM;
    };
    caller.id = CallerId(number.wrapping_add(1) as u16);
    if CALLERS.insert(&hash, &*caller, BPF_NOEXIST as u64).is_ok() {
        return caller.id;
    }
    // Another CPU was first, or the map is full: the id is unused.
    if let Some(next) = ALLOCATED.get_ptr_mut(ALLOCATED_CALLERS) {
        // SAFETY: array elements never move.
        atomic::compare_exchange(unsafe { &mut *next }, number.wrapping_add(1), number);
    }
    match CALLERS.get_ptr(&hash) {
        // SAFETY: as above.
        Some(known) => id_if_same(unsafe { &*known }, caller),
        None => caller::NO_ROOM,
    }
}

/// Returns the id of a known caller if this is the same, and not one whose hash is the same.
#[inline(always)]
fn id_if_same(known: &Caller, caller: &Caller) -> CallerId {
    let words = |caller: &Caller| caller.text.as_ptr().cast::<u64>();
    let (a, b) = (words(known), words(caller));
    let mut differences = u64::from(known.length ^ caller.length) | u64::from(known.kind.0 ^ caller.kind.0);
    let mut i = 0;
    while i < MAX_CALLER_TEXT / 8 {
        // SAFETY: within the text, which is 8 bytes behind the start of a map's value or of a storage, both aligned.
        differences |= unsafe { *a.add(i) ^ *b.add(i) };
        i += 1;
    }
    if differences == 0 { known.id } else { CallerId::UNREADABLE }
}

/// Returns the peer of an inbound port, inserted if it is not there and there is room.
#[inline(always)]
pub(super) fn new_peer(key: &InboundPeerKey) -> Option<&'static mut InboundPeer> {
    if let Some(known) = peer(key) {
        return Some(known);
    }
    if INBOUND_PEERS.insert(key, &InboundPeer::default(), BPF_NOEXIST as u64).is_ok()
        && let Some(inserted) = ALLOCATED.get_ptr_mut(INSERTED_PEERS)
    {
        // SAFETY: array elements never move. After the insertion, as in `slot_of`.
        atomic::fetch_add(unsafe { &mut *inserted }, 1);
    }
    peer(key)
}

/// Returns the peer of an inbound port.
#[inline(always)]
pub(super) fn peer(key: &InboundPeerKey) -> Option<&'static mut InboundPeer> {
    // SAFETY: elements are only added to, through `atomic`, until userspace removes them, which lets the program end first.
    INBOUND_PEERS.get_ptr_mut(key).map(|peer| unsafe { &mut *peer })
}

/// Returns what a thread has accepted for a port.
#[inline(always)]
pub(super) fn accepted(key: &AcceptedKey) -> Option<&'static mut Accepted> {
    // SAFETY: only the word is changed, through `atomic`; a removed element stays until the program ends.
    ACCEPTED.get_ptr_mut(key).map(|accepted| unsafe { &mut *accepted })
}

/// Inserts or replaces what a thread has accepted for a port; returns false if there is no room.
#[inline(always)]
pub(super) fn insert_accepted(key: &AcceptedKey, accepted: &Accepted) -> bool {
    ACCEPTED.insert(key, accepted, 0).is_ok()
}

/// Returns the epoch for which connections may hold slots of series.
#[inline(always)]
pub(super) fn reclaim_epoch() -> u32 {
    // SAFETY: array elements never move.
    ALLOCATED.get_ptr(RECLAIM_EPOCH).map_or(0, |value| atomic::load(unsafe { &*value }))
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
