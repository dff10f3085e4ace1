//! Names of maps and programs, shared by the loader, the object tests and the programs.

/// Socket storage: one `observer_proto::Connection` per observed socket.
pub const CONNECTIONS: &str = "CONNECTIONS";
/// Process (thread-group id) to sidecar id or [`crate::IGNORED`].
pub const PROCESSES: &str = "PROCESSES";
/// cgroup id to [`crate::Cgroup`].
pub const CGROUPS: &str = "CGROUPS";
/// Port to the flags [`crate::PORT_TCP`], [`crate::PORT_HTTP`] and [`crate::PORT_EXCLUDED`].
pub const PORTS: &str = "PORTS";
/// [`crate::PortKey`] to its flags: what the Kubernetes API declares of ports.
pub const PORT_PROTOCOLS: &str = "PORT_PROTOCOLS";
/// [`crate::SeriesKey`] to slot number.
pub const SLOTS: &str = "SLOTS";
/// Slot number to [`crate::Series`].
pub const SERIES: &str = "SERIES";
/// Page number to [`crate::BucketPage`].
pub const BUCKET_PAGES: &str = "BUCKET_PAGES";
/// Allocation counters, indexed by the `ALLOCATED_` constants of this crate and their neighbours.
pub const ALLOCATED: &str = "ALLOCATED";
/// Slots that were freed.
pub const FREE_SLOTS: &str = "FREE_SLOTS";
/// Bucket pages that were freed.
pub const FREE_PAGES: &str = "FREE_PAGES";
/// Inbound ports that were freed.
pub const FREE_PORTS: &str = "FREE_PORTS";
/// [`crate::health::Counter`] to its value.
pub const HEALTH: &str = "HEALTH";
/// [`crate::InboundKey`] to the number of its [`crate::InboundPort`].
pub const INBOUND: &str = "INBOUND";
/// Number to [`crate::InboundPort`].
pub const INBOUND_PORTS: &str = "INBOUND_PORTS";
/// Hash of a caller's kind and text to [`crate::Caller`].
pub const CALLERS: &str = "CALLERS";
/// Socket storage: the `observer_proto::caller::CallerText` of a connection whose requests name their callers.
pub const CALLER_TEXTS: &str = "CALLER_TEXTS";
/// `observer_proto::pairing::AcceptedKey` to `observer_proto::pairing::Accepted`: peers' connections that a thread has
/// accepted, and for which it has not connected to the application.
pub const ACCEPTED: &str = "ACCEPTED";
/// [`crate::InboundPeerKey`] to [`crate::InboundPeer`].
pub const INBOUND_PEERS: &str = "INBOUND_PEERS";
/// Socket storage: the `observer_proto::trace::TraceText` of a connection whose requests have trace contexts.
pub const TRACE_TEXTS: &str = "TRACE_TEXTS";
/// Socket storage: the `observer_proto::trace::TraceTable` of a connection of HTTP/2 whose requests have trace contexts.
pub const TRACE_TABLES: &str = "TRACE_TABLES";
/// [`crate::TraceKey`] to the [`crate::Exemplar`] of a sampled request that is open.
pub const TRACES: &str = "TRACES";
/// Socket storage: one `observer_proto::trace::LineTable` per connection of HTTP/2 that inserts paths.
pub const LINE_TABLES: &str = "LINE_TABLES";
/// [`crate::ExemplarKey`] to the last [`crate::Exemplar`] of a series' bucket.
pub const EXEMPLARS: &str = "EXEMPLARS";
/// Ring buffer of [`crate::SpanRecord`]s.
pub const SPANS: &str = "SPANS";
/// Socket storage: one `observer_proto::http2::Http2` per connection that speaks HTTP/2.
pub const HTTP2: &str = "HTTP2";
/// Socket storage: larger HPACK tables, by direction, for connections that announced them.
pub const LARGE_TABLES: &str = "LARGE_TABLES";
/// Socket storage: marks a socket that is not observed.
pub const UNOBSERVED: &str = "UNOBSERVED";
/// Socket storage: one `observer_proto::http2::MoreStreams` per connection with more open streams than [`HTTP2`] holds.
pub const MORE_STREAMS: &str = "MORE_STREAMS";
/// `observer_proto::http2::StreamKey` to `observer_proto::http2::H2Stream`: open streams that no socket storage holds.
pub const H2_STREAMS: &str = "H2_STREAMS";
/// Number to `observer_proto::reassembly::Buffer`.
pub const REASSEMBLY: &str = "REASSEMBLY";
/// Per CPU: the `observer_proto::reassembly::HandshakeData` of the last packet to a listener.
pub const HANDSHAKE_DATA: &str = "HANDSHAKE_DATA";
/// Tail-call table of the packet programs.
pub const TAIL_CALLS_SKB: &str = "TAIL_CALLS_SKB";
/// Tail-call table of the sock_ops programs.
pub const TAIL_CALLS_OPS: &str = "TAIL_CALLS_OPS";

/// All maps.
pub const MAPS: [&str; 34] = [
    CONNECTIONS,
    PROCESSES,
    CGROUPS,
    PORTS,
    PORT_PROTOCOLS,
    SLOTS,
    SERIES,
    BUCKET_PAGES,
    ALLOCATED,
    FREE_SLOTS,
    FREE_PAGES,
    FREE_PORTS,
    HEALTH,
    INBOUND,
    INBOUND_PORTS,
    CALLERS,
    CALLER_TEXTS,
    ACCEPTED,
    INBOUND_PEERS,
    TRACE_TEXTS,
    TRACE_TABLES,
    LINE_TABLES,
    TRACES,
    EXEMPLARS,
    SPANS,
    HTTP2,
    LARGE_TABLES,
    UNOBSERVED,
    MORE_STREAMS,
    H2_STREAMS,
    REASSEMBLY,
    HANDSHAKE_DATA,
    TAIL_CALLS_SKB,
    TAIL_CALLS_OPS,
];

/// Constant of the programs with traces that is set as they are loaded: not 0 if sampled requests become records of [`SPANS`],
/// [`crate::SENDS_TARGETS`] if those say what was asked for.
pub const SENDS_SPANS: &str = "SENDS_SPANS";

/// Programs attached to a cgroup, in the order in which a connection meets them.
pub const ATTACHED: [&str; 6] =
    ["mesh_connect4", "mesh_connect6", "mesh_sock_ops", "mesh_getsockopt", "mesh_ingress", "mesh_egress"];
/// Tail-call tables, each with its programs by index.
pub const TAIL_CALLED: [(&str, &[&str]); 2] = [
    (TAIL_CALLS_SKB, &["mesh_ingress_h2", "mesh_egress_h2", "mesh_request_h1", "mesh_response_h1"]),
    (TAIL_CALLS_OPS, &["mesh_first_data", "mesh_first_data_h2"]),
];
/// All programs.
pub const PROGRAMS: [&str; 12] = [
    ATTACHED[0],
    ATTACHED[1],
    ATTACHED[2],
    ATTACHED[3],
    ATTACHED[4],
    ATTACHED[5],
    TAIL_CALLED[0].1[0],
    TAIL_CALLED[0].1[1],
    TAIL_CALLED[0].1[2],
    TAIL_CALLED[0].1[3],
    TAIL_CALLED[1].1[0],
    TAIL_CALLED[1].1[1],
];
