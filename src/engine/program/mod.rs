//! The program: a document compiled to the tables that an evaluation reads.
//!
//! Everything that depends only on the document is done: values are parsed, overrides sorted, flags
//! rendered. Indices always point inside the tables of the same [`Program`].
pub mod segment_index;

use std::cmp::Ordering;

use hashbrown::{HashMap, HashSet, HashTable};

use crate::engine::jsonpath::{FlagMember, FlagResult, Query, Tree};
use crate::engine::program::segment_index::SegmentIndex;
pub use crate::engine::scalar::Scalar;
use crate::engine::table::TableHashBuilder;
pub use crate::engine::table::{Span, offset};
use crate::python::number::Integer;
use crate::python::regex::Pattern;
use crate::yielding;

/// The flags that a key may read. Server-side keys start with `ser.` (compatibility.md 1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Client,
    Server,
}

/// Where the value of a condition's property comes from if no trait has the property as its exact name. A
/// trait that has, and is not null, takes precedence.
#[derive(Debug)]
pub enum PropertySource {
    /// Only from the trait of that name.
    Trait,
    /// From the document (`$.environment.name`): [`Condition::absent_result`] is final.
    Constant(Box<str>),
    Identifier,
    IdentityKey,
    /// The identity key, for a percentage split with an empty property: not coerced, and no trait takes
    /// precedence.
    SplitKey,
    /// `$.identity.traits.<name>`, by its index in [`Program::aliases`].
    IdentityTrait(u32),
    /// `None`: a flag that is not in the document.
    Flag(Option<u32>, FlagMember),
    /// A flag itself or an unknown member of one: resolves the flag, which may cut a cycle, and is not set.
    FlagObject(Option<u32>),
    Query(Box<Query>),
    /// Always not set.
    Nothing,
}

/// A predicate on the value of a slot.
#[derive(Debug)]
pub struct Condition {
    pub slot: u32,
    pub predicate: Predicate,
    /// The result without a trait of the property's name: that of a constant, or else of an absent value.
    pub absent_result: bool,
    /// Index into the memo; `None` for conditions that occur once.
    pub memo: Option<u32>,
    /// Without a trait, the value is computed on demand (flags, general queries).
    pub is_dynamic: bool,
}

/// A predicate on a value (compatibility.md 5.7).
#[derive(Debug)]
pub enum Predicate {
    /// Always false: an unknown operator, or one for which Python raises on any value (differences.md 5).
    Never,
    IsSet,
    IsNotSet,
    Compare(Comparison, Box<Operand>),
    Contains(Box<str>),
    /// CONTAINS with a version: whether the value is a version with this pre-release or build.
    HasVersionPart(Box<str>),
    NotContains(Box<str>),
    Regex(Box<Pattern>),
    Modulo {
        divisor: f64,
        remainder: f64,
    },
    In(Box<Members>),
    Split {
        key: Box<str>,
        limit: f64,
    },
}

/// A comparison operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Comparison {
    Equal,
    NotEqual,
    Greater,
    GreaterOrEqual,
    Less,
    LessOrEqual,
}

impl Comparison {
    /// Whether the comparison holds for values in this order; `None` if one of them is NaN.
    pub fn meets(self, order: Option<Ordering>) -> bool {
        match self {
            Self::Equal => order == Some(Ordering::Equal),
            Self::NotEqual => order != Some(Ordering::Equal),
            Self::Greater => order == Some(Ordering::Greater),
            Self::GreaterOrEqual => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
            Self::Less => order == Some(Ordering::Less),
            Self::LessOrEqual => matches!(order, Some(Ordering::Less | Ordering::Equal)),
        }
    }
}

/// A condition's operand, cast to each type that a value may have. Where a cast fails (`None`), the
/// comparison is false.
#[derive(Debug)]
pub struct Operand {
    pub bool: bool,
    pub integer: Option<Integer>,
    /// The digits of `integer`, if it is outside `i64`.
    pub big_integer: Option<Box<str>>,
    pub float: Option<f64>,
    pub text: OperandText,
}

/// The operand for values that are text.
#[derive(Debug, PartialEq)]
pub enum OperandText {
    Plain(Box<str>),
    /// The valid version of `<version>:semver`.
    Version(Box<str>),
    Never,
}

/// The items of an IN condition.
#[derive(Debug, Default)]
pub struct Members {
    pub texts: HashSet<Box<str>, TableHashBuilder>,
    /// Those of `texts` that are integers in the form that Python's `str()` writes.
    pub integers: HashSet<i64, TableHashBuilder>,
}

/// A boolean expression over conditions. Children are ranges of [`Program::children`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expression {
    Constant(bool),
    /// By its index in [`Program::conditions`].
    Condition(u32),
    All(Span),
    Any(Span),
    NoneOf(Span),
    /// As `All`, but evaluates each child even after one is false: reading a flag resolves it
    /// (compatibility.md 5.5, 5.12).
    AllEager(Span),
}

/// A segment that can change the state of a feature.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// All of its rules.
    pub rule: Expression,
    /// What is left to evaluate after the prefilter.
    pub residual: Expression,
}

