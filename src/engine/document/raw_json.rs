//! An accessor for canonical JSON: returns slices of the text instead of a tree.
//!
//! Input is text that `canonical_json::transcode` wrote. Only strings with escapes are copied. Each access
//! scans the text, so read all members of an object in one call ([`members`]).
use std::borrow::Cow;

use memchr::memchr2;
use num_bigint::BigInt;
use num_traits::FromPrimitive as _;

use crate::engine::document::error::CompileError;
use crate::python::number::float_str;
use crate::yielding;

/// The JSON path of a value, formatted only for errors.
#[derive(Clone, Copy, Debug)]
pub struct DocumentPath<'p> {
    parent: Option<&'p DocumentPath<'p>>,
    step: Step<'p>,
}

#[derive(Clone, Copy, Debug)]
enum Step<'p> {
    Root,
    Member(&'p str),
    Element(usize),
}

impl DocumentPath<'static> {
    pub const ROOT: Self = Self { parent: None, step: Step::Root };
}

impl<'p> DocumentPath<'p> {
    pub fn member(&'p self, name: &'p str) -> DocumentPath<'p> {
        DocumentPath { parent: Some(self), step: Step::Member(name) }
    }

    pub fn element(&'p self, index: usize) -> DocumentPath<'p> {
        DocumentPath { parent: Some(self), step: Step::Element(index) }
    }

    pub fn error(&self, message: impl Into<String>) -> CompileError {
        CompileError::new(self.to_string(), message)
    }

    /// An error: expected `what`, found the kind of `raw`.
    pub fn expected(&self, what: &str, raw: &str) -> CompileError {
        self.error(format!("expected {what}, found {}", kind(raw)))
    }
}

impl std::fmt::Display for DocumentPath<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.step {
            Step::Root => f.write_str("$"),
            Step::Member(name) => write!(f, ".{name}"),
            Step::Element(index) => write!(f, "[{index}]"),
        }
    }
}

/// The kind of a value, for errors.
fn kind(raw: &str) -> &'static str {
    match raw.as_bytes().first() {
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    }
}

/// The raw texts of the named members; `None` for those that are absent.
///
/// # Errors
/// It is not an object.
pub fn members<'a, const N: usize>(
    raw: &'a str,
    at: &DocumentPath<'_>,
    names: [&str; N],
) -> Result<[Option<&'a str>; N], CompileError> {
    if !raw.starts_with('{') {
        return Err(at.expected("an object", raw));
    }
    let mut found = [None; N];
    let bytes = raw.as_bytes();
    let mut position = 1;
    while bytes.get(position) == Some(&b'"') {
        let name_to = skip(bytes, position);
        let value_to = skip(bytes, name_to + 1);
        let name = &raw[position + 1..name_to - 1];
        if let Some(index) = names.iter().position(|other| *other == name) {
            found[index] = Some(&raw[name_to + 1..value_to]);
        }
        // After the comma or the closing brace.
        position = value_to + 1;
    }
    Ok(found)
}

/// The members of an object: raw name with quotes, raw value. Empty if it is not an object.
pub fn entries(raw: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut position = if raw.starts_with('{') { 1 } else { raw.len() };
    std::iter::from_fn(move || {
        if raw.as_bytes().get(position) != Some(&b'"') {
            return None;
        }
        let name_to = skip(raw.as_bytes(), position);
        let value_to = skip(raw.as_bytes(), name_to + 1);
        let entry = (&raw[position..name_to], &raw[name_to + 1..value_to]);
        position = value_to + 1;
        Some(entry)
    })
}

/// The raw text of a required member.
///
/// # Errors
/// It is absent.
pub fn required<'a>(
    member: Option<&'a str>,
    at: &DocumentPath<'_>,
    name: &str,
) -> Result<&'a str, CompileError> {
    member.ok_or_else(|| at.member(name).error("missing"))
}

/// The elements of an array, each as raw text.
///
/// # Errors
/// It is not an array.
pub fn elements<'a>(raw: &'a str, at: &DocumentPath<'_>) -> Result<Elements<'a>, CompileError> {
    if raw.starts_with('[') { Ok(Elements { raw, position: 1 }) } else { Err(at.expected("an array", raw)) }
}

/// The elements of an array. Empty if it is not an array.
pub fn items(raw: &str) -> Elements<'_> {
    Elements { raw, position: if raw.starts_with('[') { 1 } else { raw.len() } }
}

/// The iterator of [`elements`].
#[derive(Clone, Debug)]
pub struct Elements<'a> {
    raw: &'a str,
    position: usize,
}

impl Elements<'_> {
    /// Length of the whole array, bytes.
    pub fn text_bytes(&self) -> usize {
        self.raw.len()
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        if self.position + 1 >= self.raw.len() {
            return None;
        }
        let to = skip(self.raw.as_bytes(), self.position);
        let element = &self.raw[self.position..to];
        self.position = to + 1;
        Some(element)
    }
}

/// Reads the elements of an array, each with `read`.
///
/// # Errors
/// It is not an array, or `read` fails.
pub fn list<'a, T>(
    raw: &'a str,
    at: &DocumentPath<'_>,
    read: impl Fn(&'a str, &DocumentPath<'_>) -> Result<T, CompileError>,
) -> Result<Vec<T>, CompileError> {
    elements(raw, at)?.enumerate().map(|(index, element)| read(element, &at.element(index))).collect()
}

