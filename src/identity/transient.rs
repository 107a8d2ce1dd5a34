//! The identifier of a transient identity, which was sent without one.
//!
//! As in Flagsmith core it is the SHA-256, in hex, of all keys and values in the order of the keys, or a
//! random UUID without traits (compatibility.md 2.7, differences.md 13). The same traits give the same
//! identifier in core and on every replica.
use sha2::{Digest, Sha256};

use crate::engine::evaluate::{Trait, TraitValue};
use crate::json::hex::hex;
use crate::python::number::float_str;
use crate::work;

/// Computes the identifier. Traits that are null are skipped; if all are null, it is the digest of nothing,
/// as in core.
pub fn identifier(traits: &[Trait<'_>]) -> String {
    if traits.is_empty() {
        return random();
    }
    work::count(traits.len());
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

/// Python's `str` of a trait value. `None` for null.
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
        // Without a random source all such identities share one bucket.
        bytes = [0; 16];
    }
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    hex(&bytes)
}
