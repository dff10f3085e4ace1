//! TCP acceptance test for received segments: the hooks see a segment before TCP validates it, and any sender can forge
//! its header.
//!
//! Source: RFC 9293 section 3.10.7.4 and kernel `net/ipv4/tcp_input.c` (`tcp_validate_incoming`, `tcp_ack`). Programs
//! cannot read the receive window: a segment beyond it but within [`MAX_WINDOW`] passes here, so that no state may be
//! dropped because of one.

/// Flag of a TCP header.
pub const FIN: u8 = 1;
/// Flag of a TCP header.
pub const SYN: u8 = 2;
/// Flag of a TCP header.
pub const RST: u8 = 4;
/// Flag of a TCP header.
pub const ACK: u8 = 16;

/// Upper bound of both windows, in sequence numbers: the kernel's largest buffers by default are 6 MiB (`tcp_rmem`).
pub const MAX_WINDOW: u32 = 1 << 24;

/// [`Socket::state`]. Source: kernel `include/net/tcp_states.h`.
pub const ESTABLISHED: u32 = 1;
/// [`Socket::state`].
pub const SYN_RECV: u32 = 3;
/// [`Socket::state`].
pub const TIME_WAIT: u32 = 6;
/// [`Socket::state`].
pub const CLOSE: u32 = 7;
/// [`Socket::state`].
pub const CLOSE_WAIT: u32 = 8;
/// [`Socket::state`].
pub const LAST_ACK: u32 = 9;
/// [`Socket::state`].
pub const LISTEN: u32 = 10;
/// [`Socket::state`].
pub const CLOSING: u32 = 11;

/// Header fields of a segment, and the position of its payload in the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Sequence number of the first byte.
    pub seq: u32,
    /// Acknowledged sequence number.
    pub ack: u32,
    /// Packet offset of the first byte.
    pub offset: u32,
    /// Number of payload bytes.
    pub length: u32,
    /// Flags above.
    pub flags: u8,
}

impl Segment {
    /// Returns the sequence number behind the last byte.
    #[inline(always)]
    pub fn end(&self) -> u32 {
        self.seq.wrapping_add(self.length)
    }

    /// Returns whether it carries FIN or RST.
    #[inline(always)]
    pub fn is_end(&self) -> bool {
        self.flags & (FIN | RST) != 0
    }
}

/// TCP state of a socket. It may lag behind the hooks while a process owns the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    /// One of the states above.
    pub state: u32,
    /// Next sequence number expected.
    pub rcv_nxt: u32,
    /// First sequence number sent and not acknowledged.
    pub snd_una: u32,
    /// Next sequence number to be sent.
    pub snd_nxt: u32,
    /// Bytes acknowledged so far.
    pub acknowledged: u64,
}

impl Socket {
    /// Returns whether TCP will accept the segment. `read` is the next sequence number to be read in its direction, `sent`
    /// the next one that the hooks will see sent, which may be ahead of the socket's.
    #[inline(always)]
    pub fn accepts(&self, segment: &Segment, read: u32, sent: u32) -> bool {
        if segment.flags & RST != 0 {
            // Elsewhere in the window TCP answers with a challenge ACK (RFC 5961 section 3.2).
            return segment.seq == self.rcv_nxt || segment.seq == read;
        }
        if segment.flags & (ACK | SYN) != ACK {
            return false;
        }
        let ahead = segment.end().wrapping_sub(self.rcv_nxt);
        if (ahead as i32) > MAX_WINDOW as i32 {
            return false;
        }
        let old = self.snd_una.wrapping_sub(segment.ack);
        if (old as i32) > 0 {
            return old <= MAX_WINDOW && u64::from(old) <= self.acknowledged;
        }
        segment.ack.wrapping_sub(self.snd_nxt) as i32 <= 0
            || (sent.wrapping_add(self.sends_fin()).wrapping_sub(segment.ack) as i32) >= 0
    }

    /// Returns the sequence number behind the last accepted payload byte: an accepted FIN has a number of its own.
    #[inline(always)]
    pub fn accepted(&self) -> u32 {
        self.rcv_nxt.wrapping_sub(u32::from(self.has_received_fin()))
    }

    /// Returns whether a FIN was accepted.
    #[inline(always)]
    pub fn has_received_fin(&self) -> bool {
        in_states(self.state, [CLOSE_WAIT, LAST_ACK, CLOSING, TIME_WAIT])
    }

    /// Returns whether the application has closed the socket or its sending direction.
    #[inline(always)]
    pub fn is_closed(&self) -> bool {
        !in_states(self.state, [ESTABLISHED, SYN_RECV, CLOSE_WAIT, CLOSE_WAIT])
    }

    #[inline(always)]
    fn sends_fin(&self) -> u32 {
        u32::from(self.is_closed())
    }
}

#[inline(always)]
fn in_states(state: u32, states: [u32; 4]) -> bool {
    let [a, b, c, d] = states;
    1u32.wrapping_shl(state) & (1 << a | 1 << b | 1 << c | 1 << d) != 0
}
