//! Chance, for what many nodes must not do at the same moment.

use std::hash::{BuildHasher, Hasher, RandomState};

/// A number in 0 to 1 that differs between processes and calls.
#[expect(clippy::cast_precision_loss, reason = "a chance needs no more than 53 bits")]
#[must_use]
pub fn chance() -> f64 {
    RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64
}
