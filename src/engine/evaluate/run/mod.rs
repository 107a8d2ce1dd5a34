//! One evaluation: which segments match, which state of each feature wins.
//!
//! In: a program, an identity or none, the caller's room. Out: one output per feature. Two ways to
//! the same answer: where no condition reads a flag, each feature takes its first matching override
//! and nothing else is asked; where one does, Python's order of evaluation is replayed, because it
//! decides which cycles are cut (compatibility.md 5.12).
//! Invariant: a condition that occurs twice is asked once; cycles and chains of flags are bounded.
mod flag_dependencies;

use crate::engine::evaluate::context::ContextValues;
use crate::engine::evaluate::md5x8::{LANES, hash_each};
use crate::engine::evaluate::operators::holds;
use crate::engine::evaluate::prefilter::narrow;
use crate::engine::evaluate::{Identity, hashing};
use crate::engine::jsonpath::Subject;
use crate::engine::program::{
    CANDIDATES_WALKED_MAX, Candidate, Expression, Feature, FeatureState, OpenFeature, PENDING, Program, Span,
    Split, offset,
};
use crate::python::number::Value;
use crate::step_budget::RequestBudget;

/// Set beside an output: the flag is in a cycle of flags (compatibility.md 5.12).
pub const CYCLIC: u32 = 1 << 31;

/// Walking a segment that is left costs about as much as this many candidates.
const LEFT_COST: usize = 2;

/// Answers of this request, kept without clearing: an entry counts if it carries the current epoch.
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
    fn of(&self, index: u32, epoch: u32) -> Option<bool> {
        let entry = self.entries[index as usize];
        (entry >> 1 == epoch).then_some(entry & 1 == 1)
    }

    #[inline]
    fn put(&mut self, index: u32, epoch: u32, answer: bool) {
        self.entries[index as usize] = (epoch << 1) | u32::from(answer);
    }
}

/// Room for one evaluation.
#[derive(Debug, Default)]
pub struct EvaluationState {
    pub values: ContextValues,
    /// Per feature.
    pub outputs: Vec<u32>,
    /// As bits: see [`Program::changed_at_start`].
    pub changed: Vec<u64>,
    conditions: Memo,
    segments: Memo,
    /// As bits: the segments that can match, and of those the ones that do.
    possible: Vec<u64>,
    certain: Vec<u64>,
    /// Features whose winning state has variants, and those.
    splits: Vec<(u32, u32)>,
    epoch: u32,
    buffer: String,
    /// Used where conditions read flags: per feature the output once resolved, and whether it is in
    /// a cycle; the features being resolved; whether each segment matched.
    resolved: Vec<u32>,
    cyclic: Vec<bool>,
    resolving: Vec<u32>,
    /// The features resolved so far, in that order.
    pub resolved_order: Vec<u32>,
    pub matched: Vec<bool>,
    /// What is left of the request's budget.
    pub budget: RequestBudget,
    /// The slots of conditions that ran out of steps.
    pub cut_slots: Vec<u32>,
}

impl EvaluationState {
    /// Forgets the answers of the last evaluation, and makes space for those of this one.
    fn begin(&mut self, program: &Program) {
        self.epoch = (self.epoch + 1) & (u32::MAX >> 1);
        if self.epoch == 0 {
            // Once in two thousand million requests: what is left of the last round would count again.
            self.conditions.entries.fill(0);
            self.segments.entries.fill(0);
            self.epoch = 1;
        }
        self.conditions.reserve(program.memo_count as usize);
        self.segments.reserve(program.segments.len());
    }
}

/// Evaluates every feature into `room.outputs`. `key` stands for the identity's key if it is given.
/// Identity overrides count only `with_overrides`.
pub fn run(
    program: &Program,
    identity: Option<&Identity<'_>>,
    key: Option<&str>,
    with_overrides: bool,
    room: &mut EvaluationState,
) {
    room.cut_slots.clear();
    room.outputs.clear();
    room.outputs.extend_from_slice(&program.outputs_at_start);
    room.changed.clear();
    room.changed.extend_from_slice(&program.changed_at_start);
    if program.open_features.is_empty() && program.overrides.is_empty() {
        return;
    }
    room.begin(program);
    room.values.begin(program, identity, key);
    if let Some(identity) = identity.filter(|_| with_overrides) {
        for (feature, state) in program.overrides.find(identity.identifier) {
            room.outputs[*feature as usize] = state.output().unwrap_or_else(|| {
                let split = &program.splits[state.split() as usize];
                split.output(hashing::hash(&[&split.key, &room.values.identity_key]))
            });
            set(&mut room.changed, *feature);
        }
    }
    room.splits.clear();
    let is_narrowed = match program.flags {
        None => {
            let budget = &room.budget;
            narrow(program, identity, &mut room.values, &mut room.buffer, &mut room.possible, budget)
        }
        Some(_) => {
            room.values.fill(program, identity);
            false
        }
    };
    let queried = identity.filter(|_| program.has_queries);
    let subject = queried.map(|identity| Subject::new(*identity, &room.values.identity_key));
    let mut run = Evaluator {
        program,
        identity,
        subject: subject.as_ref(),
        found: Vec::new(),
        budget: &room.budget,
        cut_slots: &mut room.cut_slots,
        values: &room.values,
        conditions: &mut room.conditions,
        segments: &mut room.segments,
        possible: &mut room.possible,
        certain: &mut room.certain,
        is_narrowed,
        splits: &mut room.splits,
        epoch: room.epoch,
        buffer: &mut room.buffer,
        outputs: &mut room.outputs,
        changed: &mut room.changed,
        resolved: &mut room.resolved,
        cyclic: &mut room.cyclic,
        resolving: &mut room.resolving,
        resolved_order: &mut room.resolved_order,
        cycle_hits: 0,
        reads: 0,
    };
    match &program.flags {
        None => run.settle(),
        Some(_) => run.replay(&mut room.matched),
    }
}

