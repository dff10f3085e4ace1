//! Who called: the last element of `x-forwarded-client-cert`, as a proxy writes it in front of its application.
//!
//! Elements are separated by commas outside of quotes; what precedes the last one is its sender's claim. A value that is
//! one element and equals the connection's last one is compared word by word; any other is read byte by byte.
//! Source: envoy `docs/root/configuration/http/http_conn_man/headers.rst`, x-forwarded-client-cert.

use observer_common::{Caller, CallerId, CallerKind, MAX_CALLER_TEXT, health::Counter};

use crate::{
    atomic,
    connection::{ConnLeg, Connection, flags::WITHOUT_CALLERS},
    env::{CallerStore, Recorder, Runtime, Step},
    flow::Flow,
    hpack::RING,
    huffman,
};

/// In place of an id, in the programs only: there was no room for the caller. It is counted as such, and becomes
/// [`CallerId::UNREADABLE`].
pub const NO_ROOM: CallerId = CallerId(u16::MAX - 2);
/// Largest id of a caller.
pub const MAX_CALLER_ID: u32 = NO_ROOM.0 as u32 - 1;

/// Words of a caller's text.
const WORDS: u32 = MAX_CALLER_TEXT as u32 / 8;
/// Most steps per call of [`feed`]: over the text kept so far, and over a window.
const MAX_STEPS: u32 = 128;

/// Words compared per step.
const MATCHED_WORDS: u32 = 16;

/// Bits of [`CallerText::state`].
mod state {
    /// The value is the last one's text so far, which is not overwritten.
    pub(super) const MATCHES: u32 = 1;
    /// In quotes.
    pub(super) const QUOTED: u32 = 1 << 1;
    /// Behind a backslash in quotes.
    pub(super) const ESCAPED: u32 = 1 << 2;
    /// The element is longer than a caller's text.
    pub(super) const TOO_LONG: u32 = 1 << 3;
    /// The value is Huffman coded.
    pub(super) const HUFFMAN: u32 = 1 << 4;
    /// It is not a Huffman code.
    pub(super) const BROKEN: u32 = 1 << 5;
}

use state::{BROKEN, ESCAPED, HUFFMAN, MATCHES, QUOTED, TOO_LONG};

/// The caller that a connection's requests named last: the value of its socket's storage.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug)]
pub struct CallerText {
    /// The element being read, or read last. Its length is 0 unless its id is known.
    pub caller: Caller,
    /// Ids by the number of the insertion into the HPACK table modulo [`RING`].
    pub ids: [u16; RING],
    /// Hash of kind and text.
    pub hash: u64,
    /// Window index of the next byte.
    pub at: u32,
    /// Number of bytes from there on.
    pub left: u32,
    /// Bytes of the element in the text.
    pub read: u32,
    /// Bytes of it up to the last that is not blank.
    pub end: u32,
    /// Bytes of the text that are to be read again, now that the value differs from the last one.
    pub again: u32,
    /// Bits of [`state`].
    pub state: u32,
    /// State of the Huffman decoder.
    pub huffman: u32,
    /// Zero.
    pub padding: u32,
}

const _: () = assert!(size_of::<CallerText>() == 808);
const _: () = assert!(core::mem::offset_of!(Caller, text) == 8);

impl CallerText {
    /// Returns a pointer to a word of the text, or of what is behind it.
    #[inline(always)]
    fn word_at(&mut self, index: u32) -> *mut u64 {
        // SAFETY: at most 65 words from the start of 808 bytes, which are aligned.
        unsafe { (&raw mut *self).cast::<u64>().add(1 + (index & 63) as usize) }
    }

    /// Returns the eight bytes of the text from `at` on, the first one lowest.
    #[inline(always)]
    fn word(&mut self, at: u32) -> u64 {
        let first = self.word_at(at >> 3);
        // SAFETY: see `word_at`; there is one word more.
        let (low, high) = unsafe { (*first, *first.add(1)) };
        let shift = (at & 7) * 8;
        low >> shift | high << 1 << (63 - shift)
    }

    /// Returns the entry for the id of an insertion into the HPACK table.
    #[inline(always)]
    pub(crate) fn id(&mut self, insertion: u32) -> &mut u16 {
        // SAFETY: the length is a power of two.
        unsafe { self.ids.get_unchecked_mut(insertion as usize & (RING - 1)) }
    }

    /// Adds a byte to the element, or begins another one.
    #[inline(always)]
    fn push(&mut self, byte: u32) {
        push_caller_byte(self, byte);
    }
}

/// Returns whether the callers of a connection's requests are read. What its own application sends to a sidecar is a claim.
#[inline(always)]
pub(crate) fn is_read(c: &Connection) -> bool {
    c.leg == ConnLeg::DESTINATION && c.flags & WITHOUT_CALLERS == 0
}

