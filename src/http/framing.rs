//! Where a request ends: the rules of RFC 9112 that two parsers must not read differently.
//!
//! In: raw bytes as they arrive. Out: the length of a head and the facts its fields state about
//! framing. Invariant: strict (CRLF only, no folding, one
//! length, one Host), every byte is looked at once however slowly it comes, and every bound of
//! `limits` is met here. Names and values as such are checked by the decoder in `request`.
use bytes::{Buf, BytesMut};
use memchr::memchr;

use crate::http::target::{is_authority, is_target};
use crate::http::{Coding, ParseError};
use crate::limits::{BODY_BYTES_MAX, EMPTY_LINES_MAX, HEADERS_MAX};

/// What the head says about framing and the connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct FramingHeaders {
    pub http_10: bool,
    /// How the body is compressed.
    pub coding: Coding,
    pub expects_continue: bool,
    /// Where the target stands, if it has bytes that the decoder does not take as they are.
    pub odd_target: Option<(u16, u16)>,
    content_length: Option<u64>,
    chunked: bool,
    hosts: u8,
    close: bool,
    persist: bool,
    /// Refusals that wait until the decoder has found the whole head well formed.
    refused: Option<ParseError>,
}

/// The length of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    None,
    Bytes(usize),
    Chunked,
}

/// Finds the end of a head, line by line, and gathers its [`FramingHeaders`].
#[derive(Debug, Default)]
pub struct HeadScan {
    line_start: usize,
    /// Bytes already looked at.
    seen: usize,
    /// Lines of this head so far, the request line included.
    lines: usize,
    empty_lines: usize,
    pub facts: FramingHeaders,
}

impl HeadScan {
    /// True if a part of this head was looked at already.
    pub fn has_begun(&self) -> bool {
        self.seen > 0
    }

    /// The length of the head if all of it is there. Empty lines before it are dropped.
    ///
    /// # Errors
    /// The head is malformed, or larger than `bytes_max`.
    pub fn advance(&mut self, buffer: &mut BytesMut, bytes_max: usize) -> Result<Option<usize>, ParseError> {
        loop {
            let bound = buffer.len().min(bytes_max);
            let Some(found) = memchr(b'\n', &buffer[self.seen..bound]) else {
                self.seen = bound;
                return self.bounded(buffer, bytes_max);
            };
            let end = self.seen + found;
            self.seen = end + 1;
            if self.lines == 0 {
                first_line(&buffer[..end])?;
            }
            // A bare LF ends a line for some parsers and not for others (RFC 9112 2.2).
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
                    self.seen = 0;
                    continue;
                }
                (true, _) => return Ok(Some(end + 1)),
                (false, 0) => self.facts.request_line(line, bytes_max / TARGET_PART)?,
                (false, _) => self.facts.field_line(line)?,
            }
            self.lines += 1;
            if self.lines > HEADERS_MAX + 1 {
                return Err(ParseError::HeadTooLarge);
            }
            self.line_start = end + 1;
        }
    }

    /// Asks for more bytes, if those that are there can still become a head.
    fn bounded(&self, buffer: &[u8], bytes_max: usize) -> Result<Option<usize>, ParseError> {
        if self.lines == 0 {
            first_line(buffer)?;
        }
        if buffer.len() < bytes_max {
            return Ok(None);
        }
        let is_target = self.lines == 0 || self.facts.refused == Some(ParseError::TargetTooLong);
        Err(if is_target { ParseError::TargetTooLong } else { ParseError::HeadTooLarge })
    }
}

/// Whether these bytes, without a line end, can begin a request: judged as they come, so that how they are
/// cut into reads changes no answer.
fn first_line(line: &[u8]) -> Result<(), ParseError> {
    // A TLS handshake on a plain port has no line end that would tell.
    if line.first().is_some_and(|byte| !is_token(byte) && *byte != b'\r') {
        return Err(ParseError::BadRequest);
    }
    Ok(())
}

/// What the decoder refuses, and what starts a fragment, which it cuts off. No URI may hold these
/// unencoded (RFC 3986 2), yet they are sent, and the Python proxy takes them as they are.
pub fn is_odd_in_target(byte: u8) -> bool {
    IN_TARGET[usize::from(byte)] == ODD
}

const ODD: u8 = 1;
const OUTSIDE: u8 = 2;

/// What a byte is in a target: nothing remarkable, [`ODD`], or [`OUTSIDE`] of ASCII.
static IN_TARGET: [u8; 256] = {
    let mut kinds = [0; 256];
    let odd = b"\"#<>`";
    let mut at = 0;
    while at < odd.len() {
        kinds[odd[at] as usize] = ODD;
        at += 1;
    }
    at = 0x7f;
    while at < kinds.len() {
        kinds[at] = OUTSIDE;
        at += 1;
    }
    kinds
};

