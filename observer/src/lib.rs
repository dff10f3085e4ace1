//! mesh observer: one process per node that reads the sidecars' sockets from the kernel and emits Istio's metrics.
//!
//! The data flow is the module list: `discovery` finds the sidecars, `kernel` attaches the eBPF programs and reads their maps,
//! `collect` reads everything else, the model turns readings and identities into a `Snapshot`, and `emit` and `serve` deliver
//! it. `persist` keeps state across restarts; `app` wires the parts.

#![deny(unsafe_code)]
// A panic aborts the process, and with it counting on the whole node.
#![cfg_attr(
    not(test),
    deny(
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice,
        clippy::unreachable,
        clippy::unwrap_used
    )
)]

pub mod app;
pub mod cli;
pub mod collect;
pub mod config;
pub mod discovery;
pub mod emit;
pub mod kernel;
pub mod persist;
pub mod reporter;
pub mod serve;
pub mod sidecars;
pub mod system;

pub use observer_model as model;
