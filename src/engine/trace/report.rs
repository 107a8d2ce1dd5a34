//! The result of `explain`, serialized as JSON here and printed as text by `commands::explain`.
use serde::Serialize;
use serde_json::Value as Json;
use serde_json::value::RawValue;

/// What was found for one identity.
#[derive(Debug, Serialize)]
pub struct Explanation {
    /// `None`: nobody in particular, as `/flags/` answers.
    pub identifier: Option<String>,
    pub traits: Vec<SentTrait>,
    pub flags: Vec<FlagReport>,
    /// In document order; with one feature asked for, those that override it.
    pub segments: Vec<SegmentReport>,
}

/// A trait as it was sent.
#[derive(Debug, Serialize)]
pub struct SentTrait {
    pub trait_key: String,
    pub trait_value: Json,
}

/// One flag, and what gave it its value.
#[derive(Debug, Serialize)]
pub struct FlagReport {
    pub feature: String,
    pub enabled: Json,
    pub value: Json,
    pub variant: Json,
    pub reason: String,
    /// The winning state's, as the document has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Box<RawValue>>,
    /// This identity has a state of its own for it.
    pub identity_override: bool,
    /// The segments that override it and match, in document order.
    pub matching_segments: Vec<String>,
    /// Why those segments and the reason do not go together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<&'static str>,
}

/// One segment, and whether the identity is in it.
#[derive(Debug, Serialize)]
pub struct SegmentReport {
    pub id: String,
    pub name: String,
    pub matches: bool,
    pub overrides: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<&'static str>,
    pub rules: Vec<RuleReport>,
}

/// One rule, with what it joins.
#[derive(Debug, Serialize)]
pub struct RuleReport {
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub matches: bool,
    pub conditions: Vec<ConditionReport>,
    pub rules: Vec<RuleReport>,
}

/// One condition: what it asks, and what it saw.
#[derive(Debug, Serialize)]
pub struct ConditionReport {
    pub property: String,
    pub operator: String,
    /// As the document has it.
    pub value: Json,
    /// The identity's, after coercion; null where it is not set.
    pub seen: Json,
    /// What it counts as: text that looks like a number is one.
    pub seen_as: &'static str,
    /// Where a split puts this identity, from 0 to 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split_at: Option<f64>,
    pub matches: bool,
    /// Why it can never hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Ready JSON of the document, read for another shape.
pub fn json(raw: &str) -> Json {
    serde_json::from_str(raw).unwrap_or_else(|_| raw.into())
}