/// Begins a value.
#[inline(always)]
pub(crate) fn begin(text: &mut CallerText, is_huffman: bool) {
    text.state = if is_huffman {
        text.caller.length = 0;
        HUFFMAN
    } else if text.caller.length != 0 {
        MATCHES
    } else {
        0
    };
    text.read = 0;
    text.end = 0;
    text.again = 0;
    text.huffman = huffman::MAY_END;
}

/// Reads `length` bytes of the value from window index `at` on.
#[inline(always)]
pub(crate) fn feed<E: Runtime>(text: &mut CallerText, env: &mut E, flow: &Flow, at: u32, length: u32) {
    text.at = at;
    text.left = length;
    // Nearly every value is the last one, and compared at once; a loop of the kernel's costs more than that.
    if read_caller(text, flow) == 0 {
        env.repeat(MAX_STEPS, |_, _| if read_caller(text, flow) == 0 { Step::More } else { Step::Done });
    }
}

/// Ends the value; returns its caller.
#[inline(always)]
pub(crate) fn end<E: Runtime + CallerStore>(text: &mut CallerText, env: &mut E, flow: &Flow) -> CallerId {
    if atomic::load(&text.state) & MATCHES != 0 && text.read != text.caller.length {
        unmatch(text);
        feed(text, env, flow, 0, 0);
    }
    settle_caller(text);
    let known = atomic::load(&text.caller.length) != 0;
    if known && text.caller.id == CallerId::NONE {
        let id = env.intern(&mut text.caller, text.hash);
        if id == NO_ROOM || id == CallerId::UNREADABLE {
            text.caller.length = 0;
        }
        text.caller.id = id;
    }
    text.caller.id
}

/// Returns the id of the caller that is an address.
#[inline(always)]
pub fn of_address<E: CallerStore>(text: &mut CallerText, env: &mut E, address: &[u8; 16]) -> CallerId {
    let address = u128::from_le_bytes(*address);
    // SAFETY: see `word_at`.
    unsafe {
        *text.word_at(0) = address as u64;
        *text.word_at(1) = (address >> 64) as u64;
    }
    text.caller.length = 16;
    text.caller.kind = CallerKind::ADDRESS;
    settle_address(text);
    env.intern(&mut text.caller, text.hash)
}

/// Counts a request's caller if it is not known; returns it as it is recorded.
#[inline(always)]
pub fn record<E: Recorder>(env: &mut E, caller: CallerId) -> CallerId {
    let (caller, counter) = match caller {
        NO_ROOM => (CallerId::UNREADABLE, Counter::CallersFull),
        CallerId::UNREADABLE => (CallerId::UNREADABLE, Counter::CallerUnreadable),
        CallerId::MISSED => (CallerId::MISSED, Counter::CallerMissed),
        _ => return caller,
    };
    env.count(counter, 1);
    caller
}

/// Goes on reading byte by byte, from the start of the text that has matched so far.
#[inline(always)]
fn unmatch(text: &mut CallerText) {
    text.state &= !MATCHES;
    text.again = text.read;
    text.read = 0;
    text.caller.length = 0;
}

/// Compares the next words with the last value; returns as [`read_caller`].
#[inline(always)]
fn match_words(text: &mut CallerText, flow: &Flow) -> u32 {
    let (mut read, mut at, mut left) = (atomic::load(&text.read), atomic::load(&text.at), atomic::load(&text.left));
    let mut different = 0;
    let mut i = 0;
    while i < MATCHED_WORDS && left >= 8 {
        different |= text.word(read) ^ flow.word(at);
        read = read.wrapping_add(8);
        at = at.wrapping_add(8);
        left -= 8;
        i += 1;
    }
    if left != 0 && left < 8 {
        different |= (text.word(read) ^ flow.word(at)) << ((8 - left) * 8);
        read = read.wrapping_add(left);
        left = 0;
    }
    if different != 0 || read > text.caller.length {
        unmatch(text);
        return 0;
    }
    text.read = read;
    text.at = at;
    text.left = left;
    u32::from(left == 0)
}

/// Reads the next eight bytes, or compares many; returns 0 if there are more. Global, so that the verifier checks it on its own, as the two
/// below.
#[cfg_attr(target_arch = "bpf", unsafe(no_mangle))]
#[inline(never)]
extern "C" fn read_caller(text: *mut CallerText, flow: *const Flow) -> u32 {
    // SAFETY: null or in a socket's storage.
    let (Some(text), Some(flow)) = (unsafe { (text.as_mut(), flow.as_ref()) }) else { return 1 };
    if text.state & MATCHES != 0 {
        return match_words(text, flow);
    }
    let (read, again) = (atomic::load(&text.read), atomic::load(&text.again));
    let (mut word, count);
    if read < again {
        word = text.word(read);
        count = at_most_eight(again.wrapping_sub(read));
        if read.wrapping_add(count) == again {
            text.again = 0;
        }
    } else {
        count = at_most_eight(atomic::load(&text.left));
        if count == 0 {
            return 1;
        }
        word = flow.word(text.at);
        text.at = text.at.wrapping_add(count);
        text.left = text.left.wrapping_sub(count);
    }
    let mut i = 0;
    while i < count {
        let byte = word as u32 & 0xff;
        if atomic::load(&text.state) & HUFFMAN == 0 {
            text.push(byte);
        } else {
            decode(text, byte >> 4);
            decode(text, byte);
        }
        word >>= 8;
        i += 1;
    }
    0
}

