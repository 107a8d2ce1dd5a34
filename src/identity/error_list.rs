//! The `detail` list of a 422, in the format of FastAPI and pydantic 2.7 (compatibility.md 2.6).
//!
//! The Python proxy's list for a body of a million bytes takes fifty million. Here at most
//! `limits::ERRORS_MAX` errors are written, each with at most `limits::ERROR_INPUT_BYTES_MAX` bytes of its
//! input (differences.md 38).
use crate::identity::error::{ErrorDetail, IdentityError};
use crate::json::write;
use crate::limits::{ERROR_INPUT_BYTES_MAX, ERRORS_MAX, TRAIT_VALUE_CHARS_MAX};
use crate::python::json::{Dict, PyText, PyValue};
use crate::python::number::float_str;
use crate::work;

/// The location of a value in a request: a step, and the steps before it.
#[derive(Clone, Copy, Debug)]
pub struct ErrorLocation<'a> {
    parent: Option<&'a ErrorLocation<'a>>,
    step: LocationStep<'a>,
}

#[derive(Clone, Copy, Debug)]
enum LocationStep<'a> {
    Name(&'a str),
    Index(usize),
}

impl<'a> ErrorLocation<'a> {
    /// `name` is `body` or `query`.
    pub const fn root(name: &'a str) -> Self {
        Self { parent: None, step: LocationStep::Name(name) }
    }

    pub const fn name(&'a self, name: &'a str) -> Self {
        Self { parent: Some(self), step: LocationStep::Name(name) }
    }

    pub const fn index(&'a self, index: usize) -> Self {
        Self { parent: Some(self), step: LocationStep::Index(index) }
    }

    fn write(&self, out: &mut Vec<u8>) {
        if let Some(parent) = self.parent {
            parent.write(out);
            out.push(b',');
        }
        match self.step {
            LocationStep::Name(name) => write::string(name, out),
            LocationStep::Index(index) => out.extend_from_slice(index.to_string().as_bytes()),
        }
    }
}

/// An error of pydantic: its `type`, which is also the last part of its `url`, and its `msg`.
pub struct ErrorKind(&'static str, &'static str);

pub const STRING_TYPE: ErrorKind = ErrorKind("string_type", "Input should be a valid string");
pub const LIST_TYPE: ErrorKind = ErrorKind("list_type", "Input should be a valid list");
pub const MODEL_TYPE: ErrorKind =
    ErrorKind("model_attributes_type", "Input should be a valid dictionary or object to extract fields from");
pub const INT_TYPE: ErrorKind = ErrorKind("int_type", "Input should be a valid integer");
pub const FLOAT_TYPE: ErrorKind = ErrorKind("float_type", "Input should be a valid number");
pub const BOOL_TYPE: ErrorKind = ErrorKind("bool_type", "Input should be a valid boolean");
pub const BOOL_PARSING: ErrorKind =
    ErrorKind("bool_parsing", "Input should be a valid boolean, unable to interpret input");
pub const INT_PARSING: ErrorKind =
    ErrorKind("int_parsing", "Input should be a valid integer, unable to parse string as an integer");
pub const FINITE_NUMBER: ErrorKind = ErrorKind("finite_number", "Input should be a finite number");
pub const BLANK: ErrorKind = ErrorKind("string_too_short", "String should have at least 1 character");
pub const KEY_TOO_LONG: ErrorKind = ErrorKind("string_too_long", "String should have at most 200 characters");
pub const NULL_CHARACTER: ErrorKind =
    ErrorKind("value_error", "Value error, null characters are not allowed");
const MISSING: ErrorKind = ErrorKind("missing", "Field required");
const STRING_UNICODE: ErrorKind = ErrorKind(
    "string_unicode",
    "Input should be a valid string, unable to parse raw data as a unicode string",
);

