//! Explains an evaluation: every flag with its reason, every condition with the values it compared.
//!
//! Values, variants and reasons are results of the evaluation. The rules of the segments are evaluated again
//! from the document, because the compiled program shares conditions and omits those that cannot change a
//! result. Not on the request path: it allocates freely. The result contains the rules, so only clients that
//! may read the whole document may see it.
mod context;
mod report;

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};

use serde_json::Value as Json;
use serde_json::value::RawValue;

use crate::engine::compile::conditions;
use crate::engine::document::error::CompileError;
use crate::engine::document::{Condition, Document, Rule, RuleKind, Segment};
use crate::engine::evaluate::operators::holds;
use crate::engine::evaluate::{EvaluationScratch, Identity, TraitValue, evaluate_on, hashing};
use crate::engine::jsonpath::Subject;
use crate::engine::program::{Predicate, Program, Role};
use crate::engine::render;
use crate::engine::trace::context::{TraceContext, TracedFlags};
use crate::engine::trace::report::json;
pub use crate::engine::trace::report::{
    ConditionReport, Explanation, FlagReport, RuleReport, SegmentReport, SentTrait,
};
use crate::python::number::{Value, write_str};

const NEVER: &str = "a condition reads a flag that needs itself, so the segment never matches";
const CYCLE_STEPS: &str = "the steps of a request for cycles of flags were spent, so a flag that a condition reads \
                           was treated as in a cycle";
const EARLIER: &str = "a condition saw other flags than those below: it reads all that were resolved by then";

/// In a cycle of flags, the result of a segment while a flag is resolved may differ from its final result;
/// the flag keeps the result of the earlier evaluation (compatibility.md 5.12).
const KEPT: &str =
    "a condition read this flag while a cycle of flags was resolved, and it keeps what it was then";

/// Whether the segments that match, in document order, would give the flag another reason than it has. A
/// reason that does not depend on segments, such as that of a variant, is never another.
fn is_kept(program: &Program, matched: &[bool], names: &[&str], flag: &str, reason: &str) -> bool {
    let Some(feature) = program.feature(flag).filter(|_| program.flags.is_some()) else { return false };
    let candidates = program.features[feature].candidates.of(&program.candidates);
    let winner = candidates.iter().map(|one| one.segment as usize).find(|segment| matched[*segment]);
    let winner = winner.map(|segment| names[segment]);
    match (reason, reason.strip_prefix("TARGETING_MATCH; segment=")) {
        (_, Some("identity_overrides")) => false,
        (_, Some(name)) => winner != Some(name),
        ("STATIC" | "DEFAULT", None) => winner.is_some(),
        (_, None) => false,
    }
}

/// Explains every flag, or only `feature`, for `identity`. `program` must be compiled from `canonical`.
///
/// # Errors
/// The document cannot be parsed again, which would be a defect.
pub fn explain(
    program: &Program,
    canonical: &[u8],
    identity: Option<&Identity<'_>>,
    feature: Option<&str>,
) -> Result<Explanation, CompileError> {
    let canonical =
        std::str::from_utf8(canonical).map_err(|_| CompileError::new("$", "the document is not UTF-8"))?;
    let document = Document::read(canonical)?;
    let mut scratch = EvaluationScratch::default();
    evaluate_on(program, identity, None, &mut scratch);
    let results = TracedFlags::of(program, &document, &scratch);
    let prefix = &program.identity_key_prefix;
    let key = identity.map(|identity| format!("{prefix}{}", identity.identifier)).unwrap_or_default();
    let subject = identity.map(|identity| Subject::new(*identity, &key));
    let cut = cut_properties(program, &scratch);
    let mut context = TraceContext::new(program, &document, subject.as_ref(), &results, cut);
    context.exceeded_flag_cycles = scratch.budget().flag_cycles.is_exceeded();
    let evaluated = |at: usize| program.flags.as_ref().and_then(|_| scratch.matched().get(at).copied());
    let names: Vec<&str> = last_of_each_key(&document.segments).map(|segment| &*segment.name).collect();
    let is_requested = |segment: &Segment<'_>| {
        feature.is_none_or(|name| segment.overrides.iter().any(|state| state.feature.name == name))
    };
    let segments: Vec<SegmentReport> = last_of_each_key(&document.segments)
        .enumerate()
        .filter(|(_, segment)| is_requested(segment))
        .map(|(at, segment)| segment_report(segment, evaluated(at), &context))
        .collect();
    let overridden = overridden_features(&document, identity)?;
    let matching = matching_by_feature(&segments);
    let flags = render::results(program, Role::Server, &scratch)
        .zip(&results.flags)
        .filter(|(flag, _)| feature.is_none_or(|name| flag.name == name))
        .map(|(flag, result)| FlagReport {
            feature: flag.name.to_owned(),
            enabled: json(flag.enabled),
            value: json(flag.value),
            variant: json(flag.variant),
            reason: result.reason.to_string(),
            metadata: flag.metadata.and_then(|raw| RawValue::from_string(raw.to_owned()).ok()),
            identity_override: overridden.contains(flag.name),
            matching_segments: matching.get(flag.name).map_or_else(Vec::new, |found| {
                found.iter().filter_map(|at| segments.get(*at)).map(|segment| segment.name.clone()).collect()
            }),
            note: is_kept(program, scratch.matched(), &names, flag.name, &result.reason).then_some(KEPT),
        })
        .collect();
    Ok(Explanation {
        identifier: identity.map(|identity| identity.identifier.to_owned()),
        traits: sent_traits(identity),
        flags,
        segments,
    })
}

