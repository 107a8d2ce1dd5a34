//! Times as text: RFC 3339, ISO 8601 and HTTP dates.
use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use httpdate::HttpDate;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The start of the year 10000, seconds since the epoch. From then on, neither an HTTP date nor RFC 3339 can
/// represent a document's time, and it is omitted.
pub const YEAR_10000_SECONDS: u64 = 253_402_300_800;

/// RFC 3339 in UTC with microseconds, as structlog's `TimeStamper(fmt="iso")`.
pub fn rfc3339(time: SystemTime) -> String {
    let at = OffsetDateTime::from(time);
    let (date, hour, minute, second) = (at.date(), at.hour(), at.minute(), at.second());
    let (year, month, day) = (date.year(), u8::from(date.month()), date.day());
    let micros = at.microsecond();
    let mut text = String::with_capacity("2026-11-23T09:00:00.000000Z".len());
    // Writing to a string cannot fail.
    let _ = write!(text, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z");
    text
}

/// Parses ISO 8601. A time without a zone is UTC, and a space may replace the `T` (compatibility.md 3).
pub fn parse_iso8601(text: &str) -> Option<OffsetDateTime> {
    let text = text.replacen(' ', "T", 1);
    let parsed = OffsetDateTime::parse(&text, &Rfc3339);
    parsed.or_else(|_| OffsetDateTime::parse(&format!("{text}Z"), &Rfc3339)).ok()
}

/// Seconds since the epoch, truncated, as an HTTP date (RFC 9110 5.6.7). `None` if it cannot express them.
pub fn http_date(seconds: f64) -> Option<HttpDate> {
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let whole = (0.0..YEAR_10000_SECONDS as f64).contains(&seconds).then_some(seconds as u64)?;
    Some(HttpDate::from(UNIX_EPOCH + Duration::from_secs(whole)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_rfc3339_with_microseconds() {
        let time = UNIX_EPOCH + Duration::from_micros(1_767_225_601_000_002);
        assert_eq!(rfc3339(time), "2026-01-01T00:00:01.000002Z");
    }

    #[test]
    fn parses_times_with_and_without_zone() {
        for text in ["2026-01-01T02:00:00+02:00", "2026-01-01T00:00:00Z", "2026-01-01 00:00:00"] {
            let parsed = parse_iso8601(text).map(OffsetDateTime::unix_timestamp);
            assert_eq!(parsed, Some(1_767_225_600), "{text}");
        }
        assert_eq!(parse_iso8601("yesterday"), None);
    }

    #[test]
    fn http_dates_end_with_the_year_9999() {
        let text = |seconds| http_date(seconds).map(|date| date.to_string());
        assert_eq!(text(1_767_225_601.9).as_deref(), Some("Thu, 01 Jan 2026 00:00:01 GMT"));
        assert_eq!(text(253_402_300_799.0).as_deref(), Some("Fri, 31 Dec 9999 23:59:59 GMT"));
        for seconds in [-1.0, f64::NAN, 253_402_300_800.0] {
            assert_eq!(text(seconds), None, "{seconds}");
        }
    }
}
