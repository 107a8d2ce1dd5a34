//! The fault table: failures of upstream.
//!
//! Each row is a test. During the fault the responses are byte for byte those from before, the process keeps
//! running, and the log names the fault once. After the fault a new document is served within one step of the
//! backoff. `make faults` prints the results.
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::document::{CLIENT_KEY, SERVER_KEY, document, override_of, value};
use crate::support::tls::{Authority, TlsFront};
use crate::support::{Delivery, PATIENCE, Proxy, Reply, Shim, Start, Upstream, eventually};

const INTERVAL: Duration = Duration::from_millis(200);
const TIMEOUT: Duration = Duration::from_millis(500);
/// Allowance for a loaded machine.
const SLACK: Duration = Duration::from_secs(2);

/// One row.
struct Row {
    name: &'static str,
    upstream: Upstream,
    proxy: Proxy,
    before: Vec<Vec<u8>>,
}

/// The responses before, during and after the fault; heads without their date.
fn answers(proxy: &Proxy) -> Vec<Vec<u8>> {
    let identity = r#"{"identifier": "vip", "traits": [{"trait_key": "age", "trait_value": 20}]}"#;
    [
        proxy.get("/api/v1/flags/", CLIENT_KEY),
        proxy.get("/api/v1/flags/?feature=version", SERVER_KEY),
        proxy.post("/api/v1/identities/", CLIENT_KEY, identity),
        proxy.get("/api/v1/environment-document/", SERVER_KEY),
    ]
    .into_iter()
    .map(|answer| {
        let mut bytes = answer.status.to_string().into_bytes();
        for (name, value) in answer.headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("date")) {
            bytes.extend_from_slice(format!("\n{name}: {value}").as_bytes());
        }
        bytes.push(b'\n');
        bytes.extend_from_slice(&answer.body);
        bytes
    })
    .collect()
}

/// The value of feature `version`, or the status.
fn version(proxy: &Proxy) -> Result<u64, u16> {
    let answer = proxy.get("/api/v1/flags/?feature=version", CLIENT_KEY);
    if answer.status != 200 {
        return Err(answer.status);
    }
    Ok(answer.json()["feature_state_value"].as_u64().expect("a number"))
}

fn serve(api_url: &str) -> Start {
    Start::serve()
        .environment(CLIENT_KEY, SERVER_KEY)
        .set("api_url", api_url)
        .set("api_poll_frequency_seconds", INTERVAL.as_secs_f64())
        .set("api_poll_timeout_seconds", TIMEOUT.as_secs_f64())
        // Every poll is unconditional, so that each one meets the fault.
        .set("api_full_refresh_seconds", 0.01)
}

impl Row {
    /// Upstream works and its document is served.
    fn well(name: &'static str) -> Self {
        let upstream = Upstream::start();
        upstream.document(SERVER_KEY, document(1));
        let proxy = serve(&upstream.api_url()).ready();
        Self::with(name, upstream, proxy)
    }

    fn with(name: &'static str, upstream: Upstream, proxy: Proxy) -> Self {
        assert_eq!(version(&proxy), Ok(1));
        let before = answers(&proxy);
        Self { name, upstream, proxy, before }
    }

    /// Waits until the fault is logged, and for two more polls; then responses must be as before.
    fn during(&self) -> String {
        let line = self.proxy.wait_for_log("environment_poll_failed");
        // Two more polls, if they reach upstream.
        let until = Instant::now() + INTERVAL * 4;
        while Instant::now() < until {
            assert_eq!(answers(&self.proxy), self.before, "{}: the answers during the fault", self.name);
        }
        assert_eq!(self.proxy.get("/proxy/health/liveness", "").status, 200);
        let state = self.proxy.get("/proxy/health", "").json()["environments"][0]["last_error"].clone();
        assert!(state.is_string(), "{}: health shows the error, not {state}", self.name);
        line
    }

    /// After the fault: a new document must be served in time, and the log must be short.
    fn after(self, line: &str) {
        let failures = self.proxy.log().matches("environment_poll_failed").count();
        assert_eq!(failures, 1, "{}: one line per change of state\n{}", self.name, self.proxy.log());
        let started = Instant::now();
        self.upstream.clear();
        self.upstream.document(SERVER_KEY, document(2));
        self.upstream.listen_if_not();
        self.recovers(line, started);
    }

