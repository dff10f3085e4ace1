//! Reads the counters of the maps.

use std::{collections::HashSet, os::fd::AsFd, time::Duration};

use aya::maps::{Array, HashMap};
use observer_common::{
    BucketPage, Histogram, INSERTED_KEYS, Leg, OVERFLOW_SLOT, Series, SeriesKey, health::Counter,
    histogram::SUB_BUCKETS, names,
};

use super::{
    Kernel,
    batch::{self, Blocks, Elements},
    error::KernelError,
    sys,
};
use crate::collect::{HistogramReading, KernelPart, KernelReading, ProgramReading, SeriesReading};

/// Series read at a time, some half a megabyte.
const BATCH_SERIES: usize = 512;

impl Kernel {
    /// Reads every counter, and passes the series to `each` one by one, so that they are never all in memory; callers and
    /// connections are passed before, and read after, the series of a destination leg. `cells` selects the log-linear
    /// cells too.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn read(&mut self, cells: bool, mut each: impl FnMut(KernelPart<'_>)) -> Result<KernelReading, KernelError> {
        self.refresh_slots()?;
        let mut reading = KernelReading { series_capacity: u64::from(self.max_series), ..KernelReading::default() };
        let mut has_callers = false;
        // Before the counts, in which every exemplar then is.
        let exemplars = self.read_exemplars()?;
        for start in (0..self.slots.len()).step_by(BATCH_SERIES) {
            let chunk: Vec<_> = self.slots.iter().skip(start).take(BATCH_SERIES).copied().collect();
            let slots: Vec<u32> = chunk.iter().filter_map(|&(_, slot)| slot).collect();
            let values = self.elements::<Series>(names::SERIES)?.read(&slots)?;
            let mut blocks = self.elements::<BucketPage>(names::BUCKET_PAGES)?;
            let cells = if cells { batch::blocks(&mut blocks, &values)? } else { Blocks::new() };
            if chunk.iter().any(|(key, _)| key.leg == Leg::DESTINATION) {
                each(KernelPart::Callers(&self.read_callers()?));
                has_callers = true;
            }
            let mut values = values.iter();
            for (key, slot) in chunk {
                let counted = slot.and_then(|_| values.next());
                let mut reading =
                    counted.map_or_else(|| SeriesReading::empty(key), |own| series_reading(key, own, &cells));
                self.map_state.carried_over.add_to(&mut reading);
                if let Some(former) = self.idle.former_slot(&key) {
                    let values = self.elements::<Series>(names::SERIES)?.read(&[former])?;
                    values.iter().for_each(|values| add(&mut reading, values));
                }
                self.idle.record(&reading);
                if slot != Some(OVERFLOW_SLOT) || !is_unused(&reading) {
                    each(KernelPart::Series(&reading));
                }
                if let Some(exemplars) = slot.and_then(|slot| exemplars.get(&slot)) {
                    each(KernelPart::Exemplars(&key, exemplars));
                }
            }
        }
        if !has_callers {
            // Peers are known before their first requests have ended.
            each(KernelPart::Callers(&self.read_callers()?));
        }
        self.idle.end_reading();
        let health: Array<_, u64> = self.map(names::HEALTH)?;
        for &counter in Counter::ALL {
            let value = health.get(&(counter as u32), 0).map_err(|source| KernelError::map(names::HEALTH, source))?;
            reading.health.push((counter, self.map_state.carried_over.health(counter).saturating_add(value)));
        }
        for name in names::PROGRAMS {
            reading.programs.push(self.read_program(name)?);
        }
        Ok(reading)
    }

    /// Returns whether series were inserted since the last reading.
    #[must_use]
    pub fn has_new_series(&self) -> bool {
        let next: Result<Array<_, u32>, _> = self.map(names::ALLOCATED);
        let inserted = next.ok().and_then(|next| next.get(&INSERTED_KEYS, 0).ok());
        inserted.is_some() && inserted != self.inserted
    }

    /// Reads the list of slots again if keys were inserted since.
    pub(super) fn refresh_slots(&mut self) -> Result<(), KernelError> {
        let next: Array<_, u32> = self.map(names::ALLOCATED)?;
        // Read before the keys: a key inserted meanwhile is found next time.
        let inserted = next.get(&INSERTED_KEYS, 0).map_err(|source| KernelError::map(names::ALLOCATED, source))?;
        if self.inserted == Some(inserted) {
            return Ok(());
        }
        let slots: HashMap<_, SeriesKey, u32> = self.map(names::SLOTS)?;
        let read: Result<Vec<_>, _> = slots.iter().collect();
        let mut read = read.map_err(|source| KernelError::map(names::SLOTS, source))?;
        self.idle.add_leaving(&mut read);
        read.sort_unstable_by_key(|&(_, slot)| slot);
        self.inserted = Some(inserted);
        let overflow = (SeriesKey::default(), OVERFLOW_SLOT);
        self.slots = [overflow].into_iter().chain(read).map(|(key, slot)| (key, Some(slot))).collect();
        let counted: HashSet<SeriesKey> = self.slots.iter().map(|&(key, _)| key).collect();
        self.slots
            .extend(self.map_state.carried_over.keys().filter(|key| !counted.contains(key)).map(|&key| (key, None)));
        Ok(())
    }

    fn read_program(&self, name: &'static str) -> Result<ProgramReading, KernelError> {
        let program = self.ebpf.program(name).ok_or(KernelError::Missing { name })?;
        let fd = program.fd().map_err(|source| KernelError::load(name, source))?;
        let (runs, run_time_ns) = sys::run_statistics(fd.as_fd());
        let links = if names::ATTACHED.contains(&name) { self.links.len() as u64 } else { 0 };
        Ok(ProgramReading { name, links, runs, run_time: Duration::from_nanos(run_time_ns) })
    }

    fn elements<V: aya::Pod>(&self, name: &'static str) -> Result<Elements<'_, V>, KernelError> {
        Elements::new(name, self.ebpf.map(name).ok_or(KernelError::Missing { name })?)
    }
}

