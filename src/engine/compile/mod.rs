//! From a document to a [`Program`].
//!
//! In: a [`Document`]. Out: tables that an evaluation reads, and warnings. Rules: compatibility.md 5.1 and
//! 5.2. Invariant: what cannot change an answer is left out (segments that override nothing, overrides
//! behind one that always wins), unless a condition reads a flag: then Python's order of evaluation
//! is part of the answer and everything stays in its place.
pub mod conditions;
pub mod outputs;
mod overrides;
pub mod segment_index;
pub mod segments;

use std::borrow::Cow;

use hashbrown::{HashMap, HashSet};

use crate::engine::compile::outputs::{FlagParts, Outputs, Reason, weight_text};
use crate::engine::compile::segments::Rules;
use crate::engine::document::error::CompileError;
use crate::engine::document::raw_json::is_number;
use crate::engine::document::{Document, FeatureState, Priority, Variant};
use crate::engine::program;
use crate::engine::program::{
    CANDIDATES_WALKED_MAX, Candidate, CompiledState, Expression, Feature, FlagFacts, OpenFeature, PENDING,
    Program, Segment, Share, Span, Split, offset,
};

/// Something in an accepted document that can never work as meant, such as a bad pattern.
#[derive(Debug)]
pub struct CompileWarning {
    pub path: String,
    pub message: String,
}

/// Compiles a document. What general queries are asked of, [`Program::tree`], is left to the caller.
pub fn build(document: &Document<'_>) -> Result<(Program, Vec<CompileWarning>), CompileError> {
    let features = unique_features(&document.features);
    let segments = unique_segments(document);
    let by_name: HashMap<&str, u32, CompiledState> =
        features.iter().enumerate().map(|(index, state)| (&*state.feature.name, offset(index))).collect();
    let mut rules = Rules::new(document, &by_name);
    let reads_flags = segments.iter().any(|segment| rules.reads_flags(&document.segments[*segment].rules));
    rules.keep_order(reads_flags);

    let mut builder = ProgramBuilder {
        document,
        outputs: Outputs::new(document, reads_flags),
        by_name,
        targeted: HashSet::default(),
        program: Program::default(),
    };
    builder.overrides()?;
    builder.features(&features, &segments)?;
    let candidates = builder.segments(&segments, &mut rules, reads_flags)?;
    builder.candidates(candidates, reads_flags);
    let mut program = builder.program;
    let key = document.api_key.as_deref().unwrap_or("None");
    program.identity_key_prefix = format!("{key}_").into();
    program.bytes = std::mem::take(&mut builder.outputs.bytes);
    program.bytes.shrink_to_fit();
    program.outputs = std::mem::take(&mut builder.outputs.outputs);
    program.server = std::mem::take(&mut builder.outputs.server);
    program.client = std::mem::take(&mut builder.outputs.client);
    program.outputs.shrink_to_fit();
    program.server.shrink_to_fit();
    program.client.shrink_to_fit();
    let own = program.first_output as usize..program.first_output as usize + features.len();
    program.client_differs = program.server[own.clone()] != program.client[own]
        || program.outputs.iter().any(|output| output.client_is_cut);
    program.features_by_name = builder.by_name.iter().map(|(name, index)| ((*name).into(), *index)).collect();
    if reads_flags {
        program.flags = Some(FlagFacts {
            facts: builder.outputs.facts.take().unwrap_or_default(),
            segments_by_feature: segments_by_feature(&program),
        });
    }
    let warnings = rules.finish(&mut program);
    if !reads_flags {
        segment_index::build(&mut program);
    }
    Ok((program, warnings))
}

/// Of several states of one name: the first one's place, the last one's content (D089).
fn unique_features<'d, 'a>(states: &'d [FeatureState<'a>]) -> Vec<&'d FeatureState<'a>> {
    let mut places: HashMap<&str, usize, CompiledState> = HashMap::default();
    let mut unique: Vec<&FeatureState<'_>> = Vec::with_capacity(states.len());
    for state in states {
        match places.get(&*state.feature.name) {
            Some(place) => unique[*place] = state,
            None => {
                places.insert(&state.feature.name, unique.len());
                unique.push(state);
            }
        }
    }
    unique
}

/// Indices of segments; of several with one key: the first one's place, the last one's content (D087).
fn unique_segments(document: &Document<'_>) -> Vec<usize> {
    let mut places: HashMap<&str, usize, CompiledState> = HashMap::default();
    let mut unique = Vec::with_capacity(document.segments.len());
    for (index, segment) in document.segments.iter().enumerate() {
        match places.get(&*segment.key) {
            Some(place) => unique[*place] = index,
            None => {
                places.insert(&segment.key, unique.len());
                unique.push(index);
            }
        }
    }
    unique
}

/// An override on its way to its feature's list.
struct Contender {
    feature: u32,
    priority: Option<Priority>,
    candidate: Candidate,
}

