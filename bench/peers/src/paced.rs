//! An open-loop load generator: requests are sent at a constant rate, independent of the server.
//!
//! `paced --port P --rate R --connections C --seconds S --request FILE [--expect FILE] [--warm-up S]
//! [--also FILE --also-rate R]`
//! A closed loop (wrk) sends the next request after the last response, so a stall of the server also stops the
//! measurement. Here each request has a scheduled time from which its latency is measured, including the wait for a
//! free connection. Every response is compared with the expected body; a wrong one aborts the run. Prints one line
//! of JSON. It spins on one core, because a sleep would add latency. `--also` sends a second kind of request at its own
//! rate on as many connections of its own; its responses are counted.
mod client;

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::client::{Arguments, Response};

struct Options {
    address: SocketAddr,
    connections: usize,
    seconds: f64,
    warm_up: f64,
    kinds: Vec<Kind>,
}

/// A request that is sent at a constant rate.
struct Kind {
    rate: f64,
    request: Vec<u8>,
    expect: Option<Vec<u8>>,
}

impl Options {
    fn read() -> Self {
        let arguments = Arguments::read();
        let kind = |request: &str, rate: &str, expect| {
            let request = arguments.file(request)?;
            let rate = arguments.number(rate).unwrap_or_else(|| panic!("{rate} is not set"));
            Some(Kind { rate, request, expect })
        };
        let first = kind("--request", "--rate", arguments.file("--expect")).expect("--request");
        Self {
            address: arguments.address().expect("--port"),
            connections: arguments.number("--connections").unwrap_or(32),
            seconds: arguments.number("--seconds").unwrap_or(5.0),
            warm_up: arguments.number("--warm-up").unwrap_or(0.5),
            kinds: std::iter::once(first).chain(kind("--also", "--also-rate", None)).collect(),
        }
    }
}

struct Connection {
    stream: TcpStream,
    unread: Vec<u8>,
    /// The scheduled time of the current request.
    scheduled: Option<Instant>,
}

struct Load {
    kind: Kind,
    connections: Vec<Connection>,
    idle: Vec<usize>,
    /// Scheduled times that wait for a free connection.
    waiting: VecDeque<Instant>,
    latencies: Histogram<u64>,
    from: Instant,
    /// When the next request is scheduled.
    due: Instant,
    completed: u64,
}

impl Load {
    /// Starts what is scheduled until now.
    fn send_due(&mut self, now: Instant) {
        let interval = Duration::from_secs_f64(1.0 / self.kind.rate);
        while self.due <= now {
            match self.idle.pop() {
                Some(index) => self.start(index, self.due),
                None => self.waiting.push_back(self.due),
            }
            self.due += interval;
        }
    }

    fn start(&mut self, index: usize, scheduled: Instant) {
        let connection = &mut self.connections[index];
        connection.scheduled = Some(scheduled);
        // A request is far smaller than an empty socket buffer, so one write sends it.
        let sent = connection.stream.write(&self.kind.request).expect("the server takes requests");
        assert_eq!(sent, self.kind.request.len(), "a request goes out whole");
    }

    fn read(&mut self, index: usize, chunk: &mut [u8]) {
        loop {
            let connection = &mut self.connections[index];
            match connection.stream.read(chunk) {
                Ok(0) => panic!("the server closed a connection"),
                Ok(length) => connection.unread.extend_from_slice(&chunk[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("read: {error}"),
            }
            let Some(Response { body, length }) = Response::read(&connection.unread) else { continue };
            if let Some(expect) = &self.kind.expect {
                assert!(*body == expect[..], "the body differs from the expected one");
            }
            connection.unread.drain(..length);
            let scheduled = connection.scheduled.take().expect("one request, one answer");
            if scheduled >= self.from {
                self.latencies.saturating_record(scheduled.elapsed().as_nanos() as u64);
            }
            self.completed += 1;
            match self.waiting.pop_front() {
                Some(next) => self.start(index, next),
                None => self.idle.push(index),
            }
        }
    }
}

fn connect(options: &Options, first: usize, poll: &Poll) -> Vec<Connection> {
    let connection = |index| {
        let mut stream = client::connect(options.address);
        poll.registry().register(&mut stream, Token(first + index), Interest::READABLE).expect("registered");
        Connection { stream, unread: Vec::new(), scheduled: None }
    };
    (0..options.connections).map(connection).collect()
}

fn main() {
    let mut options = Options::read();
    let mut poll = Poll::new().expect("epoll");
    let mut events = Events::with_capacity(1024);
    let kinds = std::mem::take(&mut options.kinds);
    let connections: Vec<_> =
        (0..kinds.len()).map(|kind| connect(&options, kind * options.connections, &poll)).collect();
    let start = Instant::now();
    let from = start + Duration::from_secs_f64(options.warm_up);
    let end = from + Duration::from_secs_f64(options.seconds);
    let load = |(kind, connections): (Kind, Vec<Connection>)| {
        let latencies = Histogram::new_with_bounds(100, 60_000_000_000, 3).expect("valid bounds");
        let idle = (0..connections.len()).collect();
        Load { kind, connections, idle, waiting: VecDeque::new(), latencies, from, due: start, completed: 0 }
    };
    let mut loads: Vec<Load> = kinds.into_iter().zip(connections).map(load).collect();
    let mut chunk = vec![0; 256 * 1024];
    loop {
        let now = Instant::now();
        if now >= end {
            break;
        }
        loads.iter_mut().for_each(|load| load.send_due(now));
        poll.poll(&mut events, Some(Duration::ZERO)).expect("epoll");
        for event in &events {
            let token = event.token().0;
            loads[token / options.connections].read(token % options.connections, &mut chunk);
        }
    }
    let also_completed = loads.get(1).map_or(0, |load| load.completed);
    let Load { latencies, waiting, completed, .. } = loads.swap_remove(0);
    let micros = |quantile: f64| latencies.value_at_quantile(quantile) as f64 / 1000.0;
    println!(
        "{{\"completed\":{completed},\"also_completed\":{also_completed},\"measured\":{},\"left_waiting\":{},\"p50_us\":{:.1},\"p90_us\":{:.1},\"p99_us\":{:.1},\"p999_us\":{:.1},\"max_us\":{:.1}}}",
        latencies.len(),
        waiting.len(),
        micros(0.5),
        micros(0.9),
        micros(0.99),
        micros(0.999),
        micros(1.0),
    );
}
