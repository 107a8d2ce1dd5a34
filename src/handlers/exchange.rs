//! One exchange while it is answered: what its key opens, and how its answer is sent.
//!
//! In: a request's fields and the snapshot. Out: a document, or why the key opens none; then one whole
//! response in [`ResponseWriter`], with the lines that say what caches and clients may do with it (RFC 9110
//! 8.4, 12.5.5, 13; differences.md 22). Invariant: each exchange is answered once, here or in
//! `refusal`; whatever depends on a field of the request is named in `Vary`.
use std::time::SystemTime;

use crate::engine::program::Role;
use crate::handlers::errors::AccessError;
use crate::handlers::validators::{EntityTag, Precondition};
use crate::handlers::{HandlerSettings, RequestOutcome, Scratch, validators};
use crate::http::compression::accepts_gzip;
use crate::http::{Body, ContentType, Fields, ParseError, Request, ResponseContext, ResponseWriter, Status};
use crate::limits::COMPRESS_BYTES_MIN;
use crate::snapshot::environment::ReadyBody;
use crate::snapshot::{Environment, Slot, Snapshot};

/// A cache may keep the answer but must ask whether it still holds: a flag may change at any second.
pub const NO_CACHE: &[u8] = b"cache-control: no-cache\r\n";
/// The same for one caller's cache only: the document names identities and what only servers may see.
pub const PRIVATE_NO_CACHE: &[u8] = b"cache-control: private, no-cache\r\n";

/// One exchange while it is answered.
pub struct Exchange<'a> {
    pub settings: &'a HandlerSettings,
    pub snapshot: &'a Snapshot,
    pub now: SystemTime,
    pub reply: ResponseContext,
    pub fields: Fields<'a>,
    /// The answer names the origin, so caches must tell origins apart.
    pub varies_by_origin: bool,
    /// Read when it is first asked for.
    accepts_gzip: Option<bool>,
    pub output: &'a mut ResponseWriter,
    pub outcome: RequestOutcome,
}

impl<'a> Exchange<'a> {
    /// An exchange of which nothing is known but the request.
    pub fn new(
        settings: &'a HandlerSettings,
        snapshot: &'a Snapshot,
        now: SystemTime,
        request: &Request<'a>,
        output: &'a mut ResponseWriter,
    ) -> Self {
        Self {
            settings,
            snapshot,
            now,
            reply: request.context(),
            fields: request.fields,
            varies_by_origin: false,
            accepts_gzip: None,
            output,
            outcome: RequestOutcome::NONE,
        }
    }

