//! A low-level HTTP/1.1 client: bytes out, bytes in, one response at a time.
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::PATIENCE;
use super::translated::Translated;

/// One response, de-chunked but not decompressed.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    /// Names as sent, in order.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    /// The first header of that name, ignoring case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON, decompressed if necessary.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.plain()).unwrap_or_else(|error| panic!("{error} in {}", self.text()))
    }

    /// The body after its `Content-Encoding`.
    pub fn plain(&self) -> Vec<u8> {
        match self.header("content-encoding") {
            None | Some("identity") => self.body.clone(),
            Some("gzip") => {
                let mut plain = Vec::new();
                flate2::read::GzDecoder::new(&self.body[..]).read_to_end(&mut plain).expect("whole gzip");
                plain
            }
            Some(other) => panic!("unsupported content coding: {other}"),
        }
    }
}

/// A connection, open until it is dropped or the server closes it.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    unread: Vec<u8>,
    /// Tests run over HTTP/2.
    translated: Option<Translated>,
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        Self::try_connect(address).unwrap_or_else(|error| panic!("connect to {address}: {error}"))
    }

    pub fn try_connect(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, unread: Vec::new(), translated: Translated::to(address) })
    }

    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// The socket, for what this client does not support.
    pub fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// Sends bytes unchanged.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).expect("the server reads");
    }

    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        if let Some(translated) = &mut self.translated
            && translated.try_send(bytes.as_ref())?
        {
            return Ok(());
        }
        self.stream.write_all(bytes.as_ref())
    }

    /// Sends one request with the fields that HTTP requires, and reads its response.
    pub fn request(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.send(request(method, target, headers, body));
        self.answer(method)
    }

    /// Reads the next response; `method` decides whether a body follows (RFC 9112 6.3).
    pub fn answer(&mut self, method: &str) -> Answer {
        self.try_answer(method).expect("a whole answer").expect("an answer before the end of the stream")
    }

    /// As [`Client::answer`]; `None` if the server closed before the first byte of one.
    pub fn try_answer(&mut self, method: &str) -> std::io::Result<Option<Answer>> {
        if let Some(answer) = self.translated.as_mut().and_then(Translated::answer) {
            return answer.map(Some);
        }
        loop {
            let Some((status, headers)) = self.head()? else { return Ok(None) };
            if (100..200).contains(&status) {
                continue;
            }
            let mut answer = Answer { status, headers, body: Vec::new() };
            if method != "HEAD" && status != 204 && status != 304 {
                answer.body = self.body(&answer)?;
            }
            return Ok(Some(answer));
        }
    }

    /// Reads one head, interim ones (1xx) included.
    #[allow(clippy::type_complexity)]
    pub fn head(&mut self) -> std::io::Result<Option<(u16, Vec<(String, String)>)>> {
        let end = loop {
            if let Some(at) = self.unread.windows(4).position(|window| window == b"\r\n\r\n") {
                break at;
            }
            if self.fill()? == 0 {
                if self.unread.is_empty() {
                    return Ok(None);
                }
                return Err(ErrorKind::UnexpectedEof.into());
            }
        };
        let head: Vec<u8> = self.unread.drain(..end + 4).take(end).collect();
        let head = String::from_utf8(head).expect("a head is ASCII");
        let mut lines = head.split("\r\n");
        let first = lines.next().expect("a status line");
        let status =
            first.strip_prefix("HTTP/1.1 ").unwrap_or_else(|| panic!("a status line, not {first:?}"));
        let status = status[..3].parse().expect("a status code");
        let headers = lines
            .map(|line| line.split_once(':').unwrap_or_else(|| panic!("a header, not {line:?}")))
            // Whitespace around a value is not part of it (RFC 9112 5).
            .map(|(name, value)| (name.to_owned(), value.trim_matches([' ', '\t']).to_owned()))
            .collect();
        Ok(Some((status, headers)))
    }

    fn body(&mut self, answer: &Answer) -> std::io::Result<Vec<u8>> {
        if let Some(length) = answer.header("content-length") {
            return self.exactly(length.parse().expect("a decimal Content-Length"));
        }
        if answer.header("transfer-encoding") == Some("chunked") {
            return self.chunks();
        }
        while self.fill()? > 0 {}
        Ok(std::mem::take(&mut self.unread))
    }

    fn chunks(&mut self) -> std::io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.line()?;
            let length =
                usize::from_str_radix(line.split(';').next().unwrap_or(""), 16).expect("a chunk size");
            body.extend(self.exactly(length)?);
            assert_eq!(self.exactly(2)?, b"\r\n", "a chunk ends with CRLF");
            if length == 0 {
                return Ok(body);
            }
        }
    }

    /// One line without its line ending, for event streams and chunk sizes.
    pub fn line(&mut self) -> std::io::Result<String> {
        loop {
            if let Some(at) = self.unread.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=at).collect();
                return Ok(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned());
            }
            if self.fill()? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }

    pub fn exactly(&mut self, length: usize) -> std::io::Result<Vec<u8>> {
        while self.unread.len() < length {
            if self.fill()? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.unread.drain(..length).collect())
    }

    /// True once the server has closed and everything it sent was read.
    pub fn is_closed(&mut self) -> bool {
        // A reset is an end too: the server may close with unread input.
        self.unread.is_empty() && !matches!(self.fill(), Ok(1..))
    }

    fn fill(&mut self) -> std::io::Result<usize> {
        let mut chunk = [0; 16 * 1024];
        let length = self.stream.read(&mut chunk)?;
        self.unread.extend_from_slice(&chunk[..length]);
        Ok(length)
    }
}

/// The bytes of one request. `Host` is always sent, `Content-Length` if there is a body or the method usually has
/// one.
pub fn request(method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n");
    for (name, value) in headers {
        bytes.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() || method == "POST" {
        bytes.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    bytes.push_str("\r\n");
    let mut bytes = bytes.into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// One GET on a new connection.
pub fn get(address: SocketAddr, target: &str, key: &str) -> Answer {
    Client::connect(address).request("GET", target, &[("X-Environment-Key", key)], b"")
}

/// One POST of JSON on a new connection.
pub fn post(address: SocketAddr, target: &str, key: &str, body: &str) -> Answer {
    let headers = [("X-Environment-Key", key), ("Content-Type", "application/json")];
    Client::connect(address).request("POST", target, &headers, body.as_bytes())
}
