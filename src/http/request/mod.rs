//! From bytes to a request: the one place that names monoio-http.
//!
//! In: the connection's buffer. Out: a [`Request`], "need more bytes" (not an error), or a
//! [`super::ParseError`]. Invariant: bounds (`limits`) and framing rules (`framing`, RFC 9112 6) are
//! checked before the decoder sees a byte: it takes heads of any size, panics on names over
//! 65,535 bytes and believes the first of several lengths. Nothing here allocates without a bound.
use std::rc::Rc;

use bytes::{Buf, BytesMut};
use http::request::Parts;
use monoio_codec::Decoder;
use monoio_http::h1::codec::decoder::RequestHeadDecoder;

use crate::http::chunked::Chunked;
use crate::http::framing::{HeadScan, Length, is_odd_in_target, trim};
use crate::http::head_cache::{Head, HeadCache};
use crate::http::{Coding, ParseError, ResponseContext};

/// The methods this product tells apart (RFC 9110 9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Get,
    Head,
    Post,
    Options,
    /// Any other valid method token; every route refuses it with 405.
    Other,
}

impl Method {
    /// As in the access log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Options => "OPTIONS",
            Self::Other => "OTHER",
        }
    }
}

/// The header fields this product reads. Each is the first value of that name, trimmed
/// (the Python proxy reads the first as well). Absent is `None`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fields<'a> {
    /// `X-Environment-Key`.
    pub environment_key: Option<&'a [u8]>,
    pub accept_encoding: Option<&'a [u8]>,
    pub content_type: Option<&'a [u8]>,
    pub origin: Option<&'a [u8]>,
    /// Only whether one was sent: it changes the CORS answer (compatibility.md 2.6).
    pub cookie: bool,
    pub access_control_request_method: Option<&'a [u8]>,
    pub access_control_request_headers: Option<&'a [u8]>,
    /// `If-Match` or `If-Unmodified-Since` was sent, which hardly any client does.
    pub has_precondition: bool,
    pub if_match: Option<&'a [u8]>,
    pub if_unmodified_since: Option<&'a [u8]>,
    pub if_none_match: Option<&'a [u8]>,
    pub if_modified_since: Option<&'a [u8]>,
    pub authorization: Option<&'a [u8]>,
    /// `X-API-Key` (OFREP).
    pub api_key: Option<&'a [u8]>,
    /// `Flagsmith-Application-Name`, `-Version`, and the SDK's name, labels of analytics.
    pub application_name: Option<&'a [u8]>,
    pub application_version: Option<&'a [u8]>,
    pub user_agent: Option<&'a [u8]>,
    pub sdk_user_agent: Option<&'a [u8]>,
    /// `X-Forwarded-For`, for the access log.
    pub forwarded_for: Option<&'a [u8]>,
}

/// One request, whole: head decoded, body de-chunked.
#[derive(Debug)]
pub struct Request<'a> {
    pub method: Method,
    /// The path as sent, without the query, before percent-decoding. Starts with `/`, or is `*`.
    pub path: &'a [u8],
    /// What follows the first `?`, before percent-decoding; empty if there is none.
    pub query: &'a [u8],
    pub fields: Fields<'a>,
    /// Mutable because simd-json parses in place.
    pub body: &'a mut [u8],
    /// How `body` is compressed.
    pub coding: Coding,
    /// False when the answer must carry `Connection: close`.
    pub keep_alive: bool,
    /// HTTP/1.0 asked for keep-alive, so the answer must say `Connection: keep-alive`.
    pub http_10: bool,
}

impl Request<'_> {
    /// What the writer must know of this request.
    pub fn reply(&self) -> ResponseContext {
        ResponseContext {
            head: self.method == Method::Head,
            keep_alive: self.keep_alive,
            http_10: self.http_10,
        }
    }
}

