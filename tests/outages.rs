//! Readiness during outages, edits hidden by a 304, and sources that were never loaded.
//!
//! `make outages` prints the table of docs/outages.md at a tenth of the default times, or with
//! `OUTAGE_SCALE=1` in real time.
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use serde_json::json;

use crate::support::document::{CLIENT_KEY, SERVER_KEY, document, for_key};
use crate::support::{Proxy, Reply, Start, Upstream, eventually};

const DOCUMENT: &str = "/api/v1/environment-document/";
const CONFIG: &str = "/api/v1/proxy/config/";

fn status(proxy: &Proxy, key: &str) -> u16 {
    proxy.get("/api/v1/flags/", key).status
}

fn readiness(proxy: &Proxy) -> u16 {
    proxy.get("/proxy/health/readiness", "").status
}

// --- outages ---

/// One row: an outage that begins with a poll, the worst case. Returns how long readiness failed.
fn outage(length: Duration, retry_after: bool, scale: f64) -> Duration {
    let upstream = Upstream::start();
    upstream.document(SERVER_KEY, document(1));
    let proxy = Start::polling(&upstream.api_url())
        .set("api_poll_frequency_seconds", 10.0 * scale)
        .set("api_poll_timeout_seconds", 5.0 * scale)
        .set("health_check.environment_update_grace_period_seconds", 30.0 * scale)
        .ready();
    let began = Arc::new(Mutex::new(None));
    let noted = Arc::clone(&began);
    upstream.rule(move |request| {
        let began: Instant = *noted.lock().unwrap().get_or_insert_with(Instant::now);
        let is_down = request.path() == DOCUMENT && began.elapsed() < length;
        let down = Reply::new(503, "");
        is_down.then(|| if retry_after { down.with("retry-after", "120") } else { down })
    });
    let (mut red, mut last) = (Duration::ZERO, Instant::now());
    loop {
        std::thread::park_timeout(Duration::from_secs_f64(0.05 * scale));
        let (is_red, now) = (readiness(&proxy) == 503, Instant::now());
        red += if is_red { now - last } else { Duration::ZERO };
        last = now;
        let is_over = began.lock().unwrap().is_some_and(|began| began.elapsed() > length);
        if is_over && !is_red && proxy.log().contains("environment_recovered") {
            return red;
        }
        let lasted = began.lock().unwrap().map_or(Duration::ZERO, |began| began.elapsed());
        assert!(lasted < length + Duration::from_secs(60), "no recovery:\n{}", proxy.log());
    }
}

#[test]
fn outage_fails_readiness_only_beyond_grace_and_one_retry() {
    let scale = std::env::var("OUTAGE_SCALE").ok().and_then(|text| text.parse().ok()).unwrap_or(0.1);
    let lengths = [1.0, 15.0, 25.0, 37.0, 60.0, 120.0];
    let rows = lengths.into_iter().flat_map(|length| [(length, false), (length, true)]);
    let measured: Vec<(f64, bool, f64)> = std::thread::scope(|scope| {
        let run = |(length, retry_after)| {
            let length_scaled = Duration::from_secs_f64(length * scale);
            scope
                .spawn(move || (length, retry_after, outage(length_scaled, retry_after, scale).as_secs_f64()))
        };
        let threads: Vec<_> = rows.map(run).collect();
        threads.into_iter().map(|thread| thread.join().expect("a row")).collect()
    });
    for (length, retry_after, red) in measured {
        let what = if retry_after { "503, Retry-After: 120" } else { "503" };
        println!("outage | {length:>4} s | {what:<21} | red {:.1} s", red / scale);
        // Ready for 30 s after the first failure, then not until the poll after the end of the outage. The
        // slack is for a loaded machine.
        let most = (length - 30.0).max(0.0) * scale + (10.0 * scale).max(2.0) + 2.0;
        assert!(red < most, "{length} s, {what}: red for {red} s, more than {most}");
        assert!(length > 25.0 || red == 0.0 || scale < 1.0, "{length} s, {what}: red for {red} s");
    }
}

#[test]
fn long_retry_after_keeps_readiness_green() {
    for status in [503, 429] {
        let upstream = Upstream::start();
        upstream.document(SERVER_KEY, document(1));
        let proxy = Start::polling(&upstream.api_url())
            .set("api_poll_frequency_seconds", 1)
            .set("api_poll_timeout_seconds", 3)
            .set("health_check.environment_update_grace_period_seconds", 6)
            .ready();
        upstream.document(SERVER_KEY, document(2));
        let mut refusals = 1;
        upstream.rule(move |request| {
            let is_refused = request.path() == DOCUMENT && refusals > 0;
            refusals -= i32::from(is_refused);
            is_refused.then(|| Reply::new(status, "").with("retry-after", "120"))
        });
        proxy.wait_for_log("environment_poll_failed");
        eventually("upstream has recovered", || {
            assert_eq!(readiness(&proxy), 200, "{status}\n{}", proxy.log());
            (proxy.version_of(CLIENT_KEY) == Some(2)).then_some(())
        });
    }
}

