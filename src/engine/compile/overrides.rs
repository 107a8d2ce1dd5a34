//! Compiles the identity overrides of a document.
//!
//! An override of a multivariate feature gives the variant that its own weights select, as core does and the
//! Python engine does not (differences.md 43). Equal outputs are stored once. A selection that every hash
//! makes is made here, so that a weight of 100 % costs a request no more than a plain value.
use std::borrow::Cow;
use std::hash::BuildHasher as _;

use hashbrown::{HashMap, HashSet, HashTable};

use crate::engine::compile::outputs::{FlagParts, Outputs, Reason};
use crate::engine::compile::variants::{Interval, intervals};
use crate::engine::document::error::CompileError;
use crate::engine::document::raw_json::Elements;
use crate::engine::document::{Document, IdentityOverride, OverrideState};
use crate::engine::program;
use crate::engine::program::{Overrides, Share, Split};
use crate::engine::table::{TableHashBuilder, offset};

/// Pairs of a feature and its state.
type FeatureStates = Vec<(u32, program::FeatureState)>;

/// Compiles identity overrides.
pub struct OverrideCompiler<'c, 'd, 'a> {
    /// The index of each feature.
    features: &'c HashMap<&'d str, u32, TableHashBuilder>,
    outputs: &'c mut Outputs<'a>,
    splits: &'c mut Vec<Split>,
    /// The outputs of overrides, by the hash of their bytes.
    written: HashTable<u32>,
    hasher: TableHashBuilder,
}

impl<'c, 'd, 'a> OverrideCompiler<'c, 'd, 'a> {
    pub fn new(
        features: &'c HashMap<&'d str, u32, TableHashBuilder>,
        outputs: &'c mut Outputs<'a>,
        splits: &'c mut Vec<Split>,
    ) -> Self {
        Self { features, outputs, splits, written: HashTable::new(), hasher: TableHashBuilder::default() }
    }

    /// Compiles the overrides of `document`, and adds the names of the features they are for to `targeted`.
    pub fn compile(
        &mut self,
        document: &'d Document<'a>,
        targeted: &mut HashSet<Cow<'d, str>, TableHashBuilder>,
    ) -> Result<Overrides, CompileError> {
        // Growing step by step would copy megabytes at a time, longer than a reactor may wait for this
        // thread.
        let text_bytes = document.overrides.as_ref().map_or(0, Elements::text_bytes);
        self.outputs.bytes.reserve(text_bytes / 2);
        let mut identifiers: HashMap<Cow<'a, str>, usize, TableHashBuilder> = HashMap::default();
        let mut entries: Vec<(Cow<'a, str>, FeatureStates)> = Vec::new();
        let mut overridden: HashSet<(usize, u32), TableHashBuilder> = HashSet::default();
        for entry in document.overrides() {
            let IdentityOverride { identifier, features } = entry?;
            let index = *identifiers.entry(identifier).or_insert_with_key(|identifier| {
                entries.push((identifier.clone(), Vec::new()));
                entries.len() - 1
            });
            for state in &features {
                if !targeted.contains(&*state.feature.name) {
                    targeted.insert(Cow::Owned(state.feature.name.to_string()));
                }
                let Some(feature) = self.features.get(&*state.feature.name).copied() else { continue };
                if !overridden.insert((index, feature)) {
                    // The first entry wins (differences.md 9).
                    continue;
                }
                let compiled = self.state(state)?;
                entries[index].1.push((feature, compiled));
            }
        }
        let entries = entries.iter().map(|(identifier, states)| (&**identifier, &**states));
        Ok(Overrides::build(entries))
    }

    /// Compiles an override: to an output, or to a split where the result depends on the hash of the identity
    /// key.
    fn state(&mut self, state: &OverrideState<'_>) -> Result<program::FeatureState, CompileError> {
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
        // Hashes are from 0 (inclusive) to 100 (exclusive).
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
            return Ok(program::FeatureState::of_output(self.write(&parts)?));
        }
        let control = self.write(&control)?;
        let mut variants = Vec::with_capacity(reachable.len());
        for Interval { from, to, variant } in reachable {
            let parts = parts(variant.value, variant.key.unwrap_or("null"));
            variants.push(Share { from, to, output: self.write(&parts)? });
        }
        let (key, variants) = ((&*state.key).into(), variants.into_boxed_slice());
        self.splits.push(Split { key, variants, control, without_identity: control });
        Ok(program::FeatureState::of_split(offset(self.splits.len() - 1)))
    }

    /// Writes an output, unless an equal one was written before.
    fn write(&mut self, parts: &FlagParts<'_>) -> Result<u32, CompileError> {
        let output = self.outputs.write(parts)?;
        let bytes = |output: u32| self.outputs.server[output as usize].of(&self.outputs.bytes);
        let hash = |output: &u32| self.hasher.hash_one(bytes(*output));
        let equal = self.written.find(hash(&output), |other| bytes(*other) == bytes(output)).copied();
        match equal {
            Some(equal) => {
                self.outputs.remove_last();
                Ok(equal)
            }
            None => {
                self.written.insert_unique(hash(&output), output, hash);
                Ok(output)
            }
        }
    }
}
