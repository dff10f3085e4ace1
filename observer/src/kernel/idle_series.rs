//! Reclaims what callers who have left take up in the maps, while their destination is still counted.
//!
//! A socket keeps the slot of its last series for as long as the epoch lasts. Once a key is removed and the epoch raised,
//! only a program that was already running can still add to its slot; [`SETTLING`] later it holds its final values, which
//! are read once more before it is freed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::{Duration, Instant},
};

use aya::maps::{Array, HashMap as HashTable, MapError};
use observer_common::{Caller, CallerId, Leg, RECLAIM_EPOCH, SeriesKey, names};

use super::{Kernel, error::KernelError};
use crate::collect::SeriesReading;

/// Time without a change after which a series may be reclaimed.
pub(super) const IDLE: Duration = Duration::from_mins(15);
/// Time for which a program may still add to a slot whose key is removed, generously.
const SETTLING: Duration = Duration::from_secs(2);
/// Number of callers above which idle ones are reclaimed: half of what the map holds.
const MANY_CALLERS: usize = 2_048;

/// What has not changed, and what is being reclaimed.
#[derive(Debug, Default)]
pub(super) struct IdleSeries {
    /// Sum of the values of each series with a caller, and since when.
    series: HashMap<SeriesKey, (u64, Instant)>,
    /// Keys that were removed, with their slots.
    leaving: BTreeMap<SeriesKey, u32>,
    /// Those of them that were inserted again, with other slots: their values are added up.
    returned: HashMap<SeriesKey, u32>,
    /// When the keys were removed; whether their slots were read since then and [`SETTLING`].
    removed: Option<(Instant, bool)>,
}

impl IdleSeries {
    /// Records what was read of a series.
    pub(super) fn record(&mut self, reading: &SeriesReading) {
        let SeriesReading { key, histograms, opened, closed, received, sent, messages: [to_server, to_client] } =
            reading;
        if key.leg != Leg::DESTINATION || key.caller == CallerId::NONE {
            return;
        }
        let values = histograms.iter().flat_map(|histogram| histogram.buckets.iter().chain([&histogram.sum]));
        let sum = values
            .chain([opened, closed, received, sent, to_server, to_client])
            .fold(0, |sum: u64, value| sum.wrapping_add(*value));
        let known = self.series.entry(*key).or_insert_with(|| (sum, Instant::now()));
        if known.0 != sum {
            *known = (sum, Instant::now());
        }
    }

    /// Records that every series was read.
    pub(super) fn end_reading(&mut self) {
        if let Some((since, is_read)) = &mut self.removed {
            *is_read |= since.elapsed() >= SETTLING;
        }
    }

    /// Adds the removed keys to those in the map, which have precedence.
    pub(super) fn add_leaving(&mut self, present: &mut Vec<(SeriesKey, u32)>) {
        if self.leaving.is_empty() {
            return;
        }
        let keys: HashSet<SeriesKey> = present.iter().map(|&(key, _)| key).collect();
        self.returned.extend(self.leaving.extract_if(.., |key, _| keys.contains(key)));
        present.extend(self.leaving.iter().map(|(&key, &slot)| (key, slot)));
    }

    /// Returns the former slot of a key that was removed and inserted again.
    pub(super) fn former_slot(&self, key: &SeriesKey) -> Option<u32> {
        self.returned.get(key).copied()
    }

    /// Forgets sidecars that can no longer be counted. Returns the former slots of theirs, which are to be freed.
    pub(super) fn forget(&mut self, sidecars: &BTreeSet<u32>) -> Vec<u32> {
        self.series.retain(|key, _| !sidecars.contains(&key.sidecar));
        self.returned.extract_if(|key, _| sidecars.contains(&key.sidecar)).map(|(_, slot)| slot).collect()
    }
}

impl Kernel {
    /// Reclaims series, callers and peers that are idle, where there are many. Returns the number of series.
    pub(super) fn reclaim_idle(&mut self) -> Result<usize, KernelError> {
        if !self.callers.is_on {
            return Ok(0);
        }
        match self.idle.removed {
            None => self.remove_idle_keys().map(|()| 0),
            Some((_, true)) => self.free_left(),
            Some(_) => Ok(0),
        }
    }

