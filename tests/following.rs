//! Beyond polling: event streams, trees of proxies, discovery, counts going up, and TLS on the
//! way out.
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::document::{CLIENT_KEY, SERVER_KEY, document, for_key};
use crate::support::tls::{Authority, TlsFront};
use crate::support::{Proxy, Reply, Scratch, Start, Upstream, eventually};

const STREAM: &str = "/sse/environments/client-side-key-of-a-test/stream";

/// `updated_at` of version 0 of the test document: the beginning of 2026.
const EPOCH: u64 = 1_767_225_600;

fn serve(api_url: &str) -> Start {
    Start::serve()
        .environment(CLIENT_KEY, SERVER_KEY)
        .set("api_url", api_url)
        .set("api_poll_frequency_seconds", 0.1)
        .set("api_poll_timeout_seconds", 2)
}

fn version_of(proxy: &Proxy, key: &str) -> Option<u64> {
    let answer = proxy.get("/api/v1/flags/?feature=version", key);
    (answer.status == 200).then(|| answer.json()["feature_state_value"].as_u64().expect("a number"))
}

fn event(version: u32) -> String {
    format!("event: environment_updated\ndata: {{\"updated_at\": {}.0}}\n\n", EPOCH + u64::from(version))
}

// --- realtime ---

fn following(upstream: &Upstream) -> Proxy {
    let proxy = serve(&upstream.api_url())
        // Polling alone would take an hour.
        .set("api_poll_frequency_seconds", 3600)
        .set("realtime", json!({"enabled": true, "url": format!("{}/", upstream.origin())}))
        .ready();
    eventually("the stream is open", || (upstream.streams(STREAM) == 1).then_some(()));
    proxy
}

#[test]
fn an_event_is_served_within_milliseconds() {
    let upstream = Upstream::start();
    upstream.document(SERVER_KEY, document(1));
    upstream.on(STREAM, Reply::events("retry: 15000\n\n: hello\n\n"));
    let proxy = following(&upstream);
    let mut took = Vec::new();
    for version in 2..32 {
        upstream.document(SERVER_KEY, document(version));
        let started = Instant::now();
        assert_eq!(upstream.push(STREAM, &event(version)), 1);
        eventually("the new document is served", || {
            (version_of(&proxy, CLIENT_KEY) == Some(version.into())).then_some(())
        });
        took.push(started.elapsed());
    }
    took.sort_unstable();
    println!("event to served value: median {:?}, worst {:?}", took[took.len() / 2], took[took.len() - 1]);
    // On a machine full of other work only `make bench-swap` can judge it.
    let is_bench = !cfg!(debug_assertions);
    assert!(!is_bench || took[took.len() / 2] < Duration::from_millis(50), "median of {took:?}");
    assert!(
        upstream.requests_for(STREAM).iter().all(|request| request.key().is_empty()),
        "no key on the stream"
    );
}

#[test]
fn an_event_is_followed_until_the_document_is_that_new_and_old_ones_are_not() {
    let upstream = Upstream::start();
    upstream.document(SERVER_KEY, document(5));
    upstream.on(STREAM, Reply::events(""));
    let proxy = following(&upstream);
    let polls = upstream.polls();
    upstream.push(STREAM, &event(5));
    upstream.push(STREAM, &event(4));
    // Upstream's own cache is behind its events: asked again until it has caught up.
    upstream.push(STREAM, &event(6));
    upstream.wait("three polls", |requests| {
        requests.iter().filter(|request| request.path().ends_with("/environment-document/")).count()
            >= polls + 3
    });
    assert_eq!(version_of(&proxy, CLIENT_KEY), Some(5));
    upstream.document(SERVER_KEY, document(6));
    eventually("the new document is served", || (version_of(&proxy, CLIENT_KEY) == Some(6)).then_some(()));
    let settled = upstream.polls();
    upstream.push(STREAM, &event(6));
    upstream.push(STREAM, &event(5));
    std::thread::park_timeout(Duration::from_millis(300));
    assert_eq!(upstream.polls(), settled, "an event that tells nothing new costs no poll");
}

