//! Series: where finished requests and TCP bytes are counted, and the open connections by which a request's security is
//! determined.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use observer_common::{
    DURATION,
    Direction::{self, Request, Response},
    GRPC_NONE, GRPC_UNKNOWN, Histogram, IGNORED, InboundKey, InboundPort, Protocol, REQUEST_BYTES, RESPONSE_BYTES,
    Security, Series, SeriesKey,
    health::Counter,
    histogram,
};
use observer_proto::{
    ConnLeg, ConnProtocol, Connection, FinishedRequest, OptionU32, atomic,
    connection::flags::{COUNTED_OPEN, PREEXISTING},
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

/// Counts the finished request that the connection holds for a direction.
#[inline(always)]
pub(super) fn request(c: &mut Connection, direction: Direction) {
    let request = &raw const c.finished[direction];
    // SAFETY: it is in the connection, which outlives the program.
    let microseconds = unsafe { (*request).duration_ns } / 1_000;
    requests(c, request, 1, microseconds);
}

/// Counts a request `times` times; `microseconds` is the sum of the durations.
#[inline(never)]
pub(super) fn requests(c: &mut Connection, request: *const FinishedRequest, times: u32, microseconds: u64) {
    // SAFETY: it is in a socket's storage, which outlives the program.
    let request = unsafe { &*request };
    let &FinishedRequest { ref bytes, ref messages, status, grpc_status, protocol, security, .. } = request;
    let by = u64::from(times);
    let Some(series) = series(c, &Labels { protocol, security, status, grpc_status }) else {
        maps::count(Counter::RequestUnattributed as u32, by);
        return;
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
}

/// Adds to a connection's TCP counters.
#[inline(never)]
pub(super) fn tcp(c: &mut Connection, opened: u64, closed: u64, direction: Direction, bytes: u64) {
    let protocol = if c.protocol() == ConnProtocol::ENCRYPTED { Protocol::ENCRYPTED } else { Protocol::TCP };
    let security = client_security(c);
    let Some(series) = series(c, &Labels { protocol, security, status: 0, grpc_status: GRPC_NONE }) else {
        maps::count(Counter::LossUnattributed as u32, 1);
        return;
    };
    if opened != 0 {
        atomic::add64(&mut series.opened, opened);
    }
    if closed != 0 {
        atomic::add64(&mut series.closed, closed);
    }
    if bytes != 0 {
        atomic::add64(if direction == Request { &mut series.received } else { &mut series.sent }, bytes);
    }
}

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
}

/// Counts an inbound connection as closed, if it is counted as open.
#[inline(always)]
pub(super) fn count_closed(c: &mut Connection) {
    if atomic::fetch_and(&mut c.flags, !COUNTED_OPEN) & COUNTED_OPEN != 0 {
        add_open(c, u64::MAX);
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

/// Labels that distinguish the series of one connection.
struct Labels {
    protocol: Protocol,
    security: Security,
    status: u16,
    grpc_status: u64,
}

impl Labels {
    /// Packs the labels into a key for the connection's cache, never 0; 0 if they do not fit.
    #[inline(always)]
    fn cache_key(&self) -> u32 {
        let status = if self.status > 999 { 1_000 } else { u32::from(self.status) };
        // None is 0xffff, unknown 0xfffe.
        let grpc_status = self.grpc_status as u32 & 0xffff;
        let fits = self.grpc_status < 0xfffe || self.grpc_status >= GRPC_UNKNOWN;
        let key = u32::from(self.protocol.0) << 28 | u32::from(self.security.0) << 26 | status << 16 | grpc_status;
        if fits { key } else { 0 }
    }
}

/// Returns the series of a connection; none if it belongs to no known sidecar.
#[inline(never)]
fn series(c: &mut Connection, labels: &Labels) -> Option<&'static mut Series> {
    if c.sidecar == 0 && c.process != 0 {
        c.sidecar = maps::sidecar_of(c.process);
    }
    if c.sidecar == 0 || c.sidecar == IGNORED {
        return None;
    }
    let cache_key = u64::from(labels.cache_key()) << 32;
    // SAFETY: a reference is valid; volatile, since the other direction may be writing.
    let cached = unsafe { core::ptr::read_volatile(&c.cached_series) };
    if cached >> 32 << 32 == cache_key && cache_key != 0 {
        return maps::series(cached as u32);
    }
    let key = SeriesKey {
        sidecar: c.sidecar,
        destination: c.destination,
        grpc_status: labels.grpc_status,
        status: labels.status,
        leg: c.leg.of_series(),
        protocol: labels.protocol,
        security: labels.security,
        padding: [0; 3],
    };
    let slot = maps::slot_of(&key);
    // SAFETY: as above.
    unsafe { core::ptr::write_volatile(&mut c.cached_series, cache_key | u64::from(slot)) };
    maps::series(slot)
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
