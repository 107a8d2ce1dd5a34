//! The `flags` array of an identities answer.
use crate::evaluate::Scratch;
use crate::snapshot::{Environment, Role};

/// Appends the whole array for that role, in document order; only `feature` if it is given
/// (still in an array, differences.md 18).
pub fn write(
    _environment: &Environment,
    _role: Role,
    _results: &Scratch,
    _feature: Option<&str>,
    _out: &mut Vec<u8>,
) {
    unimplemented!("engine")
}
