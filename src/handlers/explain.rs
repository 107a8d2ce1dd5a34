//! `POST /proxy/explain/`: why each flag has its value for one identity.
//!
//! In: a body as `POST identities/` takes it, and `?feature=` for one flag alone. Out: the
//! explanation as JSON. Invariant: for server keys alone, since it shows the rules of segments (401
//! otherwise, as for the environment document). It allocates: support asks it, not an SDK.
use crate::engine::evaluate::Identity;
use crate::engine::trace::explain;
use crate::handlers::{Exchange, Scratch};
use crate::http::{Body, ContentType, Status};
use crate::identity::{IdentityReader, query};

pub(super) fn answer(
    exchange: &mut Exchange<'_>,
    query: &[u8],
    body: &mut [u8],
    reader: &mut IdentityReader,
    desk: &mut Scratch,
) {
    let feature = query::parameter(query, "feature").filter(|feature| !feature.is_empty());
    let content_type = exchange.fields.content_type;
    reader.read(body, content_type, |sent| match sent {
        Ok(sent) => respond(exchange, &sent.identity, feature.as_deref(), desk),
        Err(refusal) => exchange.send_refusal(desk, &refusal),
    });
}

fn respond(exchange: &mut Exchange<'_>, identity: &Identity<'_>, feature: Option<&str>, desk: &mut Scratch) {
    let environment = match exchange.open_as_server() {
        Ok(environment) => environment,
        Err(denied) => return exchange.deny(desk, denied),
    };
    if let Some(feature) = feature.filter(|name| environment.program().feature(name).is_none()) {
        exchange.vary(desk);
        return exchange.refuse(desk, Status(404), "not_found", &format!("feature '{feature}' not found"));
    }
    let found = explain(environment.program(), &environment.document().plain, Some(identity), feature).ok();
    let body = found.and_then(|found| serde_json::to_vec(&found).ok());
    desk.lines.extend_from_slice(b"cache-control: no-store\r\n");
    exchange.vary(desk);
    match body {
        Some(body) => exchange.send(desk, Status(200), Some(ContentType::Json), Body::Copy(&body)),
        // The document was read when it was compiled, so it can be read again.
        None => exchange.refuse(desk, Status(500), "error", "the document cannot be read again"),
    }
}