    fn recovers(self, line: &str, started: Instant) {
        eventually("the new document is served", || (version(&self.proxy) == Ok(2)).then_some(()));
        let took = started.elapsed();
        self.proxy.wait_for_log("environment_recovered");
        // The fault lasted about a second: at most three polls failed, so a step is at most eight intervals.
        let most = INTERVAL * 8 + TIMEOUT + SLACK;
        assert!(took < most, "{}: recovered after {took:?}, more than {most:?}", self.name);
        let said = line.split("error=").nth(1).unwrap_or(line);
        let said: String = said.chars().take(96).collect();
        println!(
            "fault | {:<34} | served version 1, byte for byte | version 2 after {:>4} ms | {said}",
            self.name,
            took.as_millis()
        );
    }

    /// The complete row for a fault that is a response.
    fn answered(name: &'static str, reply: Reply) {
        let row = Self::well(name);
        row.upstream.on_key(SERVER_KEY, reply);
        let line = row.during();
        row.after(&line);
    }
}

// --- connections ---

#[test]
fn connection_refused() {
    let row = Row::well("connection refused");
    row.upstream.refuse();
    let line = row.during();
    assert!(line.contains("connection refused"), "{line}");
    row.after(&line);
}

#[test]
fn reset_in_the_body() {
    Row::answered("reset in the body", Reply::json(document(9)).delivered(Delivery::ResetAfter(100)));
}

#[test]
fn end_in_the_body() {
    Row::answered("end in the body", Reply::json(document(9)).delivered(Delivery::EndAfter(100)));
}

#[test]
fn response_that_is_not_http() {
    Row::answered("no answer of HTTP", Reply::json("SSH-2.0-OpenSSH_9.6\r\n").delivered(Delivery::Raw));
}

#[test]
fn dns_failure() {
    let shim = Shim::new();
    let upstream = Upstream::start();
    upstream.document(SERVER_KEY, document(1));
    let api_url = format!("http://localhost:{}/api/v1/", upstream.address().port());
    let proxy = shim.preload(serve(&api_url)).ready();
    let row = Row::with("DNS failure", upstream, proxy);
    shim.dns_is_down(true);
    // A persistent connection needs no name resolution.
    row.upstream.close_connections();
    let line = row.during();
    assert!(line.contains("does not resolve"), "{line}");
    shim.dns_is_down(false);
    row.after(&line);
}

#[test]
fn tls_refused() {
    let (ours, other) = (Authority::new(), Authority::new());
    let upstream = Upstream::start();
    upstream.document(SERVER_KEY, document(1));
    let front = TlsFront::start(upstream.address(), &ours.issue("127.0.0.1"), None);
    let start = serve(&front.api_url());
    let ca_file = start.scratch().write("ca.pem", ours.pem());
    let proxy = start.set("api_ca_file", ca_file.to_str().expect("a plain path")).ready();
    let row = Row::with("TLS refused (unknown authority)", upstream, proxy);
    front.show(&other.issue("127.0.0.1"));
    let line = row.during();
    assert!(line.contains("TLS failed"), "{line}");
    front.show(&ours.issue("127.0.0.1"));
    row.after(&line);
}

#[test]
fn hang_before_the_head() {
    Row::answered("hang before the head", Reply::json(document(9)).delivered(Delivery::HangBeforeHead));
}

#[test]
fn hang_in_the_body() {
    Row::answered("hang in the body", Reply::json(document(9)).delivered(Delivery::HangAfter(100)));
}

#[test]
fn slow_drip() {
    let drip = Delivery::Drip(1, Duration::from_millis(100));
    Row::answered("slow drip in the body", Reply::json(document(9)).delivered(drip));
}

#[test]
fn endless_response_without_body() {
    let document = document(9);
    let extension = "5;".to_owned();
    let trailer = format!("{:x}\r\n{document}\r\n0\r\n", document.len());
    for (begun, more) in [(extension, "x"), (trailer, "X: y\r\n")] {
        let upstream = Upstream::start();
        upstream.document(SERVER_KEY, self::document(1));
        // Such a response is read for a time that depends on the largest document.
        let proxy = serve(&upstream.api_url()).set("api_document_bytes_max", 64 * 1024).ready();
        let row = Row::with("answer that goes on without a body", upstream, proxy);
        row.upstream.on_key(SERVER_KEY, Reply::events(begun).with("transfer-encoding", "chunked"));
        let stop = AtomicBool::new(false);
        let line = std::thread::scope(|scope| {
            scope.spawn(|| {
                let deadline = Instant::now() + PATIENCE;
                while !stop.load(Ordering::Relaxed) && Instant::now() < deadline {
                    row.upstream.push("/api/v1/environment-document/", more);
                    std::thread::park_timeout(Duration::from_millis(20));
                }
            });
            let line = row.during();
            stop.store(true, Ordering::Relaxed);
            line
        });
        assert!(line.contains("did not end"), "{line}");
        row.after(&line);
    }
}

