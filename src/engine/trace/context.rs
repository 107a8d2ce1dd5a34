//! What a condition's property finds for one identity, looked up one by one.
//!
//! In: a property. Out: its coerced value, or why the engine refuses the property. Rules: compatibility.md
//! 5.6; a trait of exactly the property's name wins. Flags are the evaluation's own results.
//! Invariant: the same values as `evaluate::values` and `evaluate::run` find, without their tables.
use std::cell::RefCell;
use std::collections::HashMap;

use crate::engine::document::Document;
use crate::engine::evaluate::context::coerce;
use crate::engine::evaluate::{EvaluationScratch, Identity, TraitValue};
use crate::engine::jsonpath::{FlagLookup, FlagResult, OutOfSteps, Property, QueryTarget, Subject};
use crate::engine::program::{Program, Role, Scalar};
use crate::engine::render;
use crate::engine::render::CIRCULAR_DEPENDENCY;
use crate::engine::trace::report::json;
use crate::python::number::{Value, coerce_text};
use crate::python::regex::AutomataBudget;
use crate::step_budget::RequestBudget;

/// Why a condition on a general JSONPath does not hold, whatever it asks.
const OUT_OF_STEPS: &str =
    "the steps of a request for general JSONPaths were spent, so the condition counts as no match";

/// One flag's result with its texts unescaped.
pub struct TracedFlag {
    name: String,
    enabled: Scalar,
    value: Scalar,
    variant: Scalar,
    pub reason: String,
    feature_id: Scalar,
}

/// The results of an evaluation, in document order.
pub struct TracedFlags {
    pub flags: Vec<TracedFlag>,
    places: HashMap<String, usize>,
    /// Those that conditions read, by their place.
    read: Vec<u32>,
}

impl TracedFlags {
    pub fn of(program: &Program, document: &Document<'_>, scratch: &EvaluationScratch) -> Self {
        // Of several states of one name the last one counts.
        let ids: HashMap<&str, &str> =
            document.features.iter().map(|state| (&*state.feature.name, state.feature.id)).collect();
        let id = |name: &str| Scalar::from_raw(ids.get(name).copied().unwrap_or("null"));
        let fact = |flag: render::Flag<'_>| TracedFlag {
            name: flag.name.to_owned(),
            enabled: Scalar::from_raw(flag.enabled),
            value: Scalar::from_raw(flag.value),
            variant: Scalar::from_raw(flag.variant),
            reason: json(&format!("\"{}\"", flag.reason)).as_str().unwrap_or_default().to_owned(),
            feature_id: id(flag.name),
        };
        let flags: Vec<TracedFlag> = render::results(program, Role::Server, scratch).map(fact).collect();
        let reads_flags = program.flags.is_some();
        let places = flags.iter().enumerate().map(|(place, fact)| (fact.name.clone(), place)).collect();
        Self { flags, places, read: if reads_flags { scratch.resolved_order().to_vec() } else { Vec::new() } }
    }

    fn named(&self, name: &str) -> Option<&TracedFlag> {
        self.flags.get(*self.places.get(name)?)
    }
}

impl TracedFlag {
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
pub struct TraceContext<'l> {
    program: &'l Program,
    key: Option<&'l str>,
    name: Option<&'l str>,
    identity: Option<&'l Identity<'l>>,
    facts: &'l TracedFlags,
    /// For the patterns of the whole explanation, as for those of a document.
    pub automata: RefCell<AutomataBudget>,
    /// Steps for the whole explanation. It asks conditions that an evaluation need not ask.
    pub budget: RequestBudget,
    subject: Option<&'l Subject<'l>>,
    /// The properties of which the evaluation's step budget cut a condition.
    cut: Vec<&'l str>,
}

