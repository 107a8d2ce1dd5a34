//! Renders the traits that a response echoes, with numbers in orjson's format.
//!
//! Big integers keep all of their digits; `NaN` and infinities become null.
use crate::engine::evaluate::{Trait, TraitValue};
use crate::json::write;

/// Appends traits, separated by commas.
pub fn write_all(traits: &[Trait<'_>], out: &mut Vec<u8>) {
    for (index, item) in traits.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write(item, out);
    }
}

/// Appends `{"trait_key":...,"trait_value":...}`, without `transient`: no SDK needs it, and the iOS SDK
/// cannot parse a null (compatibility.md 2.2).
pub fn write(item: &Trait<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"trait_key\":");
    write::string(item.key, out);
    out.extend_from_slice(b",\"trait_value\":");
    write_value(item.value, out);
    out.push(b'}');
}

/// Appends only the value.
pub fn write_value(value: TraitValue<'_>, out: &mut Vec<u8>) {
    match value {
        TraitValue::Null => out.extend_from_slice(b"null"),
        TraitValue::Bool(true) => out.extend_from_slice(b"true"),
        TraitValue::Bool(false) => out.extend_from_slice(b"false"),
        TraitValue::Int(number) => out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes()),
        TraitValue::BigInt(digits) => out.extend_from_slice(digits.as_bytes()),
        TraitValue::Float(number) => write::float(number, out),
        TraitValue::Text(text) => write::string(text, out),
    }
}
