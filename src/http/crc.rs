//! Combines CRC-32 checksums (RFC 1952 8): that of two texts together follows from those of both and the
//! length of the second, so that a text which stays the same is read once.
//!
//! A checksum is a polynomial over GF(2) modulo [`POLYNOMIAL`], its highest power in the lowest bit.
//! Appending a byte multiplies it by x^8; zlib's `crc32_combine` works the same way.

const POLYNOMIAL: u32 = 0xedb8_8320;
/// The polynomial 1.
const ONE: u32 = 1 << 31;

/// The effect of appending a text on the checksum of the text before it.
#[derive(Clone, Copy, Debug)]
pub struct CrcSuffix {
    /// x to the power of the text's bits.
    shift: u32,
    crc: u32,
}

impl CrcSuffix {
    /// For a text with this checksum and length in bytes.
    pub fn new(crc: u32, bytes: usize) -> Self {
        let (mut shift, mut power, mut exponent) = (ONE, ONE >> 8, bytes);
        while exponent > 0 {
            if exponent & 1 == 1 {
                shift = multiply(shift, power);
            }
            power = multiply(power, power);
            exponent >>= 1;
        }
        Self { shift, crc }
    }

    /// The checksum of both texts, where the first has the checksum `before`.
    pub fn after(self, before: u32) -> u32 {
        multiply(self.shift, before) ^ self.crc
    }
}

fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    for power in (0..32).rev() {
        product ^= b & 0_u32.wrapping_sub(a >> power & 1);
        b = (b >> 1) ^ (POLYNOMIAL & 0_u32.wrapping_sub(b & 1));
    }
    product
}

#[cfg(test)]
mod tests {
    use crc32fast::hash as crc;

    use super::*;

    #[test]
    fn combined_checksum_is_that_of_the_whole_text() {
        let text: Vec<u8> = (0..70_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for length in [0, 1, 2, 255, 256, 4097, 70_000] {
            for at in [0, 1, length / 3, length / 2, length] {
                let (before, after) = text[..length].split_at(at.min(length));
                let combined = CrcSuffix::new(crc(after), after.len()).after(crc(before));
                assert_eq!(combined, crc(&text[..length]), "{at} of {length}");
            }
        }
    }
}
