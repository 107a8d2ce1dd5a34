use serde_json::json;

use super::*;
use crate::engine::evaluate::Trait;
use crate::engine::render::CIRCULAR_DEPENDENCY;
use crate::snapshot::Environment;

const DOCUMENT: &str = r#"{"api_key":"env","name":"Env","updated_at":"2024-01-01T00:00:00Z","identity_overrides":[
    {"identifier":"vip","identity_features":[{"feature":{"id":1,"name":"a","type":"STANDARD"},"enabled":true,"feature_state_value":"own"}]}],
  "feature_states":[
    {"feature":{"id":1,"name":"a","type":"STANDARD"},"enabled":false,"feature_state_value":"plain","django_id":1,"featurestate_uuid":"u","multivariate_feature_state_values":[]},
    {"feature":{"id":2,"name":"b","type":"STANDARD"},"enabled":true,"feature_state_value":12345678901234567890123,"django_id":2,"featurestate_uuid":"v","multivariate_feature_state_values":[]}],
  "project":{"segments":[
    {"id":7,"name":"grown","rules":[{"type":"ALL","conditions":[],"rules":[{"type":"ANY","conditions":[
        {"property_":"age","operator":"GREATER_THAN","value":"17"},
        {"property_":"plan","operator":"REGEX","value":"["},
        {"property_":"","operator":"PERCENTAGE_SPLIT","value":"0"},
        {"property_":"$.flags.b.value","operator":"EQUAL","value":"12345678901234567890123"}]}]}],
     "feature_states":[{"feature":{"id":1,"name":"a","type":"STANDARD"},"enabled":true,"feature_state_value":"grown up","django_id":3,"featurestate_uuid":"w","multivariate_feature_state_values":[]}]}]}}"#;

fn explained(identifier: &str, traits: &[Trait<'_>], feature: Option<&str>) -> Explanation {
    let (environment, _) = Environment::compile(DOCUMENT.as_bytes()).expect("a valid document");
    explain(
        environment.program(),
        &environment.document().plain,
        Some(&Identity { identifier, traits }),
        feature,
    )
    .expect("an explanation")
}

#[test]
fn each_condition_shows_its_value() {
    let age = Trait { key: "age", value: TraitValue::Text("018") };
    let found = explained("u", &[age], None);
    let conditions = &found.segments[0].rules[0].rules[0].conditions;
    assert_eq!(
        (&conditions[0].seen, conditions[0].seen_as, conditions[0].matches),
        (&18.into(), "integer", true)
    );
    assert!(conditions[1].note.as_deref().is_some_and(|note| note.contains("unterminated character set")));
    assert!(conditions[2].split_at.is_some_and(|at| (0.0..100.0).contains(&at)));
    assert!(conditions[3].matches && conditions[3].seen == "12345678901234567890123");
    assert!(found.segments[0].matches);
    assert_eq!(found.flags[0].matching_segments, ["grown"]);
    assert_eq!(found.flags[0].reason, "TARGETING_MATCH; segment=grown");
    let text = found.to_string();
    assert!(text.contains("yes age GREATER_THAN \"17\"   seen: 18 (integer)"), "{text}");
}

#[test]
fn one_feature_excludes_the_others() {
    let found = explained("vip", &[], Some("a"));
    assert_eq!((found.flags.len(), found.segments.len()), (1, 1));
    assert!(found.flags[0].identity_override && found.flags[0].value == "own");
    assert!(explained("vip", &[], Some("b")).segments.is_empty());
}

#[test]
fn explains_an_evaluation_without_identity() {
    let (environment, _) = Environment::compile(DOCUMENT.as_bytes()).expect("a valid document");
    let found =
        explain(environment.program(), &environment.document().plain, None, None).expect("an explanation");
    assert_eq!(found.segments[0].rules[0].rules[0].conditions[0].seen_as, "not set");
    assert!(found.segments[0].matches, "flags exist without an identity");
}

/// Explains a document with features `a`, `b` and `c` and segments, given what each reads and overrides.
fn reading_flags(segments: &[(&str, &[(u32, &str)])]) -> Explanation {
    let state = |(id, name): &(u32, &str)| {
        json!({"feature": {"id": id, "name": name, "type": "STANDARD"}, "enabled": true, "feature_state_value": name,
            "featurestate_uuid": "u", "multivariate_feature_state_values": []})
    };
    let segments: Vec<Json> = segments
        .iter()
        .enumerate()
        .map(|(at, (reads, overrides))| {
            let condition = json!({"property_": reads, "operator": "IS_SET", "value": null});
            let states: Vec<Json> = overrides.iter().map(state).collect();
            json!({"id": at, "name": format!("s{at}"), "rules": [{"type": "ALL", "conditions": [condition]}],
                "feature_states": states})
        })
        .collect();
    let states = [(1, "a"), (2, "b"), (3, "c")].map(|feature| state(&feature));
    let document = json!({"api_key": "env", "name": "Env", "feature_states": states,
        "project": {"segments": segments}, "identity_overrides": []});
    let (environment, _) = Environment::compile(document.to_string().as_bytes()).expect("a valid document");
    explain(environment.program(), &environment.document().plain, None, None).expect("an explanation")
}

/// `s1` reads `c`, which reads the cyclic `b`. While `a` is resolved that does not match; when `s1` itself is
/// evaluated, `c` is resolved (compatibility.md 5.12).
#[test]
fn notes_that_a_flag_kept_an_earlier_result() {
    let found = reading_flags(&[
        ("$.flags.a.name", &[]),
        ("$.flags.c.name", &[(1, "a")]),
        ("$.flags.b.name", &[(2, "b"), (3, "c")]),
    ]);
    let a = &found.flags[0];
    assert_eq!((&*a.reason, &a.matching_segments), ("DEFAULT", &vec!["s1".to_owned()]));
    assert!(a.note.is_some() && found.flags[2].note.is_none());
    assert!(found.to_string().contains("matched by: s1\n      a condition read this flag"), "{found}");
    assert_eq!(found.flags[1].reason, CIRCULAR_DEPENDENCY);
}

/// A wildcard finds the flags that earlier conditions have read, as in Python's mapping.
#[test]
fn a_wildcard_finds_the_flags_read_before() {
    let found = reading_flags(&[
        ("$.flags[*].name", &[(1, "a")]),
        ("$.flags.b.name", &[]),
        ("$.flags[*].name", &[(3, "c")]),
    ]);
    let verdicts: Vec<bool> = found.segments.iter().map(|segment| segment.matches).collect();
    assert_eq!(verdicts, [false, true, true]);
    assert_eq!((found.segments[0].note, found.segments[2].note), (Some(EARLIER), None));
    let reasons: Vec<&str> = found.flags.iter().map(|flag| &*flag.reason).collect();
    assert_eq!(reasons, ["DEFAULT", "STATIC", "TARGETING_MATCH; segment=s2"]);
}