#[test]
fn a_stream_that_ends_is_opened_again_and_polling_stays_on() {
    let upstream = Upstream::start();
    upstream.document(SERVER_KEY, document(1));
    upstream.on(STREAM, Reply::events(""));
    let proxy = following(&upstream);
    for version in 2..5 {
        upstream.close_connections();
        eventually("the stream is open again", || (upstream.streams(STREAM) == 1).then_some(()));
        upstream.document(SERVER_KEY, document(version));
        upstream.push(STREAM, &event(version));
        eventually("the new document is served", || {
            (version_of(&proxy, CLIENT_KEY) == Some(version.into())).then_some(())
        });
    }
    // A stream that is refused is told once, and is tried again.
    upstream.on(STREAM, Reply::new(500, ""));
    upstream.close_connections();
    proxy.wait_for_log("realtime_lost");
    upstream.on(STREAM, Reply::events(""));
    eventually("the stream is open again", || (upstream.streams(STREAM) == 1).then_some(()));
    proxy.wait_for_log("realtime_recovered");
}

#[test]
fn what_is_no_event_stream_is_told_with_what_to_do() {
    for (reply, hint) in [
        (Reply::new(200, "<html>sign in</html>").with("content-type", "text/html"), "see realtime.url"),
        (Reply::new(204, ""), "answered 204"),
        (Reply::redirect(302, "/elsewhere"), "set realtime.url to the final address"),
    ] {
        let upstream = Upstream::start();
        upstream.document(SERVER_KEY, document(1));
        upstream.on(STREAM, reply);
        let proxy = serve(&upstream.api_url())
            .set("api_poll_frequency_seconds", 3600)
            .set("realtime", json!({"enabled": true, "url": format!("{}/", upstream.origin())}))
            .ready();
        let line = proxy.wait_for_log("realtime_lost");
        assert!(line.contains(hint), "{line}");
        upstream.on(STREAM, Reply::events(""));
        proxy.wait_for_log("realtime_recovered");
        upstream.document(SERVER_KEY, document(2));
        eventually("the event is pushed", || (upstream.push(STREAM, &event(2)) == 1).then_some(()));
        eventually("it is served", || (version_of(&proxy, CLIENT_KEY) == Some(2)).then_some(()));
        assert_eq!(proxy.log().matches("realtime_lost").count(), 1, "{}", proxy.log());
    }
}

#[test]
fn a_stream_of_nonsense_is_told_once_until_it_makes_sense() {
    let upstream = Upstream::start();
    upstream.document(SERVER_KEY, document(1));
    upstream.on(STREAM, Reply::events("x".repeat(100_000)));
    let proxy = serve(&upstream.api_url())
        .set("api_poll_frequency_seconds", 3600)
        .set("realtime", json!({"enabled": true, "url": format!("{}/", upstream.origin())}))
        .ready();
    upstream.wait("four tries", |requests| {
        requests.iter().filter(|request| request.path() == STREAM).count() >= 4
    });
    let count = |what: &str| proxy.log().matches(what).count();
    assert_eq!((count("realtime_lost"), count("realtime_recovered")), (1, 0), "{}", proxy.log());
    upstream.on(STREAM, Reply::events(": well again\n\n"));
    proxy.wait_for_log("realtime_recovered");
    assert_eq!(count("realtime_lost"), 1, "{}", proxy.log());
}

