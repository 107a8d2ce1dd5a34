//! A whole reactor on a real socket, under both drivers, in this process.
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use std::net::TcpListener;

use super::*;
use crate::channel::{Publisher, ReactorMessage};
use crate::config;
use crate::config::Driver;
use crate::config::Inputs;
use crate::http::route::Route;
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
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        for line in String::from_utf8_lossy(bytes).lines() {
            let _ = self.0.send(line.to_owned());
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
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

/// What one reactor is started with, the other end of its inbox, and its log.
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
    let sink = Log::start_to(&config.logging, Lines(lines)).unwrap();
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
        times: start_times,
    };
    (parts, publisher, log)
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

    /// What comes back for these bytes until the reactor closes.
    fn exchange(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(bytes).unwrap();
        read_to_end(&mut stream)
    }

    /// Makes the place `at` panic once.
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

/// Reads one answer whose body is empty.
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

/// Both drivers where the kernel lets us; epoll alone where it does not.
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
fn a_connection_is_kept_and_closed_as_asked() {
    on_each_driver(|driver| {
        let house = TestReactor::start(driver, &[], |_| {});
        let mut stream = house.connect();
        for _ in 0..3 {
            stream.write_all(LIVENESS.as_bytes()).unwrap();
            let head = read_head(&mut stream);
            assert!(head.starts_with("HTTP/1.1 200 OK\r\ndate: ") && !head.contains("connection"), "{head}");
        }
        stream
            .write_all(b"GET /proxy/health/liveness HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            .unwrap();
        assert!(read_to_end(&mut stream).contains("connection: close\r\n"));
        // 1.0 closes unless it asks not to.
        let old = house.exchange(b"GET /proxy/health/liveness HTTP/1.0\r\n\r\n");
        assert!(old.contains("connection: close\r\n"), "{old}");
        let mut stream = house.connect();
        stream.write_all(b"GET /proxy/health/liveness HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").unwrap();
        assert!(read_head(&mut stream).contains("connection: keep-alive\r\n"));
    });
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    on_each_driver(|driver| {
        let house = TestReactor::start(driver, &[], |_| {});
        let mut bytes = String::new();
        for i in 0..200 {
            let path = if i % 2 == 0 { "/proxy/health/liveness" } else { "/nowhere" };
            bytes.push_str(&format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        }
        bytes.push_str("GET /nowhere HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let text = house.exchange(bytes.as_bytes());
        let expected: Vec<&str> =
            (0..201).map(|i| if i % 2 == 0 && i < 200 { "200" } else { "404" }).collect();
        assert_eq!(statuses(&text), expected);
    });
}

#[test]
fn bytes_that_come_one_by_one_are_a_request_all_the_same() {
    on_each_driver(|driver| {
        let house = TestReactor::start(driver, &[], |_| {});
        let mut stream = house.connect();
        let chunked = "POST /nowhere HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
                       3;x=\"y\"\r\nabc\r\n2\r\nde\r\n0\r\nX-Trailer: x\r\n\r\n";
        for byte in format!("{chunked}{LIVENESS}").bytes() {
            stream.write_all(&[byte]).unwrap();
        }
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(statuses(&read_to_end(&mut stream)), ["404", "200"]);
    });
}

#[test]
fn a_large_body_comes_in_and_one_too_large_is_refused_before_it_is_sent() {
    on_each_driver(|driver| {
        let house = TestReactor::start(driver, &[], |_| {});
        let mut stream = house.connect();
        let body = vec![b'x'; limits::BODY_BYTES_MAX];
        let head = format!("POST /nowhere HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n", body.len());
        stream.write_all(format!("{head}Expect: 100-continue\r\n\r\n").as_bytes()).unwrap();
        assert_eq!(read_head(&mut stream), "HTTP/1.1 100 Continue\r\n\r\n");
        stream.write_all(&body).unwrap();
        assert!(read_head(&mut stream).starts_with("HTTP/1.1 404 "));
        let over = format!("POST /nowhere HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len() + 1);
        let refused = house.exchange(over.as_bytes());
        assert!(refused.starts_with("HTTP/1.1 413 ") && refused.contains("connection: close"), "{refused}");
    });
}

#[test]
fn slow_peers_are_told_and_closed() {
    on_each_driver(|driver| {
        let short = Duration::from_millis(500);
        let house = TestReactor::start(driver, &[], |times| {
            *times = Timeouts { keep_alive: short, head: short, body: short, ..*times };
        });
        let began = Instant::now();
        let mut idle = house.connect();
        let mut head = house.connect();
        head.write_all(b"GET / HT").unwrap();
        let mut body = house.connect();
        body.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{").unwrap();
        assert_eq!(read_to_end(&mut idle), "");
        for slow in [&mut head, &mut body] {
            let text = read_to_end(slow);
            assert!(text.starts_with("HTTP/1.1 408 ") && text.contains("connection: close"), "{text}");
        }
        assert!(began.elapsed() >= short && began.elapsed() < DEADLINE, "{:?}", began.elapsed());
    });
}

/// A peer that has no room for what is said at the end of a connection (TLS: close_notify).
struct Full;

impl transport::Transport for Full {
    async fn read(&mut self, buffer: bytes::BytesMut) -> (io::Result<usize>, bytes::BytesMut) {
        (Ok(0), buffer)
    }
    async fn write<B: transport::Sendable>(&mut self, bytes: B, start: usize) -> (io::Result<usize>, B) {
        (Ok(bytes.as_ref().len() - start), bytes)
    }
    async fn shutdown(&mut self) -> io::Result<()> {
        std::future::pending().await
    }
}

#[test]
fn a_peer_without_room_for_the_end_is_not_waited_for() {
    on_each_driver(|driver| {
        let (parts, _publisher, _log) = prepare(driver, &[], |times| times.linger = Duration::from_millis(1));
        let mut runtime = driver::build(Some(driver)).expect("a driver").runtime;
        let reactor = Reactor::alone(parts);
        runtime.block_on(async {
            monoio::spawn(connections::sweep(reactor.clone()));
            let place = connections::enter(&reactor);
            let serve = connection::serve(reactor.clone(), place, Full, None);
            assert!(monoio::time::timeout(DEADLINE, serve).await.is_ok(), "it waits without end");
        });
        assert!(reactor.registry.is_empty());
    });
}

#[test]
fn connections_beyond_the_limit_are_closed_and_counted() {
    on_each_driver(|driver| {
        let house = TestReactor::start(driver, &[("SERVER_CONNECTIONS_MAX", "2")], |_| {});
        let mut kept: Vec<TcpStream> = (0..2).map(|_| house.connect()).collect();
        for stream in &mut kept {
            stream.write_all(LIVENESS.as_bytes()).unwrap();
            assert!(read_head(stream).starts_with("HTTP/1.1 200"));
        }
        let mut refused = house.connect();
        // The kernel may say reset instead of end, as nothing was read.
        let mut byte = [0];
        assert!(matches!(refused.read(&mut byte), Ok(0) | Err(_)));
        assert!(house.wait_for_log("connection_limit_reached").contains('2'));
        kept[0].write_all(LIVENESS.as_bytes()).unwrap();
        assert!(read_head(&mut kept[0]).starts_with("HTTP/1.1 200"));
    });
}

#[test]
fn draining_answers_what_comes_and_ends() {
    on_each_driver(|driver| {
        let mut house = TestReactor::start(driver, &[], |_| {});
        let mut idle = house.connect();
        let mut active = house.connect();
        for stream in [&mut idle, &mut active] {
            stream.write_all(LIVENESS.as_bytes()).unwrap();
            read_head(stream);
        }
        house.publisher.send(&ReactorMessage::Drain);
        // Requests that overtake the message are answered as before.
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
        house.thread.take().unwrap().join().unwrap();
        assert!(began.elapsed() < DEADLINE, "idle for {:?}", began.elapsed());
        assert!(TcpStream::connect(house.address).is_err(), "{:?} still listens", house.driver);
    });
}

#[test]
fn a_port_in_use_is_explained() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut config = configuration(Driver::Epoll, &[]);
    config.server.port = port;
    let error = bind(&config).unwrap_err().to_string();
    assert!(error.contains(&format!("127.0.0.1:{port}")) && error.contains("ss -ltnp"), "{error}");
}

#[test]
fn a_panic_in_a_request_costs_that_request_alone() {
    on_each_driver(|driver| {
        let house = TestReactor::start(driver, &[], |_| {});
        let mut other = house.connect();
        other.write_all(LIVENESS.as_bytes()).unwrap();
        read_head(&mut other);
        house.panic_at(InjectedPanic::Request);
        let text = house.exchange(LIVENESS.as_bytes());
        assert!(
            text.starts_with("HTTP/1.1 500 ") && text.ends_with("{\"detail\":\"Internal Server Error\"}"),
            "{text}"
        );
        let line = house.wait_for_log("request_panicked");
        assert!(line.contains("src/reactor/"), "{line}");
        other.write_all(LIVENESS.as_bytes()).unwrap();
        assert!(read_head(&mut other).starts_with("HTTP/1.1 200"));
    });
}

#[test]
fn a_panic_in_a_connection_costs_that_connection_alone() {
    on_each_driver(|driver| {
        let house = TestReactor::start(driver, &[], |_| {});
        let mut other = house.connect();
        other.write_all(LIVENESS.as_bytes()).unwrap();
        read_head(&mut other);
        house.panic_at(InjectedPanic::Connection);
        let mut stream = house.connect();
        stream.write_all(LIVENESS.as_bytes()).unwrap();
        let mut byte = [0];
        assert!(matches!(stream.read(&mut byte), Ok(0) | Err(_)));
        house.wait_for_log("connection_panicked");
        other.write_all(LIVENESS.as_bytes()).unwrap();
        assert!(read_head(&mut other).starts_with("HTTP/1.1 200"));
    });
}

#[test]
fn a_reactor_that_panics_starts_again_with_a_fresh_ring() {
    on_each_driver(|driver| {
        let house = TestReactor::start(driver, &[], |_| {});
        house.wait_for_log("reactor_started");
        let mut stream = house.connect();
        stream.write_all(LIVENESS.as_bytes()).unwrap();
        read_head(&mut stream);
        house.panic_at(InjectedPanic::Sweep);
        let line = house.wait_for_log("reactor_panicked");
        assert!(line.contains("src/reactor/"), "{line}");
        house.wait_for_log("reactor_started");
        // The old connection was closed, not left hanging; new ones are served as before.
        let mut byte = [0];
        assert!(matches!(stream.read(&mut byte), Ok(0) | Err(_)));
        let text =
            house.exchange(b"GET /proxy/health/liveness HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
        assert_eq!(house.metrics.restarts.value(), 1);
    });
}

#[test]
fn an_access_record_says_who_asked_for_what() {
    let variables = [
        ("LOGGING_ENABLE_ACCESS_LOG", "true"),
        ("LOGGING_LOG_FORMAT", "json"),
        ("SERVER_PROXY_HEADERS", "true"),
    ];
    let house = TestReactor::start(Driver::Epoll, &variables, |_| {});
    house.exchange(b"GET /nowhere?identifier=secret HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.7\r\nConnection: close\r\n\r\n");
    let line = house.wait_for_log("http_request");
    let record: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    // The peer is the loopback address, which is trusted unless the configuration says otherwise.
    assert_eq!(record["remote_ip"], "192.0.2.7", "{line}");
    assert_eq!(
        (&record["method"], &record["path"], &record["status"]),
        (&"GET".into(), &"/nowhere".into(), &404.into())
    );
    assert!(record["bytes"].as_u64().is_some_and(|bytes| bytes > 50) && !line.contains("secret"), "{line}");
}

#[test]
fn what_is_served_is_counted() {
    on_each_driver(|driver| {
        let house = TestReactor::start(driver, &[], |_| {});
        house.exchange(format!("{LIVENESS}{LIVENESS}GET /x HTTP/1.1\r\n\r\n").as_bytes());
        let count = |route: Route, class: usize| {
            let mut requests = house.metrics.requests();
            requests.find(|(r, c, _)| (*r, *c) == (route, class)).map_or(0, |(_, _, count)| count)
        };
        assert_eq!((count(Route::Liveness, 1), count(Route::Unknown, 3)), (2, 1));
        assert_eq!(house.metrics.durations.counts().iter().sum::<u64>(), 3);
        let rejects = house.metrics.rejects_sum();
        assert_eq!(rejects, 1);
        assert!(house.metrics.bytes_read.value() > 100 && house.metrics.bytes_written.value() > 100);
        assert_eq!(house.metrics.connections_opened.value(), 1);
    });
}
