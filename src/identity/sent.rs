//! Identities and traits as Flagsmith core reads them: for a proxy that keeps traits.
//!
//! Accepts what core accepts and converts it as core does: outer blanks of keys and identifiers are cut,
//! numbers as identifier or key are text, `transient` has several forms, lists and objects become the text
//! that Python prints. What core refuses, or fails on, is a 422 here (docs/traits.md).
use std::borrow::Cow;

use crate::engine::evaluate::{Trait, TraitValue};
use crate::identity::error::IdentityError;
use crate::identity::error_list::{
    BLANK, BOOL_PARSING, ErrorList, ErrorLocation, FINITE_NUMBER, KEY_TOO_LONG, LIST_TYPE, MODEL_TYPE,
    NULL_CHARACTER, STRING_TYPE, is_within_length,
};
use crate::identity::fast_path::FastIdentity;
use crate::identity::query;
use crate::identity::validation_errors::{BODY, body_value, integer, typed};
use crate::limits::TRAIT_KEY_CHARS_MAX;
use crate::python::json::{Dict, PyText, PyValue};
use crate::python::number::float_str;
use crate::python::repr;
use crate::python::unicode::is_space;

const FORM: &[u8] = b"application/x-www-form-urlencoded";

/// An identity of a body.
#[derive(Debug, Default)]
pub struct SentIdentity<'a> {
    /// `None`: missing, null or blank.
    pub identifier: Option<Cow<'a, str>>,
    /// The identity and all of its traits count for this answer only.
    pub is_transient: bool,
    pub traits: Vec<BodyTrait<'a>>,
}

/// A trait of a body.
#[derive(Debug)]
pub struct BodyTrait<'a> {
    pub key: Cow<'a, str>,
    pub value: SentValue<'a>,
    /// Counts for this answer only.
    pub is_transient: bool,
}

/// A value as sent, or the text that Python prints for a list or an object.
#[derive(Debug)]
pub enum SentValue<'a> {
    Plain(TraitValue<'a>),
    Printed(String),
}

impl BodyTrait<'_> {
    pub fn value(&self) -> TraitValue<'_> {
        match &self.value {
            SentValue::Plain(value) => *value,
            SentValue::Printed(text) => TraitValue::Text(text),
        }
    }
}

/// A body as SDKs write it: nothing in it is transient or converted.
#[derive(Clone, Copy, Debug)]
pub struct PlainIdentity<'a> {
    pub identifier: &'a str,
    pub traits: &'a [Trait<'a>],
    /// The traits as JSON without the brackets, if they were sent exactly as they are echoed.
    pub echo: Option<&'a str>,
}

/// A body in either form.
#[derive(Debug)]
pub enum SentBody<'a> {
    Plain(PlainIdentity<'a>),
    Full(SentIdentity<'a>),
}

impl<'a> SentBody<'a> {
    pub fn into_full(self) -> SentIdentity<'a> {
        let plain = match self {
            Self::Full(full) => return full,
            Self::Plain(plain) => plain,
        };
        let sent = |item: &Trait<'a>| BodyTrait {
            key: Cow::Borrowed(item.key),
            value: SentValue::Plain(item.value),
            is_transient: false,
        };
        SentIdentity {
            identifier: Some(Cow::Borrowed(plain.identifier)),
            is_transient: false,
            traits: plain.traits.iter().map(sent).collect(),
        }
    }
}

/// What the fast path parsed, if core reads the same.
pub fn plain<'a>(fast: &FastIdentity<'a>, traits: &'a [Trait<'a>]) -> Option<PlainIdentity<'a>> {
    let is_plain = fast.is_plain && is_trimmed(fast.identifier);
    if !is_plain || !traits.iter().all(|item| is_trimmed(item.key) && item.key.len() <= TRAIT_KEY_CHARS_MAX) {
        return None;
    }
    Some(PlainIdentity { identifier: fast.identifier, traits, echo: fast.echo })
}

