//! The configuration as typed, validated values.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::config::networks::{AddressLists, ForwardedAllowIps};
use crate::config::secret::Secret;
use crate::config::telemetry::Telemetry;

/// The address at which a local client reaches a listener: loopback if it listens on all addresses.
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
    /// Empty for a document on disk without a key pair: the `api_key` of the document is used.
    pub client_side_key: String,
    pub server_side_key: Option<Secret>,
    /// Keys of further pairs with the same client-side key, as during a key rotation. Each gives access
    /// to the environment, and upstream is polled with the next one if it rejects a key.
    pub further_server_side_keys: Vec<Secret>,
    /// Serve this file instead of polling upstream.
    pub document_path: Option<PathBuf>,
    /// The document of the demo.
    pub embedded_document: Option<&'static str>,
}

impl EnvironmentConfig {
    /// Whether its document is fetched from upstream.
    pub fn is_polled(&self) -> bool {
        self.document_path.is_none() && self.embedded_document.is_none()
    }

    /// Every server-side key, in the order of the pairs.
    pub fn server_side_keys(&self) -> impl Iterator<Item = &Secret> {
        self.server_side_key.iter().chain(&self.further_server_side_keys)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The file that was read; the supervisor watches it for changes.
    pub path: Option<PathBuf>,
    /// The files that `_FILE` variables name, which contain secrets; watched as well.
    pub secret_files: Vec<PathBuf>,
    pub environments: Vec<EnvironmentConfig>,
    /// With a trailing slash, such as `https://edge.api.flagsmith.com/api/v1/`.
    pub api_url: String,
    /// Header fields of every request to `api_url`, for a gateway in front of it: names in lower case, and
    /// their values.
    pub api_headers: Vec<(String, Secret)>,
    pub api_poll_frequency: Duration,
    pub api_poll_timeout: Duration,
    /// Interval between unconditional polls: a 304 can hide an edit (compatibility.md 6.3). `None`:
    /// chosen by the size of the document.
    pub api_full_refresh: Option<Duration>,
    /// Limit of a document in bytes, all pages together.
    pub api_document_bytes_max: usize,
    /// PEM file of certificate authorities for `api_url`, instead of the built-in ones.
    pub api_ca_file: Option<PathBuf>,
    /// Client certificate for `api_url`.
    pub api_client_certificate: Option<Certificate>,
    /// Directory of the last good documents, loaded at start.
    pub cache_dir: Option<PathBuf>,
    pub realtime: Realtime,
    /// Key for `<api_url>proxy/config/`, which lists the environments to serve.
    pub proxy_key: Option<Secret>,
    /// How long discovery must return an empty list before the environments are removed. Zero:
    /// immediately.
    pub discovery_empty_grace: Duration,
    /// Ask upstream for deltas of documents where it offers them, and offer them to other proxies.
    pub document_deltas: bool,
    pub usage_flush_interval: Duration,
    pub analytics: Analytics,
    pub events: EventsConfig,
    pub traits: TraitsConfig,
    pub sse: Sse,
    pub server: Server,
    pub allow_origins: Vec<String>,
    pub health_check: HealthCheck,
    pub logging: Logging,
    pub admin: Option<Admin>,
    /// From `OTEL_*` variables: it is not part of the file.
    pub telemetry: Telemetry,
    /// CPU ids, one reactor each.
    pub cores: Vec<usize>,
}

impl Config {
    /// The files whose change makes the configuration another one.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.path.iter().chain(&self.secret_files)
    }

    /// The directory of the disk store. `None` with another store.
    pub fn traits_folder(&self) -> Option<PathBuf> {
        let is_disk = matches!(self.traits.store, TraitsStore::Disk | TraitsStore::Redis);
        let folder = || self.cache_dir.as_ref().map(|folder| folder.join("traits"));
        self.traits.path.clone().or_else(folder).filter(|_| is_disk)
    }

    pub fn staleness(&self) -> Staleness {
        let grace = self.health_check.environment_update_grace_period;
        Staleness { poll_frequency: self.api_poll_frequency, grace }
    }
}

/// When a document is stale.
#[derive(Clone, Copy, Debug)]
pub struct Staleness {
    poll_frequency: Duration,
    grace: Option<Duration>,
}

impl Staleness {
    /// The age at which a document is stale if that many environments are served: the poll interval plus
    /// the grace period times their number, as in the Python proxy. `None`: never.
    pub fn age_max(&self, environments: usize) -> Option<Duration> {
        let count = u32::try_from(environments).unwrap_or(u32::MAX);
        self.grace.map(|grace| self.poll_frequency.saturating_add(grace.saturating_mul(count)))
    }
}

