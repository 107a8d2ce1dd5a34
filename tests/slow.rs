//! Slow clients, too many clients, and the descriptor limit: their cost, and that other clients are not
//! affected.
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};
use serde_json::json;
use socket2::{Domain, Socket, Type};

use crate::support::{Client, PATIENCE, Proxy, Start, eventually, request};
use crate::surface::{CLIENT, SERVER, document};

const KEY: [(&str, &str); 1] = [("X-Environment-Key", SERVER)];

fn prepare() -> Start {
    let start = Start::serve().with_admin();
    let path = start.scratch().write("document.json", document(0).to_string());
    start.document(CLIENT, SERVER, path)
}

/// One environment whose flags take 1 MB per response.
fn prepare_large() -> Start {
    let mut document = document(0);
    document["feature_states"][0]["feature_state_value"] = json!("x".repeat(1 << 20));
    let start = Start::serve().with_admin();
    let path = start.scratch().write("document.json", document.to_string());
    start.document(CLIENT, SERVER, path)
}

/// A request for identities with 1 MB of flags each, whose response is not shared.
fn bulk(count: usize) -> Vec<u8> {
    let data: Vec<_> = (0..count).map(|number| json!({"identifier": number.to_string()})).collect();
    request("POST", "/api/v1/bulk-identities/", &KEY, json!({"data": data}).to_string().as_bytes())
}

/// A connection with a small receive buffer.
fn narrow(address: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    socket.connect(&address.into()).expect("the port is bound");
    let stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Reads to the end or a reset; returns the number of bytes.
fn read_to_end(mut stream: &TcpStream) -> usize {
    let mut chunk = vec![0; 1 << 16];
    let mut count = 0;
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return count,
            Ok(length) => count += length,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return count,
            Err(error) => panic!("not closed: {error}"),
        }
    }
}

#[test]
fn disconnects_peers_that_do_not_read_and_frees_memory() {
    const PEERS: usize = 4;
    const ANSWERS: usize = 8;
    const ROUNDS: usize = 4;
    let proxy = prepare_large().set("server.timeout_write", "1s").ready();
    let ask = bulk(ANSWERS);
    let sent = ((PEERS * ANSWERS) << 20) as u64;
    let before = proxy.resident_bytes();
    let (mut highest, mut after) = (0, Vec::new());
    for round in 1..=ROUNDS {
        let peers: Vec<TcpStream> = (0..PEERS).map(|_| narrow(proxy.address())).collect();
        for mut peer in &peers {
            peer.write_all(&ask).expect("the request is read");
        }
        eventually("all are disconnected", || {
            highest = highest.max(proxy.resident_bytes().saturating_sub(before));
            (proxy.metric("edge_proxy_connections_cut_total") == (round * PEERS) as f64).then_some(())
        });
        for peer in &peers {
            assert!(read_to_end(peer) < ANSWERS << 20, "a response was complete");
        }
        eventually("all connections are closed", || {
            (proxy.metric("edge_proxy_connections_open") == 0.0).then_some(())
        });
        after.push(proxy.resident_bytes().saturating_sub(before));
    }
    assert!(highest > sent / 2, "the responses were in memory: {highest} of {sent}");
    // The allocator may keep freed memory for a while, which the next round then reuses.
    assert!(after[ROUNDS - 1] < 2 * sent, "freed: {after:?} after rounds of {sent}");
}

#[test]
fn unfinished_bodies_stay_within_the_memory_limit() {
    const PEERS: usize = 400;
    const MIB: u64 = 1 << 20;
    let proxy = prepare().ready();
    let before = proxy.resident_bytes();
    let head = format!("POST /api/v1/identities/ HTTP/1.1\r\nHost: a\r\nContent-Length: {MIB}\r\n\r\n");
    let most = vec![b'x'; MIB as usize - 1];
    let evicted = || proxy.metric("edge_proxy_connections_shed_total");
    let mut honest = proxy.client();
    let mut peers = Vec::new();
    let mut highest = 0;
    for number in 0..PEERS {
        let mut peer = proxy.client();
        peer.send(&head);
        // An evicted connection may be reset.
        let _ = peer.try_send(&most);
        peers.push(peer);
        if number % 10 == 0 {
            // A connection that has just sent data is not yet evicted.
            eventually("connections are evicted", || {
                highest = highest.max(proxy.resident_bytes().saturating_sub(before));
                (number as f64 - evicted() <= 100.0).then_some(())
            });
            assert_eq!(honest.request("GET", "/api/v1/flags/", &KEY, b"").status, 200);
        }
    }
    // A nearly full buffer has up to twice the capacity.
    eventually("the rest are evicted", || (PEERS as f64 - evicted() <= 64.0).then_some(()));
    println!("{PEERS} unfinished bodies of a megabyte: {} MiB at most, {} evicted", highest / MIB, evicted());
    assert!(highest < 200 * MIB, "{} MiB for {PEERS} bodies", highest / MIB);
    let body = br#"{"identifier": "a"}"#;
    assert_eq!(honest.request("POST", "/api/v1/identities/", &KEY, body).status, 200);
}

