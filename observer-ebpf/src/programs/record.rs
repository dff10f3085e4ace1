//! Series: where finished requests and TCP bytes are counted, and the open connections by which a request's security is
//! determined.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use observer_common::{
    CallerId, DURATION,
    Direction::{self, Request, Response},
    ExemplarKey, GRPC_NONE, GRPC_UNKNOWN, Histogram, IGNORED, InboundKey, InboundPort, OpenRequest, Protocol,
    REQUEST_BYTES, RESPONSE_BYTES, Security, SeriesKey, TraceKey,
    health::Counter,
    histogram,
};
use observer_proto::{
    ConnLeg, ConnProtocol, Connection, FinishedRequest, OptionU32, atomic,
    connection::flags::{COUNTED_OPEN, COUNTED_PEER, ENDED, PREEXISTING, WITHOUT_CALLERS},
};

use super::{context::opaque, maps};

/// Silence of one kind of clients after which a request is attributed to the other kind.
const SILENCE_NS: u64 = 100_000_000;

/// Returns the time, nanoseconds of `CLOCK_MONOTONIC`.
#[inline(always)]
pub(super) fn now() -> u64 {
    // SAFETY: the helper takes nothing and cannot fail.
    unsafe { bpf_ktime_get_ns() }
}

/// Counts the finished request that the connection holds for a direction; returns as [`requests`].
#[inline(always)]
pub(super) fn request(c: &mut Connection, direction: Direction) -> u32 {
    let request = &raw const c.flows[direction].finished;
    // SAFETY: it is in the connection, which outlives the program.
    let microseconds = unsafe { (*request).duration_ns } / 1_000;
    requests(c, request, 1, microseconds)
}

/// Counts a request `times` times; `microseconds` is the sum of the durations. Returns the slot of its series plus one, or 0 if
/// it belongs to none.
#[inline(always)]
pub(super) fn requests(c: &mut Connection, request: *const FinishedRequest, times: u32, microseconds: u64) -> u32 {
    record_requests(c, request, times, microseconds)
}

/// Does so. Global, so that the verifier checks it on its own.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn record_requests(
    c: *mut Connection,
    request: *const FinishedRequest,
    times: u32,
    microseconds: u64,
) -> u32 {
    // SAFETY: null or in a socket's storage, which outlives the program.
    let (Some(c), Some(request)) = (unsafe { (c.as_mut(), request.as_ref()) }) else { return 0 };
    let &FinishedRequest { ref bytes, ref messages, status, grpc_status, protocol, security, caller, .. } = request;
    let by = u64::from(times);
    let labels = Labels { protocol, security, status, grpc_status, caller };
    let slot = series_slot(c, &labels);
    let Some(series) = maps::series(slot.wrapping_sub(1)) else {
        maps::count(Counter::RequestUnattributed as u32, by);
        return 0;
    };
    let one = request.duration_ns / 1_000;
    observe(&mut series.histograms[DURATION], one, one / 1_000, times, microseconds);
    observe(&mut series.histograms[REQUEST_BYTES], bytes[Request], bytes[Request], times, bytes[Request] * by);
    observe(&mut series.histograms[RESPONSE_BYTES], bytes[Response], bytes[Response], times, bytes[Response] * by);
    if messages[Request] != 0 {
        atomic::add64(&mut series.messages[Request], u64::from(messages[Request]) * by);
    }
    if messages[Response] != 0 {
        atomic::add64(&mut series.messages[Response], u64::from(messages[Response]) * by);
    }
    maps::count(u32::from(request.outcome), by);
    slot
}

/// Makes a sampled request that was counted in a series the exemplar of its bucket, and a span.
#[inline(always)]
pub(super) fn sampled(c: &mut Connection, cookie: u64, request: *const FinishedRequest, slot: u32) {
    record_sampled(c, cookie, request, slot);
}

/// Does so. Global, so that the verifier checks it on its own.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn record_sampled(c: *mut Connection, cookie: u64, request: *const FinishedRequest, slot: u32) -> u32 {
    // SAFETY: null or in a socket's storage, which outlives the program.
    let (Some(c), Some(request)) = (unsafe { (c.as_ref(), request.as_ref()) }) else { return 0 };
    let key = TraceKey { cookie, number: request.trace.get().unwrap_or(0), padding: 0 };
    let Some(open) = maps::trace(&key) else {
        maps::count(Counter::TracesFull as u32, 1);
        return 0;
    };
    if slot != 0 {
        let exemplar = &mut open.exemplar;
        exemplar.microseconds = request.duration_ns / 1_000;
        exemplar.at_ns = now();
        let bucket = histogram::bucket(exemplar.microseconds / 1_000);
        maps::set_exemplar(&ExemplarKey { slot: slot.wrapping_sub(1), bucket }, exemplar);
        if maps::sends_spans() {
            send_span(c, request, open);
        }
    }
    maps::forget_trace(&key);
    0
}

