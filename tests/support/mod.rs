//! The test harness: the running executable, a scriptable upstream, a client, scratch directories.
//!
//! A process is stopped by its id when its handle is dropped. Every wait has a condition and a deadline.
#![allow(dead_code, unused_imports)] // Every module uses a part of it.

pub mod client;
pub mod document;
pub mod fixture;
pub mod handler;
pub mod http2;
pub mod proxy;
pub mod python;
pub mod scratch;
pub mod shim;
pub mod tls;
pub mod translated;
pub mod upstream;

use std::time::{Duration, Instant};

pub use client::{Answer, Client, get, post, request};
pub use http2::Http2Client;
pub use proxy::{Proxy, Start};
pub use scratch::{Port, Scratch};
pub use shim::{Launcher, Shim};
pub use upstream::{Delivery, Recorded, Reply, Upstream};

/// The deadline of every wait. Long, because a CI machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Calls `probe` until it returns a value; fails after [`PATIENCE`].
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        // The pause only limits the CPU usage of the loop.
        std::thread::park_timeout(Duration::from_millis(2));
    }
}
