//! One HTTP/2 stream: a request and its response.

use observer_common::{CallerId, GRPC_NONE, GRPC_UNKNOWN, Protocol, STATUS_UNKNOWN, Security, health::Counter};

use crate::{
    atomic,
    connection::{ConnLeg, Connection},
    finished::FinishedRequest,
    hpack::{self, HpackDecoder},
    option::{OptionU32, Peer},
    trace,
};
use observer_common::Direction::{self, Request, Response};

use super::frame::{END_STREAM, FrameKind};

/// Bits of [`H2Stream::state`].
pub mod state {
    /// The request is complete.
    pub const REQUEST_DONE: u32 = 1;
    /// The response is complete.
    pub const RESPONSE_DONE: u32 = 1 << 1;
    /// Counted.
    pub const FINISHED: u32 = 1 << 2;
    /// gRPC, by the request's content type.
    pub const IS_GRPC: u32 = 1 << 3;
    /// Begun on a connection whose header tables are not known from their beginning.
    pub(crate) const IS_BLIND: u32 = 1 << 4;
    /// An upgrade by extended CONNECT, which the proxy logs as one of HTTP/1.
    pub(crate) const IS_UPGRADE: u32 = 1 << 5;
    /// The request's header block is read.
    pub(crate) const HAS_REQUEST_HEADER: u32 = 1 << 6;
    /// The request's content type could not be read.
    pub(crate) const MAY_BE_GRPC: u32 = 1 << 7;
    /// Position of the security.
    pub(crate) const SECURITY_SHIFT: u32 = 8;
    /// gRPC, as only the response revealed.
    pub(crate) const IS_GRPC_BY_RESPONSE: u32 = 1 << 10;
    /// Not gRPC, as only the response revealed.
    pub(crate) const NOT_GRPC_BY_RESPONSE: u32 = 1 << 11;
    /// Begun while the responses were desynchronised, so that its response may have begun unseen.
    pub(crate) const MAY_BE_ANSWERED: u32 = 1 << 12;
    /// The proxy refuses a header block with so many fields, and resets the stream.
    pub(crate) const HAS_TOO_MANY_FIELDS: u32 = 1 << 13;
    /// Sampled: its trace context is kept.
    pub(crate) const HAS_TRACE: u32 = 1 << 14;
    /// Position of the caller.
    pub(crate) const CALLER_SHIFT: u32 = 16;
}

use state::{
    CALLER_SHIFT, HAS_REQUEST_HEADER, HAS_TRACE, IS_BLIND, IS_GRPC, IS_GRPC_BY_RESPONSE, IS_UPGRADE, MAY_BE_ANSWERED,
    MAY_BE_GRPC, NOT_GRPC_BY_RESPONSE, SECURITY_SHIFT,
};

/// The gRPC status that a proxy gives in place of an application that did not answer.
const GRPC_UNAVAILABLE: u64 = 14;

/// Status of a response, none in zeroed storage; and whether there is a gRPC status.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResponseStatus(u16);

impl ResponseStatus {
    /// The status plus one.
    const MASK: u16 = (1 << 10) - 1;
    /// In place of a status plus one: it could not be read.
    const UNREADABLE: u16 = 1_001;
    /// Bit: there is a gRPC status.
    const HAS_GRPC: u16 = 1 << 10;
    /// Bit: there is, or may be, a gRPC status that could not be read.
    const LACKS_GRPC: u16 = 1 << 11;

    /// Returns whether no response header was read.
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.0 & Self::MASK == 0
    }

    /// Returns whether the status could not be read.
    #[inline(always)]
    const fn is_unreadable(self) -> bool {
        self.0 & Self::MASK == Self::UNREADABLE
    }

    /// Returns the status, 0 for none, [`STATUS_UNKNOWN`] for an unreadable one.
    #[inline(always)]
    const fn value(self) -> u16 {
        match self.0 & Self::MASK {
            0 => 0,
            Self::UNREADABLE => STATUS_UNKNOWN,
            status => status - 1,
        }
    }

    #[inline(always)]
    pub(super) const fn set(&mut self, status: u16) {
        self.0 = self.0 & !Self::MASK | (status + 1);
    }

    #[inline(always)]
    const fn set_unreadable(&mut self) {
        self.0 = self.0 & !Self::MASK | Self::UNREADABLE;
    }
}