/// A method, two blanks and a version beside the target, bytes.
const REQUEST_LINE_REST_BYTES_MAX: usize = 64;

/// The target may take this part of a head.
pub const TARGET_PART: usize = 2;

impl FramingHeaders {
    /// True if the connection goes on after this request (RFC 9112 9.3).
    pub fn keep_alive(&self) -> bool {
        !self.close && (!self.http_10 || self.persist)
    }

    /// How long the body is (RFC 9112 6.3), or why the request is refused.
    ///
    /// # Errors
    /// The fields contradict each other, or the body is more than we take.
    pub fn length(&self) -> Result<Length, ParseError> {
        if let Some(reject) = self.refused {
            return Err(reject);
        }
        if self.hosts == 0 && !self.http_10 {
            return Err(ParseError::BadRequest);
        }
        match (self.chunked, self.content_length) {
            // A transfer coding in 1.0, or beside a length, is how requests are smuggled.
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

    /// A target that is too long is refused once the head is whole: only then is the origin known that
    /// the answer must name for a browser to show it.
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
            self.refused = Some(ParseError::TargetTooLong);
        }
        let target = &rest[..target_bytes];
        if !is_target(&line[..method_bytes], target) {
            return Err(malformed);
        }
        self.target(method_bytes + 1, target)
    }

    /// Visible ASCII, as the Python proxy's parser has it; control characters are the decoder's to find.
    fn target(&mut self, start: usize, target: &[u8]) -> Result<(), ParseError> {
        // One look-up a byte and no branch: each new head comes by here (bench: read-get-new).
        let found = target.iter().fold(0, |found, byte| found | IN_TARGET[usize::from(*byte)]);
        if found & OUTSIDE != 0 {
            return Err(ParseError::BadRequest);
        }
        if found & ODD != 0 {
            // Within the bound of a target, far below 65,536.
            let place = u16::try_from(start).ok().zip(u16::try_from(start + target.len()).ok());
            self.odd_target = Some(place.ok_or(ParseError::TargetTooLong)?);
        }
        Ok(())
    }

    fn field_line(&mut self, line: &[u8]) -> Result<(), ParseError> {
        // A line that starts with a blank folds the one before (RFC 9112 5.2).
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

    /// One Host, and in it a host and perhaps a port (RFC 9112 3.2).
    fn host(&mut self, value: &[u8]) -> Result<(), ParseError> {
        self.hosts = self.hosts.saturating_add(1);
        if self.hosts > 1 || !is_authority(trim(value)) {
            return Err(ParseError::BadRequest);
        }
        Ok(())
    }

    fn expectation(&mut self, value: &[u8]) -> Result<(), ParseError> {
        if trim(value).eq_ignore_ascii_case(b"100-continue") {
            // A 1.0 peer cannot have meant it (RFC 9110 10.1.1).
            self.expects_continue = !self.http_10;
        } else {
            self.refused.get_or_insert(ParseError::UnknownExpectation);
        }
        Ok(())
    }

    fn connection(&mut self, value: &[u8]) {
        for option in value.split(|byte| *byte == b',').map(trim) {
            self.close |= option.eq_ignore_ascii_case(b"close");
            self.persist |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }

    /// Digits alone, once: a list, a sign, or a second field may be read in two ways.
    fn content_length(&mut self, value: &[u8]) -> Result<(), ParseError> {
        let value = trim(value);
        if self.content_length.is_some() || value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
            return Err(ParseError::BadRequest);
        }
        let digit =
            |length: u64, digit: &u8| length.saturating_mul(10).saturating_add(u64::from(digit - b'0'));
        self.content_length = Some(value.iter().fold(0, digit));
        Ok(())
    }

    fn content_encoding(&mut self, value: &[u8]) {
        let value = trim(value);
        if value.is_empty() || value.eq_ignore_ascii_case(b"identity") {
            return;
        }
        let is_gzip = value.eq_ignore_ascii_case(b"gzip") || value.eq_ignore_ascii_case(b"x-gzip");
        self.coding =
            if is_gzip && self.coding == Coding::Identity { Coding::Gzip } else { Coding::Unsupported };
    }

    /// `chunked` alone, once (RFC 9112 6.1 asks for 501 for codings that are not understood).
    fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), ParseError> {
        let value = trim(value);
        if self.chunked || value.is_empty() {
            return Err(ParseError::BadRequest);
        }
        self.chunked = true;
        if !value.eq_ignore_ascii_case(b"chunked") {
            self.refused.get_or_insert(ParseError::UnknownCoding);
        }
        Ok(())
    }
}

/// A byte of a method or a field name (RFC 9110 5.6.2).
pub(super) fn is_token(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte)
}

/// Without optional white space: blank and tab only (RFC 9110 5.6.3).
pub(super) fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// Without optional white space before it.
pub(super) fn trim_start(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    value
}
