//! Text output: JSON strings and numbers, hexadecimal and Base64 digests.
pub mod base64;
pub mod hex;
pub mod write;
