//! The text of a body in the encoding that Python's `json.detect_encoding` finds.
//!
//! Decoding uses `surrogatepass`, so the body's own encoding may contain lone surrogates. UTF-8 without them
//! is borrowed; anything else takes at most three bytes for two of the body.
use std::borrow::Cow;

use crate::python::json::document::{LoneSurrogate, offset};

/// Text with U+FFFD in place of lone surrogates, and the surrogates in order.
type Decoded<'a> = (Cow<'a, str>, Vec<LoneSurrogate>);

/// Decodes a body; `None` if its bytes are not valid in the encoding.
pub fn decode(bytes: &[u8]) -> Option<Decoded<'_>> {
    match bytes {
        [0xff, 0xfe, 0, 0, rest @ ..] => utf_32(rest, u32::from_le_bytes),
        [0, 0, 0xfe, 0xff, rest @ ..] => utf_32(rest, u32::from_be_bytes),
        [0xff, 0xfe, rest @ ..] => utf_16(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => utf_16(rest, u16::from_be_bytes),
        [0xef, 0xbb, 0xbf, rest @ ..] => utf_8(rest),
        [0, 0, _, _, ..] => utf_32(bytes, u32::from_be_bytes),
        [0, _, _, _, ..] | [0, _] => utf_16(bytes, u16::from_be_bytes),
        [_, 0, 0, 0, ..] => utf_32(bytes, u32::from_le_bytes),
        [_, 0, _, _, ..] | [_, 0] => utf_16(bytes, u16::from_le_bytes),
        _ => utf_8(bytes),
    }
}

/// Text from code points, some of which may be surrogates.
fn text_of(characters: impl Iterator<Item = u32>) -> Decoded<'static> {
    let (mut text, mut surrogates) = (String::new(), Vec::new());
    for character in characters {
        text.push(char::from_u32(character).unwrap_or_else(|| {
            surrogates.push(LoneSurrogate { at: offset(text.len()), code: character as u16 });
            char::REPLACEMENT_CHARACTER
        }));
    }
    (Cow::Owned(text), surrogates)
}

fn utf_32(bytes: &[u8], read: fn([u8; 4]) -> u32) -> Option<Decoded<'static>> {
    let (units, rest) = bytes.as_chunks::<4>();
    let characters = units.iter().map(|unit| read(*unit));
    (rest.is_empty() && characters.clone().all(|character| character <= 0x0010_ffff))
        .then(|| text_of(characters))
}

fn utf_16(bytes: &[u8], read: fn([u8; 2]) -> u16) -> Option<Decoded<'static>> {
    let (units, rest) = bytes.as_chunks::<2>();
    let characters = char::decode_utf16(units.iter().map(|unit| read(*unit)))
        .map(|unit| unit.map_or_else(|lone| u32::from(lone.unpaired_surrogate()), u32::from));
    rest.is_empty().then(|| text_of(characters))
}

/// UTF-8 with `surrogatepass`: three bytes may encode a surrogate.
fn utf_8(bytes: &[u8]) -> Option<Decoded<'_>> {
    let (mut text, mut surrogates) = (String::new(), Vec::new());
    let mut rest = bytes;
    loop {
        match std::str::from_utf8(rest) {
            Ok(valid) if surrogates.is_empty() => return Some((Cow::Borrowed(valid), surrogates)),
            Ok(valid) => {
                text.push_str(valid);
                return Some((Cow::Owned(text), surrogates));
            }
            Err(error) => {
                let (valid, invalid) = rest.split_at(error.valid_up_to());
                text.push_str(std::str::from_utf8(valid).ok()?);
                let &[0xed, second @ 0xa0..=0xbf, third @ 0x80..=0xbf, ref after @ ..] = invalid else {
                    return None;
                };
                let code = 0xd000 | u16::from(second & 0x3f) << 6 | u16::from(third & 0x3f);
                surrogates.push(LoneSurrogate { at: offset(text.len()), code });
                text.push(char::REPLACEMENT_CHARACTER);
                rest = after;
            }
        }
    }
}
