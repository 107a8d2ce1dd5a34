//! Query parameters, decoded like Starlette: `+` is a space, `%XX` is a byte, invalid UTF-8 becomes U+FFFD.
use std::borrow::Cow;

use crate::http::route::percent_decode;

/// The value of `name`; if it is repeated, the last one. `name` without `=` is empty.
pub fn parameter<'query>(query: &'query [u8], name: &str) -> Option<Cow<'query, str>> {
    query
        .rsplit(|byte| *byte == b'&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| match pair.iter().position(|byte| *byte == b'=') {
            Some(at) => (&pair[..at], &pair[at + 1..]),
            None => (pair, &pair[pair.len()..]),
        })
        .find(|(found, _)| decode(found) == name)
        .map(|(_, value)| decode(value))
}

fn decode(text: &[u8]) -> Cow<'_, str> {
    if !text.contains(&b'+') {
        return match percent_decode(text) {
            Cow::Borrowed(text) => String::from_utf8_lossy(text),
            Cow::Owned(text) => Cow::Owned(String::from_utf8_lossy(&text).into_owned()),
        };
    }
    let spaced: Vec<u8> = text.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
    Cow::Owned(String::from_utf8_lossy(&percent_decode(&spaced)).into_owned())
}
