//! Upstream faults as shown by the log, the health response and the status page.

use std::io::{Read, Write};

use serde_json::{Value, json};

use crate::support::document::document;
use crate::support::tls::{Authority, TlsFront};
use crate::support::upstream::{Reply, Upstream};
use crate::support::{Port, Proxy, Start, eventually, fixture, get};
use crate::surface::{CLIENT, SERVER};

/// Each fault: the name of its environment, upstream's response, and text that the error must contain.
fn faults() -> Vec<(&'static str, Reply, &'static str)> {
    let whole = document(1);
    let cut = whole.as_bytes()[..whole.len() / 2].to_vec();
    // Upstream may repeat the key that it rejects, so its text is not logged.
    let status = |status| Reply::new(status, r#"{"detail": "ser.secret-key is refused"}"#);
    vec![
        ("refused", status(403), "answered 403: the key is refused"),
        ("unauthorized", status(401), "answered 401: the key is refused"),
        ("not-found", status(404), "api_url is wrong"),
        ("too-many", status(429).with("retry-after", "7"), "raise api_poll_frequency_seconds"),
        ("broken", status(500), "answered 500: an internal error of upstream"),
        ("down", status(503), "down or overloaded"),
        ("elsewhere", Reply::redirect(302, "http://127.0.0.1:1/login"), "redirected to http://127.0.0.1:1: "),
        (
            "web-page",
            Reply::new(200, "<!doctype html><title>Log in</title>"),
            "a web page, not JSON: api_url",
        ),
        ("empty", Reply::new(200, ""), "an empty body"),
        ("cut-off", Reply::json(cut), "it may be truncated"),
        ("other-json", Reply::json(r#"{"hello": 1}"#), "not an environment document: $.project: missing"),
    ]
}

/// The beginning of the environment's client-side key, as it is logged.
fn shown(name: &str) -> String {
    format!("{:.6}...", format!("{name}-client-side-key"))
}

/// A server that answers 400 to a TLS handshake.
fn plain_http() -> std::net::SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for mut socket in listener.incoming().flatten() {
            let _ = socket.read(&mut [0; 4096]);
            let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
        }
    });
    address
}

fn records(proxy: &Proxy) -> Vec<Value> {
    proxy.log().lines().map(|line| serde_json::from_str(line).expect("one record per line")).collect()
}

