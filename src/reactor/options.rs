//! What a reactor is started with.
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use crate::channel::Inbox;
use crate::config::Config;
use crate::limits;
use crate::log::Log;
use crate::metrics::ReactorMetrics;
use crate::reactor::listener::UnixSocket;
use crate::spans::SpanSender;

/// The options of one reactor thread.
pub struct WorkerOptions {
    /// 0, 1, ...; part of the thread name.
    pub index: usize,
    /// The CPU that the thread is pinned to.
    pub core: usize,
    /// Its own listener, from [`bind`](crate::reactor::bind); `None` without `server.tcp`.
    pub listener: Option<TcpListener>,
    /// Shared by all reactors, from [`bind_unix`](crate::reactor::bind_unix).
    pub unix_socket: Option<Arc<UnixSocket>>,
    /// TLS on the TCP listener (`crate::tls`).
    pub tls: Option<Arc<rustls::ServerConfig>>,
    pub inbox: Inbox,
    pub config: Arc<Config>,
    pub log: Log,
    pub metrics: Arc<ReactorMetrics>,
    /// Where spans go; `None`: they are not exported.
    pub spans: Option<SpanSender>,
    pub times: Timeouts,
}

/// Code paths that tests can make panic.
#[cfg(test)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum InjectedPanic {
    Request = 1,
    Connection,
    Sweep,
}

/// The timeouts of a connection, and the memory limits of all connections of a reactor.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Between two requests.
    pub keep_alive: Duration,
    pub head: Duration,
    pub body: Duration,
    pub write: Duration,
    /// For the peer to close, after the last response.
    pub linger: Duration,
    /// The lifetime of an event stream; zero is unlimited.
    pub stream: Duration,
    /// The limit for requests and responses in buffers, bytes.
    pub buffered_bytes_max: usize,
    /// The part of it for requests that are not answered yet.
    pub buffered_request_bytes_max: usize,
    /// Where to panic next: an [`InjectedPanic`], or 0.
    #[cfg(test)]
    pub fault: &'static std::sync::atomic::AtomicU8,
}

impl Timeouts {
    /// The timeouts of the configuration; the limits are divided evenly among the reactors.
    pub fn of(config: &Config) -> Self {
        let reactors = config.cores.len().max(1);
        Self {
            keep_alive: config.server.timeout_keep_alive,
            head: config.server.timeout_head,
            body: config.server.timeout_body,
            write: config.server.timeout_write,
            linger: limits::LINGER_TIMEOUT,
            stream: config.sse.max_stream,
            buffered_bytes_max: (limits::BUFFERED_BYTES_MAX / reactors)
                .max(limits::BUFFERED_BYTES_REACTOR_MIN),
            buffered_request_bytes_max: (limits::BUFFERED_REQUEST_BYTES_MAX / reactors)
                .max(limits::BUFFERED_REQUEST_BYTES_REACTOR_MIN),
            #[cfg(test)]
            fault: Box::leak(Box::default()),
        }
    }
}
