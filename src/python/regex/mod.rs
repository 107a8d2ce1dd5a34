//! Regular expressions as Python's `re` reads them (compatibility.md 5.10).
//!
//! In: the pattern of a REGEX condition, when a document is compiled. Out: a [`Pattern`] that
//! answers what `re.match` answers: anchored at the start, free at the end. Python's dialect is
//! parsed here, since no crate has it; the result goes to an automaton (`linear`) where one can
//! take it and to a bounded back-tracking matcher (`backtrack`) where none can.
//! Invariant: matching costs a bounded number of steps, whatever the pattern and the text; what
//! `re.compile` refuses is refused.
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
    /// Where `linear` is absent or cannot answer for a text.
    program: Option<RegexProgram>,
}

/// What is left for the automata of a document's patterns.
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
    /// Compiles a pattern; its automaton is charged to `budget`.
    ///
    /// # Errors
    /// Python's `re.compile` raises for it.
    pub fn compile(text: &str, budget: &mut AutomataBudget) -> Result<Self, PatternError> {
        if text.len() > PATTERN_BYTES_MAX {
            return Err(PatternError::new("the pattern is too long"));
        }
        let parsed = parse::parse(text)?;
        let node = resolve::resolve(parsed.items, parsed.flags);
        let linear = Linear::new(&node, &mut budget.bytes);
        let needs_program = !linear.as_ref().is_some_and(Linear::takes_all);
        let program = needs_program.then(|| RegexProgram::new(&node, parsed.groups));
        Ok(Self { linear, program })
    }

    /// Whether a match costs little more than a look at each byte of a text.
    pub fn is_cheap(&self) -> bool {
        self.linear.as_ref().is_some_and(Linear::is_cheap)
    }

    /// Whether `re.match(pattern, text)` finds one.
    /// A match that has to track back spends steps of `budget`, and without them finds nothing.
    pub fn is_match(&self, text: &str, budget: &StepBudget) -> bool {
        match (&self.linear, &self.program) {
            (Some(linear), _) if linear.takes(text) => linear.is_match(text),
            (_, Some(program)) => backtrack::is_match(program, text, budget),
            (Some(linear), None) => linear.is_match(text),
            (None, None) => false,
        }
    }
}
