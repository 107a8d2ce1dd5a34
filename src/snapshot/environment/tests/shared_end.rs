//! Large responses that end in shared memory have the bytes of those that are rendered whole.
use super::*;
use crate::limits::TAIL_BYTES_MIN;

/// An environment of `features` with long values. The features at `variants` have two variants, and those at
/// `overridden` are overridden for `user-N`, N being the position.
fn environment(features: usize, overridden: &[usize], variants: &[usize]) -> Environment {
    let state = |at: usize, value: &str, variants: &str| {
        format!(
            r#"{{"feature": {{"id": {at}, "name": "f{at}", "type": "STANDARD"}}, "enabled": true,
            "django_id": {at}, "featurestate_uuid": "u{at}", "feature_segment": null,
            "feature_state_value": "{value}{}", "multivariate_feature_state_values": [{variants}]}}"#,
            "v".repeat(150)
        )
    };
    let split = |id: usize| {
        format!(
            r#"{{"id": {id}, "percentage_allocation": 50.0, "mv_fs_value_uuid": "m{id}",
            "multivariate_feature_option": {{"id": {id}, "value": "variant-{id}"}}}}"#
        )
    };
    let states: Vec<String> = (0..features)
        .map(|at| match variants.contains(&at) {
            true => state(at, "", &[split(at * 10 + 1), split(at * 10 + 2)].join(",")),
            false => state(at, "", ""),
        })
        .collect();
    let overrides: Vec<String> = overridden
        .iter()
        .map(|at| {
            let state = state(*at, "changed", "");
            format!(
                r#"{{"identifier": "user-{at}", "identity_uuid": "i{at}", "environment_api_key": "k",
                "created_date": "2024-01-01T00:00:00Z", "identity_features": [{state}]}}"#
            )
        })
        .collect();
    let document = format!(
        r#"{{"id": 1, "name": "e", "api_key": "k", "project": {{"id": 1, "name": "p", "hide_disabled_flags": false,
        "organisation": {{"id": 1, "name": "o"}}, "segments": []}}, "feature_states": [{}],
        "identity_overrides": [{}]}}"#,
        states.join(","),
        overrides.join(",")
    );
    Environment::compile(document.as_bytes()).expect("a valid document").0
}

/// The flags and the end of the object, whole and with a shared end; and the length of that end.
fn rendered(environment: &Environment, role: Role, identifier: &str) -> (Vec<u8>, Vec<u8>, usize) {
    let mut scratch = EvaluationScratch::default();
    let identity = Identity { identifier, traits: &[] };
    evaluate(environment.program(), &identity, &mut scratch);
    let (mut whole, mut start) = (Vec::new(), Vec::new());
    render::write(environment.program(), role, &scratch, None, &mut whole);
    whole.push(b'}');
    let shared = environment.shared_end().expect("it is large");
    let Some(at) = render::write_start(environment.program(), role, &scratch, &mut start) else {
        assert!(start.is_empty());
        return (whole.clone(), whole, 0);
    };
    start.extend_from_slice(&shared[at..]);
    (whole, start, shared.len() - at)
}

#[test]
fn shared_ends_are_the_bytes_of_whole_responses() {
    const FEATURES: usize = 400;
    let overridden = [0, 1, 63, 64, 65, 120, 250, 330, FEATURES - 1];
    let environment = environment(FEATURES, &overridden, &[3, 64]);
    let mut shared_bytes = Vec::new();
    for role in [Role::Server, Role::Client] {
        for identifier in overridden.map(|at| format!("user-{at}")).iter().chain([&"other".to_owned()]) {
            let (whole, parts, shared) = rendered(&environment, role, identifier);
            assert!(whole == parts, "{identifier} {role:?}");
            let json: Json = serde_json::from_slice(&whole[..whole.len() - 1]).expect("JSON");
            assert_eq!(json.as_array().map(Vec::len), Some(FEATURES));
            assert!(shared == 0 || (whole.len() - shared >= TAIL_BYTES_MIN && shared >= TAIL_BYTES_MIN));
            shared_bytes.push(shared);
        }
    }
    let expected_none = overridden.iter().position(|at| *at == FEATURES - 1).unwrap();
    assert_eq!(shared_bytes[expected_none], 0, "the last flag is changed");
    assert!(shared_bytes[0] > TAIL_BYTES_MIN * 4, "{shared_bytes:?}");
    assert!(shared_bytes[7] < shared_bytes[6] && shared_bytes[7] >= TAIL_BYTES_MIN, "{shared_bytes:?}");
}

#[test]
fn small_environments_have_no_shared_end() {
    assert!(environment(20, &[], &[]).shared_end().is_none());
}
