//! What every integration test stands on: the running executable, a client, scratch space.
//!
//! In: a configuration. Out: a process that answers, its log, and answers as they came off the
//! wire. Invariant: a process started here is ended here, by its own id, when its handle is
//! dropped; waiting is always for something, with a deadline.
#![allow(dead_code, unused_imports)] // Every module uses a part of it.

pub mod client;
pub mod document;
pub mod fixture;
pub mod proxy;
pub mod python;
pub mod scratch;
pub mod shim;
pub mod tls;
pub mod upstream;

use std::time::{Duration, Instant};

pub use client::{Answer, Client, get, post, request};
pub use proxy::{Proxy, Start};
pub use scratch::{Port, Scratch};
pub use shim::{Launcher, Shim};
pub use upstream::{Delivery, Recorded, Reply, Upstream};

/// How long anything may take before a test fails. Long, because a CI machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Tries `probe` until it gives something or [`PATIENCE`] is over.
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        // The pause only keeps the loop from taking a core; nothing depends on its length.
        std::thread::park_timeout(Duration::from_millis(2));
    }
}
