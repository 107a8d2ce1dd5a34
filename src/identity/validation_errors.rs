//! Validates parsed bodies with the errors of pydantic 2.7 (compatibility.md 2.6).
//!
//! Errors have the same `type`, `loc`, `msg`, `input` and `url` as the Python proxy's, in the order of the
//! model's fields. Where the Python proxy fails with 500 (a lone surrogate, `NaN` in a quoted input) the
//! error here is a 422. Typed trait values and transient identities are accepted (differences.md 13, 14).
use std::borrow::Cow;

use crate::engine::evaluate::{Trait, TraitValue};
use crate::identity::error::IdentityError;
use crate::identity::error_list::{
    BOOL_TYPE, ErrorList, ErrorLocation, FLOAT_TYPE, INT_TYPE, LIST_TYPE, MODEL_TYPE, STRING_TYPE,
    is_within_length, json_invalid,
};
use crate::python::json::{Dict, JsonDocument, JsonError, PyText, PyValue, loads, loads_prefix};

/// The root of locations in a body.
pub const BODY: ErrorLocation<'static> = ErrorLocation::root("body");

/// An identity in a parsed body.
#[derive(Debug, Default)]
pub struct RequestedIdentity<'body> {
    /// `None`: a transient identity (differences.md 13).
    pub identifier: Option<&'body str>,
    pub traits: Vec<Trait<'body>>,
}

/// The body as FastAPI passes it to pydantic: parsed if its content type is JSON, else as text.
///
/// # Errors
/// The content type is JSON, but the body is not.
pub fn body_value(original: &[u8], is_json: bool) -> Result<JsonDocument<'_>, IdentityError> {
    if is_json || original.is_empty() {
        return json_value(original);
    }
    Ok(JsonDocument::of_text(String::from_utf8_lossy(original)))
}

/// Parses a body as JSON, regardless of its content type. An empty body is null.
///
/// # Errors
/// The body is not JSON.
pub fn json_value(original: &[u8]) -> Result<JsonDocument<'_>, IdentityError> {
    if original.is_empty() {
        return Ok(JsonDocument::null());
    }
    loads(original).map_err(identity_error)
}

fn identity_error(error: JsonError) -> IdentityError {
    match error {
        JsonError::TooDeep | JsonError::Unreadable => IdentityError::Unreadable,
        JsonError::Decode { message, position } => json_invalid(message, position),
    }
}

/// The error that the first bytes of a body determine by themselves. `None` if the rest can change it.
/// `validate` is the model of the route. A member that is repeated after the first bytes is not considered.
pub fn prefix_error(
    first: &[u8],
    is_json: bool,
    validate: fn(PyValue<'_>) -> Result<(), IdentityError>,
) -> Option<IdentityError> {
    if !is_json {
        let text = String::from_utf8_lossy(first);
        return validate(JsonDocument::of_text(Cow::Borrowed(&text)).root()).err();
    }
    let document = match loads_prefix(first) {
        Ok(document) => document,
        Err(JsonError::TooDeep | JsonError::Unreadable) => return None,
        Err(error) => return Some(identity_error(error)),
    };
    // The rest of the body can add members that are missing here, unless the list of errors is already full.
    validate(document.root()).err().filter(IdentityError::is_truncated)
}

/// Validates a body against the model `IdentityWithTraits`.
///
/// # Errors
/// 422, with all errors in one list.
pub fn identity(body: PyValue<'_>) -> Result<RequestedIdentity<'_>, IdentityError> {
    let mut errors = ErrorList::default();
    if let PyValue::Null = body {
        errors.missing(&BODY, body);
    }
    let requested = match errors.is_empty() {
        true => identity_at(body, &BODY, &mut errors),
        false => RequestedIdentity::default(),
    };
    errors.into_result(requested)
}

/// As [`identity`], for an identity inside the body. Stops when the list of errors is full.
pub fn identity_at<'body>(
    body: PyValue<'body>,
    path: &ErrorLocation<'_>,
    errors: &mut ErrorList,
) -> RequestedIdentity<'body> {
    let mut requested = RequestedIdentity::default();
    let PyValue::Dict(members) = body else {
        errors.add(&MODEL_TYPE, path, body);
        return requested;
    };
    requested.identifier = identifier(members, &path.name("identifier"), errors);
    let traits_path = path.name("traits");
    match members.get("traits") {
        None => {}
        Some(PyValue::List(items)) => {
            for (index, item) in items.iter().enumerate() {
                if errors.is_full() {
                    break;
                }
                requested.traits.extend(trait_at(item, &traits_path.index(index), errors));
            }
        }
        Some(other) => errors.add(&LIST_TYPE, &traits_path, other),
    }
    requested
}