/// For each feature the indices of the matching segments that override it.
fn matching_by_feature(segments: &[SegmentReport]) -> HashMap<&str, Vec<usize>> {
    let mut matching: HashMap<&str, Vec<usize>> = HashMap::new();
    for (at, segment) in segments.iter().enumerate().filter(|(_, segment)| segment.matches) {
        for name in &segment.overrides {
            let found = matching.entry(name).or_default();
            // A segment may name a feature twice.
            if found.last() != Some(&at) {
                found.push(at);
            }
        }
    }
    matching
}

/// The properties of conditions that ran out of steps.
fn cut_properties<'p>(program: &'p Program, scratch: &EvaluationScratch) -> Vec<&'p str> {
    let is_cut = |slot: &u32| scratch.cut_slots().contains(slot);
    program.slots_by_trait.iter().filter(|(_, slot)| is_cut(slot)).map(|(name, _)| &**name).collect()
}

/// Of several segments with one key, the last one takes the position of the first.
fn last_of_each_key<'d, 'a>(segments: &'d [Segment<'a>]) -> impl Iterator<Item = &'d Segment<'a>> {
    let mut positions: HashMap<&str, usize> = HashMap::new();
    let mut kept: Vec<&'d Segment<'a>> = Vec::new();
    for segment in segments {
        let position = *positions.entry(&segment.key).or_insert(kept.len());
        match kept.get_mut(position) {
            Some(earlier) => *earlier = segment,
            None => kept.push(segment),
        }
    }
    kept.into_iter()
}

fn overridden_features(
    document: &Document<'_>,
    identity: Option<&Identity<'_>>,
) -> Result<HashSet<String>, CompileError> {
    let Some(identity) = identity else { return Ok(HashSet::new()) };
    let mut names = HashSet::new();
    for entry in document.overrides() {
        let entry = entry?;
        if entry.identifier == identity.identifier {
            names.extend(entry.features.iter().map(|state| state.feature.name.to_string()));
        }
    }
    Ok(names)
}

fn sent_traits(identity: Option<&Identity<'_>>) -> Vec<SentTrait> {
    let sent = |value: TraitValue<'_>| match value {
        TraitValue::Null => Json::Null,
        TraitValue::Bool(bool) => bool.into(),
        TraitValue::Int(number) => number.into(),
        TraitValue::Float(number) => number.into(),
        // A JSON number would be rounded by many parsers.
        TraitValue::BigInt(text) | TraitValue::Text(text) => text.into(),
    };
    let traits = identity.map_or(&[][..], |identity| identity.traits);
    traits
        .iter()
        .map(|item| SentTrait { trait_key: item.key.to_owned(), trait_value: sent(item.value) })
        .collect()
}

