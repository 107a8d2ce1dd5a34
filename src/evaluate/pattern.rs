//! Regular expressions as Python's `re` reads them (wire.md 5.10).
//!
//! In: the pattern of a REGEX condition, when a document is compiled. Out: a [`Pattern`] that
//! answers what `re.match` answers: anchored at the start, free at the end.
//! Invariant: matching costs a bounded number of steps, whatever the pattern and the text.
use fancy_regex::{Regex, RegexBuilder};

/// Steps that a back-tracking match may take. Beyond, it is no match.
const BACKTRACKS_MAX: usize = 100_000;

/// A compiled pattern.
#[derive(Clone, Debug)]
pub struct Pattern {
    regex: Regex,
}

/// Why a pattern cannot be used: what Python says, or what this engine lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatternError(pub String);

impl std::fmt::Display for PatternError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for PatternError {}

impl Pattern {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// Python's `re.compile` raises for it, or it is too large.
    pub fn compile(text: &str) -> Result<Self, PatternError> {
        RegexBuilder::new(&format!(r"\A(?:{text})"))
            .backtrack_limit(BACKTRACKS_MAX)
            .build()
            .map(|regex| Self { regex })
            .map_err(|error| PatternError(error.to_string()))
    }

    /// Whether `re.match(pattern, text)` finds one.
    pub fn is_match(&self, text: &str) -> bool {
        self.regex.is_match(text).unwrap_or(false)
    }
}
