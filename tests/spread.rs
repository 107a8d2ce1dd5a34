//! `server.spread`: few long connections, evenly over many reactors.
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use crate::conformance::count_of;
use crate::support::shim::Shim;
use crate::support::{Client, Proxy, Start, eventually, request};
use crate::tls;

const REACTORS: usize = 8;

/// A proxy with eight reactors, on as many CPUs as there are.
fn start(shim: &Shim, spread: bool) -> Start {
    shim.preload(Start::demo_document().with_admin())
        .env("EDGE_SHIM_CPUS", &REACTORS.to_string())
        .cores(REACTORS)
        .set("server.spread", spread)
}

/// Starts it, and waits until the connections that found it ready are closed.
fn ready(start: Start) -> Proxy {
    let proxy = start.ready();
    loads(&proxy, 0);
    proxy
}

/// Open connections that have each got an answer, so that every one has its reactor.
fn connect(proxy: &Proxy, count: usize) -> Vec<Client> {
    let mut clients: Vec<Client> = (0..count).map(|_| proxy.client()).collect();
    clients.iter_mut().for_each(request_once);
    clients
}

fn request_once(client: &mut Client) {
    client.send(request("GET", "/proxy/health/liveness", &[], b""));
    assert_eq!(client.answer("GET").status, 200);
}

/// The open connections of each reactor, once their sum is `count`.
fn loads(proxy: &Proxy, count: usize) -> Vec<usize> {
    eventually("all connections are counted", || {
        let loads: Vec<usize> = (0..REACTORS)
            .map(|reactor| {
                let sample = format!("edge_proxy_reactor_connections_open{{reactor=\"{reactor}\"}}");
                proxy.metric(&sample) as usize
            })
            .collect();
        (loads.iter().sum::<usize>() == count).then_some(loads)
    })
}

/// The largest number of connections of a reactor, as a multiple of the mean.
fn unevenness(loads: &[usize]) -> f64 {
    let mean = loads.iter().sum::<usize>() as f64 / loads.len() as f64;
    loads.iter().copied().max().unwrap_or(0) as f64 / mean
}

/// `SPREADS=100` is the long form. Each start is a restart to the clients: all of them connect together.
#[test]
fn four_connections_a_reactor_are_even_over_restarts() {
    let (shim, restarts) = (Shim::new(), count_of("SPREADS", 5));
    let (mut by_kernel, mut spread) = (Vec::new(), Vec::new());
    for _ in 0..restarts {
        for (is_spread, found) in [(false, &mut by_kernel), (true, &mut spread)] {
            let proxy = ready(start(&shim, is_spread));
            let _clients = connect(&proxy, REACTORS * 4);
            let loads = loads(&proxy, REACTORS * 4);
            if is_spread {
                assert!(unevenness(&loads) <= 1.3, "{loads:?}");
                assert!(loads.iter().all(|load| *load >= 1), "{loads:?}");
            }
            found.push(unevenness(&loads));
        }
    }
    for (name, found) in [("by the kernel", &mut by_kernel), ("with server.spread", &mut spread)] {
        found.sort_by(f64::total_cmp);
        let mean = found.iter().sum::<f64>() / found.len() as f64;
        println!(
            "spread {name}: most connections of a reactor / mean, {} starts of {REACTORS} reactors with {}: mean {mean:.2}, worst {:.2}",
            found.len(),
            REACTORS * 4,
            found[found.len() - 1]
        );
    }
}

/// Both drivers, over TCP and the unix socket: what is passed on is answered, and new connections go
/// where others have ended.
#[test]
fn passed_connections_are_served_over_every_listener() {
    let shim = Shim::new();
    for driver in ["uring", "epoll"] {
        let start = start(&shim, true).set("server.driver", driver);
        let path = start.scratch().path().join("socket");
        let proxy = ready(start.set("server.unix_socket", path.to_str().expect("a plain path")));
        let mut clients = connect(&proxy, REACTORS * 3);
        assert!(unevenness(&loads(&proxy, REACTORS * 3)) <= 1.34, "{driver}");
        let passed = proxy.metric("edge_proxy_connections_passed_total");
        // One reactor in two gets more than its share, or less, from the kernel.
        assert!(passed >= 1.0, "{driver}: {passed}");
        clients.iter_mut().for_each(request_once);
        clients.truncate(REACTORS);
        loads(&proxy, REACTORS);
        let mut more = connect(&proxy, REACTORS * 3);
        assert!(unevenness(&loads(&proxy, REACTORS * 4)) <= 1.3, "{driver}");
        clients.iter_mut().chain(&mut more).for_each(request_once);
        drop((clients, more));
        loads(&proxy, 0);
        let over_unix: Vec<_> = (0..REACTORS * 4)
            .map(|_| {
                let mut stream = std::os::unix::net::UnixStream::connect(&path).expect("a listener");
                stream.write_all(b"GET /proxy/health/liveness HTTP/1.1\r\nHost: a\r\n\r\n").expect("open");
                let mut bytes = [0; 12];
                stream.read_exact(&mut bytes).expect("an answer");
                assert_eq!(&bytes, b"HTTP/1.1 200", "{driver}");
                stream
            })
            .collect();
        assert!(unevenness(&loads(&proxy, REACTORS * 4)) <= 1.3, "{driver}, unix socket");
        drop(over_unix);
    }
}

