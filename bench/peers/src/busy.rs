//! A closed-loop load generator that shows how fairly connections are served.
//!
//! `busy (--port P | --unix PATH) --connections C --seconds S --heads FILE --key KEY --path PATH
//! [--body FILE] [--vary] [--reconnect] [--warm-up S]`
//! All connections are opened first; then each sends its next request when it has its answer. Connections take
//! the heads of the file (header fields, an empty line between two clients) in turn. With `--vary` each
//! request has another number in the place of the digits of the first `user-000000` of path or body. With `--reconnect` each
//! request says `Connection: close` and has a connection of its own.
//! Prints one line of JSON: requests, latency, and the answers for each connection (least, median, most).
mod client;

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use mio::event::Source;
use mio::net::{TcpStream, UnixStream};
use mio::{Events, Interest, Poll, Token};

use crate::client::{Arguments, Response, connect};

/// The identifier whose digits are replaced.
const VARIED: &[u8] = b"user-000000";
const DIGITS: usize = 6;

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    fn source(&mut self) -> &mut dyn Source {
        match self {
            Self::Tcp(stream) => stream,
            Self::Unix(stream) => stream,
        }
    }
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(bytes),
            Self::Unix(stream) => stream.read(bytes),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct Options {
    address: Option<SocketAddr>,
    unix: Option<String>,
    connections: usize,
    seconds: f64,
    warm_up: f64,
    requests: Vec<Vec<u8>>,
    vary: bool,
    reconnect: bool,
}

impl Options {
    fn read() -> Self {
        let arguments = Arguments::read();
        let is_set = |name: &str| std::env::args().any(|argument| argument == name);
        let heads = String::from_utf8(arguments.file("--heads").expect("--heads")).expect("text");
        let (key, path) =
            (arguments.value("--key").expect("--key"), arguments.value("--path").expect("--path"));
        let (body, reconnect) = (arguments.file("--body"), is_set("--reconnect"));
        let requests =
            heads.trim().split("\n\n").map(|head| request(head, key, path, body.as_deref(), reconnect));
        Self {
            address: arguments.address(),
            unix: arguments.value("--unix").map(str::to_owned),
            connections: arguments.number("--connections").unwrap_or(32),
            seconds: arguments.number("--seconds").unwrap_or(5.0),
            warm_up: arguments.number("--warm-up").unwrap_or(0.5),
            requests: requests.collect(),
            vary: is_set("--vary"),
            reconnect,
        }
    }

    fn connect(&self) -> Stream {
        match (&self.unix, self.address) {
            (Some(path), _) => Stream::Unix(UnixStream::connect(path).expect("it listens")),
            (None, address) => Stream::Tcp(connect(address.expect("--port or --unix"))),
        }
    }
}

fn request(head: &str, key: &str, path: &str, body: Option<&[u8]>, reconnect: bool) -> Vec<u8> {
    let method = if body.is_some() { "POST" } else { "GET" };
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Environment-Key: {key}\r\n");
    for line in head.lines() {
        if !(reconnect && line.to_ascii_lowercase().starts_with("connection:")) {
            text += &format!("{line}\r\n");
        }
    }
    if reconnect {
        text += "Connection: close\r\n";
    }
    if let Some(body) = body {
        text += &format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
    }
    [text.as_bytes(), b"\r\n", body.unwrap_or_default()].concat()
}

struct Connection {
    stream: Stream,
    request: Vec<u8>,
    /// Where the digits of the varied identifier begin.
    digits_at: Option<usize>,
    unsent: usize,
    unread: Vec<u8>,
    sent_at: Instant,
    answers: u64,
}

struct Load {
    options: Options,
    poll: Poll,
    connections: Vec<Connection>,
    latencies: Histogram<u64>,
    number: u32,
    from: Instant,
}

impl Load {
    fn register(&mut self, index: usize) {
        let both = Interest::READABLE | Interest::WRITABLE;
        let source = self.connections[index].stream.source();
        self.poll.registry().register(source, Token(index), both).expect("a socket");
    }

