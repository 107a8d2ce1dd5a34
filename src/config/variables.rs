//! The layer of environment variables.
//!
//! Each setting has its own variable, `EDGE_PROXY_` and its path; other names are aliases. An alias that the
//! Python proxy does not read may be a variable of another program: an invalid value of it is ignored with
//! a warning and never prevents the start.
//!
//! A secret is also read from a file that the variable with `_FILE` after its name gives, such as a mounted
//! Secret (`ENVIRONMENT_KEY_PAIRS_FILE`).
use std::fmt;
use std::path::Path;

use serde_json::Value;

use crate::config::issue::{ConfigWarning, SettingSource};
use crate::config::raw::RawConfig;
use crate::config::settings::{PREFIX, SETTINGS, SSL_CERT_FILE, Setting, groups, variable_name};
use crate::config::suggest;
use crate::files;
use crate::files::Links;
use crate::limits::CONFIG_BYTES_MAX;

/// Variables that the Python proxy (pydantic-settings without a nesting delimiter), uvicorn and httpx read.
/// `CONFIG_PATH` and the proxy variables (`HTTPS_PROXY`, ...) are read as well, but are not settings.
const PYTHON: &[&str] = &[
    "ALLOW_ORIGINS",
    "API_POLL_FREQUENCY",
    "API_POLL_FREQUENCY_SECONDS",
    "API_POLL_TIMEOUT",
    "API_POLL_TIMEOUT_SECONDS",
    "API_URL",
    "ENDPOINT_CACHES",
    "ENVIRONMENT_KEY_PAIRS",
    "FORWARDED_ALLOW_IPS",
    "HEALTH_CHECK",
    "LOGGING",
    "SERVER",
    SSL_CERT_FILE,
    "WEB_CONCURRENCY",
];

/// Variables of other platforms and older proxies: the setting, and the variable to use instead.
const RECIPES: &[(&str, &str, &str)] = &[
    ("ENVIRONMENT_API_KEYS", "environment_key_pairs", "ENVIRONMENT_KEY_PAIRS"),
    ("FLAGSMITH_API_URL", "api_url", "API_URL"),
    ("LOG_LEVEL", "logging.log_level", "EDGE_PROXY_LOGGING_LOG_LEVEL"),
    ("PORT", "server.port", "EDGE_PROXY_SERVER_PORT"),
];

/// Variables of this project that start with the prefix and are not settings.
const RESERVED: &[&str] = &["EDGE_PROXY_GIT_SHA", "EDGE_PROXY_SHARED"];

/// A variable of a secret with this after its name gives a file that contains the value, as images on Docker
/// Hub do it.
const FILE_SUFFIX: &str = "_FILE";

/// Names and values.
type Variables = [(String, String)];

/// Adds the values of environment variables. A setting's own variable overrides its aliases, and the variable
/// of a setting (`SERVER_PORT`) overrides that of its group (`SERVER`).
pub fn add(raw: &mut RawConfig, variables: &Variables) {
    let groups = groups();
    for prefix in ["", PREFIX] {
        for group in &groups {
            add_group_variable(raw, variables, group, &format!("{prefix}{}", variable_name(group)));
        }
        for setting in SETTINGS {
            let names: Vec<String> = setting
                .all_variables()
                .filter(|name| name.starts_with(PREFIX) != prefix.is_empty())
                .collect();
            // The names are ordered from the strongest to the weakest.
            for name in names.iter().rev() {
                add_setting_variable(raw, variables, setting, name);
            }
        }
    }
    warn_of_unknown(raw, variables, &groups);
}

fn add_group_variable(raw: &mut RawConfig, variables: &Variables, group: &str, name: &str) {
    let Some((spelled, text)) = find_variable(variables, name) else { return };
    let source = source_of(spelled, name);
    if is_unset(text, &source) {
        return;
    }
    if let Some(value) = parse_value(raw, group, text, &source) {
        raw.add_group(group, value, &source);
    }
}

fn add_setting_variable(raw: &mut RawConfig, variables: &Variables, setting: &'static Setting, name: &str) {
    let file = setting.secret.then(|| add_file_variable(raw, variables, setting, name));
    let Some((spelled, text)) = find_variable(variables, name) else { return };
    let source = source_of(spelled, name);
    if is_unset(text, &source) || (file == Some(true) && text.trim().is_empty()) {
        return;
    }
    if file == Some(true) {
        let expected = format!("not set together with {name}{FILE_SUFFIX}");
        return raw.reject(setting.path, &text.into(), &source, &expected);
    }
    // Kubernetes sets `SERVER_PORT=tcp://10.0.0.1:80` for a service named `server`, and
    // `EDGE_PROXY_ADMIN_PORT` for one named `edge-proxy-admin`.
    if setting.path.ends_with("port") && text.starts_with("tcp://") {
        raw.warnings.push(ConfigWarning::service_link(spelled));
        return;
    }
    if let Some(value) = parse_value(raw, setting.path, text, &source) {
        raw.add(setting.path, value, source);
    }
}

/// Adds the content of the file that `<name>_FILE` gives. Returns whether that variable is set.
fn add_file_variable(
    raw: &mut RawConfig,
    variables: &Variables,
    setting: &'static Setting,
    name: &str,
) -> bool {
    let file_variable = format!("{name}{FILE_SUFFIX}");
    let set = find_variable(variables, &file_variable).filter(|(_, path)| !path.trim().is_empty());
    let Some((spelled, path)) = set else { return false };
    let source = match source_of(spelled, name) {
        SettingSource::Alias { name, .. } => {
            SettingSource::Alias { name, prefixed: format!("{PREFIX}{file_variable}") }
        }
        source => source,
    };
    raw.secret_files.push(path.into());
    match read_secret(Path::new(path)) {
        Ok(text) => {
            if let Some(value) = parse_value(raw, setting.path, &text, &source) {
                raw.add(setting.path, value, source);
            }
        }
        Err(error) => raw.reject_file(setting.path, path, &source, &error.to_string()),
    }
    true
}