#[inline(always)]
fn at_most_eight(length: u32) -> u32 {
    if length < 8 { length } else { 8 }
}

/// Decodes four bits.
#[inline(always)]
fn decode(text: &mut CallerText, bits: u32) {
    let entry = huffman::next(atomic::load(&text.huffman), bits);
    text.huffman = entry;
    if entry & huffman::FAILS != 0 {
        text.state |= BROKEN;
    }
    if entry & huffman::HAS_SYMBOL != 0 {
        text.push(entry >> 8 & 0xff);
    }
}

/// Adds a byte to the element, or begins another one.
#[cfg_attr(target_arch = "bpf", unsafe(no_mangle))]
#[inline(never)]
extern "C" fn push_caller_byte(text: *mut CallerText, byte: u32) -> u32 {
    // SAFETY: null or in a socket's storage.
    let Some(text) = (unsafe { text.as_mut() }) else { return 0 };
    let state = text.state;
    if state & ESCAPED != 0 {
        text.state = state & !ESCAPED;
    } else if byte == u32::from(b'\\') && state & QUOTED != 0 {
        text.state = state | ESCAPED;
    } else if byte == u32::from(b'"') {
        text.state = state ^ QUOTED;
    } else if byte == u32::from(b',') && state & QUOTED == 0 {
        text.state = state & !TOO_LONG;
        text.read = 0;
        text.end = 0;
        return 0;
    }
    let is_blank = byte == u32::from(b' ') || byte == u32::from(b'\t') || byte == u32::from(b'\r');
    let read = atomic::load(&text.read);
    if is_blank && read == 0 {
        return 0;
    }
    if read >= MAX_CALLER_TEXT as u32 {
        if !is_blank {
            text.state |= TOO_LONG;
        }
        return 0;
    }
    // SAFETY: masked to less than the storage that follows the text's start.
    unsafe { *text.caller.text.as_mut_ptr().add((read & 511) as usize) = byte as u8 };
    text.read = read.wrapping_add(1);
    if !is_blank {
        text.end = read.wrapping_add(1);
    }
    0
}

/// Completes [`CallerText::caller`] and its hash at the end of a value: its id is not known yet, or there is none, and then
/// the length is 0.
#[cfg_attr(target_arch = "bpf", unsafe(no_mangle))]
#[inline(never)]
extern "C" fn settle_caller(text: *mut CallerText) -> u32 {
    // SAFETY: null or in a socket's storage.
    let Some(text) = (unsafe { text.as_mut() }) else { return 0 };
    let state = text.state;
    if state & MATCHES != 0 {
        return 0;
    }
    let is_cut = state & HUFFMAN != 0 && text.huffman & huffman::MAY_END == 0;
    if state & (QUOTED | ESCAPED | TOO_LONG | BROKEN) != 0 || is_cut {
        text.caller.length = 0;
        text.caller.id = CallerId::UNREADABLE;
        return 0;
    }
    let length = atomic::load(&text.end);
    text.caller.length = length;
    text.caller.id = CallerId::NONE;
    text.caller.kind = CallerKind::CERTIFICATE;
    text.hash = hash(text, length);
    0
}

/// Completes the hash of an address. Global, as the others.
#[cfg_attr(target_arch = "bpf", unsafe(no_mangle))]
#[inline(never)]
extern "C" fn settle_address(text: *mut CallerText) -> u32 {
    // SAFETY: null or in a socket's storage.
    if let Some(text) = unsafe { text.as_mut() } {
        text.hash = hash(text, 16);
    }
    0
}

/// Clears what is behind the text, and returns the hash of kind and text.
#[inline(always)]
fn hash(text: &mut CallerText, length: u32) -> u64 {
    let mut hash = u64::from(text.caller.kind.0);
    let mut i = 0;
    while i < WORDS {
        let left = length.saturating_sub(i * 8);
        let word = text.word_at(i);
        // SAFETY: see `word_at`.
        unsafe {
            *word &= if left < 8 { (1 << (left * 8)) - 1 } else { u64::MAX };
            hash = (hash.rotate_left(23) ^ *word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        i += 1;
    }
    hash ^ hash >> 29
}
