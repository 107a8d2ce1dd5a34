//! JSON as Python's `json.loads` reads it, with its error messages and positions.
//!
//! Beyond RFC 8259 it accepts a byte-order mark, UTF-16 and UTF-32, `NaN` and `Infinity`, and lone
//! surrogates. An integer may have 4,300 digits, nesting is limited, and the last of several members of one
//! name counts. Positions count characters, not bytes.
mod decode;
mod document;
mod error;
mod scan;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use crate::limits::JSON_DEPTH_MAX;
pub use crate::python::json::document::{Dict, JsonDocument, List, PyText, PyValue};
pub use crate::python::json::error::JsonError;
use crate::python::json::scan::Scanned;

/// `json.loads(bytes)`, for a request body.
///
/// # Errors
/// The exception that Python raises, as [`JsonError`].
pub fn loads(bytes: &[u8]) -> Result<JsonDocument<'_>, JsonError> {
    scan_bytes(bytes)?.complete()
}

/// `json.loads(text)` with at most `depth_max` containers inside each other.
///
/// # Errors
/// The exception that Python raises, as [`JsonError`].
pub fn loads_text(text: &str, depth_max: usize) -> Result<JsonDocument<'_>, JsonError> {
    scan::scan(JsonDocument::unread(Cow::Borrowed(text), Vec::new()), depth_max).complete()
}

/// Reads a prefix of a body. Containers that the prefix leaves open are closed.
///
/// # Errors
/// The exception that Python raises for every body with this prefix, as [`JsonError`]; also `Unreadable` if
/// the prefix ends within a character of UTF-16 or UTF-32.
pub fn loads_prefix(bytes: &[u8]) -> Result<JsonDocument<'_>, JsonError> {
    // The longest token or escape that the end of the prefix may have truncated.
    const TOKEN_BYTES_MAX: usize = 12;
    let is_continuation = |byte: &u8| byte & 0xc0 == 0x80;
    let mut end = bytes.len();
    for _ in 0..3 {
        end -= usize::from(end > 0 && bytes.get(end - 1).is_some_and(is_continuation));
    }
    end -= usize::from(end > 0 && bytes.get(end - 1).is_some_and(|byte| *byte >= 0xc0));
    let scanned = scan_bytes(&bytes[..end])?;
    match scanned.error {
        Some(error) if scanned.at + TOKEN_BYTES_MAX < scanned.document.text.len() => Err(error),
        _ => Ok(scanned.document),
    }
}

fn scan_bytes(bytes: &[u8]) -> Result<Scanned<'_>, JsonError> {
    let (text, surrogates) = decode::decode(bytes).ok_or(JsonError::Unreadable)?;
    Ok(scan::scan(JsonDocument::unread(text, surrogates), JSON_DEPTH_MAX))
}
