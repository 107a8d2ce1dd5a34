//! A deflate encoder (RFC 1951) for texts of a few hundred bytes.
//!
//! It writes one block with the fixed codes of RFC 1951 3.2.6 and an empty stored block, which ends at a
//! byte, so that another block can follow as it is. Unlike zlib it clears one kibibyte for a text instead of
//! 128, and builds no codes. Repetitions are found as by zlib's fastest level: one candidate for each hash.
use crate::limits::SHORT_TEXT_BYTES_MAX;

/// Longest and shortest repetition that is written as a match. The format allows matches of three bytes.
const MATCH_MAX: usize = 258;
const MATCH_MIN: usize = 4;
const HASH_BITS: u32 = 9;

/// A code of the fixed alphabet, as it is written: its first bit is the lowest one.
#[derive(Clone, Copy)]
struct Code {
    bits: u16,
    length: u8,
}

/// By byte.
static LITERALS: [Code; 256] = literals();
/// By length of a match less 3, with the extra bits.
static LENGTHS: [Code; MATCH_MAX - 2] = lengths();

/// The end of a block (seven zeros), and the type of an empty stored block (three).
const END_AND_STORED: u8 = 7 + 3;
/// Not the last block, and its codes are the fixed ones.
const FIXED_BLOCK: Code = Code { bits: 0b010, length: 3 };
/// Length of a stored block and its complement.
const EMPTY_STORED: [u8; 4] = [0, 0, 0xff, 0xff];

#[expect(clippy::cast_possible_truncation, reason = "symbols are below 288")]
const fn fixed_code(symbol: usize) -> Code {
    let symbol = symbol as u16;
    let (code, length) = match symbol {
        0..=143 => (0x30 + symbol, 8),
        144..=255 => (0x190 + symbol - 144, 9),
        256..=279 => (symbol - 256, 7),
        _ => (0xc0 + symbol - 280, 8),
    };
    Code { bits: code.reverse_bits() >> (16 - length), length }
}

const fn literals() -> [Code; 256] {
    let mut codes = [Code { bits: 0, length: 0 }; 256];
    let mut byte = 0;
    while byte < 256 {
        codes[byte] = fixed_code(byte);
        byte += 1;
    }
    codes
}

#[expect(clippy::cast_possible_truncation, reason = "at most five extra bits")]
const fn lengths() -> [Code; MATCH_MAX - 2] {
    let mut codes = [Code { bits: 0, length: 0 }; MATCH_MAX - 2];
    let mut rest = 0;
    while rest < codes.len() {
        let (symbol, extra) = match rest {
            0..=7 => (rest, 0),
            // 258 has its own symbol.
            255 => (28, 0),
            _ => {
                let extra = rest.ilog2() - 2;
                (4 * extra as usize + 4 + (rest >> extra & 3), extra)
            }
        };
        let code = fixed_code(257 + symbol);
        let value = (rest & ((1 << extra) - 1)) as u16;
        codes[rest] = Code { bits: code.bits | value << code.length, length: code.length + extra as u8 };
        rest += 1;
    }
    codes
}

/// Appends `text`, of at most `SHORT_TEXT_BYTES_MAX` bytes, as a block that is not the last one. What is
/// appended ends at a byte.
pub fn encode(text: &[u8], out: &mut Vec<u8>) {
    debug_assert!(text.len() <= SHORT_TEXT_BYTES_MAX, "positions have 16 bits");
    let mut writer = BitWriter::new(text.len(), out);
    writer.put(FIXED_BLOCK);
    let mut positions = [0_u16; 1 << HASH_BITS];
    let mut at = 0;
    while let Some(word) = text[at..].first_chunk::<MATCH_MIN>() {
        let hash = u32::from_le_bytes(*word).wrapping_mul(0x9e37_79b1) >> (32 - HASH_BITS);
        let candidate = usize::from(positions[hash as usize]);
        positions[hash as usize] = position(at);
        if candidate < at && text[candidate..].first_chunk() == Some(word) {
            let length = match_length(text, candidate, at);
            writer.put_match(length, at - candidate);
            at += length;
        } else {
            writer.put(LITERALS[usize::from(word[0])]);
            at += 1;
        }
    }
    for byte in &text[at..] {
        writer.put(LITERALS[usize::from(*byte)]);
    }
    writer.finish();
}

#[expect(clippy::cast_possible_truncation, reason = "at most SHORT_TEXT_BYTES_MAX")]
fn position(at: usize) -> u16 {
    at as u16
}

