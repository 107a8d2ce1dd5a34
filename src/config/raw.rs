//! Settings before validation: the JSON values of each setting, from the weakest layer to the strongest,
//! with their sources.
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::config::issue::{ConfigIssue, ConfigWarning, SettingSource};
use crate::config::schema::SCHEMA_MEMBER;
use crate::config::secret::Secret;
use crate::config::settings::{find, find_alias, groups, is_secret};
use crate::config::suggest;

#[derive(Debug, Default)]
pub struct RawConfig {
    /// By the path of the setting; the strongest value is the last.
    values: BTreeMap<&'static str, Vec<(Value, SettingSource)>>,
    /// Lines of the file by the path of the value.
    lines: HashMap<String, usize>,
    pub warnings: Vec<ConfigWarning>,
    pub issues: Vec<ConfigIssue>,
    /// Files that variables name, whose content is a secret.
    pub secret_files: Vec<PathBuf>,
}

impl RawConfig {
    pub fn set_lines(&mut self, lines: HashMap<String, usize>) {
        self.lines = lines;
    }

    /// The source of the value at `path`: adds the line if the source is the file.
    pub fn located(&self, path: &str, source: &SettingSource) -> SettingSource {
        match source {
            SettingSource::File { path: file, .. } => {
                SettingSource::File { path: file.clone(), line: self.lines.get(path).copied() }
            }
            _ => source.clone(),
        }
    }

    /// The strongest value of a setting.
    pub fn value(&self, path: &str) -> Option<(&Value, &SettingSource)> {
        self.values.get(path)?.last().map(|(value, source)| (value, source))
    }

    /// Adds a value that overrides those added before.
    pub fn add(&mut self, path: &'static str, value: Value, source: SettingSource) {
        self.values.entry(path).or_default().push((value, source));
    }

    /// Removes the strongest value of a setting, with a warning, if it comes from an alias. Returns false
    /// if it does not: the caller reports an issue then.
    pub fn drop_alias(&mut self, path: &str, expected: &str) -> bool {
        let Some(layers) = self.values.get_mut(path) else { return false };
        let Some((_, SettingSource::Alias { name, prefixed })) = layers.last() else { return false };
        self.warnings.push(ConfigWarning::ignored_variable(name, expected, prefixed));
        layers.pop();
        true
    }

    /// Adds a note for each alias whose value is used.
    pub fn note_aliases(&mut self) {
        let used = self.values.values().filter_map(|layers| layers.last());
        let mut names: Vec<(String, String)> = used
            .filter_map(|(_, source)| match source {
                SettingSource::Alias { name, prefixed } => Some((name.clone(), prefixed.clone())),
                _ => None,
            })
            .collect();
        names.sort_unstable();
        names.dedup();
        self.warnings.extend(names.iter().map(|(name, prefixed)| ConfigWarning::alias_used(name, prefixed)));
    }

    /// Adds the members of an object. `prefix` is its path with a trailing dot, or empty.
    pub fn add_object(&mut self, prefix: &str, object: Map<String, Value>, source: &SettingSource) {
        // In one object a setting's own name overrides its aliases, as in pydantic.
        let (aliased, named): (Vec<_>, Vec<_>) =
            object.into_iter().partition(|(key, _)| find_alias(prefix, key).is_some());
        for (key, value) in aliased.into_iter().rev() {
            if let Some(setting) = find_alias(prefix, &key) {
                self.add(setting.path, value, self.located(&format!("{prefix}{key}"), source));
            }
        }
        for (key, value) in named {
            if prefix.is_empty() && key == SCHEMA_MEMBER {
                continue;
            }
            let path = format!("{prefix}{key}");
            let source = self.located(&path, source);
            if let Some(setting) = find(&path) {
                self.add(setting.path, value, source);
            } else if groups().contains(&path.as_str()) {
                self.add_group(&path, value, &source);
            } else {
                let hint = suggest::setting(&path);
                self.warnings.push(ConfigWarning::unknown_setting(path, &source, hint));
            }
        }
    }

    pub fn add_group(&mut self, path: &str, value: Value, source: &SettingSource) {
        match value {
            Value::Object(object) => self.add_object(&format!("{path}."), object, source),
            Value::Null => {}
            other => self.reject(path, &other, source, "an object"),
        }
    }

    /// As [`reject`](Self::reject), for a file that contains the value. Its path is not a secret.
    pub fn reject_file(&mut self, path: &str, file: &str, source: &SettingSource, expected: &str) {
        match source {
            SettingSource::Alias { .. } => self.reject(path, &Value::Null, source, expected),
            _ => self.issues.push(ConfigIssue::new(path, Some(file.to_owned()), source, expected)),
        }
    }

    /// Adds an issue, or a warning for an alias.
    pub fn reject(&mut self, path: &str, value: &Value, source: &SettingSource, expected: &str) {
        match source {
            SettingSource::Alias { name, prefixed } => {
                self.warnings.push(ConfigWarning::ignored_variable(name, expected, prefixed));
            }
            _ => {
                let value = Some(printable(value, is_secret(path)));
                self.issues.push(ConfigIssue::new(path, value, source, expected));
            }
        }
    }
}

/// A value for a message: one line, truncated, without secrets.
pub fn printable(value: &Value, is_secret: bool) -> String {
    if is_secret {
        return match value {
            Value::String(text) => format!("\"{}\"", Secret::new(text.as_str())),
            Value::Array(items) => format!("a list of {}", items.len()),
            Value::Object(_) => "an object".to_owned(),
            other => other.to_string(),
        };
    }
    let text = without_password(value.to_string());
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// Replaces the user information of a URL: `https://user:password@host`.
fn without_password(text: String) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    match authority.rfind('@') {
        Some(end) => format!("{scheme}://...{}", &rest[end..]),
        None => text,
    }
}
