//! State of one observed connection, and of the HTTP/1 exchanges open on it.
//!
//! The request direction writes an exchange, the response direction answers it; each may run on a CPU of its own. They
//! share only the fields marked atomic, accessed through [`crate::atomic`], and whichever finishes an exchange last
//! counts it.

use observer_common::{Direction, Endpoint, InboundPeerKey, Leg};

use crate::{
    atomic,
    flow::Flow,
    option::{OptionU32, Peer},
};

/// Exchanges that can be open at once: requests pipelined behind each other.
pub const MAX_EXCHANGES: usize = 32;

/// Role of a connection.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnLeg(pub u32);

impl ConnLeg {
    /// Not decided yet.
    pub const UNDECIDED: Self = Self(0);
    /// The application's connection to its sidecar, or a client's to a gateway.
    pub const SOURCE: Self = Self(Leg::SOURCE.0 as u32);
    /// The sidecar's connection to its application.
    pub const DESTINATION: Self = Self(Leg::DESTINATION.0 as u32);
    /// A peer's connection to the sidecar; only its ClientHello is read.
    pub const INBOUND: Self = Self(3);
    /// Not to be counted.
    pub const IGNORED: Self = Self(4);

    /// Returns the leg of the connection's series.
    #[inline(always)]
    pub const fn of_series(self) -> Leg {
        Leg(self.0 as u8)
    }

    /// Reads a value that another CPU may be writing.
    #[inline(always)]
    pub fn load(&self) -> Self {
        Self(atomic::load(&self.0))
    }
}

/// Protocol of a connection.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnProtocol(pub u32);

impl ConnProtocol {
    /// Not decided yet.
    pub const UNDECIDED: Self = Self(0);
    /// Raw TCP.
    pub const TCP: Self = Self(1);
    /// HTTP/1.
    pub const HTTP1: Self = Self(2);
    /// HTTP/2.
    pub const HTTP2: Self = Self(3);
    /// Encrypted, to a gateway's listener.
    pub const ENCRYPTED: Self = Self(4);
}

/// Bits of [`Connection::flags`].
pub mod flags {
    /// Open before the programs were attached.
    pub const PREEXISTING: u32 = 1;
    /// Accepted by a gateway.
    pub const GATEWAY: u32 = 1 << 1;
    /// The destination port is TCP by configuration.
    pub const DECLARED_TCP: u32 = 1 << 2;
    /// The end is handled.
    pub const ENDED: u32 = 1 << 3;
    /// Counted in the table of open inbound connections.
    pub const COUNTED_OPEN: u32 = 1 << 4;
    /// Counted as an opened TCP connection.
    pub const OPENED: u32 = 1 << 5;
    /// The establishment was seen, so the first sequence numbers are known.
    pub const SEQ_KNOWN: u32 = 1 << 6;
    /// Assumed to be a connection to the sidecar until the process that accepted it is seen.
    pub const TENTATIVE: u32 = 1 << 7;
    /// The destination port is HTTP by configuration.
    pub const DECLARED_HTTP: u32 = 1 << 8;
    /// The sidecar has announced that it closes the connection: no further request is read.
    pub(crate) const CLOSING: u32 = 1 << 9;
    /// The client's first line is not a request line, or not the first. A sidecar that speaks HTTP there refuses it.
    pub(crate) const UNLIKELY_HTTP: u32 = 1 << 10;
    /// The callers of its requests are not read, nor is its peer.
    pub const WITHOUT_CALLERS: u32 = 1 << 11;
    /// Counted in the table of inbound peers.
    pub const COUNTED_PEER: u32 = 1 << 12;
    /// The address of the peer behind a connection to the application is known.
    pub const HAS_PEER: u32 = 1 << 13;
    /// The peer behind a connection to the application may be one of several.
    pub const AMBIGUOUS_PEER: u32 = 1 << 14;
    /// The FIN of the request direction was seen and nothing in front of it is missing; that of the other is the next bit.
    pub const FIN_SEEN: u32 = 1 << 16;
}

/// Bits of [`Exchange::state`].
pub mod exchange_state {
    /// The request is complete.
    pub const REQUEST_DONE: u32 = 1;
    /// The response is complete, and in [`Flow::finished`] until the request is.
    pub(crate) const ANSWERED: u32 = 1 << 1;
    /// Counted.
    pub const FINISHED: u32 = 1 << 2;
    /// A HEAD request.
    pub(crate) const IS_HEAD: u32 = 1 << 3;
    /// A CONNECT request.
    pub(crate) const IS_CONNECT: u32 = 1 << 4;
    /// A request to upgrade the connection.
    pub(crate) const IS_UPGRADE: u32 = 1 << 5;
    /// gRPC, by the request's content type.
    pub(crate) const IS_GRPC: u32 = 1 << 6;
    /// Sampled: its trace context is kept.
    pub(crate) const HAS_TRACE: u32 = 1 << 7;
    /// Position of the security.
    pub(crate) const SECURITY_SHIFT: u32 = 8;
    /// Position of the caller.
    pub(crate) const CALLER_SHIFT: u32 = 16;
}

/// A request and its response.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    /// First byte of the request, nanoseconds of `CLOCK_MONOTONIC`.
    pub start_ns: u64,
    /// Wire bytes of the request, once it is complete.
    pub request_bytes: u64,
    /// Bits of [`exchange_state`]; atomic.
    pub state: u32,
    /// Sequence number of the request's first byte.
    pub begin: u32,
}

