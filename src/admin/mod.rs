//! The admin listener: metrics for scrapers, the status page and its data, and health checks.
//!
//! Serves HTTP on `admin.port`, which must be reachable only from the operator's network. The health routes
//! are also here for probes that cannot use the main port, which may require client certificates. Everything
//! runs on separate threads and only reads, so that a request here costs the reactors nothing. No route
//! returns flags, changes anything or shows a complete key. Each connection is closed after one response.
mod answers;
mod deltas;
mod environments;
mod exposition;
mod history;
mod host;
mod labels;
mod negotiation;
mod peers;
mod process;
mod prometheus;
mod readiness;
mod status;
#[cfg(test)]
mod tests;
mod traits;
mod view;

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

pub use crate::admin::exposition::{MetricBuckets, MetricFamily, MetricSample, MetricValue};
use crate::admin::host::HostCheck;
use crate::admin::peers::{PeerGuard, Peers};
pub use crate::admin::prometheus::collect;
pub use crate::admin::readiness::Readiness;
pub use crate::admin::view::View;
use crate::config::Level;
use crate::limits::{ADMIN_HEAD_BYTES_MAX, ADMIN_HEAD_TIMEOUT, ADMIN_HOST_CHARS_SHOWN, BACKLOG_MAX};
use crate::{config, terminal};

const PAGE: &str = include_str!("page.html");
/// How long a client may take to read the response.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// Binds `admin.port`.
///
/// # Errors
/// The address cannot be bound. The message contains it.
pub fn bind(admin: &config::Admin) -> io::Result<TcpListener> {
    let address = SocketAddr::new(admin.host, admin.port);
    listen(address).map_err(|error| {
        let hint = format!(
            "failed to listen on {address} (admin.port): {error}; `ss -ltnp` lists listening processes"
        );
        io::Error::new(error.kind(), hint)
    })
}

/// Sets SO_REUSEPORT, as for the main port: in a takeover the new process binds it while the old one drains.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG_MAX)?;
    Ok(socket.into())
}

/// Starts the accept thread, which runs until the process exits.
///
/// # Errors
/// The thread cannot be started.
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
            // Most likely the descriptor limit: wait instead of spinning.
            std::thread::sleep(Duration::from_millis(100));
            continue;
        };
        let (view, peer) = (view.clone(), peers.add(stream));
        let thread = std::thread::Builder::new().name("admin-peer".to_owned()).stack_size(256 * 1024);
        // If the thread cannot be started, dropping the guard closes the connection.
        let _ = thread.spawn(move || {
            let is_excess = serve(&peer, &view).is_err_and(|error| exceeds_limit(error.kind()));
            view.metrics.background.admin_connections_closed.add(u64::from(is_excess));
        });
    }
}

/// Whether the connection exceeded a limit, in contrast to a client that disconnected.
fn exceeds_limit(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::TimedOut | ErrorKind::WouldBlock | ErrorKind::InvalidData)
}

/// Reads one request and writes its response.
fn serve(peer: &PeerGuard, view: &View) -> io::Result<()> {
    let mut stream = &*peer.stream;
    let Some(head) = read_head(stream)? else { return Ok(()) };
    let deadline = Instant::now() + WRITE_TIMEOUT;
    let response = respond(&head, view);
    let mut rest = &response[..];
    while !rest.is_empty() {
        stream.set_write_timeout(Some(remaining(deadline)?))?;
        match stream.write(rest)? {
            0 => return Err(ErrorKind::WriteZero.into()),
            count => rest = &rest[count..],
        }
    }
    peer.set_answered();
    // Close only the sending side and wait for the client, so that it can read everything before a reset.
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut chunk = [0; 1024];
    while let Ok(time) = remaining(deadline)
        && stream.set_read_timeout(Some(time)).is_ok()
        && stream.read(&mut chunk).is_ok_and(|count| count > 0)
    {}
    Ok(())
}

