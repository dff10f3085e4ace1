//! Applications of the mesh: raw connections for what only raw sockets can do, small ordinary servers, and third-party
//! programs.
//!
//! Sockets of our own are made inside the workload's namespace by threads of the test itself, so a case reads from top
//! to bottom; they are in no sidecar's cgroup.

pub mod frames;
pub mod grpc;
pub mod http;
pub mod program;
pub mod raw;
pub mod tcp;
