//! Segments, rules and conditions as the document has them.
use std::borrow::Cow;

use crate::engine::document::error::CompileError;
use crate::engine::document::feature::FeatureState;
use crate::engine::document::raw_json::{
    DocumentPath, is_truthy, list, members, python_str, required, string,
};

/// A segment.
#[derive(Clone, Debug)]
pub struct Segment<'a> {
    /// `str(id)`.
    pub key: Cow<'a, str>,
    /// `str(name)`: `None` for null.
    pub name: Cow<'a, str>,
    pub rules: Vec<Rule<'a>>,
    pub overrides: Vec<FeatureState<'a>>,
}

/// A rule with its nested rules.
#[derive(Clone, Debug)]
pub struct Rule<'a> {
    pub kind: RuleKind,
    pub conditions: Vec<Condition<'a>>,
    pub rules: Vec<Rule<'a>>,
}

/// How the parts of a rule are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleKind {
    All,
    Any,
    None,
    /// Python raises if such a rule is not empty (D054-D056).
    Unknown,
}

/// A condition.
#[derive(Clone, Debug)]
pub struct Condition<'a> {
    /// `property_`; empty if it is missing or null.
    pub property: Cow<'a, str>,
    /// `property_` is not a string: Python raises for every identity (differences.md 5).
    pub is_nameless: bool,
    /// Empty if it is not a string.
    pub operator: Cow<'a, str>,
    /// Raw text.
    pub value: &'a str,
}

impl<'a> Segment<'a> {
    pub(super) fn read(raw: &'a str, at: &DocumentPath<'_>) -> Result<Self, CompileError> {
        let [id, name, rules, states] = members(raw, at, ["id", "name", "rules", "feature_states"])?;
        let rules = required(rules, at, "rules")?;
        Ok(Self {
            key: python_str(required(id, at, "id")?, &at.member("id"))?,
            name: python_str(required(name, at, "name")?, &at.member("name"))?,
            rules: list(rules, &at.member("rules"), Rule::read)?,
            overrides: match states.filter(|raw| is_truthy(raw)) {
                Some(raw) => list(raw, &at.member("feature_states"), FeatureState::read)?,
                None => Vec::new(),
            },
        })
    }
}

impl<'a> Rule<'a> {
    fn read(raw: &'a str, at: &DocumentPath<'_>) -> Result<Self, CompileError> {
        let [kind, conditions, rules] = members(raw, at, ["type", "conditions", "rules"])?;
        Ok(Self {
            kind: match required(kind, at, "type")? {
                "\"ALL\"" => RuleKind::All,
                "\"ANY\"" => RuleKind::Any,
                "\"NONE\"" => RuleKind::None,
                _ => RuleKind::Unknown,
            },
            conditions: match conditions {
                Some(raw) => list(raw, &at.member("conditions"), Condition::read)?,
                None => Vec::new(),
            },
            rules: match rules {
                Some(raw) => list(raw, &at.member("rules"), Rule::read)?,
                None => Vec::new(),
            },
        })
    }
}

impl<'a> Condition<'a> {
    fn read(raw: &'a str, at: &DocumentPath<'_>) -> Result<Self, CompileError> {
        let [property, operator, value] = members(raw, at, ["property_", "operator", "value"])?;
        let property = property.filter(|raw| is_truthy(raw));
        Ok(Self {
            property: property.map_or(Some(Cow::Borrowed("")), string).unwrap_or_default(),
            is_nameless: property.is_some_and(|raw| !raw.starts_with('"')),
            operator: string(required(operator, at, "operator")?).unwrap_or_default(),
            value: required(value, at, "value")?,
        })
    }
}
