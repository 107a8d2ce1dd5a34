//! Builds the features, overrides and outputs of a program.
use std::borrow::Cow;

use hashbrown::{HashMap, HashSet};

use crate::engine::compile::outputs::{FlagParts, Outputs, Reason, weight_text};
use crate::engine::compile::overrides::OverrideCompiler;
use crate::engine::compile::segments::SegmentCompiler;
use crate::engine::compile::variants::{Interval, intervals};
use crate::engine::document::error::CompileError;
use crate::engine::document::{Document, FeatureState, Priority};
use crate::engine::program;
use crate::engine::program::{
    CANDIDATES_WALKED_MAX, Candidate, Expression, Feature, FlagFacts, PENDING, Program, Segment, Share,
    Split, UndecidedFeature,
};
use crate::engine::table::{Span, TableHashBuilder, offset};

/// An override by a segment, before it is sorted into its feature's candidates.
pub struct SegmentOverride {
    feature: u32,
    priority: Option<Priority>,
    candidate: Candidate,
}

/// Builds the features, overrides and outputs of a program. Call its steps in the order of their definition.
pub struct ProgramBuilder<'d, 'a> {
    document: &'d Document<'a>,
    outputs: Outputs<'a>,
    by_name: HashMap<&'d str, u32, TableHashBuilder>,
    /// Names of features with at least one override: their default reason is `DEFAULT`.
    targeted: HashSet<Cow<'d, str>, TableHashBuilder>,
    /// A condition reads a flag: keep every segment and override.
    reads_flags: bool,
    program: Program,
}

impl<'d, 'a> ProgramBuilder<'d, 'a> {
    /// `by_name`: the index of each feature.
    pub fn new(
        document: &'d Document<'a>,
        by_name: HashMap<&'d str, u32, TableHashBuilder>,
        reads_flags: bool,
    ) -> Self {
        let outputs = Outputs::new(document, reads_flags);
        Self {
            document,
            outputs,
            by_name,
            targeted: HashSet::default(),
            reads_flags,
            program: Program::default(),
        }
    }

    /// Compiles the identity overrides.
    pub fn overrides(&mut self) -> Result<(), CompileError> {
        let mut compiler = OverrideCompiler::new(&self.by_name, &mut self.outputs, &mut self.program.splits);
        self.program.overrides = compiler.compile(self.document, &mut self.targeted)?;
        Ok(())
    }

