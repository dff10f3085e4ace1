//! What the kernel side and userspace agree on: layouts of the maps, their names, histogram buckets, counters.
//!
//! Layout rules: `repr(C)`, explicit padding, no `bool`, no data-carrying enum. Addresses are IPv6 in network byte
//! order, IPv4 mapped (`::ffff:a.b.c.d`); ports and all other integers are in host byte order. Times are nanoseconds of
//! `CLOCK_MONOTONIC`, durations microseconds, sizes bytes. Counters only ever grow; the user side takes differences.
#![no_std]

pub mod health;
pub mod latency;
pub mod names;

use latency::{BLOCKS, BUCKETS, CELLS};

/// To be raised when a word in a map gets another meaning at the same place, such as a flag or a number of a protocol: the maps of
/// a build are taken over by builds with the same meaning only.
pub const MEANING: u32 = 1;

/// Sidecar id of a process that shares a sidecar's cgroup but is none (pilot-agent): its sockets are never counted.
pub const IGNORED: u32 = u32::MAX;
/// Port flag: traffic to this destination port is TCP whatever its first bytes say.
pub const PORT_TCP: u32 = 1;
/// Port flag: traffic to this destination port is HTTP whatever its first bytes say.
pub const PORT_HTTP: u32 = 4;
/// Port flag: never counted (Istio's own ports, and what the configuration adds).
pub const PORT_EXCLUDED: u32 = 2;
/// Slot that takes what the full series map refuses; its labels are lost, its totals are not.
pub const OVERFLOW_SLOT: u32 = 0;
/// Index into the `NEXT` map: slots ever taken for the first time.
pub const NEXT_SLOT: u32 = 0;
/// Index into the `NEXT` map: blocks ever taken for the first time.
pub const NEXT_BLOCK: u32 = 1;
/// Index into the `NEXT` map: doors ever taken for the first time.
pub const NEXT_DOOR: u32 = 2;
/// Index into the `NEXT` map: keys ever inserted into `SLOTS`.
pub const INSERTED: u32 = 3;
/// Index into the `NEXT` map: connections ever listed under port 0 of the `INBOUND` map.
pub const WITHOUT_PORT: u32 = 4;
/// Status of a request whose status could not be read.
pub const STATUS_UNKNOWN: u16 = u16::MAX;
/// gRPC status of a request that has none; outside of the 32 bits that one has.
pub const GRPC_NONE: u64 = u64::MAX;
/// gRPC status of a request whose gRPC status could not be read.
pub const GRPC_UNKNOWN: u64 = u64::MAX - 1;

/// [`SeriesKey::leg`]: `reporter="source"`.
pub const LEG_SOURCE: u8 = 1;
/// [`SeriesKey::leg`]: `reporter="destination"`.
pub const LEG_DESTINATION: u8 = 2;

/// [`SeriesKey::protocol`]: raw TCP; the TCP counters of the series are in use.
pub const PROTOCOL_TCP: u8 = 1;
/// [`SeriesKey::protocol`]: HTTP; the histograms of the series are in use.
pub const PROTOCOL_HTTP: u8 = 2;
/// [`SeriesKey::protocol`]: gRPC; the histograms of the series are in use.
pub const PROTOCOL_GRPC: u8 = 3;
/// [`SeriesKey::protocol`]: encrypted connections at a gateway's door; only opened, closed and bytes are in use.
pub const PROTOCOL_ENCRYPTED: u8 = 4;
/// [`SeriesKey::protocol`]: HTTP or gRPC, it is not known which; the histograms of the series are in use.
pub const PROTOCOL_UNKNOWN: u8 = 5;

/// [`SeriesKey::security`]: not known, and always at the source.
pub const SECURITY_UNKNOWN: u8 = 0;
/// [`SeriesKey::security`]: the peer came without Istio's mutual TLS.
pub const SECURITY_NONE: u8 = 1;
/// [`SeriesKey::security`]: the peer came with Istio's mutual TLS.
pub const SECURITY_MUTUAL_TLS: u8 = 2;

/// Direction client to server: index of what a connection or a series has twice.
pub const REQUEST: usize = 0;
/// Direction server to client: index of what a connection or a series has twice.
pub const RESPONSE: usize = 1;

/// An address and port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// IPv6 address in network byte order; IPv4 is mapped.
    pub address: [u8; 16],
    /// Port, host byte order.
    pub port: u16,
    /// Zero.
    pub padding: u16,
}

