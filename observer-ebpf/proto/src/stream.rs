//! One direction of a connection: a cursor by sequence number, and a window over the bytes being read.
//!
//! Bytes are read in *turns*: a turn passes over a body, marks the newlines of 64 bytes, hands one line on, or loads
//! more. All state lives here, in the socket's storage, and none on the stack: the verifier follows every scalar it sees
//! on the stack and would give up; what it loads from a map value is unknown to it and its states converge.

use crate::shared;

/// Bytes loaded at a time.
pub const FILL: u32 = 256;
/// Bytes of an unfinished line that are kept for the next packet; a longer line is judged by its head.
pub const CARRY: u32 = 128;
/// Bytes the window can hold.
pub const WINDOW: u32 = FILL + CARRY;

/// Segments that can wait for the bytes in front of them.
pub const PARKED: usize = 4;
/// [`Stream::anchored`]: `next` is known.
pub const ANCHORED: u32 = 1;
/// [`Stream::anchored`]: a FIN came before the bytes in front of it.
pub const FIN_WAITS: u32 = 1 << 1;

/// Sequence numbers ahead that [`Stream::unread_ahead`] looks.
const FARTHEST: u32 = 1 << 30;

const WORDS: usize = WINDOW as usize / 8 + 2;
const ONES: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = ONES << 7;

/// One direction of a connection.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    /// 1 while a processor reads a packet of this direction.
    pub busy: u32,
    /// Bits above; 0 before `next` is known.
    pub anchored: u32,
    /// Sequence number of the first byte not yet seen.
    pub next: u32,
    /// Where in a message the next byte lies: one of the phases of [`crate::http1`].
    pub phase: u32,
    /// Payload bytes seen, by sequence number.
    pub seen: u64,
    /// Those of them that the TCP counters already have.
    pub reported: u64,
    /// Bytes to pass over without reading.
    pub skip: u64,
    /// Wire bytes of the message so far.
    pub message: u64,
    /// Body length announced by the message's header.
    pub length: u64,
    /// The number read last.
    pub number: u64,
    /// What the message's header said: bits of [`crate::http1`].
    pub facts: u32,
    /// Status of the response being read.
    pub status: u32,
    /// gRPC status of the response being read plus one, 0 while there is none, `u32::MAX` for one that is no number.
    pub grpc_status: u32,
    /// What a search in the window has found.
    pub found: u32,
    /// The exchange that is to be counted, plus one, or 0.
    pub due: u32,
    /// Window index of the line being read.
    pub line_at: u32,
    /// Its length, without the end.
    pub line_length: u32,
    /// Zero.
    pub padding: u32,
    /// The connection's sync count that this stream's phase belongs to.
    pub sync: u32,
    /// Packet offset of the next byte to load.
    pub offset: u32,
    /// Packet offset behind the last payload byte.
    pub end: u32,
    /// Valid bytes in the window.
    pub have: u32,
    /// Window index where the current line begins.
    pub line: u32,
    /// Window index up to which newlines are marked.
    pub scan: u32,
    /// Newlines not yet handed on, one bit a byte of the 64 from `marked` on.
    pub marks: u64,
    /// Window index of the first bit of `marks`.
    pub marked: u32,
    /// Segments in `parked`.
    pub waiting: u32,
    /// Bytes missing before the packet being read.
    pub gap: u32,
    /// Where `offset` and `end` point: 0 into the packet, 1 into the place for bytes that came early.
    pub source: u32,
    /// Ticket of that place, or 0.
    pub ticket: u32,
    /// Sequence number of its first byte.
    pub base: u32,
    /// Sequence number of a FIN that waits for the bytes in front of it.
    pub fin: u32,
    /// Segments that came before the bytes in front of them, as sequence numbers of begin and end; equal where unused.
    pub parked: [(u32, u32); PARKED],
    /// The bytes, first byte lowest.
    pub window: [u64; WORDS],
}

/// What a turn found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// The bytes to skip are all passed.
    Passed,
    /// The line at window index `.0` has at least `.1` bytes and its end is not in sight.
    Head(u32, u32),
    /// Load `.1` bytes from packet offset `.0` to the end of the window.
    Load(u32, u32),
    /// The packet is read to its end.
    Empty,
}

