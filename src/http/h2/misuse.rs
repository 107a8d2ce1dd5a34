//! Counts what a peer sends without asking for anything, so that floods end.
//!
//! No clock: the counters compare misuse with use.
use crate::http::h2::frame::ErrorCode;
use crate::limits::{HTTP2_IDLE_FRAMES_MAX, HTTP2_RESETS_MAX};

/// The counters of one connection.
#[derive(Debug, Default)]
pub struct MisuseCounter {
    /// Frames since the last one that made progress.
    idle_frames: u32,
    streams: u64,
    resets: u64,
}

impl MisuseCounter {
    /// A stream was opened.
    pub fn stream(&mut self) {
        self.streams += 1;
        self.idle_frames = 0;
    }

    /// A part of a body was received or sent.
    pub fn progress(&mut self) {
        self.idle_frames = 0;
    }

    /// A frame without progress: PING, SETTINGS, PRIORITY, WINDOW_UPDATE, an empty or an unknown one.
    ///
    /// # Errors
    /// There were too many in a row.
    pub fn idle_frame(&mut self) -> Result<(), ErrorCode> {
        self.idle_frames += 1;
        if self.idle_frames > HTTP2_IDLE_FRAMES_MAX { Err(ErrorCode::EnhanceYourCalm) } else { Ok(()) }
    }

    /// A stream was reset, by either side.
    ///
    /// # Errors
    /// More than `HTTP2_RESETS_MAX` beyond half of all streams were.
    pub fn reset(&mut self) -> Result<(), ErrorCode> {
        self.resets += 1;
        let resets_max = HTTP2_RESETS_MAX + self.streams / 2;
        if self.resets > resets_max { Err(ErrorCode::EnhanceYourCalm) } else { Ok(()) }
    }
}
