//! What `render-config --all` and `--schema` print, made of the table of settings.
use serde_json::{Map, Value, json};

use crate::config::settings::{SETTINGS, Setting, split_path};

/// Editors offer the schema for a file that names it as `$schema`; the proxy ignores that member.
pub const SCHEMA_MEMBER: &str = "$schema";

/// JSON Schema of `config.json`, draft 7, which all editors support.
pub fn schema() -> Value {
    let mut root = object_schema();
    for setting in SETTINGS {
        let (parent, name) = split_path(setting.path);
        for alias in setting.aliases {
            add_property(&mut root, parent, alias, alias_schema(setting));
        }
        add_property(&mut root, parent, name, setting_schema(setting));
    }
    let own = json!({"type": "string", "description": "The path or URL of this schema."});
    add_property(&mut root, "", SCHEMA_MEMBER, own);
    root[SCHEMA_MEMBER] = "http://json-schema.org/draft-07/schema#".into();
    root["title"] = "Configuration of edge-proxy".into();
    root["description"] = "Written by `edge-proxy render-config --schema`. Numbers, booleans and lists are \
                           also accepted as text, as environment variables have them; the schema has their \
                           JSON form only."
        .into();
    root
}

/// A configuration with every setting at its default. `environments` is the value of
/// `environment_key_pairs`, which has no default that serves anything.
pub fn all_settings(environments: Value) -> Value {
    let mut root = Value::Object(Map::new());
    for setting in SETTINGS {
        let place = setting.path.split('.').fold(&mut root, |place, name| &mut place[name]);
        *place = default_of(setting);
    }
    root["environment_key_pairs"] = environments;
    root
}

fn object_schema() -> Value {
    json!({"type": "object", "properties": {}, "additionalProperties": false})
}

/// Adds a property to the object at `parent`, such as `server.tls.`; objects on the way are created.
fn add_property(root: &mut Value, parent: &str, name: &str, schema: Value) {
    let mut place = root;
    for group in parent.split('.').filter(|group| !group.is_empty()) {
        place = &mut place["properties"][group];
        if place.is_null() {
            *place = object_schema();
            // The proxy reads a group that is null as an empty one.
            place["type"] = json!(["object", "null"]);
        }
    }
    place["properties"][name] = schema;
}

fn setting_schema(setting: &Setting) -> Value {
    let mut schema = setting.kind.schema();
    let restart = if setting.needs_restart.is_some() { " A change needs a restart." } else { "" };
    let variable = setting.own_variable();
    schema["description"] = format!("{} Environment variable: {variable}.{restart}", setting.meaning).into();
    schema["default"] = default_of(setting);
    schema
}

fn alias_schema(setting: &Setting) -> Value {
    let mut schema = setting.kind.schema();
    schema["description"] = format!("Another name of {}.", setting.path).into();
    schema
}

fn default_of(setting: &Setting) -> Value {
    serde_json::from_str(setting.default).unwrap_or_default()
}
