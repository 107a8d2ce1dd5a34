//! The client of the Flagsmith API (environment documents, event streams, discovery, uploads) and of a
//! collector of telemetry.
//!
//! Keys are sent only to the configured origin, or to its host by https. Every read is bounded in bytes and
//! in time. The supervisor, `check` and `explain` use the same client.
mod absolute;
mod api;
mod basic;
mod client;
mod document;
mod error;
mod events;
mod no_proxy;
mod otlp;
mod outbound_proxy;
pub mod pagination;
mod proxy_api;
mod response;
mod stream;
mod tls_errors;
mod tracing;
mod traits;
pub mod url;

pub use crate::upstream::api::Upstream;
pub use crate::upstream::client::UpstreamResponse as Stream;
pub use crate::upstream::document::{DeltaOutcome, DocumentResponse, Fetched, KnownDocument};
pub use crate::upstream::error::{PollError, PollErrorKind};
pub use crate::upstream::events::EventsOutcome;
pub use crate::upstream::otlp::{Collector, ExportOutcome};
pub use crate::upstream::proxy_api::{
    DiscoveredEnvironment, PostOutcome, ServerKey, parse as parse_discovered,
};
pub use crate::upstream::traits::{TraitRequest, TraitsOutcome};