    fn send(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        if let Some(at) = connection.digits_at {
            self.number = (self.number + 1) % 1_000_000;
            connection.request[at..at + DIGITS].copy_from_slice(format!("{:06}", self.number).as_bytes());
        }
        connection.sent_at = Instant::now();
        connection.unsent = connection.request.len();
        self.write(index);
    }

    fn write(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        while connection.unsent > 0 {
            let from = connection.request.len() - connection.unsent;
            match connection.stream.write(&connection.request[from..]) {
                Ok(count) => connection.unsent -= count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("connection {index}: {error}"),
            }
        }
    }

    fn read(&mut self, index: usize) {
        let mut piece = [0; 64 * 1024];
        loop {
            let connection = &mut self.connections[index];
            match connection.stream.read(&mut piece) {
                Ok(0) if self.options.reconnect && connection.unread.is_empty() => return,
                Ok(0) => panic!("connection {index} was closed"),
                Ok(count) => connection.unread.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("connection {index}: {error}"),
            }
            let Some(Response { length, .. }) = Response::read(&connection.unread) else { continue };
            assert_eq!(length, connection.unread.len(), "one answer for a request");
            connection.unread.clear();
            if connection.sent_at >= self.from {
                connection.answers += 1;
                let taken = connection.sent_at.elapsed().as_nanos() as u64;
                self.latencies.record(taken.max(1)).expect("within bounds");
            }
            if self.options.reconnect {
                let stream = self.options.connect();
                self.connections[index].stream = stream;
                self.register(index);
            }
            self.send(index);
        }
    }

    fn run(mut self) {
        for index in 0..self.connections.len() {
            self.register(index);
        }
        let mut events = Events::with_capacity(4096);
        self.from = Instant::now() + Duration::from_secs_f64(self.options.warm_up);
        let until = self.from + Duration::from_secs_f64(self.options.seconds);
        for index in 0..self.connections.len() {
            self.send(index);
        }
        while Instant::now() < until {
            self.poll.poll(&mut events, Some(Duration::from_millis(10))).expect("a poll");
            for event in events.iter() {
                let Token(index) = event.token();
                self.write(index);
                self.read(index);
            }
        }
        self.report();
    }

    fn report(&self) {
        let mut answers: Vec<u64> = self.connections.iter().map(|connection| connection.answers).collect();
        answers.sort_unstable();
        let quantile = |share: f64| self.latencies.value_at_quantile(share) as f64 / 1000.0;
        println!(
            "{{\"requests\":{},\"seconds\":{},\"errors\":0,\"not_200\":0,\"p50_us\":{:.1},\"p90_us\":{:.1},\"p99_us\":{:.1},\
             \"p999_us\":{:.1},\"answers_min\":{},\"answers_median\":{},\"answers_max\":{}}}",
            answers.iter().sum::<u64>(),
            self.options.seconds,
            quantile(0.5),
            quantile(0.9),
            quantile(0.99),
            quantile(0.999),
            answers[0],
            answers[answers.len() / 2],
            answers[answers.len() - 1]
        );
    }
}

fn main() {
    let options = Options::read();
    let connection = |index: usize| {
        let request = options.requests[index % options.requests.len()].clone();
        let digits_at = request
            .windows(VARIED.len())
            .position(|found| found == VARIED)
            .map(|at| at + VARIED.len() - DIGITS)
            .filter(|_| options.vary);
        let (stream, sent_at) = (options.connect(), Instant::now());
        Connection { stream, request, digits_at, unsent: 0, unread: Vec::new(), sent_at, answers: 0 }
    };
    let connections = (0..options.connections).map(connection).collect();
    let latencies = Histogram::new_with_bounds(1, 120_000_000_000, 3).expect("bounds");
    let poll = Poll::new().expect("a poll");
    Load { options, poll, connections, latencies, number: 0, from: Instant::now() }.run();
}
