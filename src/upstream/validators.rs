//! What a document was served with, and when it may be sent back as a condition.
//!
//! In: the header fields of an answer. Out: the fields of the next conditional request. Invariant: a
//! validator that two versions of the document may share (RFC 9110 8.8.2.2) is never a condition.
use std::time::SystemTime;

use http::{HeaderMap, header};

use crate::limits;
use crate::upstream::Field;

/// What a held document was served with, sent back to ask whether it changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Validators {
    pub etag: Option<String>,
    /// Upstream's `Last-Modified`, or else the document's `updated_at` as IMF-fixdate.
    pub last_modified: Option<String>,
    /// The answer's `Date`, or when it came (RFC 9110 6.6.1). `None`: not known.
    pub date: Option<SystemTime>,
}

impl Validators {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_string);
        Self {
            etag: text(header::ETAG),
            last_modified: text(header::LAST_MODIFIED),
            date: Some(date_of(headers)),
        }
    }

    /// `Last-Modified` has whole seconds: one of the second in which the answer was made may be that of
    /// the next version too (RFC 9110 8.8.2.2).
    fn is_last_modified_weak(&self) -> bool {
        let modified = self.last_modified.as_deref().and_then(|text| httpdate::parse_http_date(text).ok());
        let (Some(modified), Some(date)) = (modified, self.date) else { return false };
        !date.duration_since(modified).is_ok_and(|age| age >= limits::STRONG_VALIDATOR_AGE_MIN)
    }

    /// The fields of a conditional request. A weak `Last-Modified` is left out, and a weak entity tag with
    /// it: servers derive those from the same time.
    pub(super) fn conditions(&self) -> Vec<Field<'_>> {
        let is_weak = self.is_last_modified_weak();
        let etag = self.etag.as_deref().filter(|etag| !(is_weak && etag.starts_with("W/")));
        let since = self.last_modified.as_deref().filter(|_| !is_weak);
        let conditions = [("if-none-match", etag), ("if-modified-since", since)];
        conditions.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }

    /// Whether a request with these is conditional.
    pub fn are_usable(&self) -> bool {
        !self.conditions().is_empty()
    }

    /// Takes over what a 304 says (RFC 9111 4.3.4).
    pub(super) fn updated(self, by: Self) -> Self {
        Self {
            etag: by.etag.or(self.etag),
            last_modified: by.last_modified.or(self.last_modified),
            date: by.date,
        }
    }
}

/// The answer's `Date`; without one, now.
pub(super) fn date_of(headers: &HeaderMap) -> SystemTime {
    let date = headers.get(header::DATE).and_then(|value| value.to_str().ok());
    date.and_then(|text| httpdate::parse_http_date(text).ok()).unwrap_or_else(SystemTime::now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_last_modified_within_two_seconds_of_the_date_is_no_condition() {
        let (strong, weak) = ("\"a\"", "W/\"a\"");
        let modified = "Mon, 23 Nov 2026 09:00:00 GMT";
        let conditions = |second: u32, etag: Option<&str>| {
            let date = format!("Mon, 23 Nov 2026 09:00:{second:02} GMT");
            let held = Validators {
                etag: etag.map(str::to_owned),
                last_modified: Some(modified.to_owned()),
                date: httpdate::parse_http_date(&date).ok(),
            };
            let names: Vec<&str> = held.conditions().iter().map(|(name, _)| *name).collect();
            assert_eq!(held.are_usable(), !names.is_empty());
            names.join(" ")
        };
        for (second, etag, expected) in [
            (0, None, ""),
            (1, None, ""),
            (2, None, "if-modified-since"),
            (59, None, "if-modified-since"),
            (1, Some(weak), ""),
            (2, Some(weak), "if-none-match if-modified-since"),
            (1, Some(strong), "if-none-match"),
            (2, Some(strong), "if-none-match if-modified-since"),
        ] {
            assert_eq!(conditions(second, etag), expected, "{second} {etag:?}");
        }
    }

    #[test]
    fn a_not_modified_renews_what_it_names() {
        let header = |pairs: &[(header::HeaderName, &'static str)]| {
            let pairs = pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap()));
            Validators::of(&pairs.collect())
        };
        let early = "Mon, 23 Nov 2026 09:00:00 GMT";
        let late = "Mon, 23 Nov 2026 09:00:09 GMT";
        let held = header(&[(header::ETAG, "\"a\""), (header::LAST_MODIFIED, early), (header::DATE, early)]);
        assert!(held.is_last_modified_weak());
        let renewed = held.clone().updated(header(&[(header::DATE, late)]));
        assert_eq!((&renewed.etag, &renewed.last_modified), (&held.etag, &held.last_modified));
        assert!(!renewed.is_last_modified_weak());
        let moved = held.updated(header(&[(header::LAST_MODIFIED, late), (header::DATE, late)]));
        assert_eq!(moved.last_modified.as_deref(), Some(late));
        assert!(moved.is_last_modified_weak());
    }
}
