//! `POST bulk-identities/`: the flags of up to 100 identities in one request. The Go SDK uses it.
//!
//! The body is `{"data": [identity, ...]}`, each identity as in `POST identities/`; the response is an array
//! in the same order, as from the hosted Edge API (differences.md 20). One invalid identity fails the whole
//! request with 422 and its index in `loc`; more than `limits::BULK_IDENTITIES_MAX` identities are 400.
use crate::engine::evaluate::{EvaluationScratch, Identity};
use crate::handlers::errors::ApiError;
use crate::handlers::exchange::{Exchange, NO_STORE, PRIVATE_NO_CACHE};
use crate::handlers::identities;
use crate::handlers::identities::Selection;
use crate::handlers::kept::{Scope, check_size, commit, merge};
use crate::handlers::scratch::Scratch;
use crate::handlers::state::SharedView;
use crate::http::{Body, ContentType, Status};
use crate::identity::error_list::{ErrorList, ErrorLocation, LIST_TYPE, MODEL_TYPE};
use crate::identity::validation_errors::{BODY, RequestedIdentity};
use crate::identity::{IdentityError, ParsedIdentity, is_json, sent, transient, validation_errors};
use crate::limits::{BULK_ANSWER_BYTES_MAX, BULK_IDENTITIES_MAX};
use crate::python::json::PyValue;

const TOO_LARGE: &str = "the flags of these identities are too large for one response: send fewer identities";
const TOO_MUCH_WORK: &str =
    "evaluating these identities takes too much work for one request: send fewer per request";

/// Evaluates each identity of the list.
pub fn post<'a>(exchange: &mut Exchange<'a>, body: &[u8]) -> Result<(), ApiError<'a>> {
    let parsed = validation_errors::body_value(body, is_json(exchange.fields.content_type))?;
    let (requested, count) = parse(parsed.root())?;
    if count > BULK_IDENTITIES_MAX {
        return Err(too_many(count));
    }
    let (document, role) = exchange.open()?;
    let environment = &*document.environment;
    let Scratch { evaluation, body, .. } = &mut *exchange.scratch;
    body.clear();
    body.push(b'[');
    let mut first_exceeded = false;
    for (index, requested) in requested.iter().enumerate() {
        if index > 0 {
            body.push(b',');
        }
        let generated = requested.identifier.is_none().then(|| transient::identifier(&requested.traits));
        let identifier = requested.identifier.or(generated.as_deref()).unwrap_or_default();
        let identity = Identity { identifier, traits: &requested.traits };
        let parsed = ParsedIdentity { identity, echo: None, is_anonymous: requested.identifier.is_none() };
        // All identities share the budget of the request, which the first one starts.
        let selection = Selection { is_further: index > 0, ..Selection::default() };
        identities::evaluate_into(environment, role, &parsed, selection, evaluation, body);
        if index == 0 {
            first_exceeded = evaluation.budget().flag_cycles.is_exceeded();
        } else {
            check_bounds(evaluation, first_exceeded, body.len())?;
        }
    }
    body.push(b']');
    exchange.add_document_headers(document, PRIVATE_NO_CACHE);
    exchange.send_scratch_body(Status(200));
    Ok(())
}

/// As [`post`], with kept traits: each identity as in `POST identities/`. Nothing is kept if it is refused.
pub fn post_kept<'a>(
    exchange: &mut Exchange<'a>,
    body: &[u8],
    view: &SharedView,
) -> Result<(), ApiError<'a>> {
    let parsed = validation_errors::body_value(body, is_json(exchange.fields.content_type))?;
    let (sent, count) = parse_items(parsed.root(), sent::identity_at)?;
    if count > BULK_IDENTITIES_MAX {
        return Err(too_many(count));
    }
    let (document, role) = exchange.open()?;
    let environment = &*document.environment;
    let scope = Scope::new(exchange, environment, role);
    let Scratch { evaluation, body, .. } = &mut *exchange.scratch;
    body.clear();
    body.push(b'[');
    let (mut first_exceeded, mut writes) = (false, Vec::new());
    for (index, sent) in sent.iter().enumerate() {
        if index > 0 {
            body.push(b',');
        }
        let kept = view.borrow();
        let merged = merge(sent, scope, &kept);
        check_size(&merged, scope, &kept)?;
        let selection = Selection { is_further: index > 0, is_merged: true, ..Selection::default() };
        identities::evaluate_into(environment, role, &merged.parsed(), selection, evaluation, body);
        if index == 0 {
            first_exceeded = evaluation.budget().flag_cycles.is_exceeded();
        } else {
            check_bounds(evaluation, first_exceeded, body.len())?;
        }
        writes.push((merged.identifier.into_owned(), merged.write));
    }
    body.push(b']');
    for (identifier, write) in writes {
        commit(view, scope, &identifier, write);
    }
    exchange.vary_by_key();
    exchange.add_headers(NO_STORE);
    exchange.send_scratch_body(Status(200));
    Ok(())
}

