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
        .find(|(found, _)| *found == name.as_bytes() || (is_encoded(found) && decode(found) == name))
        .map(|(_, value)| decode(value))
}

fn is_encoded(text: &[u8]) -> bool {
    memchr::memchr2(b'+', b'%', text).is_some()
}

fn decode(text: &[u8]) -> Cow<'_, str> {
    if !is_encoded(text) {
        // Faster than the lossy conversion by itself.
        return std::str::from_utf8(text).map_or_else(|_| String::from_utf8_lossy(text), Cow::Borrowed);
    }
    let spaces = |byte: &u8| if *byte == b'+' { b' ' } else { *byte };
    let spaced = match text.contains(&b'+') {
        true => Cow::Owned(text.iter().map(spaces).collect()),
        false => Cow::Borrowed(text),
    };
    Cow::Owned(String::from_utf8_lossy(&percent_decode(&spaced)).into_owned())
}
