//! The bodies of `traits/`, `traits/bulk/` and `traits/increment-value/`, as Flagsmith core reads them.
//!
//! A trait that is stored is read as in [`sent`](crate::identity::sent). One that is deleted is compared as
//! it was written, with its blanks, and may be longer than anything that is stored.
use std::borrow::Cow;

use crate::identity::error::IdentityError;
use crate::identity::error_list::{
    BLANK, ErrorList, ErrorLocation, INT_PARSING, LIST_TYPE, MODEL_TYPE, STRING_TYPE,
};
use crate::identity::sent::{SentValue, check_null, key, number_text, text_of, trait_value};
use crate::identity::validation_errors::BODY;
use crate::python::json::{Dict, PyValue};
use crate::python::number::float_str;
use crate::python::unicode::is_space;

/// An item of `PUT traits/bulk/`.
#[derive(Debug)]
pub struct SentItem<'a> {
    pub identifier: Cow<'a, str>,
    pub key: Cow<'a, str>,
    /// `None` deletes the key.
    pub value: Option<SentValue<'a>>,
}

/// A body of `traits/increment-value/`.
#[derive(Debug)]
pub struct Increment<'a> {
    pub identifier: Cow<'a, str>,
    pub key: Cow<'a, str>,
    pub amount: i64,
}

/// Reads a body of `POST traits/`.
///
/// # Errors
/// 422, with all errors in one list.
pub fn item(body: PyValue<'_>) -> Result<Option<SentItem<'_>>, IdentityError> {
    let mut errors = ErrorList::default();
    let item = stored_item(body, &BODY, &mut errors);
    errors.into_result(item)
}

/// The items of a body of `PUT traits/bulk/`. Those without a value delete, with keys as written.
///
/// # Errors
/// 422, with all errors in one list.
pub fn items(body: PyValue<'_>) -> Result<Vec<SentItem<'_>>, IdentityError> {
    let mut errors = ErrorList::default();
    let mut sent = Vec::new();
    match body {
        PyValue::List(items) => {
            for (index, item) in items.iter().enumerate() {
                if errors.is_full() {
                    break;
                }
                let at = BODY.index(index);
                let PyValue::Dict(members) = item else {
                    errors.add(&MODEL_TYPE, &at, item);
                    continue;
                };
                let deletes = members.get("trait_value").is_none_or(|value| matches!(value, PyValue::Null));
                sent.extend(match deletes {
                    true => deleted_item(members, item, &at, &mut errors),
                    false => stored_item(item, &at, &mut errors),
                });
            }
        }
        PyValue::Dict(members) if members.is_empty() => {}
        other => errors.add(&LIST_TYPE, &BODY, other),
    }
    errors.into_result(sent)
}

/// A trait to be stored.
fn stored_item<'a>(
    item: PyValue<'a>,
    path: &ErrorLocation<'_>,
    errors: &mut ErrorList,
) -> Option<SentItem<'a>> {
    let PyValue::Dict(members) = item else {
        errors.add(&MODEL_TYPE, path, item);
        return None;
    };
    let identity_path = path.name("identity");
    let identifier = match members.get("identity") {
        None => {
            errors.missing(&identity_path, item);
            None
        }
        Some(PyValue::Dict(identity)) => required_text(identity, "identifier", &identity_path, errors),
        Some(other) => {
            errors.add(&MODEL_TYPE, &identity_path, other);
            None
        }
    };
    let key = key(members, path, item, errors);
    let value_path = path.name("trait_value");
    let value = match members.get("trait_value") {
        None => {
            errors.missing(&value_path, item);
            None
        }
        Some(PyValue::Null) => {
            errors.add(&STRING_TYPE, &value_path, PyValue::Null);
            None
        }
        Some(value) => trait_value(value, &value_path, true, errors),
    };
    Some(SentItem { identifier: identifier?, key: key?, value: Some(value?) })
}