/// Listeners for SDKs, with their timeouts and limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    pub host: IpAddr,
    pub port: u16,
    /// Replace the process that serves the port: sharing it causes no warning.
    pub take_over: bool,
    /// False: listen only on `unix_socket`.
    pub tcp: bool,
    pub unix_socket: Option<PathBuf>,
    /// Permission bits of the unix socket. `None`: by the umask.
    pub unix_socket_mode: Option<u32>,
    pub tls: Option<TlsConfig>,
    pub timeout_keep_alive: Duration,
    /// For a request head, from its first byte.
    pub timeout_head: Duration,
    /// For a request body, from the end of the head.
    pub timeout_body: Duration,
    /// For a peer that does not read the response.
    pub timeout_write: Duration,
    /// Limit of a request head in bytes; the request target may take half of it.
    pub head_bytes_max: usize,
    /// Limit of connections per reactor.
    pub connections_max: usize,
    /// Limit of requests per connection. `None`: unlimited.
    pub requests_max: Option<u64>,
    /// Speak HTTP/2 beside HTTP/1.1.
    pub http2: bool,
    /// A reactor with too many connections passes new ones on to another.
    pub spread: bool,
    /// Limit of concurrent streams of an HTTP/2 connection.
    pub http2_streams_max: usize,
    pub proxy_headers: bool,
    /// Peers whose `X-Forwarded-For` is trusted if `proxy_headers` is set.
    pub forwarded_allow_ips: ForwardedAllowIps,
    /// Which clients are answered. `None`: all of them.
    pub address_lists: Option<AddressLists>,
    /// The path below which all routes but those of health are served; begins with `/`, does not end with it.
    pub base_path: Option<String>,
    /// `None`: io_uring if the kernel allows it, else epoll.
    pub driver: Option<Driver>,
    /// How long a reactor polls for requests after a response, before it sleeps.
    pub spin: Duration,
    /// After SIGTERM: requests are served and readiness fails for this time.
    pub shutdown_delay: Duration,
    /// After `shutdown_delay`: open requests must finish within this time.
    pub shutdown_grace: Duration,
}

/// The I/O interface of a reactor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    Uring,
    Epoll,
}

/// A certificate chain and its private key, both PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// TLS of the TCP listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    pub certificate: Certificate,
    /// Require client certificates of these authorities.
    pub client_ca: Option<PathBuf>,
}

/// The event streams of upstream.
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

/// The experiment events that SDKs send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventsConfig {
    /// Serve `POST /v1/events`. Needs `cache_dir`.
    pub enabled: bool,
    /// With a trailing slash, such as `https://events.api.flagsmith.com/`.
    pub url: String,
    pub flush_interval: Duration,
    pub fsync: EventsFsync,
    /// Limit of the events on disk, bytes.
    pub spool_bytes_max: u64,
}

/// When events are written to the disk itself. In either case they survive the end of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventsFsync {
    /// Before they are answered: a loss of power loses none.
    Group,
    /// Once a second: a loss of power loses those of the last second.
    Second,
}

/// Traits that are kept between requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraitsConfig {
    pub store: TraitsStore,
    /// Directory of the disk store. `None`: `traits` in `cache_dir`.
    pub path: Option<PathBuf>,
    pub identities_max: usize,
    /// Limit of all records, bytes; half of it is the limit of one environment.
    pub bytes_max: u64,
    /// An identity that was not seen for this time is removed. Zero: never.
    pub ttl: Duration,
    /// Whether what is kept is sent upstream.
    pub forward: bool,
    pub forward_interval: Duration,
    pub redis_url: Option<Secret>,
    /// What all keys in Redis begin with.
    pub redis_prefix: String,
    /// Certificate authorities of Redis (PEM). `None`: the built-in ones.
    pub redis_ca_file: Option<PathBuf>,
    /// Not ready while Redis is not available.
    pub require: bool,
}

/// Where traits are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraitsStore {
    /// They are not: each request brings its traits, as with the Python proxy.
    None,
    Memory,
    Disk,
    /// In Redis, which several proxies share; also on disk if there is a directory.
    Redis,
}

/// The event streams of this proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sse {
    /// Close a stream after this time. Zero: never.
    pub max_stream: Duration,
}

/// The listener of the status page and of `/metrics`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    pub host: IpAddr,
    pub port: u16,
    /// Host names accepted in `Host`, in lower case. `*` accepts all, a leading dot covers subdomains; IP
    /// addresses and `localhost` are always accepted.
    pub allowed_hosts: Vec<String>,
}

/// When the proxy is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// Multiplied by the number of environments ([`Staleness`]). `None`: documents are never stale.
    pub environment_update_grace_period: Option<Duration>,
    /// Whether a document loaded from `cache_dir` is enough for readiness.
    pub ready_from_cache: bool,
    pub require: Require,
}

/// How many environments must be fresh for the proxy to be ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Require {
    All,
    Any,
}

/// Log level, ordered by severity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Debug,
    Info,
    Warning,
    Error,
    Critical,
}

impl Level {
    /// The name as structlog prints it.
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text, as structlog's console renderer writes it.
    Generic,
    Json,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logging {
    pub log_level: Level,
    pub log_format: LogFormat,
    pub log_event_field_name: String,
    pub colour: bool,
    pub enable_access_log: bool,
    /// `None`: access records are written to stdout.
    pub access_log_file: Option<PathBuf>,
}
