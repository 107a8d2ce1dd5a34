//! `GET /api/v1/environment-document/`: the whole document, for SDKs that evaluate flags locally.
//!
//! Secrets are removed (differences.md 28). A client-side key gets the response to an unknown key
//! (differences.md 1), because the document shows segments, overrides and server-only features. Another proxy
//! may get what changed since the document that it has (differences.md 70).
use crate::handlers::errors::ApiError;
use crate::handlers::exchange::{Exchange, PRIVATE_NO_CACHE};
use crate::http::compression::accepts_dcz;

pub fn get<'a>(exchange: &mut Exchange<'a>) -> Result<(), ApiError<'a>> {
    let document = exchange.open_as_server()?;
    let offer = &exchange.settings.delta_offer;
    exchange.add_headers(offer);
    let accepts_delta = !offer.is_empty() && accepts_dcz(exchange.fields.accept_encoding);
    match exchange.fields.available_dictionary.filter(|_| accepts_delta) {
        None => exchange.send_ready(document, document.environment.document(), PRIVATE_NO_CACHE),
        Some(available) => {
            document.environment.deltas().request();
            exchange.send_document_delta(document, available)
        }
    }
}
