//! Names of maps and programs, so that the loader, the object tests and the programs cannot disagree.

/// Socket storage: one `observer_proto::socket::Connection` per observed socket.
pub const CONNECTIONS: &str = "CONNECTIONS";
/// Process (thread-group id) to sidecar id or [`crate::IGNORED`].
pub const PROCESSES: &str = "PROCESSES";
/// cgroup id to [`crate::Cgroup`].
pub const CGROUPS: &str = "CGROUPS";
/// Port to the flags [`crate::PORT_TCP`], [`crate::PORT_HTTP`] and [`crate::PORT_EXCLUDED`].
pub const PORTS: &str = "PORTS";
/// [`crate::SeriesKey`] to slot number.
pub const SLOTS: &str = "SLOTS";
/// Slot number to [`crate::Series`].
pub const SERIES: &str = "SERIES";
/// Block number to [`crate::Block`].
pub const BLOCKS: &str = "BLOCKS";
/// How many slots, blocks and doors were ever taken for the first time, and how many keys of [`SLOTS`] were ever inserted.
pub const NEXT: &str = "NEXT";
/// Slots that have been taken and are free again.
pub const FREE_SLOTS: &str = "FREE_SLOTS";
/// Blocks that have been taken and are free again.
pub const FREE_BLOCKS: &str = "FREE_BLOCKS";
/// Doors that have been taken and are free again.
pub const FREE_DOORS: &str = "FREE_DOORS";
/// [`crate::health::Counter`] to its value.
pub const HEALTH: &str = "HEALTH";
/// [`crate::InboundKey`] to the number of its [`crate::Door`].
pub const INBOUND: &str = "INBOUND";
/// Number to [`crate::Door`]: what is open on the inbound listener, by kind of encryption.
pub const DOORS: &str = "DOORS";
/// Socket storage: one `observer_proto::http2::Http2` for each connection that speaks HTTP/2.
pub const HTTP2: &str = "HTTP2";
/// Socket storage: larger header tables, by direction, for connections that announced them.
pub const WIDE: &str = "WIDE";
/// Socket storage: nothing but that it was decided not to observe the socket.
pub const UNOBSERVED: &str = "UNOBSERVED";
/// Socket storage: one `observer_proto::http2::More` for each connection with more calls open than [`HTTP2`] has room for.
pub const MORE: &str = "MORE";
/// `observer_proto::http2::CallKey` to `observer_proto::http2::Call`: open calls that no storage has room for.
pub const CALLS: &str = "CALLS";
/// Number to `observer_proto::early::Place`: bytes that came before the bytes in front of them.
pub const EARLY: &str = "EARLY";
/// One for each processor: the `observer_proto::early::Greeting` of the last packet for a listener.
pub const GREETINGS: &str = "GREETINGS";
/// Number to program: where packets of HTTP are handed on to.
pub const NEXT_PROGRAMS: &str = "NEXT_PROGRAMS";
/// Number to program: where connections that begin with the handshake's last packet are handed on to.
pub const NEXT_EVENTS: &str = "NEXT_EVENTS";

/// All maps.
pub const MAPS: [&str; 23] = [
    CONNECTIONS,
    PROCESSES,
    CGROUPS,
    PORTS,
    SLOTS,
    SERIES,
    BLOCKS,
    NEXT,
    FREE_SLOTS,
    FREE_BLOCKS,
    FREE_DOORS,
    HEALTH,
    INBOUND,
    DOORS,
    HTTP2,
    WIDE,
    UNOBSERVED,
    MORE,
    CALLS,
    EARLY,
    GREETINGS,
    NEXT_PROGRAMS,
    NEXT_EVENTS,
];

/// Programs attached to a cgroup, in the order a connection meets them.
pub const ATTACHED: [&str; 6] =
    ["mesh_connect4", "mesh_connect6", "mesh_sock_ops", "mesh_getsockopt", "mesh_ingress", "mesh_egress"];
/// Programs that others hand packets or events on to: the table, and in it, by their number.
pub const HANDED: [(&str, &[&str]); 2] = [
    (NEXT_PROGRAMS, &["mesh_ingress_h2", "mesh_egress_h2", "mesh_request_h1", "mesh_response_h1"]),
    (NEXT_EVENTS, &["mesh_greeting", "mesh_greeting_h2"]),
];
/// All programs.
pub const PROGRAMS: [&str; 12] = [
    ATTACHED[0],
    ATTACHED[1],
    ATTACHED[2],
    ATTACHED[3],
    ATTACHED[4],
    ATTACHED[5],
    HANDED[0].1[0],
    HANDED[0].1[1],
    HANDED[0].1[2],
    HANDED[0].1[3],
    HANDED[1].1[0],
    HANDED[1].1[1],
];
