//! Compiled conditions, segments and features: what an evaluation reads.
//!
//! In: built by `compile` and `condition`, once per document. Out: read by `evaluate`, never changed.
//! Invariant: whatever can be parsed, sorted, looked up or written ahead of time has been; indices
//! here always point inside the tables of the same [`Program`].
use std::cmp::Ordering;

use hashbrown::{HashMap, HashSet, HashTable};

use crate::engine::compile::segment_index::Lookups;
use crate::engine::jsonpath::{FlagMember, Query, Tree};
use crate::python::number::Integer;
use crate::python::regex::Pattern;
use crate::yielding;

/// What a key may see. Server-side keys start with `ser.` (compatibility.md 1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Client,
    Server,
}

/// Fast, seeded, and good enough against chosen names: tables are rebuilt with each document.
pub type CompiledState = foldhash::fast::RandomState;

/// Where the value of a condition's property comes from. A trait named exactly as the property wins
/// if it is not null; this says what counts otherwise.
#[derive(Debug)]
pub enum PropertySource {
    /// Nothing else: a plain trait.
    Trait,
    /// Decided by the document (`$.environment.name`): each condition holds its result.
    Constant(Box<str>),
    Identifier,
    IdentityKey,
    /// The identity key as a split with an empty property takes it: not coerced, no trait wins.
    SplitKey,
    /// `$.identity.traits.<name>`, by its number in [`Program::aliases`].
    IdentityTrait(u32),
    /// `None`: a flag that is not in the document.
    Flag(Option<u32>, FlagMember),
    /// Resolves the flag, which may cut a cycle, and finds nothing.
    FlagAlone(Option<u32>),
    Query(Box<Query>),
    /// Never set.
    Nothing,
}

/// A condition on a slot's value.
#[derive(Debug)]
pub struct Condition {
    pub slot: u32,
    pub test: Test,
    /// The result when no trait was sent: for a trait's slot that of an absent value, for a constant
    /// slot that of the constant.
    pub by_default: bool,
    /// Its place in the memo; conditions that occur once have none.
    pub memo: Option<u32>,
    /// Without a trait, the value has to be found when it is asked for (flags, general queries).
    pub is_dynamic: bool,
}

/// What is asked of a value (compatibility.md 5.7).
#[derive(Debug)]
pub enum Test {
    /// An unknown operator, or one that Python raises for whatever the value (differences.md 5).
    Never,
    IsSet,
    IsNotSet,
    Compare(Comparison, Box<Operand>),
    Contains(Box<str>),
    /// CONTAINS with a version: whether the value is one with this pre-release or build.
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

/// An order that a condition asks for.
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
    /// Whether it holds for values in that order; `None`: one of them is not a number.
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

/// A condition's value, read as each type that it may be compared with. `None`: the cast fails, so
/// the comparison is false.
#[derive(Debug)]
pub struct Operand {
    pub bool: bool,
    pub integer: Option<Integer>,
    /// The digits of `integer` if it is outside `i64`.
    pub big_integer: Option<Box<str>>,
    pub float: Option<f64>,
    pub text: OperandText,
}

/// What text is compared with.
#[derive(Debug, PartialEq)]
pub enum OperandText {
    Plain(Box<str>),
    /// `<version>:semver`, without the suffix, valid.
    Version(Box<str>),
    Never,
}

/// The items of an IN condition.
#[derive(Debug, Default)]
pub struct Members {
    pub texts: HashSet<Box<str>, CompiledState>,
    /// Those of `texts` that are an integer as `str()` writes it.
    pub integers: HashSet<i64, CompiledState>,
}

/// A boolean expression over conditions; children are ranges of [`Program::children`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expression {
    Constant(bool),
    /// A condition's index.
    Test(u32),
    All(Span),
    Any(Span),
    NoneOf(Span),
    /// As `All`, but each child is asked even after one failed: where flags are read, asking counts
    /// (compatibility.md 5.5, 5.12).
    Both(Span),
}

/// A range of a table: the children of a node, the candidates of a feature, the bytes of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub from: u32,
    pub to: u32,
}

impl Span {
    pub const EMPTY: Self = Self { from: 0, to: 0 };

    /// What it spans.
    pub fn of<T>(self, table: &[T]) -> &[T] {
        &table[self.from as usize..self.to as usize]
    }

    pub fn is_empty(self) -> bool {
        self.from == self.to
    }

    pub fn len(self) -> usize {
        (self.to - self.from) as usize
    }
}

/// A segment that can change an answer.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// Its rules.
    pub rule: Expression,
    /// What is left to ask once the lookups let it through.
    pub rest: Expression,
}