/// Why the file of a `..._FILE` variable has no value.
#[derive(Debug)]
enum SecretFileError {
    Read(std::io::Error),
    Encoding,
    Empty,
}

impl fmt::Display for SecretFileError {
    /// Completes the sentence "expected ...".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(error) => write!(f, "a file that can be read ({error})"),
            Self::Encoding => f.write_str("a file of UTF-8 text"),
            Self::Empty => f.write_str("a file that is not empty"),
        }
    }
}

/// The text of a file without white space around it: files usually end with a line feed.
fn read_secret(path: &Path) -> Result<String, SecretFileError> {
    let bytes = files::read(path, Links::Follow, CONFIG_BYTES_MAX).map_err(SecretFileError::Read)?;
    let text = String::from_utf8(bytes).map_err(|_| SecretFileError::Encoding)?;
    match text.trim() {
        "" => Err(SecretFileError::Empty),
        text => Ok(text.to_owned()),
    }
}

/// Text that is not JSON is a string, unless it starts like an object or a list.
fn parse_value(raw: &mut RawConfig, path: &str, text: &str, source: &SettingSource) -> Option<Value> {
    match serde_json::from_str(text) {
        Ok(value) => Some(value),
        Err(error) if text.trim_start().starts_with(['[', '{']) => {
            raw.reject(path, &text.into(), source, &format!("valid JSON ({error})"));
            None
        }
        Err(_) => Some(text.into()),
    }
}

/// Warns of a variable that resembles one of a setting, has the prefix, or is of another platform.
fn warn_of_unknown(raw: &mut RawConfig, variables: &Variables, groups: &[&str]) {
    let prefixed = |name: String| [format!("{PREFIX}{name}"), name];
    let groups = groups.iter().flat_map(|group| prefixed(variable_name(group)));
    let secrets = SETTINGS.iter().filter(|setting| setting.secret).flat_map(Setting::all_variables);
    let files = secrets.map(|name| format!("{name}{FILE_SUFFIX}"));
    let known: Vec<String> =
        SETTINGS.iter().flat_map(Setting::all_variables).chain(files).chain(groups).collect();
    for (name, _) in variables {
        if known.iter().any(|known| is_variable(name, known)) || RESERVED.contains(&name.as_str()) {
            continue;
        }
        if let Some((_, path, instead)) = RECIPES.iter().find(|(recipe, ..)| recipe == name) {
            if raw.value(path).is_none() {
                let hint = format!("this proxy does not read {name}: set {instead}");
                raw.warnings.push(ConfigWarning::unknown_variable(name, &hint));
            }
        } else if let Some(hint) = suggest::variable(name) {
            raw.warnings.push(ConfigWarning::unknown_variable(name, &hint));
        } else if name.starts_with(PREFIX) && !is_service_link(name) {
            let hint = "unknown setting; docs/configuration.md lists all settings";
            raw.warnings.push(ConfigWarning::unknown_variable(name, hint));
        }
    }
}

/// Whether Kubernetes sets the variable in every container for a service whose name starts with `edge-proxy`.
fn is_service_link(name: &str) -> bool {
    ["_SERVICE_HOST", "_SERVICE_PORT", "_PORT"].iter().any(|end| name.ends_with(end))
        || name.contains("_SERVICE_PORT_")
        || name.contains("_TCP")
        || name.contains("_UDP")
}

/// `name` is the canonical name of the variable that is `spelled` in the environment.
fn source_of(spelled: &str, name: &str) -> SettingSource {
    if name.starts_with(PREFIX) || PYTHON.contains(&name) {
        SettingSource::Variable(spelled.to_owned())
    } else {
        SettingSource::Alias { name: spelled.to_owned(), prefixed: format!("{PREFIX}{name}") }
    }
}

/// An empty value is unset, as in compose files with `CACHE_DIR=${CACHE_DIR:-}`. It is a value for a variable
/// that the Python proxy reads, as in pydantic: an empty `API_URL` must not send keys to the default address.
fn is_unset(text: &str, source: &SettingSource) -> bool {
    let is_python = |name: &String| {
        !name.to_ascii_uppercase().starts_with(PREFIX) && !name.eq_ignore_ascii_case(SSL_CERT_FILE)
    };
    text.trim().is_empty() && !matches!(source, SettingSource::Variable(name) if is_python(name))
}

/// Compares without case, and accepts `__` between the parts, as other programs with pydantic do
/// (`SERVER__PORT`).
fn is_variable(spelled: &str, name: &str) -> bool {
    spelled.eq_ignore_ascii_case(name)
        || (spelled.contains("__") && spelled.replace("__", "_").eq_ignore_ascii_case(name))
}

/// The exact spelling in capitals takes precedence.
fn find_variable<'a>(variables: &'a Variables, name: &str) -> Option<(&'a str, &'a str)> {
    let exact = variables.iter().find(|(spelled, _)| spelled == name);
    let any = || variables.iter().find(|(spelled, _)| is_variable(spelled, name));
    exact.or_else(any).map(|(spelled, text)| (spelled.as_str(), text.as_str()))
}