/// An override of a feature by a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub segment: u32,
    pub state: FeatureState,
}

/// Features with more candidates than this may have tables by segment ([`Feature::ranks`]).
pub const CANDIDATES_WALKED_MAX: usize = 32;

/// A feature of the environment.
#[derive(Clone, Debug)]
pub struct Feature {
    pub name: Box<str>,
    pub state: FeatureState,
    /// Its overrides in [`Program::candidates`] by priority: the first whose segment matches wins.
    pub candidates: Span,
    /// Only with many candidates: their segments as bits, and the best candidate by segment.
    pub segments: Box<[u64]>,
    pub ranks: Box<[u32]>,
}

/// A feature whose state depends on the identity, with the fields that an evaluation reads.
#[derive(Clone, Copy, Debug)]
pub struct UndecidedFeature {
    pub feature: u32,
    /// As [`Feature::state`].
    pub state: FeatureState,
    pub candidates: Span,
}

/// A state of a feature: an output, or a split that selects one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureState(u32);

impl FeatureState {
    const SPLIT: u32 = 1 << 31;

    /// By its index in [`Program::outputs`].
    pub fn of_output(output: u32) -> Self {
        debug_assert!(output & Self::SPLIT == 0, "bounded by the size of a document");
        Self(output)
    }

    /// By its index in [`Program::splits`].
    pub fn of_split(split: u32) -> Self {
        Self(split | Self::SPLIT)
    }

    /// The output, if it has no variants.
    #[inline]
    pub fn output(self) -> Option<u32> {
        (self.0 & Self::SPLIT == 0).then_some(self.0)
    }

    /// The index of the split. Only valid if [`Self::output`] is `None`.
    #[inline]
    pub fn split(self) -> u32 {
        self.0 & !Self::SPLIT
    }
}

/// The variants of a state.
#[derive(Debug)]
pub struct Split {
    /// Hashed together with the identity key.
    pub key: Box<str>,
    /// In order of rank.
    pub variants: Box<[Share]>,
    /// The output if the hash is in no variant's share.
    pub control: u32,
    pub without_identity: u32,
}

impl Split {
    /// The output of the variant whose share contains `hash`, or the control.
    #[inline]
    pub fn output(&self, hash: f64) -> u32 {
        let hit = self.variants.iter().find(|share| share.from <= hash && hash < share.to);
        hit.map_or(self.control, |share| share.output)
    }
}

/// A variant's share: from `from` (inclusive) to `to` (exclusive).
#[derive(Clone, Copy, Debug)]
pub struct Share {
    pub from: f64,
    pub to: f64,
    pub output: u32,
}

/// Where the parts of a flag's rendered JSON are in [`Program::bytes`]. Its span is in [`Program::server`], a
/// separate table, because most responses need only the spans.
#[derive(Clone, Copy, Debug)]
pub struct RenderedFlag {
    /// For client keys the flag is its client span followed by the bytes from `tail` on: the reason is cut
    /// (differences.md 17).
    pub client_is_cut: bool,
    /// The state has variants, whichever output it gave.
    pub has_variants: bool,
    /// Start of the values of `enabled`, `feature_state_value`, `variant` and `reason`. Each value ends where
    /// the next member's name starts; the reason ends at `tail`.
    pub enabled: u32,
    pub value: u32,
    pub variant: u32,
    pub reason: u32,
    /// Position of the quote that ends `reason`. `metadata` follows if there is any, then brace and comma.
    pub tail: u32,
}

/// A compiled document.
#[derive(Debug, Default)]
pub struct Program {
    /// `<api_key>_`: the identity key is this prefix and the identifier.
    pub identity_key_prefix: Box<str>,
    pub slots: Vec<PropertySource>,
    /// Slots by the name of the trait that fills them.
    pub slots_by_trait: HashMap<Box<str>, u32, TableHashBuilder>,
    /// The traits that `$.identity.traits.<name>` reads, with indices from 0.
    pub aliases: HashMap<Box<str>, u32, TableHashBuilder>,
    /// Slots that can be filled without a trait of their name.
    pub derived_slots: Vec<u32>,
    pub conditions: Vec<Condition>,
    pub children: Vec<Expression>,
    pub segments: Vec<Segment>,
    pub segment_index: SegmentIndex,
    /// Number of conditions that are memoized.
    pub memo_count: u32,
    pub features: Vec<Feature>,
    pub features_by_name: HashMap<Box<str>, u32, TableHashBuilder>,
    pub candidates: Vec<Candidate>,
    /// In document order.
    pub undecided_features: Vec<UndecidedFeature>,
    /// By feature, its output; [`PENDING`] where it depends on the identity.
    pub initial_outputs: Vec<u32>,
    /// As bits: the features whose initial output is not their first own one.
    pub initially_changed: Vec<u64>,
    /// The features' own outputs are contiguous from this one on, and so are their bytes: runs of features
    /// that a request does not change are copied as one.
    pub first_output: u32,
    pub splits: Vec<Split>,
    pub outputs: Vec<RenderedFlag>,
    /// By output, its JSON in `bytes`, an object and a comma: for server keys, and for client keys, where it
    /// is empty if they may not read the flag.
    pub server: Vec<Span>,
    pub client: Vec<Span>,
    /// Some feature's own output differs between the two, or some output is cut for client keys.
    pub client_differs: bool,
    pub bytes: Vec<u8>,
    pub overrides: Overrides,
    /// `Some` if a condition reads a flag: then evaluation follows Python's order.
    pub flags: Option<FlagFacts>,
    pub has_queries: bool,
    /// The context that general queries read; `None` without such a query.
    pub tree: Option<Tree>,
}