/// One observed connection: the value of its socket's storage.
///
/// What a packet costs is mostly the cache lines that it touches. The kernel puts a word in front of the value, so that the
/// first line ends after 56 bytes: it has what every packet needs and few change. The second has what both directions
/// change; each direction has its own from there on.
/// Source: kernel `include/linux/bpf_local_storage.h`, `struct bpf_local_storage_data`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    /// Role.
    pub leg: ConnLeg,
    /// Bits of [`flags`]; atomic.
    pub flags: u32,
    /// Protocol; atomic.
    pub protocol: ConnProtocol,
    /// Sidecar id, or 0 while unknown.
    pub sidecar: u32,
    /// The last series: labels and slot in one word, so that the next request of the same labels needs no lookup; 0 is none.
    pub cached_series: u64,
    /// `RECLAIM_EPOCH` for which `cached_series` holds.
    pub cached_epoch: u32,
    /// Inbound port that counts the clients of this leg's application.
    pub inbound_port: OptionU32,
    /// Original destination (source leg), application (destination leg), original destination (inbound leg).
    pub destination: Endpoint,
    /// Count of desyncs and resyncs of HTTP/1: odd while desynchronised; atomic.
    pub epoch: u32,

    /// Number of the oldest unanswered exchange; written by the response direction, atomic.
    pub head: u32,
    /// Number of the next exchange; written by the request direction, atomic.
    pub tail: u32,
    /// End of the last response, nanoseconds of `CLOCK_MONOTONIC`; written by the response direction.
    pub answered_ns: u64,
    /// Sender of the last payload; atomic.
    pub last_sender: Peer,
    /// Sender of the first FIN or RST; atomic.
    pub first_end: Peer,
    /// First FIN or RST, nanoseconds of `CLOCK_MONOTONIC`.
    pub ended_ns: u64,
    /// Process (thread-group id) that opened or accepted it, or 0.
    pub process: u32,
    /// [`observer_common::Security`] of the peer, none while its ClientHello is not read. Inbound leg only.
    pub peer_security: OptionU32,
    /// Caller of a TCP connection, once it is known, or 0; atomic.
    pub tcp_caller: u32,
    /// The thread that accepted it and has waited to connect, or 0. Inbound leg only.
    pub thread: u32,
    /// Since when, see [`crate::pairing`].
    pub accepted_ns: u64,
    /// 1 if the last answered exchange waits for its request's end; written by the response direction.
    pub is_awaited: u32,
    /// Zero.
    pub padding: u32,

    /// Both directions.
    pub flows: [Flow; 2],
    /// Open exchanges; a ring.
    pub exchanges: [Exchange; MAX_EXCHANGES],
    /// The peer: on the inbound leg as it is counted; on the destination leg of TCP only its address, if that is known.
    pub peer: InboundPeerKey,
}

/// Bytes of a cache line.
const LINE: usize = 64;
/// Bytes in front of the value in its first line.
const IN_FRONT: usize = 8;
const _: () = assert!(core::mem::offset_of!(Connection, head) == LINE - IN_FRONT);
const _: () = assert!(core::mem::offset_of!(Connection, flows) == 2 * LINE - IN_FRONT);
const _: () = assert!(size_of::<Flow>().is_multiple_of(LINE));
const _: () = assert!(size_of::<Connection>() <= 2240);
const _: () = assert!(size_of::<Connection>().is_multiple_of(8));

impl Connection {
    /// Returns the protocol, which another CPU may be deciding.
    #[inline(always)]
    pub fn protocol(&self) -> ConnProtocol {
        ConnProtocol(atomic::load(&self.protocol.0))
    }

    /// Replaces the protocol if it is `old`; returns whether it was.
    #[inline(always)]
    pub(crate) fn change_protocol(&mut self, old: ConnProtocol, new: ConnProtocol) -> bool {
        atomic::compare_exchange(&mut self.protocol.0, old.0, new.0)
    }

    /// Sets flags; returns the previous ones.
    #[inline(always)]
    pub fn set_flags(&mut self, flags: u32) -> u32 {
        atomic::fetch_or(&mut self.flags, flags)
    }

    /// Returns whether the position in HTTP/1 is lost.
    #[inline(always)]
    pub fn is_desynced(&self) -> bool {
        atomic::load(&self.epoch) & 1 != 0
    }

    /// Returns whether the destination is known. At the source leg it is once Envoy has accepted and asked for it.
    #[inline(always)]
    pub fn has_destination(&self) -> bool {
        self.leg != ConnLeg::SOURCE || self.destination.port != 0
    }

    /// Returns whether the proxy sends what goes in `direction`.
    #[inline(always)]
    pub fn is_sent_by_proxy(&self, direction: Direction) -> bool {
        (self.leg.load() == ConnLeg::DESTINATION) == (direction == Direction::Request)
    }

    /// Returns the exchange of a number.
    #[inline(always)]
    pub(crate) fn exchange(&mut self, number: u32) -> &mut Exchange {
        // SAFETY: the ring's length is a power of two.
        unsafe { self.exchanges.get_unchecked_mut(number as usize & (MAX_EXCHANGES - 1)) }
    }
}
