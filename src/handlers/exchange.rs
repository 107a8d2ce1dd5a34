//! One request and its response: which environment the key gives access to, and how the response is sent.
//!
//! Each exchange gets exactly one response. It carries the caching headers of RFC 9110 8.4, 12.5.5 and 13
//! (differences.md 22): every request field that the response depends on is named in `Vary`.
use std::time::SystemTime;

use bytes::Bytes;

use crate::engine::evaluate::EvaluationScratch;
use crate::engine::program::Role;
use crate::handlers::errors::{AccessError, ApiError};
use crate::handlers::outcome::RequestOutcome;
use crate::handlers::scratch::Scratch;
use crate::handlers::settings::HandlerSettings;
use crate::handlers::validators;
use crate::handlers::validators::{EntityTag, Precondition};
use crate::http::compression::{Gzip, accepts_gzip};
use crate::http::route::Route;
use crate::http::{Body, ContentType, Fields, Request, ResponseContext, ResponseWriter, Status};
use crate::identity::IdentityError;
use crate::limits::COMPRESS_BYTES_MIN;
use crate::snapshot::environment::ReadyBody;
use crate::snapshot::{PublishedDocument, Slot, Snapshot};

/// Caches may store the response but must revalidate it: a flag may change at any second.
pub const NO_CACHE: &[u8] = b"cache-control: no-cache\r\n";
/// The same for the client's own cache only: the response names identities, or what only servers may read.
pub const PRIVATE_NO_CACHE: &[u8] = b"cache-control: private, no-cache\r\n";

/// No cache may store the response: kept traits of one person change at any moment.
pub const NO_STORE: &[u8] = b"cache-control: no-store\r\n";

pub const CONTENT_ENCODING_GZIP: &[u8] = b"content-encoding: gzip\r\n";
/// With 503 in response to events: when the client should send them again.
pub const EVENTS_RETRY_AFTER: &[u8] = b"retry-after: 5\r\n";

pub struct Exchange<'a> {
    pub settings: &'a HandlerSettings,
    pub snapshot: &'a Snapshot,
    pub now: SystemTime,
    pub context: ResponseContext,
    pub fields: Fields<'a>,
    /// The response names the origin, so `Vary` must too.
    pub varies_by_origin: bool,
    /// `None` until it is first needed.
    accepts_gzip: Option<bool>,
    pub scratch: &'a mut Scratch,
    pub output: &'a mut ResponseWriter,
    pub outcome: RequestOutcome,
}

impl<'a> Exchange<'a> {
    pub fn new(
        settings: &'a HandlerSettings,
        snapshot: &'a Snapshot,
        now: SystemTime,
        request: &Request<'a>,
        scratch: &'a mut Scratch,
        output: &'a mut ResponseWriter,
    ) -> Self {
        Self {
            settings,
            snapshot,
            now,
            context: request.context(),
            fields: request.fields,
            varies_by_origin: false,
            accepts_gzip: None,
            scratch,
            output,
            outcome: RequestOutcome::NONE,
        }
    }

