//! Collectors: each fills its own part of a [`Reading`].

pub mod control_plane;
pub mod inside;
pub mod kernel;
pub mod own;
pub mod procfs;

pub use observer_model::{exposition, persisted::PersistedKey, reading::*};