struct ProgramBuilder<'d, 'a> {
    document: &'d Document<'a>,
    outputs: Outputs<'a>,
    by_name: HashMap<&'d str, u32, CompiledState>,
    /// Names that at least one override is for: their default reason is `DEFAULT`.
    targeted: HashSet<Cow<'d, str>, CompiledState>,
    program: Program,
}

impl<'d, 'a> ProgramBuilder<'d, 'a> {
    /// The features' own states.
    fn features(
        &mut self,
        features: &[&'d FeatureState<'a>],
        segments: &[usize],
    ) -> Result<(), CompileError> {
        // A segment that a later one of its key replaces targets nothing.
        for segment in segments {
            for state in &self.document.segments[*segment].overrides {
                self.targeted.insert(Cow::Borrowed(&state.feature.name));
            }
        }
        let from = self.outputs.outputs.len();
        self.program.first_output = offset(from);
        let mut variants = Vec::new();
        for state in features {
            let is_targeted = self.targeted.contains(&*state.feature.name);
            let reason = if is_targeted { Reason::Default } else { Reason::Static };
            let compiled = self.state(state, reason)?;
            variants.push((compiled, *state, reason));
            self.program.features.push(Feature {
                name: (&*state.feature.name).into(),
                state: compiled,
                candidates: Span::EMPTY,
                segments: Box::default(),
                ranks: Box::default(),
            });
        }
        self.variants(&variants)?;
        self.outputs.write_client_forms(from);
        Ok(())
    }

