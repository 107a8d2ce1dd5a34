//! Requests of HTTP/1.1 over HTTP/2: so that tests of the one are tests of the other.
//!
//! With [`VARIABLE`] in the environment a [`Client`](super::Client) sends whole requests to a proxy as streams. What
//! HTTP/2 cannot express, and all that follows it on the connection, is sent as it is.
use std::collections::{HashSet, VecDeque};
use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock};

use super::client::Answer;
use super::http2::{Http2Client, RST_STREAM};

const PROTOCOL_ERROR: u32 = 1;

/// Names a file that gets a byte for each request that was sent over HTTP/2.
pub const VARIABLE: &str = "TEST_OVER_HTTP2";

fn counted() -> Option<&'static PathBuf> {
    static PATH: OnceLock<Option<PathBuf>> = OnceLock::new();
    PATH.get_or_init(|| std::env::var_os(VARIABLE).map(PathBuf::from)).as_ref()
}

/// The addresses of proxies; other servers of the tests speak HTTP/1.1 only.
static PROXIES: Mutex<Option<HashSet<SocketAddr>>> = Mutex::new(None);

/// A proxy listens there.
pub fn register(address: SocketAddr) {
    if counted().is_some() {
        PROXIES.lock().expect("no panic").get_or_insert_default().insert(address);
    }
}

/// The proxy at this address has ended, and its port may become that of a server that speaks HTTP/1.1 only.
pub fn unregister(address: SocketAddr) {
    if let Some(known) = &mut *PROXIES.lock().expect("no panic") {
        known.remove(&address);
    }
}

/// A connection whose whole requests are sent as streams.
pub struct Translated {
    address: SocketAddr,
    http2: Option<Http2Client>,
    /// The answers that are not read yet.
    streams: VecDeque<u32>,
    is_over: bool,
}

impl std::fmt::Debug for Translated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Translated({})", self.address)
    }
}

impl Translated {
    /// `None`: tests speak HTTP/1.1, or there is no proxy.
    pub fn to(address: SocketAddr) -> Option<Self> {
        counted()?;
        let is_proxy =
            PROXIES.lock().expect("no panic").as_ref().is_some_and(|known| known.contains(&address));
        is_proxy.then_some(Self { address, http2: None, streams: VecDeque::new(), is_over: false })
    }

    /// Sends a whole request. False: it must be sent as it is.
    pub fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<bool> {
        let Some(parts) = Parts::of(bytes).filter(|_| !self.is_over) else {
            self.is_over = true;
            return Ok(false);
        };
        if self.http2.is_none() {
            self.http2 = Some(Http2Client::try_connect(self.address)?);
        }
        let client = self.http2.as_mut().expect("it is connected");
        self.streams.push_back(parts.open(client));
        let file = counted().map(|path| std::fs::OpenOptions::new().create(true).append(true).open(path));
        file.expect("it is set")?.write_all(b".")?;
        Ok(true)
    }

    /// The next answer; `None` if none of a stream is left.
    pub fn answer(&mut self) -> Option<std::io::Result<Answer>> {
        let stream = self.streams.pop_front()?;
        Some(self.http2.as_mut()?.answer(stream).or_else(|frame| match (frame.kind, frame.code()) {
            // What HTTP/1.1 answers with 400.
            (RST_STREAM, PROTOCOL_ERROR) => {
                let body = br#"{"detail":"Bad request"}"#.to_vec();
                Ok(Answer { status: 400, headers: Vec::new(), body })
            }
            _ => Err(std::io::Error::new(ErrorKind::ConnectionReset, format!("{frame:?}"))),
        }))
    }
}

/// A request of HTTP/1.1 in parts; `None` if HTTP/2 cannot express it, or if it is not one whole request.
pub struct Parts {
    pub method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Parts {
    pub fn of(request: &[u8]) -> Option<Self> {
        let end = request.windows(4).position(|window| window == b"\r\n\r\n")?;
        let (head, body) = (std::str::from_utf8(&request[..end]).ok()?, request[end + 4..].to_vec());
        let mut lines = head.split("\r\n");
        let mut first = lines.next()?.split(' ');
        let (method, target, version) = (first.next()?, first.next()?, first.next()?);
        let is_path = target.starts_with('/') || (method, target) == ("OPTIONS", "*");
        if version != "HTTP/1.1" || first.next().is_some() || !is_path {
            return None;
        }
        let mut headers = Vec::new();
        for line in lines {
            let (name, value) = line.split_once(':')?;
            let value = value.trim_matches([' ', '\t']);
            let of_connection = ["connection", "transfer-encoding", "upgrade", "keep-alive", "te", "expect"];
            if of_connection.iter().any(|other| name.eq_ignore_ascii_case(other)) {
                return None;
            }
            if name.eq_ignore_ascii_case("content-length") && value.parse() != Ok(body.len()) {
                return None;
            }
            if name.is_empty()
                || name.contains(|c: char| !c.is_ascii_graphic())
                || line.contains(['\n', '\r', '\0'])
            {
                return None;
            }
            headers.push((name.to_owned(), value.to_owned()));
        }
        let has_length = headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        if !has_length && !body.is_empty() {
            // Another request.
            return None;
        }
        let hosts = headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("host")).count();
        let (method, target) = (method.to_owned(), target.to_owned());
        (hosts == 1).then_some(Self { method, target, headers, body })
    }

    /// The answer; a reset is one of status 0.
    pub fn send(&self, client: &mut Http2Client) -> Answer {
        let stream = self.open(client);
        let reset = |_| Answer { status: 0, headers: Vec::new(), body: Vec::new() };
        client.answer(stream).unwrap_or_else(reset)
    }

    /// Sends the request; returns its stream.
    pub fn open(&self, client: &mut Http2Client) -> u32 {
        let headers: Vec<(&str, &str)> =
            self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        client.open(&self.method, &self.target, &headers, &self.body)
    }
}
