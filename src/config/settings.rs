//! What is written: settings by path, as found in flags, environment and file, with their origin.
//!
//! In: flags, environment variables, the JSON file. Out: [`RawConfig`], one JSON value for each
//! setting that somebody gave, the strongest layer first (flags > environment > file). Invariant:
//! nothing here judges a value; it only knows the names. Names nobody knows are kept as notices.
//! To add a setting: one line in [`SETTINGS`], one field and one `read` in `config::mod`.
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::config::{ConfigError, ConfigIssue, ConfigWarning, EnvironmentConfig, file, suggest};

/// The names of one setting.
#[derive(Debug)]
pub struct Setting {
    /// Where it stands in the file; `.` separates objects. Its environment variable is `EDGE_PROXY_`
    /// and the path in capitals with `_` for `.` (`EDGE_PROXY_SERVER_PORT`); without the prefix it is
    /// an alias.
    pub path: &'static str,
    /// Other names of the last part of the path, as the Python proxy accepts them.
    pub aliases: &'static [&'static str],
    /// Further environment variables, in full.
    pub variables: &'static [&'static str],
    /// Its value is cut wherever it is shown.
    pub secret: bool,
}

const fn plain(path: &'static str) -> Setting {
    Setting { path, aliases: &[], variables: &[], secret: false }
}

const fn secret(path: &'static str) -> Setting {
    Setting { path, aliases: &[], variables: &[], secret: true }
}

