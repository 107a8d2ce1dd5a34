//! The response writer: appends whole responses to one buffer.
//!
//! Every response has a correct `Content-Length` or is chunked; the response to a HEAD request has the fields
//! of GET and no body. No clock is read here: the caller sets the date once per batch of requests.
use std::time::SystemTime;

use bytes::Bytes;

use crate::http::date::DateLine;
use crate::http::error::ParseError;
use crate::http::hpack::encoder::ContentLength;
use crate::http::hpack::head_blocks::HeadBlocks;
use crate::http::response_cache::{CacheLookup, ResponseCache};
use crate::http::status::Status;
use crate::limits::{HTTP2_FRAME_BYTES_MAX, TAIL_BYTES_MIN};

/// The output of one batch of requests: the connection writes `bytes`, then `tail`.
#[derive(Debug, Default)]
pub struct ResponseWriter {
    /// Whole responses, except that the end of the last body may be in `tail`.
    pub bytes: Vec<u8>,
    /// The end of a large body that is sent without a copy. Once it is set, nothing may be appended to
    /// `bytes` until both are written.
    pub tail: Option<Bytes>,
    /// The next response is the only one of its batch, so all of it may be in `tail`.
    pub is_only_response: bool,
    /// The last response says `Connection: close`.
    pub close: bool,
    /// HTTP/2: where the body of the last response starts in `bytes`. Before it is space for a frame head,
    /// and before its header block as well.
    pub body_start: usize,
    date: DateLine,
    cache: ResponseCache,
    blocks: HeadBlocks,
}

/// The size of a frame head of HTTP/2, bytes (RFC 9113 4.1).
pub const HTTP2_FRAME_HEAD_BYTES: usize = 9;

/// The media type of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentType {
    Json,
    Text,
    EventStream,
    Html,
    JavaScript,
}

/// A response body.
#[derive(Debug)]
pub enum Body<'a> {
    Empty,
    Copy(&'a [u8]),
    /// The same in parts.
    Parts([&'a [u8]; 3]),
    /// Copied if small, otherwise sent without a copy (`limits::TAIL_BYTES_MIN`).
    Ready(&'a Bytes),
}

/// The properties of a request that the response depends on. `Copy`, so that it can be taken before the body
/// of the request is borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseContext {
    /// The method is HEAD: send no body.
    pub head: bool,
    /// False: send `Connection: close`.
    pub keep_alive: bool,
    pub version: HttpVersion,
}

/// The version of a request, which its response has too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpVersion {
    /// A persistent connection requires `Connection: keep-alive`.
    Http10,
    Http11,
    Http2,
}

impl HttpVersion {
    /// The name in the access log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
        }
    }

    /// The version without `HTTP/`.
    pub fn number(self) -> &'static str {
        match self {
            Self::Http10 => "1.0",
            Self::Http11 => "1.1",
            Self::Http2 => "2",
        }
    }
}

impl ResponseContext {
    /// GET or POST in HTTP/1.1 on a connection that persists.
    pub const PLAIN: Self = Self { head: false, keep_alive: true, version: HttpVersion::Http11 };

    /// GET or POST in HTTP/2.
    pub const HTTP2: Self = Self { version: HttpVersion::Http2, ..Self::PLAIN };

    /// For the response to bytes that are not a request.
    pub const CLOSE: Self = Self { keep_alive: false, ..Self::PLAIN };
}

impl ContentType {
    fn line(self) -> &'static [u8] {
        match self {
            Self::Json => b"content-type: application/json\r\n",
            Self::Text => b"content-type: text/plain; charset=utf-8\r\n",
            Self::EventStream => b"content-type: text/event-stream\r\n",
            Self::Html => b"content-type: text/html; charset=utf-8\r\n",
            Self::JavaScript => b"content-type: text/javascript; charset=utf-8\r\n",
        }
    }
}

/// The only kind of response that is cached.
const CACHEABLE: (ResponseContext, Status, Option<ContentType>) =
    (ResponseContext::PLAIN, Status(200), Some(ContentType::Json));

/// Space reserved for a length that is known only after the body is rendered. Unused digits remain spaces,
/// which are optional white space of the field (RFC 9112 5).
const LENGTH_DIGITS: usize = 10;
const LENGTH_OPEN: &[u8] = b"content-length:           \r\n\r\n";
/// A length of four digits, which most rendered bodies have.
const HTTP2_USUAL_LENGTH: usize = 1000;

impl ResponseWriter {
    /// Sets the `Date` of the following responses.
    pub fn set_date(&mut self, now: SystemTime) {
        self.date.set(now);
    }