/// An override of a feature by a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub segment: u32,
    pub state: FeatureState,
}

/// Features with more candidates than this may find those that are left by their segments.
pub const CANDIDATES_WALKED_MAX: usize = 32;

/// A feature of the environment.
#[derive(Clone, Debug)]
pub struct Feature {
    pub name: Box<str>,
    pub state: FeatureState,
    /// Its overrides in [`Program::candidates`], best first: the first whose segment matches wins.
    pub candidates: Span,
    /// If it has many candidates: their segments as bits, and by segment its best candidate.
    pub segments: Box<[u64]>,
    pub ranks: Box<[u32]>,
}

/// A feature whose state depends on who asks: what an evaluation reads of it.
#[derive(Clone, Copy, Debug)]
pub struct OpenFeature {
    pub feature: u32,
    /// As the feature's.
    pub state: FeatureState,
    pub candidates: Span,
}

/// A state of a feature: the output it gives, or the split that says which.
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

    /// The split's index, which means something only without an output.
    #[inline]
    pub fn split(self) -> u32 {
        self.0 & !Self::SPLIT
    }
}

/// The variants of a state.
#[derive(Debug)]
pub struct Split {
    /// Hashed with the identity's key.
    pub key: Box<str>,
    /// In order of rank.
    pub variants: Box<[Share]>,
    /// The output when none is hit.
    pub control: u32,
    pub without_identity: u32,
}

/// A variant's share: from `from` (inclusive) to `to` (exclusive).
#[derive(Clone, Copy, Debug)]
pub struct Share {
    pub from: f64,
    pub to: f64,
    pub output: u32,
}

/// The parts of a flag's JSON; where it lies is kept apart, in [`Program::server`], because answers
/// read no more than that.
#[derive(Clone, Copy, Debug)]
pub struct RenderedFlag {
    /// What client keys see ends inside the reason; the bytes from `tail` on follow it
    /// (differences.md 17).
    pub client_is_cut: bool,
    /// Of a state with variants, whether one was hit or none.
    pub has_variants: bool,
    /// Where the parts start: `enabled`'s value, `feature_state_value`'s, `variant`'s and `reason`'s.
    /// Each ends where the next member's name starts, `reason` at `tail`.
    pub enabled: u32,
    pub value: u32,
    pub variant: u32,
    pub reason: u32,
    /// Where the quote stands that ends `reason`; `metadata` follows if there is any, then the brace
    /// and the comma.
    pub tail: u32,
}

/// Everything an evaluation needs of a document.
#[derive(Debug, Default)]
pub struct Program {
    /// `<api_key>_`, before an identifier it makes the identity's key.
    pub identity_key_prefix: Box<str>,
    pub slots: Vec<PropertySource>,
    /// Slots by the trait that fills them.
    pub slots_by_trait: HashMap<Box<str>, u32, CompiledState>,
    /// The traits that `$.identity.traits.<name>` reads, numbered from 0.
    pub aliases: HashMap<Box<str>, u32, CompiledState>,
    /// Slots that are filled without a trait.
    pub derived_slots: Vec<u32>,
    pub conditions: Vec<Condition>,
    pub children: Vec<Expression>,
    pub segments: Vec<Segment>,
    pub lookups: Lookups,
    /// How many conditions have a place in the memo.
    pub memo_count: u32,
    pub features: Vec<Feature>,
    pub features_by_name: HashMap<Box<str>, u32, CompiledState>,
    pub candidates: Vec<Candidate>,
    /// In document order.
    pub open_features: Vec<OpenFeature>,
    /// One output per feature, [`PENDING`] where it depends on the identity.
    pub outputs_at_start: Vec<u32>,
    /// As bits: the features whose output at the start is not the first they have.
    pub changed_at_start: Vec<u64>,
    /// The features' own outputs follow each other from this one on, and so do their bytes: what no
    /// request changes is copied at once.
    pub first_output: u32,
    pub splits: Vec<Split>,
    pub outputs: Vec<RenderedFlag>,
    /// By output its JSON in `bytes` as identities see it, an object and the comma behind it: with a
    /// server key and with a client key, where it is empty if they may not see it.
    pub server: Vec<Span>,
    pub client: Vec<Span>,
    /// Not every feature's own output is the same for both, or an output is cut for client keys.
    pub client_differs: bool,
    pub bytes: Vec<u8>,
    pub overrides: Overrides,
    /// `Some` if a condition reads a flag: then Python's order of evaluation is replayed.
    pub flags: Option<FlagFacts>,
    pub has_queries: bool,
    /// What general queries are asked of; built only if there is one.
    pub tree: Option<Tree>,
}

