//! The text that Python's `str()` gives for an item of a JSON list.
//!
//! In: a value read by [`super::json_list`]. Out: its text; `None` where that text holds a lone
//! surrogate, which no request can send. Invariant: inside a container text is quoted and escaped
//! as `repr` does it.
use std::fmt::Write as _;

use crate::python::json_list::{CodePoints, Json};
use crate::python::number::{Integer, Value, write_str};
use crate::python::unicode::is_printable;

/// `v if type(v) is str else str(v)`.
pub fn item(value: &Json) -> Option<String> {
    let mut out = String::new();
    match value {
        Json::Text(text) => return text.iter().map(|code| char::from_u32(*code)).collect(),
        other => write_repr(other, &mut out),
    }
    Some(out)
}

fn write_repr(value: &Json, out: &mut String) {
    match value {
        Json::Null => write_str(&Value::Null, out),
        Json::Bool(bool) => write_str(&Value::Bool(*bool), out),
        Json::Integer(Integer::Small(number)) => write_str(&Value::Int(*number), out),
        Json::Integer(Integer::Big(number)) => {
            let _ = write!(out, "{number}");
        }
        Json::Float(number) => write_str(&Value::Float(*number), out),
        Json::Text(text) => write_quoted(text, out),
        Json::List(items) => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                out.push_str(if at > 0 { ", " } else { "" });
                write_repr(item, out);
            }
            out.push(']');
        }
        Json::Object(members) => {
            out.push('{');
            for (at, (name, value)) in members.iter().enumerate() {
                out.push_str(if at > 0 { ", " } else { "" });
                write_quoted(name, out);
                out.push_str(": ");
                write_repr(value, out);
            }
            out.push('}');
        }
    }
}

fn write_quoted(text: &CodePoints, out: &mut String) {
    let has = |wanted: char| text.contains(&u32::from(wanted));
    let quote = if has('\'') && !has('"') { '"' } else { '\'' };
    out.push(quote);
    for code in text {
        match char::from_u32(*code) {
            Some('\n') => out.push_str("\\n"),
            Some('\r') => out.push_str("\\r"),
            Some('\t') => out.push_str("\\t"),
            Some(char) if char == quote || char == '\\' => out.extend(['\\', char]),
            Some(char) if is_printable(char) => out.push(char),
            // Writing to a `String` cannot fail.
            _ if *code < 0x100 => {
                let _ = write!(out, "\\x{code:02x}");
            }
            _ if *code < 0x10000 => {
                let _ = write!(out, "\\u{code:04x}");
            }
            _ => {
                let _ = write!(out, "\\U{code:08x}");
            }
        }
    }
    out.push(quote);
}
