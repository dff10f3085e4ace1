//! The kernel's side of a connection, played by the fuzz targets: packets in, findings out.

use std::{collections::HashMap, ptr::null_mut};

use observer_common::{Caller, CallerId, Direction, OpenRequest, Security, health::Counter};
use observer_proto::{
    ConnLeg, Connection, FinishedRequest,
    caller::{self, CallerText},
    connection::flags::SEQ_KNOWN,
    env::{ByteSource, CallerStore, Pool, Recorder, Runtime, Step, TraceStore},
    flow::{BufferHandle, FILL, Flow, Source, WINDOW},
    hpack::{LARGE_TABLE, LargeTable},
    http2::{H2Stream, MoreStreams, StreamKey, StreamSource, StreamStore},
    reassembly::BufferPool,
    trace::{LineTable, TraceTable, TraceText},
};

/// Streams that have room in the map; few, so that it gets full.
const MAP_CAPACITY: usize = 8;

/// A connection as the programs first see it: all zero but the leg, the process known.
pub fn connection(leg: ConnLeg) -> Box<Connection> {
    // SAFETY: integers and arrays of integers, for which all zero is valid.
    let mut connection: Box<Connection> = Box::new(unsafe { std::mem::zeroed() });
    connection.leg = leg;
    connection.sidecar = 1;
    connection.flags = SEQ_KNOWN;
    connection
}

/// One packet's bytes, and the connection's records.
#[derive(Default)]
pub struct Packet {
    /// The packet with its headers; the caller gives the payload's offset.
    pub bytes: Vec<u8>,
    /// A clock that advances by one at every read.
    pub now: u64,
    /// Requests counted.
    pub finished: Vec<FinishedRequest>,
    /// Connections opened and closed.
    pub connections: (u64, u64),
    /// TCP payload bytes of both directions.
    pub transferred: [u64; 2],
    /// Steps taken through packets.
    pub steps: u64,
    /// Health counters that were raised.
    pub counts: Vec<(Counter, u64)>,
    /// HTTP/2 streams that have no room in the connection, boxed so that each stays in place.
    pub streams: HashMap<StreamKey, Box<H2Stream>>,
    /// Streams beyond those of the connection's own, once there are some.
    pub more: Option<Box<MoreStreams>>,
    /// Large HPACK tables, once they are wanted.
    pub tables: Option<Box<[LargeTable; 2]>>,
    /// What the socket's storage keeps of its callers, once there is one.
    pub caller_text: Option<Box<CallerText>>,
    /// Texts of callers, each at its id less one.
    pub callers: Vec<Vec<u8>>,
    /// What the socket's storage keeps of its trace contexts, and of their insertions, once there is one.
    pub trace_text: Option<Box<TraceText>>,
    /// See above.
    pub trace_table: Option<Box<TraceTable>>,
    /// What the socket's storage keeps of paths by insertion.
    pub line_table: Option<Box<LineTable>>,
    /// Requests that were kept, by their numbers.
    pub traces: HashMap<u32, OpenRequest>,
    /// Reassembly buffers.
    pub buffers: BufferPool,
}

impl Recorder for Packet {
    fn now(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    fn count(&mut self, counter: Counter, by: u64) {
        self.counts.push((counter, by));
    }

    fn count_by_number(&mut self, counter: u32, by: u32) {
        self.counts.push((Counter::ALL[counter as usize], by.into()));
    }

    fn record_request(&mut self, c: &mut Connection, direction: Direction) {
        self.finished.push(c.flows[direction].finished);
    }

    fn record_batch(&mut self, _: &mut Connection, request: &FinishedRequest, times: u32, _: u64) {
        assert!(times > 0, "nothing is counted");
        self.finished.extend((0..times).map(|_| *request));
    }

    fn record_opened(&mut self, _: &mut Connection) {
        self.connections.0 += 1;
    }

    fn record_closed(&mut self, _: &mut Connection) {
        self.connections.1 += 1;
    }

    fn record_bytes(&mut self, _: &mut Connection, direction: Direction, bytes: u64) {
        self.transferred[direction] += bytes;
    }

    fn client_security(&mut self, _: &mut Connection) -> Security {
        Security::UNKNOWN
    }
}

impl Pool for Packet {
    fn is_valid(&mut self, flow: &Flow) -> bool {
        self.buffers.get(flow.buffer).is_some()
    }

    fn free(&mut self, flow: &mut Flow) {
        self.buffers.free(std::mem::take(&mut flow.buffer));
    }
}

impl Runtime for Packet {
    fn repeat(&mut self, max: u32, mut step: impl FnMut(&mut Self, u32) -> Step) -> bool {
        (0..max).any(|number| {
            self.steps += 1;
            step(self, number) == Step::Done
        })
    }
}

impl CallerStore for Packet {
    fn caller_text(&mut self) -> *mut CallerText {
        // SAFETY: integers only, for which all zero is valid.
        &raw mut **self.caller_text.get_or_insert_with(|| Box::new(unsafe { std::mem::zeroed() }))
    }

