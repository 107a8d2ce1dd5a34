//! What a document holds for single identities.
//!
//! In: the raw text of one entry of `identity_overrides`. Out: an [`IdentityOverride`] that borrows from
//! it. Rules: compatibility.md 3; the variants of a state are core's alone (differences.md 43).
//! Invariant: what the engine's mapper does not read here cannot make a document unusable.
use std::borrow::Cow;

use crate::engine::document::error::CompileError;
use crate::engine::document::raw_json::{DocumentPath, is_truthy, members, python_str, required};
use crate::engine::document::{Feature, Variant, enabled_of, list};

/// What an identity has of its own.
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
    /// The seed of its variants, as [`FeatureState::key`]; empty where the document has neither.
    pub key: Cow<'a, str>,
    /// Which variant the identity gets (differences.md 43). Empty where the engine's mapper could not
    /// read them: it never looks at them here, so they cannot make a document unusable.
    pub variants: Vec<Variant<'a>>,
}

impl<'a> IdentityOverride<'a> {
    /// `None` for an entry without features, of which Python reads no more.
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
            enabled: enabled_of(enabled, at)?,
            value,
            key: match django_id.filter(|raw| is_truthy(raw)).or(uuid) {
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
