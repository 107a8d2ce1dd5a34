//! Merging of the pages of a document (compatibility.md 4.2).
//!
//! The `identity_overrides` of later pages are appended to those of page 1, without deduplication. All other
//! bytes of page 1 are kept: values are not parsed, so numbers and strings keep their form.
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::upstream::error::describe_json;

/// An invalid page.
#[derive(Debug)]
pub struct PageError {
    /// The number of the page, from 1.
    pub page: usize,
    /// What is wrong with it.
    pub message: String,
}

impl std::fmt::Display for PageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "page {} of the document: {}", self.page, self.message)
    }
}

impl std::error::Error for PageError {}

/// Appends the overrides of `pages`, which are pages 2 and on, to `first`.
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
    let own_range = overrides(&first, 1)?;
    let absent = own_range.is_none();
    let mut merged =
        Vec::with_capacity(first.len() + later.iter().map(|items| items.len() + 1).sum::<usize>() + 32);
    let (before, own, after) = match own_range {
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

/// The text between the brackets of an array; `None` if the array is empty or `null`.
fn items(array: &[u8]) -> Option<&[u8]> {
    let inner = array.strip_prefix(b"[")?.strip_suffix(b"]")?;
    (!inner.trim_ascii().is_empty()).then_some(inner)
}

/// The range of the value of `identity_overrides` in the page. `None` if the member is missing.
fn overrides(page: &[u8], number: usize) -> Result<Option<std::ops::Range<usize>>, PageError> {
    let fail = |message: String| PageError { page: number, message };
    let mut deserializer = serde_json::Deserializer::from_slice(page);
    let found = serde::Deserializer::deserialize_map(&mut deserializer, OverridesVisitor)
        .and_then(|found| deserializer.end().map(|()| found))
        .map_err(|error| fail(format!("not a JSON object: {}", describe_json(&error))))?;
    let Some(value) = found else { return Ok(None) };
    let text = value.get();
    if !text.starts_with('[') && text != "null" {
        return Err(fail("$.identity_overrides: expected an array".into()));
    }
    // The raw value borrows from the page, so its offset is the distance of the two pointers.
    let start = text.as_ptr().addr() - page.as_ptr().addr();
    Ok(Some(start..start + text.len()))
}

struct OverridesVisitor;

impl<'de> Visitor<'de> for OverridesVisitor {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    /// The last one of duplicate members counts, as in Python.
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
    fn appends_only_the_overrides_of_later_pages() {
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
    fn keeps_a_single_page_and_ignores_empty_pages() {
        assert_eq!(merged("anything", &[]).as_deref(), Ok("anything"));
        assert_eq!(
            merged(r#"{"a":1}"#, &["{}", r#"{"identity_overrides":[]}"#]).as_deref(),
            Ok(r#"{"a":1,"identity_overrides":[]}"#)
        );
    }

    #[test]
    fn uses_the_last_duplicate_member() {
        let first = r#"{"identity_overrides":[1],"x":0,"identity_overrides":[2]}"#;
        assert_eq!(
            merged(first, &[r#"{"identity_overrides":[3]}"#]).as_deref(),
            Ok(r#"{"identity_overrides":[1],"x":0,"identity_overrides":[2,3]}"#)
        );
    }

    #[test]
    fn names_the_invalid_page() {
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
