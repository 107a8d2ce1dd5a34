//! The document of the endpoint tests.
use serde_json::{Value, json};

pub const CLIENT: &str = "SurfaceClientKey";
pub const SERVER: &str = "ser.surface";

fn state(id: u64, name: &str, enabled: bool, value: Value) -> Value {
    json!({
        "feature": {"id": id, "name": name, "type": "STANDARD"}, "enabled": enabled, "feature_state_value": value,
        "django_id": id, "featurestate_uuid": format!("00000000-0000-4000-8000-{id:012}"), "feature_segment": null,
        "multivariate_feature_state_values": [],
    })
}

/// The document, changed a second later for each `revision`.
pub fn document(revision: u64) -> Value {
    let mut split = state(6, "split", true, json!("control-value"));
    split["multivariate_feature_state_values"] = json!([{
        "id": 1, "percentage_allocation": 100.0, "mv_fs_value_uuid": "00000000-0000-4000-8000-000000000099",
        "multivariate_feature_option": {"id": 1, "value": "variant-value", "key": "b"},
    }]);
    let condition = json!({"operator": "EQUAL", "value": "gold", "property_": "plan"});
    json!({
        "id": 1, "api_key": CLIENT, "name": "Surface", "updated_at": format!("2026-11-20T10:00:{revision:02}.500000+00:00"),
        "allow_client_traits": true, "hide_sensitive_data": false, "hide_disabled_flags": null,
        "feature_states": [
            state(1, "banner", true, json!("hello")), state(2, "on", true, Value::Null), state(3, "off", false, Value::Null),
            state(4, "dark", false, json!("unseen")), state(5, "secret", true, json!(5)), split, state(7, "count", true, json!(revision)),
        ],
        "identity_overrides": [],
        "project": {
            "id": 1, "name": "P", "hide_disabled_flags": false, "server_key_only_feature_ids": [5], "enable_realtime_updates": true,
            "organisation": {"id": 1, "name": "O", "feature_analytics": false, "stop_serving_flags": false, "persist_trait_data": true},
            "segments": [{
                "id": 1, "name": "gold plan", "feature_states": [state(1, "banner", true, json!("golden"))],
                "rules": [{"type": "ALL", "conditions": [], "rules": [{"type": "ANY", "conditions": [condition], "rules": []}]}],
            }],
        },
    })
}
