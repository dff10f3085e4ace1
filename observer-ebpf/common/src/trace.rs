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

/// A sampled request that is open: the value of the `TRACES` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenRequest {
    /// Its ids.
    pub exemplar: Exemplar,
    /// What it asks for, if spans are made.
    pub line: RequestLine,
}

/// Value of the constant [`crate::names::SENDS_SPANS`] with which records have a [`RequestLine`].
pub const SENDS_TARGETS: u32 = 2;

/// Words of [`RequestLine::text`].
pub const LINE_WORDS: usize = 15;

/// What a request asks for, as it was sent.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestLine {
    /// The text's first bytes, the first one lowest.
    pub text: [u64; LINE_WORDS],
    /// Bytes of the whole text.
    pub length: u32,
    /// What the text is.
    pub form: LineForm,
    /// Method, if the text has none.
    pub method: Method,
}

/// What the text of a [`RequestLine`] is.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LineForm(pub u16);

impl LineForm {
    /// There is none.
    pub const NONE: Self = Self(0);
    /// A request line of HTTP/1.
    pub const LINE: Self = Self(1);
    /// A path.
    pub const PATH: Self = Self(2);
    /// A path in HPACK's Huffman code.
    pub const CODED_PATH: Self = Self(3);
}

/// Method of a request of HTTP/2.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Method(pub u16);

impl Method {
    /// Not known.
    pub const UNKNOWN: Self = Self(0);
    /// `POST`; kept apart, since no request of gRPC has another one.
    pub const POST: Self = Self(1);
    /// `GET`.
    pub const GET: Self = Self(2);
    /// Those that have a number, which is their index and one.
    pub const NAMES: [&'static str; 8] = ["POST", "GET", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "CONNECT"];
    /// Any other.
    pub const OTHER: Self = Self(9);
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
    /// What it asked for.
    pub line: RequestLine,
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
const _: () = assert!(size_of::<OpenRequest>() == 168);
const _: () = assert!(size_of::<SpanRecord>() == 224);
