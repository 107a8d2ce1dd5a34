//! What the value of a setting may be, as JSON Schema.
//!
//! A schema describes JSON: numbers as numbers, lists as lists. The parsers also accept the texts that
//! environment variables need (`"8000"`, `"yes"`, `"a,b"`), which a file has no reason for. A test checks
//! that the parser accepts what the schema accepts.
use serde_json::{Value, json};

use crate::limits::{
    API_HEADER_BYTES_MAX, API_HEADERS_MAX, BASE_PATH_BYTES_MAX, EVENTS_SPOOL_BYTES_MIN, HEAD_BYTES_RANGE,
    HTTP2_STREAMS_RANGE, NETWORKS_MAX, SPIN_MICROSECONDS_RANGE, TRAIT_BYTES_MIN,
};

/// One per parser in `parse.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Address,
    AddressList,
    /// Without effect: any value.
    Anything,
    BasePath,
    Boolean,
    Cores,
    Count,
    Driver,
    Duration,
    Fsync,
    HeadBytes,
    HeaderFields,
    Hosts,
    Http2Streams,
    Interval,
    KeyPairs,
    LogFormat,
    LogLevel,
    Networks,
    OptionalBoolean,
    OptionalCount,
    OptionalDuration,
    OptionalInterval,
    OptionalKey,
    OptionalMode,
    OptionalPath,
    OptionalPort,
    Origins,
    Paths,
    Port,
    RedisUrl,
    Require,
    SpinMicroseconds,
    SpoolBytes,
    Text,
    TraitBytes,
    TraitsStore,
    Url,
}

/// Seconds with an optional unit.
const TIME: &str = r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)(ms|s|m|h)?$";
/// As [`TIME`], in whole units other than zero.
const TIME_NOT_ZERO: &str = r"^([0-9]*[1-9][0-9]*(s|m|h)?|[1-9][0-9]+ms)$";
const KEY: &str = "^[!-~]+$";
const HOST: &str = r"^(\*|\.?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?)$";
const IPV4: &str =
    r"(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])(\.(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])){3}";
const IPV6_NETWORK: &str = r"^[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(/(12[0-8]|1[01][0-9]|[1-9]?[0-9]))?$";
const REDIS_URL: &str = r"^rediss?://[^\s/?#,]+(/[0-9]{0,9})?$";
const BASE_PATH: &str = r"^(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]+)+$";
/// A century, as in `parse::seconds`.
const SECONDS_MAX: f64 = 3.2e9;

