//! The table of settings: names, and which of them need a restart.
use crate::config::types::Config;

/// A setting's own environment variable is this prefix and its path in capitals with `_` for `.`
/// (`EDGE_PROXY_SERVER_PORT`).
pub const PREFIX: &str = "EDGE_PROXY_";

/// httpx takes an empty value, and the name of a file that does not exist, for unset.
pub const SSL_CERT_FILE: &str = "SSL_CERT_FILE";

/// Whether two configurations differ in a setting.
type Differs = fn(&Config, &Config) -> bool;

#[derive(Debug)]
pub struct Setting {
    /// The path in the file; `.` separates objects.
    pub path: &'static str,
    /// Other names of the last part of the path, as the Python proxy accepts them.
    pub aliases: &'static [&'static str],
    /// Further environment variables.
    pub variables: &'static [&'static str],
    /// Messages show only the start of the value.
    pub secret: bool,
    /// Set for a setting that is read at start only: a reload that changes it needs a restart.
    pub needs_restart: Option<Differs>,
}

const fn plain(path: &'static str) -> Setting {
    Setting { path, aliases: &[], variables: &[], secret: false, needs_restart: None }
}

const fn restart(path: &'static str, differs: Differs) -> Setting {
    Setting { needs_restart: Some(differs), ..plain(path) }
}

const fn secret(path: &'static str) -> Setting {
    Setting { secret: true, ..plain(path) }
}

impl Setting {
    const fn aliases(self, aliases: &'static [&'static str]) -> Self {
        Self { aliases, ..self }
    }

    const fn variables(self, variables: &'static [&'static str]) -> Self {
        Self { variables, ..self }
    }

    /// Its environment variables from the strongest to the weakest: its own, that without the prefix,
    /// then aliases.
    pub fn all_variables(&'static self) -> impl Iterator<Item = String> {
        let (parent, _) = split_path(self.path);
        let unprefixed = variable_name(self.path);
        let aliases = self.aliases.iter().map(move |alias| variable_name(&format!("{parent}{alias}")));
        let own = std::iter::once(format!("{PREFIX}{unprefixed}")).chain(std::iter::once(unprefixed));
        own.chain(aliases).chain(self.variables.iter().map(|name| (*name).to_owned()))
    }
}