#[test]
fn unread_responses_stay_within_the_memory_limit() {
    const PEERS: u64 = 20;
    const ANSWERS: u64 = 12;
    let proxy = prepare_large().ready();
    let before = proxy.resident_bytes();
    let mut peers = Vec::new();
    let (mut highest, mut honest) = (0, proxy.client());
    for number in 1..=PEERS {
        let mut peer = narrow(proxy.address());
        peer.write_all(&bulk(ANSWERS as usize)).expect("the request is read");
        peers.push(peer);
        // A connection that has just sent data is not yet evicted.
        eventually("connections are evicted", || {
            highest = highest.max(proxy.resident_bytes().saturating_sub(before));
            let open = number as f64 - proxy.metric("edge_proxy_connections_shed_total");
            (open * ANSWERS as f64 <= 64.0).then_some(())
        });
        assert_eq!(honest.request("GET", "/api/v1/flags/", &KEY, b"").status, 200);
    }
    println!("{PEERS} unread responses of {ANSWERS} MiB: {} MiB at most", highest >> 20);
    assert!(highest >> 20 < PEERS * ANSWERS * 2 / 3, "{} MiB", highest >> 20);
    // None reached the default of server.timeout_write.
    assert_eq!(proxy.metric("edge_proxy_connections_cut_total"), 0.0);
}

#[test]
fn disconnects_peers_that_read_too_slowly() {
    let proxy = prepare_large().set("server.timeout_write", "1s").ready();
    let mut peer = narrow(proxy.address());
    peer.write_all(&request("GET", "/api/v1/flags/", &KEY, b"").repeat(32)).expect("the requests are read");
    let mut bytes = [0; 64];
    eventually("it is disconnected", || {
        // It may already be disconnected.
        let _ = peer.read(&mut bytes);
        (proxy.metric("edge_proxy_connections_cut_total") == 1.0).then_some(())
    });
}

/// The median of many exchanges on one connection.
fn median(proxy: &Proxy) -> Duration {
    let mut client = proxy.client();
    let mut took: Vec<Duration> = (0..400)
        .map(|_| {
            let began = Instant::now();
            assert_eq!(client.request("GET", "/api/v1/flags/", &KEY, b"").status, 200);
            began.elapsed()
        })
        .collect();
    took.sort();
    took[took.len() / 2]
}

#[test]
fn ten_thousand_slow_peers_do_not_affect_latency_and_time_out() {
    const BYTES_MAX: u64 = 16 * 1024;
    let hard = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard }).expect("the hard limit");
    let limit = hard.unwrap_or(u64::MAX);
    // The other tests of this process need descriptors too.
    let count = usize::try_from(limit.saturating_sub(1000)).unwrap_or(usize::MAX).min(10_000);
    let proxy = prepare().set("server.timeout_head", "6s").ready();
    let baseline = median(&proxy);
    let before = proxy.resident_bytes();
    let began = Instant::now();
    let mut peers: Vec<TcpStream> = Vec::with_capacity(count);
    // If the accept queue is full on a busy machine, fewer are opened: the first must not time out before the
    // last one connects.
    while peers.len() < count && began.elapsed() < Duration::from_secs(3) {
        let mut peer = TcpStream::connect(proxy.address()).expect("the port is bound");
        peer.write_all(b"G").expect("a writable socket");
        peer.set_nonblocking(true).unwrap();
        peers.push(peer);
    }
    let (count, all_in) = (peers.len(), Instant::now());
    assert!(count >= 100, "{count} connections in {:?}", began.elapsed());
    let (stop, open) = (AtomicBool::new(false), || proxy.metric("edge_proxy_connections_open"));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // A field that never ends: one byte per second on each connection.
            let head = b"ET / HTTP/1.1\r\nHost: a\r\nX: ";
            for round in 0.. {
                let byte = [*head.get(round).unwrap_or(&b'x')];
                for peers in peers.chunks(count.div_ceil(50)) {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    // Writes to connections that timed out fail.
                    peers.iter().for_each(|mut peer| drop(peer.write(&byte)));
                    std::thread::park_timeout(Duration::from_millis(20));
                }
            }
        });
        let beside = median(&proxy);
        let (connected, bytes) = (open(), proxy.resident_bytes().saturating_sub(before));
        println!(
            "{count} slow peers, {connected} connected: {baseline:?} without, {beside:?} beside them, {bytes} bytes more"
        );
        assert!(connected > count as f64 / 2.0, "{connected} of {count} after {:?}", all_in.elapsed());
        assert!(beside < baseline * 20, "{baseline:?} without, {beside:?} beside {connected} slow peers");
        assert!(bytes / count as u64 <= BYTES_MAX, "{bytes} bytes for {count}");
        let deadline = Instant::now() + PATIENCE;
        while open() > 1.0 {
            assert!(Instant::now() < deadline, "{} are left", open());
            std::thread::park_timeout(Duration::from_millis(100));
        }
        stop.store(true, Ordering::Relaxed);
    });
    let timeouts = proxy.metric("edge_proxy_http_rejects_total{reason=\"timeout\"}");
    assert_eq!(timeouts, count as f64, "each gets a 408");
    assert!(median(&proxy) < baseline * 20);
}

