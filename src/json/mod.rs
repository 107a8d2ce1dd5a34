//! JSON output: strings, numbers, hexadecimal digests.
pub mod hex;
pub mod write;
