//! The body of a request before its route reads it: who may have it inflated, and how much of it is judged.
//!
//! In: the body as sent, its coding, the caller's key. Out: the plain body, or an answer. Invariant: for a
//! caller without a valid key nothing is inflated, and no more than
//! `limits::UNKNOWN_CALLER_BODY_BYTES_MAX` bytes are judged (differences.md 39).
use crate::handlers::errors::AccessError;
use crate::handlers::{Exchange, Scratch, bulk, identities};
use crate::http::route::Route;
use crate::http::{Coding, Gunzip, Method, ParseError};
use crate::identity::{IdentityError, is_json, validation_errors};
use crate::limits::UNKNOWN_CALLER_BODY_BYTES_MAX;
use crate::python::json::PyValue;

/// Whether the route reads a body that comes with this method.
pub fn is_read_by(route: Route, method: Method) -> bool {
    match route {
        Route::Identities => method == Method::Post,
        Route::Analytics
        | Route::AnalyticsV2
        | Route::BulkIdentities
        | Route::Traits
        | Route::OfrepFlags
        | Route::OfrepFlag
        | Route::Explain => true,
        _ => false,
    }
}

/// The plain body; `None`: the request is answered.
pub fn plain<'b>(
    exchange: &mut Exchange<'_>,
    sent: &'b mut [u8],
    coding: Coding,
    gunzip: &'b mut Gunzip,
    desk: &mut Scratch,
) -> Option<&'b mut [u8]> {
    let is_coded = coding != Coding::Identity && !sent.is_empty();
    if !is_coded && sent.len() <= UNKNOWN_CALLER_BODY_BYTES_MAX {
        exchange.outcome.body_bytes = sent.len();
        return Some(sent);
    }
    if let Err(denied) = caller(exchange) {
        let refusal = if is_coded { None } else { refusal(exchange, sent) };
        match refusal {
            Some(refusal) => exchange.send_refusal(desk, &refusal),
            None => exchange.deny(desk, denied),
        }
        return None;
    }
    let decoded = match coding {
        _ if !is_coded => Ok(sent),
        Coding::Gzip => gunzip.decode(sent),
        Coding::Identity | Coding::Unsupported => Err(ParseError::UnsupportedCoding),
    };
    match decoded {
        Ok(body) => {
            exchange.outcome.body_bytes = body.len();
            Some(body)
        }
        Err(reject) => {
            exchange.reject(desk, reject);
            None
        }
    }
}

/// Whether the key is one that the route takes. A missing document is no fault of the caller's.
fn caller<'a>(exchange: &mut Exchange<'a>) -> Result<(), AccessError<'a>> {
    let before = exchange.outcome;
    let opened = match before.route {
        Route::OfrepFlags | Route::OfrepFlag => exchange.open_with_any_key().map(drop),
        Route::Explain => exchange.open_as_server().map(drop),
        _ => exchange.open().map(drop),
    };
    // Who opened what is noted only once the body is known to be good.
    exchange.outcome = before;
    match opened {
        Err(AccessError::NoDocument) => Ok(()),
        opened => opened,
    }
}

/// What the first bytes of a plain body are refused for, where the body is judged before the key.
fn refusal(exchange: &mut Exchange<'_>, sent: &[u8]) -> Option<IdentityError> {
    let judge: fn(PyValue<'_>) -> Result<(), IdentityError> = match exchange.outcome.route {
        Route::Identities | Route::Explain => identities::judge,
        Route::BulkIdentities => bulk::judge,
        Route::Traits => bulk::judge_trait,
        // The key comes first.
        _ => return None,
    };
    let first = &sent[..sent.len().min(UNKNOWN_CALLER_BODY_BYTES_MAX)];
    exchange.outcome.body_bytes = first.len();
    validation_errors::prefix_refusal(first, is_json(exchange.fields.content_type), judge)
}
