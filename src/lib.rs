//! The floor plan. A request travels top to bottom through the reactor's side;
//! a document travels through the supervisor's side; they meet in the snapshot.
//!
//! Control plane, one thread, may block, allocate, retry, log:
//! `config` (what is meant, from what was written) -> `supervisor` (polls, compiles,
//! publishes, retires) -> `snapshot` (documents made ready to be read) -> `channel`.
//!
//! Data plane, one pinned thread per core, never blocks, never calls upstream, never
//! shares, never frees an environment: `reactor` (ring, accept, bytes and await) ->
//! `http` (bytes to request, answer to bytes) -> `answer` (the spine: one synchronous
//! function) -> `route`, `identity`, `evaluate`, `encode`.
//!
//! Beside both: `limits` (every bound), `files` (bounded reads), `log`, `metrics` and `counts` (what
//! happened), `tls` and `pace`.
//! For people: `serve` puts the process together, `cli` is what was typed, `admin` shows the numbers,
//! `notify` tells systemd; `check`, `health`, `explain` and `demo` are the other commands.
//!
//! **Invariants, as absences.** `evaluate` knows no HTTP and no JSON text. `http` knows no
//! snapshot. `snapshot` knows neither supervisor nor reactor. Only `channel` names
//! crossbeam, only `crate::upstream` names ureq, only `http::request` names monoio-http,
//! only `reactor` names monoio. `answer` has no await, no lock, no log and no clock.
//! `tests/tidy.rs` keeps these true, and has the table of which room may name which.
#![forbid(unsafe_code)]

pub mod admin;
pub mod analytics;
pub mod channel;
pub mod cli;
pub mod commands;
pub mod config;
pub mod counts;
pub mod demo;
pub mod engine;
pub mod files;
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
pub mod storage;
pub mod supervisor;
pub mod systemd;
pub mod terminal;
pub mod tls;
pub mod upstream;
pub mod yielding;
