//! Histogram of delays.

use std::time::Duration;

/// Upper bounds, as text and in microseconds; longer delays count under `+Inf` only.
const BOUNDS: [(&str, u64); 10] = [
    ("0.001", 1_000),
    ("0.0025", 2_500),
    ("0.005", 5_000),
    ("0.01", 10_000),
    ("0.025", 25_000),
    ("0.05", 50_000),
    ("0.1", 100_000),
    ("0.25", 250_000),
    ("0.5", 500_000),
    ("1.0", 1_000_000),
];

/// Delays by size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DelayHistogram {
    /// Not cumulative; the last one is unbounded.
    counts: [u64; BOUNDS.len() + 1],
    sum: Duration,
}

impl DelayHistogram {
    /// Records one delay.
    pub fn record(&mut self, delay: Duration) {
        let within = |(_, bound): &(&str, u64)| delay <= Duration::from_micros(*bound);
        self.counts[BOUNDS.iter().position(within).unwrap_or(BOUNDS.len())] += 1;
        self.sum += delay;
    }

    /// Returns upper bounds in seconds and the number of delays up to each.
    pub fn buckets(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let bounds = BOUNDS.iter().map(|(le, _)| *le).chain(["+Inf"]);
        bounds.zip(self.counts).scan(0, |so_far, (le, count)| {
            *so_far += count;
            Some((le, *so_far))
        })
    }

    /// Returns the number of delays.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Returns their sum in seconds.
    #[must_use]
    pub fn sum(&self) -> f64 {
        self.sum.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_falls_into_every_bucket_that_it_does_not_exceed() {
        let mut delay = DelayHistogram::default();
        for microseconds in [1_000, 1_001, 50_000, 3_000_000] {
            delay.record(Duration::from_micros(microseconds));
        }
        let buckets: Vec<_> = delay.buckets().collect();
        assert_eq!(buckets.first(), Some(&("0.001", 1)));
        let of = |le| buckets.iter().find(|own| own.0 == le).unwrap().1;
        assert_eq!((of("0.0025"), of("0.025"), of("0.05"), of("1.0"), of("+Inf")), (2, 2, 3, 3, 4));
        assert_eq!((delay.count(), delay.sum()), (4, 3.052_001));
    }

    #[test]
    fn bounds_are_what_they_are_printed_as() {
        for (text, microseconds) in BOUNDS {
            let seconds: f64 = text.parse().unwrap();
            assert_eq!(Duration::from_secs_f64(seconds), Duration::from_micros(microseconds));
        }
    }
}
