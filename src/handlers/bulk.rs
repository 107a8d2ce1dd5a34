//! `bulk-identities/`: the flags of up to a hundred identities at once (the Go SDK's).
//!
//! In: `{"data": [identity, ...]}`, each as in `POST identities/`. Out: an array of answers in
//! the same order. Invariant: one identity of the wrong shape refuses the whole request (422,
//! its place in `loc`); more than `limits::BULK_IDENTITIES_MAX` are 400. The answer is an array
//! because the hosted Edge API's is (differences.md 20).
use crate::engine::evaluate::Identity;
use crate::handlers::identities::Selection;
use crate::handlers::{Exchange, Scratch, identities};
use crate::http::{Body, ContentType, Status};
use crate::identity::errors::{ErrorList, LIST_TYPE, MODEL_TYPE};
use crate::identity::validation_errors::{BODY, RequestedIdentity};
use crate::identity::{IdentityError, ParsedIdentity, is_json, transient, validation_errors};
use crate::limits::BULK_IDENTITIES_MAX;
use crate::python::json::PyValue;

const TOO_MUCH_WORK: &str =
    "evaluating these identities takes too much work for one request: send fewer at once";

/// Answers each identity of the list.
pub fn answer(exchange: &mut Exchange<'_>, body: &[u8], desk: &mut Scratch) {
    let parsed = match validation_errors::body_value(body, is_json(exchange.fields.content_type)) {
        Ok(parsed) => parsed,
        Err(refusal) => return exchange.send_refusal(desk, &refusal),
    };
    let (asked, count) = match read(parsed.root()) {
        Ok(read) => read,
        Err(refusal) => return exchange.send_refusal(desk, &refusal),
    };
    if count > BULK_IDENTITIES_MAX {
        let message = format!("data has {count} identities, at most {BULK_IDENTITIES_MAX} are answered");
        return exchange.refuse_shape(desk, &message);
    }
    let (environment, role) = match exchange.open() {
        Ok(opened) => opened,
        Err(denied) => return exchange.deny(desk, denied),
    };
    let mut body = std::mem::take(&mut desk.body);
    body.clear();
    body.push(b'[');
    for (index, asked) in asked.iter().enumerate() {
        if index > 0 {
            body.push(b',');
        }
        let made = asked.identifier.is_none().then(|| transient::identifier(&asked.traits));
        let identifier = asked.identifier.or(made.as_deref()).unwrap_or_default();
        let identity = Identity { identifier, traits: &asked.traits };
        let sent = ParsedIdentity { identity, echo: None, is_anonymous: asked.identifier.is_none() };
        // What is left of the budget that the first one began.
        let selection = Selection { is_further: index > 0, ..Selection::default() };
        identities::evaluate_into(environment, role, &sent, selection, desk, &mut body);
        if index > 0 && desk.scratch.budget().texts.is_exceeded() {
            desk.body = body;
            return exchange.refuse_shape(desk, TOO_MUCH_WORK);
        }
    }
    body.push(b']');
    identities::head(exchange, environment, desk);
    exchange.send_compressible(desk, Status(200), &body);
    desk.body = body;
}

/// What a body of `bulk-identities/` is refused for.
pub(super) fn judge(body: PyValue<'_>) -> Result<(), IdentityError> {
    read(body).map(drop)
}

/// What a body of `traits/` is refused for.
pub(super) fn judge_trait(body: PyValue<'_>) -> Result<(), IdentityError> {
    echo(body).map(drop)
}

/// The identities that are asked for, and how many; of more than are answered only those.
fn read(body: PyValue<'_>) -> Result<(Vec<RequestedIdentity<'_>>, usize), IdentityError> {
    let mut errors = ErrorList::default();
    let (mut asked, mut count) = (Vec::new(), 0);
    let data = BODY.name("data");
    let PyValue::Dict(members) = body else {
        match body {
            PyValue::Null => errors.missing(&BODY, body),
            _ => errors.known(&MODEL_TYPE, &BODY, body),
        }
        return errors.into_result((asked, count));
    };
    match members.get("data") {
        None => errors.missing(&data, body),
        Some(PyValue::List(items)) => {
            for (index, item) in items.iter().enumerate() {
                if errors.is_full() {
                    break;
                }
                let one = validation_errors::identity_at(item, &data.index(index), &mut errors);
                if count < BULK_IDENTITIES_MAX {
                    asked.push(one);
                }
                count += 1;
            }
        }
        Some(other) => errors.known(&LIST_TYPE, &data, other),
    }
    errors.into_result((asked, count))
}

/// `POST traits/`: one trait, echoed; nothing is stored (differences.md 21).
pub fn single_trait(exchange: &mut Exchange<'_>, body: &[u8], desk: &mut Scratch) {
    let read = validation_errors::body_value(body, is_json(exchange.fields.content_type))
        .and_then(|body| echo(body.root()));
    let echo = match read {
        Ok(echo) => echo,
        Err(refusal) => return exchange.send_refusal(desk, &refusal),
    };
    if let Err(denied) = exchange.open_slot() {
        return exchange.deny(desk, denied);
    }
    exchange.vary(desk);
    exchange.send(desk, Status(200), Some(ContentType::Json), Body::Copy(&echo));
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
            Some(other) => errors.known(&MODEL_TYPE, &identity_path, other),
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
