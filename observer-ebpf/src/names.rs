//! Names of maps and programs, so that the loader, the object tests and the programs cannot disagree.

/// Socket storage: one [`crate::socket::Connection`] per observed socket.
pub const CONNECTIONS: &str = "CONNECTIONS";
/// Process (thread-group id) to sidecar id or [`crate::IGNORED`].
pub const PROCESSES: &str = "PROCESSES";
/// cgroup id to [`crate::Cgroup`].
pub const CGROUPS: &str = "CGROUPS";
/// Port to the flags [`crate::PORT_TCP`] and [`crate::PORT_EXCLUDED`].
pub const PORTS: &str = "PORTS";
/// [`crate::SeriesKey`] to slot number.
pub const SLOTS: &str = "SLOTS";
/// Slot number to [`crate::Series`].
pub const SERIES: &str = "SERIES";
/// Block number to [`crate::Block`].
pub const BLOCKS: &str = "BLOCKS";
/// The allocation counters: next free slot, block and door.
pub const NEXT: &str = "NEXT";
/// [`crate::health::Counter`] to its value.
pub const HEALTH: &str = "HEALTH";
/// [`crate::InboundKey`] to the number of its [`crate::Door`].
pub const INBOUND: &str = "INBOUND";
/// Number to [`crate::Door`]: what is open on the inbound listener, by kind of encryption.
pub const DOORS: &str = "DOORS";

/// Programs, in the order a connection meets them.
pub const PROGRAMS: [&str; 6] =
    ["mesh_connect4", "mesh_connect6", "mesh_sock_ops", "mesh_getsockopt", "mesh_ingress", "mesh_egress"];
