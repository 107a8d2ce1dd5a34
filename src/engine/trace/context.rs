//! Values of the properties of conditions for one identity, looked up one at a time.
//!
//! They must equal those of `evaluate::context` and the evaluator (compatibility.md 5.6), which read
//! precomputed tables instead. A trait with the name of the property takes precedence.
use std::cell::RefCell;
use std::collections::HashMap;

use crate::engine::document::Document;
use crate::engine::evaluate::context::coerce;
use crate::engine::evaluate::{EvaluationScratch, Identity, TraitValue};
use crate::engine::jsonpath::{FlagLookup, FlagResult, OutOfSteps, Property, QueryTarget, Subject};
use crate::engine::program::{FlagFact, Program, Role, Scalar};
use crate::engine::render;
use crate::engine::render::CIRCULAR_DEPENDENCY;
use crate::engine::trace::report::json;
use crate::python::number::{Value, coerce_text};
use crate::python::regex::AutomataBudget;
use crate::step_budget::RequestBudget;

/// The note of a condition whose JSONPath ran out of steps.
const OUT_OF_STEPS: &str =
    "the steps of a request for general JSONPaths were spent, so the condition counts as no match";

/// The results of an evaluation, in document order.
pub struct TracedFlags {
    pub flags: Vec<FlagFact>,
    by_name: HashMap<Box<str>, usize>,
    /// Indices of the flags that conditions read.
    read: Vec<u32>,
}

impl TracedFlags {
    pub fn of(program: &Program, document: &Document<'_>, scratch: &EvaluationScratch) -> Self {
        // The last of several states with one name counts.
        let ids: HashMap<&str, &str> =
            document.features.iter().map(|state| (&*state.feature.name, state.feature.id)).collect();
        let id = |name: &str| Scalar::from_raw(ids.get(name).copied().unwrap_or("null"));
        let traced = |flag: render::Flag<'_>| FlagFact {
            name: flag.name.into(),
            enabled: Scalar::from_raw(flag.enabled),
            value: Scalar::from_raw(flag.value),
            variant: Scalar::from_raw(flag.variant),
            reason: json(&format!("\"{}\"", flag.reason)).as_str().unwrap_or_default().into(),
            feature_id: id(flag.name),
        };
        let flags: Vec<FlagFact> = render::results(program, Role::Server, scratch).map(traced).collect();
        let reads_flags = program.flags.is_some();
        let by_name = flags.iter().enumerate().map(|(index, flag)| (flag.name.clone(), index)).collect();
        Self {
            flags,
            by_name,
            read: if reads_flags { scratch.resolved_order().to_vec() } else { Vec::new() },
        }
    }

    fn named(&self, name: &str) -> Option<&FlagFact> {
        self.flags.get(*self.by_name.get(name)?)
    }
}

/// The document, the identity and the results that properties of conditions are read from.
pub struct TraceContext<'l> {
    program: &'l Program,
    key: Option<&'l str>,
    name: Option<&'l str>,
    identity: Option<&'l Identity<'l>>,
    results: &'l TracedFlags,
    /// For the patterns of the whole explanation.
    pub automata: RefCell<AutomataBudget>,
    /// For the whole explanation, which evaluates conditions that an evaluation skips.
    pub budget: RequestBudget,
    subject: Option<&'l Subject<'l>>,
    /// Properties whose conditions ran out of steps in the evaluation.
    cut: Vec<&'l str>,
    /// Whether the evaluation spent the steps for cycles of flags.
    pub exceeded_flag_cycles: bool,
}

impl<'l> TraceContext<'l> {
    pub fn new(
        program: &'l Program,
        document: &'l Document<'_>,
        subject: Option<&'l Subject<'l>>,
        results: &'l TracedFlags,
        cut: Vec<&'l str>,
    ) -> Self {
        Self {
            program,
            key: document.api_key.as_deref(),
            name: document.name.as_deref(),
            identity: subject.map(Subject::identity),
            subject,
            results,
            automata: RefCell::default(),
            budget: RequestBudget::default(),
            cut,
            exceeded_flag_cycles: false,
        }
    }

    /// Calls `then` with the value, and with the reason if the engine rejects the property.
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

    /// The last of several traits with one name.
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
                self.flag(name).map_or(Value::Null, |flag| coerce(flag.as_flag_result().member(*member)))
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

    /// Whether a flag depends on itself.
    pub fn has_cycle(&self) -> bool {
        self.results.flags.iter().any(|flag| is_circular(&flag.reason))
    }

    /// A flag that depends on itself does not exist for conditions.
    fn flag(&self, name: &str) -> Option<&'l FlagFact> {
        self.results.named(name).filter(|flag| !is_circular(&flag.reason))
    }
}

/// The final results. During the evaluation a query for all flags may have found fewer.
impl<'l> FlagLookup<'l> for &'l TraceContext<'l> {
    fn resolve(&mut self, name: &str) -> Option<FlagResult<'l>> {
        self.flag(name).map(FlagFact::as_flag_result)
    }

    fn resolved_count(&self) -> usize {
        self.results.read.len()
    }

    fn resolved(&self, at: usize) -> Option<FlagResult<'l>> {
        let flag = *self.results.read.get(at)?;
        self.results.flags.get(flag as usize).map(FlagFact::as_flag_result)
    }
}

/// Whether this is the reason of a flag that depends on itself.
fn is_circular(reason: &str) -> bool {
    reason == CIRCULAR_DEPENDENCY
}
