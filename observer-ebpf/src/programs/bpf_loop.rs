//! Bounded loops, which the verifier checks once instead of unrolling them.

use aya_ebpf::helpers::generated::bpf_loop;
use core::ffi::c_void;
use observer_proto::env::Step;

use super::context::opaque;

struct LoopCtx<F> {
    step: F,
    is_done: u32,
}

/// Calls `step` with ascending numbers until it is done, at most `max` times; returns whether it was done.
#[inline(always)]
pub(super) fn repeat<F: FnMut(u32) -> Step>(max: u32, step: F) -> bool {
    unsafe extern "C" fn callback<F: FnMut(u32) -> Step>(number: u32, ctx: *mut LoopCtx<F>) -> i64 {
        // SAFETY: the pointer that `repeat` gave.
        let ctx = unsafe { &mut *ctx };
        // Where a global function says so, only the compiler knows that it is 0 or 1.
        let is_done = opaque(u32::from((ctx.step)(number) == Step::Done));
        ctx.is_done = is_done;
        i64::from(is_done != 0)
    }
    let mut ctx = LoopCtx { step, is_done: 0 };
    // SAFETY: the callback gets back the pointer given here.
    unsafe { bpf_loop(max, callback::<F> as *mut c_void, (&raw mut ctx).cast(), 0) };
    ctx.is_done != 0
}
