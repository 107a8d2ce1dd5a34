//! Python's semantics: numbers, text, regular expressions, JSON. No Flagsmith, no HTTP.
pub mod json;
pub mod number;
pub mod regex;
pub mod repr;
pub mod semver;
pub mod unicode;
