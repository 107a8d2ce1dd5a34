//! OpenFeature's Remote Evaluation Protocol, version 0.3.0: one flag, or all of them.
//!
//! In: a context, whose `targetingKey` is the identifier and whose other plain members are
//! traits; the key as `X-Environment-Key`, `X-API-Key` or a bearer token. Out: value, reason,
//! variant, metadata. A flag without a value of its own is boolean, its value is whether it is enabled; a
//! disabled flag with a value has none here, so that the application's default counts.
//! Invariant: the same evaluation as `POST identities/`, in other words; lists and objects in a
//! context are not traits. All flags at once carry an entity tag over what was answered.
use sha2::{Digest, Sha256};

use crate::engine::document::raw_json;
use crate::engine::evaluate::{Identity, Trait, TraitValue, evaluate};
use crate::engine::program::Role;
use crate::engine::render::{Flag, results};
use crate::handlers::exchange::PRIVATE_NO_CACHE;
use crate::handlers::identities::seen;
use crate::handlers::validators::EntityTag;
use crate::handlers::{Exchange, Scratch};
use crate::http::{Body, ContentType, Status};
use crate::identity::errors::is_within_length;
use crate::identity::validation_errors::{integer, json_value};
use crate::json::hex::{hex, path_segment};
use crate::json::write;
use crate::limits::COMPRESS_BYTES_MIN;
use crate::python::json::PyValue;
use crate::snapshot::Environment;

/// Seconds of a hidden browser tab after which its stream should be closed: the protocol's own default.
const INACTIVITY_SECONDS: &str = "120";

/// What is wrong with a request, in OpenFeature's words.
struct OfrepError {
    code: &'static str,
    details: &'static str,
}

const NOT_JSON: OfrepError = OfrepError { code: "PARSE_ERROR", details: "the body is not JSON" };
const NO_CONTEXT: OfrepError = OfrepError {
    code: "INVALID_CONTEXT",
    details: "the body must be an object with an object named context",
};
const NO_TARGETING_KEY: OfrepError =
    OfrepError { code: "TARGETING_KEY_MISSING", details: "the context has no targetingKey" };
const VALUE_TOO_LONG: OfrepError =
    OfrepError { code: "INVALID_CONTEXT", details: "a string of the context is longer than 2000 characters" };
const TARGETING_KEY_TYPE: OfrepError =
    OfrepError { code: "INVALID_CONTEXT", details: "the context's targetingKey must be a string" };

const TARGETING_KEY_LENGTH: OfrepError = OfrepError {
    code: "INVALID_CONTEXT",
    details: "the context's targetingKey must have at most 2000 characters",
};

/// `POST /ofrep/v1/evaluate/flags/{key}`.
pub fn one(exchange: &mut Exchange<'_>, flag: &[u8], body: &[u8], desk: &mut Scratch) {
    let (environment, role) = match exchange.open_with_any_key() {
        Ok(opened) => opened,
        Err(denied) => return exchange.deny(desk, denied),
    };
    let flag = String::from_utf8_lossy(flag);
    let mut answer = Vec::new();
    exchange.vary(desk);
    let evaluated = with_identity(body, |identity| {
        evaluate(environment.program(), &seen(environment, role, identity), &mut desk.scratch);
        results(environment.program(), role, &desk.scratch)
            .find(|found| found.name == flag)
            .map(|found| write(&found, &mut answer))
    });
    let (status, failure) = match evaluated {
        Ok(Some(())) => (200, None),
        Ok(None) => (404, Some(("FLAG_NOT_FOUND", format!("Flag '{flag}' was not found")))),
        Err(failure) => (400, Some((failure.code, failure.details.to_owned()))),
    };
    if let Some((code, details)) = failure {
        answer.clear();
        write_failure(Some(&flag), code, &details, &mut answer);
    }
    exchange.send(desk, Status(status), Some(ContentType::Json), Body::Copy(&answer));
}

/// `POST /ofrep/v1/evaluate/flags`.
pub fn all(exchange: &mut Exchange<'_>, body: &[u8], desk: &mut Scratch) {
    let (environment, role) = match exchange.open_with_any_key() {
        Ok(opened) => opened,
        Err(denied) => return exchange.deny(desk, denied),
    };
    let mut answer = std::mem::take(&mut desk.body);
    answer.clear();
    let evaluated = with_identity(body, |identity| {
        evaluate(environment.program(), &seen(environment, role, identity), &mut desk.scratch);
        write_all(environment, role, desk, &mut answer);
    });
    match evaluated {
        Ok(()) => exchange.send_tagged(desk, &answer),
        Err(failure) => {
            write_failure(None, failure.code, failure.details, &mut answer);
            exchange.vary(desk);
            exchange.send(desk, Status(400), Some(ContentType::Json), Body::Copy(&answer));
        }
    }
    desk.body = answer;
}

