//! HTTP/2 in operation: events, address lists, client certificates, the unix socket, drain and takeover, and the
//! memory of idle connections.
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::drain::served_by;
use crate::events;
use crate::support::http2::{self, END_HEADERS, END_STREAM, Http2Client};
use crate::support::{PATIENCE, Scratch, Start, Upstream, eventually, fixture};
use crate::surface::{CLIENT, SERVER, document};
use crate::tls;

const FLAGS: &str = "/api/v1/flags/";
const IDENTITIES: &str = "/api/v1/identities/";
const STREAM: &str = "/sse/environments/SurfaceClientKey/stream";
const KEY: (&str, &str) = ("X-Environment-Key", SERVER);
const JSON: (&str, &str) = ("Content-Type", "application/json");
const NO_ERROR: u32 = 0;

fn prepare() -> Start {
    let start = Start::serve();
    let path = start.scratch().write("document.json", document(0).to_string());
    start.document(CLIENT, SERVER, path)
}

// --- events ---

/// The answer to events waits until they are written, while the connection has other streams.
#[test]
fn events_are_accepted_between_other_streams() {
    let (upstream, cache) = (Upstream::start(), Scratch::new());
    upstream.rule(events::accept);
    let proxy = events::start(&upstream, &cache).with_admin().ready();
    let mut client = Http2Client::connect(proxy.address());
    let names: Vec<String> = (10..60).map(|number| format!("event-{number}")).collect();
    let body = |name: &str| events::events(&[name]).into_bytes();
    let streams: Vec<(u32, u32)> = names
        .iter()
        .map(|name| {
            let posted =
                client.open("POST", "/v1/events", &[("X-Environment-Key", CLIENT), JSON], &body(name));
            (posted, client.open("GET", FLAGS, &[KEY], b""))
        })
        .collect();
    for (posted, read) in streams {
        let answer = client.answer(posted).expect("an answer");
        assert_eq!((answer.status, answer.text().as_str()), (202, r#"{"accepted":1,"rejected":[]}"#));
        assert_eq!(client.answer(read).expect("an answer").status, 200);
    }
    for (status, headers, body) in [
        (401, vec![JSON], body("x")),
        (403, vec![("X-Environment-Key", "unknown"), JSON], body("x")),
        (415, vec![("X-Environment-Key", CLIENT), ("Content-Type", "text/plain")], body("x")),
        (422, vec![("X-Environment-Key", CLIENT), JSON], b"[]".to_vec()),
    ] {
        assert_eq!(client.request("POST", "/v1/events", &headers, &body).status, status, "{headers:?}");
    }
    eventually("all events are upstream", || (events::names_sent(&upstream) == names).then_some(()));
    assert_eq!(proxy.metric("edge_proxy_events_accepted_total"), 50.0);
    assert_eq!(proxy.metric("edge_proxy_http_requests_total{route=\"events\",status=\"2xx\"}"), 50.0);
    assert_eq!(proxy.metric("edge_proxy_http2_connections"), 1.0);
}

// --- server.allow_list and server.deny_list ---

/// The body never comes: an answer proves that the server does not wait for it.
#[test]
fn excluded_clients_are_answered_before_their_bodies() {
    let proxy = prepare().set("server.deny_list", json!(["127.0.0.0/8"])).with_admin().ready();
    let mut client = Http2Client::connect(proxy.address());
    for more in [&[][..], &[("Expect", "100-continue")], &[("Content-Length", "9000")]] {
        let stream = client.open_head("POST", IDENTITIES, &[&[KEY, JSON], more].concat(), false);
        let answer = client.answer(stream).expect("an answer before the body");
        assert_eq!((answer.status, answer.json()), (403, json!({"detail": "Forbidden"})), "{more:?}");
        // The rest is not needed (RFC 9113 8.1), and what is under way is ignored.
        let reset = client.until(http2::RST_STREAM).expect("a reset");
        assert_eq!((reset.stream, reset.code()), (stream, NO_ERROR));
        client.frame(http2::DATA, 0, stream, b"{");
    }
    assert_eq!(client.request("GET", FLAGS, &[KEY], b"").status, 403);
    assert_eq!(client.request("GET", "/unknown", &[], b"").status, 403, "nor does it learn of routes");
    assert_eq!(client.request("GET", "/proxy/health/liveness", &[], b"").status, 200);
    assert_eq!(proxy.metric("edge_proxy_http_rejects_total{reason=\"forbidden\"}"), 5.0);
}

#[test]
fn admitted_clients_send_bodies_beside_a_list() {
    let start = prepare().set("server.proxy_headers", true).set("server.allow_list", json!(["10.0.0.0/8"]));
    let proxy = start.ready();
    let mut client = Http2Client::connect(proxy.address());
    for (forwarded_for, expected) in [("10.1.2.3", 200), ("192.0.2.1", 403), ("10.1.2.3", 200)] {
        let headers = [KEY, JSON, ("X-Forwarded-For", forwarded_for)];
        let stream = client.open_head("POST", IDENTITIES, &headers, false);
        client.frame(http2::DATA, 0, stream, br#"{"identifier""#);
        client.frame(http2::DATA, END_STREAM, stream, br#": "u"}"#);
        assert_eq!(client.answer(stream).expect("an answer").status, expected, "{forwarded_for}");
        assert_eq!(client.request("GET", FLAGS, &headers, b"").status, expected, "{forwarded_for}");
    }
    let stream = client.open_head(
        "POST",
        IDENTITIES,
        &[KEY, ("X-Forwarded-For", "10.1.2.3"), ("Expect", "100-continue")],
        false,
    );
    assert_eq!(client.until(http2::HEADERS).expect("100 Continue").stream, stream);
    client.frame(http2::DATA, END_STREAM, stream, br#"{"identifier": "u"}"#);
    assert_eq!(client.answer(stream).expect("an answer").status, 200);
}

// --- transports ---

#[test]
fn client_certificates_are_required_if_configured() {
    let (own, theirs, stranger) = (tls::pair(), tls::pair(), tls::pair());
    let proxy = tls::start_with(&own, Some(&theirs), &[]);
    let over_tls = |certificate: Option<&tls::Pair>| {
        let mut config = rustls::ClientConfig::clone(&tls::client(&own, certificate, rustls::ALL_VERSIONS));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        tls::connect(&proxy, &Arc::new(config))
    };
    let mut stream = over_tls(Some(&theirs));
    stream.conn.complete_io(&mut stream.sock).expect("a handshake");
    assert_eq!(stream.conn.alpn_protocol(), Some(&b"h2"[..]));
    let mut client = Http2Client::over(stream);
    let streams: Vec<u32> = (0..50).map(|_| client.open("GET", FLAGS, &[KEY], b"")).collect();
    for stream in streams {
        assert!(client.answer(stream).expect("an answer").text().contains("banner"));
    }
    for wrong in [None, Some(&stranger)] {
        let mut stream = over_tls(wrong);
        // The server's alert may come with the first read only.
        let mut read = [0; 9];
        let result = stream.conn.complete_io(&mut stream.sock).and_then(|_| {
            std::io::Write::write_all(&mut stream, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?;
            std::io::Read::read_exact(&mut stream, &mut read)
        });
        assert!(result.is_err(), "{read:?}");
    }
}

#[test]
fn a_unix_socket_carries_many_streams() {
    let folder = Scratch::new();
    let socket = folder.path().join("edge.sock");
    let mut proxy = prepare().set("server.unix_socket", socket.to_str()).with_admin().ready();
    let stream = UnixStream::connect(&socket).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut client = Http2Client::over(stream);
    let expected = proxy.get(FLAGS, SERVER).body;
    let events: Vec<u32> = (0..10).map(|_| client.open("GET", STREAM, &[], b"")).collect();
    let posted = client.open(
        "POST",
        IDENTITIES,
        &[KEY, JSON],
        format!(r#"{{"identifier": "{}"}}"#, "i".repeat(1900)).as_bytes(),
    );
    let streams: Vec<u32> = (0..80).map(|_| client.open("GET", FLAGS, &[KEY], b"")).collect();
    for stream in streams {
        assert_eq!(client.answer(stream).expect("an answer").body, expected);
    }
    assert_eq!(client.answer(posted).expect("an answer").status, 200);
    proxy.signal("TERM");
    let mut ended = Vec::new();
    while let Some(frame) = client.next_frame() {
        ended.extend(client.take(frame).map(|(stream, _)| stream));
    }
    ended.sort_unstable();
    assert_eq!(ended, events, "each event stream has ended");
    assert!(proxy.wait().success(), "{}", proxy.log());
}

// --- the end of a process ---

/// A connection with 95 open streams when the process is stopped: bodies that are incomplete, event streams, and
/// answers that wait for the client's window.
#[test]
fn a_drain_completes_every_open_stream() {
    let mut proxy = prepare().with_admin().ready();
    let mut client = Http2Client::connect_with(proxy.address(), &[(4, 0)]);
    let expected = proxy.get(FLAGS, SERVER).body;
    let stalled: Vec<u32> = (0..25).map(|_| client.open("GET", FLAGS, &[KEY], b"")).collect();
    let bodies: Vec<u32> =
        (0..50).map(|_| client.open_head("POST", IDENTITIES, &[KEY, JSON], false)).collect();
    let events: Vec<u32> = (0..20).map(|_| client.open("GET", STREAM, &[], b"")).collect();
    let last = *events.last().expect("twenty");
    eventually("all streams are open", || {
        (proxy.metric("edge_proxy_http2_streams_total") == 95.0).then_some(())
    });
    proxy.signal("TERM");
    let goaway = client.until(http2::GOAWAY).expect("GOAWAY");
    assert_eq!((goaway.code(), &goaway.payload[..4]), (NO_ERROR, &last.to_be_bytes()[..]));
    // Later streams are for another process.
    let late = http2::block("GET", FLAGS, &[KEY]);
    client.frame(http2::HEADERS, END_STREAM | END_HEADERS, last + 2, &late);
    for stream in &bodies {
        client.frame(http2::DATA, END_STREAM, *stream, br#"{"identifier": "late"}"#);
    }
    // Of the setting, so that it holds for streams that were open before.
    client.frame(http2::SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]);
    client.frame(http2::WINDOW_UPDATE, 0, 0, &0x7000_0000_u32.to_be_bytes());
    let mut answers = BTreeMap::new();
    while let Some(frame) = client.next_frame() {
        assert_ne!(frame.kind, http2::RST_STREAM, "{frame:?}");
        answers.extend(client.take(frame));
    }
    assert!(proxy.wait().success(), "{}", proxy.log());
    assert!(proxy.log().contains("connections_cut_count=0"), "{}", proxy.log());
    for stream in &stalled {
        assert_eq!(answers[stream].body, expected);
    }
    for stream in &bodies {
        assert!(answers[stream].text().contains("\"late\""), "{}", answers[stream].text());
    }
    assert!(events.iter().all(|stream| answers[stream].status == 200));
    assert_eq!(answers.len(), 95, "the late stream has no answer");
}

/// A client as RFC 9113 6.8 wants it: after GOAWAY it sends the streams beyond the last one again, elsewhere.
/// Returns its errors.
fn call(address: SocketAddr, stop: &AtomicBool, answered: &AtomicU64) -> Vec<String> {
    let mut wrong = Vec::new();
    while !stop.load(Ordering::Relaxed) && wrong.is_empty() {
        let mut client = match Http2Client::try_connect(address) {
            Ok(client) => client,
            Err(error) => return vec![format!("connect: {error}")],
        };
        while !stop.load(Ordering::Relaxed) {
            match call_once(&mut client) {
                Ok((count, goes_on)) => {
                    answered.fetch_add(count, Ordering::Relaxed);
                    if !goes_on {
                        break;
                    }
                }
                Err(error) => {
                    wrong.push(error);
                    break;
                }
            }
        }
    }
    wrong
}

/// Ten streams in one write. Returns how many were answered, and whether the connection can be used again.
fn call_once(client: &mut Http2Client) -> Result<(u64, bool), String> {
    let mut bytes = Vec::new();
    let streams: Vec<u32> = (0..10)
        .map(|_| {
            let (stream, frame) = client.next_head("GET", FLAGS, &[KEY]);
            bytes.extend(frame);
            stream
        })
        .collect();
    // The server may have closed after GOAWAY; what it has sent is read all the same.
    let _ = client.try_send(&bytes);
    let (mut left, mut answered, mut last) = (streams.clone(), 0, u32::MAX);
    while left.iter().any(|stream| *stream <= last) {
        let Some(frame) = client.next_frame() else {
            // An answered request beyond the last one would be a second one.
            return if last < u32::MAX && left.iter().all(|stream| *stream > last) {
                Ok((answered, false))
            } else {
                Err(format!("the end before {left:?}, last stream {last}"))
            };
        };
        if frame.kind == http2::GOAWAY {
            if frame.code() != NO_ERROR {
                return Err(format!("{frame:?}"));
            }
            last = u32::from_be_bytes(frame.payload[..4].try_into().expect("four bytes"));
            continue;
        }
        if frame.kind == http2::RST_STREAM {
            return Err(format!("{frame:?}"));
        }
        if let Some((stream, answer)) = client.take(frame) {
            if answer.status != 200 {
                return Err(format!("status {}: {}", answer.status, answer.text()));
            }
            left.retain(|other| *other != stream);
            answered += 1;
        }
    }
    Ok((answered, last == u32::MAX))
}

#[test]
fn a_takeover_fails_no_stream() {
    let prepare = || prepare().cores(2);
    let mut old = prepare().ready();
    let (address, port) = (old.address(), old.address().port());
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let callers: Vec<_> = (0..6)
        .map(|_| {
            let (stop, answered) = (stop.clone(), answered.clone());
            std::thread::spawn(move || call(address, &stop, &answered))
        })
        .collect();
    let go_on = |count: u64| {
        let goal = answered.load(Ordering::Relaxed) + count;
        eventually("streams are answered", || (answered.load(Ordering::Relaxed) >= goal).then_some(()));
    };
    go_on(1000);
    let new = prepare().set("server.port", port).arg("--take-over").spawn();
    new.wait_for_log("reactor_started");
    new.wait_for_log("ready ");
    eventually("the new process listens", || served_by(&new, port));
    go_on(200);
    old.signal("TERM");
    assert!(old.wait().success(), "{}", old.log());
    assert!(old.log().contains("connections_cut_count=0"), "{}", old.log());
    go_on(1000);
    stop.store(true, Ordering::Relaxed);
    let wrong: Vec<String> =
        callers.into_iter().flat_map(|caller| caller.join().expect("a caller")).collect();
    assert!(wrong.is_empty(), "{wrong:?}\n{}\n{}", old.log(), new.log());
    fixture::say(&format!(
        "takeover under HTTP/2: {} streams answered, 0 failed",
        answered.load(Ordering::Relaxed)
    ));
}

// --- memory ---

/// `make bench-h2` judges the release executable (at most 12 KiB for each).
#[test]
fn idle_connections_keep_little_memory() {
    const CONNECTIONS: usize = 500;
    let proxy = prepare().with_admin().ready();
    let connect = |_| {
        let mut client = Http2Client::connect(proxy.address());
        let streams: Vec<u32> = (0..8).map(|_| client.open("GET", FLAGS, &[KEY], b"")).collect();
        let body = format!(r#"{{"identifier": "{}"}}"#, "i".repeat(1900));
        assert_eq!(client.request("POST", IDENTITIES, &[KEY, JSON], body.as_bytes()).status, 200);
        for stream in streams {
            assert_eq!(client.answer(stream).expect("an answer").status, 200);
        }
        client
    };
    // Pools and caches grow with the first ones.
    let first: Vec<Http2Client> = (0..50).map(connect).collect();
    let before = proxy.resident_bytes();
    let idle: Vec<Http2Client> = (0..CONNECTIONS).map(connect).collect();
    let sample = "edge_proxy_http2_connections";
    assert_eq!(proxy.metric(sample), (first.len() + idle.len()) as f64);
    eventually("buffers are released", || {
        let each = proxy.resident_bytes().saturating_sub(before) / CONNECTIONS as u64;
        (each < 16 << 10).then_some(())
    });
    drop((first, idle));
    eventually("the connections are closed", || (proxy.metric(sample) == 0.0).then_some(()));
}

/// A connection in use was closed after the time for idle connections, since each of its streams had ended.
#[test]
fn a_connection_in_use_is_not_idle() {
    let proxy = prepare().set("server.timeout_keep_alive", 1).ready();
    let whole = Duration::from_millis(2500);
    // On a busy machine a client may pause for too long, which the proxy may end.
    let pause_max = Duration::from_millis(400);
    for _ in 0..20 {
        let (mut client, began) = (Http2Client::connect(proxy.address()), Instant::now());
        let (mut last, mut longest) = (began, Duration::ZERO);
        while began.elapsed() < whole && longest < pause_max {
            let stream = client.open("GET", "/proxy/health/liveness", &[], b"");
            let end = loop {
                match client.next_frame() {
                    Some(frame) if frame.kind == http2::GOAWAY => break None,
                    Some(frame) => {
                        if let Some((of, answer)) = client.take(frame) {
                            assert_eq!((of, answer.status), (stream, 200));
                            break Some(());
                        }
                    }
                    None => break None,
                }
            };
            longest = longest.max(last.elapsed());
            last = Instant::now();
            assert!(end.is_some() || longest >= pause_max, "closed after {:?}", began.elapsed());
            std::thread::park_timeout(Duration::from_millis(20));
        }
        if longest < pause_max {
            return;
        }
    }
    panic!("the machine is too busy to send a request every {pause_max:?}");
}
