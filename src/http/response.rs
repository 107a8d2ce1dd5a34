//! From an answer to bytes: heads and bodies appended to one buffer.
//!
//! In: status, fields, body. Out: bytes in [`ResponseWriter`]. Invariant: whatever is appended is a
//! whole response with a right Content-Length; a HEAD answer has the fields of GET and no body.
//! Nothing here reads a clock: the connection sets the date once for each batch of requests.
use std::time::SystemTime;

use bytes::Bytes;

use crate::http::ParseError;
use crate::http::date::DateLine;
use crate::http::response_cache::{CacheLookup, ResponseCache};
use crate::limits::TAIL_BYTES_MIN;

/// What is to be written to a connection, in order: `bytes`, then `tail`.
#[derive(Debug, Default)]
pub struct ResponseWriter {
    /// Whole responses, but for the end of the last one's body if that is in `tail`.
    pub bytes: Vec<u8>,
    /// The end of a large ready body, sent without a copy. When it is set the connection
    /// writes `bytes`, then this, before it answers the next request.
    pub tail: Option<Bytes>,
    /// The next answer is the only one of its write, so it may be all in `tail`, with no bytes before.
    pub is_alone: bool,
    /// Set by an answer that must be the connection's last.
    pub close: bool,
    date: DateLine,
    wholes: ResponseCache,
}

/// An HTTP status code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub u16);

/// What a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentType {
    Json,
    Text,
    EventStream,
    Html,
    JavaScript,
}

/// A response body: copied into the buffer, or sent from where it is.
#[derive(Debug)]
pub enum Body<'a> {
    Empty,
    Copy(&'a [u8]),
    /// Sent without a copy if it is large, copied if it is small (`limits::TAIL_BYTES_MIN`).
    Ready(&'a Bytes),
}

/// What the writer must know of the request it answers. `Copy`, so that it can be taken before
/// the body is borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseContext {
    /// The request was HEAD: fields of GET, no body.
    pub head: bool,
    /// False: the answer says `Connection: close`.
    pub keep_alive: bool,
    /// An HTTP/1.0 peer learns only from `Connection: keep-alive` that it may go on.
    pub http_10: bool,
}

impl ResponseContext {
    /// The usual: GET or POST, and the connection goes on without saying so.
    pub const PLAIN: Self = Self { head: false, keep_alive: true, http_10: false };

    /// For an answer to bytes that are not a request: nothing but a close can follow.
    pub const CLOSE: Self = Self { head: false, keep_alive: false, http_10: false };
}

impl Status {
    /// The status line. Codes this product does not send have no reason phrase (RFC 9112 4
    /// lets it be empty).
    fn line(self) -> &'static [u8] {
        match self.0 {
            200 => b"HTTP/1.1 200 OK\r\n",
            202 => b"HTTP/1.1 202 Accepted\r\n",
            204 => b"HTTP/1.1 204 No Content\r\n",
            304 => b"HTTP/1.1 304 Not Modified\r\n",
            307 => b"HTTP/1.1 307 Temporary Redirect\r\n",
            400 => b"HTTP/1.1 400 Bad Request\r\n",
            401 => b"HTTP/1.1 401 Unauthorized\r\n",
            403 => b"HTTP/1.1 403 Forbidden\r\n",
            404 => b"HTTP/1.1 404 Not Found\r\n",
            405 => b"HTTP/1.1 405 Method Not Allowed\r\n",
            406 => b"HTTP/1.1 406 Not Acceptable\r\n",
            408 => b"HTTP/1.1 408 Request Timeout\r\n",
            412 => b"HTTP/1.1 412 Precondition Failed\r\n",
            413 => b"HTTP/1.1 413 Content Too Large\r\n",
            414 => b"HTTP/1.1 414 URI Too Long\r\n",
            415 => b"HTTP/1.1 415 Unsupported Media Type\r\n",
            417 => b"HTTP/1.1 417 Expectation Failed\r\n",
            422 => b"HTTP/1.1 422 Unprocessable Entity\r\n",
            429 => b"HTTP/1.1 429 Too Many Requests\r\n",
            431 => b"HTTP/1.1 431 Request Header Fields Too Large\r\n",
            500 => b"HTTP/1.1 500 Internal Server Error\r\n",
            501 => b"HTTP/1.1 501 Not Implemented\r\n",
            502 => b"HTTP/1.1 502 Bad Gateway\r\n",
            503 => b"HTTP/1.1 503 Service Unavailable\r\n",
            505 => b"HTTP/1.1 505 HTTP Version Not Supported\r\n",
            _ => b"",
        }
    }

    /// 1xx, 204 and 304 have no body whatever the fields say (RFC 9110 6.4.1).
    fn bodiless(self) -> bool {
        self.0 < 200 || matches!(self.0, 204 | 304)
    }
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

