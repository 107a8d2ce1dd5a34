//! The shape of an environment document: what the engine reads of it, with compatibility.md 3's tolerances.
//!
//! In: canonical text. Out: a [`Document`] that borrows from it. What Python's mapper raises for is a
//! [`CompileError`] that names the JSON path; what it accepts is accepted, but for the wrong kind of
//! value in a member whose kind every SDK relies on (a flag's name, id or `enabled`).
//! Invariant: no member that the engine does not read can make a document unusable.
pub mod canonical_json;
pub mod error;
mod overrides;
pub mod raw_json;

use std::borrow::Cow;
use std::cmp::Ordering;

use num_bigint::BigInt;
use num_traits::FromPrimitive as _;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

pub use crate::engine::document::overrides::{IdentityOverride, OverrideState};

use crate::engine::document::error::CompileError;
use crate::engine::document::raw_json::{
    DocumentPath, Elements, elements, float, is_number, is_truthy, members, python_str, required, text,
};

/// A whole document. Its identity overrides are read one by one ([`Document::overrides`]): there may
/// be a hundred thousand of them.
#[derive(Debug, Default)]
pub struct Document<'a> {
    /// `None` where it is null: then identity keys start with `None_`, as Python writes it.
    pub api_key: Option<Cow<'a, str>>,
    pub name: Option<Cow<'a, str>>,
    /// Seconds since the epoch.
    pub updated_at: Option<f64>,
    pub allow_client_traits: bool,
    pub hide_sensitive_data: bool,
    /// False: core hashes identities by an id of its own, which no document holds.
    pub uses_composite_key: bool,
    /// The environment's if it is not null, else the project's (differences.md 10).
    pub hide_disabled_flags: bool,
    /// Feature ids as raw text.
    pub server_key_only_feature_ids: Vec<&'a str>,
    pub features: Vec<FeatureState<'a>>,
    pub segments: Vec<Segment<'a>>,
    pub overrides: Option<Elements<'a>>,
}

/// The state of a feature, in the environment or in a segment.
#[derive(Clone, Debug)]
pub struct FeatureState<'a> {
    pub feature: Feature<'a>,
    /// `STANDARD` where it is missing; raw text, a string.
    pub kind: &'a str,
    pub enabled: &'a str,
    pub value: &'a str,
    /// The seed of its variants: `str(django_id or featurestate_uuid)`.
    pub key: Cow<'a, str>,
    pub variants: Vec<Variant<'a>>,
    pub priority: Option<Priority>,
    /// Raw text, an object with at least one member (compatibility.md 6.1).
    pub metadata: Option<&'a str>,
}

/// Which feature a state belongs to.
#[derive(Clone, Debug)]
pub struct Feature<'a> {
    /// Raw text, a number.
    pub id: &'a str,
    pub name: Cow<'a, str>,
}

/// One variant of a multivariate state.
#[derive(Clone, Debug)]
pub struct Variant<'a> {
    pub value: &'a str,
    /// Raw text. What is no number fails only when an identity is evaluated (D170-D173).
    pub weight: &'a str,
    /// Raw text; `None` if missing or null.
    pub key: Option<&'a str>,
    pub rank: VariantRank<'a>,
}

/// By what variants are sorted: their id, or their UUID as an integer.
#[derive(Clone, Debug, PartialEq)]
pub enum VariantRank<'a> {
    Integer(BigInt),
    Float(f64),
    Text(Cow<'a, str>),
    /// An array or object: Python cannot sort it.
    Unsortable,
}

/// A segment override's priority: the smaller wins. Exact for every `i64` and every double.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Priority {
    rounded: f64,
    rest: i64,
}

/// A segment.
#[derive(Clone, Debug)]
pub struct Segment<'a> {
    /// `str(id)`.
    pub key: Cow<'a, str>,
    /// What Python prints for it: `None` for null.
    pub name: Cow<'a, str>,
    pub rules: Vec<Rule<'a>>,
    pub overrides: Vec<FeatureState<'a>>,
}

/// A rule, with the rules in it.
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
    /// Python raises when such a rule has something in it (D054-D056).
    Unknown,
}

/// A condition.
#[derive(Clone, Debug)]
pub struct Condition<'a> {
    /// `property_`; empty where it is missing or null.
    pub property: Cow<'a, str>,
    /// `property_` is no text: Python raises whatever is asked (differences.md 5).
    pub is_nameless: bool,
    /// Empty where it is no string: no operator.
    pub operator: Cow<'a, str>,
    /// Raw text.
    pub value: &'a str,
}

