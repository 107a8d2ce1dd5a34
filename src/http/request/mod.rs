//! The request reader: parses the requests of one connection from its buffer.
//!
//! Only this file uses monoio-http. The size limits and the framing rules are checked before its decoder gets
//! the head: the decoder accepts heads of any size, panics on field names over 65,535 bytes, and uses the
//! first of several lengths.
use std::rc::Rc;

use bytes::{Buf, BytesMut};
use http::request::Parts;
use monoio_codec::Decoder;
use monoio_http::h1::codec::decoder::RequestHeadDecoder;

use crate::http::chunked::Chunked;
use crate::http::decompress::Coding;
use crate::http::error::ParseError;
use crate::http::fields::Fields;
use crate::http::framing::{HeadScan, Length, is_nonstandard_in_target};
use crate::http::head_cache::{CachedHead, HeadCache};
use crate::http::method::Method;
use crate::http::response::{HttpVersion, ResponseContext};

/// One complete request, its head decoded and its body unchunked.
#[derive(Debug)]
pub struct Request<'a> {
    pub method: Method,
    /// The path as sent, without the query, before percent-decoding. Starts with `/`, or is `*`.
    pub path: &'a [u8],
    /// The part after the first `?`, before percent-decoding; empty if absent.
    pub query: &'a [u8],
    pub fields: Fields<'a>,
    /// Mutable because simd-json parses in place.
    pub body: &'a mut [u8],
    /// The content coding of `body`.
    pub coding: Coding,
    /// False: the response must say `Connection: close`.
    pub keep_alive: bool,
    pub version: HttpVersion,
}

impl Request<'_> {
    /// The properties that the response depends on.
    pub fn context(&self) -> ResponseContext {
        ResponseContext {
            head: self.method == Method::Head,
            keep_alive: self.keep_alive,
            version: self.version,
        }
    }
}

/// The state of the current request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// No byte of a request has arrived.
    Idle,
    /// The head is incomplete.
    Head,
    /// The body is incomplete. `expects_continue`: the peer waits for a 100 response before it sends the
    /// body; set at most once per request.
    Body { expects_continue: bool },
    /// The request is complete: call [`RequestReader::request`], then [`RequestReader::consume`].
    Ready,
}

/// What a field takes in the map of a decoded head, bytes: an entry and its place in the index.
const FIELD_BYTES: usize = 112;

/// Reads the requests of one connection, in order.
#[derive(Debug, Default)]
pub struct RequestReader {
    heads: Rc<HeadCache>,
    /// The hash of the last head of this connection, which the next head probably repeats.
    last_hash: Option<u64>,
    scan: HeadScan,
    head: Option<DecodedHead>,
    /// The target as sent, if its nonstandard bytes were replaced for the decoder; otherwise empty.
    nonstandard_target: Vec<u8>,
    body: BodyState,
}

/// The decoded head of the current request.
#[derive(Debug)]
enum DecodedHead {
    Owned(Box<Parts>),
    Cached(Rc<CachedHead>),
}

/// The extent of the body in the buffer, which starts at the body once the head is decoded.
#[derive(Debug, Default)]
enum BodyState {
    #[default]
    None,
    Length(usize),
    Chunked(Chunked),
}

impl RequestReader {
    /// A reader that shares a cache of heads with the other connections of a reactor.
    pub fn with_cache(heads: Rc<HeadCache>) -> Self {
        Self { heads, ..Self::default() }
    }

