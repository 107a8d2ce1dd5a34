//! The data plane: one pinned thread per core, each with its own runtime, listener and connections.
//!
//! A reactor shares no mutable state with another (but the number of its connections, with `server.spread`),
//! never blocks, never calls upstream, and never frees an environment. It accepts connections only once it
//! has a snapshot. `worker` runs the thread, `accept` the listeners; `connection` decides what a connection
//! does and `connection_io` does it.
mod accept;
mod access_log;
mod batch;
mod budget;
mod client_address;
mod connection;
mod connection_io;
pub mod connections;
pub mod context;
mod driver;
mod event_streams;
mod http2;
mod http2_io;
mod kept_traits;
mod listener;
pub mod memory;
pub mod options;
mod panic;
mod parked_streams;
mod posts;
pub mod protocol;
mod redaction;
pub mod request_spans;
mod spare_buffers;
mod spin;
mod sse;
mod tls;
pub mod transport;
pub mod turns;
mod worker;

use std::io;
use std::thread::JoinHandle;

pub use crate::reactor::driver::check as check_driver;
pub use crate::reactor::listener::{UnixSocket, bind, bind_unix, inodes, is_shared, is_taken};
pub use crate::reactor::options::{Timeouts, WorkerOptions};

/// Stack of a reactor thread, bytes, regardless of `RUST_MIN_STACK`. A body of `JSON_DEPTH_MAX` takes 0.75
/// MiB, and more than 2 MiB in an unoptimised build.
const STACK_BYTES: usize = if cfg!(debug_assertions) { 8 } else { 2 } * 1024 * 1024;

/// Starts a reactor thread. It ends after `ReactorMessage::Drain`, or when the publisher is dropped. After a
/// panic it logs the location and restarts with a new runtime.
///
/// # Errors
/// The thread cannot be spawned.
pub fn start(options: WorkerOptions) -> io::Result<JoinHandle<()>> {
    panic::record_locations();
    let thread = std::thread::Builder::new().name(format!("reactor-{}", options.index));
    thread.stack_size(STACK_BYTES).spawn(move || worker::supervise(options))
}

#[cfg(test)]
mod tests;
