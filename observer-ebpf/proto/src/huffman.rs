//! Huffman code of HPACK (RFC 7541 Appendix B): a table by which half a byte is decoded at a time.
//!
//! The code is canonical, so that its lengths determine it. No symbol has fewer than five bits, so half a byte ends at most
//! one.

use core::hint::black_box;

/// Bits of each symbol's code; the last one is the end of the string.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

/// Bit of an entry: half a byte ends a symbol, which is in bits 8 to 15.
pub const HAS_SYMBOL: u32 = 1 << 16;
/// Bit of an entry: no string may have these bits.
pub const FAILS: u32 = 1 << 17;
/// Bit of an entry: a string may end here, behind a symbol and less than a byte of ones.
pub const MAY_END: u32 = 1 << 18;

/// By state and half a byte: the next state in the lowest byte, and the bits above.
static TABLE: [u32; 256 * 16] = table();

/// Returns the entry for a state, of which only the lowest byte counts, and four bits.
#[inline(always)]
#[must_use]
pub fn next(state: u32, bits: u32) -> u32 {
    // Hidden, so that the compiler does not drop the mask, which the verifier of Linux 6.1 needs.
    let index = black_box(state << 4 | bits & 0xf) as usize & (TABLE.len() - 1);
    // SAFETY: masked just here; the length is a power of two.
    unsafe { *TABLE.get_unchecked(index) }
}

/// In place of a node: a symbol.
const SYMBOL: u16 = 1 << 15;
const END: u16 = 256;

/// Returns the code as a tree: each node's successors by the next bit, a node or a symbol. The root is node 0.
const fn tree() -> [[u16; 2]; 256] {
    let mut nodes = [[0; 2]; 256];
    let mut used = 1;
    let mut code = 0u32;
    let mut length = 1;
    while length <= 30 {
        let mut symbol = 0;
        while symbol < 257 {
            if LENGTHS[symbol as usize] == length {
                let mut node = 0;
                let mut bit = length - 1;
                while bit > 0 {
                    let next = &mut nodes[node][(code >> bit & 1) as usize];
                    if *next == 0 {
                        *next = used;
                        used += 1;
                    }
                    node = *next as usize;
                    bit -= 1;
                }
                nodes[node][(code & 1) as usize] = SYMBOL | symbol;
                code += 1;
            }
            symbol += 1;
        }
        code <<= 1;
        length += 1;
    }
    nodes
}

const fn table() -> [u32; 256 * 16] {
    let nodes = tree();
    let mut may_end = [false; 256];
    let (mut node, mut depth) = (0, 0);
    while depth < 8 {
        may_end[node] = true;
        node = nodes[node][1] as usize;
        depth += 1;
    }
    let mut table = [0; 256 * 16];
    let mut index = 0;
    while index < table.len() {
        let mut node = (index >> 4) as u16;
        let mut entry = 0;
        let mut bit = 4;
        while bit > 0 {
            bit -= 1;
            let next = nodes[node as usize][index >> bit & 1];
            node = next;
            if next & SYMBOL != 0 {
                entry |= if next == SYMBOL | END { FAILS } else { HAS_SYMBOL | ((next & 0xff) as u32) << 8 };
                node = 0;
            }
        }
        table[index] = entry | node as u32 | if may_end[node as usize] { MAY_END } else { 0 };
        index += 1;
    }
    table
}
