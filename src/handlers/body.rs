//! Decodes a request body before its handler parses it.
//!
//! Bounds the work for callers without a valid key: their bodies are not decompressed, and at most
//! `limits::UNKNOWN_CALLER_BODY_BYTES_MAX` bytes are parsed (differences.md 39).
use crate::handlers::errors::{AccessError, ApiError};
use crate::handlers::exchange::Exchange;
use crate::handlers::{bulk, identities};
use crate::http::route::Route;
use crate::http::{Coding, Gunzip, Method, ParseError};
use crate::identity::{IdentityError, is_json, validation_errors};
use crate::limits::UNKNOWN_CALLER_BODY_BYTES_MAX;
use crate::python::json::PyValue;

/// Whether the route reads the body of a request with this method.
pub fn is_read_by(route: Route, method: Method) -> bool {
    match route {
        Route::Identities => method == Method::Post,
        Route::Analytics
        | Route::AnalyticsV2
        | Route::BulkIdentities
        | Route::Traits
        | Route::TraitsBulk
        | Route::TraitsIncrement
        | Route::Events
        | Route::OfrepFlags
        | Route::OfrepFlag
        | Route::Explain => true,
        _ => false,
    }
}

/// The decoded body. Checks the key first if the body is compressed or large.
pub fn decode<'a, 'b>(
    exchange: &mut Exchange<'a>,
    sent: &'b mut [u8],
    coding: Coding,
    gunzip: &'b mut Gunzip,
) -> Result<&'b mut [u8], ApiError<'a>> {
    let is_coded = coding != Coding::Identity && !sent.is_empty();
    if !is_coded && sent.len() <= UNKNOWN_CALLER_BODY_BYTES_MAX {
        exchange.outcome.body_bytes = sent.len();
        return Ok(sent);
    }
    if let Err(error) = check_key(exchange) {
        let prefix_error = if is_coded { None } else { validate_prefix(exchange, sent) };
        return Err(prefix_error.map_or(ApiError::Access(error), ApiError::Identity));
    }
    let decoded = match coding {
        _ if !is_coded => Ok(sent),
        Coding::Gzip => gunzip.decode(sent),
        Coding::Identity | Coding::Unsupported => Err(ParseError::UnsupportedCoding),
    };
    let body = decoded.map_err(ApiError::Body)?;
    exchange.outcome.body_bytes = body.len();
    Ok(body)
}

/// Whether the route accepts the key. A missing document is not the caller's error.
fn check_key<'a>(exchange: &mut Exchange<'a>) -> Result<(), AccessError<'a>> {
    let before = exchange.outcome;
    let opened = match before.route {
        Route::OfrepFlags | Route::OfrepFlag => exchange.open_with_any_key().map(drop),
        Route::Explain => exchange.open_as_server().map(drop),
        _ => exchange.open().map(drop),
    };
    // The handler records the environment, once the body has been validated.
    exchange.outcome = before;
    match opened {
        Err(AccessError::NoDocument) => Ok(()),
        opened => opened,
    }
}

/// The error that the first bytes of a plain body already determine, for routes that validate the body
/// before the key.
fn validate_prefix(exchange: &mut Exchange<'_>, sent: &[u8]) -> Option<IdentityError> {
    let validate: fn(PyValue<'_>) -> Result<(), IdentityError> = match exchange.outcome.route {
        Route::Identities | Route::Explain => identities::validate,
        Route::BulkIdentities => bulk::validate,
        Route::Traits => bulk::validate_trait,
        // These check the key first.
        _ => return None,
    };
    let first = &sent[..sent.len().min(UNKNOWN_CALLER_BODY_BYTES_MAX)];
    exchange.outcome.body_bytes = first.len();
    validation_errors::prefix_error(first, is_json(exchange.fields.content_type), validate)
}
