//! Increases of counters since the last push, for receivers of deltas.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, RandomState},
    time::{Duration, SystemTime},
};

use crate::catalogue::Origin;

/// How long the total of an absent series is kept: it may return undiminished.
const RETENTION: Duration = Duration::from_hours(24);

/// Most series kept, about 8 MiB: names and labels of scraped series are untrusted.
const MAX_SERIES: usize = 200_000;

/// The limit of series is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoRoom;

/// A total that grows until it restarts from 0.
pub(super) trait Total: Clone {
    /// Returns the increase since an older total; `None` if it restarted.
    fn since(&self, older: &Self) -> Option<Self>;
}

impl Total for f64 {
    fn since(&self, older: &Self) -> Option<Self> {
        (older <= self).then(|| self - older)
    }
}

/// Last totals by series.
#[derive(Debug)]
pub(super) struct Deltas<T = f64> {
    /// By a hash of name and labels: 100,000 series collide once in four billion runs.
    totals: HashMap<u64, (T, SystemTime)>,
    hasher: RandomState,
    pushed: Option<SystemTime>,
    began: Option<SystemTime>,
}

/// An increase, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Increase<T> {
    pub(super) by: T,
    pub(super) since: SystemTime,
}

impl<T> Default for Deltas<T> {
    fn default() -> Self {
        Self { totals: HashMap::new(), hasher: RandomState::new(), pushed: None, began: None }
    }
}

impl<T: Total> Deltas<T> {
    /// Returns the increase of a counter since the last push; `None` if it is not known. `created` is when it was 0.
    ///
    /// # Errors
    /// It is new and the limit is reached.
    pub(super) fn increase(
        &mut self,
        series: impl Hash,
        total: T,
        origin: Origin,
        created: SystemTime,
        now: SystemTime,
    ) -> Result<Option<Increase<T>>, NoRoom> {
        let (series, created_at) = (self.hasher.hash_one(series), created);
        if self.totals.len() >= MAX_SERIES && !self.totals.contains_key(&series) {
            return Err(NoRoom);
        }
        let last = self.totals.insert(series, (total.clone(), now));
        // Counters of unknown age are as old as this process at most.
        let created = created.max(self.began.unwrap_or(created)).min(now);
        let whole = |by: T| Increase { by, since: self.pushed.map_or(created, |pushed| pushed.max(created)) };
        Ok(match last {
            Some((last, pushed)) => {
                let increase = total.since(&last).map(|by| Increase { by, since: pushed });
                Some(increase.unwrap_or_else(|| whole(total)))
            }
            // The observer's own counters start with it: absent ones were 0.
            None if origin == Origin::Observer => Some(whole(total)),
            None => self.is_new(origin, created_at).then(|| whole(total)),
        })
    }

    /// Returns whether what a counter has at its first push was counted since the last one, or since this process started:
    /// the rest was sent by an earlier one.
    fn is_new(&self, origin: Origin, created: SystemTime) -> bool {
        match self.pushed {
            None => origin == Origin::Kernel && self.began.is_none_or(|began| created >= began),
            Some(pushed) => created >= pushed,
        }
    }

    /// Sets when this process started to observe.
    pub(super) fn begin(&mut self, began: SystemTime) {
        self.began = Some(began);
    }

    /// Ends a push, and drops series that have been absent for long.
    pub(super) fn end(&mut self, now: SystemTime) {
        self.pushed = Some(now);
        // At the limit, absent series are dropped at once.
        let is_full = self.totals.len() >= MAX_SERIES;
        let is_kept = |seen: SystemTime| {
            seen == now || !is_full && now.duration_since(seen).is_ok_and(|unseen| unseen < RETENTION)
        };
        self.totals.retain(|_, (_, seen)| is_kept(*seen));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn increases_are_told_from_the_last_report() {
        let mut deltas = Deltas::default();
        let mut rounds = Vec::new();
        for (now, total) in [(10, 5.0), (20, 7.0), (30, 7.0), (40, 2.0)] {
            let increase = deltas.increase(("a", "", ""), total, Origin::Kernel, at(0), at(now)).unwrap().unwrap();
            rounds.push((increase.by, increase.since));
            deltas.end(at(now));
        }
        assert_eq!(rounds, [(5.0, at(0)), (2.0, at(10)), (0.0, at(20)), (2.0, at(30))]);
    }

    #[test]
    fn a_first_total_counts_only_if_it_began_within_the_observers_time() {
        let mut deltas = Deltas::default();
        let mut first = |name, origin, created, now| {
            let increase = deltas.increase((name, "", ""), 9.0, origin, at(created), at(now)).unwrap();
            increase.map(|increase| increase.by)
        };
        assert_eq!(first("a", Origin::Istiod, 0, 10), None);
        assert_eq!(first("b", Origin::Kernel, 0, 10), Some(9.0));
        deltas.begin(at(5));
        assert_eq!(deltas.increase(("b", "x", ""), 9.0, Origin::Kernel, at(4), at(10)), Ok(None));
        deltas.end(at(10));
        let mut later = |name, origin, created| {
            let increase = deltas.increase((name, "", ""), 9.0, origin, at(created), at(20)).unwrap();
            increase.map(|increase| increase.by)
        };
        assert_eq!(later("c", Origin::Istiod, 10), Some(9.0));
        assert_eq!(later("d", Origin::Istiod, 5), None);
        assert_eq!(later("e", Origin::Kernel, 5), None, "it may come back with its past");
        assert_eq!(later("f", Origin::Observer, 5), Some(9.0));
    }

    #[test]
    fn a_series_is_remembered_for_a_day() {
        let mut deltas = Deltas::default();
        deltas.increase(("a", "", ""), 5.0, Origin::Kernel, at(0), at(0)).unwrap();
        deltas.end(at(0));
        deltas.end(at(86_399));
        let increase = deltas.increase(("a", "", ""), 6.0, Origin::Kernel, at(0), at(86_399)).unwrap();
        assert_eq!(increase, Some(Increase { by: 1.0, since: at(0) }));
        deltas.end(at(2 * 86_400));
        assert!(deltas.totals.is_empty());
    }

    #[test]
    fn series_that_others_choose_take_bounded_memory() {
        let mut deltas = Deltas::default();
        let mut report = |now, series: std::ops::Range<usize>| {
            let mut take =
                |number| deltas.increase(("a", &format!("{number}"), ""), 1.0, Origin::Kernel, at(0), at(now));
            let refused = series.filter(|number| take(*number).is_err()).count();
            deltas.end(at(now));
            (refused, deltas.totals.len())
        };
        assert_eq!(report(10, 0..MAX_SERIES + 5), (5, MAX_SERIES));
        assert_eq!(report(20, 5..MAX_SERIES + 5), (5, MAX_SERIES - 5), "what is gone makes room");
        assert_eq!(report(30, 5..MAX_SERIES + 5), (0, MAX_SERIES));
    }
}
