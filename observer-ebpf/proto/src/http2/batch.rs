//! Batches of finished requests that differ only in their durations, so that many are counted at once.

use observer_common::{
    Direction::{Request, Response},
    histogram,
};

use crate::{
    atomic,
    connection::Connection,
    env::Recorder,
    finished::FinishedRequest,
    option::{OptionU32, Peer},
    trace,
};

use super::stream::{H2Stream, state::FINISHED};

/// Reason for which streams are closed that did not end by themselves.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CloseReason {
    /// Only streams with a larger id are closed.
    pub above: u32,
    /// [`observer_common::health::Counter`] that counts them instead of the Istio families; if none, they are requests
    /// that ended early.
    pub uncounted: OptionU32,
    /// Number of streams closed uncounted.
    pub streams: u32,
    /// Peer that ended them.
    pub by: Peer,
    /// Time, nanoseconds of `CLOCK_MONOTONIC`.
    pub at_ns: u64,
}

/// Finished requests that are counted together.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    /// One of them.
    pub request: FinishedRequest,
    /// The next one.
    pub next: FinishedRequest,
    /// The next one's stream.
    pub stream: H2Stream,
    /// Number of requests.
    pub times: u32,
    /// Not 0 if they are to be counted before anything else; atomic.
    pub due: u32,
    /// Exposed bucket and sub-bucket of their durations.
    pub buckets: u32,
    /// Those of the next one's.
    pub next_buckets: u32,
    /// Sum of their durations, microseconds.
    pub microseconds: u64,
    /// Reason for closing the streams.
    pub close_reason: CloseReason,
}

impl Batch {
    /// Adds the next request; returns false if it differs from those in the batch, which are due first.
    #[inline(always)]
    pub(super) fn push(&mut self) -> bool {
        if self.times != 0 && !self.matches_next() {
            self.due = 1;
            return false;
        }
        if self.times == 0 {
            self.request = self.next;
            self.buckets = self.next_buckets;
            self.microseconds = 0;
        }
        self.microseconds += self.next.duration_ns / 1_000;
        self.times = self.times.wrapping_add(1);
        true
    }

    /// Makes the stream the next request.
    #[inline(always)]
    pub(super) fn finish_stream(&mut self, c: &Connection, is_early: bool) {
        finish_stream(self, c, u32::from(is_early));
    }

    #[inline(always)]
    fn set_next(&mut self, c: &Connection, is_early: bool) {
        let finished = self.stream.finished(c, is_early, self.close_reason.by, self.close_reason.at_ns);
        finished.write(&mut self.next);
        let microseconds = self.next.duration_ns / 1_000;
        let (page, sub_bucket) = histogram::sub_bucket(microseconds);
        self.next_buckets = page << 16 | sub_bucket << 8 | histogram::bucket(microseconds / 1_000);
    }

    /// Counts the requests and empties the batch.
    #[inline(always)]
    pub(super) fn flush<E: Recorder>(&mut self, c: &mut Connection, env: &mut E) {
        if atomic::load(&self.times) != 0 {
            env.record_batch(c, &self.request, self.times, self.microseconds);
        }
        self.times = 0;
        self.due = 0;
    }

    /// Returns whether the next request differs from those in the batch only in its duration, within the same buckets.
    ///
    /// A sampled one is counted alone. Accumulates differences instead of comparing, since each comparison would be a branch.
    #[inline(always)]
    fn matches_next(&self) -> bool {
        let (a, b) = (&self.request, &self.next);
        let differences = (a.bytes[Request] ^ b.bytes[Request])
            | (a.bytes[Response] ^ b.bytes[Response])
            | (a.grpc_status ^ b.grpc_status)
            | u64::from(a.messages[Request] ^ b.messages[Request])
            | u64::from(a.messages[Response] ^ b.messages[Response])
            | u64::from(a.status ^ b.status)
            | u64::from(a.outcome ^ b.outcome)
            | u64::from(a.protocol.0 ^ b.protocol.0)
            | u64::from(a.security.0 ^ b.security.0)
            | u64::from(a.caller.0 ^ b.caller.0)
            | u64::from(self.buckets ^ self.next_buckets)
            | if trace::is_on() { u64::from(a.trace.bits() | b.trace.bits()) } else { 0 };
        differences == 0
    }

    /// Closes a stream for the batch's reason; returns whether its entry is to be freed, before [`Batch::push_closed`].
    #[inline(always)]
    pub(super) fn close(&mut self, stream: &mut H2Stream) -> bool {
        let id = atomic::load(&stream.id);
        let reason = &mut self.close_reason;
        if id == 0 || id <= reason.above || atomic::fetch_or(&mut stream.state, FINISHED) & FINISHED != 0 {
            return false;
        }
        if reason.uncounted.is_some() {
            reason.streams = reason.streams.wrapping_add(1);
        } else {
            self.stream = *stream;
            self.due = 1;
        }
        true
    }

    /// Adds the closed stream to the batch, if it is to be counted.
    #[inline(always)]
    pub(super) fn push_closed<E: Recorder>(&mut self, c: &mut Connection, env: &mut E) {
        if atomic::load(&self.due) == 0 {
            return;
        }
        self.due = 0;
        self.finish_stream(c, true);
        if !self.push() {
            self.flush(c, env);
            self.push();
        }
    }

    /// Counts what is left once all streams are closed.
    #[inline(always)]
    pub(super) fn end_closing<E: Recorder>(&mut self, c: &mut Connection, env: &mut E) {
        if let Some(counter) = self.close_reason.uncounted.get() {
            env.count_by_number(counter, self.close_reason.streams);
        }
        self.flush(c, env);
    }
}

/// Makes the batch's stream its next request. Global, so that the verifier checks it on its own.
#[cfg_attr(target_arch = "bpf", unsafe(no_mangle))]
#[inline(never)]
extern "C" fn finish_stream(batch: *mut Batch, c: *const Connection, is_early: u32) -> u32 {
    // SAFETY: null or in a socket's storage.
    if let (Some(batch), Some(c)) = unsafe { (batch.as_mut(), c.as_ref()) } {
        batch.set_next(c, is_early != 0);
    }
    0
}
