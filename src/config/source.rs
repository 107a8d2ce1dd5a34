//! What is written: settings by path, as found in flags, environment and file, with their origin.
//!
//! In: flags, environment variables, the JSON file. Out: [`Written`], one JSON value for each
//! setting that somebody gave, the strongest layer first (flags > environment > file). Invariant:
//! nothing here judges a value; it only knows the names. Names nobody knows are kept as notices.
//! To add a setting: one line in [`SETTINGS`], one field and one `read` in `config::mod`.
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde_json::{Map, Value};

use super::{ConfigError, EnvironmentConfig, Mistake, Notice, file, near};

/// The names of one setting.
#[derive(Debug)]
pub struct Setting {
    /// Where it stands in the file; `.` separates objects. Its environment variable is the path
    /// in capitals with `_` for `.` (`SERVER_PORT`).
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
pub enum Origin {
    /// The flag's name, such as `--port`.
    Flag(&'static str),
    /// The variable's name as it is spelled in the environment.
    Variable(String),
    File(PathBuf),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) => f.write_str(name),
            Self::Variable(name) => write!(f, "environment variable {name}"),
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
            let variable = self.variables.iter().find(|(name, _)| name == "CONFIG_PATH");
            variable.map(|(_, path)| PathBuf::from(path))
        });
        let is_named = named.is_some();
        (named.unwrap_or_else(|| PathBuf::from("config.json")), is_named)
    }
}

/// The strongest value of each setting that was given.
#[derive(Debug, Default)]
pub struct Written {
    values: BTreeMap<&'static str, (Value, Origin)>,
    pub notices: Vec<Notice>,
    pub mistakes: Vec<Mistake>,
}

impl Written {
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
            let origin = Origin::File(path);
            written.notices.extend(read.repeated.iter().map(|path| Notice::repeated_setting(path, &origin)));
            written.add_object("", read.object, &origin);
        }
        written.add_variables(&inputs.variables);
        for (path, flag, value) in &inputs.flags {
            written.values.insert(path, (value.clone(), Origin::Flag(flag)));
        }
        Ok(written)
    }

    /// The value of a setting and who gave it.
    pub fn value(&self, path: &str) -> Option<(&Value, &Origin)> {
        self.values.get(path).map(|(value, origin)| (value, origin))
    }

    fn add_object(&mut self, prefix: &str, object: Map<String, Value>, origin: &Origin) {
        // An alias never beats the setting's own name in the same object, as in pydantic.
        let (aliased, named): (Vec<_>, Vec<_>) =
            object.into_iter().partition(|(key, _)| setting_by_alias(prefix, key).is_some());
        for (key, value) in aliased.into_iter().rev() {
            if let Some(setting) = setting_by_alias(prefix, &key) {
                self.values.insert(setting.path, (value, origin.clone()));
            }
        }
        for (key, value) in named {
            let path = format!("{prefix}{key}");
            if let Some(setting) = SETTINGS.iter().find(|setting| setting.path == path) {
                self.values.insert(setting.path, (value, origin.clone()));
            } else if is_group(&path) {
                self.add_group(&path, value, origin);
            } else {
                let hint = near::setting(&path);
                self.notices.push(Notice::unknown_setting(path, origin, hint));
            }
        }
    }

    fn add_group(&mut self, path: &str, value: Value, origin: &Origin) {
        match value {
            Value::Object(object) => self.add_object(&format!("{path}."), object, origin),
            Value::Null => {}
            other => self.mistakes.push(Mistake {
                path: path.to_owned(),
                value: shown(&other, is_secret(path)),
                origin: origin.to_string(),
                expected: "an object".to_owned(),
            }),
        }
    }

    /// The nested form (`SERVER_PORT`) is stronger than the object (`SERVER`), as in pydantic.
    fn add_variables(&mut self, variables: &[(String, String)]) {
        let mut groups: Vec<&str> =
            SETTINGS.iter().flat_map(|s| s.path.match_indices('.').map(|(end, _)| &s.path[..end])).collect();
        groups.sort_unstable();
        groups.dedup();
        for group in &groups {
            if let Some((name, text)) = variable_named(variables, &variable_name(group)) {
                let origin = Origin::Variable(name.to_owned());
                if let Some(value) = self.variable_value(group, text, &origin) {
                    self.add_group(group, value, &origin);
                }
            }
        }
        for setting in SETTINGS {
            let found = setting_variables(setting).find_map(|name| variable_named(variables, &name));
            let Some((name, text)) = found else { continue };
            let origin = Origin::Variable(name.to_owned());
            // Kubernetes sets `SERVER_PORT=tcp://10.0.0.1:80` for a service named `server`.
            if setting.path.ends_with("port") && text.starts_with("tcp://") {
                self.notices.push(Notice::service_link(name));
                continue;
            }
            if let Some(value) = self.variable_value(setting.path, text, &origin) {
                self.values.insert(setting.path, (value, origin));
            }
        }
        self.tell_near_variables(variables, &groups);
    }

    /// Text that is no JSON is text, unless it was plainly meant to be an object or a list.
    fn variable_value(&mut self, path: &str, text: &str, origin: &Origin) -> Option<Value> {
        match serde_json::from_str(text) {
            Ok(value) => Some(value),
            Err(error) if text.trim_start().starts_with(['[', '{']) => {
                let shown = shown(&Value::from(text), is_secret(path));
                self.mistakes.push(Mistake::new(path, shown, origin, format!("valid JSON ({error})")));
                None
            }
            Err(_) => Some(Value::from(text)),
        }
    }

    /// A variable that is ours but for a letter would be left out without a word.
    fn tell_near_variables(&mut self, variables: &[(String, String)], groups: &[&str]) {
        let settings = SETTINGS.iter().flat_map(setting_variables);
        let known: Vec<String> = settings.chain(groups.iter().map(|group| variable_name(group))).collect();
        for (name, _) in variables {
            if known.iter().any(|known| is_variable(name, known)) {
                continue;
            }
            if let Some(hint) = near::variable(name) {
                self.notices.push(Notice::unknown_variable(name, &hint));
            }
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

fn variable_name(path: &str) -> String {
    path.replace('.', "_").to_uppercase()
}

/// The environment variables that give a setting, the strongest first.
pub fn setting_variables(setting: &'static Setting) -> impl Iterator<Item = String> {
    let (parent, _) = split_path(setting.path);
    let aliases = setting.aliases.iter().map(move |alias| variable_name(&format!("{parent}{alias}")));
    let own = std::iter::once(variable_name(setting.path));
    own.chain(aliases).chain(setting.variables.iter().map(|name| (*name).to_owned()))
}

/// Whether this spelling is that variable: in any case, and with `__` between the parts too, as
/// people know it from other programs with pydantic (`SERVER__PORT`).
fn is_variable(spelled: &str, name: &str) -> bool {
    spelled.eq_ignore_ascii_case(name)
        || (spelled.contains("__") && spelled.replace("__", "_").eq_ignore_ascii_case(name))
}

/// An exact spelling in capitals wins over another.
fn variable_named<'a>(variables: &'a [(String, String)], name: &str) -> Option<(&'a str, &'a str)> {
    let exact = variables.iter().find(|(spelled, _)| spelled == name);
    let any = || variables.iter().find(|(spelled, _)| is_variable(spelled, name));
    exact.or_else(any).map(|(spelled, text)| (spelled.as_str(), text.as_str()))
}
