//! Where a condition's property points (compatibility.md 5.6).
//!
//! In: the property's text, when a document is compiled. Out: a [`Property`]: a trait's name, or a
//! place in the evaluation context. The places that occur in practice (`$.identity.*`,
//! `$.environment.*`, `$.flags.*`) are resolved here, once; any other RFC 9535 query is kept and
//! walked per request. Invariant: text that is no valid JSONPath is a trait's name, never an error.
mod find;
mod iregexp;
mod lex;
mod parse;
mod syntax;
mod tree;

use crate::engine::evaluate::TraitValue;
pub use crate::engine::jsonpath::find::OutOfSteps;
use crate::engine::jsonpath::parse::PathError;
use crate::engine::jsonpath::syntax::Path;
use crate::engine::jsonpath::tree::{Context, TreeNode};
pub use crate::engine::jsonpath::tree::{Subject, Tree};
use crate::step_budget::StepBudget;

/// What a condition's property names.
#[derive(Clone, Debug)]
pub enum Property {
    /// A trait of exactly this name.
    Trait(Box<str>),
    /// A JSONPath. A trait named exactly `name` wins if it is not null.
    Path { name: Box<str>, target: QueryTarget },
}

/// What a JSONPath finds.
#[derive(Clone, Debug)]
pub enum QueryTarget {
    /// `$.environment.key`.
    EnvironmentKey,
    /// `$.environment.name`.
    EnvironmentName,
    /// `$.identity.identifier`; not set without an identity.
    Identifier,
    /// `$.identity.key`; not set without an identity.
    IdentityKey,
    /// `$.identity.traits.<name>`.
    IdentityTrait(Box<str>),
    /// `$.flags.<name>.<member>` (compatibility.md 5.12).
    Flag { name: Box<str>, member: FlagMember },
    /// `$.flags.<name>` alone, or a member that no flag has: reading it resolves the flag (which
    /// may cut a cycle), but what it finds counts as not set.
    FlagAlone { name: Box<str> },
    /// An object, or nothing at all: always not set.
    Nothing,
    /// Any other query.
    Query(Box<Query>),
    /// The package raises for it, and the engine does not catch that: no condition on it ever holds,
    /// `IS_NOT_SET` included (differences.md 5). The text says why.
    Refused(&'static str),
}

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

/// A general query.
#[derive(Clone, Debug)]
pub struct Query {
    path: Path,
}

impl Query {
    /// The first node's value, or null where there is none or it is a list or an object.
    ///
    /// # Errors
    /// `steps` did not suffice: the request's budget for all of its queries.
    pub fn find<'a>(
        &'a self,
        tree: &'a Tree,
        subject: Option<&Subject<'a>>,
        flags: &mut dyn FlagLookup<'a>,
        steps: &StepBudget,
    ) -> Result<TraitValue<'a>, OutOfSteps> {
        let node = find::first(&self.path, &mut Context { tree, subject, flags, steps })?;
        Ok(node.map_or(TraitValue::Null, TreeNode::scalar))
    }

    /// Whether it may see flags, so that its answer depends on which of them are resolved already.
    pub fn sees_flags(&self) -> bool {
        self.path.sees_flags()
    }
}

impl Property {
    /// Reads a property. `null` in the document is the empty text.
    pub fn parse(text: &str) -> Self {
        if !text.starts_with("$.") {
            return Self::Trait(text.into());
        }
        let target = match parse::parse(text) {
            Err(PathError::Syntax) => return Self::Trait(text.into()),
            Err(PathError::Refused(message)) => QueryTarget::Refused(message),
            Ok(path) => match path.names().map(|names| target(&names)) {
                Some(Some(target)) => target,
                _ => QueryTarget::Query(Box::new(Query { path })),
            },
        };
        Self::Path { name: text.into(), target }
    }
}

/// Where a path of names alone leads; `None` where the document decides.
fn target(names: &[&str]) -> Option<QueryTarget> {
    Some(match *names {
        ["environment", "key"] => QueryTarget::EnvironmentKey,
        ["environment", "name"] => QueryTarget::EnvironmentName,
        ["identity", "identifier"] => QueryTarget::Identifier,
        ["identity", "key"] => QueryTarget::IdentityKey,
        ["identity", "traits", name] => QueryTarget::IdentityTrait(name.into()),
        ["flags", name, "metadata", "id"] => {
            QueryTarget::Flag { name: name.into(), member: FlagMember::FeatureId }
        }
        ["flags", name, member] => {
            let member = match member {
                "enabled" => FlagMember::Enabled,
                "name" => FlagMember::Name,
                "reason" => FlagMember::Reason,
                "value" => FlagMember::Value,
                "variant" => FlagMember::Variant,
                _ => return Some(QueryTarget::FlagAlone { name: name.into() }),
            };
            QueryTarget::Flag { name: name.into(), member }
        }
        ["flags", name, ..] => QueryTarget::FlagAlone { name: name.into() },
        ["features" | "segments", ..] => return None,
        _ => QueryTarget::Nothing,
    })
}
