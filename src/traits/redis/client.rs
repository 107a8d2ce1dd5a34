//! Connections to Redis: address, TLS, timeouts, names of keys, and errors without secrets.
use std::fmt;
use std::time::{Duration, SystemTime};

use redis::{Client, Connection, ErrorKind, RedisError, ServerErrorKind, TlsCertificates};

use crate::clock;
use crate::config::{Config, SettingError, TraitsConfig};
use crate::files::{self, Links};
use crate::limits::PEM_BYTES_MAX;
use crate::traits::redis::wire;

/// Time for a connection, and for each answer. Beyond: Redis is not available.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How Redis can be reached, and what its keys begin with.
#[derive(Clone, Debug)]
pub struct RedisTarget {
    client: Client,
    /// Host and port, without user and password.
    pub address: String,
    prefix: String,
    /// Seconds after which Redis removes an identity; 0: never.
    pub ttl_seconds: u64,
}

/// Why Redis cannot be used. Its text has neither the password nor traits.
#[derive(Debug)]
pub enum RedisFault {
    /// The data are not those that this process has read: they were lost.
    OtherGeneration,
    Failed(String),
    /// The store thread has ended.
    Stopped,
}

impl fmt::Display for RedisFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherGeneration => f.write_str("the data were lost or replaced"),
            Self::Failed(text) => f.write_str(text),
            Self::Stopped => f.write_str("the process ends"),
        }
    }
}

impl std::error::Error for RedisFault {}

impl From<RedisError> for RedisFault {
    fn from(error: RedisError) -> Self {
        if error.code() == Some("GENERATION") {
            return Self::OtherGeneration;
        }
        let remedy = match error.kind() {
            ErrorKind::Server(
                ServerErrorKind::Moved
                | ServerErrorKind::Ask
                | ServerErrorKind::CrossSlot
                | ServerErrorKind::ClusterDown,
            ) => "; Redis Cluster is not supported: use one that is not a cluster, with replicas",
            ErrorKind::Server(ServerErrorKind::ReadOnly) => {
                "; it is a replica: traits.redis_url must name the master, or an address that follows it"
            }
            ErrorKind::Server(ServerErrorKind::NoPerm) => "; see docs/traits.md for the ACL that is needed",
            _ if error.code() == Some("OOM") => "; raise maxmemory of Redis, or set traits.ttl_seconds",
            _ if error.is_timeout() => return Self::Failed("timeout".to_owned()),
            _ => "",
        };
        // The client ends its own texts with what kind of error it is.
        Self::Failed(format!("{error}{remedy}"))
    }
}

impl RedisTarget {
    /// # Errors
    /// The file of authorities cannot be read, or the client does not accept the URL.
    pub fn new(config: &Config) -> Result<Self, SettingError> {
        let TraitsConfig { redis_url, redis_prefix, redis_ca_file, ttl, .. } = &config.traits;
        let url = redis_url.as_ref().map_or("", |url| url.expose());
        let invalid = |error: RedisError| {
            // The text of the client may repeat what it does not accept.
            SettingError::new("traits.redis_url", format!("it is not accepted: {}", error.category()))
        };
        let client = match redis_ca_file {
            None => Client::open(url).map_err(invalid)?,
            Some(path) => {
                let unreadable = |error: &dyn fmt::Display| {
                    let problem = format!("{}: {error}; expected PEM certificates", path.display());
                    SettingError::new("traits.redis_ca_file", problem)
                };
                let pem =
                    files::read(path, Links::Follow, PEM_BYTES_MAX).map_err(|error| unreadable(&error))?;
                let certificates = TlsCertificates { client_tls: None, root_cert: Some(pem) };
                Client::build_with_tls(url, certificates).map_err(|error| unreadable(&error))?
            }
        };
        let address = client.get_connection_info().addr().to_string();
        Ok(Self { client, address, prefix: redis_prefix.clone(), ttl_seconds: ttl.as_secs() })
    }

    /// Connects, logs in, and sets the timeouts.
    ///
    /// # Errors
    /// Redis cannot be reached, or refuses the login.
    pub fn connect(&self) -> Result<Connection, RedisFault> {
        let connection = self.client.get_connection_with_timeout(ANSWER_TIMEOUT)?;
        connection.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        connection.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        Ok(connection)
    }

    /// The name of a key.
    pub fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The hash of an identity.
    pub fn identity_key(&self, name: &str) -> String {
        format!("{}i:{name}", self.prefix)
    }

    /// The pattern of the hashes of all identities.
    pub fn identity_pattern(&self) -> String {
        let mut pattern = String::new();
        for char in self.identity_key("").chars() {
            if matches!(char, '*' | '?' | '[' | ']' | '\\') {
                pattern.push('\\');
            }
            pattern.push(char);
        }
        pattern + "*"
    }

    /// The name of an identity, from that of its hash.
    pub fn identity_name<'k>(&self, key: &'k str) -> Option<&'k str> {
        let name = key.strip_prefix(self.prefix.as_str())?.strip_prefix("i:")?;
        wire::parse_name(name).map(|_| name)
    }
}

/// Milliseconds that the clock of Redis is ahead of that of this machine.
///
/// # Errors
/// The connection failed.
pub fn clock_offset(connection: &mut Connection) -> Result<i64, RedisFault> {
    let (seconds, microseconds): (u64, u64) = redis::cmd("TIME").query(connection)?;
    let theirs = Duration::from_secs(seconds) + Duration::from_micros(microseconds);
    let ours = clock::wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let milliseconds = |span: Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
    Ok(milliseconds(theirs) - milliseconds(ours))
}

/// What `edge-proxy check` reports of Redis.
///
/// # Errors
/// It cannot be reached, or this user may not do what the proxy does.
pub fn check_redis(config: &Config) -> Result<String, Box<dyn std::error::Error>> {
    let target = RedisTarget::new(config)?;
    let unusable = |fault: RedisFault| format!("{}: {fault}", target.address);
    let mut connection = target.connect().map_err(unusable)?;
    let offset = clock_offset(&mut connection).map_err(unusable)?;
    let script = redis::Script::new("return redis.call('GET', KEYS[1])");
    let generation: Result<Option<String>, _> = script.key(target.key("generation")).invoke(&mut connection);
    let generation = generation.map_err(|error| unusable(error.into()))?;
    let state = if generation.is_some() { "has kept traits" } else { "has no kept traits yet" };
    Ok(format!("{} answers and {state}; its clock differs by {offset} ms", target.address))
}
