//! The admin listener under attack: idle connections, slow heads, foreign `Host` names.
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::{Value, json};

use crate::support::{Client, Proxy, Start, eventually, fixture, get};
use crate::surface::{CLIENT, SERVER};

const LIMIT: usize = edge_proxy::limits::ADMIN_CONNECTIONS_MAX;

fn start() -> Start {
    Start::serve().document(CLIENT, SERVER, fixture::path("environments/Main.json"))
}

fn closed(proxy: &Proxy) -> f64 {
    proxy.metric("edge_proxy_admin_connections_closed_total")
}

/// The status of `GET path` with this `Host` (`None`: without), and the body.
fn ask(admin: SocketAddr, path: &str, version: &str, hosts: &[&str]) -> (String, String) {
    let mut stream = TcpStream::connect(admin).expect("a listener");
    let fields: String = hosts.iter().map(|host| format!("Host: {host}\r\n")).collect();
    stream.write_all(format!("GET {path} HTTP/{version}\r\n{fields}\r\n").as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head.split(' ').nth(1).expect("a status").to_owned(), body.to_owned())
}

#[test]
fn idle_connections_do_not_block_probes() {
    let proxy = start().with_admin().ready();
    let admin = proxy.admin();
    // Three times the limit, with probes in between.
    let mut idle = Vec::new();
    for number in 0..3 * LIMIT {
        idle.push(Client::connect(admin));
        if number % 8 == 0 {
            assert_eq!(get(admin, "/proxy/health/liveness", "").status, 200, "beside {number} idle ones");
        }
    }
    let text = get(admin, "/metrics", "").text();
    let closed =
        text.lines().find_map(|line| line.strip_prefix("edge_proxy_admin_connections_closed_total "));
    let closed: usize = closed.expect("a sample").parse().expect("a number");
    assert!((LIMIT..=3 * LIMIT).contains(&closed), "{closed} closed");
    assert!(idle[0].is_closed(), "the one that has waited longest");
    // The others are closed after the timeout of a head.
    eventually("the others are closed too", || {
        (proxy.metric("edge_proxy_admin_connections_closed_total") >= (3 * LIMIT) as f64).then_some(())
    });
    assert!(idle.iter_mut().all(Client::is_closed));
}

#[test]
fn incomplete_head_is_closed_and_counted() {
    let proxy = start().with_admin().ready();
    let admin = proxy.admin();
    for sent in ["", "GET / HTTP/1.1\r\nHost: localhost\r\n", "x"] {
        let before = closed(&proxy);
        let mut slow = Client::connect(admin);
        slow.send(sent);
        assert!(slow.is_closed(), "{sent:?}");
        eventually("the connection is counted", || (closed(&proxy) == before + 1.0).then_some(()));
    }
    let before = closed(&proxy);
    let mut large = Client::connect(admin);
    // The connection may be closed before all of the head is sent.
    let _ = large.try_send(format!("GET / HTTP/1.1\r\nHost: localhost\r\nx: {}", "y".repeat(20_000)));
    eventually("the connection is counted", || (closed(&proxy) == before + 1.0).then_some(()));
    // A client that disconnects by itself is not counted.
    drop(Client::connect(admin));
    assert_eq!(get(admin, "/status.json", "").status, 200);
    assert_eq!(closed(&proxy), before + 1.0);
}

#[test]
fn answers_only_addresses_localhost_and_allowed_hosts() {
    let proxy = start()
        .with_admin()
        .set("admin", json!({"port": 0, "allowed_hosts": ["Proxy.example", ".svc.cluster.local"]}))
        .ready();
    let admin = proxy.admin();
    let address = admin.to_string();
    for host in
        ["127.0.0.1", &address, "[::1]:8001", "localhost:9", "proxy.example:8001", "a.b.svc.cluster.local"]
    {
        for path in ["/", "/metrics", "/status.json", "/proxy/health/liveness", "/proxy/health/readiness"] {
            assert_eq!(ask(admin, path, "1.1", &[host]).0, "200", "{path} for {host}");
        }
    }
    for host in ["evil.example", "127.0.0.1.evil.example:8001", "x.proxy.example", "\u{1b}[2J"] {
        for path in ["/", "/metrics", "/status.json", "/proxy/health/readiness", "/nope"] {
            let (status, body) = ask(admin, path, "1.1", &[host]);
            assert_eq!(status, "421", "{path} for {host}");
            assert!(body.contains("admin.allowed_hosts") && !body.contains('\u{1b}'), "{body}");
            assert!(!body.contains("environments") && !body.contains("edge_proxy_"), "{body}");
        }
    }
    assert_eq!(proxy.metric("edge_proxy_admin_hosts_refused_total"), 20.0);
    let line = proxy.wait_for_log("admin_host_refused");
    assert!(line.contains("admin.allowed_hosts") && line.contains("evil.example"), "{line}");
    assert_eq!(proxy.log().matches("admin_host_refused").count(), 1, "clients choose the name");
    assert_eq!(ask(admin, "/", "1.1", &[]).0, "400");
    assert_eq!(ask(admin, "/", "1.1", &["localhost", "localhost"]).0, "400");
    assert_eq!(ask(admin, "/", "1.0", &[]).0, "200");
}

