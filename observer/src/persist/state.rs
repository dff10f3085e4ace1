//! The state that an observer persists in the pin directory, besides the kernel maps.

use std::{
    io::{self, Write},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::pins::MapState;
use crate::{
    discovery::{ProcessId, Sidecar, registry::Registry},
    model,
};

/// The persisted state. Unknown keys are ignored, missing ones are empty.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PersistedState {
    /// Ids of the sidecars.
    pub registry: Registry,
    /// Sidecars that ran.
    pub running: Vec<Arc<Sidecar>>,
    /// Sidecars that had ended.
    pub ended: Vec<Arc<Sidecar>>,
    /// Ids of cgroups that running sidecars had left.
    pub moved: Vec<(ProcessId, u64)>,
    /// Series, their labels and totals.
    pub model: Option<model::persisted::PersistedModel>,
    /// The pinned maps.
    pub kernel: MapState,
}

impl PersistedState {
    /// Serialises the state.
    ///
    /// # Errors
    /// Writing to `into` fails.
    pub fn write(&self, into: impl Write) -> io::Result<()> {
        Ok(serde_json::to_writer(into, self)?)
    }

    /// Deserialises the state.
    ///
    /// # Errors
    /// The text is not a state.
    pub fn decode(text: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(text)
    }
}
