//! Pages that are the same for everyone: the OpenAPI document, and a page that shows it.
//!
//! In: nothing of the request. Out: a file of this program. Invariant: what the document
//! promises is what the routes do; `make sdk` holds them to each other.
use super::{Desk, Exchange};
use crate::http::{Body, ContentType, Status};

const OPENAPI: &[u8] = include_bytes!("openapi.json");
const DOCS: &[u8] = include_bytes!("docs.html");

/// `/openapi.json`.
pub fn openapi(exchange: &mut Exchange<'_>, desk: &mut Desk) {
    exchange.vary(desk);
    exchange.send_compressible(desk, OPENAPI);
}

/// `/docs`.
pub fn docs(exchange: &mut Exchange<'_>, desk: &mut Desk) {
    exchange.vary(desk);
    exchange.send(desk, Status(200), Some(ContentType::Html), Body::Copy(DOCS));
}
