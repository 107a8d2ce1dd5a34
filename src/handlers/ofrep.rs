//! OpenFeature Remote Evaluation Protocol (OFREP) 0.3.0: one flag, or all flags.
//!
//! The context's `targetingKey` is the identifier; its other members are traits, except lists and objects.
//! The result is that of `POST identities/`. A flag without a value is a boolean, true if it is enabled; a
//! disabled flag with a value is sent without one, so that the application uses its own default. The response
//! for all flags has an entity tag computed from its body.
use std::borrow::Cow;
use std::rc::Rc;

use sha2::{Digest, Sha256};

use crate::engine::document::raw_json;
use crate::engine::evaluate::{EvaluationScratch, Identity, Trait, TraitValue, evaluate};
use crate::engine::program::Role;
use crate::engine::render::{Flag, results};
use crate::handlers::errors::{ApiError, OfrepError};
use crate::handlers::exchange::{CONTENT_ENCODING_GZIP, Exchange, PRIVATE_NO_CACHE};
use crate::handlers::identities::trusted_identity;
use crate::handlers::kept::{Scope, with_context};
use crate::handlers::result_cache::{OfrepResult, ResultKey, ResultLookup};
use crate::handlers::scratch::Scratch;
use crate::handlers::state::SharedView;
use crate::handlers::validators::EntityTag;
use crate::http::compression::CompressedTail;
use crate::http::{Body, ContentType, Status};
use crate::identity::error_list::is_within_length;
use crate::identity::validation_errors::{integer, json_value};
use crate::json::hex::{hex, path_segment};
use crate::json::write;
use crate::limits::{CACHED_RESULT_BYTES_MAX, COMPRESS_BYTES_MIN};
use crate::python::json::PyValue;
use crate::snapshot::Environment;

/// Seconds after which a client should close the stream of a hidden browser tab: the protocol's default.
const INACTIVITY_SECONDS: &str = "120";

/// Why a context is invalid: the protocol's `errorCode` and `errorDetails`.
type ContextError = (&'static str, &'static str);

const NOT_JSON: ContextError = ("PARSE_ERROR", "the body is not JSON");
const NO_CONTEXT: ContextError =
    ("INVALID_CONTEXT", "the body must be an object with an object named context");
const NO_TARGETING_KEY: ContextError = ("TARGETING_KEY_MISSING", "the context has no targetingKey");
const VALUE_TOO_LONG: ContextError =
    ("INVALID_CONTEXT", "a string of the context is longer than 2000 characters");
const TARGETING_KEY_TYPE: ContextError = ("INVALID_CONTEXT", "the context's targetingKey must be a string");
const TARGETING_KEY_LENGTH: ContextError =
    ("INVALID_CONTEXT", "the context's targetingKey must have at most 2000 characters");

/// `POST /ofrep/v1/evaluate/flags/{key}`.
pub fn evaluate_one<'a>(
    exchange: &mut Exchange<'a>,
    flag: &[u8],
    body: &[u8],
    kept: Option<&SharedView>,
) -> Result<(), ApiError<'a>> {
    let (document, role) = exchange.open_with_any_key()?;
    let environment = &*document.environment;
    let flag = String::from_utf8_lossy(flag);
    let scope = Scope::new(exchange, environment, role);
    let evaluation = &mut exchange.scratch.evaluation;
    let mut result = Vec::new();
    let found = with_identity(body, |identity| {
        evaluate_with(identity, scope, kept, evaluation);
        let mut flags = results(environment.program(), role, evaluation);
        flags.find(|found| found.name == flag).map(|found| write(&found, &mut result))
    });
    let (status, code, details) = match found {
        Ok(Some(())) => {
            exchange.vary();
            exchange.send(Status(200), Some(ContentType::Json), Body::Copy(&result));
            return Ok(());
        }
        Ok(None) => (404, "FLAG_NOT_FOUND", Cow::Owned(format!("Flag '{flag}' was not found"))),
        Err((code, details)) => (400, code, Cow::Borrowed(details)),
    };
    Err(OfrepError { status: Status(status), flag: Some(flag.into_owned()), code, details }.into())
}