/// Reads the context and hands the identity in it to `then`.
fn with_identity<R>(body: &[u8], then: impl FnOnce(&Identity<'_>) -> R) -> Result<R, OfrepError> {
    let body = json_value(body).map_err(|_| NOT_JSON)?;
    let PyValue::Dict(body) = body.root() else { return Err(NO_CONTEXT) };
    let Some(PyValue::Dict(context)) = body.get("context") else { return Err(NO_CONTEXT) };
    let identifier = match context.get("targetingKey") {
        None | Some(PyValue::Null) => return Err(NO_TARGETING_KEY),
        Some(PyValue::Text(identifier)) => identifier.text,
        Some(_) => return Err(TARGETING_KEY_TYPE),
    };
    if !is_within_length(identifier) {
        return Err(TARGETING_KEY_LENGTH);
    }
    let mut traits = Vec::new();
    for (name, value) in context.members() {
        match plain(value) {
            Some(TraitValue::Text(text)) if name != "targetingKey" && !is_within_length(text) => {
                return Err(VALUE_TOO_LONG);
            }
            Some(value) if name != "targetingKey" => traits.push(Trait { key: name, value }),
            _ => {}
        }
    }
    Ok(then(&Identity { identifier, traits: &traits }))
}

fn plain(value: PyValue<'_>) -> Option<TraitValue<'_>> {
    Some(match value {
        PyValue::Null => TraitValue::Null,
        PyValue::Bool(value) => TraitValue::Bool(value),
        PyValue::Int(digits) => integer(digits),
        PyValue::Float(number) => TraitValue::Float(number),
        PyValue::Text(text) => TraitValue::Text(text.text),
        PyValue::List(_) | PyValue::Dict(_) => return None,
    })
}

fn write_all(environment: &Environment, role: Role, desk: &Scratch, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"flags\":[");
    for (index, flag) in results(environment.program(), role, &desk.scratch).enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write(&flag, out);
    }
    out.extend_from_slice(b"],\"eventStreams\":[{\"type\":\"sse\",\"endpoint\":{\"requestUri\":");
    let key = path_segment(environment.client_side_key());
    write::string(&format!("/ofrep/v1/environments/{key}/stream"), out);
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
    // What comes after the semicolon names segments and weights, which are not for this protocol.
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

/// The protocol's variant is optional, but the Python and Ruby providers fail without one and then serve
/// the default of the code, so that every flag has one (docs/sdks.md).
fn write_variant(flag: &Flag<'_>, out: &mut Vec<u8>) {
    match flag.variant {
        "null" if flag.has_variants => out.extend_from_slice(b"\"control\""),
        "null" => out.extend_from_slice(b"\"default\""),
        text if text.starts_with('"') => out.extend_from_slice(text.as_bytes()),
        // An option's key that is no text in the document.
        other => write::string(other, out),
    }
}

/// Appends the members of `metadata.experiment` that the protocol can carry: its metadata is flat, and
/// holds booleans, numbers and strings.
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

fn write_failure(key: Option<&str>, code: &str, details: &str, out: &mut Vec<u8>) {
    out.push(b'{');
    if let Some(key) = key {
        out.extend_from_slice(b"\"key\":");
        write::string(key, out);
        out.push(b',');
    }
    out.extend_from_slice(b"\"errorCode\":");
    write::string(code, out);
    out.extend_from_slice(b",\"errorDetails\":");
    write::string(details, out);
    if key.is_some() {
        // The Java provider reads it before it looks at the status (docs/sdks.md).
        out.extend_from_slice(b",\"metadata\":{}");
    }
    out.push(b'}');
}

impl<'a> Exchange<'a> {
    /// As `open`, with the key in any of the protocol's places.
    pub(super) fn open_with_any_key(
        &mut self,
    ) -> Result<(&'a Environment, Role), super::errors::AccessError<'a>> {
        let bearer = self.fields.authorization.and_then(|value| {
            let (scheme, token) = value.split_at_checked(7)?;
            scheme.eq_ignore_ascii_case(b"bearer ").then_some(token.trim_ascii())
        });
        self.fields.environment_key = self.fields.environment_key.or(self.fields.api_key).or(bearer);
        self.open()
    }

    /// Sends 200 with an entity tag over the body, or 304 if the client has it.
    fn send_tagged(&mut self, desk: &mut Scratch, body: &[u8]) {
        let etag = format!("\"{}\"", hex(&Sha256::digest(body)[..12]));
        let is_gzip = body.len() >= COMPRESS_BYTES_MIN && self.accepts_gzip();
        self.vary_by_key(desk);
        desk.lines.extend_from_slice(PRIVATE_NO_CACHE);
        let etag = EntityTag::new(&etag, is_gzip);
        etag.append(&mut desk.lines);
        if !self.send_unless_wanted(desk, Some(etag), None) {
            self.send_compressible(desk, Status(200), body);
        }
    }
}
