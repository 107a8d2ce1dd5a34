//! One member of `environment_key_pairs`.
//!
//! A pair with `document_path` may omit the server-side key. Messages show only the start of a key.
use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::config::issue::{ConfigIssue, ConfigWarning, SettingSource};
use crate::config::raw::{RawConfig, printable};
use crate::config::secret::Secret;
use crate::config::types::EnvironmentConfig;
use crate::config::{parse, suggest};

const MEMBERS: [&str; 3] = ["client_side_key", "server_side_key", "document_path"];

/// Reads the pair at `path`. Issues and warnings are added to `raw`.
pub fn read(
    path: &str,
    pair: &Value,
    source: &SettingSource,
    raw: &mut RawConfig,
) -> Option<EnvironmentConfig> {
    let source = raw.located(path, source);
    let Some(object) = pair.as_object() else {
        let expected = "an object with server_side_key and client_side_key";
        raw.issues.push(ConfigIssue::new(path, Some(printable(pair, true)), &source, expected));
        return None;
    };
    for name in object.keys().filter(|name| !MEMBERS.contains(&name.as_str())) {
        let (path, hint) = (format!("{path}.{name}"), suggest::member(name, &MEMBERS));
        let source = raw.located(&path, &source);
        raw.warnings.push(ConfigWarning::unknown_setting(path, &source, hint));
    }
    let mut reader = PairReader { path, object, source: &source, raw };
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

/// An error that was added to the issues.
#[derive(Debug, PartialEq, Eq)]
struct Reported;

struct PairReader<'a> {
    path: &'a str,
    object: &'a Map<String, Value>,
    source: &'a SettingSource,
    raw: &'a mut RawConfig,
}

impl PairReader<'_> {
    fn document_path(&mut self) -> Result<Option<PathBuf>, Reported> {
        let value = self.object.get("document_path").unwrap_or(&Value::Null);
        parse::optional_path(value).map_err(|expected| self.reject("document_path", expected))
    }

    fn client_side_key(&mut self) -> Result<String, Reported> {
        let expected = match self.key("client_side_key") {
            Some(key) if key.starts_with("ser.") => {
                "a client-side key, not a server-side key (\"ser.\"); check that the two are not swapped"
            }
            Some(key) => return Ok(key.to_owned()),
            None => "the client-side key of the environment",
        };
        Err(self.reject("client_side_key", expected))
    }

    fn server_side_key(&mut self, has_document: bool) -> Result<Option<Secret>, Reported> {
        match self.key("server_side_key") {
            Some(key) if key.starts_with("ser.") => Ok(Some(Secret::new(key))),
            None if has_document && self.object.get("server_side_key").is_none_or(Value::is_null) => Ok(None),
            _ => Err(self.reject("server_side_key", "a server-side key, which starts with \"ser.\"")),
        }
    }

    fn key(&self, name: &str) -> Option<&str> {
        parse::key(self.object.get(name)?.as_str()?).ok()
    }

    fn reject(&mut self, name: &str, expected: &str) -> Reported {
        let value = match self.object.get(name) {
            None | Some(Value::Null) => None,
            Some(value) => Some(printable(value, name != "document_path")),
        };
        let path = format!("{}.{name}", self.path);
        let line_of = if value.is_some() { path.as_str() } else { self.path };
        let source = self.raw.located(line_of, self.source);
        self.raw.issues.push(ConfigIssue::new(path, value, &source, expected));
        Reported
    }
}