    fn intern(&mut self, caller: &mut Caller, _: u64) -> CallerId {
        let text = &caller.text[..caller.length as usize];
        assert!(!text.is_empty() && !text.ends_with(b" ") && !text.starts_with(b" "), "not an element: {text:?}");
        let known = self.callers.iter().position(|known| known == text);
        let number = known.unwrap_or_else(|| {
            self.callers.push(text.to_vec());
            self.callers.len() - 1
        });
        CallerId(u16::try_from(number + 1).unwrap_or(caller::NO_ROOM.0).min(caller::NO_ROOM.0))
    }
}

impl TraceStore for Packet {
    fn trace_text(&mut self) -> *mut TraceText {
        // SAFETY: integers only, for which all zero is valid.
        &raw mut **self.trace_text.get_or_insert_with(|| Box::new(unsafe { std::mem::zeroed() }))
    }

    fn trace_table(&mut self) -> *mut TraceTable {
        // SAFETY: as above.
        &raw mut **self.trace_table.get_or_insert_with(|| Box::new(unsafe { std::mem::zeroed() }))
    }

    fn reads_lines(&mut self) -> bool {
        true
    }

    fn line_table(&mut self) -> *mut LineTable {
        // SAFETY: as above.
        &raw mut **self.line_table.get_or_insert_with(|| Box::new(unsafe { std::mem::zeroed() }))
    }

    fn keep_trace(&mut self, number: u32, request: &OpenRequest) -> bool {
        let context = &request.exemplar;
        let is_context = context.span_id != 0 && context.trace_id != [0; 2];
        assert!(is_context && context.at_ns == 0, "not a context: {context:?}");
        self.traces.insert(number, *request);
        true
    }
}

impl ByteSource for Packet {
    fn alloc(&mut self) -> BufferHandle {
        self.buffers.alloc(self.now)
    }

    fn store(&mut self, flow: &mut Flow, at: u32, offset: u32, length: u32) -> bool {
        self.buffers.store(flow.buffer, at, &self.bytes[offset as usize..(offset + length) as usize])
    }

    fn load(&mut self, flow: &mut Flow, offset: u32, length: u32, at: u32) -> bool {
        assert!((1..=FILL).contains(&length), "{length} bytes cannot be loaded at once");
        assert!(at + length <= WINDOW, "{length} bytes at {at} overflow the window");
        let bytes = if flow.source == Source::PACKET {
            self.bytes.get(offset as usize..(offset + length) as usize)
        } else {
            self.buffers.get(flow.buffer).and_then(|buffer| buffer.read(offset)?.get(..length as usize))
        };
        let Some(bytes) = bytes else {
            panic!("bytes {offset} to {} of a packet of {} or of a buffer are read", offset + length, self.bytes.len());
        };
        for (index, byte) in bytes.iter().enumerate() {
            let index = at as usize + index;
            let shift = index % 8 * 8;
            let word = &mut flow.window[index / 8];
            *word = *word & !(0xff << shift) | u64::from(*byte) << shift;
        }
        true
    }
}

impl StreamSource for Packet {}

impl StreamStore for Packet {
    fn more_streams(&mut self, create: bool) -> *mut MoreStreams {
        if self.more.is_none() && create {
            // SAFETY: integers only, for which all zero is valid.
            self.more = Some(Box::new(unsafe { std::mem::zeroed() }));
        }
        self.more.as_deref_mut().map_or(null_mut(), |more| &raw mut *more)
    }

    fn mapped_stream(&mut self, key: &StreamKey) -> *mut H2Stream {
        self.streams.get_mut(key).map_or(null_mut(), |stream| &raw mut **stream)
    }

    fn insert_stream(&mut self, key: &StreamKey, stream: &H2Stream) -> bool {
        let has_room = self.streams.len() < MAP_CAPACITY;
        if has_room {
            assert!(self.streams.insert(*key, Box::new(*stream)).is_none(), "an open stream is begun again");
        }
        has_room
    }

    fn remove_stream(&mut self, key: &StreamKey) {
        assert!(self.streams.remove(key).is_some(), "a missing stream is removed");
    }

    fn large_table(&mut self, direction: Direction) -> *mut LargeTable {
        let tables = self.tables.get_or_insert_with(|| Box::new([LargeTable { entries: [0; LARGE_TABLE] }; 2]));
        &raw mut tables[direction]
    }
}
