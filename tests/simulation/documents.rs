//! Environment documents whose every value names their version, and the evaluator of this small model.
use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use edge_proxy::engine::program::Role;
use edge_proxy::snapshot::Environment;
use serde_json::Value;

/// In the name and the value of a feature that only server-side keys may read.
pub const HIDDEN: &str = "hidden-of-servers";

/// A document of `version`. Features: `version` has its number; `colour` is blue, red in the segment of those
/// over 17, and gold for the identity `vip`; `split` has two variants; one is for servers only.
pub fn document(client_side_key: &str, version: u32, updated_at: SystemTime) -> Vec<u8> {
    let state = |id: u32, name: &str, value: &str, variants: &str| {
        format!(
            r#"{{"id":{id},"django_id":{id},"featurestate_uuid":"00000000-0000-4000-8000-{id:012}","feature":{{"id":{id},"name":"{name}","type":"STANDARD"}},"enabled":true,"feature_state_value":{value},"feature_segment":null,"multivariate_feature_state_values":[{variants}]}}"#
        )
    };
    let variant = format!(
        r#"{{"id":1,"mv_fs_value_uuid":"00000000-0000-4000-8000-000000000009","percentage_allocation":50.0,"multivariate_feature_option":{{"id":1,"value":"b-{client_side_key}-{version}"}}}}"#
    );
    let quoted = |text: &str| format!("\"{text}-{client_side_key}-{version}\"");
    let states = [
        state(1, "version", &version.to_string(), ""),
        state(2, "colour", &quoted("blue"), ""),
        state(3, HIDDEN, &quoted(HIDDEN), ""),
        state(4, "split", &quoted("a"), &variant),
    ];
    let updated_at = time_text(updated_at);
    format!(
        r#"{{"id":1,"api_key":"{client_side_key}","name":"Played","updated_at":"{updated_at}","project":{{"id":1,"name":"Played","hide_disabled_flags":false,"server_key_only_feature_ids":[3],"organisation":{{"id":1,"name":"Played","feature_analytics":false,"stop_serving_flags":false,"persist_trait_data":true}},"segments":[{{"id":1,"name":"grown","feature_states":[{red}],"rules":[{{"type":"ALL","conditions":[],"rules":[{{"type":"ANY","rules":[],"conditions":[{{"operator":"GREATER_THAN","property_":"age","value":"17"}}]}}]}}]}}]}},"feature_states":[{states}],"identity_overrides":[{{"identifier":"vip","environment_api_key":"{client_side_key}","created_date":"2026-01-01T00:00:00Z","identity_uuid":"00000000-0000-4000-8000-000000000000","identity_traits":[],"django_id":null,"identity_features":[{gold}]}}]}}"#,
        red = state(2, "colour", &quoted("red"), ""),
        gold = state(2, "colour", &quoted("gold"), ""),
        states = states.join(","),
    )
    .into_bytes()
}

fn time_text(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let time = time::OffsetDateTime::from_unix_timestamp(seconds.as_secs() as i64).expect("this century");
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}+00:00",
        time.year(),
        u8::from(time.month()),
        time.day(),
        time.hour(),
        time.minute(),
        time.second(),
        seconds.subsec_micros()
    )
}

/// What is served of a document whose key, version and time occur once per use, so that others replace them.
struct Template {
    client_flags: String,
    server_flags: String,
    document: String,
}

const TEMPLATE_KEY: &str = "client-template";
const TEMPLATE_VERSION: u32 = 4_000_000_001;
const TEMPLATE_TIME: SystemTime = UNIX_EPOCH;

static TEMPLATE: LazyLock<Template> = LazyLock::new(|| {
    let document = document(TEMPLATE_KEY, TEMPLATE_VERSION, TEMPLATE_TIME);
    let environment = Environment::compile(document).expect("a valid document").0;
    let text = |body: &[u8]| String::from_utf8(body.to_vec()).expect("JSON is text");
    Template {
        client_flags: text(&environment.flags(Role::Client).plain),
        server_flags: text(&environment.flags(Role::Server).plain),
        document: text(&environment.document().plain),
    }
});

fn fill(template: &str, client_side_key: &str, version: u32) -> String {
    template
        .replace(TEMPLATE_KEY, client_side_key)
        .replace(&TEMPLATE_VERSION.to_string(), &version.to_string())
}

/// The body of `/flags/` of this version.
pub fn flags_body(client_side_key: &str, version: u32, is_server: bool) -> String {
    let template = if is_server { &TEMPLATE.server_flags } else { &TEMPLATE.client_flags };
    fill(template, client_side_key, version)
}

/// The document of this version as the proxy serves it.
pub fn served_document(client_side_key: &str, version: u32, updated_at: SystemTime) -> String {
    let document = TEMPLATE.document.replace(&time_text(TEMPLATE_TIME), &time_text(updated_at));
    fill(&document, client_side_key, version)
}

/// The two pages of a document: the second has the overrides.
pub fn pages(document: &[u8]) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let text = std::str::from_utf8(document).expect("a document");
    let at = text.find("\"identity_overrides\":").expect("its last member") + "\"identity_overrides\":".len();
    let overrides = &text[at..text.len() - 1];
    let first = format!("{}[]}}", &text[..at]);
    let second = format!("{{\"identity_overrides\":{overrides}}}");
    (first.into_bytes(), second.into_bytes(), document.to_vec())
}

/// The time of an edit in milliseconds, as documents have it.
pub fn whole_millis(time: SystemTime) -> SystemTime {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    UNIX_EPOCH + Duration::from_millis(since.as_millis() as u64)
}

/// The version that a list of flags is of. `identity`: the identifier and the age of its evaluation.
///
/// # Errors
/// The flags are not those of one version of the model.
pub fn version_of(
    key: &str,
    flags: &Value,
    identity: Option<(&str, u64)>,
    is_server: bool,
) -> Result<u32, String> {
    let list = flags.as_array().ok_or("not a list of flags")?;
    let of = |name: &str| {
        list.iter().find(|flag| flag["feature"]["name"] == name).map(|flag| &flag["feature_state_value"])
    };
    let version = of("version").and_then(Value::as_u64).ok_or("no version")? as u32;
    let text = |name: &str| of(name).and_then(Value::as_str).unwrap_or("none").to_owned();
    let colour = match identity {
        Some(("vip", _)) => "gold",
        Some((_, age)) if age > 17 => "red",
        _ => "blue",
    };
    let mut wrong = Vec::new();
    if text("colour") != format!("{colour}-{key}-{version}") {
        wrong.push(format!("colour is {}, {colour} of version {version} expected", text("colour")));
    }
    let is_split = text("split") == format!("a-{key}-{version}")
        || identity.is_some() && text("split") == format!("b-{key}-{version}");
    if !is_split {
        wrong.push(format!("split is {} in version {version}", text("split")));
    }
    let hidden = if is_server { format!("{HIDDEN}-{key}-{version}") } else { "none".into() };
    if text(HIDDEN) != hidden {
        wrong.push(format!("the feature of servers is {}, {hidden} expected", text(HIDDEN)));
    }
    if list.len() != if is_server { 4 } else { 3 } {
        wrong.push(format!("{} flags", list.len()));
    }
    if wrong.is_empty() { Ok(version) } else { Err(wrong.join("; ")) }
}
