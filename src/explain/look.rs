//! What a condition's property finds for one identity, looked up one by one.
//!
//! In: a property. Out: its coerced value, or why the engine refuses the property. Rules: wire.md
//! 5.6; a trait of exactly the property's name wins. Flags are the evaluation's own results.
//! Invariant: the same values as `evaluate::values` and `evaluate::run` find, without their tables.
use std::cell::RefCell;

use serde_json::Value as Json;

use super::is_circular;
use crate::encode::flags;
use crate::evaluate::jsonpath::{FlagMember, FlagResult, Flags, Property, Target};
use crate::evaluate::pattern::AutomataBudget;
use crate::evaluate::value::{Value, coerce, coerce_text};
use crate::evaluate::{Identity, Scratch, TraitValue};
use crate::snapshot::document::Document;
use crate::snapshot::{Environment, Role};

/// One flag's result with its texts unescaped.
pub struct Fact {
    name: String,
    enabled: bool,
    value: Json,
    /// An integer that JSON's reader would round, as its digits.
    digits: Option<String>,
    variant: Option<String>,
    pub reason: String,
    feature_id: i64,
}

/// The results of an evaluation, in document order.
pub struct Facts {
    pub flags: Vec<Fact>,
    /// Those that conditions read, by their place.
    read: Vec<u32>,
}

impl Facts {
    pub fn of(environment: &Environment, document: &Document<'_>, scratch: &Scratch) -> Self {
        let id = |name: &str| {
            document.features.iter().rfind(|state| state.feature.name == name)?.feature.id.parse().ok()
        };
        let fact = |flag: flags::Flag<'_>| {
            let is_integer = !flag.value.starts_with('"') && !flag.value.contains(['.', 'e', 'E']);
            let value = super::json(flag.value);
            // Beyond a double's range it is left as text.
            let is_rounded =
                is_integer && (value.is_string() || value.is_number() && value.as_i64().is_none());
            Fact {
                name: flag.name.to_owned(),
                enabled: super::json(flag.enabled).as_bool().unwrap_or_default(),
                digits: is_rounded.then(|| flag.value.to_owned()),
                value,
                variant: super::json(flag.variant).as_str().map(str::to_owned),
                reason: super::json(&format!("\"{}\"", flag.reason)).as_str().unwrap_or_default().to_owned(),
                feature_id: id(flag.name).unwrap_or_default(),
            }
        };
        let flags = flags::results(environment, Role::Server, scratch).map(fact).collect();
        let reads_flags = environment.program().flags.is_some();
        Self { flags, read: if reads_flags { scratch.resolved_order().to_vec() } else { Vec::new() } }
    }

    fn named(&self, name: &str) -> Option<&Fact> {
        self.flags.iter().find(|fact| fact.name == name)
    }
}

impl Fact {
    fn trait_value(&self) -> TraitValue<'_> {
        if let Some(digits) = &self.digits {
            return TraitValue::BigInt(digits);
        }
        match &self.value {
            Json::Bool(bool) => TraitValue::Bool(*bool),
            Json::String(text) => TraitValue::Text(text),
            Json::Number(number) => match number.as_i64() {
                Some(number) => TraitValue::Int(number),
                None => number.as_f64().map_or(TraitValue::Null, TraitValue::Float),
            },
            Json::Null | Json::Array(_) | Json::Object(_) => TraitValue::Null,
        }
    }

    fn result(&self) -> FlagResult<'_> {
        FlagResult {
            enabled: self.enabled,
            name: &self.name,
            reason: &self.reason,
            value: self.trait_value(),
            variant: self.variant.as_deref(),
            feature_id: self.feature_id,
        }
    }
}

/// Where properties are looked up.
pub struct Look<'l> {
    environment: &'l Environment,
    key: Option<&'l str>,
    name: Option<&'l str>,
    identity: Option<&'l Identity<'l>>,
    identity_key: String,
    facts: &'l Facts,
    /// For the patterns of the whole explanation, as for those of a document.
    pub automata: RefCell<AutomataBudget>,
}

