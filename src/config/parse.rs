//! Parsers for the values of settings.
//!
//! Numbers and booleans are also accepted as strings, because environment variables are strings; pydantic
//! accepts them too.
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::config::secret::Secret;
use crate::config::types::{Driver, EventsFsync, Level, LogFormat, Require, TraitsStore};
use crate::limits::{
    BASE_PATH_BYTES_MAX, EVENTS_SPOOL_BYTES_MIN, HEAD_BYTES_RANGE, HTTP2_STREAMS_RANGE,
    SPIN_MICROSECONDS_RANGE, TRAIT_BYTES_MIN,
};

/// The error of a parser: completes the sentence "expected ...".
pub type Expected = &'static str;

pub fn boolean(value: &Value) -> Result<bool, Expected> {
    const EXPECTED: Expected = "true or false";
    match value {
        Value::Bool(value) => Ok(*value),
        Value::Number(number) if number.as_i64() == Some(1) => Ok(true),
        Value::Number(number) if number.as_i64() == Some(0) => Ok(false),
        Value::String(text) => match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "y" | "on" | "t" => Ok(true),
            "false" | "0" | "no" | "n" | "off" | "f" => Ok(false),
            _ => Err(EXPECTED),
        },
        _ => Err(EXPECTED),
    }
}

/// Seconds as a number or a string, with an optional unit: `10`, `"10"`, `"500ms"`, `"10s"`, `"2m"`, `"1h"`.
fn seconds(value: &Value) -> Option<Duration> {
    let seconds = match value {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => {
            let text = text.trim();
            let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
            let scale = match &text[digits.len()..] {
                "ms" => 0.001,
                "" | "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
            let plain = digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
            digits.parse::<f64>().ok().filter(|_| plain)? * scale
        }
        _ => return None,
    };
    // A century, so that the sum of two times cannot overflow.
    (0.0..=3.2e9).contains(&seconds).then(|| Duration::from_secs_f64(seconds))
}

pub fn interval(value: &Value) -> Result<Duration, Expected> {
    let interval = seconds(value).filter(|interval| *interval >= Duration::from_millis(10));
    interval.ok_or("a number of seconds of at least 0.01, or a string such as \"10s\"")
}

/// As [`interval`]; null is automatic.
pub fn optional_interval(value: &Value) -> Result<Option<Duration>, Expected> {
    if value.is_null() { Ok(None) } else { interval(value).map(Some) }
}

pub fn duration(value: &Value) -> Result<Duration, Expected> {
    seconds(value).ok_or("a number of seconds, or a string such as \"10s\"")
}

pub fn optional_duration(value: &Value) -> Result<Option<Duration>, Expected> {
    if value.is_null() {
        return Ok(None);
    }
    seconds(value).map(Some).ok_or("a number of seconds, or null for never")
}

pub fn port(value: &Value) -> Result<u16, Expected> {
    whole(value).and_then(|number| u16::try_from(number).ok()).ok_or("a port from 0 to 65535")
}

pub fn optional_port(value: &Value) -> Result<Option<u16>, Expected> {
    if value.is_null() { Ok(None) } else { port(value).map(Some) }
}

pub fn count(value: &Value) -> Result<usize, Expected> {
    let count = whole(value).and_then(|number| usize::try_from(number).ok()).filter(|count| *count > 0);
    count.ok_or("a whole number of at least 1")
}

/// `server.head_bytes_max`.
pub fn head_bytes(value: &Value) -> Result<usize, Expected> {
    let bytes = whole(value).and_then(|number| usize::try_from(number).ok());
    bytes.filter(|bytes| HEAD_BYTES_RANGE.contains(bytes)).ok_or("a whole number of bytes from 4096 to 65536")
}

/// `server.http2_streams_max`.
pub fn http2_streams(value: &Value) -> Result<usize, Expected> {
    let streams = whole(value).and_then(|number| usize::try_from(number).ok());
    streams.filter(|streams| HTTP2_STREAMS_RANGE.contains(streams)).ok_or("a whole number from 1 to 1000")
}

/// `server.spin_microseconds`.
pub fn spin_microseconds(value: &Value) -> Result<Duration, Expected> {
    let time = whole(value).filter(|time| SPIN_MICROSECONDS_RANGE.contains(time)).map(Duration::from_micros);
    time.ok_or("a whole number of microseconds from 0 to 1000000")
}

/// As [`count`]; null is unlimited.
pub fn optional_count(value: &Value) -> Result<Option<u64>, Expected> {
    if value.is_null() { Ok(None) } else { count(value).map(|count| Some(count as u64)) }
}

fn whole(value: &Value) -> Option<u64> {
    match value {
        // A float without a fraction is accepted, as in pydantic.
        Value::Number(number) => number.as_u64().or_else(|| {
            number
                .as_f64()
                .filter(|float| float.fract() == 0.0 && (0.0..1e15).contains(float))
                .map(|f| f as u64)
        }),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

pub fn address(value: &Value) -> Result<IpAddr, Expected> {
    let text = value.as_str().unwrap_or_default().trim();
    let text = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    match text {
        "localhost" => Ok(IpAddr::from([127, 0, 0, 1])),
        _ => text.parse().map_err(|_| "an IP address such as 0.0.0.0, 127.0.0.1 or ::"),
    }
}

pub fn text(value: &Value) -> Result<String, Expected> {
    let text = value.as_str().map(str::trim).filter(|text| !text.is_empty());
    text.map(str::to_owned).ok_or("a non-empty string")
}

pub fn optional_path(value: &Value) -> Result<Option<PathBuf>, Expected> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) if !text.is_empty() && !text.contains('\0') => Ok(Some(PathBuf::from(text))),
        _ => Err("a path, or null for none"),
    }
}