/// Reads a request head. `None` if the client closed the connection before its end.
fn read_head(mut stream: &TcpStream) -> io::Result<Option<Vec<u8>>> {
    let deadline = Instant::now() + ADMIN_HEAD_TIMEOUT;
    let mut head = Vec::with_capacity(1024);
    let mut chunk = [0; 1024];
    loop {
        // One deadline for the whole head, so that a client that sends single bytes cannot occupy the thread.
        stream.set_read_timeout(Some(remaining(deadline)?))?;
        let count = stream.read(&mut chunk)?;
        if count == 0 {
            return Ok(None);
        }
        if head.len() + count > ADMIN_HEAD_BYTES_MAX {
            return Err(ErrorKind::InvalidData.into());
        }
        // Search only the new bytes and the three before them.
        let searched = head.len().saturating_sub(3);
        head.extend_from_slice(&chunk[..count]);
        if head[searched..].windows(4).any(|end| end == b"\r\n\r\n") {
            return Ok(Some(head));
        }
    }
}

/// The time until the deadline, never zero.
fn remaining(deadline: Instant) -> io::Result<Duration> {
    let remaining = deadline.saturating_duration_since(Instant::now());
    if remaining.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(remaining) }
}

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Status, content type and body.
type Response = (&'static str, &'static str, String);

/// The error response for a `Host` that is invalid or not allowed.
fn reject_host(head: &[u8], view: &View) -> Option<Response> {
    const TEXT: &str = "text/plain; charset=utf-8";
    let host = match host::check(head, &view.allowed_hosts()) {
        HostCheck::Allowed => return None,
        HostCheck::Invalid => {
            return Some(("400 Bad Request", TEXT, "The request must have one Host field.\n".to_owned()));
        }
        HostCheck::NotAllowed(host) => host,
    };
    let host: String = host.chars().take(ADMIN_HOST_CHARS_SHOWN).collect();
    view.metrics.background.admin_hosts_refused.add(1);
    if view.may_log_host(Instant::now()) {
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

/// As on the main port, but with the text of errors.
fn readiness(view: &View) -> Response {
    let (body, reason) = view.health();
    let status = if reason.is_none() { "200 OK" } else { "503 Service Unavailable" };
    (status, "application/json", body)
}

/// The response to a request head.
fn respond(head: &[u8], view: &View) -> Vec<u8> {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut parts = line.split(|byte| *byte == b' ');
    let (method, target) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();
    let (status, content_type, body) =
        reject_host(head, view).unwrap_or_else(|| route(method, path, head, view));
    write_response(method, (status, content_type, &body))
}

fn route(method: &[u8], path: &[u8], head: &[u8], view: &View) -> Response {
    match (method, path) {
        (b"GET" | b"HEAD", b"/metrics") => {
            let families = prometheus::collect(view);
            match negotiation::prefers_open_metrics(head) {
                true => ("200 OK", OPEN_METRICS, exposition::open_metrics_text(&families)),
                false => {
                    let text = exposition::prometheus_text(&families);
                    ("200 OK", "text/plain; version=0.0.4; charset=utf-8", text)
                }
            }
        }
        (b"GET" | b"HEAD", b"/status.json") => ("200 OK", "application/json", status::render(view)),
        (b"GET" | b"HEAD", b"/history.json") => ("200 OK", "application/json", view.history.render()),
        (b"GET" | b"HEAD", b"/") => ("200 OK", "text/html; charset=utf-8", PAGE.to_owned()),
        (b"GET" | b"HEAD", b"/proxy/health/liveness") => {
            ("200 OK", "text/plain; charset=utf-8", String::new())
        }
        (b"GET" | b"HEAD", b"/proxy/health" | b"/proxy/health/readiness") => readiness(view),
        (b"GET" | b"HEAD", _) => (
            "404 Not Found",
            "text/plain; charset=utf-8",
            "There is /, /metrics, /status.json, /history.json, /proxy/health/liveness and /proxy/health/readiness.\n"
                .to_owned(),
        ),
        _ => ("405 Method Not Allowed", "text/plain; charset=utf-8", "GET or HEAD.\n".to_owned()),
    }
}

fn write_response(method: &[u8], (status, content_type, body): (&str, &str, &str)) -> Vec<u8> {
    let mut response = Vec::with_capacity(body.len() + 512);
    // Writing to a vector cannot fail. The page may not load anything and runs only its own script.
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
