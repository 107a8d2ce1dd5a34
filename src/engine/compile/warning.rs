//! Warnings of the compiler.

/// A part of an accepted document that never has an effect, such as a condition with an invalid pattern.
#[derive(Debug)]
pub struct CompileWarning {
    pub path: String,
    pub message: String,
}