/// CPU time of the process, in ticks of 10 ms.
fn cpu_ticks(proxy: &Proxy) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", proxy.pid())).expect("a child process");
    let after_name = stat.rsplit(") ").next().expect("a name in brackets");
    after_name.split(' ').skip(11).take(2).map(|number| number.parse::<u64>().expect("ticks")).sum()
}

#[test]
fn pauses_at_the_descriptor_limit_and_recovers() {
    let proxy = prepare().ready();
    let mut kept = proxy.client();
    assert_eq!(kept.request("GET", "/api/v1/flags/", &KEY, b"").status, 200);
    let open =
        std::fs::read_dir(format!("/proc/{}/fd", proxy.pid())).expect("a child process").count() as u64;
    let pid = i32::try_from(proxy.pid()).expect("an id");
    // The child inherits the hard limit.
    let limit = Rlimit { current: Some(open + 8), maximum: getrlimit(Resource::Nofile).maximum };
    prlimit(Pid::from_raw(pid), Resource::Nofile, limit).expect("a child process");
    let (began, ticks) = (Instant::now(), cpu_ticks(&proxy));
    let waiting: Vec<Client> = (0..40).map(|_| proxy.client()).collect();
    proxy.wait_for_log("accept_failed");
    let limited = Instant::now();
    while limited.elapsed() < Duration::from_secs(1) {
        // Connections that were accepted before are served all the while.
        assert_eq!(kept.request("GET", "/api/v1/flags/", &KEY, b"").status, 200);
        std::thread::park_timeout(Duration::from_millis(20));
    }
    let ticks = cpu_ticks(&proxy) - ticks;
    assert!(proxy.log().matches("accept_failed").count() < 10, "{}", proxy.log());
    let mut last = proxy.client();
    drop(waiting);
    assert_eq!(last.request("GET", "/api/v1/flags/", &KEY, b"").status, 200);
    // Read when descriptors are free again: the admin port needs one.
    let (count, took) = (proxy.metric("edge_proxy_accept_pauses_total"), began.elapsed());
    println!("at the descriptor limit: {count} pauses and {ticks} ticks of CPU in {took:?}");
    assert!(count >= 1.0 && count <= took.as_millis() as f64 / 100.0 + 2.0, "{count} pauses in {took:?}");
    assert!(u128::from(ticks) * 10 < took.as_millis() / 4, "{ticks} ticks in {took:?}");
}

#[test]
fn reserves_descriptors_for_polling() {
    let launcher = crate::support::Launcher::new();
    let upstream = crate::support::Upstream::start();
    upstream.document(SERVER, document(0).to_string());
    let start = Start::serve().environment(CLIENT, SERVER).with_admin().set("api_url", upstream.api_url());
    let start = start.set("api_poll_frequency_seconds", "100ms");
    let proxy = launcher.narrow(start, &["nofile=100"]).ready();
    let line = proxy.wait_for_log("connections_limited");
    assert!(line.contains("connections_max_count=50") && line.contains("descriptors_count=100"), "{line}");
    let greedy: Vec<Client> = (0..200).map(|_| proxy.client()).collect();
    eventually("the rest are closed immediately", || {
        (proxy.metric("edge_proxy_connections_refused_total") >= 150.0).then_some(())
    });
    upstream.document(SERVER, document(1).to_string());
    let mut inside = greedy.into_iter().next().expect("the first is connected");
    eventually("the new document is served", || {
        let answer = inside.request("GET", "/api/v1/flags/", &KEY, b"");
        answer.text().contains("\"feature_state_value\":1}").then_some(())
    });
    assert_eq!(proxy.metric("edge_proxy_accept_pauses_total"), 0.0);
}

