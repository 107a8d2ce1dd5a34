//! Edge proxy for Flagsmith feature flags.
//!
//! Control plane (the supervisor thread and its pools; may block, allocate, retry, log):
//! `config` -> `supervisor` (polls through `upstream`, compiles, publishes) -> `snapshot` -> `channel`.
//! Data plane (one pinned reactor thread per core; never blocks, never calls upstream, shares no mutable
//! state): `reactor` -> `http` -> `handlers` -> `identity` and `engine`.
//!
//! `engine` evaluates flags and `python` holds the semantics of Python that it follows.
//! `docs/architecture.md` describes both planes; `tests/tidy.rs` holds the allowed dependencies between
//! modules.
#![forbid(unsafe_code)]

pub mod admin;
pub mod analytics;
pub mod channel;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod config;
pub mod counts;
pub mod delta;
pub mod demo;
pub mod engine;
pub mod events;
pub mod files;
pub mod forwarding;
pub mod handlers;
pub mod http;
pub mod identity;
pub mod json;
pub mod limits;
pub mod log;
pub mod metrics;
pub mod python;
pub mod reactor;
pub mod schedule;
pub mod serve;
pub mod snapshot;
pub mod spans;
pub mod step_budget;
pub mod storage;
pub mod supervisor;
pub mod systemd;
pub mod telemetry;
pub mod terminal;
pub mod timestamp;
pub mod tls;
pub mod trait_forwarding;
pub mod trait_table;
pub mod traits;
pub mod upstream;
pub mod validators;
pub mod version;
pub mod work;
pub mod yielding;
