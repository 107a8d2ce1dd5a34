//! JSON strings and numbers as orjson writes them (compatibility.md 2.6): non-ASCII characters stay raw.
use wide::u8x16;

/// The escape of each byte: 0 for none, `u` for `\u00XX`, any other byte follows a backslash.
static ESCAPES: [u8; 256] = escapes();

const fn escapes() -> [u8; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 0x20 {
        table[byte] = b'u';
        byte += 1;
    }
    table[0x08] = b'b';
    table[0x09] = b't';
    table[0x0a] = b'n';
    table[0x0c] = b'f';
    table[0x0d] = b'r';
    table[b'"' as usize] = b'"';
    table[b'\\' as usize] = b'\\';
    table
}

/// Appends `text` as a JSON string. Escapes `"`, `\` and control characters below 0x20.
pub fn string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    escaped(text, out);
    out.push(b'"');
}

/// Appends the inside of a JSON string.
pub fn escaped(text: &str, out: &mut Vec<u8>) {
    let mut rest = text.as_bytes();
    loop {
        let (plain, special) = rest.split_at(plain_len(rest));
        out.extend_from_slice(plain);
        let Some((byte, after)) = special.split_first() else { return };
        rest = after;
        match ESCAPES[usize::from(*byte)] {
            b'u' => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                out.extend_from_slice(b"\\u00");
                out.push(HEX[usize::from(byte >> 4)]);
                out.push(HEX[usize::from(byte & 15)]);
            }
            escape => out.extend_from_slice(&[b'\\', escape]),
        }
    }
}

/// The number of leading bytes that need no escape in a JSON string.
#[inline]
pub fn plain_len(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(chunk) = bytes[at..].first_chunk() {
        let chunk = u8x16::new(*chunk);
        let is_control = chunk.min(u8x16::splat(0x1f)).cmp_eq(chunk);
        let is_special = chunk.cmp_eq(u8x16::splat(b'"')) | chunk.cmp_eq(u8x16::splat(b'\\')) | is_control;
        let mask = is_special.move_mask();
        if mask != 0 {
            return at + mask.trailing_zeros() as usize;
        }
        at += 16;
    }
    let rest = &bytes[at..];
    at + rest.iter().position(|byte| ESCAPES[usize::from(*byte)] != 0).unwrap_or(rest.len())
}

/// Appends a float: shortest form with a decimal point or exponent; NaN and infinities are `null`.
pub fn float(number: f64, out: &mut Vec<u8>) {
    if number.is_finite() {
        out.extend_from_slice(ryu::Buffer::new().format_finite(number).as_bytes());
    } else {
        out.extend_from_slice(b"null");
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn strings_are_escaped_as_in_orjson() {
        let mut out = Vec::new();
        super::string("a\"b\\c\u{0}\u{8}\t\n\u{b}\u{c}\r\u{1f}\u{7f}é😀/", &mut out);
        let expected = "\"a\\\"b\\\\c\\u0000\\b\\t\\n\\u000b\\f\\r\\u001f\u{7f}é😀/\"";
        assert_eq!(std::str::from_utf8(&out).unwrap(), expected);
    }

    #[test]
    fn plain_len_stops_at_the_first_special_byte() {
        for length in 0..70 {
            for byte in (0_u8..=255).filter(|byte| super::ESCAPES[usize::from(*byte)] != 0) {
                let mut bytes = vec![0xc3; length];
                assert_eq!(super::plain_len(&bytes), length);
                bytes.push(byte);
                bytes.extend_from_slice(b"\x7f \"");
                assert_eq!(super::plain_len(&bytes), length, "{byte}");
            }
        }
    }

    #[test]
    fn floats_are_written_as_in_orjson() {
        let table = [
            (1.0, "1.0"),
            (1000.0, "1000.0"),
            (1.1, "1.1"),
            (-0.0, "-0.0"),
            (1e22, "1e22"),
            (1e-7, "1e-7"),
            (1e16, "1e16"),
            (f64::INFINITY, "null"),
            (f64::NAN, "null"),
        ];
        for (number, expected) in table {
            let mut out = Vec::new();
            super::float(number, &mut out);
            assert_eq!(std::str::from_utf8(&out).unwrap(), expected);
        }
    }
}
