//! The pinned maps of earlier builds, and what must be known to read them.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use observer_common::CallerId;
use serde::{Deserialize, Deserializer, Serialize, de};

use super::{
    abi,
    carried_entries::{self, CarriedEntries},
    carry_over::CarriedOver,
    field_offsets::FieldOffsets,
    pin_dir::PinDir,
    state_map::StateMap,
};
use crate::kernel::error::KernelError;

/// The pin directory, locked, and the persisted state in it.
#[derive(Debug)]
pub struct Pins {
    pub(crate) pin_dir: PinDir,
    pub(crate) state_map: StateMap,
}

impl Pins {
    /// Locks the directory for this process, and returns the state that was persisted in it.
    ///
    /// # Errors
    /// The directory or what is in it cannot be used; the message has the remedy.
    pub fn open(path: &Path) -> Result<(Self, Option<Vec<u8>>), KernelError> {
        let pin_dir = PinDir::open(path)?;
        let (state_map, text) = StateMap::open(&pin_dir.state())?;
        Ok((Self { pin_dir, state_map }, text))
    }

    /// The error that the persisted state cannot be used, for this reason.
    pub fn unreadable(&self, reason: impl std::fmt::Display) -> KernelError {
        KernelError::state(&self.pin_dir.state(), reason)
    }
}

/// What must be persisted about the pinned maps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MapState {
    /// Values counted in maps that were removed since.
    #[serde(rename = "past")]
    pub(crate) carried_over: CarriedOver,
    /// How to read the pinned maps, by ABI hash.
    #[serde(rename = "shapes")]
    offsets: BTreeMap<String, FieldOffsets>,
    /// ABI hashes whose values are in `carried_over` already, if their maps still exist.
    #[serde(deserialize_with = "abi_hashes")]
    merged: BTreeSet<String>,
    /// The last id of a caller in maps of these ABI hashes that means the same in this build's own maps.
    last_callers: BTreeMap<String, u16>,
}

/// Their directories are removed, so each must be a hash: it must not lead elsewhere.
fn abi_hashes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeSet<String>, D::Error> {
    let hashes = BTreeSet::<String>::deserialize(deserializer)?;
    match hashes.iter().find(|hash| !abi::is_hash(hash)) {
        Some(other) => Err(de::Error::custom(format!("{other:?} is not an ABI hash"))),
        None => Ok(hashes),
    }
}

impl MapState {
    /// Records how this build's own maps are read.
    pub(crate) fn add_own(&mut self, abi_hash: &str) {
        self.offsets.insert(abi_hash.to_owned(), FieldOffsets::default());
    }

    /// Returns the other ABI hashes in the directory, all of which this build can read.
    pub(crate) fn others(&self, pin_dir: &PinDir, own: &str) -> Result<Vec<String>, KernelError> {
        let others: Vec<String> = pin_dir.abi_hashes()?.into_iter().filter(|abi_hash| abi_hash != own).collect();
        for abi_hash in &others {
            self.offsets_of(pin_dir, abi_hash)?;
        }
        Ok(others)
    }

    fn offsets_of(&self, pin_dir: &PinDir, abi_hash: &str) -> Result<&FieldOffsets, KernelError> {
        let offsets = self.offsets.get(abi_hash).ok_or("its layout is not known");
        offsets
            .and_then(|offsets| offsets.incompatibility().map_or(Ok(offsets), Err))
            .map_err(|reason| KernelError::PinnedMap { path: pin_dir.maps(abi_hash), reason: reason.to_owned() })
    }

    /// Returns entries of other maps. This state is to be persisted, and they are to be in this build's own maps, before
    /// any of its programs allocates the id of a caller.
    pub(crate) fn entries(&mut self, pin_dir: &PinDir, abi_hash: &str) -> Result<CarriedEntries, KernelError> {
        let (offsets, maps) = (self.offsets_of(pin_dir, abi_hash)?.clone(), pin_dir.maps(abi_hash));
        let mut entries = carried_entries::read(&maps, &offsets)
            .map_err(|error| KernelError::PinnedMap { path: maps, reason: error.to_string() })?;
        entries.note_callers(self.carried_over.keys());
        // Another observer may have ended before it had merged them: its programs have allocated the next ids.
        entries.last_caller.0 = *self.last_callers.entry(abi_hash.to_owned()).or_insert(entries.last_caller.0);
        Ok(entries)
    }

    /// Adds what other maps hold, after the last program that counted there was replaced.
    pub(crate) fn merge(&mut self, pin_dir: &PinDir, abi_hash: String) -> Result<(), KernelError> {
        let (offsets, maps) = (self.offsets_of(pin_dir, &abi_hash)?.clone(), pin_dir.maps(&abi_hash));
        let last_caller = CallerId(self.last_callers.get(&abi_hash).copied().unwrap_or(0));
        let series = self.carried_over.add_maps(&maps, &offsets, last_caller);
        let series = series.map_err(|error| KernelError::PinnedMap { path: maps, reason: error.to_string() })?;
        tracing::warn!(
            "the previous build's maps have a different layout: the totals of {series} series are kept, but connections that \
             are open now are counted from their next request"
        );
        let unknown = offsets.unknown_counts();
        if !unknown.is_empty() {
            tracing::warn!(
                "values of the previous build that this build does not know are discarded: {}",
                unknown.join(", ")
            );
        }
        self.merged.insert(abi_hash);
        Ok(())
    }

    /// Removes maps whose values are carried over, also those left by an observer that was killed before it could.
    pub(crate) fn remove_merged(&mut self, pin_dir: &PinDir) -> Result<(), KernelError> {
        for abi_hash in &self.merged {
            pin_dir.remove_maps(abi_hash)?;
            self.offsets.remove(abi_hash);
            self.last_callers.remove(abi_hash);
        }
        self.merged.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_abi_hashes_name_directories_to_be_removed() {
        let read = |name: &str| serde_json::from_value::<MapState>(serde_json::json!({ "merged": [name] }));
        assert_eq!(read("0123456789abcdef").unwrap().merged.len(), 1);
        let error = read("x/../../../../tmp").unwrap_err().to_string();
        assert!(error.contains("is not an ABI hash"), "{error}");
    }
}
