//! Why a document is refused.

/// Why a document was refused: where in it, and what was expected (one line, no secrets).
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
