//! "Why this value?": every flag with its reason, every condition with both values as the engine
//! saw them.
//!
//! In: an environment, an identity or none, perhaps one feature. Out: an [`Explanation`] for
//! programs (JSON) and for people (`text`). Values, variants and reasons are the engine's own; the
//! segments' rules are read again from the document, because the compiled form shares conditions
//! and leaves out what changes no answer. Invariant: this is for support, off the hot path; it
//! allocates freely and is only for those who may read the whole document.
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
const EARLIER: &str = "a condition saw other flags than those below: it reads all that were resolved by then";

/// Where flags depend on each other in a cycle, a segment may match while a flag is resolved and not
/// when it is judged itself, or the other way round; the flag keeps what it took (compatibility.md 5.12).
const KEPT: &str =
    "a condition read this flag while a cycle of flags was resolved, and it keeps what it was then";

/// Whether the engine's verdicts on the segments, in document order, give the flag another reason than
/// it has. A reason that names no segment for another cause, such as a variant, says nothing of them.
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

/// Explains every flag, or only `feature`, for `identity`: `program` was compiled from the `canonical`
/// document.
///
/// # Errors
/// The document cannot be read again, which would be a defect.
pub fn explain(
    program: &Program,
    canonical: &[u8],
    identity: Option<&Identity<'_>>,
    feature: Option<&str>,
) -> Result<Explanation, CompileError> {
    let canonical =
        std::str::from_utf8(canonical).map_err(|_| CompileError::new("$", "the document is no UTF-8"))?;
    let document = Document::read(canonical)?;
    let mut scratch = EvaluationScratch::default();
    evaluate_on(program, identity, None, &mut scratch);
    let facts = TracedFlags::of(program, &document, &scratch);
    let prefix = &program.identity_key_prefix;
    let key = identity.map(|identity| format!("{prefix}{}", identity.identifier)).unwrap_or_default();
    let subject = identity.map(|identity| Subject::new(*identity, &key));
    let look =
        TraceContext::new(program, &document, subject.as_ref(), &facts, cut_properties(program, &scratch));
    let judged = |at: usize| program.flags.as_ref().and_then(|_| scratch.matched().get(at).copied());
    let names: Vec<&str> = last_of_each_key(&document.segments).map(|segment| &*segment.name).collect();
    let is_asked = |segment: &Segment<'_>| {
        feature.is_none_or(|name| segment.overrides.iter().any(|state| state.feature.name == name))
    };
    let segments: Vec<SegmentReport> = last_of_each_key(&document.segments)
        .enumerate()
        .filter(|(_, segment)| is_asked(segment))
        .map(|(at, segment)| segment_report(segment, judged(at), &look))
        .collect();
    let own = own_features(&document, identity)?;
    let matching = matching_by_feature(&segments);
    let flags = render::results(program, Role::Server, &scratch)
        .zip(&facts.flags)
        .filter(|(flag, _)| feature.is_none_or(|name| flag.name == name))
        .map(|(flag, fact)| FlagReport {
            feature: flag.name.to_owned(),
            enabled: json(flag.enabled),
            value: json(flag.value),
            variant: json(flag.variant),
            reason: fact.reason.clone(),
            metadata: flag.metadata.and_then(|raw| RawValue::from_string(raw.to_owned()).ok()),
            identity_override: own.contains(flag.name),
            matching_segments: matching.get(flag.name).map_or_else(Vec::new, |found| {
                found.iter().filter_map(|at| segments.get(*at)).map(|segment| segment.name.clone()).collect()
            }),
            note: is_kept(program, scratch.matched(), &names, flag.name, &fact.reason).then_some(KEPT),
        })
        .collect();
    Ok(Explanation {
        identifier: identity.map(|identity| identity.identifier.to_owned()),
        traits: sent_traits(identity),
        flags,
        segments,
    })
}

/// By feature the places of the segments that override it and match.
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

