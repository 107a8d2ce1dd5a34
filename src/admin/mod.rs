//! The listener for people and scrapers: metrics, the status page, its data.
//!
//! In: HTTP from inside the operator's network, on `admin.port`. Out: `/metrics`, `/`,
//! `/status.json`, and the health of `/proxy/health/` for checks that cannot come in by the main
//! port (it asks for certificates). Invariant: everything here runs on threads of its own, blocks
//! only itself and only reads numbers, so that asking costs the reactors nothing. It serves no flags, changes
//! nothing, shows no whole key, and closes each connection after one answer.
mod host;
mod peers;
mod process;
mod prometheus;
mod readiness;
mod status;
#[cfg(test)]
mod tests;

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::admin::host::HostCheck;
use crate::admin::peers::{PeerGuard, Peers};
pub use crate::admin::readiness::Readiness;
use crate::channel::{Newest, Published};
use crate::config::{Config, Level};
use crate::handlers::health;
use crate::handlers::health::HealthReport;
use crate::limits::{
    ADMIN_HEAD_BYTES_MAX, ADMIN_HEAD_TIMEOUT, ADMIN_HOST_CHARS_SHOWN, BACKLOG_MAX, FAILURE_REMINDER,
};
use crate::log::Log;
use crate::metrics::Metrics;
use crate::snapshot::Snapshot;
use crate::{config, terminal};

const PAGE: &str = include_str!("page.html");
/// A peer that takes longer to take the answer is closed.
const PATIENCE: Duration = Duration::from_secs(5);

/// What there is to see.
#[derive(Clone, Debug)]
pub struct View {
    pub metrics: Arc<Metrics>,
    pub log: Log,
    pub newest: Newest,
    /// As at the start.
    pub config: Arc<Config>,
    pub host_log: HostLog,
}

/// When a refused `Host` was last logged: callers choose the value, so that not each may have its line.
#[derive(Clone, Debug, Default)]
pub struct HostLog(Arc<Mutex<Option<Instant>>>);

impl HostLog {
    /// True at most once in `limits::FAILURE_REMINDER`.
    fn is_due(&self, now: Instant) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = last.is_none_or(|last| now.duration_since(last) >= FAILURE_REMINDER);
        if is_due {
            *last = Some(now);
        }
        is_due
    }
}

impl View {
    /// As configured now.
    fn allowed_hosts(&self) -> Vec<String> {
        let Published { config, .. } = self.newest.look();
        let config = config.as_ref().unwrap_or(&self.config);
        config.admin.as_ref().map(|admin| admin.allowed_hosts.clone()).unwrap_or_default()
    }

    /// Why it is not ready, and whether it is shutting down.
    fn readiness(&self) -> (Option<&'static str>, bool) {
        let Published { snapshot, config } = self.newest.look();
        let config = config.as_ref().unwrap_or(&self.config);
        (health::reason(config, &snapshot), snapshot.draining)
    }

    /// What is served now, and how it is by the rules of readiness.
    fn look(&self) -> (Arc<Snapshot>, HealthReport) {
        let Published { snapshot, config } = self.newest.look();
        let look = health::look(config.as_ref().unwrap_or(&self.config), &snapshot);
        (snapshot, look)
    }
}

/// Binds the listener.
///
/// # Errors
/// The address cannot be bound; the message names it.
pub fn bind(admin: &config::Admin) -> io::Result<TcpListener> {
    let address = SocketAddr::new(admin.host, admin.port);
    listen(address).map_err(|error| {
        let hint = format!("cannot listen on {address} for admin.port: {error}; `ss -ltnp` shows who does");
        io::Error::new(error.kind(), hint)
    })
}

/// With SO_REUSEPORT, as the main port: a process that takes over binds it while the old one drains.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG_MAX)?;
    Ok(socket.into())
}

/// Starts answering; the thread lives as long as the process.
///
/// # Errors
/// The thread could not be made.
pub fn start(listener: TcpListener, view: View) -> io::Result<()> {
    std::thread::Builder::new().name("admin".to_owned()).spawn(move || accept(&listener, &view))?;
    Ok(())
}

fn accept(listener: &TcpListener, view: &View) {
    let peers = Peers::new(Arc::clone(&view.metrics));
    loop {
        while peers.is_full() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let Ok((stream, _)) = listener.accept() else {
            // No descriptors left: wait for some instead of spinning.
            std::thread::sleep(Duration::from_millis(100));
            continue;
        };
        let (view, peer) = (view.clone(), peers.add(stream));
        let thread = std::thread::Builder::new().name("admin-peer".to_owned()).stack_size(256 * 1024);
        // Without a thread the connection is closed with its guard.
        let _ = thread.spawn(move || {
            let is_slow = converse(&peer, &view).is_err_and(|error| is_excess(error.kind()));
            view.metrics.background.admin_connections_closed.add(u64::from(is_slow));
        });
    }
}

/// Whether a connection was ended by a limit of ours; a peer that went away is not counted.
fn is_excess(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::TimedOut | ErrorKind::WouldBlock | ErrorKind::InvalidData)
}