/// A feature whose output is not yet known.
pub const PENDING: u32 = u32::MAX;

/// What conditions on flags read, and in which order flags are resolved.
#[derive(Debug, Default)]
pub struct FlagFacts {
    /// By output.
    pub facts: Vec<FlagFact>,
    /// Per feature: the segments that override it, in document order, and which of the feature's
    /// candidates their best override is.
    pub segments_by_feature: Vec<Box<[(u32, u32)]>>,
}

/// An output's members as values, in the form of traits.
#[derive(Debug)]
pub struct FlagFact {
    pub enabled: Scalar,
    pub name: Box<str>,
    pub value: Scalar,
    pub variant: Scalar,
    pub reason: Box<str>,
    pub feature_id: Scalar,
}

/// A JSON scalar that owns its text; arrays and objects count as null where conditions read them.
#[derive(Debug)]
pub enum Scalar {
    Null,
    Bool(bool),
    Int(i64),
    BigInt(Box<str>),
    Float(f64),
    Text(Box<str>),
}

/// Identity overrides by identifier.
#[derive(Debug, Default)]
pub struct Overrides {
    hasher: CompiledState,
    table: HashTable<Entry>,
    /// All identifiers, one after the other.
    identifiers: Vec<u8>,
    /// All overrides, one identity's together; pairs of feature and state.
    states: Vec<(u32, FeatureState)>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    identifier: Span,
    states: Span,
}

impl Program {
    /// The index of the feature of this name.
    pub fn feature(&self, name: &str) -> Option<usize> {
        self.features_by_name.get(name).map(|index| *index as usize)
    }

    /// Whether an answer depends on the hash of an identity's key.
    pub fn hashes_identities(&self) -> bool {
        let is_hashed = |condition: &Condition| {
            let origin = &self.slots[condition.slot as usize];
            matches!(condition.test, Test::Split { .. })
                && matches!(origin, PropertySource::IdentityKey | PropertySource::SplitKey)
        };
        !self.splits.is_empty() || self.conditions.iter().any(is_hashed)
    }

    /// The property of a slot that a trait can fill.
    pub fn property(&self, slot: u32) -> Option<&str> {
        let mut slots = self.slots_by_trait.iter();
        slots.find(|(_, filled)| **filled == slot).map(|(name, _)| &**name)
    }

    /// By output its JSON for that role.
    pub fn json(&self, role: Role) -> &[Span] {
        match role {
            Role::Server => &self.server,
            Role::Client => &self.client,
        }
    }
}

impl Overrides {
    /// Builds the table from each identity's overrides, the first entry of each feature first.
    pub fn build<'a>(entries: impl ExactSizeIterator<Item = (&'a str, &'a [(u32, FeatureState)])>) -> Self {
        let mut overrides = Self { table: HashTable::with_capacity(entries.len()), ..Self::default() };
        for (identifier, states) in entries {
            yielding::step();
            let from = offset(overrides.identifiers.len());
            overrides.identifiers.extend_from_slice(identifier.as_bytes());
            let identifier = Span { from, to: offset(overrides.identifiers.len()) };
            let from = offset(overrides.states.len());
            overrides.states.extend_from_slice(states);
            let entry = Entry { identifier, states: Span { from, to: offset(overrides.states.len()) } };
            let (hasher, identifiers) = (&overrides.hasher, &overrides.identifiers);
            let hash =
                |entry: &Entry| std::hash::BuildHasher::hash_one(hasher, entry.identifier.of(identifiers));
            overrides.table.insert_unique(hash(&entry), entry, hash);
        }
        overrides.identifiers.shrink_to_fit();
        overrides.states.shrink_to_fit();
        overrides
    }

    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// The features that this identifier, to the letter, has a state of its own for, and the states.
    pub fn find(&self, identifier: &str) -> &[(u32, FeatureState)] {
        let identifier = identifier.as_bytes();
        let hash = std::hash::BuildHasher::hash_one(&self.hasher, identifier);
        let found = self.table.find(hash, |entry| entry.identifier.of(&self.identifiers) == identifier);
        found.map_or(&[], |entry| entry.states.of(&self.states))
    }
}

/// An index or length as it is stored. A document is far smaller than 4 GiB (`limits`), and so is
/// whatever is made from it; a table beyond would make every later slice empty, not wrong.
#[expect(clippy::cast_possible_truncation, reason = "bounded by limits::DOCUMENT_BYTES_MAX")]
pub fn offset(length: usize) -> u32 {
    debug_assert!(u32::try_from(length).is_ok(), "bounded by the size of a document");
    length as u32
}
