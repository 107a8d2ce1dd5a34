//! What is meant: typed, valid, complete. The rest of the house reads only this.
//!
//! In: what `source` found written (flags, environment, file). Out: a [`Config`], or every
//! mistake at once ([`ConfigError`]). Invariant: a value that got past here needs no more checks.
//! Nothing is bound, connected or started here; a reload reads the same inputs again.
mod build;
mod cores;
mod file;
mod pairs;
mod parse;
pub mod settings;
mod suggest;
#[cfg(test)]
mod tests;
pub mod variables;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use crate::config::build::load;
pub use crate::config::cores::Cores;

use crate::config::settings::SettingSource;
use crate::terminal::escape;

/// What `render-config` prints and writes: the defaults, with an example of a key pair.
pub const DEFAULT_JSON: &str = include_str!("default.json");

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

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.0.char_indices().nth(6).map_or("", |(end, _)| &self.0[..end]);
        write!(f, "{shown}...")
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where to connect to reach a listener of ours: nobody can connect to "any address", but it includes
/// the loopback one.
pub fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

/// One environment to serve.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EnvironmentConfig {
    /// For a document from disk without a pair this is empty: the document's `api_key` counts.
    pub client_side_key: String,
    pub server_side_key: Option<Secret>,
    /// Those of further pairs with the same client-side key, as while a key is rotated. Each opens
    /// the environment; upstream is asked with another one when it refuses a key.
    pub further_server_side_keys: Vec<Secret>,
    /// Served from this file instead of polled.
    pub document_path: Option<PathBuf>,
    /// The demo's document, part of the executable.
    pub embedded_document: Option<&'static str>,
}

impl EnvironmentConfig {
    /// Every server-side key, in the order of their pairs.
    pub fn server_side_keys(&self) -> impl Iterator<Item = &Secret> {
        self.server_side_key.iter().chain(&self.further_server_side_keys)
    }
}

/// Everything the process is to do.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file that was read, if there was one; watched for changes.
    pub path: Option<PathBuf>,
    pub environments: Vec<EnvironmentConfig>,
    /// With a trailing slash, such as `https://edge.api.flagsmith.com/api/v1/`.
    pub api_url: String,
    pub api_poll_frequency: Duration,
    pub api_poll_timeout: Duration,
    /// The first poll this long after an unconditional one is unconditional too, because a 304 can hide
    /// an edit (compatibility.md 6.3). `None`: by the size of the document.
    pub api_full_refresh: Option<Duration>,
    /// A document, all its pages together; beyond, the round is dropped.
    pub api_document_bytes_max: usize,
    /// PEM file of authorities trusted for `api_url`, instead of the built-in ones.
    pub api_ca_file: Option<PathBuf>,
    /// Shown to `api_url` for mutual TLS.
    pub api_client_certificate: Option<Certificate>,
    /// Where good documents are kept over restarts.
    pub cache_dir: Option<PathBuf>,
    pub realtime: Realtime,
    /// Environments are discovered from `<api_url>proxy/config/` with this key.
    pub proxy_key: Option<Secret>,
    /// How long discovery must list no environment before the earlier ones are removed; zero: at once.
    pub discovery_empty_grace: Duration,
    pub usage_flush_interval: Duration,
    pub analytics: Analytics,
    pub sse: Sse,
    pub server: Server,
    pub allow_origins: Vec<String>,
    pub health_check: HealthCheck,
    pub logging: Logging,
    pub admin: Option<Admin>,
    /// CPU ids, one reactor each.
    pub cores: Vec<usize>,
}

impl Config {
    pub fn staleness(&self) -> Staleness {
        let grace = self.health_check.environment_update_grace_period;
        Staleness { poll_frequency: self.api_poll_frequency, grace }
    }
}

/// When a document counts as stale.
#[derive(Clone, Copy, Debug)]
pub struct Staleness {
    poll_frequency: Duration,
    grace: Option<Duration>,
}

impl Staleness {
    /// The age at which one of that many environments is stale: as the Python proxy, the poll interval
    /// and the grace period times their number. `None`: never.
    pub fn age_max(&self, environments: usize) -> Option<Duration> {
        let count = u32::try_from(environments).unwrap_or(u32::MAX);
        self.grace.map(|grace| self.poll_frequency.saturating_add(grace.saturating_mul(count)))
    }
}

