//! One direction of a connection: a cursor by sequence number, and a window over the bytes being read.
//!
//! Bytes are read in *steps*: a step skips a body, marks the newlines of 64 bytes, yields one line, or loads more. All
//! state lives in the socket's storage and none on the stack: the verifier tracks every scalar on the stack through all
//! steps, whereas a value loaded from a map is unknown to it and its states converge.

use crate::{atomic, finished::FinishedRequest, option::OptionU32};

/// Bytes loaded at a time.
pub const FILL: u32 = 256;
/// Bytes of an unfinished line that are kept for the next packet; a longer line is parsed by its beginning.
pub const CARRY: u32 = 128;
/// Capacity of the window.
pub const WINDOW: u32 = FILL + CARRY;

/// Ranges of out-of-order bytes that can be buffered.
pub const MAX_RANGES: usize = 4;
/// [`Flow::seq_state`]: `next` is known.
pub const SEQ_KNOWN: u32 = 1;
/// [`Flow::seq_state`]: a FIN arrived before the bytes in front of it.
const FIN_PENDING: u32 = 1 << 1;

/// Maximum of [`Flow::skip_ahead`], in sequence numbers.
const MAX_SKIP_AHEAD: u32 = 1 << 30;

const WORDS: usize = WINDOW as usize / 8 + 2;
const ONES: u64 = 0x0101_0101_0101_0101;
/// The top bit of each byte.
pub(crate) const HIGH: u64 = ONES << 7;

/// Position in a message: one of the phases of [`crate::http1`] or [`crate::tls`].
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Phase(pub u32);

/// Source that [`Flow::offset`] and [`Flow::end`] point into.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Source(pub u32);

impl Source {
    /// The packet.
    pub const PACKET: Self = Self(0);
    /// The flow's reassembly buffer.
    pub const BUFFER: Self = Self(1);
}

/// Handle of a reassembly buffer; zero is none. See [`crate::reassembly`].
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BufferHandle(pub u32);

impl BufferHandle {
    /// No buffer.
    pub const NONE: Self = Self(0);

    /// Returns whether there is no buffer.
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }
}

/// One direction of a connection, by cache lines: what every packet changes, then what reading it changes, then what only some
/// packets need.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// 1 while a CPU reads a packet of this direction; atomic.
    pub locked: u32,
    /// Bits above; 0 before `next` is known.
    pub seq_state: u32,
    /// Sequence number of the first byte not yet seen.
    pub next: u32,
    /// Position of the next byte in a message.
    pub phase: Phase,
    /// Payload bytes seen, by sequence number.
    pub seen_bytes: u64,
    /// Bytes to skip unread.
    pub skip: u64,
    /// Wire bytes of the message so far.
    pub message_bytes: u64,
    /// Properties of the message: bits of [`crate::http1::flags`].
    pub flags: u32,
    /// Status of the response being read.
    pub status: u32,
    /// The exchange to be counted.
    pub due: OptionU32,
    /// The connection's epoch that `phase` belongs to.
    pub epoch: u32,
    /// Number of used `ranges`.
    pub ranges_used: u32,
    /// Reassembly buffer.
    pub buffer: BufferHandle,

    /// Offset of the next byte to load.
    pub offset: u32,
    /// Offset behind the last payload byte.
    pub end: u32,
    /// Source of `offset` and `end`.
    pub source: Source,
    /// Sequence number of the buffer's first byte.
    pub buffer_seq: u32,
    /// Valid bytes in the window.
    pub filled: u32,
    /// Window index where the current line begins.
    pub line: u32,
    /// Window index up to which newlines are marked.
    pub scanned: u32,
    /// Window index of the first bit of `newlines`.
    pub newlines_at: u32,
    /// Newlines not yet consumed, one bit per byte of the 64 from `newlines_at` on.
    pub newlines: u64,
    /// The number read last.
    pub number: u64,
    /// Window index of the line being read.
    pub line_at: u32,
    /// Length of that line, without its end.
    pub line_length: u32,
    /// Bytes missing before the packet, or the result of a scan of the window: kept here so that the verifier does not track
    /// them.
    pub scratch: u32,
    /// [`observer_common::CallerId`] of the request being read.
    pub caller: u32,

    /// Body length announced by the message's header.
    pub body_length: u64,
    /// Bytes of `seen_bytes` that are in the TCP counters; atomic.
    pub counted_bytes: u64,
    /// gRPC status of the response being read; `u32::MAX - 1` for one that is not a number.
    pub grpc_status: OptionU32,
    /// Sequence number of a FIN that arrived before the bytes in front of it.
    pub fin_seq: u32,
    /// Out-of-order bytes, as sequence numbers of begin and end; equal where unused.
    pub ranges: [(u32, u32); MAX_RANGES],

    /// The bytes, first byte lowest.
    pub window: [u64; WORDS],
    /// The request being counted: one that this direction completed; at the close under the request direction.
    pub finished: FinishedRequest,
}

