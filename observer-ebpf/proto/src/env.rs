//! Environment of the protocol engine: implemented by the eBPF programs, and by the tests.

use observer_common::{Caller, CallerId, Direction, OpenRequest, Security, health::Counter};

use crate::{
    caller::CallerText,
    connection::Connection,
    finished::FinishedRequest,
    flow::{BufferHandle, Flow},
    http1,
    trace::{LineTable, TraceTable, TraceText},
};

/// Progress of a state machine.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is more to do.
    More,
    /// Nothing is left to do, or nothing can be done now.
    Done,
}

/// Clock, counters, and the sink of finished requests.
pub trait Recorder {
    /// Returns the time, nanoseconds of `CLOCK_MONOTONIC`.
    fn now(&mut self) -> u64;
    /// Adds to a health counter.
    fn count(&mut self, counter: Counter, by: u64);
    /// Adds to a health counter, by its number.
    fn count_by_number(&mut self, counter: u32, by: u32);
    /// Counts the request in a direction's [`Flow::finished`].
    fn record_request(&mut self, c: &mut Connection, direction: Direction);
    /// Counts `times` requests that differ only in their durations, whose sum is given.
    fn record_batch(&mut self, c: &mut Connection, request: &FinishedRequest, times: u32, microseconds: u64);
    /// Counts a TCP connection as opened.
    fn record_opened(&mut self, c: &mut Connection);
    /// Counts a TCP connection as closed.
    fn record_closed(&mut self, c: &mut Connection);
    /// Adds to a connection's TCP bytes.
    fn record_bytes(&mut self, c: &mut Connection, direction: Direction, bytes: u64);
    /// Returns the security of the clients that are connected to the application behind this destination leg.
    fn client_security(&mut self, c: &mut Connection) -> Security;
}

/// Pool of reassembly buffers.
pub trait Pool {
    /// Returns whether the flow's buffer is still leased to it.
    fn is_valid(&mut self, flow: &Flow) -> bool;
    /// Frees the flow's buffer.
    fn free(&mut self, flow: &mut Flow);
}

/// Bounded loops.
pub trait Runtime {
    /// Calls `step` with ascending numbers until it is done, at most `max` times; returns whether it was done.
    fn repeat(&mut self, max: u32, step: impl FnMut(&mut Self, u32) -> Step) -> bool;
}

/// Callers known so far.
pub trait CallerStore {
    /// Returns the connection's [`CallerText`], created if there is none; null if there is no room. Valid as long as the
    /// program runs.
    fn caller_text(&mut self) -> *mut CallerText;
    /// Returns the id of a caller by the hash of its kind and text, allocated if it has none;
    /// [`CallerId::UNREADABLE`] if another text has that hash.
    fn intern(&mut self, caller: &mut Caller, hash: u64) -> CallerId;
}

/// Trace contexts of open requests.
pub trait TraceStore {
    /// Returns the connection's [`TraceText`], created if there is none; null if there is no room. Valid as long as the
    /// program runs.
    fn trace_text(&mut self) -> *mut TraceText;
    /// Returns the connection's [`TraceTable`], likewise.
    fn trace_table(&mut self) -> *mut TraceTable;
    /// Returns whether it is kept what requests ask for.
    fn reads_lines(&mut self) -> bool;
    /// Returns the connection's [`LineTable`], likewise.
    fn line_table(&mut self) -> *mut LineTable;
    /// Keeps a request by its number in the connection; returns whether there was room.
    fn keep_trace(&mut self, number: u32, request: &OpenRequest) -> bool;
}

/// Source of a segment's bytes.
pub trait ByteSource: Recorder + Pool + Runtime + CallerStore + TraceStore + Sized {
    /// Takes one step through a packet of HTTP/1. The programs put a function in between that the verifier checks on its
    /// own.
    #[inline(always)]
    fn step_http1(&mut self, c: &mut Connection, direction: Direction) -> Step {
        http1::step(c, self, direction)
    }
    /// Takes steps until one is the last, at most `max`; returns whether one was.
    #[inline(always)]
    fn take_steps(&mut self, max: u32, mut step: impl FnMut(&mut Self) -> Step) -> bool {
        self.repeat(max, |env, _| step(env))
    }
    /// Allocates a reassembly buffer; none if all are in use.
    fn alloc(&mut self) -> BufferHandle;
    /// Copies bytes `[offset, offset + length)` of the packet to byte `at` of the flow's buffer; returns whether it could.
    fn store(&mut self, flow: &mut Flow, at: u32, offset: u32, length: u32) -> bool;
    /// Copies bytes `[offset, offset + length)` of the flow's source to byte `at` of its window; `length` is 1 to
    /// [`crate::flow::FILL`]. Returns whether it could.
    fn load(&mut self, flow: &mut Flow, offset: u32, length: u32, at: u32) -> bool;
}