/// Permission bits, octal as for `chmod`: `"0660"`. A JSON number would be decimal.
pub fn optional_mode(value: &Value) -> Result<Option<u32>, Expected> {
    let octal = |text: &str| u32::from_str_radix(text.trim(), 8).ok().filter(|mode| *mode <= 0o777);
    match value {
        Value::Null => Some(None),
        Value::String(text) => octal(text).map(Some),
        _ => None,
    }
    .ok_or("octal permissions as a string, such as \"0660\"")
}

/// A key is sent as a header value, so it must be visible ASCII.
pub fn key(text: &str) -> Result<&str, Expected> {
    let text = text.trim();
    let is_key = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    if is_key { Ok(text) } else { Err("a key: a string of visible ASCII characters") }
}

/// An http or https URL without a query, as written.
pub fn url(value: &Value) -> Result<String, Expected> {
    const EXPECTED: Expected = "a URL such as https://flagsmith.example.com/api/v1";
    let text = value.as_str().unwrap_or_default().trim();
    let uri: http::Uri = text.parse().map_err(|_| EXPECTED)?;
    let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
    let has_host = uri.host().is_some_and(|host| !host.is_empty());
    if is_http && has_host && uri.query().is_none() { Ok(text.to_owned()) } else { Err(EXPECTED) }
}

/// Host names for `admin.allowed_hosts`, in lower case: a list, or a comma-separated string.
pub fn hosts(value: &Value) -> Result<Vec<String>, Expected> {
    const EXPECTED: Expected = "a host name such as \"proxy.example.com\" without a port, \".example.com\" for a \
                                domain and its subdomains, \"*\" for all, or a list of them";
    let items: Vec<&str> = match value {
        Value::Null => Vec::new(),
        Value::String(text) => text.split(',').collect(),
        Value::Array(items) => items.iter().map(|item| item.as_str().unwrap_or_default()).collect(),
        _ => return Err(EXPECTED),
    };
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let host = |item: &str| {
        let host = item.trim().to_ascii_lowercase();
        let host = host.strip_suffix('.').unwrap_or(&host);
        let is_name =
            host.bytes().all(is_plain) && !host.trim_start_matches('.').is_empty() && !host.starts_with("..");
        if host == "*" || is_name { Ok(host.to_owned()) } else { Err(EXPECTED) }
    };
    items.into_iter().map(host).collect()
}

pub fn origins(value: &Value) -> Result<Vec<String>, Expected> {
    const EXPECTED: Expected = "an origin such as \"https://www.example.com\", \"*\", or a list of them";
    let items: Vec<&str> = match value {
        // For environment variables; an origin contains no comma.
        Value::String(text) => text.split(',').collect(),
        Value::Array(items) => items.iter().map(|item| item.as_str().unwrap_or_default()).collect(),
        _ => return Err(EXPECTED),
    };
    let origin = |item: &str| {
        let text = item.trim();
        let is_visible = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        is_visible.then(|| text.to_owned())
    };
    items.into_iter().map(|item| origin(item).ok_or(EXPECTED)).collect()
}

/// Whether a browser can send this as `Origin` (RFC 6454 section 7), with any scheme, because apps have
/// their own.
pub fn is_origin(text: &str) -> bool {
    let is_host = |host: &str| {
        !host.is_empty() && !host.contains(['/', '?', '#', '*', ',']) && *host == host.to_ascii_lowercase()
    };
    matches!(text, "*" | "null") || text.split_once("://").is_some_and(|(_, host)| is_host(host))
}

/// `server.base_path`: segments that need no percent-encoding, so that one spelling is compared.
pub fn optional_base_path(value: &Value) -> Result<Option<String>, Expected> {
    const EXPECTED: Expected = "a path such as \"/flags\": it begins with \"/\", does not end with it, and has only \
                                letters, digits and -._~ in its segments";
    let text = match value {
        Value::Null => return Ok(None),
        Value::String(text) if text.is_empty() => return Ok(None),
        value => value.as_str().ok_or(EXPECTED)?,
    };
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let is_segment = |segment: &str| !matches!(segment, "" | "." | "..") && segment.bytes().all(is_plain);
    let is_path = text.strip_prefix('/').is_some_and(|rest| rest.split('/').all(is_segment));
    if is_path && text.len() <= BASE_PATH_BYTES_MAX { Ok(Some(text.to_owned())) } else { Err(EXPECTED) }
}