/// The properties of the conditions that ran out of steps.
fn cut_properties<'p>(program: &'p Program, scratch: &EvaluationScratch) -> Vec<&'p str> {
    let is_cut = |slot: &u32| scratch.cut_slots().contains(slot);
    program.slots_by_trait.iter().filter(|(_, slot)| is_cut(slot)).map(|(name, _)| &**name).collect()
}

/// Of several segments with one key the last one's content counts, at the first one's place.
fn last_of_each_key<'d, 'a>(segments: &'d [Segment<'a>]) -> impl Iterator<Item = &'d Segment<'a>> {
    let mut places: HashMap<&str, usize> = HashMap::new();
    let mut kept: Vec<&'d Segment<'a>> = Vec::new();
    for segment in segments {
        let place = *places.entry(&segment.key).or_insert(kept.len());
        match kept.get_mut(place) {
            Some(held) => *held = segment,
            None => kept.push(segment),
        }
    }
    kept.into_iter()
}

fn own_features(
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
        // JSON readers would round it.
        TraitValue::BigInt(text) | TraitValue::Text(text) => text.into(),
    };
    let traits = identity.map_or(&[][..], |identity| identity.traits);
    traits
        .iter()
        .map(|item| SentTrait { trait_key: item.key.to_owned(), trait_value: sent(item.value) })
        .collect()
}

/// `judged`: the engine's own verdict, where it judges each segment as a whole. It alone knows which
/// readings of a flag ended in a cycle.
fn segment_report(segment: &Segment<'_>, judged: Option<bool>, look: &TraceContext<'_>) -> SegmentReport {
    let rules: Vec<RuleReport> =
        segment.rules.iter().map(|rule| rule_report(rule, &segment.key, look)).collect();
    let holds = !rules.is_empty() && rules.iter().all(|rule| rule.matches);
    let note = match (rules.is_empty(), judged) {
        (true, _) => Some("a segment without rules never matches"),
        (false, Some(judged)) if judged != holds => {
            Some(if holds && look.has_cycle() { NEVER } else { EARLIER })
        }
        _ => None,
    };
    SegmentReport {
        id: segment.key.to_string(),
        name: segment.name.to_string(),
        matches: judged.unwrap_or(holds),
        overrides: segment.overrides.iter().map(|state| state.feature.name.to_string()).collect(),
        note,
        rules,
    }
}

fn rule_report(rule: &Rule<'_>, segment_key: &str, look: &TraceContext<'_>) -> RuleReport {
    let conditions: Vec<ConditionReport> =
        rule.conditions.iter().map(|condition| condition_report(condition, segment_key, look)).collect();
    let rules: Vec<RuleReport> =
        rule.rules.iter().map(|inner| rule_report(inner, segment_key, look)).collect();
    let meets = |results: &[bool]| {
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
    RuleReport { kind, matches: meets(&by_condition) && meets(&by_rule), conditions, rules }
}

fn condition_report(
    condition: &Condition<'_>,
    segment_key: &str,
    look: &TraceContext<'_>,
) -> ConditionReport {
    let is_split = condition.operator == "PERCENTAGE_SPLIT";
    let (test, warning) = match condition.is_nameless {
        true => (Predicate::Never, Some("its property_ is no text".to_owned())),
        false => conditions::compile(condition, segment_key, &mut look.automata.borrow_mut()),
    };
    look.value(&condition.property, is_split, |value, refused| {
        let mut buffer = String::new();
        let split_at = match (&test, value) {
            (Predicate::Split { .. }, Value::Null | Value::Unreadable) => None,
            (Predicate::Split { key, .. }, value) => {
                write_str(value, &mut buffer);
                Some(hashing::hash(&[key, &buffer]))
            }
            _ => None,
        };
        let (seen, seen_as) = match (value, refused) {
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
            matches: refused.is_none() && holds(&test, value, &mut buffer, &look.budget),
            note: refused.map(str::to_owned).or(warning),
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
