//! The listener for people and scrapers: metrics, the status page, its data.
//!
//! In: HTTP from inside the operator's network, on `admin.port`. Out: `/metrics`, `/`,
//! `/status.json`, and the health of `/proxy/health/` for checks that cannot come in by the main
//! port (it asks for certificates). Invariant: everything here runs on threads of its own, blocks
//! only itself and only reads numbers, so that asking costs the reactors nothing. It serves no flags, changes
//! nothing, shows no whole key, and closes each connection after one answer.
mod process;
mod prometheus;
mod readiness;
mod status;
#[cfg(test)]
mod tests;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

pub use readiness::Readiness;

use crate::answer::health::{self, Look};
use crate::channel::{Newest, Published};
use crate::config::{self, Config};
use crate::limits::{ADMIN_CONNECTIONS_MAX, ADMIN_HEAD_BYTES_MAX, BACKLOG_MAX};
use crate::log::Log;
use crate::metrics::Metrics;
use crate::snapshot::Snapshot;

const PAGE: &str = include_str!("page.html");
/// A peer that takes longer to ask, or to take the answer, is closed.
const PATIENCE: Duration = Duration::from_secs(5);

/// What there is to see.
#[derive(Clone, Debug)]
pub struct View {
    pub metrics: Arc<Metrics>,
    pub log: Log,
    pub newest: Newest,
    /// As at the start.
    pub config: Arc<Config>,
}

impl View {
    /// Why it is not ready, and whether it is shutting down.
    fn readiness(&self) -> (Option<&'static str>, bool) {
        let Published { snapshot, config } = self.newest.look();
        let config = config.as_ref().unwrap_or(&self.config);
        (health::reason(config, &snapshot), snapshot.draining)
    }

    /// What is served now, and how it is by the rules of readiness.
    fn look(&self) -> (Arc<Snapshot>, Look) {
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
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let Ok((stream, _)) = listener.accept() else {
            // No descriptors left: wait for some instead of spinning.
            std::thread::sleep(Duration::from_millis(100));
            continue;
        };
        if open.fetch_add(1, Ordering::Relaxed) >= ADMIN_CONNECTIONS_MAX {
            open.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (view, counted) = (view.clone(), open.clone());
        let thread = std::thread::Builder::new().name("admin-peer".to_owned()).stack_size(256 * 1024);
        let spawned = thread.spawn(move || {
            // A peer that went away is no news.
            let _ = converse(stream, &view);
            counted.fetch_sub(1, Ordering::Relaxed);
        });
        if spawned.is_err() {
            open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn converse(mut stream: TcpStream, view: &View) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut head = Vec::with_capacity(1024);
    let mut chunk = [0; 1024];
    // A byte now and then must not hold one of the few threads.
    let until = Instant::now() + PATIENCE;
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let count = stream.read(&mut chunk)?;
        if count == 0 || Instant::now() > until || head.len() + count > ADMIN_HEAD_BYTES_MAX {
            return Ok(());
        }
        head.extend_from_slice(&chunk[..count]);
    }
    stream.write_all(&respond(&head, view))?;
    // Ends our side first and waits for the peer's end, so that it can read all before a reset.
    stream.shutdown(std::net::Shutdown::Write)?;
    while stream.read(&mut chunk)? > 0 && Instant::now() < until {}
    Ok(())
}

/// As the main port answers it.
fn readiness(view: &View) -> (&'static str, &'static str, String) {
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
    let (status, content_type, body) = match (method, path) {
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
    };
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
