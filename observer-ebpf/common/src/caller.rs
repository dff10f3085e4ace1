//! Callers at the destination leg: who sent a request, or opened a connection, to the application.

use crate::series::Security;

/// Caller of a series, as an id of the `CALLERS` map.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallerId(pub u16);

impl CallerId {
    /// There is no caller: the source leg, a request without the header, or a connection without a known peer.
    pub const NONE: Self = Self(0);
    /// It is not known whether there was a caller: parts of the request's header were sent before the programs were attached.
    pub const MISSED: Self = Self(u16::MAX - 1);
    /// There was a caller, but its text could not be read or kept; each has a health counter.
    pub const UNREADABLE: Self = Self(u16::MAX);
}

/// Where a caller's text is from.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallerKind(pub u16);

impl CallerKind {
    /// The last element of `x-forwarded-client-cert`, as the sidecar wrote it.
    pub const CERTIFICATE: Self = Self(1);
    /// The 16 bytes of the address of the connection's only possible peer.
    pub const ADDRESS: Self = Self(2);
}

/// Longest text of a caller, in bytes.
pub const MAX_CALLER_TEXT: usize = 504;

/// Value of the `CALLERS` map; its key is a 64-bit hash of kind and text.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Id in the keys of series; 1 and up, never reused.
    pub id: CallerId,
    /// Where the text is from.
    pub kind: CallerKind,
    /// Length of the text.
    pub length: u32,
    /// The text, padded with zeros.
    pub text: [u8; MAX_CALLER_TEXT],
}

/// Key of the `INBOUND_PEERS` map: one address that connects to one application port of one sidecar.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InboundPeerKey {
    /// Sidecar id.
    pub sidecar: u32,
    /// Original destination port, host byte order; 0 if it is not known.
    pub port: u16,
    /// Security of the connections; unknown if it was not known when they were counted as opened.
    pub security: Security,
    /// Zero.
    pub padding: u8,
    /// IPv6 address in network byte order; IPv4 is mapped.
    pub address: [u8; 16],
}

/// Connections from one address to the inbound listener for one port: the value of the `INBOUND_PEERS` map. All values
/// only grow; a peer with as many closed as opened connections is not connected.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InboundPeer {
    /// Connections that were opened.
    pub opened: u64,
    /// Connections that were closed.
    pub closed: u64,
    /// When one was closed last, in ns of the monotonic clock; written before it is counted.
    pub closed_ns: u64,
}

const _: () = assert!(size_of::<Caller>() == 512);
const _: () = assert!(size_of::<InboundPeerKey>() == 24);