/// A trait to be deleted. `None` if it names nothing that can be stored.
fn deleted_item<'a>(
    members: Dict<'a>,
    item: PyValue<'a>,
    path: &ErrorLocation<'_>,
    errors: &mut ErrorList,
) -> Option<SentItem<'a>> {
    let identity_path = path.name("identity");
    let identity = match members.get("identity") {
        Some(PyValue::Dict(identity)) => identity,
        Some(other) => {
            errors.add(&MODEL_TYPE, &identity_path, other);
            return None;
        }
        None => {
            errors.missing(&identity_path, item);
            return None;
        }
    };
    let identifier_path = identity_path.name("identifier");
    if identity.get("identifier").is_none() {
        errors.missing(&identifier_path, PyValue::Dict(identity));
    }
    let identifier = as_written(identity.get("identifier")?, &identifier_path, errors)?;
    let key = as_written(members.get("trait_key")?, &path.name("trait_key"), errors)?;
    Some(SentItem { identifier, key, value: None })
}

/// A text or number as it is, for a comparison. `None` for what is never stored.
fn as_written<'a>(
    value: PyValue<'a>,
    at: &ErrorLocation<'_>,
    errors: &mut ErrorList,
) -> Option<Cow<'a, str>> {
    match value {
        PyValue::Text(text) => {
            errors.check_surrogates(text, at);
            check_null(text, at, errors);
            Some(Cow::Borrowed(text.text))
        }
        PyValue::Int(_) | PyValue::Float(_) => number_text(value),
        _ => None,
    }
}

/// A body of `POST traits/increment-value/`: the identifier, the key and the amount.
///
/// # Errors
/// 422, with all errors in one list.
pub fn increment(body: PyValue<'_>) -> Result<Option<Increment<'_>>, IdentityError> {
    let mut errors = ErrorList::default();
    let PyValue::Dict(members) = body else {
        errors.add(&MODEL_TYPE, &BODY, body);
        return errors.into_result(None);
    };
    let identifier = required_text(members, "identifier", &BODY, &mut errors);
    let key = key(members, &BODY, body, &mut errors);
    let at = BODY.name("increment_by");
    let amount = match members.get("increment_by") {
        None => {
            errors.missing(&at, body);
            None
        }
        Some(value) => {
            let amount = whole(value);
            if amount.is_none() {
                errors.add(&INT_PARSING, &at, value);
            }
            amount
        }
    };
    let increment = identifier.zip(key).zip(amount);
    let increment = increment.map(|((identifier, key), amount)| Increment { identifier, key, amount });
    errors.into_result(increment)
}

/// An integer, also as text and with `.0`, as Django REST framework reads it.
fn whole(value: PyValue<'_>) -> Option<i64> {
    let text = match value {
        PyValue::Int(digits) => return digits.parse().ok(),
        PyValue::Float(number) => float_str(number),
        PyValue::Text(text) => text.text.trim_matches(is_space).to_owned(),
        _ => return None,
    };
    let digits = text.split_once('.').map_or(&*text, |(digits, zeros)| match zeros.trim_matches('0') {
        "" => digits,
        _ => "",
    });
    digits.strip_prefix('+').unwrap_or(digits).parse().ok()
}

/// A member that must be a text with more than blanks.
fn required_text<'a>(
    members: Dict<'a>,
    name: &str,
    path: &ErrorLocation<'_>,
    errors: &mut ErrorList,
) -> Option<Cow<'a, str>> {
    let at = path.name(name);
    let Some(value) = members.get(name) else {
        errors.missing(&at, PyValue::Dict(members));
        return None;
    };
    let text = text_of(value, &at, true, errors)?;
    if text.is_empty() {
        errors.add(&BLANK, &at, value);
        return None;
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::python::json::loads;

    #[test]
    fn amounts_may_be_text() {
        let amount = |value: &str| {
            let body = format!(r#"{{"identifier":"i","trait_key":"k","increment_by":{value}}}"#);
            let document = loads(body.as_bytes()).expect("JSON");
            increment(document.root()).map(|found| found.map(|found| found.amount))
        };
        for (sent, expected) in [("3", 3), ("\"3\"", 3), ("-4", -4), ("3.0", 3), ("\" 5.00\"", 5)] {
            assert_eq!(amount(sent), Ok(Some(expected)), "{sent}");
        }
        for sent in ["1.5", "true", "\"x\"", "null", "\"\"", "99999999999999999999"] {
            assert!(amount(sent).is_err(), "{sent}");
        }
    }
}
