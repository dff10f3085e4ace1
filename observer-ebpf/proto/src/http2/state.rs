//! Parser state of an HTTP/2 connection.

use crate::{
    hpack::HpackDecoder,
    option::{OptionU32, Peer},
};

use super::{batch::Batch, frame::FrameKind, table::StreamTable};

/// Position in the frames of a direction.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameState(u32);

impl FrameState {
    /// At a frame header.
    pub const HEADER: Self = Self(0);
    /// Between a frame header and its header block.
    pub(super) const PROLOGUE: Self = Self(1);
    /// In a header block.
    pub(super) const HEADER_BLOCK: Self = Self(2);
    /// In the data of a gRPC stream.
    pub(super) const MESSAGES: Self = Self(3);
    /// At the last stream id in GOAWAY.
    pub(super) const GOAWAY_ID: Self = Self(4);
    /// Behind the payload.
    pub(super) const END: Self = Self(5);
    /// Desynchronised: looking for a segment that begins with a frame.
    pub(super) const DESYNCED: Self = Self(6);
    /// Resynchronising: following frames from the beginning of a segment.
    pub(super) const RESYNCING: Self = Self(7);
    /// The frame has ended its stream.
    pub(super) const STREAM_END: Self = Self(8);
    /// An ended stream is to be added to the batch.
    pub(super) const BATCH: Self = Self(9);
}

/// What became of the open streams when a direction lost its position.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Abandoned(u32);

impl Abandoned {
    /// Nothing: the position is known.
    pub(super) const NO: Self = Self(0);
    /// They cannot be followed any further.
    pub(super) const DESYNC: Self = Self(1);
    /// The protocol was violated.
    pub(super) const VIOLATION: Self = Self(2);
}

/// The frames of one direction.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Frames {
    /// Position.
    pub state: FrameState,
    /// Type of the frame.
    pub kind: FrameKind,
    /// Its flags; those of HEADERS while its header block goes on in CONTINUATION.
    pub flags: u32,
    /// Its stream.
    pub stream_id: u32,
    /// Bytes of its payload neither read nor to be skipped, without the padding.
    pub left: u32,
    /// Padding behind the payload.
    pub padding: u32,
    /// The stream whose header block is not complete, or 0.
    pub block_stream: u32,
    /// Packet offset of the first frame followed while resynchronising.
    pub resync_offset: u32,
    /// Number of frames followed while resynchronising.
    pub resync_frames: u32,
    /// [`observer_common::health::Counter`] of the reason for a desync.
    pub failure: OptionU32,
    /// Set by a desync until the open streams are closed.
    pub abandoned: Abandoned,
    /// Last stream id of GOAWAY, until the streams above it are closed.
    pub goaway: OptionU32,
    /// The peer that reset the stream which the frame has ended; none if it ended by itself.
    pub ended_by: Peer,
    /// 1 once the first bytes of this direction were handled.
    pub is_started: u32,
    /// What the frame adds to its stream's wire bytes once it is whole.
    pub wire_bytes: u64,
    /// Time of the first byte of an unfinished frame header, or 0; nanoseconds of `CLOCK_MONOTONIC`.
    pub began_ns: u64,
    /// Time of the packet being read, nanoseconds of `CLOCK_MONOTONIC`.
    pub now_ns: u64,
    /// Decoder of the header blocks.
    pub decoder: HpackDecoder,
}

/// State of a connection that speaks HTTP/2, beside its [`crate::connection::Connection`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Http2 {
    /// Both directions.
    pub frames: [Frames; 2],
    /// Open streams.
    pub table: StreamTable,
    /// Requests to be counted, by the direction that ended them.
    pub batches: [Batch; 2],
    /// Requests to be counted at the close, which may come while both directions are read.
    pub close_batch: Batch,
}

const _: () = assert!(size_of::<Http2>() <= 3_952);