/// What an answer must be to be kept whole.
const USUAL: (ResponseContext, Status, Option<ContentType>) =
    (ResponseContext::PLAIN, Status(200), Some(ContentType::Json));

/// Digits kept free for a length that is known only after the body is written. The blanks in
/// front of the number are optional white space of the field (RFC 9112 5).
const LENGTH_DIGITS: usize = 10;
const LENGTH_OPEN: &[u8] = b"content-length:           \r\n\r\n";

impl ResponseWriter {
    /// Sets the date that the next heads carry; renders it only when the second changed.
    pub fn set_date(&mut self, now: SystemTime) {
        self.date.set(now);
    }

    /// Appends one whole response. `fields` are ready header lines, each with its CRLF.
    pub fn respond(
        &mut self,
        reply: ResponseContext,
        status: Status,
        content_type: Option<ContentType>,
        fields: &[u8],
        body: Body<'_>,
    ) {
        match body {
            Body::Ready(body) if self.is_alone && (reply, status, content_type) == USUAL => {
                self.respond_whole(fields, body);
            }
            body => self.write(reply, status, content_type, fields, body),
        }
    }

    /// The same with an answer of this second, if it was kept.
    fn respond_whole(&mut self, fields: &[u8], body: &Bytes) {
        let (reply, status, content_type) = USUAL;
        match self.wholes.find(body, fields, self.date.seconds()) {
            CacheLookup::Whole(whole) => self.tail = Some(whole),
            CacheLookup::Twice(at) => {
                self.write(reply, status, content_type, fields, Body::Copy(body));
                let whole = Bytes::copy_from_slice(&self.bytes);
                self.bytes.clear();
                self.wholes.keep(at, whole.clone());
                self.tail = Some(whole);
            }
            CacheLookup::No => self.write(reply, status, content_type, fields, Body::Ready(body)),
        }
    }

    fn write(
        &mut self,
        reply: ResponseContext,
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
        self.begin(reply, status, content_type, fields);
        if status.bodiless() {
            self.bytes.extend_from_slice(b"\r\n");
            return;
        }
        self.bytes.extend_from_slice(b"content-length: ");
        self.bytes.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
        self.bytes.extend_from_slice(b"\r\n\r\n");
        if reply.head {
            return;
        }
        match body {
            Body::Empty => {}
            Body::Copy(body) => self.bytes.extend_from_slice(body),
            Body::Ready(body) if length < TAIL_BYTES_MIN * 2 => self.bytes.extend_from_slice(body),
            Body::Ready(body) => {
                // The first part travels with the head: a segment of its own for 200 bytes of
                // head costs more than this copy.
                self.bytes.extend_from_slice(&body[..TAIL_BYTES_MIN]);
                self.tail = Some(body.slice(TAIL_BYTES_MIN..));
            }
        }
    }

    /// Ready bodies are about to be replaced: none may be sent from memory any more.
    pub fn forget(&mut self) {
        self.wholes.forget();
    }

    /// Appends one whole response whose body `write` appends in place. `write` must only append.
    pub fn respond_with(
        &mut self,
        reply: ResponseContext,
        status: Status,
        content_type: Option<ContentType>,
        fields: &[u8],
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        self.begin(reply, status, content_type, fields);
        if status.bodiless() {
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
        if reply.head {
            self.bytes.truncate(body_start);
        }
    }

    /// Begins a response that has no end yet: an event stream. What follows is chunked
    /// ([`chunk`]), but for HTTP/1.0, where the end of the connection is the end. Chunks matter:
    /// Python's urllib3 waits for a full buffer where there are none.
    pub fn begin_stream(
        &mut self,
        reply: ResponseContext,
        status: Status,
        content_type: ContentType,
        fields: &[u8],
    ) {
        self.begin(ResponseContext { keep_alive: false, ..reply }, status, Some(content_type), fields);
        let rest: &[u8] = if reply.http_10 { b"\r\n" } else { b"transfer-encoding: chunked\r\n\r\n" };
        self.bytes.extend_from_slice(rest);
    }

    /// Appends the answer to a refused request. `fields` are those that let a browser show it (`cors`).
    pub fn reject(&mut self, reply: ResponseContext, reject: ParseError, fields: &[u8]) {
        let reply = ResponseContext { keep_alive: reply.keep_alive && !reject.closes(), ..reply };
        let body = Body::Copy(reject.body());
        self.respond(reply, reject.status(), Some(ContentType::Json), fields, body);
    }

    fn begin(
        &mut self,
        reply: ResponseContext,
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
        if !reply.keep_alive {
            self.close = true;
            self.bytes.extend_from_slice(b"connection: close\r\n");
        } else if reply.http_10 {
            self.bytes.extend_from_slice(b"connection: keep-alive\r\n");
        }
        if let Some(content_type) = content_type {
            self.bytes.extend_from_slice(content_type.line());
        }
        self.bytes.extend_from_slice(fields);
    }
}

/// What ends a chunked body (RFC 9112 7.1).
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Appends one chunk that holds what `write` appends; nothing if that is nothing.
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
    fn a_copied_body_follows_its_head() {
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
    fn a_body_built_in_place_has_its_length() {
        let mut output = output();
        output.respond_with(KEEP, Status(200), None, b"", |out| out.extend_from_slice(&[b'x'; 1234]));
        let text = String::from_utf8_lossy(&output.bytes);
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with("content-length:       1234"), "{head}");
        assert_eq!(body.len(), 1234);
    }

