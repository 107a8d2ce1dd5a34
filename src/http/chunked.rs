//! The decoder of chunked bodies (RFC 9112 7.1), which decodes in place.
//!
//! Every line is parsed by its grammar: a server that skips what it cannot parse may disagree with a gateway
//! about where the body ends. Trailer fields are checked and dropped.
use bytes::BytesMut;
use memchr::memchr;

use crate::http::error::ParseError;
use crate::http::framing::{is_token, trim, trim_start};
use crate::limits::{BODY_BYTES_MAX, CHUNK_LINE_BYTES_MAX, TRAILER_BYTES_MAX};

/// The state of one body. The decoded body is at the front of the buffer and the undecoded rest follows, so
/// the buffer never holds more than the decoded body and one read.
#[derive(Debug, Default)]
pub struct Chunked {
    decoded: usize,
    coded: usize,
    trailer_bytes: usize,
    state: ChunkState,
}

#[derive(Clone, Copy, Debug, Default)]
enum ChunkState {
    #[default]
    Size,
    Data(usize),
    DataEnd,
    Trailer,
    End,
}

impl Chunked {
    /// The length of the decoded body, which is at the front of the buffer.
    pub fn decoded_bytes(&self) -> usize {
        self.decoded
    }

    /// The number of buffer bytes that belong to this body, the trailer section included.
    pub fn coded_bytes(&self) -> usize {
        self.coded
    }

    /// Decodes the bytes received so far. Returns true once the body and its trailer section are complete.
    ///
    /// # Errors
    /// The coding is malformed, or the body or its trailer section exceeds its limit.
    pub fn advance(&mut self, buffer: &mut BytesMut) -> Result<bool, ParseError> {
        loop {
            match self.state {
                ChunkState::Size => {
                    let Some(line) =
                        line(&buffer[self.coded..], CHUNK_LINE_BYTES_MAX, ParseError::BadRequest)?
                    else {
                        break;
                    };
                    let size = chunk_size(line)?;
                    self.coded += line.len() + 2;
                    if self.decoded + size > BODY_BYTES_MAX {
                        return Err(ParseError::BodyTooLarge);
                    }
                    self.state = if size == 0 { ChunkState::Trailer } else { ChunkState::Data(size) };
                }
                ChunkState::Data(left) => {
                    let take = left.min(buffer.len() - self.coded);
                    if take == 0 {
                        break;
                    }
                    buffer.copy_within(self.coded..self.coded + take, self.decoded);
                    self.decoded += take;
                    self.coded += take;
                    self.state =
                        if take == left { ChunkState::DataEnd } else { ChunkState::Data(left - take) };
                }
                ChunkState::DataEnd => match &buffer[self.coded..] {
                    [b'\r', b'\n', ..] => {
                        self.coded += 2;
                        self.state = ChunkState::Size;
                    }
                    [] | [b'\r'] => break,
                    _ => return Err(ParseError::BadRequest),
                },
                ChunkState::Trailer => {
                    let Some(line) =
                        line(&buffer[self.coded..], TRAILER_BYTES_MAX, ParseError::HeadTooLarge)?
                    else {
                        break;
                    };
                    self.coded += line.len() + 2;
                    self.trailer_bytes += line.len() + 2;
                    if line.is_empty() {
                        self.state = ChunkState::End;
                    } else {
                        trailer_line(line, self.trailer_bytes)?;
                    }
                }
                ChunkState::End => return Ok(true),
            }
        }
        self.close_gap(buffer);
        Ok(false)
    }

    /// Moves the undecoded rest to the end of the decoded body, so that chunk headers use no memory.
    fn close_gap(&mut self, buffer: &mut BytesMut) {
        if self.coded > self.decoded {
            let rest_bytes = buffer.len() - self.coded;
            buffer.copy_within(self.coded.., self.decoded);
            buffer.truncate(self.decoded + rest_bytes);
            self.coded = self.decoded;
        }
    }
}

/// The next line without its CRLF, or `None` if it is incomplete.
fn line(coded: &[u8], bytes_max: usize, too_long: ParseError) -> Result<Option<&[u8]>, ParseError> {
    let bound = coded.len().min(bytes_max);
    match memchr(b'\n', &coded[..bound]) {
        Some(end) => coded[..end].strip_suffix(b"\r").map(Some).ok_or(ParseError::BadRequest),
        None if coded.len() >= bytes_max => Err(too_long),
        None => Ok(None),
    }
}

/// Parses the chunk size and checks the extensions (RFC 9112 7.1.1).
fn chunk_size(line: &[u8]) -> Result<usize, ParseError> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    if digits == 0 || !are_extensions(&line[digits..]) {
        return Err(ParseError::BadRequest);
    }
    let value = |size: usize, byte: &u8| {
        let digit = (*byte as char).to_digit(16).unwrap_or(0) as usize;
        size.saturating_mul(16).saturating_add(digit)
    };
    let size = line[..digits].iter().fold(0, value);
    if size > BODY_BYTES_MAX { Err(ParseError::BodyTooLarge) } else { Ok(size) }
}

