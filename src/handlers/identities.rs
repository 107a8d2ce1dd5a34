//! `identities/`: the flags of one identity.
//!
//! The shape of the request is validated before its key, as in the Python proxy. All traits are echoed,
//! duplicates included. There is no entity tag and no 304: an identity override may change without a change
//! of the document's date (compatibility.md 4.1).
use bytes::Bytes;

use crate::engine::evaluate::{
    EvaluationScratch, Identity, evaluate, evaluate_next, evaluate_without_overrides,
};
use crate::engine::program::Role;
use crate::engine::render;
use crate::handlers::errors::ApiError;
use crate::handlers::exchange::{Exchange, NO_STORE, PRIVATE_NO_CACHE};
use crate::handlers::result_cache::{ResultKey, ResultLookup};
use crate::handlers::scratch::Scratch;
use crate::http::Status;
use crate::http::compression::CompressedTail;
use crate::identity::{
    IdentityError, IdentityReader, ParsedIdentity, echo, query, transient, validation_errors,
};
use crate::json::write;
use crate::limits::CACHED_RESULT_BYTES_MAX;
use crate::python::json::PyValue;
use crate::snapshot::Environment;

/// How an identity is evaluated.
#[derive(Clone, Copy, Default)]
pub struct Selection<'q> {
    /// Only this flag.
    pub feature: Option<&'q str>,
    /// `?transient=`: as in Flagsmith core, no identity overrides apply (differences.md 45).
    pub is_transient: bool,
    /// Not the first identity of its request: evaluated with the rest of the request's budget.
    pub is_further: bool,
    /// The traits were merged with kept ones and all count.
    pub is_merged: bool,
}

pub fn post<'a>(
    exchange: &mut Exchange<'a>,
    body: &mut [u8],
    reader: &mut IdentityReader,
) -> Result<(), ApiError<'a>> {
    let content_type = exchange.fields.content_type;
    reader.read(body, content_type, |parsed| respond(exchange, &parsed?, Selection::default()))
}

/// Validates a body.
pub fn validate(body: PyValue<'_>) -> Result<(), IdentityError> {
    validation_errors::identity(body).map(drop)
}

pub fn get<'a>(exchange: &mut Exchange<'a>, query: &[u8]) -> Result<(), ApiError<'a>> {
    let identifier = query::parameter(query, "identifier");
    validation_errors::query_identifier(identifier.as_deref())?;
    let identifier = identifier.unwrap_or_default();
    let feature = query::parameter(query, "feature").filter(|feature| !feature.is_empty());
    // As in Flagsmith core, any text means yes, `false` and `0` included.
    let is_transient = query::parameter(query, "transient").is_some_and(|value| !value.is_empty());
    let identity = Identity { identifier: &identifier, traits: &[] };
    let parsed = ParsedIdentity { identity, echo: None, is_anonymous: false };
    let selection = Selection { feature: feature.as_deref(), is_transient, ..Selection::default() };
    respond(exchange, &parsed, selection)
}

fn respond<'a>(
    exchange: &mut Exchange<'a>,
    parsed: &ParsedIdentity<'_>,
    selection: Selection<'_>,
) -> Result<(), ApiError<'a>> {
    let (document, role) = exchange.open()?;
    let environment = &*document.environment;
    exchange.add_document_headers(document, PRIVATE_NO_CACHE);
    send_flags(exchange, environment, role, parsed, selection);
    Ok(())
}

/// Sends the flags of an identity whose traits were merged with kept ones: all of them count. No date: kept
/// traits change without the document.
pub fn respond_merged<'a>(
    exchange: &mut Exchange<'a>,
    environment: &'a Environment,
    role: Role,
    parsed: &ParsedIdentity<'_>,
    selection: Selection<'_>,
) {
    exchange.vary_by_key();
    exchange.add_headers(NO_STORE);
    let selection = Selection { is_merged: true, ..selection };
    send_flags(exchange, environment, role, parsed, selection);
}

fn send_flags<'a>(
    exchange: &mut Exchange<'a>,
    environment: &'a Environment,
    role: Role,
    parsed: &ParsedIdentity<'_>,
    selection: Selection<'_>,
) {
    if !exchange.accepts_gzip() {
        exchange.send_with_end(Status(200), |evaluation, out| {
            evaluate_with(environment, role, parsed, selection, evaluation, |parsed, evaluation| {
                write_head(environment, parsed, out);
                write_tail_or_start(environment, role, selection.feature, evaluation, out)
            })
        });
        return;
    }
    let Scratch { evaluation, body, .. } = &mut *exchange.scratch;
    body.clear();
    if selection.feature.is_some() {
        evaluate_into(environment, role, parsed, selection, evaluation, body);
        exchange.send_scratch_body(Status(200));
    } else {
        evaluate_with(environment, role, parsed, selection, evaluation, |parsed, _| {
            write_head(environment, parsed, body);
        });
        send_compressed(exchange, environment, role);
    }
}

