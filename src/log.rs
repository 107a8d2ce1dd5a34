//! Records as fields, written to stdout by one thread.
//!
//! In: events from the supervisor (`Log`) and, later, access records from the reactors. Out: one
//! line each, generic or JSON. Invariant: no caller ever blocks on it; what does not fit in the
//! queue is dropped and counted; a secret is cut before it comes here (`config::Secret`).
use std::fmt::Display;

use crate::config::{Level, Logging};

/// A handle to the writer; cheap to clone.
#[derive(Clone, Debug)]
pub struct Log {}

impl Log {
    /// Starts the writer thread.
    pub fn start(_settings: &Logging) -> Self {
        unimplemented!("config and log")
    }
    /// Logs `event` (lower_snake_case, no interpolation) with its fields.
    pub fn event(&self, _level: Level, _event: &'static str, _fields: &[(&'static str, &dyn Display)]) {
        unimplemented!("config and log")
    }
}
