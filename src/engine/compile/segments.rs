//! From the rules of segments to conditions, slots and boolean expressions.
//!
//! In: rules as written. Out: [`Expression`]s over conditions that are shared between segments. Rules:
//! compatibility.md 5.5 and 5.6. Invariant: where no condition reads a flag, expressions are flattened,
//! folded and put in order of cost, which changes no answer because a condition has no side effect; where
//! one does, they stay exactly as written.
use hashbrown::HashMap;

use crate::engine::compile::{CompileWarning, conditions};
use crate::engine::document::{Condition, Document, Rule, RuleKind, Segment};
use crate::engine::evaluate::operators::holds;
use crate::engine::jsonpath::{Property, QueryTarget};
use crate::engine::program;
use crate::engine::program::{CompiledState, Expression, Program, PropertySource, Span, Test, offset};
use crate::python::number::{Value, coerce_text};
use crate::python::regex::AutomataBudget;
use crate::step_budget::RequestBudget;

/// Collects conditions and slots.
#[derive(Debug)]
pub struct Rules<'d, 'a> {
    document: &'d Document<'a>,
    features: HashMap<&'d str, u32, CompiledState>,
    keeps_order: bool,
    slots: Vec<PropertySource>,
    /// By property, and whether it is an empty one that a split takes for the identity's key.
    slots_by_property: HashMap<(Box<str>, bool), u32, CompiledState>,
    slots_by_trait: HashMap<Box<str>, u32, CompiledState>,
    aliases: HashMap<Box<str>, u32, CompiledState>,
    conditions: Vec<program::Condition>,
    uses: Vec<u32>,
    /// By slot, operator, raw value, and for splits the segment's key.
    known: HashMap<(u32, String), u32, CompiledState>,
    children: Vec<Expression>,
    automata: AutomataBudget,
    warnings: Vec<CompileWarning>,
}

