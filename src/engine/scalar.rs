//! Scalars of a document in the form in which conditions read them.
use crate::engine::document::raw_json::{float, is_number, string};
use crate::engine::identity::TraitValue;

/// A JSON scalar with owned text. Conditions read arrays and objects as null.
#[derive(Debug)]
pub enum Scalar {
    Null,
    Bool(bool),
    Int(i64),
    BigInt(Box<str>),
    Float(f64),
    Text(Box<str>),
}

impl Scalar {
    /// Reads canonical JSON text as conditions read it.
    pub fn from_raw(raw: &str) -> Self {
        match raw {
            "true" => Self::Bool(true),
            "false" => Self::Bool(false),
            _ if is_number(raw) => match (raw.parse(), float(raw)) {
                (_, Some(number)) => Self::Float(number),
                (Ok(number), None) => Self::Int(number),
                (Err(_), None) => Self::BigInt(raw.into()),
            },
            _ => string(raw).map_or(Self::Null, |text| Self::Text(text.into())),
        }
    }

    /// The same value as a trait.
    pub fn as_trait_value(&self) -> TraitValue<'_> {
        match self {
            Self::Null => TraitValue::Null,
            Self::Bool(bool) => TraitValue::Bool(*bool),
            Self::Int(number) => TraitValue::Int(*number),
            Self::BigInt(digits) => TraitValue::BigInt(digits),
            Self::Float(number) => TraitValue::Float(*number),
            Self::Text(text) => TraitValue::Text(text),
        }
    }
}
