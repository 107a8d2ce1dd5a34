//! Step budgets: the work of one request's conditions that its size does not bound.
//!
//! A document's JSONPath or regular expression can take time quadratic or exponential in what a
//! client sends. Each request therefore has a budget of steps per kind, shared by all of its
//! conditions. Invariant: steps are counted, never timed, so the same request against the same
//! document always spends the same and gets the same answer.
use std::cell::Cell;

use crate::limits::{BULK_TEXT_BYTES_MAX, JSONPATH_STEPS_MAX, PATTERN_STEPS_REQUEST_MAX};

/// Steps left of a budget.
#[derive(Debug)]
pub struct StepBudget {
    left: Cell<u32>,
    is_exceeded: Cell<bool>,
}

impl StepBudget {
    pub const fn new(steps: u32) -> Self {
        Self { left: Cell::new(steps), is_exceeded: Cell::new(false) }
    }

    /// Takes `steps`, and returns whether there were as many. Once there were not, nothing is left.
    pub fn spend(&self, steps: usize) -> bool {
        let left = u32::try_from(steps).ok().and_then(|steps| self.left.get().checked_sub(steps));
        self.left.set(left.unwrap_or(0));
        if left.is_none() {
            self.is_exceeded.set(true);
        }
        left.is_some()
    }

    /// Steps that can still be spent.
    pub fn left(&self) -> u32 {
        self.left.get()
    }

    /// Whether more was asked for than there was.
    pub fn is_exceeded(&self) -> bool {
        self.is_exceeded.get()
    }

    /// As [`Self::is_exceeded`], once: from then on it says no.
    pub fn take_exceeded(&self) -> bool {
        self.is_exceeded.take()
    }
}

/// The budgets of one request.
#[derive(Debug)]
pub struct RequestBudget {
    /// For general JSONPath queries: a step is about one node looked at.
    pub jsonpath: StepBudget,
    /// For regular expressions: a step is one of a match.
    pub patterns: StepBudget,
    /// For several identities in one request: bytes of values that conditions hash or search. It ends
    /// no condition; the request is refused as a whole.
    pub texts: StepBudget,
}

impl RequestBudget {
    /// Notes that a condition hashes or searches a value of so many bytes.
    #[inline]
    pub fn read(&self, bytes: usize) {
        self.texts.spend(TEXT_BYTES_MIN + bytes);
    }
}

/// What a condition on the shortest value counts as, bytes: hashing one takes a block of MD5.
const TEXT_BYTES_MIN: usize = 64;

impl Default for RequestBudget {
    fn default() -> Self {
        Self {
            jsonpath: StepBudget::new(JSONPATH_STEPS_MAX),
            patterns: StepBudget::new(PATTERN_STEPS_REQUEST_MAX),
            texts: StepBudget::new(BULK_TEXT_BYTES_MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::step_budget::StepBudget;

    #[test]
    fn a_budget_that_was_exceeded_stays_empty() {
        let budget = StepBudget::new(3);
        assert!(budget.spend(2) && budget.spend(1) && !budget.is_exceeded());
        assert!(!budget.spend(1) && budget.is_exceeded());
        let budget = StepBudget::new(3);
        assert!(!budget.spend(usize::MAX), "a count beyond 32 bits does not wrap");
        assert_eq!((budget.left(), budget.spend(1)), (0, false));
    }
}
