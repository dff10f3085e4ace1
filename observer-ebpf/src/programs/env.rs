//! Environment of the protocol engine in the kernel: one recorder for all programs, and a source of bytes for each kind of
//! hook.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock, bpf_sock_ops},
    helpers::generated::{bpf_get_socket_cookie, bpf_skb_load_bytes},
};
use observer_common::{Caller, CallerId, Direction, OpenRequest, Security, TraceKey, health::Counter};
use observer_proto::{
    Connection, FinishedRequest, atomic,
    caller::CallerText,
    env::{ByteSource, CallerStore, Pool, Recorder, Runtime, Step, TraceStore},
    flow::{BufferHandle, FILL, Flow, Source},
    hpack::LargeTable,
    http1,
    http2::{self, H2Stream, Http2, MoreStreams, StreamKey, StreamSource, StreamStore},
    reassembly::{HandshakeData, LEASE_NS},
    trace::{self, LineTable, TraceTable, TraceText},
};

use super::{
    bpf_loop::repeat,
    context::{length_within, read, socket_of},
    maps, pairing, reassembly, record,
};

/// Steps that are called without a loop of the kernel's: more than nearly every packet takes.
const DIRECT_STEPS: u32 = 12;

/// Environment with a source `S` of bytes or sockets.
pub(super) struct Kernel<S>(pub(super) S);

/// No source.
pub(super) struct NoSource;

/// A packet.
pub(super) struct Packet(pub(super) *mut __sk_buff);

/// The event of a connection, without a packet.
pub(super) struct Event(pub(super) *mut bpf_sock_ops);

/// Handshake data, read at the event of its connection.
pub(super) struct FirstData {
    pub(super) ops: *mut bpf_sock_ops,
    pub(super) data: *const HandshakeData,
}

impl FirstData {
    #[inline(always)]
    fn buffer(&self) -> BufferHandle {
        // SAFETY: a map's element, which never moves.
        unsafe { core::ptr::read_volatile(&raw const (*self.data).buffer) }
    }
}

/// A source that belongs to a socket.
pub(super) trait HasSocket {
    fn socket(&self) -> Option<*mut bpf_sock>;
    /// Returns the socket's cookie, or 0.
    fn cookie(&self) -> u64;
}

impl HasSocket for NoSource {
    #[inline(always)]
    fn socket(&self) -> Option<*mut bpf_sock> {
        None
    }
    #[inline(always)]
    fn cookie(&self) -> u64 {
        0
    }
}

impl HasSocket for Packet {
    #[inline(always)]
    fn socket(&self) -> Option<*mut bpf_sock> {
        let sk = read!(self.0, __bindgen_anon_2.sk);
        if sk.is_null() { None } else { Some(sk) }
    }
    #[inline(always)]
    fn cookie(&self) -> u64 {
        // SAFETY: the context is valid.
        unsafe { bpf_get_socket_cookie(self.0.cast()) }
    }
}

impl HasSocket for Event {
    #[inline(always)]
    fn socket(&self) -> Option<*mut bpf_sock> {
        socket_of(self.0)
    }
    #[inline(always)]
    fn cookie(&self) -> u64 {
        // SAFETY: the context is valid.
        unsafe { bpf_get_socket_cookie(self.0.cast()) }
    }
}

impl HasSocket for FirstData {
    #[inline(always)]
    fn socket(&self) -> Option<*mut bpf_sock> {
        socket_of(self.ops)
    }
    #[inline(always)]
    fn cookie(&self) -> u64 {
        // SAFETY: the context is valid.
        unsafe { bpf_get_socket_cookie(self.ops.cast()) }
    }
}

impl<S> Runtime for Kernel<S> {
    #[inline(always)]
    fn repeat(&mut self, max: u32, mut step: impl FnMut(&mut Self, u32) -> Step) -> bool {
        repeat(max, |number| step(self, number))
    }
}

