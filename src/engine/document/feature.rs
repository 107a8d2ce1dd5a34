//! Feature states as the document has them.
use std::borrow::Cow;
use std::cmp::Ordering;

use num_bigint::BigInt;
use num_traits::FromPrimitive as _;

use crate::engine::document::error::CompileError;
use crate::engine::document::raw_json::{
    DocumentPath, float, is_number, is_truthy, list, members, python_str, required, string, text,
};

/// The state of a feature, in the environment or in a segment.
#[derive(Clone, Debug)]
pub struct FeatureState<'a> {
    pub feature: Feature<'a>,
    /// `type`: raw text, a string; `STANDARD` if it is missing.
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

/// The feature of a state.
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
    /// Raw text. A weight that is not a number fails only when an identity is evaluated (D170-D173).
    pub weight: &'a str,
    /// Raw text; `None` if missing or null.
    pub key: Option<&'a str>,
    pub rank: VariantRank<'a>,
}

/// The sort key of a variant: its id, or its UUID as an integer.
#[derive(Clone, Debug, PartialEq)]
pub enum VariantRank<'a> {
    Integer(BigInt),
    Float(f64),
    Text(Cow<'a, str>),
    /// An array or object: Python cannot sort it.
    Unsortable,
}

/// The priority of a segment override: the smallest wins. Exact for every `i64` and every double.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Priority {
    rounded: f64,
    rest: i64,
}

impl<'a> FeatureState<'a> {
    pub(super) fn read(raw: &'a str, at: &DocumentPath<'_>) -> Result<Self, CompileError> {
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
            enabled: read_enabled(enabled, at)?,
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
    pub(super) fn read(raw: &'a str, at: &DocumentPath<'_>) -> Result<Self, CompileError> {
        let [id, name] = members(raw, at, ["id", "name"])?;
        let id = required(id, at, "id")?;
        if !is_number(id) {
            return Err(at.member("id").expected("a number", id));
        }
        Ok(Self { id, name: text(required(name, at, "name")?, &at.member("name"))? })
    }
}

impl<'a> Variant<'a> {
    pub(super) fn read(raw: &'a str, at: &DocumentPath<'_>) -> Result<Self, CompileError> {
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
        if let Some(text) = string(raw) {
            return Self::Text(text);
        }
        match (float(raw), raw.parse()) {
            // Whole floats are integers, so that the order is exact and total.
            (Some(number), _) if number.fract() == 0.0 => {
                BigInt::from_f64(number).map_or(Self::Unsortable, Self::Integer)
            }
            (Some(number), _) => Self::Float(number),
            (None, Ok(number)) => Self::Integer(number),
            (None, Err(_)) if raw == "true" => Self::Integer(BigInt::from(1)),
            (None, Err(_)) => Self::Unsortable,
        }
    }

    /// Python's order; `None` if Python raises.
    pub fn compare(&self, other: &Self) -> Option<Ordering> {
        // An integer compared with a float that has a fraction.
        let compare_mixed = |integer: &BigInt, number: f64| {
            Some(integer.cmp(&BigInt::from_f64(number.floor())?).then(Ordering::Less))
        };
        match (self, other) {
            (Self::Integer(a), Self::Integer(b)) => Some(a.cmp(b)),
            (Self::Float(a), Self::Float(b)) => a.partial_cmp(b),
            (Self::Integer(a), Self::Float(b)) => compare_mixed(a, *b),
            (Self::Float(a), Self::Integer(b)) => compare_mixed(b, *a).map(Ordering::reverse),
            (Self::Text(a), Self::Text(b)) => Some(a.cmp(b)),
            _ => None,
        }
    }
}

impl Priority {
    /// `None` if it is not a number. Python raises when it compares such a priority; here it comes last
    /// (differences.md 5).
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
            reason = "`rest` is the rounding error"
        )]
        if let Ok(integer) = raw.parse::<i64>() {
            let rounded = integer as f64;
            let rest = i128::from(integer) - rounded as i128;
            return Some(Self { rounded, rest: rest as i64 });
        }
        // Plus zero turns -0.0 into 0.0.
        raw.parse::<f64>().ok().map(|rounded| Self { rounded: rounded + 0.0, rest: 0 })
    }

    /// The order in which overrides of one feature are tried: those without a priority come last.
    pub fn compare(a: Option<Self>, b: Option<Self>) -> Ordering {
        match (a, b) {
            (Some(a), Some(b)) => a.rounded.total_cmp(&b.rounded).then(a.rest.cmp(&b.rest)),
            (a, b) => b.is_some().cmp(&a.is_some()),
        }
    }
}

/// Reads `enabled`. Scalars pass through (null, 1); a string, array or object would break typed SDKs.
pub(super) fn read_enabled<'a>(
    enabled: Option<&'a str>,
    at: &DocumentPath<'_>,
) -> Result<&'a str, CompileError> {
    let raw = required(enabled, at, "enabled")?;
    if raw.starts_with(['"', '[', '{']) {
        return Err(at.member("enabled").expected("a boolean", raw));
    }
    Ok(raw)
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
