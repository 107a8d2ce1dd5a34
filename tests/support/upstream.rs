//! The scriptable upstream: an HTTP server with rules of the test.
//!
//! Rules by path and key (`on`, `document`) can change at any time; the newest matching rule wins. Responses may
//! be malformed on purpose. Every request is recorded. It uses only std, so that the proxy's HTTP code is not
//! tested with itself.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use socket2::{Domain, Protocol, Socket, Type};

use super::Port;

/// One received request.
#[derive(Clone, Debug)]
pub struct Recorded {
    pub method: String,
    /// With the query.
    pub target: String,
    /// Names in lower case.
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
    pub at: Instant,
}

impl Recorded {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// `X-Environment-Key`, or nothing.
    pub fn key(&self) -> &str {
        self.header("x-environment-key").unwrap_or_default()
    }

    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("a JSON body")
    }
}

/// How the bytes of a response are sent.
#[derive(Clone, Debug, Default)]
pub enum Delivery {
    #[default]
    Whole,
    /// This many bytes at a time, with this pause.
    Drip(usize, Duration),
    /// This many bytes of the body, then a TCP reset.
    ResetAfter(usize),
    /// This many bytes of the body, then a clean end, regardless of Content-Length.
    EndAfter(usize),
    /// This many bytes of the body, then nothing until the peer closes.
    HangAfter(usize),
    /// Nothing until the peer closes.
    HangBeforeHead,
    /// Only the bytes of the body, without status line and header.
    Raw,
}

/// One response.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Arc<[u8]>,
    pub delay: Duration,
    pub delivery: Delivery,
    /// Keep the connection open as an event stream for `Upstream::push`.
    pub stream: bool,
}

impl Reply {
    pub fn new(status: u16, body: impl AsRef<[u8]>) -> Self {
        Self {
            status,
            headers: vec![("content-type".into(), "application/json".into())],
            body: body.as_ref().into(),
            delay: Duration::ZERO,
            delivery: Delivery::Whole,
            stream: false,
        }
    }

    pub fn json(body: impl AsRef<[u8]>) -> Self {
        Self::new(200, body)
    }

    /// An event stream: first `body`, the rest by `Upstream::push`.
    pub fn events(body: impl AsRef<[u8]>) -> Self {
        let mut reply = Self::new(200, body);
        reply.headers = vec![("content-type".into(), "text/event-stream".into())];
        reply.stream = true;
        reply
    }

    pub fn redirect(status: u16, location: &str) -> Self {
        Self::new(status, "").with("location", location)
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    pub fn delivered(mut self, delivery: Delivery) -> Self {
        self.delivery = delivery;
        self
    }

    /// Compresses the body and sets `Content-Encoding`.
    pub fn gzip(mut self) -> Self {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(&self.body).expect("in memory");
        self.body = encoder.finish().expect("in memory").into();
        self.with("content-encoding", "gzip")
    }
}

type Answer = Box<dyn FnMut(&Recorded) -> Option<Reply> + Send>;

struct Stream {
    path: String,
    socket: TcpStream,
}

#[derive(Default)]
struct State {
    rules: Vec<Answer>,
    requests: Vec<Recorded>,
    streams: Vec<Stream>,
    sockets: Vec<TcpStream>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    stopped: AtomicBool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A rule that panicked fails its test; others continue.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The server. Dropping it closes everything.
pub struct Upstream {
    /// Reserves the port while the server refuses connections.
    port: Port,
    shared: Arc<Shared>,
    acceptor: Mutex<Option<thread::JoinHandle<()>>>,
}

impl Upstream {
    /// Starts on a free port; answers 404 without rules.
    pub fn start() -> Self {
        let upstream = Self::refusing();
        upstream.listen();
        upstream
    }