/// The output of a feature is not known yet.
pub const PENDING: u32 = u32::MAX;

/// Flag bit on an output: the feature is part of a cycle of flags (compatibility.md 5.12).
pub const CYCLIC: u32 = 1 << 31;

/// What conditions on flags read.
#[derive(Debug, Default)]
pub struct FlagFacts {
    /// By output.
    pub facts: Vec<FlagFact>,
    /// By feature, the segments that override it, in document order, each with the index of its best override
    /// among the feature's candidates.
    pub segments_by_feature: Vec<Box<[(u32, u32)]>>,
    /// By segment, the steps of its conditions, of `limits::FLAG_CYCLE_STEPS_MAX`.
    pub segment_steps: Vec<u32>,
}

/// The members of an output as values.
#[derive(Debug)]
pub struct FlagFact {
    pub enabled: Scalar,
    pub name: Box<str>,
    pub value: Scalar,
    pub variant: Scalar,
    pub reason: Box<str>,
    pub feature_id: Scalar,
}

impl FlagFact {
    pub fn as_flag_result(&self) -> FlagResult<'_> {
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

/// Identity overrides by identifier.
#[derive(Debug, Default)]
pub struct Overrides {
    hasher: TableHashBuilder,
    table: HashTable<OverrideEntry>,
    /// All identifiers, concatenated.
    identifiers: Vec<u8>,
    /// All overrides as pairs of feature and state, grouped by identity.
    states: Vec<(u32, FeatureState)>,
}

#[derive(Clone, Copy, Debug)]
struct OverrideEntry {
    identifier: Span,
    states: Span,
}

impl Program {
    /// Whether all identities have the same results: the initial outputs.
    pub fn is_constant(&self) -> bool {
        self.undecided_features.is_empty() && self.overrides.is_empty()
    }

    /// The index of the feature with this name.
    pub fn feature(&self, name: &str) -> Option<usize> {
        self.features_by_name.get(name).map(|index| *index as usize)
    }

    /// Whether results depend on the hash of the identity key.
    pub fn hashes_identities(&self) -> bool {
        let is_hashed = |condition: &Condition| {
            let source = &self.slots[condition.slot as usize];
            matches!(condition.predicate, Predicate::Split { .. })
                && matches!(source, PropertySource::IdentityKey | PropertySource::SplitKey)
        };
        !self.splits.is_empty() || self.conditions.iter().any(is_hashed)
    }

    /// The property of a slot that a trait can fill.
    pub fn property(&self, slot: u32) -> Option<&str> {
        let mut slots = self.slots_by_trait.iter();
        slots.find(|(_, filled)| **filled == slot).map(|(name, _)| &**name)
    }

    /// By output, the span of its JSON for this role.
    pub fn json(&self, role: Role) -> &[Span] {
        match role {
            Role::Server => &self.server,
            Role::Client => &self.client,
        }
    }
}

impl Overrides {
    /// Builds the table from each identity's identifier and overrides. Identifiers must be distinct.
    pub fn build<'a>(entries: impl ExactSizeIterator<Item = (&'a str, &'a [(u32, FeatureState)])>) -> Self {
        let mut overrides = Self { table: HashTable::with_capacity(entries.len()), ..Self::default() };
        for (identifier, states) in entries {
            yielding::step();
            let from = offset(overrides.identifiers.len());
            overrides.identifiers.extend_from_slice(identifier.as_bytes());
            let identifier = Span { from, to: offset(overrides.identifiers.len()) };
            let from = offset(overrides.states.len());
            overrides.states.extend_from_slice(states);
            let entry =
                OverrideEntry { identifier, states: Span { from, to: offset(overrides.states.len()) } };
            let (hasher, identifiers) = (&overrides.hasher, &overrides.identifiers);
            let hash = |entry: &OverrideEntry| {
                std::hash::BuildHasher::hash_one(hasher, entry.identifier.of(identifiers))
            };
            overrides.table.insert_unique(hash(&entry), entry, hash);
        }
        overrides.identifiers.shrink_to_fit();
        overrides.states.shrink_to_fit();
        overrides
    }

    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// The features that have an override for exactly this identifier, and their states.
    pub fn find(&self, identifier: &str) -> &[(u32, FeatureState)] {
        let identifier = identifier.as_bytes();
        let hash = std::hash::BuildHasher::hash_one(&self.hasher, identifier);
        let found = self.table.find(hash, |entry| entry.identifier.of(&self.identifiers) == identifier);
        found.map_or(&[], |entry| entry.states.of(&self.states))
    }
}
