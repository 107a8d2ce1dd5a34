//! Request heads: the fields of a block, checked by RFC 9113 8.2 and 8.3 and by the limits of HTTP/1.1.
use std::ops::Range;

use crate::http::decompress::Coding;
use crate::http::error::ParseError;
use crate::http::fields::Fields;
use crate::http::framing::{FramingHeaders, TARGET_PART, is_token};
use crate::http::method::Method;
use crate::http::request::Request;
use crate::http::response::HttpVersion;
use crate::http::target::is_authority;
use crate::limits::{HEADERS_MAX, HTTP2_HEAD_FACTOR, TRAILER_BYTES_MAX};

/// What a field counts beyond its name and value, bytes: `: ` and the line end of HTTP/1.1.
const FIELD_BYTES: usize = 4;

/// A decoded request head. Only what handlers read is kept.
#[derive(Debug, Default)]
pub struct RequestHead {
    method: Method,
    text: Vec<u8>,
    path: Range<usize>,
    query: Range<usize>,
    fields: Vec<FieldRange>,
    pub content_length: Option<u64>,
    pub expects_continue: bool,
    coding: Coding,
    /// The request is answered with this error.
    pub error: Option<ParseError>,
}

#[derive(Debug)]
struct FieldRange {
    start: usize,
    name_end: usize,
    end: usize,
}

impl RequestHead {
    /// The request with its body.
    pub fn request<'a>(&'a self, body: &'a mut [u8]) -> Request<'a> {
        Request {
            method: self.method,
            path: &self.text[self.path.clone()],
            query: &self.text[self.query.clone()],
            fields: self.fields(),
            body,
            coding: self.coding,
            keep_alive: true,
            version: HttpVersion::Http2,
        }
    }

    pub fn fields(&self) -> Fields<'_> {
        let mut fields = Fields::default();
        for range in &self.fields {
            let (name, value) =
                (&self.text[range.start..range.name_end], &self.text[range.name_end..range.end]);
            fields.set(name, value);
        }
        fields.without_invalid()
    }

    pub fn is_head(&self) -> bool {
        self.method == Method::Head
    }

    /// CONNECT is answered before its tunnel begins.
    pub fn is_connect(&self) -> bool {
        self.method == Method::Connect
    }

    /// The memory that it takes, bytes, with the counters of an `Rc`.
    pub fn memory(&self) -> usize {
        size_of::<Self>()
            + 2 * size_of::<usize>()
            + self.text.capacity()
            + self.fields.capacity() * size_of::<FieldRange>()
    }
}

/// Builds a head from the fields of a block, in order.
#[derive(Debug)]
pub struct HeadBuilder {
    head: RequestHead,
    framing: FramingHeaders,
    kind: BlockKind,
    bytes_max: usize,
    bytes: usize,
    count: usize,
    seen: Seen,
    authority: Option<Box<[u8]>>,
    host: Option<Box<[u8]>>,
    is_malformed: bool,
}

/// What a block of fields is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockKind {
    Head,
    /// The fields after a body: checked and dropped.
    Trailers,
}

#[derive(Debug, Default)]
struct Seen {
    method: bool,
    scheme: bool,
    path: bool,
    connect: bool,
    protocol: bool,
    regular: bool,
}

impl HeadBuilder {
    pub fn new(kind: BlockKind, bytes_max: usize) -> Self {
        let bytes_max = if kind == BlockKind::Trailers { TRAILER_BYTES_MAX } else { bytes_max };
        Self {
            head: RequestHead::default(),
            framing: FramingHeaders::default(),
            kind,
            bytes_max,
            bytes: 0,
            count: 0,
            seen: Seen::default(),
            authority: None,
            host: None,
            is_malformed: false,
        }
    }

    /// Adds a field. False: the head exceeds its limit so far that decoding more is not worth it.
    pub fn add(&mut self, name: &[u8], value: &[u8]) -> bool {
        self.bytes += name.len() + value.len() + FIELD_BYTES;
        if self.bytes > self.bytes_max {
            self.fail(ParseError::HeadTooLarge);
            return self.bytes <= self.bytes_max * HTTP2_HEAD_FACTOR;
        }
        if let Some(pseudo) = name.strip_prefix(b":") {
            self.is_malformed |=
                self.seen.regular || self.kind == BlockKind::Trailers || !self.pseudo(pseudo, value);
        } else {
            self.seen.regular = true;
            self.count += 1;
            if self.count > HEADERS_MAX {
                self.fail(ParseError::HeadTooLarge);
            }
            self.is_malformed |= !is_name(name) || !is_value(value) || !self.regular(name, value);
        }
        true
    }

