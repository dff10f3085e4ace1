//! What programs counted in maps of another layout: read from those maps once no program counts there any more, and added
//! to what is counted since.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    path::Path,
};

use observer_common::{OVERFLOW_SLOT, SeriesKey, health::Counter, names};
use serde::{Deserialize, Serialize};

use super::{
    shape::{FIGURES, Shape, counter_name},
    sys::RawMap,
};
use crate::{
    collect::{PersistedKey, SeriesReading},
    discovery::SidecarId,
};

/// What was counted under other layouts, in all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Past {
    series: Table,
    health: BTreeMap<String, u64>,
}

/// Figures of each series, in the order of [`Shape::figures`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<(PersistedKey, Box<[u64]>)>", into = "Vec<(PersistedKey, Box<[u64]>)>")]
struct Table(HashMap<SeriesKey, Box<[u64]>>);

impl From<Vec<(PersistedKey, Box<[u64]>)>> for Table {
    fn from(list: Vec<(PersistedKey, Box<[u64]>)>) -> Self {
        Self(list.into_iter().map(|(key, figures)| (key.into(), figures)).collect())
    }
}

impl From<Table> for Vec<(PersistedKey, Box<[u64]>)> {
    fn from(table: Table) -> Self {
        table.0.into_iter().map(|(key, figures)| (key.into(), figures)).collect()
    }
}

impl Past {
    /// Adds what the maps in `folder` hold, laid out as `shape` says.
    pub(super) fn take(&mut self, folder: &Path, shape: &Shape) -> io::Result<usize> {
        let slots = RawMap::open(&folder.join(names::SLOTS), shape.key_size, size_of::<u32>())?;
        let series = RawMap::open(&folder.join(names::SERIES), size_of::<u32>(), shape.value_size)?;
        let health = RawMap::open(&folder.join(names::HEALTH), size_of::<u32>(), size_of::<u64>())?;
        let mut found = vec![(SeriesKey::default(), series.get(&OVERFLOW_SLOT.to_ne_bytes())?)];
        let mut before = None;
        while let Some(bytes) = slots.next_key(before.as_deref())? {
            let key = shape.key(&bytes).ok_or(io::ErrorKind::InvalidData)?;
            found.push((key, series.get(&slots.get(&bytes)?)?));
            before = Some(bytes);
        }
        let count = found.len() - 1;
        found.iter().for_each(|(key, bytes)| self.add(*key, &shape.figures(bytes)));
        for (number, name) in (0_u32..).zip(&shape.counters) {
            let value = health.get(&number.to_ne_bytes())?;
            let known = self.health.entry(name.clone()).or_default();
            *known = known.saturating_add(value.try_into().map_or(0, u64::from_ne_bytes));
        }
        Ok(count)
    }

    fn add(&mut self, key: SeriesKey, figures: &[u64]) {
        if figures.iter().all(|&figure| figure == 0) {
            return;
        }
        let known = self.series.0.entry(key).or_insert_with(|| vec![0; FIGURES].into());
        known.iter_mut().zip(figures).for_each(|(known, more)| *known = known.saturating_add(*more));
    }

    /// Adds what was counted before to what was counted since.
    pub fn complete(&self, reading: &mut SeriesReading) {
        let Some(figures) = self.series.0.get(&reading.key) else { return };
        let mut figures = figures.iter();
        let mut add = |place: &mut u64| *place = place.saturating_add(*figures.next().unwrap_or(&0));
        for histogram in &mut reading.histograms {
            histogram.buckets.iter_mut().for_each(&mut add);
            add(&mut histogram.sum);
        }
        let SeriesReading { opened, closed, received, sent, messages: [requests, responses], .. } = reading;
        [opened, closed, received, sent, requests, responses].into_iter().for_each(add);
    }

    /// A counter's value before.
    #[must_use]
    pub fn health(&self, counter: Counter) -> u64 {
        if self.health.is_empty() { 0 } else { self.health.get(&counter_name(counter)).copied().unwrap_or(0) }
    }

    /// Gives up the series of these sidecars.
    pub(super) fn forget(&mut self, sidecars: &BTreeSet<SidecarId>) {
        self.series.0.retain(|key, _| !sidecars.contains(&key.sidecar));
    }

    /// Every series of before.
    pub fn keys(&self) -> impl Iterator<Item = &SeriesKey> {
        self.series.0.keys()
    }
}

#[cfg(test)]
mod tests {
    use observer_common::latency::BUCKETS;

    use super::*;

    #[test]
    fn what_was_is_added_to_what_is() {
        let (mut past, key) = (Past::default(), SeriesKey { sidecar: 3, ..SeriesKey::default() });
        let figures: Vec<u64> = (1..=FIGURES as u64).collect();
        past.add(key, &figures);
        past.add(key, &figures);
        past.add(SeriesKey::default(), &[0; FIGURES]);
        let text = serde_json::to_string(&past).unwrap();
        let past: Past = serde_json::from_str(&text).unwrap();
        assert_eq!(past.keys().collect::<Vec<_>>(), [&key]);
        let mut now = SeriesReading { opened: 1, ..SeriesReading::empty(key) };
        past.complete(&mut now);
        let before = |place: usize| 2 * (place as u64 + 1);
        for (index, histogram) in now.histograms.iter().enumerate() {
            let begin = index * (BUCKETS + 1);
            assert_eq!((histogram.buckets[0], histogram.sum), (before(begin), before(begin + BUCKETS)));
        }
        assert_eq!((now.opened, now.messages[1]), (1 + before(FIGURES - 6), before(FIGURES - 1)));
        let mut other = SeriesReading::empty(SeriesKey::default());
        past.complete(&mut other);
        assert_eq!(other, SeriesReading::empty(SeriesKey::default()));
    }
}
