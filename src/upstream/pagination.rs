//! From the pages of a document to one document.
//!
//! In: the bytes of each page. Out: page 1 with the `identity_overrides` of the later pages appended to
//! its own (compatibility.md 4.2), byte for byte otherwise: nothing is parsed into values, so nothing can
//! lose its form. Invariant: overrides are concatenated and never deduplicated; a page that is not an object
//! with an array there fails the whole.
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::upstream::error::misshapen;

/// Why pages could not be joined: the number of the page, from 1, and what is wrong with it.
#[derive(Debug)]
pub struct PageError {
    pub page: usize,
    pub message: String,
}

/// Appends the overrides of later pages to `first`. `pages` are pages 2 and on.
///
/// # Errors
/// A page is not JSON, not an object, or its `identity_overrides` is not an array.
pub fn merge(first: Vec<u8>, pages: &[Vec<u8>]) -> Result<Vec<u8>, PageError> {
    if pages.is_empty() {
        return Ok(first);
    }
    let mut later: Vec<&[u8]> = Vec::with_capacity(pages.len());
    for (index, page) in pages.iter().enumerate() {
        later.extend(overrides(page, index + 2)?.and_then(|range| items(&page[range])));
    }
    let held = overrides(&first, 1)?;
    let absent = held.is_none();
    let mut merged =
        Vec::with_capacity(first.len() + later.iter().map(|items| items.len() + 1).sum::<usize>() + 32);
    let (before, own, after) = match held {
        Some(range) => (&first[..range.start], items(&first[range.clone()]), &first[range.end..]),
        None => {
            let end = first.iter().rposition(|&byte| byte == b'}').unwrap_or(first.len());
            (&first[..end], None, &first[end..])
        }
    };
    merged.extend_from_slice(before);
    if absent {
        let empty = before.iter().rev().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
        merged.extend_from_slice(if empty {
            b"\"identity_overrides\":"
        } else {
            b",\"identity_overrides\":"
        });
    }
    merged.push(b'[');
    for (index, items) in own.into_iter().chain(later).enumerate() {
        if index > 0 {
            merged.push(b',');
        }
        merged.extend_from_slice(items);
    }
    merged.push(b']');
    merged.extend_from_slice(after);
    Ok(merged)
}

/// What is between the brackets of an array or of `null`; `None` if there is nothing.
fn items(array: &[u8]) -> Option<&[u8]> {
    let inner = array.strip_prefix(b"[")?.strip_suffix(b"]")?;
    (!inner.trim_ascii().is_empty()).then_some(inner)
}

/// Where the value of the page's `identity_overrides` is. `None` if it has none.
fn overrides(page: &[u8], number: usize) -> Result<Option<std::ops::Range<usize>>, PageError> {
    let fail = |message: String| PageError { page: number, message };
    let mut deserializer = serde_json::Deserializer::from_slice(page);
    let found = serde::Deserializer::deserialize_map(&mut deserializer, OverridesVisitor)
        .and_then(|found| deserializer.end().map(|()| found))
        .map_err(|error| fail(format!("not a JSON object: {}", misshapen(&error))))?;
    let Some(value) = found else { return Ok(None) };
    let text = value.get();
    if !text.starts_with('[') && text != "null" {
        return Err(fail("$.identity_overrides: expected an array".into()));
    }
    // The raw value borrows from the page, so its place is the distance of the two pointers.
    let start = text.as_ptr().addr() - page.as_ptr().addr();
    Ok(Some(start..start + text.len()))
}

struct OverridesVisitor;

impl<'de> Visitor<'de> for OverridesVisitor {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    /// Of a member given twice the last one counts, as in Python.
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(name) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            if name == "identity_overrides" {
                found = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(first: &str, pages: &[&str]) -> Result<String, String> {
        let pages: Vec<Vec<u8>> = pages.iter().map(|page| page.as_bytes().to_vec()).collect();
        merge(first.as_bytes().to_vec(), &pages)
            .map(|bytes| String::from_utf8(bytes).unwrap())
            .map_err(|error| format!("{}: {}", error.page, error.message))
    }

    #[test]
    fn overrides_of_later_pages_are_appended_and_nothing_else_is_taken() {
        let page = r#"{"identity_overrides": [{"identifier":"b"}, {"identifier":"a"}], "name":"ignored"}"#;
        for (first, expected) in [
            (
                r#"{"id": 1.50, "identity_overrides": [{"identifier":"a"}], "name": "é"}"#,
                r#"{"id": 1.50, "identity_overrides": [{"identifier":"a"},{"identifier":"b"}, {"identifier":"a"},{"identifier":"b"}, {"identifier":"a"}], "name": "é"}"#,
            ),
            (
                r#"{"identity_overrides":[ ]}"#,
                r#"{"identity_overrides":[{"identifier":"b"}, {"identifier":"a"},{"identifier":"b"}, {"identifier":"a"}]}"#,
            ),
            (
                r#"{"identity_overrides":null}"#,
                r#"{"identity_overrides":[{"identifier":"b"}, {"identifier":"a"},{"identifier":"b"}, {"identifier":"a"}]}"#,
            ),
            (
                r#"{"id": 1}"#,
                r#"{"id": 1,"identity_overrides":[{"identifier":"b"}, {"identifier":"a"},{"identifier":"b"}, {"identifier":"a"}]}"#,
            ),
            (
                "{ }",
                r#"{ "identity_overrides":[{"identifier":"b"}, {"identifier":"a"},{"identifier":"b"}, {"identifier":"a"}]}"#,
            ),
        ] {
            assert_eq!(merged(first, &[page, page]).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn one_page_is_left_alone_and_empty_pages_add_nothing() {
        assert_eq!(merged("anything", &[]).as_deref(), Ok("anything"));
        assert_eq!(
            merged(r#"{"a":1}"#, &["{}", r#"{"identity_overrides":[]}"#]).as_deref(),
            Ok(r#"{"a":1,"identity_overrides":[]}"#)
        );
    }

    #[test]
    fn of_a_member_given_twice_the_last_counts() {
        let first = r#"{"identity_overrides":[1],"x":0,"identity_overrides":[2]}"#;
        assert_eq!(
            merged(first, &[r#"{"identity_overrides":[3]}"#]).as_deref(),
            Ok(r#"{"identity_overrides":[1],"x":0,"identity_overrides":[2,3]}"#)
        );
    }

    #[test]
    fn a_bad_page_is_named() {
        for (page, expected) in [
            ("[]", "3: not a JSON object"),
            ("", "3: not a JSON object"),
            (r#"{"identity_overrides":[}"#, "3: not a JSON object"),
            (r#"{"identity_overrides":{}}"#, "3: $.identity_overrides: expected an array"),
            ("{} {}", "3: not a JSON object"),
        ] {
            let error = merged("{}", &["{}", page]).unwrap_err();
            assert!(error.starts_with(expected), "{page}: {error}");
        }
        let deep = format!("{{\"a\":{}", "[".repeat(1_000_000));
        assert!(merged(&deep, &["{}"]).unwrap_err().starts_with("1: not a JSON object"));
    }
}
