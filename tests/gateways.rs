//! Behind gateways: a path prefix, address lists, header fields for the API, and what the access log records.
use std::path::Path;

use serde_json::{Value, json};

use crate::support::document::{CLIENT_KEY, SERVER_KEY};
use crate::support::{Answer, Client, Proxy, Reply, Start, Upstream, eventually, fixture, get, request};
use crate::surface::{CLIENT, SERVER};

fn serve() -> Start {
    Start::serve().document(CLIENT, SERVER, fixture::path("environments/Main.json"))
}

fn send(proxy: &Proxy, method: &str, target: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    Client::connect(proxy.address()).request(method, target, headers, body.as_bytes())
}

// --- server.base_path ---

#[test]
fn base_path_holds_every_route_and_every_url() {
    let start = Start::serve();
    let path = start.scratch().write("surface.json", crate::surface::document(0).to_string());
    let proxy = start.document(CLIENT, SERVER, path).set("server.base_path", "/edge/v2").with_admin().ready();
    let context = r#"{"context":{"targetingKey":"u"}}"#;
    let stream = format!("/sse/environments/{CLIENT}/stream");
    for (method, path, body) in [
        ("GET", "/api/v1/flags/", ""),
        ("GET", "/api/v1/identities/?identifier=u", ""),
        ("POST", "/api/v1/identities/", r#"{"identifier":"u"}"#),
        ("POST", "/api/v1/analytics/flags/", "{}"),
        ("POST", "/ofrep/v1/evaluate/flags", context),
        ("HEAD", stream.as_str(), ""),
        ("GET", "/docs", ""),
        ("GET", "/openapi.json", ""),
    ] {
        let key = [("X-Environment-Key", CLIENT)];
        let below = send(&proxy, method, &format!("/edge/v2{path}"), &key, body);
        assert_eq!(below.status, 200, "{method} /edge/v2{path}: {}", below.text());
        for elsewhere in [path.to_owned(), format!("/edge{path}"), format!("/edge/v2/edge/v2{path}")] {
            assert_eq!(send(&proxy, method, &elsewhere, &key, body).status, 404, "{elsewhere}");
        }
    }
    let explained = send(&proxy, "POST", "/edge/v2/proxy/explain", &[("X-Environment-Key", SERVER)], "{}");
    assert_ne!(explained.status, 404);
    for path in ["/health", "/proxy/health", "/proxy/health/readiness", "/proxy/health/liveness"] {
        assert_eq!(send(&proxy, "GET", path, &[], "").status, 200, "{path}");
        assert_eq!(send(&proxy, "GET", &format!("/edge/v2{path}"), &[], "").status, 200, "{path}");
    }
    let flags =
        send(&proxy, "POST", "/edge/v2/ofrep/v1/evaluate/flags", &[("X-Environment-Key", CLIENT)], context);
    let uri = flags.json()["eventStreams"][0]["endpoint"]["requestUri"].as_str().expect("a URI").to_owned();
    assert_eq!(uri, format!("/edge/v2/ofrep/v1/environments/{CLIENT}/stream"));
    assert_eq!(send(&proxy, "HEAD", &uri, &[], "").status, 200, "the URL that was written is served");
    let openapi = send(&proxy, "GET", "/edge/v2/openapi.json", &[], "").json();
    assert_eq!(openapi["servers"], json!([{"url": "/edge/v2"}]));
    let docs = send(&proxy, "GET", "/edge/v2/docs/", &[], "").text();
    assert!(docs.contains("\"/edge/v2/openapi.json\"") && !docs.contains("BASE_PATH"), "{docs}");
    assert_eq!(get(proxy.admin(), "/status.json", "").status, 200, "the admin port has no base path");
}

#[test]
fn without_base_path_urls_are_those_of_the_root() {
    let proxy = serve().ready();
    assert_eq!(proxy.get("/openapi.json", "").json()["servers"], json!([{"url": "/"}]));
    assert!(proxy.get("/docs", "").text().contains("\"/openapi.json\""));
}

#[test]
fn base_path_and_lists_change_by_a_reload() {
    let proxy = serve().ready();
    assert_eq!(proxy.get("/api/v1/flags/", CLIENT).status, 200);
    let mut config = proxy.config().clone();
    config["server"]["base_path"] = json!("/edge");
    config["server"]["deny_list"] = json!(["127.0.0.1"]);
    proxy.scratch().write("config.json", config.to_string());
    proxy.signal("HUP");
    eventually("the base path", || (proxy.get("/api/v1/flags/", CLIENT).status == 403).then_some(()));
    config["server"]["deny_list"] = json!([]);
    proxy.scratch().write("config.json", config.to_string());
    proxy.signal("HUP");
    eventually("the lists", || (proxy.get("/edge/api/v1/flags/", CLIENT).status == 200).then_some(()));
    assert_eq!(proxy.get("/api/v1/flags/", CLIENT).status, 404);
    assert!(!proxy.log().contains("needs_restart"), "{}", proxy.log());
}

// --- server.allow_list and server.deny_list ---

fn status(proxy: &Proxy, forwarded_for: &str) -> u16 {
    let headers = [("X-Environment-Key", CLIENT), ("X-Forwarded-For", forwarded_for)];
    send(proxy, "GET", "/api/v1/flags/", &headers, "").status
}

#[test]
fn lists_admit_clients_by_the_address_that_trusted_proxies_report() {
    let start = serve().set("server.proxy_headers", true).set("server.allow_list", json!(["10.0.0.0/8"]));
    let proxy = start.set("server.deny_list", "10.9.0.0/16, 2001:db8::/32").with_admin().ready();
    for (forwarded_for, expected) in [
        ("10.1.2.3", 200),
        ("192.0.2.1, 10.1.2.3", 200),
        ("10.9.2.3", 403),
        ("192.0.2.1", 403),
        ("2001:db8::1", 403),
        ("unknown", 403),
    ] {
        assert_eq!(status(&proxy, forwarded_for), expected, "{forwarded_for}");
    }
    for path in ["/health", "/proxy/health/liveness"] {
        assert_eq!(proxy.get(path, "").status, 200, "{path}");
    }
    let origin = [("Origin", "https://www.example.com"), ("X-Request-Id", "r-1")];
    let denied = send(&proxy, "GET", "/api/v1/flags/", &origin, "");
    assert_eq!((denied.status, denied.json()), (403, json!({"detail": "Forbidden"})));
    assert_eq!(denied.header("access-control-allow-origin"), Some("*"), "a browser can see why");
    assert_eq!(denied.header("x-request-id"), Some("r-1"));
    assert_eq!(send(&proxy, "GET", "/unknown", &[], "").status, 403, "nor does it learn of routes");
    assert_eq!(proxy.metric("edge_proxy_http_rejects_total{reason=\"forbidden\"}"), 6.0);
}

#[test]
fn forwarded_address_does_not_count_without_proxy_headers() {
    let proxy = serve().set("server.deny_list", json!(["10.0.0.0/8"])).ready();
    assert_eq!(status(&proxy, "10.1.2.3"), 200);
    let proxy = serve().set("server.allow_list", json!(["10.0.0.0/8"])).ready();
    assert_eq!(status(&proxy, "10.1.2.3"), 403);
}

/// Only the head is sent: a response proves that the server neither waits for the body nor sends a 100.
#[test]
fn denied_client_is_answered_before_its_body() {
    let proxy = serve().set("server.deny_list", json!(["127.0.0.0/8"])).ready();
    for expect in ["", "Expect: 100-continue\r\n"] {
        let mut client = proxy.client();
        client.send(format!(
            "POST /api/v1/identities/ HTTP/1.1\r\nHost: a\r\n{expect}Content-Length: 9000\r\n\r\n{{"
        ));
        let answer = client.answer("POST");
        assert_eq!((answer.status, answer.header("connection")), (403, Some("close")));
        assert!(client.is_closed());
    }
    // A request that is complete leaves the connection to the next client of a load balancer.
    let mut client = proxy.client();
    for _ in 0..2 {
        let answer = client.request("POST", "/api/v1/identities/", &[("X-Environment-Key", CLIENT)], b"{}");
        assert_eq!((answer.status, answer.header("connection")), (403, None));
    }
    assert_eq!(client.request("GET", "/health", &[], b"").status, 200);
}

// --- api_headers ---

const TOKEN: &str = "gateway-secret-of-a-test";

#[test]
fn api_headers_are_sent_with_every_request_to_the_api() {
    let upstream = Upstream::start();
    upstream.document(SERVER_KEY, crate::support::document::document(1));
    upstream.on("/api/v1/analytics/flags/", Reply::json("{}"));
    let stream = format!("/sse/environments/{CLIENT_KEY}/stream");
    upstream.on(&stream, Reply::events(":\n\n"));
    let proxy = Start::serve()
        .environment(CLIENT_KEY, SERVER_KEY)
        .set("api_url", upstream.api_url())
        .set("api_headers", json!({"X-Gateway-Token": TOKEN, "Authorization": format!("Bearer {TOKEN}")}))
        .set("realtime", json!({"enabled": true, "url": upstream.origin()}))
        .set("analytics.flush_interval_seconds", 0.1)
        .set("logging.log_level", "DEBUG")
        .with_admin()
        .ready();
    let flags = proxy.get("/api/v1/flags/", CLIENT_KEY).json();
    let feature = flags[0]["feature"]["name"].as_str().expect("a feature");
    proxy.post("/api/v1/analytics/flags/", CLIENT_KEY, &json!({ feature: 1 }).to_string());
    let kinds = ["/api/v1/environment-document/", "/api/v1/analytics/flags/", &stream];
    upstream.wait("a request of each kind", |all| {
        kinds.iter().all(|kind| all.iter().any(|request| request.path() == *kind))
    });
    for request in upstream.requests() {
        assert_eq!(request.header("x-gateway-token"), Some(TOKEN), "{}", request.target);
        let bearer = format!("Bearer {TOKEN}");
        assert_eq!(request.header("authorization"), Some(bearer.as_str()), "{}", request.target);
    }
    upstream.refuse();
    proxy.wait_for_log("environment_poll_failed");
    for path in ["/status.json", "/metrics", "/"] {
        assert!(!get(proxy.admin(), path, "").text().contains(TOKEN), "{path}");
    }
    assert!(!proxy.log().contains(TOKEN), "{}", proxy.log());
}

#[test]
fn api_headers_do_not_follow_a_redirect_to_another_origin_or_go_to_another_service() {
    let (upstream, other) = (Upstream::start(), Upstream::start());
    let target = other.origin();
    upstream.rule(move |request| Some(Reply::redirect(302, &format!("{target}{}", request.target))));
    let proxy = Start::serve()
        .environment(CLIENT_KEY, SERVER_KEY)
        .set("api_url", upstream.api_url())
        .set("api_headers", json!({"X-Gateway-Token": TOKEN}))
        .set("realtime", json!({"enabled": true, "url": other.origin()}))
        .start();
    proxy.wait_for_log("environment_poll_failed");
    other.wait("the redirected poll and the stream", |all| {
        ["/api/v1/environment-document/", "/sse/"]
            .iter()
            .all(|path| all.iter().any(|r| r.target.starts_with(path)))
    });
    assert!(upstream.requests().iter().all(|request| request.header("x-gateway-token") == Some(TOKEN)));
    for request in other.requests() {
        assert_eq!(request.header("x-gateway-token"), None, "{}", request.target);
    }
}

// --- X-Request-Id and the access log ---

#[test]
fn request_id_is_echoed_if_it_is_valid() {
    let proxy = serve().ready();
    let key = ("X-Environment-Key", CLIENT);
    let long = "x".repeat(129);
    for (target, id, expected) in [
        ("/api/v1/flags/", "4bf92f35-77b3", Some("4bf92f35-77b3")),
        ("/api/v1/identities/?identifier=u", "Root=1-2;Self=3", Some("Root=1-2;Self=3")),
        ("/api/v1/identities/", "on-a-422", Some("on-a-422")),
        ("/unknown", "on-a-404", Some("on-a-404")),
        ("/proxy/health/liveness", "on-health", Some("on-health")),
        ("/api/v1/flags/", "two words", None),
        ("/api/v1/flags/", "quo\"te", None),
        ("/api/v1/flags/", &long, None),
    ] {
        let answer = send(&proxy, "GET", target, &[key, ("X-Request-Id", id)], "");
        assert_eq!(answer.header("x-request-id"), expected, "{target} {id}");
    }
    assert_eq!(proxy.get("/api/v1/flags/", CLIENT).header("x-request-id"), None);
}

/// The records of a file, once there are that many.
fn records(path: &Path, count: usize) -> Vec<Value> {
    eventually("the records", || {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        (lines.len() >= count).then_some(lines)
    })
}

fn with_access_file(start: Start) -> (Start, std::path::PathBuf) {
    let path = start.scratch().path().join("access.log");
    let logging = json!({"log_format": "json", "log_level": "WARNING", "access_log_file": path});
    (start.set("logging", logging), path)
}

#[test]
fn access_record_names_environment_user_agent_request_id_and_protocol() {
    let (start, path) = with_access_file(serve());
    let proxy = start.set("server.proxy_headers", true).ready();
    let agent = format!("flagsmith-python-sdk/4.0 \x1b[31m{}", "x".repeat(300));
    let headers = [
        ("X-Environment-Key", SERVER),
        ("User-Agent", &agent.replace('\x1b', "\u{e9}")),
        ("X-Request-Id", "r-1"),
        ("X-Forwarded-For", "192.0.2.7"),
    ];
    assert_eq!(send(&proxy, "GET", "/api/v1/flags/", &headers, "").status, 200);
    let mut old = proxy.client();
    old.send("GET /unknown?secret=1 HTTP/1.0\r\n\r\n");
    assert_eq!(old.answer("GET").status, 404);
    // Earlier records are of the health checks of the harness.
    let all = eventually("both records", || {
        let all = records(&path, 2);
        all.iter().any(|record| record["path"] == "/unknown").then_some(all)
    });
    let find = |path: &str| all.iter().find(|record| record["path"] == path).expect("recorded");
    let first = find("/api/v1/flags/");
    assert_eq!((&first["message"], &first["environment"]), (&json!("http_request"), &json!("Surfac...")));
    assert_eq!((&first["request_id"], &first["protocol"]), (&json!("r-1"), &json!("HTTP/1.1")));
    assert_eq!(first["remote_ip"], "192.0.2.7");
    let shown = first["user_agent"].as_str().expect("a user agent");
    assert!(shown.starts_with("flagsmith-python-sdk/4.0 ") && shown.ends_with("xx..."), "{shown}");
    assert!((200..=210).contains(&shown.len()), "{} bytes", shown.len());
    let second = find("/unknown");
    assert_eq!(second["protocol"], "HTTP/1.0");
    for name in ["environment", "user_agent", "request_id"] {
        assert_eq!(second[name], Value::Null, "{name} is left out");
    }
    let text = std::fs::read_to_string(&path).expect("the file");
    assert!(!text.contains(SERVER) && !text.contains(CLIENT) && !text.contains("secret="), "{text}");
    assert!(!proxy.log().contains("http_request"), "stdout has events only");
}

#[test]
fn denied_requests_are_in_the_access_log() {
    let (start, path) = with_access_file(serve());
    let proxy = start.set("server.deny_list", json!(["127.0.0.1"])).ready();
    assert_eq!(proxy.get("/api/v1/flags/", CLIENT).status, 403);
    let mut client = proxy.client();
    client.send("POST /api/v1/traits/ HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n");
    assert_eq!(client.answer("POST").status, 403);
    eventually("both", || {
        let denied = records(&path, 2).into_iter().filter(|record| record["status"] == 403).count();
        (denied == 2).then_some(())
    });
}

#[test]
fn access_log_file_is_opened_again_after_a_rotation() {
    let (start, path) = with_access_file(serve());
    let start = start.set("logging.log_level", "INFO");
    let mut proxy = start.ready();
    let ask = |target: &str| assert_eq!(send(&proxy, "GET", target, &[], "").status, 404);
    let has = |path: &Path, target: &str| {
        eventually("the record", || {
            records(path, 1).iter().any(|record| record["path"] == target).then_some(())
        });
    };
    ask("/before");
    has(&path, "/before");
    let rotated = path.with_extension("log.1");
    std::fs::rename(&path, &rotated).expect("renamed");
    ask("/between");
    has(&rotated, "/between");
    proxy.signal("USR1");
    proxy.wait_for_log("access_log_reopened");
    ask("/after");
    has(&path, "/after");
    let old = std::fs::read_to_string(&rotated).expect("the old file");
    assert!(old.contains("/before") && old.contains("/between") && !old.contains("/after"), "{old}");
    // A rotation that cannot be followed leaves the file in use.
    std::fs::rename(&path, path.with_extension("log.2")).expect("renamed");
    std::fs::create_dir(&path).expect("a directory is in the way");
    proxy.signal("USR1");
    proxy.wait_for_log("access_log_reopen_failed");
    ask("/on");
    has(&path.with_extension("log.2"), "/on");
    proxy.signal("TERM");
    assert_eq!(proxy.wait().code(), Some(0));
}

#[test]
fn usr1_without_a_file_does_not_end_the_process() {
    let mut proxy = serve().ready();
    proxy.signal("USR1");
    assert_eq!(proxy.get("/api/v1/flags/", CLIENT).status, 200);
    proxy.signal("TERM");
    assert_eq!(proxy.wait().code(), Some(0));
}

#[test]
fn access_log_file_that_cannot_be_opened_ends_the_start() {
    let directory = serve();
    let path = directory.scratch().path().to_owned();
    let fifo = serve();
    let pipe = fifo.scratch().path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    for (start, path) in [(directory, path), (fifo, pipe), (serve(), "/nonexistent/access.log".into())] {
        let (code, text) = start.set("logging", json!({"access_log_file": path})).run();
        assert_eq!(code, Some(64), "{text}");
        assert!(text.contains(&format!("logging.access_log_file: {}: ", path.display())), "{text}");
    }
}

#[test]
fn pipelined_requests_of_a_denied_client_are_each_denied() {
    let proxy = serve().set("server.deny_list", json!(["127.0.0.1"])).ready();
    let mut client = proxy.client();
    client.send(
        [request("GET", "/api/v1/flags/", &[], b""), request("GET", "/health", &[], b"")].concat().repeat(3),
    );
    let statuses: Vec<u16> = (0..6).map(|_| client.answer("GET").status).collect();
    assert_eq!(statuses, [403, 200, 403, 200, 403, 200]);
}
