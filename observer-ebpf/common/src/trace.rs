//! Sampled requests: the trace contexts of those that are open, the exemplars of duration buckets, and the records of spans.

use crate::series::SeriesKey;

/// Key of the `TRACES` map: a request that is open.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TraceKey {
    /// The socket's cookie.
    pub cookie: u64,
    /// Number of the exchange, or id of the stream, in its connection.
    pub number: u32,
    /// Zero.
    pub padding: u32,
}

/// A request that was sampled: the value of the `TRACES` map while it is open, and of the `EXEMPLARS` map then.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exemplar {
    /// Trace id, its first half first; never zero.
    pub trace_id: [u64; 2],
    /// Id of the span that the request's header names; never zero.
    pub span_id: u64,
    /// Duration of the request, microseconds.
    pub microseconds: u64,
    /// Its end, nanoseconds of `CLOCK_MONOTONIC`.
    pub at_ns: u64,
}

/// A sampled request that has ended: a record of the `SPANS` ring buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpanRecord {
    /// The series in which it was counted.
    pub key: SeriesKey,
    /// Its ids, duration and end.
    pub request: Exemplar,
    /// Wire bytes by direction.
    pub bytes: [u64; 2],
}

/// Key of the `EXEMPLARS` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ExemplarKey {
    /// Slot of the series.
    pub slot: u32,
    /// Exposed bucket of the duration.
    pub bucket: u32,
}

const _: () = assert!(size_of::<TraceKey>() == 16);
const _: () = assert!(size_of::<Exemplar>() == 40);
const _: () = assert!(size_of::<SpanRecord>() == 96);
