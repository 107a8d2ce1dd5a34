//! An HTTP/2 client with prior knowledge, whose frames the caller may send one by one.
//!
//! Its frames are its own. Its HPACK is that of the library, which the conformance data checks with another.
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use edge_proxy::http::hpack::decoder::HpackDecoder;
use edge_proxy::http::hpack::encoder;

use super::PATIENCE;
use super::client::Answer;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

#[derive(Clone, Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The error code of RST_STREAM or GOAWAY.
    pub fn code(&self) -> u32 {
        let start = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[start..start + 4].try_into().expect("four bytes"))
    }
}

/// What an HTTP/2 connection runs on: TCP, TLS or a unix socket.
pub trait Socket: Read + Write + Send {}

impl<T: Read + Write + Send> Socket for T {}

pub struct Http2Client {
    stream: Box<dyn Socket>,
    unread: Vec<u8>,
    decoder: HpackDecoder,
    next: u32,
    partial: BTreeMap<u32, Answer>,
    /// Whole answers, and resets, that came before the one that was waited for.
    early: BTreeMap<u32, Result<Answer, Frame>>,
}

impl Http2Client {
    /// Connects, with windows that never stop an answer.
    pub fn connect(address: SocketAddr) -> Self {
        Self::try_connect(address).expect("a connection")
    }

    /// As [`connect`](Self::connect); fails if nothing listens.
    pub fn try_connect(address: SocketAddr) -> std::io::Result<Self> {
        Ok(Self::over(tcp(address)?))
    }

    /// Begins HTTP/2 on a socket, with windows that never stop an answer.
    pub fn over(stream: impl Socket + 'static) -> Self {
        let mut client = Self::over_with(stream, &[(4, 0x7fff_ffff)]);
        client.frame(WINDOW_UPDATE, 0, 0, &0x7000_0000_u32.to_be_bytes());
        client
    }

    /// Connects with these settings.
    pub fn connect_with(address: SocketAddr, settings: &[(u16, u32)]) -> Self {
        Self::over_with(tcp(address).expect("a connection"), settings)
    }

