//! Message framing (RFC 9112): where a head ends, how long the body is, and whether the connection persists.
//!
//! Strict, because parsers that disagree about these rules allow request smuggling: only CRLF ends a line, no
//! folding, one length, one Host. Each byte is scanned once, even if the head arrives byte by byte, and all
//! size limits of a head apply here. The decoder in [`request`](crate::http::request) checks the rest.
use bytes::{Buf, BytesMut};
use memchr::memchr;

use crate::http::decompress::Coding;
use crate::http::error::ParseError;
use crate::http::target::{is_authority, is_target};
use crate::limits::{BODY_BYTES_MAX, EMPTY_LINES_MAX, HEADERS_MAX};

/// What a head says about framing and the connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct FramingHeaders {
    pub http_10: bool,
    pub coding: Coding,
    pub expects_continue: bool,
    /// Start and end of the target, if it contains bytes that the decoder does not accept.
    pub nonstandard_target: Option<(u16, u16)>,
    content_length: Option<u64>,
    chunked: bool,
    hosts: u8,
    close: bool,
    persist: bool,
    /// An error that is returned once the whole head has been decoded: it needs the origin (CORS), and a
    /// malformed head takes precedence.
    deferred_error: Option<ParseError>,
}

/// The length of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    None,
    Bytes(usize),
    Chunked,
}

/// Finds the end of a head, line by line, and collects its [`FramingHeaders`].
#[derive(Debug, Default)]
pub struct HeadScan {
    line_start: usize,
    /// The number of bytes already scanned.
    scanned: usize,
    /// The number of lines so far, the request line included.
    lines: usize,
    empty_lines: usize,
    pub framing: FramingHeaders,
}

impl HeadScan {
    /// Whether a part of this head has been scanned.
    pub fn has_begun(&self) -> bool {
        self.scanned > 0
    }

    /// The length of the head, or `None` if it is incomplete. Drops empty lines before the head.
    ///
    /// # Errors
    /// The head is malformed or exceeds a limit.
    pub fn advance(&mut self, buffer: &mut BytesMut, bytes_max: usize) -> Result<Option<usize>, ParseError> {
        loop {
            let bound = buffer.len().min(bytes_max);
            let Some(found) = memchr(b'\n', &buffer[self.scanned..bound]) else {
                self.scanned = bound;
                return self.need_more(buffer, bytes_max);
            };
            let end = self.scanned + found;
            self.scanned = end + 1;
            if self.lines == 0 {
                check_request_line_start(&buffer[..end])?;
            }
            // Parsers disagree about a bare LF (RFC 9112 2.2).
            let Some(line) = buffer[self.line_start..end].strip_suffix(b"\r") else {
                return Err(ParseError::BadRequest);
            };
            match (line.is_empty(), self.lines) {
                (true, 0) => {
                    self.empty_lines += 1;
                    if self.empty_lines > EMPTY_LINES_MAX {
                        return Err(ParseError::BadRequest);
                    }
                    buffer.advance(end + 1);
                    self.scanned = 0;
                    continue;
                }
                (true, _) => return Ok(Some(end + 1)),
                (false, 0) => self.framing.request_line(line, bytes_max / TARGET_PART)?,
                (false, _) => self.framing.field_line(line)?,
            }
            self.lines += 1;
            if self.lines > HEADERS_MAX + 1 {
                return Err(ParseError::HeadTooLarge);
            }
            self.line_start = end + 1;
        }
    }

    /// Returns `None`, for "more bytes needed", if the bytes so far can still become a valid head.
    fn need_more(&self, buffer: &[u8], bytes_max: usize) -> Result<Option<usize>, ParseError> {
        if self.lines == 0 {
            check_request_line_start(buffer)?;
        }
        if buffer.len() < bytes_max {
            return Ok(None);
        }
        let is_target = self.lines == 0 || self.framing.deferred_error == Some(ParseError::TargetTooLong);
        Err(if is_target { ParseError::TargetTooLong } else { ParseError::HeadTooLarge })
    }
}

/// Checks the start of a request line before its end has arrived. The result does not depend on how the
/// bytes are split into reads.
fn check_request_line_start(line: &[u8]) -> Result<(), ParseError> {
    // A TLS handshake on a plain-text port may contain no line end at all.
    if line.first().is_some_and(|byte| !is_token(byte) && *byte != b'\r') {
        return Err(ParseError::BadRequest);
    }
    Ok(())
}

