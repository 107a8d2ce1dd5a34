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
pub mod redis;
pub mod scratch;
pub mod shim;
pub mod tls;
pub mod translated;
pub mod upstream;

use std::sync::OnceLock;
use std::time::{Duration, Instant};

pub use client::{Answer, Client, get, post, request};
pub use http2::Http2Client;
pub use proxy::{Proxy, Start};
pub use redis::RedisServer;
pub use scratch::{Port, Scratch};
pub use shim::{Launcher, Shim};
pub use upstream::{Delivery, Recorded, Reply, Upstream};

/// The deadline of every wait. Long, because a CI machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The executable under test: the one of this build, or the one that `EDGE_PROXY_EXECUTABLE` names, such as an
/// emulator's start of one for another architecture.
pub fn executable() -> &'static str {
    static EXECUTABLE: OnceLock<String> = OnceLock::new();
    EXECUTABLE.get_or_init(|| {
        let own = env!("CARGO_BIN_EXE_edge-proxy");
        std::env::var("EDGE_PROXY_EXECUTABLE").unwrap_or_else(|_| own.to_owned())
    })
}

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
