//! Identity overrides as the document has them (compatibility.md 3).
//!
//! Members that the Python mapper does not read here never make a document invalid. Variants are such a
//! member: only core reads them (differences.md 43).
use std::borrow::Cow;

use crate::engine::document::error::CompileError;
use crate::engine::document::feature::{Feature, Variant, read_enabled};
use crate::engine::document::raw_json::{DocumentPath, is_truthy, list, members, python_str, required};
use crate::limits::DOCUMENT_DEPTH_MAX;
use crate::python::{json, repr};

/// The overrides of one identity.
#[derive(Clone, Debug)]
pub struct IdentityOverride<'a> {
    pub identifier: Cow<'a, str>,
    pub features: Vec<OverrideState<'a>>,
}

/// The state of a feature for one identity.
#[derive(Clone, Debug)]
pub struct OverrideState<'a> {
    pub feature: Feature<'a>,
    pub enabled: &'a str,
    pub value: &'a str,
    /// The seed of its variants, as `FeatureState::key`; empty if the document has none.
    pub key: Cow<'a, str>,
    /// Selects the variant that the identity gets (differences.md 43). Empty if they are invalid.
    pub variants: Vec<Variant<'a>>,
}

impl<'a> IdentityOverride<'a> {
    /// Reads one entry. `None` if it has no features: Python ignores the rest of it.
    pub(super) fn read(raw: &'a str, at: &DocumentPath<'_>) -> Result<Option<Self>, CompileError> {
        let [identifier, features] = members(raw, at, ["identifier", "identity_features"])?;
        let features = required(features, at, "identity_features")?;
        if !is_truthy(features) {
            return Ok(None);
        }
        let identifier = required(identifier, at, "identifier")?;
        let identifier_at = at.member("identifier");
        if identifier == "null" {
            return Err(identifier_at.expected("a string", identifier));
        }
        Ok(Some(Self {
            identifier: python_str(identifier, &identifier_at)?,
            features: list(features, &at.member("identity_features"), OverrideState::read)?,
        }))
    }
}

impl<'a> OverrideState<'a> {
    fn read(raw: &'a str, at: &DocumentPath<'_>) -> Result<Self, CompileError> {
        let names = [
            "feature",
            "enabled",
            "feature_state_value",
            "django_id",
            "featurestate_uuid",
            "multivariate_feature_state_values",
        ];
        let [feature, enabled, value, django_id, uuid, variants] = members(raw, at, names)?;
        let value = required(value, at, "feature_state_value")?;
        if value.starts_with(['[', '{']) {
            // Python cannot group by it and raises (D131).
            return Err(at.member("feature_state_value").expected("a scalar", value));
        }
        Ok(Self {
            feature: Feature::read(required(feature, at, "feature")?, &at.member("feature"))?,
            enabled: read_enabled(enabled, at)?,
            value,
            key: match django_id.filter(|raw| is_truthy(raw)).or(uuid) {
                Some(raw) if raw.starts_with(['[', '{']) => container_str(raw),
                Some(raw) => python_str(raw, at).unwrap_or_default(),
                None => Cow::Borrowed(""),
            },
            variants: variants
                .filter(|raw| is_truthy(raw))
                .and_then(|raw| list(raw, at, Variant::read).ok())
                .unwrap_or_default(),
        })
    }
}

/// `str()` of a list or dict, which Python hashes although no API sends one as an id.
fn container_str<'a>(raw: &str) -> Cow<'a, str> {
    let value = json::loads_text(raw, DOCUMENT_DEPTH_MAX).ok();
    value.and_then(|value| repr::str(value.root())).map_or_else(Cow::default, Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_is_the_text_of_the_id_or_else_of_the_uuid() {
        for (django_id, key) in [
            ("7", "7"),
            ("0", "u"),
            ("[]", "u"),
            ("[1]", "[1]"),
            (r#"{"a": [1.5, null, "it's"]}"#, r#"{'a': [1.5, None, "it's"]}"#),
        ] {
            let raw = format!(
                r#"{{"feature":{{"id":1,"name":"f"}},"enabled":true,"feature_state_value":1,"django_id":{django_id},"featurestate_uuid":"u"}}"#
            );
            let state = OverrideState::read(&raw, &DocumentPath::ROOT).unwrap();
            assert_eq!(state.key, key, "{django_id}");
        }
    }
}
