//! Environment of the protocol engine in the kernel: one recorder for all programs, and a source of bytes for each kind of
//! hook.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock, bpf_sock_ops},
    helpers::generated::bpf_skb_load_bytes,
};
use observer_common::{Direction, Security, health::Counter};
use observer_proto::{
    Connection, FinishedRequest, atomic,
    env::{ByteSource, Pool, Recorder, Runtime, Step},
    flow::{BufferHandle, FILL, Flow, Source},
    hpack::LargeTable,
    http2::{H2Stream, MoreStreams, StreamKey, StreamStore},
    reassembly::{HandshakeData, LEASE_NS},
};

use super::{
    bpf_loop::repeat,
    context::{length_within, read, socket_of},
    maps, reassembly, record,
};

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
}

impl HasSocket for Packet {
    #[inline(always)]
    fn socket(&self) -> Option<*mut bpf_sock> {
        let sk = read!(self.0, __bindgen_anon_2.sk);
        if sk.is_null() { None } else { Some(sk) }
    }
}

impl HasSocket for Event {
    #[inline(always)]
    fn socket(&self) -> Option<*mut bpf_sock> {
        socket_of(self.0)
    }
}

impl HasSocket for FirstData {
    #[inline(always)]
    fn socket(&self) -> Option<*mut bpf_sock> {
        socket_of(self.ops)
    }
}

impl<S> Runtime for Kernel<S> {
    #[inline(always)]
    fn repeat(&mut self, max: u32, mut step: impl FnMut(&mut Self, u32) -> Step) -> bool {
        repeat(max, |number| step(self, number))
    }
}

impl<S> Recorder for Kernel<S> {
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
        record::request(c, direction);
    }
    #[inline(always)]
    fn record_batch(&mut self, c: &mut Connection, request: &FinishedRequest, times: u32, microseconds: u64) {
        record::requests(c, request, times, microseconds);
    }
    #[inline(always)]
    fn record_opened(&mut self, c: &mut Connection) {
        record::tcp(c, 1, 0, Direction::Request, 0);
    }
    #[inline(always)]
    fn record_closed(&mut self, c: &mut Connection) {
        record::tcp(c, 0, 1, Direction::Request, 0);
    }
    #[inline(always)]
    fn record_bytes(&mut self, c: &mut Connection, direction: Direction, bytes: u64) {
        record::tcp(c, 0, 0, direction, bytes);
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

impl ByteSource for Kernel<Packet> {
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