fn too_many(count: usize) -> ApiError<'static> {
    let message = format!("data has {count} identities, at most {BULK_IDENTITIES_MAX} are answered");
    ApiError::BadRequest(message.into())
}

/// Checks the work and the response so far, of several identities. `first_exceeded`: the first identity
/// exceeded the steps for cycles of flags, so every request would, and is answered with what was evaluated.
fn check_bounds(
    evaluation: &EvaluationScratch,
    first_exceeded: bool,
    body_bytes: usize,
) -> Result<(), ApiError<'static>> {
    let budget = evaluation.budget();
    let is_cut = budget.flag_cycles.is_exceeded() && !first_exceeded;
    if budget.texts.is_exceeded() || is_cut {
        return Err(ApiError::BadRequest(TOO_MUCH_WORK.into()));
    }
    if body_bytes > BULK_ANSWER_BYTES_MAX {
        budget.texts.exhaust();
        return Err(ApiError::BadRequest(TOO_LARGE.into()));
    }
    Ok(())
}

/// Validates a body of `bulk-identities/`.
pub fn validate(body: PyValue<'_>) -> Result<(), IdentityError> {
    parse(body).map(drop)
}

/// Validates a body of `traits/`.
pub fn validate_trait(body: PyValue<'_>) -> Result<(), IdentityError> {
    echo(body).map(drop)
}

/// The requested identities, and how many there are. Those beyond `BULK_IDENTITIES_MAX` and one are not
/// validated, since the request is refused.
fn parse(body: PyValue<'_>) -> Result<(Vec<RequestedIdentity<'_>>, usize), IdentityError> {
    parse_items(body, validation_errors::identity_at)
}

/// As [`parse`], with the model of an identity.
fn parse_items<'b, T>(
    body: PyValue<'b>,
    identity_at: impl Fn(PyValue<'b>, &ErrorLocation<'_>, &mut ErrorList) -> T,
) -> Result<(Vec<T>, usize), IdentityError> {
    let mut errors = ErrorList::default();
    let (mut requested, mut count) = (Vec::new(), 0);
    let data = BODY.name("data");
    let PyValue::Dict(members) = body else {
        match body {
            PyValue::Null => errors.missing(&BODY, body),
            _ => errors.add(&MODEL_TYPE, &BODY, body),
        }
        return errors.into_result((requested, count));
    };
    match members.get("data") {
        None => errors.missing(&data, body),
        Some(PyValue::List(items)) => {
            count = items.len();
            // More are refused without reading the rest.
            for (index, item) in items.iter().take(BULK_IDENTITIES_MAX + 1).enumerate() {
                if errors.is_full() {
                    break;
                }
                requested.push(identity_at(item, &data.index(index), &mut errors));
            }
        }
        Some(other) => errors.add(&LIST_TYPE, &data, other),
    }
    errors.into_result((requested, count))
}

/// `POST traits/`: echoes one trait and stores nothing (differences.md 21).
pub fn post_trait<'a>(exchange: &mut Exchange<'a>, body: &[u8]) -> Result<(), ApiError<'a>> {
    let parsed = validation_errors::body_value(body, is_json(exchange.fields.content_type))?;
    let echo = echo(parsed.root())?;
    exchange.open_slot()?;
    exchange.vary();
    exchange.send(Status(200), Some(ContentType::Json), Body::Copy(&echo));
    Ok(())
}

fn echo(body: PyValue<'_>) -> Result<Vec<u8>, IdentityError> {
    let mut errors = ErrorList::default();
    let identity_path = BODY.name("identity");
    let mut echo = b"{\"identity\":{\"identifier\":".to_vec();
    if let PyValue::Null = body {
        errors.missing(&BODY, body);
        return errors.into_result(echo);
    }
    if let PyValue::Dict(members) = body {
        match members.get("identity") {
            None => errors.missing(&identity_path, body),
            Some(PyValue::Dict(identity)) => {
                let identifier =
                    validation_errors::identifier(identity, &identity_path.name("identifier"), &mut errors);
                crate::json::write::string(identifier.unwrap_or_default(), &mut echo);
            }
            Some(other) => errors.add(&MODEL_TYPE, &identity_path, other),
        }
    }
    let item = validation_errors::trait_at(body, &BODY, &mut errors);
    echo.extend_from_slice(b"},");
    if let Some(item) = item {
        let mut text = Vec::new();
        crate::identity::echo::write(&item, &mut text);
        echo.extend_from_slice(text.get(1..).unwrap_or_default());
    }
    errors.into_result(echo)
}
