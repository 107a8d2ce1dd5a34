//! MD5 of eight short messages in parallel (RFC 1321).
//!
//! Each multivariate feature needs a hash per identity, and one hash is a chain of 64 dependent steps. In
//! vector registers, eight hashes cost little more than one. Results equal those of [`super::hashing::hash`].
use wide::u32x8;

use crate::engine::evaluate::hashing;

/// Messages hashed in parallel.
pub const LANES: usize = 8;
/// Blocks of the longest message that is hashed in parallel; longer ones are hashed one by one.
const BLOCKS_MAX: usize = 2;
const BLOCK_BYTES: usize = 64;
/// A message ends with at least one byte of padding and eight bytes of length.
const MESSAGE_BYTES_MAX: usize = BLOCKS_MAX * BLOCK_BYTES - 9;

/// One word of every lane.
type Lane = u32x8;

const START: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];

/// `floor(2^32 * |sin(i + 1)|)`.
#[rustfmt::skip]
const SINES: [u32; 64] = [
    0xd76aa478, 0xe8c7b756, 0x242070db, 0xc1bdceee, 0xf57c0faf, 0x4787c62a, 0xa8304613, 0xfd469501,
    0x698098d8, 0x8b44f7af, 0xffff5bb1, 0x895cd7be, 0x6b901122, 0xfd987193, 0xa679438e, 0x49b40821,
    0xf61e2562, 0xc040b340, 0x265e5a51, 0xe9b6c7aa, 0xd62f105d, 0x02441453, 0xd8a1e681, 0xe7d3fbc8,
    0x21e1cde6, 0xc33707d6, 0xf4d50d87, 0x455a14ed, 0xa9e3e905, 0xfcefa3f8, 0x676f02d9, 0x8d2a4c8a,
    0xfffa3942, 0x8771f681, 0x6d9d6122, 0xfde5380c, 0xa4beea44, 0x4bdecfa9, 0xf6bb4b60, 0xbebfbc70,
    0x289b7ec6, 0xeaa127fa, 0xd4ef3085, 0x04881d05, 0xd9d4d039, 0xe6db99e5, 0x1fa27cf8, 0xc4ac5665,
    0xf4292244, 0x432aff97, 0xab9423a7, 0xfc93a039, 0x655b59c3, 0x8f0ccc92, 0xffeff47d, 0x85845dd1,
    0x6fa87e4f, 0xfe2ce6e0, 0xa3014314, 0x4e0811a1, 0xf7537e82, 0xbd3af235, 0x2ad7d2bb, 0xeb86d391,
];

/// The hash of each of `keys` with `identity_key`, for at most [`LANES`] keys.
pub fn hash_each(keys: &[&str], identity_key: &str) -> [f64; LANES] {
    let mut hashes = [0.0; LANES];
    let longest = keys.iter().map(|key| key.len()).max().unwrap_or_default() + 1 + identity_key.len();
    if keys.len() < 2 || longest > MESSAGE_BYTES_MAX {
        for (hash, key) in hashes.iter_mut().zip(keys) {
            *hash = hashing::hash(&[key, identity_key]);
        }
        return hashes;
    }
    let mut messages = [[0_u8; BLOCKS_MAX * BLOCK_BYTES]; LANES];
    let mut blocks = [0; LANES];
    for ((message, blocks), key) in messages.iter_mut().zip(&mut blocks).zip(keys) {
        *blocks = pad(message, key.as_bytes(), identity_key.as_bytes());
    }
    let mut state = START.map(u32x8::splat);
    for block in 0..blocks.iter().copied().max().unwrap_or_default() {
        let next = compress(&state, &messages, block);
        // Shorter messages are complete: keep their state.
        let is_unfinished = u32x8::new(blocks.map(|blocks| if block < blocks { u32::MAX } else { 0 }));
        for (word, next) in state.iter_mut().zip(next) {
            *word = (next & is_unfinished) | (*word & !is_unfinished);
        }
    }
    let state = state.map(u32x8::to_array);
    for (lane, (hash, key)) in hashes.iter_mut().zip(keys).enumerate() {
        let mut digest = [0; 16];
        for (bytes, word) in digest.chunks_exact_mut(4).zip(&state) {
            bytes.copy_from_slice(&word[lane].to_le_bytes());
        }
        *hash = hashing::of_digest(digest).unwrap_or_else(|| hashing::hash(&[key, identity_key]));
    }
    hashes
}

