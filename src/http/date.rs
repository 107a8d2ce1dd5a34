//! The `date` field, rendered once a second.
//!
//! In: the time of a batch of requests. Out: the whole header line. Invariant: the text changes
//! only with the second; no clock is read here (RFC 9110 6.6.1, IMF-fixdate).
use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::limits::YEAR_10000_SECONDS;

const LINE_BYTES: usize = "date: Sun, 06 Nov 1994 08:49:37 GMT\r\n".len();

/// A ready `date` line.
#[derive(Clone, Debug)]
pub struct DateLine {
    seconds: u64,
    line: [u8; LINE_BYTES],
}

impl Default for DateLine {
    fn default() -> Self {
        let mut date = Self { seconds: u64::MAX, line: [b' '; LINE_BYTES] };
        date.set(UNIX_EPOCH);
        date
    }
}

impl DateLine {
    /// Renders the line if `now` is in another second than the last time.
    pub fn set(&mut self, now: SystemTime) {
        let seconds =
            now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().min(YEAR_10000_SECONDS - 1));
        if seconds == self.seconds {
            return;
        }
        self.seconds = seconds;
        let date = httpdate::HttpDate::from(UNIX_EPOCH + Duration::from_secs(seconds));
        // IMF-fixdate has one length, so this cannot run out of room.
        let _ = write!(&mut self.line[..], "date: {date}\r\n");
    }

    /// The second that the line tells.
    pub fn seconds(&self) -> u64 {
        self.seconds
    }

    /// The line with its CRLF.
    pub fn line(&self) -> &[u8] {
        &self.line
    }
}
