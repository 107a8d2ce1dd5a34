//! `edge-proxy serve` from the first line to the last: the one place where the rooms meet.
//!
//! In: where to read the configuration. Out: a process that serves until it is told to stop.
//! Invariant: sockets are bound before any thread is started; nothing here is on the way of a
//! request. The reactors and the supervisor are wired in as they land.
use std::error::Error;

use crate::config;
use crate::config::source::Inputs;

/// Why it could not start or go on.
pub type Ended = Result<(), Box<dyn Error>>;

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// A wrong configuration ([`config::ConfigError`]).
pub fn serve(inputs: Inputs) -> Ended {
    config::read(&inputs)?;
    Err("the reactors are not wired in yet".into())
}

/// As [`serve`].
///
/// # Errors
/// As [`serve`].
pub fn demo(inputs: Inputs) -> Ended {
    serve(inputs)
}