/// Writes `key,identity_key` with its padding. Returns the number of blocks.
fn pad(message: &mut [u8; BLOCKS_MAX * BLOCK_BYTES], key: &[u8], identity_key: &[u8]) -> usize {
    let length = key.len() + 1 + identity_key.len();
    let blocks = (length + 9).div_ceil(BLOCK_BYTES);
    message[..key.len()].copy_from_slice(key);
    message[key.len()] = b',';
    message[key.len() + 1..length].copy_from_slice(identity_key);
    message[length] = 0x80;
    let bits = (length as u64 * 8).to_le_bytes();
    message[blocks * BLOCK_BYTES - 8..blocks * BLOCK_BYTES].copy_from_slice(&bits);
    blocks
}

/// One block of every lane.
fn compress(
    state: &[Lane; 4],
    messages: &[[u8; BLOCKS_MAX * BLOCK_BYTES]; LANES],
    block: usize,
) -> [Lane; 4] {
    let mut words = [[0; LANES]; 16];
    for (lane, message) in messages.iter().enumerate() {
        let bytes = message[block * BLOCK_BYTES..(block + 1) * BLOCK_BYTES].chunks_exact(4);
        for (word, bytes) in words.iter_mut().zip(bytes) {
            word[lane] = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
    }
    let words = words.map(u32x8::new);
    let [mut a, mut b, mut c, mut d] = *state;
    for i in (0..16).step_by(4) {
        let f = |b: Lane, c: Lane, d: Lane| d ^ (b & (c ^ d));
        a = step::<7>(a, b, c, d, f, words[i], SINES[i]);
        d = step::<12>(d, a, b, c, f, words[i + 1], SINES[i + 1]);
        c = step::<17>(c, d, a, b, f, words[i + 2], SINES[i + 2]);
        b = step::<22>(b, c, d, a, f, words[i + 3], SINES[i + 3]);
    }
    for i in (16..32).step_by(4) {
        let g = |b: Lane, c: Lane, d: Lane| c ^ (d & (b ^ c));
        a = step::<5>(a, b, c, d, g, words[(5 * i + 1) % 16], SINES[i]);
        d = step::<9>(d, a, b, c, g, words[(5 * i + 6) % 16], SINES[i + 1]);
        c = step::<14>(c, d, a, b, g, words[(5 * i + 11) % 16], SINES[i + 2]);
        b = step::<20>(b, c, d, a, g, words[(5 * i + 16) % 16], SINES[i + 3]);
    }
    for i in (32..48).step_by(4) {
        let h = |b: Lane, c: Lane, d: Lane| b ^ c ^ d;
        a = step::<4>(a, b, c, d, h, words[(3 * i + 5) % 16], SINES[i]);
        d = step::<11>(d, a, b, c, h, words[(3 * i + 8) % 16], SINES[i + 1]);
        c = step::<16>(c, d, a, b, h, words[(3 * i + 11) % 16], SINES[i + 2]);
        b = step::<23>(b, c, d, a, h, words[(3 * i + 14) % 16], SINES[i + 3]);
    }
    for i in (48..64).step_by(4) {
        let last = |b: Lane, c: Lane, d: Lane| c ^ (b | !d);
        a = step::<6>(a, b, c, d, last, words[(7 * i) % 16], SINES[i]);
        d = step::<10>(d, a, b, c, last, words[(7 * i + 7) % 16], SINES[i + 1]);
        c = step::<15>(c, d, a, b, last, words[(7 * i + 14) % 16], SINES[i + 2]);
        b = step::<21>(b, c, d, a, last, words[(7 * i + 21) % 16], SINES[i + 3]);
    }
    [state[0] + a, state[1] + b, state[2] + c, state[3] + d]
}

/// One step in every lane.
#[inline(always)]
fn step<const SHIFT: u32>(
    a: Lane,
    b: Lane,
    c: Lane,
    d: Lane,
    mix: impl Fn(Lane, Lane, Lane) -> Lane,
    word: Lane,
    sine: u32,
) -> Lane {
    let sum = a + mix(b, c, d) + word + u32x8::splat(sine);
    b + ((sum << SHIFT) | (sum >> (32 - SHIFT)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parallel_hashes_equal_single_ones() {
        let keys = ["1", "77", "100200", "feature-state-uuid", "", "9", "é", "12345678901234567890"];
        for length in 0..140 {
            let identity_key = "k".repeat(length);
            for count in 0..=keys.len() {
                let hashes = hash_each(&keys[..count], &identity_key);
                for (key, hash) in keys[..count].iter().zip(hashes) {
                    let single = hashing::hash(&[key, &identity_key]);
                    assert_eq!(hash.to_bits(), single.to_bits(), "{key} {length}");
                }
            }
        }
        // The first repetition of this one gives exactly 100.
        let hashes = hash_each(&["10", "11"], "env_u15294");
        assert_eq!(hashes[0].to_bits(), 81.13622724544909_f64.to_bits());
    }
}
