//! Increases of counters since the last report, for delta counters.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    time::{Duration, SystemTime},
};

use crate::model::catalogue::Origin;

/// How long a series that is not reported is remembered: it may come back with its whole past.
const MEMORY: Duration = Duration::from_hours(24);

/// The totals that increases are told from, by series.
#[derive(Debug, Default)]
pub(super) struct Deltas {
    /// By a hash of name and tags: at 100,000 series two of them meet once in four billion runs.
    totals: HashMap<u64, (f64, SystemTime)>,
    hasher: RandomState,
    reported: Option<SystemTime>,
    began: Option<SystemTime>,
}

impl Deltas {
    /// How much a counter grew since the last report; `None` if that cannot be known. `created` is when it was 0.
    pub(super) fn increase(
        &mut self,
        series: (&str, &str, &str),
        total: f64,
        origin: Origin,
        created: SystemTime,
        now: SystemTime,
    ) -> Option<f64> {
        let last = self.totals.insert(self.hasher.hash_one(series), (total, now));
        match last {
            Some((last, _)) if last <= total => Some(total - last),
            // It began anew.
            Some(_) => Some(total),
            // Figures of the observer's own begin with it; what is not there was 0.
            None if origin == Origin::Observer => Some(total),
            None => match self.reported {
                // What was counted before this process began is an earlier one's to report.
                None => (origin == Origin::Kernel && self.began.is_none_or(|began| created >= began)).then_some(total),
                Some(reported) => (created >= reported).then_some(total),
            },
        }
    }

    /// Says when this process began to observe.
    pub(super) fn begin(&mut self, began: SystemTime) {
        self.began = Some(began);
    }

    /// Ends a report, and forgets what has not been seen for long.
    pub(super) fn end(&mut self, now: SystemTime) {
        self.reported = Some(now);
        self.totals.retain(|_, (_, seen)| now.duration_since(*seen).is_ok_and(|unseen| unseen < MEMORY));
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
            rounds.push(deltas.increase(("a", "", ""), total, Origin::Kernel, at(0), at(now)));
            deltas.end(at(now));
        }
        assert_eq!(rounds, [Some(5.0), Some(2.0), Some(0.0), Some(2.0)]);
    }

    #[test]
    fn a_first_total_counts_only_if_it_began_within_the_observers_time() {
        let mut deltas = Deltas::default();
        let mut first = |name, origin, created, now| deltas.increase((name, "", ""), 9.0, origin, at(created), at(now));
        assert_eq!(first("a", Origin::Istiod, 0, 10), None);
        assert_eq!(first("b", Origin::Kernel, 0, 10), Some(9.0));
        deltas.begin(at(5));
        assert_eq!(deltas.increase(("b", "x", ""), 9.0, Origin::Kernel, at(4), at(10)), None);
        deltas.end(at(10));
        let mut later = |name, origin, created| deltas.increase((name, "", ""), 9.0, origin, at(created), at(20));
        assert_eq!(later("c", Origin::Istiod, 10), Some(9.0));
        assert_eq!(later("d", Origin::Istiod, 5), None);
        assert_eq!(later("e", Origin::Kernel, 5), None, "it may come back with its past");
        assert_eq!(later("f", Origin::Observer, 5), Some(9.0));
    }

    #[test]
    fn a_series_is_remembered_for_a_day() {
        let mut deltas = Deltas::default();
        deltas.increase(("a", "", ""), 5.0, Origin::Kernel, at(0), at(0));
        deltas.end(at(0));
        deltas.end(at(86_399));
        assert_eq!(deltas.increase(("a", "", ""), 6.0, Origin::Kernel, at(0), at(86_399)), Some(1.0));
        deltas.end(at(2 * 86_400));
        assert!(deltas.totals.is_empty());
    }
}