/// `evaluated`: the result of the evaluation, if it evaluated the segment as a whole. Only the evaluation
/// records which reads of a flag ended in a cycle.
fn segment_report(
    segment: &Segment<'_>,
    evaluated: Option<bool>,
    context: &TraceContext<'_>,
) -> SegmentReport {
    let rules: Vec<RuleReport> =
        segment.rules.iter().map(|rule| rule_report(rule, &segment.key, context)).collect();
    let holds = !rules.is_empty() && rules.iter().all(|rule| rule.matches);
    let note = match (rules.is_empty(), evaluated) {
        (true, _) => Some("a segment without rules never matches"),
        (false, Some(evaluated)) if evaluated != holds => Some(match holds && context.has_cycle() {
            true if context.exceeded_flag_cycles => CYCLE_STEPS,
            true => NEVER,
            false => EARLIER,
        }),
        _ => None,
    };
    SegmentReport {
        id: segment.key.to_string(),
        name: segment.name.to_string(),
        matches: evaluated.unwrap_or(holds),
        overrides: segment.overrides.iter().map(|state| state.feature.name.to_string()).collect(),
        note,
        rules,
    }
}

fn rule_report(rule: &Rule<'_>, segment_key: &str, context: &TraceContext<'_>) -> RuleReport {
    let conditions: Vec<ConditionReport> =
        rule.conditions.iter().map(|condition| condition_report(condition, segment_key, context)).collect();
    let rules: Vec<RuleReport> =
        rule.rules.iter().map(|inner| rule_report(inner, segment_key, context)).collect();
    let is_met = |results: &[bool]| {
        results.is_empty()
            || match rule.kind {
                RuleKind::All => results.iter().all(|result| *result),
                RuleKind::Any => results.iter().any(|result| *result),
                RuleKind::None => !results.iter().any(|result| *result),
                RuleKind::Unknown => false,
            }
    };
    let by_condition: Vec<bool> = conditions.iter().map(|condition| condition.matches).collect();
    let by_rule: Vec<bool> = rules.iter().map(|rule| rule.matches).collect();
    let kind = match rule.kind {
        RuleKind::All => "ALL",
        RuleKind::Any => "ANY",
        RuleKind::None => "NONE",
        RuleKind::Unknown => "unknown",
    };
    RuleReport { kind, matches: is_met(&by_condition) && is_met(&by_rule), conditions, rules }
}

fn condition_report(
    condition: &Condition<'_>,
    segment_key: &str,
    context: &TraceContext<'_>,
) -> ConditionReport {
    let is_split = condition.operator == "PERCENTAGE_SPLIT";
    let (test, warning) = match condition.is_nameless {
        true => (Predicate::Never, Some("property_ is not a string".to_owned())),
        false => conditions::compile(condition, segment_key, &mut context.automata.borrow_mut()),
    };
    context.value(&condition.property, is_split, |value, rejected| {
        let mut buffer = String::new();
        let split_at = match (&test, value) {
            (Predicate::Split { .. }, Value::Null | Value::Unreadable) => None,
            (Predicate::Split { key, .. }, value) => {
                write_str(value, &mut buffer);
                Some(hashing::hash(&[key, &buffer]))
            }
            _ => None,
        };
        let (seen, seen_as) = match (value, rejected) {
            (Value::Unreadable, Some(_)) => (Json::Null, "unknown"),
            _ => seen(value),
        };
        ConditionReport {
            property: condition.property.to_string(),
            operator: condition.operator.to_string(),
            value: json(condition.value),
            seen,
            seen_as,
            split_at,
            matches: rejected.is_none() && holds(&test, value, &mut buffer, &context.budget),
            note: rejected.map(str::to_owned).or(warning),
        }
    })
}

fn seen(value: &Value<'_>) -> (Json, &'static str) {
    match value {
        Value::Null => (Json::Null, "not set"),
        Value::Bool(bool) => ((*bool).into(), "boolean"),
        Value::Int(number) => ((*number).into(), "integer"),
        Value::Big(number) => (number.to_string().into(), "integer"),
        Value::Float(number) => ((*number).into(), "float"),
        Value::Text(text) => ((*text).into(), "text"),
        Value::Unreadable => (Json::Null, "an integer of too many digits"),
    }
}
