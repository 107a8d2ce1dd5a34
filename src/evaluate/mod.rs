//! Which value each feature has for one identity. Pure: no HTTP, no JSON text, no clock.
//!
//! In: a compiled [`crate::snapshot::Environment`] and an [`Identity`]. Out: for each feature the
//! winning state and why, in a [`Scratch`] that the caller owns. Rules: wire.md 5.
//! Invariant: the same input gives the same output on every machine; plain input allocates nothing.
pub mod in_list;
pub mod jsonpath;
pub mod pattern;
pub mod percentage;
pub mod segment;
pub mod semver;
pub mod unicode;
pub mod value;

/// A trait's value as the client sent it, before coercion (wire.md 5.6).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TraitValue<'a> {
    Null,
    Bool(bool),
    Int(i64),
    /// An integer outside i64, as its decimal text.
    BigInt(&'a str),
    Float(f64),
    Text(&'a str),
}

/// One trait. Of several with the same key the last one counts (wire.md 5.1).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trait<'a> {
    pub key: &'a str,
    pub value: TraitValue<'a>,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    pub identifier: &'a str,
    pub traits: &'a [Trait<'a>],
}

/// Room for one evaluation, kept by the caller from request to request.
#[derive(Debug, Default)]
pub struct Scratch {}

/// Evaluates every feature of `environment` for `identity` into `scratch`.
pub fn evaluate(
    _environment: &crate::snapshot::Environment,
    _identity: &Identity<'_>,
    _scratch: &mut Scratch,
) {
    unimplemented!("engine")
}
