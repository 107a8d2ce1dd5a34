//! Validators and preconditions: `ETag`, `Last-Modified`, and the responses 304 and 412 (RFC 9110 13).
//!
//! An entity tag takes precedence over a date. A compressed body has a separate entity tag. The headers
//! are those of differences.md 22.
use std::io::Write;
use std::time::SystemTime;

use crate::http::Fields;
use crate::timestamp;

/// The date headers of a document, cached because consecutive requests mostly have the same date.
#[derive(Debug, Default)]
pub struct DateHeaders {
    updated_at: Option<f64>,
    lines: Vec<u8>,
}

impl DateHeaders {
    /// Appends the time of the document's last change: for SDKs in seconds with a decimal point, and for
    /// caches as `Last-Modified`.
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
    if let Some(date) = timestamp::http_date(seconds) {
        // Writing to a vector cannot fail.
        let _ = write!(lines, "last-modified: {date}\r\n");
    }
}

/// The entity tag of the representation that is sent. A body and its compressed form have different tags
/// (RFC 9110 8.8.3.3).
#[derive(Clone, Copy, Debug)]
pub struct EntityTag<'a> {
    /// The tag of the uncompressed body, with its quotes.
    plain: &'a str,
    form: TagForm,
}

#[derive(Clone, Copy, Debug)]
enum TagForm {
    Plain,
    Gzip,
    /// Any coding of the document.
    AnyCoding,
}

impl<'a> EntityTag<'a> {
    pub fn new(plain: &'a str, is_gzip: bool) -> Self {
        Self { plain, form: if is_gzip { TagForm::Gzip } else { TagForm::Plain } }
    }

    /// For a client that takes deltas. What it has may have come in another coding than it would get now, and
    /// is the same document: such a tag ends in `-gzip`, or in `-dcz-` and the start of a digest.
    pub fn of_any_coding(plain: &'a str) -> Self {
        Self { plain, form: TagForm::AnyCoding }
    }

    /// Appends the `ETag` header line.
    pub fn append(self, lines: &mut Vec<u8>) {
        lines.extend_from_slice(b"etag: ");
        match self.plain.strip_suffix('"') {
            Some(open) if matches!(self.form, TagForm::Gzip) => {
                lines.extend_from_slice(open.as_bytes());
                lines.extend_from_slice(b"-gzip\"");
            }
            _ => lines.extend_from_slice(self.plain.as_bytes()),
        }
        lines.extend_from_slice(b"\r\n");
    }

    /// Whether this quoted tag is equal, byte for byte.
    fn equals(self, quoted: &[u8]) -> bool {
        let coding = |open: &str| quoted.strip_prefix(open.as_bytes());
        match (self.form, self.plain.strip_suffix('"')) {
            (TagForm::Gzip, Some(open)) => coding(open) == Some(b"-gzip\""),
            (TagForm::AnyCoding, Some(open)) => {
                coding(open).is_some_and(|end| matches!(end, b"\"" | b"-gzip\"") || end.starts_with(b"-dcz-"))
            }
            _ => quoted == self.plain.as_bytes(),
        }
    }
}

/// The result of a request's preconditions (RFC 9110 13.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// 200: send the representation.
    Send,
    /// 304: the client has it.
    NotModified,
    /// 412: the client requires another representation.
    Failed,
}

/// Evaluates the preconditions of a request in the order of RFC 9110 13.2.2. `last_modified` is `None` if
/// another version of the document may have the same time, and `etag` if the body has no tag.
pub fn evaluate(
    fields: &Fields<'_>,
    etag: Option<EntityTag<'_>>,
    last_modified: Option<f64>,
) -> Precondition {
    if fields.has_precondition && !is_met(fields, etag, last_modified) {
        return Precondition::Failed;
    }
    let is_not_modified = match fields.if_none_match {
        Some(tags) => matches(tags, etag, EtagComparison::Weak),
        None => {
            fields.if_modified_since.is_some_and(|since| is_unchanged(since, last_modified) == Some(true))
        }
    };
    if is_not_modified { Precondition::NotModified } else { Precondition::Send }
}

/// `If-Match`, or without it `If-Unmodified-Since`.
fn is_met(fields: &Fields<'_>, etag: Option<EntityTag<'_>>, last_modified: Option<f64>) -> bool {
    match (fields.if_match, fields.if_unmodified_since) {
        (Some(tags), _) => matches(tags, etag, EtagComparison::Strong),
        (None, Some(since)) => is_unchanged(since, last_modified) != Some(false),
        (None, None) => true,
    }
}

/// Whether nothing changed after this date. `None` if one of the times is unknown (RFC 9110 13.1.3).
fn is_unchanged(since: &[u8], last_modified: Option<f64>) -> Option<bool> {
    let since = httpdate::parse_http_date(std::str::from_utf8(since).ok()?).ok()?;
    Some(SystemTime::from(last_modified.and_then(timestamp::http_date)?) <= since)
}

/// How entity tags are compared (RFC 9110 8.8.3.2).
#[derive(Clone, Copy, PartialEq, Eq)]
enum EtagComparison {
    /// `W/` is ignored.
    Weak,
    /// A weak tag never matches.
    Strong,
}

