//! What pydantic 2.7 says of a body that FastAPI parsed: an identity, or the `detail` list.
//!
//! In: a body as Python holds it ([`Value`]). Out: [`Asked`], or a [`Refusal`] whose body has
//! the same `type`, `loc`, `msg`, `input` and `url` as the Python proxy's (compatibility.md 2.6), in the
//! order of the model's fields. Where Python answers 500 (half a surrogate pair, `NaN` in what
//! it quotes) this answers 422. Typed trait values and transient identities are taken
//! (differences.md 13, 14). Nothing here looks at keys or documents.
use super::Refusal;
use super::python_json::{JsonError, Text, Value, loads};
use crate::encode::json;
use crate::evaluate::value::float_str;
use crate::evaluate::{Trait, TraitValue};
use crate::limits::TRAIT_VALUE_CHARS_MAX;

/// An identity that was asked for, borrowed from the parsed body.
#[derive(Debug, Default)]
pub struct Asked<'body> {
    /// `None`: a transient identity (differences.md 13).
    pub identifier: Option<&'body str>,
    pub traits: Vec<Trait<'body>>,
}

/// The body as FastAPI hands it to pydantic: parsed if it is JSON, else as text.
///
/// # Errors
/// It is not JSON but should be.
pub fn body_value(original: &[u8], is_json: bool) -> Result<Value, Refusal> {
    if is_json || original.is_empty() {
        return json_value(original);
    }
    let text = String::from_utf8_lossy(original).into_owned();
    Ok(Value::Text(Text { text, has_lone_surrogate: false }))
}

/// A body that is JSON whatever its content type says; an empty one is null.
///
/// # Errors
/// It is not JSON.
pub fn json_value(original: &[u8]) -> Result<Value, Refusal> {
    if original.is_empty() {
        return Ok(Value::Null);
    }
    loads(original).map_err(|error| match error {
        JsonError::Unreadable => Refusal::Unreadable,
        JsonError::Decode { message, position } => json_invalid(message, position),
    })
}

/// Judges a body as the model `IdentityWithTraits` does.
///
/// # Errors
/// It is not of that shape: 422, all that is wrong in one list.
pub fn identity(body: &Value) -> Result<Asked<'_>, Refusal> {
    let mut errors = Errors::default();
    let loc = [Loc::Name("body")];
    if *body == Value::Null {
        errors.missing(&loc, body);
    }
    let asked = match errors.is_empty() {
        true => identity_at(body, &loc, &mut errors),
        false => Asked::default(),
    };
    errors.into_result(asked)
}

