//! The response writer: appends whole responses to one buffer.
//!
//! Every response has a correct `Content-Length` or is chunked; the response to a HEAD request has the fields
//! of GET and no body. No clock is read here: the caller sets the date once per batch of requests.
use std::time::SystemTime;

use bytes::Bytes;

use crate::http::date::DateLine;
use crate::http::error::ParseError;
use crate::http::response_cache::{CacheLookup, ResponseCache};
use crate::http::status::Status;
use crate::limits::TAIL_BYTES_MIN;

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
    date: DateLine,
    cache: ResponseCache,
}

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
    /// HTTP/1.0: a persistent connection requires `Connection: keep-alive`.
    pub http_10: bool,
}

impl ResponseContext {
    /// GET or POST in HTTP/1.1 on a connection that persists.
    pub const PLAIN: Self = Self { head: false, keep_alive: true, http_10: false };

    /// For the response to bytes that are not a request.
    pub const CLOSE: Self = Self { head: false, keep_alive: false, http_10: false };
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
            Body::Ready(body) => body.len(),
        };
        self.bytes.reserve(fields.len() + 256 + length.min(TAIL_BYTES_MIN));
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
        self.begin(context, status, content_type, fields);
        if status.has_no_body() {
            self.bytes.extend_from_slice(b"\r\n");
            return;
        }
        self.bytes.extend_from_slice(LENGTH_OPEN);
        let body_start = self.bytes.len();
        write(&mut self.bytes);
        let mut text = itoa::Buffer::new();
        let digits = text.format(self.bytes.len() - body_start).as_bytes();
        debug_assert!(digits.len() <= LENGTH_DIGITS);
        let digits_end = body_start - b"\r\n\r\n".len();
        self.bytes[digits_end - digits.len()..digits_end].copy_from_slice(digits);
        if context.head {
            self.bytes.truncate(body_start);
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
        self.begin(ResponseContext { keep_alive: false, ..context }, status, Some(content_type), fields);
        let rest: &[u8] = if context.http_10 { b"\r\n" } else { b"transfer-encoding: chunked\r\n\r\n" };
        self.bytes.extend_from_slice(rest);
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
        } else if context.http_10 {
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
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    const KEEP: ResponseContext = ResponseContext { head: false, keep_alive: true, http_10: false };

    fn output() -> ResponseWriter {
        let mut output = ResponseWriter::default();
        output.set_date(UNIX_EPOCH + Duration::from_secs(784_111_777));
        output
    }

    #[test]
    fn copies_a_small_body() {
        let mut output = output();
        output.respond(KEEP, Status(200), Some(ContentType::Json), b"vary: Origin\r\n", Body::Copy(b"{}"));
        assert_eq!(
            String::from_utf8_lossy(&output.bytes),
            "HTTP/1.1 200 OK\r\ndate: Sun, 06 Nov 1994 08:49:37 GMT\r\ncontent-type: application/json\r\n\
             vary: Origin\r\ncontent-length: 2\r\n\r\n{}"
        );
        assert!(output.tail.is_none() && !output.close);
    }

    #[test]
    fn fills_in_the_length_of_a_body_rendered_in_place() {
        let mut output = output();
        output.respond_with(KEEP, Status(200), None, b"", |out| out.extend_from_slice(&[b'x'; 1234]));
        let text = String::from_utf8_lossy(&output.bytes);
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with("content-length:       1234"), "{head}");
        assert_eq!(body.len(), 1234);
    }

    #[test]
    fn head_response_has_the_fields_of_get_and_no_body() {
        for build in [false, true] {
            let mut output = output();
            let context = ResponseContext { head: true, ..KEEP };
            if build {
                output.respond_with(context, Status(200), None, b"", |out| out.extend_from_slice(b"abc"));
            } else {
                output.respond(context, Status(200), None, b"", Body::Copy(b"abc"));
            }
            let text = String::from_utf8_lossy(&output.bytes);
            assert!(text.trim_end().ends_with(" 3") && text.ends_with("\r\n\r\n"), "{text}");
        }
    }

    #[test]
    fn status_204_and_304_have_no_length_and_no_body() {
        for status in [204, 304] {
            let mut output = output();
            output.respond(KEEP, Status(status), None, b"etag: \"a\"\r\n", Body::Copy(b"x"));
            let text = String::from_utf8_lossy(&output.bytes);
            assert!(text.ends_with("etag: \"a\"\r\n\r\n") && !text.contains("content-length"), "{text}");
        }
    }

    #[test]
    fn sends_a_large_body_without_a_copy() {
        let mut output = output();
        let body = Bytes::from(vec![7; TAIL_BYTES_MIN * 3]);
        output.respond(KEEP, Status(200), None, b"", Body::Ready(&body));
        let tail = output.tail.expect("a tail");
        assert_eq!(tail.len(), TAIL_BYTES_MIN * 2);
        assert_eq!(tail.as_ptr(), body[TAIL_BYTES_MIN..].as_ptr());
        assert!(output.bytes.ends_with(&body[..TAIL_BYTES_MIN]));
    }

    #[test]
    fn cached_response_equals_the_rendered_one() {
        let (body, fields) = (Bytes::from(vec![b'7'; TAIL_BYTES_MIN * 3]), b"etag: \"a\"\r\n");
        let mut output = output();
        output.is_only_response = true;
        let mut responses = Vec::new();
        let mut addresses = Vec::new();
        for (round, seconds) in [(0, 0), (1, 0), (2, 0), (3, 0), (4, 1), (5, 1), (6, 1)] {
            output.set_date(UNIX_EPOCH + Duration::from_secs(784_111_777 + seconds));
            output.respond(KEEP, Status(200), Some(ContentType::Json), fields, Body::Ready(&body));
            let (mut bytes, tail) = (std::mem::take(&mut output.bytes), output.tail.take().unwrap());
            // The second request renders into one buffer; from the third on, nothing is copied.
            assert_eq!(bytes.is_empty(), ![0, 4].contains(&round), "{round}");
            addresses.push(tail.as_ptr());
            bytes.extend_from_slice(&tail);
            responses.push(bytes);
        }
        assert!(responses[0].ends_with(&body));
        assert!(responses[..4].iter().all(|response| *response == responses[0]));
        assert!(responses[0] != responses[4]);
        assert!(responses[5..].iter().all(|response| *response == responses[4]));
        assert!(addresses[1] == addresses[2] && addresses[2] == addresses[3] && addresses[5] == addresses[6]);
        // Responses to HEAD and with `Connection: close` are not cached.
        for context in [ResponseContext { head: true, ..KEEP }, ResponseContext { keep_alive: false, ..KEEP }]
        {
            output.respond(context, Status(200), Some(ContentType::Json), fields, Body::Ready(&body));
            assert!(!std::mem::take(&mut output.bytes).is_empty());
        }
        output.clear_cache();
        output.respond(KEEP, Status(200), Some(ContentType::Json), fields, Body::Ready(&body));
        assert!(!output.bytes.is_empty());
    }

    #[test]
    fn announces_whether_the_connection_persists() {
        for (keep_alive, http_10, line, close) in [
            (true, false, None, false),
            (true, true, Some("connection: keep-alive\r\n"), false),
            (false, false, Some("connection: close\r\n"), true),
            (false, true, Some("connection: close\r\n"), true),
        ] {
            let mut output = output();
            output.respond(
                ResponseContext { head: false, keep_alive, http_10 },
                Status(200),
                None,
                b"",
                Body::Empty,
            );
            let text = String::from_utf8_lossy(&output.bytes).into_owned();
            assert_eq!(output.close, close);
            match line {
                Some(line) => assert!(text.contains(line), "{text}"),
                None => assert!(!text.contains("connection"), "{text}"),
            }
        }
    }

    #[test]
    fn writes_the_size_of_a_chunk_and_no_empty_chunk() {
        let mut out = b"x".to_vec();
        chunk(&mut out, |out| out.extend_from_slice(&[b'y'; 17]));
        chunk(&mut out, |_| {});
        assert_eq!(out, [b"x00000011\r\n".as_slice(), &[b'y'; 17], b"\r\n"].concat());
    }

    #[test]
    fn error_response_is_a_json_object() {
        let mut output = output();
        output.reject(KEEP, ParseError::HeadTooLarge, b"");
        let text = String::from_utf8_lossy(&output.bytes).into_owned();
        assert!(text.starts_with("HTTP/1.1 431 ") && output.close, "{text}");
        assert!(text.ends_with("{\"detail\":\"Request header fields too large\"}"), "{text}");
    }
}
