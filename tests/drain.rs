//! Shutdown and takeover under load: every request that was read is answered.
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use serde_json::json;

use crate::conformance::count_of;
use crate::support::{Client, PATIENCE, Proxy, Start, eventually, fixture, request};
use crate::surface::{CLIENT, SERVER, document};

fn prepare() -> Start {
    let start = Start::serve().cores(2);
    let path = start.scratch().write("document.json", document(0).to_string());
    start.document(CLIENT, SERVER, path)
}

/// Clients that send requests without pause on persistent connections, and reconnect after
/// `Connection: close`.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    callers: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(address: SocketAddr, callers: usize) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let caller = |_| {
            let (stop, answered) = (stop.clone(), answered.clone());
            std::thread::spawn(move || call(address, &stop, &answered))
        };
        let callers = (0..callers).map(caller).collect();
        Self { stop, answered, callers }
    }

    /// Waits until `count` more requests were answered.
    fn go_on(&self, count: u64) {
        let goal = self.answered.load(Ordering::Relaxed) + count;
        eventually("requests are answered", || (self.answered.load(Ordering::Relaxed) >= goal).then_some(()));
    }

    /// Stops the clients and returns their errors.
    fn end(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.callers.into_iter().flat_map(|caller| caller.join().expect("a caller")).collect()
    }
}

fn call(address: SocketAddr, stop: &AtomicBool, answered: &AtomicU64) -> Vec<String> {
    let ask = request("GET", "/api/v1/flags/", &[("X-Environment-Key", SERVER)], b"");
    let mut wrong = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let mut client = match Client::try_connect(address) {
            Ok(client) => client,
            Err(error) => {
                wrong.push(format!("connect: {error}"));
                return wrong;
            }
        };
        loop {
            let result = client.try_send(&ask).and_then(|()| client.try_answer("GET"));
            match result {
                Ok(Some(answer)) if answer.status == 200 => {
                    answered.fetch_add(1, Ordering::Relaxed);
                    if answer.header("connection") == Some("close") || stop.load(Ordering::Relaxed) {
                        break;
                    }
                }
                Ok(Some(answer)) => wrong.push(format!("status {}: {}", answer.status, answer.text())),
                Ok(None) => {
                    wrong.push("closed without an answer".to_owned());
                    break;
                }
                Err(error) => {
                    wrong.push(format!("no whole answer: {error}"));
                    break;
                }
            }
        }
    }
    wrong
}

/// `STOPS=16` is the long form.
#[test]
fn stop_under_load_answers_every_request() {
    let stops = count_of("STOPS", 2);
    let answered: u64 = (0..stops).map(|_| stop_under_load()).sum();
    fixture::say(&format!("stops under load: {stops}, {answered} requests answered, 0 failed"));
}

/// Returns the number of answered requests.
fn stop_under_load() -> u64 {
    let mut proxy = prepare().ready();
    let load = Load::start(proxy.address(), 8);
    load.go_on(200);
    proxy.signal("TERM");
    assert!(proxy.wait().success(), "{}", proxy.log());
    let answered = load.answered.clone();
    let wrong = load.end();
    // After the listener is closed, connections are refused; no other error is allowed.
    let unexpected: Vec<_> = wrong.iter().filter(|what| !what.starts_with("connect: ")).collect();
    assert!(unexpected.is_empty(), "{unexpected:?}");
    assert!(proxy.log().contains("connections_cut_count=0"), "{}", proxy.log());
    answered.load(Ordering::Relaxed)
}

#[test]
fn takeover_fails_no_request() {
    let mut old = prepare().with_admin().ready();
    let port = old.address().port();
    let load = Load::start(old.address(), 8);
    load.go_on(200);
    let new = prepare()
        .set("server.port", port)
        .set("admin", json!({"host": "127.0.0.1", "port": old.admin().port()}));
    let new = new.spawn();
    new.wait_for_log("reactor_started");
    new.wait_for_log("ready ");
    // The new process gets connections as soon as it listens beside the old one.
    eventually("the new process answers", || served_by(&new, port));
    load.go_on(200);
    old.signal("TERM");
    assert!(old.wait().success(), "{}", old.log());
    load.go_on(500);
    let wrong = load.end();
    assert!(wrong.is_empty(), "{wrong:?}\n{}\n{}", old.log(), new.log());
}

/// Whether this process holds a listening socket on the port.
pub fn served_by(proxy: &Proxy, port: u16) -> Option<()> {
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let hex = format!(":{port:04X} ");
    let inodes: Vec<&str> = table
        .lines()
        .filter(|line| line.contains(&hex) && line.split_whitespace().nth(3) == Some("0A"))
        .filter_map(|line| line.split_whitespace().nth(9))
        .collect();
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", proxy.pid())).ok()?;
    let links = descriptors.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    let mut names = links.filter_map(|link| link.to_str().map(str::to_owned));
    names.any(|name| inodes.iter().any(|inode| name == format!("socket:[{inode}]"))).then_some(())
}

#[test]
fn idle_process_stops_before_its_grace_ends() {
    let grace = PATIENCE / 2;
    let mut proxy = prepare().set("server.shutdown_grace_seconds", grace.as_secs()).ready();
    let mut idle = proxy.client();
    assert_eq!(idle.request("GET", "/proxy/health/liveness", &[], b"").status, 200);
    let began = Instant::now();
    proxy.signal("TERM");
    assert!(proxy.wait().success());
    assert!(began.elapsed() < grace, "{:?}", began.elapsed());
}