/// Outcome of a request for more bytes in the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refill {
    /// `.1` bytes are to be loaded from offset `.0` to the end of the window.
    Load(u32, u32),
    /// The line at window index `.0` has at least `.1` bytes, and its end is not in the window.
    LongLine(u32, u32),
    /// The packet is read to its end.
    Empty,
}

impl Flow {
    /// Returns the eight bytes from window index `at` on, the first one lowest.
    #[inline(always)]
    pub fn word(&self, at: u32) -> u64 {
        let at = window_index(at);
        let index = (at >> 3) as usize;
        let shift = (at & 7) * 8;
        // SAFETY: `at` is at most WINDOW, and WORDS has two words more than that needs.
        let (low, high) = unsafe { (*self.window.get_unchecked(index), *self.window.get_unchecked(index + 1)) };
        (low >> shift) | ((high << 1) << (63 - shift))
    }

    /// Returns the byte at window index `at`.
    #[inline(always)]
    pub fn byte(&self, at: u32) -> u8 {
        let at = window_index(at);
        // SAFETY: the window has more than WINDOW bytes.
        unsafe { *self.window.as_ptr().cast::<u8>().add(at as usize) }
    }

    /// Returns the number of bytes in the window that belong to an unfinished line.
    #[inline(always)]
    pub fn pending(&self) -> u32 {
        self.filled.wrapping_sub(self.line)
    }

    /// Returns the number of payload bytes that are not loaded yet.
    #[inline(always)]
    pub fn unloaded(&self) -> u32 {
        self.end.wrapping_sub(self.offset)
    }

    /// Returns the number of payload bytes that are not read yet.
    #[inline(always)]
    pub fn unread(&self) -> u64 {
        u64::from(self.pending()) + u64::from(self.unloaded())
    }

    /// Locates payload `[seq, seq + length)`, which lies at packet offset `offset`: sets [`Flow::gap`] to the number of bytes
    /// missing before it, and `offset` and `end` to its new bytes. Returns false if it has none (a retransmission, a
    /// keep-alive or zero-window probe).
    ///
    /// Results go through storage so that the verifier does not track them.
    #[inline(always)]
    pub fn locate(&mut self, seq: u32, offset: u32, length: u32) -> bool {
        if self.seq_state == 0 {
            self.seq_state = SEQ_KNOWN;
            self.next = seq;
        }
        let ahead = self.next.wrapping_sub(seq) as i32;
        if ahead >= length as i32 {
            return false;
        }
        let (gap, known) = if ahead < 0 { (ahead.unsigned_abs(), 0) } else { (0, ahead as u32) };
        atomic::store(&mut self.scratch, gap);
        atomic::store(&mut self.offset, offset.wrapping_add(known));
        atomic::store(&mut self.end, offset.wrapping_add(length));
        atomic::store(&mut self.source.0, Source::PACKET.0);
        true
    }

    /// Returns the number of bytes that [`Flow::locate`] found missing.
    #[inline(always)]
    pub fn gap(&self) -> u32 {
        atomic::load(&self.scratch)
    }

    /// Marks everything up to `end` as seen.
    #[inline(always)]
    pub fn advance(&mut self, end: u32) {
        self.seen_bytes += u64::from(end.wrapping_sub(self.next));
        self.next = end;
    }

    /// Returns the number of bytes behind `next` that will be skipped.
    #[inline(always)]
    pub fn skip_ahead(&self) -> u32 {
        if self.skip < u64::from(MAX_SKIP_AHEAD) { self.skip as u32 } else { MAX_SKIP_AHEAD }
    }

    /// Returns whether a segment that ends at `end` has no new bytes. The direction need not be locked for such a one.
    #[inline(always)]
    pub fn has_seen(&self, end: u32) -> bool {
        self.seq_state != 0 && atomic::load(&self.next).wrapping_sub(end) as i32 >= 0
    }

    /// Returns whether TCP has accepted bytes up to `accepted` that are not seen.
    #[inline(always)]
    pub fn is_behind(&self, accepted: u32) -> bool {
        self.seq_state != 0 && accepted.wrapping_sub(self.next) as i32 > 0
    }

    /// Records a FIN behind the bytes up to `end`; returns whether no byte is missing in front of it.
    #[inline(always)]
    pub fn record_fin(&mut self, end: u32) -> bool {
        if self.seq_state == 0 {
            return true;
        }
        if (end.wrapping_sub(self.next) as i32) > 0 {
            self.fin_seq = end;
            self.seq_state |= FIN_PENDING;
        }
        self.next == end
    }

    /// Returns whether the bytes in front of a recorded FIN have arrived.
    #[inline(always)]
    pub fn is_fin_due(&self) -> bool {
        self.seq_state & FIN_PENDING != 0 && self.next == self.fin_seq
    }

    /// Returns whether `gap` missing bytes all lie in the bytes to skip.
    #[inline(always)]
    pub fn skips_gap(&self, gap: u32) -> bool {
        self.skip >= u64::from(gap) + u64::from(self.pending())
    }

    /// Empties the window.
    #[inline(always)]
    pub fn clear(&mut self) {
        self.filled = 0;
        self.line = 0;
        self.scanned = 0;
        self.newlines = 0;
    }