    /// Parses the buffer. Call again with more bytes until the result is `Ready`.
    ///
    /// # Errors
    /// The request is invalid; most errors close the connection ([`ParseError::closes`]).
    pub fn advance(&mut self, buffer: &mut BytesMut) -> Result<Progress, ParseError> {
        if self.head.is_none() && !self.take_cached(buffer) {
            match self.scan.advance(buffer, self.heads.bytes_max())? {
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
            let expects_continue = std::mem::take(&mut self.scan.framing.expects_continue);
            return Ok(Progress::Body { expects_continue });
        }
        Ok(Progress::Ready)
    }

    /// Takes the head from the cache if the buffer starts with the last head of this connection.
    fn take_cached(&mut self, buffer: &mut BytesMut) -> bool {
        if self.scan.has_begun() {
            return false;
        }
        let Some(head) = self.last_hash.and_then(|hash| self.heads.get(hash, buffer)) else { return false };
        self.take(head, buffer);
        true
    }

    fn take(&mut self, head: Rc<CachedHead>, buffer: &mut BytesMut) {
        buffer.advance(head.bytes.len());
        self.scan.framing = head.framing;
        self.body = BodyState::new(head.length);
        self.head = Some(DecodedHead::Cached(head));
    }

    fn decode(&mut self, buffer: &mut BytesMut, head_bytes: usize) -> Result<(), ParseError> {
        let nonstandard_target = self.scan.framing.nonstandard_target;
        let hash = self.heads.hash(&buffer[..head_bytes]).filter(|_| nonstandard_target.is_none());
        if let Some(hash) = hash {
            if let Some(head) = self.heads.get(hash, buffer).filter(|head| head.bytes.len() == head_bytes) {
                self.last_hash = Some(hash);
                self.take(head, buffer);
                return Ok(());
            }
            if self.last_hash == Some(hash) {
                return self.decode_and_cache(hash, buffer, head_bytes);
            }
        }
        self.last_hash = hash;
        if let Some((start, end)) = nonstandard_target {
            let target = &mut buffer[usize::from(start)..usize::from(end)];
            self.nonstandard_target.extend_from_slice(target);
            target.iter_mut().filter(|byte| is_nonstandard_in_target(**byte)).for_each(|byte| *byte = b'_');
        }
        let before = buffer.len();
        let parts = parts(buffer)?;
        if before - buffer.len() != head_bytes {
            return Err(ParseError::BadRequest);
        }
        // Stored before the length is checked: the error response to a HEAD request has no body.
        self.head = Some(DecodedHead::Owned(Box::new(parts)));
        // The framing is valid only now that the decoder has accepted all names and values.
        self.body = BodyState::new(self.scan.framing.length()?);
        Ok(())
    }

    /// Decodes a head from a copy, so that it does not keep the buffer alive, and caches it.
    fn decode_and_cache(
        &mut self,
        hash: u64,
        buffer: &mut BytesMut,
        head_bytes: usize,
    ) -> Result<(), ParseError> {
        let bytes: Box<[u8]> = buffer[..head_bytes].into();
        let mut own = BytesMut::from(&*bytes);
        let parts = parts(&mut own)?;
        if !own.is_empty() {
            return Err(ParseError::BadRequest);
        }
        let framing = self.scan.framing;
        match framing.length() {
            Ok(length) => {
                let head = Rc::new(CachedHead { bytes, parts, framing, length });
                self.heads.insert(hash, &head);
                self.take(head, buffer);
                Ok(())
            }
            Err(error) => {
                buffer.advance(head_bytes);
                self.head = Some(DecodedHead::Owned(Box::new(parts)));
                Err(error)
            }
        }
    }

    /// The request, after [`advance`](Self::advance) has returned `Ready`.
    pub fn request<'a>(&'a mut self, buffer: &'a mut BytesMut) -> Option<Request<'a>> {
        let head = self.head.as_ref()?.parts();
        let body = match &self.body {
            BodyState::None => &mut [][..],
            BodyState::Length(length) => &mut buffer[..*length],
            BodyState::Chunked(chunked) => &mut buffer[..chunked.decoded_bytes()],
        };
        Some(self.with_body(head, body))
    }

    /// The request without its body, which may not have arrived; `None` before the head is decoded.
    pub fn head(&self) -> Option<Request<'_>> {
        self.head.as_ref().map(|head| self.with_body(head.parts(), &mut []))
    }

