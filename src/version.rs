//! Which build this is, as `--version`, the log, `/metrics` and `/status.json` state it.
//!
//! `build.rs` sets the values. They depend on the commit and the target only, so that two builds of one
//! commit are equal.
use std::fmt::Display;

/// The version of the release, such as `0.1.0`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The first characters of the commit, or `unknown`.
pub const COMMIT: &str = env!("EDGE_PROXY_GIT_SHA");

/// The date of the commit (UTC, `2026-11-26`), or `unknown`.
pub const COMMIT_DATE: &str = env!("EDGE_PROXY_COMMIT_DATE");

/// The target triple, such as `x86_64-unknown-linux-musl`.
pub const TARGET: &str = env!("EDGE_PROXY_TARGET");

/// What `--version` prints after the name.
pub const LONG: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (",
    env!("EDGE_PROXY_GIT_SHA"),
    " ",
    env!("EDGE_PROXY_COMMIT_DATE"),
    ", ",
    env!("EDGE_PROXY_TARGET"),
    ")"
);

/// The labels of `edge_proxy_info`.
pub const LABELS: [(&str, &dyn Display); 4] =
    [("version", &VERSION), ("commit", &COMMIT), ("commit_date", &COMMIT_DATE), ("target", &TARGET)];