pub fn log_level(value: &Value) -> Result<Level, Expected> {
    match value.as_str().unwrap_or_default().to_ascii_uppercase().as_str() {
        "CRITICAL" => Ok(Level::Critical),
        "ERROR" => Ok(Level::Error),
        "WARNING" => Ok(Level::Warning),
        "INFO" => Ok(Level::Info),
        "DEBUG" | "NOTSET" => Ok(Level::Debug),
        _ => Err("one of CRITICAL, ERROR, WARNING, INFO, DEBUG"),
    }
}

pub fn log_format(value: &Value) -> Result<LogFormat, Expected> {
    match value.as_str().unwrap_or_default().to_ascii_lowercase().as_str() {
        "generic" => Ok(LogFormat::Generic),
        "json" => Ok(LogFormat::Json),
        _ => Err("\"generic\" or \"json\""),
    }
}

pub fn driver(value: &Value) -> Result<Option<Driver>, Expected> {
    match value.as_str() {
        None if value.is_null() => Ok(None),
        Some("" | "auto") => Ok(None),
        Some("uring") => Ok(Some(Driver::Uring)),
        Some("epoll") => Ok(Some(Driver::Epoll)),
        _ => Err("\"auto\", \"uring\" or \"epoll\""),
    }
}

pub fn fsync(value: &Value) -> Result<EventsFsync, Expected> {
    match value.as_str().unwrap_or_default() {
        "group" => Ok(EventsFsync::Group),
        "second" => Ok(EventsFsync::Second),
        _ => Err("\"group\" or \"second\""),
    }
}

/// `events.spool_bytes_max`.
pub fn spool_bytes(value: &Value) -> Result<u64, Expected> {
    whole(value)
        .filter(|bytes| *bytes >= EVENTS_SPOOL_BYTES_MIN)
        .ok_or("a whole number of bytes of at least 4194304")
}

pub fn require(value: &Value) -> Result<Require, Expected> {
    match value.as_str().unwrap_or_default() {
        "all" => Ok(Require::All),
        "any" => Ok(Require::Any),
        _ => Err("\"all\" or \"any\""),
    }
}

pub fn traits_store(value: &Value) -> Result<TraitsStore, Expected> {
    match value.as_str().unwrap_or_default() {
        "none" => Ok(TraitsStore::None),
        "memory" => Ok(TraitsStore::Memory),
        "disk" => Ok(TraitsStore::Disk),
        "redis" => Ok(TraitsStore::Redis),
        _ => Err("\"none\", \"memory\", \"disk\" or \"redis\""),
    }
}

/// `traits.redis_url`. User and password are percent-encoded; the path is the number of the database.
pub fn optional_redis_url(value: &Value) -> Result<Option<Secret>, Expected> {
    const EXPECTED: Expected = "a URL such as redis://user:password@redis.example.com:6379/0, or rediss:// for TLS, \
                                or null";
    const ONE_SERVER: Expected = "redis:// or rediss:// and one address: for Sentinel or a cluster, an address that \
                                  follows the master, such as that of HAProxy or of a Kubernetes service";
    if value.is_null() {
        return Ok(None);
    }
    let text = value.as_str().unwrap_or_default().trim();
    let (scheme, rest) = text.split_once("://").ok_or(EXPECTED)?;
    if scheme.contains("sentinel") || scheme.contains("cluster") || rest.contains(',') {
        return Err(ONE_SERVER);
    }
    let uri: http::Uri = text.parse().map_err(|_| EXPECTED)?;
    let is_database = |path: &str| path.bytes().all(|byte| byte.is_ascii_digit()) && path.len() < 10;
    let is_valid = matches!(scheme, "redis" | "rediss")
        && uri.host().is_some_and(|host| !host.is_empty())
        && is_database(uri.path().trim_matches('/'))
        && uri.query().is_none()
        && !text.contains('#');
    if is_valid { Ok(Some(Secret::new(text))) } else { Err(EXPECTED) }
}

/// `traits.bytes_max`.
pub fn trait_bytes(value: &Value) -> Result<u64, Expected> {
    whole(value)
        .filter(|bytes| *bytes >= TRAIT_BYTES_MIN)
        .ok_or("a whole number of bytes of at least 1048576")
}

pub fn optional_key(value: &Value) -> Result<Option<Secret>, Expected> {
    match value {
        Value::Null => Ok(None),
        _ => key(value.as_str().unwrap_or("")).map(|key| Some(Secret::new(key))),
    }
}

pub fn documents(value: &Value) -> Result<Vec<PathBuf>, Expected> {
    const EXPECTED: Expected = "a list of paths of environment documents";
    let paths = value.as_array().ok_or(EXPECTED)?.iter().map(optional_path);
    paths.map(|path| path.ok().flatten().ok_or(EXPECTED)).collect()
}
