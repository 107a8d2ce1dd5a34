//! From the bytes of a body to its text, in the encoding that Python's `json.detect_encoding` finds.
//!
//! In: bytes. Out: the text, and where it has U+FFFD for a lone surrogate of the body's own encoding, which
//! Python's strings can hold (`surrogatepass`). `None`: the bytes are not text in that encoding.
//! Invariant: UTF-8 without surrogates is borrowed; anything else takes at most three bytes for two.
use std::borrow::Cow;

/// The text of a body in the encoding that `json.detect_encoding` finds, and where it has lone surrogates.
pub fn decode(bytes: &[u8]) -> Option<(Cow<'_, str>, Vec<usize>)> {
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
fn text_of(characters: impl Iterator<Item = u32>) -> (Cow<'static, str>, Vec<usize>) {
    let (mut text, mut surrogates) = (String::new(), Vec::new());
    for character in characters {
        text.push(char::from_u32(character).unwrap_or_else(|| {
            surrogates.push(text.len());
            char::REPLACEMENT_CHARACTER
        }));
    }
    (Cow::Owned(text), surrogates)
}

fn utf_32(bytes: &[u8], read: fn([u8; 4]) -> u32) -> Option<(Cow<'static, str>, Vec<usize>)> {
    let (units, rest) = bytes.as_chunks::<4>();
    let characters = units.iter().map(|unit| read(*unit));
    (rest.is_empty() && characters.clone().all(|character| character <= 0x0010_ffff))
        .then(|| text_of(characters))
}

fn utf_16(bytes: &[u8], read: fn([u8; 2]) -> u16) -> Option<(Cow<'static, str>, Vec<usize>)> {
    let (units, rest) = bytes.as_chunks::<2>();
    let characters = char::decode_utf16(units.iter().map(|unit| read(*unit)))
        .map(|unit| unit.map_or_else(|lone| u32::from(lone.unpaired_surrogate()), u32::from));
    rest.is_empty().then(|| text_of(characters))
}

/// UTF-8 with `surrogatepass`: three bytes may stand for a surrogate.
fn utf_8(bytes: &[u8]) -> Option<(Cow<'_, str>, Vec<usize>)> {
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
                let &[0xed, 0xa0..=0xbf, 0x80..=0xbf, ref after @ ..] = invalid else { return None };
                surrogates.push(text.len());
                text.push(char::REPLACEMENT_CHARACTER);
                rest = after;
            }
        }
    }
}
