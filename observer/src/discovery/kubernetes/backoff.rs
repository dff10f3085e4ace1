//! Pauses between attempts.

use std::time::Duration;

use super::ApiError;
use crate::system::jitter::jitter;

const FIRST: Duration = Duration::from_secs(1);
const MAX: Duration = Duration::from_secs(60);

/// Pauses that double with each failure, and have jitter, so that nodes do not ask in lockstep.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Forgets all failures.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Returns whether something has failed since the last success.
    pub(super) fn is_failing(&self) -> bool {
        self.failures > 0
    }

    /// Returns the pause after one more failure: at least what the API asks for.
    pub(super) fn after(&mut self, error: &ApiError) -> Duration {
        let doubled = FIRST.saturating_mul(1 << self.failures.min(6)).min(MAX);
        self.failures = self.failures.saturating_add(1);
        // What is forbidden or not there stays so for a while.
        let floor = match error {
            ApiError::Status(403 | 404, _) => MAX,
            _ => error.retry_after().unwrap_or_default(),
        };
        doubled.mul_f64(0.5 + jitter() / 2.0).max(floor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_minute_and_honour_what_is_asked_for() {
        let mut backoff = Backoff::default();
        for expected in [1, 2, 4, 8, 16, 32, 60, 60] {
            let pause = backoff.after(&ApiError::Timeout).as_secs_f64();
            assert!((f64::from(expected) / 2.0..=f64::from(expected)).contains(&pause), "{expected}: {pause}");
        }
        backoff.reset();
        let throttled = ApiError::Status(429, Some(Duration::from_secs(7)));
        assert_eq!(backoff.after(&throttled), Duration::from_secs(7));
        assert_eq!(backoff.after(&ApiError::Status(403, None)), MAX);
    }
}
