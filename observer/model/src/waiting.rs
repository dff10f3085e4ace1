//! Series that wait until the names of their ends are known.
//!
//! The kernel counts on meanwhile, so that waiting loses nothing: what a series counts in all rounds of a wait is ingested
//! together. A series that has waited in vain waits no more until nothing is pending.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use observer_common::SeriesKey;

/// How long a series waits before it is exposed without names.
const MAX_WAIT: Duration = Duration::from_secs(10);
/// Most rounds that are ingested together.
pub(crate) const MAX_ROUNDS: u64 = 128;

/// The series that wait.
#[derive(Debug)]
pub(crate) struct Waiting {
    /// Zero if nothing can be learned, or there is no later round.
    limit: Duration,
    series: HashMap<SeriesKey, Wait>,
    round: u64,
    now: SystemTime,
    previous: SystemTime,
}

#[derive(Debug)]
struct Wait {
    since: SystemTime,
    /// The round before, since which it counted.
    previous: SystemTime,
    first_round: u64,
    last_round: u64,
    /// Round in which it ended in vain.
    over: Option<u64>,
}

impl Waiting {
    pub(crate) fn new(now: SystemTime) -> Self {
        Self { limit: Duration::ZERO, series: HashMap::new(), round: 0, now, previous: now }
    }

    /// Lets series wait from now on.
    pub(crate) fn start(&mut self) {
        self.limit = MAX_WAIT;
    }

    /// Lets no series wait any more.
    pub(crate) fn stop(&mut self) {
        self.limit = Duration::ZERO;
    }

    /// Begins a round.
    pub(crate) fn begin(&mut self, now: SystemTime, previous: SystemTime) {
        (self.now, self.previous) = (now, previous);
        self.round += 1;
    }

    /// Ends a round in which the kernel was read: forgets series of which nothing was pending in it.
    pub(crate) fn end(&mut self) {
        self.series.retain(|_, wait| wait.last_round == self.round);
    }

    /// Returns whether nothing is pending of any series.
    pub(crate) fn is_empty(&self) -> bool {
        self.series.is_empty()
    }

    /// Returns whether a series waits for the next round.
    pub(crate) fn is_any_waiting(&self) -> bool {
        self.series.values().any(|wait| wait.over.is_none())
    }

    /// Returns since when series count what is not ingested yet, if any wait.
    pub(crate) fn earliest(&self) -> Option<SystemTime> {
        self.series.values().filter(|wait| wait.over.is_none()).map(|wait| wait.previous).min()
    }

    /// Returns in how many rounds a series counted what is ingested next, this one included.
    pub(crate) fn rounds(&self, key: &SeriesKey) -> u64 {
        let wait = self.series.get(key).filter(|wait| wait.over.is_none_or(|over| over == self.round));
        wait.map_or(0, |wait| self.round - wait.first_round) + 1
    }

    /// Returns whether a series has waited long enough.
    pub(crate) fn is_over(&self, key: &SeriesKey) -> bool {
        self.series.get(key).is_some_and(|wait| self.is_in_vain(wait))
    }

    /// Returns whether a series of which something is pending must wait for the next round.
    pub(crate) fn waits(&mut self, key: &SeriesKey) -> bool {
        if self.limit.is_zero() {
            return false;
        }
        let Self { now, previous, round, .. } = *self;
        let new = Wait { since: now, previous, first_round: round, last_round: round, over: None };
        let mut wait = self.series.remove(key).unwrap_or(new);
        wait.last_round = round;
        if wait.over.is_none() && self.is_in_vain(&wait) {
            wait.over = Some(round);
        }
        let waits = wait.over.is_none();
        self.series.insert(*key, wait);
        waits
    }

    fn is_in_vain(&self, wait: &Wait) -> bool {
        let waited = self.now.duration_since(wait.since).unwrap_or(self.limit);
        wait.over.is_some() || waited >= self.limit || self.round - wait.first_round >= MAX_ROUNDS - 1
    }
}