impl<'d, 'a> Rules<'d, 'a> {
    pub fn new(document: &'d Document<'a>, features: &HashMap<&'d str, u32, CompiledState>) -> Self {
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
            known: HashMap::default(),
            children: Vec::new(),
            automata: AutomataBudget::default(),
            warnings: Vec::new(),
        }
    }

    /// Whether a condition among these reads a flag, or may: a general query counts.
    pub fn reads_flags(&self, rules: &[Rule<'_>]) -> bool {
        rules.iter().any(|rule| {
            let reads = |condition: &Condition<'_>| {
                condition.property.starts_with("$.")
                    && matches!(
                        Property::parse(&condition.property),
                        Property::Path {
                            target: QueryTarget::Flag { .. }
                                | QueryTarget::FlagAlone { .. }
                                | QueryTarget::Query(_),
                            ..
                        }
                    )
            };
            rule.conditions.iter().any(reads) || self.reads_flags(&rule.rules)
        })
    }

    /// Says whether expressions must stay as written.
    pub fn keep_order(&mut self, keeps_order: bool) {
        self.keeps_order = keeps_order;
    }

    /// The expression of a segment. Without rules it never matches.
    pub fn segment(&mut self, segment: &Segment<'_>, index: usize) -> Expression {
        if segment.rules.is_empty() {
            return Expression::Constant(false);
        }
        let path = format!("$.project.segments[{index}]");
        let nodes: Vec<Expression> =
            segment.rules.iter().map(|rule| self.rule(rule, &segment.key, &path)).collect();
        self.all(nodes)
    }

    fn rule(&mut self, rule: &Rule<'_>, segment_key: &str, path: &str) -> Expression {
        if rule.kind == RuleKind::Unknown {
            let is_empty = rule.conditions.is_empty() && rule.rules.is_empty();
            if !is_empty {
                self.warn(path, "a rule of unknown type never matches".into());
            }
            return Expression::Constant(is_empty);
        }
        let conditions: Vec<Expression> =
            rule.conditions.iter().map(|condition| self.condition(condition, segment_key, path)).collect();
        let rules: Vec<Expression> =
            rule.rules.iter().map(|inner| self.rule(inner, segment_key, path)).collect();
        let mut parts = Vec::new();
        for nodes in [conditions, rules] {
            if !nodes.is_empty() {
                let part = match rule.kind {
                    RuleKind::All | RuleKind::Unknown => self.all(nodes),
                    RuleKind::Any => self.any(nodes),
                    RuleKind::None => self.none(nodes),
                };
                parts.push(part);
            }
        }
        match (parts.len(), self.keeps_order) {
            (1, _) => parts[0],
            (_, false) => self.all(parts),
            (_, true) => Expression::Both(self.push_children(parts)),
        }
    }

    fn condition(&mut self, condition: &Condition<'_>, segment_key: &str, path: &str) -> Expression {
        if condition.is_nameless {
            self.warn(path, "condition is always false: its property_ is no text".into());
            return Expression::Constant(false);
        }
        if let Property::Path { target: QueryTarget::Refused(why), .. } = Property::parse(&condition.property)
        {
            self.warn(path, format!("condition on {:?} is always false: {why}", condition.property));
            return Expression::Constant(false);
        }
        let is_split = condition.operator == "PERCENTAGE_SPLIT";
        let slot = self.slot(&condition.property, is_split && condition.property.is_empty());
        let split_key = if is_split { segment_key } else { "" };
        let text = format!("{}\0{}\0{split_key}", condition.operator, condition.value);
        let index = match self.known.get(&(slot, text.clone())) {
            Some(index) => *index,
            None => {
                let (test, warning) = conditions::compile(condition, segment_key, &mut self.automata);
                if let Some(warning) = warning {
                    self.warn(
                        path,
                        format!("condition on {:?} is always false: {warning}", condition.property),
                    );
                }
                let index = offset(self.conditions.len());
                self.conditions.push(self.with_default(slot, test));
                self.uses.push(0);
                self.known.insert((slot, text), index);
                index
            }
        };
        self.uses[index as usize] += 1;
        let is_dynamic = self.conditions[index as usize].is_dynamic;
        match &self.conditions[index as usize].test {
            // Even then a flag that it names would be read.
            Test::Never if !(self.keeps_order && is_dynamic) => Expression::Constant(false),
            _ => Expression::Test(index),
        }
    }

    fn with_default(&self, slot: u32, test: Test) -> program::Condition {
        let origin = &self.slots[slot as usize];
        let value = match origin {
            PropertySource::Constant(text) => coerce_text(text),
            _ => Value::Null,
        };
        let by_default = holds(&test, &value, &mut String::new(), &RequestBudget::default());
        let is_dynamic = matches!(
            origin,
            PropertySource::Flag(..) | PropertySource::FlagAlone(_) | PropertySource::Query(_)
        );
        program::Condition { slot, test, by_default, memo: None, is_dynamic }
    }

    fn slot(&mut self, property: &str, is_split_key: bool) -> u32 {
        let key = (Box::from(property), is_split_key);
        if let Some(slot) = self.slots_by_property.get(&key) {
            return *slot;
        }
        let origin = if is_split_key { PropertySource::SplitKey } else { self.origin(property) };
        let slot = offset(self.slots.len());
        self.slots.push(origin);
        self.slots_by_property.insert(key, slot);
        if !is_split_key {
            // A path's slot as well: a trait of that very name wins.
            self.slots_by_trait.insert(property.into(), slot);
        }
        slot
    }

    fn origin(&mut self, property: &str) -> PropertySource {
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
            QueryTarget::FlagAlone { name } => PropertySource::FlagAlone(feature(&name)),
            QueryTarget::Query(query) => PropertySource::Query(query),
            // Conditions on a refused path are gone before they come here.
            QueryTarget::Nothing | QueryTarget::Refused(_) => PropertySource::Nothing,
        }
    }

    fn all(&mut self, nodes: Vec<Expression>) -> Expression {
        self.join(nodes, Expression::All, true)
    }

    fn any(&mut self, nodes: Vec<Expression>) -> Expression {
        self.join(nodes, Expression::Any, false)
    }

    /// Joins nodes. A node that always answers `neutral` changes nothing, its opposite decides.
    fn join(&mut self, nodes: Vec<Expression>, joined: fn(Span) -> Expression, neutral: bool) -> Expression {
        if self.keeps_order {
            return if nodes.len() == 1 { nodes[0] } else { joined(self.push_children(nodes)) };
        }
        let mut kept = Vec::with_capacity(nodes.len());
        for node in nodes {
            match node {
                Expression::Constant(answer) if answer == neutral => {}
                Expression::Constant(_) => return node,
                // Joined in the same way: its parts are as good as parts of this one.
                Expression::All(inner) | Expression::Any(inner) if node == joined(inner) => {
                    kept.extend_from_slice(inner.of(&self.children));
                }
                _ => kept.push(node),
            }
        }
        match kept.len() {
            0 => Expression::Constant(neutral),
            1 => kept[0],
            _ => joined(self.push_by_cost(kept)),
        }
    }

    fn none(&mut self, nodes: Vec<Expression>) -> Expression {
        if self.keeps_order {
            return Expression::NoneOf(self.push_children(nodes));
        }
        match self.any(nodes) {
            Expression::Constant(answer) => Expression::Constant(!answer),
            Expression::Any(children) => Expression::NoneOf(children),
            node => Expression::NoneOf(self.push_children(vec![node])),
        }
    }

    fn push_by_cost(&mut self, mut nodes: Vec<Expression>) -> Span {
        nodes.sort_by_key(|node| self.cost(*node));
        nodes.dedup();
        self.push_children(nodes)
    }

    fn push_children(&mut self, nodes: Vec<Expression>) -> Span {
        let from = offset(self.children.len());
        self.children.extend(nodes);
        Span { from, to: offset(self.children.len()) }
    }

    /// Roughly nanoseconds; only the order counts.
    fn cost(&self, node: Expression) -> u32 {
        match node {
            Expression::Constant(_) => 0,
            Expression::Test(condition) => match &self.conditions[condition as usize].test {
                Test::Never | Test::IsSet | Test::IsNotSet => 1,
                Test::Compare(..) => 2,
                Test::In(_) => 8,
                Test::Modulo { .. } => 9,
                Test::Contains(_) | Test::NotContains(_) | Test::HasVersionPart(_) => 12,
                Test::Regex(_) => 60,
                Test::Split { .. } => 150,
            },
            Expression::All(children)
            | Expression::Any(children)
            | Expression::NoneOf(children)
            | Expression::Both(children) => {
                let costs = children.of(&self.children).iter().map(|child| self.cost(*child));
                costs.fold(1, u32::saturating_add)
            }
        }
    }

    fn warn(&mut self, path: &str, message: String) {
        self.warnings.push(CompileWarning { path: path.into(), message });
    }

    /// Hands everything over to `program`.
    pub fn finish(mut self, program: &mut Program) -> Vec<CompileWarning> {
        for (condition, uses) in self.conditions.iter_mut().zip(&self.uses) {
            // Cheaper to ask again than to remember.
            let is_cheap = matches!(condition.test, Test::IsSet | Test::IsNotSet | Test::Never);
            if *uses > 1 && !is_cheap && !condition.is_dynamic {
                condition.memo = Some(program.memo_count);
                program.memo_count += 1;
            }
        }
        let is_derived = |origin: &PropertySource| {
            matches!(
                origin,
                PropertySource::Identifier
                    | PropertySource::IdentityKey
                    | PropertySource::SplitKey
                    | PropertySource::IdentityTrait(_)
            )
        };
        program.derived_slots =
            (0..self.slots.len()).filter(|slot| is_derived(&self.slots[*slot])).map(offset).collect();
        program.has_queries = self.slots.iter().any(|origin| matches!(origin, PropertySource::Query(_)));
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
