//! Where finished exchanges and TCP bytes go: from a connection to its series.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use observer_common::{
    DURATION, Door, GRPC_NONE, GRPC_UNKNOWN, Histogram, IGNORED, InboundKey, PROTOCOL_ENCRYPTED, PROTOCOL_TCP,
    REQUEST_BYTES, RESPONSE_BYTES, SECURITY_MUTUAL_TLS, SECURITY_NONE, SECURITY_UNKNOWN, Series, SeriesKey,
    health::Counter, latency,
};
use observer_proto::{
    http2::Tally,
    shared,
    socket::{Connection, DESTINATION, ENCRYPTED, Finished, LATE, LISTED, REQUEST, RESPONSE},
};

use super::{context::opaque, maps};

/// Nanoseconds of `CLOCK_MONOTONIC`.
#[inline(always)]
pub(super) fn now() -> u64 {
    // SAFETY: the helper takes nothing and cannot fail.
    unsafe { bpf_ktime_get_ns() }
}

/// Counts the request in the connection's place for a direction.
#[inline(always)]
pub(super) fn finished(c: &mut Connection, direction: usize) {
    let finished = &raw const c.finished[direction & 1];
    // SAFETY: it is in the connection, which outlives the program.
    let microseconds = unsafe { (*finished).duration_ns } / 1_000;
    requests(c, finished, 1, microseconds);
}

/// Counts the requests of HTTP/2 that ended alike.
#[inline(always)]
pub(super) fn tallied(c: &mut Connection, tally: &Tally) {
    requests(c, &raw const tally.finished, tally.times, tally.microseconds);
}

/// Counts as many `times` a request like this; `microseconds` is the sum of their durations.
#[inline(never)]
fn requests(c: &mut Connection, finished: *const Finished, times: u32, microseconds: u64) {
    // SAFETY: it is in a socket's storage, which outlives the program.
    let finished = unsafe { &*finished };
    let &Finished { ref bytes, ref messages, status, grpc_status, protocol, security, .. } = finished;
    let by = u64::from(times);
    let Some(series) = series(c, &Labels { protocol, security, status, grpc_status }) else {
        maps::count(Counter::RequestUnattributed as u32, by);
        return;
    };
    let one = finished.duration_ns / 1_000;
    observe(&mut series.histograms[DURATION], one, one / 1_000, times, microseconds);
    observe(&mut series.histograms[REQUEST_BYTES], bytes[REQUEST], bytes[REQUEST], times, bytes[REQUEST] * by);
    observe(&mut series.histograms[RESPONSE_BYTES], bytes[RESPONSE], bytes[RESPONSE], times, bytes[RESPONSE] * by);
    if messages[REQUEST] != 0 {
        shared::add(&mut series.messages[REQUEST], u64::from(messages[REQUEST]) * by);
    }
    if messages[RESPONSE] != 0 {
        shared::add(&mut series.messages[RESPONSE], u64::from(messages[RESPONSE]) * by);
    }
    maps::count(u32::from(finished.outcome), by);
}

/// Adds to a connection's TCP counters.
#[inline(never)]
pub(super) fn transferred(c: &mut Connection, opened: u64, closed: u64, direction: usize, bytes: u64) {
    let protocol = if shared::load(&c.protocol) == ENCRYPTED { PROTOCOL_ENCRYPTED } else { PROTOCOL_TCP };
    let security = security(c);
    let Some(series) = series(c, &Labels { protocol, security, status: 0, grpc_status: GRPC_NONE }) else {
        maps::count(Counter::LossUnattributed as u32, 1);
        return;
    };
    if opened != 0 {
        shared::add(&mut series.opened, opened);
    }
    if closed != 0 {
        shared::add(&mut series.closed, closed);
    }
    if bytes != 0 {
        shared::add(if direction == REQUEST { &mut series.received } else { &mut series.sent }, bytes);
    }
}

/// How clients are now connected to the application behind a destination leg.
///
/// Connections to the application are pooled, so no client's connection belongs to one of them. If clients of one kind
/// only are connected, the request is of that kind; if both are, it is of the kind that sent something last, provided
/// that the other has been silent for a while.
#[inline(always)]
pub(super) fn security(c: &mut Connection) -> u8 {
    if c.leg != DESTINATION {
        return SECURITY_UNKNOWN;
    }
    if c.door == 0 {
        c.door = maps::door_of(&InboundKey { sidecar: c.sidecar, port: u32::from(c.destination.port) });
    }
    let Some(door) = maps::door(c.door) else { return SECURITY_UNKNOWN };
    let (tls, plain, unseen) = last_of(door);
    let unseen = if maps::has_listed_without_port() { later(unseen, without_port(c.sidecar)) } else { unseen };
    if tls != 0 && is_alone(tls, plain) && is_alone(tls, unseen) {
        SECURITY_MUTUAL_TLS
    } else if plain != 0 && is_alone(plain, tls) && is_alone(plain, unseen) {
        SECURITY_NONE
    } else {
        SECURITY_UNKNOWN
    }
}

/// When the clients of each kind (with mutual TLS, without, unknown) that are connected last sent something; 0 where there is none.
#[inline(always)]
fn last_of(door: &Door) -> (u64, u64, u64) {
    // SAFETY: references are valid; volatile, since other processors write them.
    let [tls, plain, unseen] =
        [&door.mutual_tls_ns, &door.plain_ns, &door.unseen_ns].map(|time| unsafe { core::ptr::read_volatile(time) });
    let connected = |number: u64, time: u64| if number != 0 { time } else { 0 };
    (connected(door.mutual_tls, tls), connected(door.plain, plain), connected(door.unseen, unseen))
}

