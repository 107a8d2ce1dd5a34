//! Work per request, counted in steps: linear in the size of the request, and limited where a document
//! requires more.
//!
//! Time is never asserted: a step is a node that a JSONPath visits or a step of a regular expression, and both
//! are the same on every machine.
use edge_proxy::engine::evaluate::{EvaluationScratch, Identity, Trait, TraitValue, evaluate, evaluate_next};
use edge_proxy::engine::program::Role;
use edge_proxy::engine::render;
use edge_proxy::engine::trace::explain;
use edge_proxy::limits::{
    BULK_TEXT_BYTES_MAX, FLAG_CYCLE_STEPS_MAX, JSONPATH_STEPS_MAX, PATTERN_STEPS_REQUEST_MAX,
};
use edge_proxy::snapshot::Environment;
use serde_json::{Value, json};

use crate::support::document;
use crate::support::proxy::Start;

/// Traits that fit into a body of 1 MiB.
const MANY: usize = 43_000;

/// A document with one segment for each rule type and condition, each with its feature, from `f0` on.
fn document_of(conditions: &[(&str, &str, &str, &str)]) -> Value {
    let state = |number: usize, value: &str| {
        json!({"feature": {"id": number, "name": format!("f{number}"), "type": "STANDARD"}, "enabled": true,
            "feature_state_value": value, "django_id": number, "multivariate_feature_state_values": [],
            "featurestate_uuid": "00000000-0000-4000-8000-000000000000"})
    };
    let segment = |(number, (kind, property, operator, value)): (usize, &(&str, &str, &str, &str))| {
        let condition = json!({"property_": property, "operator": operator, "value": value});
        json!({"id": number, "name": format!("s{number}"), "feature_states": [state(number, "matched")],
            "rules": [{"type": kind, "conditions": [condition], "rules": []}]})
    };
    let states: Vec<Value> = (0..conditions.len()).map(|number| state(number, "plain")).collect();
    let segments: Vec<Value> = conditions.iter().enumerate().map(segment).collect();
    json!({"api_key": document::CLIENT_KEY, "name": "Env", "updated_at": "2026-01-01T00:00:00Z",
        "identity_overrides": [], "feature_states": states, "project": {"segments": segments}})
}

fn compiled(conditions: &[(&str, &str, &str, &str)]) -> Environment {
    Environment::compile(document_of(conditions).to_string().into_bytes()).expect("a valid document").0
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("k{number}")).collect()
}

fn numbers(names: &[String]) -> Vec<Trait<'_>> {
    names.iter().map(|key| Trait { key, value: TraitValue::Int(1) }).collect()
}

/// The values of the flags.
fn values<'s>(environment: &'s Environment, scratch: &'s EvaluationScratch) -> Vec<&'s str> {
    render::results(environment.program(), Role::Server, scratch).map(|flag| flag.value).collect()
}

