//! Evaluation: the state that each feature of a program has for one identity (compatibility.md 5).
//!
//! Pure: no I/O, no clock, and the same input gives the same output on every machine. Results are written to
//! an [`EvaluationScratch`] that the caller owns and reuses, so that plain input allocates nothing.
pub mod context;
mod evaluator;
mod flag_dependencies;
pub mod hashing;
mod md5x8;
pub mod operators;
mod prefilter;
mod scratch;

use crate::engine::evaluate::evaluator::Evaluator;
use crate::engine::evaluate::prefilter::prefilter;
pub use crate::engine::evaluate::scratch::EvaluationScratch;
pub use crate::engine::identity::{Identity, Trait, TraitValue};
use crate::engine::jsonpath::Subject;
use crate::engine::program::Program;
use crate::step_budget::RequestBudget;

/// Evaluates every feature of `program` for `identity`, with the budget of a new request.
pub fn evaluate(program: &Program, identity: &Identity<'_>, scratch: &mut EvaluationScratch) {
    evaluate_on(program, Some(identity), None, scratch);
}

/// As [`evaluate`], but ignores identity overrides, as core does for `?transient=` (compatibility.md 6.4).
pub fn evaluate_without_overrides(
    program: &Program,
    identity: &Identity<'_>,
    scratch: &mut EvaluationScratch,
) {
    scratch.budget = RequestBudget::default();
    run(program, Some(identity), None, false, scratch);
}

/// As [`evaluate`], for a further identity of the same request: continues with what is left of its budget.
pub fn evaluate_next(program: &Program, identity: &Identity<'_>, scratch: &mut EvaluationScratch) {
    run(program, Some(identity), None, true, scratch);
}

/// As [`evaluate`], but with an explicit identity key (`$.identity.key`, the seed of percentage splits), or
/// without an identity, as `/flags/` is answered.
pub fn evaluate_on(
    program: &Program,
    identity: Option<&Identity<'_>>,
    key: Option<&str>,
    scratch: &mut EvaluationScratch,
) {
    scratch.budget = RequestBudget::default();
    run(program, identity, key, true, scratch);
}

/// Evaluates into `scratch`. `key` replaces the identity's key if it is given.
fn run(
    program: &Program,
    identity: Option<&Identity<'_>>,
    key: Option<&str>,
    with_overrides: bool,
    scratch: &mut EvaluationScratch,
) {
    scratch.reset_results(program);
    if program.is_constant() {
        return;
    }
    scratch.begin(program);
    scratch.values.begin(program, identity, key);
    if let Some(identity) = identity.filter(|_| with_overrides) {
        scratch.apply_overrides(program, identity.identifier);
    }
    let is_prefiltered = match program.flags {
        None => {
            let budget = &scratch.budget;
            let (values, buffer) = (&mut scratch.values, &mut scratch.buffer);
            prefilter(program, identity, values, buffer, &mut scratch.possible, budget)
        }
        Some(_) => {
            scratch.values.fill(program, identity);
            false
        }
    };
    let queried = identity.filter(|_| program.has_queries);
    let subject = queried.map(|identity| Subject::new(*identity, &scratch.values.identity_key));
    let mut evaluator = Evaluator {
        program,
        identity,
        subject: subject.as_ref(),
        query_results: Vec::new(),
        budget: &scratch.budget,
        cut_slots: &mut scratch.cut_slots,
        values: &scratch.values,
        conditions: &mut scratch.conditions,
        segments: &mut scratch.segments,
        possible: &mut scratch.possible,
        matching: &mut scratch.matching,
        is_prefiltered,
        splits: &mut scratch.splits,
        epoch: scratch.epoch,
        buffer: &mut scratch.buffer,
        outputs: &mut scratch.outputs,
        changed: &mut scratch.changed,
        flags: &mut scratch.flags,
    };
    match &program.flags {
        None => evaluator.choose_states(),
        Some(_) => evaluator.evaluate_in_order(&mut scratch.matched),
    }
}