/// Passes a sampled request to userspace.
#[inline(always)]
fn send_span(c: &Connection, request: &FinishedRequest, open: &OpenRequest) {
    let &FinishedRequest { status, grpc_status, protocol, security, caller, .. } = request;
    let key = Labels { protocol, security, status, grpc_status, caller }.key(c);
    maps::send_span(|record| {
        // SAFETY: it is as large as one, and nobody else has it yet.
        unsafe {
            (*record).key = key;
            (*record).request = open.exemplar;
            (*record).bytes = request.bytes;
            (*record).line = open.line;
        }
    });
}

/// Counter of [`tcp`]: connections opened. Those of bytes are a [`Direction`].
pub(super) const OPENED: u32 = 2;
/// Counter of [`tcp`]: connections closed.
pub(super) const CLOSED: u32 = 3;

/// Adds to one of a connection's TCP counters.
#[inline(always)]
pub(super) fn tcp(c: &mut Connection, caller: CallerId, counter: u32, by: u64) {
    record_tcp(c, u32::from(caller.0), counter, by);
}

/// Does so. Global, so that the verifier checks it on its own.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn record_tcp(c: *mut Connection, caller: u32, counter: u32, by: u64) -> u32 {
    // SAFETY: null or a socket's storage.
    let Some(c) = (unsafe { c.as_mut() }) else { return 0 };
    let protocol = if c.protocol() == ConnProtocol::ENCRYPTED { Protocol::ENCRYPTED } else { Protocol::TCP };
    let security = client_security(c);
    let labels = Labels { protocol, security, status: 0, grpc_status: GRPC_NONE, caller: CallerId(caller as u16) };
    let Some(series) = maps::series(series_slot(c, &labels).wrapping_sub(1)) else {
        maps::count(Counter::LossUnattributed as u32, 1);
        return 0;
    };
    let counter = match counter {
        OPENED => &mut series.opened,
        CLOSED => &mut series.closed,
        RECEIVED => &mut series.received,
        _ => &mut series.sent,
    };
    atomic::add64(counter, by);
    0
}

const RECEIVED: u32 = Request as u32;

/// Returns the security of the clients that are connected to the application behind a destination leg.
///
/// Connections to the application are pooled, so none of them belongs to one client's connection. If only clients of one
/// kind are connected, the request is of that kind; if both are, it is of the kind that sent something last, provided
/// that the other has been silent for [`SILENCE_NS`].
#[inline(always)]
pub(super) fn client_security(c: &mut Connection) -> Security {
    if c.leg != ConnLeg::DESTINATION {
        return Security::UNKNOWN;
    }
    if c.inbound_port.is_none() {
        c.inbound_port = maps::inbound_number(&InboundKey { sidecar: c.sidecar, port: u32::from(c.destination.port) });
    }
    let Some(port) = maps::inbound_port(c.inbound_port) else { return Security::UNKNOWN };
    let (tls, plain, unknown) = last_active(port);
    let unknown =
        if maps::has_counted_without_port() { later(unknown, last_active_without_port(c.sidecar)) } else { unknown };
    if tls != 0 && is_only_active(tls, plain) && is_only_active(tls, unknown) {
        Security::MUTUAL_TLS
    } else if plain != 0 && is_only_active(plain, tls) && is_only_active(plain, unknown) {
        Security::NONE
    } else {
        Security::UNKNOWN
    }
}

/// Returns when the connected clients of each kind (mutual TLS, plain, unknown) last sent something; 0 if there is none.
#[inline(always)]
fn last_active(port: &InboundPort) -> (u64, u64, u64) {
    // SAFETY: references are valid; volatile, since other CPUs write them.
    let [tls, plain, unknown] =
        [&port.mutual_tls_ns, &port.plain_ns, &port.unknown_ns].map(|time| unsafe { core::ptr::read_volatile(time) });
    let connected = |number: u64, time: u64| if number != 0 { time } else { 0 };
    (connected(port.mutual_tls, tls), connected(port.plain, plain), connected(port.unknown, unknown))
}

