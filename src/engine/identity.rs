//! An identity: an identifier and the traits that a client sent for it.

/// A trait's value as the client sent it, before coercion (compatibility.md 5.6).
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

/// One trait. Of several with the same key the last one counts (compatibility.md 5.1).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trait<'a> {
    pub key: &'a str,
    pub value: TraitValue<'a>,
}

/// The identity that flags are evaluated for.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    pub identifier: &'a str,
    pub traits: &'a [Trait<'a>],
}
