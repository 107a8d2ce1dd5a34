//! HPACK, the header compression of HTTP/2 (RFC 7541), without I/O.
//!
//! The decoder bounds its memory and its work by the length of a block. The encoder uses no dynamic table, so
//! an encoded head is valid on every connection and can be cached.
pub mod codes;
pub mod decoder;
pub mod dynamic_table;
pub mod encoder;
pub mod head_blocks;
pub mod huffman;
pub mod static_table;

#[cfg(test)]
mod tests;
