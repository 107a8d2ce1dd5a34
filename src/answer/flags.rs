//! `GET /api/v1/flags/`: the flags of the environment, without an identity.
//!
//! In: the key and `?feature=`. Out: the ready body of the key's role, or one flag's object.
//! Invariant: nothing is evaluated here; the bodies were made when the document was compiled.
use super::{Desk, Exchange, validators};
use crate::http::{Body, ContentType, Status};
use crate::identity::query;
use crate::snapshot::Environment;
use crate::snapshot::compile::Ready;

pub fn answer(exchange: &mut Exchange<'_>, query: &[u8], desk: &mut Desk) {
    let (environment, role) = match exchange.open() {
        Ok(opened) => opened,
        Err(denied) => return exchange.deny(desk, denied),
    };
    match query::parameter(query, "feature") {
        Some(feature) if !feature.is_empty() => match environment.flag(role, &feature) {
            Some(flag) => exchange.send_dated(desk, environment, flag),
            None => {
                // A cache may keep a 404 that does not say otherwise, and hand it to other keys.
                exchange.vary_by_key(desk);
                desk.lines.extend_from_slice(b"cache-control: no-cache\r\n");
                let message = format!("feature '{feature}' not found");
                exchange.refuse(desk, Status(404), "not_found", &message);
            }
        },
        _ => exchange.send_ready(desk, environment, environment.flags(role)),
    }
}

impl Exchange<'_> {
    /// Sends a body that is ready, or 304 if the client has it.
    pub(super) fn send_ready(&mut self, desk: &mut Desk, environment: &Environment, ready: &Ready) {
        let gzip = ready.gzip.as_ref().filter(|_| self.accepts_gzip());
        self.vary_by_key(desk);
        desk.lines.extend_from_slice(b"cache-control: no-cache\r\n");
        desk.dated.append(environment.updated_at(), &mut desk.lines);
        validators::etag(&ready.etag, gzip.is_some(), &mut desk.lines);
        if validators::is_not_modified(&self.fields, Some(&ready.etag), environment.updated_at()) {
            return self.send(desk, Status(304), None, Body::Empty);
        }
        if gzip.is_some() {
            desk.lines.extend_from_slice(b"content-encoding: gzip\r\n");
        }
        let body = gzip.unwrap_or(&ready.plain);
        self.send(desk, Status(200), Some(ContentType::Json), Body::Ready(body));
    }

    /// Sends a part of a ready body, which has a date but no entity tag of its own.
    fn send_dated(&mut self, desk: &mut Desk, environment: &Environment, body: &[u8]) {
        self.vary_by_key(desk);
        desk.lines.extend_from_slice(b"cache-control: no-cache\r\n");
        desk.dated.append(environment.updated_at(), &mut desk.lines);
        if validators::is_not_modified(&self.fields, None, environment.updated_at()) {
            return self.send(desk, Status(304), None, Body::Empty);
        }
        self.send_compressible(desk, Status(200), body);
    }
}
