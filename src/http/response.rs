//! From an answer to bytes: heads and bodies appended to one buffer.
//!
//! In: status, fields, body. Out: bytes in [`Output`]. Invariant: whatever is appended is a
//! whole response with a right Content-Length; a HEAD answer has the fields of GET and no body.
use bytes::Bytes;

/// What is to be written to a connection, in order: `bytes`, then `tail`.
#[derive(Debug, Default)]
pub struct Output {
    /// Whole responses, but for the last one's body if that is in `tail`.
    pub bytes: Vec<u8>,
    /// A large ready body, sent without a copy. When it is set the connection writes
    /// `bytes`, then this, before it answers the next request.
    pub tail: Option<Bytes>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub u16);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentType {
    Json,
    Text,
    EventStream,
    Html,
}

/// A response body: copied into the buffer, or sent from where it is.
#[derive(Debug)]
pub enum Body<'a> {
    Empty,
    Copy(&'a [u8]),
    /// Sent without a copy if it is large, copied if it is small (`limits::TAIL_BYTES_MIN`).
    Ready(&'a Bytes),
}
