//! Whether a value meets a condition, and an identity a segment.
//!
//! In: compiled tests and rules, values of this request. Out: true or false.
//! Invariant: lazy as Python is where flags are read; a condition that occurs in several segments
//! is asked at most once per request; nothing is allocated.
use crate::engine::evaluate::hashing;
use crate::engine::program::{Comparison, Members, Operand, OperandText, Test};
use crate::python::number;
use crate::python::number::{BigDigits, Integer, Value};
use crate::python::semver::Version;
use crate::step_budget::RequestBudget;

/// Whether `value` passes `test`. `buffer` is space for Python's `str()` of the value; what
/// the test costs is taken from `budget`.
pub fn holds(test: &Test, value: &Value<'_>, buffer: &mut String, budget: &RequestBudget) -> bool {
    match test {
        _ if matches!(value, Value::Unreadable) => false,
        Test::IsNotSet => matches!(value, Value::Null),
        _ if matches!(value, Value::Null) => false,
        Test::Never => false,
        Test::IsSet => true,
        Test::Compare(comparison, operand) => compare(*comparison, operand, value),
        Test::Contains(part) => matches!(value, Value::Text(text) if contains(text, part, budget)),
        Test::HasVersionPart(part) => match value {
            Value::Text(text) => Version::parse(text).is_some_and(|version| version.has_part(part)),
            _ => false,
        },
        Test::NotContains(part) => matches!(value, Value::Text(text) if !contains(text, part, budget)),
        Test::Regex(pattern) => {
            let text = text_of(value, buffer);
            budget.read(text.len());
            pattern.is_match(text, &budget.patterns)
        }
        Test::Modulo { divisor, remainder } =>
        {
            #[expect(clippy::float_cmp, reason = "exact equality is the rule (compatibility.md 5.7)")]
            number::modulo(value, *divisor).is_some_and(|found| found == *remainder)
        }
        Test::In(members) => is_member(members, value, buffer),
        Test::Split { key, limit } => {
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

/// Floats and booleans are never members; integers are compared as text.
fn is_member(members: &Members, value: &Value<'_>, buffer: &mut String) -> bool {
    match value {
        Value::Text(text) => members.texts.contains(*text),
        Value::Int(number) => members.integers.contains(number),
        Value::Big(_) => members.texts.contains(text_of(value, buffer)),
        Value::Null | Value::Bool(_) | Value::Float(_) | Value::Unreadable => false,
    }
}

fn compare(comparison: Comparison, operand: &Operand, value: &Value<'_>) -> bool {
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
            // UTF-8 orders as code points do.
            OperandText::Plain(other) => comparison.meets(Some((**text).cmp(&**other))),
            OperandText::Version(other) => match (Version::parse(text), Version::parse(other)) {
                (Some(version), Some(other)) => comparison.meets(Some(version.cmp(&other))),
                _ => false,
            },
            OperandText::Never => false,
        },
        Value::Null | Value::Unreadable => false,
    }
}
