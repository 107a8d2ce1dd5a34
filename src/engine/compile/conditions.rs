//! Compiles a condition to a [`Predicate`]: parses its operand as each type that a value may have
//! (compatibility.md 5.7).
//!
//! Conditions that can never hold, or for which Python raises on any value, become [`Predicate::Never`].
use crate::engine::compile::in_list;
use crate::engine::document::Condition;
use crate::engine::document::raw_json::{DocumentPath, float, is_number, python_str, string};
use crate::engine::program::{Comparison, Members, Operand, OperandText, Predicate};
use crate::python::number::{Integer, float_from_text, int_from_text};
use crate::python::regex::{AutomataBudget, Pattern};
use crate::python::semver::Version;

/// The suffix of an operand that is a version.
const SEMVER_SUFFIX: &str = ":semver";

/// Compiles a condition of the segment with this key. Returns a warning if it can never hold.
pub fn compile(
    condition: &Condition<'_>,
    segment_key: &str,
    automata: &mut AutomataBudget,
) -> (Predicate, Option<String>) {
    let raw = condition.value;
    let text = string(raw);
    let never = |why: String| (Predicate::Never, Some(why));
    let comparison = match &*condition.operator {
        "EQUAL" => Comparison::Equal,
        "NOT_EQUAL" => Comparison::NotEqual,
        "GREATER_THAN" => Comparison::Greater,
        "GREATER_THAN_INCLUSIVE" => Comparison::GreaterOrEqual,
        "LESS_THAN" => Comparison::Less,
        "LESS_THAN_INCLUSIVE" => Comparison::LessOrEqual,
        "IS_SET" => return (Predicate::IsSet, None),
        "IS_NOT_SET" => return (Predicate::IsNotSet, None),
        "CONTAINS" => {
            let Some(text) = operand_text(raw) else { return (Predicate::Never, None) };
            // Python searches the five parts of the version, of which two are text.
            let part = text.strip_suffix(SEMVER_SUFFIX).map(|part| Predicate::HasVersionPart(part.into()));
            return (part.unwrap_or_else(|| Predicate::Contains(text.into())), None);
        }
        "NOT_CONTAINS" => {
            return (str_of(raw).map_or(Predicate::Never, |text| Predicate::NotContains(text.into())), None);
        }
        "REGEX" => {
            let Some(pattern) = str_of(raw) else {
                return never("the value of REGEX must be a string".into());
            };
            return match Pattern::compile(&pattern, automata) {
                Ok(pattern) => (Predicate::Regex(Box::new(pattern)), None),
                Err(error) => never(format!("invalid pattern for REGEX: {error}")),
            };
        }
        "MODULO" => return modulo(raw, text.as_deref()),
        "IN" => {
            let items = match (&text, raw.starts_with('[')) {
                (Some(text), _) => in_list::parse(text),
                (None, true) => in_list::parse(raw),
                (None, false) => return never("the value of IN must be a string or a list".into()),
            };
            return (Predicate::In(Box::new(members(items))), None);
        }
        "PERCENTAGE_SPLIT" => {
            let limit = match &text {
                Some(text) => float_from_text(text),
                None => number_as_float(raw),
            };
            return match limit {
                Some(limit) => (Predicate::Split { key: segment_key.into(), limit }, None),
                None => never("the value of PERCENTAGE_SPLIT must be a number".into()),
            };
        }
        other => return never(format!("unknown operator {other:?}")),
    };
    (Predicate::Compare(comparison, Box::new(operand(raw, text.as_deref()))), None)
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
        // Only these two texts are false, for every type (compatibility.md 5.7).
        bool: !matches!(text, Some("False" | "false")),
        integer,
        big_integer,
        float: match text {
            Some(text) => float_from_text(text),
            None => number_as_float(raw),
        },
        text: match operand_text(raw) {
            None => OperandText::Never,
            Some(text) => match text.strip_suffix(SEMVER_SUFFIX) {
                None => OperandText::Plain(text.into()),
                Some(version) if Version::parse(version).is_some() => OperandText::Version(version.into()),
                Some(_) => OperandText::Never,
            },
        },
    }
}

/// The text of an operand. Python takes a suffix of the value before it calls `str()`, which raises for a
/// number or an object. So only text, null (`None`) and lists have one.
fn operand_text(raw: &str) -> Option<String> {
    if raw == "null" || raw.starts_with(['"', '[']) { str_of(raw) } else { None }
}

/// Python's `str()` of any value.
fn str_of(raw: &str) -> Option<String> {
    match python_str(raw, &DocumentPath::ROOT) {
        Ok(text) => Some(text.into_owned()),
        // Written as an item of a list.
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

/// Python's `int()` of a number: floats are truncated.
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

fn modulo(raw: &str, text: Option<&str>) -> (Predicate, Option<String>) {
    let parts = text.and_then(|text| text.split_once('|')).filter(|(_, right)| !right.contains('|'));
    let numbers = parts.and_then(|(left, right)| Some((float_from_text(left)?, float_from_text(right)?)));
    match numbers {
        Some((0.0, _)) => (Predicate::Never, Some("the divisor of MODULO must not be 0".into())),
        Some((divisor, remainder)) => (Predicate::Modulo { divisor, remainder }, None),
        None => (
            Predicate::Never,
            Some(format!("the value of MODULO must be \"<divisor>|<remainder>\", got {raw}")),
        ),
    }
}

fn members(items: Vec<String>) -> Members {
    let integers = items
        .iter()
        .filter_map(|item| {
            let number: i64 = item.parse().ok()?;
            // Only in the form that `str()` writes: not `07` or `+7`.
            (itoa::Buffer::new().format(number) == item).then_some(number)
        })
        .collect();
    Members { texts: items.into_iter().map(String::into_boxed_str).collect(), integers }
}