/// The end of the value that starts at `from`.
fn skip(bytes: &[u8], from: usize) -> usize {
    let mut at = from;
    let mut depth = 0_usize;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => at = skip_string(bytes, at),
            b'{' | b'[' => {
                yielding::step();
                depth += 1;
                at += 1;
                continue;
            }
            b'}' | b']' => {
                if depth == 0 {
                    return at;
                }
                depth -= 1;
                at += 1;
            }
            b',' | b':' => {
                if depth == 0 {
                    return at;
                }
                at += 1;
                continue;
            }
            _ => {
                at += 1;
                continue;
            }
        }
        if depth == 0 {
            return at;
        }
    }
    at
}

fn skip_string(bytes: &[u8], from: usize) -> usize {
    let mut at = from + 1;
    while let Some(length) = bytes.get(at..).and_then(|rest| memchr2(b'"', b'\\', rest)) {
        if bytes[at + length] == b'"' {
            return at + length + 1;
        }
        at += length + 2;
    }
    bytes.len()
}

/// The text of a string.
///
/// # Errors
/// It is not a string.
pub fn text<'a>(raw: &'a str, at: &DocumentPath<'_>) -> Result<Cow<'a, str>, CompileError> {
    string(raw).ok_or_else(|| at.expected("a string", raw))
}

/// The text of a string; `None` if it is not a string.
pub fn string(raw: &str) -> Option<Cow<'_, str>> {
    let inner = raw.strip_prefix('"')?.strip_suffix('"')?;
    if !inner.contains('\\') {
        return Some(Cow::Borrowed(inner));
    }
    serde_json::from_str(raw).ok().map(Cow::Owned)
}

/// Whether a value is true in Python.
pub fn is_truthy(raw: &str) -> bool {
    !matches!(raw, "null" | "false" | "0" | "0.0" | "-0.0" | "\"\"" | "[]" | "{}")
}

/// Python's `str()` of a scalar.
///
/// # Errors
/// It is an array or an object.
pub fn python_str<'a>(raw: &'a str, at: &DocumentPath<'_>) -> Result<Cow<'a, str>, CompileError> {
    Ok(match raw {
        "null" => Cow::Borrowed("None"),
        "true" => Cow::Borrowed("True"),
        "false" => Cow::Borrowed("False"),
        _ if raw.starts_with(['{', '[']) => return Err(at.expected("a string or a number", raw)),
        _ if raw.starts_with('"') => return text(raw, at),
        _ => match float(raw) {
            Some(number) => Cow::Owned(float_str(number)),
            None => Cow::Borrowed(raw),
        },
    })
}

/// A key under which numbers that Python considers equal are one: `2`, `2.0`, and `1` and `true`, are the
/// same key of a `dict`. Other values are their own key.
pub fn number_key(raw: &str) -> Cow<'_, str> {
    match (raw, float(raw)) {
        ("true", _) => Cow::Borrowed("1"),
        ("false", _) => Cow::Borrowed("0"),
        (_, Some(number)) if number.fract() == 0.0 => match BigInt::from_f64(number) {
            Some(integer) => Cow::Owned(integer.to_string()),
            None => Cow::Borrowed(raw),
        },
        _ => Cow::Borrowed(raw),
    }
}

/// The value of a number with a decimal point or an exponent.
pub fn float(raw: &str) -> Option<f64> {
    is_number(raw).then(|| raw.contains(['.', 'e']).then(|| raw.parse().ok()))??
}

/// Whether it is a number.
pub fn is_number(raw: &str) -> bool {
    raw.starts_with(|first: char| first == '-' || first.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_members_and_elements_after_any_value() {
        let raw = r#"{"a":[{"x":"]}\"\\"},[]],"b":"\\","c":-1.5,"d":{},"e":null}"#;
        let found = members(raw, &DocumentPath::ROOT, ["e", "b", "a", "zz", "d", "c"]).unwrap();
        assert_eq!(
            found,
            [Some("null"), Some(r#""\\""#), Some(r#"[{"x":"]}\"\\"},[]]"#), None, Some("{}"), Some("-1.5")]
        );
        let of = |raw| elements(raw, &DocumentPath::ROOT).unwrap().collect::<Vec<_>>();
        assert_eq!(of(r#"[{"x":"]}\"\\"},[],1,"a,b"]"#), [r#"{"x":"]}\"\\"}"#, "[]", "1", r#""a,b""#]);
        assert!(of("[]").is_empty());
        assert!(members("{}", &DocumentPath::ROOT, ["a"]).unwrap()[0].is_none());
    }

    #[test]
    fn errors_name_the_path_and_the_kind_found() {
        let at = DocumentPath::ROOT.member("feature_states");
        let at = at.element(3);
        let at = at.member("feature");
        let error = members("[1]", &at, ["a"]).unwrap_err();
        assert_eq!(error.path, "$.feature_states[3].feature");
        assert_eq!(error.message, "expected an object, found an array");
    }

    #[test]
    fn python_str_matches_python() {
        for (raw, expected) in [
            ("null", "None"),
            ("true", "True"),
            ("false", "False"),
            ("12", "12"),
            ("12.0", "12.0"),
            ("1e16", "1e+16"),
            ("\"a\\nb\"", "a\nb"),
            ("123456789012345678901", "123456789012345678901"),
        ] {
            assert_eq!(python_str(raw, &DocumentPath::ROOT).unwrap(), expected);
        }
        assert!(python_str("[]", &DocumentPath::ROOT).is_err());
    }

    #[test]
    fn equal_numbers_have_one_key() {
        for (raw, expected) in [
            ("2", "2"),
            ("2.0", "2"),
            ("-0.0", "0"),
            ("1e16", "10000000000000000"),
            ("1e22", "10000000000000000000000"),
            ("true", "1"),
            ("false", "0"),
            ("2.5", "2.5"),
            ("\"2.0\"", "\"2.0\""),
            ("null", "null"),
        ] {
            assert_eq!(number_key(raw), expected, "{raw}");
        }
    }
}