impl<S: HasSocket> Recorder for Kernel<S> {
    #[inline(always)]
    fn now(&mut self) -> u64 {
        record::now()
    }
    #[inline(always)]
    fn count(&mut self, counter: Counter, by: u64) {
        maps::count(counter as u32, by);
    }
    #[inline(always)]
    fn count_by_number(&mut self, counter: u32, by: u32) {
        maps::count(counter, by.into());
    }
    #[inline(always)]
    fn record_request(&mut self, c: &mut Connection, direction: Direction) {
        let slot = record::request(c, direction);
        if trace::is_on() && c.flows[direction].finished.trace.is_some() {
            let request = &raw const c.flows[direction].finished;
            record::sampled(c, self.0.cookie(), request, slot);
        }
    }
    #[inline(always)]
    fn record_batch(&mut self, c: &mut Connection, request: &FinishedRequest, times: u32, microseconds: u64) {
        let slot = record::requests(c, request, times, microseconds);
        if trace::is_on() && request.trace.is_some() {
            record::sampled(c, self.0.cookie(), request, slot);
        }
    }
    #[inline(always)]
    fn record_opened(&mut self, c: &mut Connection) {
        let caller = pairing::tcp_caller(c, self);
        record::tcp(c, caller, record::OPENED, 1);
    }
    #[inline(always)]
    fn record_closed(&mut self, c: &mut Connection) {
        let caller = pairing::tcp_caller(c, self);
        record::tcp(c, caller, record::CLOSED, 1);
    }
    #[inline(always)]
    fn record_bytes(&mut self, c: &mut Connection, direction: Direction, bytes: u64) {
        let caller = pairing::tcp_caller(c, self);
        record::tcp(c, caller, direction as u32, bytes);
    }
    #[inline(always)]
    fn client_security(&mut self, c: &mut Connection) -> Security {
        record::client_security(c)
    }
}

impl<S> Pool for Kernel<S> {
    #[inline(always)]
    fn is_valid(&mut self, flow: &Flow) -> bool {
        reassembly::is_valid(flow.buffer)
    }
    #[inline(always)]
    fn free(&mut self, flow: &mut Flow) {
        reassembly::free_of(flow);
    }
}

impl<S: HasSocket> CallerStore for Kernel<S> {
    #[inline(always)]
    fn caller_text(&mut self) -> *mut CallerText {
        self.0.socket().map_or(core::ptr::null_mut(), maps::caller_text)
    }
    #[inline(always)]
    fn intern(&mut self, caller: &mut Caller, hash: u64) -> CallerId {
        maps::intern(caller, hash)
    }
}

impl<S: HasSocket> TraceStore for Kernel<S> {
    #[inline(always)]
    fn trace_text(&mut self) -> *mut TraceText {
        self.0.socket().map_or(core::ptr::null_mut(), maps::trace_text)
    }
    #[inline(always)]
    fn trace_table(&mut self) -> *mut TraceTable {
        self.0.socket().map_or(core::ptr::null_mut(), maps::trace_table)
    }
    #[inline(always)]
    fn reads_lines(&mut self) -> bool {
        maps::reads_lines()
    }
    #[inline(always)]
    fn line_table(&mut self) -> *mut LineTable {
        self.0.socket().map_or(core::ptr::null_mut(), maps::line_table)
    }
    #[inline(always)]
    fn keep_trace(&mut self, number: u32, request: &OpenRequest) -> bool {
        maps::keep_trace(&TraceKey { cookie: self.0.cookie(), number, padding: 0 }, request)
    }
}

impl ByteSource for Kernel<Packet> {
    #[inline(always)]
    fn step_http1(&mut self, c: &mut Connection, direction: Direction) -> Step {
        let step = match direction {
            Direction::Request => step_request_h1,
            Direction::Response => step_response_h1,
        };
        progress(step(self.0.0, c))
    }
    /// The first steps are called directly. The kernel's loop calls through a pointer and a function in between, which on
    /// processors with mitigations for indirect branches and returns costs as much as a step.
    #[inline(always)]
    fn take_steps(&mut self, max: u32, mut step: impl FnMut(&mut Self) -> Step) -> bool {
        let mut taken = 0;
        while taken < DIRECT_STEPS {
            if step(self) == Step::Done {
                return true;
            }
            taken += 1;
        }
        self.repeat(max, |env, _| step(env))
    }
    #[inline(always)]
    fn alloc(&mut self) -> BufferHandle {
        reassembly::alloc(0, LEASE_NS)
    }
    #[inline(always)]
    fn store(&mut self, flow: &mut Flow, at: u32, offset: u32, length: u32) -> bool {
        reassembly::store(self.0.0, flow.buffer, at, offset, length)
    }
    #[inline(always)]
    fn load(&mut self, flow: &mut Flow, offset: u32, length: u32, at: u32) -> bool {
        if atomic::load(&flow.source.0) != Source::PACKET.0 {
            return reassembly::load(flow, flow.buffer, offset, at);
        }
        let window = flow.window.as_mut_ptr().cast::<u8>();
        let at = at as usize & 127;
        let Some(length) = length_within(length, FILL) else { return false };
        // SAFETY: `at` is below 128 and `length` at most 256; the window has 400 bytes.
        unsafe { bpf_skb_load_bytes(self.0.0.cast(), offset, window.add(at).cast(), length) == 0 }
    }
}

