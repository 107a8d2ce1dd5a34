//! Parses the operand of an IN condition (compatibility.md 5.7).
//!
//! Text that starts with `[` is parsed as by Python's `json.loads` (with `NaN`, `Infinity` and lone
//! surrogates), and each item is written as by `str()`. Text that is not a JSON list is split at commas;
//! items are not trimmed, and empty ones are kept.
use crate::limits::IN_LIST_DEPTH_MAX;
use crate::python::json::{JsonError, PyValue, loads_text};
use crate::python::repr;

/// The items of an operand that is text.
pub fn parse(text: &str) -> Vec<String> {
    if !text.starts_with('[') {
        return split(text);
    }
    // The outer list and `IN_LIST_DEPTH_MAX` containers inside it.
    match loads_text(text, IN_LIST_DEPTH_MAX + 1) {
        Ok(document) => match document.root() {
            PyValue::List(items) => items.iter().filter_map(repr::str).collect(),
            _ => split(text),
        },
        // Python raises here, so the condition never holds (differences.md 5).
        Err(JsonError::TooDeep) => Vec::new(),
        Err(JsonError::Decode { .. } | JsonError::Unreadable) => split(text),
    }
}

fn split(text: &str) -> Vec<String> {
    text.split(',').map(str::to_owned).collect()
}