    /// Returns whether the window holds nothing but an unfinished line.
    #[inline(always)]
    pub fn is_window_read(&self) -> bool {
        self.newlines == 0 && self.scanned >= self.filled
    }

    /// Consumes the next line whose end is marked; returns its index, and its length without the newline.
    #[inline(always)]
    pub fn next_line(&mut self) -> (u32, u32) {
        let newline = self.newlines_at.wrapping_add(self.newlines.trailing_zeros());
        self.newlines &= self.newlines.wrapping_sub(1);
        let line = self.line;
        self.line = newline.wrapping_add(1);
        (line, newline.wrapping_sub(line))
    }

    /// Sets the line to be read, in storage, so that the verifier does not track it.
    #[inline(always)]
    pub fn set_line(&mut self, at: u32, length: u32) {
        atomic::store(&mut self.line_at, at);
        atomic::store(&mut self.line_length, length);
    }

    /// Skips as many of the bytes to skip as the packet has; returns whether those were all.
    #[inline(always)]
    pub fn skip_bytes(&mut self) -> bool {
        let inside = u64::from(self.pending());
        if inside > 0 {
            let skipped = if self.skip < inside { self.skip } else { inside };
            self.line = self.line.wrapping_add(skipped as u32);
            self.skip -= skipped;
            self.message_bytes += skipped;
            self.scanned = self.line;
            self.newlines = 0;
        }
        if self.skip > 0 {
            let outside = u64::from(self.unloaded());
            let skipped = if self.skip < outside { self.skip } else { outside };
            self.offset = self.offset.wrapping_add(skipped as u32);
            self.skip -= skipped;
            self.message_bytes += skipped;
            self.clear();
            if self.skip > 0 {
                return false;
            }
        }
        true
    }

    /// Marks the newlines between `scanned` and the end of its block of 64 bytes.
    #[inline(always)]
    pub fn mark_newlines(&mut self) {
        let block = (self.scanned >> 6) & 7;
        let mut newlines = 0u64;
        let mut i = 0;
        while i < 8 {
            let index = (block * 8 + i) as usize;
            // SAFETY: checked just here; WINDOW / 8 words are always there.
            let word = if index < WORDS { unsafe { *self.window.get_unchecked(index) } } else { 0 };
            newlines |= byte_bits(bytes_equal(word, b'\n')) << (8 * i);
            i += 1;
        }
        let below = self.scanned & 63;
        newlines = newlines >> below << below;
        let start = block * 64;
        let valid = self.filled.wrapping_sub(start);
        if valid < 64 {
            newlines &= (1u64 << (valid & 63)).wrapping_sub(1);
            self.scanned = self.filled;
        } else {
            self.scanned = start + 64;
        }
        self.newlines_at = start;
        self.newlines = newlines;
    }

    /// Requests more bytes once the window holds no further newline; the beginning of a long line is given up.
    #[inline(always)]
    pub fn refill_line(&mut self) -> Refill {
        let pending = self.pending();
        if pending >= CARRY {
            let line = self.line;
            self.message_bytes += u64::from(pending);
            self.clear();
            return Refill::LongLine(line, pending);
        }
        self.refill()
    }

    /// Requests more bytes of the packet behind those that are unfinished.
    #[inline(always)]
    pub fn refill(&mut self) -> Refill {
        if self.line > 0 {
            // Whatever begins behind the window's start lies in this packet whole: it is loaded again.
            self.offset = self.offset.wrapping_sub(self.pending());
            self.clear();
        }
        let left = self.unloaded();
        if left == 0 {
            return Refill::Empty;
        }
        Refill::Load(self.offset, if left < FILL { left } else { FILL })
    }

    /// Accounts for bytes that were loaded to the window's end.
    #[inline(always)]
    pub fn loaded(&mut self, length: u32) {
        self.offset = self.offset.wrapping_add(length);
        self.filled = self.filled.wrapping_add(length);
    }
}

/// Returns a window index, [`WINDOW`] at most. In assembly on the BPF target: the compiler compares one register and
/// indexes by a copy of it, and verifiers up to Linux 6.1's do not carry the bound over to a 32-bit copy.
#[cfg(target_arch = "bpf")]
#[inline(always)]
fn window_index(at: u32) -> u64 {
    let mut at = u64::from(at);
    // SAFETY: changes nothing but its own register.
    unsafe {
        core::arch::asm!("if {at} <= {most} goto +1", "{at} = {most}", at = inout(reg) at, most = const WINDOW);
    }
    at
}

#[cfg(not(target_arch = "bpf"))]
fn window_index(at: u32) -> u64 {
    u64::from(at.min(WINDOW))
}

/// Returns 0x80 in each byte of `word` that equals `byte`.
#[inline(always)]
pub fn bytes_equal(word: u64, byte: u8) -> u64 {
    let different = word ^ (ONES * byte as u64);
    !(((different & !HIGH) + !HIGH) | different | !HIGH)
}

/// Collects the top bits of a word's bytes, as [`bytes_equal`] sets them, in its lowest byte.
#[inline(always)]
pub fn byte_bits(high: u64) -> u64 {
    (high >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56
}
