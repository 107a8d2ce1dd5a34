//! The evaluator: evaluates segments and conditions, and chooses the state of each feature.
//!
//! There are two strategies with the same results. Where no condition reads a flag, each feature takes its
//! first matching override and no other segment is evaluated ([`Evaluator::choose_states`]). Where one does,
//! Python's order of evaluation is followed, because it decides which cycles are cut
//! ([`Evaluator::evaluate_in_order`]). A condition that several segments share is evaluated once.
use crate::engine::evaluate::context::{ContextValues, coerce};
use crate::engine::evaluate::flag_dependencies::{FlagDependencies, FlagRead};
use crate::engine::evaluate::hashing;
use crate::engine::evaluate::md5x8::{LANES, hash_each};
use crate::engine::evaluate::operators::holds;
use crate::engine::evaluate::scratch::{Memo, set_bit};
use crate::engine::identity::{Identity, TraitValue};
use crate::engine::jsonpath::{FlagLookup, FlagMember, FlagResult, OutOfSteps, Query, Subject};
use crate::engine::program::{
    CANDIDATES_WALKED_MAX, CYCLIC, Candidate, Expression, Feature, FeatureState, FlagFact, FlagFacts,
    PENDING, Program, PropertySource, UndecidedFeature,
};
use crate::engine::table::{Span, offset};
use crate::limits::SCAN_STEPS;
use crate::python::number::Value;
use crate::step_budget::RequestBudget;
use crate::work;

/// Cost of looking up one possible segment, in candidates walked.
const SEGMENT_LOOKUP_COST: usize = 2;

/// Memoized segments walked in a step of `flag_cycles`.
const SEGMENTS_PER_STEP: usize = 16;

/// One evaluation: the program, the identity's values, and the parts of the scratch that it writes.
pub struct Evaluator<'r> {
    pub program: &'r Program,
    pub identity: Option<&'r Identity<'r>>,
    /// The identity as general queries read it.
    pub subject: Option<&'r Subject<'r>>,
    /// By slot, the result of a query that does not read flags; such a query runs once.
    pub query_results: Vec<Option<Value<'r>>>,
    pub budget: &'r RequestBudget,
    pub cut_slots: &'r mut Vec<u32>,
    pub values: &'r ContextValues,
    pub conditions: &'r mut Memo,
    pub segments: &'r mut Memo,
    pub possible: &'r mut Vec<u64>,
    pub matching: &'r mut Vec<u64>,
    /// `possible` comes from the segment index: only the residual of a segment is left to evaluate.
    pub is_prefiltered: bool,
    pub splits: &'r mut Vec<(u32, u32)>,
    pub epoch: u32,
    pub buffer: &'r mut String,
    pub outputs: &'r mut Vec<u32>,
    pub changed: &'r mut Vec<u64>,
    pub flags: &'r mut FlagDependencies,
}

/// Features: the state of each, where no condition reads a flag.
impl<'r> Evaluator<'r> {
    /// Gives each undecided feature its first matching override, or its own state.
    pub fn choose_states(&mut self) {
        let program = self.program;
        self.matching.clear();
        if self.is_prefiltered {
            let decided = program.segment_index.decided.iter().zip(&*self.possible);
            self.matching.extend(decided.map(|(decided, possible)| decided & possible));
        } else {
            self.matching.resize(self.possible.len(), 0);
        }
        work::count(program.undecided_features.len());
        let can_match = self.possible.iter().any(|word| *word != 0);
        for undecided in &program.undecided_features {
            if self.outputs[undecided.feature as usize] != PENDING {
                continue;
            }
            let winner = if can_match { self.winner(undecided) } else { None };
            let state = winner.unwrap_or(undecided.state);
            match (state.output(), self.identity) {
                (Some(output), _) => self.put(undecided.feature, output),
                (None, Some(_)) => self.splits.push((undecided.feature, state.split())),
                (None, None) => {
                    self.put(undecided.feature, program.splits[state.split() as usize].without_identity);
                }
            }
        }
        self.choose_variants();
    }

