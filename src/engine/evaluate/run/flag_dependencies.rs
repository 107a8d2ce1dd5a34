//! The evaluation of a document whose conditions read flags, as Python goes about it.
//!
//! In: a run whose values were found. Out: its outputs. Every segment is asked, in document order; a
//! flag is resolved when a condition first reads it, and what was resolved then stands (compatibility.md
//! 5.12). Invariant: cycles are cut where they close; chains of flags and reads of them are bounded.
use crate::engine::evaluate::TraitValue;
use crate::engine::evaluate::context::coerce;
use crate::engine::evaluate::run::{CYCLIC, Evaluator};
use crate::engine::jsonpath::{FlagLookup, FlagMember, FlagResult, OutOfSteps, Query};
use crate::engine::program::{FlagFact, FlagFacts, PENDING, PropertySource, Scalar};
use crate::limits::{FLAG_CHAIN_MAX, FLAG_READS_MAX};
use crate::python::number::Value;

impl<'r> Evaluator<'r> {
    /// As `get_evaluation_result` does it: every segment in document order, then every feature; what
    /// was resolved while a condition read it stands.
    pub(super) fn replay(&mut self, matched: &mut Vec<bool>) {
        let program = self.program;
        self.resolved.clear();
        self.resolved.resize(program.features.len(), PENDING);
        self.cyclic.clear();
        self.cyclic.resize(program.features.len(), false);
        self.resolving.clear();
        self.resolved_order.clear();
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
    }

    /// The value of a slot that has to be found when it is asked for.
    pub(super) fn dynamic(&mut self, slot: u32) -> Value<'r> {
        let program = self.program;
        match &program.slots[slot as usize] {
            PropertySource::Flag(feature, member) => coerce(self.flag_member(*feature, *member)),
            PropertySource::FlagAlone(feature) => {
                if let Some(feature) = feature {
                    self.resolve(*feature);
                }
                Value::Null
            }
            PropertySource::Query(query) => self.query(slot, query),
            _ => Value::Null,
        }
    }

    fn flag_member(&mut self, feature: Option<u32>, member: FlagMember) -> TraitValue<'r> {
        let fact = feature.and_then(|feature| self.resolve(feature));
        fact.map_or(TraitValue::Null, |fact| fact.as_flag_result().member(member))
    }

    /// What a query finds. One that runs out of steps is unreadable: no condition on it holds.
    fn query(&mut self, slot: u32, query: &'r Query) -> Value<'r> {
        let program = self.program;
        let Some(tree) = &program.tree else { return Value::Null };
        if let Some(Some(found)) = self.found.get(slot as usize) {
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
        if !query.sees_flags() {
            self.found.resize(program.slots.len(), None);
            self.found[slot as usize] = Some(found.clone());
        }
        found
    }

    /// `_DependencyResolver.resolve_feature`: the flag's result, or nothing if it is in a cycle.
    fn resolve(&mut self, feature: u32) -> Option<&'r FlagFact> {
        let facts = self.program.flags.as_ref()?;
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
            self.resolved_order.push(feature);
        }
        facts.facts.get(self.resolved[index] as usize)
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

impl<'r> FlagLookup<'r> for Evaluator<'r> {
    fn resolve(&mut self, name: &str) -> Option<FlagResult<'r>> {
        let feature = *self.program.features_by_name.get(name)?;
        Evaluator::resolve(self, feature).map(FlagFact::as_flag_result)
    }

    fn resolved(&self, at: usize) -> Option<FlagResult<'r>> {
        let output = self.resolved[*self.resolved_order.get(at)? as usize];
        self.program.flags.as_ref()?.facts.get(output as usize).map(FlagFact::as_flag_result)
    }

    fn resolved_count(&self) -> usize {
        self.resolved_order.len()
    }
}

impl FlagFact {
    fn as_flag_result(&self) -> FlagResult<'_> {
        FlagResult {
            enabled: self.enabled.as_trait_value(),
            name: &self.name,
            reason: &self.reason,
            value: self.value.as_trait_value(),
            variant: self.variant.as_trait_value(),
            feature_id: self.feature_id.as_trait_value(),
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
