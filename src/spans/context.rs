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
        let (head, rest) = value.split_at_checked(LENGTH)?;
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

/// Lower case only, as the specification demands.
fn hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let (mut bytes, mut is_valid) = ([0; N], digits.len() == 2 * N);
    for (byte, pair) in bytes.iter_mut().zip(digits.as_chunks::<2>().0) {
        let (high, low) = (DIGITS[usize::from(pair[0])], DIGITS[usize::from(pair[1])]);
        is_valid &= (high | low) < 16;
        *byte = high << 4 | low & 15;
    }
    is_valid.then_some(bytes)
}

/// The value of each digit; above 15: not a digit.
const DIGITS: [u8; 256] = {
    let mut digits = [0xff; 256];
    let mut value = 0;
    while value < 16 {
        digits[b"0123456789abcdef"[value] as usize] = value as u8;
        value += 1;
    }
    digits
};

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