/// A stream: one request and its response.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct H2Stream {
    /// Stream id, or 0 where there is no stream; atomic.
    pub id: u32,
    /// Bits of [`state`]; atomic.
    pub state: u32,
    /// First byte of the first HEADERS frame, nanoseconds of `CLOCK_MONOTONIC`.
    pub start_ns: u64,
    /// Wire bytes, as Envoy's byte meter counts them, by direction.
    pub bytes: [u64; 2],
    /// gRPC messages begun, by direction.
    pub messages: [u32; 2],
    /// Remaining bytes of the current gRPC message, or its length as far as read, by direction.
    pub message_left: [u32; 2],
    /// gRPC status, if there is one; written by the response direction.
    pub grpc_status: u32,
    /// Status; written by the response direction.
    pub status: ResponseStatus,
    /// Bytes read of the current message's prefix, by direction; 0 in the message or before one.
    pub prefix_read: [u8; 2],
}

const _: () = assert!(size_of::<H2Stream>() == 56);

impl H2Stream {
    /// Returns a stream that begins now.
    #[inline(always)]
    pub(super) const fn new(id: u32, state: u32, start_ns: u64) -> Self {
        Self {
            id,
            state,
            start_ns,
            bytes: [0; 2],
            messages: [0; 2],
            message_left: [0; 2],
            grpc_status: 0,
            status: ResponseStatus(0),
            prefix_read: [0; 2],
        }
    }

    /// Returns whether a direction carries gRPC messages, known from the first one on.
    #[inline(always)]
    pub(super) fn has_messages(&self, direction: Direction) -> bool {
        let state = atomic::load(&self.state);
        state & IS_GRPC != 0 && direction == Request
            || state & (IS_GRPC | IS_GRPC_BY_RESPONSE) != 0 && direction == Response && !self.status.is_none()
    }

    /// Returns whether the proxy ends the connection that it receives this frame on, since it violates the protocol.
    #[inline(never)]
    pub(super) fn is_violated_by(
        &self,
        decoder: &HpackDecoder,
        direction: Direction,
        kind: FrameKind,
        flags: u32,
    ) -> bool {
        if kind == FrameKind::DATA {
            let unanswered = self.status.is_none() && atomic::load(&self.state) & MAY_BE_ANSWERED == 0;
            return direction == Response && unanswered;
        }
        if decoder.flags & hpack::REFUSED != 0 {
            return true;
        }
        if direction == Request {
            return false;
        }
        let (ends, status) = (flags & END_STREAM != 0, decoder.status);
        if !self.status.is_none() {
            // Trailers; those of a response whose beginning could not be read may be its beginning.
            return !self.status.is_unreadable() && (status != hpack::NONE || !ends);
        }
        if status == hpack::NONE {
            return decoder.flags & hpack::UNRESOLVED == 0 && atomic::load(&self.state) & MAY_BE_ANSWERED == 0;
        }
        status == hpack::UNREADABLE || (ends && (100..200).contains(&status))
    }

    /// Returns whether a request's header block was read, and not its trailers.
    #[inline(always)]
    pub(super) fn has_request_header(&self) -> bool {
        atomic::load(&self.state) & HAS_REQUEST_HEADER != 0
    }

    /// Records a request's header block and its caller.
    #[inline(never)]
    pub(super) fn record_request_header(&mut self, decoder: &HpackDecoder, caller: CallerId) {
        let mut bits = HAS_REQUEST_HEADER | u32::from(caller.0) << CALLER_SHIFT;
        if decoder.content_is_grpc == 1 {
            bits |= IS_GRPC;
        } else if decoder.content_is_grpc == hpack::NONE
            && decoder.flags & (hpack::UNRESOLVED | hpack::NOT_POST) == hpack::UNRESOLVED
        {
            bits |= MAY_BE_GRPC;
        }
        if decoder.flags & hpack::EXTENDED_CONNECT != 0 {
            bits |= IS_UPGRADE;
        }
        atomic::fetch_or(&mut self.state, bits);
    }

