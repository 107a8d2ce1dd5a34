//! The text form of an [`Explanation`]: the flags, then each segment with its rules and conditions.
//!
//! Texts of the document and of arguments are escaped, so that none reaches the terminal as a control
//! sequence.
use std::fmt::{Display, Formatter, Result};

use serde_json::Value as Json;

use crate::engine::trace::{ConditionReport, Explanation, FlagReport, RuleReport, SegmentReport};
use crate::terminal::escape;

/// One value, on one line.
fn shown(value: &(impl Display + ?Sized)) -> String {
    escape(&value.to_string()).into_owned()
}

/// A list of names, on one line.
fn listed(names: &[String]) -> String {
    shown(&names.join(", "))
}

impl Display for Explanation {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match &self.identifier {
            Some(identifier) => write!(f, "identity {identifier:?}")?,
            None => write!(f, "no identity")?,
        }
        for sent in &self.traits {
            write!(f, ", {} = {}", shown(&sent.trait_key), shown(&sent.trait_value))?;
        }
        writeln!(f, "\n\nFlags")?;
        self.flags.iter().try_for_each(|flag| write_flag(flag, f))?;
        if self.flags.is_empty() {
            writeln!(f, "  none")?;
        }
        if !self.segments.is_empty() {
            writeln!(f, "\nSegments")?;
        }
        self.segments.iter().try_for_each(|segment| write_segment(segment, f))
    }
}

fn write_flag(flag: &FlagReport, f: &mut Formatter<'_>) -> Result {
    let state = if flag.enabled == Json::Bool(true) { "on " } else { "off" };
    write!(f, "  {state} {} = {}", shown(&flag.feature), shown(&flag.value))?;
    if let Json::String(variant) = &flag.variant {
        write!(f, ", variant {}", shown(variant))?;
    }
    write!(f, "   [{}]", shown(&flag.reason))?;
    if flag.identity_override {
        write!(f, " identity override")?;
    } else if !flag.matching_segments.is_empty() {
        write!(f, " matched by: {}", listed(&flag.matching_segments))?;
    }
    if let Some(metadata) = &flag.metadata {
        write!(f, "\n      metadata {metadata}")?;
    }
    if let Some(note) = flag.note {
        write!(f, "\n      {note}")?;
    }
    writeln!(f)
}

fn write_segment(segment: &SegmentReport, f: &mut Formatter<'_>) -> Result {
    write!(f, "  {} {} (id {})", word(segment.matches), shown(&segment.name), shown(&segment.id))?;
    if !segment.overrides.is_empty() {
        write!(f, ", overrides {}", listed(&segment.overrides))?;
    }
    writeln!(f)?;
    if let Some(note) = segment.note {
        writeln!(f, "      {note}")?;
    }
    segment.rules.iter().try_for_each(|rule| write_rule(rule, 3, f))
}

fn write_rule(rule: &RuleReport, depth: usize, f: &mut Formatter<'_>) -> Result {
    let what = match rule.kind {
        "ALL" => "all of",
        "ANY" => "any of",
        "NONE" => "none of",
        _ => "rule of unknown type",
    };
    writeln!(f, "{:indent$}{} {what}", "", word(rule.matches), indent = depth * 2)?;
    rule.conditions.iter().try_for_each(|condition| write_condition(condition, depth + 1, f))?;
    rule.rules.iter().try_for_each(|inner| write_rule(inner, depth + 1, f))
}

fn write_condition(condition: &ConditionReport, depth: usize, f: &mut Formatter<'_>) -> Result {
    let property = if condition.property.is_empty() { "the identity's key" } else { &condition.property };
    let ConditionReport { operator, value, seen_as, .. } = condition;
    write!(
        f,
        "{:indent$}{} {} {}",
        "",
        word(condition.matches),
        shown(property),
        shown(operator),
        indent = depth * 2
    )?;
    if !matches!(operator.as_str(), "IS_SET" | "IS_NOT_SET") {
        write!(f, " {}", shown(value))?;
    }
    match condition.seen {
        Json::Null => write!(f, "   seen: {seen_as}")?,
        _ => write!(f, "   seen: {} ({seen_as})", shown(&condition.seen))?,
    }
    if let Some(split_at) = condition.split_at {
        write!(f, ", falls at {split_at:.4}")?;
    }
    if let Some(note) = &condition.note {
        write!(f, "   never true: {}", shown(note))?;
    }
    writeln!(f)
}

fn word(matches: bool) -> &'static str {
    if matches { "yes" } else { "no " }
}
