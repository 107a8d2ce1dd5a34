//! `POST /proxy/explain/`: why each flag has its value for one identity.
//!
//! Takes the body of `POST identities/`, and `?feature=` for one flag. Requires a server-side key, because
//! the explanation shows the rules of segments. Made for people, so it may allocate.
use std::borrow::Cow;

use crate::engine::evaluate::Identity;
use crate::engine::program::Role;
use crate::engine::trace::explain;
use crate::handlers::errors::ApiError;
use crate::handlers::exchange::Exchange;
use crate::handlers::kept::{Scope, merge};
use crate::handlers::state::SharedView;
use crate::http::{Body, ContentType, Status};
use crate::identity::{IdentityReader, query};

pub fn post<'a>(
    exchange: &mut Exchange<'a>,
    query: &'a [u8],
    body: &mut [u8],
    reader: &mut IdentityReader,
    kept: Option<&SharedView>,
) -> Result<(), ApiError<'a>> {
    let feature = query::parameter(query, "feature").filter(|feature| !feature.is_empty());
    let content_type = exchange.fields.content_type;
    if let Some(view) = kept {
        // The traits that an answer would have; nothing is kept of an explanation.
        return reader.read_sent(body, content_type, |sent| {
            let (sent, environment) = (sent?.into_full(), &*exchange.open_as_server()?.environment);
            let (scope, kept) = (Scope::new(exchange, environment, Role::Server), view.borrow());
            respond(exchange, &merge(&sent, scope, &kept).parsed().identity, feature)
        });
    }
    reader.read(body, content_type, |parsed| respond(exchange, &parsed?.identity, feature))
}

fn respond<'a>(
    exchange: &mut Exchange<'a>,
    identity: &Identity<'_>,
    feature: Option<Cow<'a, str>>,
) -> Result<(), ApiError<'a>> {
    let environment = &*exchange.open_as_server()?.environment;
    let program = environment.program();
    if let Some(feature) = feature.as_ref().filter(|name| program.feature(name).is_none()) {
        exchange.vary();
        return Err(ApiError::FeatureNotFound(feature.clone()));
    }
    let explanation =
        explain(program, &environment.document().plain, Some(identity), feature.as_deref()).ok();
    let body = explanation.and_then(|explanation| serde_json::to_vec(&explanation).ok());
    exchange.add_headers(b"cache-control: no-store\r\n");
    // The document was parsed when it was compiled, so this does not happen.
    let body = body.ok_or(ApiError::DocumentUnreadable)?;
    exchange.vary();
    exchange.send(Status(200), Some(ContentType::Json), Body::Copy(&body));
    Ok(())
}
