//! Flags that conditions read: which are resolved, which are being resolved, which depend on themselves.
//!
//! Python resolves a flag when a condition first reads it and keeps the result, so the order of evaluation
//! decides where a cycle is cut (compatibility.md 5.12). Chains of flags, the number of reads and the work
//! that cycles repeat are bounded.
use crate::engine::program::PENDING;
use crate::limits::{FLAG_CHAIN_MAX, FLAG_READS_MAX};
use crate::step_budget::StepBudget;

/// The flags that the conditions of one evaluation have read so far.
#[derive(Debug, Default)]
pub struct FlagDependencies {
    /// By feature, its output once resolved; [`PENDING`] before.
    outputs: Vec<u32>,
    /// By feature, whether it is part of a cycle.
    cyclic: Vec<bool>,
    /// The features being resolved: each depends on the next.
    resolving: Vec<u32>,
    /// The resolved features, in the order of their resolution.
    order: Vec<u32>,
    reads: usize,
    cuts: u32,
}

/// What a read of a flag finds.
pub enum FlagRead {
    Resolved(u32),
    /// The flag depends on itself, or a bound was reached.
    Unavailable,
    /// The caller must resolve the flag now and call [`FlagDependencies::finish`].
    Started,
}

impl FlagDependencies {
    pub fn reset(&mut self, features: usize) {
        self.outputs.clear();
        self.outputs.resize(features, PENDING);
        self.cyclic.clear();
        self.cyclic.resize(features, false);
        self.resolving.clear();
        self.order.clear();
        self.reads = 0;
        self.cuts = 0;
    }

    pub fn order(&self) -> &[u32] {
        &self.order
    }

    /// The number of reads that found nothing. A segment during whose evaluation it grows does not match.
    pub fn cuts(&self) -> u32 {
        self.cuts
    }

    pub fn is_cyclic(&self, feature: usize) -> bool {
        self.cyclic[feature]
    }

    /// The output of a resolved feature.
    pub fn output(&self, feature: usize) -> Option<u32> {
        Some(self.outputs[feature]).filter(|output| *output != PENDING)
    }

    /// Reads a flag (`_DependencyResolver.resolve_feature`). A read that is cut spends a step of `budget`.
    pub fn read(&mut self, feature: u32, budget: &StepBudget) -> FlagRead {
        if let Some(output) = self.output(feature as usize) {
            return FlagRead::Resolved(output);
        }
        if let Some(start) = self.resolving.iter().position(|other| *other == feature) {
            for member in &self.resolving[start..] {
                self.cyclic[*member as usize] = true;
            }
            return self.cut(budget);
        }
        self.reads += 1;
        let is_bounded = self.resolving.len() < FLAG_CHAIN_MAX && self.reads <= FLAG_READS_MAX;
        if !is_bounded || budget.is_exceeded() {
            // Python fails on such a document; here, segments that read the flag do not match.
            return self.cut(budget);
        }
        self.resolving.push(feature);
        FlagRead::Started
    }

    fn cut(&mut self, budget: &StepBudget) -> FlagRead {
        self.cuts += 1;
        budget.spend(1);
        FlagRead::Unavailable
    }

    /// Ends the resolution of a flag. Returns its output unless the flag turned out to be part of a cycle, or
    /// there is none: the budget was exceeded on the way.
    pub fn finish(&mut self, feature: u32, output: Option<u32>) -> Option<u32> {
        self.resolving.pop();
        let Some(output) = output else {
            self.cuts += 1;
            return None;
        };
        if self.cyclic[feature as usize] {
            return None;
        }
        self.outputs[feature as usize] = output;
        self.order.push(feature);
        Some(output)
    }
}
