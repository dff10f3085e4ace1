//! mesh observer: one process a node that reads the sidecars' sockets from the kernel and emits Istio's metrics.
//!
//! The data flow is the module list: `discovery` finds who is there, `collect` reads raw figures into a `Reading`,
//! `model` (pure) turns two Readings and identity into a `Snapshot`, `emit` and `serve` hand it on.

pub mod app;
pub mod chance;
pub mod check;
pub mod cli;
pub mod client;
pub mod collect;
pub mod config;
pub mod confinement;
pub mod discovery;
pub mod emit;
pub mod environment;
pub mod limits;
pub mod live;
pub mod memory;
pub mod privileges;
pub mod readiness;
pub mod serve;
pub mod snapshot;
pub mod telemetry;

pub use observer_model as model;