/// `POST /ofrep/v1/evaluate/flags`.
pub fn evaluate_all<'a>(
    exchange: &mut Exchange<'a>,
    body: &[u8],
    kept: Option<&SharedView>,
) -> Result<(), ApiError<'a>> {
    let (document, role) = exchange.open_with_any_key()?;
    let environment = &*document.environment;
    let settings = exchange.settings;
    let accepts_gzip = exchange.accepts_gzip();
    let slot = exchange.outcome.slot.unwrap_or_default();
    let scope = Scope::new(exchange, environment, role);
    let Scratch { evaluation, body: out, ofrep_cache, .. } = &mut *exchange.scratch;
    with_identity(body, |identity| {
        evaluate_with(identity, scope, kept, evaluation);
    })
    .map_err(|(code, details)| OfrepError {
        status: Status(400),
        flag: None,
        code,
        details: details.into(),
    })?;
    let key = ResultKey::new(environment, slot, role, evaluation);
    let lookup = match accepts_gzip {
        true => ofrep_cache.lookup(key),
        // Only requests that accept gzip fill the cache; it serves others too.
        false => ofrep_cache.find(key).map_or(ResultLookup::Miss, ResultLookup::Hit),
    };
    if let ResultLookup::Hit(index) = lookup
        && let Some(result) = ofrep_cache.get(index).cloned()
    {
        return send_result(exchange, &result, accepts_gzip);
    }
    out.clear();
    write_all(environment, role, evaluation, &settings.base_path, out);
    if let ResultLookup::Admit(hash) = lookup
        && let Some(result) = cacheable(out)
    {
        let result = Rc::new(result);
        ofrep_cache.insert(key, hash, result.clone(), result.heap_bytes());
        return send_result(exchange, &result, accepts_gzip);
    }
    let is_gzip = out.len() >= COMPRESS_BYTES_MIN && accepts_gzip;
    let etag = etag(out);
    if !add_validators(exchange, EntityTag::new(&etag, is_gzip))? {
        exchange.send_scratch_body(Status(200));
    }
    Ok(())
}

/// Evaluates the context, with the kept traits of its identity below it.
fn evaluate_with(
    identity: &Identity<'_>,
    scope: Scope<'_>,
    kept: Option<&SharedView>,
    evaluation: &mut EvaluationScratch,
) {
    let Scope { environment, role, .. } = scope;
    let program = environment.program();
    match kept {
        None => evaluate(program, &trusted_identity(environment, role, identity), evaluation),
        Some(view) => {
            let kept = view.borrow();
            let traits = with_context(identity, scope, &kept);
            evaluate(program, &Identity { traits: &traits, ..*identity }, evaluation);
        }
    }
}

/// The entity tag of a response, with its quotes.
fn etag(body: &[u8]) -> String {
    format!("\"{}\"", hex(&Sha256::digest(body)[..12]))
}

/// The result for the cache. `None` if it is too small or too large for it, or the compressor fails.
fn cacheable(body: &[u8]) -> Option<OfrepResult> {
    if !(COMPRESS_BYTES_MIN..=CACHED_RESULT_BYTES_MAX).contains(&body.len()) {
        return None;
    }
    let gzip = CompressedTail::new(body)?.into_member();
    Some(OfrepResult { body: body.into(), gzip, etag: etag(body).into() })
}

/// Adds the headers of a response with this entity tag. `true`: 304 was sent instead.
fn add_validators<'a>(exchange: &mut Exchange<'a>, etag: EntityTag<'_>) -> Result<bool, ApiError<'a>> {
    exchange.vary_by_key();
    exchange.add_headers(PRIVATE_NO_CACHE);
    etag.append(&mut exchange.scratch.headers);
    exchange.is_not_modified(Some(etag), None)
}

fn send_result<'a>(
    exchange: &mut Exchange<'a>,
    result: &OfrepResult,
    is_gzip: bool,
) -> Result<(), ApiError<'a>> {
    if add_validators(exchange, EntityTag::new(&result.etag, is_gzip))? {
        return Ok(());
    }
    if is_gzip {
        exchange.add_headers(CONTENT_ENCODING_GZIP);
    }
    let body = if is_gzip { &result.gzip } else { &result.body };
    exchange.send(Status(200), Some(ContentType::Json), Body::Copy(body));
    Ok(())
}

/// Parses the context and calls `then` with its identity.
fn with_identity<R>(body: &[u8], then: impl FnOnce(&Identity<'_>) -> R) -> Result<R, ContextError> {
    let body = json_value(body).map_err(|_| NOT_JSON)?;
    let PyValue::Dict(body) = body.root() else { return Err(NO_CONTEXT) };
    let Some(PyValue::Dict(context)) = body.get("context") else { return Err(NO_CONTEXT) };
    // Of members of one name the last one counts, as of traits in an evaluation. Only a last one that is
    // not a trait must hide those before it.
    let mut members = ContextMembers::read(context.written(), context.len());
    let identifier = match members.targeting_key {
        None | Some(PyValue::Null) => return Err(NO_TARGETING_KEY),
        Some(PyValue::Text(identifier)) => identifier.text,
        Some(_) => return Err(TARGETING_KEY_TYPE),
    };
    if !is_within_length(identifier) {
        return Err(TARGETING_KEY_LENGTH);
    }
    if members.has_nested {
        members = ContextMembers::read(context.members().into_iter(), context.len());
    }
    if members.has_long_text {
        return Err(VALUE_TOO_LONG);
    }
    Ok(then(&Identity { identifier, traits: &members.traits }))
}

/// The members of a context, read in one pass: there may be a hundred thousand.
struct ContextMembers<'d> {
    targeting_key: Option<PyValue<'d>>,
    traits: Vec<Trait<'d>>,
    /// Whether there are lists or objects, which are not traits.
    has_nested: bool,
    has_long_text: bool,
}

