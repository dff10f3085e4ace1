//! Which received segments TCP will take: the hooks see a segment before TCP has judged it, and whoever can send to a socket can
//! write any numbers into its header.
//!
//! Source: RFC 9293 section 3.10.7.4 and kernel `net/ipv4/tcp_input.c` (`tcp_validate_incoming`, `tcp_ack`). The receive window is
//! not shown to programs: a segment behind it but within [`REACH`] passes here, so that nothing may be given up because of one.

/// Flag of a TCP header.
pub const FIN: u8 = 1;
/// Flag of a TCP header.
pub const SYN: u8 = 2;
/// Flag of a TCP header.
pub const RST: u8 = 4;
/// Flag of a TCP header.
pub const ACK: u8 = 16;

/// Sequence numbers that no window of either side reaches beyond: the kernel's largest buffers by default are 6 MiB (`tcp_rmem`).
pub const REACH: u32 = 1 << 24;

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

/// What is in a segment's header, and where its payload lies.
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
    /// Sequence number behind the last byte.
    #[inline(always)]
    #[must_use]
    pub fn end(&self) -> u32 {
        self.seq.wrapping_add(self.length)
    }

    /// Does it end its direction, one way or the other?
    #[inline(always)]
    #[must_use]
    pub fn ends(&self) -> bool {
        self.flags & (FIN | RST) != 0
    }
}

/// Where TCP is with a socket. It may lag behind what the hooks have seen, while the socket is owned by a process.
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
    /// Will TCP take the segment? `read` is how far its direction was read, `sent` what the hooks saw sent, which may be more than
    /// the socket says yet.
    #[inline(always)]
    #[must_use]
    pub fn accepts(&self, segment: &Segment, read: u32, sent: u32) -> bool {
        if segment.flags & RST != 0 {
            // Elsewhere in the window it is answered with a challenge (RFC 5961 section 3.2).
            return segment.seq == self.rcv_nxt || segment.seq == read;
        }
        if segment.flags & (ACK | SYN) != ACK {
            return false;
        }
        let ahead = segment.end().wrapping_sub(self.rcv_nxt);
        if (ahead as i32) > REACH as i32 {
            return false;
        }
        let old = self.snd_una.wrapping_sub(segment.ack);
        if (old as i32) > 0 {
            return old <= REACH && u64::from(old) <= self.acknowledged;
        }
        segment.ack.wrapping_sub(self.snd_nxt) as i32 <= 0
            || (sent.wrapping_add(self.sends_fin()).wrapping_sub(segment.ack) as i32) >= 0
    }

    /// Sequence number behind the last payload byte that TCP has taken: an accepted FIN has a number too.
    #[inline(always)]
    #[must_use]
    pub fn accepted(&self) -> u32 {
        self.rcv_nxt.wrapping_sub(u32::from(self.received_fin()))
    }

    /// Has it taken a FIN?
    #[inline(always)]
    #[must_use]
    pub fn received_fin(&self) -> bool {
        in_states(self.state, [CLOSE_WAIT, LAST_ACK, CLOSING, TIME_WAIT])
    }

    /// Has the application closed it, or its sending direction?
    #[inline(always)]
    #[must_use]
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