/// Comments, events and short lines without end: the stream is closed, opened again ever later, and logged once.
#[test]
fn a_stream_that_floods_is_closed_logged_once_and_backed_off() {
    let upstream = Upstream::start();
    upstream.document(SERVER_KEY, document(1));
    let floods =
        [": x\n".repeat(20_000), event(1).repeat(5_000), format!("{}\n", "y".repeat(9_000)).repeat(60)];
    let mut next = floods.into_iter().cycle();
    upstream.rule(move |request| {
        (request.path() == STREAM).then(|| Reply::events(next.next().unwrap_or_default()))
    });
    let proxy = serve(&upstream.api_url())
        .with_admin()
        .set("api_poll_frequency_seconds", 3600)
        .set("realtime", json!({"enabled": true, "url": format!("{}/", upstream.origin())}))
        .ready();
    upstream.wait("five tries", |requests| {
        requests.iter().filter(|request| request.path() == STREAM).count() >= 5
    });
    let tries = upstream.requests_for(STREAM);
    // 200, 400, 800 and 1600 ms, each at least half of it.
    assert!(tries[4].at - tries[0].at >= Duration::from_millis(1500), "{:?}", tries[4].at - tries[0].at);
    assert!(proxy.metric("edge_proxy_realtime_floods_total") >= 4.0);
    let count = |what: &str| proxy.log().matches(what).count();
    assert_eq!((count("realtime_flood"), count("realtime_lost"), count("realtime_recovered")), (1, 0, 0));
    assert_eq!(version_of(&proxy, CLIENT_KEY), Some(1));
    assert!(upstream.polls() < 20, "events within a flood cost no poll each: {}", upstream.polls());
    upstream.on(STREAM, Reply::events(""));
    eventually("it is calm for a while", || {
        upstream.push(STREAM, ": ping\n\n");
        (count("realtime_recovered") == 1).then_some(())
    });
    upstream.document(SERVER_KEY, document(2));
    upstream.push(STREAM, &event(2));
    eventually("it is followed again", || (version_of(&proxy, CLIENT_KEY) == Some(2)).then_some(()));
    assert_eq!(count("realtime_flood"), 1, "{}", proxy.log());
}

// --- a tree ---

#[test]
fn a_tree_of_thirteen_proxies_costs_upstream_one_poll_an_interval() {
    let upstream = Upstream::start();
    upstream.document(SERVER_KEY, document(1));
    let realtime = |start: Start, above: &str| start.set("realtime", json!({"enabled": true, "url": above}));
    let child = |above: &Proxy| {
        let origin = format!("http://{}/", above.address());
        realtime(serve(&above.api_url()).set("api_poll_frequency_seconds", 1), &origin)
    };
    let root = serve(&upstream.api_url()).set("api_poll_frequency_seconds", 1).ready();
    let middle: Vec<Proxy> = (0..3).map(|_| child(&root).ready()).collect();
    let leaves: Vec<Proxy> = middle.iter().flat_map(|above| (0..3).map(|_| child(above).ready())).collect();
    for leaf in &leaves {
        assert_eq!(version_of(leaf, CLIENT_KEY), Some(1));
    }
    let (polls, started) = (upstream.polls(), Instant::now());
    upstream.document(SERVER_KEY, document(2));
    eventually("the edit reaches every leaf", || {
        leaves.iter().all(|leaf| version_of(leaf, CLIENT_KEY) == Some(2)).then_some(())
    });
    println!("edit to all 9 leaves of a tree of 13: {:?}", started.elapsed());
    upstream.wait("three more polls", |requests| requests.len() >= polls + 3);
    // 0.9 s is the shortest jittered interval.
    let most = (started.elapsed().as_secs_f64() / 0.9).ceil() as usize + 1;
    assert!(
        upstream.polls() - polls <= most,
        "{} polls in {:?}",
        upstream.polls() - polls,
        started.elapsed()
    );
    assert_eq!(leaves[8].get("/api/v1/flags/", CLIENT_KEY).body, root.get("/api/v1/flags/", CLIENT_KEY).body);
}

// --- discovery ---

const CONFIG: &str = "/api/v1/proxy/config/";
const USAGE: &str = "/api/v1/proxy/usage/";

/// A server-side key: its text, whether it is active, when it ends.
type Key<'a> = (&'a str, bool, Value);

