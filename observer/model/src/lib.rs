//! The observer's pure core: [`Reading`](reading::Reading) + previous reading + [`identity`] -> [`Snapshot`] -> text.
//!
//! No I/O and no clock: whatever is read arrives in a reading, whatever is written leaves as text. [`Model::update`]
//! turns readings into totals that never decrease and returns an immutable [`Snapshot`]; [`encode`] renders its
//! [families](Family) in one format each, without knowing where a family was counted.
//!
//! ```
//! use observer_model::{
//!     Inputs, Model, SelfMetrics,
//!     encode::prometheus::{Exposition, Format},
//!     reading::Reading,
//! };
//! use std::time::{Duration, SystemTime};
//!
//! let at = SystemTime::UNIX_EPOCH;
//! let reading = Reading {
//!     at,
//!     steady: Duration::ZERO,
//!     kernel: None,
//!     processes: vec![],
//!     scrapes: vec![],
//!     outcomes: vec![],
//! };
//! let snapshot = Model::new(at, Duration::from_secs(900)).update(Inputs {
//!     reading: &reading,
//!     running: &[],
//!     ended: &[],
//!     components: &[],
//!     peers: &Default::default(),
//!     own: &SelfMetrics::default(),
//!     closes_interval: false,
//! });
//! let text = Exposition::new(snapshot, Format::Text).collect::<Vec<_>>().concat();
//! assert!(text.starts_with(b"# HELP mesh_observer_build_info"));
//! ```

#![forbid(unsafe_code)]

pub mod aggregate;
pub mod callers;
pub mod catalogue;
pub mod delay;
pub mod encode;
pub mod exemplar;
pub mod exposition;
mod family;
#[cfg(any(test, feature = "fixture"))]
pub mod fixture;
pub mod histogram;
pub mod identity;
pub mod kubernetes;
mod label_text;
pub mod labels;
pub mod live_catalogue;
mod merge;
mod model;
pub mod persisted;
mod point;
mod process_metrics;
pub mod reading;
mod recorded;
pub mod scraped;
mod self_metrics;
mod snapshot;
pub mod span;
pub mod totals;
pub mod view;
mod waiting;
pub mod workload_index;

pub use self::{
    aggregate::Series,
    family::{Cursor, Family},
    model::{Inputs, Model, Update},
    point::{HistogramView, Labels, Point, Value},
    self_metrics::{EmitterStats, EndpointStats, KubernetesStats, SelfMetrics},
    snapshot::{MESH_FAMILIES, Snapshot},
};
