//! What of kept traits can be forwarded, and in which form: core's rules for `traits/bulk/`, checked before,
//! so that one trait does not spoil a batch.
use crate::engine::evaluate::TraitValue;
use crate::json::write;
use crate::limits::{IDENTIFIER_CHARS_MAX, TRAIT_FORWARD_KEY_CHARS_MAX, TRAIT_FORWARD_TEXT_CHARS_MAX};

/// The value that deletes a trait.
pub const DELETION: &str = "null";

/// Integers up to here are exact as floating-point numbers.
const EXACT_MAX: i64 = 1 << 53;

/// A key as core stores it; `None` if core rejects it.
pub fn key_of(key: &str) -> Option<&str> {
    text_of(key, TRAIT_FORWARD_KEY_CHARS_MAX)
}

/// An identifier as core stores it; `None` if core rejects it.
pub fn identifier_of(identifier: &str) -> Option<&str> {
    text_of(identifier, IDENTIFIER_CHARS_MAX)
}

fn text_of(text: &str, chars_max: usize) -> Option<&str> {
    let text = text.trim_matches(|char: char| char.is_whitespace() || ('\x1c'..='\x1f').contains(&char));
    let is_valid = !text.is_empty() && !text.contains('\0') && text.chars().count() <= chars_max;
    is_valid.then_some(text)
}

/// A value in JSON; `None` if core rejects it. Core's integers have 32 bits: larger ones are sent as
/// floating-point numbers where these are exact.
pub fn json_of(value: Option<TraitValue<'_>>) -> Option<String> {
    match value {
        None | Some(TraitValue::Null) => Some(DELETION.to_owned()),
        Some(TraitValue::Bool(value)) => Some(value.to_string()),
        Some(TraitValue::Int(number)) if i32::try_from(number).is_ok() => Some(number.to_string()),
        Some(TraitValue::Int(number)) => {
            (-EXACT_MAX..=EXACT_MAX).contains(&number).then(|| format!("{number}.0"))
        }
        Some(TraitValue::BigInt(_)) => None,
        Some(TraitValue::Float(number)) => number.is_finite().then(|| format!("{number:?}")),
        Some(TraitValue::Text(text)) => {
            let is_valid = !text.contains('\0') && text.chars().count() <= TRAIT_FORWARD_TEXT_CHARS_MAX;
            is_valid.then(|| {
                let mut json = Vec::new();
                write::string(text, &mut json);
                String::from_utf8(json).unwrap_or_default()
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_core_rejects_is_not_forwarded() {
        let long = |count| "ü".repeat(count);
        assert_eq!((key_of(" plan\u{a0}"), key_of("a b")), (Some("plan"), Some("a b")));
        assert_eq!((key_of(&long(200)).map(str::len), key_of(&long(201))), (Some(400), None));
        assert_eq!((key_of(" \t"), key_of("a\0b"), identifier_of("")), (None, None, None));
        assert_eq!((identifier_of(&long(2000)).is_some(), identifier_of(&long(2001))), (true, None));
        for (value, expected) in [
            (None, Some("null")),
            (Some(TraitValue::Null), Some("null")),
            (Some(TraitValue::Bool(true)), Some("true")),
            (Some(TraitValue::Int(2_147_483_647)), Some("2147483647")),
            (Some(TraitValue::Int(-2_147_483_648)), Some("-2147483648")),
            (Some(TraitValue::Int(2_147_483_648)), Some("2147483648.0")),
            (Some(TraitValue::Int(1_735_229_888_000)), Some("1735229888000.0")),
            (Some(TraitValue::Int(i64::MAX)), None),
            (Some(TraitValue::BigInt("123456789012345678901234567890")), None),
            (Some(TraitValue::Float(1.0)), Some("1.0")),
            (Some(TraitValue::Float(-1e-7)), Some("-1e-7")),
            (Some(TraitValue::Float(1e22)), Some("1e22")),
            (Some(TraitValue::Float(f64::INFINITY)), None),
            (Some(TraitValue::Text("")), Some("\"\"")),
            (Some(TraitValue::Text(" a\"b\n")), Some(r#"" a\"b\n""#)),
            (Some(TraitValue::Text("a\0")), None),
            (Some(TraitValue::Text(&"x".repeat(2001))), None),
        ] {
            assert_eq!(json_of(value).as_deref(), expected, "{value:?}");
            if let Some(json) = json_of(value) {
                serde_json::from_str::<serde_json::Value>(&json).expect("valid JSON");
            }
        }
        assert!(json_of(Some(TraitValue::Text(&"ü".repeat(2000)))).is_some());
    }
}