/// Reads a body of `POST identities/`. An empty body is an object without members.
pub fn read<R>(
    body: &[u8],
    content_type: Option<&[u8]>,
    is_json: bool,
    then: impl FnOnce(Result<SentIdentity<'_>, IdentityError>) -> R,
) -> R {
    if body.is_empty() {
        return then(Ok(SentIdentity::default()));
    }
    let media = content_type.and_then(|value| value.split(|byte| *byte == b';').next()).unwrap_or_default();
    if media.trim_ascii().eq_ignore_ascii_case(FORM) {
        let identifier = query::parameter(body, "identifier");
        let identifier = identifier.map(trimmed).filter(|text| !text.is_empty());
        let mut errors = ErrorList::default();
        if let Some(text) = &identifier {
            check_text(PyText::new(text), &BODY.name("identifier"), false, &mut errors);
        }
        return then(errors.into_result(SentIdentity { identifier, ..SentIdentity::default() }));
    }
    let document = match body_value(body, is_json) {
        Ok(document) => document,
        Err(error) => return then(Err(error)),
    };
    let mut errors = ErrorList::default();
    let sent = identity_at(document.root(), &BODY, &mut errors);
    then(errors.into_result(sent))
}

/// Reads an identity inside a body.
pub fn identity_at<'a>(
    body: PyValue<'a>,
    path: &ErrorLocation<'_>,
    errors: &mut ErrorList,
) -> SentIdentity<'a> {
    let mut sent = SentIdentity::default();
    let PyValue::Dict(members) = body else {
        errors.add(&MODEL_TYPE, path, body);
        return sent;
    };
    sent.is_transient = transient(members, path, errors);
    if let Some(value) = members.get("identifier").filter(|value| !matches!(value, PyValue::Null)) {
        let at = path.name("identifier");
        // Only what is stored has a limit.
        let identifier = text_of(value, &at, !sent.is_transient, errors);
        sent.identifier = identifier.filter(|text| !text.is_empty());
    }
    let traits_path = path.name("traits");
    match members.get("traits") {
        None => {}
        Some(PyValue::List(items)) => {
            for (index, item) in items.iter().enumerate() {
                if errors.is_full() {
                    break;
                }
                let at = traits_path.index(index);
                let is_stored = !sent.is_transient && sent.identifier.is_some();
                sent.traits.extend(trait_at(item, &at, is_stored, errors));
            }
        }
        Some(other) => errors.add(&LIST_TYPE, &traits_path, other),
    }
    sent
}

fn trait_at<'a>(
    item: PyValue<'a>,
    path: &ErrorLocation<'_>,
    is_stored: bool,
    errors: &mut ErrorList,
) -> Option<BodyTrait<'a>> {
    let PyValue::Dict(members) = item else {
        errors.add(&MODEL_TYPE, path, item);
        return None;
    };
    let is_transient = transient(members, path, errors);
    let key = key(members, path, item, errors);
    let value_path = path.name("trait_value");
    let value = match members.get("trait_value") {
        None => {
            errors.missing(&value_path, item);
            None
        }
        Some(value) => trait_value(value, &value_path, is_stored && !is_transient, errors),
    };
    Some(BodyTrait { key: key?, value: value?, is_transient })
}

/// The key of a trait.
pub fn key<'a>(
    members: Dict<'a>,
    path: &ErrorLocation<'_>,
    item: PyValue<'a>,
    errors: &mut ErrorList,
) -> Option<Cow<'a, str>> {
    let at = path.name("trait_key");
    let Some(value) = members.get("trait_key") else {
        errors.missing(&at, item);
        return None;
    };
    let key = text_of(value, &at, false, errors)?;
    if key.is_empty() {
        errors.add(&BLANK, &at, value);
        return None;
    }
    if key.len() > TRAIT_KEY_CHARS_MAX && key.chars().count() > TRAIT_KEY_CHARS_MAX {
        errors.add(&KEY_TOO_LONG, &at, value);
        return None;
    }
    Some(key)
}

/// A text without its outer blanks, or a number as text.
pub fn text_of<'a>(
    value: PyValue<'a>,
    at: &ErrorLocation<'_>,
    is_limited: bool,
    errors: &mut ErrorList,
) -> Option<Cow<'a, str>> {
    match value {
        PyValue::Text(text) => {
            let trimmed = text.text.trim_matches(is_space);
            errors.check_surrogates(text, at);
            check_null(text, at, errors);
            if is_limited {
                errors.check_length(PyText::new(trimmed), at);
            }
            Some(Cow::Borrowed(trimmed))
        }
        PyValue::Int(_) | PyValue::Float(_) => {
            let text = number_text(value);
            if text.is_none() {
                errors.add(&FINITE_NUMBER, at, value);
            }
            text
        }
        other => {
            errors.add(&STRING_TYPE, at, other);
            None
        }
    }
}

