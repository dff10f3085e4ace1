//! Reads elements of array maps, many with one system call if many are wanted (`BPF_MAP_LOOKUP_BATCH`, Linux 5.6).

use std::{collections::HashMap, os::fd::AsFd};

use aya::{
    Pod,
    maps::{Array, Map, MapData},
};
use observer_common::{BucketPage, Series};

use super::{error::KernelError, sys};

/// Maximum bytes copied by a system call.
const WINDOW_BYTES: usize = 64 * 1024;
/// A window is read whole if at least one in this many of its elements is wanted: a copy costs less than a call.
const MAX_SPARSITY: usize = 8;

/// Reads an array.
pub(super) struct Elements<'a, V: Pod> {
    name: &'static str,
    map: &'a MapData,
    array: Array<&'a MapData, V>,
    /// Whether this kernel supports batches.
    batched: bool,
}

/// Wanted elements that lie close together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Window<'a> {
    wanted: &'a [u32],
    first: u32,
    length: usize,
}

impl<'a, V: Pod> Elements<'a, V> {
    pub(super) fn new(name: &'static str, map: &'a Map) -> Result<Self, KernelError> {
        let array = Array::try_from(map).map_err(|source| KernelError::map(name, source))?;
        match map {
            Map::Array(map) => Ok(Self { name, map, array, batched: true }),
            _ => Err(KernelError::Missing { name }),
        }
    }

    /// Returns the elements at these ascending indices.
    pub(super) fn read(&mut self, wanted: &[u32]) -> Result<Vec<V>, KernelError> {
        let mut elements = Vec::with_capacity(wanted.len());
        for window in windows(wanted, (WINDOW_BYTES / size_of::<V>()).max(1)) {
            let whole = self.batched && window.length <= MAX_SPARSITY * window.wanted.len() && window.length > 1;
            match whole.then(|| sys::read_array::<V>(self.map.fd().as_fd(), window.first, window.length)) {
                Some(Ok(all)) => {
                    let at = window.wanted.iter().map(|index| (index - window.first) as usize);
                    elements.extend(at.filter_map(|at| all.get(at)));
                }
                Some(Err(_)) => {
                    self.batched = false;
                    self.read_singly(window.wanted, &mut elements)?;
                }
                None => self.read_singly(window.wanted, &mut elements)?,
            }
        }
        Ok(elements)
    }

    fn read_singly(&self, wanted: &[u32], elements: &mut Vec<V>) -> Result<(), KernelError> {
        for index in wanted {
            elements.push(self.array.get(index, 0).map_err(|source| KernelError::map(self.name, source))?);
        }
        Ok(())
    }
}

/// Splits ascending indices into windows of at most `length` elements.
fn windows(mut wanted: &[u32], length: usize) -> impl Iterator<Item = Window<'_>> {
    std::iter::from_fn(move || {
        let first = *wanted.first()?;
        let inside = wanted.partition_point(|index| ((index - first) as usize) < length);
        let (these, rest) = wanted.split_at(inside);
        wanted = rest;
        let last = *these.last()?;
        Some(Window { wanted: these, first, length: (last - first) as usize + 1 })
    })
}

/// Log-linear sub-buckets by page number.
pub(super) type Blocks = HashMap<u32, BucketPage>;

/// Reads the blocks of these series.
pub(super) fn blocks(of: &mut Elements<'_, BucketPage>, series: &[Series]) -> Result<Blocks, KernelError> {
    let histograms = series.iter().flat_map(|series| &series.histograms);
    let mut wanted: Vec<u32> =
        histograms.flat_map(|histogram| histogram.pages).filter_map(|name| name.checked_sub(1)).collect();
    wanted.sort_unstable();
    wanted.dedup();
    let read = of.read(&wanted)?;
    Ok(wanted.into_iter().map(|index| index + 1).zip(read).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_have_every_index_once_and_are_no_longer_than_allowed() {
        let wanted = [0, 1, 2, 9, 10, 100, 109, 110, u32::MAX];
        let cut: Vec<_> =
            windows(&wanted, 10).map(|window| (window.first, window.length, window.wanted.len())).collect();
        assert_eq!(cut, [(0, 10, 4), (10, 1, 1), (100, 10, 2), (110, 1, 1), (u32::MAX, 1, 1)]);
        assert_eq!(windows(&wanted, 10).flat_map(|window| window.wanted).copied().collect::<Vec<_>>(), wanted);
        assert_eq!(windows(&[], 10).next(), None);
    }
}
