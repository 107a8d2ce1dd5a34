//! The windows for request bodies (RFC 9113 5.2, 6.9).
//!
//! The first [`HTTP2_STREAM_WINDOW`] bytes of every body are allowed and do not count: the number of
//! streams bounds them. A longer body is allowed as a whole, once it fits in [`HTTP2_BODIES_WINDOW`] beside
//! those that were allowed before. So every allowed body can arrive, independently of the others.
use crate::http::h2::frame::{ErrorCode, append_window};
use crate::limits::{HTTP2_BODIES_WINDOW, HTTP2_STREAM_WINDOW};

/// The window of both sides before any update (RFC 9113 6.9.2).
pub const INITIAL_WINDOW: u32 = 65_535;
/// The window of the connection. A peer may fill the initial one before it receives that of streams.
pub const CONNECTION_WINDOW: u32 = HTTP2_BODIES_WINDOW + INITIAL_WINDOW;

/// A window update is sent once this part of the window is free again, or once half of it is in use.
const CREDIT_PART: u32 = 4;

/// How much the peer may still send in all streams.
#[derive(Debug)]
pub struct ReceiveWindow {
    left: u32,
    /// Bytes that were consumed and are not yet reported.
    credit: u32,
}

/// The bytes of a body that count.
pub fn counted(body_bytes: usize) -> usize {
    body_bytes.saturating_sub(HTTP2_STREAM_WINDOW as usize)
}

/// The counted bytes that a body may still come to have, by its Content-Length.
pub fn counted_at_most(content_length: Option<u64>) -> usize {
    let most = HTTP2_BODIES_WINDOW as usize;
    counted(content_length.map_or(most, |length| usize::try_from(length).unwrap_or(most).min(most)))
}

impl ReceiveWindow {
    /// Raises the initial window to `CONNECTION_WINDOW`.
    pub fn open(out: &mut Vec<u8>) -> Self {
        append_window(0, CONNECTION_WINDOW - INITIAL_WINDOW, out);
        Self { left: CONNECTION_WINDOW, credit: 0 }
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

    /// A body has grown by a frame with padding: the bytes that do not count are free.
    pub fn grow(&mut self, before: usize, now: usize, padding: usize) {
        self.free(padding + (now - before) - (counted(now) - counted(before)));
    }

    /// A body is no longer in memory.
    pub fn free_body(&mut self, bytes: usize) {
        self.free(counted(bytes));
    }

    /// Reports the free part of the window, if it is worth a frame.
    pub fn update(&mut self, out: &mut Vec<u8>) {
        let is_needed = self.credit > 0 && self.left < CONNECTION_WINDOW / 2;
        if is_needed || self.credit >= CONNECTION_WINDOW / CREDIT_PART {
            append_window(0, self.credit, out);
            self.left += self.credit;
            self.credit = 0;
        }
    }
}
