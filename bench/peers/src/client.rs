//! What both load generators have: arguments, connections and the extent of a response.
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

/// The start of the body and the end of a complete response at the start of `bytes`. Panics unless it is 200 or
/// 202.
pub fn response_extent(bytes: &[u8]) -> Option<(usize, usize)> {
    let body = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let is_success = bytes.starts_with(b"HTTP/1.1 200 ") || bytes.starts_with(b"HTTP/1.1 202 ");
    assert!(is_success, "neither 200 nor 202: {}", String::from_utf8_lossy(&bytes[..body]));
    let head = std::str::from_utf8(&bytes[..body]).expect("an ASCII head");
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().expect("a length"))
    });
    let end = body + length.expect("responses have a Content-Length");
    (bytes.len() >= end).then_some((body, end))
}
