//! What both load generators have: arguments, connections and responses.
use std::borrow::Cow;
use std::net::{SocketAddr, TcpStream};
use std::str::FromStr;

/// The arguments of the process: names with values.
pub struct Arguments(Vec<String>);

impl Arguments {
    pub fn read() -> Self {
        Self(std::env::args().skip(1).collect())
    }

    pub fn value(&self, name: &str) -> Option<&str> {
        let at = self.0.iter().position(|argument| argument == name)?;
        self.0.get(at + 1).map(String::as_str)
    }

    pub fn number<T: FromStr>(&self, name: &str) -> Option<T> {
        self.value(name)
            .map(|text| text.parse().unwrap_or_else(|_| panic!("{name} {text}: expected a number")))
    }

    pub fn file(&self, name: &str) -> Option<Vec<u8>> {
        let read = |path: &str| std::fs::read(path).unwrap_or_else(|error| panic!("{name} {path}: {error}"));
        self.value(name).map(read)
    }

    /// `--port`, on the loopback interface.
    pub fn address(&self) -> Option<SocketAddr> {
        self.number("--port").map(|port: u16| SocketAddr::from(([127, 0, 0, 1], port)))
    }
}

/// A non-blocking connection. It is established before it is used: a storm of connections is not measured.
pub fn connect(address: SocketAddr) -> mio::net::TcpStream {
    let stream = TcpStream::connect(address).expect("the server listens");
    stream.set_nodelay(true).expect("TCP");
    stream.set_nonblocking(true).expect("a socket");
    mio::net::TcpStream::from_std(stream)
}

/// A complete response.
pub struct Response<'a> {
    pub body: Cow<'a, [u8]>,
    /// Its length with the head and the framing, bytes.
    pub length: usize,
}

impl<'a> Response<'a> {
    /// The response at the start of `bytes`, if it is complete. Panics unless it is 200 or 202.
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        let start = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
        let is_success = bytes.starts_with(b"HTTP/1.1 200 ") || bytes.starts_with(b"HTTP/1.1 202 ");
        assert!(is_success, "neither 200 nor 202: {}", String::from_utf8_lossy(&bytes[..start]));
        let head = std::str::from_utf8(&bytes[..start]).expect("an ASCII head");
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>())
        });
        match length {
            Some(length) => {
                let end = start + length.expect("a length");
                Some(Self { body: Cow::Borrowed(bytes.get(start..end)?), length: end })
            }
            None => {
                let (body, length) = read_chunks(&bytes[start..])?;
                Some(Self { body: Cow::Owned(body), length: start + length })
            }
        }
    }
}

/// A body in chunks (RFC 9112 7.1, without trailers), and the length of its framing.
fn read_chunks(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let rest = bytes.get(at..)?;
        let line = rest.windows(2).position(|window| window == b"\r\n")?;
        let digits = std::str::from_utf8(&rest[..line]).expect("an ASCII line");
        let size = usize::from_str_radix(digits, 16).expect("responses have a Content-Length or chunks");
        let start = line + 2;
        let chunk = rest.get(start..start + size + 2)?;
        body.extend_from_slice(&chunk[..size]);
        at += start + size + 2;
        if size == 0 {
            return Some((body, at));
        }
    }
}
