//! What pydantic 2.7 says of a body that FastAPI parsed: an identity, or what is wrong with it.
//!
//! In: a body as Python holds it ([`PyValue`]). Out: [`RequestedIdentity`], or a [`IdentityError`] whose body
//! has the same `type`, `loc`, `msg`, `input` and `url` as the Python proxy's (compatibility.md 2.6), in the
//! order of the model's fields. Where Python answers 500 (half a surrogate pair, `NaN` in what
//! it quotes) this answers 422. Typed trait values and transient identities are taken
//! (differences.md 13, 14). Nothing here looks at keys or documents.
use std::borrow::Cow;

use crate::engine::evaluate::{Trait, TraitValue};
use crate::identity::IdentityError;
use crate::identity::errors::{
    BOOL_TYPE, ErrorList, ErrorLocation, FLOAT_TYPE, INT_TYPE, LIST_TYPE, MODEL_TYPE, STRING_TYPE,
    is_within_length, json_invalid,
};
use crate::python::json::{Dict, JsonDocument, JsonError, PyText, PyValue, loads, loads_prefix};

/// What a body's values are found under.
pub const BODY: ErrorLocation<'static> = ErrorLocation::root("body");

/// An identity that was asked for, borrowed from the parsed body.
#[derive(Debug, Default)]
pub struct RequestedIdentity<'body> {
    /// `None`: a transient identity (differences.md 13).
    pub identifier: Option<&'body str>,
    pub traits: Vec<Trait<'body>>,
}

/// The body as FastAPI hands it to pydantic: parsed if it is JSON, else as text.
///
/// # Errors
/// It is not JSON but should be.
pub fn body_value(original: &[u8], is_json: bool) -> Result<JsonDocument<'_>, IdentityError> {
    if is_json || original.is_empty() {
        return json_value(original);
    }
    Ok(JsonDocument::of_text(String::from_utf8_lossy(original)))
}

/// A body that is JSON whatever its content type says; an empty one is null.
///
/// # Errors
/// It is not JSON.
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

/// Why a body is refused whatever follows its first bytes, by the model that `judge` is; `None` if that
/// depends on the rest. A member that is sent again later counts as it is here.
pub fn prefix_error(
    first: &[u8],
    is_json: bool,
    judge: fn(PyValue<'_>) -> Result<(), IdentityError>,
) -> Option<IdentityError> {
    if !is_json {
        let text = String::from_utf8_lossy(first);
        return judge(JsonDocument::of_text(Cow::Borrowed(&text)).root()).err();
    }
    let document = match loads_prefix(first) {
        Ok(document) => document,
        Err(JsonError::TooDeep | JsonError::Unreadable) => return None,
        Err(error) => return Some(identity_error(error)),
    };
    // What is missing may follow, but for what is missing within the first of too many errors.
    judge(document.root()).err().filter(IdentityError::is_cut)
}

/// Judges a body as the model `IdentityWithTraits` does.
///
/// # Errors
/// It is not of that shape: 422, all that is wrong in one list.
pub fn identity(body: PyValue<'_>) -> Result<RequestedIdentity<'_>, IdentityError> {
    let mut errors = ErrorList::default();
    if let PyValue::Null = body {
        errors.missing(&BODY, body);
    }
    let asked = match errors.is_empty() {
        true => identity_at(body, &BODY, &mut errors),
        false => RequestedIdentity::default(),
    };
    errors.into_result(asked)
}

/// As [`identity`], for an identity somewhere inside the body. Ends when there are too many errors to list.
pub fn identity_at<'body>(
    body: PyValue<'body>,
    path: &ErrorLocation<'_>,
    errors: &mut ErrorList,
) -> RequestedIdentity<'body> {
    let mut asked = RequestedIdentity::default();
    let PyValue::Dict(members) = body else {
        errors.known(&MODEL_TYPE, path, body);
        return asked;
    };
    asked.identifier = identifier(members, &path.name("identifier"), errors);
    let traits_path = path.name("traits");
    match members.get("traits") {
        None => {}
        Some(PyValue::List(items)) => {
            for (index, item) in items.iter().enumerate() {
                if errors.is_full() {
                    break;
                }
                asked.traits.extend(trait_at(item, &traits_path.index(index), errors));
            }
        }
        Some(other) => errors.known(&LIST_TYPE, &traits_path, other),
    }
    asked
}

/// The identifier of an object that holds one; null, absent and empty are none. `path` is the identifier's.
pub fn identifier<'body>(
    members: Dict<'body>,
    path: &ErrorLocation<'_>,
    errors: &mut ErrorList,
) -> Option<&'body str> {
    match members.get("identifier")? {
        PyValue::Null => None,
        PyValue::Text(text) => {
            errors.whole_text(text, path);
            errors.length(text, path);
            Some(text.text).filter(|text| !text.is_empty())
        }
        other => {
            errors.known(&STRING_TYPE, path, other);
            None
        }
    }
}

/// Judges one trait as the model `TraitModel` does.
pub fn trait_at<'body>(
    item: PyValue<'body>,
    path: &ErrorLocation<'_>,
    errors: &mut ErrorList,
) -> Option<Trait<'body>> {
    let PyValue::Dict(members) = item else {
        errors.known(&MODEL_TYPE, path, item);
        return None;
    };
    let key_path = path.name("trait_key");
    let key = match members.get("trait_key") {
        None => {
            errors.missing(&key_path, item);
            None
        }
        Some(PyValue::Text(text)) => {
            errors.whole_text(text, &key_path);
            Some(text.text)
        }
        Some(other) => {
            errors.known(&STRING_TYPE, &key_path, other);
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
            errors.whole_text(text, path);
            errors.length(text, path);
            TraitValue::Text(text.text)
        }
        PyValue::Dict(members) if typed(members).is_some() => typed(members)?,
        PyValue::List(_) | PyValue::Dict(_) => {
            for (member, kind) in
                [("str", &STRING_TYPE), ("int", &INT_TYPE), ("float", &FLOAT_TYPE), ("bool", &BOOL_TYPE)]
            {
                errors.known(kind, &path.name(member), value);
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
fn typed(members: Dict<'_>) -> Option<TraitValue<'_>> {
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

/// A number that was sent as text. No number is longer than an integer may be.
fn number(text: PyText<'_>, may_be_float: bool) -> Option<TraitValue<'_>> {
    match loads(text.text.as_bytes()).ok()?.root() {
        // The digits that the body holds are those of the number, so they can be borrowed.
        PyValue::Int(_) => Some(integer(text.text.trim())),
        PyValue::Float(number) if may_be_float => Some(TraitValue::Float(number)),
        _ => None,
    }
}

/// The identifier of a query.
///
/// # Errors
/// 422: there is none, or it is too long.
pub fn query_identifier(identifier: Option<&str>) -> Result<(), IdentityError> {
    let mut errors = ErrorList::default();
    let root = ErrorLocation::root("query");
    match identifier {
        None => errors.missing(&root.name("identifier"), PyValue::Null),
        Some(text) => errors.length(PyText::new(text), &root.name("identifier")),
    }
    errors.into_result(())
}