/// All settings. A list or a free-form object is one setting.
pub const SETTINGS: &[Setting] = &[
    plain("admin.allowed_hosts"),
    restart("admin.host", |a, b| a.admin.as_ref().map(|a| a.host) != b.admin.as_ref().map(|b| b.host)),
    restart("admin.port", |a, b| a.admin.as_ref().map(|a| a.port) != b.admin.as_ref().map(|b| b.port)),
    plain("allow_origins"),
    plain("analytics.enabled"),
    plain("analytics.flush_interval_seconds"),
    // Read by httpx, and so by the Python proxy.
    plain("api_ca_file").variables(&[SSL_CERT_FILE]),
    plain("api_client_certificate.cert"),
    plain("api_client_certificate.key"),
    plain("api_document_bytes_max"),
    plain("api_full_refresh_seconds"),
    secret("api_headers"),
    plain("api_poll_frequency_seconds").aliases(&["api_poll_frequency"]),
    plain("api_poll_timeout_seconds").aliases(&["api_poll_timeout"]),
    plain("api_url"),
    restart("cache_dir", |a, b| a.cache_dir != b.cache_dir),
    restart("cores", |a, b| a.cores != b.cores).variables(&["WEB_CONCURRENCY"]),
    plain("discovery_empty_grace_seconds"),
    plain("documents"),
    plain("endpoint_caches"),
    secret("environment_key_pairs"),
    restart("events.enabled", |a, b| a.events.enabled != b.events.enabled),
    plain("events.flush_interval_seconds"),
    restart("events.fsync", |a, b| a.events.fsync != b.events.fsync),
    restart("events.spool_bytes_max", |a, b| a.events.spool_bytes_max != b.events.spool_bytes_max),
    plain("events.url"),
    plain("health_check.environment_update_grace_period_seconds"),
    plain("health_check.ready_from_cache"),
    plain("health_check.require"),
    restart("logging.access_log_file", |a, b| a.logging.access_log_file != b.logging.access_log_file),
    plain("logging.colours").aliases(&["colors", "colour", "color"]),
    restart("logging.enable_access_log", |a, b| a.logging.enable_access_log != b.logging.enable_access_log),
    plain("logging.log_event_field_name"),
    restart("logging.log_format", |a, b| a.logging.log_format != b.logging.log_format),
    plain("logging.log_level"),
    plain("logging.override"),
    secret("proxy_key"),
    plain("realtime.enabled"),
    plain("realtime.url"),
    plain("server.allow_list"),
    plain("server.base_path"),
    restart("server.connections_max", |a, b| a.server.connections_max != b.server.connections_max),
    plain("server.deny_list"),
    restart("server.driver", |a, b| a.server.driver != b.server.driver).variables(&["EDGE_PROXY_DRIVER"]),
    restart("server.forwarded_allow_ips", |a, b| {
        a.server.forwarded_allow_ips != b.server.forwarded_allow_ips
    })
    .variables(&["FORWARDED_ALLOW_IPS"]),
    restart("server.head_bytes_max", |a, b| a.server.head_bytes_max != b.server.head_bytes_max),
    restart("server.host", |a, b| a.server.host != b.server.host),
    restart("server.http2", |a, b| a.server.http2 != b.server.http2),
    restart("server.http2_streams_max", |a, b| a.server.http2_streams_max != b.server.http2_streams_max),
    restart("server.port", |a, b| a.server.port != b.server.port),
    restart("server.proxy_headers", |a, b| a.server.proxy_headers != b.server.proxy_headers),
    plain("server.reload"),
    restart("server.requests_max", |a, b| a.server.requests_max != b.server.requests_max),
    plain("server.shutdown_delay_seconds"),
    plain("server.shutdown_grace_seconds"),
    restart("server.take_over", |a, b| a.server.take_over != b.server.take_over),
    restart("server.tcp", |a, b| a.server.tcp != b.server.tcp),
    restart("server.timeout_body", |a, b| a.server.timeout_body != b.server.timeout_body),
    restart("server.timeout_head", |a, b| a.server.timeout_head != b.server.timeout_head),
    restart("server.timeout_keep_alive", |a, b| a.server.timeout_keep_alive != b.server.timeout_keep_alive),
    restart("server.timeout_write", |a, b| a.server.timeout_write != b.server.timeout_write),
    // Only turning TLS on or off: other files are loaded while running.
    restart("server.tls.cert", |a, b| a.server.tls.is_some() != b.server.tls.is_some()),
    plain("server.tls.client_ca"),
    restart("server.tls.key", |a, b| a.server.tls.is_some() != b.server.tls.is_some()),
    restart("server.unix_socket", |a, b| a.server.unix_socket != b.server.unix_socket),
    restart("server.unix_socket_mode", |a, b| a.server.unix_socket_mode != b.server.unix_socket_mode),
    plain("sse.max_stream_seconds"),
    plain("usage_flush_interval_seconds"),
];

/// The settings that differ and need a restart.
pub fn restart_required(before: &Config, now: &Config) -> Vec<&'static str> {
    let differs = |setting: &&Setting| setting.needs_restart.is_some_and(|differs| differs(before, now));
    SETTINGS.iter().filter(differs).map(|setting| setting.path).collect()
}

pub fn find(path: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.path == path)
}

/// The setting in the object `parent` (such as `server.`) that has this alias.
pub fn find_alias(parent: &str, alias: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| split_path(setting.path).0 == parent && setting.aliases.contains(&alias))
}

pub fn is_secret(path: &str) -> bool {
    find(path).is_some_and(|setting| setting.secret)
}

/// The paths of the objects that contain a setting: `server.tls` and `server` for `server.tls.cert`.
pub fn groups_of(path: &'static str) -> impl Iterator<Item = &'static str> {
    path.match_indices('.').map(|(end, _)| &path[..end])
}

/// The paths of all objects that contain settings.
pub fn groups() -> Vec<&'static str> {
    let mut groups: Vec<&str> = SETTINGS.iter().flat_map(|setting| groups_of(setting.path)).collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

/// `server.tls.cert` is `server.tls.` and `cert`.
pub fn split_path(path: &str) -> (&str, &str) {
    path.split_at(path.rfind('.').map_or(0, |dot| dot + 1))
}

/// `server.port` is `SERVER_PORT`.
pub fn variable_name(path: &str) -> String {
    path.replace('.', "_").to_uppercase()
}