/// The identifier of an object. `None` if it is null, missing or empty. `path` is the identifier's location.
pub fn identifier<'body>(
    members: Dict<'body>,
    path: &ErrorLocation<'_>,
    errors: &mut ErrorList,
) -> Option<&'body str> {
    match members.get("identifier")? {
        PyValue::Null => None,
        PyValue::Text(text) => {
            errors.check_surrogates(text, path);
            errors.check_length(text, path);
            Some(text.text).filter(|text| !text.is_empty())
        }
        other => {
            errors.add(&STRING_TYPE, path, other);
            None
        }
    }
}

/// Validates one trait against the model `TraitModel`.
pub fn trait_at<'body>(
    item: PyValue<'body>,
    path: &ErrorLocation<'_>,
    errors: &mut ErrorList,
) -> Option<Trait<'body>> {
    let PyValue::Dict(members) = item else {
        errors.add(&MODEL_TYPE, path, item);
        return None;
    };
    let key_path = path.name("trait_key");
    let key = match members.get("trait_key") {
        None => {
            errors.missing(&key_path, item);
            None
        }
        Some(PyValue::Text(text)) => {
            errors.check_surrogates(text, &key_path);
            Some(text.text)
        }
        Some(other) => {
            errors.add(&STRING_TYPE, &key_path, other);
            None
        }
    };
    let value = match members.get("trait_value") {
        None => Some(TraitValue::Null),
        Some(value) => trait_value(value, &path.name("trait_value"), errors),
    };
    Some(Trait { key: key?, value: value? })
}

fn trait_value<'body>(
    value: PyValue<'body>,
    path: &ErrorLocation<'_>,
    errors: &mut ErrorList,
) -> Option<TraitValue<'body>> {
    let found = match value {
        PyValue::Null => TraitValue::Null,
        PyValue::Bool(value) => TraitValue::Bool(value),
        PyValue::Int(digits) => integer(digits),
        PyValue::Float(number) => TraitValue::Float(number),
        PyValue::Text(text) => {
            errors.check_surrogates(text, path);
            errors.check_length(text, path);
            TraitValue::Text(text.text)
        }
        PyValue::Dict(members) if typed(members).is_some() => typed(members)?,
        PyValue::List(_) | PyValue::Dict(_) => {
            for (member, kind) in
                [("str", &STRING_TYPE), ("int", &INT_TYPE), ("float", &FLOAT_TYPE), ("bool", &BOOL_TYPE)]
            {
                errors.add(kind, &path.name(member), value);
            }
            return None;
        }
    };
    Some(found)
}

/// The integer with these digits.
pub fn integer(digits: &str) -> TraitValue<'_> {
    digits.parse().map_or(TraitValue::BigInt(digits), TraitValue::Int)
}

/// The value of `{"value": ..., "type": ...}` (differences.md 14), with the Elixir SDK's four types or
/// Flagsmith core's names for its own. `None` for any other object.
pub fn typed(members: Dict<'_>) -> Option<TraitValue<'_>> {
    let Some(PyValue::Text(kind)) = members.get("type") else { return None };
    match (kind.text, members.get("value")?) {
        ("string" | "unicode" | "semver", PyValue::Text(text))
            if !text.has_lone_surrogate() && is_within_length(text.text) =>
        {
            Some(TraitValue::Text(text.text))
        }
        ("decimal" | "float" | "int", PyValue::Int(digits)) => Some(integer(digits)),
        ("decimal" | "float", PyValue::Float(number)) => Some(TraitValue::Float(number)),
        ("decimal" | "float" | "int", PyValue::Text(text)) => number(text, kind.text != "int"),
        ("boolean" | "bool", PyValue::Bool(value)) => Some(TraitValue::Bool(value)),
        ("boolean" | "bool", PyValue::Text(text)) => match text.text {
            "true" => Some(TraitValue::Bool(true)),
            "false" => Some(TraitValue::Bool(false)),
            _ => None,
        },
        (_, PyValue::Null) => Some(TraitValue::Null),
        _ => None,
    }
}

/// A number sent as text.
fn number(text: PyText<'_>, may_be_float: bool) -> Option<TraitValue<'_>> {
    match loads(text.text.as_bytes()).ok()?.root() {
        // The text is the number's digits, so they can be borrowed.
        PyValue::Int(_) => Some(integer(text.text.trim())),
        PyValue::Float(number) if may_be_float => Some(TraitValue::Float(number)),
        _ => None,
    }
}

/// Validates the identifier of a query.
///
/// # Errors
/// 422: it is missing or too long.
pub fn query_identifier(identifier: Option<&str>) -> Result<(), IdentityError> {
    let mut errors = ErrorList::default();
    let root = ErrorLocation::root("query");
    match identifier {
        None => errors.missing(&root.name("identifier"), PyValue::Null),
        Some(text) => errors.check_length(PyText::new(text), &root.name("identifier")),
    }
    errors.into_result(())
}
