//! `GET /api/v1/environment-document/`: the whole document, for SDKs that evaluate locally.
//!
//! In: a server-side key. Out: the document with its secrets left out (differences.md 28).
//! Invariant: a client-side key is answered like an unknown one (differences.md 1), since the
//! document tells segments, overrides and features that browsers must not see.
use crate::handlers::exchange::PRIVATE_NO_CACHE;
use crate::handlers::{Exchange, Scratch};

/// Answers with the document, or 304.
pub fn answer(exchange: &mut Exchange<'_>, desk: &mut Scratch) {
    match exchange.open_as_server() {
        Ok(environment) => exchange.send_ready(desk, environment, environment.document(), PRIVATE_NO_CACHE),
        Err(denied) => exchange.deny(desk, denied),
    }
}
