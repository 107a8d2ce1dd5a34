//! Step budgets: limits on the work that the conditions of one request may cause.
//!
//! A JSONPath or a regular expression of a document can take time quadratic or exponential in what a client
//! sends. Each request therefore has a budget of steps per kind, shared by all of its conditions. Steps are
//! counted, never timed: the same request against the same document always gets the same response.
use std::cell::Cell;

use crate::limits::{
    BULK_TEXT_BYTES_MAX, FLAG_CYCLE_STEPS_MAX, JSONPATH_STEPS_MAX, PATTERN_STEPS_REQUEST_MAX,
};
use crate::work;

/// The remaining steps of a budget.
#[derive(Debug)]
pub struct StepBudget {
    left: Cell<u32>,
    is_exceeded: Cell<bool>,
}

impl StepBudget {
    pub const fn new(steps: u32) -> Self {
        Self { left: Cell::new(steps), is_exceeded: Cell::new(false) }
    }

    /// Takes `steps` from the budget and returns whether there were enough. If not, the budget is exceeded
    /// and empty from then on.
    pub fn spend(&self, steps: usize) -> bool {
        work::charge(steps.min(self.left.get() as usize));
        self.take(steps)
    }

    fn take(&self, steps: usize) -> bool {
        let left = u32::try_from(steps).ok().and_then(|steps| self.left.get().checked_sub(steps));
        self.left.set(left.unwrap_or(0));
        if left.is_none() {
            self.is_exceeded.set(true);
        }
        left.is_some()
    }

    /// Marks the budget as exceeded, because of work that is not counted in its steps.
    pub fn exhaust(&self) {
        self.left.set(0);
        self.is_exceeded.set(true);
    }

    /// The steps that can still be spent.
    pub fn left(&self) -> u32 {
        self.left.get()
    }

    /// Whether a `spend` failed.
    pub fn is_exceeded(&self) -> bool {
        self.is_exceeded.get()
    }

    /// As [`Self::is_exceeded`], and resets it.
    pub fn take_exceeded(&self) -> bool {
        self.is_exceeded.take()
    }
}

/// The budgets of one request.
#[derive(Debug)]
pub struct RequestBudget {
    /// For general JSONPath queries: a step is about one visited node.
    pub jsonpath: StepBudget,
    /// For regular expressions: a step of the backtracking matcher.
    pub patterns: StepBudget,
    /// For several identities in one request: bytes of values that conditions hash or search. Exceeding it
    /// rejects the whole request; no condition is cut short.
    pub texts: StepBudget,
    /// For flags that conditions read: what cycles cut, and results of segments that are discarded because of
    /// it. Documents without cycles spend nothing.
    pub flag_cycles: StepBudget,
}

impl RequestBudget {
    /// Records that a condition hashes or searches a value of that many bytes.
    #[inline]
    pub fn read(&self, bytes: usize) {
        work::count_bytes(bytes);
        self.texts.take(TEXT_BYTES_MIN + bytes);
    }
}

/// Minimum charge for a condition, in bytes: hashing the shortest value takes one MD5 block.
const TEXT_BYTES_MIN: usize = 64;

impl Default for RequestBudget {
    fn default() -> Self {
        Self {
            jsonpath: StepBudget::new(JSONPATH_STEPS_MAX),
            patterns: StepBudget::new(PATTERN_STEPS_REQUEST_MAX),
            texts: StepBudget::new(BULK_TEXT_BYTES_MAX),
            flag_cycles: StepBudget::new(FLAG_CYCLE_STEPS_MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::step_budget::StepBudget;

    #[test]
    fn an_exceeded_budget_stays_empty() {
        let budget = StepBudget::new(3);
        assert!(budget.spend(2) && budget.spend(1) && !budget.is_exceeded());
        assert!(!budget.spend(1) && budget.is_exceeded());
        let budget = StepBudget::new(3);
        assert!(!budget.spend(usize::MAX), "a count beyond 32 bits does not wrap");
        assert_eq!((budget.left(), budget.spend(1)), (0, false));
    }
}