/// How many bytes at `at` are those at `from`, which is before it.
#[inline]
fn match_length(text: &[u8], from: usize, at: usize) -> usize {
    let end = text.len().min(at + MATCH_MAX);
    let mut length = MATCH_MIN;
    while let (Some(one), Some(other)) =
        (text[from + length..].first_chunk(), text[at + length..end].first_chunk())
    {
        let difference = u64::from_le_bytes(*one) ^ u64::from_le_bytes(*other);
        if difference != 0 {
            return length + difference.trailing_zeros() as usize / 8;
        }
        length += 8;
    }
    let rest = text[at + length..end].iter().zip(&text[from + length..]);
    length + rest.take_while(|(one, other)| one == other).count()
}

/// Appends bits, the first one lowest.
struct BitWriter<'o> {
    out: &'o mut Vec<u8>,
    /// Where the next whole byte goes. Beyond it `out` is zero.
    at: usize,
    /// Bits not yet written, and their number: less than 8 after each code.
    bits: u64,
    count: u32,
}

impl<'o> BitWriter<'o> {
    /// Reserves space for a text of this length: nine bits for each byte at most.
    fn new(text_bytes: usize, out: &'o mut Vec<u8>) -> Self {
        let at = out.len();
        out.resize(at + text_bytes + text_bytes / 8 + 16, 0);
        Self { out, at, bits: 0, count: 0 }
    }

    #[inline]
    fn put(&mut self, code: Code) {
        self.bits |= u64::from(code.bits) << self.count;
        self.count += u32::from(code.length);
        if self.count >= 32 {
            self.flush();
        }
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "distances are below 32 KiB")]
    fn put_match(&mut self, length: usize, distance: usize) {
        self.put(LENGTHS[length - 3]);
        let rest = distance - 1;
        let (symbol, extra) = match rest {
            0..=3 => (rest, 0),
            _ => {
                let extra = rest.ilog2() - 1;
                (2 * extra as usize + 2 + (rest >> extra & 1), extra)
            }
        };
        let code = (symbol as u16).reverse_bits() >> 11;
        self.put(Code { bits: code, length: 5 });
        self.put(Code { bits: (rest & ((1 << extra) - 1)) as u16, length: extra as u8 });
    }

    /// Writes all whole bytes.
    #[inline]
    fn flush(&mut self) {
        if let Some(place) = self.out.get_mut(self.at..).and_then(|rest| rest.first_chunk_mut()) {
            *place = self.bits.to_le_bytes();
        }
        self.at += self.count as usize / 8;
        self.bits >>= self.count & !7;
        self.count &= 7;
    }

    /// Ends the block, and adds an empty stored one.
    fn finish(mut self) {
        self.flush();
        self.put(Code { bits: 0, length: END_AND_STORED });
        self.count = self.count.next_multiple_of(8);
        self.flush();
        self.out.truncate(self.at);
        self.out.extend_from_slice(&EMPTY_STORED);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    /// The text that the blocks have, ended by an empty last block with fixed codes.
    fn decode(blocks: &[u8]) -> Vec<u8> {
        let mut text = Vec::new();
        let deflate = [blocks, &[0b011, 0]].concat();
        flate2::read::DeflateDecoder::new(&deflate[..]).read_to_end(&mut text).expect("valid");
        text
    }

    fn round_trip(text: &[u8]) -> usize {
        let mut out = b"before".to_vec();
        encode(text, &mut out);
        assert_eq!(decode(&out[6..]), text);
        assert!(out.ends_with(&EMPTY_STORED) && out.starts_with(b"before"));
        out.len() - 6
    }

    #[test]
    fn decodes_to_the_text() {
        for text in ["", "a", "abc", "abcd", "abcdabcd", "{\"identifier\":\"é日本😀\",\"traits\":[]"] {
            round_trip(text.as_bytes());
        }
        let every_byte: Vec<u8> = (0..=255).chain(0..=255).collect();
        assert!(round_trip(&every_byte) < 300, "the second half is one match");
    }

    #[test]
    fn matches_have_every_length_and_distance() {
        for length in 4..=600 {
            assert!(round_trip(&vec![b'a'; length]) < 20, "{length}");
        }
        // Bytes that do not repeat by themselves, then the first ones again.
        let noise: Vec<u8> = (0..SHORT_TEXT_BYTES_MAX as u32)
            .map(|at| (at.wrapping_mul(2_654_435_761) >> 13 ^ at) as u8)
            .collect();
        for distance in 8..SHORT_TEXT_BYTES_MAX - 8 {
            round_trip(&[&noise[..distance], &noise[..8]].concat());
        }
    }

    #[test]
    fn worst_text_fits_in_what_is_reserved() {
        let high: Vec<u8> =
            (0..SHORT_TEXT_BYTES_MAX as u32).map(|at| 144 + (at.wrapping_mul(at) / 7 % 112) as u8).collect();
        assert!(round_trip(&high) <= SHORT_TEXT_BYTES_MAX * 9 / 8 + 16);
    }
}
