//! Python's semantics of numbers, strings, JSON, regular expressions and PyPI's semantic versions.
pub mod json;
pub mod number;
pub mod regex;
pub mod repr;
pub mod semver;
pub mod unicode;
