//! Environment variables: which names give a setting, and in which order.
//!
//! In: the process's variables. Out: values added to [`RawConfig`], weakest first. Invariant: every
//! setting has a name of its own, `EDGE_PROXY_` and its path; other names are aliases. An alias that
//! the Python proxy never read may be another program's variable, so it can never end the start.
use crate::config::settings::{RawConfig, SETTINGS, Setting, SettingSource, is_secret, shown, split_path};
use crate::config::{ConfigIssue, ConfigWarning, suggest};

/// Stands before the path in the name of a setting's own variable.
pub const PREFIX: &str = "EDGE_PROXY_";

/// What the Python proxy (pydantic-settings without a nesting delimiter), uvicorn and httpx read.
/// `CONFIG_PATH` and the proxy variables (`HTTPS_PROXY`, ...) are read as well, but are not settings.
pub const PYTHON: &[&str] = &[
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

/// httpx takes an empty value, and the name of a file that does not exist, for unset.
pub const SSL_CERT_FILE: &str = "SSL_CERT_FILE";

/// Names from recipes for older proxies and for other platforms: the setting and the variable to use.
const RECIPES: &[(&str, &str, &str)] = &[
    ("ENVIRONMENT_API_KEYS", "environment_key_pairs", "ENVIRONMENT_KEY_PAIRS"),
    ("FLAGSMITH_API_URL", "api_url", "API_URL"),
    ("LOG_LEVEL", "logging.log_level", "EDGE_PROXY_LOGGING_LOG_LEVEL"),
    ("PORT", "server.port", "EDGE_PROXY_SERVER_PORT"),
];

/// Beside the settings, names of this project's own that start with the prefix.
const OTHERS: &[&str] = &["EDGE_PROXY_GIT_SHA", "EDGE_PROXY_SHARED"];

/// The process's variables, as name and value.
type Variables = [(String, String)];

impl RawConfig {
    /// Adds what the environment gives. A setting's own variable is stronger than its aliases, and
    /// the variable of one setting (`SERVER_PORT`) stronger than that of its group (`SERVER`).
    pub fn add_variables(&mut self, variables: &Variables) {
        let groups = groups();
        for prefix in ["", PREFIX] {
            for group in &groups {
                self.add_group_variable(variables, group, &format!("{prefix}{}", variable_name(group)));
            }
            for setting in SETTINGS {
                let names: Vec<String> = setting_variables(setting)
                    .filter(|name| name.starts_with(PREFIX) != prefix.is_empty())
                    .collect();
                // The names are ordered from the strongest to the weakest.
                for name in names.iter().rev() {
                    self.add_setting_variable(variables, setting, name);
                }
            }
        }
        self.notice_unknown_variables(variables, &groups);
    }

    fn add_group_variable(&mut self, variables: &Variables, group: &str, name: &str) {
        let Some((spelled, text)) = variable_named(variables, name) else { return };
        let origin = origin(spelled, name);
        if is_unset(text, &origin) {
            return;
        }
        if let Some(value) = self.variable_value(group, text, &origin) {
            self.add_group(group, value, &origin);
        }
    }

    fn add_setting_variable(&mut self, variables: &Variables, setting: &'static Setting, name: &str) {
        let Some((spelled, text)) = variable_named(variables, name) else { return };
        let origin = origin(spelled, name);
        if is_unset(text, &origin) {
            return;
        }
        // Kubernetes sets `SERVER_PORT=tcp://10.0.0.1:80` for a service named `server`, and
        // `EDGE_PROXY_ADMIN_PORT` for one named `edge-proxy-admin`.
        if setting.path.ends_with("port") && text.starts_with("tcp://") {
            self.notices.push(ConfigWarning::service_link(spelled));
            return;
        }
        if let Some(value) = self.variable_value(setting.path, text, &origin) {
            self.add(setting.path, value, origin);
        }
    }

    /// Text that is not JSON is text, unless it starts like an object or a list.
    fn variable_value(
        &mut self,
        path: &str,
        text: &str,
        origin: &SettingSource,
    ) -> Option<serde_json::Value> {
        let error = match serde_json::from_str(text) {
            Ok(value) => return Some(value),
            Err(error) if text.trim_start().starts_with(['[', '{']) => error,
            Err(_) => return Some(text.into()),
        };
        let expected = format!("valid JSON ({error})");
        match origin {
            SettingSource::Alias { name, own } => {
                self.notices.push(ConfigWarning::ignored_variable(name, &expected, own));
            }
            _ => {
                let shown = shown(&text.into(), is_secret(path));
                self.mistakes.push(ConfigIssue::new(path, shown, origin, expected));
            }
        }
        None
    }

    /// Warns of a variable that is nearly one of ours, has our prefix, or comes from an older recipe.
    fn notice_unknown_variables(&mut self, variables: &Variables, groups: &[&str]) {
        let prefixed = |name: String| [format!("{PREFIX}{name}"), name];
        let groups = groups.iter().flat_map(|group| prefixed(variable_name(group)));
        let known: Vec<String> = SETTINGS.iter().flat_map(setting_variables).chain(groups).collect();
        for (name, _) in variables {
            if known.iter().any(|known| is_variable(name, known)) || OTHERS.contains(&name.as_str()) {
                continue;
            }
            if let Some((_, path, instead)) = RECIPES.iter().find(|(recipe, ..)| recipe == name) {
                if self.value(path).is_none() {
                    let hint = format!("this proxy does not read {name}: set {instead}");
                    self.notices.push(ConfigWarning::unknown_variable(name, &hint));
                }
            } else if let Some(hint) = suggest::variable(name) {
                self.notices.push(ConfigWarning::unknown_variable(name, &hint));
            } else if name.starts_with(PREFIX) && !is_service_link(name) {
                let hint = "no setting has this name; docs/configuration.md lists them";
                self.notices.push(ConfigWarning::unknown_variable(name, hint));
            }
        }
    }
}

/// What Kubernetes sets in every container for a service whose name starts with `edge-proxy`.
fn is_service_link(name: &str) -> bool {
    ["_SERVICE_HOST", "_SERVICE_PORT", "_PORT"].iter().any(|end| name.ends_with(end))
        || name.contains("_SERVICE_PORT_")
        || name.contains("_TCP")
        || name.contains("_UDP")
}

/// Names of objects that hold settings, such as `server` and `server.tls`.
fn groups() -> Vec<&'static str> {
    let mut groups: Vec<&str> =
        SETTINGS.iter().flat_map(|s| s.path.match_indices('.').map(|(end, _)| &s.path[..end])).collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

/// `name` is the canonical form of what is `spelled` in the environment.
fn origin(spelled: &str, name: &str) -> SettingSource {
    if name.starts_with(PREFIX) || PYTHON.contains(&name) {
        SettingSource::Variable(spelled.to_owned())
    } else {
        SettingSource::Alias { name: spelled.to_owned(), own: format!("{PREFIX}{name}") }
    }
}

/// Compose files write `CACHE_DIR=${CACHE_DIR:-}`. An empty value of a name that the Python proxy reads
/// is a value, as in pydantic: an empty `API_URL` must not send keys to the default address.
fn is_unset(text: &str, origin: &SettingSource) -> bool {
    let is_python = |name: &String| {
        !name.to_ascii_uppercase().starts_with(PREFIX) && !name.eq_ignore_ascii_case(SSL_CERT_FILE)
    };
    text.trim().is_empty() && !matches!(origin, SettingSource::Variable(name) if is_python(name))
}

/// `server.port` is `SERVER_PORT`.
fn variable_name(path: &str) -> String {
    path.replace('.', "_").to_uppercase()
}

/// The environment variables that give a setting, the strongest first: its own, then the aliases.
pub fn setting_variables(setting: &'static Setting) -> impl Iterator<Item = String> {
    let (parent, _) = split_path(setting.path);
    let unprefixed = variable_name(setting.path);
    let aliases = setting.aliases.iter().map(move |alias| variable_name(&format!("{parent}{alias}")));
    let own = std::iter::once(format!("{PREFIX}{unprefixed}")).chain(std::iter::once(unprefixed));
    own.chain(aliases).chain(setting.variables.iter().map(|name| (*name).to_owned()))
}

/// Whether this spelling is that variable: in any case, and with `__` between the parts too, which
/// other programs with pydantic use (`SERVER__PORT`).
fn is_variable(spelled: &str, name: &str) -> bool {
    spelled.eq_ignore_ascii_case(name)
        || (spelled.contains("__") && spelled.replace("__", "_").eq_ignore_ascii_case(name))
}

/// An exact spelling in capitals wins over another.
fn variable_named<'a>(variables: &'a Variables, name: &str) -> Option<(&'a str, &'a str)> {
    let exact = variables.iter().find(|(spelled, _)| spelled == name);
    let any = || variables.iter().find(|(spelled, _)| is_variable(spelled, name));
    exact.or_else(any).map(|(spelled, text)| (spelled.as_str(), text.as_str()))
}