impl Kind {
    /// The schema of a value.
    pub fn schema(self) -> Value {
        match self {
            Self::Anything => json!({}),
            Self::Boolean => json!({"type": "boolean"}),
            Self::OptionalBoolean => json!({"type": ["boolean", "null"]}),
            Self::Count => json!({"type": "integer", "minimum": 1}),
            Self::OptionalCount => json!({"type": ["integer", "null"], "minimum": 1}),
            Self::HeadBytes => {
                let (least, most) = (HEAD_BYTES_RANGE.start(), HEAD_BYTES_RANGE.end());
                json!({"type": "integer", "minimum": least, "maximum": most})
            }
            Self::Http2Streams => {
                json!({"type": "integer", "minimum": HTTP2_STREAMS_RANGE.start(), "maximum": HTTP2_STREAMS_RANGE.end()})
            }
            Self::SpinMicroseconds => {
                let (least, most) = (SPIN_MICROSECONDS_RANGE.start(), SPIN_MICROSECONDS_RANGE.end());
                json!({"type": "integer", "minimum": least, "maximum": most})
            }
            Self::Port => json!({"type": "integer", "minimum": 0, "maximum": 65535}),
            Self::OptionalPort => json!({"type": ["integer", "null"], "minimum": 0, "maximum": 65535}),
            Self::Duration => time("number", 0.0, TIME),
            Self::Interval => time("number", 0.01, TIME_NOT_ZERO),
            Self::OptionalDuration => or_null(time("number", 0.0, TIME)),
            Self::OptionalInterval => or_null(time("number", 0.01, TIME_NOT_ZERO)),
            Self::Text => json!({"type": "string", "pattern": r"\S"}),
            Self::Url => json!({"type": "string", "pattern": r"^https?://[^\s/?#]+(/[^\s?#]*)?$"}),
            Self::OptionalPath => json!({"type": ["string", "null"], "minLength": 1}),
            Self::OptionalKey => json!({"type": ["string", "null"], "pattern": KEY}),
            Self::OptionalMode => json!({"type": ["string", "null"], "pattern": "^0?[0-7]{1,3}$"}),
            Self::Cores => json!({"anyOf": [
                {"type": "integer", "minimum": 1, "maximum": 8192},
                {"type": "string", "pattern": r"^(all|[1-9][0-9]*|[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*,?)$"},
                {"type": "null"},
            ]}),
            Self::Driver => json!({"enum": ["auto", "uring", "epoll", null]}),
            Self::Fsync => json!({"enum": ["group", "second"]}),
            Self::SpoolBytes => json!({"type": "integer", "minimum": EVENTS_SPOOL_BYTES_MIN}),
            Self::TraitBytes => json!({"type": "integer", "minimum": TRAIT_BYTES_MIN}),
            Self::TraitsStore => json!({"enum": ["none", "memory", "disk", "redis"]}),
            Self::RedisUrl => json!({"type": ["string", "null"], "pattern": REDIS_URL}),
            Self::Require => json!({"enum": ["all", "any"]}),
            Self::LogFormat => json!({"enum": ["generic", "json"]}),
            Self::LogLevel => json!({"enum": ["CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG", "NOTSET"]}),
            Self::Address => json!({"anyOf": [
                {"type": "string", "pattern": format!("^({IPV4}|localhost)$")},
                {"type": "string", "format": "ipv6", "pattern": ":"},
            ]}),
            Self::Networks => json!({"anyOf": [{"const": "*"}, list(network(r"|\*"))]}),
            Self::AddressList => {
                json!({"type": ["array", "null"], "items": network(""), "maxItems": NETWORKS_MAX})
            }
            Self::BasePath => {
                json!({"type": ["string", "null"], "pattern": BASE_PATH, "maxLength": BASE_PATH_BYTES_MAX})
            }
            Self::HeaderFields => json!({
                "type": ["object", "null"],
                "propertyNames": {"pattern": "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"},
                "additionalProperties": {
                    "type": "string", "pattern": "^[!-~]([ -~]*[!-~])?$", "maxLength": API_HEADER_BYTES_MAX,
                },
                "maxProperties": API_HEADERS_MAX,
            }),
            Self::Hosts => {
                json!({"anyOf": [list(json!({"type": "string", "pattern": HOST})), {"type": "null"}]})
            }
            Self::Origins => list(json!({"type": "string", "pattern": KEY})),
            Self::Paths => list(json!({"type": "string", "minLength": 1})),
            Self::KeyPairs => list(key_pair()),
        }
    }
}

/// An address or a network; `other` is a further alternative of the pattern.
fn network(other: &str) -> Value {
    json!({"anyOf": [
        {"type": "string", "pattern": format!(r"^({IPV4}(/(3[0-2]|[12]?[0-9]))?{other})$")},
        {"type": "string", "pattern": IPV6_NETWORK},
    ]})
}

fn list(items: Value) -> Value {
    json!({"type": "array", "items": items})
}

fn time(number: &str, least: f64, text: &str) -> Value {
    json!({"anyOf": [
        {"type": number, "minimum": least, "maximum": SECONDS_MAX},
        {"type": "string", "pattern": text},
    ]})
}

fn or_null(mut schema: Value) -> Value {
    if let Some(forms) = schema["anyOf"].as_array_mut() {
        forms.push(json!({"type": "null"}));
    }
    schema
}

/// A pair with a document needs no server-side key.
fn key_pair() -> Value {
    json!({
        "type": "object",
        "properties": {
            "client_side_key": {
                "type": "string",
                "pattern": "^(?!ser\\.)[!-~]+$",
                "description": "The client-side environment key.",
            },
            "server_side_key": {
                "type": ["string", "null"],
                "pattern": r"^ser\.[!-~]*$",
                "description": "A server-side environment key.",
            },
            "document_path": {
                "type": ["string", "null"],
                "minLength": 1,
                "description": "Serve the environment from this document instead of polling it.",
            },
        },
        "anyOf": [
            {"required": ["server_side_key"], "properties": {"server_side_key": {"type": "string"}}},
            {"required": ["document_path"], "properties": {"document_path": {"type": "string"}}},
        ],
        "required": ["client_side_key"],
        "additionalProperties": false,
    })
}
