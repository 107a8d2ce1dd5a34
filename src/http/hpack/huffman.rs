//! Huffman coding of strings (RFC 7541 5.2).
//!
//! The decoder is a state machine over the nodes of the code's tree. It reads four bits at a time; no code is
//! shorter than five bits, so each step ends at most one symbol.
use crate::http::hpack::codes::CODES;

/// The inner nodes of the tree; its leaves are the 257 symbols.
const NODES: usize = 256;
const EOS: usize = 256;

/// The result of four bits at a node.
#[derive(Clone, Copy)]
struct Transition {
    node: u8,
    symbol: u8,
    /// A symbol ends within the four bits.
    ends_symbol: bool,
    /// The bits contain the end-of-string symbol, which is invalid.
    is_invalid: bool,
}

static TRANSITIONS: [[Transition; 16]; NODES] = transitions();

/// Whether a string may end at the node: fewer than eight bits since the last symbol, all of them 1.
static MAY_END: [bool; NODES] = may_end();

const fn tree() -> [[u16; 2]; NODES] {
    let mut tree = [[0; 2]; NODES];
    let (mut nodes, mut symbol) = (1, 0);
    while symbol < CODES.len() {
        let (code, bits) = CODES[symbol];
        let (mut node, mut bit) = (0, bits);
        while bit > 1 {
            bit -= 1;
            let side = ((code >> bit) & 1) as usize;
            if tree[node][side] == 0 {
                tree[node][side] = nodes;
                nodes += 1;
            }
            node = tree[node][side] as usize;
        }
        tree[node][(code & 1) as usize] = (NODES + symbol) as u16;
        symbol += 1;
    }
    tree
}

const fn transition(tree: &[[u16; 2]; NODES], node: usize, bits: usize) -> Transition {
    let mut found = Transition { node: 0, symbol: 0, ends_symbol: false, is_invalid: false };
    let (mut at, mut bit) = (node, 4);
    while bit > 0 {
        bit -= 1;
        let child = tree[at][(bits >> bit) & 1] as usize;
        if child < NODES {
            at = child;
        } else if child - NODES == EOS {
            found.is_invalid = true;
            at = 0;
        } else {
            found.ends_symbol = true;
            found.symbol = (child - NODES) as u8;
            at = 0;
        }
    }
    found.node = at as u8;
    found
}

const fn transitions() -> [[Transition; 16]; NODES] {
    let tree = tree();
    let mut table = [[transition(&tree, 0, 0); 16]; NODES];
    let mut node = 0;
    while node < NODES {
        let mut bits = 0;
        while bits < 16 {
            table[node][bits] = transition(&tree, node, bits);
            bits += 1;
        }
        node += 1;
    }
    table
}

const fn may_end() -> [bool; NODES] {
    let tree = tree();
    let mut ends = [false; NODES];
    let (mut node, mut depth) = (0, 0);
    while depth < 8 {
        ends[node] = true;
        node = tree[node][1] as usize;
        depth += 1;
    }
    ends
}

/// Appends the decoded string. False: the coding is invalid.
pub fn decode(coded: &[u8], out: &mut Vec<u8>) -> bool {
    // The shortest code has five bits.
    out.reserve(coded.len() + coded.len() / 2 + coded.len() / 8 + 1);
    let mut node = 0;
    for byte in coded {
        for bits in [byte >> 4, byte & 15] {
            let next = TRANSITIONS[usize::from(node)][usize::from(bits)];
            if next.is_invalid {
                return false;
            }
            if next.ends_symbol {
                out.push(next.symbol);
            }
            node = next.node;
        }
    }
    MAY_END[usize::from(node)]
}

/// The length of the coded string, bytes.
pub fn encoded_bytes(text: &[u8]) -> usize {
    let bits: usize = text.iter().map(|byte| usize::from(CODES[usize::from(*byte)].1)).sum();
    bits.div_ceil(8)
}

/// Appends the coded string.
pub fn encode(text: &[u8], out: &mut Vec<u8>) {
    let (mut pending, mut pending_bits) = (0_u64, 0);
    for byte in text {
        let (code, bits) = CODES[usize::from(*byte)];
        pending = pending << bits | u64::from(code);
        pending_bits += u32::from(bits);
        while pending_bits >= 8 {
            pending_bits -= 8;
            out.push((pending >> pending_bits) as u8);
        }
    }
    if pending_bits > 0 {
        // Padded with the start of the end-of-string code.
        let padding = 8 - pending_bits;
        out.push((pending << padding) as u8 | ((1_u32 << padding) - 1) as u8);
    }
}
