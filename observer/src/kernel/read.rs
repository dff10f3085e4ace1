//! Reads the counters of the maps.

use std::{
    collections::HashSet,
    os::fd::AsFd,
    sync::atomic::{
        AtomicU64,
        Ordering::{Acquire, Relaxed},
        fence,
    },
    time::{Duration, Instant},
};

use aya::maps::Array;
use observer_common::{
    ALLOCATED_PAGES, ALLOCATED_SLOTS, BucketPage, INSERTED_KEYS, Leg, OVERFLOW_SLOT, Series, SeriesKey,
    health::Counter, histogram::SUB_BUCKETS, names,
};

use super::{Kernel, error::KernelError, mapped::Mapped, sys};
use crate::collect::{KernelPart, KernelReading, ProgramReading, SeriesReading};

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
        let mut watch = Stopwatch::start();
        self.refresh_slots()?;
        let mut reading = KernelReading { series_capacity: u64::from(self.max_series), ..KernelReading::default() };
        // Before the counts, in which every exemplar then is.
        let exemplars = self.read_exemplars()?;
        let mut arrays = Arrays::of(self, cells)?;
        let (mut batch, mut has_callers) = (Vec::new(), false);
        for start in (0..self.slots.len()).step_by(BATCH_SERIES) {
            let slots: Vec<_> = self.slots.iter().skip(start).take(BATCH_SERIES).copied().collect();
            batch.resize_with(slots.len(), || SeriesReading::empty(SeriesKey::default()));
            for (reading, &slot) in batch.iter_mut().zip(&slots) {
                self.read_series(slot, &mut arrays, reading)?;
                self.idle.record(reading);
            }
            if slots.iter().any(|(key, _)| key.leg == Leg::DESTINATION) {
                let callers = self.read_callers()?;
                watch.pause(|| each(KernelPart::Callers(&callers)));
                has_callers = true;
            }
            watch.pause(|| {
                for (reading, (key, slot)) in batch.iter().zip(&slots) {
                    if *slot != Some(OVERFLOW_SLOT) || !is_unused(reading) {
                        each(KernelPart::Series(reading));
                    }
                    if let Some(exemplars) = slot.and_then(|slot| exemplars.get(&slot)) {
                        each(KernelPart::Exemplars(key, exemplars));
                    }
                }
            });
        }
        if !has_callers {
            // Peers are known before their first requests have ended.
            let callers = self.read_callers()?;
            watch.pause(|| each(KernelPart::Callers(&callers)));
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
        reading.duration = watch.read();
        Ok(reading)
    }

    /// Reads one series, with what earlier maps and slots have counted of it.
    fn read_series(
        &self,
        (key, slot): (SeriesKey, Option<u32>),
        arrays: &mut Arrays,
        into: &mut SeriesReading,
    ) -> Result<(), KernelError> {
        clear(into, key);
        if let Some(values) = slot.and_then(|slot| arrays.series.get(slot)) {
            add(into, &values);
            arrays.read_cells(self, &values, into)?;
        }
        self.map_state.carried_over.add_to(into);
        if let Some(values) = self.idle.former_slot(&key).and_then(|slot| arrays.series.get(slot)) {
            add(into, &values);
        }
        Ok(())
    }

    /// Returns whether series were inserted since the last reading.
    #[must_use]
    pub fn has_new_series(&self) -> bool {
        self.allocated(INSERTED_KEYS).is_ok_and(|inserted| self.inserted != Some(inserted))
    }

    /// Returns one of the counters of what was allocated.
    fn allocated(&self, counter: u32) -> Result<u32, KernelError> {
        let allocated: Array<_, u32> = self.map(names::ALLOCATED)?;
        allocated.get(&counter, 0).map_err(|source| KernelError::map(names::ALLOCATED, source))
    }

    /// Maps the first `elements` of an array.
    fn mapped<V: aya::Pod>(&self, name: &'static str, elements: u32) -> Result<Mapped<V>, KernelError> {
        let map = self.ebpf.map(name).ok_or(KernelError::Missing { name })?;
        Mapped::new(map, elements).map_err(|source| KernelError::map(name, source))
    }

    /// Reads the list of slots again if keys were inserted since.
    pub(super) fn refresh_slots(&mut self) -> Result<(), KernelError> {
        // Read before the keys: a key inserted meanwhile is found next time.
        let inserted = self.allocated(INSERTED_KEYS)?;
        if self.inserted == Some(inserted) {
            return Ok(());
        }
        let mut read = Vec::new();
        self.each_element(names::SLOTS, |key: SeriesKey, slot: u32| read.push((key, slot)))?;
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
}