    #[inline]
    fn put(&mut self, feature: u32, output: u32) {
        self.outputs[feature as usize] = output;
        if output != self.program.first_output + feature {
            set_bit(self.changed, feature);
        }
    }

    /// Chooses the variants of all features that have some, [`LANES`] hashes at a time.
    fn choose_variants(&mut self) {
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
    fn winner(&mut self, undecided: &UndecidedFeature) -> Option<FeatureState> {
        let program = self.program;
        let candidates = undecided.candidates.of(&program.candidates);
        if candidates.len() > CANDIDATES_WALKED_MAX {
            let feature = &program.features[undecided.feature as usize];
            let possible =
                self.possible.iter().zip(&feature.segments).map(|(a, b)| (a & b).count_ones()).sum::<u32>();
            // A walk over the candidates meets the first possible one after about `candidates / possible`
            // steps. Where few segments are possible, walking those segments is cheaper.
            let possible = possible as usize;
            if !feature.ranks.is_empty() && possible * possible * SEGMENT_LOOKUP_COST < candidates.len() {
                return self.winner_by_segment(feature);
            }
        }
        work::count(candidates.len());
        let (from, winner) = first_matching(candidates, self.matching, self.possible);
        let winner =
            winner.or_else(|| candidates[from..].iter().find(|candidate| self.matches(candidate.segment)));
        winner.map(|winner| winner.state)
    }

    /// The same, found by walking the possible segments instead of the candidates.
    fn winner_by_segment(&mut self, feature: &Feature) -> Option<FeatureState> {
        let mut best = u32::MAX;
        for word in 0..self.possible.len() {
            let mut possible = self.possible[word] & feature.segments[word];
            while possible != 0 {
                let segment = offset(word) * 64 + possible.trailing_zeros();
                possible &= possible - 1;
                let rank = feature.ranks[segment as usize];
                if rank < best && self.matches(segment) {
                    best = rank;
                }
            }
        }
        let candidates = feature.candidates.of(&self.program.candidates);
        candidates.get(best as usize).map(|candidate| candidate.state)
    }

    /// Whether a segment matches.
    #[inline]
    fn matches(&mut self, segment: u32) -> bool {
        let (word, bit) = (segment as usize / 64, 1 << (segment % 64));
        if self.matching[word] & bit != 0 {
            return true;
        }
        self.possible[word] & bit != 0 && self.evaluate_segment(segment)
    }

    /// Evaluates a possible segment, and records the result in `matching` or `possible`.
    #[inline(never)]
    fn evaluate_segment(&mut self, segment: u32) -> bool {
        let (word, bit) = (segment as usize / 64, 1 << (segment % 64));
        let compiled = self.program.segments[segment as usize];
        let matches = self.expression(if self.is_prefiltered { compiled.residual } else { compiled.rule });
        let mask = if matches { &mut *self.matching } else { &mut *self.possible };
        mask[word] ^= bit;
        matches
    }
}

/// Conditions and expressions.
impl<'r> Evaluator<'r> {
    fn expression(&mut self, expression: Expression) -> bool {
        match expression {
            Expression::Constant(result) => result,
            Expression::Condition(index) => self.condition(index),
            Expression::All(children) => self.children(children).iter().all(|child| self.expression(*child)),
            Expression::Any(children) => self.children(children).iter().any(|child| self.expression(*child)),
            Expression::NoneOf(children) => {
                !self.children(children).iter().any(|child| self.expression(*child))
            }
            Expression::AllEager(children) => {
                self.children(children).iter().fold(true, |all, child| self.expression(*child) & all)
            }
        }
    }

    fn children(&self, children: Span) -> &'r [Expression] {
        children.of(&self.program.children)
    }