/// The listeners for SDKs, and how long and how much their callers may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    pub host: IpAddr,
    pub port: u16,
    /// Another process on the port is to be replaced, so that sharing it is no mistake.
    pub take_over: bool,
    /// False: `unix_socket` is the only way in.
    pub tcp: bool,
    pub unix_socket: Option<PathBuf>,
    /// Permission bits of the unix socket; `None` leaves them to the umask.
    pub unix_socket_mode: Option<u32>,
    pub tls: Option<TlsConfig>,
    pub timeout_keep_alive: Duration,
    /// A head, from its first byte.
    pub timeout_head: Duration,
    /// A body, from the end of its head.
    pub timeout_body: Duration,
    /// A peer that does not read what is written to it.
    pub timeout_write: Duration,
    /// The largest head of a request, bytes; a target may take half of it.
    pub head_bytes_max: usize,
    /// Connections one reactor holds at a time.
    pub connections_max: usize,
    /// Requests on one connection; `None` is without limit.
    pub requests_max: Option<u64>,
    pub proxy_headers: bool,
    /// Peers whose `X-Forwarded-For` is believed when `proxy_headers` is set.
    pub forwarded_allow_ips: ForwardedAllowIps,
    /// `None`: io_uring, or epoll where it is refused.
    pub driver: Option<Driver>,
    /// After SIGTERM: still serving, readiness red.
    pub shutdown_delay: Duration,
    /// After that: what is in flight is answered within this time.
    pub shutdown_grace: Duration,
}

/// What a reactor waits on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    Uring,
    Epoll,
}

/// A certificate chain and its key, both PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// TLS on the TCP listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    pub certificate: Certificate,
    /// Clients must show a certificate of these authorities.
    pub client_ca: Option<PathBuf>,
}

/// Addresses and networks, or everybody (`*`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForwardedAllowIps {
    All,
    Networks(Vec<Network>),
}

impl ForwardedAllowIps {
    /// Whether this peer may say whom it speaks for.
    pub fn contains(&self, peer: IpAddr) -> bool {
        match self {
            Self::All => true,
            Self::Networks(networks) => networks.iter().any(|network| network.contains(peer)),
        }
    }
}

/// An address with the number of leading bits that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    pub address: IpAddr,
    pub prefix_bits: u8,
}

impl Network {
    /// An IPv4 peer on an IPv6 socket (`::ffff:10.0.0.1`) counts as the IPv4 peer it is.
    pub fn contains(&self, peer: IpAddr) -> bool {
        let shift = |bits: u32| bits - u32::from(self.prefix_bits);
        match (self.address.to_canonical(), peer.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(peer)) => {
                (own.to_bits() ^ peer.to_bits()).checked_shr(shift(32)).unwrap_or(0) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(peer)) => {
                (own.to_bits() ^ peer.to_bits()).checked_shr(shift(128)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

/// Upstream's event streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Realtime {
    pub enabled: bool,
    /// With a trailing slash, such as `https://realtime.flagsmith.com/`.
    pub url: String,
}

/// The evaluations that SDKs report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Analytics {
    pub enabled: bool,
    pub flush_interval: Duration,
}

/// The event streams that are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sse {
    /// Zero: a stream is never closed by us.
    pub max_stream: Duration,
}

/// The listener for people and scrapers, apart from the one for SDKs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    pub host: IpAddr,
    pub port: u16,
    /// Names that requests may have as `Host`, in lower case; `*` is all, a leading dot covers subdomains. IP
    /// addresses and `localhost` are always allowed.
    pub allowed_hosts: Vec<String>,
}

/// When the proxy is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// `None`: never stale. The whole grace is this times the number of environments.
    pub environment_update_grace_period: Option<Duration>,
    /// Whether a document from `cache_dir` counts as ready.
    pub ready_from_cache: bool,
    pub require: Require,
}

/// How many environments must be fresh for the proxy to be ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Require {
    All,
    Any,
}

/// From the least to the most urgent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Debug,
    Info,
    Warning,
    Error,
    Critical,
}

impl Level {
    /// As structlog prints it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Critical => "critical",
        }
    }
}

/// For people, or for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Generic,
    Json,
}

/// What is logged, and in which shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logging {
    pub log_level: Level,
    pub log_format: LogFormat,
    pub log_event_field_name: String,
    pub colour: bool,
    pub enable_access_log: bool,
}

/// One thing wrong with one setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigIssue {
    /// Such as `environment_key_pairs[1].server_side_key`.
    pub path: String,
    /// As it was written; a secret is cut. Empty: it was not.
    pub value: String,
    pub origin: String,
    pub expected: String,
}

impl ConfigIssue {
    fn new(
        path: impl Into<String>,
        value: String,
        origin: &SettingSource,
        expected: impl Into<String>,
    ) -> Self {
        Self { path: path.into(), value, origin: origin.to_string(), expected: expected.into() }
    }

    /// The file as a whole.
    fn file(path: &Path, expected: String) -> Self {
        let origin = SettingSource::File(path.to_owned());
        Self::new("config file", path.display().to_string(), &origin, expected)
    }
}

impl fmt::Display for ConfigIssue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A line feed in a name or a value must not look like one more mistake.
        let [path, value, origin, expected] =
            [&self.path, &self.value, &self.origin, &self.expected].map(|text| escape(text));
        if value.is_empty() {
            return write!(f, "{path}: missing; expected {expected} ({origin})");
        }
        // Of the file as a whole both are its path.
        if value == origin {
            return write!(f, "{path} {value}: expected {expected}");
        }
        write!(f, "{path}: expected {expected}, not {value} ({origin})")
    }
}

