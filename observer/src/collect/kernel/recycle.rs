//! What a sidecar took in the maps is free again once it is certain that nothing counts there any more: its process has
//! ended, its cgroup is removed, no program is attached there, and what was counted last has been read.
//!
//! A socket keeps the number of its slot. No program ever runs again for the sockets of a removed cgroup that programs were
//! detached from, since a cgroup's id is never another's: so none finds its slot to be another sidecar's.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use aya::maps::{Array, HashMap, Stack};
use observer_common::{
    Block, Door, Histogram, InboundKey, Series, SeriesKey,
    latency::{BLOCKS, BUCKETS, CELLS},
    names,
};
use observer_proto::http2::{Call, CallKey};

use super::{Error, Kernel};
use crate::discovery::SidecarId;

/// Which sidecars are or were counted in which cgroup.
#[derive(Debug, Default)]
pub(super) struct Tenants(BTreeMap<u64, Tenancy>);

#[derive(Debug)]
struct Tenancy {
    path: PathBuf,
    ids: BTreeSet<SidecarId>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Programs are attached, or are to be.
    Observed,
    /// None is attached any more.
    Left,
    /// And what they counted was read after that.
    Read,
}

impl Tenants {
    /// A sidecar is counted in a cgroup.
    pub(super) fn came(&mut self, id: SidecarId, cgroup_id: u64, path: &Path) {
        let new = || Tenancy { path: path.to_owned(), ids: BTreeSet::new(), state: State::Observed };
        let tenancy = self.0.entry(cgroup_id).or_insert_with(new);
        tenancy.state = State::Observed;
        tenancy.ids.insert(id);
    }

    /// Nothing is attached to a cgroup any more.
    pub(super) fn left(&mut self, cgroup_id: u64) {
        if let Some(tenancy) = self.0.get_mut(&cgroup_id) {
            tenancy.state = State::Left;
        }
    }

    /// Everything was read.
    pub(super) fn read(&mut self) {
        self.0.values_mut().filter(|tenancy| tenancy.state == State::Left).for_each(|it| it.state = State::Read);
    }

    /// Whether anything was left and not read since.
    pub(super) fn has_unread(&self) -> bool {
        self.0.values().any(|tenancy| tenancy.state == State::Left)
    }

    /// Forgets the cgroups that are over; yields the sidecars that were counted there and are nowhere else.
    fn departed(&mut self, is_removed: impl Fn(u64, &Path) -> bool) -> BTreeSet<SidecarId> {
        let mut departed = BTreeSet::new();
        self.0.retain(|&cgroup_id, tenancy| {
            let over = tenancy.state == State::Read && is_removed(cgroup_id, &tenancy.path);
            if over {
                departed.append(&mut tenancy.ids);
            }
            !over
        });
        for tenancy in self.0.values() {
            departed.retain(|id| !tenancy.ids.contains(id));
        }
        departed
    }
}

