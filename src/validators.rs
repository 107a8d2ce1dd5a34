//! Validators of a fetched document, for conditional requests (RFC 9110 8.8).
//!
//! A weak validator, which two versions of the document may share (RFC 9110 8.8.2.2), is never sent.
use std::time::{Duration, SystemTime};

use http::{HeaderMap, header};

use crate::clock;

/// A `Last-Modified` must be this much older than the response's `Date` to distinguish two versions: both
/// have a resolution of one second (RFC 9110 8.8.2.2). If it is younger, the next fetch is unconditional.
const STRONG_AGE_MIN: Duration = Duration::from_secs(2);

/// The validators with which upstream served a document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Validators {
    pub etag: Option<String>,
    /// `Last-Modified`, or the document's `updated_at` as IMF-fixdate.
    pub last_modified: Option<String>,
    /// The response's `Date`, or when it was received (RFC 9110 6.6.1). `None`: unknown.
    pub date: Option<SystemTime>,
    /// Whether upstream offers deltas from this document: `Use-As-Dictionary` (RFC 9842 2.1). Not stored.
    pub offers_deltas: bool,
}

impl Validators {
    /// The validators in the header of a response.
    pub fn of(headers: &HeaderMap) -> Self {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_string);
        Self {
            etag: text(header::ETAG),
            last_modified: text(header::LAST_MODIFIED),
            date: Some(date_of(headers)),
            offers_deltas: headers.contains_key("use-as-dictionary"),
        }
    }

    /// Whether the next version of the document may have the same `Last-Modified` (RFC 9110 8.8.2.2).
    fn is_last_modified_weak(&self) -> bool {
        let modified = self.last_modified.as_deref().and_then(|text| httpdate::parse_http_date(text).ok());
        let (Some(modified), Some(date)) = (modified, self.date) else { return false };
        !date.duration_since(modified).is_ok_and(|age| age >= STRONG_AGE_MIN)
    }

    /// The header fields of a conditional request. They do not include a weak `Last-Modified`, nor a weak
    /// entity tag beside it, because servers derive both from the same time.
    pub fn conditions(&self) -> Vec<(&'static str, &str)> {
        let is_weak = self.is_last_modified_weak();
        let etag = self.etag.as_deref().filter(|etag| !(is_weak && etag.starts_with("W/")));
        let since = self.last_modified.as_deref().filter(|_| !is_weak);
        let conditions = [("if-none-match", etag), ("if-modified-since", since)];
        conditions.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }

    /// Whether a request with these validators is conditional.
    pub fn are_usable(&self) -> bool {
        !self.conditions().is_empty()
    }

    /// The validators after a 304 with `by` (RFC 9111 4.3.4).
    pub fn updated(self, by: Self) -> Self {
        Self {
            etag: by.etag.or(self.etag),
            last_modified: by.last_modified.or(self.last_modified),
            date: by.date,
            offers_deltas: by.offers_deltas,
        }
    }
}

/// The response's `Date`, or the current time.
pub fn date_of(headers: &HeaderMap) -> SystemTime {
    let date = headers.get(header::DATE).and_then(|value| value.to_str().ok());
    date.and_then(|text| httpdate::parse_http_date(text).ok()).unwrap_or_else(clock::wall)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn omits_a_last_modified_within_two_seconds_of_the_date() {
        let (strong, weak) = ("\"a\"", "W/\"a\"");
        let modified = "Mon, 23 Nov 2026 09:00:00 GMT";
        let conditions = |second: u32, etag: Option<&str>| {
            let date = format!("Mon, 23 Nov 2026 09:00:{second:02} GMT");
            let current = Validators {
                etag: etag.map(str::to_owned),
                last_modified: Some(modified.to_owned()),
                date: httpdate::parse_http_date(&date).ok(),
                offers_deltas: false,
            };
            let names: Vec<&str> = current.conditions().iter().map(|(name, _)| *name).collect();
            assert_eq!(current.are_usable(), !names.is_empty());
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
    fn a_304_updates_the_validators_it_contains() {
        let header = |pairs: &[(header::HeaderName, &'static str)]| {
            let pairs = pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap()));
            Validators::of(&pairs.collect())
        };
        let early = "Mon, 23 Nov 2026 09:00:00 GMT";
        let late = "Mon, 23 Nov 2026 09:00:09 GMT";
        let current =
            header(&[(header::ETAG, "\"a\""), (header::LAST_MODIFIED, early), (header::DATE, early)]);
        assert!(current.is_last_modified_weak());
        let renewed = current.clone().updated(header(&[(header::DATE, late)]));
        assert_eq!((&renewed.etag, &renewed.last_modified), (&current.etag, &current.last_modified));
        assert!(!renewed.is_last_modified_weak());
        let moved = current.updated(header(&[(header::LAST_MODIFIED, late), (header::DATE, late)]));
        assert_eq!(moved.last_modified.as_deref(), Some(late));
        assert!(moved.is_last_modified_weak());
    }
}
