//! Applications of the mesh: raw connections for what only raw sockets can do, and small ordinary servers.
//!
//! Their sockets are made inside the workload's namespace by threads of the test itself, so a case reads from top to
//! bottom; they are in no sidecar's cgroup.

pub mod http;
pub mod raw;
pub mod tcp;