/// Python's `str` of a number; `None` if it is not finite.
pub fn number_text(value: PyValue<'_>) -> Option<Cow<'_, str>> {
    match value {
        PyValue::Int(digits) => Some(match integer(digits) {
            TraitValue::Int(number) => Cow::Owned(number.to_string()),
            _ => Cow::Borrowed(digits),
        }),
        PyValue::Float(number) if number.is_finite() => Some(Cow::Owned(float_str(number))),
        _ => None,
    }
}

pub fn trait_value<'a>(
    value: PyValue<'a>,
    at: &ErrorLocation<'_>,
    is_stored: bool,
    errors: &mut ErrorList,
) -> Option<SentValue<'a>> {
    let found = match value {
        PyValue::Null => TraitValue::Null,
        PyValue::Bool(value) => TraitValue::Bool(value),
        PyValue::Int(digits) => integer(digits),
        PyValue::Float(number) if number.is_finite() => TraitValue::Float(number),
        PyValue::Float(_) => {
            errors.add(&FINITE_NUMBER, at, value);
            return None;
        }
        PyValue::Text(text) => {
            check_text(text, at, !is_stored, errors);
            TraitValue::Text(text.text)
        }
        // Exactly these two members are Elixir's typed value (differences.md 14).
        PyValue::Dict(members) if members.len() == 2 && typed(members).is_some() => typed(members)?,
        PyValue::List(_) | PyValue::Dict(_) => {
            let text = repr::str(value)?;
            errors.check_length(PyText::new(&text), at);
            return Some(SentValue::Printed(text));
        }
    };
    Some(SentValue::Plain(found))
}

/// Checks a text with a limit; a null character cannot be stored.
fn check_text(text: PyText<'_>, at: &ErrorLocation<'_>, allows_null: bool, errors: &mut ErrorList) {
    errors.check_surrogates(text, at);
    errors.check_length(text, at);
    if !allows_null {
        check_null(text, at, errors);
    }
}

pub fn check_null(text: PyText<'_>, at: &ErrorLocation<'_>, errors: &mut ErrorList) {
    if text.text.contains('\0') {
        errors.add(&NULL_CHARACTER, at, PyValue::Text(text));
    }
}

/// The member `transient`, in the forms of Django REST framework.
fn transient(members: Dict<'_>, path: &ErrorLocation<'_>, errors: &mut ErrorList) -> bool {
    let Some(value) = members.get("transient") else { return false };
    let found = match value {
        PyValue::Bool(value) => Some(value),
        PyValue::Int(digits) => match integer(digits) {
            TraitValue::Int(1) => Some(true),
            TraitValue::Int(0) => Some(false),
            _ => None,
        },
        PyValue::Float(1.0) => Some(true),
        PyValue::Float(0.0) => Some(false),
        PyValue::Text(text) => match text.text.to_lowercase().as_str() {
            "t" | "y" | "yes" | "true" | "on" | "1" => Some(true),
            "f" | "n" | "no" | "false" | "off" | "0" => Some(false),
            _ => None,
        },
        _ => None,
    };
    if found.is_none() {
        errors.add(&BOOL_PARSING, &path.name("transient"), value);
    }
    found.unwrap_or_default()
}

/// The identifier of a query: blanks are part of it, a null character cannot be stored. That of a transient
/// identity has no limit.
///
/// # Errors
/// 422: it is missing, empty, too long, or has a null character.
pub fn query_identifier(identifier: Option<&str>, is_transient: bool) -> Result<(), IdentityError> {
    let mut errors = ErrorList::default();
    let root = ErrorLocation::root("query");
    let at = root.name("identifier");
    match identifier {
        None => errors.missing(&at, PyValue::Null),
        Some("") => errors.add(&BLANK, &at, PyValue::Text(PyText::new(""))),
        Some(text) if is_transient => check_null(PyText::new(text), &at, &mut errors),
        Some(text) => check_text(PyText::new(text), &at, false, &mut errors),
    }
    errors.into_result(())
}

