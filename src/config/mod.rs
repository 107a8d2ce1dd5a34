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
}

#[derive(Clone, Debug)]
pub struct Config {
    pub environments: Vec<EnvironmentConfig>,
    /// With a trailing slash, such as `https://edge.api.flagsmith.com/api/v1/`.
    pub api_url: String,
    pub api_poll_frequency: Duration,
    pub api_poll_timeout: Duration,
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
}

#[derive(Clone, Debug)]
pub struct HealthCheck {
    /// `None`: never stale. The whole grace is this times the number of environments.
    pub environment_update_grace_period: Option<Duration>,
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