/// The errors found in a request.
#[derive(Debug, Default)]
pub struct ErrorList {
    found: ErrorEntries,
    /// Lone surrogates, which pydantic accepts but Python cannot encode in the response.
    surrogates: ErrorEntries,
}

/// A list of errors as JSON.
#[derive(Debug, Default)]
struct ErrorEntries {
    body: Vec<u8>,
    /// `ERRORS_MAX + 1` if some are omitted.
    count: usize,
}

impl ErrorList {
    /// Returns `value` if the list is empty.
    ///
    /// # Errors
    /// The list is not empty.
    pub fn into_result<T>(self, value: T) -> Result<T, IdentityError> {
        match (self.found.count, self.surrogates.count) {
            (0, 0) => Ok(value),
            (0, _) => Err(IdentityError::Unwritable(self.surrogates.into_detail())),
            (_, _) => Err(IdentityError::Invalid(self.found.into_detail())),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.found.count == 0
    }

    /// Whether errors were omitted, so that validation can stop.
    pub fn is_full(&self) -> bool {
        self.found.count > ERRORS_MAX
    }

    /// Adds an error for a missing member of `input`.
    pub fn missing(&mut self, path: &ErrorLocation<'_>, input: PyValue<'_>) {
        self.found.add(&MISSING, path, input);
    }

    /// Adds an error; `input` is the invalid value.
    pub fn add(&mut self, kind: &ErrorKind, path: &ErrorLocation<'_>, input: PyValue<'_>) {
        self.found.add(kind, path, input);
    }

    /// Adds an error if the string contains a lone surrogate.
    pub fn check_surrogates(&mut self, text: PyText<'_>, path: &ErrorLocation<'_>) {
        if text.has_lone_surrogate() {
            self.surrogates.add(&STRING_UNICODE, path, PyValue::Text(text));
        }
    }

    /// Adds an error if the string has more than `TRAIT_VALUE_CHARS_MAX` characters.
    pub fn check_length(&mut self, text: PyText<'_>, path: &ErrorLocation<'_>) {
        if is_within_length(text.text) {
            return;
        }
        let length = text.text.chars().count();
        let list = &mut self.found;
        if list.open("string_too_long", path, TOO_LONG, PyValue::Text(text)) {
            let context =
                format!(",\"ctx\":{{\"max_length\":{TRAIT_VALUE_CHARS_MAX},\"actual_length\":{length}}}}}");
            list.body.extend_from_slice(context.as_bytes());
        }
    }
}

const TOO_LONG: &str = "String should have at most 2000 characters";

/// Whether a string has at most `TRAIT_VALUE_CHARS_MAX` characters. Counts them only if its length in bytes
/// does not decide.
pub fn is_within_length(text: &str) -> bool {
    text.len() <= TRAIT_VALUE_CHARS_MAX
        || (text.len() <= TRAIT_VALUE_CHARS_MAX * 4 && text.chars().count() <= TRAIT_VALUE_CHARS_MAX)
}

impl ErrorEntries {
    fn add(&mut self, kind: &ErrorKind, path: &ErrorLocation<'_>, input: PyValue<'_>) {
        if self.open(kind.0, path, kind.1, input) {
            self.body.extend_from_slice(b",\"url\":\"https://errors.pydantic.dev/2.7/v/");
            self.body.extend_from_slice(kind.0.as_bytes());
            self.body.extend_from_slice(b"\"}");
        }
    }

    /// Starts an entry. Returns false if the list is full.
    fn open(&mut self, kind: &str, path: &ErrorLocation<'_>, message: &str, input: PyValue<'_>) -> bool {
        if self.count >= ERRORS_MAX {
            self.count = ERRORS_MAX + 1;
            return false;
        }
        self.count += 1;
        self.head(kind, path, message);
        self.body.extend_from_slice(b",\"input\":");
        let before = self.body.len();
        quote(input, &mut self.body);
        work::count_bytes(self.body.len() - before);
        true
    }

