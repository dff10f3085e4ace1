//! Collectors: each fills its own part of a [`Reading`].

pub mod netns;
pub mod procfs;
pub mod scrape;
pub mod self_usage;

pub use observer_model::{exposition, persisted::PersistedKey, reading::*};
