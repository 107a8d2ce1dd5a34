//! Single values against Python: `int`, `float`, `repr`, `re` and `json`, and the packages that the reference
//! engine uses for versions and paths.
//!
//! `tests/python/values.py` generates seeded random inputs and Python's results. `SEED=` replays a run, `VALUES=`
//! sets the number of inputs of each kind, `AUTHORITY=` names another Python (with the packages of
//! `tests/requirements.txt`; the reference uses 3.13).
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use edge_proxy::engine::compile::in_list;
use edge_proxy::engine::evaluate::{Identity, Trait, TraitValue, hashing};
use edge_proxy::engine::jsonpath;
use edge_proxy::engine::jsonpath::{FlagResult, Property, QueryTarget, Subject};
use edge_proxy::python::number::{Integer, Value};
use edge_proxy::python::{number, semver};
use edge_proxy::step_budget::RequestBudget;
use serde_json::Value as Json;

use crate::support::fixture::root;
use crate::support::python;

/// Runs `answer` on each input of `kind` and reports every difference that it returns.
fn compare(kind: &str, answer: impl Fn(&[Json]) -> Result<(), String>) {
    let seed = std::env::var("SEED").unwrap_or_else(|_| "1".to_owned());
    let count = std::env::var("VALUES").unwrap_or_else(|_| "2000".to_owned());
    let python = std::env::var_os("AUTHORITY").map_or_else(python::interpreter, PathBuf::from);
    let script = root().join("tests/python/values.py");
    let mut child = Command::new(&python)
        .arg(script)
        .args([kind, &seed, &count])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {}: {error}", python.display()));
    let lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
    let (mut compared, mut wrong) = (0, Vec::new());
    for line in lines {
        let line = line.expect("Python writes UTF-8");
        let question: Vec<Json> = serde_json::from_str(&line).expect("Python writes JSON arrays");
        compared += 1;
        if let Err(found) = answer(&question) {
            wrong.push(format!("{line} but the engine says {found}"));
        }
    }
    assert!(child.wait().expect("Python exits").success(), "Python failed");
    assert_eq!(compared.to_string(), count, "Python answered every input");
    let shown: Vec<_> = wrong.iter().take(20).cloned().collect();
    assert!(wrong.is_empty(), "{} of {compared} differ, SEED={seed}:\n{}", wrong.len(), shown.join("\n"));
    println!("{kind}: {compared} agree, SEED={seed}");
}

fn same(found: &Json, expected: &Json) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(found.to_string()) }
}

fn text(json: &Json) -> &str {
    json.as_str().expect("a text")
}

fn double(json: &Json) -> f64 {
    f64::from_bits(json.as_u64().expect("the bits of a double"))
}

fn bits(number: Option<f64>) -> Json {
    match number {
        None => Json::Null,
        Some(number) if number.is_nan() => "nan".into(),
        Some(number) => number.to_bits().into(),
    }
}

fn str_of(value: &Value<'_>) -> String {
    let mut out = String::new();
    number::write_str(value, &mut out);
    out
}

#[test]
fn int_parses_as_in_python() {
    compare("int", |question| {
        let found = match number::int_from_text(text(&question[0])) {
            None => Json::Null,
            Some(Integer::Small(number)) => number.to_string().into(),
            Some(Integer::Big(number)) => match number.to_string() {
                long if long.trim_start_matches('-').len() > 4000 => "long".into(),
                digits => digits.into(),
            },
        };
        same(&found, &question[1])
    });
}

#[test]
fn float_parses_as_in_python() {
    compare("float", |question| same(&bits(number::float_from_text(text(&question[0]))), &question[1]));
}

#[test]
fn floats_format_as_in_python() {
    compare("repr", |question| same(&str_of(&Value::Float(double(&question[0]))).into(), &question[1]));
}

#[test]
fn text_is_coerced_as_in_the_reference() {
    compare("coerce", |question| {
        let value = edge_proxy::engine::evaluate::context::coerce(TraitValue::Text(text(&question[0])));
        let kind = match value {
            Value::Int(_) | Value::Big(_) => "int",
            Value::Float(_) => "float",
            Value::Text(_) => "str",
            Value::Unreadable => "raises",
            Value::Null | Value::Bool(_) => "other",
        };
        let found = Json::from(vec![kind.to_owned(), str_of(&value)]);
        same(&found, &Json::from(question[1..].to_vec()))
    });
}