impl Stream {
    /// The eight bytes from window index `at` on, the first one lowest.
    #[inline(always)]
    #[must_use]
    pub fn word(&self, at: u32) -> u64 {
        let at = within(at);
        let index = (at >> 3) as usize;
        let shift = (at & 7) * 8;
        // SAFETY: `at` is at most WINDOW, and WORDS has two words more than that needs.
        let (low, high) = unsafe { (*self.window.get_unchecked(index), *self.window.get_unchecked(index + 1)) };
        (low >> shift) | ((high << 1) << (63 - shift))
    }

    /// The byte at window index `at`.
    #[inline(always)]
    #[must_use]
    pub fn byte(&self, at: u32) -> u8 {
        let at = within(at);
        // SAFETY: the window has more than WINDOW bytes.
        unsafe { *self.window.as_ptr().cast::<u8>().add(at as usize) }
    }

    /// Bytes in the window that belong to a line not yet ended.
    #[inline(always)]
    #[must_use]
    pub fn pending(&self) -> u32 {
        self.have.wrapping_sub(self.line)
    }

    /// Finds out where a packet's bytes `[seq, seq + length)`, at packet offset `offset`, lie in the stream: `gap` is then the
    /// number of bytes missing before them, and `offset` and `end` enclose what is new. False for a packet without new
    /// bytes (a retransmission, a keep-alive or zero-window probe).
    ///
    /// The results are handed over by storage: what the verifier does not know, it does not follow.
    #[inline(always)]
    pub fn place(&mut self, seq: u32, offset: u32, length: u32) -> bool {
        if self.anchored == 0 {
            self.anchored = ANCHORED;
            self.next = seq;
        }
        let ahead = self.next.wrapping_sub(seq) as i32;
        if ahead >= length as i32 {
            return false;
        }
        let (gap, known) = if ahead < 0 { (ahead.unsigned_abs(), 0) } else { (0, ahead as u32) };
        shared::store(&mut self.gap, gap);
        shared::store(&mut self.offset, offset.wrapping_add(known));
        shared::store(&mut self.end, offset.wrapping_add(length));
        shared::store(&mut self.source, 0);
        true
    }

    /// Bytes that [`Stream::place`] found missing.
    #[inline(always)]
    #[must_use]
    pub fn gap(&self) -> u32 {
        shared::load(&self.gap)
    }

    /// Books everything up to `end` as seen.
    #[inline(always)]
    pub fn advance(&mut self, end: u32) {
        self.seen += u64::from(end.wrapping_sub(self.next));
        self.next = end;
    }

    /// Bytes behind `next` whose content will not be read.
    #[inline(always)]
    #[must_use]
    pub fn unread_ahead(&self) -> u32 {
        if self.skip < u64::from(FARTHEST) { self.skip as u32 } else { FARTHEST }
    }

    /// Is a segment without new bytes one that ends with `end`? The direction need not be entered for one.
    #[inline(always)]
    #[must_use]
    pub fn has_seen(&self, end: u32) -> bool {
        self.anchored != 0 && shared::load(&self.next).wrapping_sub(end) as i32 >= 0
    }

    /// Notes a FIN behind the bytes up to `end`, and says whether nothing is missing in front of it, nor of one that came earlier.
    #[inline(always)]
    pub fn fin(&mut self, end: u32) -> bool {
        if self.anchored == 0 {
            return true;
        }
        if (end.wrapping_sub(self.next) as i32) > 0 {
            self.fin = end;
            self.anchored |= FIN_WAITS;
        }
        self.next == end
    }

    /// Have the bytes come that a FIN waited for?
    #[inline(always)]
    #[must_use]
    pub fn fin_is_due(&self) -> bool {
        self.anchored & FIN_WAITS != 0 && self.next == self.fin
    }

