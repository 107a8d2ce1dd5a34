//! The memory of connections: its limits hold at every moment, on every protocol, under both drivers.
use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use edge_proxy::limits::{
    BODY_BYTES_MAX, BUFFERED_REQUEST_BYTES_MAX, HTTP2_STREAM_WINDOW, HTTP2_STREAMS_MAX,
};
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::abuse::{forget_peak, peak_bytes};
use crate::support::http2::{DATA, END_HEADERS, HEADERS, SETTINGS, block, frame};
use crate::support::{Proxy, Start, eventually, request};
use crate::surface::{CLIENT, SERVER, document};
use crate::tls::{self, pair};

const CONNECTIONS: usize = 96;
const THREADS: usize = 12;
const JSON: (&str, &str) = ("Content-Type", "application/json");
/// Beyond it nothing grows any more, and the most that one connection grows at a time: a buffer with a body
/// doubles, or all bodies of an HTTP/2 connection do.
const FULL: usize = BUFFERED_REQUEST_BYTES_MAX / 2 * 3;
const GROWTH: usize = 2 * BODY_BYTES_MAX;

fn start(driver: &str) -> Start {
    Start::serve().with_admin().cores(1).set("server.driver", driver)
}

fn serve(driver: &str) -> Proxy {
    let start = start(driver);
    let path = start.scratch().write("document.json", document(0).to_string());
    start.document(CLIENT, SERVER, path).ready()
}

fn drivers() -> Vec<&'static str> {
    if crate::driver::has_ring() { vec!["uring", "epoll"] } else { vec!["epoll"] }
}

/// A connection on which a caller sends without an end.
enum Caller {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Caller {
    fn connect(proxy: &Proxy, tls: Option<&Arc<ClientConfig>>) -> Self {
        let Some(config) = tls else {
            return Self::Plain(TcpStream::connect(proxy.address()).expect("the port is bound"));
        };
        Self::Tls(Box::new(tls::connect(proxy, config)))
    }

    /// Sends what the proxy takes; it may end the connection.
    fn send(&mut self, bytes: &[u8]) {
        let timeout = Some(Duration::from_secs(5));
        let _ = match self {
            Self::Plain(socket) => socket.set_write_timeout(timeout).and_then(|()| socket.write_all(bytes)),
            Self::Tls(stream) => {
                stream.sock.set_write_timeout(timeout).and_then(|()| stream.write_all(bytes))
            }
        };
    }
}

/// Many callers send these bytes at the same time, and stay.
fn send_from_many(proxy: &Proxy, tls: Option<&Arc<ClientConfig>>, bytes: &[u8]) -> Vec<Caller> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| {
                    let mut callers: Vec<Caller> =
                        (0..CONNECTIONS / THREADS).map(|_| Caller::connect(proxy, tls)).collect();
                    // All of them grow together.
                    for part in bytes.chunks(bytes.len() / 8 + 1) {
                        callers.iter_mut().for_each(|caller| caller.send(part));
                    }
                    callers
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a caller")).collect()
    })
}

/// A body of HTTP/1.1 without its last byte.
fn body() -> Vec<u8> {
    let mut bytes = request("POST", "/api/v1/identities/", &[JSON], &vec![b' '; BODY_BYTES_MAX]);
    bytes.pop();
    bytes
}

/// As many bodies as a connection of HTTP/2 may begin.
fn bodies() -> Vec<u8> {
    let mut bytes = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(SETTINGS, 0, 0, b"")].concat();
    let part = vec![b' '; HTTP2_STREAM_WINDOW as usize];
    for number in 0..HTTP2_STREAMS_MAX as u32 {
        let stream = 2 * number + 1;
        let head = block("POST", "/api/v1/identities/", &[JSON]);
        bytes.extend(frame(HEADERS, END_HEADERS, stream, &head));
        bytes.extend(frame(DATA, 0, stream, &part));
    }
    bytes
}

/// A handshake whose first message does not end.
fn hello() -> Vec<u8> {
    let mut message = vec![1, 0, 0xff, 0xf0, 3, 3];
    message.resize(30 * 1024, 0);
    let record = |part: &[u8]| [&[22, 3, 1], &(part.len() as u16).to_be_bytes()[..], part].concat();
    message.chunks(16 * 1024).flat_map(record).collect()
}

/// Callers that send these bytes are closed once their memory is beyond the limit, and are never far beyond it.
fn assert_bounded(proxy: &Proxy, what: &str, tls: Option<&Arc<ClientConfig>>, bytes: &[u8]) {
    forget_peak(proxy);
    let before = proxy.resident_bytes();
    let shed = proxy.metric("edge_proxy_connections_shed_total");
    let callers = send_from_many(proxy, tls, bytes);
    // The rest may still be in sockets.
    let fit = ((FULL + GROWTH) / bytes.len()) as f64;
    eventually("those beyond the limit are closed", || {
        let closed = proxy.metric("edge_proxy_connections_shed_total") - shed;
        (closed >= CONNECTIONS as f64 - fit).then_some(())
    });
    let peak = proxy.metric("edge_proxy_connection_buffers_unknown_peak_bytes") as usize;
    let growth = peak_bytes(proxy).saturating_sub(before);
    println!("{what}: at most {peak} bytes of buffers; memory grew by {growth}");
    assert!(peak <= FULL + GROWTH, "{what}: {peak} bytes of buffers");
    // The allocator keeps what was freed for up to a second, more of it while other tests run; `make abuse` judges.
    assert!(growth <= 48_000_000, "{what}: memory grew by {growth} bytes");
    drop(callers);
    eventually("the buffers are released", || {
        (proxy.metric("edge_proxy_connection_buffers_bytes") == 0.0).then_some(())
    });
}

#[test]
fn callers_without_a_key_stay_within_the_limit_at_every_moment() {
    for driver in drivers() {
        let proxy = serve(driver);
        assert_eq!(proxy.get("/api/v1/flags/", CLIENT).status, 200);
        assert_bounded(&proxy, &format!("{driver}, HTTP/1.1"), None, &body());
        assert_bounded(&proxy, &format!("{driver}, HTTP/2"), None, &bodies());
    }
}

#[test]
fn the_limit_holds_over_tls() {
    for driver in drivers() {
        let own = pair();
        let proxy = tls::serve(start(driver), &own, None);
        let http1 = tls::client(&own, None, &[&rustls::version::TLS13]);
        tls::is_served(&mut tls::connect(&proxy, &http1));
        let mut http2 = (*http1).clone();
        http2.alpn_protocols = vec![b"h2".to_vec()];
        assert_bounded(&proxy, &format!("{driver}, HTTP/1.1 over TLS"), Some(&http1), &body());
        assert_bounded(&proxy, &format!("{driver}, HTTP/2 over TLS"), Some(&Arc::new(http2)), &bodies());
        // They count, but are not enough for the limit.
        let callers = send_from_many(&proxy, None, &hello());
        eventually("the bytes of handshakes count", || {
            let bytes = proxy.metric("edge_proxy_connection_buffers_unknown_bytes");
            (bytes > (CONNECTIONS * 24 * 1024) as f64).then_some(())
        });
        drop(callers);
    }
}