#[test]
fn cold_start_limits_retry_after() {
    let upstream = Upstream::start();
    upstream.document(SERVER_KEY, document(1));
    upstream.document("ser.a", for_key("a", 1).to_string());
    let key = json!({"key": "ser.a", "active": true, "expires_at": null});
    let listed = json!([{"id": 1, "name": "a", "client_side_key": "a", "server_side_keys": [key]}]);
    upstream.on(CONFIG, Reply::json(listed.to_string()));
    let mut refused = Vec::new();
    upstream.rule(move |request| {
        let first = !refused.contains(&request.path().to_owned());
        refused.push(request.path().to_owned());
        first.then(|| Reply::new(503, "").with("retry-after", "120"))
    });
    let proxy = Start::polling(&upstream.api_url()).set("proxy_key", "proxy-key-of-a-test").start();
    eventually("both are served", || {
        (status(&proxy, CLIENT_KEY) == 200 && status(&proxy, "a") == 200).then_some(())
    });
    assert_eq!(status(&proxy, "unknown"), 401, "everything was read");
}

// --- edits that a 304 hides ---

/// The state of upstream: the document, its `Last-Modified`, and the clock.
#[derive(Clone)]
struct Dated {
    document: String,
    modified: SystemTime,
    now: SystemTime,
}

/// Answers as core does, by whole seconds, with a `Date`.
fn dated(upstream: &Upstream, state: &Arc<Mutex<Dated>>) {
    let state = Arc::clone(state);
    upstream.rule(move |request| {
        let Dated { document, modified, now } = state.lock().unwrap().clone();
        let since = request.header("if-modified-since").and_then(|text| httpdate::parse_http_date(text).ok());
        let reply = if since.is_some_and(|since| modified <= since) {
            Reply::new(304, "")
        } else {
            Reply::json(document)
        };
        let reply = reply.with("last-modified", &httpdate::fmt_http_date(modified));
        (request.path() == DOCUMENT).then(|| reply.with("date", &httpdate::fmt_http_date(now)))
    });
}

#[test]
fn second_edit_within_a_second_is_served_by_the_second_poll() {
    let upstream = Upstream::start();
    let at = |seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds);
    let state = Arc::new(Mutex::new(Dated { document: document(1), modified: at(0), now: at(60) }));
    dated(&upstream, &state);
    let proxy = Start::polling(&upstream.api_url()).with_admin().ready();
    let is_conditional = |request: &crate::support::Recorded| request.header("if-modified-since").is_some();
    upstream.wait("a conditional poll", |requests| requests.iter().any(is_conditional));
    *state.lock().unwrap() = Dated { document: document(2), modified: at(100), now: at(100) };
    eventually("the first edit is served", || (proxy.version_of(CLIENT_KEY) == Some(2)).then_some(()));
    let edited = upstream.polls();
    // In the same second, with a poll between them.
    *state.lock().unwrap() = Dated { document: document(3), modified: at(100), now: at(101) };
    eventually("the second edit is served", || (proxy.version_of(CLIENT_KEY) == Some(3)).then_some(()));
    let polls = upstream.requests();
    assert!(polls[edited..].iter().take(2).any(|poll| !is_conditional(poll)), "within two polls");
    // Old enough: one more complete response, then conditional polls; the same bytes are not published.
    let published = proxy.metric("edge_proxy_snapshots_published_total");
    let whole = upstream.polls();
    upstream.wait("four polls", |requests| requests.len() >= whole + 4);
    assert!(!upstream.requests()[whole + 1..].iter().any(is_conditional), "still too recent");
    state.lock().unwrap().now = at(102);
    let old = upstream.polls();
    upstream.wait("conditional polls", |requests| {
        requests[old..].iter().filter(|r| is_conditional(r)).count() > 2
    });
    assert_eq!(proxy.metric("edge_proxy_snapshots_published_total"), published, "the same bytes");
    assert_eq!(proxy.version_of(CLIENT_KEY), Some(3));
}