fn converse(peer: &PeerGuard, view: &View) -> io::Result<()> {
    let mut stream = &*peer.stream;
    let Some(head) = read_head(stream)? else { return Ok(()) };
    let until = Instant::now() + PATIENCE;
    let response = respond(&head, view);
    let mut rest = &response[..];
    while !rest.is_empty() {
        stream.set_write_timeout(Some(left(until)?))?;
        match stream.write(rest)? {
            0 => return Err(ErrorKind::WriteZero.into()),
            count => rest = &rest[count..],
        }
    }
    peer.answered();
    // Ends our side first and waits for the peer's end, so that it can read all before a reset.
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut chunk = [0; 1024];
    while let Ok(time) = left(until)
        && stream.set_read_timeout(Some(time)).is_ok()
        && stream.read(&mut chunk).is_ok_and(|count| count > 0)
    {}
    Ok(())
}

/// A whole request head; `None` if the peer closed the connection before.
fn read_head(mut stream: &TcpStream) -> io::Result<Option<Vec<u8>>> {
    let until = Instant::now() + ADMIN_HEAD_TIMEOUT;
    let mut head = Vec::with_capacity(1024);
    let mut chunk = [0; 1024];
    loop {
        // A byte now and then must not hold a thread, so the time is that of the whole head.
        stream.set_read_timeout(Some(left(until)?))?;
        let count = stream.read(&mut chunk)?;
        if count == 0 {
            return Ok(None);
        }
        if head.len() + count > ADMIN_HEAD_BYTES_MAX {
            return Err(ErrorKind::InvalidData.into());
        }
        // Only what is new is searched, with the three bytes before it.
        let searched = head.len().saturating_sub(3);
        head.extend_from_slice(&chunk[..count]);
        if head[searched..].windows(4).any(|end| end == b"\r\n\r\n") {
            return Ok(Some(head));
        }
    }
}

/// The time that is left, never zero.
fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// An answer: status, content type, body.
type Answer = (&'static str, &'static str, String);

/// The answer to a `Host` that is invalid or not allowed.
fn refuse_host(head: &[u8], view: &View) -> Option<Answer> {
    const TEXT: &str = "text/plain; charset=utf-8";
    let host = match host::check(head, &view.allowed_hosts()) {
        HostCheck::Allowed => return None,
        HostCheck::Invalid => {
            return Some(("400 Bad Request", TEXT, "The request must have one Host field.\n".to_owned()));
        }
        HostCheck::Refused(host) => host,
    };
    let host: String = host.chars().take(ADMIN_HOST_CHARS_SHOWN).collect();
    view.metrics.background.admin_hosts_refused.add(1);
    if view.host_log.is_due(Instant::now()) {
        let hint = "add the name to admin.allowed_hosts, or use an IP address or localhost";
        view.log.event(Level::Warning, "admin_host_refused", &[("host", &host), ("hint", &hint)]);
    }
    let body = format!(
        "Host \"{}\" is not allowed on the admin port: add the name to the setting admin.allowed_hosts \
         (ADMIN_ALLOWED_HOSTS), or use an IP address or localhost.\n",
        terminal::escape(&host)
    );
    Some(("421 Misdirected Request", TEXT, body))
}

/// As the main port answers it.
fn readiness(view: &View) -> Answer {
    let (_, look) = view.look();
    let status = if look.reason.is_none() { "200 OK" } else { "503 Service Unavailable" };
    (status, "application/json", look.body)
}

/// The whole response to a request head.
fn respond(head: &[u8], view: &View) -> Vec<u8> {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut parts = line.split(|byte| *byte == b' ');
    let (method, target) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();
    let (status, content_type, body) = refuse_host(head, view).unwrap_or_else(|| route(method, path, view));
    write_response(method, (status, content_type, &body))
}

fn route(method: &[u8], path: &[u8], view: &View) -> Answer {
    match (method, path) {
        (b"GET" | b"HEAD", b"/metrics") => {
            ("200 OK", "text/plain; version=0.0.4; charset=utf-8", prometheus::render(view))
        }
        (b"GET" | b"HEAD", b"/status.json") => ("200 OK", "application/json", status::render(view)),
        (b"GET" | b"HEAD", b"/") => ("200 OK", "text/html; charset=utf-8", PAGE.to_owned()),
        (b"GET" | b"HEAD", b"/proxy/health/liveness") => {
            ("200 OK", "text/plain; charset=utf-8", String::new())
        }
        (b"GET" | b"HEAD", b"/proxy/health" | b"/proxy/health/readiness") => readiness(view),
        (b"GET" | b"HEAD", _) => (
            "404 Not Found",
            "text/plain; charset=utf-8",
            "There is /, /metrics, /status.json, /proxy/health/liveness and /proxy/health/readiness.\n"
                .to_owned(),
        ),
        _ => ("405 Method Not Allowed", "text/plain; charset=utf-8", "GET or HEAD.\n".to_owned()),
    }
}

fn write_response(method: &[u8], (status, content_type, body): (&str, &str, &str)) -> Vec<u8> {
    let mut response = Vec::with_capacity(body.len() + 512);
    // Writing to a vector cannot fail. The page may load nothing and run nothing but itself.
    let _ = write!(
        response,
        "HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\ncache-control: no-store\r\n\
         content-security-policy: default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
         connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n\
         x-content-type-options: nosniff\r\nreferrer-policy: no-referrer\r\n{}connection: close\r\n\r\n",
        body.len(),
        if status.starts_with("405") { "allow: GET, HEAD\r\n" } else { "" },
    );
    if method != b"HEAD" {
        response.extend_from_slice(body.as_bytes());
    }
    response
}