/// As [`identity`], for an identity somewhere inside the body.
pub fn identity_at<'body>(body: &'body Value, loc: &[Loc<'_>], errors: &mut Errors) -> Asked<'body> {
    let mut asked = Asked::default();
    match body {
        Value::Dict(_) => {
            asked.identifier = identifier(body, &within(loc, Loc::Name("identifier")), errors);
            match member(body, "traits") {
                None => {}
                Some(Value::List(items)) => {
                    for (index, item) in items.iter().enumerate() {
                        let loc = within(&within(loc, Loc::Name("traits")), Loc::Index(index));
                        asked.traits.extend(trait_at(item, &loc, errors));
                    }
                }
                Some(other) => {
                    errors.known(&LIST_TYPE, &within(loc, Loc::Name("traits")), other);
                }
            }
        }
        other => errors.known(&MODEL_TYPE, loc, other),
    }
    asked
}

/// The identifier of an object that holds one; null, absent and empty are none.
pub fn identifier<'body>(body: &'body Value, loc: &[Loc<'_>], errors: &mut Errors) -> Option<&'body str> {
    match member(body, "identifier")? {
        Value::Null => None,
        value @ Value::Text(text) => {
            errors.whole_text(text, loc, value);
            Some(text.text.as_str()).filter(|text| !text.is_empty())
        }
        other => {
            errors.known(&STRING_TYPE, loc, other);
            None
        }
    }
}

/// Judges one trait as the model `TraitModel` does.
pub fn trait_at<'body>(item: &'body Value, loc: &[Loc<'_>], errors: &mut Errors) -> Option<Trait<'body>> {
    let Value::Dict(_) = item else {
        errors.known(&MODEL_TYPE, loc, item);
        return None;
    };
    let key_loc = within(loc, Loc::Name("trait_key"));
    let key = match member(item, "trait_key") {
        None => {
            errors.missing(&key_loc, item);
            None
        }
        Some(value @ Value::Text(text)) => {
            errors.whole_text(text, &key_loc, value);
            Some(text.text.as_str())
        }
        Some(other) => {
            errors.known(&STRING_TYPE, &key_loc, other);
            None
        }
    };
    let value = match member(item, "trait_value") {
        None => Some(TraitValue::Null),
        Some(value) => trait_value(value, &within(loc, Loc::Name("trait_value")), errors),
    };
    Some(Trait { key: key?, value: value? })
}

fn trait_value<'body>(
    value: &'body Value,
    loc: &[Loc<'_>],
    errors: &mut Errors,
) -> Option<TraitValue<'body>> {
    let found = match value {
        Value::Null => TraitValue::Null,
        Value::Bool(value) => TraitValue::Bool(*value),
        Value::Int(digits) => integer(digits),
        Value::Float(number) => TraitValue::Float(*number),
        Value::Text(text) => {
            errors.whole_text(text, loc, value);
            let length = text.text.chars().count();
            if length > TRAIT_VALUE_CHARS_MAX {
                errors.too_long(length, loc, value);
            }
            TraitValue::Text(&text.text)
        }
        Value::Dict(_) if typed(value).is_some() => typed(value)?,
        Value::List(_) | Value::Dict(_) => {
            for (member, kind) in
                [("str", &STRING_TYPE), ("int", &INT_TYPE), ("float", &FLOAT_TYPE), ("bool", &BOOL_TYPE)]
            {
                errors.known(kind, &within(loc, Loc::Name(member)), value);
            }
            return None;
        }
    };
    Some(found)
}

/// An integer from its digits.
pub fn integer(digits: &str) -> TraitValue<'_> {
    digits.parse().map_or(TraitValue::BigInt(digits), TraitValue::Int)
}

/// `{"value": ..., "type": ...}` (differences.md 14): the Elixir SDK's four types, and the names
/// that Flagsmith core has for its own. `None` if it is not such an object.
fn typed(value: &Value) -> Option<TraitValue<'_>> {
    let Some(Value::Text(kind)) = member(value, "type") else { return None };
    match (kind.text.as_str(), member(value, "value")?) {
        ("string" | "unicode" | "semver", Value::Text(text))
            if !text.has_lone_surrogate && text.text.chars().count() <= TRAIT_VALUE_CHARS_MAX =>
        {
            Some(TraitValue::Text(&text.text))
        }
        ("decimal" | "float" | "int", Value::Int(digits)) => Some(integer(digits)),
        ("decimal" | "float", Value::Float(number)) => Some(TraitValue::Float(*number)),
        ("decimal" | "float" | "int", Value::Text(text)) => match loads(text.text.as_bytes()).ok()? {
            // The digits that the body holds are those of the number, so they can be borrowed.
            Value::Int(_) => Some(integer(text.text.trim())),
            Value::Float(number) if kind.text != "int" => Some(TraitValue::Float(number)),
            _ => None,
        },
        ("boolean" | "bool", Value::Bool(value)) => Some(TraitValue::Bool(*value)),
        ("boolean" | "bool", Value::Text(text)) => match text.text.as_str() {
            "true" => Some(TraitValue::Bool(true)),
            "false" => Some(TraitValue::Bool(false)),
            _ => None,
        },
        (_, Value::Null) => Some(TraitValue::Null),
        _ => None,
    }
}

/// A member of a dict by name.
pub fn member<'body>(value: &'body Value, name: &str) -> Option<&'body Value> {
    let Value::Dict(members) = value else { return None };
    members.iter().find(|(found, _)| found == name).map(|(_, value)| value)
}

/// One step of the way to what is wrong.
#[derive(Clone, Copy, Debug)]
pub enum Loc<'a> {
    Name(&'a str),
    Index(usize),
}

/// The way one step further.
pub fn within<'a>(loc: &[Loc<'a>], step: Loc<'a>) -> Vec<Loc<'a>> {
    let mut steps = loc.to_vec();
    steps.push(step);
    steps
}

/// An error of pydantic: its `type`, which its `url` ends with as well, and its `msg`.
pub struct Kind(&'static str, &'static str);

pub const STRING_TYPE: Kind = Kind("string_type", "Input should be a valid string");
pub const LIST_TYPE: Kind = Kind("list_type", "Input should be a valid list");
pub const MODEL_TYPE: Kind =
    Kind("model_attributes_type", "Input should be a valid dictionary or object to extract fields from");
const INT_TYPE: Kind = Kind("int_type", "Input should be a valid integer");
const FLOAT_TYPE: Kind = Kind("float_type", "Input should be a valid number");
const BOOL_TYPE: Kind = Kind("bool_type", "Input should be a valid boolean");
const MISSING: Kind = Kind("missing", "Field required");
const STRING_UNICODE: Kind =
    Kind("string_unicode", "Input should be a valid string, unable to parse raw data as a unicode string");

