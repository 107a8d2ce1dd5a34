//! The identifier of an identity that came without one, as Flagsmith core makes it.
//!
//! In: the traits that were sent. Out: the SHA-256, in hex, of all keys and values in the order
//! of their keys, or a random UUID's digits if no trait was sent (compatibility.md 2.7, differences.md 13).
//! Invariant: the same traits give the same identifier here, in core, and on every replica.
use sha2::{Digest, Sha256};

use crate::engine::evaluate::{Trait, TraitValue};
use crate::json::hex::hex;
use crate::python::number::float_str;

/// The identifier for these traits. Null ones do not count, but a list of them alone is not
/// "no traits": as in core, it gives the digest of nothing.
pub fn identifier(traits: &[Trait<'_>]) -> String {
    if traits.is_empty() {
        return random();
    }
    let mut sorted: Vec<&Trait<'_>> = traits.iter().collect();
    sorted.sort_by_key(|item| item.key);
    let mut digest = Sha256::new();
    for item in sorted {
        if let Some(text) = text(item.value) {
            digest.update(item.key);
            digest.update(text);
        }
    }
    hex(&digest.finalize())
}

/// Python's `str` of a trait's value.
fn text(value: TraitValue<'_>) -> Option<String> {
    Some(match value {
        TraitValue::Null => return None,
        TraitValue::Bool(true) => "True".to_owned(),
        TraitValue::Bool(false) => "False".to_owned(),
        TraitValue::Int(number) => number.to_string(),
        TraitValue::BigInt(text) | TraitValue::Text(text) => text.to_owned(),
        TraitValue::Float(number) => float_str(number),
    })
}

/// `uuid.uuid4().hex`.
fn random() -> String {
    let mut bytes = [0; 16];
    if getrandom::fill(&mut bytes).is_err() {
        // Without a random source all such identities share one bucket, which is still an answer.
        bytes = [0; 16];
    }
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    hex(&bytes)
}
