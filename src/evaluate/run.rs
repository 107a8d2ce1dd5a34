//! One evaluation: which segments match, which state of each feature wins.
//!
//! In: a program, an identity or none, the caller's room. Out: one output per feature. Two ways to
//! the same answer: where no condition reads a flag, each feature takes its first matching override
//! and nothing else is asked; where one does, Python's order of evaluation is replayed, because it
//! decides which cycles are cut (wire.md 5.12).
//! Invariant: a condition that occurs twice is asked once; cycles and chains of flags are bounded.
use super::jsonpath::{FlagMember, FlagResult, Query};
use super::lanes::{LANES, hash_each};
use super::narrow::narrow;
use super::percentage;
use super::segment::holds;
use super::value::{Value, coerce};
use super::values::Values;
use super::{Identity, TraitValue};
use crate::limits::{FLAG_CHAIN_MAX, FLAG_READS_MAX};
use crate::snapshot::rule::{
    CANDIDATES_WALKED_MAX, Children, Fact, Feature, FlagFacts, Node, OpenFeature, Origin, PENDING, Program,
    Scalar, Split, offset,
};

/// Set beside an output: the flag is in a cycle of flags (wire.md 5.12).
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
pub struct Room {
    pub values: Values,
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
    pub matched: Vec<bool>,
}

/// Evaluates every feature into `room.outputs`. `key` stands for the identity's key if it is given.
pub fn run(program: &Program, identity: Option<&Identity<'_>>, key: Option<&str>, room: &mut Room) {
    room.outputs.clear();
    room.outputs.extend_from_slice(&program.outputs_at_start);
    room.changed.clear();
    room.changed.extend_from_slice(&program.changed_at_start);
    if program.open_features.is_empty() && program.overrides.is_empty() {
        return;
    }
    room.epoch = (room.epoch + 1) & (u32::MAX >> 1);
    if room.epoch == 0 {
        // Once in two thousand million requests: what is left of the last round would count again.
        room.conditions.entries.fill(0);
        room.segments.entries.fill(0);
        room.epoch = 1;
    }
    room.conditions.reserve(program.memo_count as usize);
    room.segments.reserve(program.segments.len());
    if let Some(identity) = identity {
        for (feature, output) in program.overrides.find(identity.identifier) {
            room.outputs[*feature as usize] = *output;
            set(&mut room.changed, *feature);
        }
    }
    room.values.begin(program, identity, key);
    room.splits.clear();
    let is_narrowed = match program.flags {
        None => narrow(program, identity, &mut room.values, &mut room.buffer, &mut room.possible),
        Some(_) => {
            room.values.fill(program, identity);
            false
        }
    };
    let mut run = Run {
        program,
        identity,
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
        cycle_hits: 0,
        reads: 0,
    };
    match &program.flags {
        None => run.settle(),
        Some(facts) => run.replay(facts, &mut room.matched),
    }
}

/// Sets a bit of many words.
fn set(words: &mut [u64], index: u32) {
    words[index as usize / 64] |= 1 << (index % 64);
}

struct Run<'r> {
    program: &'r Program,
    identity: Option<&'r Identity<'r>>,
    values: &'r Values,
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
    cycle_hits: u32,
    reads: usize,
}