    /// Appends one response. `fields` are rendered header lines, each with its CRLF.
    pub fn respond(
        &mut self,
        context: ResponseContext,
        status: Status,
        content_type: Option<ContentType>,
        fields: &[u8],
        body: Body<'_>,
    ) {
        match body {
            Body::Ready(body) if self.is_only_response && (context, status, content_type) == CACHEABLE => {
                self.respond_cached(fields, body);
            }
            body => self.write(context, status, content_type, fields, body),
        }
    }

    fn respond_cached(&mut self, fields: &[u8], body: &Bytes) {
        let (context, status, content_type) = CACHEABLE;
        match self.cache.lookup(body, fields, self.date.seconds()) {
            CacheLookup::Hit(response) => self.tail = Some(response),
            CacheLookup::Admit(index) => {
                self.write(context, status, content_type, fields, Body::Copy(body));
                let response = Bytes::copy_from_slice(&self.bytes);
                self.bytes.clear();
                self.cache.insert(index, response.clone());
                self.tail = Some(response);
            }
            CacheLookup::Miss => self.write(context, status, content_type, fields, Body::Ready(body)),
        }
    }

    fn write(
        &mut self,
        context: ResponseContext,
        status: Status,
        content_type: Option<ContentType>,
        fields: &[u8],
        body: Body<'_>,
    ) {
        let length = match &body {
            Body::Empty => 0,
            Body::Copy(body) => body.len(),
            Body::Parts(parts) => parts.iter().map(|part| part.len()).sum(),
            Body::Ready(body) => body.len(),
        };
        self.bytes.reserve(fields.len() + 256 + length.min(TAIL_BYTES_MIN));
        if context.version == HttpVersion::Http2 {
            return self.write_http2(context, status, content_type, fields, body, length);
        }
        self.begin(context, status, content_type, fields);
        if status.has_no_body() {
            self.bytes.extend_from_slice(b"\r\n");
            return;
        }
        self.bytes.extend_from_slice(b"content-length: ");
        self.bytes.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
        self.bytes.extend_from_slice(b"\r\n\r\n");
        if context.head {
            return;
        }
        match body {
            Body::Empty => {}
            Body::Copy(body) => self.bytes.extend_from_slice(body),
            Body::Parts(parts) => parts.iter().for_each(|part| self.bytes.extend_from_slice(part)),
            Body::Ready(body) if length < TAIL_BYTES_MIN * 2 => self.bytes.extend_from_slice(body),
            Body::Ready(body) => {
                // Copying the start of the body costs less than a separate TCP segment for the head.
                self.bytes.extend_from_slice(&body[..TAIL_BYTES_MIN]);
                self.tail = Some(body.slice(TAIL_BYTES_MIN..));
            }
        }
    }

    /// Releases cached responses and their bodies, after a new snapshot.
    pub fn clear_cache(&mut self) {
        self.cache.clear();
    }

    /// Appends one response whose body `write` renders in place. `write` must only append.
    pub fn respond_with(
        &mut self,
        context: ResponseContext,
        status: Status,
        content_type: Option<ContentType>,
        fields: &[u8],
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        self.respond_with_end(context, status, content_type, fields, |out| {
            write(out);
            None
        });
    }

    /// As [`respond_with`](Self::respond_with), but `write` returns an end of the body, which is sent
    /// without a copy.
    pub fn respond_with_end(
        &mut self,
        context: ResponseContext,
        status: Status,
        content_type: Option<ContentType>,
        fields: &[u8],
        write: impl FnOnce(&mut Vec<u8>) -> Option<Bytes>,
    ) {
        if context.version == HttpVersion::Http2 {
            return self.respond_http2_with(context, status, content_type, fields, |out| {
                let end = write(out);
                out.extend_from_slice(end.as_deref().unwrap_or_default());
            });
        }
        self.begin(context, status, content_type, fields);
        if status.has_no_body() {
            self.bytes.extend_from_slice(b"\r\n");
            return;
        }
        self.bytes.extend_from_slice(LENGTH_OPEN);
        let body_start = self.bytes.len();
        let end = write(&mut self.bytes);
        let length = self.bytes.len() - body_start + end.as_ref().map_or(0, Bytes::len);
        let mut text = itoa::Buffer::new();
        let digits = text.format(length).as_bytes();
        debug_assert!(digits.len() <= LENGTH_DIGITS);
        let digits_end = body_start - b"\r\n\r\n".len();
        self.bytes[digits_end - digits.len()..digits_end].copy_from_slice(digits);
        if context.head {
            self.bytes.truncate(body_start);
        } else {
            self.tail = end;
        }
    }

    /// Appends the head of an event stream. Events follow as chunks ([`chunk`]); in HTTP/1.0 they follow
    /// unframed. Chunks are needed because Python's urllib3 otherwise waits for a full buffer.
    pub fn begin_stream(
        &mut self,
        context: ResponseContext,
        status: Status,
        content_type: ContentType,
        fields: &[u8],
    ) {
        if context.version == HttpVersion::Http2 {
            self.begin_http2(status, Some(content_type), fields);
            return self.begin_http2_body();
        }
        self.begin(ResponseContext { keep_alive: false, ..context }, status, Some(content_type), fields);
        let rest: &[u8] = match context.version {
            HttpVersion::Http10 => b"\r\n",
            _ => b"transfer-encoding: chunked\r\n\r\n",
        };
        self.bytes.extend_from_slice(rest);
    }