/// As [`last_of`], of the unknown clients of a sidecar whose port is unknown too.
#[inline(always)]
fn without_port(sidecar: u32) -> u64 {
    maps::door(maps::door_of(&InboundKey { sidecar, port: 0 })).map_or(0, |door| last_of(door).2)
}

#[inline(always)]
fn later(a: u64, b: u64) -> u64 {
    if a > b { a } else { b }
}

/// Is a request that comes now of the kind that sent something at `last`, not of the kind that did at `other`?
#[inline(always)]
fn is_alone(last: u64, other: u64) -> bool {
    other == 0 || last > other.wrapping_add(SILENCE_NS)
}

/// Silence of one kind of clients after which a request is the other kind's.
const SILENCE_NS: u64 = 100_000_000;

/// Books an inbound connection as open, once it is known what it came with and for which port. Of an older one nobody asks for the
/// port any more.
#[inline(always)]
pub(super) fn list(c: &mut Connection) {
    let port = u32::from(c.destination.port);
    if c.opening == 0 || (port == 0 && c.flags & LATE == 0) || c.sidecar == 0 {
        return;
    }
    if shared::set(&mut c.flags, LISTED) & LISTED != 0 {
        return;
    }
    if port == 0 {
        maps::listed_without_port();
    }
    c.door = maps::new_door(&InboundKey { sidecar: c.sidecar, port });
    relist(c, 1);
    received(c);
}

/// Books an inbound connection as closed, if it was booked as open.
#[inline(always)]
pub(super) fn unlist(c: &mut Connection) {
    if shared::clear(&mut c.flags, LISTED) & LISTED != 0 {
        relist(c, u64::MAX);
    }
}

/// Notes that an inbound connection has received something.
#[inline(always)]
pub(super) fn received(c: &mut Connection) {
    let opening = c.opening;
    let Some(door) = maps::door(c.door) else { return };
    let last = match opening {
        WITH_TLS => &mut door.mutual_tls_ns,
        WITHOUT_TLS => &mut door.plain_ns,
        _ => &mut door.unseen_ns,
    };
    // SAFETY: a reference is valid; volatile, since other processors read it.
    unsafe { core::ptr::write_volatile(last, now()) };
}

#[inline(always)]
fn relist(c: &mut Connection, by: u64) {
    let opening = c.opening;
    let Some(door) = maps::door(c.door) else { return };
    let number = match opening {
        WITH_TLS => &mut door.mutual_tls,
        WITHOUT_TLS => &mut door.plain,
        _ => &mut door.unseen,
    };
    shared::add(number, by);
}

/// [`Connection::opening`].
const WITH_TLS: u32 = SECURITY_MUTUAL_TLS as u32 + 1;
/// [`Connection::opening`].
const WITHOUT_TLS: u32 = SECURITY_NONE as u32 + 1;

/// What tells a connection's series from each other.
struct Labels {
    protocol: u8,
    security: u8,
    status: u16,
    grpc_status: u64,
}

impl Labels {
    /// The same in 32 bits, and never 0: what is cached is compared by it; 0 for what does not fit.
    #[inline(always)]
    fn short(&self) -> u32 {
        let status = if self.status > 999 { 1_000 } else { u32::from(self.status) };
        // None is 0xffff, unknown 0xfffe.
        let grpc_status = self.grpc_status as u32 & 0xffff;
        let fits = self.grpc_status < 0xfffe || self.grpc_status >= GRPC_UNKNOWN;
        let short = u32::from(self.protocol) << 28 | u32::from(self.security) << 26 | status << 16 | grpc_status;
        if fits { short } else { 0 }
    }
}

/// The series of a connection; none if it belongs to no known sidecar.
#[inline(never)]
fn series(c: &mut Connection, labels: &Labels) -> Option<&'static mut Series> {
    if c.sidecar == 0 && c.process != 0 {
        c.sidecar = maps::sidecar_of(c.process);
    }
    if c.sidecar == 0 || c.sidecar == IGNORED {
        return None;
    }
    let short = u64::from(labels.short()) << 32;
    // SAFETY: a reference is valid; volatile, since the other direction may be writing.
    let cached = unsafe { core::ptr::read_volatile(&c.cached) };
    if cached >> 32 << 32 == short && short != 0 {
        return maps::series(cached as u32);
    }
    let key = SeriesKey {
        sidecar: c.sidecar,
        destination: c.destination,
        grpc_status: labels.grpc_status,
        status: labels.status,
        leg: c.leg as u8,
        protocol: labels.protocol,
        security: labels.security,
        padding: [0; 3],
    };
    let slot = maps::slot_of(&key);
    // SAFETY: as above.
    unsafe { core::ptr::write_volatile(&mut c.cached, short | u64::from(slot)) };
    maps::series(slot)
}

/// Puts `value` (microseconds or bytes) into a histogram so many `times`; `exposed` is the same in whole milliseconds or
/// bytes, `sum` what it adds to the sum of the values.
#[inline(never)]
fn observe(histogram: &mut Histogram, value: u64, exposed: u64, times: u32, sum: u64) {
    let bucket = opaque(latency::bucket(exposed)) as usize;
    if bucket < latency::BUCKETS {
        // SAFETY: checked just here.
        shared::add(unsafe { histogram.buckets.get_unchecked_mut(bucket) }, u64::from(times));
    }
    shared::add(&mut histogram.sum, sum);
    let (block, cell) = latency::cell(value);
    let (block, cell) = (opaque(block) as usize, opaque(cell) as usize);
    if block < latency::BLOCKS && cell < latency::CELLS {
        // SAFETY: checked just here.
        let word = unsafe { histogram.blocks.get_unchecked_mut(block) };
        if let Some(block) = maps::block(word) {
            // SAFETY: as above.
            shared::raise(unsafe { block.cells.get_unchecked_mut(cell) }, times);
        }
    }
}