    fn remove_idle_keys(&mut self) -> Result<(), KernelError> {
        if self.slots.len() <= self.max_series as usize / 2 && self.callers.count() <= MANY_CALLERS {
            return Ok(());
        }
        let slots: HashMap<SeriesKey, u32> = self.slots.iter().filter_map(|&(key, slot)| Some((key, slot?))).collect();
        self.idle.series.retain(|key, _| slots.contains_key(key));
        let idle = self.idle.series.iter().filter(|(_, (_, since))| since.elapsed() >= IDLE);
        let gone: BTreeMap<SeriesKey, u32> = idle
            .filter(|(key, _)| self.idle.former_slot(key).is_none())
            .filter_map(|(key, _)| Some((*key, *slots.get(key)?)))
            .collect();
        if gone.is_empty() {
            return Ok(());
        }
        let mut map: HashTable<_, SeriesKey, u32> = self.map_mut(names::SLOTS)?;
        for key in gone.keys() {
            map.remove(key).map_err(|source| KernelError::map(names::SLOTS, source))?;
        }
        // After the keys: from now on no program finds the slots.
        let mut numbers: Array<_, u32> = self.map_mut(names::ALLOCATED)?;
        let wrong = |source| KernelError::map(names::ALLOCATED, source);
        let epoch = numbers.get(&RECLAIM_EPOCH, 0).map_err(wrong)?;
        numbers.set(RECLAIM_EPOCH, epoch.wrapping_add(1), 0).map_err(wrong)?;
        (self.idle.leaving, self.idle.removed) = (gone, Some((Instant::now(), false)));
        Ok(())
    }

    /// Frees the slots of removed keys, which were read a last time, and removes the callers that have no other series.
    fn free_left(&mut self) -> Result<usize, KernelError> {
        // Finds the keys that were inserted again.
        self.inserted = None;
        self.refresh_slots()?;
        let left = std::mem::take(&mut self.idle.leaving);
        self.idle.removed = None;
        self.slots.retain(|(key, _)| !left.contains_key(key));
        for (key, &slot) in &left {
            self.idle.series.remove(key);
            self.map_state.carried_over.remove_series(key);
            self.zero_series(slot)?;
        }
        self.callers.freed.extend(left.keys());
        self.remove_callers(left.keys().map(|key| key.caller).collect())?;
        Ok(left.len())
    }

    /// Removes those of these callers that no series has. Sockets may still hold their ids, which are not given out again.
    pub(super) fn remove_callers(&mut self, mut ids: HashSet<CallerId>) -> Result<(), KernelError> {
        for (key, _) in &self.slots {
            ids.remove(&key.caller);
        }
        let mut hashes = Vec::new();
        self.each_element(names::CALLERS, |hash: u64, caller: Caller| {
            if ids.contains(&caller.id) {
                hashes.push(hash);
            }
        })?;
        let mut callers: HashTable<_, u64, Caller> = self.map_mut(names::CALLERS)?;
        for hash in hashes {
            is_gone(callers.remove(&hash)).map_err(|source| KernelError::map(names::CALLERS, source))?;
        }
        self.callers.forget(&ids);
        Ok(())
    }
}

/// Accepts that an element is not there.
pub(super) fn is_gone(removed: Result<(), MapError>) -> Result<(), MapError> {
    match removed {
        Err(MapError::KeyNotFound) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(caller: u16) -> SeriesKey {
        SeriesKey { sidecar: 1, leg: Leg::DESTINATION, caller: CallerId(caller), ..SeriesKey::default() }
    }

    #[test]
    fn only_series_of_callers_age_and_a_change_makes_them_young() {
        let mut idle = IdleSeries::default();
        idle.record(&SeriesReading::empty(key(0)));
        idle.record(&SeriesReading::empty(SeriesKey { leg: Leg::SOURCE, ..key(1) }));
        assert!(idle.series.is_empty());
        let mut reading = SeriesReading::empty(key(1));
        idle.record(&reading);
        let first = idle.series[&key(1)].1;
        idle.record(&reading);
        assert_eq!(idle.series[&key(1)].1, first);
        reading.histograms[2].buckets[3] = 1;
        std::thread::sleep(Duration::from_millis(1));
        idle.record(&reading);
        assert!(idle.series[&key(1)].1 > first);
    }

    #[test]
    fn a_removed_key_is_read_until_it_is_freed_and_a_returned_one_keeps_its_slot() {
        let mut idle = IdleSeries { leaving: [(key(1), 5), (key(2), 6)].into(), ..IdleSeries::default() };
        let mut present = vec![(key(3), 7)];
        idle.add_leaving(&mut present);
        assert_eq!(present, [(key(3), 7), (key(1), 5), (key(2), 6)]);
        let mut present = vec![(key(1), 8)];
        idle.add_leaving(&mut present);
        assert_eq!(present, [(key(1), 8), (key(2), 6)]);
        assert_eq!((idle.former_slot(&key(1)), idle.former_slot(&key(2))), (Some(5), None));
        assert_eq!(idle.leaving.keys().collect::<Vec<_>>(), [&key(2)]);
        assert_eq!(idle.forget(&[1].into()), [5]);
    }

    #[test]
    fn slots_are_settled_once_they_were_read_late_enough() {
        let now = Instant::now();
        for (age, is_settled) in [(Duration::ZERO, false), (SETTLING, true)] {
            let mut idle = IdleSeries { removed: now.checked_sub(age).map(|at| (at, false)), ..IdleSeries::default() };
            idle.end_reading();
            assert_eq!(idle.removed.map(|(_, is_read)| is_read), Some(is_settled));
        }
    }
}
