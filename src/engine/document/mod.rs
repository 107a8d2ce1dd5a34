//! The environment document: the members that the engine reads, with the tolerances of compatibility.md 3.
//!
//! Input for which the Python mapper raises is a [`CompileError`]; input that it accepts is accepted, except
//! values of the wrong type in members that every SDK relies on (a flag's name, id or `enabled`). A member
//! that the engine does not read never makes a document invalid.
pub mod canonical_json;
pub mod error;
mod feature;
mod overrides;
pub mod raw_json;
mod segment;

use std::borrow::Cow;

use crate::engine::document::error::CompileError;
pub use crate::engine::document::feature::{Feature, FeatureState, Priority, Variant, VariantRank};
pub use crate::engine::document::overrides::{IdentityOverride, OverrideState};
use crate::engine::document::raw_json::{
    DocumentPath, Elements, elements, is_truthy, list, members, required, string, text,
};
pub use crate::engine::document::segment::{Condition, Rule, RuleKind, Segment};
use crate::timestamp;

/// A document, borrowed from its canonical text. Identity overrides are read one by one
/// ([`Document::overrides`]): there may be a hundred thousand of them.
#[derive(Debug, Default)]
pub struct Document<'a> {
    /// `None` if it is null: then identity keys start with `None_`, as in Python.
    pub api_key: Option<Cow<'a, str>>,
    pub name: Option<Cow<'a, str>>,
    /// Seconds since the epoch.
    pub updated_at: Option<f64>,
    pub allow_client_traits: bool,
    pub hide_sensitive_data: bool,
    /// Of the organisation. False: traits count for one answer.
    pub persist_trait_data: bool,
    /// False: core hashes identities by its own id for them, which is not in the document.
    pub uses_composite_key: bool,
    /// Of the environment if it is not null, else of the project (differences.md 10).
    pub hide_disabled_flags: bool,
    /// Feature ids as raw text.
    pub server_key_only_feature_ids: Vec<&'a str>,
    pub features: Vec<FeatureState<'a>>,
    pub segments: Vec<Segment<'a>>,
    pub overrides: Option<Elements<'a>>,
}

impl<'a> Document<'a> {
    /// Reads canonical text.
    ///
    /// # Errors
    /// The document is invalid (compatibility.md 3).
    pub fn read(canonical: &'a str) -> Result<Self, CompileError> {
        let at = DocumentPath::ROOT;
        let names = [
            "api_key",
            "name",
            "updated_at",
            "allow_client_traits",
            "hide_sensitive_data",
            "hide_disabled_flags",
            "feature_states",
            "project",
            "identity_overrides",
            "use_identity_composite_key_for_hashing",
        ];
        let [
            key,
            name,
            updated_at,
            allow_traits,
            hide_sensitive,
            hide_disabled,
            states,
            project,
            overrides,
            composite_key,
        ] = members(canonical, &at, names)?;
        let project_at = at.member("project");
        let [segments, project_hides, server_only, organisation] = members(
            required(project, &at, "project")?,
            &project_at,
            ["segments", "hide_disabled_flags", "server_key_only_feature_ids", "organisation"],
        )?;
        let hides = hide_disabled.filter(|raw| *raw != "null").or(project_hides);
        let overrides_at = at.member("identity_overrides");
        let overrides = overrides.filter(|raw| is_truthy(raw)).map(|raw| elements(raw, &overrides_at));
        Ok(Self {
            api_key: text_or_null(required(key, &at, "api_key")?, &at.member("api_key"))?,
            name: text_or_null(required(name, &at, "name")?, &at.member("name"))?,
            updated_at: updated_at.and_then(string).and_then(|text| epoch_seconds(&text)),
            allow_client_traits: allow_traits.is_none_or(|raw| raw == "null" || is_truthy(raw)),
            hide_sensitive_data: hide_sensitive.is_some_and(is_truthy),
            persist_trait_data: persists_traits(organisation, &project_at),
            uses_composite_key: composite_key != Some("false"),
            hide_disabled_flags: hides.is_some_and(is_truthy),
            server_key_only_feature_ids: match server_only.filter(|raw| *raw != "null") {
                Some(raw) => elements(raw, &project_at.member("server_key_only_feature_ids"))?.collect(),
                None => Vec::new(),
            },
            features: list(
                required(states, &at, "feature_states")?,
                &at.member("feature_states"),
                FeatureState::read,
            )?,
            segments: list(
                required(segments, &project_at, "segments")?,
                &project_at.member("segments"),
                Segment::read,
            )?,
            overrides: overrides.transpose()?,
        })
    }

    /// The identity overrides with at least one feature, in document order.
    pub fn overrides(&self) -> impl Iterator<Item = Result<IdentityOverride<'a>, CompileError>> + use<'a> {
        let overrides = self.overrides.clone().into_iter().flatten().enumerate();
        overrides.filter_map(|(index, raw)| {
            let at = DocumentPath::ROOT.member("identity_overrides");
            IdentityOverride::read(raw, &at.element(index)).transpose()
        })
    }
}

/// Only a member that is false counts: the model does not read the organisation.
fn persists_traits(organisation: Option<&str>, at: &DocumentPath<'_>) -> bool {
    let organisation = organisation.and_then(|raw| members(raw, at, ["persist_trait_data"]).ok());
    organisation.and_then(|[persists]| persists).is_none_or(|raw| raw != "false")
}

fn text_or_null<'a>(raw: &'a str, at: &DocumentPath<'_>) -> Result<Option<Cow<'a, str>>, CompileError> {
    if raw == "null" { Ok(None) } else { text(raw, at).map(Some) }
}

/// Parses an ISO 8601 time to seconds since the epoch.
fn epoch_seconds(text: &str) -> Option<f64> {
    let time = timestamp::parse_iso8601(text)?;
    #[expect(clippy::cast_precision_loss, reason = "a double, as in upstream's header")]
    Some(time.unix_timestamp() as f64 + f64::from(time.microsecond()) / 1e6)
}