    /// Remembers a segment that came before the bytes in front of it, unless too many wait already.
    #[inline(never)]
    pub fn park(&mut self, seq: u32, end: u32) {
        let mut i = 0;
        while i < PARKED {
            let (from, to) = self.parked[i];
            let joins = from != to && (seq.wrapping_sub(to) as i32) <= 0 && (from.wrapping_sub(end) as i32) <= 0;
            if joins {
                if (seq.wrapping_sub(from) as i32) < 0 {
                    self.parked[i].0 = seq;
                }
                if (end.wrapping_sub(to) as i32) > 0 {
                    self.parked[i].1 = end;
                }
                return;
            }
            i += 1;
        }
        // Where all are used, the one farthest ahead makes room: what is forged can lie anywhere, what will be read soon cannot.
        let mut farthest = 0;
        let mut ahead = seq.wrapping_sub(self.next);
        let mut i = 0;
        while i < PARKED {
            let (from, to) = self.parked[i];
            if from == to {
                self.parked[i] = (seq, end);
                self.waiting += 1;
                return;
            }
            if from.wrapping_sub(self.next) > ahead {
                ahead = from.wrapping_sub(self.next);
                farthest = i + 1;
            }
            i += 1;
        }
        if farthest != 0 {
            self.parked[(farthest - 1) & (PARKED - 1)] = (seq, end);
        }
    }

    /// The number of bytes, next in order, that a parked segment has brought already; 0 if there is none.
    #[inline(never)]
    pub fn unpark(&mut self) -> u32 {
        let mut i = 0;
        while i < PARKED {
            let (from, to) = self.parked[i];
            if from != to && (from.wrapping_sub(self.next) as i32) <= 0 {
                self.parked[i] = (0, 0);
                self.waiting = self.waiting.wrapping_sub(1);
                let brought = to.wrapping_sub(self.next);
                if brought as i32 > 0 {
                    return brought;
                }
            }
            i += 1;
        }
        0
    }

    /// Puts into `gap` how many of the bytes between `next` and `end` no parked segment has brought.
    #[inline(never)]
    pub fn find_unseen(&mut self, end: u32) {
        let mut unseen = end.wrapping_sub(self.next);
        let mut i = 0;
        while i < PARKED {
            let (from, to) = self.parked[i];
            let from = if (from.wrapping_sub(self.next) as i32) < 0 { self.next } else { from };
            let to = if (to.wrapping_sub(end) as i32) > 0 { end } else { to };
            if (to.wrapping_sub(from) as i32) > 0 {
                unseen = unseen.wrapping_sub(to.wrapping_sub(from));
            }
            i += 1;
        }
        shared::store(&mut self.gap, unseen);
    }

    /// Forgets the parked segments that bring nothing behind `next`.
    #[inline(never)]
    pub fn forget_passed(&mut self) {
        let mut i = 0;
        while i < PARKED {
            let (from, to) = self.parked[i];
            if from != to && (to.wrapping_sub(self.next) as i32) <= 0 {
                self.parked[i] = (0, 0);
                self.waiting = self.waiting.wrapping_sub(1);
            }
            i += 1;
        }
    }

    /// Goes on with the `brought` bytes next in order, which came early and were kept.
    #[inline(always)]
    pub fn reopen(&mut self, brought: u32) {
        self.source = 1;
        self.offset = self.next.wrapping_sub(self.base);
        self.end = self.offset.wrapping_add(brought);
        let end = self.next.wrapping_add(brought);
        self.advance(end);
    }

    /// Do the bytes to skip cover `gap` bytes that are missing?
    #[inline(always)]
    #[must_use]
    pub fn covers(&self, gap: u32) -> bool {
        self.skip >= u64::from(gap) + u64::from(self.pending())
    }

    /// Forgets the segments that wait.
    #[inline(always)]
    pub fn forget_parked(&mut self) {
        if self.waiting != 0 {
            self.waiting = 0;
            self.parked = [(0, 0); PARKED];
        }
    }

    /// Forgets what the window holds.
    #[inline(always)]
    pub fn clear(&mut self) {
        self.have = 0;
        self.line = 0;
        self.scan = 0;
        self.marks = 0;
    }

    /// Is all that the window holds handed on, but for an unfinished line?
    #[inline(always)]
    #[must_use]
    pub fn is_read(&self) -> bool {
        self.marks == 0 && self.scan >= self.have
    }

