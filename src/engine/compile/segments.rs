//! The segment compiler: from rules to boolean expressions over shared conditions and slots
//! (compatibility.md 5.5, 5.6).
//!
//! Expressions are flattened, folded and sorted by cost, which is safe because conditions have no side
//! effects. The exception is a document with a condition that reads a flag: reading resolves the flag, so
//! expressions keep the document's order.
use hashbrown::HashMap;

use crate::engine::compile::conditions;
use crate::engine::compile::warning::CompileWarning;
use crate::engine::document::{Condition, Document, Rule, RuleKind, Segment};
use crate::engine::evaluate::operators::holds;
use crate::engine::jsonpath::{Property, QueryTarget};
use crate::engine::program;
use crate::engine::program::{Expression, OperandText, Predicate, Program, PropertySource};
use crate::engine::table::{Span, TableHashBuilder, offset};
use crate::limits::SCAN_STEPS;
use crate::python::number::{Value, coerce_text};
use crate::python::regex::AutomataBudget;
use crate::step_budget::RequestBudget;

/// Compiles segments one by one; collects their conditions and slots.
#[derive(Debug)]
pub struct SegmentCompiler<'d, 'a> {
    document: &'d Document<'a>,
    features: HashMap<&'d str, u32, TableHashBuilder>,
    keeps_order: bool,
    slots: Vec<PropertySource>,
    /// By property, and whether it is the empty property of a percentage split: the identity key.
    slots_by_property: HashMap<(Box<str>, bool), u32, TableHashBuilder>,
    slots_by_trait: HashMap<Box<str>, u32, TableHashBuilder>,
    aliases: HashMap<Box<str>, u32, TableHashBuilder>,
    conditions: Vec<program::Condition>,
    uses: Vec<u32>,
    /// By slot, and by operator, raw value and, for splits, the segment's key.
    conditions_by_text: HashMap<(u32, String), u32, TableHashBuilder>,
    children: Vec<Expression>,
    automata: AutomataBudget,
    warnings: Vec<CompileWarning>,
}

impl<'d, 'a> SegmentCompiler<'d, 'a> {
    pub fn new(document: &'d Document<'a>, features: &HashMap<&'d str, u32, TableHashBuilder>) -> Self {
        Self {
            document,
            features: features.clone(),
            keeps_order: false,
            slots: Vec::new(),
            slots_by_property: HashMap::default(),
            slots_by_trait: HashMap::default(),
            aliases: HashMap::default(),
            conditions: Vec::new(),
            uses: Vec::new(),
            conditions_by_text: HashMap::default(),
            children: Vec::new(),
            automata: AutomataBudget::default(),
            warnings: Vec::new(),
        }
    }

    /// Whether a condition of these rules reads a flag, or may: every general query counts.
    pub fn reads_flags(&self, rules: &[Rule<'_>]) -> bool {
        rules.iter().any(|rule| {
            let reads = |condition: &Condition<'_>| {
                condition.property.starts_with("$.")
                    && matches!(
                        Property::parse(&condition.property),
                        Property::Path {
                            target: QueryTarget::Flag { .. }
                                | QueryTarget::FlagObject { .. }
                                | QueryTarget::Query(_),
                            ..
                        }
                    )
            };
            rule.conditions.iter().any(reads) || self.reads_flags(&rule.rules)
        })
    }

    /// Sets whether expressions must keep the document's order.
    pub fn keep_order(&mut self, keeps_order: bool) {
        self.keeps_order = keeps_order;
    }

    /// Compiles a segment. One without rules never matches.
    pub fn segment(&mut self, segment: &Segment<'_>, index: usize) -> Expression {
        if segment.rules.is_empty() {
            return Expression::Constant(false);
        }
        let path = format!("$.project.segments[{index}]");
        let rules: Vec<Expression> =
            segment.rules.iter().map(|rule| self.rule(rule, &segment.key, &path)).collect();
        self.all(rules)
    }

    fn rule(&mut self, rule: &Rule<'_>, segment_key: &str, path: &str) -> Expression {
        if rule.kind == RuleKind::Unknown {
            let is_empty = rule.conditions.is_empty() && rule.rules.is_empty();
            if !is_empty {
                self.warn(path, "the rule never matches: unknown type".into());
            }
            return Expression::Constant(is_empty);
        }
        let conditions: Vec<Expression> =
            rule.conditions.iter().map(|condition| self.condition(condition, segment_key, path)).collect();
        let rules: Vec<Expression> =
            rule.rules.iter().map(|inner| self.rule(inner, segment_key, path)).collect();
        let mut parts = Vec::new();
        for group in [conditions, rules] {
            if !group.is_empty() {
                let part = match rule.kind {
                    RuleKind::All | RuleKind::Unknown => self.all(group),
                    RuleKind::Any => self.any(group),
                    RuleKind::None => self.none(group),
                };
                parts.push(part);
            }
        }
        match (parts.len(), self.keeps_order) {
            (1, _) => parts[0],
            (_, false) => self.all(parts),
            (_, true) => Expression::AllEager(self.push_children(parts)),
        }
    }