    /// The document and the role of the request's key.
    pub fn open(&mut self) -> Result<(&'a PublishedDocument, Role), AccessError<'a>> {
        let key = self.fields.environment_key.ok_or(AccessError::KeyMissing)?;
        let access = self.snapshot.access_at(key, self.now).ok_or_else(|| self.unknown_key(key))?;
        let slot = self.snapshot.slots.get(access.slot).ok_or_else(|| self.unknown_key(key))?;
        self.outcome.slot = Some(access.slot);
        self.outcome.role = Some(access.role);
        let document = slot.document.as_ref().ok_or(AccessError::NoDocument)?;
        Ok((document, access.role))
    }

    /// As [`open`](Self::open) for server-side keys only: a client-side key is treated like an unknown
    /// one (differences.md 1).
    pub fn open_as_server(&mut self) -> Result<&'a PublishedDocument, AccessError<'a>> {
        let opened = self.open();
        match (self.outcome.role, self.fields.environment_key) {
            (Some(Role::Client), Some(key)) => Err(AccessError::KeyUnknown(key)),
            _ => opened.map(|(document, _)| document),
        }
    }

    /// As [`open`](Self::open), with the key in any of the fields that OFREP clients use:
    /// `X-Environment-Key`, `X-API-Key` or a bearer token.
    pub fn open_with_any_key(&mut self) -> Result<(&'a PublishedDocument, Role), AccessError<'a>> {
        let bearer = self.fields.authorization.and_then(|value| {
            let (scheme, token) = value.split_at_checked(7)?;
            scheme.eq_ignore_ascii_case(b"bearer ").then_some(token.trim_ascii())
        });
        self.fields.environment_key = self.fields.environment_key.or(self.fields.api_key).or(bearer);
        self.open()
    }

    /// The slot of the key's environment, with or without a document.
    pub fn open_slot(&mut self) -> Result<&'a Slot, AccessError<'a>> {
        match self.open() {
            Ok(_) | Err(AccessError::NoDocument) => {}
            Err(error) => return Err(error),
        }
        self.outcome.slot.and_then(|slot| self.snapshot.slots.get(slot)).ok_or(AccessError::NoDocument)
    }

    /// The error for a key that is not in the snapshot: the key is wrong, or its source was not read yet
    /// (differences.md 3). An empty key is always wrong.
    pub fn unknown_key<'k>(&self, key: &'k [u8]) -> AccessError<'k> {
        let is_wrong = self.snapshot.is_complete || key.is_empty();
        if is_wrong { AccessError::KeyUnknown(key) } else { AccessError::KeyNotLoaded }
    }

    pub fn accepts_gzip(&mut self) -> bool {
        let field = self.fields.accept_encoding;
        *self.accepts_gzip.get_or_insert_with(|| accepts_gzip(field))
    }

    /// Adds header lines, each with its line end.
    pub fn add_headers(&mut self, lines: &[u8]) {
        self.scratch.headers.extend_from_slice(lines);
    }

    /// Adds `Vary` to a response that caches do not store: the same field as the Python proxy's middleware.
    pub fn vary(&mut self) {
        if self.varies_by_origin {
            self.add_headers(b"vary: Origin\r\n");
        }
    }

    /// Adds `Vary` to a response that caches may store: everything that it depends on (RFC 9110 12.5.5).
    pub fn vary_by_key(&mut self) {
        self.add_headers(match self.varies_by_origin {
            true => b"vary: X-Environment-Key, Accept-Encoding, Origin\r\n",
            false => b"vary: X-Environment-Key, Accept-Encoding\r\n",
        });
    }

    /// Adds the headers of a response made from an environment's document: `Vary`, `Cache-Control` and dates.
    pub fn add_document_headers(&mut self, document: &PublishedDocument, cache_control: &[u8]) {
        self.vary_by_key();
        self.add_dated_headers(document, cache_control);
    }

    fn add_dated_headers(&mut self, document: &PublishedDocument, cache_control: &[u8]) {
        let Scratch { headers, date_headers, .. } = &mut *self.scratch;
        headers.extend_from_slice(cache_control);
        date_headers.append(document.updated_at, headers);
    }

    /// Sends the response, with the headers added so far.
    pub fn send(&mut self, status: Status, content_type: Option<ContentType>, body: Body<'_>) {
        self.outcome.status = status.0;
        self.output.respond(self.context, status, content_type, &self.scratch.headers, body);
    }

    /// Sends JSON that `write` appends to the output, uncompressed and without a copy.
    pub fn send_with(&mut self, status: Status, write: impl FnOnce(&mut EvaluationScratch, &mut Vec<u8>)) {
        self.send_with_end(status, |evaluation, out| {
            write(evaluation, out);
            None
        });
    }

    /// As [`send_with`](Self::send_with), followed by what `write` returns, which is shared.
    pub fn send_with_end(
        &mut self,
        status: Status,
        write: impl FnOnce(&mut EvaluationScratch, &mut Vec<u8>) -> Option<Bytes>,
    ) {
        self.outcome.status = status.0;
        let Scratch { headers, evaluation, .. } = &mut *self.scratch;
        self.output.respond_with_end(self.context, status, Some(ContentType::Json), headers, |out| {
            write(evaluation, out)
        });
    }