// --- redirects ---

#[test]
fn redirect_to_the_same_origin_is_followed() {
    for status in [301, 302, 303, 307, 308] {
        let row = Row::well("redirect to the same origin");
        row.upstream.clear();
        let moved = Reply::json(document(2));
        row.upstream.rule(move |request| {
            (request.path() == "/moved" && request.key() == SERVER_KEY).then(|| moved.clone())
        });
        row.upstream.on("/api/v1/environment-document/", Reply::redirect(status, "/moved"));
        eventually("the moved document is served", || (version(&row.proxy) == Ok(2)).then_some(()));
    }
    println!("fault | {:<34} | followed, version 2 served |", "301/302/303/307/308 same origin");
}

#[test]
fn redirect_to_another_origin_never_carries_the_key() {
    for status in [301, 307, 308] {
        let row = Row::well("301/307/308 other origin");
        let other = Upstream::start();
        other.rule(|request| Some(Reply::new(if request.key().is_empty() { 403 } else { 200 }, document(9))));
        let target = format!("{}/stolen", other.origin());
        row.upstream.on_key(SERVER_KEY, Reply::redirect(status, &target));
        let line = row.during();
        assert!(line.contains("not sent to another origin"), "{line}");
        assert!(other.requests().iter().all(|request| request.key().is_empty()), "the key left its origin");
        assert!(!other.requests().is_empty());
        row.after(&line);
    }
}

#[test]
fn redirect_loop() {
    Row::answered("redirect to itself", Reply::redirect(302, "/api/v1/environment-document/"));
}

#[test]
fn redirect_to_unsupported_scheme() {
    Row::answered("redirect to another scheme", Reply::redirect(302, "ftp://example.com/"));
}

// --- statuses ---

#[test]
fn not_modified_without_a_document() {
    let upstream = Upstream::start();
    upstream.on_key(SERVER_KEY, Reply::new(304, ""));
    let proxy = serve(&upstream.api_url()).start();
    let line = proxy.wait_for_log("environment_poll_failed");
    assert_eq!(version(&proxy), Err(502), "there is no document, which is not the client's fault");
    assert_eq!(proxy.get("/proxy/health/readiness", "").status, 503);
    upstream.clear();
    upstream.document(SERVER_KEY, document(2));
    let started = Instant::now();
    let row = Row { name: "304 without a document", upstream, proxy, before: Vec::new() };
    row.recovers(&line, started);
}