    /// Compiles the features' own states.
    pub fn features(
        &mut self,
        features: &[&'d FeatureState<'a>],
        segments: &[usize],
    ) -> Result<(), CompileError> {
        // `segments` has no segment that a later one with its key replaces: such a segment targets nothing.
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

    /// Compiles the segments and their overrides.
    pub fn segments(
        &mut self,
        segments: &[usize],
        compiler: &mut SegmentCompiler<'d, 'a>,
    ) -> Result<Vec<SegmentOverride>, CompileError> {
        let mut segment_overrides = Vec::new();
        for index in segments {
            let segment = &self.document.segments[*index];
            let mut overrides: Vec<(u32, &FeatureState<'_>)> = segment
                .overrides
                .iter()
                .filter_map(|state| Some((*self.by_name.get(&*state.feature.name)?, state)))
                .collect();
            if overrides.is_empty() && !self.reads_flags {
                continue;
            }
            let rule = compiler.segment(segment, *index);
            if rule == Expression::Constant(false) && !self.reads_flags {
                continue;
            }
            let number = offset(self.program.segments.len());
            self.program.segments.push(Segment { rule, residual: rule });
            // Outputs in document order are copied as one.
            overrides.sort_by_key(|(feature, _)| *feature);
            let from = self.outputs.outputs.len();
            let reason = Reason::Segment(&segment.name);
            let mut variants = Vec::new();
            for (feature, state) in &overrides {
                let compiled = self.state(state, reason)?;
                variants.push((compiled, *state, reason));
                let candidate = Candidate { segment: number, state: compiled };
                segment_overrides.push(SegmentOverride {
                    feature: *feature,
                    priority: state.priority,
                    candidate,
                });
            }
            self.variants(&variants)?;
            self.outputs.write_client_forms(from);
        }
        Ok(segment_overrides)
    }

    /// Compiles a state and its first output, which is the control if it has variants.
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

    /// Compiles the outputs of the states' variants, and their outputs without an identity.
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

    /// Compiles the shares of a state's variants with their outputs.
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

    /// Sorts each feature's overrides by priority, and decides the features that no identity changes.
    pub fn candidates(&mut self, mut overrides: Vec<SegmentOverride>) {
        // Stable: of equal priorities the first in the document wins (compatibility.md 5.2).
        overrides.sort_by(|a, b| {
            a.feature.cmp(&b.feature).then_with(|| Priority::compare(a.priority, b.priority))
        });
        let (program, keep_all) = (&mut self.program, self.reads_flags);
        program.initially_changed = vec![0; program.features.len().div_ceil(64)];
        let mut overrides = overrides.iter().peekable();
        for (index, feature) in program.features.iter_mut().enumerate() {
            let from = offset(program.candidates.len());
            let mut is_decided = false;
            while let Some(next) = overrides.next_if(|next| next.feature as usize == index) {
                if is_decided {
                    continue;
                }
                program.candidates.push(next.candidate);
                let rule = program.segments[next.candidate.segment as usize].rule;
                is_decided = !keep_all && rule == Expression::Constant(true);
            }
            let mut to = offset(program.candidates.len());
            if is_decided && to - from == 1 {
                feature.state = program.candidates[from as usize].state;
                program.candidates.pop();
                to = from;
            }
            feature.candidates = Span { from, to };
            let count = feature.candidates.len();
            // The tables by segment are small compared with so many candidates.
            if count > CANDIDATES_WALKED_MAX && count * 4 > program.segments.len() && !keep_all {
                let mut by_segment = vec![u32::MAX; program.segments.len()];
                let mut segments = vec![0_u64; program.segments.len().div_ceil(64)];
                for (segment, rank) in ranks(feature.candidates.of(&program.candidates)) {
                    by_segment[segment as usize] = rank;
                    segments[segment as usize / 64] |= 1 << (segment % 64);
                }
                feature.ranks = by_segment.into_boxed_slice();
                feature.segments = segments.into_boxed_slice();
            }
            let decided = feature.state.output().filter(|_| !keep_all && from == to);
            program.initial_outputs.push(decided.unwrap_or(PENDING));
            if decided.is_none() {
                let (state, candidates) = (feature.state, feature.candidates);
                program.undecided_features.push(UndecidedFeature {
                    feature: offset(index),
                    state,
                    candidates,
                });
            } else if decided != Some(program.first_output + offset(index)) {
                program.initially_changed[index / 64] |= 1 << (index % 64);
            }
        }
    }

    /// The program, without its conditions, their steps and the segment index.
    pub fn finish(self) -> Program {
        let Self { document, outputs, by_name, reads_flags, mut program, .. } = self;
        let key = document.api_key.as_deref().unwrap_or("None");
        program.identity_key_prefix = format!("{key}_").into();
        program.bytes = outputs.bytes;
        program.bytes.shrink_to_fit();
        program.outputs = outputs.outputs;
        program.outputs.shrink_to_fit();
        program.server = outputs.server;
        program.server.shrink_to_fit();
        program.client = outputs.client;
        program.client.shrink_to_fit();
        let own = program.first_output as usize..program.first_output as usize + program.features.len();
        program.client_differs = program.server[own.clone()] != program.client[own]
            || program.outputs.iter().any(|output| output.client_is_cut);
        program.features_by_name = by_name.iter().map(|(name, index)| ((*name).into(), *index)).collect();
        if reads_flags {
            let ranks = |feature: &Feature| ranks(feature.candidates.of(&program.candidates));
            let segments_by_feature = program.features.iter().map(ranks).collect();
            let facts = outputs.facts.unwrap_or_default();
            program.flags = Some(FlagFacts { facts, segments_by_feature, segment_steps: Vec::new() });
        }
        program
    }
}

/// The segments of a feature's candidates, in document order, each with the index of its best candidate.
fn ranks(candidates: &[Candidate]) -> Box<[(u32, u32)]> {
    let mut ranks: Vec<(u32, u32)> =
        candidates.iter().enumerate().map(|(rank, candidate)| (candidate.segment, offset(rank))).collect();
    ranks.sort_unstable();
    ranks.dedup_by_key(|(segment, _)| *segment);
    ranks.into_boxed_slice()
}
