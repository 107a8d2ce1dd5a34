//! `bulk-identities/`: the flags of up to a hundred identities at once (the Go SDK's).
//!
//! In: `{"data": [identity, ...]}`, each as in `POST identities/`. Out: an array of answers in
//! the same order. Invariant: one identity of the wrong shape refuses the whole request (422,
//! its place in `loc`); more than `limits::BULK_IDENTITIES_MAX` are 400. The answer is an array
//! because the hosted Edge API's is (differences.md 20).
use super::identities::{self, Selection};
use super::{Desk, Exchange};
use crate::evaluate::Identity;
use crate::http::{Body, ContentType, Status};
use crate::identity::detail::{self, Asked, Errors, LIST_TYPE, Loc, MODEL_TYPE};
use crate::identity::python_json::Value;
use crate::identity::{Refusal, Sent, is_json, transient};
use crate::limits::BULK_IDENTITIES_MAX;

const TOO_MUCH_WORK: &str =
    "evaluating these identities takes too much work for one request: send fewer at once";

/// Answers each identity of the list.
pub fn answer(exchange: &mut Exchange<'_>, body: &[u8], desk: &mut Desk) {
    let parsed = match detail::body_value(body, is_json(exchange.fields.content_type)) {
        Ok(parsed) => parsed,
        Err(refusal) => return exchange.send_refusal(desk, &refusal),
    };
    let asked = match read(&parsed) {
        Ok(asked) => asked,
        Err(refusal) => return exchange.send_refusal(desk, &refusal),
    };
    if asked.len() > BULK_IDENTITIES_MAX {
        let message =
            format!("data has {} identities, at most {BULK_IDENTITIES_MAX} are answered", asked.len());
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
        let sent = Sent { identity, echo: None, is_anonymous: asked.identifier.is_none() };
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

fn read(body: &Value) -> Result<Vec<Asked<'_>>, Refusal> {
    let mut errors = Errors::default();
    let mut asked = Vec::new();
    let loc = [Loc::Name("body")];
    let data = [Loc::Name("body"), Loc::Name("data")];
    match (body, detail::member(body, "data")) {
        (Value::Null, _) => errors.missing(&loc, body),
        (Value::Dict(_), None) => errors.missing(&data, body),
        (Value::Dict(_), Some(Value::List(items))) => {
            for (index, item) in items.iter().enumerate() {
                asked.push(detail::identity_at(item, &detail::within(&data, Loc::Index(index)), &mut errors));
            }
        }
        (Value::Dict(_), Some(other)) => errors.known(&LIST_TYPE, &data, other),
        _ => errors.known(&MODEL_TYPE, &loc, body),
    }
    errors.into_result(asked)
}

/// `POST traits/`: one trait, echoed; nothing is stored (differences.md 21).
pub fn single_trait(exchange: &mut Exchange<'_>, body: &[u8], desk: &mut Desk) {
    let read = detail::body_value(body, is_json(exchange.fields.content_type)).and_then(|body| echo(&body));
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

fn echo(body: &Value) -> Result<Vec<u8>, Refusal> {
    let mut errors = Errors::default();
    let loc = [Loc::Name("body")];
    let identity_loc = [Loc::Name("body"), Loc::Name("identity")];
    let mut echo = b"{\"identity\":{\"identifier\":".to_vec();
    match (body, detail::member(body, "identity")) {
        (Value::Null, _) => {
            errors.missing(&loc, body);
            return errors.into_result(echo);
        }
        (Value::Dict(_), None) => errors.missing(&identity_loc, body),
        (Value::Dict(_), Some(identity @ Value::Dict(_))) => {
            let loc = detail::within(&identity_loc, Loc::Name("identifier"));
            let identifier = detail::identifier(identity, &loc, &mut errors);
            crate::encode::json::string(identifier.unwrap_or_default(), &mut echo);
        }
        (Value::Dict(_), Some(other)) => errors.known(&MODEL_TYPE, &identity_loc, other),
        _ => {}
    }
    let item = detail::trait_at(body, &loc, &mut errors);
    echo.extend_from_slice(b"},");
    if let Some(item) = item {
        let mut text = Vec::new();
        crate::encode::traits::write(&item, &mut text);
        echo.extend_from_slice(text.get(1..).unwrap_or_default());
    }
    errors.into_result(echo)
}
