//! Python's `str()` and `repr()` of the values of a JSON text.
use std::fmt::Write as _;

use crate::python::json::{PyText, PyValue};
use crate::python::number::write_float;
use crate::python::unicode::is_printable;

/// `str(value)`; `None` if that has a lone surrogate, which no request can send. Within containers `repr`
/// escapes them.
pub fn str(value: PyValue<'_>) -> Option<String> {
    if let PyValue::Text(text) = value {
        return (!text.has_lone_surrogate()).then(|| text.text.to_owned());
    }
    let mut out = String::new();
    write_repr(value, &mut out);
    Some(out)
}

fn write_repr(value: PyValue<'_>, out: &mut String) {
    match value {
        PyValue::Null => out.push_str("None"),
        PyValue::Bool(true) => out.push_str("True"),
        PyValue::Bool(false) => out.push_str("False"),
        PyValue::Int(digits) => out.push_str(digits),
        PyValue::Float(number) => write_float(number, out),
        PyValue::Text(text) => write_quoted(text, out),
        PyValue::List(items) => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                out.push_str(if at > 0 { ", " } else { "" });
                write_repr(item, out);
            }
            out.push(']');
        }
        PyValue::Dict(members) => {
            out.push('{');
            for (at, (name, value)) in members.exact_members().into_iter().enumerate() {
                out.push_str(if at > 0 { ", " } else { "" });
                write_quoted(name, out);
                out.push_str(": ");
                write_repr(value, out);
            }
            out.push('}');
        }
    }
}

fn write_quoted(text: PyText<'_>, out: &mut String) {
    let quote = if text.text.contains('\'') && !text.text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for code in text.code_points() {
        match char::from_u32(code) {
            Some('\n') => out.push_str("\\n"),
            Some('\r') => out.push_str("\\r"),
            Some('\t') => out.push_str("\\t"),
            Some(char) if char == quote || char == '\\' => out.extend(['\\', char]),
            Some(char) if is_printable(char) => out.push(char),
            // Writing to a `String` cannot fail.
            _ if code < 0x100 => {
                let _ = write!(out, "\\x{code:02x}");
            }
            _ if code < 0x10000 => {
                let _ = write!(out, "\\u{code:04x}");
            }
            _ => {
                let _ = write!(out, "\\U{code:08x}");
            }
        }
    }
    out.push(quote);
}
