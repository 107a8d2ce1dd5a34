//! Bounds of connections: what their buffers hold, how long they may take, and how a unix socket is named.
use std::ffi::OsStr;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use edge_proxy::limits::*;
use serde_json::json;
use socket2::{Domain, Socket, Type};

use super::{prepare, says};
use crate::support::{PATIENCE, Proxy, Start, eventually, request};
use crate::surface::{CLIENT, SERVER, document};
use crate::tls;

const KEY: [(&str, &str); 1] = [("X-Environment-Key", CLIENT)];
const LARGE: usize = 1 << 20;
/// After this time a connection is old enough to be closed because of its buffers.
const EVICTION_WAIT: Duration = Duration::from_secs(1);

/// One environment whose flags take a mebibyte.
fn prepare_large() -> Start {
    let mut document = document(0);
    document["feature_states"][0]["feature_state_value"] = json!("x".repeat(LARGE));
    let start = Start::serve().with_admin();
    let path = start.scratch().write("document.json", document.to_string());
    start.document(CLIENT, SERVER, path)
}

/// A connection that takes hardly anything before it is read.
fn narrow(address: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    socket.connect(&address.into()).expect("the port is bound");
    let stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

fn evicted(proxy: &Proxy) -> f64 {
    proxy.metric("edge_proxy_connections_shed_total")
}

/// How many buffers of `bytes` fit.
fn fit(bytes_max: usize, bytes: usize) -> usize {
    bytes_max / bytes
}

#[test]
fn requests_without_an_answer_hold_their_share_of_memory() {
    const HALF: usize = BODY_BYTES_MAX / 2;
    let proxy = prepare().ready();
    let body = format!(r#"{{"identifier":"a"}}{}"#, " ".repeat(BODY_BYTES_MAX - 18));
    let whole = request("POST", "/api/v1/identities/", &KEY, body.as_bytes());
    let (begin, end) = whole.split_at(whole.len() - HALF);
    // A buffer has up to twice the size of what is in it.
    let few = fit(BUFFERED_REQUEST_BYTES_MAX, 2 * HALF) / 2;
    let mut waiting: Vec<_> = (0..few).map(|_| proxy.client()).collect();
    waiting.iter_mut().for_each(|client| client.send(begin));
    std::thread::sleep(EVICTION_WAIT);
    for client in &mut waiting {
        client.send(end);
        assert_eq!(client.answer("POST").status, 200, "below the bound all may take their time");
    }
    assert_eq!(evicted(&proxy), 0.0);
    let many = 3 * fit(BUFFERED_REQUEST_BYTES_MAX, HALF);
    let mut waiting: Vec<_> = (0..many).map(|_| proxy.client()).collect();
    // One that is evicted while it sends may be reset.
    waiting.iter_mut().for_each(|client| drop(client.try_send(begin)));
    let kept = fit(BUFFERED_REQUEST_BYTES_MAX, HALF);
    eventually("those beyond the bound are closed", || {
        (evicted(&proxy) >= (many - kept) as f64).then_some(())
    });
    assert_eq!(proxy.get("/api/v1/flags/", CLIENT).status, 200);
    says("requests without an answer yet, of that", "those that have waited longest are closed");
}

#[test]
fn answers_that_are_not_read_hold_their_share_of_memory() {
    const ANSWERS: usize = 4;
    let proxy = prepare_large().ready();
    let identities: Vec<_> = (0..ANSWERS).map(|number| json!({"identifier": number.to_string()})).collect();
    let body = json!({"data": identities}).to_string();
    let ask = request("POST", "/api/v1/bulk-identities/", &KEY, body.as_bytes());
    let few = fit(BUFFERED_BYTES_MAX, 2 * ANSWERS * LARGE) / 2;
    let ask_by = |count: usize| -> Vec<TcpStream> {
        let peers: Vec<TcpStream> = (0..count).map(|_| narrow(proxy.address())).collect();
        peers.iter().for_each(|mut peer| peer.write_all(&ask).expect("the request is read"));
        peers
    };
    for mut peer in ask_by(few) {
        std::thread::sleep(EVICTION_WAIT / u32::try_from(few).expect("a few"));
        let mut bytes = vec![0; ANSWERS * LARGE];
        peer.read_exact(&mut bytes).expect("below the bound all may take their time");
    }
    assert_eq!(evicted(&proxy), 0.0);
    let many = 2 * fit(BUFFERED_BYTES_MAX, ANSWERS * LARGE);
    let _peers = ask_by(many);
    let kept = fit(BUFFERED_BYTES_MAX, ANSWERS * LARGE);
    eventually("those beyond the bound are closed", || {
        (evicted(&proxy) >= (many - kept) as f64).then_some(())
    });
    assert_eq!(proxy.get("/proxy/health/liveness", "").status, 200);
    says("memory of all connections: requests and answers", "those that have waited longest are closed");
}

#[test]
fn an_answer_is_taken_in_its_time_or_cut() {
    let proxy = prepare_large().set("server.timeout_write", "500ms").ready();
    let ask = request("GET", "/api/v1/flags/", &KEY, b"");
    let cut = || proxy.metric("edge_proxy_connections_cut_total");
    // A part of a large answer in each half of the time is enough.
    let mut reader = narrow(proxy.address());
    reader.write_all(&ask).expect("the request is read");
    let mut part = vec![0; LARGE / 8];
    for _ in 0..8 {
        std::thread::sleep(Duration::from_millis(100));
        reader.read_exact(&mut part).expect("it is not cut");
    }
    assert_eq!(cut(), 0.0);
    let mut other = narrow(proxy.address());
    other.write_all(&ask.repeat(4)).expect("the requests are read");
    eventually("it is cut", || (cut() == 1.0).then_some(()));
    says("time to take an answer", "closed");
}

/// Without the bound the kernel takes 2.8 MB for a client that reads nothing.
#[test]
fn little_of_an_answer_that_is_not_read_waits_in_the_kernel() {
    let proxy = prepare_large().ready();
    let sent = || proxy.metric("edge_proxy_http_sent_bytes_total");
    let before = sent();
    let mut peer = narrow(proxy.address());
    peer.write_all(&request("GET", "/api/v1/flags/", &KEY, b"").repeat(4)).expect("the requests are read");
    let taken = eventually("the kernel takes no more", || {
        let taken = sent() - before;
        std::thread::sleep(2 * SWEEP_INTERVAL);
        (taken > 0.0 && taken == sent() - before).then_some(taken)
    });
    let bound = f64::from(UNSENT_BYTES_MAX);
    assert!((bound / 4.0..2.0 * bound).contains(&taken), "{taken} bytes");
    // All of it arrives once it is read.
    let mut bytes = vec![0; 4 * LARGE];
    peer.read_exact(&mut bytes).expect("the answers");
    says(
        "bytes of an answer that wait in the kernel beside those in flight",
        "the rest waits in the process",
    );
}

#[test]
fn a_tls_handshake_has_the_time_of_a_head() {
    let own = tls::pair();
    let proxy = tls::start_with(&own, None, &[("server.timeout_head", "300ms".into())]);
    for bytes in [&b""[..], b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03"] {
        let mut socket = TcpStream::connect(proxy.address()).expect("the port is bound");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        socket.write_all(bytes).expect("taken");
        let mut answer = Vec::new();
        assert!(socket.read_to_end(&mut answer).is_ok(), "it is closed");
        assert!(answer.is_empty(), "nothing but the end: {answer:?}");
    }
    let mut stream = tls::connect(&proxy, &tls::client(&own, None, rustls::ALL_VERSIONS));
    tls::is_served(&mut stream);
    says("time for a head, from its first byte; for a TLS handshake", "a handshake is closed");
}

/// Takes so many of the temporary names that the process which it becomes may have.
fn taking_names(socket: &str, count: u32) -> Vec<String> {
    let script = format!(
        "shift; : > {socket}.$$; i=1; while [ $i -lt {count} ]; do : > {socket}.$$-$i; i=$((i+1)); done; exec \"$@\""
    );
    ["sh", "-c", &script, "sh"].map(str::to_owned).to_vec()
}

#[test]
fn names_of_a_unix_socket_are_tried_up_to_the_bound() {
    for (taken, is_served) in [(UNIX_SOCKET_NAMES_MAX - 1, true), (UNIX_SOCKET_NAMES_MAX, false)] {
        let start = prepare();
        let socket = start.scratch().path().join("edge.sock");
        let launcher = taking_names(socket.to_str().expect("a plain path"), taken);
        let start = start.set("server.unix_socket", socket.to_str()).under(launcher.iter().map(OsStr::new));
        if is_served {
            let _proxy = start.ready();
            let mut stream = UnixStream::connect(&socket).expect("it is published");
            stream.write_all(&request("GET", "/api/v1/flags/", &KEY, b"")).expect("taken");
            let mut begin = [0; 15];
            stream.read_exact(&mut begin).expect("an answer");
            assert_eq!(&begin, b"HTTP/1.1 200 OK");
        } else {
            let (code, text) = start.run();
            assert_eq!(code, Some(1), "{text}");
            assert!(text.contains("the names before it are in use"), "{text}");
            assert!(!socket.exists());
        }
    }
    says("unix socket", "the start fails");
}