/// The first candidate that can win: where it is, and itself if that is certain.
#[inline]
fn first_certain<'c>(
    candidates: &'c [Candidate],
    certain: &[u64],
    possible: &[u64],
) -> (usize, Option<&'c Candidate>) {
    for (index, candidate) in candidates.iter().enumerate() {
        let (word, bit) = (candidate.segment as usize / 64, 1 << (candidate.segment % 64));
        if possible[word] & bit != 0 {
            return (index, Some(candidate).filter(|_| certain[word] & bit != 0));
        }
    }
    (candidates.len(), None)
}

/// Sets a bit of many words.
fn set(words: &mut [u64], index: u32) {
    words[index as usize / 64] |= 1 << (index % 64);
}

struct Evaluator<'r> {
    program: &'r Program,
    identity: Option<&'r Identity<'r>>,
    /// The identity as queries see it.
    subject: Option<&'r Subject<'r>>,
    /// By slot what a query found that sees no flags: it is asked once.
    found: Vec<Option<Value<'r>>>,
    budget: &'r RequestBudget,
    cut_slots: &'r mut Vec<u32>,
    values: &'r ContextValues,
    conditions: &'r mut Memo,
    segments: &'r mut Memo,
    possible: &'r mut Vec<u64>,
    certain: &'r mut Vec<u64>,
    /// The lookups apply: of each segment only the rest is to be asked.
    is_narrowed: bool,
    splits: &'r mut Vec<(u32, u32)>,
    epoch: u32,
    buffer: &'r mut String,
    outputs: &'r mut Vec<u32>,
    changed: &'r mut Vec<u64>,
    resolved: &'r mut Vec<u32>,
    cyclic: &'r mut Vec<bool>,
    resolving: &'r mut Vec<u32>,
    resolved_order: &'r mut Vec<u32>,
    cycle_hits: u32,
    reads: usize,
}

impl<'r> Evaluator<'r> {
    /// Each feature takes its first matching override.
    fn settle(&mut self) {
        let program = self.program;
        self.certain.clear();
        if self.is_narrowed {
            let sure = program.lookups.sure.iter().zip(&*self.possible);
            self.certain.extend(sure.map(|(sure, possible)| sure & possible));
        } else {
            self.certain.resize(self.possible.len(), 0);
        }
        let can_match = self.possible.iter().any(|word| *word != 0);
        for open in &program.open_features {
            if self.outputs[open.feature as usize] != PENDING {
                continue;
            }
            let winner = if can_match { self.winner(open) } else { None };
            let state = winner.unwrap_or(open.state);
            match (state.output(), self.identity) {
                (Some(output), _) => self.put(open.feature, output),
                (None, Some(_)) => self.splits.push((open.feature, state.split())),
                (None, None) => {
                    self.put(open.feature, program.splits[state.split() as usize].without_identity);
                }
            }
        }
        self.settle_splits();
    }

    #[inline]
    fn put(&mut self, feature: u32, output: u32) {
        self.outputs[feature as usize] = output;
        if output != self.program.first_output + feature {
            set(self.changed, feature);
        }
    }

    /// The variants of all features that have some, several hashes at once.
    fn settle_splits(&mut self) {
        let (program, splits) = (self.program, std::mem::take(self.splits));
        for splits in splits.chunks(LANES) {
            self.budget.read(self.values.identity_key.len() * splits.len() / LANES);
            let mut keys = [""; LANES];
            for (key, (_, split)) in keys.iter_mut().zip(splits) {
                *key = &program.splits[*split as usize].key;
            }
            let hashes = hash_each(&keys[..splits.len()], &self.values.identity_key);
            for ((feature, split), hash) in splits.iter().zip(hashes) {
                self.put(*feature, program.splits[*split as usize].output(hash));
            }
        }
        *self.splits = splits;
    }

