//! What is refused, what is served, and to whom: documents made here.
use serde_json::{Value as Json, json};

use crate::engine::evaluate::{EvaluationScratch, Identity, Trait, TraitValue, evaluate};
use crate::engine::program::Role;
use crate::engine::render;
use crate::snapshot::Environment;
use crate::work;

fn state(id: u32, name: &str, value: &Json) -> Json {
    json!({"feature": {"id": id, "name": name, "type": "STANDARD"}, "enabled": true, "django_id": id,
        "feature_state_value": value, "feature_segment": null, "multivariate_feature_state_values": []})
}

fn document() -> Json {
    json!({"api_key": "client", "name": "E", "updated_at": "2026-01-15T10:30:00.500000+00:00",
        "feature_states": [state(1, "a", &json!("x")), state(2, "b", &json!(2))],
        "project": {"segments": [], "server_key_only_feature_ids": [2], "hide_disabled_flags": false},
        "identity_overrides": [{"identifier": "vip", "identity_uuid": "one",
            "identity_features": [state(1, "a", &json!("mine"))]}],
        "webhook_config": {"url": "https://hook", "secret": "s3cr3t"}})
}

fn compile(document: &Json) -> Environment {
    Environment::compile(document.to_string().as_bytes()).map_err(|error| error.message).unwrap().0
}

