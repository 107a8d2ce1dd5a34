//! Static files: the OpenAPI document, the page that renders it, the demo page; and the response to `/`.
//!
//! `make sdk` tests the routes against the OpenAPI document.
use crate::demo;
use crate::handlers::errors::ApiError;
use crate::handlers::exchange::{Exchange, NO_CACHE};
use crate::http::{Body, ContentType, Status};

/// The files are the same for every client and change only with the release. `Vary` names `Origin` because
/// a response stored without CORS headers must not be reused for a script of another origin.
const CACHE_HEADERS: &[u8] = b"vary: Accept-Encoding, Origin\r\ncache-control: max-age=300\r\n";

/// `GET /`: name, version and links, as JSON; in the demo a redirect to its page (differences.md 56).
pub fn root<'a>(exchange: &mut Exchange<'a>) -> Result<(), ApiError<'a>> {
    if exchange.settings.serves_demo {
        exchange.vary();
        exchange.add_headers(NO_CACHE);
        exchange.add_headers(exchange.settings.files.demo_location.as_bytes());
        exchange.send(Status(307), None, Body::Empty);
    } else {
        exchange.add_headers(CACHE_HEADERS);
        exchange.send(
            Status(200),
            Some(ContentType::Json),
            Body::Copy(exchange.settings.files.root.as_bytes()),
        );
    }
    Ok(())
}

/// `GET /openapi.json`.
pub fn openapi<'a>(exchange: &mut Exchange<'a>) -> Result<(), ApiError<'a>> {
    exchange.add_headers(CACHE_HEADERS);
    exchange.send_compressible(Status(200), exchange.settings.files.openapi.as_bytes());
    Ok(())
}

/// `GET /docs`.
pub fn docs<'a>(exchange: &mut Exchange<'a>) -> Result<(), ApiError<'a>> {
    exchange.add_headers(CACHE_HEADERS);
    exchange.send(Status(200), Some(ContentType::Html), Body::Copy(exchange.settings.files.docs.as_bytes()));
    Ok(())
}

/// `GET /demo/` and the script that it loads, if the demo environment is configured.
pub fn demo<'a>(exchange: &mut Exchange<'a>, file: &[u8]) -> Result<(), ApiError<'a>> {
    let (content_type, body) = match file {
        b"" if exchange.settings.serves_demo => (ContentType::Html, exchange.settings.files.demo.as_str()),
        b"flagsmith.js" if exchange.settings.serves_demo => (ContentType::JavaScript, demo::SDK),
        _ => return Err(ApiError::PathNotFound),
    };
    exchange.add_headers(CACHE_HEADERS);
    exchange.send(Status(200), Some(content_type), Body::Copy(body.as_bytes()));
    Ok(())
}