fn jsonpath_steps(property: &str, traits: &[Trait<'_>]) -> u32 {
    let environment = compiled(&[("ALL", property, "EQUAL", "nothing")]);
    let mut scratch = EvaluationScratch::default();
    evaluate(environment.program(), &Identity { identifier: "u", traits }, &mut scratch);
    assert!(!scratch.budget().jsonpath.is_exceeded(), "{property}");
    JSONPATH_STEPS_MAX - scratch.budget().jsonpath.left()
}

#[test]
fn jsonpath_query_is_linear_in_traits() {
    let names = names(20_000);
    for property in [
        "$.identity.traits.*",
        "$.identity.traits[?@ == 2]",
        "$.identity.traits[?length(@) == 2]",
        "$.identity.traits[?match(@, 'a.*b')]",
        "$.identity.traits[?@ == $.identity.traits.k7 && @ == 2]",
        "$.identity..nothing",
        "$.identity.traits[1:9:2]",
        "$.identity.traits['k1', 'k2'].nothing",
        "$.identity[?@ == $.identity.traits && @.nothing]",
    ] {
        let few = jsonpath_steps(property, &numbers(&names[..10_000]));
        let many = jsonpath_steps(property, &numbers(&names));
        assert!(many <= few * 2 + 20, "{property}: {few} steps, and {many} for twice as many traits");
        assert!(many <= 12 * 20_000, "{property}: {many} steps");
    }
}

#[test]
fn jsonpath_condition_beyond_budget_is_false() {
    let quadratic = "$.identity.traits[?length($.identity.traits) == count($.identity.traits.*) && @ == 2]";
    let environment = compiled(&[
        ("ALL", quadratic, "IS_SET", ""),
        ("ALL", quadratic, "IS_NOT_SET", ""),
        ("NONE", quadratic, "IS_NOT_SET", ""),
        // Evaluated later in the same request, and cheap by itself.
        ("ALL", "$.identity['identifier', 'key']", "EQUAL", "u"),
        // Not a general query, so it needs no budget.
        ("ALL", "$.identity.identifier", "EQUAL", "u"),
    ]);
    let names = names(MANY);
    let (many, few) = (numbers(&names), numbers(&names[..20]));
    let mut scratch = EvaluationScratch::default();
    for _ in 0..2 {
        evaluate(environment.program(), &Identity { identifier: "u", traits: &many }, &mut scratch);
        assert!(scratch.budget().jsonpath.is_exceeded());
        let expected = ["\"plain\"", "\"plain\"", "\"matched\"", "\"plain\"", "\"matched\""];
        assert_eq!(values(&environment, &scratch), expected, "the same each time");
        // The next request has a new budget.
        evaluate(environment.program(), &Identity { identifier: "u", traits: &few }, &mut scratch);
        assert!(!scratch.budget().jsonpath.is_exceeded());
        let expected = ["\"plain\"", "\"matched\"", "\"plain\"", "\"matched\"", "\"matched\""];
        assert_eq!(values(&environment, &scratch), expected);
    }
}

#[test]
fn identities_of_a_request_share_its_budget() {
    let environment = compiled(&[("ALL", "$.identity.traits[?@ == 2]", "IS_NOT_SET", "")]);
    let names = names(10_000);
    let traits = numbers(&names);
    let identity = Identity { identifier: "u", traits: &traits };
    let mut scratch = EvaluationScratch::default();
    evaluate(environment.program(), &identity, &mut scratch);
    let first = JSONPATH_STEPS_MAX - scratch.budget().jsonpath.left();
    evaluate_next(environment.program(), &identity, &mut scratch);
    assert_eq!(JSONPATH_STEPS_MAX - scratch.budget().jsonpath.left(), 2 * first);
    for _ in 0..JSONPATH_STEPS_MAX / first {
        evaluate_next(environment.program(), &identity, &mut scratch);
    }
    assert!(scratch.budget().jsonpath.is_exceeded());
    assert_eq!(values(&environment, &scratch), ["\"plain\""]);
}

#[test]
fn shared_jsonpath_query_is_evaluated_once() {
    let property = "$.identity.traits[?@ == 2]";
    let names = names(1000);
    let once = jsonpath_steps(property, &numbers(&names));
    let conditions: Vec<_> = (0..50).map(|_| ("ALL", property, "EQUAL", "1")).collect();
    let environment = compiled(&conditions);
    let mut scratch = EvaluationScratch::default();
    evaluate(environment.program(), &Identity { identifier: "u", traits: &numbers(&names) }, &mut scratch);
    assert_eq!(JSONPATH_STEPS_MAX - scratch.budget().jsonpath.left(), once);
}

/// Two hundred segments whose patterns backtrack up to the limit.
#[test]
fn regular_expressions_share_the_budget_of_a_request() {
    let patterns: Vec<String> = (0..200).map(|number| format!(r"(x+x+)+\1y{number}")).collect();
    let conditions: Vec<_> = patterns.iter().map(|pattern| ("ALL", "t", "REGEX", pattern.as_str())).collect();
    let environment = compiled(&conditions);
    let text = "x".repeat(2000);
    let traits = [Trait { key: "t", value: TraitValue::Text(&text) }];
    let mut scratch = EvaluationScratch::default();
    for _ in 0..2 {
        evaluate(environment.program(), &Identity { identifier: "u", traits: &traits }, &mut scratch);
        assert!(scratch.budget().patterns.is_exceeded());
        assert_eq!(scratch.budget().patterns.left(), 0);
        assert!(values(&environment, &scratch).iter().all(|value| *value == "\"plain\""));
    }
    let text = "xxxxy7";
    let traits = [Trait { key: "t", value: TraitValue::Text(text) }];
    evaluate(environment.program(), &Identity { identifier: "u", traits: &traits }, &mut scratch);
    assert!(PATTERN_STEPS_REQUEST_MAX - scratch.budget().patterns.left() < 100_000);
    assert_eq!(values(&environment, &scratch)[7], "\"matched\"");
}

#[test]
fn explain_names_conditions_beyond_the_budget() {
    let environment = compiled(&[
        ("ALL", "$.identity.traits[?count($.identity.traits[?@ > 0]) == 7]", "IS_NOT_SET", ""),
        ("ALL", "$.identity.identifier", "EQUAL", "u"),
    ]);
    let names = names(2000);
    let traits = numbers(&names);
    let explanation = explain(
        environment.program(),
        &environment.document().plain,
        Some(&Identity { identifier: "u", traits: &traits }),
        None,
    )
    .expect("an explanation");
    let conditions: Vec<_> =
        explanation.segments.iter().map(|segment| &segment.rules[0].conditions[0]).collect();
    let expected =
        "the steps of a request for general JSONPaths were spent, so the condition counts as no match";
    assert_eq!(conditions[0].note.as_deref(), Some(expected));
    assert_eq!((conditions[0].matches, explanation.segments[0].matches), (false, false));
    assert_eq!((conditions[1].note.as_deref(), conditions[1].matches), (None, true));
}

#[test]
fn request_beyond_budget_is_answered_counted_and_logged_once() {
    let scratch = crate::support::Scratch::new();
    let file = scratch.path().join("environment.json");
    let quadratic = "$.identity.traits[?count($.identity.traits[?@ > 0]) == 7]";
    let document = document_of(&[("ALL", quadratic, "IS_NOT_SET", ""), ("ALL", "t", "REGEX", r"(a+)+\1$")]);
    std::fs::write(&file, document.to_string()).expect("a writable file");
    let proxy =
        Start::serve().document(document::CLIENT_KEY, document::SERVER_KEY, &file).with_admin().ready();
    let many: Vec<Value> =
        (0..2000).map(|number| json!({"trait_key": format!("k{number}"), "trait_value": 1})).collect();
    let body = json!({"identifier": "u", "traits": many}).to_string();
    for _ in 0..3 {
        let answer = proxy.post("/api/v1/identities/", document::CLIENT_KEY, &body);
        assert_eq!(answer.status, 200);
        assert_eq!(answer.json()["flags"][0]["feature_state_value"], "plain");
    }
    let answer = proxy.post("/api/v1/identities/", document::CLIENT_KEY, r#"{"identifier":"u","traits":[]}"#);
    assert_eq!(answer.json()["flags"][0]["feature_state_value"], "matched");
    assert_eq!(proxy.metric("edge_proxy_jsonpath_budget_exceeded_total"), 3.0);
    assert_eq!(proxy.metric("edge_proxy_regex_budget_exceeded_total"), 0.0);
    let log = proxy.wait_for_log("jsonpath_budget_exceeded");
    assert_eq!(log.matches("jsonpath_budget_exceeded").count(), 1, "{log}");
    assert!(log.contains("count($.identity.traits"), "{log}");
}

/// Compiling takes work about linear in the document, as far as it can be counted.
#[test]
fn numbers_trait_aliases_once() {
    let conditions: Vec<_> = (0..10)
        .map(|number| if number % 2 == 0 { "$.identity.traits.t" } else { "$.identity.traits['t']" })
        .map(|property| ("ALL", property, "EQUAL", "1"))
        .collect();
    let environment = compiled(&conditions);
    assert_eq!(environment.program().aliases.len(), 1);
    let traits = ["0", "1"].map(|text| Trait { key: "t", value: TraitValue::Text(text) });
    let mut scratch = EvaluationScratch::default();
    evaluate(environment.program(), &Identity { identifier: "u", traits: &traits }, &mut scratch);
    assert!(
        values(&environment, &scratch).iter().all(|value| *value == "\"matched\""),
        "the last one counts"
    );
}

/// A hundred long identifiers and two thousand splits: the hashed bytes are limited.
#[test]
fn rejects_bulk_request_beyond_the_work_limit() {
    let scratch = crate::support::Scratch::new();
    let conditions: Vec<_> = (0..2000).map(|_| ("ALL", "", "PERCENTAGE_SPLIT", "0.0001")).collect();
    let document = document_of(&conditions).to_string();
    let file = scratch.write("environment.json", document);
    let proxy =
        Start::serve().document(document::CLIENT_KEY, document::SERVER_KEY, &file).with_admin().ready();
    let identities = |count: usize, length: usize| {
        let one = |number: usize| json!({"identifier": format!("{number:x>length$}"), "traits": []});
        json!({"data": (0..count).map(one).collect::<Vec<_>>()}).to_string()
    };
    let post = |body: &str| proxy.post("/api/v1/bulk-identities/", document::CLIENT_KEY, body);
    let refused = post(&identities(100, 1900));
    assert_eq!(refused.status, 400, "{}", refused.text());
    assert_eq!(refused.json()["status"], "bad_request");
    assert!(refused.text().contains("send fewer per request"), "{}", refused.text());
    assert_eq!(post(&identities(2, 1900)).json().as_array().map(Vec::len), Some(2));
    assert_eq!(post(&identities(30, 20)).json().as_array().map(Vec::len), Some(30));
    assert_eq!(proxy.metric("edge_proxy_bulk_refused_total"), 1.0);
}

/// A pattern in the request spends steps whether or not its automaton can be built.
#[test]
fn building_patterns_of_a_request_spends_steps() {
    let environment = compiled(&[("ALL", "$.identity.traits[?match('x', @)]", "IS_SET", "")]);
    let names = names(25);
    let traits: Vec<Trait<'_>> =
        names.iter().map(|key| Trait { key, value: TraitValue::Text(r"(\p{L}{99}){9}") }).collect();
    let mut scratch = EvaluationScratch::default();
    for (count, is_exceeded) in [(10, false), (25, true)] {
        evaluate(
            environment.program(),
            &Identity { identifier: "u", traits: &traits[..count] },
            &mut scratch,
        );
        assert_eq!(scratch.budget().jsonpath.is_exceeded(), is_exceeded, "{count}");
    }
}

/// Segment `i` overrides `fi` and reads `f(i+1)`; the last one of `count` reads `last`.
fn chain(count: usize, last: &str, operator: &'static str) -> Value {
    let reads: Vec<String> = (1..count).map(|next| format!("$.flags.f{next}.value")).collect();
    let mut conditions: Vec<_> =
        reads.iter().map(|path| ("ALL", path.as_str(), operator, "matched")).collect();
    conditions.push(("ALL", last, operator, "matched"));
    // Two more, which are in no cycle: one reads the other.
    conditions.push(("ALL", "t", "EQUAL", "matched"));
    let free = format!("$.flags.f{count}.value");
    conditions.push(("ALL", &free, operator, "matched"));
    document_of(&conditions)
}

/// Evaluates a chain; the steps that its cycles took, whether these sufficed, and the values.
fn cycle_steps(document: &Value) -> (u32, bool, Vec<String>) {
    let (environment, _) = Environment::compile(document.to_string().into_bytes()).expect("it compiles");
    let traits = [Trait { key: "t", value: TraitValue::Text("matched") }];
    let mut scratch = EvaluationScratch::default();
    let mut found = Vec::new();
    for _ in 0..2 {
        evaluate(environment.program(), &Identity { identifier: "u", traits: &traits }, &mut scratch);
        let budget = &scratch.budget().flag_cycles;
        let values = values(&environment, &scratch).into_iter().map(str::to_owned).collect();
        found.push((FLAG_CYCLE_STEPS_MAX - budget.left(), budget.is_exceeded(), values));
    }
    assert_eq!(found[0], found[1], "the same each time");
    found.remove(0)
}

#[test]
fn flags_that_read_each_other_spend_steps_only_in_a_cycle() {
    let (matched, plain) = ("\"matched\"".to_owned(), "\"plain\"".to_owned());
    // Chains, up to the longest: nothing is spent, for any successor of the last flag.
    for count in [1, 2, 100, 127] {
        let (steps, is_exceeded, values) = cycle_steps(&chain(count, "t", "EQUAL"));
        assert_eq!((steps, is_exceeded), (0, false), "{count}");
        assert_eq!(values, vec![matched.clone(); count + 2], "{count}");
    }
    // Cycles within the budget cut themselves only.
    for count in [1, 2, 12] {
        let (steps, is_exceeded, values) = cycle_steps(&chain(count, "$.flags.f0.value", "NOT_EQUAL"));
        assert!(steps > 0 && !is_exceeded, "{count}: {steps}");
        assert_eq!(values[..count], vec![plain.clone(); count], "{count}");
        assert_eq!(values[count..], [matched.clone(), plain.clone()], "{count}");
    }
}

/// A thousand segments that override each of eight flags and read the next one: each result is discarded, again
/// and again. Beside them the two free ones of [`chain`].
fn crowded() -> Value {
    let mut document = chain(1000, "$.flags.f0.value", "EQUAL");
    let state = |number: usize| {
        json!({"feature": {"id": number, "name": format!("f{number}"), "type": "STANDARD"}, "enabled": true,
            "feature_state_value": "matched", "django_id": number, "multivariate_feature_state_values": [],
            "featurestate_uuid": "00000000-0000-4000-8000-000000000000"})
    };
    let segments = document["project"]["segments"].as_array_mut().expect("a list");
    for (number, segment) in segments.iter_mut().enumerate().take(1000) {
        segment["feature_states"] = (0..8).map(state).collect();
        let path = format!("$.flags.f{}.value", (number + 1) % 8);
        segment["rules"][0]["conditions"][0]["property_"] = json!(path);
    }
    document
}

#[test]
fn a_cycle_through_many_segments_is_bounded() {
    let (steps, is_exceeded, values) = cycle_steps(&crowded());
    assert_eq!((steps, is_exceeded), (FLAG_CYCLE_STEPS_MAX, true));
    // What reads a flag that is not resolved yet is cut as well; the rest is evaluated.
    let mut expected = vec!["\"plain\"".to_owned(); 1002];
    expected[1000] = "\"matched\"".to_owned();
    assert_eq!(values, expected);
}

#[test]
fn a_bulk_request_is_refused_if_only_together_its_identities_exceed_the_steps_of_cycles() {
    let small = chain(12, "$.flags.f0.value", "EQUAL");
    let (steps, ..) = cycle_steps(&small);
    assert!(steps * 3 < FLAG_CYCLE_STEPS_MAX && steps * 100 > FLAG_CYCLE_STEPS_MAX, "{steps}");
    let large = crowded();
    for (document, count, status) in [(&small, 3, 200), (&small, 100, 400), (&large, 3, 200)] {
        let scratch = crate::support::Scratch::new();
        let file = scratch.write("environment.json", document.to_string());
        let proxy =
            Start::serve().document(document::CLIENT_KEY, document::SERVER_KEY, &file).with_admin().ready();
        let one = |number: usize| json!({"identifier": number.to_string(), "traits": []});
        let body = json!({"data": (0..count).map(one).collect::<Vec<_>>()}).to_string();
        let answer = proxy.post("/api/v1/bulk-identities/", document::CLIENT_KEY, &body);
        assert_eq!(answer.status, status, "{}", answer.text());
        let is_exceeded = status == 400 || document == &large;
        let counted = proxy.metric("edge_proxy_flag_cycle_budget_exceeded_total");
        assert_eq!(counted, f64::from(u8::from(is_exceeded)));
        assert_eq!(proxy.metric("edge_proxy_bulk_refused_total"), f64::from(u8::from(status == 400)));
        if is_exceeded {
            proxy.wait_for_log("flag_cycle_budget_exceeded");
        }
    }
}

#[test]
fn versions_in_a_bulk_request_are_charged_as_the_text_they_are() {
    let environment = compiled(&[("ALL", "t", "GREATER_THAN", "1.0.0-a.b:semver"); 1]);
    let version = format!("1.0.0-{}b", "a.".repeat(900));
    let traits = [Trait { key: "t", value: TraitValue::Text(&version) }];
    let mut scratch = EvaluationScratch::default();
    evaluate(environment.program(), &Identity { identifier: "u", traits: &traits }, &mut scratch);
    let spent = BULK_TEXT_BYTES_MAX - scratch.budget().texts.left();
    assert!(usize::try_from(spent).expect("small") >= version.len(), "{spent}");
}
