//! The window of the connection for request bodies (RFC 9113 5.2, 6.9).
use crate::http::h2::frame::{ErrorCode, append_window};
use crate::limits::HTTP2_BODY_WINDOW;

/// The window of both sides before any update (RFC 9113 6.9.2).
pub const INITIAL_WINDOW: u32 = 65_535;

/// A window update is sent once this part of the window is free again.
const CREDIT_PART: u32 = 4;

/// How much the peer may still send in all streams.
#[derive(Debug)]
pub struct ReceiveWindow {
    left: u32,
    /// Bytes that were consumed and are not yet reported.
    credit: u32,
}

impl ReceiveWindow {
    /// Raises the initial window to `HTTP2_BODY_WINDOW`.
    pub fn open(out: &mut Vec<u8>) -> Self {
        append_window(0, HTTP2_BODY_WINDOW - INITIAL_WINDOW, out);
        Self { left: HTTP2_BODY_WINDOW, credit: 0 }
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

    /// Bytes are no longer in memory.
    pub fn free(&mut self, bytes: usize) {
        self.credit = self.credit.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    /// Reports the free part of the window, if it is worth a frame.
    pub fn update(&mut self, out: &mut Vec<u8>) {
        if self.credit >= HTTP2_BODY_WINDOW / CREDIT_PART {
            append_window(0, self.credit, out);
            self.left += self.credit;
            self.credit = 0;
        }
    }
}