fn identities(environment: &Environment, role: Role, identifier: &str) -> String {
    let mut scratch = EvaluationScratch::default();
    evaluate(environment.program(), &Identity { identifier, traits: &[] }, &mut scratch);
    let mut out = Vec::new();
    render::write(environment.program(), role, &scratch, None, &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn a_document_of_the_wrong_shape_is_refused_with_its_path() {
    let table: [(&str, Json, &str); 16] = [
        ("/api_key", json!(5), "$.api_key"),
        ("/name", json!([]), "$.name"),
        ("/feature_states", json!(null), "$.feature_states"),
        ("/feature_states", json!({}), "$.feature_states"),
        ("/feature_states/1", json!("x"), "$.feature_states[1]"),
        ("/feature_states/1/feature", json!(null), "$.feature_states[1].feature"),
        ("/feature_states/1/feature/id", json!("2"), "$.feature_states[1].feature.id"),
        ("/feature_states/0/feature/name", json!(7), "$.feature_states[0].feature.name"),
        ("/feature_states/0/enabled", json!("yes"), "$.feature_states[0].enabled"),
        ("/project", json!([]), "$.project"),
        ("/project/segments", json!("no"), "$.project.segments"),
        ("/project/server_key_only_feature_ids", json!(1), "$.project.server_key_only_feature_ids"),
        ("/identity_overrides", json!(1), "$.identity_overrides"),
        ("/identity_overrides/0/identifier", json!(null), "$.identity_overrides[0].identifier"),
        (
            "/identity_overrides/0/identity_features/0/feature_state_value",
            json!([1]),
            "$.identity_overrides[0].identity_features[0].feature_state_value",
        ),
        (
            "/feature_states/0/multivariate_feature_state_values",
            json!([{"percentage_allocation": 5}]),
            "$.feature_states[0].multivariate_feature_state_values[0].multivariate_feature_option",
        ),
    ];
    for (pointer, value, path) in table {
        let mut document = document();
        *document.pointer_mut(pointer).unwrap() = value;
        let error = Environment::compile(document.to_string().as_bytes()).unwrap_err();
        assert_eq!(error.path, path, "{}", error.message);
    }
    for text in ["", "<html>", "[]", "null", "{}", "{\"api_key\":\"a\"", "5"] {
        assert!(Environment::compile(text.as_bytes()).is_err(), "{text}");
    }
}

#[test]
fn client_keys_see_less_than_server_keys() {
    let environment = compile(&document());
    let text = |role| String::from_utf8(environment.flags(role).plain.to_vec()).unwrap();
    let a = r#"{"feature":{"id":1,"name":"a","type":"STANDARD"},"enabled":true,"feature_state_value":"x"}"#;
    let b = r#"{"feature":{"id":2,"name":"b","type":"STANDARD"},"enabled":true,"feature_state_value":2}"#;
    assert_eq!(text(Role::Client), format!("[{a}]"));
    assert_eq!(text(Role::Server), format!("[{a},{b}]"));
    assert_eq!(environment.flag(Role::Server, "b"), Some(b.as_bytes()));
    assert_eq!(environment.flag(Role::Client, "b"), None);
    assert_eq!(environment.flag(Role::Server, "c"), None);
    let reason = |role| identities(&environment, role, "vip");
    assert!(reason(Role::Server).contains(r#""reason":"TARGETING_MATCH; segment=identity_overrides"},"#));
    assert!(reason(Role::Client).ends_with(r#""variant":null,"reason":"TARGETING_MATCH"}]"#));
    assert!(identities(&environment, Role::Client, "other").ends_with(r#""reason":"DEFAULT"}]"#));
}

#[test]
fn disabled_flags_are_hidden_by_the_environment_before_the_project() {
    for (environment, project, hidden) in [
        (json!(true), false, true),
        (json!(false), true, false),
        (json!(null), true, true),
        (json!(null), false, false),
    ] {
        let mut document = document();
        document["hide_disabled_flags"] = environment;
        document["project"]["hide_disabled_flags"] = project.into();
        document["feature_states"][0]["enabled"] = false.into();
        let compiled = compile(&document);
        let body = &compiled.flags(Role::Client).plain;
        assert_eq!(body.len() == 2, hidden, "{document}");
        assert!(compiled.flag(Role::Server, "a").is_some());
    }
}

#[test]
fn the_served_document_has_no_secrets_and_a_validator_that_ignores_random_members() {
    let mut changed = document();
    let first = compile(&changed);
    let served = String::from_utf8(first.document().plain.to_vec()).unwrap();
    assert!(!served.contains("s3cr3t") && !served.contains("webhook"), "{served}");
    assert!(served.contains(r#""identity_uuid":"one""#));
    changed["identity_overrides"][0]["identity_uuid"] = "two".into();
    assert_eq!(compile(&changed).document().etag, first.document().etag);
    changed["identity_overrides"][0]["identifier"] = "vip2".into();
    assert_ne!(compile(&changed).document().etag, first.document().etag);
    assert_eq!(first.updated_at(), Some(1_768_473_000.5));
}

#[test]
fn rules_nested_as_deep_as_allowed_compile_and_match_on_a_small_stack() {
    let depth = 200;
    let mut rule =
        json!({"type": "ALL", "conditions": [{"property_": "t", "operator": "EQUAL", "value": "1"}]});
    for _ in 0..depth {
        rule = json!({"type": "ANY", "rules": [rule]});
    }
    let mut document = document();
    document["project"]["segments"] = json!([{"id": 1, "name": "deep", "rules": [rule], "feature_states": [state(1, "a", &json!("deep"))]}]);
    let text = document.to_string();
    std::mem::forget(document);
    let work = move || {
        let (environment, _) = Environment::compile(text.as_bytes()).unwrap();
        let traits = [Trait { key: "t", value: TraitValue::Int(1) }];
        let mut scratch = EvaluationScratch::default();
        evaluate(environment.program(), &Identity { identifier: "u", traits: &traits }, &mut scratch);
        render::results(environment.program(), Role::Server, &scratch).next().unwrap().value.to_owned()
    };
    let thread = std::thread::Builder::new().stack_size(2 * 1024 * 1024).spawn(work).unwrap();
    assert_eq!(thread.join().unwrap(), "\"deep\"");
}

#[test]
fn many_segments_answer_as_each_by_itself() {
    // So many that lookups walk what is left; the best priority of the matching ones wins.
    let segments: Vec<Json> = (0..200)
        .map(|number| {
            let mut override_state = state(1, "a", &json!(number));
            override_state["feature_segment"] = json!({"priority": (number * 37) % 200});
            json!({"id": number, "name": format!("s{number}"), "feature_states": [override_state],
            "rules": [{"type": "ALL", "conditions": [
                {"property_": "n", "operator": "IN", "value": format!("{},{}", number % 50, number % 7)},
                {"property_": "m", "operator": "GREATER_THAN", "value": (number % 20).to_string()},
            ]}]})
        })
        .collect();
    let mut document = document();
    document["project"]["segments"] = segments.into();
    let environment = compile(&document);
    for n in 0..60_i64 {
        for m in 0..25_i64 {
            let best = (0..200_i64)
                .filter(|number| (number % 50 == n || number % 7 == n) && m > number % 20)
                .min_by_key(|number| (number * 37) % 200);
            let traits = [
                Trait { key: "n", value: TraitValue::Int(n) },
                Trait { key: "m", value: TraitValue::Int(m) },
            ];
            let mut scratch = EvaluationScratch::default();
            evaluate(environment.program(), &Identity { identifier: "u", traits: &traits }, &mut scratch);
            let value = render::results(environment.program(), Role::Server, &scratch)
                .next()
                .unwrap()
                .value
                .to_owned();
            assert_eq!(value, best.map_or("\"x\"".to_owned(), |number| number.to_string()), "{n} {m}");
        }
    }
}

#[test]
fn changed_flags_are_those_with_another_state_than_their_own() {
    let names = ["a", "b", "c", "d", "e", "f"];
    let states = |value: &str| -> Vec<Json> {
        let own = |(id, name): (u32, &&str)| state(id, name, &json!(format!("{value} {name}")));
        (1..).zip(&names).map(own).collect()
    };
    // The states of identity overrides are compiled first, so that they shift those of features and segments.
    for count in 0..8 {
        let overrides: Vec<Json> = (0..count)
            .map(|number| {
                let own = state(1, "a", &json!(number));
                json!({"identifier": format!("vip{number}"), "identity_features": [own]})
            })
            .collect();
        let mut document = document();
        document["feature_states"] = states("own").into();
        document["identity_overrides"] = overrides.into();
        document["project"] = json!({"segments": [{"id": 1, "name": "s", "feature_states": states("segment"),
            "rules": [{"type": "ALL", "conditions": [{"property_": "t", "operator": "EQUAL", "value": "1"}]}]}]});
        let environment = compile(&document);
        for (t, expected, changed) in [(0, "own", 0), (1, "segment", 0b11_1111)] {
            let traits = [Trait { key: "t", value: TraitValue::Int(t) }];
            let mut scratch = EvaluationScratch::default();
            evaluate(environment.program(), &Identity { identifier: "u", traits: &traits }, &mut scratch);
            assert_eq!(scratch.changed(), [changed], "{count} overrides, t = {t}");
            let mut out = Vec::new();
            render::write(environment.program(), Role::Server, &scratch, None, &mut out);
            let flags: Vec<Json> = serde_json::from_slice(&out).unwrap();
            let values: Vec<&str> =
                flags.iter().map(|flag| flag["feature_state_value"].as_str().unwrap()).collect();
            assert_eq!(values, names.map(|name| format!("{expected} {name}")), "{count} overrides");
        }
    }
}

#[test]
fn a_segment_is_evaluated_once_however_many_flags_it_overrides() {
    let (flags, conditions) = (50, 100);
    let states: Vec<Json> = (1..=flags).map(|id| state(id, &format!("f{id}"), &json!("s"))).collect();
    let condition =
        |number| json!({"property_": "t", "operator": "CONTAINS", "value": format!("no {number}")});
    let conditions: Vec<Json> = (0..conditions).map(condition).collect();
    for (last, expected) in [("no", "x"), ("yes", "s")] {
        let mut conditions = conditions.clone();
        conditions.push(json!({"property_": "t", "operator": "CONTAINS", "value": last}));
        let mut document = document();
        document["feature_states"] =
            (1..=flags).map(|id| state(id, &format!("f{id}"), &json!("x"))).collect();
        document["identity_overrides"] = json!([]);
        document["project"]["segments"] = json!([{"id": 1, "name": "s", "feature_states": states,
            "rules": [{"type": "ANY", "conditions": conditions}]}]);
        let environment = compile(&document);
        let traits = [Trait { key: "t", value: TraitValue::Text("yes") }];
        let mut scratch = EvaluationScratch::default();
        work::take();
        evaluate(environment.program(), &Identity { identifier: "u", traits: &traits }, &mut scratch);
        let work = work::take().free;
        assert!(work < 1000, "{work} steps for {} conditions", conditions.len());
        let results = render::results(environment.program(), Role::Server, &scratch);
        results.for_each(|flag| assert_eq!(flag.value, format!("\"{expected}\"")));
    }
}

#[test]
fn flags_that_nothing_overrides_are_not_visited_one_by_one() {
    let states: Vec<Json> = (1..=2000).map(|id| state(id, &format!("f{id}"), &json!("x"))).collect();
    let mut document = document();
    document["feature_states"] = states.into();
    document["identity_overrides"] = json!([]);
    document["project"]["server_key_only_feature_ids"] = json!([]);
    document["project"]["segments"] = json!([{"id": 1, "name": "s", "feature_states": [state(7, "f7", &json!("s"))],
        "rules": [{"type": "ALL", "conditions": [{"property_": "t", "operator": "EQUAL", "value": "1"}]}]}]);
    let environment = compile(&document);
    let traits = [Trait { key: "t", value: TraitValue::Int(1) }];
    let mut scratch = EvaluationScratch::default();
    work::take();
    evaluate(environment.program(), &Identity { identifier: "u", traits: &traits }, &mut scratch);
    let steps = work::take().free;
    assert!(steps < 100, "{steps} steps");
    let mut out = b"what is sent before".to_vec();
    let head = out.len();
    render::write(environment.program(), Role::Server, &scratch, None, &mut out);
    let steps = work::take().free;
    // Builds without debug assertions count nothing.
    let expected = if cfg!(debug_assertions) { 1 + (out.len() - 1 - head) / work::BYTES_PER_STEP } else { 0 };
    assert!(steps.abs_diff(expected as u64) < 10, "{steps} steps for {} bytes", out.len());
    let flags: Vec<Json> = serde_json::from_slice(&out[head..]).unwrap();
    assert_eq!(flags.len(), 2000);
    assert!(flags.iter().enumerate().all(|(at, flag)| (flag["feature_state_value"] == "s") == (at + 1 == 7)));
}

#[test]
fn feature_ids_are_looked_up_as_numbers() {
    // A dict of Python finds `2` under `2.0`, and the other way round.
    for (own, listed) in [(json!(2), json!(2.0)), (json!(2.0), json!(2)), (json!(1), json!(true))] {
        let mut document = document();
        let segment_state = state(7, "b", &json!("s"));
        document["project"]["segments"] = json!([{"id": 1, "name": "all", "feature_states": [segment_state],
            "rules": [{"type": "ALL"}]}]);
        document["feature_states"][0]["feature"]["id"] = 9.into();
        document["feature_states"][1]["feature"] = json!({"id": own, "name": "b", "type": "MULTIVARIATE"});
        document["project"]["segments"][0]["feature_states"][0]["feature"]["id"] = listed.clone();
        if !listed.is_boolean() {
            let flags = identities(&compile(&document), Role::Server, "u");
            assert!(
                flags.contains(&format!("{{\"id\":{listed},\"name\":\"b\",\"type\":\"MULTIVARIATE\"}}")),
                "{flags}"
            );
        }
        document["project"]["segments"] = json!([]);
        document["project"]["server_key_only_feature_ids"] = json!([listed]);
        let environment = compile(&document);
        assert!(environment.flag(Role::Server, "b").is_some());
        assert!(environment.flag(Role::Client, "b").is_none(), "{own} {listed}");
        assert!(!identities(&environment, Role::Client, "u").contains("\"b\""), "{own} {listed}");
    }
}

#[test]
fn conditions_read_members_of_flags_as_they_are() {
    for (member, operator, value, matches) in [
        ("enabled", "IS_SET", "", false),
        ("enabled", "IS_NOT_SET", "", true),
        ("metadata.id", "EQUAL", "2", true),
        ("metadata.id", "EQUAL", "2.50", false),
        ("metadata.id", "LESS_THAN", "2.75", true),
    ] {
        let mut document = document();
        document["feature_states"][1]["enabled"] = Json::Null;
        let id = if value.contains('.') { json!(2.25) } else { json!(2) };
        document["feature_states"][1]["feature"]["id"] = id;
        document["project"]["segments"] = json!([{"id": 1, "name": "s", "feature_states": [state(1, "a", &json!("s"))],
            "rules": [{"type": "ALL", "conditions": [
                {"property_": format!("$.flags.b.{member}"), "operator": operator, "value": value}]}]}]);
        let flags = identities(&compile(&document), Role::Server, "u");
        assert_eq!(flags.contains("segment=s"), matches, "{member} {operator} {value}: {flags}");
    }
}