impl<'a> Document<'a> {
    /// Reads canonical text.
    ///
    /// # Errors
    /// It has not the shape of compatibility.md 3.
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
        let [segments, project_hides, server_only] = members(
            required(project, &at, "project")?,
            &project_at,
            ["segments", "hide_disabled_flags", "server_key_only_feature_ids"],
        )?;
        let hides = hide_disabled.filter(|raw| *raw != "null").or(project_hides);
        let overrides_at = at.member("identity_overrides");
        let overrides = overrides.filter(|raw| is_truthy(raw)).map(|raw| elements(raw, &overrides_at));
        Ok(Self {
            api_key: text_or_null(required(key, &at, "api_key")?, &at.member("api_key"))?,
            name: text_or_null(required(name, &at, "name")?, &at.member("name"))?,
            updated_at: updated_at
                .and_then(super::document::raw_json::string)
                .and_then(|text| epoch_seconds(&text)),
            allow_client_traits: allow_traits.is_none_or(|raw| raw == "null" || is_truthy(raw)),
            hide_sensitive_data: hide_sensitive.is_some_and(is_truthy),
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

    /// The identity overrides, in document order; those without features are left out.
    pub fn overrides(&self) -> impl Iterator<Item = Result<IdentityOverride<'a>, CompileError>> + use<'a> {
        let overrides = self.overrides.clone().into_iter().flatten().enumerate();
        overrides.filter_map(|(index, raw)| {
            let at = DocumentPath::ROOT.member("identity_overrides");
            IdentityOverride::read(raw, &at.element(index)).transpose()
        })
    }
}

impl<'a> FeatureState<'a> {
    fn read(raw: &'a str, at: &DocumentPath<'_>) -> Result<Self, CompileError> {
        let names = [
            "feature",
            "enabled",
            "feature_state_value",
            "django_id",
            "featurestate_uuid",
            "feature_segment",
            "multivariate_feature_state_values",
            "metadata",
        ];
        let [feature, enabled, value, django_id, uuid, feature_segment, variants, metadata] =
            members(raw, at, names)?;
        let feature = required(feature, at, "feature")?;
        let key = match django_id.filter(|raw| is_truthy(raw)) {
            Some(raw) => python_str(raw, &at.member("django_id"))?,
            None => python_str(required(uuid, at, "featurestate_uuid")?, &at.member("featurestate_uuid"))?,
        };
        Ok(Self {
            feature: Feature::read(feature, &at.member("feature"))?,
            kind: members(feature, at, ["type"])?[0]
                .filter(|raw| raw.starts_with('"'))
                .unwrap_or("\"STANDARD\""),
            enabled: enabled_of(enabled, at)?,
            value: required(value, at, "feature_state_value")?,
            key,
            variants: match variants.filter(|raw| is_truthy(raw)) {
                Some(raw) => list(raw, &at.member("multivariate_feature_state_values"), Variant::read)?,
                None => Vec::new(),
            },
            priority: match feature_segment.filter(|raw| is_truthy(raw)) {
                Some(raw) => Priority::read(raw, &at.member("feature_segment"))?,
                None => None,
            },
            metadata: metadata.filter(|raw| raw.starts_with('{') && *raw != "{}"),
        })
    }
}

impl<'a> Feature<'a> {
    fn read(raw: &'a str, at: &DocumentPath<'_>) -> Result<Self, CompileError> {
        let [id, name] = members(raw, at, ["id", "name"])?;
        let id = required(id, at, "id")?;
        if !is_number(id) {
            return Err(at.member("id").expected("a number", id));
        }
        Ok(Self { id, name: text(required(name, at, "name")?, &at.member("name"))? })
    }
}

impl<'a> Variant<'a> {
    fn read(raw: &'a str, at: &DocumentPath<'_>) -> Result<Self, CompileError> {
        let names = ["multivariate_feature_option", "percentage_allocation", "id", "mv_fs_value_uuid"];
        let [option, weight, id, uuid] = members(raw, at, names)?;
        let option_at = at.member("multivariate_feature_option");
        let option = required(option, at, "multivariate_feature_option")?;
        let [value, key] = members(option, &option_at, ["value", "key"])?;
        Ok(Self {
            value: required(value, &option_at, "value")?,
            weight: required(weight, at, "percentage_allocation")?,
            key: key.filter(|raw| *raw != "null"),
            rank: match id.filter(|raw| is_truthy(raw)) {
                Some(raw) => VariantRank::from_id(raw),
                None => {
                    let uuid_at = at.member("mv_fs_value_uuid");
                    let uuid = text(required(uuid, at, "mv_fs_value_uuid")?, &uuid_at)?;
                    let number = uuid_integer(&uuid).ok_or_else(|| uuid_at.error("expected a UUID"))?;
                    VariantRank::Integer(number)
                }
            },
        })
    }
}

impl<'a> VariantRank<'a> {
    pub fn from_id(raw: &'a str) -> Self {
        if let Some(text) = super::document::raw_json::string(raw) {
            return Self::Text(text);
        }
        match (float(raw), raw.parse()) {
            // A whole number counts as an integer, so that the order is exact and total.
            (Some(number), _) if number.fract() == 0.0 => {
                BigInt::from_f64(number).map_or(Self::Unsortable, Self::Integer)
            }
            (Some(number), _) => Self::Float(number),
            (None, Ok(number)) => Self::Integer(number),
            (None, Err(_)) if raw == "true" => Self::Integer(BigInt::from(1)),
            (None, Err(_)) => Self::Unsortable,
        }
    }

    /// Python's order; `None` where it raises.
    pub fn compare(&self, other: &Self) -> Option<Ordering> {
        // Which side of a number with a fraction an integer lies on.
        let beside = |integer: &BigInt, number: f64| {
            Some(integer.cmp(&BigInt::from_f64(number.floor())?).then(Ordering::Less))
        };
        match (self, other) {
            (Self::Integer(a), Self::Integer(b)) => Some(a.cmp(b)),
            (Self::Float(a), Self::Float(b)) => a.partial_cmp(b),
            (Self::Integer(a), Self::Float(b)) => beside(a, *b),
            (Self::Float(a), Self::Integer(b)) => beside(b, *a).map(Ordering::reverse),
            (Self::Text(a), Self::Text(b)) => Some(a.cmp(b)),
            _ => None,
        }
    }
}

impl Priority {
    /// `None` where it is no number: alone it is as good as none, and compared, where Python raises, it is
    /// the weakest (differences.md 5).
    fn read(raw: &str, at: &DocumentPath<'_>) -> Result<Option<Self>, CompileError> {
        let [priority] = members(raw, at, ["priority"])?;
        match required(priority, at, "priority")? {
            "true" => Ok(Self::from_raw("1")),
            "false" => Ok(Self::from_raw("0")),
            raw if is_number(raw) => Ok(Self::from_raw(raw)),
            _ => Ok(None),
        }
    }

    pub fn from_raw(raw: &str) -> Option<Self> {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            reason = "`rest` holds what is lost"
        )]
        if let Ok(integer) = raw.parse::<i64>() {
            let rounded = integer as f64;
            let rest = i128::from(integer) - rounded as i128;
            return Some(Self { rounded, rest: rest as i64 });
        }
        // Plus zero, so that -0.0 and 0.0 are one.
        raw.parse::<f64>().ok().map(|rounded| Self { rounded: rounded + 0.0, rest: 0 })
    }

