//! The hash that percentage splits and variants compare with, from 0 (inclusive) to 100 (exclusive)
//! (compatibility.md 5.4). It is the same double as in the Python engine, on every machine.
use md5::{Digest as _, Md5};

/// 2^64 modulo [`MODULUS`], to fold the upper half of a digest onto the lower one.
const UPPER_WEIGHT: u64 = ((1_u128 << 64) % MODULUS as u128) as u64;
const MODULUS: u64 = 9999;

/// The hash of `parts`, joined by commas.
pub fn hash(parts: &[&str]) -> f64 {
    let mut times = 1_usize;
    loop {
        if let Some(value) = hash_repeated(parts, times) {
            return value;
        }
        times += 1;
    }
}

fn hash_repeated(parts: &[&str], times: usize) -> Option<f64> {
    let mut md5 = Md5::new();
    for (at, part) in std::iter::repeat_n(parts, times).flatten().enumerate() {
        if at > 0 {
            md5.update(b",");
        }
        md5.update(part.as_bytes());
    }
    of_digest(md5.finalize().into())
}

/// The hash of an MD5 digest. `None` if it is exactly 100, which is out of range: then the list of parts must
/// be hashed with one more repetition.
pub fn of_digest(digest: [u8; 16]) -> Option<f64> {
    let number = u128::from_be_bytes(digest);
    #[expect(clippy::cast_possible_truncation, reason = "the two halves of the number")]
    let (upper, lower) = ((number >> 64) as u64, number as u64);
    let bucket = ((upper % MODULUS) * UPPER_WEIGHT + lower % MODULUS) % MODULUS;
    // The order of these operations decides the last bits.
    #[expect(clippy::cast_precision_loss, reason = "a bucket is under 9,999")]
    let ratio = bucket as f64 / 9998.0;
    let value = ratio * 100.0;
    #[expect(clippy::float_cmp, reason = "exactly 100 is out of range (compatibility.md 5.4)")]
    (value != 100.0).then_some(value)
}

#[cfg(test)]
mod tests {
    use crate::engine::evaluate::hashing::hash;

    #[test]
    fn hashes_match_the_python_engine() {
        let table: [(&[&str], f64); 9] = [
            (&["7", "envkey_u1"], 39.21784356871375),
            (&["7", "u1"], 2.3404680936187234),
            (&["10", "env_u0"], 24.35487097419484),
            (&["10", "env_"], 51.11022204440888),
            (&["10", "env_é😀"], 56.421284256851365),
            (&["10", "env_u15294"], 81.13622724544909),
            (&["10", "env_u17171"], 48.20964192838568),
            (&["10", "env_u13271"], 0.0),
            (&["7", "True"], 55.09101820364073),
        ];
        for (parts, expected) in table {
            assert_eq!(hash(parts).to_bits(), expected.to_bits(), "{parts:?}");
        }
    }
}
