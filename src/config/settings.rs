//! The table of settings: names, values, defaults, and which of them need a restart. `schema.rs` makes the
//! JSON Schema of it.
use crate::config::kind::Kind;
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
    /// Messages show only the start of the value, and a variable with `_FILE` after its name names a file
    /// that contains the value.
    pub secret: bool,
    /// What its value may be in the file.
    pub kind: Kind,
    /// The value that is the same as none, as JSON.
    pub default: &'static str,
    /// One or two sentences.
    pub meaning: &'static str,
    /// Set for a setting that is read at start only: a reload that changes it needs a restart.
    pub needs_restart: Option<Differs>,
}

const fn plain(path: &'static str) -> Setting {
    let (kind, default, meaning) = (Kind::Anything, "null", "");
    Setting { path, aliases: &[], variables: &[], secret: false, kind, default, meaning, needs_restart: None }
}

const fn restart(path: &'static str, differs: Differs) -> Setting {
    Setting { needs_restart: Some(differs), ..plain(path) }
}

const fn secret(path: &'static str) -> Setting {
    Setting { secret: true, ..plain(path) }
}

impl Setting {
    const fn secret(self) -> Self {
        Self { secret: true, ..self }
    }

    const fn aliases(self, aliases: &'static [&'static str]) -> Self {
        Self { aliases, ..self }
    }

    const fn variables(self, variables: &'static [&'static str]) -> Self {
        Self { variables, ..self }
    }

    const fn takes(self, kind: Kind, default: &'static str, meaning: &'static str) -> Self {
        Self { kind, default, meaning, ..self }
    }

    /// The variable that is the setting's own, with the prefix.
    pub fn own_variable(&self) -> String {
        format!("{PREFIX}{}", variable_name(self.path))
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
    plain("admin.allowed_hosts").takes(Kind::Hosts, "[]", "Host names under which the admin port may be requested, besides IP addresses and localhost; .example.com covers subdomains, * allows all."),
    restart("admin.host", |a, b| a.admin.as_ref().map(|a| a.host) != b.admin.as_ref().map(|b| b.host)).takes(Kind::Address, r#""127.0.0.1""#, "Address of the admin port."),
    restart("admin.port", |a, b| a.admin.as_ref().map(|a| a.port) != b.admin.as_ref().map(|b| b.port)).takes(Kind::OptionalPort, "null", "Port of the status page and of /metrics."),
    plain("allow_origins").takes(Kind::Origins, r#"["*"]"#, "Origins that browsers may send requests from (CORS)."),
    plain("analytics.enabled").takes(Kind::Boolean, "true", "Forward the flag counts that SDKs send."),
    plain("analytics.flush_interval_seconds").takes(Kind::Interval, "10", "Time between two uploads of flag counts."),
    // Read by httpx, and so by the Python proxy.
    plain("api_ca_file").variables(&[SSL_CERT_FILE]).takes(Kind::OptionalPath, "null", "Certificate authorities to trust for the API, instead of the built-in ones (PEM)."),
    plain("api_client_certificate.cert").takes(Kind::OptionalPath, "null", "Client certificate for the API (PEM)."),
    plain("api_client_certificate.key").takes(Kind::OptionalPath, "null", "Private key of the client certificate for the API (PEM)."),
    plain("api_document_bytes_max").takes(Kind::Count, "268435456", "Largest environment document in bytes, all pages together."),
    plain("api_full_refresh_seconds").takes(Kind::OptionalInterval, "null", "Time after which a poll is sent without conditions, so that scheduled changes appear; null: by the size of the document, 60 to 300 seconds."),
    secret("api_headers").takes(Kind::HeaderFields, "{}", "Header fields of every request to the API, for a gateway before it."),
    plain("api_poll_frequency_seconds").aliases(&["api_poll_frequency"]).takes(Kind::Interval, "10", "Time between two polls of an environment."),
    plain("api_poll_timeout_seconds").aliases(&["api_poll_timeout"]).takes(Kind::Interval, "5", "Timeout of one poll."),
    plain("api_url").takes(Kind::Url, r#""https://edge.api.flagsmith.com/api/v1""#, "The Flagsmith API to poll."),
    restart("cache_dir", |a, b| a.cache_dir != b.cache_dir).takes(Kind::OptionalPath, "null", "Directory of the last good documents, which are served after a restart."),
    restart("cores", |a, b| a.cores != b.cores).variables(&["WEB_CONCURRENCY"]).takes(Kind::Cores, "null", "CPUs to use: a count, or a list such as 0,2-5; null: all that the process may use."),
    plain("discovery_empty_grace_seconds").takes(Kind::Duration, "60", "With proxy_key: how long the list of environments must be empty before the environments are removed."),
    plain("document_deltas").takes(Kind::Boolean, "true", "Between proxies: ask a proxy for what changed of a document instead of all of it, and answer such requests."),
    plain("documents").takes(Kind::Paths, "[]", "Environment documents on disk to serve; read again when they change."),
    plain("endpoint_caches").takes(Kind::Anything, "null", "Accepted from the Python proxy's configuration, without effect."),
    secret("environment_key_pairs").takes(Kind::KeyPairs, "[]", "The environments to serve."),
    restart("events.enabled", |a, b| a.events.enabled != b.events.enabled).takes(Kind::Boolean, "false", "Accept experiment events of SDKs and forward them; needs cache_dir."),
    plain("events.flush_interval_seconds").takes(Kind::Interval, "10", "Time between two uploads of events."),
    restart("events.fsync", |a, b| a.events.fsync != b.events.fsync).takes(Kind::Fsync, r#""group""#, "When stored events are written to disk."),
    restart("events.spool_bytes_max", |a, b| a.events.spool_bytes_max != b.events.spool_bytes_max).takes(Kind::SpoolBytes, "268435456", "Most bytes of stored events."),
    plain("events.url").takes(Kind::Url, r#""https://events.api.flagsmith.com""#, "Where events are forwarded to."),
    plain("health_check.environment_update_grace_period_seconds").takes(Kind::OptionalDuration, "30", "A document is stale after the poll interval plus this time for each environment; null: never."),
    plain("health_check.ready_from_cache").takes(Kind::Boolean, "true", "Whether documents from cache_dir are enough for readiness."),
    plain("health_check.require").takes(Kind::Require, r#""all""#, "Whether all environments must be fresh for readiness, or any."),
    restart("logging.access_log_file", |a, b| a.logging.access_log_file != b.logging.access_log_file).takes(Kind::OptionalPath, "null", "File of the access log instead of stdout; SIGUSR1 opens it again."),
    plain("logging.colours").aliases(&["colors", "colour", "color"]).takes(Kind::OptionalBoolean, "null", "Colours in the log; null: on a terminal."),
    restart("logging.enable_access_log", |a, b| a.logging.enable_access_log != b.logging.enable_access_log).takes(Kind::Boolean, "false", "Log each request."),
    plain("logging.log_event_field_name").takes(Kind::Text, r#""message""#, "Member of a JSON log record that contains the event."),
    restart("logging.log_format", |a, b| a.logging.log_format != b.logging.log_format).takes(Kind::LogFormat, r#""generic""#, "Text or JSON."),
    plain("logging.log_level").takes(Kind::LogLevel, r#""INFO""#, "Least severe level to log."),
    plain("logging.override").takes(Kind::Anything, "{}", "Accepted from the Python proxy's configuration, without effect."),
    secret("proxy_key").takes(Kind::OptionalKey, "null", "Key with which the environments are discovered from the API."),
    plain("realtime.enabled").takes(Kind::Boolean, "false", "Follow the API's event stream, so that changes arrive immediately."),
    plain("realtime.url").takes(Kind::Url, r#""https://realtime.flagsmith.com""#, "The API's event stream."),
    plain("server.allow_list").takes(Kind::AddressList, "[]", "Networks whose requests are served; null: all."),
    plain("server.base_path").takes(Kind::BasePath, "null", "Path below which all routes are, such as /flags."),
    restart("server.connections_max", |a, b| a.server.connections_max != b.server.connections_max).takes(Kind::Count, "50000", "Most connections of each reactor."),
    plain("server.deny_list").takes(Kind::AddressList, "[]", "Networks whose requests are refused with 403."),
    restart("server.driver", |a, b| a.server.driver != b.server.driver).variables(&["EDGE_PROXY_DRIVER"]).takes(Kind::Driver, "null", "I/O interface of the kernel; null: io_uring if the kernel allows it, else epoll."),
    restart("server.forwarded_allow_ips", |a, b| {
        a.server.forwarded_allow_ips != b.server.forwarded_allow_ips
    })
    .variables(&["FORWARDED_ALLOW_IPS"]).takes(Kind::Networks, r#"["127.0.0.1", "::1"]"#, "Addresses and networks whose X-Forwarded-For is trusted; * trusts all."),
    restart("server.head_bytes_max", |a, b| a.server.head_bytes_max != b.server.head_bytes_max).takes(Kind::HeadBytes, "16384", "Largest request head in bytes."),
    restart("server.host", |a, b| a.server.host != b.server.host).takes(Kind::Address, r#""0.0.0.0""#, "Address to listen on."),
    restart("server.http2", |a, b| a.server.http2 != b.server.http2).takes(Kind::Boolean, "true", "Speak HTTP/2 beside HTTP/1.1: by prior knowledge, over TLS by ALPN."),
    restart("server.http2_streams_max", |a, b| a.server.http2_streams_max != b.server.http2_streams_max).takes(Kind::Http2Streams, "100", "Most concurrent streams of an HTTP/2 connection."),
    restart("server.port", |a, b| a.server.port != b.server.port).takes(Kind::Port, "8000", "Port to listen on."),
    restart("server.proxy_headers", |a, b| a.server.proxy_headers != b.server.proxy_headers).takes(Kind::Boolean, "false", "Trust X-Forwarded-For of the addresses in server.forwarded_allow_ips."),
    plain("server.reload").takes(Kind::Boolean, "false", "Accepted from the Python proxy's configuration, without effect."),
    restart("server.requests_max", |a, b| a.server.requests_max != b.server.requests_max).takes(Kind::OptionalCount, "null", "Most requests of one connection; null: no limit."),
    plain("server.shutdown_delay_seconds").takes(Kind::Duration, "0", "After SIGTERM: time to serve on, with readiness red."),
    plain("server.shutdown_grace_seconds").takes(Kind::Duration, "10", "After the delay: time for open requests to finish."),
    restart("server.spin_microseconds", |a, b| a.server.spin != b.server.spin).takes(Kind::SpinMicroseconds, "0", "How long each reactor polls for requests after a response, before it sleeps: lower latency for the CPU time."),
    restart("server.spread", |a, b| a.server.spread != b.server.spread).takes(Kind::Boolean, "false", "Pass new connections on to reactors with fewer of them, for few long connections on many cores."),
    restart("server.take_over", |a, b| a.server.take_over != b.server.take_over).takes(Kind::Boolean, "false", "The process at the port is to be replaced: sharing the port causes no warning."),
    restart("server.tcp", |a, b| a.server.tcp != b.server.tcp).takes(Kind::Boolean, "true", "Listen on server.port; false: only on server.unix_socket."),
    restart("server.timeout_body", |a, b| a.server.timeout_body != b.server.timeout_body).takes(Kind::Interval, "30", "Timeout of a request body."),
    restart("server.timeout_head", |a, b| a.server.timeout_head != b.server.timeout_head).takes(Kind::Interval, "10", "Timeout of a request head."),
    restart("server.timeout_keep_alive", |a, b| a.server.timeout_keep_alive != b.server.timeout_keep_alive).takes(Kind::Interval, "90", "Time after which an idle connection is closed."),
    restart("server.timeout_write", |a, b| a.server.timeout_write != b.server.timeout_write).takes(Kind::Interval, "30", "Timeout of a client that does not read its response."),
    // Only turning TLS on or off: other files are loaded while running.
    restart("server.tls.cert", |a, b| a.server.tls.is_some() != b.server.tls.is_some()).takes(Kind::OptionalPath, "null", "Certificate chain for clients (PEM); read again when it changes."),
    plain("server.tls.client_ca").takes(Kind::OptionalPath, "null", "Authority of the client certificates to require (PEM)."),
    restart("server.tls.key", |a, b| a.server.tls.is_some() != b.server.tls.is_some()).takes(Kind::OptionalPath, "null", "Private key of server.tls.cert (PEM)."),
    restart("server.unix_socket", |a, b| a.server.unix_socket != b.server.unix_socket).takes(Kind::OptionalPath, "null", "Path of a unix socket to listen on."),
    restart("server.unix_socket_mode", |a, b| a.server.unix_socket_mode != b.server.unix_socket_mode).takes(Kind::OptionalMode, "null", "Permissions of the unix socket, such as 0660; null: by the umask."),
    plain("sse.max_stream_seconds").takes(Kind::Duration, "0", "Time after which event streams end; 0: never."),
    restart("traits.bytes_max", |a, b| a.traits.bytes_max != b.traits.bytes_max).takes(Kind::TraitBytes, "268435456", "Most bytes of kept traits, at most half of them of one environment; the least used identities are removed."),
    restart("traits.forward", |a, b| a.traits.forward != b.traits.forward).takes(Kind::Boolean, "false", "Send kept traits upstream."),
    plain("traits.forward_interval_seconds").takes(Kind::Interval, "10", "Time between two rounds of sending kept traits."),
    restart("traits.identities_max", |a, b| a.traits.identities_max != b.traits.identities_max).takes(Kind::Count, "1000000", "Most identities whose traits are kept."),
    restart("traits.path", |a, b| a.traits.path != b.traits.path).takes(Kind::OptionalPath, "null", "Directory of kept traits with traits.store disk; null: traits in cache_dir."),
    restart("traits.redis_ca_file", |a, b| a.traits.redis_ca_file != b.traits.redis_ca_file).takes(Kind::OptionalPath, "null", "Certificate authorities of Redis (PEM), instead of the built-in ones."),
    restart("traits.redis_prefix", |a, b| a.traits.redis_prefix != b.traits.redis_prefix).takes(Kind::Text, r#""edge-proxy:1:""#, "What the names of all keys in Redis begin with."),
    restart("traits.redis_url", |a, b| a.traits.redis_url != b.traits.redis_url).secret().takes(Kind::RedisUrl, "null", "Redis of traits.store redis: redis://user:password@host:port/database, or rediss:// for TLS."),
    restart("traits.require", |a, b| a.traits.require != b.traits.require).takes(Kind::Boolean, "false", "Whether readiness is red while Redis is not available."),
    restart("traits.store", |a, b| a.traits.store != b.traits.store).takes(Kind::TraitsStore, r#""none""#, "Where traits of identities are kept between requests: none, memory, disk, which survives a restart, or redis, which several proxies share."),
    restart("traits.ttl_seconds", |a, b| a.traits.ttl != b.traits.ttl).takes(Kind::Duration, "0", "Time after which an identity that was neither written nor requested is removed; 0: never."),
    plain("usage_flush_interval_seconds").takes(Kind::Interval, "60", "With proxy_key: time between two reports of usage."),
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
