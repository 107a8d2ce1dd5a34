//! Which segments can match at all, as bits.
//!
//! In: the values of a request and the tables of the program. Out: one bit per segment. Invariant:
//! a segment whose bit is clear does not match; a value of a kind that the tables do not know
//! clears none.
use crate::engine::compile::segment_index::{Keyed, Lookup, Lookups};
use crate::engine::evaluate::Identity;
use crate::engine::evaluate::context::{ContextValues, coerce};
use crate::engine::evaluate::operators::holds;
use crate::engine::program::Program;
use crate::python::number::Value;
use crate::python::semver::{Version, release};
use crate::step_budget::RequestBudget;

/// Fills `possible`, and `values` unless nothing is possible. False: the tables do not apply, so
/// that of the segments that are left every rule is to be asked whole.
pub fn narrow(
    program: &Program,
    identity: Option<&Identity<'_>>,
    values: &mut ContextValues,
    buffer: &mut String,
    possible: &mut Vec<u64>,
    budget: &RequestBudget,
) -> bool {
    let lookups = &program.lookups;
    possible.clear();
    possible.resize(lookups.words, u64::MAX);
    if let Some(last) = possible.last_mut().filter(|_| !program.segments.len().is_multiple_of(64)) {
        *last = (1 << (program.segments.len() % 64)) - 1;
    }
    let mut is_known = true;
    let mut slots = lookups.slots.as_slice();
    if let (Some(name), Some(identity), [first, rest @ ..]) = (&lookups.first_trait, identity, slots) {
        // Often one trait rules every segment out, and no other has to be found.
        let sent = identity.traits.iter().rfind(|sent| sent.key == &**name);
        let value = sent.map(|sent| coerce(sent.value));
        is_known = look_up(lookups, first, value.as_ref(), possible);
        slots = rest;
        if possible.iter().all(|word| *word == 0) {
            return true;
        }
    }
    values.fill(program, identity);
    for lookup in slots {
        let value = values.of(lookup.slot, identity);
        is_known &= look_up(lookups, lookup, value.as_ref(), possible);
        if possible.iter().all(|word| *word == 0) {
            return true;
        }
    }
    for screened in &lookups.screened {
        let value = values.of(screened.slot, identity);
        for screen in &screened.screens {
            let needed_by = lookups.mask(screen.needed_by);
            if possible.iter().zip(needed_by).all(|(left, needed)| left & needed == 0) {
                continue;
            }
            let condition = &program.conditions[screen.condition as usize];
            let answer = match &value {
                Some(value) => holds(&condition.test, value, buffer, budget),
                None => condition.by_default,
            };
            if !answer {
                possible.iter_mut().zip(needed_by).for_each(|(left, needed)| *left &= !needed);
            }
        }
    }
    is_known
}

/// False: the value is of a kind that the tables do not know.
fn look_up(lookups: &Lookups, lookup: &Lookup, value: Option<&Value<'_>>, possible: &mut [u64]) -> bool {
    let number = match value.unwrap_or(&Value::Null) {
        Value::Null => lookup.unset,
        Value::Unreadable => lookup.unreadable,
        Value::Bool(bool) => lookup.bools[usize::from(*bool)],
        Value::Int(number) => lookup.integers.find(|operand| operand.cmp(number)),
        Value::Float(number) if number.is_nan() => lookup.not_a_number,
        // Neither is NaN, so they have an order; zero and minus zero are equal.
        Value::Float(number) => {
            lookup.floats.find(|operand| operand.partial_cmp(number).unwrap_or(std::cmp::Ordering::Equal))
        }
        Value::Text(text) => {
            if let Some(versions) = &lookup.versions {
                let number = match release(text) {
                    Some(release) => versions.ranges.find(|operand| operand.cmp(&release)),
                    None if Version::parse(text).is_some() => return false,
                    None => versions.invalid,
                };
                keep(possible, lookups.mask(number));
            }
            let text = Keyed::new(text);
            lookup.texts.find(|operand| operand.compare(&text))
        }
        Value::Big(_) => return false,
    };
    keep(possible, lookups.mask(number));
    true
}

fn keep(possible: &mut [u64], mask: &[u64]) {
    possible.iter_mut().zip(mask).for_each(|(left, mask)| *left &= mask);
}