/// A cgroup's id is its directory's inode, which no later directory of the same path has.
fn is_removed(cgroup_id: u64, path: &Path) -> bool {
    match fs::metadata(path) {
        Ok(found) => found.ino() != cgroup_id,
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

const ZERO: Series = Series {
    histograms: [Histogram { buckets: [0; BUCKETS], sum: 0, blocks: [0; BLOCKS] }; 3],
    opened: 0,
    closed: 0,
    received: 0,
    sent: 0,
    messages: [0; 2],
};

impl Kernel {
    /// Frees what departed sidecars took; says how many series that were.
    ///
    /// # Errors
    /// A map cannot be read or written; what is not freed then is lost until the observer is started again.
    pub fn recycle(&mut self) -> Result<usize, Error> {
        let departed = self.tenants.departed(is_removed);
        if departed.is_empty() {
            return Ok(0);
        }
        self.refresh_slots()?;
        let (gone, kept) = self.slots.drain(..).partition(|(key, _)| departed.contains(&key.sidecar));
        self.slots = kept;
        self.remembered.past.forget(&departed);
        let gone: Vec<(SeriesKey, Option<u32>)> = gone;
        for (key, slot) in &gone {
            slot.map_or(Ok(()), |slot| self.free_series(key, slot))?;
        }
        self.free_doors(&departed)?;
        self.free_calls(&departed)?;
        Ok(gone.len())
    }

    /// In an order in which nothing that is free is ever not zero, and nothing that is found is free.
    fn free_series(&mut self, key: &SeriesKey, slot: u32) -> Result<(), Error> {
        let mut slots: HashMap<_, SeriesKey, u32> = self.map_mut(names::SLOTS)?;
        slots.remove(key).map_err(|source| Error::map(names::SLOTS, source))?;
        let mut series: Array<_, Series> = self.map_mut(names::SERIES)?;
        let figures = series.get(&slot, 0).map_err(|source| Error::map(names::SERIES, source))?;
        series.set(slot, ZERO, 0).map_err(|source| Error::map(names::SERIES, source))?;
        for block in figures.histograms.iter().flat_map(|histogram| histogram.blocks).filter(|&name| name != 0) {
            let mut blocks: Array<_, Block> = self.map_mut(names::BLOCKS)?;
            let zero = Block { cells: [0; CELLS] };
            blocks.set(block - 1, zero, 0).map_err(|source| Error::map(names::BLOCKS, source))?;
            self.free(names::FREE_BLOCKS, block - 1)?;
        }
        self.free(names::FREE_SLOTS, slot)
    }

    fn free_doors(&mut self, departed: &BTreeSet<SidecarId>) -> Result<(), Error> {
        let inbound: HashMap<_, InboundKey, u32> = self.map(names::INBOUND)?;
        let all: Result<Vec<_>, _> = inbound.iter().collect();
        let all = all.map_err(|source| Error::map(names::INBOUND, source))?;
        for (key, name) in all.into_iter().filter(|(key, _)| departed.contains(&key.sidecar)) {
            let mut inbound: HashMap<_, InboundKey, u32> = self.map_mut(names::INBOUND)?;
            inbound.remove(&key).map_err(|source| Error::map(names::INBOUND, source))?;
            let mut doors: Array<_, Door> = self.map_mut(names::DOORS)?;
            doors.set(name - 1, Door::default(), 0).map_err(|source| Error::map(names::DOORS, source))?;
            self.free(names::FREE_DOORS, name - 1)?;
        }
        Ok(())
    }

    /// Calls that were open when programs were detached from their sockets.
    fn free_calls(&mut self, departed: &BTreeSet<SidecarId>) -> Result<(), Error> {
        let error = |source| Error::map(names::CALLS, source);
        let mut calls: HashMap<_, CallKey, Call> = self.map_mut(names::CALLS)?;
        let all: Vec<CallKey> = calls.keys().collect::<Result<_, _>>().map_err(error)?;
        let gone = all.iter().filter(|key| departed.contains(&key.sidecar));
        gone.into_iter().try_for_each(|key| calls.remove(key)).map_err(error)
    }

    fn free(&mut self, stack: &'static str, number: u32) -> Result<(), Error> {
        let mut free: Stack<_, u32> = self.map_mut(stack)?;
        free.push(number, 0).map_err(|source| Error::map(stack, source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn departed(tenants: &mut Tenants, removed: &[u64]) -> Vec<SidecarId> {
        tenants.departed(|id, _| removed.contains(&id)).into_iter().collect()
    }

    #[test]
    fn a_sidecar_departs_once_its_removed_cgroup_is_left_and_read() {
        let mut tenants = Tenants::default();
        tenants.came(1, 10, Path::new("/a"));
        assert!(departed(&mut tenants, &[10]).is_empty());
        tenants.read();
        assert!(departed(&mut tenants, &[10]).is_empty(), "read before it was left");
        tenants.left(10);
        assert!(departed(&mut tenants, &[10]).is_empty() && tenants.has_unread(), "not read since it was left");
        tenants.read();
        assert!(!tenants.has_unread());
        assert!(departed(&mut tenants, &[]).is_empty(), "the cgroup is there");
        assert_eq!(departed(&mut tenants, &[10]), [1]);
        assert!(departed(&mut tenants, &[10]).is_empty(), "and only once");
    }

    #[test]
    fn whoever_is_counted_elsewhere_too_stays() {
        let mut tenants = Tenants::default();
        tenants.came(1, 10, Path::new("/a"));
        tenants.came(2, 10, Path::new("/a"));
        tenants.came(1, 20, Path::new("/b"));
        tenants.left(10);
        tenants.read();
        assert_eq!(departed(&mut tenants, &[10]), [2]);
        tenants.left(20);
        tenants.read();
        assert_eq!(departed(&mut tenants, &[10, 20]), [1]);
    }

    #[test]
    fn a_cgroup_that_is_observed_again_is_not_over() {
        let mut tenants = Tenants::default();
        tenants.came(1, 10, Path::new("/a"));
        tenants.left(10);
        tenants.read();
        tenants.came(3, 10, Path::new("/a"));
        assert!(departed(&mut tenants, &[10]).is_empty());
    }

    #[test]
    fn a_removed_directory_is_told_from_one_that_is_there() {
        let directory = std::env::temp_dir();
        let inode = fs::metadata(&directory).expect("it is there").ino();
        assert!(!is_removed(inode, &directory));
        assert!(is_removed(inode + 1, &directory));
        assert!(is_removed(inode, &directory.join("no-such-cgroup")));
    }
}