    fn head(&mut self, kind: &str, path: &ErrorLocation<'_>, message: &str) {
        self.body.extend_from_slice(if self.body.is_empty() { b"{\"detail\":[" } else { b"," });
        self.body.extend_from_slice(b"{\"type\":");
        write::string(kind, &mut self.body);
        self.body.extend_from_slice(b",\"loc\":[");
        path.write(&mut self.body);
        self.body.extend_from_slice(b"],\"msg\":");
        write::string(message, &mut self.body);
    }

    fn into_detail(mut self) -> ErrorDetail {
        let is_truncated = self.count > ERRORS_MAX;
        if is_truncated {
            let message = format!("More than {ERRORS_MAX} errors: only the first {ERRORS_MAX} are listed");
            self.head("too_many_errors", &ErrorLocation::root("body"), &message);
            let context = format!(",\"input\":null,\"ctx\":{{\"max_errors\":{ERRORS_MAX}}}}}");
            self.body.extend_from_slice(context.as_bytes());
        }
        self.body.extend_from_slice(b"]}");
        ErrorDetail { body: self.body, is_truncated }
    }
}

/// FastAPI's error for a body that is not JSON. It has no `url`.
pub fn json_invalid(message: &str, position: usize) -> IdentityError {
    let mut body = format!(
        "{{\"detail\":[{{\"type\":\"json_invalid\",\"loc\":[\"body\",{position}],\"msg\":\"JSON decode error\",\
         \"input\":{{}},\"ctx\":{{\"error\":"
    )
    .into_bytes();
    write::string(message, &mut body);
    body.extend_from_slice(b"}}]}");
    IdentityError::Invalid(ErrorDetail { body, is_truncated: false })
}

/// Appends a value in the format of Python's `json.dumps`, compact and not escaped to ASCII, if that takes at
/// most `ERROR_INPUT_BYTES_MAX` bytes. A longer string is truncated and ends in `...`. Another longer value
/// is replaced by a string with the beginning of its JSON and `...`, so that the list remains valid JSON.
fn quote(value: PyValue<'_>, out: &mut Vec<u8>) {
    let mut json = Limited { bytes: Vec::with_capacity(ERROR_INPUT_BYTES_MAX + 64) };
    dump(value, &mut json);
    if !json.is_full() {
        return out.extend_from_slice(&json.bytes);
    }
    let beginning = String::from_utf8_lossy(&json.bytes);
    let text = match value {
        PyValue::Text(text) => text.text,
        _ => &*beginning,
    };
    out.push(b'"');
    let mut left = ERROR_INPUT_BYTES_MAX - b"\"...\"".len();
    let mut escaped = Vec::with_capacity(8);
    for character in text.chars() {
        escaped.clear();
        write::escaped(character.encode_utf8(&mut [0; 4]), &mut escaped);
        let Some(rest) = left.checked_sub(escaped.len()) else { break };
        left = rest;
        out.extend_from_slice(&escaped);
    }
    out.extend_from_slice(b"...\"");
}

/// A buffer that stops growing soon after `ERROR_INPUT_BYTES_MAX` bytes.
struct Limited {
    bytes: Vec<u8>,
}

impl Limited {
    fn is_full(&self) -> bool {
        self.bytes.len() > ERROR_INPUT_BYTES_MAX
    }