/// How far [`RequestReader::advance`] came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing of a request is there.
    Idle,
    /// The head is not whole.
    Head,
    /// The body is not whole. `expects_continue`: the peer waits for a 100 before it sends it;
    /// said once for each request.
    Body { expects_continue: bool },
    /// [`RequestReader::request`] may be called.
    Ready,
}

/// Reads the requests of one connection, one after the other.
#[derive(Debug, Default)]
pub struct RequestReader {
    heads: Rc<HeadCache>,
    /// The mark of this connection's last head: it is likely to come again.
    last_mark: Option<u64>,
    scan: HeadScan,
    head: Option<Decoded>,
    /// The target as sent, where the decoder got another one to read. Else empty.
    odd_target: Vec<u8>,
    body: BodyState,
}

/// A head of this request alone, or one that came before.
#[derive(Debug)]
enum Decoded {
    Own(Box<Parts>),
    Known(Rc<Head>),
}

/// Where the body is in the buffer that follows the head.
#[derive(Debug, Default)]
enum BodyState {
    #[default]
    None,
    Length(usize),
    Chunked(Chunked),
}

impl RequestReader {
    /// A reader that knows the heads which others that share `heads` have read.
    pub fn sharing(heads: Rc<HeadCache>) -> Self {
        Self { heads, ..Self::default() }
    }

    /// Takes in what the buffer has. Call again with more bytes until it is `Ready`.
    ///
    /// # Errors
    /// The bytes are refused; most refusals close the connection ([`ParseError::closes`]).
    pub fn advance(&mut self, buffer: &mut BytesMut) -> Result<Progress, ParseError> {
        if self.head.is_none() && !self.recognise(buffer) {
            match self.scan.advance(buffer, self.heads.bytes_max)? {
                Some(head_bytes) => self.decode(buffer, head_bytes)?,
                None if buffer.is_empty() => return Ok(Progress::Idle),
                None => return Ok(Progress::Head),
            }
        }
        let whole = match &mut self.body {
            BodyState::None => true,
            BodyState::Length(length) => buffer.len() >= *length,
            BodyState::Chunked(chunked) => chunked.advance(buffer)?,
        };
        if !whole {
            let expects_continue = std::mem::take(&mut self.scan.facts.expects_continue);
            return Ok(Progress::Body { expects_continue });
        }
        Ok(Progress::Ready)
    }

    /// Takes the head that came last on this connection, if it comes again.
    fn recognise(&mut self, buffer: &mut BytesMut) -> bool {
        if self.scan.has_begun() {
            return false;
        }
        let Some(head) = self.last_mark.and_then(|mark| self.heads.find(mark, buffer)) else { return false };
        self.take(head, buffer);
        true
    }

    fn take(&mut self, head: Rc<Head>, buffer: &mut BytesMut) {
        buffer.advance(head.bytes.len());
        self.scan.facts = head.facts;
        self.body = BodyState::new(head.length);
        self.head = Some(Decoded::Known(head));
    }

    fn decode(&mut self, buffer: &mut BytesMut, head_bytes: usize) -> Result<(), ParseError> {
        let odd_target = self.scan.facts.odd_target;
        let mark = self.heads.mark(&buffer[..head_bytes]).filter(|_| odd_target.is_none());
        if let Some(mark) = mark {
            if let Some(head) = self.heads.find(mark, buffer).filter(|head| head.bytes.len() == head_bytes) {
                self.last_mark = Some(mark);
                self.take(head, buffer);
                return Ok(());
            }
            if self.last_mark == Some(mark) {
                return self.remember(mark, buffer, head_bytes);
            }
        }
        self.last_mark = mark;
        if let Some((start, end)) = odd_target {
            let target = &mut buffer[usize::from(start)..usize::from(end)];
            self.odd_target.extend_from_slice(target);
            target.iter_mut().filter(|byte| is_odd_in_target(**byte)).for_each(|byte| *byte = b'_');
        }
        let before = buffer.len();
        let parts = parts(buffer)?;
        if before - buffer.len() != head_bytes {
            return Err(ParseError::BadRequest);
        }
        // Kept whatever follows: the refusal of a HEAD has no body either.
        self.head = Some(Decoded::Own(Box::new(parts)));
        // The decoder has read the names and values; only now may the facts be believed.
        self.body = BodyState::new(self.scan.facts.length()?);
        Ok(())
    }