    fn condition(&mut self, condition: &Condition<'_>, segment_key: &str, path: &str) -> Expression {
        if condition.is_nameless {
            self.warn(path, "the condition is always false: property_ must be a string".into());
            return Expression::Constant(false);
        }
        if let Property::Path { target: QueryTarget::Refused(why), .. } = Property::parse(&condition.property)
        {
            self.warn(path, format!("the condition on {:?} is always false: {why}", condition.property));
            return Expression::Constant(false);
        }
        let is_split = condition.operator == "PERCENTAGE_SPLIT";
        let slot = self.slot(&condition.property, is_split && condition.property.is_empty());
        let split_key = if is_split { segment_key } else { "" };
        let text = format!("{}\0{}\0{split_key}", condition.operator, condition.value);
        let index = match self.conditions_by_text.get(&(slot, text.clone())) {
            Some(index) => *index,
            None => {
                let (predicate, warning) = conditions::compile(condition, segment_key, &mut self.automata);
                if let Some(warning) = warning {
                    self.warn(
                        path,
                        format!("the condition on {:?} is always false: {warning}", condition.property),
                    );
                }
                let index = offset(self.conditions.len());
                self.conditions.push(self.with_absent_result(slot, predicate));
                self.uses.push(0);
                self.conditions_by_text.insert((slot, text), index);
                index
            }
        };
        self.uses[index as usize] += 1;
        let is_dynamic = self.conditions[index as usize].is_dynamic;
        match &self.conditions[index as usize].predicate {
            // If it reads a flag, it must be evaluated even so.
            Predicate::Never if !(self.keeps_order && is_dynamic) => Expression::Constant(false),
            _ => Expression::Condition(index),
        }
    }

    fn with_absent_result(&self, slot: u32, predicate: Predicate) -> program::Condition {
        let source = &self.slots[slot as usize];
        let value = match source {
            PropertySource::Constant(text) => coerce_text(text),
            _ => Value::Null,
        };
        let absent_result = holds(&predicate, &value, &mut String::new(), &RequestBudget::default());
        let is_dynamic = matches!(
            source,
            PropertySource::Flag(..) | PropertySource::FlagObject(_) | PropertySource::Query(_)
        );
        program::Condition { slot, predicate, absent_result, memo: None, is_dynamic }
    }

    fn slot(&mut self, property: &str, is_split_key: bool) -> u32 {
        let key = (Box::from(property), is_split_key);
        if let Some(slot) = self.slots_by_property.get(&key) {
            return *slot;
        }
        let source = if is_split_key { PropertySource::SplitKey } else { self.source(property) };
        let slot = offset(self.slots.len());
        self.slots.push(source);
        self.slots_by_property.insert(key, slot);
        if !is_split_key {
            // Also for paths: a trait with exactly that name takes precedence.
            self.slots_by_trait.insert(property.into(), slot);
        }
        slot
    }

    fn source(&mut self, property: &str) -> PropertySource {
        let Property::Path { target, .. } = Property::parse(property) else { return PropertySource::Trait };
        let feature = |name: &str| self.features.get(name).copied();
        let document = self.document;
        match target {
            QueryTarget::EnvironmentKey => constant(document.api_key.as_deref()),
            QueryTarget::EnvironmentName => constant(document.name.as_deref()),
            QueryTarget::Identifier => PropertySource::Identifier,
            QueryTarget::IdentityKey => PropertySource::IdentityKey,
            QueryTarget::IdentityTrait(name) => {
                let next = offset(self.aliases.len());
                PropertySource::IdentityTrait(*self.aliases.entry(name).or_insert(next))
            }
            QueryTarget::Flag { name, member } => PropertySource::Flag(feature(&name), member),
            QueryTarget::FlagObject { name } => PropertySource::FlagObject(feature(&name)),
            QueryTarget::Query(query) => PropertySource::Query(query),
            // Conditions on a refused path never get a slot.
            QueryTarget::Nothing | QueryTarget::Refused(_) => PropertySource::Nothing,
        }
    }

    fn all(&mut self, parts: Vec<Expression>) -> Expression {
        self.join(parts, Expression::All, true)
    }

    fn any(&mut self, parts: Vec<Expression>) -> Expression {
        self.join(parts, Expression::Any, false)
    }