/// Builds a reading with the log-linear cells of `blocks`.
fn series_reading(key: SeriesKey, values: &Series, blocks: &Blocks) -> SeriesReading {
    let histograms = values.histograms.each_ref().map(|histogram| HistogramReading {
        buckets: histogram.buckets,
        sum: histogram.sum,
        cells: cells(blocks, histogram),
    });
    let &Series { opened, closed, received, sent, messages, .. } = values;
    SeriesReading { key, histograms, opened, closed, received, sent, messages }
}

/// Adds values to a reading, without log-linear cells.
fn add(reading: &mut SeriesReading, values: &Series) {
    for (own, more) in reading.histograms.iter_mut().zip(&values.histograms) {
        own.buckets.iter_mut().zip(more.buckets).for_each(|(own, more)| *own += more);
        own.sum += more.sum;
    }
    reading.opened += values.opened;
    reading.closed += values.closed;
    reading.received += values.received;
    reading.sent += values.sent;
    reading.messages.iter_mut().zip(values.messages).for_each(|(own, more)| *own += more);
}

fn is_unused(series: &SeriesReading) -> bool {
    series.opened == 0
        && series.closed == 0
        && series.received == 0
        && series.sent == 0
        && series.histograms[0].buckets.iter().all(|&count| count == 0)
}

fn cells(blocks: &Blocks, histogram: &Histogram) -> Vec<(u16, u32)> {
    let mut cells = Vec::new();
    for (octave, name) in histogram.pages.iter().enumerate() {
        let Some(block) = blocks.get(name) else { continue };
        let used = block.sub_buckets.iter().enumerate().filter(|&(_, &count)| count != 0);
        cells.extend(used.map(|(cell, &count)| ((octave * SUB_BUCKETS + cell) as u16, count)));
    }
    cells
}