/// Counts the time of the reading, without that of whoever takes what was read.
struct Stopwatch {
    since: Instant,
    before: Duration,
}

impl Stopwatch {
    fn start() -> Self {
        Self { since: Instant::now(), before: Duration::ZERO }
    }

    fn read(&self) -> Duration {
        self.before + self.since.elapsed()
    }

    fn pause(&mut self, meanwhile: impl FnOnce()) {
        self.before = self.read();
        meanwhile();
        self.since = Instant::now();
    }
}

/// The mapped part of the arrays that are in use.
struct Arrays {
    series: Mapped<Series>,
    /// `None` if no cells are wanted.
    pages: Option<Mapped<BucketPage>>,
}

impl Arrays {
    fn of(kernel: &Kernel, cells: bool) -> Result<Self, KernelError> {
        let series = kernel.mapped(names::SERIES, kernel.allocated(ALLOCATED_SLOTS)?.saturating_add(1))?;
        let pages = if cells { Some(Self::pages(kernel)?) } else { None };
        Ok(Self { series, pages })
    }

    fn pages(kernel: &Kernel) -> Result<Mapped<BucketPage>, KernelError> {
        kernel.mapped(names::BUCKET_PAGES, kernel.allocated(ALLOCATED_PAGES)?)
    }

    /// Reads the log-linear cells of a series whose values were read.
    fn read_cells(&mut self, kernel: &Kernel, values: &Series, into: &mut SeriesReading) -> Result<(), KernelError> {
        let Some(pages) = &mut self.pages else { return Ok(()) };
        // Not before the numbers of their pages.
        fence(Acquire);
        for (histogram, into) in values.histograms.iter().zip(&mut into.histograms) {
            for (octave, number) in histogram.pages.iter().enumerate().filter(|(_, number)| **number != 0) {
                if pages.words(number - 1).is_none() {
                    // Allocated meanwhile.
                    *pages = Self::pages(kernel)?;
                }
                let words = pages.words(number - 1).unwrap_or_default();
                cells(octave, words, &mut into.cells);
            }
        }
        Ok(())
    }
}

/// Adds the cells of a page that were counted in.
fn cells(octave: usize, page: &[AtomicU64], into: &mut Vec<(u16, u32)>) {
    for (at, pair) in page.iter().enumerate() {
        let pair = pair.load(Relaxed);
        // Most are.
        if pair == 0 {
            continue;
        }
        let [low @ .., _, _, _, _] = pair.to_ne_bytes();
        let [_, _, _, _, high @ ..] = pair.to_ne_bytes();
        let cell = octave * SUB_BUCKETS + 2 * at;
        for (cell, count) in [(cell, u32::from_ne_bytes(low)), (cell + 1, u32::from_ne_bytes(high))] {
            if count != 0 {
                into.push((cell as u16, count));
            }
        }
    }
}

/// Makes a reading one of a series in which nothing has been counted, and keeps its memory.
fn clear(reading: &mut SeriesReading, key: SeriesKey) {
    let cells = reading.histograms.each_mut().map(|histogram| std::mem::take(&mut histogram.cells));
    *reading = SeriesReading::empty(key);
    for (histogram, mut cells) in reading.histograms.iter_mut().zip(cells) {
        cells.clear();
        histogram.cells = cells;
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_of_a_page_are_those_that_are_not_zero_in_their_order() {
        let mut page = BucketPage { sub_buckets: [0; SUB_BUCKETS] };
        (page.sub_buckets[0], page.sub_buckets[5], page.sub_buckets[6], page.sub_buckets[31]) = (7, 1, u32::MAX, 9);
        let pairs = page.sub_buckets.as_chunks::<2>().0.iter();
        let words: Vec<AtomicU64> = pairs
            .map(|[low, high]| {
                let bytes = [low.to_ne_bytes(), high.to_ne_bytes()];
                AtomicU64::new(u64::from_ne_bytes(bytes.as_flattened().try_into().unwrap()))
            })
            .collect();
        let mut found = vec![(3, 4)];
        cells(2, &words, &mut found);
        assert_eq!(found, [(3, 4), (64, 7), (69, 1), (70, u32::MAX), (95, 9)]);
    }

    #[test]
    fn a_reading_is_used_again_for_another_series() {
        let mut reading = SeriesReading::empty(SeriesKey::default());
        reading.histograms[1].cells = vec![(1, 2)];
        (reading.opened, reading.histograms[2].buckets[3]) = (1, 1);
        let key = SeriesKey { sidecar: 7, ..SeriesKey::default() };
        clear(&mut reading, key);
        assert_eq!(reading, SeriesReading::empty(key));
    }
}
