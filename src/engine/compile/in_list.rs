//! Parses the operand of an IN condition (compatibility.md 5.7).
//!
//! Text that starts with `[` is parsed as by Python's `json.loads` (with `NaN`, `Infinity` and lone
//! surrogates), and each item is written as by `str()`. Text that is not a JSON list is split at commas;
//! items are not trimmed, and empty ones are kept.
use crate::python::json_list;
use crate::python::json_list::ListError;
use crate::python::repr;

/// The items of an operand that is text.
pub fn parse(text: &str) -> Vec<String> {
    if !text.starts_with('[') {
        return split(text);
    }
    match json_list::parse(text) {
        Ok(items) => items.iter().filter_map(repr::item).collect(),
        Err(ListError::NotJson) => split(text),
        // Python raises, so the condition never holds (differences.md 5).
        Err(ListError::TooDeep) => Vec::new(),
    }
}

fn split(text: &str) -> Vec<String> {
    text.split(',').map(str::to_owned).collect()
}