/// Whether a list of entity tags contains this one. `*` matches any.
fn matches(tags: &[u8], etag: Option<EntityTag<'_>>, comparison: EtagComparison) -> bool {
    tags.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).any(|tag| {
        let quoted = match tag.strip_prefix(b"W/") {
            Some(_) if comparison == EtagComparison::Strong => return false,
            Some(quoted) => quoted,
            None => tag,
        };
        tag == b"*" || etag.is_some_and(|etag| etag.equals(quoted))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Option<EntityTag<'_>> = Some(EntityTag { plain: "\"a1\"", form: TagForm::Plain });
    const GZIP: Option<EntityTag<'_>> = Some(EntityTag { plain: "\"a1\"", form: TagForm::Gzip });

    #[test]
    fn etag_matches_only_the_coding_that_is_sent() {
        for (tags, plain, gzip, plain_strong) in [
            (&b"\"a1\""[..], true, false, true),
            (b"W/\"a1\"", true, false, false),
            (b"\"a1-gzip\"", false, true, false),
            (b"W/\"a1-gzip\"", false, true, false),
            (b"\"b\", \"a1\"", true, false, true),
            (b"\"a1\",\"a1-gzip\"", true, true, true),
            (b"*", true, true, true),
            (b"\"b\"", false, false, false),
            (b"\"a1-gzip-gzip\"", false, false, false),
            (b"a1", false, false, false),
            (b"", false, false, false),
        ] {
            assert_eq!(matches(tags, PLAIN, EtagComparison::Weak), plain, "{tags:?}");
            assert_eq!(matches(tags, GZIP, EtagComparison::Weak), gzip, "{tags:?}");
            assert_eq!(matches(tags, PLAIN, EtagComparison::Strong), plain_strong, "{tags:?}");
        }
        let any = Some(EntityTag::of_any_coding("\"a1\""));
        for (tag, expected) in [
            ("\"a1\"", true),
            ("\"a1-gzip\"", true),
            ("\"a1-dcz-0011aabb\"", true),
            ("\"a12-dcz-0011aabb\"", false),
            ("\"b1-gzip\"", false),
        ] {
            assert_eq!(matches(tag.as_bytes(), any, EtagComparison::Weak), expected, "{tag}");
        }
        assert!(matches(b"*", None, EtagComparison::Weak) && !matches(b"\"a1\"", None, EtagComparison::Weak));
        let mut lines = Vec::new();
        EntityTag::new("\"a1\"", false).append(&mut lines);
        EntityTag::new("\"a1\"", true).append(&mut lines);
        assert_eq!(String::from_utf8_lossy(&lines), "etag: \"a1\"\r\netag: \"a1-gzip\"\r\n");
    }

    #[test]
    fn etag_takes_precedence_over_a_date() {
        let changed = Some(784_111_777.5);
        let same = Some(&b"Sun, 06 Nov 1994 08:49:37 GMT"[..]);
        let fields = Fields { if_modified_since: same, ..Fields::default() };
        assert_eq!(evaluate(&fields, PLAIN, changed), Precondition::NotModified);
        assert_eq!(evaluate(&fields, None, Some(784_111_778.0)), Precondition::Send);
        assert_eq!(evaluate(&fields, None, None), Precondition::Send);
        let fields = Fields { if_none_match: Some(b"\"b\""), ..fields };
        assert_eq!(evaluate(&fields, PLAIN, changed), Precondition::Send);
    }

    /// RFC 9110 13.2.2: first If-Match, or If-Unmodified-Since without it.
    #[test]
    fn preconditions_are_evaluated_first() {
        let (changed, later) = (Some(784_111_777.5), Some(784_111_778.0));
        let date = &b"Sun, 06 Nov 1994 08:49:37 GMT"[..];
        let with = |if_match, if_unmodified_since, if_none_match| Fields {
            has_precondition: true,
            if_match,
            if_unmodified_since,
            if_none_match,
            ..Fields::default()
        };
        for (fields, time, expected) in [
            (with(Some(b"\"a1\""), None, None), changed, Precondition::Send),
            (with(Some(b"*"), None, None), changed, Precondition::Send),
            (with(Some(b"\"b\""), None, None), changed, Precondition::Failed),
            (with(Some(b"W/\"a1\""), None, None), changed, Precondition::Failed),
            (with(Some(b"\"a1-gzip\""), None, None), changed, Precondition::Failed),
            (with(Some(b"\"a1\""), None, Some(b"\"a1\"")), changed, Precondition::NotModified),
            (with(Some(b"\"b\""), None, Some(b"\"b\"")), changed, Precondition::Failed),
            (with(None, Some(date), None), changed, Precondition::Send),
            (with(None, Some(date), None), later, Precondition::Failed),
            (with(None, Some(date), None), None, Precondition::Send),
            (with(None, Some(b"yesterday"), None), later, Precondition::Send),
            (with(Some(b"\"a1\""), Some(date), None), later, Precondition::Send),
        ] {
            assert_eq!(evaluate(&fields, PLAIN, time), expected, "{fields:?} {time:?}");
        }
    }

    #[test]
    fn updated_at_always_has_a_decimal_point() {
        let mut dated = DateHeaders::default();
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