    /// Reserves a port and refuses connections until `listen`.
    pub fn refusing() -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            stopped: AtomicBool::new(true),
        });
        Self { port: Port::free(), shared, acceptor: Mutex::new(None) }
    }

    /// Accepts connections from now on.
    pub fn listen(&self) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("a socket");
        socket.set_reuse_port(true).expect("SO_REUSEPORT");
        socket.set_reuse_address(true).expect("SO_REUSEADDR");
        socket.bind(&self.address().into()).expect("our own port");
        socket.listen(1024).expect("listen");
        self.shared.stopped.store(false, Ordering::SeqCst);
        *self.acceptor.lock().expect("not poisoned") = Some(accept(socket.into(), Arc::clone(&self.shared)));
    }

    /// As `listen`, if it does not listen.
    pub fn listen_if_not(&self) {
        if self.shared.stopped.load(Ordering::SeqCst) {
            self.listen();
        }
    }

    /// Closes all connections and refuses new ones until `listen`. Recorded requests stay.
    pub fn refuse(&self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        self.close_connections();
        // Wakes the accept loop, which then ends.
        let _ = TcpStream::connect(self.address());
        if let Some(acceptor) = self.acceptor.lock().expect("not poisoned").take() {
            let _ = acceptor.join();
        }
        self.close_connections();
    }

    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// `http://127.0.0.1:PORT`, without a slash.
    pub fn origin(&self) -> String {
        format!("http://{}", self.address())
    }

    /// The value for `api_url`.
    pub fn api_url(&self) -> String {
        format!("{}/api/v1/", self.origin())
    }

    /// Adds a rule before all others; `None` passes the request to older rules.
    pub fn rule(&self, answer: impl FnMut(&Recorded) -> Option<Reply> + Send + 'static) {
        self.shared.state().rules.push(Box::new(answer));
    }

    /// Answers each request for `path` (without query) with `reply`.
    pub fn on(&self, path: &str, reply: Reply) {
        let path = path.to_string();
        self.rule(move |request| (request.path() == path).then(|| reply.clone()));
    }

    /// Answers document requests that carry `key` with `reply`.
    pub fn on_key(&self, key: &str, reply: Reply) {
        let key = key.to_string();
        self.rule(move |request| (is_document(request) && request.key() == key).then(|| reply.clone()));
    }

    /// Serves `document` for `key` as core does: `Last-Modified` of its `updated_at`, and 304 by
    /// whole seconds.
    pub fn document(&self, key: &str, document: impl AsRef<[u8]>) {
        let key = key.to_string();
        let reply = Reply::json(document);
        let modified = updated_at_of(&reply.body);
        self.rule(move |request| {
            if !is_document(request) || request.key() != key {
                return None;
            }
            let Some(modified) = modified else { return Some(reply.clone()) };
            let since =
                request.header("if-modified-since").and_then(|text| httpdate::parse_http_date(text).ok());
            let reply = match since {
                Some(since) if modified <= since => Reply::new(304, ""),
                _ => reply.clone(),
            };
            Some(reply.with("last-modified", &httpdate::fmt_http_date(modified)))
        });
    }

    /// Removes all rules.
    pub fn clear(&self) {
        self.shared.state().rules.clear();
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Recorded> {
        self.shared.state().requests.clone()
    }

    /// Removes all recorded requests, so that a long run does not keep them.
    pub fn forget_requests(&self) {
        self.shared.state().requests.clear();
    }

    /// All requests for `path` so far.
    pub fn requests_for(&self, path: &str) -> Vec<Recorded> {
        self.requests().into_iter().filter(|request| request.path() == path).collect()
    }

    /// The number of document requests.
    pub fn polls(&self) -> usize {
        self.shared.state().requests.iter().filter(|request| is_document(request)).count()
    }

    /// Waits until `done` holds for the requests so far.
    ///
    /// # Panics
    /// After ten seconds.
    pub fn wait(&self, what: &str, mut done: impl FnMut(&[Recorded]) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut state = self.shared.state();
        while !done(&state.requests) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "upstream waited in vain for {what}; got {:#?}", state.requests);
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(|e| e.into_inner()).0;
        }
    }

    /// Waits for one more document request than there are now.
    pub fn wait_poll(&self) {
        let seen = self.polls();
        self.wait("a poll", |requests| requests.iter().filter(|r| is_document(r)).count() > seen);
    }

    /// Writes `text` to every open stream of `path`; returns their number.
    pub fn push(&self, path: &str, text: &str) -> usize {
        let mut state = self.shared.state();
        state
            .streams
            .retain_mut(|stream| stream.path != path || stream.socket.write_all(text.as_bytes()).is_ok());
        state.streams.iter().filter(|stream| stream.path == path).count()
    }

    /// The number of open streams at `path`.
    pub fn streams(&self, path: &str) -> usize {
        self.shared.state().streams.iter().filter(|stream| stream.path == path).count()
    }

    /// Closes every open connection, streams included.
    pub fn close_connections(&self) {
        let mut state = self.shared.state();
        for socket in state.sockets.drain(..) {
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
        state.streams.clear();
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.refuse();
    }
}

fn is_document(request: &Recorded) -> bool {
    request.path().trim_end_matches('/').ends_with("/environment-document")
}

/// The document's `updated_at`, truncated to seconds; naive times are UTC (compatibility.md 3).
fn updated_at_of(document: &[u8]) -> Option<SystemTime> {
    use time::format_description::well_known::Rfc3339;
    let document: serde_json::Value = serde_json::from_slice(document).ok()?;
    let text = document.get("updated_at")?.as_str()?;
    let time = time::OffsetDateTime::parse(text, &Rfc3339)
        .or_else(|_| time::OffsetDateTime::parse(&format!("{text}Z"), &Rfc3339))
        .ok()?;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(time.unix_timestamp().try_into().ok()?))
}