impl<'l> Look<'l> {
    pub fn new(
        environment: &'l Environment,
        document: &'l Document<'_>,
        identity: Option<&'l Identity<'l>>,
        facts: &'l Facts,
    ) -> Self {
        let prefix = &environment.program().identity_key_prefix;
        let identity_key =
            identity.map(|identity| format!("{prefix}{}", identity.identifier)).unwrap_or_default();
        let (key, name) = (document.api_key.as_deref(), document.name.as_deref());
        Self { environment, key, name, identity, identity_key, facts, automata: RefCell::default() }
    }

    /// Hands `then` the value, and why the engine refuses the property if it does.
    pub fn value<R>(
        &self,
        property: &str,
        is_split: bool,
        then: impl FnOnce(&Value<'_>, Option<&'static str>) -> R,
    ) -> R {
        if is_split && property.is_empty() {
            return then(&self.identity.map_or(Value::Null, |_| Value::Text(&self.identity_key)), None);
        }
        let (name, target) = match Property::parse(property) {
            Property::Trait(name) => return then(&coerce(self.sent(&name)), None),
            Property::Path { target: Target::Refused(why), .. } => return then(&Value::Null, Some(why)),
            Property::Path { name, target } => (name, target),
        };
        match self.sent(&name) {
            TraitValue::Null => then(&self.target(&target), None),
            shadow => then(&coerce(shadow), None),
        }
    }

    /// Of several traits of one name the last one counts.
    fn sent(&self, name: &str) -> TraitValue<'l> {
        let last = self.identity.and_then(|identity| identity.traits.iter().rfind(|sent| sent.key == name));
        last.map_or(TraitValue::Null, |sent| sent.value)
    }

    fn target<'t>(&'t self, target: &'t Target) -> Value<'t> {
        let text = |text: Option<&'t str>| text.map_or(Value::Null, coerce_text);
        match target {
            Target::EnvironmentKey => text(self.key),
            Target::EnvironmentName => text(self.name),
            Target::Identifier => text(self.identity.map(|identity| identity.identifier)),
            Target::IdentityKey => text(self.identity.map(|_| self.identity_key.as_str())),
            Target::IdentityTrait(name) => coerce(self.sent(name)),
            Target::Flag { name, member } => self.flag(name).map_or(Value::Null, |fact| {
                let result = fact.result();
                coerce(match member {
                    FlagMember::Enabled => TraitValue::Bool(result.enabled),
                    FlagMember::Name => TraitValue::Text(result.name),
                    FlagMember::Reason => TraitValue::Text(result.reason),
                    FlagMember::Value => result.value,
                    FlagMember::Variant => result.variant.map_or(TraitValue::Null, TraitValue::Text),
                    FlagMember::FeatureId => TraitValue::Int(result.feature_id),
                })
            }),
            Target::Query(query) => {
                let Some(tree) = &self.environment.program().tree else { return Value::Null };
                let identity = self.identity.map(|identity| (identity, self.identity_key.as_str()));
                coerce(query.find(tree, identity, &mut &*self))
            }
            Target::FlagAlone { .. } | Target::Nothing | Target::Refused(_) => Value::Null,
        }
    }

    /// Whether some flag needs itself.
    pub fn has_cycle(&self) -> bool {
        self.facts.flags.iter().any(|fact| is_circular(&fact.reason))
    }

    /// A flag that needs itself is not there for conditions.
    fn flag(&self, name: &str) -> Option<&'l Fact> {
        self.facts.named(name).filter(|fact| !is_circular(&fact.reason))
    }
}

/// What the evaluation came to in the end. A query for all flags may have seen fewer while it went on.
impl<'l> Flags<'l> for &'l Look<'l> {
    fn resolve(&mut self, name: &str) -> Option<FlagResult<'l>> {
        self.flag(name).map(Fact::result)
    }

    fn resolved(&self, at: usize) -> Option<FlagResult<'l>> {
        let flag = *self.facts.read.get(at)?;
        self.facts.flags.get(flag as usize).map(Fact::result)
    }
}
