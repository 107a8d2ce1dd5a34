//! The data plane: one pinned thread per core, its ring, its listener, its connections.
//!
//! In: bound listeners, an [`Inbox`] of snapshots. Out: answers on sockets. Invariant: a
//! reactor shares nothing with another one, never blocks, never calls upstream, never frees an
//! environment; it accepts only once it has a snapshot. This file says what a reactor is given;
//! `life` is the thread, `accept` its door, `connection` and `batch` what happens inside.
mod accept;
mod access_log;
mod batch;
mod budget;
mod connection;
mod connections;
mod driver;
mod listener;
mod panic;
mod sse;
mod tls;
mod transport;
mod worker;

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::channel::Inbox;
use crate::config::Config;
use crate::limits;
use crate::log::Log;
use crate::metrics::ReactorMetrics;
pub use crate::reactor::driver::check as check_driver;
pub use crate::reactor::listener::{UnixSocket, bind, bind_unix, inodes, is_shared, is_taken};
use crate::reactor::worker::Reactor;

/// What one reactor needs to run.
pub struct WorkerOptions {
    /// 0, 1, ...: names the thread.
    pub index: usize,
    /// The CPU it is pinned to.
    pub core: usize,
    /// Its own, of [`bind`]; `None` without `server.tcp`.
    pub listener: Option<TcpListener>,
    /// Common to all reactors, of [`bind_unix`].
    pub unix_socket: Option<Arc<UnixSocket>>,
    /// TLS on the TCP listener (`crate::tls`).
    pub tls: Option<Arc<rustls::ServerConfig>>,
    pub inbox: Inbox,
    pub config: Arc<Config>,
    pub log: Log,
    pub metrics: Arc<ReactorMetrics>,
    pub times: Timeouts,
}

/// Places that tests can make panic.
#[cfg(test)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum InjectedPanic {
    Request = 1,
    Connection,
    Sweep,
}

/// How long a peer may take over what, and how much memory all may take meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Between two requests.
    pub keep_alive: Duration,
    pub head: Duration,
    pub body: Duration,
    pub write: Duration,
    /// After the last answer, for the peer to close.
    pub linger: Duration,
    /// The whole life of an event stream; zero is without end.
    pub stream: Duration,
    /// What all connections of one reactor may hold in requests and answers, bytes.
    pub held_bytes_max: usize,
    /// What requests may hold of it that are not answered yet.
    pub held_request_bytes_max: usize,
    /// Where to panic next.
    #[cfg(test)]
    pub fault: &'static std::sync::atomic::AtomicU8,
}

impl Timeouts {
    /// Those of the configuration and of `limits`.
    pub fn of(config: &Config) -> Self {
        let reactors = config.cores.len().max(1);
        Self {
            keep_alive: config.server.timeout_keep_alive,
            head: config.server.timeout_head,
            body: config.server.timeout_body,
            write: config.server.timeout_write,
            linger: limits::LINGER_TIMEOUT,
            stream: config.sse.max_stream,
            held_bytes_max: (limits::HELD_BYTES_MAX / reactors).max(limits::HELD_BYTES_REACTOR_MIN),
            held_request_bytes_max: (limits::HELD_REQUEST_BYTES_MAX / reactors)
                .max(limits::HELD_REQUEST_BYTES_REACTOR_MIN),
            #[cfg(test)]
            fault: Box::leak(Box::default()),
        }
    }
}

/// Starts the thread of one reactor. It ends after `Message::Drain`, or when the publisher is
/// gone; a panic in it is logged and it starts again with a fresh ring.
///
/// # Errors
/// The thread could not be made.
pub fn start(start: WorkerOptions) -> io::Result<JoinHandle<()>> {
    panic::remember_places();
    let thread = std::thread::Builder::new().name(format!("reactor-{}", start.index));
    thread.stack_size(limits::STACK_BYTES).spawn(move || worker::supervise(start))
}

#[cfg(test)]
mod tests;