    /// Takes the next line whose end is marked: where it begins, and its length without the newline.
    #[inline(always)]
    pub fn next_line(&mut self) -> (u32, u32) {
        let newline = self.marked.wrapping_add(self.marks.trailing_zeros());
        self.marks &= self.marks.wrapping_sub(1);
        let line = self.line;
        self.line = newline.wrapping_add(1);
        (line, newline.wrapping_sub(line))
    }

    /// Passes over the bytes to skip.
    #[inline(always)]
    pub fn pass(&mut self) -> Token {
        let inside = u64::from(self.pending());
        if inside > 0 {
            let passed = if self.skip < inside { self.skip } else { inside };
            self.line = self.line.wrapping_add(passed as u32);
            self.skip -= passed;
            self.message += passed;
            self.scan = self.line;
            self.marks = 0;
        }
        if self.skip > 0 {
            let outside = u64::from(self.end.wrapping_sub(self.offset));
            let passed = if self.skip < outside { self.skip } else { outside };
            self.offset = self.offset.wrapping_add(passed as u32);
            self.skip -= passed;
            self.message += passed;
            self.clear();
            if self.skip > 0 {
                return Token::Empty;
            }
        }
        Token::Passed
    }

    /// Marks the newlines between `scan` and the end of its block of 64 bytes.
    #[inline(always)]
    pub fn mark(&mut self) {
        let block = (self.scan >> 6) & 7;
        let mut marks = 0u64;
        let mut i = 0;
        while i < 8 {
            let index = (block * 8 + i) as usize;
            // SAFETY: checked just here; WINDOW / 8 words are always there.
            let word = if index < WORDS { unsafe { *self.window.get_unchecked(index) } } else { 0 };
            marks |= (bytes_equal(word, b'\n') >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56 << (8 * i);
            i += 1;
        }
        let below = self.scan & 63;
        marks = marks >> below << below;
        let start = block * 64;
        let valid = self.have.wrapping_sub(start);
        if valid < 64 {
            marks &= (1u64 << (valid & 63)).wrapping_sub(1);
            self.scan = self.have;
        } else {
            self.scan = start + 64;
        }
        self.marked = start;
        self.marks = marks;
    }

    /// The window holds no further newline: keep what is unfinished and ask for more.
    #[inline(always)]
    pub fn refill(&mut self) -> Token {
        let pending = self.pending();
        if pending >= CARRY {
            let line = self.line;
            self.message += u64::from(pending);
            self.clear();
            return Token::Head(line, pending);
        }
        self.supply()
    }

    /// Asks for more of the packet behind what is unfinished.
    #[inline(always)]
    pub fn supply(&mut self) -> Token {
        if self.line > 0 {
            // What begins after the window's start lies in this packet whole: read it again from its start.
            self.offset = self.offset.wrapping_sub(self.pending());
            self.clear();
        }
        let left = self.end.wrapping_sub(self.offset);
        if left == 0 {
            return Token::Empty;
        }
        Token::Load(self.offset, if left < FILL { left } else { FILL })
    }

    /// Books bytes that were loaded behind the window's end.
    #[inline(always)]
    pub fn loaded(&mut self, length: u32) {
        self.offset = self.offset.wrapping_add(length);
        self.have = self.have.wrapping_add(length);
    }
}

/// A window index, [`WINDOW`] at most. In the kernel it is written out: the compiler compares one register and reads by a copy
/// of it, and verifiers as old as Linux 6.1's do not know that a copy of 32 bits is as large as what it is a copy of.
#[cfg(target_arch = "bpf")]
#[inline(always)]
fn within(at: u32) -> u64 {
    let mut at = u64::from(at);
    // SAFETY: changes nothing but its own register.
    unsafe {
        core::arch::asm!("if {at} <= {most} goto +1", "{at} = {most}", at = inout(reg) at, most = const WINDOW);
    }
    at
}

#[cfg(not(target_arch = "bpf"))]
fn within(at: u32) -> u64 {
    u64::from(at.min(WINDOW))
}

/// 0x80 in each byte of `word` that equals `byte`.
#[inline(always)]
#[must_use]
pub fn bytes_equal(word: u64, byte: u8) -> u64 {
    let different = word ^ (ONES * byte as u64);
    !(((different & !HIGH) + !HIGH) | different | !HIGH)
}