    /// Sends a JSON body made for this request, compressed if that makes it smaller.
    pub fn send_compressible(&mut self, status: Status, body: &[u8]) {
        let compresses = body.len() >= COMPRESS_BYTES_MIN && self.accepts_gzip();
        let Scratch { headers, compressed, gzip, .. } = &mut *self.scratch;
        let body = if compresses { compress(body, gzip, compressed, headers) } else { body };
        self.outcome.status = status.0;
        self.output.respond(self.context, status, Some(ContentType::Json), headers, Body::Copy(body));
    }

    /// As [`send_compressible`](Self::send_compressible), for the body in the scratch buffer.
    pub fn send_scratch_body(&mut self, status: Status) {
        let compresses = self.scratch.body.len() >= COMPRESS_BYTES_MIN && self.accepts_gzip();
        let Scratch { headers, body, compressed, gzip, .. } = &mut *self.scratch;
        let body = if compresses { compress(body, gzip, compressed, headers) } else { &*body };
        self.outcome.status = status.0;
        self.output.respond(self.context, status, Some(ContentType::Json), headers, Body::Copy(body));
    }

    /// Sends the body in the scratch buffer, followed by the cached flags at this index, as one gzip member.
    /// Returns false if it is too short, or cannot be compressed: nothing was sent.
    pub fn send_before_cached(&mut self, status: Status, index: usize) -> bool {
        let Scratch { headers, body, compressed, gzip, flags_cache, .. } = &mut *self.scratch;
        let Some(tail) = flags_cache.get(index) else { return false };
        compressed.clear();
        let is_long = body.len() + tail.plain_bytes() >= COMPRESS_BYTES_MIN;
        if !is_long || !gzip.compress_start(body, compressed) {
            return false;
        }
        self.outcome.status = status.0;
        headers.extend_from_slice(CONTENT_ENCODING_GZIP);
        let parts = Body::Parts([compressed, tail.blocks(), &tail.trailer(body)]);
        self.output.respond(self.context, status, Some(ContentType::Json), headers, parts);
        true
    }

