//! Lock of a direction, which two CPUs can receive packets of at once.

use observer_proto::{atomic, env::Step, flow::Flow};

use super::bpf_loop::repeat;

/// Tries to lock a direction: some fifteen milliseconds, since a virtual CPU can be stopped for that long. The kernel's own
/// socket lock waits without a limit. Only segments with new bytes that TCP will accept get here, and the holder never
/// waits: a wait lasts no longer than the reading of one packet, unless the CPU is stopped.
pub(super) const MAX_TRIES: u32 = 1 << 20;

/// Locks a direction for this CPU; returns whether it could.
#[inline(always)]
pub(super) fn lock(flow: &mut Flow) -> bool {
    atomic::compare_exchange(&mut flow.locked, 0, 1) || wait(flow)
}

#[inline(never)]
fn wait(flow: &mut Flow) -> bool {
    repeat(MAX_TRIES, |_| if atomic::compare_exchange(&mut flow.locked, 0, 1) { Step::Done } else { Step::More })
}

/// Unlocks it.
#[inline(always)]
pub(super) fn unlock(flow: &mut Flow) {
    atomic::store(&mut flow.locked, 0);
}
