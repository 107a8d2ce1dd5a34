//! A deflate encoder (RFC 1951) for texts that fit in its window of 32 KiB.
//!
//! It writes one block with the fixed codes of RFC 1951 3.2.6 and finds repetitions as zlib-rs does at its
//! fastest level: one candidate for each hash. That one clears 128 KiB and copies the text into its window;
//! this one clears 1 to 32 KiB and copies nothing, so that it takes half of the time.

/// The longest text that can be encoded: no distance is longer.
pub const TEXT_BYTES_MAX: usize = 32 * 1024;

/// Longest and shortest repetition that is written as a match. The format allows matches of three bytes.
const MATCH_MAX: usize = 258;
const MATCH_MIN: usize = 4;
/// Texts up to this length, such as an identifier with twenty traits, get a table that is cleared faster.
pub const SHORT_TEXT_BYTES_MAX: usize = 1536;
const MEDIUM_TEXT_BYTES_MAX: usize = 12 * 1024;
/// Positions that are remembered: for short texts, medium ones, and others. Fewer make larger blocks than
/// zlib-rs does.
const SHORT_POSITIONS: usize = 512;
const MEDIUM_POSITIONS: usize = 4096;
const POSITIONS: usize = 16_384;

/// What follows a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockEnd {
    /// Nothing: it is the last one.
    Last,
    /// Other blocks: an empty stored block is added, after which they begin at a byte.
    AtByte,
}

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

/// The end of a block, and the type of a stored block that is not the last one.
const END: Code = Code { bits: 0, length: 7 };
const STORED: Code = Code { bits: 0, length: 3 };
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

/// Appends `text` as a block. False, and nothing is appended, if it is longer than [`TEXT_BYTES_MAX`].
pub fn encode(text: &[u8], end: BlockEnd, out: &mut Vec<u8>) -> bool {
    if text.len() > TEXT_BYTES_MAX {
        return false;
    }
    if text.len() <= SHORT_TEXT_BYTES_MAX {
        encode_with::<SHORT_POSITIONS>(text, end, out);
    } else if text.len() <= MEDIUM_TEXT_BYTES_MAX {
        encode_with::<MEDIUM_POSITIONS>(text, end, out);
    } else {
        encode_with::<POSITIONS>(text, end, out);
    }
    true
}

fn encode_with<const SLOTS: usize>(text: &[u8], end: BlockEnd, out: &mut Vec<u8>) {
    let mut writer = BitWriter::new(text.len(), out);
    // The type of the block: its codes are the fixed ones.
    writer.put(Code { bits: 0b010 | u16::from(end == BlockEnd::Last), length: 3 });
    let mut positions = [0_u16; SLOTS];
    let mut at = 0;
    while let Some(word) = word_at(text, at) {
        let slot = slot_of::<SLOTS>(word);
        let candidate = usize::from(positions[slot]);
        positions[slot] = position(at);
        if candidate < at && word_at(text, candidate) == Some(word) {
            let length = match_length(text, candidate, at);
            writer.put_match(length, at - candidate);
            at += length;
            // One position inside a match is remembered too: it makes texts 2 % shorter.
            if let Some(word) = word_at(text, at - 1) {
                positions[slot_of::<SLOTS>(word)] = position(at - 1);
            }
        } else {
            writer.put(LITERALS[(word & 0xff) as usize]);
            at += 1;
        }
    }
    for byte in &text[at..] {
        writer.put(LITERALS[usize::from(*byte)]);
    }
    writer.finish(end);
}

/// The bytes that are hashed, the first one lowest.
#[inline]
fn word_at(text: &[u8], at: usize) -> Option<u32> {
    text.get(at..at + MATCH_MIN)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

#[inline]
fn slot_of<const SLOTS: usize>(word: u32) -> usize {
    (word.wrapping_mul(0x9e37_79b1) >> (32 - SLOTS.ilog2())) as usize
}

#[expect(clippy::cast_possible_truncation, reason = "at most TEXT_BYTES_MAX")]
fn position(at: usize) -> u16 {
    at as u16
}

/// How many bytes at `at` are those at `from`, which is before it.
#[inline]
fn match_length(text: &[u8], from: usize, at: usize) -> usize {
    let end = text.len().min(at + MATCH_MAX);
    let (ones, others) = (&text[at + MATCH_MIN..end], &text[from + MATCH_MIN..]);
    let (words, rest) = ones.as_chunks::<8>();
    let mut length = MATCH_MIN;
    for (one, other) in words.iter().zip(others.as_chunks::<8>().0) {
        let difference = u64::from_le_bytes(*one) ^ u64::from_le_bytes(*other);
        if difference != 0 {
            return length + difference.trailing_zeros() as usize / 8;
        }
        length += 8;
    }
    let rest = rest.iter().zip(&others[length - MATCH_MIN..]);
    length + rest.take_while(|(one, other)| one == other).count()
}

/// Appends bits, the first one lowest.
struct BitWriter<'o> {
    out: &'o mut Vec<u8>,
    /// Bits not yet appended, and their number: less than 32.
    bits: u64,
    count: u32,
}