const fn alias(path: &'static str, aliases: &'static [&'static str]) -> Setting {
    Setting { path, aliases, variables: &[], secret: false }
}

const fn variable(path: &'static str, variables: &'static [&'static str]) -> Setting {
    Setting { path, aliases: &[], variables, secret: false }
}

/// Every setting there is. A value that is a list or a free object is one setting.
pub const SETTINGS: &[Setting] = &[
    plain("admin.allowed_hosts"),
    plain("admin.host"),
    plain("admin.port"),
    plain("allow_origins"),
    plain("analytics.enabled"),
    plain("analytics.flush_interval_seconds"),
    // What httpx, and with it the Python proxy, reads.
    variable("api_ca_file", &["SSL_CERT_FILE"]),
    plain("api_client_certificate.cert"),
    plain("api_client_certificate.key"),
    plain("api_document_bytes_max"),
    plain("api_full_refresh_seconds"),
    alias("api_poll_frequency_seconds", &["api_poll_frequency"]),
    alias("api_poll_timeout_seconds", &["api_poll_timeout"]),
    plain("api_url"),
    plain("cache_dir"),
    variable("cores", &["WEB_CONCURRENCY"]),
    plain("discovery_empty_grace_seconds"),
    plain("documents"),
    plain("endpoint_caches"),
    secret("environment_key_pairs"),
    plain("health_check.environment_update_grace_period_seconds"),
    plain("health_check.ready_from_cache"),
    plain("health_check.require"),
    alias("logging.colours", &["colors", "colour", "color"]),
    plain("logging.enable_access_log"),
    plain("logging.log_event_field_name"),
    plain("logging.log_format"),
    plain("logging.log_level"),
    plain("logging.override"),
    secret("proxy_key"),
    plain("realtime.enabled"),
    plain("realtime.url"),
    plain("server.connections_max"),
    variable("server.driver", &["EDGE_PROXY_DRIVER"]),
    variable("server.forwarded_allow_ips", &["FORWARDED_ALLOW_IPS"]),
    plain("server.head_bytes_max"),
    plain("server.host"),
    plain("server.port"),
    plain("server.proxy_headers"),
    plain("server.reload"),
    plain("server.requests_max"),
    plain("server.shutdown_delay_seconds"),
    plain("server.shutdown_grace_seconds"),
    plain("server.take_over"),
    plain("server.tcp"),
    plain("server.timeout_body"),
    plain("server.timeout_head"),
    plain("server.timeout_keep_alive"),
    plain("server.timeout_write"),
    plain("server.tls.cert"),
    plain("server.tls.client_ca"),
    plain("server.tls.key"),
    plain("server.unix_socket"),
    plain("server.unix_socket_mode"),
    plain("sse.max_stream_seconds"),
    plain("usage_flush_interval_seconds"),
];

/// Who gave a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SettingSource {
    /// The flag's name, such as `--port`.
    Flag(&'static str),
    /// The variable's name as it is spelled in the environment.
    Variable(String),
    /// A variable that may belong to another program: it has no prefix, and the Python proxy does not
    /// read it. `own` is the name with the prefix. A wrong value is ignored with a notice.
    Alias {
        name: String,
        own: String,
    },
    File(PathBuf),
}

impl fmt::Display for SettingSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) => f.write_str(name),
            Self::Variable(name) | Self::Alias { name, .. } => write!(f, "environment variable {name}"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Everything the process was started with; kept, so that a reload reads the same again.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// `--config`; `None` means `CONFIG_PATH` or `config.json`.
    pub config_path: Option<PathBuf>,
    /// Set where no file is read at all.
    pub without_file: bool,
    /// Settings given by flags: path, the flag's name, value.
    pub flags: Vec<(&'static str, &'static str, Value)>,
    /// Environment variables.
    pub variables: Vec<(String, String)>,
    /// Set where nothing is to be served, as when only the port is wanted.
    pub may_serve_nothing: bool,
    /// Environments that the program itself brings.
    pub environments: Vec<EnvironmentConfig>,
}

impl Inputs {
    /// Reads the process's environment. A variable that is not UTF-8 is none of ours.
    pub fn from_process() -> Self {
        let variables =
            std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
        Self { variables: variables.collect(), ..Self::default() }
    }

    /// The file that is read, and whether somebody named it.
    pub fn config_file(&self) -> (PathBuf, bool) {
        let named = self.config_path.clone().or_else(|| {
            let is_set = |(name, path): &&(String, String)| name == "CONFIG_PATH" && !path.is_empty();
            let variable = self.variables.iter().find(is_set);
            variable.map(|(_, path)| PathBuf::from(path))
        });
        let is_named = named.is_some();
        (named.unwrap_or_else(|| PathBuf::from("config.json")), is_named)
    }
}

/// The values of each setting that was given.
#[derive(Debug, Default)]
pub struct RawConfig {
    /// Of each setting the values of all layers, the strongest last.
    values: BTreeMap<&'static str, Vec<(Value, SettingSource)>>,
    pub notices: Vec<ConfigWarning>,
    pub mistakes: Vec<ConfigIssue>,
}

impl RawConfig {
    /// Reads all layers, the weakest first, so that a stronger one overwrites it.
    ///
    /// # Errors
    /// The file cannot be read or is not a JSON object; nothing else can be said then.
    pub fn read(inputs: &Inputs) -> Result<Self, ConfigError> {
        let mut written = Self::default();
        let (path, is_named) = inputs.config_file();
        if !inputs.without_file
            && let Some(read) = file::read(&path, is_named)?
        {
            let origin = SettingSource::File(path);
            written
                .notices
                .extend(read.repeated.iter().map(|path| ConfigWarning::repeated_setting(path, &origin)));
            written.add_object("", read.object, &origin);
        }
        written.add_variables(&inputs.variables);
        for (path, flag, value) in &inputs.flags {
            written.add(path, value.clone(), SettingSource::Flag(flag));
        }
        Ok(written)
    }

    /// The strongest value of a setting and who gave it.
    pub fn value(&self, path: &str) -> Option<(&Value, &SettingSource)> {
        self.values.get(path)?.last().map(|(value, origin)| (value, origin))
    }

    /// Adds a value of a layer stronger than those before.
    pub fn add(&mut self, path: &'static str, value: Value, origin: SettingSource) {
        self.values.entry(path).or_default().push((value, origin));
    }

    /// Drops the strongest value of a setting, with a notice, if it is that of an alias. False if it
    /// is not: then it is a mistake.
    pub fn drop_alias(&mut self, path: &str, expected: &str) -> bool {
        let Some(layers) = self.values.get_mut(path) else { return false };
        let Some((_, SettingSource::Alias { name, own })) = layers.last() else { return false };
        self.notices.push(ConfigWarning::ignored_variable(name, expected, own));
        layers.pop();
        true
    }

    /// Reports each alias whose value is used, once.
    pub fn notice_aliases(&mut self) {
        let used = self.values.values().filter_map(|layers| layers.last());
        let mut names: Vec<(String, String)> = used
            .filter_map(|(_, origin)| match origin {
                SettingSource::Alias { name, own } => Some((name.clone(), own.clone())),
                _ => None,
            })
            .collect();
        names.sort_unstable();
        names.dedup();
        self.notices.extend(names.iter().map(|(name, own)| ConfigWarning::alias_used(name, own)));
    }

    fn add_object(&mut self, prefix: &str, object: Map<String, Value>, origin: &SettingSource) {
        // An alias never beats the setting's own name in the same object, as in pydantic.
        let (aliased, named): (Vec<_>, Vec<_>) =
            object.into_iter().partition(|(key, _)| setting_by_alias(prefix, key).is_some());
        for (key, value) in aliased.into_iter().rev() {
            if let Some(setting) = setting_by_alias(prefix, &key) {
                self.add(setting.path, value, origin.clone());
            }
        }
        for (key, value) in named {
            let path = format!("{prefix}{key}");
            if let Some(setting) = SETTINGS.iter().find(|setting| setting.path == path) {
                self.add(setting.path, value, origin.clone());
            } else if is_group(&path) {
                self.add_group(&path, value, origin);
            } else {
                let hint = suggest::setting(&path);
                self.notices.push(ConfigWarning::unknown_setting(path, origin, hint));
            }
        }
    }

    pub fn add_group(&mut self, path: &str, value: Value, origin: &SettingSource) {
        match value {
            Value::Object(object) => self.add_object(&format!("{path}."), object, origin),
            Value::Null => {}
            other => self.refuse_group(path, &other, origin),
        }
    }

    fn refuse_group(&mut self, path: &str, value: &Value, origin: &SettingSource) {
        let expected = "an object";
        match origin {
            SettingSource::Alias { name, own } => {
                self.notices.push(ConfigWarning::ignored_variable(name, expected, own));
            }
            _ => self.mistakes.push(ConfigIssue::new(path, shown(value, is_secret(path)), origin, expected)),
        }
    }
}

/// A value for a message: one line, not too long, and cut if it may hold a secret.
pub fn shown(value: &Value, is_secret: bool) -> String {
    if is_secret {
        return match value {
            Value::String(text) => format!("\"{}\"", super::Secret::new(text.as_str())),
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

/// An address may hold a password: `https://user:password@host`.
fn without_password(text: String) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    match authority.rfind('@') {
        Some(end) => format!("{scheme}://...{}", &rest[end..]),
        None => text,
    }
}

/// Whether this path holds keys.
pub fn is_secret(path: &str) -> bool {
    SETTINGS.iter().any(|setting| setting.path == path && setting.secret)
}

fn setting_by_alias(prefix: &str, key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| {
        let (parent, _) = split_path(setting.path);
        parent == prefix && setting.aliases.contains(&key)
    })
}

/// `server.tls.cert` is `server.tls.` and `cert`.
pub fn split_path(path: &str) -> (&str, &str) {
    path.split_at(path.rfind('.').map_or(0, |dot| dot + 1))
}

fn is_group(path: &str) -> bool {
    SETTINGS.iter().any(|s| s.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}
