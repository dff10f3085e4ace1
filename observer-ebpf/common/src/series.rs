//! Series: their keys in the `SLOTS` map, their values in the `SERIES` map.

use crate::{
    caller::CallerId,
    histogram::{BUCKET_PAGES, BUCKETS, SUB_BUCKETS},
};

/// Slot that counts whatever the full series map refuses; its labels are lost, its totals are not.
pub const OVERFLOW_SLOT: u32 = 0;
/// Status of a request whose status could not be read.
pub const STATUS_UNKNOWN: u16 = u16::MAX;
/// gRPC status of a request without one; outside of the 32 bits of a real status.
pub const GRPC_NONE: u64 = u64::MAX;
/// gRPC status of a request whose gRPC status could not be read.
pub const GRPC_UNKNOWN: u64 = u64::MAX - 1;

/// Side of the request that a series describes: the label `reporter`.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Leg(pub u8);

impl Leg {
    /// `reporter="source"`.
    pub const SOURCE: Self = Self(1);
    /// `reporter="destination"`.
    pub const DESTINATION: Self = Self(2);
}

/// Protocol of a series, which decides which of its values are in use.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Protocol(pub u8);

impl Protocol {
    /// Raw TCP; the TCP counters are in use.
    pub const TCP: Self = Self(1);
    /// HTTP; the histograms are in use.
    pub const HTTP: Self = Self(2);
    /// gRPC; the histograms are in use.
    pub const GRPC: Self = Self(3);
    /// Encrypted connections to a gateway's listener; only opened, closed and bytes are in use.
    pub const ENCRYPTED: Self = Self(4);
    /// HTTP or gRPC, it is not known which; the histograms are in use.
    pub const UNKNOWN: Self = Self(5);
}

/// Whether the client uses Istio's mutual TLS: the label `connection_security_policy`.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Security(pub u8);

impl Security {
    /// Not known, and always at the source.
    pub const UNKNOWN: Self = Self(0);
    /// Without Istio's mutual TLS.
    pub const NONE: Self = Self(1);
    /// With Istio's mutual TLS.
    pub const MUTUAL_TLS: Self = Self(2);
}

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

/// Identity of a series: the key of the `SLOTS` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeriesKey {
    /// Sidecar id assigned by userspace; 0 is none.
    pub sidecar: u32,
    /// Original destination at the source leg, the application's address at the destination leg.
    pub destination: Endpoint,
    /// gRPC status of 32 bits, [`GRPC_NONE`] or [`GRPC_UNKNOWN`].
    pub grpc_status: u64,
    /// HTTP status 100 to 999, 0 if there was none, or [`STATUS_UNKNOWN`].
    pub status: u16,
    /// Side of the request.
    pub leg: Leg,
    /// Protocol.
    pub protocol: Protocol,
    /// Security of the client's connection.
    pub security: Security,
    /// Zero.
    pub padding: u8,
    /// Who called, at the destination leg.
    pub caller: CallerId,
}

/// One histogram of a series.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Histogram {
    /// Number of values per exposed bucket (not cumulative); their sum is the number of values.
    pub buckets: [u64; BUCKETS],
    /// Sum of the values, in microseconds or bytes.
    pub sum: u64,
    /// Page of each octave's sub-buckets, as its number plus one; 0 before the first value in that octave.
    pub pages: [u32; BUCKET_PAGES],
}

/// Log-linear sub-buckets of one octave of one histogram. They wrap at 2^32; differences are taken modulo that.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketPage {
    /// Number of values per sub-bucket.
    pub sub_buckets: [u32; SUB_BUCKETS],
}

/// Index into [`Series::histograms`]: duration in microseconds.
pub const DURATION: usize = 0;
/// Index into [`Series::histograms`]: wire bytes of requests.
pub const REQUEST_BYTES: usize = 1;
/// Index into [`Series::histograms`]: wire bytes of responses.
pub const RESPONSE_BYTES: usize = 2;

/// All values of one series, never reset.
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
    /// gRPC messages by direction.
    pub messages: [u64; 2],
}

const _: () = assert!(size_of::<Endpoint>() == 20);
const _: () = assert!(size_of::<SeriesKey>() == 40);
const _: () = assert!(size_of::<Histogram>() == 312);
const _: () = assert!(size_of::<BucketPage>() == 128);
const _: () = assert!(size_of::<Series>() == 984);
