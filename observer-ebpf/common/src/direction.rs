//! The two directions of a connection.

use core::ops::{Index, IndexMut};

/// Direction of a connection's bytes: index of everything that exists once per direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Direction {
    /// Client to server.
    Request,
    /// Server to client.
    Response,
}

impl Direction {
    /// Both, in index order.
    pub const BOTH: [Self; 2] = [Self::Request, Self::Response];

    /// Returns the other direction.
    #[inline(always)]
    #[must_use]
    pub const fn opposite(self) -> Self {
        match self {
            Self::Request => Self::Response,
            Self::Response => Self::Request,
        }
    }
}

impl<T> Index<Direction> for [T; 2] {
    type Output = T;

    #[inline(always)]
    fn index(&self, direction: Direction) -> &T {
        &self[direction as usize]
    }
}

impl<T> IndexMut<Direction> for [T; 2] {
    #[inline(always)]
    fn index_mut(&mut self, direction: Direction) -> &mut T {
        &mut self[direction as usize]
    }
}