    /// Joins expressions. The constant `neutral` has no effect; the other constant is the result.
    fn join(&mut self, parts: Vec<Expression>, joined: fn(Span) -> Expression, neutral: bool) -> Expression {
        if self.keeps_order {
            return if parts.len() == 1 { parts[0] } else { joined(self.push_children(parts)) };
        }
        let mut kept = Vec::with_capacity(parts.len());
        for part in parts {
            match part {
                Expression::Constant(result) if result == neutral => {}
                Expression::Constant(_) => return part,
                // Joined by the same operator: flatten it.
                Expression::All(inner) | Expression::Any(inner) if part == joined(inner) => {
                    kept.extend_from_slice(inner.of(&self.children));
                }
                _ => kept.push(part),
            }
        }
        match kept.len() {
            0 => Expression::Constant(neutral),
            1 => kept[0],
            _ => joined(self.push_by_cost(kept)),
        }
    }

    fn none(&mut self, parts: Vec<Expression>) -> Expression {
        if self.keeps_order {
            return Expression::NoneOf(self.push_children(parts));
        }
        match self.any(parts) {
            Expression::Constant(result) => Expression::Constant(!result),
            Expression::Any(children) => Expression::NoneOf(children),
            part => Expression::NoneOf(self.push_children(vec![part])),
        }
    }

    fn push_by_cost(&mut self, mut parts: Vec<Expression>) -> Span {
        parts.sort_by_key(|part| self.cost(*part));
        parts.dedup();
        self.push_children(parts)
    }

    fn push_children(&mut self, parts: Vec<Expression>) -> Span {
        let from = offset(self.children.len());
        self.children.extend(parts);
        Span { from, to: offset(self.children.len()) }
    }

    /// Approximate cost in nanoseconds; only the order matters.
    fn cost(&self, part: Expression) -> u32 {
        match part {
            Expression::Constant(_) => 0,
            Expression::Condition(condition) => match &self.conditions[condition as usize].predicate {
                Predicate::Never | Predicate::IsSet | Predicate::IsNotSet => 1,
                Predicate::Compare(..) => 2,
                Predicate::In(_) => 8,
                Predicate::Modulo { .. } => 9,
                Predicate::Contains(_) | Predicate::NotContains(_) | Predicate::HasVersionPart(_) => 12,
                Predicate::Regex(_) => 60,
                Predicate::Split { .. } => 150,
            },
            Expression::All(children)
            | Expression::Any(children)
            | Expression::NoneOf(children)
            | Expression::AllEager(children) => {
                let costs = children.of(&self.children).iter().map(|child| self.cost(*child));
                costs.fold(1, u32::saturating_add)
            }
        }
    }

    /// Steps of `limits::FLAG_CYCLE_STEPS_MAX` that evaluating all of it takes.
    fn steps(&self, part: Expression) -> u32 {
        match part {
            Expression::Constant(_) => 1,
            Expression::Condition(condition) => match &self.conditions[condition as usize].predicate {
                Predicate::Never | Predicate::IsSet | Predicate::IsNotSet | Predicate::Modulo { .. } => 1,
                Predicate::Compare(_, operand) if !matches!(operand.text, OperandText::Version(_)) => 1,
                _ => SCAN_STEPS,
            },
            Expression::All(children)
            | Expression::Any(children)
            | Expression::NoneOf(children)
            | Expression::AllEager(children) => {
                let steps = children.of(&self.children).iter().map(|child| self.steps(*child));
                steps.fold(1, u32::saturating_add)
            }
        }
    }

    fn warn(&mut self, path: &str, message: String) {
        self.warnings.push(CompileWarning { path: path.into(), message });
    }

    /// Moves conditions and slots to `program`, and returns the warnings.
    pub fn finish(mut self, program: &mut Program) -> Vec<CompileWarning> {
        for (condition, uses) in self.conditions.iter_mut().zip(&self.uses) {
            // Cheaper to evaluate again than to memoize.
            let is_cheap =
                matches!(condition.predicate, Predicate::IsSet | Predicate::IsNotSet | Predicate::Never);
            if *uses > 1 && !is_cheap && !condition.is_dynamic {
                condition.memo = Some(program.memo_count);
                program.memo_count += 1;
            }
        }
        let is_derived = |source: &PropertySource| {
            matches!(
                source,
                PropertySource::Identifier
                    | PropertySource::IdentityKey
                    | PropertySource::SplitKey
                    | PropertySource::IdentityTrait(_)
            )
        };
        program.derived_slots =
            (0..self.slots.len()).filter(|slot| is_derived(&self.slots[*slot])).map(offset).collect();
        if let Some(flags) = &mut program.flags {
            flags.segment_steps = program.segments.iter().map(|segment| self.steps(segment.rule)).collect();
        }
        program.has_queries = self.slots.iter().any(|source| matches!(source, PropertySource::Query(_)));
        program.slots = self.slots;
        program.slots_by_trait = self.slots_by_trait;
        program.aliases = self.aliases;
        program.conditions = self.conditions;
        program.children = self.children;
        self.warnings
    }
}

fn constant(text: Option<&str>) -> PropertySource {
    text.map_or(PropertySource::Nothing, |text| PropertySource::Constant(text.into()))
}
