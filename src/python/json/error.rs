//! Errors of `json.loads`.

/// The reason why a text cannot be read as JSON.
#[derive(Debug, PartialEq, Eq)]
pub enum JsonError {
    /// `JSONDecodeError`, with its message and the position in characters. A body: 422.
    Decode { message: &'static str, position: usize },
    /// `RecursionError`: nesting beyond the limit. A body: 400.
    TooDeep,
    /// Any other exception: `UnicodeDecodeError`, or `ValueError` for an integer of too many digits. A
    /// body: 400.
    Unreadable,
}
