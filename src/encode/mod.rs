//! Bytes into a caller's `Vec<u8>`: JSON strings and numbers, and the flags of an answer.
//!
//! In: values, and the results of an evaluation. Out: compact JSON, non-ASCII raw, floats as
//! orjson prints them. Invariant: appends only; never allocates but by the vector's growth.
pub mod flags;
pub mod hex;
pub mod json;
pub mod traits;
