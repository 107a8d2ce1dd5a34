//! Environment documents in which every value contains the document's revision.
use serde_json::{Value, json};

use crate::support::document::{for_key, override_of};

/// Environments of the run: client-side and server-side keys.
pub const ENVIRONMENTS: [(&str, &str); 3] = [
    ("soak-client-key-0", "ser.soak-server-key-0"),
    ("soak-client-key-1", "ser.soak-server-key-1"),
    ("soak-client-key-2", "ser.soak-server-key-2"),
];
/// An environment that a reload adds and the next one removes.
pub const ADDED: (&str, &str) = ("soak-client-key-added", "ser.soak-server-key-added");

const FEATURES: u32 = 50;
/// Revisions take turns at these counts, so that documents grow and shrink.
const OVERRIDES: [u32; 3] = [20, 60, 100];
const REVISION: &str = "@revision";
const TIME: &str = "@time";

/// The documents of one environment, with marks in the places of revision and time.
pub struct Template(Vec<String>);

impl Template {
    pub fn new(client_side_key: &str) -> Self {
        Self(OVERRIDES.iter().map(|count| template(client_side_key, *count).to_string()).collect())
    }

    /// The document of a revision, which is published at that second of 2026.
    pub fn revision(&self, number: u32) -> String {
        let template = &self.0[number as usize % self.0.len()];
        let time = httpdate::parse_http_date(FIRST_MODIFIED).expect("a date");
        let time = time::OffsetDateTime::from(time) + time::Duration::seconds(number.into());
        let time = time.format(&time::format_description::well_known::Rfc3339).expect("a time of this year");
        template.replace(REVISION, &number.to_string()).replace(TIME, &time)
    }
}

/// `Last-Modified` of revision 0.
pub const FIRST_MODIFIED: &str = "Thu, 01 Jan 2026 00:00:00 GMT";

fn template(client_side_key: &str, overrides: u32) -> Value {
    let mut document = for_key(client_side_key, 0);
    let value = json!(format!("r{REVISION}"));
    document["updated_at"] = json!(TIME);
    let state = document["feature_states"][1].clone();
    let states = (0..FEATURES).map(|number| {
        let mut state = state.clone();
        state["id"] = json!(100 + number);
        state["django_id"] = state["id"].clone();
        state["featurestate_uuid"] = json!(format!("00000000-0000-4000-8000-{:012}", 100 + number));
        state["feature"] =
            json!({"id": 100 + number, "name": format!("feature_{number}"), "type": "STANDARD"});
        state
    });
    let states: Vec<Value> = states.collect();
    document["feature_states"].as_array_mut().expect("a list").extend(states);
    document["project"]["segments"] = (0..8).map(|number| segment(&document, number)).collect();
    document["identity_overrides"] =
        (0..overrides).map(|number| override_of(&format!("user-{number}"), number)).collect();
    set_values(&mut document, &value);
    document
}

/// A segment that overrides feature `colour`, for identities whose trait `age` is above its bound.
fn segment(document: &Value, number: u32) -> Value {
    let mut segment = document["project"]["segments"][0].clone();
    segment["id"] = json!(10 + number);
    segment["name"] = json!(format!("segment_{number}"));
    segment["rules"][0]["rules"][0]["conditions"][0]["value"] = json!((number * 10).to_string());
    segment
}

/// Gives every flag of the document this value.
fn set_values(document: &mut Value, value: &Value) {
    match document {
        Value::Object(fields) => {
            for (name, field) in fields.iter_mut() {
                if name == "feature_state_value" { field.clone_from(value) } else { set_values(field, value) }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| set_values(item, value)),
        _ => {}
    }
}

/// The revision of the values in a response; an error unless there is exactly one.
pub fn revision_of(body: &[u8]) -> Result<u32, String> {
    let text = String::from_utf8_lossy(body);
    let number = |rest: &str| rest.split('"').next().and_then(|digits| digits.parse::<u32>().ok());
    let mut found = text.split("\"r").skip(1).filter_map(number);
    let first = found.next().ok_or_else(|| format!("no value in {}", cut(&text)))?;
    match found.find(|other| *other != first) {
        Some(other) => Err(format!("values of revisions {first} and {other}")),
        None => Ok(first),
    }
}

pub fn cut(text: &str) -> String {
    text.chars().take(200).collect()
}
