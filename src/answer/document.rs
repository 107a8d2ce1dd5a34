//! `GET /api/v1/environment-document/`: the whole document, for SDKs that evaluate locally.
//!
//! In: a server-side key. Out: the document with its secrets left out (differences.md 28).
//! Invariant: a client-side key is answered like an unknown one (differences.md 1), since the
//! document tells segments, overrides and features that browsers must not see.
use super::refusal::Denied;
use super::{Desk, Exchange};
use crate::snapshot::Role;

pub fn answer(exchange: &mut Exchange<'_>, desk: &mut Desk) {
    let opened = match (exchange.open(), exchange.fields.environment_key) {
        (Ok((_, Role::Client)), Some(key)) => Err(Denied::KeyUnknown(key)),
        (Err(Denied::NoDocument), Some(key)) if exchange.outcome.role == Some(Role::Client) => {
            Err(Denied::KeyUnknown(key))
        }
        (opened, _) => opened,
    };
    match opened {
        Ok((environment, _)) => exchange.send_ready(desk, environment, environment.document()),
        Err(denied) => exchange.deny(desk, denied),
    }
}
