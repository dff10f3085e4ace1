//! Optional numbers in zeroed map memory.

use observer_common::Direction;

use crate::atomic;

/// A number that may be absent; stored as the number plus one, so that fresh (zeroed) storage is none.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OptionU32(u32);

impl OptionU32 {
    /// No number.
    pub const NONE: Self = Self(0);

    /// Wraps a number below `u32::MAX`.
    #[inline(always)]
    pub const fn some(value: u32) -> Self {
        Self(value.wrapping_add(1))
    }

    /// Returns the number.
    #[inline(always)]
    pub const fn get(self) -> Option<u32> {
        if self.0 == 0 { None } else { Some(self.0 - 1) }
    }

    /// Returns the number as it is stored: 0 for none.
    #[inline(always)]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Returns whether there is no number.
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// Returns whether there is a number.
    #[inline(always)]
    pub const fn is_some(self) -> bool {
        self.0 != 0
    }
}

/// A peer of the connection, or none; zeroed storage is [`Peer::NONE`].
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peer(u32);

impl Peer {
    /// No peer.
    pub const NONE: Self = Self(0);
    /// The client.
    pub const CLIENT: Self = Self::sender(Direction::Request);
    /// The server.
    pub const SERVER: Self = Self::sender(Direction::Response);
    /// The proxy itself, which ends a connection whose other end violates the protocol.
    pub const PROXY: Self = Self(3);

    /// Returns the peer that sends in `direction`.
    #[inline(always)]
    pub const fn sender(direction: Direction) -> Self {
        Self(direction as u32 + 1)
    }

    /// Returns whether there is none.
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// Reads a value that another CPU may be writing.
    #[inline(always)]
    pub fn load(&self) -> Self {
        Self(atomic::load(&self.0))
    }

    /// Writes a value that another CPU may be reading.
    #[inline(always)]
    pub fn store(&mut self, peer: Self) {
        atomic::store(&mut self.0, peer.0);
    }

    /// Records a peer unless one is recorded; returns whether it did.
    #[inline(always)]
    pub fn set_once(&mut self, peer: Self) -> bool {
        atomic::compare_exchange(&mut self.0, 0, peer.0)
    }
}
