//! The snapshots that clients are reading: their number is bounded, since each holds whole scraped pages.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::model::{Snapshot, view::Finding};

/// Maximum age of a snapshot for another scrape.
pub const SNAPSHOT_MAX_AGE: Duration = Duration::from_millis(100);

/// Where snapshots come from.
pub trait Source: Send + Sync + 'static {
    /// Takes a snapshot now, or returns one that was under way. Cells, of native histograms, cost reading them.
    fn snapshot(&self, with_cells: bool) -> impl Future<Output = Arc<Snapshot>> + Send;

    /// Takes a snapshot with cells for somebody who looks now and will again soon, until [`Source::stop_watching`]. The
    /// findings are those of the node.
    fn watch(&self) -> impl Future<Output = (Arc<Snapshot>, Vec<Finding>)> + Send;

    /// Ends what [`Source::watch`] costs between two snapshots.
    fn stop_watching(&self) -> impl Future<Output = ()> + Send;
}

/// Bounds of snapshots and of their age.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Maximum number of snapshots that clients read at the same time.
    pub snapshots: usize,
    /// Minimum age of a snapshot before its readers are cut off for a newer one.
    pub grace: Duration,
}

/// Takes snapshots of a source for scrapes.
pub(super) struct SnapshotCache<S> {
    source: Arc<S>,
    bounds: Bounds,
    /// The newest one, and whether it has cells.
    newest: Option<(Instant, bool, Lease)>,
    /// Snapshots that are being read, the oldest first.
    live: Vec<Live>,
}

/// A snapshot, until it is revoked.
#[derive(Clone)]
pub(super) struct Lease {
    pub(super) snapshot: Arc<Snapshot>,
    /// Closed when the snapshot is revoked.
    pub(super) revoked: watch::Receiver<()>,
}

struct Live {
    at: Instant,
    snapshot: Weak<Snapshot>,
    revoke: watch::Sender<()>,
}

impl<S: Source> SnapshotCache<S> {
    pub(super) fn new(source: Arc<S>, bounds: Bounds) -> Self {
        Self { source, bounds, newest: None, live: Vec::new() }
    }

    /// Returns a fresh snapshot, unless too many others are being read within their grace: then the newest of these.
    pub(super) async fn read(&mut self, with_cells: bool) -> Lease {
        if let Some((at, has_cells, newest)) = &self.newest
            && at.elapsed() < SNAPSHOT_MAX_AGE
            && (*has_cells || !with_cells)
        {
            return newest.clone();
        }
        // A snapshot that is too old need not stay in memory.
        self.newest = None;
        self.live.retain(|live| live.snapshot.strong_count() > 0);
        if self.live.len() >= self.bounds.snapshots {
            let newest = self.live.last();
            let shared = newest.and_then(|live| Some((live.snapshot.upgrade()?, live.revoke.subscribe())));
            match (self.live.first(), shared) {
                (Some(oldest), Some((snapshot, revoked))) if oldest.at.elapsed() < self.bounds.grace => {
                    return Lease { snapshot, revoked };
                }
                _ => drop(self.live.remove(0)),
            }
        }
        let (snapshot, at) = (self.source.snapshot(with_cells).await, Instant::now());
        let (revoke, revoked) = watch::channel(());
        self.live.push(Live { at, snapshot: Arc::downgrade(&snapshot), revoke });
        let lease = Lease { snapshot, revoked };
        self.newest = Some((at, with_cells, lease.clone()));
        lease
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixture;

    /// Each snapshot is another one.
    struct Fresh;

    impl Source for Fresh {
        async fn snapshot(&self, _with_cells: bool) -> Arc<Snapshot> {
            fixture::snapshots()[0].clone()
        }

        async fn watch(&self) -> (Arc<Snapshot>, Vec<Finding>) {
            (self.snapshot(true).await, Vec::new())
        }

        async fn stop_watching(&self) {}
    }

    fn wait() {
        std::thread::sleep(SNAPSHOT_MAX_AGE);
    }

    #[tokio::test]
    async fn slow_readers_share_few_snapshots_and_make_room_after_their_grace() {
        let grace = Duration::from_secs(1);
        let mut readings = SnapshotCache::new(Arc::new(Fresh), Bounds { snapshots: 2, grace });
        let first = readings.read(false).await;
        assert!(Arc::ptr_eq(&first.snapshot, &readings.read(false).await.snapshot), "fresh enough");
        wait();
        let second = readings.read(false).await;
        assert!(!Arc::ptr_eq(&first.snapshot, &second.snapshot));
        wait();
        let third = readings.read(false).await;
        assert!(Arc::ptr_eq(&third.snapshot, &second.snapshot), "no third one");
        assert!(first.revoked.has_changed().is_ok(), "nobody has to go yet");
        std::thread::sleep(grace);
        let fourth = readings.read(false).await;
        assert!(!Arc::ptr_eq(&fourth.snapshot, &second.snapshot));
        assert!(first.revoked.has_changed().is_err(), "the oldest goes");
        assert!(second.revoked.has_changed().is_ok());
    }

    #[tokio::test]
    async fn a_snapshot_without_cells_is_none_for_a_reader_that_wants_them() {
        let mut readings = SnapshotCache::new(Arc::new(Fresh), Bounds { snapshots: 4, grace: Duration::from_mins(1) });
        let without = readings.read(false).await.snapshot;
        let with = readings.read(true).await.snapshot;
        assert!(!Arc::ptr_eq(&without, &with) && Arc::ptr_eq(&with, &readings.read(false).await.snapshot));
    }

    #[tokio::test]
    async fn what_nobody_reads_any_more_takes_no_room() {
        let mut readings = SnapshotCache::new(Arc::new(Fresh), Bounds { snapshots: 1, grace: Duration::from_mins(1) });
        let first = Arc::downgrade(&readings.read(false).await.snapshot);
        wait();
        let second = readings.read(false).await;
        assert!(first.upgrade().is_none() && second.revoked.has_changed().is_ok());
    }
}
