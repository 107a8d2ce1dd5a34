//! What every export begins with: the resource and the scope.
use std::time::{SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;

use crate::clock;
use crate::config::Telemetry;
use crate::spans::context::lower_hex;
use crate::version::VERSION;

pub const SCOPE: &str = "edge-proxy";

/// The process as the origin of telemetry.
#[derive(Debug)]
pub struct Origin {
    pub resource: Resource,
    pub scope: InstrumentationScope,
    /// When the process started: the beginning of all sums, nanoseconds since 1970.
    pub started: u64,
}

impl Origin {
    pub fn new(settings: &Telemetry, started: SystemTime) -> Self {
        let mut attributes: Vec<KeyValue> =
            settings.resource.iter().map(|(name, value)| text(name, value.clone())).collect();
        // Two processes with the same attributes, as during a takeover, are two instances.
        let instance = clock::random_bytes().unwrap_or_default();
        let own = [
            ("service.version", VERSION.to_owned()),
            ("service.instance.id", uuid(instance)),
            ("process.pid", std::process::id().to_string()),
            ("telemetry.sdk.language", "rust".to_owned()),
            ("telemetry.sdk.name", SCOPE.to_owned()),
            ("telemetry.sdk.version", VERSION.to_owned()),
        ];
        for (name, value) in own {
            if !attributes.iter().any(|attribute| attribute.key == name) {
                attributes.push(match value.parse() {
                    Ok(number) if name == "process.pid" => attribute(name, Value::IntValue(number)),
                    _ => text(name, value),
                });
            }
        }
        let scope = InstrumentationScope {
            name: SCOPE.to_owned(),
            version: VERSION.to_owned(),
            ..InstrumentationScope::default()
        };
        Self { resource: Resource { attributes, ..Resource::default() }, scope, started: unix_nanos(started) }
    }
}

/// A random UUID (RFC 9562 5.4).
fn uuid(mut bytes: [u8; 16]) -> String {
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let digits = lower_hex(&bytes);
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}

pub fn attribute(name: &str, value: Value) -> KeyValue {
    KeyValue { key: name.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

pub fn text(name: &str, value: impl Into<String>) -> KeyValue {
    attribute(name, Value::StringValue(value.into()))
}

/// Nanoseconds since 1970; 0 before, and the maximum after 2554.
pub fn unix_nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
