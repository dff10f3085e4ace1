//! Frame headers (RFC 9113 section 4.1).

use crate::flow::Flow;

/// Type of a frame.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameKind(pub u32);

impl FrameKind {
    pub(super) const DATA: Self = Self(0);
    pub(super) const HEADERS: Self = Self(1);
    const PRIORITY: Self = Self(2);
    pub(super) const RST_STREAM: Self = Self(3);
    pub(super) const SETTINGS: Self = Self(4);
    pub(super) const PUSH_PROMISE: Self = Self(5);
    pub(super) const PING: Self = Self(6);
    pub(super) const GOAWAY: Self = Self(7);
    pub(super) const WINDOW_UPDATE: Self = Self(8);
    pub(super) const CONTINUATION: Self = Self(9);
}

pub(super) const END_STREAM: u32 = 1;
pub(super) const END_HEADERS: u32 = 4;
pub(super) const PADDED: u32 = 8;
pub(super) const HAS_PRIORITY: u32 = 0x20;

/// Bytes of a frame header.
pub(super) const HEADER_BYTES: u32 = 9;
/// Largest plausible frame: that of a peer which the proxy has not allowed a larger one (section 4.2).
pub(super) const MAX_PLAUSIBLE_FRAME: u32 = 1 << 14;

/// A frame header.
#[derive(Clone, Copy)]
pub(super) struct FrameHeader {
    pub(super) length: u32,
    pub(super) kind: FrameKind,
    pub(super) flags: u32,
    pub(super) stream_id: u32,
}

impl FrameHeader {
    /// Reads the header at the current line of the window.
    #[inline(always)]
    pub(super) fn read(flow: &Flow) -> Self {
        let word = flow.word(flow.line);
        let last = u64::from(flow.byte(flow.line.wrapping_add(8)));
        Self {
            length: ((word as u32).swap_bytes()) >> 8,
            kind: FrameKind((word >> 24) as u32 & 0xff),
            flags: (word >> 32) as u32 & 0xff,
            stream_id: (((word >> 40) | last << 24) as u32).swap_bytes() & 0x7fff_ffff,
        }
    }

    /// Returns whether a peer could send a frame with this header (section 6).
    #[inline(always)]
    pub(super) fn is_plausible(&self) -> bool {
        let &Self { length, kind, flags, stream_id } = self;
        let (on_stream, size, known) = match kind {
            // Nobody sends empty data without a reason, but zeros of a padding look like it.
            FrameKind::DATA => (true, length > 0 || flags & END_STREAM != 0, END_STREAM | PADDED),
            FrameKind::HEADERS => (true, length > 0, END_STREAM | END_HEADERS | PADDED | HAS_PRIORITY),
            FrameKind::PRIORITY => (true, length == 5, 0),
            FrameKind::RST_STREAM => (true, length == 4, 0),
            FrameKind::SETTINGS => (false, length.is_multiple_of(6), 1),
            FrameKind::PING => (false, length == 8, 1),
            FrameKind::GOAWAY => (false, length >= 8, 0),
            FrameKind::WINDOW_UPDATE => (stream_id != 0, length == 4, 0),
            FrameKind::CONTINUATION => (true, true, END_HEADERS),
            _ => return false,
        };
        size && length <= MAX_PLAUSIBLE_FRAME && (stream_id != 0) == on_stream && flags & !known == 0
    }
}