#[test]
fn modulo_is_floored_as_in_python() {
    compare("modulo", |question| {
        let given = text(&question[1]);
        let value = match text(&question[0]) {
            "bool" => Value::Bool(given == "True"),
            "int" => edge_proxy::engine::evaluate::context::coerce(TraitValue::BigInt(given)),
            _ => Value::Float(f64::from_bits(given.parse().expect("the bits of a double"))),
        };
        same(&bits(number::modulo(&value, double(&question[2]))), &question[3])
    });
}

#[test]
fn versions_compare_as_in_semver() {
    compare("semver", |question| {
        let left = semver::Version::parse(text(&question[0]));
        let right = semver::Version::parse(text(&question[1]));
        let order = left.zip(right).map(|(left, right)| left.cmp(&right) as i8);
        let found = Json::from(vec![left.is_some().into(), right.is_some().into(), Json::from(order)]);
        same(&found, &Json::from(question[2..].to_vec()))
    });
}

#[test]
fn in_lists_parse_as_in_json_loads() {
    compare("in", |question| {
        let mut found = in_list::parse(text(&question[0]));
        found.sort();
        found.dedup();
        same(&found.into(), &question[1])
    });
}

#[test]
fn hash_equals_the_reference() {
    compare("hash", |question| {
        same(&bits(Some(hashing::hash(&[text(&question[0]), text(&question[1])]))), &question[2])
    });
}

#[test]
fn patterns_match_as_in_re_match() {
    compare("regex", |question| {
        let pattern =
            edge_proxy::python::regex::Pattern::compile(text(&question[0]), &mut Default::default());
        let found = match pattern {
            Err(_) => Json::Null,
            Ok(pattern) => match &question[1] {
                // Python rejects the pattern and this engine does not: nothing to compare.
                Json::Null => "compiles".into(),
                subjects => {
                    let subjects = subjects.as_array().expect("a list");
                    let answer = |subject: &Json| {
                        Json::from(vec![
                            subject[0].clone(),
                            pattern.is_match(text(&subject[0]), &RequestBudget::default().patterns).into(),
                        ])
                    };
                    subjects.iter().map(answer).collect::<Vec<_>>().into()
                }
            },
        };
        same(&found, &question[1])
    });
}

/// The document and the identity of `tests/python/paths.py`, as inputs of the engine.
struct Context {
    tree: jsonpath::Tree,
    traits: Vec<Json>,
}

impl Context {
    fn load() -> Self {
        let input = python::run("paths.py", &["context"]);
        let input: Json = serde_json::from_str(&input).expect("the script writes JSON");
        let traits = input["traits"].as_array().expect("a list").clone();
        Self { tree: jsonpath::Tree::new(&input["document"].to_string()), traits }
    }

    fn traits(&self) -> Vec<Trait<'_>> {
        let value = |kind: &str, written: &'_ str| -> TraitValue<'_> {
            // The text lives as long as the list.
            match kind {
                "bool" => TraitValue::Bool(written == "True"),
                "int" => written.parse().map_or(TraitValue::Null, TraitValue::Int),
                "float" => TraitValue::Float(written.parse().expect("a double")),
                _ => TraitValue::Null,
            }
        };
        let one = |entry| -> Trait<'_> {
            let (key, kind, written) = (text_in(entry, 0), text_in(entry, 1), text_in(entry, 2));
            let value = match kind {
                "str" => TraitValue::Text(written),
                "int" if written.parse::<i64>().is_err() => TraitValue::BigInt(written),
                _ => value(kind, written),
            };
            Trait { key, value }
        };
        self.traits.iter().map(one).collect()
    }
}

fn text_in(entry: &Json, at: usize) -> &str {
    text(&entry[at])
}

