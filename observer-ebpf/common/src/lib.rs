//! ABI between the eBPF programs and userspace: map layouts, map and program names, histogram buckets, health counters.
//!
//! Layout rules: `repr(C)`, explicit padding, no `bool`, no data-carrying enum. Addresses are IPv6 in network byte
//! order, IPv4 mapped (`::ffff:a.b.c.d`); ports and all other integers are in host byte order. Times are nanoseconds of
//! `CLOCK_MONOTONIC`, durations microseconds, sizes bytes. Counters only ever grow; userspace takes differences.
#![no_std]
#![deny(unsafe_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod caller;
mod direction;
pub mod health;
pub mod histogram;
pub mod names;
mod series;
mod trace;

pub use caller::{Caller, CallerId, CallerKind, InboundPeer, InboundPeerKey, MAX_CALLER_TEXT};
pub use direction::Direction;
pub use series::{
    BucketPage, DURATION, Endpoint, GRPC_NONE, GRPC_UNKNOWN, Histogram, Leg, OVERFLOW_SLOT, Protocol, REQUEST_BYTES,
    RESPONSE_BYTES, STATUS_UNKNOWN, Security, Series, SeriesKey,
};
pub use trace::{
    Exemplar, ExemplarKey, LINE_WORDS, LineForm, Method, OpenRequest, RequestLine, SENDS_TARGETS, SpanRecord, TraceKey,
};

/// Version of the meanings in the maps. Raise it when a value changes its meaning in place, e.g. a flag or a protocol
/// number: a build takes over only maps of the same version.
pub const ABI_VERSION: u32 = 1;

/// Sidecar id of a process in a sidecar's cgroup that is not the sidecar (pilot-agent): its sockets are never counted.
pub const IGNORED: u32 = u32::MAX;
/// Port flag: traffic to this destination port is TCP whatever its first bytes are.
pub const PORT_TCP: u32 = 1;
/// Port flag: traffic to this destination port is HTTP whatever its first bytes are.
pub const PORT_HTTP: u32 = 4;
/// Port flag: never counted (Istio's own ports, and those the configuration adds).
pub const PORT_EXCLUDED: u32 = 2;

/// Index into the `ALLOCATED` map: slots ever allocated for the first time.
pub const ALLOCATED_SLOTS: u32 = 0;
/// Index into the `ALLOCATED` map: bucket pages ever allocated for the first time.
pub const ALLOCATED_PAGES: u32 = 1;
/// Index into the `ALLOCATED` map: inbound ports ever allocated for the first time.
pub const ALLOCATED_INBOUND_PORTS: u32 = 2;
/// Index into the `ALLOCATED` map: keys ever inserted into `SLOTS`.
pub const INSERTED_KEYS: u32 = 3;
/// Index into the `ALLOCATED` map: connections ever counted as open under port 0 of the `INBOUND` map.
pub const COUNTED_WITHOUT_PORT: u32 = 4;
/// Index into the `ALLOCATED` map: caller ids ever allocated.
pub const ALLOCATED_CALLERS: u32 = 5;
/// Index into the `ALLOCATED` map: keys ever inserted into `INBOUND_PEERS`.
pub const INSERTED_PEERS: u32 = 6;
/// Index into the `ALLOCATED` map: raised by userspace once it has removed keys of series, whose slots connections may
/// hold until then.
pub const RECLAIM_EPOCH: u32 = 7;

/// How traffic reaches the proxy of a cgroup.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CgroupMode(pub u32);

impl CgroupMode {
    /// A sidecar behind REDIRECT rules.
    pub const REDIRECT: Self = Self(0);
    /// A sidecar behind TPROXY rules, whose inbound sockets carry the original addresses.
    pub const TPROXY: Self = Self(1);
    /// A gateway, without redirection.
    pub const GATEWAY: Self = Self(2);
}

/// Description of a cgroup, written by userspace: the value of the `CGROUPS` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cgroup {
    /// Sidecar that owns accepted sockets on which no process was seen.
    pub sidecar: u32,
    /// Capture mode.
    pub mode: CgroupMode,
    /// The pod's own addresses (IPv4 mapped, IPv6), zero where there is none.
    pub addresses: [[u8; 16]; 2],
    /// [`Cgroup::SHARED`], [`Cgroup::BY_THREAD`] and [`Cgroup::WITHOUT_CALLERS`].
    pub flags: u32,
    /// Zero.
    pub padding: u32,
}

impl Cgroup {
    /// Flag: other processes than sidecar and pilot-agent are in it, and may accept connections there.
    pub const SHARED: u32 = 1;
    /// Flag: process ids of the initial pid namespace are not known, so that Envoy is identified by its thread names.
    pub const BY_THREAD: u32 = 1 << 1;
    /// Flag: callers are not read.
    pub const WITHOUT_CALLERS: u32 = 1 << 2;
}

/// Key of the `INBOUND` map: one application port of one sidecar.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InboundKey {
    /// Sidecar id.
    pub sidecar: u32,
    /// Original destination port, host byte order; 0 for connections whose port is not known.
    pub port: u32,
}

/// Key of the `PORT_PROTOCOLS` map: which connections the value, [`PORT_TCP`], [`PORT_HTTP`] or 0 for neither, is for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortKey {
    /// Sidecar id, for its connections to its application; 0 for connections that any sidecar's application opens.
    pub sidecar: u32,
    /// Destination port, host byte order; 0 for every port.
    pub port: u32,
    /// Original destination; zero for every address.
    pub address: [u8; 16],
}

/// Open connections to the inbound listener for one application port: an element of the `INBOUND_PORTS` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InboundPort {
    /// Number of open connections with Istio's mutual TLS.
    pub mutual_tls: u64,
    /// Number of open connections without.
    pub plain: u64,
    /// Number of open connections whose security is unknown: preexisting ones, or those whose first bytes were missed.
    pub unknown: u64,
    /// Last time that a connection with mutual TLS received data, nanoseconds of `CLOCK_MONOTONIC`.
    pub mutual_tls_ns: u64,
    /// Likewise for those without.
    pub plain_ns: u64,
    /// Likewise for those of unknown security.
    pub unknown_ns: u64,
}

const _: () = assert!(size_of::<Cgroup>() == 48);
const _: () = assert!(size_of::<PortKey>() == 24);
const _: () = assert!(size_of::<InboundPort>() == 48);

#[cfg(feature = "aya")]
#[allow(unsafe_code, reason = "`aya::Pod` is an unsafe trait")]
mod pod {
    // SAFETY: `repr(C)`, `Copy`, no padding bytes (asserted above), every bit pattern valid.
    unsafe impl aya::Pod for super::SeriesKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Series {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::BucketPage {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Cgroup {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::InboundKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::PortKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::InboundPort {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Caller {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::InboundPeerKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::InboundPeer {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::ExemplarKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Exemplar {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::SpanRecord {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::OpenRequest {}
}