/// Sends the response whose head is in the scratch buffer, with the flags of the last evaluation. Its flags
/// are taken from the cache of compressed results if they are there.
fn send_compressed(exchange: &mut Exchange<'_>, environment: &Environment, role: Role) {
    let slot = exchange.outcome.slot.unwrap_or_default();
    let Scratch { evaluation, body, flags_cache, .. } = &mut *exchange.scratch;
    let key = ResultKey::new(environment, slot, role, evaluation);
    let index = match flags_cache.lookup(key) {
        ResultLookup::Hit(index) => Some(index),
        lookup => {
            let head_bytes = body.len();
            write_tail(environment, role, None, evaluation, body);
            let tail = match lookup {
                ResultLookup::Admit(hash) if body.len() - head_bytes <= CACHED_RESULT_BYTES_MAX => {
                    CompressedTail::new(&body[head_bytes..]).map(|tail| (tail, hash))
                }
                _ => None,
            };
            let index = tail.and_then(|(tail, hash)| {
                let bytes = tail.heap_bytes();
                flags_cache.insert(key, hash, tail, bytes)
            });
            if index.is_some() {
                body.truncate(head_bytes);
            }
            index
        }
    };
    match index {
        Some(index) => send_cached(exchange, environment, role, index),
        None => exchange.send_scratch_body(Status(200)),
    }
}

/// Sends the head in the scratch buffer with the cached flags.
fn send_cached(exchange: &mut Exchange<'_>, environment: &Environment, role: Role, index: usize) {
    if !exchange.send_before_cached(Status(200), index) {
        let Scratch { body, evaluation, .. } = &mut *exchange.scratch;
        write_tail(environment, role, None, evaluation, body);
        exchange.send_scratch_body(Status(200));
    }
}

/// Evaluates one identity and appends its JSON object.
pub fn evaluate_into(
    environment: &Environment,
    role: Role,
    parsed: &ParsedIdentity<'_>,
    selection: Selection<'_>,
    evaluation: &mut EvaluationScratch,
    out: &mut Vec<u8>,
) {
    evaluate_with(environment, role, parsed, selection, evaluation, |parsed, evaluation| {
        write_head(environment, parsed, out);
        write_tail(environment, role, selection.feature, evaluation, out);
    });
}

/// Evaluates one identity and calls `then` with the identity as it is echoed, and the results.
fn evaluate_with<T>(
    environment: &Environment,
    role: Role,
    parsed: &ParsedIdentity<'_>,
    selection: Selection<'_>,
    evaluation: &mut EvaluationScratch,
    then: impl FnOnce(&ParsedIdentity<'_>, &EvaluationScratch) -> T,
) -> T {
    let evaluate = match selection {
        Selection { is_further: true, .. } => evaluate_next,
        Selection { is_transient: true, .. } => evaluate_without_overrides,
        _ => evaluate,
    };
    if selection.is_merged {
        evaluate(environment.program(), &parsed.identity, evaluation);
        return then(parsed, evaluation);
    }
    if parsed.is_anonymous && drops_traits(environment, role) {
        // The identifier must not depend on traits that are ignored (differences.md 44).
        let identifier = transient::identifier(&[]);
        let identity = Identity { identifier: &identifier, traits: &[] };
        evaluate(environment.program(), &identity, evaluation);
        return then(&ParsedIdentity { identity, echo: None, ..*parsed }, evaluation);
    }
    let identity = trusted_identity(environment, role, &parsed.identity);
    evaluate(environment.program(), &identity, evaluation);
    then(parsed, evaluation)
}

/// Whether traits sent with this key are ignored (differences.md 11).
pub fn drops_traits(environment: &Environment, role: Role) -> bool {
    role == Role::Client && !environment.allow_client_traits()
}

/// The identity to evaluate: without its traits if those sent with this key are ignored.
pub fn trusted_identity<'a>(environment: &Environment, role: Role, identity: &Identity<'a>) -> Identity<'a> {
    match drops_traits(environment, role) {
        true => Identity { traits: &[], ..*identity },
        false => *identity,
    }
}

/// Appends the object up to the array of flags.
fn write_head(environment: &Environment, parsed: &ParsedIdentity<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"identifier\":");
    write::string(parsed.identity.identifier, out);
    out.extend_from_slice(b",\"traits\":[");
    match parsed.echo {
        _ if environment.hide_sensitive_data() => {}
        Some(echo) => out.extend_from_slice(echo.as_bytes()),
        None => echo::write_all(parsed.identity.traits, out),
    }
    out.extend_from_slice(b"],\"flags\":");
}

/// Appends the rest of the object, up to a long end of it that is shared, which is returned.
fn write_tail_or_start(
    environment: &Environment,
    role: Role,
    feature: Option<&str>,
    evaluation: &EvaluationScratch,
    out: &mut Vec<u8>,
) -> Option<Bytes> {
    let shared = environment.shared_end().filter(|_| feature.is_none());
    let end = shared.and_then(|shared| {
        let position = render::write_start(environment.program(), role, evaluation, out)?;
        Some(shared.slice(position..))
    });
    if end.is_none() {
        write_tail(environment, role, feature, evaluation, out);
    }
    end
}

/// Appends the rest of the object. It depends only on the document, the role, the feature and the outputs of
/// the evaluation.
fn write_tail(
    environment: &Environment,
    role: Role,
    feature: Option<&str>,
    evaluation: &EvaluationScratch,
    out: &mut Vec<u8>,
) {
    render::write(environment.program(), role, evaluation, feature, out);
    out.push(b'}');
}