    /// The best override whose segment matches.
    #[inline]
    fn winner(&mut self, open: &OpenFeature) -> Option<FeatureState> {
        let program = self.program;
        let candidates = open.candidates.of(&program.candidates);
        if candidates.len() > CANDIDATES_WALKED_MAX {
            let feature = &program.features[open.feature as usize];
            let left =
                self.possible.iter().zip(&feature.segments).map(|(a, b)| (a & b).count_ones()).sum::<u32>();
            // The first that is left comes after about `candidates / left` steps; beside that, few
            // segments are sooner walked themselves.
            let left = left as usize;
            if !feature.ranks.is_empty() && left * left * LEFT_COST < candidates.len() {
                return self.winner_of_left(feature);
            }
        }
        let (from, winner) = first_certain(candidates, self.certain, self.possible);
        let winner =
            winner.or_else(|| candidates[from..].iter().find(|candidate| self.matches(candidate.segment)));
        winner.map(|winner| winner.state)
    }

    fn winner_of_left(&mut self, feature: &Feature) -> Option<FeatureState> {
        let mut best = u32::MAX;
        for word in 0..self.possible.len() {
            let mut left = self.possible[word] & feature.segments[word];
            while left != 0 {
                let segment = offset(word) * 64 + left.trailing_zeros();
                left &= left - 1;
                let rank = feature.ranks[segment as usize];
                if rank < best && self.matches(segment) {
                    best = rank;
                }
            }
        }
        let candidates = feature.candidates.of(&self.program.candidates);
        candidates.get(best as usize).map(|candidate| candidate.state)
    }

    /// Whether a segment matches; what is left of it is asked once.
    #[inline]
    fn matches(&mut self, segment: u32) -> bool {
        let (word, bit) = (segment as usize / 64, 1 << (segment % 64));
        if self.certain[word] & bit != 0 {
            return true;
        }
        self.possible[word] & bit != 0 && self.ask(segment)
    }

    /// Asks a segment, once.
    #[inline(never)]
    fn ask(&mut self, segment: u32) -> bool {
        let (word, bit) = (segment as usize / 64, 1 << (segment % 64));
        let compiled = self.program.segments[segment as usize];
        let matches = self.node(if self.is_narrowed { compiled.rest } else { compiled.rule });
        let known = if matches { &mut *self.certain } else { &mut *self.possible };
        known[word] ^= bit;
        matches
    }

    fn node(&mut self, node: Expression) -> bool {
        match node {
            Expression::Constant(answer) => answer,
            Expression::Test(condition) => self.condition(condition),
            Expression::All(children) => self.children(children).iter().all(|child| self.node(*child)),
            Expression::Any(children) => self.children(children).iter().any(|child| self.node(*child)),
            Expression::NoneOf(children) => !self.children(children).iter().any(|child| self.node(*child)),
            Expression::Both(children) => {
                self.children(children).iter().fold(true, |all, child| self.node(*child) & all)
            }
        }
    }

    fn children(&self, children: Span) -> &'r [Expression] {
        children.of(&self.program.children)
    }

    #[inline]
    fn condition(&mut self, index: u32) -> bool {
        let condition = &self.program.conditions[index as usize];
        let Some(value) = self.values.of(condition.slot, self.identity) else {
            if !condition.is_dynamic {
                return condition.by_default;
            }
            let value = self.dynamic(condition.slot);
            return holds(&condition.test, &value, self.buffer, self.budget);
        };
        let Some(memo) = condition.memo else {
            return holds(&condition.test, &value, self.buffer, self.budget);
        };
        if let Some(answer) = self.conditions.of(memo, self.epoch) {
            return answer;
        }
        let answer = holds(&condition.test, &value, self.buffer, self.budget);
        self.conditions.put(memo, self.epoch, answer);
        answer
    }

    /// The output of a state: its variants are a matter of the identity's key.
    fn output(&self, state: FeatureState) -> u32 {
        if let Some(output) = state.output() {
            return output;
        }
        let split = &self.program.splits[state.split() as usize];
        if self.identity.is_none() {
            return split.without_identity;
        }
        self.budget.read(self.values.identity_key.len());
        let hash = hashing::hash(&[&split.key, &self.values.identity_key]);
        split.output(hash)
    }
}

impl Split {
    /// The output of the variant that `hash` hits.
    fn output(&self, hash: f64) -> u32 {
        let hit = self.variants.iter().find(|share| share.from <= hash && hash < share.to);
        hit.map_or(self.control, |share| share.output)
    }
}
