//! HPACK decoding by hand (RFC 7541): what any server that reads its requests must do, and no more.
use std::collections::VecDeque;

use codes::CODES;
use static_table::STATIC_TABLE;

// Data of the RFC; the decoder is this program's own, so that the floor does not change with the proxy's.
#[path = "../../../../src/http/hpack/codes.rs"]
mod codes;
#[path = "../../../../src/http/hpack/static_table.rs"]
mod static_table;

const TABLE_BYTES_MAX: usize = 4096;
const ENTRY_BYTES: usize = 32;
const NODES: usize = 256;

/// The result of four bits at a node of the Huffman code's tree.
#[derive(Clone, Copy, Default)]
struct Step {
    node: u8,
    symbol: Option<u8>,
}

/// The steps of all inner nodes.
pub struct Huffman(Vec<[Step; 16]>);

impl Huffman {
    pub fn new() -> Self {
        let mut tree = vec![[0_usize; 2]];
        for (symbol, (code, bits)) in CODES.into_iter().enumerate() {
            let mut node = 0;
            for bit in (1..bits).rev() {
                let side = (code >> bit & 1) as usize;
                if tree[node][side] == 0 {
                    tree[node][side] = tree.len();
                    tree.push([0; 2]);
                }
                node = tree[node][side];
            }
            tree[node][(code & 1) as usize] = NODES + symbol;
        }
        let step = |node: usize, bits: usize| {
            let (mut at, mut symbol) = (node, None);
            for bit in (0..4).rev() {
                at = tree[at][bits >> bit & 1];
                if at >= NODES {
                    symbol = Some((at - NODES) as u8);
                    at = 0;
                }
            }
            Step { node: at as u8, symbol }
        };
        Self((0..NODES).map(|node| std::array::from_fn(|bits| step(node, bits))).collect())
    }

    fn decode(&self, coded: &[u8], out: &mut Vec<u8>) {
        let mut node = 0;
        for byte in coded {
            for bits in [byte >> 4, byte & 15] {
                let step = self.0[usize::from(node)][usize::from(bits)];
                out.extend(step.symbol);
                node = step.node;
            }
        }
    }
}

/// The decoder of one connection.
#[derive(Default)]
pub struct Decoder {
    /// Name and value in one text, and the length of the name; the newest first.
    entries: VecDeque<(Box<[u8]>, usize)>,
    bytes: usize,
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Decoder {
    /// Passes each name and value to `field`. `None`: the block is invalid.
    pub fn decode(
        &mut self,
        huffman: &Huffman,
        block: &[u8],
        mut field: impl FnMut(&[u8], &[u8]),
    ) -> Option<()> {
        let mut rest = block;
        while let Some(first) = rest.first().copied() {
            if first & 0x80 != 0 {
                let (name, value) = self.get(integer(&mut rest, 7)?)?;
                field(name, value);
                continue;
            }
            if first & 0xe0 == 0x20 {
                let bytes_max = integer(&mut rest, 5)?;
                self.evict(bytes_max.min(TABLE_BYTES_MAX));
                continue;
            }
            let is_kept = first & 0x40 != 0;
            let index = integer(&mut rest, if is_kept { 6 } else { 4 })?;
            let (mut name, mut value) = (std::mem::take(&mut self.name), std::mem::take(&mut self.value));
            (name.clear(), value.clear());
            match index {
                0 => string(huffman, &mut rest, &mut name)?,
                index => name.extend_from_slice(self.get(index)?.0),
            }
            string(huffman, &mut rest, &mut value)?;
            field(&name, &value);
            if is_kept {
                let entry_bytes = name.len() + value.len() + ENTRY_BYTES;
                self.evict(TABLE_BYTES_MAX.checked_sub(entry_bytes)?);
                self.bytes += entry_bytes;
                self.entries.push_front(([&name[..], &value[..]].concat().into(), name.len()));
            }
            (self.name, self.value) = (name, value);
        }
        Some(())
    }

    fn get(&self, index: usize) -> Option<(&[u8], &[u8])> {
        if let Some((name, value)) = STATIC_TABLE.get(index.checked_sub(1)?) {
            return Some((name.as_bytes(), value.as_bytes()));
        }
        let (text, name_bytes) = self.entries.get(index - 1 - STATIC_TABLE.len())?;
        Some(text.split_at(*name_bytes))
    }

    fn evict(&mut self, bytes_max: usize) {
        while self.bytes > bytes_max
            && let Some((text, _)) = self.entries.pop_back()
        {
            self.bytes -= text.len() + ENTRY_BYTES;
        }
    }
}

fn integer(rest: &mut &[u8], prefix_bits: u32) -> Option<usize> {
    let (first, mut after) = rest.split_first()?;
    let prefix_max = (1_usize << prefix_bits) - 1;
    let mut value = usize::from(*first) & prefix_max;
    let mut shift = 0;
    while value >= prefix_max && shift < 28 {
        let (byte, next) = after.split_first()?;
        after = next;
        value += usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    *rest = after;
    Some(value)
}

fn string(huffman: &Huffman, rest: &mut &[u8], out: &mut Vec<u8>) -> Option<()> {
    let is_coded = rest.first()? & 0x80 != 0;
    let length = integer(rest, 7)?;
    let (text, after) = rest.split_at_checked(length)?;
    *rest = after;
    if is_coded { huffman.decode(text, out) } else { out.extend_from_slice(text) }
    Some(())
}
