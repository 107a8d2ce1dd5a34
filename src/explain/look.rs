//! What a condition's property finds for one identity, looked up one by one.
//!
//! In: a property. Out: its coerced value, or why the engine refuses the property. Rules: compatibility.md
//! 5.6; a trait of exactly the property's name wins. Flags are the evaluation's own results.
//! Invariant: the same values as `evaluate::values` and `evaluate::run` find, without their tables.
use std::cell::RefCell;

use super::is_circular;
use crate::encode::flags;
use crate::evaluate::jsonpath::{FlagResult, Flags, Property, Target};
use crate::evaluate::pattern::AutomataBudget;
use crate::evaluate::value::{Value, coerce, coerce_text};
use crate::evaluate::{Identity, Scratch, TraitValue};
use crate::snapshot::document::Document;
use crate::snapshot::rule::Scalar;
use crate::snapshot::{Environment, Role};

/// One flag's result with its texts unescaped.
pub struct Fact {
    name: String,
    enabled: Scalar,
    value: Scalar,
    variant: Scalar,
    pub reason: String,
    feature_id: Scalar,
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
            let state = document.features.iter().rfind(|state| state.feature.name == name);
            Scalar::from_raw(state.map_or("null", |state| state.feature.id))
        };
        let fact = |flag: flags::Flag<'_>| Fact {
            name: flag.name.to_owned(),
            enabled: Scalar::from_raw(flag.enabled),
            value: Scalar::from_raw(flag.value),
            variant: Scalar::from_raw(flag.variant),
            reason: super::json(&format!("\"{}\"", flag.reason)).as_str().unwrap_or_default().to_owned(),
            feature_id: id(flag.name),
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
    fn result(&self) -> FlagResult<'_> {
        FlagResult {
            enabled: self.enabled.as_trait_value(),
            name: &self.name,
            reason: &self.reason,
            value: self.value.as_trait_value(),
            variant: self.variant.as_trait_value(),
            feature_id: self.feature_id.as_trait_value(),
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
            Target::Flag { name, member } => {
                self.flag(name).map_or(Value::Null, |fact| coerce(fact.result().member(*member)))
            }
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