fn trimmed(text: Cow<'_, str>) -> Cow<'_, str> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.trim_matches(is_space)),
        Cow::Owned(text) => Cow::Owned(text.trim_matches(is_space).to_owned()),
    }
}

/// Whether a text is not empty and begins and ends with something else than a blank.
fn is_trimmed(text: &str) -> bool {
    let is_text = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_graphic);
    let bytes = text.as_bytes();
    if is_text(bytes.first()) && is_text(bytes.last()) {
        return true;
    }
    !text.is_empty() && text.trim_matches(is_space).len() == text.len() && is_within_length(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(body: &str) -> Result<Vec<(String, String)>, IdentityError> {
        read(body.as_bytes(), None, true, |sent| {
            let show = |item: &BodyTrait<'_>| (item.key.to_string(), format!("{:?}", item.value()));
            sent.map(|sent| sent.traits.iter().map(show).collect())
        })
    }

    fn of(value: &str) -> Result<String, IdentityError> {
        let body = format!(r#"{{"identifier":"i","traits":[{{"trait_key":" k ","trait_value":{value}}}]}}"#);
        values(&body).map(|list| {
            assert_eq!(list[0].0, "k");
            list[0].1.clone()
        })
    }

    #[test]
    fn values_are_converted_as_core_converts_them() {
        for (sent, expected) in [
            ("-0", "Int(0)"),
            ("1e2", "Float(100.0)"),
            ("123456789012345678901234567890", "BigInt(\"123456789012345678901234567890\")"),
            ("[1, \"a\", null, 1.0]", r#"Text("[1, 'a', None, 1.0]")"#),
            (r#"{"value":"gold","type":"string"}"#, "Text(\"gold\")"),
            (
                r#"{"value":"gold","type":"string","x":1}"#,
                r#"Text("{'value': 'gold', 'type': 'string', 'x': 1}")"#,
            ),
            (r#"{"value":[],"type":"odd"}"#, r#"Text("{'value': [], 'type': 'odd'}")"#),
            ("null", "Null"),
        ] {
            assert_eq!(of(sent).as_deref(), Ok(expected), "{sent}");
        }
        for sent in ["1e400", "\"a\\u0000b\"", "\"\\ud800\""] {
            assert!(of(sent).is_err(), "{sent}");
        }
    }

    #[test]
    fn keys_identifiers_and_transient_are_read_as_core_reads_them() {
        let sent = |body: &str| {
            read(body.as_bytes(), None, true, |sent| {
                sent.map(|sent| (sent.identifier.map(Cow::into_owned), sent.is_transient))
            })
        };
        let identifier = |text: &str| Ok((Some(text.to_owned()), false));
        assert_eq!(sent(r#"{"identifier":"\u2003a b\n"}"#), identifier("a b"));
        assert_eq!(sent(r#"{"identifier":12}"#), identifier("12"));
        assert_eq!(sent(r#"{"identifier":1.50}"#), identifier("1.5"));
        assert_eq!(sent(""), Ok((None, false)));
        assert_eq!(sent(r#"{"identifier":"  ","transient":"Yes"}"#), Ok((None, true)));
        for body in [
            "[]",
            "null",
            r#"{"identifier":true}"#,
            r#"{"identifier":"a","transient":null}"#,
            r#"{"identifier":"a","traits":null}"#,
            r#"{"identifier":"a","traits":[{"trait_key":"k"}]}"#,
            r#"{"identifier":"a","traits":[{"trait_key":"","trait_value":1}]}"#,
        ] {
            assert!(sent(body).is_err(), "{body}");
        }
        let long = |count| format!(r#"{{"identifier":"{}","transient":true}}"#, "i".repeat(count));
        assert!(sent(&long(2001)).is_ok() && sent(&long(2001).replace("true", "false")).is_err());
        let form = read(b"identifier=+a%20b", Some(b"application/x-www-form-urlencoded"), false, |sent| {
            sent.map(|sent| sent.identifier.map(Cow::into_owned))
        });
        assert_eq!(form, Ok(Some("a b".to_owned())));
    }
}
