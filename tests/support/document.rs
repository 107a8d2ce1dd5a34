//! A small environment document whose feature `version` identifies its version.
use serde_json::{Value, json};

/// The client-side key in the document.
pub const CLIENT_KEY: &str = "client-side-key-of-a-test";
pub const SERVER_KEY: &str = "ser.server-side-key-of-a-test";

/// Feature `version` has the value `version`; `updated_at` is that many seconds into 2026.
pub fn document(version: u32) -> String {
    value(version).to_string()
}

/// As [`document`], as a JSON value.
pub fn value(version: u32) -> Value {
    for_key(CLIENT_KEY, version)
}

/// As [`value`], for another environment.
pub fn for_key(client_side_key: &str, version: u32) -> Value {
    let (hour, minute, second) = (version / 3600, version / 60 % 60, version % 60);
    let state = |id: u32, name: &str, value: Value| {
        json!({
            "id": id, "django_id": id, "featurestate_uuid": format!("00000000-0000-4000-8000-{id:012}"),
            "feature": {"id": id, "name": name, "type": "STANDARD"}, "enabled": true,
            "feature_state_value": value, "feature_segment": null, "multivariate_feature_state_values": []
        })
    };
    json!({
        "id": 1, "api_key": client_side_key, "name": "Test",
        "updated_at": format!("2026-01-01T{hour:02}:{minute:02}:{second:02}.000000+00:00"),
        "project": {
            "id": 1, "name": "Test", "hide_disabled_flags": false,
            "organisation": {"id": 1, "name": "Test", "feature_analytics": false, "stop_serving_flags": false, "persist_trait_data": true},
            "segments": [{
                "id": 1, "name": "grown", "feature_states": [state(2, "colour", json!("red"))],
                "rules": [{"type": "ALL", "conditions": [], "rules": [{"type": "ANY", "rules": [], "conditions": [
                    {"operator": "GREATER_THAN", "property_": "age", "value": "17"}
                ]}]}]
            }]
        },
        "feature_states": [state(1, "version", json!(version)), state(2, "colour", json!("blue"))],
        "identity_overrides": [override_of("vip", 1)]
    })
}

/// An identity override that gives `colour` the value `gold-<number>`.
pub fn override_of(identifier: &str, number: u32) -> Value {
    json!({
        "identifier": identifier, "environment_api_key": CLIENT_KEY, "created_date": "2026-01-01T00:00:00Z",
        "identity_uuid": "00000000-0000-4000-8000-000000000000", "identity_traits": [], "django_id": null,
        "identity_features": [{
            "id": 3, "django_id": 3, "featurestate_uuid": "00000000-0000-4000-8000-000000000003",
            "feature": {"id": 2, "name": "colour", "type": "STANDARD"}, "enabled": true,
            "feature_state_value": format!("gold-{number}"), "feature_segment": null, "multivariate_feature_state_values": []
        }]
    })
}
