//! From a condition as written to a [`Test`], its operand read as each type it can meet.
//!
//! In: operator and raw value of a condition, the key of its segment. Out: a test, and what to warn
//! of. Rules: compatibility.md 5.7. Invariant: what Python raises for whatever the value, and what can never
//! hold, is [`Test::Never`]; nothing is left to parse when a request comes.
use crate::engine::document::Condition;
use crate::engine::document::raw_json::{DocumentPath, float, is_number, python_str, string};
use crate::engine::evaluate::in_list;
use crate::engine::program::{Comparison, Members, Operand, OperandText, Test};
use crate::python::number::{Integer, float_from_text, int_from_text};
use crate::python::regex::{AutomataBudget, Pattern};
use crate::python::semver::Version;

/// What ends the value of a comparison of versions.
const SEMVER_SUFFIX: &str = ":semver";

/// Compiles a condition. The text is a warning: why it can never hold as it was meant.
pub fn compile(
    condition: &Condition<'_>,
    segment_key: &str,
    automata: &mut AutomataBudget,
) -> (Test, Option<String>) {
    let raw = condition.value;
    let text = string(raw);
    let never = |why: String| (Test::Never, Some(why));
    let comparison = match &*condition.operator {
        "EQUAL" => Comparison::Equal,
        "NOT_EQUAL" => Comparison::NotEqual,
        "GREATER_THAN" => Comparison::Greater,
        "GREATER_THAN_INCLUSIVE" => Comparison::GreaterOrEqual,
        "LESS_THAN" => Comparison::Less,
        "LESS_THAN_INCLUSIVE" => Comparison::LessOrEqual,
        "IS_SET" => return (Test::IsSet, None),
        "IS_NOT_SET" => return (Test::IsNotSet, None),
        "CONTAINS" => {
            let Some(text) = subject(raw) else { return (Test::Never, None) };
            // Python goes through the five parts of a version, of which two are text.
            let part = text.strip_suffix(SEMVER_SUFFIX).map(|part| Test::HasVersionPart(part.into()));
            return (part.unwrap_or_else(|| Test::Contains(text.into())), None);
        }
        "NOT_CONTAINS" => {
            return (str_of(raw).map_or(Test::Never, |text| Test::NotContains(text.into())), None);
        }
        "REGEX" => {
            let Some(pattern) = str_of(raw) else {
                return never("REGEX with a value that is no text".into());
            };
            return match Pattern::compile(&pattern, automata) {
                Ok(pattern) => (Test::Regex(Box::new(pattern)), None),
                Err(error) => never(format!("REGEX with a pattern that is not valid: {error}")),
            };
        }
        "MODULO" => return modulo(raw, text.as_deref()),
        "IN" => {
            let items = match (&text, raw.starts_with('[')) {
                (Some(text), _) => in_list::parse(text),
                (None, true) => in_list::parse(raw),
                (None, false) => return never("IN with a value that is no text and no list".into()),
            };
            return (Test::In(Box::new(members(items))), None);
        }
        "PERCENTAGE_SPLIT" => {
            let limit = match &text {
                Some(text) => float_from_text(text),
                None => number_as_float(raw),
            };
            return match limit {
                Some(limit) => (Test::Split { key: segment_key.into(), limit }, None),
                None => never("PERCENTAGE_SPLIT with a value that is no number".into()),
            };
        }
        other => return never(format!("unknown operator {other:?}")),
    };
    (Test::Compare(comparison, Box::new(operand(raw, text.as_deref()))), None)
}

fn operand(raw: &str, text: Option<&str>) -> Operand {
    let integer = match text {
        Some(text) => int_from_text(text),
        None => number_as_integer(raw),
    };
    let big_integer = match &integer {
        Some(Integer::Big(number)) => Some(number.to_string().into()),
        _ => None,
    };
    Operand {
        // Only these two texts are false, whatever the type (compatibility.md 5.7).
        bool: !matches!(text, Some("False" | "false")),
        integer,
        big_integer,
        float: match text {
            Some(text) => float_from_text(text),
            None => number_as_float(raw),
        },
        text: match subject(raw) {
            None => OperandText::Never,
            Some(text) => match text.strip_suffix(SEMVER_SUFFIX) {
                None => OperandText::Plain(text.into()),
                Some(version) if Version::parse(version).is_some() => OperandText::Version(version.into()),
                Some(_) => OperandText::Never,
            },
        },
    }
}

/// What a text is compared with: Python asks the value for its last characters first, which a number
/// and an object have not, so only text, null (`None`) and a list get as far as `str()`.
fn subject(raw: &str) -> Option<String> {
    if raw == "null" || raw.starts_with(['"', '[']) { str_of(raw) } else { None }
}

/// Python's `str()` of any value.
fn str_of(raw: &str) -> Option<String> {
    match python_str(raw, &DocumentPath::ROOT) {
        Ok(text) => Some(text.into_owned()),
        // A list or an object is written as an item of a list is.
        Err(_) => in_list::parse(&format!("[{raw}]")).pop(),
    }
}

fn number_as_float(raw: &str) -> Option<f64> {
    match raw {
        "true" => Some(1.0),
        "false" => Some(0.0),
        _ if is_number(raw) => raw.parse().ok().filter(|number: &f64| number.is_finite()),
        _ => None,
    }
}

/// Python's `int()` of a number: a float is cut.
fn number_as_integer(raw: &str) -> Option<Integer> {
    match raw {
        "true" => Some(Integer::Small(1)),
        "false" => Some(Integer::Small(0)),
        _ => match float(raw) {
            Some(number) => num_traits::FromPrimitive::from_f64(number.trunc()).map(num_bigint::BigInt::into),
            None if is_number(raw) => int_from_text(raw),
            None => None,
        },
    }
}

fn modulo(raw: &str, text: Option<&str>) -> (Test, Option<String>) {
    let parts = text.and_then(|text| text.split_once('|')).filter(|(_, right)| !right.contains('|'));
    let numbers = parts.and_then(|(left, right)| Some((float_from_text(left)?, float_from_text(right)?)));
    match numbers {
        Some((0.0, _)) => (Test::Never, Some("MODULO with divisor 0".into())),
        Some((divisor, remainder)) => (Test::Modulo { divisor, remainder }, None),
        None => (Test::Never, Some(format!("MODULO with {raw}, not <divisor>|<remainder>"))),
    }
}

fn members(items: Vec<String>) -> Members {
    let integers = items
        .iter()
        .filter_map(|item| {
            let number: i64 = item.parse().ok()?;
            // As `str()` writes it: `07` or `+7` is no integer's text.
            (itoa::Buffer::new().format(number) == item).then_some(number)
        })
        .collect();
    Members { texts: items.into_iter().map(String::into_boxed_str).collect(), integers }
}
