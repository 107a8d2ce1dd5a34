//! `GET /api/v1/environment-document/`: the whole document, for SDKs that evaluate flags locally.
//!
//! Secrets are removed (differences.md 28). A client-side key gets the response to an unknown key
//! (differences.md 1), because the document shows segments, overrides and server-only features.
use crate::handlers::errors::ApiError;
use crate::handlers::exchange::{Exchange, PRIVATE_NO_CACHE};

pub fn get<'a>(exchange: &mut Exchange<'a>) -> Result<(), ApiError<'a>> {
    let document = exchange.open_as_server()?;
    exchange.send_ready(document, document.environment.document(), PRIVATE_NO_CACHE)
}
