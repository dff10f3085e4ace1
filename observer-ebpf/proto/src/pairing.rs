//! Pairing of a TCP connection to the application with the peer's connection for which it was opened: one that the same
//! thread has accepted for the same port, if it can be no other peer's.
//!
//! A thread accepts a peer's connection, and connects to the application for it later. Several may be waiting: then the
//! peer is known if all have the same address. Once as many were connected as were accepted, none is waiting. If one of
//! them closes in between, it is not known whether it was still waiting, and nothing is paired until all have closed.

/// Key of the `ACCEPTED` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct AcceptedKey {
    /// Sidecar id, by which userspace removes leftovers.
    pub sidecar: u32,
    /// Kernel's id of the thread.
    pub thread: u32,
    /// Original destination port, host byte order.
    pub port: u32,
}

/// Connections that a thread has accepted for a port, and for which it may not have connected yet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    /// Time of the first one, nanoseconds of `CLOCK_MONOTONIC`; distinguishes it from earlier ones of the same key.
    pub since_ns: u64,
    /// Address of all of them, unless they are [`Waiting::MIXED`].
    pub address: [u8; 16],
    /// Bits of [`Waiting`]; atomic.
    pub waiting: u32,
    /// Zero.
    pub padding: u32,
}

const _: () = assert!(size_of::<AcceptedKey>() == 12 && size_of::<Accepted>() == 32);

/// Number of connections accepted, number connected, and what is known of them. 0 if none is waiting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting(pub u32);

/// Peer of a connection that is opened now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// No connection is waiting.
    None,
    /// All that are waiting have the same address.
    Known,
    /// It may be one of several peers'.
    Ambiguous,
}

const MAX: u32 = (1 << 12) - 1;
const CONNECTED_SHIFT: u32 = 12;

impl Waiting {
    /// Bit: they have different addresses.
    pub const MIXED: u32 = 1 << 24;
    /// Bit: it is not known which of them are waiting.
    const UNSURE: u32 = 1 << 25;

    /// Returns the state behind a further accepted connection, with the address of the others or another one.
    #[inline(always)]
    #[must_use]
    pub const fn accept(self, is_same_address: bool) -> Self {
        let mixed = if is_same_address { 0 } else { Self::MIXED };
        if self.0 & MAX == MAX { Self(self.0 | Self::UNSURE) } else { Self((self.0 | mixed) + 1) }
    }

    /// Returns the peer of a connection to the application, and the state behind it.
    #[inline(always)]
    #[must_use]
    pub const fn connect(self) -> (Pairing, Self) {
        if self.0 == 0 {
            return (Pairing::None, self);
        }
        if self.0 & Self::UNSURE != 0 {
            return (Pairing::Ambiguous, self);
        }
        let next = self.0 + (1 << CONNECTED_SHIFT);
        let all = next >> CONNECTED_SHIFT & MAX == next & MAX;
        let pairing = if self.0 & Self::MIXED != 0 { Pairing::Ambiguous } else { Pairing::Known };
        (pairing, if all { Self(0) } else { Self(next) })
    }

    /// Returns the state behind the end of one of the accepted connections.
    #[inline(always)]
    #[must_use]
    pub const fn close(self) -> Self {
        // As many as can be counted may be more.
        if self.0 == 0 || self.0 & MAX == MAX {
            return self;
        }
        let unsure = if self.0 >> CONNECTED_SHIFT & MAX != 0 { Self::UNSURE } else { 0 };
        if self.0 & MAX == 1 { Self(0) } else { Self((self.0 | unsure) - 1) }
    }
}