    /// Records a response's header block, interim, final or trailing.
    #[inline(never)]
    pub(super) fn record_response_header(&mut self, decoder: &HpackDecoder) {
        let is_unsure = decoder.flags & hpack::UNRESOLVED != 0;
        let status = decoder.status;
        let mut next = self.status;
        if status != hpack::NONE && (next.is_none() || next.is_unreadable()) {
            // Interim responses announce another block.
            if !(100..200).contains(&status) || status == 101 {
                if status == hpack::UNREADABLE {
                    next.set_unreadable();
                } else {
                    next.set(status as u16);
                }
            }
        } else if is_unsure && status == hpack::NONE && next.is_none() {
            next.set_unreadable();
        }
        if decoder.grpc_status == GRPC_UNKNOWN {
            next.0 = next.0 & !ResponseStatus::HAS_GRPC | ResponseStatus::LACKS_GRPC;
        } else if decoder.grpc_status != GRPC_NONE {
            self.grpc_status = decoder.grpc_status as u32;
            next.0 = next.0 & !ResponseStatus::LACKS_GRPC | ResponseStatus::HAS_GRPC;
        } else if is_unsure && next.0 & ResponseStatus::HAS_GRPC == 0 {
            next.0 |= ResponseStatus::LACKS_GRPC;
        }
        self.status = next;
        if atomic::load(&self.state) & MAY_BE_GRPC != 0 {
            if decoder.content_is_grpc == 1 || decoder.grpc_status != GRPC_NONE {
                atomic::fetch_or(&mut self.state, IS_GRPC_BY_RESPONSE);
            } else if decoder.content_is_grpc == 0 {
                atomic::fetch_or(&mut self.state, NOT_GRPC_BY_RESPONSE);
            }
        }
    }

    /// Returns the finished request of a stream that ended by itself, or early by a peer.
    #[inline(always)]
    pub(super) fn finished(&self, c: &Connection, is_early: bool, by: Peer, at_ns: u64) -> FinishedRequest {
        let (state, is_blind) = (self.state, self.state & IS_BLIND != 0);
        let is_grpc = state & (IS_GRPC | IS_GRPC_BY_RESPONSE) != 0;
        let mut protocol = if is_grpc { Protocol::GRPC } else { Protocol::HTTP };
        if state & (IS_GRPC | IS_GRPC_BY_RESPONSE | NOT_GRPC_BY_RESPONSE | MAY_BE_GRPC) == MAY_BE_GRPC {
            protocol = Protocol::UNKNOWN;
        }
        let is_answered = !self.status.is_none();
        let mut status = self.status.value();
        let mut grpc_status = match self.status.0 & (ResponseStatus::HAS_GRPC | ResponseStatus::LACKS_GRPC) {
            ResponseStatus::HAS_GRPC if is_grpc => u64::from(self.grpc_status),
            ResponseStatus::LACKS_GRPC if is_grpc => GRPC_UNKNOWN,
            _ => GRPC_NONE,
        };
        let mut outcome = if is_early { Counter::RequestEndedEarly } else { Counter::RequestOk };
        let is_failed = !is_answered && c.leg == ConnLeg::DESTINATION && (by == Peer::SERVER || by == Peer::PROXY);
        // A proxy's response in place of an application depends on the request.
        if !is_answered && (state & MAY_BE_ANSWERED != 0 || is_failed && protocol == Protocol::UNKNOWN) {
            status = STATUS_UNKNOWN;
        }
        if status == STATUS_UNKNOWN || grpc_status == GRPC_UNKNOWN || protocol == Protocol::UNKNOWN {
            outcome = if is_blind { Counter::RequestPreexisting } else { Counter::RequestStatusUnknown };
        } else if is_failed {
            // The application ended it without a response, or violated the protocol, and its proxy answers in its place.
            let failure = if by == Peer::PROXY { 502 } else { 503 };
            status = if is_grpc { 200 } else { failure };
            grpc_status = if is_grpc { GRPC_UNAVAILABLE } else { GRPC_NONE };
        } else if status == 200 && state & IS_UPGRADE != 0 {
            status = 101;
        }
        FinishedRequest {
            duration_ns: at_ns.saturating_sub(self.start_ns),
            bytes: self.bytes,
            messages: self.messages,
            grpc_status,
            status,
            protocol,
            security: Security((state >> SECURITY_SHIFT) as u8 & 3),
            outcome: outcome as u16,
            caller: CallerId((state >> CALLER_SHIFT) as u16),
            trace: if trace::is_on() && state & HAS_TRACE != 0 { OptionU32::some(self.id) } else { OptionU32::NONE },
        }
    }
}
