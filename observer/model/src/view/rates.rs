//! Rates of counters that are not of Istio's families, over the last readings of each.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

/// Maximum number of counters whose rates are known.
pub const MAX_COUNTERS: usize = 4_096;
/// How far back a rate reaches. Endpoints are scraped every ten seconds or so.
const WINDOW: Duration = Duration::from_mins(1);
/// Minimum distance of two values that are kept.
const STEP: Duration = Duration::from_secs(5);

/// The last values of counters.
#[derive(Debug, Default)]
pub struct Rates {
    counters: HashMap<String, Counter>,
}

#[derive(Debug, Default)]
struct Counter {
    values: VecDeque<(Duration, f64)>,
    newest: (Duration, f64),
}

impl Rates {
    /// Records a value.
    pub(super) fn record(&mut self, at: Duration, name: &str, labels: &str, value: f64) {
        let key = key(name, labels);
        if self.counters.len() >= MAX_COUNTERS && !self.counters.contains_key(&key) {
            return;
        }
        let counter = self.counters.entry(key).or_default();
        // A restart begins anew.
        if value < counter.newest.1 {
            counter.values.clear();
        }
        counter.newest = (at, value);
        if counter.values.back().is_none_or(|(last, _)| at.saturating_sub(*last) >= STEP) {
            counter.values.push_back((at, value));
        }
        while counter.values.get(1).is_some_and(|(next, _)| at.saturating_sub(*next) >= WINDOW) {
            counter.values.pop_front();
        }
    }

    /// Ends a round: forgets counters that were not in it.
    pub(super) fn end(&mut self, at: Duration) {
        self.counters.retain(|_, counter| counter.newest.0 == at);
    }

    /// Returns the increase per second; `None` if it is not known yet.
    pub(super) fn get(&self, name: &str, labels: &str) -> Option<f64> {
        let Counter { values, newest } = self.counters.get(&key(name, labels))?;
        let (oldest_at, oldest) = values.front()?;
        let elapsed = newest.0.checked_sub(*oldest_at).filter(|elapsed| !elapsed.is_zero())?;
        Some((newest.1 - oldest).max(0.0) / elapsed.as_secs_f64())
    }
}

fn key(name: &str, labels: &str) -> String {
    format!("{name}{{{labels}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_over_a_minute_at_most_and_begins_anew_with_its_counter() {
        let mut rates = Rates::default();
        let at = Duration::from_secs;
        assert_eq!(rates.get("a", ""), None);
        rates.record(at(0), "a", "", 100.0);
        assert_eq!(rates.get("a", ""), None, "no time has passed");
        for second in 1..=120 {
            rates.record(at(second), "a", "", 100.0 + if second > 60 { 2.0 * (second as f64 - 60.0) } else { 0.0 });
        }
        assert_eq!(rates.get("a", ""), Some(2.0), "what was before the last minute does not count");
        rates.record(at(121), "a", "", 1.0);
        assert_eq!(rates.get("a", ""), None);
        rates.record(at(123), "a", "", 7.0);
        assert_eq!(rates.get("a", ""), Some(3.0));
        rates.end(at(124));
        assert_eq!(rates.get("a", ""), None, "it is gone");
    }
}
