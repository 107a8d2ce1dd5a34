//! The one place of ahead-of-time work: from a document to an [`Environment`].
use bytes::Bytes;

use super::Role;

/// A whole response body that depends on the document alone, ready to be sent.
#[derive(Debug, Default)]
pub struct Ready {
    pub plain: Bytes,
    /// `None` if it is too small to be worth it (`limits::COMPRESS_BYTES_MIN`).
    pub gzip: Option<Bytes>,
    /// Strong validator with its quotes (RFC 9110 8.8.3), over what is served.
    pub etag: Box<str>,
}

/// A document made ready to answer requests.
#[derive(Debug)]
pub struct Environment {}

/// Why a document was refused: where in it, and what was expected (one line, no secrets).
#[derive(Debug)]
pub struct CompileError {
    /// JSON path, such as `$.feature_states[3].feature.name`.
    pub path: String,
    pub message: String,
}

/// Something in an accepted document that can never work as meant, such as a bad pattern.
#[derive(Debug)]
pub struct Warning {
    pub path: String,
    pub message: String,
}

impl Environment {
    /// Compiles one whole document (all pages merged).
    ///
    /// # Errors
    /// The document is not JSON or has not the shape of wire.md 3.
    pub fn compile(_document: &[u8]) -> Result<(Self, Vec<Warning>), CompileError> {
        unimplemented!("engine")
    }
    /// The document's `api_key`.
    pub fn client_side_key(&self) -> &str {
        unimplemented!("engine")
    }
    /// The document's `updated_at`, seconds since the epoch.
    pub fn updated_at(&self) -> Option<f64> {
        unimplemented!("engine")
    }
    /// The whole `/flags/` body for that role.
    pub fn flags(&self, _role: Role) -> &Ready {
        unimplemented!("engine")
    }
    /// One flag's object of the `/flags/` body, for `?feature=`.
    pub fn flag(&self, _role: Role, _name: &str) -> Option<&[u8]> {
        unimplemented!("engine")
    }
    /// The whole `/environment-document/` body, secrets left out (differences.md 28).
    pub fn document(&self) -> &Ready {
        unimplemented!("engine")
    }
    /// False: traits sent with a client-side key are not evaluated (differences.md 11).
    pub fn allow_client_traits(&self) -> bool {
        unimplemented!("engine")
    }
    /// True: `traits` is `[]` in the answer (differences.md 12).
    pub fn hide_sensitive_data(&self) -> bool {
        unimplemented!("engine")
    }
}