    #[test]
    fn head_has_the_fields_of_get_and_no_body() {
        for build in [false, true] {
            let mut output = output();
            let reply = ResponseContext { head: true, ..KEEP };
            if build {
                output.respond_with(reply, Status(200), None, b"", |out| out.extend_from_slice(b"abc"));
            } else {
                output.respond(reply, Status(200), None, b"", Body::Copy(b"abc"));
            }
            let text = String::from_utf8_lossy(&output.bytes);
            assert!(text.trim_end().ends_with(" 3") && text.ends_with("\r\n\r\n"), "{text}");
        }
    }

    #[test]
    fn no_length_and_no_body_with_204_and_304() {
        for status in [204, 304] {
            let mut output = output();
            output.respond(KEEP, Status(status), None, b"etag: \"a\"\r\n", Body::Copy(b"x"));
            let text = String::from_utf8_lossy(&output.bytes);
            assert!(text.ends_with("etag: \"a\"\r\n\r\n") && !text.contains("content-length"), "{text}");
        }
    }

    #[test]
    fn a_large_ready_body_is_not_copied_whole() {
        let mut output = output();
        let body = Bytes::from(vec![7; TAIL_BYTES_MIN * 3]);
        output.respond(KEEP, Status(200), None, b"", Body::Ready(&body));
        let tail = output.tail.expect("a tail");
        assert_eq!(tail.len(), TAIL_BYTES_MIN * 2);
        assert_eq!(tail.as_ptr(), body[TAIL_BYTES_MIN..].as_ptr());
        assert!(output.bytes.ends_with(&body[..TAIL_BYTES_MIN]));
    }

    #[test]
    fn an_answer_asked_for_again_is_sent_whole_and_the_same() {
        let (body, fields) = (Bytes::from(vec![b'7'; TAIL_BYTES_MIN * 3]), b"etag: \"a\"\r\n");
        let mut output = output();
        output.is_alone = true;
        let mut answers = Vec::new();
        let mut places = Vec::new();
        for (round, seconds) in [(0, 0), (1, 0), (2, 0), (3, 0), (4, 1), (5, 1), (6, 1)] {
            output.set_date(UNIX_EPOCH + Duration::from_secs(784_111_777 + seconds));
            output.respond(KEEP, Status(200), Some(ContentType::Json), fields, Body::Ready(&body));
            let (mut bytes, tail) = (std::mem::take(&mut output.bytes), output.tail.take().unwrap());
            // Since its second time an answer is in one piece; from the third on, nothing is copied.
            assert_eq!(bytes.is_empty(), ![0, 4].contains(&round), "{round}");
            places.push(tail.as_ptr());
            bytes.extend_from_slice(&tail);
            answers.push(bytes);
        }
        assert!(answers[0].ends_with(&body) && answers[..4].iter().all(|answer| *answer == answers[0]));
        assert!(answers[0] != answers[4] && answers[5..].iter().all(|answer| *answer == answers[4]));
        assert!(places[1] == places[2] && places[2] == places[3] && places[5] == places[6]);
        // HEAD, a close and other answers are none of these.
        for reply in [ResponseContext { head: true, ..KEEP }, ResponseContext { keep_alive: false, ..KEEP }] {
            output.respond(reply, Status(200), Some(ContentType::Json), fields, Body::Ready(&body));
            assert!(!std::mem::take(&mut output.bytes).is_empty());
        }
        output.forget();
        output.respond(KEEP, Status(200), Some(ContentType::Json), fields, Body::Ready(&body));
        assert!(!output.bytes.is_empty());
    }

    #[test]
    fn connection_says_what_happens_next() {
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
    fn a_chunk_has_its_size_and_an_empty_one_is_none() {
        let mut out = b"x".to_vec();
        chunk(&mut out, |out| out.extend_from_slice(&[b'y'; 17]));
        chunk(&mut out, |_| {});
        assert_eq!(out, [b"x00000011\r\n".as_slice(), &[b'y'; 17], b"\r\n"].concat());
    }

    #[test]
    fn a_refusal_is_a_json_object() {
        let mut output = output();
        output.reject(KEEP, ParseError::HeadTooLarge, b"");
        let text = String::from_utf8_lossy(&output.bytes).into_owned();
        assert!(text.starts_with("HTTP/1.1 431 ") && output.close, "{text}");
        assert!(text.ends_with("{\"detail\":\"Request header fields too large\"}"), "{text}");
    }
}
