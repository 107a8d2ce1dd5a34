//! The result of `explain`: serialized as JSON, and printed as text by `commands::explain`.
use serde::Serialize;
use serde_json::Value as Json;
use serde_json::value::RawValue;

/// The flags of one identity, and how they came about.
#[derive(Debug, Serialize)]
pub struct Explanation {
    /// `None` for an evaluation without identity, as by `/flags/`.
    pub identifier: Option<String>,
    pub traits: Vec<SentTrait>,
    pub flags: Vec<FlagReport>,
    /// In document order; only those that override the feature, if one was requested.
    pub segments: Vec<SegmentReport>,
}

/// A trait as sent.
#[derive(Debug, Serialize)]
pub struct SentTrait {
    pub trait_key: String,
    pub trait_value: Json,
}

/// A flag and the source of its value.
#[derive(Debug, Serialize)]
pub struct FlagReport {
    pub feature: String,
    pub enabled: Json,
    pub value: Json,
    pub variant: Json,
    pub reason: String,
    /// Metadata of the winning feature state, as in the document.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Box<RawValue>>,
    /// Whether this identity has an override of the flag.
    pub identity_override: bool,
    /// The matching segments that override the flag, in document order.
    pub matching_segments: Vec<String>,
    /// Why the matching segments seem to contradict the reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<&'static str>,
}

/// A segment, and whether the identity is in it.
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

/// A rule with its conditions and inner rules.
#[derive(Debug, Serialize)]
pub struct RuleReport {
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub matches: bool,
    pub conditions: Vec<ConditionReport>,
    pub rules: Vec<RuleReport>,
}

/// A condition and the value it was evaluated with.
#[derive(Debug, Serialize)]
pub struct ConditionReport {
    pub property: String,
    pub operator: String,
    /// The value in the document.
    pub value: Json,
    /// The value of the identity after coercion; null if not set.
    pub seen: Json,
    /// The type after coercion: text that looks like a number is one.
    pub seen_as: &'static str,
    /// The percentage that a split assigns to this identity, from 0 to 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split_at: Option<f64>,
    pub matches: bool,
    /// Why the condition cannot match.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Parses raw JSON of the document.
pub fn json(raw: &str) -> Json {
    serde_json::from_str(raw).unwrap_or_else(|_| raw.into())
}
