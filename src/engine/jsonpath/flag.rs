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

/// The state of a flag, as queries read it.
#[derive(Clone, Copy, Debug)]
pub struct FlagResult<'a> {
    /// Usually a boolean; a document may have null or a number.
    pub enabled: TraitValue<'a>,
    pub name: &'a str,
    pub reason: &'a str,
    pub value: TraitValue<'a>,
    pub variant: TraitValue<'a>,
    pub feature_id: TraitValue<'a>,
}

impl<'a> FlagResult<'a> {
    /// The value of a member.
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

/// The flags of an evaluation. As in Python, `$.flags` has only those that a condition has read.
pub trait FlagLookup<'a> {
    /// The flag with this name; resolves it if no condition has read it before.
    fn resolve(&mut self, name: &str) -> Option<FlagResult<'a>>;

    /// The flag at index `at` of those resolved so far, in the order of resolution.
    fn resolved(&self, at: usize) -> Option<FlagResult<'a>>;

    /// The number of flags resolved so far.
    fn resolved_count(&self) -> usize;
}
