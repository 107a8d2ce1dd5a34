//! Configuration: flags, environment variables and the JSON file, merged and validated into a [`Config`].
//!
//! [`load`] returns a complete configuration or all problems together ([`ConfigError`]); a value of a
//! [`Config`] needs no further check. Nothing is opened or started, so a reload calls it again.
//! To add a setting: a row in [`settings::SETTINGS`] (name, kind, default, meaning), a field in `types.rs`, a
//! `read` in `build.rs`.
mod build;
mod cores;
mod file;
mod headers;
mod issue;
mod kept_traits;
mod kind;
mod layers;
mod networks;
mod otel_variables;
mod pairs;
mod parse;
mod raw;
mod schema;
mod secret;
mod setting_error;
pub mod settings;
mod suggest;
mod telemetry;
#[cfg(test)]
mod tests;
mod types;
mod variables;

pub use crate::config::build::load;
pub use crate::config::issue::{ConfigError, ConfigIssue, ConfigWarning, SettingSource};
pub use crate::config::layers::Inputs;
pub use crate::config::networks::{AddressLists, ForwardedAllowIps, Networks};
pub use crate::config::schema::{all_settings, schema};
pub use crate::config::secret::Secret;
pub use crate::config::setting_error::SettingError;
pub use crate::config::telemetry::{OtlpEndpoint, RootSampler, Sampler, SpanBatches, Telemetry};
pub use crate::config::types::{
    Admin, Analytics, Certificate, Config, Driver, EnvironmentConfig, EventsConfig, EventsFsync, HealthCheck,
    Level, LogFormat, Logging, Realtime, Require, Server, Sse, Staleness, TlsConfig, TraitsConfig,
    TraitsStore, reachable,
};

/// The default configuration with an example key pair, which `render-config` writes.
pub const DEFAULT_JSON: &str = include_str!("default.json");