/// Pipelines requests until `stop`, or until the server closes the connection.
fn flood(address: SocketAddr, stop: &AtomicBool) {
    let requests = request("GET", "/api/v1/flags/", &KEY, b"").repeat(1000);
    let stream = Client::connect(address).into_stream();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut chunk = vec![0; 1 << 20];
            while (&stream).read(&mut chunk).is_ok_and(|length| length > 0) {}
        });
        while !stop.load(Ordering::Relaxed) && (&stream).write_all(&requests).is_ok() {}
        let _ = stream.shutdown(std::net::Shutdown::Both);
    });
}

#[test]
fn pipelined_floods_do_not_starve_other_connections() {
    for driver in ["epoll", "auto"] {
        let proxy = prepare().env("EDGE_PROXY_DRIVER", driver).set("server.timeout_keep_alive", "1s").ready();
        let (stop, address) = (AtomicBool::new(false), proxy.address());
        let mut idle = proxy.client();
        assert_eq!(idle.request("GET", "/api/v1/flags/", &KEY, b"").status, 200);
        let mut beside = proxy.client();
        std::thread::scope(|scope| {
            let requests = "edge_proxy_http_requests_total{route=\"flags\",status=\"2xx\"}";
            (0..3).for_each(|_| drop(scope.spawn(|| flood(address, &stop))));
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                eventually("the flood has started", || (proxy.metric(requests) > 10_000.0).then_some(()));
                for _ in 0..20 {
                    assert_eq!(beside.request("GET", "/api/v1/flags/", &KEY, b"").status, 200);
                    // New connections and timers are served too.
                    assert_eq!(proxy.get("/api/v1/flags/", SERVER).status, 200);
                }
                assert!(idle.is_closed(), "{driver}: swept");
            }));
            stop.store(true, Ordering::Relaxed);
            if let Err(panic) = result {
                drop(proxy);
                std::panic::resume_unwind(panic);
            }
        });
    }
}

/// Every connection sends its next request when it has its answer; returns how many answers each one got, of
/// `answers` in all.
fn answers_of_busy_connections(proxy: &Proxy, connections: usize, answers: usize) -> Vec<usize> {
    let sent = request("GET", "/api/v1/flags/", &KEY, b"");
    let mut busy: Vec<_> = (0..connections).map(|_| Client::connect(proxy.address()).into_stream()).collect();
    // The second answer of a connection has the length of all later ones.
    let length = {
        let mut first = Client::connect(proxy.address());
        first.request("GET", "/api/v1/flags/", &KEY, b"");
        first.send(&sent);
        let stream = first.into_stream();
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"]") {
            let mut chunk = [0; 4096];
            let count = (&stream).read(&mut chunk).expect("an answer");
            bytes.extend_from_slice(&chunk[..count]);
        }
        bytes.len()
    };
    for stream in &mut busy {
        stream.write_all(&sent).expect("space for a request");
        stream.set_nonblocking(true).expect("a socket");
    }
    let (mut received, mut counts) = (vec![0; connections], vec![0; connections]);
    let (mut all, until) = (0, Instant::now() + PATIENCE);
    while all < answers {
        assert!(Instant::now() < until, "{all} of {answers} answers");
        for ((stream, received), count) in busy.iter_mut().zip(&mut received).zip(&mut counts) {
            let mut chunk = [0; 4096];
            match stream.read(&mut chunk) {
                Ok(0) => panic!("closed"),
                Ok(count) => *received += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error}"),
            }
            if *received == length {
                (*received, *count, all) = (0, *count + 1, all + 1);
                stream.write_all(&sent).expect("space for a request");
            }
        }
    }
    counts
}

#[test]
fn busy_connections_get_equal_shares() {
    for driver in ["epoll", "auto"] {
        let proxy = prepare().cores(1).env("EDGE_PROXY_DRIVER", driver).ready();
        let mut counts = answers_of_busy_connections(&proxy, 600, 600 * 20);
        counts.sort_unstable();
        let (least, median) = (counts[0], counts[counts.len() / 2]);
        assert!(least * 10 >= median * 7, "{driver}: {least} of {median} answers, {counts:?}");
        assert!(proxy.metric("edge_proxy_reactor_turn_waits_total{reactor=\"0\"}") > 0.0, "{driver}");
    }
}

#[test]
fn closes_the_connection_after_requests_max() {
    let proxy = prepare().set("server.requests_max", 3).ready();
    let mut client = proxy.client();
    client.send(request("GET", "/api/v1/flags/", &KEY, b"").repeat(5));
    for last in [false, false, true] {
        let answer = client.answer("GET");
        assert_eq!((answer.status, answer.header("connection") == Some("close")), (200, last));
    }
    assert!(client.is_closed());
    assert_eq!(proxy.get("/api/v1/flags/", CLIENT).status, 200, "another connection has a new limit");
}