/// Whether the decoder rejects this byte in a target, or (`#`) truncates the target at it. URIs must encode
/// these bytes (RFC 3986 2), but clients send them, and the Python proxy accepts them.
pub fn is_nonstandard_in_target(byte: u8) -> bool {
    TARGET_BYTE_KINDS[usize::from(byte)] == NONSTANDARD
}

const NONSTANDARD: u8 = 1;
const NOT_ASCII: u8 = 2;

/// Per byte: 0, [`NONSTANDARD`] or [`NOT_ASCII`].
static TARGET_BYTE_KINDS: [u8; 256] = {
    let mut kinds = [0; 256];
    let nonstandard = b"\"#<>`";
    let mut at = 0;
    while at < nonstandard.len() {
        kinds[nonstandard[at] as usize] = NONSTANDARD;
        at += 1;
    }
    at = 0x7f;
    while at < kinds.len() {
        kinds[at] = NOT_ASCII;
        at += 1;
    }
    kinds
};

/// The limit for the rest of the request line (method, two spaces, version), bytes.
const REQUEST_LINE_REST_BYTES_MAX: usize = 64;

/// The target is limited to the head's limit divided by this.
pub const TARGET_PART: usize = 2;

impl FramingHeaders {
    /// Whether the connection persists after this request (RFC 9112 9.3).
    pub fn keep_alive(&self) -> bool {
        !self.close && (!self.http_10 || self.persist)
    }

    /// The length of the body (RFC 9112 6.3). Call it after the whole head has been decoded.
    ///
    /// # Errors
    /// The deferred error, contradicting fields, or a body over the limit.
    pub fn length(&self) -> Result<Length, ParseError> {
        if let Some(error) = self.deferred_error {
            return Err(error);
        }
        if self.hosts == 0 && !self.http_10 {
            return Err(ParseError::BadRequest);
        }
        match (self.chunked, self.content_length) {
            // Request smuggling uses a transfer coding with a length, or in HTTP/1.0.
            (true, Some(_)) => Err(ParseError::BadRequest),
            (true, None) if self.http_10 => Err(ParseError::BadRequest),
            (true, None) => Ok(Length::Chunked),
            (false, None | Some(0)) => Ok(Length::None),
            (false, Some(length)) => match usize::try_from(length) {
                Ok(length) if length <= BODY_BYTES_MAX => Ok(Length::Bytes(length)),
                _ => Err(ParseError::BodyTooLarge),
            },
        }
    }

    /// The value of `Content-Length`.
    pub(super) fn content_length_sent(&self) -> Option<u64> {
        self.content_length
    }

    /// HTTP/2: the error of the head, of which the length is not part (RFC 9113 8.1.1).
    pub(super) fn http2_error(&self) -> Option<ParseError> {
        let is_too_large = self.content_length.is_some_and(|length| length > BODY_BYTES_MAX as u64);
        self.deferred_error.or(is_too_large.then_some(ParseError::BodyTooLarge))
    }