/// Likewise for the clients of unknown security of a sidecar whose port is unknown too.
#[inline(always)]
fn last_active_without_port(sidecar: u32) -> u64 {
    maps::inbound_port(maps::inbound_number(&InboundKey { sidecar, port: 0 })).map_or(0, |port| last_active(port).2)
}

#[inline(always)]
fn later(a: u64, b: u64) -> u64 {
    if a > b { a } else { b }
}

/// Returns whether a request that arrives now belongs to the kind last active at `last`, and not to that at `other`.
#[inline(always)]
fn is_only_active(last: u64, other: u64) -> bool {
    other == 0 || last > other.wrapping_add(SILENCE_NS)
}

/// Counts an inbound connection as open, once its security and port are known. The port of a preexisting one stays unknown.
#[inline(always)]
pub(super) fn count_open(c: &mut Connection) {
    let port = u32::from(c.destination.port);
    if c.peer_security.is_none() || (port == 0 && c.flags & PREEXISTING == 0) || c.sidecar == 0 {
        return;
    }
    if c.set_flags(COUNTED_OPEN) & COUNTED_OPEN != 0 {
        return;
    }
    if port == 0 {
        maps::record_counted_without_port();
    }
    c.inbound_port = maps::new_inbound_number(&InboundKey { sidecar: c.sidecar, port });
    add_open(c, 1);
    touch(c);
    if c.flags & (PREEXISTING | WITHOUT_CALLERS) == 0 {
        count_peer(c, port as u16);
    }
    // It may end on another CPU meanwhile.
    if atomic::load(&c.flags) & ENDED != 0 {
        count_closed(c);
    }
}

/// Counts the connection as one of its peer's.
#[inline(always)]
fn count_peer(c: &mut Connection, port: u16) {
    let security = Security(c.peer_security.get().unwrap_or(0) as u8);
    (c.peer.sidecar, c.peer.port, c.peer.security) = (c.sidecar, port, security);
    match maps::new_peer(&c.peer) {
        Some(peer) => {
            atomic::add64(&mut peer.opened, 1);
            c.set_flags(COUNTED_PEER);
        }
        None => maps::count(Counter::LossPeers as u32, 1),
    }
}

/// Counts an inbound connection as closed, if it is counted as open.
#[inline(always)]
pub(super) fn count_closed(c: &mut Connection) {
    if atomic::fetch_and(&mut c.flags, !COUNTED_OPEN) & COUNTED_OPEN != 0 {
        add_open(c, u64::MAX);
    }
    if atomic::fetch_and(&mut c.flags, !COUNTED_PEER) & COUNTED_PEER != 0
        && let Some(peer) = maps::peer(&c.peer)
    {
        // SAFETY: a reference is valid; volatile, since other CPUs write it, and userspace reads it.
        unsafe { core::ptr::write_volatile(&raw mut peer.closed_ns, now()) };
        atomic::add64(&mut peer.closed, 1);
    }
}

/// Records that an inbound connection has received data now.
#[inline(always)]
pub(super) fn touch(c: &mut Connection) {
    let security = c.peer_security;
    let Some(port) = maps::inbound_port(c.inbound_port) else { return };
    let last = match security {
        WITH_TLS => &mut port.mutual_tls_ns,
        WITHOUT_TLS => &mut port.plain_ns,
        _ => &mut port.unknown_ns,
    };
    // SAFETY: a reference is valid; volatile, since other CPUs read it.
    unsafe { core::ptr::write_volatile(last, now()) };
}

/// Adds to the number of open connections of the connection's kind.
#[inline(always)]
fn add_open(c: &mut Connection, by: u64) {
    let security = c.peer_security;
    let Some(port) = maps::inbound_port(c.inbound_port) else { return };
    let number = match security {
        WITH_TLS => &mut port.mutual_tls,
        WITHOUT_TLS => &mut port.plain,
        _ => &mut port.unknown,
    };
    atomic::add64(number, by);
}

const WITH_TLS: OptionU32 = OptionU32::some(Security::MUTUAL_TLS.0 as u32);
const WITHOUT_TLS: OptionU32 = OptionU32::some(Security::NONE.0 as u32);

/// Bits of a slot in the connection's cache; a larger one is not kept.
const CACHED_SLOT_BITS: u32 = 20;
const CACHED_SLOTS: u32 = (1 << CACHED_SLOT_BITS) - 1;