    /// Sends a body that was rendered in advance, or 304 if the client has it.
    pub fn send_ready(
        &mut self,
        document: &PublishedDocument,
        ready: &ReadyBody,
        cache_control: &[u8],
    ) -> Result<(), ApiError<'a>> {
        let gzip = ready.gzip.as_ref().filter(|_| self.accepts_gzip());
        self.add_document_headers(document, cache_control);
        let etag = EntityTag::new(&ready.etag, gzip.is_some());
        etag.append(&mut self.scratch.headers);
        if self.is_not_modified(Some(etag), document.last_modified)? {
            return Ok(());
        }
        if gzip.is_some() {
            self.add_headers(CONTENT_ENCODING_GZIP);
        }
        let body = gzip.unwrap_or(&ready.plain);
        self.send(Status(200), Some(ContentType::Json), Body::Ready(body));
        Ok(())
    }

    /// Sends a document to a client that takes deltas and has `available`: a delta from that one if there is
    /// one, else the whole document, or 304.
    pub fn send_document_delta(
        &mut self,
        published: &PublishedDocument,
        available: &[u8],
    ) -> Result<(), ApiError<'a>> {
        let document = published.environment.document();
        let gzip = document.gzip.as_ref().filter(|_| self.accepts_gzip());
        self.add_headers(match self.varies_by_origin {
            true => b"vary: X-Environment-Key, Accept-Encoding, Available-Dictionary, Origin\r\n",
            false => b"vary: X-Environment-Key, Accept-Encoding, Available-Dictionary\r\n",
        });
        self.add_dated_headers(published, PRIVATE_NO_CACHE);
        let delta = published.environment.deltas().find(available);
        match delta {
            Some(delta) => {
                for piece in [&b"etag: "[..], delta.etag.as_bytes(), b"\r\n"] {
                    self.add_headers(piece);
                }
            }
            None => EntityTag::new(&document.etag, gzip.is_some()).append(&mut self.scratch.headers),
        }
        if self.is_not_modified(Some(EntityTag::of_any_coding(&document.etag)), published.last_modified)? {
            return Ok(());
        }
        let body = match (delta, gzip) {
            (Some(delta), _) => {
                self.outcome.is_delta = true;
                let digest = delta.unencoded_digest.as_bytes();
                for piece in [&b"content-encoding: dcz\r\nunencoded-digest: "[..], digest, b"\r\n"] {
                    self.add_headers(piece);
                }
                &delta.body
            }
            (None, Some(gzip)) => {
                self.add_headers(CONTENT_ENCODING_GZIP);
                gzip
            }
            (None, None) => &document.plain,
        };
        self.send(Status(200), Some(ContentType::Json), Body::Ready(body));
        Ok(())
    }

    /// Sends a part of a rendered body, which has dates but no entity tag, or 304 if the client has it.
    pub fn send_part(&mut self, document: &PublishedDocument, body: &[u8]) -> Result<(), ApiError<'a>> {
        self.add_document_headers(document, NO_CACHE);
        if !self.is_not_modified(None, document.last_modified)? {
            self.send_compressible(Status(200), body);
        }
        Ok(())
    }

    /// Evaluates the request's preconditions. `true`: 304 was sent. `false`: the caller sends the body.
    pub fn is_not_modified(
        &mut self,
        etag: Option<EntityTag<'_>>,
        last_modified: Option<f64>,
    ) -> Result<bool, ApiError<'a>> {
        match validators::evaluate(&self.fields, etag, last_modified) {
            Precondition::Send => Ok(false),
            Precondition::NotModified => {
                self.send(Status(304), None, Body::Empty);
                Ok(true)
            }
            Precondition::Failed => Err(ApiError::PreconditionFailed),
        }
    }

    /// `OPTIONS *`: what the server as a whole supports (RFC 9110 9.3.7).
    pub fn send_options(&mut self) {
        self.vary();
        self.add_headers(b"allow: GET, HEAD, POST, OPTIONS\r\n");
        self.send(Status(200), None, Body::Empty);
    }

    /// The statuses of Flagsmith's events API differ from those of the other routes (compatibility.md 1.6).
    fn status_for_events(&mut self, error: &ApiError<'_>, status: Status) -> Status {
        match error {
            ApiError::Access(AccessError::KeyUnknown(_)) => Status(403),
            ApiError::Access(AccessError::NoDocument | AccessError::KeyNotLoaded) => {
                self.add_headers(EVENTS_RETRY_AFTER);
                Status(503)
            }
            _ => status,
        }
    }

    /// Sends an error response. The only place that turns an error into a response.
    pub fn send_error(&mut self, error: &ApiError<'_>) {
        if let ApiError::Identity(IdentityError::Unwritable(_)) = error
            && let Err(access) = self.open()
        {
            // The Python proxy checks the key before it fails on such text (differences.md 29).
            return self.send_error(&ApiError::Access(access));
        }
        match error {
            // The handler has added `Vary`, as for the response that a cache may store.
            ApiError::PreconditionFailed | ApiError::FeatureNotFound(_) => {}
            ApiError::MethodNotAllowed(methods) => {
                self.vary();
                self.add_headers(methods.allow_line());
            }
            ApiError::Body(reason) => {
                self.vary();
                self.context.keep_alive &= !reason.closes();
                self.outcome.reject = Some(*reason);
            }
            ApiError::Identity(IdentityError::Invalid(detail) | IdentityError::Unwritable(detail)) => {
                self.vary();
                self.outcome.errors_truncated = detail.is_truncated;
            }
            _ => self.vary(),
        }
        let (mut status, body) = error.render();
        if self.outcome.route == Route::Events {
            status = self.status_for_events(error, status);
        }
        if body.len() >= COMPRESS_BYTES_MIN && self.accepts_gzip() {
            self.add_headers(b"vary: Accept-Encoding\r\n");
        }
        self.send_compressible(status, &body);
    }
}

/// Compresses `body` and adds `Content-Encoding`. Returns `body` itself if gzip does not make it smaller.
fn compress<'b>(
    body: &'b [u8],
    gzip: &mut Gzip,
    compressed: &'b mut Vec<u8>,
    headers: &mut Vec<u8>,
) -> &'b [u8] {
    compressed.clear();
    if !gzip.compress(body, compressed) {
        return body;
    }
    headers.extend_from_slice(CONTENT_ENCODING_GZIP);
    compressed
}