/// What a series is counted under: the key of the `SLOTS` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeriesKey {
    /// Sidecar id that the user side gave; 0 is none.
    pub sidecar: u32,
    /// Original destination at the source leg, the application's address at the destination leg.
    pub destination: Endpoint,
    /// gRPC status of 32 bits, [`GRPC_NONE`] or [`GRPC_UNKNOWN`].
    pub grpc_status: u64,
    /// HTTP status 100 to 999, 0 if there was none, or [`STATUS_UNKNOWN`].
    pub status: u16,
    /// [`LEG_SOURCE`] or [`LEG_DESTINATION`].
    pub leg: u8,
    /// One of the `PROTOCOL_` constants.
    pub protocol: u8,
    /// One of the `SECURITY_` constants.
    pub security: u8,
    /// Zero.
    pub padding: [u8; 3],
}

/// One histogram of a series.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Histogram {
    /// Values by exposed bucket (not cumulative); their sum is the number of values.
    pub buckets: [u64; BUCKETS],
    /// Sum of the values, in microseconds or bytes.
    pub sum: u64,
    /// Block number of each octave's cells plus one; 0 where no value fell yet.
    pub blocks: [u32; BLOCKS],
}

/// The cells of one octave of one histogram. They wrap at 2^32; differences are taken modulo that.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Values by cell.
    pub cells: [u32; CELLS],
}

/// Index into [`Series::histograms`]: duration in microseconds.
pub const DURATION: usize = 0;
/// Index into [`Series::histograms`]: wire bytes of requests.
pub const REQUEST_BYTES: usize = 1;
/// Index into [`Series::histograms`]: wire bytes of responses.
pub const RESPONSE_BYTES: usize = 2;

/// All figures of one series, never reset.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Series {
    /// Duration, request bytes and response bytes; the sum of the duration's buckets is the request count.
    pub histograms: [Histogram; 3],
    /// TCP connections opened.
    pub opened: u64,
    /// TCP connections closed.
    pub closed: u64,
    /// Payload bytes client to server.
    pub received: u64,
    /// Payload bytes server to client.
    pub sent: u64,
    /// gRPC messages client to server, and server to client.
    pub messages: [u64; 2],
}

/// What the user side says of a cgroup: the value of the `CGROUPS` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cgroup {
    /// Sidecar that accepted sockets belong to when no process was seen on them.
    pub sidecar: u32,
    /// [`MODE_REDIRECT`], [`MODE_TPROXY`] or [`MODE_GATEWAY`].
    pub mode: u32,
    /// The pod's own addresses (IPv4 mapped, IPv6), zero where there is none.
    pub addresses: [[u8; 16]; 2],
    /// [`CGROUP_SHARED`] and [`CGROUP_BY_THREAD`].
    pub flags: u32,
    /// Zero.
    pub padding: u32,
}

/// [`Cgroup::flags`]: processes that are neither sidecar nor pilot-agent are in it, and may accept connections there.
pub const CGROUP_SHARED: u32 = 1;
/// [`Cgroup::flags`]: its process ids as the kernel has them are not known, so that Envoy is told by the names of its threads.
pub const CGROUP_BY_THREAD: u32 = 1 << 1;

/// [`Cgroup::mode`]: a sidecar behind REDIRECT rules.
pub const MODE_REDIRECT: u32 = 0;
/// [`Cgroup::mode`]: a sidecar behind TPROXY rules, whose inbound sockets carry the original addresses.
pub const MODE_TPROXY: u32 = 1;
/// [`Cgroup::mode`]: a gateway, without redirection.
pub const MODE_GATEWAY: u32 = 2;

/// Key of the `INBOUND` map: one application port of one sidecar.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InboundKey {
    /// Sidecar id.
    pub sidecar: u32,
    /// Original destination port, host byte order.
    pub port: u32,
}

/// Connections now open on the inbound listener for one application port, or, under port 0, those of a sidecar whose port is not
/// known: an element of the `DOORS` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Door {
    /// Number of those with Istio's mutual TLS.
    pub mutual_tls: u64,
    /// Number of those without.
    pub plain: u64,
    /// Number of those of which it is not known: they are older than the observer, or their beginning was not seen.
    pub unseen: u64,
    /// When one of those with it last received something, nanoseconds of `CLOCK_MONOTONIC`.
    pub mutual_tls_ns: u64,
    /// When one of those without did.
    pub plain_ns: u64,
    /// When one of the unknown did.
    pub unseen_ns: u64,
}

const _: () = assert!(size_of::<Endpoint>() == 20);
const _: () = assert!(size_of::<SeriesKey>() == 40);
const _: () = assert!(size_of::<Histogram>() == 312);
const _: () = assert!(size_of::<Block>() == 128);
const _: () = assert!(size_of::<Series>() == 984);
const _: () = assert!(size_of::<Cgroup>() == 48);

#[cfg(feature = "aya")]
mod pod {
    // SAFETY: `repr(C)`, `Copy`, no padding bytes (asserted above), every bit pattern valid.
    unsafe impl aya::Pod for super::SeriesKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Series {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Block {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Cgroup {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::InboundKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Door {}
}