impl<'o> BitWriter<'o> {
    /// Reserves space for a text of this length: nine bits for each byte at most.
    fn new(text_bytes: usize, out: &'o mut Vec<u8>) -> Self {
        out.reserve(text_bytes + text_bytes / 8 + 16);
        Self { out, bits: 0, count: 0 }
    }

    #[inline]
    fn put(&mut self, code: Code) {
        self.put_bits(u64::from(code.bits), u32::from(code.length));
    }

    /// Appends at most 31 bits.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "the rest is kept")]
    fn put_bits(&mut self, bits: u64, count: u32) {
        self.bits |= bits << self.count;
        self.count += count;
        if self.count >= 32 {
            self.out.extend_from_slice(&(self.bits as u32).to_le_bytes());
            self.bits >>= 32;
            self.count -= 32;
        }
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "distances are at most 32 KiB")]
    fn put_match(&mut self, length: usize, distance: usize) {
        let of_length = LENGTHS[length - 3];
        let rest = distance - 1;
        let (symbol, extra) = match rest {
            0..=3 => (rest, 0),
            _ => {
                let extra = rest.ilog2() - 1;
                (2 * extra as usize + 2 + (rest >> extra & 1), extra)
            }
        };
        let of_distance = u64::from((symbol as u16).reverse_bits() >> 11);
        let distance_bits = of_distance | ((rest & ((1 << extra) - 1)) as u64) << 5;
        let bits = u64::from(of_length.bits) | distance_bits << of_length.length;
        self.put_bits(bits, u32::from(of_length.length) + 5 + extra);
    }

    /// Ends the block.
    fn finish(mut self, end: BlockEnd) {
        self.put(END);
        if end == BlockEnd::AtByte {
            self.put(STORED);
        }
        let whole = self.count.div_ceil(8) as usize;
        self.out.extend_from_slice(&self.bits.to_le_bytes()[..whole]);
        if end == BlockEnd::AtByte {
            self.out.extend_from_slice(&EMPTY_STORED);
        }
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

    /// The length of the last block that the text makes.
    fn round_trip(text: &[u8]) -> usize {
        let mut out = b"before".to_vec();
        assert!(encode(text, BlockEnd::AtByte, &mut out));
        assert_eq!(decode(&out[6..]), text);
        assert!(out.ends_with(&EMPTY_STORED) && out.starts_with(b"before"));
        out.clear();
        assert!(encode(text, BlockEnd::Last, &mut out));
        let mut decoder = flate2::bufread::DeflateDecoder::new(&out[..]);
        let mut found = Vec::new();
        decoder.read_to_end(&mut found).expect("valid");
        assert!(found == text && decoder.into_inner().is_empty());
        out.len()
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
        let noise = noise(TEXT_BYTES_MAX);
        let longest = TEXT_BYTES_MAX - 8;
        for distance in (8..2000).chain((2000..longest).step_by(997)).chain([longest]) {
            let repeated = round_trip(&[&noise[..distance], &noise[..8]].concat());
            assert!(repeated <= distance * 9 / 8 + 8, "{distance}");
        }
    }

    #[test]
    fn longer_texts_are_left_to_zlib() {
        round_trip(&noise(TEXT_BYTES_MAX));
        round_trip(&vec![b'a'; TEXT_BYTES_MAX]);
        let mut out = Vec::new();
        assert!(!encode(&vec![b'a'; TEXT_BYTES_MAX + 1], BlockEnd::Last, &mut out) && out.is_empty());
    }

    fn noise(length: usize) -> Vec<u8> {
        let mut state = 7_u32;
        let next = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        (0..length).map(next).collect()
    }

    #[test]
    fn worst_text_fits_in_what_is_reserved() {
        let high: Vec<u8> =
            (0..SHORT_TEXT_BYTES_MAX as u32).map(|at| 144 + (at.wrapping_mul(at) / 7 % 112) as u8).collect();
        assert!(round_trip(&high) <= SHORT_TEXT_BYTES_MAX * 9 / 8 + 16);
    }
}
