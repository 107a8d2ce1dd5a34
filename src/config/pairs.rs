//! One member of `environment_key_pairs`.
//!
//! In: the object as written. Out: an environment to serve, or every mistake in the object.
//! Invariant: what is told of a key is never more than its first characters; a pair with a
//! document on disk may do without a server-side key, any other may not.
use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::config::settings::{RawConfig, SettingSource, shown};
use crate::config::{ConfigIssue, ConfigWarning, EnvironmentConfig, Secret, parse, suggest};

const MEMBERS: [&str; 3] = ["client_side_key", "server_side_key", "document_path"];

/// Reads the pair at `path`; mistakes and notices go to `written`.
pub fn read(
    path: &str,
    pair: &Value,
    origin: &SettingSource,
    written: &mut RawConfig,
) -> Option<EnvironmentConfig> {
    let Some(object) = pair.as_object() else {
        let expected = "an object with server_side_key and client_side_key";
        written.mistakes.push(ConfigIssue::new(path, shown(pair, true), origin, expected));
        return None;
    };
    for name in object.keys().filter(|name| !MEMBERS.contains(&name.as_str())) {
        let hint = suggest::member(name, &MEMBERS);
        written.notices.push(ConfigWarning::unknown_setting(format!("{path}.{name}"), origin, hint));
    }
    let mut reader = PairReader { path, object, origin, mistakes: &mut written.mistakes };
    let document_path = reader.document_path();
    let client_side_key = reader.client_side_key();
    let server_side_key = reader.server_side_key(document_path != Ok(None));
    Some(EnvironmentConfig {
        client_side_key: client_side_key.ok()?,
        server_side_key: server_side_key.ok()?,
        further_server_side_keys: Vec::new(),
        document_path: document_path.ok()?,
        embedded_document: None,
    })
}

/// The mistake is in the list already.
#[derive(Debug, PartialEq, Eq)]
struct Reported;

struct PairReader<'a> {
    path: &'a str,
    object: &'a Map<String, Value>,
    origin: &'a SettingSource,
    mistakes: &'a mut Vec<ConfigIssue>,
}

impl PairReader<'_> {
    fn document_path(&mut self) -> Result<Option<PathBuf>, Reported> {
        let written = self.object.get("document_path").unwrap_or(&Value::Null);
        parse::optional_path(written).map_err(|expected| self.refuse("document_path", expected))
    }

    fn client_side_key(&mut self) -> Result<String, Reported> {
        let expected = match self.key("client_side_key") {
            Some(key) if key.starts_with("ser.") => {
                "the client-side key; this one is a server-side key (\"ser.\"): are the two swapped?"
            }
            Some(key) => return Ok(key.to_owned()),
            None => "the environment's client-side key",
        };
        Err(self.refuse("client_side_key", expected))
    }

    fn server_side_key(&mut self, has_document: bool) -> Result<Option<Secret>, Reported> {
        match self.key("server_side_key") {
            Some(key) if key.starts_with("ser.") => Ok(Some(Secret::new(key))),
            None if has_document && self.object.get("server_side_key").is_none_or(Value::is_null) => Ok(None),
            _ => Err(self.refuse("server_side_key", "a server-side key, which starts with \"ser.\"")),
        }
    }

    fn key(&self, name: &str) -> Option<&str> {
        parse::key(self.object.get(name)?.as_str()?).ok()
    }

    fn refuse(&mut self, name: &str, expected: &str) -> Reported {
        let value = match self.object.get(name) {
            None | Some(Value::Null) => String::new(),
            Some(value) => shown(value, name != "document_path"),
        };
        self.mistakes.push(ConfigIssue::new(format!("{}.{name}", self.path), value, self.origin, expected));
        Reported
    }
}