impl ByteSource for Kernel<FirstData> {
    #[inline(always)]
    fn step_http1(&mut self, c: &mut Connection, direction: Direction) -> Step {
        match direction {
            Direction::Request => progress(step_first_data(self.0.ops, self.0.data, c)),
            Direction::Response => Step::Done,
        }
    }
    #[inline(always)]
    fn alloc(&mut self) -> BufferHandle {
        reassembly::extend_lease(self.0.buffer());
        self.0.buffer()
    }
    /// The data is in the buffer already, at its beginning.
    #[inline(always)]
    fn store(&mut self, flow: &mut Flow, at: u32, _: u32, _: u32) -> bool {
        flow.buffer_seq = flow.buffer_seq.wrapping_add(at);
        flow.buffer == self.0.buffer()
    }
    /// Segments that another CPU has buffered are in a buffer of their own.
    #[inline(always)]
    fn load(&mut self, flow: &mut Flow, offset: u32, _: u32, at: u32) -> bool {
        let is_buffered = atomic::load(&flow.source.0) != Source::PACKET.0;
        let buffer = if is_buffered { flow.buffer } else { self.0.buffer() };
        reassembly::load(flow, buffer, offset, at)
    }
}

impl<S: HasSocket> StreamStore for Kernel<S> {
    #[inline(always)]
    fn more_streams(&mut self, create: bool) -> *mut MoreStreams {
        self.0.socket().map_or(core::ptr::null_mut(), |sk| maps::more_streams(sk, create))
    }
    #[inline(always)]
    fn mapped_stream(&mut self, key: &StreamKey) -> *mut H2Stream {
        maps::stream(key)
    }
    #[inline(always)]
    fn insert_stream(&mut self, key: &StreamKey, stream: &H2Stream) -> bool {
        maps::insert_stream(key, stream)
    }
    #[inline(always)]
    fn remove_stream(&mut self, key: &StreamKey) {
        maps::remove_stream(key);
    }
    #[inline(always)]
    fn large_table(&mut self, direction: Direction) -> *mut LargeTable {
        self.0.socket().map_or(core::ptr::null_mut(), |sk| maps::large_table(sk, direction))
    }
}

impl StreamSource for Kernel<Packet> {
    #[inline(always)]
    fn step(&mut self, c: &mut Connection, h: &mut Http2, direction: Direction) -> Step {
        let step = match direction {
            Direction::Request => step_request_h2,
            Direction::Response => step_response_h2,
        };
        progress(step(self.0.0, c, h))
    }
}

impl StreamSource for Kernel<FirstData> {}

#[inline(always)]
fn progress(more: u32) -> Step {
    if more == 0 { Step::Done } else { Step::More }
}

/// Takes one step through what a client sends; returns 0 at its end. Global, so that the verifier checks it on its own, as
/// all below.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn step_request_h2(skb: *mut __sk_buff, c: *mut Connection, h: *mut Http2) -> u32 {
    step_h2(skb, c, h, Direction::Request)
}

/// Takes one step through what a server sends.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn step_response_h2(skb: *mut __sk_buff, c: *mut Connection, h: *mut Http2) -> u32 {
    step_h2(skb, c, h, Direction::Response)
}

#[inline(always)]
fn step_h2(skb: *mut __sk_buff, c: *mut Connection, h: *mut Http2, direction: Direction) -> u32 {
    // SAFETY: null or storage of the packet's socket.
    let (Some(c), Some(h)) = (unsafe { (c.as_mut(), h.as_mut()) }) else { return 0 };
    u32::from(http2::step(c, h, &mut Kernel(Packet(skb)), direction) == Step::More)
}

/// Takes one step through what a client of HTTP/1 sends.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn step_request_h1(skb: *mut __sk_buff, c: *mut Connection) -> u32 {
    step_h1(Packet(skb), c, Direction::Request)
}

/// Takes one step through what a server of HTTP/1 sends.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn step_response_h1(skb: *mut __sk_buff, c: *mut Connection) -> u32 {
    step_h1(Packet(skb), c, Direction::Response)
}

/// Takes one step through what a client of HTTP/1 has sent with the handshake.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn step_first_data(ops: *mut bpf_sock_ops, data: *const HandshakeData, c: *mut Connection) -> u32 {
    if data.is_null() { 0 } else { step_h1(FirstData { ops, data }, c, Direction::Request) }
}

#[inline(always)]
fn step_h1<S>(source: S, c: *mut Connection, direction: Direction) -> u32
where
    Kernel<S>: ByteSource,
{
    // SAFETY: null or storage of the source's socket.
    let Some(c) = (unsafe { c.as_mut() }) else { return 0 };
    u32::from(http1::step(c, &mut Kernel(source), direction) == Step::More)
}
