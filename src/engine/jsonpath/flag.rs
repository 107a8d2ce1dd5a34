//! Flags as queries read them: `$.flags.<name>.<member>` (compatibility.md 5.12).
use crate::engine::identity::TraitValue;

/// The members of a flag's result that a condition may read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlagMember {
    Enabled,
    Name,
    Reason,
    Value,
    Variant,
    /// `metadata.id`.
    FeatureId,
}

/// A flag's result as a query sees it.
#[derive(Clone, Copy, Debug)]
pub struct FlagResult<'a> {
    /// Not always a boolean: a document may have null or a number here.
    pub enabled: TraitValue<'a>,
    pub name: &'a str,
    pub reason: &'a str,
    pub value: TraitValue<'a>,
    pub variant: TraitValue<'a>,
    pub feature_id: TraitValue<'a>,
}

impl<'a> FlagResult<'a> {
    /// What a condition reads.
    pub fn member(&self, member: FlagMember) -> TraitValue<'a> {
        match member {
            FlagMember::Enabled => self.enabled,
            FlagMember::Name => TraitValue::Text(self.name),
            FlagMember::Reason => TraitValue::Text(self.reason),
            FlagMember::Value => self.value,
            FlagMember::Variant => self.variant,
            FlagMember::FeatureId => self.feature_id,
        }
    }
}

/// The flags of an evaluation, as `$.flags` has them: there once a condition has read them.
pub trait FlagLookup<'a> {
    /// The flag of that name, resolved now if no condition read it before.
    fn resolve(&mut self, name: &str) -> Option<FlagResult<'a>>;

    /// Of those resolved so far the one at that place, in the order in which they were.
    fn resolved(&self, at: usize) -> Option<FlagResult<'a>>;

    /// How many were resolved so far.
    fn resolved_count(&self) -> usize;
}
