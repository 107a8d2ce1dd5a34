//! `GET /api/v1/flags/`: the flags of the environment, without an identity.
//!
//! Nothing is evaluated: the bodies were rendered when the document was compiled.
use crate::handlers::errors::ApiError;
use crate::handlers::exchange::{Exchange, NO_CACHE};
use crate::identity::query;

/// Sends all flags, or the one named by `?feature=`.
pub fn get<'a>(exchange: &mut Exchange<'a>, query: &'a [u8]) -> Result<(), ApiError<'a>> {
    let (document, role) = exchange.open()?;
    let feature = query::parameter(query, "feature").filter(|feature| !feature.is_empty());
    let Some(feature) = feature else {
        return exchange.send_ready(document, document.environment.flags(role), NO_CACHE);
    };
    let Some(flag) = document.environment.flag(role, &feature) else {
        // Caches may store a 404 without these headers, and reuse it for other keys.
        exchange.vary_by_key();
        exchange.add_headers(NO_CACHE);
        return Err(ApiError::FeatureNotFound(feature));
    };
    exchange.send_part(document, flag)
}
