//! The prefilter: clears the bit of each segment that cannot match, by lookups in the segment index.
use crate::engine::evaluate::context::{ContextValues, coerce};
use crate::engine::evaluate::operators::holds;
use crate::engine::identity::Identity;
use crate::engine::program::Program;
use crate::engine::program::segment_index::{Keyed, SegmentIndex, SlotIndex};
use crate::python::number::Value;
use crate::python::semver::{Version, release};
use crate::step_budget::RequestBudget;
use crate::work;

/// Fills `possible`, and `values` too unless no segment is possible. Returns whether the index covers every
/// value of the request. If not, segments are only partly filtered: evaluate their whole rule, not their
/// residual.
pub fn prefilter(
    program: &Program,
    identity: Option<&Identity<'_>>,
    values: &mut ContextValues,
    buffer: &mut String,
    possible: &mut Vec<u64>,
    budget: &RequestBudget,
) -> bool {
    let index = &program.segment_index;
    possible.clear();
    possible.resize(index.words, u64::MAX);
    if let Some(last) = possible.last_mut().filter(|_| !program.segments.len().is_multiple_of(64)) {
        *last = (1 << (program.segments.len() % 64)) - 1;
    }
    let mut is_covered = true;
    let mut slots = index.slots.as_slice();
    if let (Some(name), Some(identity), [first, rest @ ..]) = (&index.first_trait, identity, slots) {
        // Often one trait excludes every segment; then no other value is needed.
        let sent = identity.traits.iter().rfind(|sent| sent.key == &**name);
        let value = sent.map(|sent| coerce(sent.value));
        is_covered = exclude(index, first, value.as_ref(), possible);
        slots = rest;
        if possible.iter().all(|word| *word == 0) {
            return true;
        }
    }
    values.fill(program, identity);
    work::count((slots.len() + index.filters.len()) * index.words);
    for slot_index in slots {
        let value = values.get(slot_index.slot, identity);
        is_covered &= exclude(index, slot_index, value.as_ref(), possible);
        if possible.iter().all(|word| *word == 0) {
            return true;
        }
    }
    for filters in &index.filters {
        let value = values.get(filters.slot, identity);
        for filter in &filters.conditions {
            let required_by = index.mask(filter.required_by);
            if possible.iter().zip(required_by).all(|(possible, required)| possible & required == 0) {
                continue;
            }
            let condition = &program.conditions[filter.condition as usize];
            work::count(1);
            let result = match &value {
                Some(value) => holds(&condition.predicate, value, buffer, budget),
                None => condition.absent_result,
            };
            if !result {
                possible.iter_mut().zip(required_by).for_each(|(possible, required)| *possible &= !required);
            }
        }
    }
    is_covered
}

/// Excludes the segments that a slot's value rules out. False: the index has no table for values of this
/// kind.
fn exclude(
    index: &SegmentIndex,
    slot_index: &SlotIndex,
    value: Option<&Value<'_>>,
    possible: &mut [u64],
) -> bool {
    let mask = match value.unwrap_or(&Value::Null) {
        Value::Null => slot_index.absent,
        Value::Unreadable => slot_index.unreadable,
        Value::Bool(bool) => slot_index.bools[usize::from(*bool)],
        Value::Int(number) => slot_index.integers.find(|operand| operand.cmp(number)),
        Value::Float(number) if number.is_nan() => slot_index.nan,
        // Neither side is NaN, so they have an order; zero and minus zero are equal.
        Value::Float(number) => {
            slot_index.floats.find(|operand| operand.partial_cmp(number).unwrap_or(std::cmp::Ordering::Equal))
        }
        Value::Text(text) => {
            if let Some(versions) = &slot_index.versions {
                let mask = match release(text) {
                    Some(release) => versions.ranges.find(|operand| operand.cmp(&release)),
                    None if Version::parse(text).is_some() => return false,
                    None => versions.invalid,
                };
                intersect(possible, index.mask(mask));
            }
            let text = Keyed::new(text);
            slot_index.texts.find(|operand| operand.compare(&text))
        }
        Value::Big(_) => return false,
    };
    intersect(possible, index.mask(mask));
    true
}

fn intersect(possible: &mut [u64], mask: &[u64]) {
    possible.iter_mut().zip(mask).for_each(|(possible, mask)| *possible &= mask);
}
