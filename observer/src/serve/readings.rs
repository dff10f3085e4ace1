//! The figures that clients are being given: few at once, whatever the clients do, since each holds whole scraped pages.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::Source;
use crate::model::Snapshot;

/// Figures younger than this are fresh enough for another scrape.
pub const FRESH: Duration = Duration::from_millis(100);

/// How many there may be at once, and how long their readers are left in peace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Snapshots that clients are reading at the same time.
    pub snapshots: usize,
    /// How old a snapshot is at least before its readers have to make room for a newer one.
    pub grace: Duration,
}

/// Reads the source for scrapes.
pub(super) struct Readings<S> {
    source: S,
    bounds: Bounds,
    newest: Option<(Instant, Reading)>,
    /// Those that are being read, the oldest first.
    live: Vec<Live>,
}

/// Figures, until they are taken back.
#[derive(Clone)]
pub(super) struct Reading {
    pub(super) snapshot: Arc<Snapshot>,
    /// Its other end is dropped when others need the room.
    pub(super) revoked: watch::Receiver<()>,
}

struct Live {
    at: Instant,
    snapshot: Weak<Snapshot>,
    revoke: watch::Sender<()>,
}

impl<S: Source> Readings<S> {
    pub(super) fn new(source: S, bounds: Bounds) -> Self {
        Self { source, bounds, newest: None, live: Vec::new() }
    }

    /// Figures for a scrape: fresh ones, unless too many others are being read; then the newest of these, which are younger
    /// than the grace.
    pub(super) fn read(&mut self) -> Reading {
        if let Some((at, newest)) = &self.newest
            && at.elapsed() < FRESH
        {
            return newest.clone();
        }
        // Figures that nobody may get again need not stay in memory.
        self.newest = None;
        self.live.retain(|live| live.snapshot.strong_count() > 0);
        if self.live.len() >= self.bounds.snapshots {
            let newest = self.live.last();
            let shared = newest.and_then(|live| Some((live.snapshot.upgrade()?, live.revoke.subscribe())));
            match (self.live.first(), shared) {
                (Some(oldest), Some((snapshot, revoked))) if oldest.at.elapsed() < self.bounds.grace => {
                    return Reading { snapshot, revoked };
                }
                _ => drop(self.live.remove(0)),
            }
        }
        let (snapshot, at) = (self.source.snapshot(), Instant::now());
        let (revoke, revoked) = watch::channel(());
        self.live.push(Live { at, snapshot: Arc::downgrade(&snapshot), revoke });
        let reading = Reading { snapshot, revoked };
        self.newest = Some((at, reading.clone()));
        reading
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixture;

    /// Each snapshot is another one.
    struct Fresh;

    impl Source for Fresh {
        fn snapshot(&self) -> Arc<Snapshot> {
            fixture::snapshots()[0].clone()
        }
    }

    fn wait() {
        std::thread::sleep(FRESH);
    }

    #[test]
    fn slow_readers_share_few_snapshots_and_make_room_after_their_grace() {
        let grace = Duration::from_secs(1);
        let mut readings = Readings::new(Fresh, Bounds { snapshots: 2, grace });
        let first = readings.read();
        assert!(Arc::ptr_eq(&first.snapshot, &readings.read().snapshot), "fresh enough");
        wait();
        let second = readings.read();
        assert!(!Arc::ptr_eq(&first.snapshot, &second.snapshot));
        wait();
        let third = readings.read();
        assert!(Arc::ptr_eq(&third.snapshot, &second.snapshot), "no third one");
        assert!(first.revoked.has_changed().is_ok(), "nobody has to go yet");
        std::thread::sleep(grace);
        let fourth = readings.read();
        assert!(!Arc::ptr_eq(&fourth.snapshot, &second.snapshot));
        assert!(first.revoked.has_changed().is_err(), "the oldest goes");
        assert!(second.revoked.has_changed().is_ok());
    }

    #[test]
    fn what_nobody_reads_any_more_takes_no_room() {
        let mut readings = Readings::new(Fresh, Bounds { snapshots: 1, grace: Duration::from_mins(1) });
        let first = Arc::downgrade(&readings.read().snapshot);
        wait();
        let second = readings.read();
        assert!(first.upgrade().is_none() && second.revoked.has_changed().is_ok());
    }
}
