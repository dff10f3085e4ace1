//! Jitter, so that nodes do not act in lockstep.

use std::hash::{BuildHasher, Hasher, RandomState};

/// Returns a number from 0 to 1 that differs between processes and calls.
#[expect(clippy::cast_precision_loss, reason = "53 bits are enough for jitter")]
#[must_use]
pub fn jitter() -> f64 {
    RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64
}
