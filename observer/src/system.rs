//! The process itself: privileges, seccomp, signals, logging, environment, HTTP clients.

pub mod capabilities;
pub mod environment;
pub mod host;
pub mod http_client;
pub mod jitter;
pub mod logging;
mod pinned;
pub mod seccomp;
pub mod signals;