#[test]
fn logs_upstream_faults_with_key_cause_and_served_document() {
    let upstream = Upstream::start();
    let mut start = Start::serve().set("api_url", upstream.api_url());
    let admin = Port::free();
    start = start.set("admin", json!({"port": admin.number()}));
    start = start.set("logging.log_format", "json").set("api_poll_frequency_seconds", 0.2);
    for (name, reply, _) in faults() {
        let server_side_key = format!("ser.secret-key-of-{name}");
        upstream.on_key(&server_side_key, reply);
        start = start.environment(&format!("{name}-client-side-key"), &server_side_key);
    }
    let proxy = start.start();
    for (name, _, words) in faults() {
        let key = shown(name);
        let is_it = |record: &Value| {
            record["message"] == "environment_poll_failed" && record["client_side_key"] == key.as_str()
        };
        let record = eventually(name, || records(&proxy).into_iter().find(is_it));
        assert!(record["error"].as_str().is_some_and(|error| error.contains(words)), "{name}: {record}");
        assert_eq!(
            (&record["level"], &record["serving"]),
            (&json!("error"), &json!("nothing (502)")),
            "{name}"
        );
        assert!(record["retry_seconds"].as_f64().is_some_and(|wait| wait > 0.0), "{record}");
    }
    let admin = admin.address();
    // The environment with a `Retry-After` of seven seconds has failed only once.
    let status = eventually("each has failed again", || {
        let status = get(admin, "/status.json", "").json();
        let again = status["environments"].as_array()?.iter().filter(|e| e["failures"].as_u64() > Some(1));
        (again.count() >= faults().len() - 1).then_some(status)
    });
    let health = get(admin, "/proxy/health/readiness", "").text();
    for (name, _, words) in faults() {
        let key = shown(name);
        let state =
            status["environments"].as_array().unwrap().iter().find(|e| e["client_side_key"] == key.as_str());
        let state = state.unwrap_or_else(|| panic!("{name} in {status}"));
        assert!(state["last_error"].as_str().is_some_and(|error| error.contains(words)), "{state}");
        assert!(state["failing_since"].as_f64() <= status["now"].as_f64(), "{state}");
        assert!(state["next_poll"].as_f64() > state["failing_since"].as_f64(), "{state}");
        assert!(health.contains(words), "{name} in {health}");
    }
    // The public port shows only the kind of each error.
    for path in ["/health", "/proxy/health", "/proxy/health/readiness"] {
        let public = proxy.get(path, "").json();
        for environment in public["environments"].as_array().expect("a list") {
            let kind = environment["last_error"].as_str().expect("a kind");
            assert!(kind.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{environment}");
        }
    }
    let logged = records(&proxy).iter().filter(|r| r["message"] == "environment_poll_failed").count();
    assert_eq!(logged, faults().len(), "a continuing failure is not logged again");
    let metrics = get(admin, "/metrics", "").text();
    for shown in [proxy.log(), status.to_string(), health, metrics, get(admin, "/", "").text()] {
        assert!(!shown.contains("secret-key"), "{shown}");
    }
}

#[test]
fn logs_readiness_changes_and_failure_duration() {
    let upstream = Upstream::start();
    upstream.document(SERVER, document(1));
    let mut proxy = Start::serve()
        .environment(CLIENT, SERVER)
        .set("api_url", upstream.api_url())
        .set("api_poll_frequency_seconds", 0.1)
        .set("health_check.environment_update_grace_period_seconds", 0.2)
        .ready();
    assert!(proxy.wait_for_log(" ready ").contains("after_seconds"));
    upstream.on_key(SERVER, Reply::new(500, ""));
    let line = proxy.wait_for_log(" not_ready ");
    assert!(line.contains("[warning") && line.contains("stale"), "{line}");
    upstream.clear();
    upstream.document(SERVER, document(2));
    let line = proxy.wait_for_log("environment_recovered");
    assert!(line.contains("failures_count=") && line.contains("failing_seconds="), "{line}");
    eventually("readiness is logged again", || (proxy.log().matches(" ready ").count() == 2).then_some(()));
    proxy.signal("TERM");
    assert_eq!(proxy.wait().code(), Some(0));
    assert_eq!(
        proxy.log().matches(" not_ready ").count(),
        1,
        "shutting down logs no warning:\n{}",
        proxy.log()
    );
}

#[test]
fn explains_rejected_upstream_certificates() {
    let upstream = Upstream::start();
    upstream.document("ser.secret-key", std::fs::read(fixture::path("environments/Main.json")).unwrap());
    let authority = Authority::new();
    let check = |url: &str, is_trusted: bool| {
        let start = Start::command(&["check", "--online"]).env("API_URL", url);
        let pairs = json!([{"client_side_key": CLIENT, "server_side_key": "ser.secret-key"}]);
        let start = start.env("ENVIRONMENT_KEY_PAIRS", &pairs.to_string());
        let ca = start.scratch().write("ca.pem", authority.pem());
        let start = if is_trusted { start.env("API_CA_FILE", &ca.display().to_string()) } else { start };
        let (code, text) = start.run();
        assert!(!text.contains("secret-key"), "{text}");
        (code, text)
    };
    let good = TlsFront::start(upstream.address(), &authority.issue("127.0.0.1"), None);
    let (code, text) = check(&good.api_url(), true);
    assert_eq!(code, Some(0), "{text}");
    let other = TlsFront::start(upstream.address(), &authority.issue("other.example"), None);
    let demanding = TlsFront::start(upstream.address(), &authority.issue("127.0.0.1"), Some(&authority));
    let plain = format!("https://{}/api/v1/", plain_http());
    for (url, is_trusted, words) in [
        (good.api_url(), false, "self-signed, or its certificate authority is unknown: set api_ca_file"),
        (other.api_url(), true, "for another host name"),
        (demanding.api_url(), true, "api_client_certificate"),
        (plain, true, "use http:// instead of https://"),
    ] {
        let (code, text) = check(&url, is_trusted);
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains("FAIL  environment") && text.contains(words), "{words} in {text}");
    }
}