    fn string(&mut self, text: &str) {
        // Escaping never shortens a text, so more bytes than the limit are not needed.
        let mut end = text.len().min(ERROR_INPUT_BYTES_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        write::string(text.get(..end).unwrap_or_default(), &mut self.bytes);
        if end < text.len() {
            self.bytes.resize(self.bytes.len().max(ERROR_INPUT_BYTES_MAX + 1), b' ');
        }
    }
}

fn dump(value: PyValue<'_>, out: &mut Limited) {
    match value {
        PyValue::Null => out.bytes.extend_from_slice(b"null"),
        PyValue::Bool(value) => out.bytes.extend_from_slice(if value { b"true" } else { b"false" }),
        PyValue::Int(digits) => {
            let digits = digits.as_bytes();
            out.bytes.extend_from_slice(&digits[..digits.len().min(ERROR_INPUT_BYTES_MAX + 1)]);
        }
        PyValue::Float(number) if number.is_finite() => {
            out.bytes.extend_from_slice(float_str(number).as_bytes());
        }
        PyValue::Float(_) => out.bytes.extend_from_slice(b"null"),
        PyValue::Text(text) => out.string(text.text),
        PyValue::List(items) => {
            out.bytes.push(b'[');
            for (index, item) in items.iter().enumerate() {
                if out.is_full() {
                    return;
                }
                if index > 0 {
                    out.bytes.push(b',');
                }
                dump(item, out);
            }
            out.bytes.push(b']');
        }
        PyValue::Dict(members) => dump_dict(members, out),
    }
}

/// Larger objects exceed the limit unless one name is repeated many times; then the first values are quoted,
/// not the last.
const SMALL_DICT_MEMBERS: usize = 64;

fn dump_dict(members: Dict<'_>, out: &mut Limited) {
    let is_small = members.len() <= SMALL_DICT_MEMBERS;
    let mut names: Vec<&str> = Vec::new();
    out.bytes.push(b'{');
    for (name, value) in members.written() {
        if out.is_full() {
            return;
        }
        if names.contains(&name) {
            continue;
        }
        if !names.is_empty() {
            out.bytes.push(b',');
        }
        names.push(name);
        out.string(name);
        out.bytes.push(b':');
        dump(members.get(name).filter(|_| is_small).unwrap_or(value), out);
    }
    out.bytes.push(b'}');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::python::json::loads;

    fn quoted(body: &str) -> String {
        let document = loads(body.as_bytes()).unwrap();
        let mut out = Vec::new();
        quote(document.root(), &mut out);
        let text = String::from_utf8(out).unwrap();
        assert!(text.len() <= ERROR_INPUT_BYTES_MAX, "{} bytes: {text}", text.len());
        let _: serde::de::IgnoredAny = serde_json::from_str(&text).unwrap();
        text
    }

    #[test]
    fn truncates_quoted_input_beyond_200_bytes() {
        let text = |bytes: usize| format!("\"{}\"", "x".repeat(bytes));
        assert_eq!(quoted(&text(198)), text(198), "200 bytes with its quotes");
        assert_eq!(quoted(&text(199)), format!("\"{}...\"", "x".repeat(195)));
        assert_eq!(quoted(&text(1 << 20)), format!("\"{}...\"", "x".repeat(195)));
        assert_eq!(quoted(&format!("\"{}\"", "é".repeat(150))), format!("\"{}...\"", "é".repeat(97)));
        assert_eq!(
            quoted(&format!("\"{}\"", "\\u0001".repeat(100))),
            format!("\"{}...\"", "\\u0001".repeat(32))
        );
        let list = format!("[{}]", ["0"; 99].join(","));
        assert_eq!(quoted(&list), list);
        let list = format!("[{}]", ["\"\""; 5000].join(","));
        let cut = quoted(&list);
        assert!(cut.starts_with(r#""[\"\",\"\","#) && cut.ends_with("...\""), "{cut}");
        assert_eq!(quoted(&format!("{}5", "1".repeat(4000))), format!("\"{}...\"", "1".repeat(195)));
        quoted(&format!("{}0{}", "{\"\\u0001é\":".repeat(300), "}".repeat(300)));
        quoted(&format!("{}{}", "[".repeat(300), "]".repeat(300)));
    }

    #[test]
    fn quotes_a_duplicate_name_once_with_its_last_value() {
        assert_eq!(quoted(r#"{"a":1,"b":2,"a":3}"#), r#"{"a":3,"b":2}"#);
    }
}