impl<'l> TraceContext<'l> {
    pub fn new(
        program: &'l Program,
        document: &'l Document<'_>,
        subject: Option<&'l Subject<'l>>,
        facts: &'l TracedFlags,
        cut: Vec<&'l str>,
    ) -> Self {
        Self {
            program,
            key: document.api_key.as_deref(),
            name: document.name.as_deref(),
            identity: subject.map(Subject::identity),
            subject,
            facts,
            automata: RefCell::default(),
            budget: RequestBudget::default(),
            cut,
        }
    }

    /// Hands `then` the value, and why the engine refuses the property if it does.
    pub fn value<R>(
        &self,
        property: &str,
        is_split: bool,
        then: impl FnOnce(&Value<'_>, Option<&'static str>) -> R,
    ) -> R {
        if is_split && property.is_empty() {
            return then(&self.subject.map_or(Value::Null, |subject| Value::Text(subject.key())), None);
        }
        let (name, target) = match Property::parse(property) {
            Property::Trait(name) => return then(&coerce(self.sent(&name)), None),
            Property::Path { target: QueryTarget::Refused(why), .. } => return then(&Value::Null, Some(why)),
            Property::Path { name, target } => (name, target),
        };
        match self.sent(&name) {
            TraitValue::Null if self.cut.contains(&&*name) => then(&Value::Unreadable, Some(OUT_OF_STEPS)),
            TraitValue::Null => {
                let found = self.target(&target);
                let is_cut = matches!(target, QueryTarget::Query(_)) && self.budget.jsonpath.is_exceeded();
                then(&found, is_cut.then_some(OUT_OF_STEPS))
            }
            shadow => then(&coerce(shadow), None),
        }
    }

    /// Of several traits of one name the last one counts.
    fn sent(&self, name: &str) -> TraitValue<'l> {
        self.subject.and_then(|subject| subject.sent(name)).unwrap_or(TraitValue::Null)
    }

    fn target<'t>(&'t self, target: &'t QueryTarget) -> Value<'t> {
        let text = |text: Option<&'t str>| text.map_or(Value::Null, coerce_text);
        match target {
            QueryTarget::EnvironmentKey => text(self.key),
            QueryTarget::EnvironmentName => text(self.name),
            QueryTarget::Identifier => text(self.identity.map(|identity| identity.identifier)),
            QueryTarget::IdentityKey => text(self.subject.map(Subject::key)),
            QueryTarget::IdentityTrait(name) => coerce(self.sent(name)),
            QueryTarget::Flag { name, member } => {
                self.flag(name).map_or(Value::Null, |fact| coerce(fact.result().member(*member)))
            }
            QueryTarget::Query(query) => {
                let Some(tree) = &self.program.tree else { return Value::Null };
                match query.find(tree, self.subject, &mut &*self, &self.budget.jsonpath) {
                    Ok(found) => coerce(found),
                    Err(OutOfSteps) => Value::Unreadable,
                }
            }
            QueryTarget::FlagObject { .. } | QueryTarget::Nothing | QueryTarget::Refused(_) => Value::Null,
        }
    }

    /// Whether some flag needs itself.
    pub fn has_cycle(&self) -> bool {
        self.facts.flags.iter().any(|fact| is_circular(&fact.reason))
    }

    /// A flag that needs itself is not there for conditions.
    fn flag(&self, name: &str) -> Option<&'l TracedFlag> {
        self.facts.named(name).filter(|fact| !is_circular(&fact.reason))
    }
}

/// What the evaluation came to in the end. A query for all flags may have seen fewer while it went on.
impl<'l> FlagLookup<'l> for &'l TraceContext<'l> {
    fn resolve(&mut self, name: &str) -> Option<FlagResult<'l>> {
        self.flag(name).map(TracedFlag::result)
    }

    fn resolved_count(&self) -> usize {
        self.facts.read.len()
    }

    fn resolved(&self, at: usize) -> Option<FlagResult<'l>> {
        let flag = *self.facts.read.get(at)?;
        self.facts.flags.get(flag as usize).map(TracedFlag::result)
    }
}

/// Whether a reason says that the flag needs itself.
fn is_circular(reason: &str) -> bool {
    reason == CIRCULAR_DEPENDENCY
}