    /// Decodes a head that came twice in memory of its own, so that it may outlive the buffer.
    fn remember(&mut self, mark: u64, buffer: &mut BytesMut, head_bytes: usize) -> Result<(), ParseError> {
        let bytes: Box<[u8]> = buffer[..head_bytes].into();
        let mut own = BytesMut::from(&*bytes);
        let parts = parts(&mut own)?;
        if !own.is_empty() {
            return Err(ParseError::BadRequest);
        }
        let facts = self.scan.facts;
        match facts.length() {
            Ok(length) => {
                let head = Rc::new(Head { bytes, parts, facts, length });
                self.heads.keep(mark, &head);
                self.take(head, buffer);
                Ok(())
            }
            Err(reject) => {
                buffer.advance(head_bytes);
                self.head = Some(Decoded::Own(Box::new(parts)));
                Err(reject)
            }
        }
    }

    /// The request that is `Ready`.
    pub fn request<'a>(&'a mut self, buffer: &'a mut BytesMut) -> Option<Request<'a>> {
        let head = self.head.as_ref()?.parts();
        let body = match &self.body {
            BodyState::None => &mut [][..],
            BodyState::Length(length) => &mut buffer[..*length],
            BodyState::Chunked(chunked) => &mut buffer[..chunked.decoded_bytes()],
        };
        let (path, query) = match self.odd_target.as_slice() {
            [] => (path(head), head.uri.query().unwrap_or_default().as_bytes()),
            target => split_target(target),
        };
        Some(Request {
            method: method(&head.method),
            path,
            query,
            fields: Fields::read(head),
            body,
            coding: self.scan.facts.coding,
            keep_alive: self.scan.facts.keep_alive(),
            http_10: self.scan.facts.http_10,
        })
    }

    /// True if the buffer ends with the request that is `Ready`.
    pub fn is_last(&self, buffer: &BytesMut) -> bool {
        buffer.len() == self.body.coded_bytes()
    }

    /// What the writer must know to refuse what could not be read: nothing may follow.
    pub fn reply(&self) -> ResponseContext {
        let head = self.head.as_ref().is_some_and(|head| head.parts().method == http::Method::HEAD);
        ResponseContext { head, ..ResponseContext::CLOSE }
    }

    /// The fields of a request that is refused which decide whether a browser may see the answer: those
    /// of its head, or its lines up to where they were found malformed or too many. `None`: no origin
    /// has come yet, so one may be on its way.
    pub fn refused_fields<'a>(&'a self, buffer: &'a [u8]) -> Option<Fields<'a>> {
        match &self.head {
            Some(head) => Some(Fields::read(head.parts())),
            None => Fields::scan(buffer),
        }
    }

    /// Drops the request that was answered; what follows it in the buffer is the next one.
    pub fn consume(&mut self, buffer: &mut BytesMut) {
        buffer.advance(self.body.coded_bytes());
        self.body = BodyState::None;
        // The head shares the buffer's memory: only without it can the buffer be used again.
        self.head = None;
        self.odd_target = Vec::new();
        self.scan = HeadScan::default();
    }
}

impl Decoded {
    fn parts(&self) -> &Parts {
        match self {
            Self::Own(parts) => parts,
            Self::Known(head) => &head.parts,
        }
    }
}

impl BodyState {
    fn new(length: Length) -> Self {
        match length {
            Length::None => Self::None,
            Length::Bytes(length) => Self::Length(length),
            Length::Chunked => Self::Chunked(Chunked::default()),
        }
    }

    /// So many bytes of the buffer are this body, as it came.
    fn coded_bytes(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Length(length) => *length,
            Self::Chunked(chunked) => chunked.coded_bytes(),
        }
    }
}

