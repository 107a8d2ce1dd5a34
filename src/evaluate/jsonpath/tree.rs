//! The evaluation context as a tree that paths walk.
//!
//! In: a whole document, once; per request an identity and a way to ask for flags. Out: nodes and
//! their children, in the order in which `flagsmith`'s mapper and the engine build them.
//! Invariant: nothing of a request is copied; the document's part is built when it is compiled.
use std::ops::ControlFlow;

use serde_json::Value as Json;

use super::super::{Identity, TraitValue};
use super::FlagResult;

/// The part of the evaluation context that the document alone decides: environment, features and
/// segments, as `flagsmith`'s mapper makes them. The segments that it makes of identity overrides
/// are left out: their keys are random there.
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
    Object(Vec<(Box<str>, Branch)>),
}

/// A place in the context.
#[derive(Clone, Copy, Debug)]
pub enum Node<'a> {
    Root,
    Identity,
    Traits,
    Flags,
    Flag(FlagResult<'a>),
    FlagMetadata(i64),
    Branch(&'a Branch),
    Scalar(TraitValue<'a>),
}

/// What a query reads.
pub struct Context<'a, 'c> {
    pub tree: &'a Tree,
    /// With its key.
    pub identity: Option<(&'c Identity<'a>, &'a str)>,
    pub flag: &'c mut dyn FnMut(&str) -> Option<FlagResult<'a>>,
}

impl<'a> Context<'a, '_> {
    /// The child of that name; for a flag's name always one, as Python's mapping makes it up.
    pub fn child(&mut self, node: Node<'a>, name: &str) -> Option<Node<'a>> {
        if matches!(node, Node::Flags) {
            return Some((self.flag)(name).map_or(Node::Scalar(TraitValue::Null), Node::Flag));
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

    /// Calls `visit` with each child and, in an object, its name.
    pub fn children<B>(
        &self,
        node: Node<'a>,
        visit: &mut dyn FnMut(Option<&str>, Node<'a>) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let text = |text| Node::Scalar(TraitValue::Text(text));
        match node {
            Node::Root => {
                visit(Some("environment"), Node::Branch(&self.tree.environment))?;
                visit(Some("features"), Node::Branch(&self.tree.features))?;
                visit(Some("segments"), Node::Branch(&self.tree.segments))?;
                if self.identity.is_some() {
                    visit(Some("identity"), Node::Identity)?;
                }
                visit(Some("flags"), Node::Flags)
            }
            Node::Identity => {
                let Some((identity, key)) = self.identity else { return ControlFlow::Continue(()) };
                visit(Some("identifier"), text(identity.identifier))?;
                visit(Some("traits"), Node::Traits)?;
                visit(Some("key"), text(key))
            }
            Node::Traits => self.traits(visit),
            // Wildcards find no flags (wire.md 5.12).
            Node::Flags | Node::Scalar(_) => ControlFlow::Continue(()),
            Node::Flag(flag) => {
                visit(Some("enabled"), Node::Scalar(TraitValue::Bool(flag.enabled)))?;
                visit(Some("name"), text(flag.name))?;
                visit(Some("reason"), text(flag.reason))?;
                visit(Some("value"), Node::Scalar(flag.value))?;
                visit(
                    Some("variant"),
                    Node::Scalar(flag.variant.map_or(TraitValue::Null, TraitValue::Text)),
                )?;
                visit(Some("metadata"), Node::FlagMetadata(flag.feature_id))
            }
            Node::FlagMetadata(id) => visit(Some("id"), Node::Scalar(TraitValue::Int(id))),
            Node::Branch(Branch::Object(members)) => {
                members.iter().try_for_each(|(name, child)| visit(Some(name), Node::Branch(child)))
            }
            Node::Branch(Branch::List(items)) => {
                items.iter().try_for_each(|child| visit(None, Node::Branch(child)))
            }
            Node::Branch(_) => ControlFlow::Continue(()),
        }
    }

    /// In order of first appearance; of several with one key the last value counts.
    fn traits<B>(&self, visit: &mut dyn FnMut(Option<&str>, Node<'a>) -> ControlFlow<B>) -> ControlFlow<B> {
        let traits = self.identity.map_or(&[][..], |(identity, _)| identity.traits);
        for (at, trait_) in traits.iter().enumerate() {
            let is_first = traits.iter().take(at).all(|before| before.key != trait_.key);
            let last = traits.iter().rev().find(|other| other.key == trait_.key);
            if let (true, Some(last)) = (is_first, last) {
                visit(Some(trait_.key), Node::Scalar(last.value))?;
            }
        }
        ControlFlow::Continue(())
    }
}

impl<'a> Node<'a> {
    /// Its value as a condition sees it: null for a list or an object.
    pub fn scalar(self) -> TraitValue<'a> {
        match self {
            Node::Scalar(value) => value,
            Node::Branch(branch) => match branch {
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
        !matches!(self, Node::Scalar(_))
            && !matches!(self, Node::Branch(branch) if !matches!(branch, Branch::Object(_)))
    }

    pub fn is_list(&self) -> bool {
        matches!(self, Node::Branch(Branch::List(_)))
    }
}

impl Tree {
    /// Builds it from a whole document. Needed only where a query occurs that is no plain path.
    pub fn new(document: &Json) -> Self {
        let states = &document["feature_states"];
        let environment =
            object([("key", branch(&document["api_key"])), ("name", branch(&document["name"]))]);
        let segments = items(&document["project"]["segments"]).iter().map(|segment| {
            let key = python_str(&segment["id"]);
            let overrides = items(&segment["feature_states"]).iter().map(feature).collect();
            let made = object([
                ("key", Branch::Text(key.clone())),
                ("name", branch(&segment["name"])),
                ("rules", rules(&segment["rules"])),
                ("overrides", Branch::List(overrides)),
                (
                    "metadata",
                    object([("id", branch(&segment["id"])), ("source", Branch::Text("api".into()))]),
                ),
            ]);
            (key, made)
        });
        let features =
            items(states).iter().map(|state| (python_str(&state["feature"]["name"]), feature(state)));
        Self { environment, features: dictionary(features), segments: dictionary(segments) }
    }
}

fn items(json: &Json) -> &[Json] {
    json.as_array().map_or(&[], Vec::as_slice)
}

fn object<const N: usize>(members: [(&str, Branch); N]) -> Branch {
    Branch::Object(members.into_iter().map(|(name, value)| (name.into(), value)).collect())
}

/// Of a repeated name the last value counts, at the first one's place.
fn dictionary(members: impl Iterator<Item = (Box<str>, Branch)>) -> Branch {
    let mut kept: Vec<(Box<str>, Branch)> = Vec::new();
    for (name, value) in members {
        match kept.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => kept.push((name, value)),
        }
    }
    Branch::Object(kept)
}

/// `str()` of an id or a name.
fn python_str(json: &Json) -> Box<str> {
    json.as_str().map_or_else(|| json.to_string().into(), Into::into)
}

fn branch(json: &Json) -> Branch {
    match json {
        Json::Null => Branch::Null,
        Json::Bool(bool) => Branch::Bool(*bool),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(small), _) => Branch::Int(small),
            (None, Some(large)) => Branch::Large(large.to_string().into()),
            (None, None) => Branch::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Branch::Text(text.as_str().into()),
        Json::Array(items) => Branch::List(items.iter().map(branch).collect()),
        Json::Object(members) => Branch::Object(
            members.iter().map(|(name, value)| (name.as_str().into(), branch(value))).collect(),
        ),
    }
}

fn is_truthy(json: &Json) -> bool {
    match json {
        Json::Null | Json::Bool(false) => false,
        Json::Number(number) => number.as_f64() != Some(0.0),
        Json::String(text) => !text.is_empty(),
        Json::Array(items) => !items.is_empty(),
        Json::Object(members) => !members.is_empty(),
        Json::Bool(true) => true,
    }
}

fn feature(state: &Json) -> Branch {
    let id = if is_truthy(&state["django_id"]) { &state["django_id"] } else { &state["featurestate_uuid"] };
    let mut members: Vec<(Box<str>, Branch)> = vec![
        ("key".into(), Branch::Text(python_str(id))),
        ("name".into(), branch(&state["feature"]["name"])),
        ("enabled".into(), branch(&state["enabled"])),
        ("value".into(), branch(&state["feature_state_value"])),
        ("metadata".into(), object([("id", branch(&state["feature"]["id"]))])),
    ];
    let variants = items(&state["multivariate_feature_state_values"]);
    if !variants.is_empty() {
        members.push(("variants".into(), Branch::List(variants.iter().map(variant).collect())));
    }
    if is_truthy(&state["feature_segment"]) {
        members.push(("priority".into(), branch(&state["feature_segment"]["priority"])));
    }
    Branch::Object(members)
}

fn variant(variant: &Json) -> Branch {
    let option = &variant["multivariate_feature_option"];
    let rank =
        if is_truthy(&variant["id"]) { branch(&variant["id"]) } else { uuid(&variant["mv_fs_value_uuid"]) };
    let mut members: Vec<(Box<str>, Branch)> = vec![
        ("value".into(), branch(&option["value"])),
        ("weight".into(), branch(&variant["percentage_allocation"])),
        ("priority".into(), rank),
    ];
    if !option["key"].is_null() {
        members.push(("key".into(), branch(&option["key"])));
    }
    Branch::Object(members)
}

/// A UUID as the integer that Python makes of it.
fn uuid(json: &Json) -> Branch {
    let digits = json
        .as_str()
        .unwrap_or_default()
        .replace("urn:", "")
        .replace("uuid:", "")
        .replace(['-', '{', '}'], "");
    u128::from_str_radix(&digits, 16).map_or(Branch::Null, |number| Branch::Large(number.to_string().into()))
}

fn rules(json: &Json) -> Branch {
    let rule = |rule: &Json| {
        let condition = |condition: &Json| {
            let property = if is_truthy(&condition["property_"]) {
                branch(&condition["property_"])
            } else {
                Branch::Text("".into())
            };
            object([
                ("property", property),
                ("operator", branch(&condition["operator"])),
                ("value", branch(&condition["value"])),
            ])
        };
        object([
            ("type", branch(&rule["type"])),
            ("conditions", Branch::List(items(&rule["conditions"]).iter().map(condition).collect())),
            ("rules", rules(&rule["rules"])),
        ])
    };
    Branch::List(items(json).iter().map(rule).collect())
}