    /// Handles a pseudo-header field. False: it is unknown, repeated or invalid.
    fn pseudo(&mut self, name: &[u8], value: &[u8]) -> bool {
        let seen = &mut self.seen;
        match name {
            b"method" if !seen.method => {
                seen.method = true;
                seen.connect = value == b"CONNECT";
                self.head.method = Method::of(value);
                !value.is_empty() && value.iter().all(is_token)
            }
            b"scheme" if !seen.scheme => {
                seen.scheme = true;
                !value.is_empty() && value.iter().all(u8::is_ascii_graphic)
            }
            b"path" if !seen.path => {
                seen.path = true;
                self.path(value);
                !value.is_empty() && value.iter().all(|byte| !byte.is_ascii_control() && *byte != b' ')
            }
            // Extended CONNECT (RFC 8441) is not offered; it gets the answer of CONNECT.
            b"protocol" if !seen.protocol => {
                seen.protocol = true;
                true
            }
            b"authority" if self.authority.is_none() => {
                self.authority = Some(value.into());
                is_value(value)
            }
            _ => false,
        }
    }

    fn path(&mut self, value: &[u8]) {
        if value.len() > self.bytes_max / TARGET_PART {
            return self.fail(ParseError::TargetTooLong);
        }
        let end = memchr::memchr(b'?', value).unwrap_or(value.len());
        let start = self.head.text.len();
        self.head.text.extend_from_slice(value);
        self.head.path = start..start + end;
        self.head.query = (start + end + 1).min(start + value.len())..start + value.len();
        if !value.is_ascii() {
            self.fail(ParseError::BadRequest);
        }
    }

    /// Handles a field. False: it makes the request malformed (RFC 9113 8.2.2).
    fn regular(&mut self, name: &[u8], value: &[u8]) -> bool {
        match name {
            b"connection" | b"keep-alive" | b"proxy-connection" | b"transfer-encoding" | b"upgrade" => {
                return false;
            }
            b"te" => return value.eq_ignore_ascii_case(b"trailers"),
            _ if self.kind == BlockKind::Trailers => return true,
            b"host" => {
                if self.host.replace(value.into()).is_some() {
                    self.fail(ParseError::BadRequest);
                }
                return true;
            }
            b"content-length" => return self.framing.content_length(value).is_ok(),
            b"content-encoding" => self.framing.content_encoding(value),
            b"expect" => return self.framing.expectation(value).is_ok(),
            _ => {}
        }
        if Fields::default().set(name, b"") {
            let text = &mut self.head.text;
            let start = text.len();
            text.extend_from_slice(name);
            let name_end = text.len();
            text.extend_from_slice(value);
            self.head.fields.push(FieldRange { start, name_end, end: text.len() });
        }
        true
    }

    /// The first error counts.
    fn fail(&mut self, error: ParseError) {
        self.head.error.get_or_insert(error);
    }

    /// The head after its last field; `None`: the request is malformed (RFC 9113 8.1.1).
    pub fn finish(mut self) -> Option<RequestHead> {
        if self.is_malformed {
            return None;
        }
        let is_too_large = self.head.error == Some(ParseError::HeadTooLarge);
        if self.kind == BlockKind::Trailers || is_too_large {
            return Some(self.head);
        }
        // CONNECT has neither scheme nor path (RFC 9113 8.5).
        let Seen { method, scheme, path, connect, protocol, .. } = self.seen;
        let has_target = !connect || protocol;
        if !method || (scheme, path) != (has_target, has_target) || protocol && !connect {
            return None;
        }
        if !connect && !self.has_valid_path() || !self.has_valid_host() {
            self.fail(ParseError::BadRequest);
        }
        self.head.content_length = self.framing.content_length_sent();
        self.head.coding = self.framing.coding;
        self.head.expects_continue = self.framing.expects_continue;
        if let Some(error) = self.framing.http2_error() {
            self.fail(error);
        }
        self.head.text.shrink_to_fit();
        self.head.fields.shrink_to_fit();
        Some(self.head)
    }

    fn has_valid_path(&self) -> bool {
        let text = &self.head.text;
        match &text[self.head.path.clone()] {
            [b'/', ..] => true,
            path => path == b"*" && self.head.query.is_empty() && self.head.method == Method::Options,
        }
    }

    /// A valid host in `:authority`, in `Host`, or the same in both. A client may send none (RFC 9113 8.3.1),
    /// as the health checks of HAProxy do.
    fn has_valid_host(&self) -> bool {
        match (&self.authority, &self.host) {
            (Some(authority), Some(host)) => authority.eq_ignore_ascii_case(host) && is_authority(authority),
            (Some(host), None) | (None, Some(host)) => is_authority(host),
            (None, None) => true,
        }
    }
}

/// Field names are tokens in lower case (RFC 9113 8.2.1).
fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|byte| is_token(byte) && !byte.is_ascii_uppercase())
}

/// Field values contain no NUL and no line end, and do not start or end with white space (RFC 9113 8.2.1).
/// Other control characters are rejected as in HTTP/1.1.
fn is_value(value: &[u8]) -> bool {
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    let is_control = |byte: &u8| byte.is_ascii_control() && *byte != b'\t';
    !is_blank(value.first()) && !is_blank(value.last()) && !value.iter().any(is_control)
}