impl<'r> Run<'r> {
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
            let state = &program.states[winner.unwrap_or(open.state) as usize];
            match (state.split, self.identity) {
                (Some(split), Some(_)) => self.splits.push((open.feature, split)),
                _ => self.put(open.feature, state.output),
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
    fn winner(&mut self, open: &OpenFeature) -> Option<u32> {
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
        let winner = candidates.iter().find(|candidate| self.matches(candidate.segment));
        winner.map(|winner| winner.state)
    }

    fn winner_of_left(&mut self, feature: &Feature) -> Option<u32> {
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

    /// Most segments are ruled out or in by their bit, without a call.
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

    fn node(&mut self, node: Node) -> bool {
        match node {
            Node::Constant(answer) => answer,
            Node::Test(condition) => self.condition(condition),
            Node::All(children) => self.children(children).iter().all(|child| self.node(*child)),
            Node::Any(children) => self.children(children).iter().any(|child| self.node(*child)),
            Node::NoneOf(children) => !self.children(children).iter().any(|child| self.node(*child)),
            Node::Both(children) => {
                self.children(children).iter().fold(true, |all, child| self.node(*child) & all)
            }
        }
    }

    fn children(&self, children: Children) -> &'r [Node] {
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
            return holds(&condition.test, &value, self.buffer);
        };
        let Some(memo) = condition.memo else { return holds(&condition.test, &value, self.buffer) };
        if let Some(answer) = self.conditions.of(memo, self.epoch) {
            return answer;
        }
        let answer = holds(&condition.test, &value, self.buffer);
        self.conditions.put(memo, self.epoch, answer);
        answer
    }

    /// The output of a state: its variants are a matter of the identity's key.
    fn output(&self, state: u32) -> u32 {
        let state = &self.program.states[state as usize];
        let (Some(split), Some(_)) = (state.split, self.identity) else { return state.output };
        let split = &self.program.splits[split as usize];
        let hash = percentage::hash(&[&split.key, &self.values.identity_key]);
        split.output(hash)
    }

    /// As `get_evaluation_result` does it: every segment in document order, then every feature; what
    /// was resolved while a condition read it stands.
    fn replay(&mut self, facts: &'r FlagFacts, matched: &mut Vec<bool>) {
        let program = self.program;
        self.resolved.clear();
        self.resolved.resize(program.features.len(), PENDING);
        self.cyclic.clear();
        self.cyclic.resize(program.features.len(), false);
        self.resolving.clear();
        matched.clear();
        for segment in &program.segments {
            let hits = self.cycle_hits;
            let matches = self.node(segment.rule);
            // A segment that cut a cycle never matches.
            matched.push(matches && hits == self.cycle_hits);
        }
        for (index, feature) in program.features.iter().enumerate() {
            if self.resolved[index] != PENDING {
                self.outputs[index] = self.resolved[index];
            } else if self.outputs[index] == PENDING {
                let candidates = feature.candidates.of(&program.candidates);
                let winner = candidates.iter().find(|candidate| matched[candidate.segment as usize]);
                self.outputs[index] = self.output(winner.map_or(feature.state, |winner| winner.state));
            }
            if self.cyclic[index] {
                self.outputs[index] |= CYCLIC;
            }
        }
        debug_assert!(facts.segments_by_feature.len() == program.features.len());
    }

