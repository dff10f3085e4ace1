//! What an observer leaves to the next one on the same folder, beside the kernel's maps.

use serde::{Deserialize, Serialize};

use crate::{
    collect::kernel,
    discovery::{Sidecar, registry::Registry},
    model,
};

/// Everything that is remembered. What another build does not know it leaves out, what it has more begins empty.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// Which number each sidecar is counted under.
    pub registry: Registry,
    /// Sidecars that ran.
    pub running: Vec<Sidecar>,
    /// Sidecars that had ended.
    pub ended: Vec<Sidecar>,
    /// Series, their labels and totals.
    pub model: Option<model::remembered::Remembered>,
    /// The pinned maps.
    pub kernel: kernel::Remembered,
}

impl Memory {
    /// As it is kept.
    ///
    /// # Panics
    /// Never: nothing in it refuses to be written.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("numbers, times after 1970, strings and lists")
    }

    /// What was kept.
    ///
    /// # Errors
    /// It is another thing.
    pub fn decode(text: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(text)
    }
}
