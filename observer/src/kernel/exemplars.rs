//! Reads the exemplars of series, and removes those of series that are reclaimed.

use std::{
    collections::HashMap as Table,
    time::{Duration, SystemTime},
};

use aya::maps::HashMap;
use observer_common::{Exemplar, ExemplarKey, histogram::BUCKETS, names};

use super::{Kernel, clock::programs_now, error::KernelError, idle_series::is_gone};
use crate::model::exemplar::Exemplar as ModelExemplar;

impl Kernel {
    /// Returns the exemplars by the slot of their series; none unless traces are read.
    pub(super) fn read_exemplars(&self) -> Result<Table<u32, Vec<ModelExemplar>>, KernelError> {
        let mut by_slot = Table::<u32, Vec<ModelExemplar>>::new();
        if !self.reads_traces {
            return Ok(by_slot);
        }
        let (now, steady) = (SystemTime::now(), programs_now());
        self.each_element(names::EXEMPLARS, |key: ExemplarKey, exemplar: Exemplar| {
            let age = steady.saturating_sub(Duration::from_nanos(exemplar.at_ns));
            let [high, low] = exemplar.trace_id;
            by_slot.entry(key.slot).or_default().push(ModelExemplar {
                bucket: key.bucket,
                trace_id: u128::from(high) << 64 | u128::from(low),
                span_id: exemplar.span_id,
                microseconds: exemplar.microseconds,
                at: now.checked_sub(age).unwrap_or(now),
            });
        })?;
        Ok(by_slot)
    }

    /// Removes the exemplars of a slot that no key leads to.
    pub(super) fn remove_exemplars(&mut self, slot: u32) -> Result<(), KernelError> {
        if !self.reads_traces {
            return Ok(());
        }
        let mut exemplars: HashMap<_, ExemplarKey, Exemplar> = self.map_mut(names::EXEMPLARS)?;
        (0..BUCKETS as u32)
            .try_for_each(|bucket| is_gone(exemplars.remove(&ExemplarKey { slot, bucket })))
            .map_err(|source| KernelError::map(names::EXEMPLARS, source))
    }
}
