//! The property of a condition: the name of a trait, or a JSONPath into the evaluation context
//! (compatibility.md 5.6).
//!
//! Common paths (`$.identity.*`, `$.environment.*`, `$.flags.*`) are resolved when a document is compiled.
//! Any other RFC 9535 query is parsed then and evaluated per request. Text that is not a valid JSONPath is
//! the name of a trait, never an error.
mod find;
mod flag;
mod iregexp;
mod lex;
mod parse;
mod subject;
mod syntax;
mod tree;
mod value;

use crate::engine::identity::TraitValue;
pub use crate::engine::jsonpath::find::OutOfSteps;
pub use crate::engine::jsonpath::flag::{FlagLookup, FlagMember, FlagResult};
use crate::engine::jsonpath::parse::PathError;
pub use crate::engine::jsonpath::subject::Subject;
use crate::engine::jsonpath::syntax::Path;
pub use crate::engine::jsonpath::tree::Tree;
use crate::engine::jsonpath::tree::{Context, TreeNode};
use crate::step_budget::StepBudget;

/// The property of a condition.
#[derive(Clone, Debug)]
pub enum Property {
    /// A trait of exactly this name.
    Trait(Box<str>),
    /// A JSONPath. A trait with exactly this name takes precedence if it is not null.
    Path { name: Box<str>, target: QueryTarget },
}

/// What a JSONPath refers to.
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
    /// `$.flags.<name>`, or an unknown member of it: reading it resolves the flag (which may cut a cycle),
    /// and the value is not set.
    FlagObject { name: Box<str> },
    /// An object or nothing: always not set.
    Nothing,
    /// Any other query.
    Query(Box<Query>),
    /// The Python package raises an error that the engine does not catch: no condition on it holds, not even
    /// `IS_NOT_SET` (differences.md 5). The text is the reason.
    Refused(&'static str),
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
    /// `steps`, the request's budget for all of its queries, did not suffice.
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

    /// Whether it may read flags: then its result depends on which of them are resolved.
    pub fn reads_flags(&self) -> bool {
        self.path.reads_flags()
    }
}

impl Property {
    /// Parses a property.
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

/// The target of a path that has only names; `None` if it needs a general query.
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
                _ => return Some(QueryTarget::FlagObject { name: name.into() }),
            };
            QueryTarget::Flag { name: name.into(), member }
        }
        ["flags", name, ..] => QueryTarget::FlagObject { name: name.into() },
        ["features" | "segments", ..] => return None,
        _ => QueryTarget::Nothing,
    })
}