#[test]
fn unauthorized() {
    Row::answered("401", Reply::new(401, r#"{"detail":"no"}"#));
}

#[test]
fn forbidden_names_the_environment_and_likely_causes() {
    let row = Row::well("403");
    row.upstream.on_key(SERVER_KEY, Reply::new(403, r#"{"detail":"Invalid or missing Environment Key"}"#));
    let line = row.during();
    for part in [&CLIENT_KEY[..6], "`ser.`", "api_url", "rotated"] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    assert!(!line.contains(SERVER_KEY), "a secret is in {line}");
    row.after(&line);
}

#[test]
fn not_found() {
    Row::answered("404", Reply::new(404, "<h1>Not Found</h1>"));
}

#[test]
fn too_many_requests_with_retry_after() {
    let row = Row::well("429 with Retry-After: 2");
    row.upstream.on_key(SERVER_KEY, Reply::new(429, "").with("retry-after", "2"));
    let line = row.during();
    let polls = row.upstream.polls();
    let limited = Instant::now();
    row.upstream.clear();
    row.upstream.document(SERVER_KEY, document(2));
    row.upstream.wait("the next poll", |requests| requests.len() > polls);
    let waited = row.upstream.requests()[polls].at - row.upstream.requests()[polls - 1].at;
    assert!(waited >= Duration::from_secs(2), "Retry-After of 2 s, polled after {waited:?}");
    row.recovers(&line, limited);
}

#[test]
fn internal_error() {
    Row::answered("500", Reply::new(500, "Internal Server Error"));
}

#[test]
fn bad_gateway() {
    Row::answered("502", Reply::new(502, "<html>Bad Gateway</html>"));
}

// --- bodies ---

#[test]
fn empty_body() {
    Row::answered("200, empty body", Reply::json(""));
}

#[test]
fn html() {
    Row::answered("200, HTML", Reply::json("<!doctype html><title>Sign in to the Wi-Fi</title>"));
}

#[test]
fn truncated_json() {
    let whole = document(9);
    Row::answered("200, truncated JSON", Reply::json(&whole[..whole.len() - 2]));
}

#[test]
fn truncated_gzip() {
    let mut reply = Reply::json(document(9)).gzip();
    reply.body = reply.body[..reply.body.len() / 2].into();
    Row::answered("200, truncated gzip", reply);
}

#[test]
fn unrequested_content_coding() {
    let row = Row::well("200, Content-Encoding: br");
    row.upstream.on_key(SERVER_KEY, Reply::json(b"\x0b\x02\x80hello\x03").with("content-encoding", "br"));
    let line = row.during();
    assert!(line.contains("Content-Encoding br"), "{line}");
    row.after(&line);
}

#[test]
fn gzip_bomb() {
    // 64 MiB of spaces in 64 KiB; the limit is 16 MiB.
    let bomb = Reply::json(" ".repeat(64 << 20)).gzip();
    assert!(bomb.body.len() < 100 << 10);
    let upstream = Upstream::start();
    upstream.document(SERVER_KEY, document(1));
    let proxy = serve(&upstream.api_url()).set("api_document_bytes_max", 16 << 20).ready();
    let row = Row::with("200, gzip bomb", upstream, proxy);
    row.upstream.on_key(SERVER_KEY, bomb);
    let line = row.during();
    assert!(line.contains("api_document_bytes_max"), "{line}");
    row.after(&line);
}

#[test]
fn larger_than_allowed() {
    let upstream = Upstream::start();
    upstream.document(SERVER_KEY, document(1));
    let proxy = serve(&upstream.api_url()).set("api_document_bytes_max", 1 << 20).ready();
    let row = Row::with("200, 2 MiB where 1 MiB is allowed", upstream, proxy);
    row.upstream.on_key(SERVER_KEY, Reply::json(" ".repeat(2 << 20)));
    let line = row.during();
    row.after(&line);
}

#[test]
fn array() {
    Row::answered("200, array", Reply::json("[]"));
}

#[test]
fn null() {
    Row::answered("200, null", Reply::json("null"));
}

#[test]
fn empty_object() {
    Row::answered("200, {}", Reply::json("{}"));
}

#[test]
fn wrong_types_in_each_required_member() {
    let row = Row::well("200, wrong types");
    let mut changed = 0;
    for pointer in [
        "/api_key",
        "/project",
        "/project/segments",
        "/project/segments/0/rules",
        "/feature_states",
        "/feature_states/0",
        "/feature_states/0/feature",
        "/feature_states/0/feature/id",
        "/feature_states/0/feature/name",
        "/feature_states/0/enabled",
        "/identity_overrides/0/identifier",
    ] {
        let mut document = value(9);
        let member = document.pointer_mut(pointer).expect("it is there");
        *member = if member.is_object() { serde_json::json!(3.5) } else { serde_json::json!({}) };
        row.upstream.on_key(SERVER_KEY, Reply::json(document.to_string()));
        let polls = row.upstream.polls();
        row.upstream.wait("a poll", |requests| requests.len() > polls);
        changed += 1;
        assert_eq!(answers(&row.proxy), row.before, "a wrong type at {pointer}");
        // Recovers in between, or the backoff grows with each.
        row.upstream.document(SERVER_KEY, document_one());
        let polls = row.upstream.polls();
        row.upstream.wait("a poll", |requests| requests.len() > polls + 1);
        let log = row.proxy.log();
        let lines = log.matches("environment_poll_failed").count();
        assert_eq!(lines, changed, "a wrong type at {pointer} was accepted\n{log}");
        let line = log.lines().rfind(|line| line.contains("environment_poll_failed")).unwrap_or_default();
        let path = pointer.rsplit('/').next().unwrap_or_default();
        assert!(
            line.contains('$') && (line.contains(path) || path.parse::<u8>().is_ok()),
            "{pointer}: {line}"
        );
    }
    println!(
        "fault | {:<34} | served version 1, byte for byte | each of {changed} refused with its JSON path |",
        row.name
    );
}

fn document_one() -> String {
    document(1)
}

#[test]
fn nesting_a_million_deep() {
    for (open, close) in [("[", "]"), (r#"{"a":"#, "}")] {
        let deep = format!(r#"{{"feature_states": {}1{}}}"#, open.repeat(1_000_000), close.repeat(1_000_000));
        Row::answered("200, nesting 1,000,000 deep", Reply::json(deep));
    }
}

#[test]
fn duplicate_members_count_as_in_python() {
    let row = Row::well("200, duplicate members");
    // The last member of a name is used; such a document is valid.
    let doubled = document(2).replacen('{', r#"{"feature_states": 5, "#, 1);
    row.upstream.on_key(SERVER_KEY, Reply::json(doubled));
    eventually("the document is served", || (version(&row.proxy) == Ok(2)).then_some(()));
    println!("fault | {:<34} | last member counts, version 2 served |", row.name);
}

// --- pages ---

fn first_page(link: &str) -> Reply {
    Reply::json(document(9)).with("link", &format!("<{link}>; rel=\"next\""))
}

#[test]
fn page_loop() {
    Row::answered("page loop", first_page("/api/v1/environment-document/?page_id=1"));
}

#[test]
fn more_pages_than_allowed() {
    let upstream = Upstream::start();
    upstream.document(SERVER_KEY, document(1));
    // A thousand pages take a while, and none may time out on a loaded machine.
    let proxy = serve(&upstream.api_url()).set("api_poll_timeout_seconds", 5).ready();
    let row = Row::with("pages without end", upstream, proxy);
    let mut page = 0;
    row.upstream.rule(move |request| {
        page += 1;
        (request.key() == SERVER_KEY).then(|| first_page(&format!("?page_id={page}")))
    });
    let line = row.during();
    assert!(line.contains("pages"), "{line}");
    row.after(&line);
}

#[test]
fn page_at_another_origin() {
    let other = Upstream::start();
    let link = format!("{}/api/v1/environment-document/?page_id=1", other.origin());
    Row::answered("page at another origin", first_page(&link));
    assert!(other.requests().is_empty(), "the key may have left its origin");
}

#[test]
fn page_that_fails() {
    let row = Row::well("500 on page 2");
    row.upstream.rule(|request| {
        if request.target.contains("page_id") {
            return Some(Reply::new(500, ""));
        }
        (request.key() == SERVER_KEY).then(|| first_page("?page_id=1"))
    });
    let line = row.during();
    row.after(&line);
}

#[test]
fn page_that_is_broken() {
    let row = Row::well("broken page 2");
    row.upstream.rule(|request| {
        if request.target.contains("page_id") {
            let page = serde_json::json!({"identity_overrides": [override_of("a", 1)]}).to_string();
            return Some(Reply::json(&page[..page.len() - 3]));
        }
        (request.key() == SERVER_KEY).then(|| first_page("?page_id=1"))
    });
    let line = row.during();
    row.after(&line);
}

// --- time ---

#[test]
fn clock_jumps() {
    let shim = Shim::new();
    let upstream = Upstream::start();
    upstream.document(SERVER_KEY, document(1));
    let proxy = shim.preload(serve(&upstream.api_url())).ready();
    let row = Row::with("clock jumps", upstream, proxy);
    for (jump, next) in [(86_400 * 365, 2), (-86_400 * 365, 3), (0, 4)] {
        shim.jump(jump);
        row.upstream.wait_poll();
        row.upstream.document(SERVER_KEY, document(next));
        let started = Instant::now();
        eventually("the new document is served", || {
            (version(&row.proxy) == Ok(u64::from(next))).then_some(())
        });
        assert!(started.elapsed() < INTERVAL * 3 + SLACK, "polling continues after a jump of {jump} s");
        eventually("readiness is green", || {
            (row.proxy.get("/proxy/health/readiness", "").status == 200).then_some(())
        });
    }
    assert_eq!(row.proxy.log().matches("environment_poll_failed").count(), 0);
    println!("fault | {:<34} | polling and readiness continue, forwards and backwards |", row.name);
}