    #[inline]
    fn condition(&mut self, index: u32) -> bool {
        let condition = &self.program.conditions[index as usize];
        work::count(1);
        let Some(value) = self.values.get(condition.slot, self.identity) else {
            if !condition.is_dynamic {
                return condition.absent_result;
            }
            let value = self.dynamic(condition.slot);
            return holds(&condition.predicate, &value, self.buffer, self.budget);
        };
        let Some(memo) = condition.memo else {
            return holds(&condition.predicate, &value, self.buffer, self.budget);
        };
        if let Some(result) = self.conditions.get(memo, self.epoch) {
            return result;
        }
        let result = holds(&condition.predicate, &value, self.buffer, self.budget);
        self.conditions.put(memo, self.epoch, result);
        result
    }

    /// The value of a dynamic slot: a flag's member or the result of a query.
    fn dynamic(&mut self, slot: u32) -> Value<'r> {
        let program = self.program;
        match &program.slots[slot as usize] {
            PropertySource::Flag(feature, member) => coerce(self.flag_member(*feature, *member)),
            PropertySource::FlagObject(feature) => {
                if let Some(feature) = feature {
                    self.resolve_flag(*feature);
                }
                Value::Null
            }
            PropertySource::Query(query) => self.query(slot, query),
            _ => Value::Null,
        }
    }

    fn flag_member(&mut self, feature: Option<u32>, member: FlagMember) -> TraitValue<'r> {
        let fact = feature.and_then(|feature| self.resolve_flag(feature));
        fact.map_or(TraitValue::Null, |fact| fact.as_flag_result().member(member))
    }

    /// The result of a query. Without enough steps it is unreadable, and no condition on it holds.
    fn query(&mut self, slot: u32, query: &'r Query) -> Value<'r> {
        let program = self.program;
        let Some(tree) = &program.tree else { return Value::Null };
        if let Some(Some(found)) = self.query_results.get(slot as usize) {
            return found.clone();
        }
        let (subject, budget) = (self.subject, self.budget);
        let found = match query.find(tree, subject, self, &budget.jsonpath) {
            Ok(found) => coerce(found),
            Err(OutOfSteps) => {
                if !self.cut_slots.contains(&slot) {
                    self.cut_slots.push(slot);
                }
                return Value::Unreadable;
            }
        };
        if !query.reads_flags() {
            self.query_results.resize(program.slots.len(), None);
            self.query_results[slot as usize] = Some(found.clone());
        }
        found
    }
}

/// Flags: the state of each feature, where conditions read flags.
impl<'r> Evaluator<'r> {
    /// Evaluates as `get_evaluation_result` does: every segment in document order, then every feature. A flag
    /// that a condition read keeps the state it was resolved to then.
    pub fn evaluate_in_order(&mut self, matched: &mut Vec<bool>) {
        let program = self.program;
        self.flags.reset(program.features.len());
        work::count(program.features.len() + program.segments.len());
        matched.clear();
        for segment in &program.segments {
            let cuts = self.flags.cuts();
            let matches = self.expression(segment.rule);
            matched.push(self.is_uncut(offset(matched.len()), cuts) && matches);
        }
        for (index, feature) in program.features.iter().enumerate() {
            if let Some(output) = self.flags.output(index) {
                self.outputs[index] = output;
            } else if self.outputs[index] == PENDING {
                let candidates = feature.candidates.of(&program.candidates);
                let winner = candidates.iter().find(|candidate| matched[candidate.segment as usize]);
                self.outputs[index] = self.output(winner.map_or(feature.state, |winner| winner.state));
            }
            if self.flags.is_cyclic(index) {
                self.outputs[index] |= CYCLIC;
            }
        }
    }