#[test]
fn unchanged_polls_publish_nothing_and_keep_readiness_green() {
    let upstream = Upstream::start();
    upstream.on(DOCUMENT, Reply::json(document(1)));
    let proxy = Start::polling(&upstream.api_url())
        .set("api_full_refresh_seconds", 0.01)
        .set("health_check.environment_update_grace_period_seconds", 5)
        .with_admin()
        .ready();
    let updated = |proxy: &Proxy| {
        proxy.get("/proxy/health", "").json()["environments"][0]["last_successful_update"].to_string()
    };
    let (published, before) = (proxy.metric("edge_proxy_snapshots_published_total"), updated(&proxy));
    let polls = upstream.polls();
    upstream.wait("twenty polls", |requests| requests.len() >= polls + 20);
    assert!(upstream.requests().iter().all(|poll| poll.header("if-modified-since").is_none()));
    assert_eq!(proxy.metric("edge_proxy_snapshots_published_total"), published);
    assert_eq!(proxy.log().matches("environment_updated").count(), 1, "{}", proxy.log());
    assert!(updated(&proxy) > before, "health shows the last poll");
}

// --- sources that were not read yet ---

#[test]
fn missing_document_at_start_exits_with_66() {
    let missing = "/does-not-exist/environment.json";
    for start in [
        Start::serve().arg("--document").arg(missing),
        Start::serve().set("documents", json!([missing])),
        Start::serve().document(CLIENT_KEY, SERVER_KEY, missing),
        Start::demo().arg("--document").arg(missing),
        Start::serve().arg("--document").arg("/etc/passwd/environment.json"),
    ] {
        let (code, text) = start.run();
        assert_eq!(code, Some(66), "{text}");
        assert!(text.contains("environment.json: No") && text.contains("--document"), "{text}");
    }
}

#[test]
fn invalid_document_is_502_for_every_key() {
    let start = Start::serve();
    let path = start.scratch().write("environment.json", r#"{"api_key": "a", "#);
    let proxy = start.arg("--document").arg(&path).start();
    let line = proxy.wait_for_log("document_refused");
    assert!(line.contains("environment.json"), "{line}");
    for key in [CLIENT_KEY, SERVER_KEY, "unknown"] {
        assert_eq!(status(&proxy, key), 502, "{key}");
        assert_eq!(proxy.get("/api/v1/environment-document/", key).status, 502, "{key}");
    }
    assert_eq!(proxy.get(&format!("/sse/environments/{CLIENT_KEY}/stream"), "").status, 502);
    assert_eq!(proxy.get("/api/v1/flags/", "").status, 401, "a missing key is not valid");
    assert_eq!(readiness(&proxy), 503);
    proxy.scratch().write("environment.json", document(1));
    eventually("the document is read again", || (proxy.version_of(CLIENT_KEY) == Some(1)).then_some(()));
    assert_eq!((status(&proxy, "unknown"), readiness(&proxy)), (401, 200));
    // From now on the last good document is served.
    proxy.scratch().write("environment.json", "{");
    eventually("the document is refused", || {
        (proxy.log().matches("document_refused").count() == 2).then_some(())
    });
    assert_eq!((status(&proxy, CLIENT_KEY), status(&proxy, "unknown")), (200, 401));
}

#[test]
fn unknown_key_is_502_until_discovery_was_read() {
    let upstream = Upstream::start();
    upstream.document(SERVER_KEY, document(1));
    upstream.on(CONFIG, Reply::new(500, ""));
    let proxy = Start::polling(&upstream.api_url()).set("proxy_key", "proxy-key-of-a-test").start();
    proxy.wait_for_log("discovery_failed");
    eventually("the pair is served", || (proxy.version_of(CLIENT_KEY) == Some(1)).then_some(()));
    for key in ["a", "ser.a"] {
        let answer = proxy.get("/api/v1/flags/", key);
        assert_eq!((answer.status, answer.json()["status"].as_str()), (502, Some("unavailable")), "{key}");
    }
    // A response without environments is valid.
    upstream.on(CONFIG, Reply::json("[]"));
    eventually("discovery was read", || (status(&proxy, "a") == 401).then_some(()));
    assert_eq!(proxy.version_of(CLIENT_KEY), Some(1));
}

#[test]
fn reload_naming_a_missing_document_is_rejected() {
    let start = Start::serve();
    let path = start.scratch().write("environment.json", document(1));
    let proxy = start.document(CLIENT_KEY, SERVER_KEY, &path).ready();
    let mut config = proxy.config().clone();
    config["documents"] = json!(["/does-not-exist/environment.json"]);
    proxy.scratch().write("config.json", config.to_string());
    proxy.signal("HUP");
    let line = proxy.wait_for_log("configuration_refused");
    assert!(line.contains("/does-not-exist/environment.json"), "{line}");
    assert_eq!((status(&proxy, CLIENT_KEY), status(&proxy, "unknown")), (200, 401));
}