/// Labels that distinguish the series of one connection.
struct Labels {
    protocol: Protocol,
    security: Security,
    status: u16,
    grpc_status: u64,
    caller: CallerId,
}

impl Labels {
    /// Packs the labels, and the end of the epoch, into what the connection's cache has above the slot, never 0; 0 if they
    /// do not fit.
    #[inline(always)]
    fn cache_key(&self, epoch: u32) -> u64 {
        let status = if self.status > 999 { 1_000 } else { u64::from(self.status) };
        // None is 31, unknown 30.
        let grpc_status = self.grpc_status & 31;
        let fits = self.grpc_status < 30 || self.grpc_status >= GRPC_UNKNOWN;
        let labels = u64::from(self.protocol.0) << 17 | u64::from(self.security.0) << 15 | status << 5 | grpc_status;
        let key = labels << 24 | u64::from(self.caller.0) << 8 | u64::from(epoch & 0xff);
        if fits { key << CACHED_SLOT_BITS } else { 0 }
    }

    /// Returns the key of a connection's series.
    #[inline(always)]
    fn key(&self, c: &Connection) -> SeriesKey {
        SeriesKey {
            sidecar: c.sidecar,
            destination: c.destination,
            grpc_status: self.grpc_status,
            status: self.status,
            leg: c.leg.of_series(),
            protocol: self.protocol,
            security: self.security,
            padding: 0,
            caller: self.caller,
        }
    }
}

/// Returns the slot of a connection's series plus one; 0 if it belongs to no known sidecar.
#[inline(always)]
fn series_slot(c: &mut Connection, labels: &Labels) -> u32 {
    if c.sidecar == 0 && c.process != 0 {
        c.sidecar = maps::sidecar_of(c.process);
    }
    if c.sidecar == 0 || c.sidecar == IGNORED {
        return 0;
    }
    let epoch = maps::reclaim_epoch();
    let cache_key = labels.cache_key(epoch);
    // SAFETY: a reference is valid; volatile, since the other direction may be writing.
    let cached = unsafe { core::ptr::read_volatile(&c.cached_series) };
    // Both the whole epoch and its end beside the slot: the other direction may write a slot of the previous one.
    let holds = atomic::load(&c.cached_epoch) == epoch;
    let is_cached = holds && cached >> CACHED_SLOT_BITS << CACHED_SLOT_BITS == cache_key && cache_key != 0;
    let slot = if is_cached { cached as u32 & CACHED_SLOTS } else { find_slot(c, labels, epoch, cache_key) };
    slot.wrapping_add(1)
}

/// Returns the slot of a series, and keeps it in the connection.
#[inline(never)]
fn find_slot(c: &mut Connection, labels: &Labels, epoch: u32, cache_key: u64) -> u32 {
    let slot = maps::slot_of(&labels.key(c));
    let cached = if slot <= CACHED_SLOTS { cache_key | u64::from(slot) } else { 0 };
    // SAFETY: as above.
    unsafe { core::ptr::write_volatile(&mut c.cached_series, cached) };
    atomic::store(&mut c.cached_epoch, epoch);
    slot
}

/// Adds `value` (microseconds or bytes) to a histogram `times` times; `exposed` is the same in whole milliseconds or bytes,
/// `sum` the addend of the sum.
#[inline(never)]
fn observe(histogram: &mut Histogram, value: u64, exposed: u64, times: u32, sum: u64) {
    let bucket = opaque(histogram::bucket(exposed)) as usize;
    if bucket < histogram::BUCKETS {
        // SAFETY: checked just here.
        atomic::add64(unsafe { histogram.buckets.get_unchecked_mut(bucket) }, u64::from(times));
    }
    atomic::add64(&mut histogram.sum, sum);
    let (page, sub_bucket) = histogram::sub_bucket(value);
    let (page, sub_bucket) = (opaque(page) as usize, opaque(sub_bucket) as usize);
    if page < histogram::BUCKET_PAGES && sub_bucket < histogram::SUB_BUCKETS {
        // SAFETY: checked just here.
        let slot = unsafe { histogram.pages.get_unchecked_mut(page) };
        if let Some(page) = maps::bucket_page(slot) {
            // SAFETY: as above.
            atomic::add32(unsafe { page.sub_buckets.get_unchecked_mut(sub_bucket) }, times);
        }
    }
}
