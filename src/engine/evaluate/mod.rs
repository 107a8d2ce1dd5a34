//! Which value each feature has for one identity. Pure: no HTTP, no JSON text, no clock.
//!
//! In: a compiled [`Program`] and an [`Identity`]. Out: for each feature the
//! winning state and why, in a [`EvaluationScratch`] that the caller owns. Rules: compatibility.md 5.
//! Invariant: the same input gives the same output on every machine; plain input allocates nothing.
pub mod context;
pub mod hashing;
pub mod in_list;
mod md5x8;
pub mod operators;
mod prefilter;
pub mod run;

use crate::engine::program::Program;
use crate::step_budget::RequestBudget;

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

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    pub identifier: &'a str,
    pub traits: &'a [Trait<'a>],
}

/// Room for one evaluation, kept by the caller from request to request. It holds the results of
/// the last one, which `encode::flags` reads.
#[derive(Debug, Default)]
pub struct EvaluationScratch {
    room: run::EvaluationState,
}

impl EvaluationScratch {
    /// Where conditions read flags: whether each of the program's segments matched. Elsewhere it says
    /// nothing, as segments are only asked while it matters.
    pub fn matched(&self) -> &[bool] {
        &self.room.matched
    }

    /// Where conditions read flags: the features that they read, in the order in which they were
    /// resolved; one that is in a cycle is not among them.
    pub fn resolved_order(&self) -> &[u32] {
        &self.room.resolved_order
    }

    /// The slots of the conditions that ran out of steps in the last evaluation.
    pub fn cut_slots(&self) -> &[u32] {
        &self.room.cut_slots
    }

    /// What the last request spent.
    pub fn budget(&self) -> &RequestBudget {
        &self.room.budget
    }

    /// Per feature the output that won, as an index into the program's; [`run::CYCLIC`] may be set.
    pub fn outputs(&self) -> &[u32] {
        &self.room.outputs
    }

    /// As bits: the features whose output is not the first of their own. Where conditions read flags
    /// it says nothing.
    pub fn changed(&self) -> &[u64] {
        &self.room.changed
    }
}

/// Evaluates every feature of `program` for `identity` into `scratch`, with the budget of a request
/// of its own.
pub fn evaluate(program: &Program, identity: &Identity<'_>, scratch: &mut EvaluationScratch) {
    evaluate_on(program, Some(identity), None, scratch);
}

/// As [`evaluate`], but without the identity's overrides: what core does for `?transient=`
/// (compatibility.md 6.4).
pub fn evaluate_without_overrides(
    program: &Program,
    identity: &Identity<'_>,
    scratch: &mut EvaluationScratch,
) {
    scratch.room.budget = RequestBudget::default();
    run::run(program, Some(identity), None, false, &mut scratch.room);
}

/// As [`evaluate`], for a further identity of the same request: with what is left of its budget.
pub fn evaluate_next(program: &Program, identity: &Identity<'_>, scratch: &mut EvaluationScratch) {
    run::run(program, Some(identity), None, true, &mut scratch.room);
}

/// As [`evaluate`], on a program: with a key of the identity's own (`$.identity.key`, the seed of
/// splits), or without an identity at all, which is what `/flags/` answers.
pub fn evaluate_on(
    program: &Program,
    identity: Option<&Identity<'_>>,
    key: Option<&str>,
    scratch: &mut EvaluationScratch,
) {
    scratch.room.budget = RequestBudget::default();
    run::run(program, identity, key, true, &mut scratch.room);
}