/// The value that a property selects in that document, by the code path of the engine.
fn look_up<'a>(
    property: &'a Property,
    tree: &'a jsonpath::Tree,
    identity: Option<&Identity<'a>>,
) -> Result<TraitValue<'a>, &'a str> {
    let sent = |name: &str| {
        let last = identity.and_then(|identity| identity.traits.iter().rev().find(|sent| sent.key == name));
        last.map_or(TraitValue::Null, |sent| sent.value)
    };
    let target = match property {
        Property::Trait(name) => return Ok(sent(name)),
        Property::Path { target: QueryTarget::Refused(why), .. } => return Err(why),
        Property::Path { name, target } => match sent(name) {
            TraitValue::Null => target,
            shadow => return Ok(shadow),
        },
    };
    let mut flags = Flags { has_identity: identity.is_some(), resolved: Vec::new() };
    Ok(match target {
        QueryTarget::EnvironmentKey => TraitValue::Text("env"),
        QueryTarget::EnvironmentName => TraitValue::Text("Env 12"),
        QueryTarget::Identifier => identity.map_or(TraitValue::Null, |it| TraitValue::Text(it.identifier)),
        QueryTarget::IdentityKey => identity.map_or(TraitValue::Null, |_| TraitValue::Text("env_user 1")),
        QueryTarget::IdentityTrait(name) => sent(name),
        QueryTarget::Flag { name, member } => match jsonpath::FlagLookup::resolve(&mut flags, name) {
            None => TraitValue::Null,
            Some(flag) => flag.member(*member),
        },
        QueryTarget::FlagObject { .. } | QueryTarget::Nothing | QueryTarget::Refused(_) => TraitValue::Null,
        QueryTarget::Query(query) => {
            let subject = identity.map(|identity| Subject::new(*identity, "env_user 1"));
            let steps = &RequestBudget::default().jsonpath;
            query.find(tree, subject.as_ref(), &mut flags, steps).map_err(|_| "out of steps")?
        }
    })
}

/// The three flags of the document, resolved when they are read.
struct Flags {
    has_identity: bool,
    resolved: Vec<FlagResult<'static>>,
}

impl<'a> jsonpath::FlagLookup<'a> for Flags {
    fn resolve(&mut self, name: &str) -> Option<FlagResult<'a>> {
        let (enabled, value, feature_id) = match name {
            "f" => (true, TraitValue::Text("v"), 1),
            "my name" => (false, TraitValue::Int(12), 2),
            // This identity gets the first variant.
            "é-x" if self.has_identity => (true, TraitValue::Text("one"), 3),
            "é-x" => (true, TraitValue::Null, 3),
            _ => return None,
        };
        let name: &'static str = match feature_id {
            1 => "f",
            2 => "my name",
            _ => "é-x",
        };
        let is_split = feature_id == 3 && self.has_identity;
        let reason = if is_split { "SPLIT; weight=30.5" } else { "STATIC" };
        let variant = if is_split { TraitValue::Text("k1") } else { TraitValue::Null };
        let (enabled, feature_id) = (TraitValue::Bool(enabled), TraitValue::Int(feature_id));
        let flag = FlagResult { enabled, name, reason, value, variant, feature_id };
        if self.resolved.iter().all(|known| known.name != name) {
            self.resolved.push(flag);
        }
        Some(flag)
    }

    fn resolved(&self, at: usize) -> Option<FlagResult<'a>> {
        self.resolved.get(at).copied()
    }

    fn resolved_count(&self) -> usize {
        self.resolved.len()
    }
}

#[test]
fn paths_select_as_in_the_reference() {
    let context = Context::load();
    let traits = context.traits();
    let identity = Identity { identifier: "user 1", traits: &traits };
    compare("jsonpath", |question| {
        let property = Property::parse(text(&question[0]));
        let identity = question[1].as_bool().expect("a bool").then_some(&identity);
        let found = match look_up(&property, &context.tree, identity) {
            Err(_) => Json::from(vec!["raises".to_owned(), String::new()]),
            Ok(value) => {
                let value = edge_proxy::engine::evaluate::context::coerce(value);
                let kind = match value {
                    Value::Null => "NoneType",
                    Value::Bool(_) => "bool",
                    Value::Int(_) | Value::Big(_) => "int",
                    Value::Float(_) => "float",
                    Value::Text(_) => "str",
                    Value::Unreadable => "raises",
                };
                Json::from(vec![kind.to_owned(), str_of(&value)])
            }
        };
        // Where a function of the package fails, this engine selects nothing: there is no result to compare.
        if question[2] == "fails" { Ok(()) } else { same(&found, &Json::from(question[2..].to_vec())) }
    });
}