impl<'d> ContextMembers<'d> {
    fn read(written: impl Iterator<Item = (&'d str, PyValue<'d>)>, count: usize) -> Self {
        let traits = Vec::with_capacity(count);
        let mut members = Self { targeting_key: None, traits, has_nested: false, has_long_text: false };
        for (key, value) in written {
            let is_key = key == "targetingKey";
            if is_key {
                members.targeting_key = Some(value);
            }
            match trait_value(value) {
                Some(_) if is_key => {}
                Some(value) => {
                    let is_long = matches!(value, TraitValue::Text(text) if !is_within_length(text));
                    members.has_long_text |= is_long;
                    members.traits.push(Trait { key, value });
                }
                None => members.has_nested = true,
            }
        }
        members
    }
}

/// `None` for a list or an object.
fn trait_value(value: PyValue<'_>) -> Option<TraitValue<'_>> {
    Some(match value {
        PyValue::Null => TraitValue::Null,
        PyValue::Bool(value) => TraitValue::Bool(value),
        PyValue::Int(digits) => integer(digits),
        PyValue::Float(number) => TraitValue::Float(number),
        PyValue::Text(text) => TraitValue::Text(text.text),
        PyValue::List(_) | PyValue::Dict(_) => return None,
    })
}

fn write_all(
    environment: &Environment,
    role: Role,
    evaluation: &EvaluationScratch,
    base_path: &str,
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(b"{\"flags\":[");
    for (index, flag) in results(environment.program(), role, evaluation).enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write(&flag, out);
    }
    out.extend_from_slice(b"],\"eventStreams\":[{\"type\":\"sse\",\"endpoint\":{\"requestUri\":");
    let key = path_segment(environment.client_side_key());
    write::string(&format!("{base_path}/ofrep/v1/environments/{key}/stream"), out);
    out.extend_from_slice(b"},\"inactivityDelaySec\":");
    out.extend_from_slice(INACTIVITY_SECONDS.as_bytes());
    out.extend_from_slice(b"}]}");
}

/// Appends one flag as a successful evaluation.
fn write(flag: &Flag<'_>, out: &mut Vec<u8>) {
    let is_enabled = flag.enabled == "true";
    out.extend_from_slice(b"{\"key\":");
    write::string(flag.name, out);
    out.extend_from_slice(b",\"reason\":\"");
    // The text after the semicolon names segments and weights, which OFREP clients must not read.
    let reason = flag.reason.split(';').next().unwrap_or_default();
    out.extend_from_slice(if is_enabled { reason.as_bytes() } else { b"DISABLED" });
    out.push(b'"');
    let value = match (flag.value, is_enabled) {
        ("null", true) => Some("true"),
        ("null", false) => Some("false"),
        (value, true) => Some(value),
        (_, false) => None,
    };
    if let Some(value) = value {
        out.extend_from_slice(b",\"value\":");
        out.extend_from_slice(value.as_bytes());
    }
    out.extend_from_slice(b",\"variant\":");
    write_variant(flag, out);
    out.extend_from_slice(match is_enabled {
        true => b",\"metadata\":{\"enabled\":true",
        false => b",\"metadata\":{\"enabled\":false",
    });
    if let Some(metadata) = flag.metadata {
        write_experiment(metadata, out);
    }
    out.extend_from_slice(b"}}");
}

/// The variant is optional in the protocol, but without one the Python and Ruby providers fail and return
/// the application's default, so every flag has one (docs/sdks.md).
fn write_variant(flag: &Flag<'_>, out: &mut Vec<u8>) {
    match flag.variant {
        "null" if flag.has_variants => out.extend_from_slice(b"\"control\""),
        "null" => out.extend_from_slice(b"\"default\""),
        text if text.starts_with('"') => out.extend_from_slice(text.as_bytes()),
        // The document has a key that is not a string.
        other => write::string(other, out),
    }
}

/// Appends the members of `metadata.experiment` that the protocol allows: its metadata is flat and holds
/// booleans, numbers and strings.
fn write_experiment(metadata: &str, out: &mut Vec<u8>) {
    let at = raw_json::DocumentPath::ROOT;
    let experiment =
        raw_json::members(metadata, &at, ["experiment"]).ok().and_then(|[experiment]| experiment);
    let names = ["id", "name", "in_experiment"];
    let Some(Ok(values)) = experiment.map(|experiment| raw_json::members(experiment, &at, names)) else {
        return;
    };
    for (name, value) in names.iter().zip(values) {
        let Some(value) = value.filter(|raw| *raw != "null" && !raw.starts_with(['{', '['])) else {
            continue;
        };
        out.extend_from_slice(b",\"experiment.");
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"\":");
        out.extend_from_slice(value.as_bytes());
    }
}
