//! The evaluation context as a tree, over which queries run.
//!
//! Children are in the order in which the mapper of `flagsmith` and the engine build them. The document's
//! part of the tree is built when it is compiled; values of a request are borrowed.
use std::ops::ControlFlow;

use hashbrown::HashMap;

use crate::engine::document::raw_json;
use crate::engine::identity::TraitValue;
use crate::engine::jsonpath::flag::{FlagLookup, FlagResult};
use crate::engine::jsonpath::subject::Subject;
use crate::engine::table::TableHashBuilder;
use crate::python::number::float_str;
use crate::step_budget::StepBudget;

/// The part of the evaluation context that depends only on the document: environment, features and segments,
/// as the mapper of `flagsmith` builds them. The segments that it makes of identity overrides are left out,
/// because their keys are random.
#[derive(Clone, Debug)]
pub struct Tree {
    environment: Branch,
    features: Branch,
    segments: Branch,
}

/// A value of the document.
#[derive(Clone, Debug)]
pub enum Branch {
    Null,
    Bool(bool),
    Int(i64),
    /// An integer outside `i64`, as its digits.
    Large(Box<str>),
    Float(f64),
    Text(Box<str>),
    List(Vec<Branch>),
    Object(TreeMembers),
}

/// The members of an object, in order.
#[derive(Clone, Debug)]
pub struct TreeMembers {
    entries: Vec<(Box<str>, Branch)>,
    /// The index of each name, if there are many: `$.features` has one for each feature.
    by_name: Option<HashMap<Box<str>, usize, TableHashBuilder>>,
}

/// Larger objects have an index by name.
const MEMBERS_SEARCHED_MAX: usize = 8;

impl TreeMembers {
    fn new(entries: Vec<(Box<str>, Branch)>) -> Self {
        let by_name = (entries.len() > MEMBERS_SEARCHED_MAX).then(|| {
            let mut by_name: HashMap<Box<str>, usize, TableHashBuilder> = HashMap::default();
            for (index, (name, _)) in entries.iter().enumerate() {
                // Of a repeated name the first one counts, as without an index.
                by_name.entry(name.clone()).or_insert(index);
            }
            by_name
        });
        Self { entries, by_name }
    }

    fn find(&self, name: &str) -> Option<&Branch> {
        match &self.by_name {
            Some(by_name) => self.entries.get(*by_name.get(name)?).map(|(_, value)| value),
            None => self.entries.iter().find(|(other, _)| **other == *name).map(|(_, value)| value),
        }
    }
}

