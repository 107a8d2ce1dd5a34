//! The `Date` header line (RFC 9110 6.6.1, IMF-fixdate), rendered once per second.
use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::timestamp::YEAR_10000_SECONDS;

const LINE_BYTES: usize = "date: Sun, 06 Nov 1994 08:49:37 GMT\r\n".len();

/// A rendered `date` line.
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
    /// Renders the line, unless it already shows the second of `now`.
    pub fn set(&mut self, now: SystemTime) {
        let seconds =
            now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().min(YEAR_10000_SECONDS - 1));
        if seconds == self.seconds {
            return;
        }
        self.seconds = seconds;
        let date = httpdate::HttpDate::from(UNIX_EPOCH + Duration::from_secs(seconds));
        // IMF-fixdate has a fixed length, so the line always fits.
        let _ = write!(&mut self.line[..], "date: {date}\r\n");
    }

    /// The second that the line shows, since the epoch.
    pub fn seconds(&self) -> u64 {
        self.seconds
    }

    /// The line with its CRLF.
    pub fn line(&self) -> &[u8] {
        &self.line
    }
}
