//! Bytes as hex digits: digests, entity tags, and what a path takes only percent-encoded.
//!
//! In: bytes or text. Out: a text of its own. Invariant: ASCII alone comes out. Nothing here is on
//! the way of an evaluation.

/// Two lower-case digits for each byte.
pub fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from(b"0123456789abcdef"[usize::from(value)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// `text` as one segment of a path: all but unreserved characters percent-encoded (RFC 3986 2.3).
pub fn path_segment(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_has_two_digits() {
        assert_eq!(hex(&[0x00, 0x0a, 0xf0, 0xff]), "000af0ff");
    }

    #[test]
    fn a_key_is_one_segment_whatever_is_in_it() {
        assert_eq!(path_segment("AZaz09-._~"), "AZaz09-._~");
        assert_eq!(path_segment("a/../b?c#é"), "a%2F..%2Fb%3Fc%23%C3%A9");
    }
}
