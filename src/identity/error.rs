//! Why a request contains no valid identity.
#[derive(Debug, PartialEq, Eq)]
pub enum IdentityError {
    /// 422 with this body, FastAPI's `detail` list.
    Invalid(ErrorDetail),
    /// 422 as well, for text that cannot be encoded as UTF-8. The Python proxy fails on it only after it has
    /// checked the key (differences.md 29), so an invalid key takes precedence.
    Unwritable(ErrorDetail),
    /// 400: not UTF-8, nested too deeply, or with an integer of too many digits.
    Unreadable,
}

/// The body of a 422.
#[derive(Debug, PartialEq, Eq)]
pub struct ErrorDetail {
    pub body: Vec<u8>,
    /// The body omits some of the errors.
    pub is_truncated: bool,
}

impl IdentityError {
    /// The body of a 400.
    pub const UNREADABLE: &'static [u8] = br#"{"detail":"There was an error parsing the body"}"#;

    /// Whether the error is a list that has reached its limit, so that further errors would not change it.
    pub fn is_truncated(&self) -> bool {
        match self {
            Self::Invalid(detail) => detail.is_truncated,
            Self::Unwritable(_) | Self::Unreadable => false,
        }
    }
}
