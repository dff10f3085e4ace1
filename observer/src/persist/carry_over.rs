//! Values counted in maps of other layouts: read after the last program that counts there was replaced, and added to all
//! later readings.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    path::Path,
};

use observer_common::{CallerId, OVERFLOW_SLOT, SeriesKey, health::Counter, names};
use serde::{Deserialize, Serialize};

use super::field_offsets::{FieldOffsets, VALUES, counter_name};
use crate::kernel::sys::RawMap;
use crate::{
    collect::{PersistedKey, SeriesReading},
    discovery::SidecarId,
};

/// Sums of the values of all earlier layouts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CarriedOver {
    series: Table,
    health: BTreeMap<String, u64>,
}

/// Values of each series, in the order of [`FieldOffsets::values`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<(PersistedKey, Box<[u64]>)>", into = "Vec<(PersistedKey, Box<[u64]>)>")]
struct Table(HashMap<SeriesKey, Box<[u64]>>);

impl From<Vec<(PersistedKey, Box<[u64]>)>> for Table {
    fn from(list: Vec<(PersistedKey, Box<[u64]>)>) -> Self {
        Self(list.into_iter().map(|(key, values)| (key.into(), values)).collect())
    }
}

impl From<Table> for Vec<(PersistedKey, Box<[u64]>)> {
    fn from(table: Table) -> Self {
        table.0.into_iter().map(|(key, values)| (key.into(), values)).collect()
    }
}

impl CarriedOver {
    /// Adds the values of the maps in `directory`. Callers whose ids are greater than `last_caller` are unknown: other
    /// maps have given these ids to others. Returns the number of series.
    pub(super) fn add_maps(
        &mut self,
        directory: &Path,
        offsets: &FieldOffsets,
        last_caller: CallerId,
    ) -> io::Result<usize> {
        let slots = RawMap::open(&directory.join(names::SLOTS), offsets.key_size, size_of::<u32>())?;
        let series = RawMap::open(&directory.join(names::SERIES), size_of::<u32>(), offsets.value_size)?;
        let health = RawMap::open(&directory.join(names::HEALTH), size_of::<u32>(), size_of::<u64>())?;
        let mut found = vec![(SeriesKey::default(), series.get(&OVERFLOW_SLOT.to_ne_bytes())?)];
        for bytes in slots.keys() {
            let bytes = bytes?;
            let mut key = offsets.key(&bytes).ok_or(io::ErrorKind::InvalidData)?;
            if key.caller > last_caller && key.caller != CallerId::MISSED {
                key.caller = CallerId::UNREADABLE;
            }
            found.push((key, series.get(&slots.get(&bytes)?)?));
        }
        let count = found.len() - 1;
        found.iter().for_each(|(key, bytes)| self.add(*key, &offsets.values(bytes)));
        for (number, name) in (0_u32..).zip(&offsets.counters) {
            let value = health.get(&number.to_ne_bytes())?;
            let known = self.health.entry(name.clone()).or_default();
            *known = known.saturating_add(value.try_into().map_or(0, u64::from_ne_bytes));
        }
        Ok(count)
    }

    fn add(&mut self, key: SeriesKey, values: &[u64]) {
        if values.iter().all(|&value| value == 0) {
            return;
        }
        let known = self.series.0.entry(key).or_insert_with(|| vec![0; VALUES].into());
        known.iter_mut().zip(values).for_each(|(known, more)| *known = known.saturating_add(*more));
    }

    /// Adds the carried-over values to a reading.
    pub fn add_to(&self, reading: &mut SeriesReading) {
        let Some(values) = self.series.0.get(&reading.key) else { return };
        let mut values = values.iter();
        let mut add = |value: &mut u64| *value = value.saturating_add(*values.next().unwrap_or(&0));
        for histogram in &mut reading.histograms {
            histogram.buckets.iter_mut().for_each(&mut add);
            add(&mut histogram.sum);
        }
        let SeriesReading { opened, closed, received, sent, messages: [requests, responses], .. } = reading;
        [opened, closed, received, sent, requests, responses].into_iter().for_each(add);
    }

    /// Returns the carried-over value of a counter.
    #[must_use]
    pub fn health(&self, counter: Counter) -> u64 {
        if self.health.is_empty() { 0 } else { self.health.get(&counter_name(counter)).copied().unwrap_or(0) }
    }

    /// Removes the series of these sidecars.
    pub(crate) fn remove(&mut self, sidecars: &BTreeSet<SidecarId>) {
        self.series.0.retain(|key, _| !sidecars.contains(&key.sidecar));
    }

    /// Removes one series.
    pub(crate) fn remove_series(&mut self, key: &SeriesKey) {
        self.series.0.remove(key);
    }

    /// Returns the keys of all carried-over series.
    pub fn keys(&self) -> impl Iterator<Item = &SeriesKey> {
        self.series.0.keys()
    }
}

#[cfg(test)]
mod tests {
    use observer_common::histogram::BUCKETS;

    use super::*;

    #[test]
    fn what_was_is_added_to_what_is() {
        let (mut carried, key) = (CarriedOver::default(), SeriesKey { sidecar: 3, ..SeriesKey::default() });
        let values: Vec<u64> = (1..=VALUES as u64).collect();
        carried.add(key, &values);
        carried.add(key, &values);
        carried.add(SeriesKey::default(), &[0; VALUES]);
        let text = serde_json::to_string(&carried).unwrap();
        let carried: CarriedOver = serde_json::from_str(&text).unwrap();
        assert_eq!(carried.keys().collect::<Vec<_>>(), [&key]);
        let mut now = SeriesReading { opened: 1, ..SeriesReading::empty(key) };
        carried.add_to(&mut now);
        let before = |place: usize| 2 * (place as u64 + 1);
        for (index, histogram) in now.histograms.iter().enumerate() {
            let begin = index * (BUCKETS + 1);
            assert_eq!((histogram.buckets[0], histogram.sum), (before(begin), before(begin + BUCKETS)));
        }
        assert_eq!((now.opened, now.messages[1]), (1 + before(VALUES - 6), before(VALUES - 1)));
        let mut other = SeriesReading::empty(SeriesKey::default());
        carried.add_to(&mut other);
        assert_eq!(other, SeriesReading::empty(SeriesKey::default()));
    }
}