/// Decodes the head that the buffer begins with, and takes it out.
fn parts(buffer: &mut BytesMut) -> Result<Parts, ParseError> {
    match RequestHeadDecoder.decode(buffer) {
        Ok(monoio_codec::Decoded::Some(parts)) => Ok(parts),
        _ => Err(ParseError::BadRequest),
    }
}

fn method(method: &http::Method) -> Method {
    match *method {
        http::Method::GET => Method::Get,
        http::Method::POST => Method::Post,
        http::Method::HEAD => Method::Head,
        http::Method::OPTIONS => Method::Options,
        _ => Method::Other,
    }
}

/// The path, or `*` of `OPTIONS`. A URL without a path names `/`.
fn path(head: &Parts) -> &[u8] {
    match head.uri.path().as_bytes() {
        b"" => b"/",
        path => path,
    }
}

/// The path and the query of a target that starts with a path; else as [`path`] has it.
fn split_target(target: &[u8]) -> (&[u8], &[u8]) {
    let at = target.iter().position(|byte| *byte == b'?').unwrap_or(target.len());
    let (path, query) = target.split_at(at);
    (if path.first() == Some(&b'/') { path } else { b"/" }, query.get(1..).unwrap_or_default())
}

impl<'a> Fields<'a> {
    /// `Origin` and whether there is a `Cookie`, of a head that was not decoded.
    fn scan(head: &'a [u8]) -> Option<Self> {
        let mut fields = Self::default();
        for line in head.split(|byte| *byte == b'\n').skip(1) {
            let mut sides = line.splitn(2, |byte| *byte == b':');
            let (Some(name), Some(value)) = (sides.next(), sides.next()) else { continue };
            if name.eq_ignore_ascii_case(b"cookie") {
                fields.cookie = true;
            } else if name.eq_ignore_ascii_case(b"origin") && line.ends_with(b"\r") {
                let value = trim(&value[..value.len() - 1]);
                // It may be echoed, so that it must be what no field value can break out of.
                fields.origin = fields.origin.or(value.iter().all(u8::is_ascii_graphic).then_some(value));
            }
        }
        fields.origin.map(|_| fields)
    }

    /// One pass over the decoded fields. The first of a name counts.
    fn read(head: &'a Parts) -> Self {
        let mut fields = Self::default();
        for (name, value) in &head.headers {
            let name = name.as_str();
            let place = match name.len() {
                6 if name == "origin" => &mut fields.origin,
                6 if name == "cookie" => {
                    fields.cookie = true;
                    continue;
                }
                8 if name == "if-match" => {
                    fields.has_precondition = true;
                    &mut fields.if_match
                }
                9 if name == "x-api-key" => &mut fields.api_key,
                10 if name == "user-agent" => &mut fields.user_agent,
                12 if name == "content-type" => &mut fields.content_type,
                13 if name == "if-none-match" => &mut fields.if_none_match,
                13 if name == "authorization" => &mut fields.authorization,
                15 if name == "accept-encoding" => &mut fields.accept_encoding,
                15 if name == "x-forwarded-for" => &mut fields.forwarded_for,
                17 if name == "x-environment-key" => &mut fields.environment_key,
                17 if name == "if-modified-since" => &mut fields.if_modified_since,
                19 if name == "if-unmodified-since" => {
                    fields.has_precondition = true;
                    &mut fields.if_unmodified_since
                }
                24 if name == "flagsmith-sdk-user-agent" => &mut fields.sdk_user_agent,
                26 if name == "flagsmith-application-name" => &mut fields.application_name,
                29 if name == "flagsmith-application-version" => &mut fields.application_version,
                29 if name == "access-control-request-method" => &mut fields.access_control_request_method,
                30 if name == "access-control-request-headers" => &mut fields.access_control_request_headers,
                _ => continue,
            };
            place.get_or_insert(value.as_bytes());
        }
        fields
    }
}

#[cfg(test)]
mod tests;