/// Whether this is `*( BWS ";" BWS token [ BWS "=" BWS ( token / quoted-string ) ] )`. Well-formed extensions
/// are ignored; malformed ones are rejected, because request smuggling uses them (RFC 9112 11.2).
fn are_extensions(mut rest: &[u8]) -> bool {
    while !rest.is_empty() {
        let Some(name) = trim_start(rest).strip_prefix(b";") else { return false };
        let Some(after_name) = after_token(trim_start(name)) else { return false };
        rest = match trim_start(after_name).strip_prefix(b"=").map(trim_start) {
            None => after_name,
            Some(value) => match after_token(value).or_else(|| after_quoted(value)) {
                Some(after_value) => after_value,
                None => return false,
            },
        };
    }
    true
}

fn after_token(text: &[u8]) -> Option<&[u8]> {
    let bytes = text.iter().take_while(|byte| is_token(byte)).count();
    (bytes > 0).then(|| &text[bytes..])
}

/// The text after a quoted string (RFC 9110 5.6.4).
fn after_quoted(text: &[u8]) -> Option<&[u8]> {
    let mut rest = text.strip_prefix(b"\"")?;
    loop {
        rest = match rest {
            [b'"', after @ ..] => return Some(after),
            [b'\\', byte, after @ ..] | [byte, after @ ..] if is_text(*byte) => after,
            _ => return None,
        };
    }
}

/// Whether a field value or a quoted string may contain this byte.
fn is_text(byte: u8) -> bool {
    !byte.is_ascii_control() || byte == b'\t'
}

/// Fields that are not allowed in a trailer section (RFC 9110 6.5.1): framing, routing, credentials,
/// conditions and content fields. A gateway that merges trailers into the head would otherwise forward a
/// different request than the one handled here.
const FORBIDDEN_TRAILERS: [&[u8]; 22] = [
    b"transfer-encoding",
    b"content-length",
    b"content-encoding",
    b"content-type",
    b"content-range",
    b"connection",
    b"keep-alive",
    b"te",
    b"trailer",
    b"upgrade",
    b"host",
    b"expect",
    b"authorization",
    b"cookie",
    b"x-environment-key",
    b"x-api-key",
    b"origin",
    b"if-match",
    b"if-none-match",
    b"if-modified-since",
    b"if-unmodified-since",
    b"x-forwarded-for",
];

/// Rejects a trailer line that is folded, malformed, or has a forbidden name.
fn trailer_line(line: &[u8], trailer_bytes: usize) -> Result<(), ParseError> {
    if trailer_bytes > TRAILER_BYTES_MAX {
        return Err(ParseError::HeadTooLarge);
    }
    let name = memchr(b':', line).map(|bytes| &line[..bytes]).filter(|name| !name.is_empty());
    let is_field = |name: &&[u8]| {
        name.iter().all(is_token) && trim(&line[name.len() + 1..]).iter().copied().all(is_text)
    };
    match name.filter(is_field) {
        Some(name) if !FORBIDDEN_TRAILERS.iter().any(|forbidden| name.eq_ignore_ascii_case(forbidden)) => {
            Ok(())
        }
        _ => Err(ParseError::BadRequest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_a_trailer_section_have_a_common_limit() {
        let lines = "a:b\r\n".repeat(TRAILER_BYTES_MAX / 5 - 1);
        let rest = TRAILER_BYTES_MAX - lines.len() - "a:\r\n".len();
        for (value_bytes, expected) in [(rest, Ok(true)), (rest + 1, Err(ParseError::HeadTooLarge))] {
            let body = format!("0\r\n{lines}a:{}\r\n\r\n", "b".repeat(value_bytes));
            let mut buffer = BytesMut::from(body.as_bytes());
            assert_eq!(Chunked::default().advance(&mut buffer), expected);
        }
    }

    /// Chunk headers use no memory, however many there are.
    #[test]
    fn the_buffer_has_only_the_decoded_body_and_the_undecoded_rest() {
        let (mut chunked, mut buffer) = (Chunked::default(), BytesMut::new());
        for round in 1..=10 {
            buffer.extend_from_slice(&b"1\r\na\r\n".repeat(100));
            buffer.extend_from_slice(b"1\r\n");
            assert_eq!(chunked.advance(&mut buffer), Ok(false));
            assert_eq!((chunked.decoded_bytes(), buffer.len()), (round * 101 - 1, round * 101 - 1));
            buffer.extend_from_slice(b"b\r\n");
        }
        buffer.extend_from_slice(b"0\r\n\r\nnext");
        assert_eq!(chunked.advance(&mut buffer), Ok(true));
        assert_eq!((chunked.decoded_bytes(), &buffer[chunked.coded_bytes()..]), (1010, &b"next"[..]));
    }
}
