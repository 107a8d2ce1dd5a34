//! Validators: what lets a client, a cache or another proxy ask "is it still this?".
//!
//! In: when the document changed, the body's entity tag, and the request's conditions. Out: the
//! header lines of differences.md 22, and whether 304 is the answer (RFC 9110 13).
//! Invariant: `If-None-Match` wins over `If-Modified-Since`; a compressed body has its own tag.
//! `no-cache` makes every cache ask again, since a flag may change at any second.
use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::http::Fields;
use crate::limits::YEAR_10000_SECONDS;

/// The lines of the time that was written last: it is seldom another one.
#[derive(Debug, Default)]
pub struct DatedLines {
    updated_at: Option<f64>,
    lines: Vec<u8>,
}

impl DatedLines {
    /// Appends when the document changed, as SDKs read it (seconds, with a decimal point) and as
    /// caches do.
    pub fn append(&mut self, updated_at: Option<f64>, lines: &mut Vec<u8>) {
        if self.updated_at != updated_at {
            self.updated_at = updated_at;
            self.lines.clear();
            write_updated_at(updated_at, &mut self.lines);
        }
        lines.extend_from_slice(&self.lines);
    }
}

fn write_updated_at(updated_at: Option<f64>, lines: &mut Vec<u8>) {
    let Some(seconds) = updated_at.filter(|seconds| seconds.is_finite()) else { return };
    lines.extend_from_slice(b"x-flagsmith-document-updated-at: ");
    lines.extend_from_slice(ryu::Buffer::new().format_finite(seconds).as_bytes());
    lines.extend_from_slice(b"\r\n");
    if let Some(time) = whole_seconds(seconds) {
        // Writing to a vector cannot fail.
        let _ = write!(lines, "last-modified: {}\r\n", httpdate::HttpDate::from(time));
    }
}

/// Appends the entity tag. The compressed form of a body is another representation.
pub fn etag(etag: &str, is_gzip: bool, lines: &mut Vec<u8>) {
    lines.extend_from_slice(b"etag: ");
    match etag.strip_suffix('"') {
        Some(open) if is_gzip => {
            lines.extend_from_slice(open.as_bytes());
            lines.extend_from_slice(b"-gzip\"");
        }
        _ => lines.extend_from_slice(etag.as_bytes()),
    }
    lines.extend_from_slice(b"\r\n");
}

/// Whether the client has it already. A time that other answers had as well tells nothing: that is `None`.
pub fn is_not_modified(fields: &Fields<'_>, etag: Option<&str>, own_time: Option<f64>) -> bool {
    if let Some(tags) = fields.if_none_match {
        return etag.is_some_and(|etag| names(tags, etag));
    }
    let since = fields.if_modified_since.and_then(|text| std::str::from_utf8(text).ok());
    let since = since.and_then(|text| httpdate::parse_http_date(text).ok());
    let changed = own_time.and_then(whole_seconds);
    since.zip(changed).is_some_and(|(since, changed)| changed <= since)
}

/// Whether a list of entity tags names this one, in either form (weak comparison).
fn names(tags: &[u8], etag: &str) -> bool {
    let opaque = etag.trim_matches('"').as_bytes();
    tags.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).any(|tag| {
        let quoted = tag.strip_prefix(b"W/").unwrap_or(tag);
        let inner = quoted.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\""));
        tag == b"*" || inner.is_some_and(|inner| inner.strip_suffix(b"-gzip").unwrap_or(inner) == opaque)
    })
}

/// The time of a float of seconds, cut to the second as HTTP dates are; none that they cannot tell.
fn whole_seconds(seconds: f64) -> Option<SystemTime> {
    let whole = (0.0..YEAR_10000_SECONDS as f64).contains(&seconds).then_some(seconds as u64)?;
    Some(UNIX_EPOCH + Duration::from_secs(whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_found_in_a_list_weak_or_compressed() {
        for (tags, found) in [
            (&b"\"a1\""[..], true),
            (b"W/\"a1\"", true),
            (b"\"a1-gzip\"", true),
            (b"\"b\", \"a1\"", true),
            (b"*", true),
            (b"\"b\"", false),
            (b"a1", false),
            (b"", false),
        ] {
            assert_eq!(names(tags, "\"a1\""), found, "{tags:?}");
        }
    }

    #[test]
    fn a_date_counts_only_without_a_tag() {
        let changed = Some(784_111_777.5);
        let same = Some(&b"Sun, 06 Nov 1994 08:49:37 GMT"[..]);
        let fields = Fields { if_modified_since: same, ..Fields::default() };
        assert!(is_not_modified(&fields, Some("\"a\""), changed));
        assert!(!is_not_modified(&fields, None, Some(784_111_778.0)));
        assert!(!is_not_modified(&fields, None, None));
        let fields = Fields { if_none_match: Some(b"\"b\""), ..fields };
        assert!(!is_not_modified(&fields, Some("\"a\""), changed));
    }

    #[test]
    fn the_time_has_a_decimal_point_always() {
        let mut dated = DatedLines::default();
        for (time, second) in [(784_111_777.0, 37), (784_111_777.0, 37), (784_111_778.0, 38)] {
            let mut lines = Vec::new();
            dated.append(Some(time), &mut lines);
            let expected = format!(
                "x-flagsmith-document-updated-at: {time:.1}\r\nlast-modified: Sun, 06 Nov 1994 08:49:{second} GMT\r\n"
            );
            assert_eq!(String::from_utf8_lossy(&lines), expected);
        }
        let mut lines = Vec::new();
        dated.append(None, &mut lines);
        assert!(lines.is_empty());
    }
}
