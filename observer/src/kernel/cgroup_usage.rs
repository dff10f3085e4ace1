//! Tracks which sidecars are counted in which cgroup, until their map entries can be reclaimed: the sidecar's process has
//! ended, its cgroup is removed, no program is attached there, and the last values have been read.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::discovery::SidecarId;

/// The sidecars that are or were counted in each cgroup.
#[derive(Debug, Default)]
pub(super) struct CgroupUsage(BTreeMap<u64, Usage>);

#[derive(Debug)]
struct Usage {
    path: PathBuf,
    ids: BTreeSet<SidecarId>,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Programs are attached, or about to be.
    Attached,
    /// Nothing is attached any more.
    Detached,
    /// Nothing is attached, and the values were read after that.
    Read,
}

impl CgroupUsage {
    /// Records that a sidecar is counted in a cgroup.
    pub(super) fn attached(&mut self, id: SidecarId, cgroup_id: u64, path: &Path) {
        let new = || Usage { path: path.to_owned(), ids: BTreeSet::new(), phase: Phase::Attached };
        let cgroup = self.0.entry(cgroup_id).or_insert_with(new);
        cgroup.phase = Phase::Attached;
        cgroup.ids.insert(id);
    }

    /// Records that nothing is attached to a cgroup any more.
    pub(super) fn detached(&mut self, cgroup_id: u64) {
        if let Some(cgroup) = self.0.get_mut(&cgroup_id) {
            cgroup.phase = Phase::Detached;
        }
    }

    /// Records that all values were read.
    pub(super) fn read(&mut self) {
        self.0.values_mut().filter(|it| it.phase == Phase::Detached).for_each(|it| it.phase = Phase::Read);
    }

    /// Whether a cgroup was detached and its values not read since.
    pub(super) fn has_unread(&self) -> bool {
        self.0.values().any(|cgroup| cgroup.phase == Phase::Detached)
    }

    /// Removes the cgroups that can be reclaimed; returns the sidecars that were counted there and are nowhere else.
    pub(super) fn take_reclaimable(&mut self) -> BTreeSet<SidecarId> {
        self.take_reclaimable_where(is_removed)
    }

    fn take_reclaimable_where(&mut self, is_removed: impl Fn(u64, &Path) -> bool) -> BTreeSet<SidecarId> {
        let mut sidecars = BTreeSet::new();
        self.0.retain(|&cgroup_id, cgroup| {
            let over = cgroup.phase == Phase::Read && is_removed(cgroup_id, &cgroup.path);
            if over {
                sidecars.append(&mut cgroup.ids);
            }
            !over
        });
        for cgroup in self.0.values() {
            sidecars.retain(|id| !cgroup.ids.contains(id));
        }
        sidecars
    }
}

/// A cgroup's id is its directory's inode; a later directory of the same path has another.
fn is_removed(cgroup_id: u64, path: &Path) -> bool {
    match fs::metadata(path) {
        Ok(found) => found.ino() != cgroup_id,
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reclaimable(usage: &mut CgroupUsage, removed: &[u64]) -> Vec<SidecarId> {
        usage.take_reclaimable_where(|id, _| removed.contains(&id)).into_iter().collect()
    }

    #[test]
    fn a_sidecar_departs_once_its_removed_cgroup_is_left_and_read() {
        let mut usage = CgroupUsage::default();
        usage.attached(1, 10, Path::new("/a"));
        assert!(reclaimable(&mut usage, &[10]).is_empty());
        usage.read();
        assert!(reclaimable(&mut usage, &[10]).is_empty(), "read before it was detached");
        usage.detached(10);
        assert!(reclaimable(&mut usage, &[10]).is_empty() && usage.has_unread(), "not read since it was detached");
        usage.read();
        assert!(!usage.has_unread());
        assert!(reclaimable(&mut usage, &[]).is_empty(), "the cgroup is there");
        assert_eq!(reclaimable(&mut usage, &[10]), [1]);
        assert!(reclaimable(&mut usage, &[10]).is_empty(), "and only once");
    }

    #[test]
    fn whoever_is_counted_elsewhere_too_stays() {
        let mut usage = CgroupUsage::default();
        usage.attached(1, 10, Path::new("/a"));
        usage.attached(2, 10, Path::new("/a"));
        usage.attached(1, 20, Path::new("/b"));
        usage.detached(10);
        usage.read();
        assert_eq!(reclaimable(&mut usage, &[10]), [2]);
        usage.detached(20);
        usage.read();
        assert_eq!(reclaimable(&mut usage, &[10, 20]), [1]);
    }

    #[test]
    fn a_cgroup_that_is_observed_again_is_not_over() {
        let mut usage = CgroupUsage::default();
        usage.attached(1, 10, Path::new("/a"));
        usage.detached(10);
        usage.read();
        usage.attached(3, 10, Path::new("/a"));
        assert!(reclaimable(&mut usage, &[10]).is_empty());
    }

    #[test]
    fn a_removed_directory_is_recognised() {
        let directory = std::env::temp_dir();
        let inode = fs::metadata(&directory).expect("it is there").ino();
        assert!(!is_removed(inode, &directory));
        assert!(is_removed(inode + 1, &directory));
        assert!(is_removed(inode, &directory.join("no-such-cgroup")));
    }
}