/// Every mistake of one reading.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigError {
    pub mistakes: Vec<ConfigIssue>,
    /// What was not understood beside them; it may be where a setting went that is missing.
    pub notices: Vec<ConfigWarning>,
}

impl ConfigError {
    fn of(mistake: ConfigIssue) -> Self {
        Self { mistakes: vec![mistake], notices: Vec::new() }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mistakes = match self.mistakes.len() {
            1 => "1 mistake".to_owned(),
            count => format!("{count} mistakes"),
        };
        write!(f, "the configuration has {mistakes}:")?;
        self.mistakes.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))?;
        let unknown = self.notices.iter().filter(|notice| notice.is_unknown_name());
        unknown.clone().take(1).try_for_each(|_| f.write_str("\nand this was not understood:"))?;
        unknown.into_iter().try_for_each(|notice| write!(f, "\n  {}", escape(&notice.sentence())))
    }
}

impl std::error::Error for ConfigError {}

const ALIAS_USED: &str = "unprefixed_variable_used";
const UNKNOWN_SETTING: &str = "unknown_setting_ignored";
const UNKNOWN_VARIABLE: &str = "unknown_variable_ignored";

/// Something that was accepted and deserves a line in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigWarning {
    pub level: Level,
    pub event: &'static str,
    pub fields: Vec<(&'static str, String)>,
}

impl ConfigWarning {
    fn new(level: Level, event: &'static str, fields: &[(&'static str, &dyn fmt::Display)]) -> Self {
        let fields = fields.iter().map(|(name, value)| (*name, value.to_string())).collect();
        Self { level, event, fields }
    }

    fn unknown_setting(path: String, origin: &SettingSource, hint: Option<String>) -> Self {
        let mut notice =
            Self::new(Level::Warning, UNKNOWN_SETTING, &[("setting", &path), ("origin", origin)]);
        notice.fields.extend(hint.map(|hint| ("hint", hint)));
        notice
    }

    fn unknown_variable(name: &str, hint: &str) -> Self {
        Self::new(Level::Warning, UNKNOWN_VARIABLE, &[("variable", &name), ("hint", &hint)])
    }

    /// A variable without the prefix whose value cannot be this setting's. The value is not shown: it
    /// may be a secret of another program.
    fn ignored_variable(name: &str, expected: &str, own: &str) -> Self {
        let hint = format!("it may belong to another program; if it is for this one, set {own} instead");
        let fields: [(&str, &dyn fmt::Display); 3] =
            [("variable", &name), ("expected", &expected), ("hint", &hint)];
        Self::new(Level::Warning, "variable_ignored", &fields)
    }

    /// A variable without the prefix that is used.
    fn alias_used(name: &str, own: &str) -> Self {
        Self::new(Level::Info, ALIAS_USED, &[("variable", &name), ("prefixed", &own)])
    }

    /// Whether it is of interest at the start only, not at each reload.
    pub fn is_of_start(&self) -> bool {
        self.event == ALIAS_USED
    }

    fn repeated_setting(path: &str, origin: &SettingSource) -> Self {
        let hint = "the last one counts; take the others out";
        Self::new(
            Level::Warning,
            "setting_repeated",
            &[("setting", &path), ("origin", origin), ("hint", &hint)],
        )
    }

    /// Whether it is of a name that nobody knows.
    fn is_unknown_name(&self) -> bool {
        self.event == UNKNOWN_SETTING || self.event == UNKNOWN_VARIABLE
    }

    /// `name (where): hint`
    fn sentence(&self) -> String {
        let field = |name: &str| self.fields.iter().find(|(own, _)| *own == name).map(|(_, text)| text);
        let name = field("setting").or(field("variable")).map_or("", String::as_str);
        let origin = field("origin").map(|origin| format!(" ({origin})")).unwrap_or_default();
        let hint = field("hint").map_or("no setting has this name", String::as_str);
        format!("{name}{origin}: {hint}")
    }

    /// Of a pair whose client-side key an earlier pair has too.
    fn repeated_pair(path: &str, key: &str, hint: &str) -> Self {
        let key = Secret::new(key);
        let fields: [(&str, &dyn fmt::Display); 3] =
            [("setting", &path), ("client_side_key", &key), ("hint", &hint)];
        Self::new(Level::Warning, "client_side_key_repeated", &fields)
    }

    fn service_link(variable: &str) -> Self {
        let hint = "set by Kubernetes for a service of that name; enableServiceLinks: false stops it";
        Self::new(
            Level::Warning,
            "service_link_variable_ignored",
            &[("variable", &variable), ("hint", &hint)],
        )
    }
}