    /// The value of a slot that has to be found when it is asked for.
    fn dynamic(&mut self, slot: u32) -> Value<'r> {
        let program = self.program;
        match &program.slots[slot as usize] {
            Origin::Flag(feature, member) => coerce(self.flag_member(*feature, *member)),
            Origin::FlagAlone(feature) => {
                if let Some(feature) = feature {
                    self.resolve(*feature);
                }
                Value::Null
            }
            Origin::Query(query) => coerce(self.query(query)),
            _ => Value::Null,
        }
    }

    fn flag_member(&mut self, feature: Option<u32>, member: FlagMember) -> TraitValue<'r> {
        let Some(fact) = feature.and_then(|feature| self.resolve(feature)) else { return TraitValue::Null };
        match member {
            FlagMember::Enabled => TraitValue::Bool(fact.enabled),
            FlagMember::Name => TraitValue::Text(&fact.name),
            FlagMember::Reason => TraitValue::Text(&fact.reason),
            FlagMember::Value => fact.value.as_trait_value(),
            FlagMember::Variant => fact.variant.as_deref().map_or(TraitValue::Null, TraitValue::Text),
            FlagMember::FeatureId => TraitValue::Int(fact.feature_id),
        }
    }

    fn query(&mut self, query: &'r Query) -> TraitValue<'r> {
        let program = self.program;
        let Some(tree) = &program.tree else { return TraitValue::Null };
        let (identity, values) = (self.identity, self.values);
        let identity = identity.map(|identity| (identity, values.identity_key.as_str()));
        query.find(tree, identity, &mut |name| {
            let feature = *program.features_by_name.get(name)?;
            self.resolve(feature).map(Fact::as_flag_result)
        })
    }

    /// `_DependencyResolver.resolve_feature`: the flag's result, or nothing if it is in a cycle.
    fn resolve(&mut self, feature: u32) -> Option<&'r Fact> {
        let (program, facts) = (self.program, self.program.flags.as_ref()?);
        let index = feature as usize;
        if self.resolved[index] == PENDING {
            if let Some(start) = self.resolving.iter().position(|other| *other == feature) {
                for member in &self.resolving[start..] {
                    self.cyclic[*member as usize] = true;
                }
                self.cycle_hits += 1;
                return None;
            }
            self.reads += 1;
            if self.resolving.len() >= FLAG_CHAIN_MAX || self.reads > FLAG_READS_MAX {
                // Python fails on such a document: what was not read cannot match.
                self.cycle_hits += 1;
                return None;
            }
            self.resolving.push(feature);
            let output = self.overriding_output(feature, facts);
            self.resolving.pop();
            if self.cyclic[index] {
                return None;
            }
            self.resolved[index] = output;
        }
        let state = self.resolved[index] as usize;
        debug_assert!(state < program.outputs.len());
        facts.facts.get(state)
    }

    /// The output of a flag with its overrides: every segment that has one is asked.
    fn overriding_output(&mut self, feature: u32, facts: &'r FlagFacts) -> u32 {
        let program = self.program;
        let mut best: Option<u32> = None;
        for (segment, rank) in &facts.segments_by_feature[feature as usize] {
            if self.matches_acyclic(*segment) && best.is_none_or(|held| *rank < held) {
                best = Some(*rank);
            }
        }
        let found = &program.features[feature as usize];
        if self.outputs[feature as usize] != PENDING {
            // Of this identity's own: it beats any segment.
            return self.outputs[feature as usize];
        }
        match best {
            Some(rank) => self.output(found.candidates.of(&program.candidates)[rank as usize].state),
            None => self.output(found.state),
        }
    }

    /// `_DependencyResolver.matches_segment`: remembered unless a cycle was cut on the way.
    fn matches_acyclic(&mut self, segment: u32) -> bool {
        if let Some(answer) = self.segments.of(segment, self.epoch) {
            return answer;
        }
        let hits = self.cycle_hits;
        let answer = self.node(self.program.segments[segment as usize].rule);
        if hits != self.cycle_hits {
            return false;
        }
        self.segments.put(segment, self.epoch, answer);
        answer
    }
}

impl Split {
    /// The output of the variant that `hash` hits.
    fn output(&self, hash: f64) -> u32 {
        let hit = self.variants.iter().find(|share| share.from <= hash && hash < share.to);
        hit.map_or(self.control, |share| share.output)
    }
}

impl Fact {
    fn as_flag_result(&self) -> FlagResult<'_> {
        FlagResult {
            enabled: self.enabled,
            name: &self.name,
            reason: &self.reason,
            value: self.value.as_trait_value(),
            variant: self.variant.as_deref(),
            feature_id: self.feature_id,
        }
    }
}

impl Scalar {
    /// As a trait would hold it.
    pub fn as_trait_value(&self) -> TraitValue<'_> {
        match self {
            Self::Null => TraitValue::Null,
            Self::Bool(bool) => TraitValue::Bool(*bool),
            Self::Int(number) => TraitValue::Int(*number),
            Self::BigInt(digits) => TraitValue::BigInt(digits),
            Self::Float(number) => TraitValue::Float(*number),
            Self::Text(text) => TraitValue::Text(text),
        }
    }
}
