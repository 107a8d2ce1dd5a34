//! Scratch buffers of an evaluation, reused from request to request, and its results.
use crate::engine::evaluate::context::ContextValues;
use crate::engine::evaluate::flag_dependencies::FlagDependencies;
use crate::engine::evaluate::hashing;
use crate::engine::program::Program;
use crate::step_budget::RequestBudget;

/// Buffers for one evaluation at a time, and the results of the last one, from which `render` writes
/// responses.
#[derive(Debug, Default)]
pub struct EvaluationScratch {
    pub(super) values: ContextValues,
    pub(super) outputs: Vec<u32>,
    pub(super) changed: Vec<u64>,
    pub(super) conditions: Memo,
    pub(super) segments: Memo,
    /// As bits: the segments that can still match, and those known to match.
    pub(super) possible: Vec<u64>,
    pub(super) matching: Vec<u64>,
    /// Features whose winning state has variants, each with its split.
    pub(super) splits: Vec<(u32, u32)>,
    pub(super) epoch: u32,
    /// For Python's `str()` of a value.
    pub(super) buffer: String,
    pub(super) flags: FlagDependencies,
    pub(super) matched: Vec<bool>,
    pub(super) budget: RequestBudget,
    pub(super) cut_slots: Vec<u32>,
}

impl EvaluationScratch {
    /// By feature, the index of its [`crate::engine::program::RenderedFlag`];
    /// [`crate::engine::program::CYCLIC`] may be set.
    pub fn outputs(&self) -> &[u32] {
        &self.outputs
    }

    /// As bits: the features whose output is not their first own one. Undefined where conditions read flags.
    pub fn changed(&self) -> &[u64] {
        &self.changed
    }

    /// Where conditions read flags: whether each segment of the program matched. Undefined elsewhere: only
    /// segments that matter are evaluated.
    pub fn matched(&self) -> &[bool] {
        &self.matched
    }

    /// Where conditions read flags: the features they read, in the order of resolution, without those in a
    /// cycle.
    pub fn resolved_order(&self) -> &[u32] {
        self.flags.order()
    }

    /// The slots of the conditions that ran out of steps in the last evaluation.
    pub fn cut_slots(&self) -> &[u32] {
        &self.cut_slots
    }

    /// What is left of the budget of the last request.
    pub fn budget(&self) -> &RequestBudget {
        &self.budget
    }

    /// Sets the results to those that hold for every identity.
    pub(super) fn reset_results(&mut self, program: &Program) {
        self.cut_slots.clear();
        self.outputs.clear();
        self.outputs.extend_from_slice(&program.initial_outputs);
        self.changed.clear();
        self.changed.extend_from_slice(&program.initially_changed);
    }

    /// Invalidates the memos, and reserves space for those of this evaluation.
    pub(super) fn begin(&mut self, program: &Program) {
        self.splits.clear();
        self.epoch = (self.epoch + 1) & (u32::MAX >> 1);
        if self.epoch == 0 {
            // The epoch wraps once in 2^31 evaluations: entries of its last use would count again.
            self.conditions.entries.fill(0);
            self.segments.entries.fill(0);
            self.epoch = 1;
        }
        self.conditions.reserve(program.memo_count as usize);
        self.segments.reserve(program.segments.len());
    }

    /// Writes the outputs of the identity's overrides. The identity key must be set.
    pub(super) fn apply_overrides(&mut self, program: &Program, identifier: &str) {
        for (feature, state) in program.overrides.find(identifier) {
            self.outputs[*feature as usize] = state.output().unwrap_or_else(|| {
                let split = &program.splits[state.split() as usize];
                split.output(hashing::hash(&[&split.key, &self.values.identity_key]))
            });
            set_bit(&mut self.changed, *feature);
        }
    }
}

/// Results of one evaluation, invalidated without clearing: an entry is valid if it has the current epoch.
#[derive(Debug, Default)]
pub struct Memo {
    entries: Vec<u32>,
}

impl Memo {
    fn reserve(&mut self, count: usize) {
        if self.entries.len() < count {
            self.entries.resize(count, 0);
        }
    }

    #[inline]
    pub fn get(&self, index: u32, epoch: u32) -> Option<bool> {
        let entry = self.entries[index as usize];
        (entry >> 1 == epoch).then_some(entry & 1 == 1)
    }

    #[inline]
    pub fn put(&mut self, index: u32, epoch: u32, result: bool) {
        self.entries[index as usize] = (epoch << 1) | u32::from(result);
    }
}

/// Sets a bit in a bit mask of many words.
pub fn set_bit(words: &mut [u64], index: u32) {
    words[index as usize / 64] |= 1 << (index % 64);
}
