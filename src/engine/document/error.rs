//! Errors of reading and compiling a document.

/// A document was rejected. The message is one line and has no secrets.
#[derive(Debug)]
pub struct CompileError {
    /// JSON path, such as `$.feature_states[3].feature.name`.
    pub path: String,
    pub message: String,
}

impl CompileError {
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }
}
