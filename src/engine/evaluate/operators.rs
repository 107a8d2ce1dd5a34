//! Operators: whether a predicate holds for a value (compatibility.md 5.7). Allocates nothing.
use crate::engine::evaluate::hashing;
use crate::engine::program::{Comparison, Members, Operand, OperandText, Predicate};
use crate::python::number;
use crate::python::number::{BigDigits, Integer, Value};
use crate::python::semver::Version;
use crate::step_budget::RequestBudget;

/// Whether `predicate` holds for `value`. Work that grows with the value is spent from `budget`; `buffer` is
/// for Python's `str()` of the value.
pub fn holds(predicate: &Predicate, value: &Value<'_>, buffer: &mut String, budget: &RequestBudget) -> bool {
    match predicate {
        _ if matches!(value, Value::Unreadable) => false,
        Predicate::IsNotSet => matches!(value, Value::Null),
        _ if matches!(value, Value::Null) => false,
        Predicate::Never => false,
        Predicate::IsSet => true,
        Predicate::Compare(comparison, operand) => compare(*comparison, operand, value, budget),
        Predicate::Contains(part) => matches!(value, Value::Text(text) if contains(text, part, budget)),
        Predicate::HasVersionPart(part) => match value {
            Value::Text(text) => version(text, budget).is_some_and(|version| version.has_part(part)),
            _ => false,
        },
        Predicate::NotContains(part) => matches!(value, Value::Text(text) if !contains(text, part, budget)),
        Predicate::Regex(pattern) => {
            let text = text_of(value, buffer);
            budget.read(text.len());
            pattern.is_match(text, &budget.patterns)
        }
        Predicate::Modulo { divisor, remainder } =>
        {
            #[expect(clippy::float_cmp, reason = "exact equality is the rule (compatibility.md 5.7)")]
            number::modulo(value, *divisor).is_some_and(|found| found == *remainder)
        }
        Predicate::In(members) => is_member(members, value, buffer),
        Predicate::Split { key, limit } => {
            let text = text_of(value, buffer);
            budget.read(text.len());
            hashing::hash(&[key, text]) <= *limit
        }
    }
}

fn contains(text: &str, part: &str, budget: &RequestBudget) -> bool {
    budget.read(text.len());
    text.contains(part)
}

/// Python's `str(value)`.
fn text_of<'v>(value: &Value<'v>, buffer: &'v mut String) -> &'v str {
    if let Value::Text(text) = value {
        return text;
    }
    buffer.clear();
    number::write_str(value, buffer);
    buffer
}

/// Floats and booleans are never members. Integers are compared as text.
fn is_member(members: &Members, value: &Value<'_>, buffer: &mut String) -> bool {
    match value {
        Value::Text(text) => members.texts.contains(*text),
        Value::Int(number) => members.integers.contains(number),
        Value::Big(_) => members.texts.contains(text_of(value, buffer)),
        Value::Null | Value::Bool(_) | Value::Float(_) | Value::Unreadable => false,
    }
}

fn version<'v>(text: &'v str, budget: &RequestBudget) -> Option<Version<'v>> {
    budget.read(text.len());
    Version::parse(text)
}

fn compare(comparison: Comparison, operand: &Operand, value: &Value<'_>, budget: &RequestBudget) -> bool {
    match value {
        Value::Bool(bool) => comparison.meets(Some(bool.cmp(&operand.bool))),
        Value::Int(number) => match &operand.integer {
            None => false,
            Some(Integer::Small(other)) => comparison.meets(Some(number.cmp(other))),
            Some(other) => comparison.meets(Some(Integer::Small(*number).cmp(other))),
        },
        Value::Big(number) => operand.integer.as_ref().is_some_and(|_| {
            let order = match &operand.big_integer {
                Some(other) => number.cmp(&BigDigits::of(other)),
                None => number.order_to_small(),
            };
            comparison.meets(Some(order))
        }),
        // NaN has no order: only NOT_EQUAL holds for it.
        Value::Float(number) => {
            operand.float.is_some_and(|other| comparison.meets(number.partial_cmp(&other)))
        }
        Value::Text(text) => match &operand.text {
            // UTF-8 sorts by code point, as Python does.
            OperandText::Plain(other) => comparison.meets(Some((**text).cmp(&**other))),
            OperandText::Version(other) => {
                let order = version(text, budget).and_then(|version| {
                    budget.read(other.len());
                    Some(version.cmp(&Version::split(other)?))
                });
                order.is_some_and(|order| comparison.meets(Some(order)))
            }
            OperandText::Never => false,
        },
        Value::Null | Value::Unreadable => false,
    }
}