fn accept(listener: TcpListener, shared: Arc<Shared>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        for socket in listener.incoming() {
            if shared.stopped.load(Ordering::SeqCst) {
                return;
            }
            let Ok(socket) = socket else { continue };
            if let Ok(copy) = socket.try_clone() {
                shared.state().sockets.push(copy);
            }
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let _ = converse(socket, &shared);
            });
        }
    })
}

fn converse(socket: TcpStream, shared: &Shared) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let mut reader = BufReader::new(socket.try_clone()?);
    let mut writer = socket;
    while let Some(request) = read_request(&mut reader)? {
        let reply = {
            let mut state = shared.state();
            state.requests.push(request.clone());
            let reply = state.rules.iter_mut().rev().find_map(|rule| rule(&request));
            shared.changed.notify_all();
            reply.unwrap_or_else(|| Reply::new(404, r#"{"detail":"Not found."}"#))
        };
        thread::sleep(reply.delay);
        if !deliver(&reply, &request, &mut writer, &mut reader, shared)? {
            return Ok(());
        }
    }
    Ok(())
}

/// `None` at the end of the connection.
fn read_request(reader: &mut BufReader<TcpStream>) -> io::Result<Option<Recorded>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let method = words.next().unwrap_or_default().to_string();
    let target = words.next().unwrap_or_default().to_string();
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_string());
    }
    let mut body = Vec::new();
    if headers.get("transfer-encoding").is_some_and(|value| value == "chunked") {
        read_chunks(reader, &mut body)?;
    } else if let Some(length) = headers.get("content-length").and_then(|value| value.parse().ok()) {
        body.resize(length, 0);
        reader.read_exact(&mut body)?;
    }
    Ok(Some(Recorded { method, target, headers, body, at: Instant::now() }))
}

fn read_chunks(reader: &mut BufReader<TcpStream>, body: &mut Vec<u8>) -> io::Result<()> {
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let length = usize::from_str_radix(line.trim(), 16).unwrap_or(0);
        let start = body.len();
        body.resize(start + length, 0);
        reader.read_exact(&mut body[start..])?;
        reader.read_line(&mut line)?;
        if length == 0 {
            return Ok(());
        }
    }
}

/// False if the connection is closed.
fn deliver(
    reply: &Reply,
    request: &Recorded,
    writer: &mut TcpStream,
    reader: &mut BufReader<TcpStream>,
    shared: &Shared,
) -> io::Result<bool> {
    let mut head = format!("HTTP/1.1 {} Scripted\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !reply.stream && reply.status != 304 && reply.status != 204 {
        head.push_str(&format!("content-length: {}\r\n", reply.body.len()));
    }
    head.push_str("\r\n");
    let body = if request.method == "HEAD" { &[][..] } else { &reply.body[..] };
    let cut = |count: usize| &body[..count.min(body.len())];
    match reply.delivery {
        Delivery::Whole => {
            writer.write_all(&[head.as_bytes(), body].concat())?;
            if reply.stream {
                let socket = writer.try_clone()?;
                shared.state().streams.push(Stream { path: request.path().to_string(), socket });
                shared.changed.notify_all();
                hang(reader);
                return Ok(false);
            }
            return Ok(true);
        }
        Delivery::Drip(size, pause) => {
            writer.write_all(head.as_bytes())?;
            for piece in body.chunks(size) {
                writer.write_all(piece)?;
                thread::sleep(pause);
            }
            return Ok(true);
        }
        Delivery::ResetAfter(count) => {
            writer.write_all(&[head.as_bytes(), cut(count)].concat())?;
            socket2::SockRef::from(&*writer).set_linger(Some(Duration::ZERO))?;
            // The data must arrive before the reset discards it.
            thread::sleep(Duration::from_millis(20));
            // The reset is sent when the last copy of the socket is closed.
            let peer = writer.peer_addr().ok();
            shared.state().sockets.retain(|socket| socket.peer_addr().ok() != peer);
        }
        Delivery::EndAfter(count) => {
            writer.write_all(&[head.as_bytes(), cut(count)].concat())?;
            writer.shutdown(std::net::Shutdown::Both)?;
        }
        Delivery::HangAfter(count) => {
            writer.write_all(&[head.as_bytes(), cut(count)].concat())?;
            hang(reader);
        }
        Delivery::HangBeforeHead => hang(reader),
        Delivery::Raw => writer.write_all(body)?,
    }
    Ok(false)
}

/// Reads until the peer closes.
fn hang(reader: &mut BufReader<TcpStream>) {
    let _ = io::copy(reader, &mut io::sink());
}
