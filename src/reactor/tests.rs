//! A whole reactor on a real socket, with both drivers, in this process.
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::*;
use crate::channel::{Publisher, ReactorMessage};
use crate::config;
use crate::config::{Config, Driver, Inputs};
use crate::http::route::Route;
use crate::limits;
use crate::log::Log;
use crate::metrics::ReactorMetrics;
use crate::reactor::context::{Reactor, WorkerState};
use crate::reactor::options::InjectedPanic;
use crate::snapshot::Snapshot;

const LIVENESS: &str = "GET /proxy/health/liveness HTTP/1.1\r\nHost: a\r\n\r\n";
const DEADLINE: Duration = Duration::from_secs(10);

/// A running reactor.
struct TestReactor {
    address: std::net::SocketAddr,
    publisher: Publisher,
    thread: Option<JoinHandle<()>>,
    log: mpsc::Receiver<String>,
    driver: Driver,
    metrics: Arc<ReactorMetrics>,
    fault: &'static AtomicU8,
}

/// Sends each line of the log to the test.
struct Lines(mpsc::Sender<String>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for line in String::from_utf8_lossy(bytes).lines() {
            let _ = self.0.send(line.to_owned());
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn configuration(driver: Driver, variables: &[(&str, &str)]) -> Config {
    let pairs = r#"[{"server_side_key": "ser.a", "client_side_key": "a"}]"#;
    let mut all = vec![("ENVIRONMENT_KEY_PAIRS", pairs), ("SERVER_HOST", "127.0.0.1"), ("SERVER_PORT", "0")];
    all.extend(variables);
    let variables = all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let inputs = Inputs { without_file: true, variables, ..Inputs::default() };
    let (mut config, _) = config::load(&inputs).expect("a valid configuration");
    config.cores.truncate(1);
    config.server.driver = Some(driver);
    config
}

/// The options of a reactor, its publisher, and its log.
fn prepare(
    driver: Driver,
    variables: &[(&str, &str)],
    times: impl FnOnce(&mut Timeouts),
) -> (WorkerOptions, Publisher, mpsc::Receiver<String>) {
    let config = configuration(driver, variables);
    let listener = bind(&config).expect("a free port").remove(0);
    let config = Arc::new(config);
    let mut publisher = Publisher::new(config.clone());
    let inbox = publisher.connect().unwrap();
    let (lines, log) = mpsc::channel();
    let sink = Log::start_to(&config.logging, Lines(lines), None).unwrap();
    let mut start_times = Timeouts::of(&config);
    times(&mut start_times);
    let core = config.cores[0];
    let parts = WorkerOptions {
        index: 0,
        core,
        listener: Some(listener),
        unix_socket: None,
        tls: None,
        inbox,
        config,
        log: sink,
        metrics: Arc::new(ReactorMetrics::new(core)),
        spans: None,
        times: start_times,
    };
    (parts, publisher, log)
}

/// The options of a reactor that is never started.
pub(super) fn options_without_listener() -> (WorkerOptions, Publisher) {
    let (mut options, publisher, _log) = prepare(Driver::Epoll, &[], |_| {});
    options.listener = None;
    (options, publisher)
}

impl TestReactor {
    fn start(driver: Driver, variables: &[(&str, &str)], times: impl FnOnce(&mut Timeouts)) -> Self {
        let (parts, mut publisher, log) = prepare(driver, variables, times);
        let address = parts.listener.as_ref().expect("TCP").local_addr().unwrap();
        let (metrics, fault) = (parts.metrics.clone(), parts.times.fault);
        let thread = Some(start(parts).unwrap());
        publisher.send(&ReactorMessage::Publish(Arc::new(Snapshot::default())));
        Self { address, publisher, thread, log, driver, metrics, fault }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        stream
    }

    /// Sends these bytes and reads until the reactor closes the connection.
    fn exchange(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(bytes).unwrap();
        read_to_end(&mut stream)
    }

    /// Makes one code path panic once.
    fn panic_at(&self, at: InjectedPanic) {
        self.fault.store(at as u8, Ordering::Release);
    }

    fn wait_for_log(&self, text: &str) -> String {
        let until = Instant::now() + DEADLINE;
        let mut seen = String::new();
        while let Ok(line) = self.log.recv_timeout(until.saturating_duration_since(Instant::now())) {
            if line.contains(text) {
                return line;
            }
            seen.push_str(&line);
        }
        panic!("no line with {text:?} in the log:\n{seen}");
    }
}

impl Drop for TestReactor {
    fn drop(&mut self) {
        self.publisher.send(&ReactorMessage::Drain);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the reactor ends without a panic");
        }
    }
}

fn read_to_end(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("closed in time");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads the head of one response.
fn read_head(stream: &mut TcpStream) -> String {
    let mut text = String::new();
    let mut byte = [0];
    while !text.ends_with("\r\n\r\n") {
        // A ring on another thread of this process may interrupt the call; read_exact goes on.
        stream.read_exact(&mut byte).unwrap_or_else(|error| panic!("{error} after {text:?}"));
        text.push(byte[0] as char);
    }
    text
}

fn statuses(text: &str) -> Vec<&str> {
    text.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect()
}

/// Both drivers, or only epoll if the kernel does not permit io_uring.
fn drivers() -> Vec<Driver> {
    match driver::build(Some(Driver::Uring)) {
        Ok(_) => vec![Driver::Uring, Driver::Epoll],
        Err(_) => vec![Driver::Epoll],
    }
}

fn on_each_driver(test: impl Fn(Driver)) {
    drivers().into_iter().for_each(test);
}

#[test]
fn keeps_or_closes_connections_as_requested() {
    on_each_driver(|driver| {
        let reactor = TestReactor::start(driver, &[], |_| {});
        let mut stream = reactor.connect();
        for _ in 0..3 {
            stream.write_all(LIVENESS.as_bytes()).unwrap();
            let head = read_head(&mut stream);
            assert!(head.starts_with("HTTP/1.1 200 OK\r\ndate: ") && !head.contains("connection"), "{head}");
        }
        stream
            .write_all(b"GET /proxy/health/liveness HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            .unwrap();
        assert!(read_to_end(&mut stream).contains("connection: close\r\n"));
        // HTTP/1.0 connections close unless the client requests keep-alive.
        let old = reactor.exchange(b"GET /proxy/health/liveness HTTP/1.0\r\n\r\n");
        assert!(old.contains("connection: close\r\n"), "{old}");
        let mut stream = reactor.connect();
        stream.write_all(b"GET /proxy/health/liveness HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").unwrap();
        assert!(read_head(&mut stream).contains("connection: keep-alive\r\n"));
    });
}

#[test]
fn answers_pipelined_requests_in_order() {
    on_each_driver(|driver| {
        let reactor = TestReactor::start(driver, &[], |_| {});
        let mut bytes = String::new();
        for i in 0..200 {
            let path = if i % 2 == 0 { "/proxy/health/liveness" } else { "/unknown" };
            bytes.push_str(&format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        }
        bytes.push_str("GET /unknown HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let text = reactor.exchange(bytes.as_bytes());
        let expected: Vec<&str> =
            (0..201).map(|i| if i % 2 == 0 && i < 200 { "200" } else { "404" }).collect();
        assert_eq!(statuses(&text), expected);
    });
}

#[test]
fn reads_requests_that_arrive_byte_by_byte() {
    on_each_driver(|driver| {
        let reactor = TestReactor::start(driver, &[], |_| {});
        let mut stream = reactor.connect();
        let chunked = "POST /unknown HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
                       3;x=\"y\"\r\nabc\r\n2\r\nde\r\n0\r\nX-Trailer: x\r\n\r\n";
        for byte in format!("{chunked}{LIVENESS}").bytes() {
            stream.write_all(&[byte]).unwrap();
        }
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(statuses(&read_to_end(&mut stream)), ["404", "200"]);
    });
}

#[test]
fn reads_a_large_body_and_rejects_one_over_the_limit() {
    on_each_driver(|driver| {
        let reactor = TestReactor::start(driver, &[], |_| {});
        let mut stream = reactor.connect();
        let body = vec![b'x'; limits::BODY_BYTES_MAX];
        let head = format!("POST /unknown HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n", body.len());
        stream.write_all(format!("{head}Expect: 100-continue\r\n\r\n").as_bytes()).unwrap();
        assert_eq!(read_head(&mut stream), "HTTP/1.1 100 Continue\r\n\r\n");
        stream.write_all(&body).unwrap();
        assert!(read_head(&mut stream).starts_with("HTTP/1.1 404 "));
        let over = format!("POST /unknown HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len() + 1);
        let refused = reactor.exchange(over.as_bytes());
        assert!(refused.starts_with("HTTP/1.1 413 ") && refused.contains("connection: close"), "{refused}");
    });
}

#[test]
fn slow_requests_are_answered_408() {
    on_each_driver(|driver| {
        let short = Duration::from_millis(500);
        let reactor = TestReactor::start(driver, &[], |times| {
            *times = Timeouts { keep_alive: short, head: short, body: short, ..*times };
        });
        let began = Instant::now();
        let mut idle = reactor.connect();
        let mut head = reactor.connect();
        head.write_all(b"GET / HT").unwrap();
        let mut body = reactor.connect();
        body.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{").unwrap();
        assert_eq!(read_to_end(&mut idle), "");
        for slow in [&mut head, &mut body] {
            let text = read_to_end(slow);
            assert!(text.starts_with("HTTP/1.1 408 ") && text.contains("connection: close"), "{text}");
        }
        assert!(began.elapsed() >= short && began.elapsed() < DEADLINE, "{:?}", began.elapsed());
    });
}

/// A transport whose shutdown never completes: TLS, and a peer that does not read close_notify.
struct StuckShutdown;

impl transport::Transport for StuckShutdown {
    async fn read(&mut self, buffer: bytes::BytesMut) -> (io::Result<usize>, bytes::BytesMut) {
        (Ok(0), buffer)
    }
    async fn readable(&mut self) -> io::Result<()> {
        Ok(())
    }
    async fn write<B: transport::Sendable>(&mut self, bytes: B, start: usize) -> (io::Result<usize>, B) {
        (Ok(bytes.as_ref().len() - start), bytes)
    }
    async fn shutdown_write(&mut self) -> io::Result<()> {
        std::future::pending().await
    }
}

#[test]
fn shutdown_that_never_completes_times_out() {
    on_each_driver(|driver| {
        let (parts, _publisher, _log) = prepare(driver, &[], |times| times.linger = Duration::from_millis(1));
        let mut runtime = driver::build(Some(driver)).expect("a driver").runtime;
        let reactor = Rc::new(Reactor::new(&parts, Rc::new(WorkerState::new(&parts)), false));
        runtime.block_on(async {
            monoio::spawn(worker::sweep(reactor.clone()));
            let guard = reactor.connections.enter();
            let serve = protocol::serve(reactor.clone(), guard, StuckShutdown, None);
            assert!(monoio::time::timeout(DEADLINE, serve).await.is_ok(), "waits forever");
        });
        assert!(reactor.connections.is_empty());
    });
}

#[test]
fn closes_connections_over_the_limit() {
    on_each_driver(|driver| {
        let reactor = TestReactor::start(driver, &[("SERVER_CONNECTIONS_MAX", "2")], |_| {});
        let mut kept: Vec<TcpStream> = (0..2).map(|_| reactor.connect()).collect();
        for stream in &mut kept {
            stream.write_all(LIVENESS.as_bytes()).unwrap();
            assert!(read_head(stream).starts_with("HTTP/1.1 200"));
        }
        let mut refused = reactor.connect();
        // The kernel may reset the connection, because nothing was read.
        let mut byte = [0];
        assert!(matches!(refused.read(&mut byte), Ok(0) | Err(_)));
        assert!(reactor.wait_for_log("connection_limit_reached").contains('2'));
        kept[0].write_all(LIVENESS.as_bytes()).unwrap();
        assert!(read_head(&mut kept[0]).starts_with("HTTP/1.1 200"));
    });
}

#[test]
fn draining_completes_requests_and_ends() {
    on_each_driver(|driver| {
        let mut reactor = TestReactor::start(driver, &[], |_| {});
        let mut idle = reactor.connect();
        let mut active = reactor.connect();
        for stream in [&mut idle, &mut active] {
            stream.write_all(LIVENESS.as_bytes()).unwrap();
            read_head(stream);
        }
        reactor.publisher.send(&ReactorMessage::Drain);
        // Requests that arrive before the message are answered as usual.
        loop {
            active.write_all(LIVENESS.as_bytes()).unwrap();
            let head = read_head(&mut active);
            assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
            if head.contains("connection: close\r\n") {
                break;
            }
        }
        assert_eq!(read_to_end(&mut active), "");
        assert_eq!(read_to_end(&mut idle), "");
        let began = Instant::now();
        reactor.thread.take().unwrap().join().unwrap();
        assert!(began.elapsed() < DEADLINE, "idle for {:?}", began.elapsed());
        assert!(TcpStream::connect(reactor.address).is_err(), "{:?} still listens", reactor.driver);
    });
}

#[test]
fn error_for_a_used_port_says_what_to_do() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut config = configuration(Driver::Epoll, &[]);
    config.server.port = port;
    let error = bind(&config).unwrap_err().to_string();
    assert!(error.contains(&format!("127.0.0.1:{port}")) && error.contains("ss -ltnp"), "{error}");
}

#[test]
fn panic_in_a_request_fails_only_that_request() {
    on_each_driver(|driver| {
        let reactor = TestReactor::start(driver, &[], |_| {});
        let mut other = reactor.connect();
        other.write_all(LIVENESS.as_bytes()).unwrap();
        read_head(&mut other);
        reactor.panic_at(InjectedPanic::Request);
        let text = reactor.exchange(LIVENESS.as_bytes());
        assert!(
            text.starts_with("HTTP/1.1 500 ") && text.ends_with("{\"detail\":\"Internal Server Error\"}"),
            "{text}"
        );
        let line = reactor.wait_for_log("request_panicked");
        assert!(line.contains("src/reactor/"), "{line}");
        other.write_all(LIVENESS.as_bytes()).unwrap();
        assert!(read_head(&mut other).starts_with("HTTP/1.1 200"));
    });
}

#[test]
fn panic_in_a_connection_ends_only_that_connection() {
    on_each_driver(|driver| {
        let reactor = TestReactor::start(driver, &[], |_| {});
        let mut other = reactor.connect();
        other.write_all(LIVENESS.as_bytes()).unwrap();
        read_head(&mut other);
        reactor.panic_at(InjectedPanic::Connection);
        let mut stream = reactor.connect();
        stream.write_all(LIVENESS.as_bytes()).unwrap();
        let mut byte = [0];
        assert!(matches!(stream.read(&mut byte), Ok(0) | Err(_)));
        reactor.wait_for_log("connection_panicked");
        other.write_all(LIVENESS.as_bytes()).unwrap();
        assert!(read_head(&mut other).starts_with("HTTP/1.1 200"));
    });
}

#[test]
fn restarts_after_a_panic() {
    on_each_driver(|driver| {
        let reactor = TestReactor::start(driver, &[], |_| {});
        reactor.wait_for_log("reactor_started");
        let mut stream = reactor.connect();
        stream.write_all(LIVENESS.as_bytes()).unwrap();
        read_head(&mut stream);
        reactor.panic_at(InjectedPanic::Sweep);
        let line = reactor.wait_for_log("reactor_panicked");
        assert!(line.contains("src/reactor/"), "{line}");
        reactor.wait_for_log("reactor_started");
        // The old connection is closed; new ones are served.
        let mut byte = [0];
        assert!(matches!(stream.read(&mut byte), Ok(0) | Err(_)));
        let text =
            reactor.exchange(b"GET /proxy/health/liveness HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
        assert_eq!(reactor.metrics.restarts.value(), 1);
    });
}

#[test]
fn access_record_has_client_address_and_path() {
    let variables = [
        ("LOGGING_ENABLE_ACCESS_LOG", "true"),
        ("LOGGING_LOG_FORMAT", "json"),
        ("SERVER_PROXY_HEADERS", "true"),
    ];
    let reactor = TestReactor::start(Driver::Epoll, &variables, |_| {});
    reactor.exchange(b"GET /unknown?identifier=secret HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.7\r\nConnection: close\r\n\r\n");
    let line = reactor.wait_for_log("http_request");
    let record: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    // The peer is the loopback address, which is trusted by default.
    assert_eq!(record["remote_ip"], "192.0.2.7", "{line}");
    assert_eq!(
        (&record["method"], &record["path"], &record["status"]),
        (&"GET".into(), &"/unknown".into(), &404.into())
    );
    assert!(record["bytes"].as_u64().is_some_and(|bytes| bytes > 50) && !line.contains("secret"), "{line}");
}

#[test]
fn counts_requests_and_bytes() {
    on_each_driver(|driver| {
        let reactor = TestReactor::start(driver, &[], |_| {});
        reactor.exchange(format!("{LIVENESS}{LIVENESS}GET /x HTTP/1.1\r\n\r\n").as_bytes());
        let count = |route: Route, class: usize| {
            let mut requests = reactor.metrics.requests();
            requests.find(|(r, c, _)| (*r, *c) == (route, class)).map_or(0, |(_, _, count)| count)
        };
        assert_eq!((count(Route::Liveness, 1), count(Route::Unknown, 3)), (2, 1));
        assert_eq!(reactor.metrics.durations.counts().iter().sum::<u64>(), 3);
        let rejects = reactor.metrics.rejects_sum();
        assert_eq!(rejects, 1);
        assert!(reactor.metrics.bytes_read.value() > 100 && reactor.metrics.bytes_written.value() > 100);
        assert_eq!(reactor.metrics.connections_opened.value(), 1);
    });
}