/// While connections come and are passed on, the proxy drains: each one that was accepted is answered.
#[test]
fn a_drain_loses_no_connection_that_is_passed_on() {
    let shim = Shim::new();
    for _ in 0..count_of("STOPS", 3) {
        let mut proxy = start(&shim, true).set("server.shutdown_delay_seconds", 0).ready();
        let address = proxy.address();
        let (answered, lost) = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(move || {
                        let (mut answered, mut lost) = (0, 0);
                        let until = Instant::now() + Duration::from_secs(20);
                        // Until the listeners are closed.
                        while let Ok(mut client) = Client::try_connect(address) {
                            let head = request("GET", "/proxy/health/liveness", &[], b"");
                            let sent = client.try_send(head);
                            match sent.and_then(|()| client.try_answer("GET")) {
                                Ok(Some(answer)) if answer.status == 200 => answered += 1,
                                _ => lost += 1,
                            }
                            assert!(Instant::now() < until, "the listeners stay open");
                        }
                        (answered, lost)
                    })
                })
                .collect();
            std::thread::park_timeout(Duration::from_millis(200));
            proxy.signal("TERM");
            let add = |(a, b): (u32, u32), (c, d): (u32, u32)| (a + c, b + d);
            threads.into_iter().map(|thread| thread.join().expect("no panic")).fold((0, 0), add)
        });
        assert!(proxy.wait().success());
        assert!(answered > 0);
        assert_eq!(lost, 0, "{answered} answered\n{}", proxy.log());
    }
}

/// A successor takes over while both spread: no connection is refused.
#[test]
fn a_takeover_loses_no_connection() {
    let shim = Shim::new();
    let mut old = start(&shim, true).ready();
    let address = old.address();
    let new = start(&shim, true).set("server.port", address.port()).set("server.take_over", true).spawn();
    new.wait_for_log("reactor_started");
    eventually("the successor serves", || {
        let mut client = Client::connect(address);
        request_once(&mut client);
        (new.metric("edge_proxy_connections_opened_total") > 0.0).then_some(())
    });
    old.signal("TERM");
    for _ in 0..200 {
        request_once(&mut Client::connect(address));
    }
    assert!(old.wait().success());
    let _clients: Vec<Client> = {
        let mut clients: Vec<Client> = (0..REACTORS * 4).map(|_| Client::connect(address)).collect();
        clients.iter_mut().for_each(request_once);
        clients
    };
    assert!(unevenness(&loads(&new, REACTORS * 4)) <= 1.3);
}

/// A full process refuses and counts, and the counts of the reactors recover.
#[test]
fn the_limit_of_connections_holds() {
    let shim = Shim::new();
    let proxy = ready(start(&shim, true).set("server.connections_max", 2));
    let clients = connect(&proxy, REACTORS * 2);
    assert_eq!(loads(&proxy, REACTORS * 2), [2; REACTORS]);
    let mut beyond = proxy.client();
    let sent = beyond.try_send(request("GET", "/proxy/health/liveness", &[], b""));
    let answer = sent.and_then(|()| beyond.try_answer("GET"));
    assert!(!matches!(answer, Ok(Some(_))), "refused");
    assert!(proxy.metric("edge_proxy_connections_refused_total") >= 1.0);
    drop(clients);
    loads(&proxy, 0);
    let _again = connect(&proxy, REACTORS * 2);
    assert_eq!(loads(&proxy, REACTORS * 2), [2; REACTORS]);
}

/// The handshake is with the reactor that serves the connection.
#[test]
fn tls_connections_are_passed_on_before_their_handshake() {
    let (shim, own) = (Shim::new(), tls::pair());
    let start = start(&shim, true);
    let cert = start.scratch().write("cert.pem", own.cert.pem());
    let key = start.scratch().write("key.pem", own.signing_key.serialize_pem());
    let proxy = start.set("server.tls", serde_json::json!({"cert": cert, "key": key})).spawn();
    proxy.wait_for_log("ready ");
    eventually("every reactor has started", || {
        (proxy.log().matches("reactor_started").count() == REACTORS).then_some(())
    });
    let config = tls::client(&own, None, rustls::ALL_VERSIONS);
    let _streams: Vec<tls::Stream> = (0..REACTORS * 4)
        .map(|_| {
            let mut stream = tls::connect(&proxy, &config);
            stream.write_all(b"GET /proxy/health/liveness HTTP/1.1\r\nHost: a\r\n\r\n").expect("open");
            let mut bytes = [0; 12];
            stream.read_exact(&mut bytes).expect("an answer");
            assert_eq!(&bytes, b"HTTP/1.1 200");
            stream
        })
        .collect();
    assert!(unevenness(&loads(&proxy, REACTORS * 4)) <= 1.3);
    assert!(proxy.metric("edge_proxy_connections_passed_total") >= 1.0);
}
