//! `identities/`: the flags of one identity.
//!
//! In: identifier and traits from the body or the query. Out: both echoed, and the flags as
//! evaluated for them. Invariant: the shape of the request is judged before its key, as in the
//! Python proxy; all traits are echoed, duplicates too. No entity tag and no 304: an identity
//! override may change without moving the document's date (compatibility.md 4.1).
use crate::engine::evaluate::{Identity, evaluate, evaluate_next, evaluate_without_overrides};
use crate::engine::program::Role;
use crate::engine::render;
use crate::handlers::exchange::PRIVATE_NO_CACHE;
use crate::handlers::{Exchange, Scratch};
use crate::http::{ContentType, Status};
use crate::identity::{
    IdentityError, IdentityReader, ParsedIdentity, echo, query, transient, validation_errors,
};
use crate::json::write;
use crate::python::json::PyValue;
use crate::snapshot::Environment;

/// What the query of a request asks for.
#[derive(Clone, Copy, Default)]
pub(super) struct Selection<'q> {
    /// Only this flag.
    pub feature: Option<&'q str>,
    /// A transient identity in a query has no overrides in core, whatever its identifier (differences.md 45).
    pub is_transient: bool,
    /// Not the first identity of its request: it is evaluated with what is left of the request's budget.
    pub is_further: bool,
}

pub(super) fn post(
    exchange: &mut Exchange<'_>,
    body: &mut [u8],
    reader: &mut IdentityReader,
    desk: &mut Scratch,
) {
    let content_type = exchange.fields.content_type;
    reader.read(body, content_type, |sent| match sent {
        Ok(sent) => respond(exchange, &sent, Selection::default(), desk),
        Err(refusal) => exchange.send_refusal(desk, &refusal),
    });
}

/// What a body is refused for.
pub(super) fn judge(body: PyValue<'_>) -> Result<(), IdentityError> {
    validation_errors::identity(body).map(drop)
}

pub(super) fn get(exchange: &mut Exchange<'_>, query: &[u8], desk: &mut Scratch) {
    let identifier = query::parameter(query, "identifier");
    if let Err(refusal) = validation_errors::query_identifier(identifier.as_deref()) {
        return exchange.send_refusal(desk, &refusal);
    }
    let identifier = identifier.unwrap_or_default();
    let feature = query::parameter(query, "feature").filter(|feature| !feature.is_empty());
    // As in core, any text will do: `false` and `0` too.
    let is_transient = query::parameter(query, "transient").is_some_and(|value| !value.is_empty());
    let identity = Identity { identifier: &identifier, traits: &[] };
    let sent = ParsedIdentity { identity, echo: None, is_anonymous: false };
    respond(
        exchange,
        &sent,
        Selection { feature: feature.as_deref(), is_transient, is_further: false },
        desk,
    );
}

fn respond(
    exchange: &mut Exchange<'_>,
    sent: &ParsedIdentity<'_>,
    selection: Selection<'_>,
    desk: &mut Scratch,
) {
    let (environment, role) = match exchange.open() {
        Ok(opened) => opened,
        Err(denied) => return exchange.deny(desk, denied),
    };
    head(exchange, environment, desk);
    if exchange.accepts_gzip() {
        let mut body = std::mem::take(&mut desk.body);
        body.clear();
        evaluate_into(environment, role, sent, selection, desk, &mut body);
        exchange.send_compressible(desk, Status(200), &body);
        desk.body = body;
        return;
    }
    exchange.outcome.status = 200;
    let lines = std::mem::take(&mut desk.lines);
    exchange.output.respond_with(exchange.reply, Status(200), Some(ContentType::Json), &lines, |out| {
        evaluate_into(environment, role, sent, selection, desk, out);
    });
    desk.lines = lines;
}

/// Puts the fields of an answer with identities on the desk.
pub(super) fn head(exchange: &Exchange<'_>, environment: &Environment, desk: &mut Scratch) {
    exchange.vary_by_key(desk);
    desk.lines.extend_from_slice(PRIVATE_NO_CACHE);
    desk.dated.append(environment.updated_at(), &mut desk.lines);
}

/// Evaluates one identity and appends its answer.
pub(super) fn evaluate_into(
    environment: &Environment,
    role: Role,
    sent: &ParsedIdentity<'_>,
    selection: Selection<'_>,
    desk: &mut Scratch,
    out: &mut Vec<u8>,
) {
    let evaluate = match selection {
        Selection { is_further: true, .. } => evaluate_next,
        Selection { is_transient: true, .. } => evaluate_without_overrides,
        _ => evaluate,
    };
    if sent.is_anonymous && drops_traits(environment, role) {
        // The identifier must not be made from traits that do not count (differences.md 44).
        let identifier = transient::identifier(&[]);
        let identity = Identity { identifier: &identifier, traits: &[] };
        evaluate(environment.program(), &identity, &mut desk.scratch);
        return write(
            environment,
            role,
            &ParsedIdentity { identity, echo: None, ..*sent },
            selection.feature,
            desk,
            out,
        );
    }
    let identity = seen(environment, role, &sent.identity);
    evaluate(environment.program(), &identity, &mut desk.scratch);
    write(environment, role, sent, selection.feature, desk, out);
}

/// Traits that come with this key do not count (differences.md 11).
fn drops_traits(environment: &Environment, role: Role) -> bool {
    role == Role::Client && !environment.allow_client_traits()
}

/// The identity that is evaluated: a browser's traits may not count.
pub(super) fn seen<'a>(environment: &Environment, role: Role, identity: &Identity<'a>) -> Identity<'a> {
    match drops_traits(environment, role) {
        true => Identity { traits: &[], ..*identity },
        false => *identity,
    }
}

fn write(
    environment: &Environment,
    role: Role,
    sent: &ParsedIdentity<'_>,
    feature: Option<&str>,
    desk: &Scratch,
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(b"{\"identifier\":");
    write::string(sent.identity.identifier, out);
    out.extend_from_slice(b",\"traits\":[");
    match sent.echo {
        _ if environment.hide_sensitive_data() => {}
        Some(echo) => out.extend_from_slice(echo.as_bytes()),
        None => echo::write_all(sent.identity.traits, out),
    }
    out.extend_from_slice(b"],\"flags\":");
    render::write(environment.program(), role, &desk.scratch, feature, out);
    out.push(b'}');
}