    /// Defers the error for a long target until the head is complete: the error response must name the origin
    /// for a browser to show it.
    fn request_line(&mut self, line: &[u8], target_bytes_max: usize) -> Result<(), ParseError> {
        let is_too_long = line.len() > target_bytes_max + REQUEST_LINE_REST_BYTES_MAX;
        let malformed = if is_too_long { ParseError::TargetTooLong } else { ParseError::BadRequest };
        let method_bytes = memchr(b' ', line).ok_or(malformed)?;
        let rest = &line[method_bytes + 1..];
        let target_bytes = memchr(b' ', rest).ok_or(malformed)?;
        if method_bytes == 0 || target_bytes == 0 {
            return Err(ParseError::BadRequest);
        }
        match &rest[target_bytes + 1..] {
            b"HTTP/1.1" => {}
            b"HTTP/1.0" => self.http_10 = true,
            [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
                if major.is_ascii_digit() && minor.is_ascii_digit() =>
            {
                return Err(ParseError::UnknownVersion);
            }
            _ => return Err(malformed),
        }
        if is_too_long || target_bytes > target_bytes_max {
            self.deferred_error = Some(ParseError::TargetTooLong);
        }
        let target = &rest[..target_bytes];
        if !is_target(&line[..method_bytes], target) {
            return Err(malformed);
        }
        self.target(method_bytes + 1, target)
    }

    /// Rejects non-ASCII bytes, as the Python proxy's parser does. The decoder rejects control characters.
    fn target(&mut self, start: usize, target: &[u8]) -> Result<(), ParseError> {
        // One look-up per byte and no branch: this runs for each uncached head (bench: read-get-new).
        let found = target.iter().fold(0, |found, byte| found | TARGET_BYTE_KINDS[usize::from(*byte)]);
        if found & NOT_ASCII != 0 {
            return Err(ParseError::BadRequest);
        }
        if found & NONSTANDARD != 0 {
            let range = u16::try_from(start).ok().zip(u16::try_from(start + target.len()).ok());
            self.nonstandard_target = Some(range.ok_or(ParseError::TargetTooLong)?);
        }
        Ok(())
    }

    fn field_line(&mut self, line: &[u8]) -> Result<(), ParseError> {
        // A line that starts with white space continues the field before it (RFC 9112 5.2).
        if matches!(line[0], b' ' | b'\t') {
            return Err(ParseError::BadRequest);
        }
        let name_bytes = memchr(b':', line).ok_or(ParseError::BadRequest)?;
        let (name, value) = (&line[..name_bytes], &line[name_bytes + 1..]);
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => self.host(value),
            6 if name.eq_ignore_ascii_case(b"expect") => self.expectation(value),
            10 if name.eq_ignore_ascii_case(b"connection") => {
                self.connection(value);
                Ok(())
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => self.content_length(value),
            16 if name.eq_ignore_ascii_case(b"content-encoding") => {
                self.content_encoding(value);
                Ok(())
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => self.transfer_encoding(value),
            _ => Ok(()),
        }
    }

    /// Requires exactly one `Host` field with a valid authority (RFC 9112 3.2).
    fn host(&mut self, value: &[u8]) -> Result<(), ParseError> {
        self.hosts = self.hosts.saturating_add(1);
        if self.hosts > 1 || !is_authority(trim(value)) {
            return Err(ParseError::BadRequest);
        }
        Ok(())
    }

    pub(super) fn expectation(&mut self, value: &[u8]) -> Result<(), ParseError> {
        if trim(value).eq_ignore_ascii_case(b"100-continue") {
            // Ignored in HTTP/1.0 requests (RFC 9110 10.1.1).
            self.expects_continue = !self.http_10;
        } else {
            self.deferred_error.get_or_insert(ParseError::UnknownExpectation);
        }
        Ok(())
    }

    fn connection(&mut self, value: &[u8]) {
        for option in value.split(|byte| *byte == b',').map(trim) {
            self.close |= option.eq_ignore_ascii_case(b"close");
            self.persist |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }

    /// Requires one field of digits: parsers disagree about lists, signs and repeated fields.
    pub(super) fn content_length(&mut self, value: &[u8]) -> Result<(), ParseError> {
        let value = trim(value);
        if self.content_length.is_some() || value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
            return Err(ParseError::BadRequest);
        }
        let digit =
            |length: u64, digit: &u8| length.saturating_mul(10).saturating_add(u64::from(digit - b'0'));
        self.content_length = Some(value.iter().fold(0, digit));
        Ok(())
    }

    pub(super) fn content_encoding(&mut self, value: &[u8]) {
        let value = trim(value);
        if value.is_empty() || value.eq_ignore_ascii_case(b"identity") {
            return;
        }
        let is_gzip = value.eq_ignore_ascii_case(b"gzip") || value.eq_ignore_ascii_case(b"x-gzip");
        self.coding =
            if is_gzip && self.coding == Coding::Identity { Coding::Gzip } else { Coding::Unsupported };
    }

    /// Requires one field with the single coding `chunked`; other codings are 501 (RFC 9112 6.1).
    fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), ParseError> {
        let value = trim(value);
        if self.chunked || value.is_empty() {
            return Err(ParseError::BadRequest);
        }
        self.chunked = true;
        if !value.eq_ignore_ascii_case(b"chunked") {
            self.deferred_error.get_or_insert(ParseError::UnknownCoding);
        }
        Ok(())
    }
}

/// Whether this is a byte of a token, such as a method or field name (RFC 9110 5.6.2).
pub(super) fn is_token(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte)
}

/// Removes optional white space, which is only spaces and tabs (RFC 9110 5.6.3), from both ends.
pub(super) fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// Removes optional white space from the start.
pub(super) fn trim_start(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    value
}
