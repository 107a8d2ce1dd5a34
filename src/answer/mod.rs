//! The spine: one synchronous function from a request to an answer.
//!
//! In: a [`Snapshot`], a [`Request`], the time, and a reactor's [`Room`]. Out: a whole response
//! in [`Output`], and an [`Outcome`] for those who count. Order of judgement, as in the Python
//! proxy: preflight, path, method, shape of query or body, key, document (wire.md 2.6).
//! Invariant: no await, no lock, no log, no clock (time is an argument), and no allocation for
//! plain input once the room has grown. One file per family of routes; this one only leads there.
mod document;
mod flags;
mod health;
mod identities;
mod refusal;
mod validators;

#[cfg(test)]
mod tests;

use std::time::SystemTime;

use crate::config::Config;
use crate::evaluate::Scratch;
use crate::http::compress::Gzip;
use crate::http::cors::Cors;
use crate::http::response::Reply;
use crate::http::{Body, ContentType, Fields, Method, Output, Request, Status};
use crate::identity::Reader;
use crate::route::{self, Route};
use crate::snapshot::{Environment, Role, Snapshot};

use refusal::Denied;

/// What the configuration says about answers, made ready once per process and on a reload.
#[derive(Debug)]
pub struct Settings {
    cors: Cors,
    health: health::Rules,
}

impl Settings {
    pub fn new(config: &Config) -> Self {
        Self { cors: Cors::new(&config.allow_origins), health: health::Rules::new(config) }
    }
}

/// A reactor's reusable buffers.
#[derive(Debug, Default)]
pub struct Room {
    reader: Reader,
    desk: Desk,
}

/// All of a [`Room`] but what reads identities, so that both can be borrowed at once.
#[derive(Debug, Default)]
struct Desk {
    scratch: Scratch,
    /// Header lines of the answer at hand.
    lines: Vec<u8>,
    /// A body that is to be compressed, and then its compressed form.
    body: Vec<u8>,
    compressed: Vec<u8>,
    gzip: Gzip,
}

/// What was answered, for metrics, the access log and usage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub status: u16,
    pub route: Route,
    /// The environment that the key opened.
    pub slot: Option<usize>,
    pub role: Option<Role>,
}

/// One exchange while it is answered.
struct Exchange<'a> {
    settings: &'a Settings,
    snapshot: &'a Snapshot,
    now: SystemTime,
    reply: Reply,
    fields: Fields<'a>,
    /// The answer names the origin, so caches must tell origins apart.
    varies_by_origin: bool,
    output: &'a mut Output,
    outcome: Outcome,
}

/// Answers one request.
pub fn answer(
    settings: &Settings,
    snapshot: &Snapshot,
    now: SystemTime,
    request: &mut Request<'_>,
    room: &mut Room,
    output: &mut Output,
) -> Outcome {
    let mut exchange = Exchange {
        settings,
        snapshot,
        now,
        reply: request.reply(),
        fields: request.fields,
        varies_by_origin: false,
        output,
        outcome: Outcome { status: 0, route: Route::Unknown, slot: None, role: None },
    };
    let Room { reader, desk } = room;
    desk.lines.clear();
    if Cors::is_preflight(request.method, &request.fields) {
        let (status, body) = settings.cors.preflight(&request.fields, &mut desk.lines);
        exchange.send(desk, status, Some(ContentType::Text), Body::Copy(body));
        return exchange.outcome;
    }
    exchange.varies_by_origin = settings.cors.simple(&request.fields, &mut desk.lines);
    let Some(found) = route::find(request.path) else {
        exchange.vary(desk);
        exchange.send(desk, Status(404), Some(ContentType::Json), Body::Copy(refusal::NOT_FOUND));
        return exchange.outcome;
    };
    exchange.outcome.route = found.route;
    if !found.methods.allow(request.method) {
        exchange.vary(desk);
        desk.lines.extend_from_slice(found.methods.allow_line());
        exchange.send(desk, Status(405), Some(ContentType::Json), Body::Copy(refusal::METHOD_NOT_ALLOWED));
        return exchange.outcome;
    }
    match (found.route, request.method) {
        (Route::Flags, _) => flags::answer(&mut exchange, request.query, desk),
        (Route::Identities, Method::Post) => identities::post(&mut exchange, request.body, reader, desk),
        (Route::Identities, _) => identities::get(&mut exchange, request.query, desk),
        (Route::EnvironmentDocument, _) => document::answer(&mut exchange, desk),
        (Route::Readiness, _) => health::readiness(&mut exchange, desk),
        (Route::Liveness, _) => exchange.send(desk, Status(200), None, Body::Empty),
        (Route::Unknown, _) => {
            exchange.send(desk, Status(404), Some(ContentType::Json), Body::Copy(refusal::NOT_FOUND));
        }
    }
    exchange.outcome
}

impl<'a> Exchange<'a> {
    /// What the request's key opens, and the document there.
    fn open(&mut self) -> Result<(&'a Environment, Role), Denied<'a>> {
        let key = self.fields.environment_key.ok_or(Denied::KeyMissing)?;
        let access = self.snapshot.access(key).ok_or(Denied::KeyUnknown(key))?;
        if access.expires_at.is_some_and(|expires_at| expires_at <= self.now) {
            return Err(Denied::KeyUnknown(key));
        }
        let slot = self.snapshot.slots.get(access.slot).ok_or(Denied::KeyUnknown(key))?;
        self.outcome.slot = Some(access.slot);
        self.outcome.role = Some(access.role);
        let environment = slot.environment.as_deref().ok_or(Denied::NoDocument)?;
        Ok((environment, access.role))
    }

    /// Writes the response; the lines on the desk go with it.
    fn send(&mut self, desk: &Desk, status: Status, content_type: Option<ContentType>, body: Body<'_>) {
        self.outcome.status = status.0;
        self.output.respond(self.reply, status, content_type, &desk.lines, body);
    }

    /// `Vary` for an answer that no cache keeps: only what the middleware of the Python proxy says.
    fn vary(&self, desk: &mut Desk) {
        if self.varies_by_origin {
            desk.lines.extend_from_slice(b"vary: Origin\r\n");
        }
    }

    /// `Vary` for an answer that a cache may keep: all that it depends on (RFC 9110 12.5.5).
    fn vary_by_key(&self, desk: &mut Desk) {
        desk.lines.extend_from_slice(match self.varies_by_origin {
            true => b"vary: X-Environment-Key, Accept-Encoding, Origin\r\n",
            false => b"vary: X-Environment-Key, Accept-Encoding\r\n",
        });
    }
}
