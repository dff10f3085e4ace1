//! What an observer leaves to the next one on the same folder, beside the kernel's maps.

use std::{
    io::{self, Write},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{
    collect::kernel,
    discovery::{ProcessId, Sidecar, registry::Registry},
    model,
};

/// Everything that is remembered. What another build does not know it leaves out, what it has more begins empty.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// Which number each sidecar is counted under.
    pub registry: Registry,
    /// Sidecars that ran.
    pub running: Vec<Arc<Sidecar>>,
    /// Sidecars that had ended.
    pub ended: Vec<Arc<Sidecar>>,
    /// Cgroups that running ones had left, by their ids.
    pub moved: Vec<(ProcessId, u64)>,
    /// Series, their labels and totals.
    pub model: Option<model::persisted::PersistedModel>,
    /// The pinned maps.
    pub kernel: kernel::Remembered,
}

impl Memory {
    /// Writes it as it is kept.
    ///
    /// # Errors
    /// `into` takes no more.
    pub fn write(&self, into: impl Write) -> io::Result<()> {
        Ok(serde_json::to_writer(into, self)?)
    }

    /// What was kept.
    ///
    /// # Errors
    /// It is another thing.
    pub fn decode(text: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(text)
    }
}