    fn over_with(stream: impl Socket + 'static, settings: &[(u16, u32)]) -> Self {
        let mut client = Self {
            stream: Box::new(stream),
            unread: Vec::new(),
            decoder: HpackDecoder::default(),
            next: 1,
            partial: BTreeMap::new(),
            early: BTreeMap::new(),
        };
        client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        let mut payload = Vec::new();
        for (name, value) in settings {
            payload.extend_from_slice(&name.to_be_bytes());
            payload.extend_from_slice(&value.to_be_bytes());
        }
        client.frame(SETTINGS, 0, 0, &payload);
        client
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).expect("the server reads");
    }

    pub fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    pub fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.send(&frame(kind, flags, stream, payload));
    }

    /// Opens a stream with a request and its body. Returns its identifier.
    pub fn open(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> u32 {
        let stream = self.open_head(method, target, headers, body.is_empty());
        if !body.is_empty() {
            let mut parts = body.chunks(16 * 1024).peekable();
            while let Some(part) = parts.next() {
                let flags = if parts.peek().is_none() { END_STREAM } else { 0 };
                self.frame(DATA, flags, stream, part);
            }
        }
        stream
    }

    /// Opens a stream with the head of a request.
    pub fn open_head(&mut self, method: &str, target: &str, headers: &[(&str, &str)], ends: bool) -> u32 {
        let stream = self.next;
        self.next += 2;
        let block = block(method, target, headers);
        let flags = if ends { END_HEADERS | END_STREAM } else { END_HEADERS };
        self.frame(HEADERS, flags, stream, &block);
        stream
    }

    /// The identifier of the next stream and its frame, for several in one write.
    pub fn next_head(&mut self, method: &str, target: &str, headers: &[(&str, &str)]) -> (u32, Vec<u8>) {
        let stream = self.next;
        self.next += 2;
        (stream, frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(method, target, headers)))
    }

    /// Opens a stream with these fields, and leaves it open.
    pub fn open_fields(&mut self, fields: &[(&str, &str)]) -> u32 {
        let stream = self.next;
        self.next += 2;
        let mut block = Vec::new();
        fields.iter().for_each(|(name, value)| encoder::field(name.as_bytes(), value.as_bytes(), &mut block));
        self.frame(HEADERS, END_HEADERS, stream, &block);
        stream
    }

    pub fn request(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let stream = self.open(method, target, headers, body);
        self.answer(stream).unwrap_or_else(|frame| panic!("{method} {target}: {frame:?}"))
    }

    /// The whole answer of a stream; or the frame that ended the stream or the connection.
    pub fn answer(&mut self, stream: u32) -> Result<Answer, Frame> {
        loop {
            if let Some(answer) = self.early.remove(&stream) {
                return answer;
            }
            let frame = self.next_frame().expect("an answer before the end");
            if frame.kind == GOAWAY && frame.code() != 0 {
                return Err(frame);
            }
            self.keep(frame);
        }
    }

    /// Keeps what a frame completes for a later call.
    fn keep(&mut self, frame: Frame) {
        if frame.kind == RST_STREAM {
            self.early.entry(frame.stream).or_insert(Err(frame));
        } else if let Some((stream, answer)) = self.take(frame) {
            self.early.insert(stream, Ok(answer));
        }
    }

    /// The status of the last head of a stream that has not ended, and what came of its body.
    pub fn partial(&self, stream: u32) -> Option<&Answer> {
        self.partial.get(&stream)
    }

    /// Adds a frame to the answers; returns the answer that it completes.
    pub fn take(&mut self, frame: Frame) -> Option<(u32, Answer)> {
        match frame.kind {
            HEADERS => {
                let mut headers = Vec::new();
                let add = |name: &[u8], value: &[u8]| {
                    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
                    headers.push((text(name), text(value)));
                    true
                };
                self.decoder.decode(&frame.payload, add).expect("a valid block");
                let (name, status) = headers.remove(0);
                assert_eq!(name, ":status");
                let status = status.parse().expect("a status");
                if status >= 200 {
                    self.partial.insert(frame.stream, Answer { status, headers, body: Vec::new() });
                }
            }
            DATA => {
                let answer = self.partial.get_mut(&frame.stream).expect("DATA after HEADERS");
                answer.body.extend_from_slice(&frame.payload);
            }
            _ => return None,
        }
        let is_last = frame.flags & END_STREAM != 0;
        is_last.then(|| self.partial.remove(&frame.stream).map(|answer| (frame.stream, answer)))?
    }

    /// The next frame; `None` at the end of the connection.
    pub fn next_frame(&mut self) -> Option<Frame> {
        let head: [u8; 9] = self.exactly(9)?.try_into().expect("nine bytes");
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let stream = u32::from_be_bytes(head[5..9].try_into().expect("four bytes"));
        let payload = self.exactly(length)?;
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// Skips frames until one of this kind.
    pub fn until(&mut self, kind: u8) -> Option<Frame> {
        loop {
            let frame = self.next_frame()?;
            if frame.kind == kind {
                return Some(frame);
            }
            self.keep(frame);
        }
    }

    fn exactly(&mut self, length: usize) -> Option<Vec<u8>> {
        let mut chunk = [0; 16 * 1024];
        while self.unread.len() < length {
            match self.stream.read(&mut chunk) {
                Ok(0) => return None,
                Ok(read) => self.unread.extend_from_slice(&chunk[..read]),
                Err(error) if is_end(&error) => return None,
                Err(error) => panic!("{error}"),
            }
        }
        Some(self.unread.drain(..length).collect())
    }
}

fn tcp(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A server that closes with unread input resets the connection.
fn is_end(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof)
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The block of a request. `Host` among the headers replaces the authority.
pub fn block(method: &str, target: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    let host = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("host"));
    let authority = host.map_or("localhost", |(_, value)| value);
    for (name, value) in
        [(":method", method), (":scheme", "http"), (":path", target), (":authority", authority)]
    {
        encoder::field(name.as_bytes(), value.as_bytes(), &mut block);
    }
    for (name, value) in headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("host")) {
        encoder::field(name.to_ascii_lowercase().as_bytes(), value.as_bytes(), &mut block);
    }
    block
}
