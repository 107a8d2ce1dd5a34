//! The windows for request bodies (RFC 9113 5.2, 6.9).
//!
//! The first [`HTTP2_STREAM_WINDOW`] bytes of every body are allowed and do not count: the number of
//! streams bounds them. A longer body is allowed as a whole, once it fits in [`HTTP2_BODIES_WINDOW`] beside
//! those that were allowed before. Bytes that count take a part of [`HTTP2_CONNECTION_WINDOW`], which is
//! larger, until their request is answered; others take none. So every allowed body can arrive, independently
//! of the others.
use crate::http::h2::frame::{ErrorCode, append_window};
use crate::limits::{HTTP2_BODIES_WINDOW, HTTP2_CONNECTION_WINDOW, HTTP2_STREAM_WINDOW};

/// The window of both sides before any update (RFC 9113 6.9.2).
pub const INITIAL_WINDOW: u32 = 65_535;
const _: () = assert!(HTTP2_CONNECTION_WINDOW > HTTP2_BODIES_WINDOW);

/// A window update is sent once this part of the window is free again, or once half of it is in use.
const CREDIT_PART: u32 = 4;

/// How much the peer may still send in all streams.
#[derive(Debug)]
pub struct ReceiveWindow {
    left: u32,
    /// Bytes that were consumed and are not yet reported.
    credit: u32,
}

/// A request body.
#[derive(Debug, Default)]
pub struct RequestBody {
    pub bytes: Vec<u8>,
    /// The peer may send all of it.
    pub is_allowed: bool,
    /// Its bytes that count.
    counted: usize,
}

impl RequestBody {
    /// An empty body in this buffer.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, is_allowed: false, counted: 0 }
    }

    /// Appends the content of a frame. Returns how many of its bytes count: none of those that the peer sent
    /// before it was allowed to, because it had not received the window of streams.
    fn push(&mut self, data: &[u8]) -> usize {
        let before = counted(self.bytes.len());
        self.bytes.extend_from_slice(data);
        let counted = if self.is_allowed { counted(self.bytes.len()) - before } else { 0 };
        self.counted += counted;
        counted
    }

    /// The bytes that count.
    pub fn counted(&self) -> usize {
        self.counted
    }
}

/// The bytes that count of a body which was allowed before it arrived.
fn counted(body_bytes: usize) -> usize {
    body_bytes.saturating_sub(HTTP2_STREAM_WINDOW as usize)
}

/// The counted bytes that a body may still come to have, by its Content-Length.
pub fn counted_at_most(content_length: Option<u64>) -> usize {
    let most = HTTP2_BODIES_WINDOW as usize;
    content_length.map_or(most, |length| counted(usize::try_from(length).unwrap_or(usize::MAX)).min(most))
}

impl ReceiveWindow {
    /// Raises the initial window to `HTTP2_CONNECTION_WINDOW`.
    pub fn open(out: &mut Vec<u8>) -> Self {
        append_window(0, HTTP2_CONNECTION_WINDOW - INITIAL_WINDOW, out);
        Self { left: HTTP2_CONNECTION_WINDOW, credit: 0 }
    }

    /// Takes a DATA frame, its padding included.
    ///
    /// # Errors
    /// It exceeds the window.
    pub fn take(&mut self, bytes: usize) -> Result<(), ErrorCode> {
        let bytes = u32::try_from(bytes).map_err(|_| ErrorCode::FlowControl)?;
        self.left = self.left.checked_sub(bytes).ok_or(ErrorCode::FlowControl)?;
        Ok(())
    }

    /// Bytes are not in memory, or do not count.
    pub fn free(&mut self, bytes: usize) {
        self.credit = self.credit.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    /// Appends the content of a frame to a body. The padding and the bytes that do not count are free.
    pub fn grow(&mut self, body: &mut RequestBody, data: &[u8], padding: usize) {
        let counted = body.push(data);
        self.free(padding + data.len() - counted);
    }

    /// A body is no longer in memory.
    pub fn free_body(&mut self, body: &RequestBody) {
        self.free(body.counted());
    }

    /// Reports the free part of the window, if it is worth a frame.
    pub fn update(&mut self, out: &mut Vec<u8>) {
        let is_needed = self.credit > 0 && self.left < HTTP2_CONNECTION_WINDOW / 2;
        if is_needed || self.credit >= HTTP2_CONNECTION_WINDOW / CREDIT_PART {
            append_window(0, self.credit, out);
            self.left += self.credit;
            self.credit = 0;
        }
    }
}