    /// The segments' overrides. Returns them with their features.
    fn segments(
        &mut self,
        segments: &[usize],
        rules: &mut Rules<'d, 'a>,
        keeps_all: bool,
    ) -> Result<Vec<Contender>, CompileError> {
        let mut contenders = Vec::new();
        for index in segments {
            let segment = &self.document.segments[*index];
            let mut overrides: Vec<(u32, &FeatureState<'_>)> = segment
                .overrides
                .iter()
                .filter_map(|state| Some((*self.by_name.get(&*state.feature.name)?, state)))
                .collect();
            if overrides.is_empty() && !keeps_all {
                continue;
            }
            let node = rules.segment(segment, *index);
            if node == Expression::Constant(false) && !keeps_all {
                continue;
            }
            let number = offset(self.program.segments.len());
            self.program.segments.push(Segment { rule: node, rest: node });
            // In the order in which answers are written.
            overrides.sort_by_key(|(feature, _)| *feature);
            let from = self.outputs.outputs.len();
            let reason = Reason::Segment(&segment.name);
            let mut variants = Vec::new();
            for (feature, state) in &overrides {
                let compiled = self.state(state, reason)?;
                variants.push((compiled, *state, reason));
                let candidate = Candidate { segment: number, state: compiled };
                contenders.push(Contender { feature: *feature, priority: state.priority, candidate });
            }
            self.variants(&variants)?;
            self.outputs.write_client_forms(from);
        }
        Ok(contenders)
    }

    /// A state and its first output: the control's if it has variants.
    fn state(
        &mut self,
        state: &FeatureState<'_>,
        reason: Reason<'_>,
    ) -> Result<program::FeatureState, CompileError> {
        let parts = FlagParts {
            feature: &state.feature,
            enabled: state.enabled,
            value: state.value,
            variant: if state.variants.is_empty() { "null" } else { "\"control\"" },
            reason,
            has_variants: !state.variants.is_empty(),
            metadata: state.metadata,
        };
        let output = self.outputs.write(&parts)?;
        if state.variants.is_empty() {
            return Ok(program::FeatureState::of_output(output));
        }
        let key = (&*state.key).into();
        self.program.splits.push(Split {
            key,
            variants: Box::default(),
            control: output,
            without_identity: output,
        });
        Ok(program::FeatureState::of_split(offset(self.program.splits.len() - 1)))
    }

    /// The outputs of the variants of some states, and theirs without an identity.
    fn variants(
        &mut self,
        states: &[(program::FeatureState, &FeatureState<'_>, Reason<'_>)],
    ) -> Result<(), CompileError> {
        for (compiled, state, reason) in states {
            if compiled.output().is_some() {
                continue;
            }
            let parts = FlagParts {
                feature: &state.feature,
                enabled: state.enabled,
                value: state.value,
                variant: "null",
                reason: *reason,
                has_variants: true,
                metadata: state.metadata,
            };
            let split = compiled.split() as usize;
            self.program.splits[split].without_identity = self.outputs.write(&parts)?;
            self.program.splits[split].variants = self.shares(state)?;
        }
        Ok(())
    }

    /// The shares of a state's variants, each with its output.
    fn shares(&mut self, state: &FeatureState<'_>) -> Result<Box<[Share]>, CompileError> {
        let mut shares = Vec::new();
        for Interval { from, to, variant } in intervals(&state.variants) {
            let weight = weight_text(variant.weight);
            let parts = FlagParts {
                feature: &state.feature,
                enabled: state.enabled,
                value: variant.value,
                variant: variant.key.unwrap_or("null"),
                reason: Reason::Split(&weight),
                has_variants: true,
                metadata: state.metadata,
            };
            shares.push(Share { from, to, output: self.outputs.write(&parts)? });
        }
        Ok(shares.into_boxed_slice())
    }

    /// Sorts each feature's overrides, best first, and decides what can be decided now.
    fn candidates(&mut self, mut contenders: Vec<Contender>, keeps_all: bool) {
        // Stable: of equal priorities the first in the document wins (compatibility.md 5.2).
        contenders.sort_by(|a, b| {
            a.feature.cmp(&b.feature).then_with(|| Priority::compare(a.priority, b.priority))
        });
        let program = &mut self.program;
        program.changed_at_start = vec![0; program.features.len().div_ceil(64)];
        let mut rest = contenders.iter().peekable();
        for (index, feature) in program.features.iter_mut().enumerate() {
            let from = offset(program.candidates.len());
            let mut is_decided = false;
            while let Some(contender) = rest.next_if(|contender| contender.feature as usize == index) {
                if is_decided {
                    continue;
                }
                program.candidates.push(contender.candidate);
                let node = program.segments[contender.candidate.segment as usize].rule;
                is_decided = !keeps_all && node == Expression::Constant(true);
            }
            let mut to = offset(program.candidates.len());
            if is_decided && to - from == 1 {
                feature.state = program.candidates[from as usize].state;
                program.candidates.pop();
                to = from;
            }
            feature.candidates = Span { from, to };
            let count = feature.candidates.len();
            // A table by segment is small beside so many candidates.
            if count > CANDIDATES_WALKED_MAX && count * 4 > program.segments.len() && !keeps_all {
                let mut by_segment = vec![u32::MAX; program.segments.len()];
                let mut segments = vec![0_u64; program.segments.len().div_ceil(64)];
                for (segment, rank) in ranks(feature.candidates.of(&program.candidates)) {
                    by_segment[segment as usize] = rank;
                    segments[segment as usize / 64] |= 1 << (segment % 64);
                }
                feature.ranks = by_segment.into_boxed_slice();
                feature.segments = segments.into_boxed_slice();
            }
            let known = feature.state.output().filter(|_| !keeps_all && from == to);
            program.outputs_at_start.push(known.unwrap_or(PENDING));
            if known.is_none() {
                let (state, candidates) = (feature.state, feature.candidates);
                program.open_features.push(OpenFeature { feature: offset(index), state, candidates });
            } else if known != Some(program.first_output + offset(index)) {
                program.changed_at_start[index / 64] |= 1 << (index % 64);
            }
        }
    }
}

/// Which hashes hit a variant: from `from` (inclusive) to `to` (exclusive).
struct Interval<'v, 'a> {
    from: f64,
    to: f64,
    variant: &'v Variant<'a>,
}

/// The intervals of a state's variants, in order of rank, as sums of doubles (compatibility.md 5.3).
fn intervals<'v, 'a>(variants: &'v [Variant<'a>]) -> Vec<Interval<'v, 'a>> {
    let mut ranked: Vec<&Variant<'_>> = variants.iter().collect();
    let is_sortable = ranked.iter().all(|variant| variant.rank.compare(&ranked[0].rank).is_some());
    if ranked.len() > 1 && !is_sortable {
        // Python raises for every identity: nobody gets a variant (differences.md 5).
        return Vec::new();
    }
    ranked.sort_by(|a, b| a.rank.compare(&b.rank).unwrap_or(std::cmp::Ordering::Equal));
    let mut intervals = Vec::with_capacity(ranked.len());
    let mut from = 0.0;
    for variant in ranked {
        let weight = match variant.weight {
            "true" => 1.0,
            "false" => 0.0,
            raw if is_number(raw) => raw.parse().unwrap_or(f64::NAN),
            // Python raises when it comes to this one.
            _ => break,
        };
        let to = weight + from;
        intervals.push(Interval { from, to, variant });
        from = to;
    }
    intervals
}

/// Per feature its overriding segments in document order, each with its best candidate.
fn segments_by_feature(program: &Program) -> Vec<Box<[(u32, u32)]>> {
    program.features.iter().map(|feature| ranks(feature.candidates.of(&program.candidates))).collect()
}

/// The segments of a feature's candidates in document order, each with its best candidate.
fn ranks(candidates: &[Candidate]) -> Box<[(u32, u32)]> {
    let mut ranks: Vec<(u32, u32)> =
        candidates.iter().enumerate().map(|(rank, candidate)| (candidate.segment, offset(rank))).collect();
    ranks.sort_unstable();
    ranks.dedup_by_key(|(segment, _)| *segment);
    ranks.into_boxed_slice()
}
