//! The values of an IN condition (compatibility.md 5.7).
//!
//! In: the condition's text. Out: the strings that a trait's text is looked up in. Text that starts
//! with `[` is read as Python's `json.loads` reads it (`NaN`, `Infinity` and lone surrogates
//! included), each item written as Python's `str()` writes it; text that is no JSON list, and any
//! other text, is split at commas, nothing trimmed, empty items kept.
//! Invariant: used when a document is compiled, never per request.

/// The items of a condition value that is text.
pub fn parse(text: &str) -> Vec<String> {
    if !text.starts_with('[') {
        return split(text);
    }
    match crate::python::json_list::parse(text) {
        Ok(items) => items.iter().filter_map(crate::python::repr::item).collect(),
        Err(crate::python::json_list::ListError::NotJson) => split(text),
        // Python raises here, so the condition never holds (differences.md 5).
        Err(crate::python::json_list::ListError::TooDeep) => Vec::new(),
    }
}

fn split(text: &str) -> Vec<String> {
    text.split(',').map(str::to_owned).collect()
}