    /// Resolves a flag, unless it was resolved before. `None` if it is part of a cycle.
    fn resolve_flag(&mut self, feature: u32) -> Option<&'r FlagFact> {
        let facts = self.program.flags.as_ref()?;
        let output = match self.flags.read(feature, &self.budget.flag_cycles) {
            FlagRead::Resolved(output) => output,
            FlagRead::Unavailable => return None,
            FlagRead::Started => {
                let output = self.overriding_output(feature, facts);
                let finished = self.flags.finish(feature, output);
                if finished.is_none() {
                    // The walk over its segments and the hash of its variant are repeated.
                    let walked = facts.segments_by_feature[feature as usize].len() / SEGMENTS_PER_STEP;
                    self.budget.flag_cycles.spend(SCAN_STEPS as usize + walked);
                }
                finished?
            }
        };
        facts.facts.get(output as usize)
    }

    /// The output of a flag with its overrides. As in Python, every segment that overrides it is evaluated.
    /// `None` if that exceeds the budget.
    fn overriding_output(&mut self, feature: u32, facts: &'r FlagFacts) -> Option<u32> {
        let program = self.program;
        let mut best: Option<u32> = None;
        for (segment, rank) in &facts.segments_by_feature[feature as usize] {
            if self.matches_acyclic(*segment) && best.is_none_or(|best| *rank < best) {
                best = Some(*rank);
            }
            work::count(1);
            if self.budget.flag_cycles.is_exceeded() {
                return None;
            }
        }
        let compiled = &program.features[feature as usize];
        if self.outputs[feature as usize] != PENDING {
            // An identity override wins over every segment.
            return Some(self.outputs[feature as usize]);
        }
        Some(match best {
            Some(rank) => self.output(compiled.candidates.of(&program.candidates)[rank as usize].state),
            None => self.output(compiled.state),
        })
    }

    /// `_DependencyResolver.matches_segment`: memoized unless a read found nothing on the way.
    fn matches_acyclic(&mut self, segment: u32) -> bool {
        if let Some(result) = self.segments.get(segment, self.epoch) {
            return result;
        }
        let cuts = self.flags.cuts();
        let result = self.expression(self.program.segments[segment as usize].rule);
        if !self.is_uncut(segment, cuts) {
            return false;
        }
        self.segments.put(segment, self.epoch, result);
        result
    }

    /// Whether no read was cut since there were `cuts`. If one was, the result of the segment evaluated since
    /// then is discarded, and its steps are spent: it may be evaluated again.
    fn is_uncut(&self, segment: u32, cuts: u32) -> bool {
        let is_uncut = cuts == self.flags.cuts();
        if !is_uncut {
            let steps =
                self.program.flags.as_ref().and_then(|facts| facts.segment_steps.get(segment as usize));
            self.budget.flag_cycles.spend(steps.map_or(1, |steps| *steps as usize));
        }
        is_uncut
    }

    /// The output of a state. Which variant it has depends on the hash of the identity key.
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

impl<'r> FlagLookup<'r> for Evaluator<'r> {
    fn resolve(&mut self, name: &str) -> Option<FlagResult<'r>> {
        let feature = *self.program.features_by_name.get(name)?;
        self.resolve_flag(feature).map(FlagFact::as_flag_result)
    }

    fn resolved(&self, at: usize) -> Option<FlagResult<'r>> {
        let output = self.flags.output(*self.flags.order().get(at)? as usize)?;
        self.program.flags.as_ref()?.facts.get(output as usize).map(FlagFact::as_flag_result)
    }

    fn resolved_count(&self) -> usize {
        self.flags.order().len()
    }
}

/// The index of the first candidate whose segment is possible, and the candidate if that segment is known to
/// match.
#[inline]
fn first_matching<'c>(
    candidates: &'c [Candidate],
    matching: &[u64],
    possible: &[u64],
) -> (usize, Option<&'c Candidate>) {
    for (index, candidate) in candidates.iter().enumerate() {
        let (word, bit) = (candidate.segment as usize / 64, 1 << (candidate.segment % 64));
        if possible[word] & bit != 0 {
            return (index, Some(candidate).filter(|_| matching[word] & bit != 0));
        }
    }
    (candidates.len(), None)
}
