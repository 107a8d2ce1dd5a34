//! What requests read: every environment at one instant, immutable.
//!
//! In: compiled environments from the supervisor. Out: lookups for `answer`. Invariant: a
//! snapshot is never changed once published; whatever depends on the document alone was
//! computed before (`compile`). Nothing here knows the supervisor or the reactor.
pub mod compile;
pub(crate) mod condition;
pub mod document;
pub mod lookup;
mod output;
mod program;
pub(crate) mod raw;
pub mod rule;
mod rules;
mod transcode;

use std::sync::Arc;
use std::time::SystemTime;

use hashbrown::HashMap;

pub use compile::{CompileError, Environment, Warning};

/// What a key may see. Server-side keys start with `ser.` (compatibility.md 1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Client,
    Server,
}

/// What one key opens.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// Index into [`Snapshot::slots`].
    pub slot: usize,
    pub role: Role,
    /// From discovery (compatibility.md 4.3): past it, the key is unknown.
    pub expires_at: Option<SystemTime>,
}

/// Where the document that is served came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Upstream,
    Cache,
    File,
    Embedded,
}

impl Source {
    /// The name in metrics and health.
    pub fn name(self) -> &'static str {
        match self {
            Self::Upstream => "upstream",
            Self::Cache => "cache",
            Self::File => "file",
            Self::Embedded => "embedded",
        }
    }
}

/// One configured environment: its document, if there is one yet, and how fresh it is.
#[derive(Clone, Debug)]
pub struct Slot {
    pub client_side_key: Box<str>,
    /// `None` until the first good document: requests are answered 502.
    pub environment: Option<Arc<Environment>>,
    pub source: Source,
    /// Last poll that succeeded (a 304 is a success), or the time a file was read.
    pub last_success: Option<SystemTime>,
    /// One line, secrets cut.
    pub last_error: Option<Arc<str>>,
}

/// Every environment at one instant.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Grows by one with each publication.
    pub version: u64,
    pub slots: Vec<Slot>,
    keys: HashMap<Box<[u8]>, Access, foldhash::fast::RandomState>,
    /// Set when shutting down: readiness is red while requests are still served.
    pub draining: bool,
}

impl Snapshot {
    pub fn new(version: u64, slots: Vec<Slot>, keys: impl IntoIterator<Item = (Box<[u8]>, Access)>) -> Self {
        Self { version, slots, keys: keys.into_iter().collect(), draining: false }
    }

    /// What this key opens, or `None` if it is unknown.
    pub fn access(&self, key: &[u8]) -> Option<Access> {
        self.keys.get(key).copied()
    }
}
