//! `identities/`: the flags of one identity.
//!
//! In: identifier and traits from the body or the query. Out: both echoed, and the flags as
//! evaluated for them. Invariant: the shape of the request is judged before its key, as in the
//! Python proxy; all traits are echoed, duplicates too. No entity tag and no 304: an identity
//! override may change without moving the document's date (compatibility.md 4.1).
use super::{Desk, Exchange};
use crate::encode::{flags, json, traits};
use crate::evaluate::{Identity, evaluate};
use crate::http::{ContentType, Status};
use crate::identity::{Reader, Sent, detail, query};
use crate::snapshot::{Environment, Role};

pub(super) fn post(exchange: &mut Exchange<'_>, body: &mut [u8], reader: &mut Reader, desk: &mut Desk) {
    let content_type = exchange.fields.content_type;
    reader.read(body, content_type, |sent| match sent {
        Ok(sent) => respond(exchange, &sent, None, desk),
        Err(refusal) => exchange.send_refusal(desk, &refusal),
    });
}

pub(super) fn get(exchange: &mut Exchange<'_>, query: &[u8], desk: &mut Desk) {
    let Some(identifier) = query::parameter(query, "identifier") else {
        return exchange.send_refusal(desk, &detail::identifier_missing_in_query());
    };
    let feature = query::parameter(query, "feature").filter(|feature| !feature.is_empty());
    let identity = Identity { identifier: &identifier, traits: &[] };
    respond(exchange, &Sent { identity, echo: None }, feature.as_deref(), desk);
}

fn respond(exchange: &mut Exchange<'_>, sent: &Sent<'_>, feature: Option<&str>, desk: &mut Desk) {
    let (environment, role) = match exchange.open() {
        Ok(opened) => opened,
        Err(denied) => return exchange.deny(desk, denied),
    };
    head(exchange, environment, desk);
    if exchange.accepts_gzip() {
        let mut body = std::mem::take(&mut desk.body);
        body.clear();
        evaluate_into(environment, role, sent, feature, desk, &mut body);
        exchange.send_compressible(desk, Status(200), &body);
        desk.body = body;
        return;
    }
    exchange.outcome.status = 200;
    let lines = std::mem::take(&mut desk.lines);
    exchange.output.respond_with(exchange.reply, Status(200), Some(ContentType::Json), &lines, |out| {
        evaluate_into(environment, role, sent, feature, desk, out);
    });
    desk.lines = lines;
}

/// Puts the fields of an answer with identities on the desk.
pub(super) fn head(exchange: &Exchange<'_>, environment: &Environment, desk: &mut Desk) {
    exchange.vary_by_key(desk);
    desk.lines.extend_from_slice(b"cache-control: private, no-cache\r\n");
    desk.dated.append(environment.updated_at(), &mut desk.lines);
}

/// Evaluates one identity and appends its answer.
pub(super) fn evaluate_into(
    environment: &Environment,
    role: Role,
    sent: &Sent<'_>,
    feature: Option<&str>,
    desk: &mut Desk,
    out: &mut Vec<u8>,
) {
    evaluate(environment, &seen(environment, role, &sent.identity), &mut desk.scratch);
    write(environment, role, sent, feature, desk, out);
}

/// The identity that is evaluated: a browser's traits may not count (differences.md 11).
pub(super) fn seen<'a>(environment: &Environment, role: Role, identity: &Identity<'a>) -> Identity<'a> {
    match role {
        Role::Client if !environment.allow_client_traits() => Identity { traits: &[], ..*identity },
        _ => *identity,
    }
}

fn write(
    environment: &Environment,
    role: Role,
    sent: &Sent<'_>,
    feature: Option<&str>,
    desk: &Desk,
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(b"{\"identifier\":");
    json::string(sent.identity.identifier, out);
    out.extend_from_slice(b",\"traits\":[");
    match sent.echo {
        _ if environment.hide_sensitive_data() => {}
        Some(echo) => out.extend_from_slice(echo.as_bytes()),
        None => traits::write_all(sent.identity.traits, out),
    }
    out.extend_from_slice(b"],\"flags\":");
    flags::write(environment, role, &desk.scratch, feature, out);
    out.push(b'}');
}
