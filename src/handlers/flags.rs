//! `GET /api/v1/flags/`: the flags of the environment, without an identity.
//!
//! In: the key and `?feature=`. Out: the ready body of the key's role, or one flag's object.
//! Invariant: nothing is evaluated here; the bodies were made when the document was compiled.
use crate::handlers::exchange::NO_CACHE;
use crate::handlers::{Exchange, Scratch};
use crate::http::Status;
use crate::identity::query;

/// Answers with all flags, or with the one that is asked for.
pub fn answer(exchange: &mut Exchange<'_>, query: &[u8], desk: &mut Scratch) {
    let (environment, role) = match exchange.open() {
        Ok(opened) => opened,
        Err(denied) => return exchange.deny(desk, denied),
    };
    match query::parameter(query, "feature") {
        Some(feature) if !feature.is_empty() => match environment.flag(role, &feature) {
            Some(flag) => exchange.send_dated(desk, environment, flag),
            None => {
                // A cache may keep a 404 that does not say otherwise, and hand it to other keys.
                exchange.vary_by_key(desk);
                desk.lines.extend_from_slice(NO_CACHE);
                let message = format!("feature '{feature}' not found");
                exchange.refuse(desk, Status(404), "not_found", &message);
            }
        },
        _ => exchange.send_ready(desk, environment, environment.flags(role), NO_CACHE),
    }
}