#[test]
fn reloads_allowed_hosts_and_reads_them_from_the_environment() {
    let proxy = start().with_admin().ready();
    let admin = proxy.admin();
    assert_eq!(ask(admin, "/metrics", "1.1", &["proxy.example"]).0, "421");
    let mut config = proxy.config().clone();
    config["admin"]["allowed_hosts"] = json!("*");
    proxy.scratch().write("config.json", config.to_string());
    proxy.signal("HUP");
    eventually("the host is allowed", || {
        (ask(admin, "/metrics", "1.1", &["proxy.example"]).0 == "200").then_some(())
    });
    assert!(!proxy.log().contains("configuration_needs_restart"), "{}", proxy.log());
    let proxy = start().with_admin().env("ADMIN_ALLOWED_HOSTS", "edge-proxy, .example.com").ready();
    assert_eq!(ask(proxy.admin(), "/metrics", "1.1", &["edge-proxy:8001"]).0, "200");
    for wrong in
        [json!("http://x"), json!(["a:8001"]), json!([""]), json!([7]), json!({}), json!("a b"), json!(".")]
    {
        let (code, text) = start().with_admin().set("admin.allowed_hosts", wrong.clone()).run();
        assert!(
            code == Some(64) && text.contains("admin.allowed_hosts: expected a host name"),
            "{wrong}: {text}"
        );
    }
}

/// What happened before the page was opened is there, and answers are counted by environment and SDK.
#[test]
fn history_and_answers_of_a_running_process() {
    let start = Start::serve().with_admin().cores(2);
    let proxy = start.document(CLIENT, SERVER, fixture::path("environments/Main.json")).ready();
    let agents = [("User-Agent", "flagsmith-ruby-sdk/4.2.0"), ("X-Environment-Key", SERVER)];
    for _ in 0..3 {
        let answer = Client::connect(proxy.address()).request("GET", "/api/v1/flags/", &agents, b"");
        assert_eq!(answer.status, 200);
    }
    assert_eq!(proxy.get("/api/v1/flags/?feature=unknown", CLIENT).status, 404);
    assert_eq!(proxy.get("/api/v1/flags/", "unknown").status, 401);
    let label = format!("{}...", &CLIENT[..6]);
    let sample =
        |class| format!("edge_proxy_environment_answers_total{{environment=\"{label}\",class=\"{class}\"}}");
    assert_eq!((proxy.metric(&sample("2xx")), proxy.metric(&sample("4xx"))), (3.0, 1.0));
    assert_eq!(proxy.metric("edge_proxy_sdk_answers_total{sdk=\"ruby-sdk\",class=\"2xx\"}"), 3.0);
    let status = get(proxy.admin(), "/status.json", "").json();
    assert_eq!(status["environments"][0]["answers"], json!({"2xx": 3, "4xx": 1}));
    assert!(status["reactors"].as_array().expect("a list").iter().all(|one| one["cpu_seconds"].is_f64()));
    // The process samples itself, so that no request to the page is needed.
    let columns = |history: &Value, name: &str| -> Vec<f64> {
        let names = history["columns"].as_array().expect("names");
        let at = names.iter().position(|column| column == name).expect("a column");
        let samples = history["samples"].as_array().expect("a list").iter();
        samples.filter_map(|sample| sample[at].as_f64()).collect()
    };
    let history = eventually("samples with the requests", || {
        let history = get(proxy.admin(), "/history.json", "").json();
        let interval = history["interval_seconds"].as_f64().expect("seconds");
        (columns(&history, "requests").iter().sum::<f64>() * interval >= 3.0).then_some(history)
    });
    let (most, least) = (columns(&history, "utilisation_max"), columns(&history, "utilisation_min"));
    assert!(!most.is_empty() && most.len() == least.len(), "{history}");
    for (most, least) in most.iter().zip(least) {
        assert!((0.0..=1.0).contains(most) && (0.0..=*most).contains(&least), "{history}");
    }
}
