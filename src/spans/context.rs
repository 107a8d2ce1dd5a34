//! `traceparent` (W3C Trace Context, 3.2).

/// 16 bytes, not all zero.
pub type TraceId = [u8; 16];
/// 8 bytes, not all zero.
pub type SpanId = [u8; 8];

/// The trace and the span of a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    pub trace_id: TraceId,
    pub span_id: SpanId,
    /// The caller may have recorded its span.
    pub is_sampled: bool,
}

/// `00-`, the trace id, `-`, the span id, `-` and the flags.
const LENGTH: usize = 55;

impl TraceParent {
    /// Parses a `traceparent`; `None` if it is invalid. Of a version above 00 only the fields of 00 are read.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (head, rest) = value.split_first_chunk::<LENGTH>()?;
        if head[2] != b'-' || head[35] != b'-' || head[52] != b'-' {
            return None;
        }
        let [version] = hex::<1>(&head[..2])?;
        let is_end = match version {
            0 => rest.is_empty(),
            0xff => false,
            _ => rest.is_empty() || rest[0] == b'-',
        };
        let (trace_id, span_id) = (hex::<16>(&head[3..35])?, hex::<8>(&head[36..52])?);
        let [flags] = hex::<1>(&head[53..])?;
        let is_valid = is_end && trace_id != TraceId::default() && span_id != SpanId::default();
        is_valid.then_some(Self { trace_id, span_id, is_sampled: flags & 1 == 1 })
    }

    /// The value of a `traceparent`.
    pub fn header(&self) -> String {
        let flags = u8::from(self.is_sampled);
        format!("00-{}-{}-{flags:02x}", lower_hex(&self.trace_id), lower_hex(&self.span_id))
    }
}

/// Decodes digits of lower case only, as the specification demands.
#[inline(always)]
fn hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let (mut bytes, mut is_valid) = ([0; N], digits.len() == 2 * N);
    let (eights, rest) = digits.as_chunks::<8>();
    let (fours, last) = bytes.as_chunks_mut::<4>();
    for (four, eight) in fours.iter_mut().zip(eights) {
        let (decoded, is_hex) = eight_digits(u64::from_be_bytes(*eight));
        *four = decoded.to_be_bytes();
        is_valid &= is_hex;
    }
    for (byte, pair) in last.iter_mut().zip(rest.as_chunks::<2>().0) {
        let (decoded, is_hex) = eight_digits(0x3030_3030_3030_0000 | u64::from(u16::from_be_bytes(*pair)));
        *byte = decoded.to_be_bytes()[3];
        is_valid &= is_hex;
    }
    is_valid.then_some(bytes)
}

/// Decodes eight digits in one word, and whether all of them are digits: a trace id has 32, and callers may
/// send one with each request.
fn eight_digits(text: u64) -> (u32, bool) {
    const ONES: u64 = 0x0101_0101_0101_0101;
    // Of the digits only letters have this bit. Their low four bits begin with 1.
    let letters = (text >> 6) & ONES;
    let values = (text & (0x0f * ONES)) + 9 * letters;
    let is_above_9 = ((values + 6 * ONES) >> 4) & ONES;
    let is_hex = values & (0xf0 * ONES) == 0
        && values + u64::from(b'0') * ONES + u64::from(b'a' - b'9' - 1) * is_above_9 == text;
    // Each step joins neighbours: two values to a byte, two bytes, four bytes.
    let bytes = (values | values >> 4) & 0x00ff_00ff_00ff_00ff;
    let pairs = (bytes | bytes >> 8) & 0x0000_ffff_0000_ffff;
    ((pairs | pairs >> 16) as u32, is_hex)
}

pub fn lower_hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    write_hex(bytes, &mut text);
    text
}

/// Appends two digits for each byte.
pub fn write_hex(bytes: &[u8], out: &mut String) {
    for byte in bytes {
        for digit in [byte >> 4, byte & 15] {
            out.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn parses_and_writes() {
        let context = TraceParent::parse(VALID.as_bytes()).unwrap();
        assert_eq!(context.header(), VALID);
        assert!(context.is_sampled);
        for (text, is_sampled) in [
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00", false),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-fe", false),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03", true),
            ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-comes-later", true),
            ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", true),
        ] {
            let context = TraceParent::parse(text.as_bytes()).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(context.is_sampled, is_sampled, "{text}");
        }
    }

    #[test]
    fn decodes_each_digit_at_each_place_and_nothing_else() {
        for place in 0..16 {
            for byte in 0..=u8::MAX {
                let mut text = *b"0123456789abcdef";
                text[place] = byte;
                let expected = std::str::from_utf8(&text)
                    .ok()
                    .filter(|_| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
                    .and_then(|text| u64::from_str_radix(text, 16).ok());
                assert_eq!(hex::<8>(&text).map(u64::from_be_bytes), expected, "{byte} at {place}");
                let first = expected.map(|number| number.to_be_bytes()[0]);
                assert!(place > 1 || hex::<1>(&text[..2]).map(|[one]| one) == first, "{byte} at {place}");
            }
        }
    }

    #[test]
    fn refuses_what_the_specification_calls_invalid() {
        for text in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "0x-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00F067AA0BA902B7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01x",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01x",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01  ",
            "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-g1",
            "00-4bf92f3577b34da6a3ce929d0e0e473\u{ff}-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceParent::parse(text.as_bytes()), None, "{text}");
        }
    }
}