    /// Appends space for a frame head, and a header block.
    fn begin_http2(&mut self, status: Status, content_type: Option<ContentType>, fields: &[u8]) {
        self.bytes.extend_from_slice(&[0; HTTP2_FRAME_HEAD_BYTES]);
        let content_type = content_type.map_or(&b""[..], ContentType::line);
        self.blocks.append(status.0, &self.date, content_type, fields, &mut self.bytes);
    }

    /// Appends space for the frame head of the body.
    fn begin_http2_body(&mut self) {
        self.bytes.extend_from_slice(&[0; HTTP2_FRAME_HEAD_BYTES]);
        self.body_start = self.bytes.len();
    }

    fn write_http2(
        &mut self,
        context: ResponseContext,
        status: Status,
        content_type: Option<ContentType>,
        fields: &[u8],
        body: Body<'_>,
        length: usize,
    ) {
        self.begin_http2(status, content_type, fields);
        if !status.has_no_body() {
            self.bytes.extend_from_slice(ContentLength::new(length).bytes());
        }
        self.begin_http2_body();
        if context.head || status.has_no_body() {
            return;
        }
        match body {
            Body::Empty => {}
            Body::Copy(body) => self.bytes.extend_from_slice(body),
            Body::Parts(parts) => parts.iter().for_each(|part| self.bytes.extend_from_slice(part)),
            Body::Ready(body) if length <= HTTP2_FRAME_BYTES_MAX => self.bytes.extend_from_slice(body),
            Body::Ready(body) => self.tail = Some(body.clone()),
        }
    }

    /// The length precedes the body and has as many bytes as digits, so the body is rendered where a body of
    /// four digits starts, and is moved if it has another length.
    fn respond_http2_with(
        &mut self,
        context: ResponseContext,
        status: Status,
        content_type: Option<ContentType>,
        fields: &[u8],
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        self.begin_http2(status, content_type, fields);
        let length_start = self.bytes.len();
        self.bytes.extend_from_slice(ContentLength::new(HTTP2_USUAL_LENGTH).bytes());
        self.begin_http2_body();
        let start = self.body_start;
        write(&mut self.bytes);
        let length = ContentLength::new(self.bytes.len() - start);
        let length_end = start - HTTP2_FRAME_HEAD_BYTES;
        self.body_start = start - (length_end - length_start) + length.bytes().len();
        self.bytes.splice(length_start..length_end, length.bytes().iter().copied());
        if context.head {
            self.bytes.truncate(self.body_start);
        }
    }

    /// Appends an error response. `fields` are the CORS lines that let a browser show it.
    pub fn reject(&mut self, context: ResponseContext, error: ParseError, fields: &[u8]) {
        let context = ResponseContext { keep_alive: context.keep_alive && !error.closes(), ..context };
        let body = Body::Copy(error.body());
        self.respond(context, error.status(), Some(ContentType::Json), fields, body);
    }

    fn begin(
        &mut self,
        context: ResponseContext,
        status: Status,
        content_type: Option<ContentType>,
        fields: &[u8],
    ) {
        match status.line() {
            b"" => {
                self.bytes.extend_from_slice(b"HTTP/1.1 ");
                self.bytes.extend_from_slice(itoa::Buffer::new().format(status.0).as_bytes());
                self.bytes.extend_from_slice(b" \r\n");
            }
            line => self.bytes.extend_from_slice(line),
        }
        self.bytes.extend_from_slice(self.date.line());
        if !context.keep_alive {
            self.close = true;
            self.bytes.extend_from_slice(b"connection: close\r\n");
        } else if context.version == HttpVersion::Http10 {
            self.bytes.extend_from_slice(b"connection: keep-alive\r\n");
        }
        if let Some(content_type) = content_type {
            self.bytes.extend_from_slice(content_type.line());
        }
        self.bytes.extend_from_slice(fields);
    }
}

/// The end of a chunked body (RFC 9112 7.1).
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Appends one chunk with the bytes that `write` appends; no chunk if it appends none.
pub fn chunk(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    const SIZE_OPEN: &[u8] = b"00000000\r\n";
    let start = out.len();
    out.extend_from_slice(SIZE_OPEN);
    write(out);
    let size = out.len() - start - SIZE_OPEN.len();
    if size == 0 {
        return out.truncate(start);
    }
    out[start..start + 8].copy_from_slice(format!("{size:08x}").as_bytes());
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests;
