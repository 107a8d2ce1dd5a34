//! What is meant: typed, valid, complete. The rest of the house reads only this.
//!
//! In: what `source` found written (flags, environment, file). Out: a [`Config`], or every
//! mistake at once. Invariant: a value that got past here needs no more checks.
use std::path::PathBuf;
use std::time::Duration;

/// A text that must never be printed whole. Its `Debug` and `Display` show the first characters.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
    /// The text itself, for a header or a look-up; never for a log.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = self.0.char_indices().nth(6).map_or("", |(end, _)| &self.0[..end]);
        write!(f, "{shown}...")
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// One environment to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvironmentConfig {
    /// For a document from disk without a pair this is empty: the document's `api_key` counts.
    pub client_side_key: String,
    pub server_side_key: Option<Secret>,
    /// Served from this file instead of polled.
    pub document_path: Option<PathBuf>,
    /// Served as it is, from the program itself (the demo).
    pub embedded_document: Option<&'static str>,
}

#[derive(Clone, Debug)]
pub struct Config {
    pub environments: Vec<EnvironmentConfig>,
    /// With a trailing slash, such as `https://edge.api.flagsmith.com/api/v1/`.
    pub api_url: String,
    pub api_poll_frequency: Duration,
    pub api_poll_timeout: Duration,
    /// An unconditional fetch at least this often: a 304 is granular to the second (wire.md 4.1).
    pub api_full_refresh: Duration,
    /// A document (all its pages together) beyond this is refused, bytes.
    pub api_document_bytes_max: usize,
    /// PEM certificates trusted for upstream, instead of the built-in ones.
    pub api_ca_file: Option<PathBuf>,
    /// PEM certificate chain and key shown to upstream (mutual TLS). Both or neither.
    pub api_client_cert_file: Option<PathBuf>,
    pub api_client_key_file: Option<PathBuf>,
    /// Where the last good documents are kept over restarts. `None`: nowhere.
    pub cache_dir: Option<PathBuf>,
    pub realtime: Realtime,
    pub analytics: Analytics,
    /// Turns discovery of environments and usage reports on (wire.md 4.3).
    pub proxy_key: Option<Secret>,
    pub usage_flush_interval: Duration,
    pub server: Server,
    pub allow_origins: Vec<String>,
    pub health_check: HealthCheck,
    pub logging: Logging,
    /// CPU ids, one reactor each.
    pub cores: Vec<usize>,
}

#[derive(Clone, Debug)]
pub struct Server {
    pub host: String,
    pub port: u16,
    pub timeout_keep_alive: Duration,
    pub proxy_headers: bool,
    /// After SIGTERM: readiness is red, requests are still accepted, for this long.
    pub shutdown_delay: Duration,
    /// After that: connections in flight may take this long to end.
    pub shutdown_grace: Duration,
}

/// The upstream's event stream (wire.md 1.5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Realtime {
    pub enabled: bool,
    /// With a trailing slash, such as `https://realtime.flagsmith.com/`.
    pub url: String,
}

/// Counts of SDKs, forwarded upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Analytics {
    pub enabled: bool,
    pub flush_interval: Duration,
}

/// How many environments must be fresh for the proxy to be ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Require {
    All,
    Any,
}

#[derive(Clone, Debug)]
pub struct HealthCheck {
    /// `None`: never stale. The whole grace is this times the number of environments.
    pub environment_update_grace_period: Option<Duration>,
    pub require: Require,
    /// Whether a document from `cache_dir`, not yet confirmed by upstream, counts as ready.
    pub ready_from_cache: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Debug,
    Info,
    Warning,
    Error,
    Critical,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Generic,
    Json,
}

#[derive(Clone, Debug)]
pub struct Logging {
    pub log_level: Level,
    pub log_format: LogFormat,
    pub log_event_field_name: String,
    pub colour: bool,
    pub enable_access_log: bool,
}
