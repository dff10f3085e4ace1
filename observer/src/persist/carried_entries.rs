//! Entries of maps of another layout with which this build's own maps go on: callers, whose ids are in the keys of what was
//! counted, and the protocols of ports.

use std::{io, path::Path};

use observer_common::{Caller, CallerId, PortKey, SeriesKey, names};

use super::field_offsets::FieldOffsets;
use crate::kernel::sys::RawMap;

/// Entries of one layout.
#[derive(Debug)]
pub(crate) struct CarriedEntries {
    /// The greatest id of a caller in the keys or among the texts.
    pub(crate) last_caller: CallerId,
    /// The map of callers; empty if it has another layout.
    pub(crate) callers: Vec<(u64, Caller)>,
    /// The map of declared protocols; empty if it has another layout.
    pub(crate) ports: Vec<(PortKey, u32)>,
}

/// Reads them while programs may still add callers: an id that is allocated later is greater.
pub(super) fn read(directory: &Path, offsets: &FieldOffsets) -> io::Result<CarriedEntries> {
    let mut carried = CarriedEntries {
        last_caller: CallerId::NONE,
        callers: entries(directory, names::CALLERS, offsets)?,
        ports: entries(directory, names::PORT_PROTOCOLS, offsets)?,
    };
    let slots = RawMap::open(&directory.join(names::SLOTS), offsets.key_size, size_of::<u32>())?;
    for bytes in slots.keys() {
        carried.note_callers(&offsets.key(&bytes?));
    }
    carried.last_caller = carried.callers.iter().map(|(_, caller)| caller.id).fold(carried.last_caller, Ord::max);
    Ok(carried)
}

fn entries<K: aya::Pod, V: aya::Pod>(directory: &Path, name: &str, offsets: &FieldOffsets) -> io::Result<Vec<(K, V)>> {
    let mut entries = Vec::new();
    if offsets.has_own(name) {
        let map = RawMap::open(&directory.join(name), size_of::<K>(), size_of::<V>())?;
        map.read_hash(|key, value| entries.push((key, value)))?;
    }
    Ok(entries)
}

impl CarriedEntries {
    /// Takes the callers of these keys into account.
    pub(super) fn note_callers<'a>(&mut self, keys: impl IntoIterator<Item = &'a SeriesKey>) {
        let ids = keys.into_iter().map(|key| key.caller);
        let allocated = ids.filter(|id| !matches!(*id, CallerId::MISSED | CallerId::UNREADABLE));
        self.last_caller = allocated.fold(self.last_caller, Ord::max);
    }
}