/// A node of the context.
#[derive(Clone, Copy, Debug)]
pub enum TreeNode<'a> {
    Root,
    Identity,
    Traits,
    Flags,
    Flag(FlagResult<'a>),
    FlagMetadata(TraitValue<'a>),
    Branch(&'a Branch),
    Scalar(TraitValue<'a>),
}

/// The input of a query.
pub struct Context<'a, 'c> {
    pub tree: &'a Tree,
    pub subject: Option<&'c Subject<'a>>,
    pub flags: &'c mut dyn FlagLookup<'a>,
    /// What is left of the request's budget.
    pub steps: &'c StepBudget,
}

impl<'a> Context<'a, '_> {
    /// The child with this name. Resolves a flag; one that does not exist is null, as in Python's mapping.
    pub fn child(&mut self, node: TreeNode<'a>, name: &str) -> Option<TreeNode<'a>> {
        if matches!(node, TreeNode::Flags) {
            return Some(self.flags.resolve(name).map_or(TreeNode::Scalar(TraitValue::Null), TreeNode::Flag));
        }
        self.member(node, name)
    }

    /// The child with this name, if there is one. Does not resolve flags.
    pub fn member(&self, node: TreeNode<'a>, name: &str) -> Option<TreeNode<'a>> {
        match node {
            TreeNode::Traits => {
                return self.subject?.sent(name).map(TreeNode::Scalar);
            }
            TreeNode::Branch(Branch::Object(members)) => return members.find(name).map(TreeNode::Branch),
            _ => {}
        }
        let mut found = None;
        let _: ControlFlow<()> = self.children(node, &mut |key, child| {
            if key == Some(name) {
                found = Some(child);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        found
    }

    /// The item of a list at index `at`.
    pub fn item(&self, node: TreeNode<'a>, at: usize) -> Option<TreeNode<'a>> {
        match node {
            TreeNode::Branch(Branch::List(items)) => items.get(at).map(TreeNode::Branch),
            _ => None,
        }
    }

    /// The number of children of a node.
    pub fn count(&self, node: TreeNode<'a>) -> usize {
        match node {
            TreeNode::Root => 4 + usize::from(self.subject.is_some()),
            TreeNode::Identity => 3,
            TreeNode::Traits => self.subject.map_or(0, |subject| subject.traits().len()),
            TreeNode::Flags => self.flags.resolved_count(),
            TreeNode::Flag(_) => 6,
            TreeNode::FlagMetadata(_) => 1,
            TreeNode::Branch(Branch::Object(members)) => members.entries.len(),
            TreeNode::Branch(Branch::List(items)) => items.len(),
            TreeNode::Branch(_) | TreeNode::Scalar(_) => 0,
        }
    }

    /// The child at index `at`, in the order of [`Self::children`].
    pub fn child_at(&self, node: TreeNode<'a>, at: usize) -> Option<TreeNode<'a>> {
        match node {
            TreeNode::Traits => self.subject?.traits().get(at).map(|sent| TreeNode::Scalar(sent.value)),
            TreeNode::Flags => self.flags.resolved(at).map(TreeNode::Flag),
            TreeNode::Branch(Branch::Object(members)) => {
                members.entries.get(at).map(|(_, child)| TreeNode::Branch(child))
            }
            TreeNode::Branch(_) => self.item(node, at),
            // A few members.
            _ => {
                let mut left = at;
                let flow = self.children(node, &mut |_, child| match left {
                    0 => ControlFlow::Break(child),
                    _ => {
                        left -= 1;
                        ControlFlow::Continue(())
                    }
                });
                flow.break_value()
            }
        }
    }

    /// Calls `visit` with each child and, in an object, its name.
    pub fn children<B>(
        &self,
        node: TreeNode<'a>,
        visit: &mut dyn FnMut(Option<&str>, TreeNode<'a>) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let text = |text| TreeNode::Scalar(TraitValue::Text(text));
        match node {
            TreeNode::Root => {
                visit(Some("environment"), TreeNode::Branch(&self.tree.environment))?;
                visit(Some("features"), TreeNode::Branch(&self.tree.features))?;
                visit(Some("segments"), TreeNode::Branch(&self.tree.segments))?;
                if self.subject.is_some() {
                    visit(Some("identity"), TreeNode::Identity)?;
                }
                visit(Some("flags"), TreeNode::Flags)
            }
            TreeNode::Identity => {
                let Some(subject) = self.subject else { return ControlFlow::Continue(()) };
                visit(Some("identifier"), text(subject.identity().identifier))?;
                visit(Some("traits"), TreeNode::Traits)?;
                visit(Some("key"), text(subject.key()))
            }
            TreeNode::Traits => {
                let traits = self.subject.map_or(&[][..], |subject| subject.traits());
                traits.iter().try_for_each(|sent| visit(Some(sent.key), TreeNode::Scalar(sent.value)))
            }
            TreeNode::Scalar(_) => ControlFlow::Continue(()),
            // Python's mapping has only the flags that a condition has read.
            TreeNode::Flags => (0..)
                .map_while(|at| self.flags.resolved(at))
                .try_for_each(|flag| visit(Some(flag.name), TreeNode::Flag(flag))),
            TreeNode::Flag(flag) => {
                visit(Some("enabled"), TreeNode::Scalar(flag.enabled))?;
                visit(Some("name"), text(flag.name))?;
                visit(Some("reason"), text(flag.reason))?;
                visit(Some("value"), TreeNode::Scalar(flag.value))?;
                visit(Some("variant"), TreeNode::Scalar(flag.variant))?;
                visit(Some("metadata"), TreeNode::FlagMetadata(flag.feature_id))
            }
            TreeNode::FlagMetadata(id) => visit(Some("id"), TreeNode::Scalar(id)),
            TreeNode::Branch(Branch::Object(members)) => members
                .entries
                .iter()
                .try_for_each(|(name, child)| visit(Some(name), TreeNode::Branch(child))),
            TreeNode::Branch(Branch::List(items)) => {
                items.iter().try_for_each(|child| visit(None, TreeNode::Branch(child)))
            }
            TreeNode::Branch(_) => ControlFlow::Continue(()),
        }
    }
}

impl<'a> TreeNode<'a> {
    /// The value that conditions read: null for a list or an object.
    pub fn scalar(self) -> TraitValue<'a> {
        match self {
            TreeNode::Scalar(value) => value,
            TreeNode::Branch(branch) => match branch {
                Branch::Bool(bool) => TraitValue::Bool(*bool),
                Branch::Int(number) => TraitValue::Int(*number),
                Branch::Large(digits) => TraitValue::BigInt(digits),
                Branch::Float(number) => TraitValue::Float(*number),
                Branch::Text(text) => TraitValue::Text(text),
                Branch::Null | Branch::List(_) | Branch::Object(_) => TraitValue::Null,
            },
            _ => TraitValue::Null,
        }
    }

    pub fn is_object(&self) -> bool {
        !matches!(self, TreeNode::Scalar(_))
            && !matches!(self, TreeNode::Branch(branch) if !matches!(branch, Branch::Object(_)))
    }

    pub fn is_list(&self) -> bool {
        matches!(self, TreeNode::Branch(Branch::List(_)))
    }
}

impl Tree {
    /// Builds the tree of a document in canonical form. Only needed for programs with general queries.
    pub fn new(canonical: &str) -> Self {
        let document = branch(canonical);
        let environment = object([("key", document.copy("api_key")), ("name", document.copy("name"))]);
        let segments = document.member("project").member("segments").items().iter().map(|segment| {
            let key = segment.member("id").python_str();
            let overrides = segment.member("feature_states").items().iter().map(feature).collect();
            let metadata = object([("id", segment.copy("id")), ("source", Branch::Text("api".into()))]);
            let made = object([
                ("key", Branch::Text(key.clone())),
                ("name", segment.copy("name")),
                ("rules", rules(segment.member("rules"))),
                ("overrides", Branch::List(overrides)),
                ("metadata", metadata),
            ]);
            (key, made)
        });
        let features = document.member("feature_states").items().iter();
        let features =
            features.map(|state| (state.member("feature").member("name").python_str(), feature(state)));
        Self { environment, features: dictionary(features), segments: dictionary(segments) }
    }
}

impl Branch {
    /// The value of a member; null if there is none.
    fn member(&self, name: &str) -> &Self {
        let Self::Object(members) = self else { return &Self::Null };
        members.find(name).unwrap_or(&Self::Null)
    }

    fn copy(&self, name: &str) -> Self {
        self.member(name).clone()
    }

    fn items(&self) -> &[Self] {
        if let Self::List(items) = self { items } else { &[] }
    }

    /// Whether a value is true in Python.
    fn is_truthy(&self) -> bool {
        match self {
            Self::Null | Self::Bool(false) | Self::Int(0) => false,
            Self::Float(number) => *number != 0.0,
            Self::Text(text) => !text.is_empty(),
            Self::List(items) => !items.is_empty(),
            Self::Object(members) => !members.entries.is_empty(),
            Self::Bool(true) | Self::Int(_) | Self::Large(_) => true,
        }
    }

    /// `str()` of an id or a name.
    fn python_str(&self) -> Box<str> {
        match self {
            Self::Text(text) | Self::Large(text) => text.clone(),
            Self::Bool(true) => "True".into(),
            Self::Bool(false) => "False".into(),
            Self::Int(number) => number.to_string().into(),
            Self::Float(number) => float_str(*number).into(),
            // Ids of an accepted document are neither lists nor objects.
            Self::Null | Self::List(_) | Self::Object(_) => "None".into(),
        }
    }
}

fn object<const N: usize>(members: [(&str, Branch); N]) -> Branch {
    Branch::Object(TreeMembers::new(members.into_iter().map(|(name, value)| (name.into(), value)).collect()))
}

/// An object; of a repeated name it has the last value, at the position of the first.
fn dictionary(members: impl Iterator<Item = (Box<str>, Branch)>) -> Branch {
    let mut entries: Vec<(Box<str>, Branch)> = Vec::new();
    let mut by_name: HashMap<Box<str>, usize> = HashMap::new();
    for (name, value) in members {
        match by_name.get(&name) {
            Some(index) => entries[*index].1 = value,
            None => {
                by_name.insert(name.clone(), entries.len());
                entries.push((name, value));
            }
        }
    }
    Branch::Object(TreeMembers::new(entries))
}

/// Parses canonical JSON. Large integers keep their digits, and objects their order.
fn branch(canonical: &str) -> Branch {
    match canonical.as_bytes().first() {
        Some(b'{') => {
            let entries = raw_json::entries(canonical).map(|(name, value)| (text(name), branch(value)));
            Branch::Object(TreeMembers::new(entries.collect()))
        }
        Some(b'[') => Branch::List(raw_json::items(canonical).map(branch).collect()),
        Some(b'"') => Branch::Text(text(canonical)),
        Some(b't') => Branch::Bool(true),
        Some(b'f') => Branch::Bool(false),
        Some(b'-' | b'0'..=b'9') => match raw_json::float(canonical) {
            Some(number) => Branch::Float(number),
            None => canonical.parse().map_or_else(|_| Branch::Large(canonical.into()), Branch::Int),
        },
        _ => Branch::Null,
    }
}

fn text(raw: &str) -> Box<str> {
    raw_json::string(raw).unwrap_or_default().into()
}

fn feature(state: &Branch) -> Branch {
    let id = state.member("django_id");
    let id = if id.is_truthy() { id } else { state.member("featurestate_uuid") };
    let described = state.member("feature");
    let mut members: Vec<(Box<str>, Branch)> = vec![
        ("key".into(), Branch::Text(id.python_str())),
        ("name".into(), described.copy("name")),
        ("enabled".into(), state.copy("enabled")),
        ("value".into(), state.copy("feature_state_value")),
        ("metadata".into(), object([("id", described.copy("id"))])),
    ];
    let variants = state.member("multivariate_feature_state_values").items();
    if !variants.is_empty() {
        members.push(("variants".into(), Branch::List(variants.iter().map(variant).collect())));
    }
    let feature_segment = state.member("feature_segment");
    if feature_segment.is_truthy() {
        members.push(("priority".into(), feature_segment.copy("priority")));
    }
    Branch::Object(TreeMembers::new(members))
}

fn variant(variant: &Branch) -> Branch {
    let option = variant.member("multivariate_feature_option");
    let id = variant.member("id");
    let rank = if id.is_truthy() { id.clone() } else { uuid(variant.member("mv_fs_value_uuid")) };
    let mut members: Vec<(Box<str>, Branch)> = vec![
        ("value".into(), option.copy("value")),
        ("weight".into(), variant.copy("percentage_allocation")),
        ("priority".into(), rank),
    ];
    if !matches!(option.member("key"), Branch::Null) {
        members.push(("key".into(), option.copy("key")));
    }
    Branch::Object(TreeMembers::new(members))
}

/// A UUID as an integer (`uuid.UUID(text).int`).
fn uuid(value: &Branch) -> Branch {
    let Branch::Text(text) = value else { return Branch::Null };
    let digits = text.replace("urn:", "").replace("uuid:", "").replace(['-', '{', '}'], "");
    match u128::from_str_radix(&digits, 16) {
        Ok(number) => {
            i64::try_from(number).map_or_else(|_| Branch::Large(number.to_string().into()), Branch::Int)
        }
        Err(_) => Branch::Null,
    }
}

fn rules(value: &Branch) -> Branch {
    let condition = |condition: &Branch| {
        let property = condition.member("property_");
        object([
            ("property", if property.is_truthy() { property.clone() } else { Branch::Text("".into()) }),
            ("operator", condition.copy("operator")),
            ("value", condition.copy("value")),
        ])
    };
    let rule = |rule: &Branch| {
        object([
            ("type", rule.copy("type")),
            ("conditions", Branch::List(rule.member("conditions").items().iter().map(condition).collect())),
            ("rules", rules(rule.member("rules"))),
        ])
    };
    Branch::List(value.items().iter().map(rule).collect())
}