/// The `detail` list while it is written.
#[derive(Debug, Default)]
pub struct Errors {
    body: Vec<u8>,
    /// Halves of surrogate pairs. The model finds nothing wrong with them until it writes its answer.
    halves: Vec<u8>,
}

impl Errors {
    /// The value if nothing was wrong, else the 422.
    ///
    /// # Errors
    /// Something was wrong.
    pub fn into_result<T>(self, value: T) -> Result<T, Refusal> {
        let (mut body, refusal): (_, fn(Vec<u8>) -> Refusal) =
            match (self.body.is_empty(), self.halves.is_empty()) {
                (true, true) => return Ok(value),
                (true, false) => (self.halves, Refusal::Unwritable),
                (false, _) => (self.body, Refusal::Invalid),
            };
        body.extend_from_slice(b"]}");
        Err(refusal(body))
    }

    pub fn is_empty(&self) -> bool {
        self.body.is_empty()
    }

    /// Notes a member that should be there; `input` is what lacks it.
    pub fn missing(&mut self, loc: &[Loc<'_>], input: &Value) {
        self.known(&MISSING, loc, input);
    }

    /// Notes an error of pydantic's own; `input` is what is wrong.
    pub fn known(&mut self, kind: &Kind, loc: &[Loc<'_>], input: &Value) {
        self.open(kind.0, loc, kind.1, input);
        self.body.extend_from_slice(b",\"url\":\"https://errors.pydantic.dev/2.7/v/");
        self.body.extend_from_slice(kind.0.as_bytes());
        self.body.extend_from_slice(b"\"}");
    }

    fn whole_text(&mut self, text: &Text, loc: &[Loc<'_>], input: &Value) {
        if text.has_lone_surrogate {
            std::mem::swap(&mut self.body, &mut self.halves);
            self.known(&STRING_UNICODE, loc, input);
            std::mem::swap(&mut self.body, &mut self.halves);
        }
    }

    fn too_long(&mut self, length: usize, loc: &[Loc<'_>], input: &Value) {
        self.open("string_too_long", loc, "String should have at most 2000 characters", input);
        let context =
            format!(",\"ctx\":{{\"max_length\":{TRAIT_VALUE_CHARS_MAX},\"actual_length\":{length}}}}}");
        self.body.extend_from_slice(context.as_bytes());
    }

    fn open(&mut self, kind: &str, loc: &[Loc<'_>], message: &str, input: &Value) {
        self.body.extend_from_slice(if self.body.is_empty() { b"{\"detail\":[" } else { b"," });
        self.body.extend_from_slice(b"{\"type\":");
        json::string(kind, &mut self.body);
        self.body.extend_from_slice(b",\"loc\":[");
        for (index, step) in loc.iter().enumerate() {
            if index > 0 {
                self.body.push(b',');
            }
            match step {
                Loc::Name(name) => json::string(name, &mut self.body),
                Loc::Index(index) => self.body.extend_from_slice(index.to_string().as_bytes()),
            }
        }
        self.body.extend_from_slice(b"],\"msg\":");
        json::string(message, &mut self.body);
        self.body.extend_from_slice(b",\"input\":");
        dump(input, &mut self.body);
    }
}

/// FastAPI's own error, which has no `url`.
fn json_invalid(message: &str, position: usize) -> Refusal {
    let mut body = format!(
        "{{\"detail\":[{{\"type\":\"json_invalid\",\"loc\":[\"body\",{position}],\"msg\":\"JSON decode error\",\
         \"input\":{{}},\"ctx\":{{\"error\":"
    )
    .into_bytes();
    json::string(message, &mut body);
    body.extend_from_slice(b"}}]}");
    Refusal::Invalid(body)
}

/// 422 for a query without `identifier`.
pub fn identifier_missing_in_query() -> Refusal {
    let mut errors = Errors::default();
    errors.missing(&[Loc::Name("query"), Loc::Name("identifier")], &Value::Null);
    errors.into_result(()).err().unwrap_or(Refusal::Unreadable)
}

/// A value as Python's `json.dumps` prints it, compact and not escaped to ASCII.
fn dump(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(value) => out.extend_from_slice(if *value { b"true" } else { b"false" }),
        Value::Int(digits) => out.extend_from_slice(digits.as_bytes()),
        Value::Float(number) if number.is_finite() => out.extend_from_slice(float_str(*number).as_bytes()),
        Value::Float(_) => out.extend_from_slice(b"null"),
        Value::Text(text) => json::string(&text.text, out),
        Value::List(items) => {
            out.push(b'[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                dump(item, out);
            }
            out.push(b']');
        }
        Value::Dict(members) => {
            out.push(b'{');
            for (index, (name, value)) in members.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                json::string(name, out);
                out.push(b':');
                dump(value, out);
            }
            out.push(b'}');
        }
    }
}