    /// The order in which overrides of one feature are tried: none comes last.
    pub fn compare(a: Option<Self>, b: Option<Self>) -> Ordering {
        match (a, b) {
            (Some(a), Some(b)) => a.rounded.total_cmp(&b.rounded).then(a.rest.cmp(&b.rest)),
            (a, b) => b.is_some().cmp(&a.is_some()),
        }
    }
}

impl<'a> Segment<'a> {
    fn read(raw: &'a str, at: &DocumentPath<'_>) -> Result<Self, CompileError> {
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
            property: property
                .map_or(Some(Cow::Borrowed("")), super::document::raw_json::string)
                .unwrap_or_default(),
            is_nameless: property.is_some_and(|raw| !raw.starts_with('"')),
            operator: super::document::raw_json::string(required(operator, at, "operator")?)
                .unwrap_or_default(),
            value: required(value, at, "value")?,
        })
    }
}

/// `enabled` passes through as it is (null, 1), but text or a container would break typed SDKs.
fn enabled_of<'a>(enabled: Option<&'a str>, at: &DocumentPath<'_>) -> Result<&'a str, CompileError> {
    let raw = required(enabled, at, "enabled")?;
    if raw.starts_with(['"', '[', '{']) {
        return Err(at.member("enabled").expected("a boolean", raw));
    }
    Ok(raw)
}

fn text_or_null<'a>(raw: &'a str, at: &DocumentPath<'_>) -> Result<Option<Cow<'a, str>>, CompileError> {
    if raw == "null" { Ok(None) } else { text(raw, at).map(Some) }
}

fn list<'a, T>(
    raw: &'a str,
    at: &DocumentPath<'_>,
    read: impl Fn(&'a str, &DocumentPath<'_>) -> Result<T, CompileError>,
) -> Result<Vec<T>, CompileError> {
    elements(raw, at)?.enumerate().map(|(index, element)| read(element, &at.element(index))).collect()
}

/// Seconds since the epoch of an ISO 8601 text; a time without a zone is UTC.
fn epoch_seconds(text: &str) -> Option<f64> {
    let text = text.replacen(' ', "T", 1);
    let time = OffsetDateTime::parse(&text, &Rfc3339)
        .or_else(|_| OffsetDateTime::parse(&format!("{text}Z"), &Rfc3339))
        .ok()?;
    #[expect(clippy::cast_precision_loss, reason = "a double, as upstream's header has it")]
    Some(time.unix_timestamp() as f64 + f64::from(time.microsecond()) / 1e6)
}

/// Python's `uuid.UUID(text).int`: dashes, braces and `urn:uuid:` are optional.
fn uuid_integer(text: &str) -> Option<BigInt> {
    let text = text.replace("urn:", "").replace("uuid:", "");
    let digits = text.trim_matches(['{', '}']).replace('-', "");
    if digits.len() != 32 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u128::from_str_radix(&digits, 16).ok().map(BigInt::from)
}
