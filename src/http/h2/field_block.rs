//! A header block that arrives in several frames (RFC 9113 4.3).
use crate::http::h2::frame::ErrorCode;
use crate::limits::HTTP2_CONTINUATIONS_MAX;

/// The fragments so far.
#[derive(Debug)]
pub struct FieldBlock {
    pub stream: u32,
    pub ends_stream: bool,
    pub bytes: Vec<u8>,
    bytes_max: usize,
    continuations: usize,
}

impl FieldBlock {
    pub fn new(stream: u32, ends_stream: bool, bytes_max: usize, fragment: &[u8]) -> Self {
        Self { stream, ends_stream, bytes: fragment.to_vec(), bytes_max, continuations: 0 }
    }

    /// Appends the fragment of a CONTINUATION frame.
    ///
    /// # Errors
    /// The block has too many fragments or bytes.
    pub fn push(&mut self, fragment: &[u8]) -> Result<(), ErrorCode> {
        self.continuations += 1;
        if self.continuations > HTTP2_CONTINUATIONS_MAX || self.bytes.len() + fragment.len() > self.bytes_max
        {
            return Err(ErrorCode::EnhanceYourCalm);
        }
        self.bytes.reserve_exact(fragment.len());
        self.bytes.extend_from_slice(fragment);
        Ok(())
    }
}
