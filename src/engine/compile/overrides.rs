//! The identity overrides of a document.
//!
//! In: [`Document::overrides`]. Out: [`Program::overrides`]. An override of a multivariate feature gives
//! the variant that its own weights choose, as core answers and the engine does not (differences.md 43).
//! Invariant: equal outputs are stored once; a choice that every hash makes is made here, so that the
//! 100 % of the dashboard costs a request no more than a plain value.
use std::borrow::Cow;
use std::hash::BuildHasher as _;

use hashbrown::{HashMap, HashSet, HashTable};

use crate::engine::compile::outputs::{FlagParts, Outputs, Reason};
use crate::engine::compile::{Interval, ProgramBuilder, intervals};
use crate::engine::document::error::CompileError;
use crate::engine::document::raw_json::Elements;
use crate::engine::document::{IdentityOverride, OverrideState};
use crate::engine::program;
use crate::engine::program::{CompiledState, Overrides, Share, Split, offset};

/// Pairs of a feature and its state.
type OwnStates = Vec<(u32, program::FeatureState)>;

impl<'a> ProgramBuilder<'_, 'a> {
    /// Compiles every identity's own states.
    pub(super) fn overrides(&mut self) -> Result<(), CompileError> {
        // Grown step by step, megabytes would be copied at a time: longer than a reactor may wait.
        let text_bytes = self.document.overrides.as_ref().map_or(0, Elements::text_bytes);
        self.outputs.bytes.reserve(text_bytes / 2);
        let mut identifiers: HashMap<Cow<'a, str>, usize, CompiledState> = HashMap::default();
        let mut entries: Vec<(Cow<'a, str>, OwnStates)> = Vec::new();
        let mut overridden: HashSet<(usize, u32), CompiledState> = HashSet::default();
        let mut written = Written::default();
        for entry in self.document.overrides() {
            let IdentityOverride { identifier, features } = entry?;
            let place = *identifiers.entry(identifier).or_insert_with_key(|identifier| {
                entries.push((identifier.clone(), Vec::new()));
                entries.len() - 1
            });
            for state in &features {
                if !self.targeted.contains(&*state.feature.name) {
                    self.targeted.insert(Cow::Owned(state.feature.name.to_string()));
                }
                let Some(feature) = self.by_name.get(&*state.feature.name).copied() else { continue };
                if !overridden.insert((place, feature)) {
                    // The first entry wins (differences.md 9).
                    continue;
                }
                let compiled = self.own_state(state, &mut written)?;
                entries[place].1.push((feature, compiled));
            }
        }
        let entries = entries.iter().map(|(identifier, states)| (&**identifier, &**states));
        self.program.overrides = Overrides::build(entries);
        Ok(())
    }

    /// One override: an output, or a split where the hash of the identity decides.
    fn own_state(
        &mut self,
        state: &OverrideState<'_>,
        written: &mut Written,
    ) -> Result<program::FeatureState, CompileError> {
        let has_variants = !state.variants.is_empty();
        let parts = |value, variant| FlagParts {
            feature: &state.feature,
            enabled: state.enabled,
            value,
            variant,
            reason: Reason::Segment("identity_overrides"),
            has_variants,
            metadata: None,
        };
        let control = parts(state.value, if has_variants { "\"control\"" } else { "null" });
        // Hashes lie in 0 (inclusive) to 100 (exclusive).
        let mut reachable = intervals(&state.variants);
        reachable.retain(|Interval { from, to, .. }| from < to && *to > 0.0 && *from < 100.0);
        let constant = match reachable.first() {
            None => Some(control),
            Some(Interval { from, to, variant }) if *from <= 0.0 && *to >= 100.0 => {
                Some(parts(variant.value, variant.key.unwrap_or("null")))
            }
            Some(_) => None,
        };
        if let Some(parts) = constant {
            return Ok(program::FeatureState::of_output(written.once(&mut self.outputs, &parts)?));
        }
        let control = written.once(&mut self.outputs, &control)?;
        let mut variants = Vec::with_capacity(reachable.len());
        for Interval { from, to, variant } in reachable {
            let parts = parts(variant.value, variant.key.unwrap_or("null"));
            variants.push(Share { from, to, output: written.once(&mut self.outputs, &parts)? });
        }
        let (key, variants) = ((&*state.key).into(), variants.into_boxed_slice());
        self.program.splits.push(Split { key, variants, control, without_identity: control });
        Ok(program::FeatureState::of_split(offset(self.program.splits.len() - 1)))
    }
}

/// The outputs of overrides, by their bytes.
#[derive(Default)]
struct Written {
    table: HashTable<u32>,
    hasher: CompiledState,
}

impl Written {
    /// Writes an output, or finds an equal one that was written before.
    fn once(&mut self, outputs: &mut Outputs<'_>, parts: &FlagParts<'_>) -> Result<u32, CompileError> {
        let output = outputs.write(parts)?;
        let bytes = |output: u32| outputs.server[output as usize].of(&outputs.bytes);
        let hash = |output: &u32| self.hasher.hash_one(bytes(*output));
        let found = self.table.find(hash(&output), |held| bytes(*held) == bytes(output)).copied();
        match found {
            Some(held) => {
                outputs.take_back();
                Ok(held)
            }
            None => {
                self.table.insert_unique(hash(&output), output, hash);
                Ok(output)
            }
        }
    }
}
