//! Regular expressions with the syntax and semantics of Python's `re.match` (compatibility.md 5.10).
//!
//! No crate has Python's dialect, so it is parsed here. A pattern compiles to a finite automaton (`linear`)
//! where possible and to a backtracking matcher with a step limit (`backtrack`) elsewhere, so the cost of a
//! match is bounded for any pattern and text.
mod backtrack;
mod error;
mod escape;
mod flags;
mod group;
mod linear;
mod parse;
mod program;
mod resolve;
mod set;
mod syntax;
#[cfg(test)]
mod tests;
mod token;
mod width;

use crate::limits::{PATTERN_AUTOMATA_BYTES_MAX, PATTERN_BYTES_MAX};
pub use crate::python::regex::error::PatternError;
use crate::python::regex::linear::Linear;
use crate::python::regex::program::RegexProgram;
use crate::step_budget::StepBudget;

/// A compiled pattern.
#[derive(Clone, Debug)]
pub struct Pattern {
    linear: Option<Linear>,
    /// Present if `linear` is absent or does not support every text.
    program: Option<RegexProgram>,
}

/// Memory that remains for the automata of a document's patterns.
#[derive(Debug)]
pub struct AutomataBudget {
    bytes: usize,
}

impl Default for AutomataBudget {
    fn default() -> Self {
        Self { bytes: PATTERN_AUTOMATA_BYTES_MAX }
    }
}

impl Pattern {
    /// Compiles a pattern and charges its automaton to `budget`.
    ///
    /// # Errors
    /// Python's `re.compile` raises `re.error`, or the pattern exceeds `limits::PATTERN_BYTES_MAX`.
    pub fn compile(text: &str, budget: &mut AutomataBudget) -> Result<Self, PatternError> {
        if text.len() > PATTERN_BYTES_MAX {
            return Err(PatternError::new("the pattern is too long"));
        }
        let parsed = parse::parse(text)?;
        let node = resolve::resolve(parsed.items, parsed.flags);
        let linear = Linear::new(&node, &mut budget.bytes);
        let needs_program = !linear.as_ref().is_some_and(Linear::supports_all);
        let program = needs_program.then(|| RegexProgram::new(&node, parsed.groups));
        Ok(Self { linear, program })
    }

    /// Whether a match costs one table lookup for each byte of an ASCII text.
    pub fn is_cheap(&self) -> bool {
        self.linear.as_ref().is_some_and(Linear::is_cheap)
    }

    /// Whether `re.match(pattern, text)` matches. Backtracking spends steps of `budget`; once they are
    /// spent the result is false.
    pub fn is_match(&self, text: &str, budget: &StepBudget) -> bool {
        match (&self.linear, &self.program) {
            (Some(linear), _) if linear.supports(text) => linear.is_match(text),
            (_, Some(program)) => backtrack::is_match(program, text, budget),
            (Some(linear), None) => linear.is_match(text),
            (None, None) => false,
        }
    }
}
