//! Pages that are the same for everyone: the OpenAPI document, a page that shows it, the demo's.
//!
//! In: nothing of the request. Out: a file of this program. Invariant: what the document
//! promises is what the routes do; `make sdk` holds them to each other.
use crate::demo;
use crate::handlers::{Exchange, Scratch};
use crate::http::{Body, ContentType, Status};

const OPENAPI: &[u8] = include_bytes!("openapi.json");
const DOCS: &[u8] = include_bytes!("docs.html");

/// The same for every caller until another release is started. `Origin` because a cache must not give a
/// script the answer that was made without CORS fields.
const CACHE_LINES: &[u8] = b"vary: Accept-Encoding, Origin\r\ncache-control: public, max-age=300\r\n";

/// `/openapi.json`.
pub fn openapi(exchange: &mut Exchange<'_>, desk: &mut Scratch) {
    desk.lines.extend_from_slice(CACHE_LINES);
    exchange.send_compressible(desk, Status(200), OPENAPI);
}

/// `/docs`.
pub fn docs(exchange: &mut Exchange<'_>, desk: &mut Scratch) {
    desk.lines.extend_from_slice(CACHE_LINES);
    exchange.send(desk, Status(200), Some(ContentType::Html), Body::Copy(DOCS));
}

/// `/demo/` and what it loads, where the demo is served.
pub fn demo(exchange: &mut Exchange<'_>, file: &[u8], desk: &mut Scratch) {
    let (content_type, body) = match file {
        b"" if exchange.settings.serves_demo => (ContentType::Html, demo::PAGE),
        b"flagsmith.js" if exchange.settings.serves_demo => (ContentType::JavaScript, demo::SDK),
        _ => return exchange.refuse_path(desk),
    };
    desk.lines.extend_from_slice(CACHE_LINES);
    exchange.send(desk, Status(200), Some(content_type), Body::Copy(body.as_bytes()));
}