    fn with_body<'a>(&'a self, head: &'a Parts, body: &'a mut [u8]) -> Request<'a> {
        let (path, query) = match self.nonstandard_target.as_slice() {
            [] => (path(head), head.uri.query().unwrap_or_default().as_bytes()),
            target => split_target(target),
        };
        Request {
            method: method(&head.method),
            path,
            query,
            fields: Fields::read(head),
            body,
            coding: self.scan.framing.coding,
            keep_alive: self.scan.framing.keep_alive(),
            version: if self.scan.framing.http_10 { HttpVersion::Http10 } else { HttpVersion::Http11 },
        }
    }

    /// Whether the buffer ends with the current request.
    pub fn is_last(&self, buffer: &BytesMut) -> bool {
        buffer.len() == self.body.coded_bytes()
    }

    /// The context of the error response to a request that cannot be read: the connection closes.
    pub fn context(&self) -> ResponseContext {
        let head = self.head.as_ref().is_some_and(|head| head.parts().method == http::Method::HEAD);
        ResponseContext { head, ..ResponseContext::CLOSE }
    }

    /// The fields that CORS needs for the error response to a request that cannot be read. If the head was
    /// not decoded, its lines so far are scanned; `None` then means that no origin was found, although one
    /// may follow.
    pub fn error_fields<'a>(&'a self, buffer: &'a [u8]) -> Option<Fields<'a>> {
        match &self.head {
            Some(head) => Some(Fields::read(head.parts())),
            None => Fields::scan(buffer),
        }
    }

    /// Whether the head refers to the memory of the buffer from which it was decoded.
    pub fn owns_head(&self) -> bool {
        matches!(self.head, Some(DecodedHead::Owned(_)))
    }

    /// The length of the body of the current request, if it is known.
    pub fn body_bytes(&self) -> Option<usize> {
        match self.body {
            BodyState::Length(length) => Some(length),
            BodyState::None | BodyState::Chunked(_) => None,
        }
    }

    /// The memory of a head that is not shared, bytes.
    pub fn head_memory(&self) -> usize {
        match &self.head {
            Some(DecodedHead::Owned(parts)) => size_of::<Parts>() + parts.headers.capacity() * FIELD_BYTES,
            _ => 0,
        }
    }

    /// Removes the current request from the buffer, after its response was written.
    pub fn consume(&mut self, buffer: &mut BytesMut) {
        buffer.advance(self.body.coded_bytes());
        self.body = BodyState::None;
        // The head refers to the memory of the buffer, which cannot be reused before the head is dropped.
        self.head = None;
        self.nonstandard_target = Vec::new();
        self.scan = HeadScan::default();
    }
}

impl DecodedHead {
    fn parts(&self) -> &Parts {
        match self {
            Self::Owned(parts) => parts,
            Self::Cached(head) => &head.parts,
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

    /// The length of the body in the buffer, as received.
    fn coded_bytes(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Length(length) => *length,
            Self::Chunked(chunked) => chunked.coded_bytes(),
        }
    }
}

/// Decodes the head at the start of the buffer and removes it.
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
        http::Method::PUT => Method::Put,
        http::Method::DELETE => Method::Delete,
        http::Method::HEAD => Method::Head,
        http::Method::OPTIONS => Method::Options,
        _ => Method::Other,
    }
}

/// The path, or `*` for `OPTIONS`. The path of a URL without one is `/`.
fn path(head: &Parts) -> &[u8] {
    match head.uri.path().as_bytes() {
        b"" => b"/",
        path => path,
    }
}

/// Splits a target into path and query. The path is `/` unless the target starts with one.
fn split_target(target: &[u8]) -> (&[u8], &[u8]) {
    let at = target.iter().position(|byte| *byte == b'?').unwrap_or(target.len());
    let (path, query) = target.split_at(at);
    (if path.first() == Some(&b'/') { path } else { b"/" }, query.get(1..).unwrap_or_default())
}

#[cfg(test)]
mod tests;