fn listed(environments: &[(&str, &[Key<'_>])]) -> Reply {
    let environments: Vec<Value> = environments
        .iter()
        .map(|(client, keys)| {
            let keys: Vec<Value> = keys
                .iter()
                .map(|(key, active, expires_at)| json!({"key": key, "active": active, "expires_at": expires_at}))
                .collect();
            json!({
                "id": 1, "name": client, "client_side_key": client, "server_side_keys": keys,
                "updated_at": "2026-01-01T00:00:00Z", "project_id": 1, "organisation_id": 1,
            })
        })
        .collect();
    Reply::json(json!(environments).to_string())
}

#[test]
fn environments_come_and_go_as_upstream_tells_and_static_ones_stay() {
    let (upstream, cache) = (Upstream::start(), Scratch::new());
    upstream.document(SERVER_KEY, document(1));
    for key in ["ser.a", "ser.a2"] {
        upstream.document(key, for_key("a", 1).to_string());
    }
    upstream.document("ser.b", for_key("b", 1).to_string());
    let later = time::OffsetDateTime::now_utc() + Duration::from_secs(3);
    let later = later.format(&time::format_description::well_known::Rfc3339).expect("a time");
    upstream.on(
        CONFIG,
        listed(&[
            (
                "a",
                &[
                    ("ser.off", false, Value::Null),
                    ("ser.a", true, Value::Null),
                    ("ser.a2", true, json!(later)),
                ],
            ),
            (CLIENT_KEY, &[("ser.of-another", true, Value::Null)]),
            ("none", &[("ser.none", false, Value::Null)]),
        ]),
    );
    let start = || {
        serve(&upstream.api_url())
            .set("proxy_key", "proxy-key-of-a-test")
            .set("cache_dir", cache.path().to_str().expect("a plain path"))
    };
    let mut proxy = start().ready();
    eventually("a is served", || version_of(&proxy, "a"));
    let status = |proxy: &Proxy, key: &str| proxy.get("/api/v1/flags/", key).status;
    assert_eq!(status(&proxy, "ser.a"), 200);
    assert_eq!(status(&proxy, "ser.off"), 401, "not active");
    assert_eq!(status(&proxy, "none"), 401, "no usable key");
    assert_eq!(status(&proxy, SERVER_KEY), 200, "the static pair stays as it is");
    assert_eq!(status(&proxy, "ser.of-another"), 401);
    eventually("the key with an end is over", || (status(&proxy, "ser.a2") == 401).then_some(()));
    for request in upstream.requests() {
        assert_eq!(request.header("x-proxy-key"), Some("proxy-key-of-a-test"), "{}", request.target);
    }
    // A failed fetch changes nothing; one more environment comes, one goes.
    upstream.on(CONFIG, Reply::new(500, ""));
    proxy.wait_for_log("discovery_failed");
    assert_eq!(status(&proxy, "a"), 200);
    upstream.on(CONFIG, listed(&[("b", &[("ser.b", true, Value::Null)])]));
    eventually("b is served", || version_of(&proxy, "b"));
    assert_eq!((status(&proxy, "a"), status(&proxy, CLIENT_KEY)), (401, 200));
    // A restart while upstream is down knows them all.
    proxy.signal("TERM");
    assert!(proxy.wait().success());
    upstream.refuse();
    let proxy = start().ready();
    assert_eq!((version_of(&proxy, "b"), version_of(&proxy, CLIENT_KEY)), (Some(1), Some(1)));
}

#[test]
fn a_key_that_upstream_refuses_gives_its_turn_to_the_next() {
    let upstream = Upstream::start();
    upstream.on("/api/v1/environment-document/", Reply::new(403, r#"{"detail":"no"}"#));
    upstream.document("ser.good", for_key("a", 1).to_string());
    // Listed twice as well: one environment, and no reason to ask anew at each look.
    let list =
        [("a", &[("ser.refused", true, Value::Null)][..]), ("a", &[("ser.good", true, Value::Null)][..])];
    upstream.on(CONFIG, listed(&list));
    let proxy = Start::serve()
        .set("api_url", upstream.api_url())
        .set("proxy_key", "proxy-key-of-a-test")
        .set("api_poll_frequency_seconds", 0.2)
        .start();
    eventually("a is served", || version_of(&proxy, "a"));
    for key in ["ser.refused", "ser.good"] {
        assert_eq!(proxy.get("/api/v1/flags/", key).status, 200, "{key} opens it, whatever upstream says");
    }
    let is_whole = |request: &&crate::support::Recorded| {
        request.key() == "ser.good" && request.header("if-modified-since").is_none()
    };
    let whole = upstream.requests().iter().filter(is_whole).count();
    let looks = upstream.requests_for(CONFIG).len();
    upstream.wait("five more looks", |requests| {
        requests.iter().filter(|request| request.path() == CONFIG).count() >= looks + 5
    });
    assert_eq!(upstream.requests().iter().filter(is_whole).count(), whole, "it is not re-keyed");
}

#[test]
fn usage_is_reported_exactly_with_a_key_against_repetition() {
    let upstream = Upstream::start();
    upstream.document("ser.a", for_key("a", 1).to_string());
    upstream.on(CONFIG, listed(&[("a", &[("ser.a", true, Value::Null)])]));
    upstream.on(USAGE, Reply::new(503, ""));
    let mut proxy = Start::serve()
        .set("api_url", upstream.api_url())
        .set("proxy_key", "proxy-key-of-a-test")
        .set("api_poll_frequency_seconds", 0.2)
        .set("usage_flush_interval_seconds", 0.3)
        .start();
    eventually("a is served", || (proxy.get("/api/v1/flags/", "ser.a").status == 200).then_some(()));
    for _ in 0..10 {
        proxy.get("/api/v1/identities/?identifier=x", "a");
        proxy.get("/api/v1/flags/?feature=unknown", "a");
        proxy.get("/api/v1/environment-document/", "ser.a");
    }
    upstream.wait("two tries", |requests| requests.iter().filter(|r| r.path() == USAGE).count() >= 2);
    let tries = upstream.requests_for(USAGE);
    assert_eq!(tries[0].body, tries[1].body);
    assert_eq!(tries[0].header("idempotency-key"), tries[1].header("idempotency-key"));
    let taken = upstream.requests_for(USAGE).len();
    let accepted = Arc::new(Mutex::new(Vec::new()));
    let taking = Arc::clone(&accepted);
    upstream.rule(move |request| {
        (request.path() == USAGE).then(|| {
            taking.lock().expect("not poisoned").push(request.clone());
            Reply::new(204, "")
        })
    });
    upstream
        .wait("an accepted report", |requests| requests.iter().filter(|r| r.path() == USAGE).count() > taken);
    // What is counted last is sent at the end.
    proxy.get("/api/v1/identities/?identifier=x", "ser.a");
    proxy.signal("TERM");
    assert!(proxy.wait().success());
    let mut sums = std::collections::BTreeMap::new();
    for report in accepted.lock().expect("not poisoned").iter() {
        for row in report.json().as_array().expect("rows") {
            assert_eq!(row["client_side_key"], "a", "a server-side key counts under the client-side one");
            *sums.entry(row["resource"].as_str().expect("a text").to_string()).or_insert(0) +=
                row["count"].as_u64().expect("a number");
        }
    }
    assert_eq!(sums["identities"], 11);
    assert_eq!(sums["environment-document"], 10);
    // The probes until `a` was served, and no 404.
    assert!((1..10).contains(&sums["flags"]), "{sums:?}");
}

#[test]
fn usage_that_is_refused_is_dropped_and_told() {
    let upstream = Upstream::start();
    upstream.document("ser.a", for_key("a", 1).to_string());
    upstream.on(CONFIG, listed(&[("a", &[("ser.a", true, Value::Null)])]));
    upstream.on(USAGE, Reply::new(400, ""));
    let proxy = Start::serve()
        .set("api_url", upstream.api_url())
        .set("proxy_key", "proxy-key-of-a-test")
        .set("usage_flush_interval_seconds", 0.2)
        .start();
    eventually("a is served", || (proxy.get("/api/v1/flags/", "a").status == 200).then_some(()));
    let line = proxy.wait_for_log("counts_refused");
    assert!(line.contains("lost_count"), "{line}");
    let refused = upstream.requests_for(USAGE).len();
    std::thread::park_timeout(Duration::from_millis(500));
    assert_eq!(upstream.requests_for(USAGE).len(), refused, "it is not sent again");
}

// --- counts ---

#[test]
fn counts_survive_restarts_of_upstream_and_of_the_proxy() {
    const ANALYTICS: &str = "/api/v1/analytics/flags/";
    let (upstream, cache) = (Upstream::start(), Scratch::new());
    upstream.document(SERVER_KEY, document(1));
    upstream.on(ANALYTICS, Reply::json("{}"));
    let start = || {
        serve(&upstream.api_url())
            .cores(2)
            .set("cache_dir", cache.path().to_str().expect("a plain path"))
            .set("analytics.flush_interval_seconds", 0.2)
    };
    let mut expected = 0;
    for round in 0..4 {
        let mut proxy = start().ready();
        if round == 2 {
            upstream.listen();
        }
        let (address, threads, posts) = (proxy.address(), 4, 250);
        let posting: Vec<_> = (0..threads)
            .map(|_| {
                std::thread::spawn(move || {
                    let mut client = crate::support::Client::connect(address);
                    let headers = [("X-Environment-Key", CLIENT_KEY), ("Content-Type", "application/json")];
                    for _ in 0..posts {
                        let body = br#"{"version": 20, "colour": 5, "unknown": 7}"#;
                        assert_eq!(client.request("POST", ANALYTICS, &headers, body).status, 200);
                    }
                })
            })
            .collect();
        if round == 1 {
            upstream.refuse();
        }
        for thread in posting {
            thread.join().expect("every post is answered");
        }
        expected += threads * posts * 25;
        proxy.signal("TERM");
        assert!(proxy.wait().success(), "{}", proxy.log());
    }
    assert_eq!(expected, 100_000);
    let sum: u64 = upstream
        .requests_for(ANALYTICS)
        .iter()
        .flat_map(|request| request.json().as_object().expect("counts").values().cloned().collect::<Vec<_>>())
        .map(|count| count.as_u64().expect("a number"))
        .sum();
    assert_eq!(sum, expected as u64);
}

// --- the way out ---

#[test]
fn a_client_certificate_is_shown_and_our_authority_trusted() {
    let (authority, upstream) = (Authority::new(), Upstream::start());
    upstream.document(SERVER_KEY, document(1));
    let front = TlsFront::start(upstream.address(), &authority.issue("127.0.0.1"), Some(&authority));
    let with_files = |start: Start, shows: bool| {
        let own = authority.issue("edge-proxy");
        let text = |name: &str, content: &str| {
            start.scratch().write(name, content).to_str().expect("a plain path").to_string()
        };
        let (ca, cert, key) =
            (text("ca.pem", &authority.pem()), text("cert.pem", &own.certificate), text("key.pem", &own.key));
        let start = start.set("api_ca_file", ca);
        if shows { start.set("api_client_certificate", json!({"cert": cert, "key": key})) } else { start }
    };
    let proxy = with_files(serve(&front.api_url()), true).ready();
    assert_eq!(version_of(&proxy, CLIENT_KEY), Some(1));
    let proxy = with_files(serve(&front.api_url()), false).start();
    proxy.wait_for_log("environment_poll_failed");
    assert_eq!(version_of(&proxy, CLIENT_KEY), None);
}

#[test]
fn a_file_of_certificates_that_is_none_is_told_before_anything_is_bound() {
    let start = serve("https://127.0.0.1:1/api/v1/");
    let path = start.scratch().write("ca.pem", "no certificate");
    let (code, text) = start.set("api_ca_file", path.to_str().expect("a plain path")).run();
    assert_eq!(code, Some(64), "{text}");
    assert!(text.contains("api_ca_file"), "{text}");
}