    /// What the request's key opens, and the document there.
    pub fn open(&mut self) -> Result<(&'a Environment, Role), AccessError<'a>> {
        let key = self.fields.environment_key.ok_or(AccessError::KeyMissing)?;
        let access = self.snapshot.access_at(key, self.now).ok_or_else(|| self.unknown(key))?;
        let slot = self.snapshot.slots.get(access.slot).ok_or_else(|| self.unknown(key))?;
        self.outcome.slot = Some(access.slot);
        self.outcome.role = Some(access.role);
        let environment = slot.environment.as_deref().ok_or(AccessError::NoDocument)?;
        Ok((environment, access.role))
    }

    /// Why a key that is not in the snapshot opens nothing: it is wrong, or its source was not read
    /// yet (differences.md 3). An empty key is always wrong.
    pub fn unknown<'k>(&self, key: &'k [u8]) -> AccessError<'k> {
        let is_known = self.snapshot.is_complete || key.is_empty();
        if is_known { AccessError::KeyUnknown(key) } else { AccessError::KeyUnread }
    }

    /// As [`open`](Self::open), for what client-side keys must not see: those are as good as unknown
    /// (differences.md 1).
    pub fn open_as_server(&mut self) -> Result<&'a Environment, AccessError<'a>> {
        let opened = self.open();
        match (self.outcome.role, self.fields.environment_key) {
            (Some(Role::Client), Some(key)) => Err(AccessError::KeyUnknown(key)),
            _ => opened.map(|(environment, _)| environment),
        }
    }

    /// What the key names, with or without a document.
    pub fn open_slot(&mut self) -> Result<&'a Slot, AccessError<'a>> {
        match self.open() {
            Ok(_) | Err(AccessError::NoDocument) => {}
            Err(denied) => return Err(denied),
        }
        self.outcome.slot.and_then(|slot| self.snapshot.slots.get(slot)).ok_or(AccessError::NoDocument)
    }

    /// Whether the client takes gzip.
    pub fn accepts_gzip(&mut self) -> bool {
        let field = self.fields.accept_encoding;
        *self.accepts_gzip.get_or_insert_with(|| accepts_gzip(field))
    }

    /// `Vary` for an answer that no cache keeps: only what the middleware of the Python proxy says.
    pub fn vary(&self, desk: &mut Scratch) {
        if self.varies_by_origin {
            desk.lines.extend_from_slice(b"vary: Origin\r\n");
        }
    }

    /// `Vary` for an answer that a cache may keep: all that it depends on (RFC 9110 12.5.5).
    pub fn vary_by_key(&self, desk: &mut Scratch) {
        desk.lines.extend_from_slice(match self.varies_by_origin {
            true => b"vary: X-Environment-Key, Accept-Encoding, Origin\r\n",
            false => b"vary: X-Environment-Key, Accept-Encoding\r\n",
        });
    }

    /// Writes the response; the lines on the desk go with it.
    pub fn send(
        &mut self,
        desk: &Scratch,
        status: Status,
        content_type: Option<ContentType>,
        body: Body<'_>,
    ) {
        self.outcome.status = status.0;
        self.output.respond(self.reply, status, content_type, &desk.lines, body);
    }

    /// Refuses the coding or the size of a body.
    pub fn reject(&mut self, desk: &mut Scratch, reject: ParseError) {
        self.vary(desk);
        self.reply.keep_alive &= !reject.closes();
        self.outcome.reject = Some(reject);
        self.send(desk, reject.status(), Some(ContentType::Json), Body::Copy(reject.body()));
    }

    /// Sends JSON that no cache keeps, compressed if that is worth it. `Vary` has then a line more.
    pub fn send_json(&mut self, desk: &mut Scratch, status: Status, body: &[u8]) {
        if body.len() >= COMPRESS_BYTES_MIN && self.accepts_gzip() {
            desk.lines.extend_from_slice(b"vary: Accept-Encoding\r\n");
        }
        self.send_compressible(desk, status, body);
    }

    /// Sends a body made for this request, compressed if that is worth it.
    pub fn send_compressible(&mut self, desk: &mut Scratch, status: Status, body: &[u8]) {
        if body.len() < COMPRESS_BYTES_MIN || !self.accepts_gzip() {
            return self.send(desk, status, Some(ContentType::Json), Body::Copy(body));
        }
        let mut compressed = std::mem::take(&mut desk.compressed);
        compressed.clear();
        let mut body = body;
        if desk.gzip.compress(body, &mut compressed) {
            desk.lines.extend_from_slice(b"content-encoding: gzip\r\n");
            body = &compressed;
        }
        self.send(desk, status, Some(ContentType::Json), Body::Copy(body));
        desk.compressed = compressed;
    }

    /// Sends a body that is ready, or 304 if the client has it.
    pub fn send_ready(
        &mut self,
        desk: &mut Scratch,
        environment: &Environment,
        ready: &ReadyBody,
        cache_control: &[u8],
    ) {
        let gzip = ready.gzip.as_ref().filter(|_| self.accepts_gzip());
        self.vary_by_key(desk);
        desk.lines.extend_from_slice(cache_control);
        desk.dated.append(environment.updated_at(), &mut desk.lines);
        let etag = EntityTag::new(&ready.etag, gzip.is_some());
        etag.append(&mut desk.lines);
        if self.send_unless_wanted(desk, Some(etag), environment.own_time()) {
            return;
        }
        if gzip.is_some() {
            desk.lines.extend_from_slice(b"content-encoding: gzip\r\n");
        }
        let body = gzip.unwrap_or(&ready.plain);
        self.send(desk, Status(200), Some(ContentType::Json), Body::Ready(body));
    }

    /// Sends a part of a ready body, which has a date but no entity tag of its own.
    pub fn send_dated(&mut self, desk: &mut Scratch, environment: &Environment, body: &[u8]) {
        self.vary_by_key(desk);
        desk.lines.extend_from_slice(NO_CACHE);
        desk.dated.append(environment.updated_at(), &mut desk.lines);
        if !self.send_unless_wanted(desk, None, environment.own_time()) {
            self.send_compressible(desk, Status(200), body);
        }
    }

    /// Sends 304 or 412 where the request's conditions ask for it; false: the body is to be sent.
    pub fn send_unless_wanted(
        &mut self,
        desk: &mut Scratch,
        etag: Option<EntityTag<'_>>,
        own_time: Option<f64>,
    ) -> bool {
        match validators::evaluate(&self.fields, etag, own_time) {
            Precondition::Send => return false,
            Precondition::NotModified => self.send(desk, Status(304), None, Body::Empty),
            Precondition::Failed => self.refuse_precondition(desk),
        }
        true
    }
}
