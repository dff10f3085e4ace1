//! The clock of the programs.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Returns the time that the programs read, since the machine's start.
pub(super) fn programs_now() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32)
}
