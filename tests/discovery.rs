//! Discovery of environments, their keys and usage upload; event streams whose environment or key is removed.
use std::io::Read;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::support::document::{CLIENT_KEY, SERVER_KEY, document, for_key};
use crate::support::{Client, Proxy, Reply, Scratch, Start, Upstream, eventually, get};

const CONFIG: &str = "/api/v1/proxy/config/";

/// Environments with server-side keys and their optional expiry.
fn list(environments: &[(&str, &[(&str, Value)])]) -> Reply {
    let environments: Vec<Value> = environments
        .iter()
        .map(|(client, keys)| {
            let key = |(key, end): &(&str, Value)| json!({"key": key, "active": true, "expires_at": end});
            let keys: Vec<Value> = keys.iter().map(key).collect();
            json!({"client_side_key": client, "server_side_keys": keys})
        })
        .collect();
    Reply::json(json!(environments).to_string())
}

/// Answers each document request with the document of the key's environment.
fn upstream_with(keys: &[(&str, &str)]) -> Upstream {
    let upstream = Upstream::start();
    for (client, server) in keys {
        upstream.document(server, for_key(client, 1).to_string());
    }
    upstream
}

fn start(upstream: &Upstream) -> Start {
    Start::serve()
        .with_admin()
        .set("api_url", upstream.api_url())
        .set("proxy_key", "proxy-key-of-a-test")
        .set("api_poll_frequency_seconds", 0.1)
}

fn status(proxy: &Proxy, key: &str) -> u16 {
    proxy.get("/api/v1/flags/", key).status
}

fn polled_again(upstream: &Upstream, times: usize) {
    let seen = upstream.requests_for(CONFIG).len();
    upstream.wait("more answers of discovery", |requests| {
        requests.iter().filter(|request| request.path() == CONFIG).count() >= seen + times
    });
}

/// An expiry this far from now.
fn ends_in(after: Duration) -> Value {
    let at = time::OffsetDateTime::from(SystemTime::now() + after);
    json!(at.format(&time::format_description::well_known::Rfc3339).expect("a time"))
}

#[test]
fn rejects_client_side_key_listed_as_server_side_key() {
    let upstream = upstream_with(&[("a", "ser.a"), ("b", "ser.b"), (CLIENT_KEY, SERVER_KEY)]);
    // Upstream would answer with a document for every key that it lists.
    for key in ["b", "other", CLIENT_KEY] {
        upstream.document(key, for_key("b", 1).to_string());
    }
    upstream.on(
        CONFIG,
        list(&[
            ("a", &[("b", Value::Null), ("ser.a", Value::Null), (CLIENT_KEY, Value::Null)]),
            ("b", &[("ser.b", Value::Null), ("ser.a", Value::Null)]),
            ("c", &[(SERVER_KEY, Value::Null)]),
            ("d", &[("other", Value::Null)]),
            ("ser.e", &[("ser.e", Value::Null)]),
        ]),
    );
    let proxy = start(&upstream).environment(CLIENT_KEY, SERVER_KEY).ready();
    eventually("a and b are served", || {
        (status(&proxy, "a") == 200 && status(&proxy, "b") == 200).then_some(())
    });
    let whole = |key: &str| proxy.get("/api/v1/environment-document/", key).status;
    for key in ["a", "b", "other", "c", "d", "ser.e", CLIENT_KEY] {
        assert_eq!(whole(key), 401, "{key} must not read a document");
    }
    for (key, client) in [("ser.a", "a"), ("ser.b", "b"), (SERVER_KEY, CLIENT_KEY)] {
        let answer = proxy.get("/api/v1/environment-document/", key);
        assert_eq!((answer.status, &answer.json()["api_key"]), (200, &json!(client)), "{key}");
    }
    assert!(upstream.requests().iter().all(|request| !["b", "other", "a"].contains(&request.key())));
    polled_again(&upstream, 5);
    // Two of a, one each of b, c and d, and ser.e as a whole; each once.
    assert_eq!(proxy.log().matches("discovered_pair_rejected").count(), 6, "{}", proxy.log());
    assert_eq!(proxy.metric("edge_proxy_discovery_pairs_rejected"), 6.0);
    assert!(!proxy.log().contains(SERVER_KEY), "{}", proxy.log());
    // Corrected, and wrong again: one more line.
    upstream.on(CONFIG, list(&[("a", &[("ser.a", Value::Null)]), ("b", &[("ser.b", Value::Null)])]));
    eventually("it is corrected", || {
        (proxy.metric("edge_proxy_discovery_pairs_rejected") == 0.0).then_some(())
    });
    upstream.on(
        CONFIG,
        list(&[("a", &[("b", Value::Null)]), ("b", &[("ser.a", Value::Null), ("ser.b", Value::Null)])]),
    );
    eventually("it is rejected", || {
        (proxy.metric("edge_proxy_discovery_pairs_rejected") == 2.0).then_some(())
    });
    assert_eq!(
        (status(&proxy, "a"), whole("ser.a"), whole("b")),
        (200, 200, 401),
        "valid environments are still served"
    );
}

#[test]
fn check_and_explain_reject_the_same_pairs() {
    let upstream = upstream_with(&[("a", "ser.a"), ("b", "b-public-key")]);
    upstream.on(CONFIG, list(&[("a", &[("ser.a", Value::Null)]), ("b", &[("b-public-key", Value::Null)])]));
    let run = |args: &[&str]| {
        let start = Start::command(args).env("API_URL", &upstream.api_url());
        start.env("PROXY_KEY", "proxy-key-of-a-test").run()
    };
    let (code, text) = run(&["check", "--online"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("discovers 1 environment"), "{text}");
    let rejected =
        "warn  proxy_key: rejected: environment ..., server_side_key b-publ...: not a server-side key";
    assert!(text.contains(rejected), "{text}");
    let (code, text) = run(&["explain", "--environment", "a"]);
    assert!(code == Some(0) && text.contains("version"), "{text}");
    let (code, text) = run(&["explain", "--environment", "b"]);
    assert!(code == Some(1) && text.contains("unknown environment"), "{text}");
    assert!(upstream.requests().iter().all(|request| request.key() != "b-public-key"));
}

#[test]
fn applies_empty_list_after_grace_and_single_removals_immediately() {
    let (upstream, cache) = (upstream_with(&[("a", "ser.a"), ("b", "ser.b")]), Scratch::new());
    let both = || list(&[("a", &[("ser.a", Value::Null)]), ("b", &[("ser.b", Value::Null)])]);
    upstream.on(CONFIG, both());
    let serve = |grace: f64| {
        start(&upstream)
            .set("discovery_empty_grace_seconds", grace)
            .set("cache_dir", cache.path().to_str().expect("a plain path"))
    };
    let mut proxy = serve(3600.0).ready();
    eventually("both are served", || {
        (status(&proxy, "a") == 200 && status(&proxy, "b") == 200).then_some(())
    });
    upstream.on(CONFIG, list(&[("b", &[("ser.b", Value::Null)])]));
    eventually("a is removed immediately", || (status(&proxy, "a") == 401).then_some(()));
    upstream.on(CONFIG, list(&[]));
    let line = proxy.wait_for_log("discovery_empty");
    assert!(line.contains("discovery_empty_grace_seconds"), "{line}");
    polled_again(&upstream, 5);
    assert_eq!(
        (status(&proxy, "b"), proxy.log().matches("discovery_empty ").count()),
        (200, 1),
        "{}",
        proxy.log()
    );
    let page = get(proxy.admin(), "/status.json", "").json();
    assert!(page["discovery_empty_since"].as_f64() > Some(1e9), "{page}");
    assert_eq!(proxy.metric("edge_proxy_discovery_empty"), 1.0);
    // They survive a restart.
    proxy.signal("TERM");
    assert!(proxy.wait().success());
    let mut proxy = serve(3600.0).ready();
    proxy.wait_for_log("discovery_empty");
    assert_eq!(status(&proxy, "b"), 200);
    upstream.on(CONFIG, both());
    proxy.wait_for_log("discovery_recovered");
    eventually("a is back", || (status(&proxy, "a") == 200).then_some(()));
    assert!(get(proxy.admin(), "/status.json", "").json()["discovery_empty_since"].is_null());
    proxy.signal("TERM");
    assert!(proxy.wait().success());
    // With a short grace the list is applied, but not while polls fail to confirm it.
    let proxy = serve(1.0).ready();
    let mut turn = 0_usize;
    upstream.rule(move |request| {
        turn += usize::from(request.path() == CONFIG);
        (request.path() == CONFIG)
            .then(|| if turn.is_multiple_of(3) { Reply::new(500, "") } else { list(&[]) })
    });
    proxy.wait_for_log("discovery_empty");
    polled_again(&upstream, 20);
    assert_eq!((status(&proxy, "a"), status(&proxy, "b")), (200, 200), "{}", proxy.log());
    upstream.on(CONFIG, list(&[]));
    eventually("all are removed", || {
        (status(&proxy, "a") == 401 && status(&proxy, "b") == 401).then_some(())
    });
    assert_eq!(proxy.metric("edge_proxy_discovery_empty"), 0.0);
}

#[test]
fn applies_empty_list_immediately_without_grace() {
    let upstream = upstream_with(&[("a", "ser.a")]);
    upstream.on(CONFIG, list(&[("a", &[("ser.a", Value::Null)])]));
    let proxy = start(&upstream).set("discovery_empty_grace_seconds", 0).start();
    eventually("a is served", || (status(&proxy, "a") == 200).then_some(()));
    upstream.on(CONFIG, list(&[]));
    eventually("a is removed", || (status(&proxy, "a") == 401).then_some(()));
    assert!(!proxy.log().contains("discovery_empty"), "{}", proxy.log());
}

// --- event streams and the access rule ---

/// Over HTTP/1.0, whose streams are not chunked.
fn subscribe(proxy: &Proxy, path: &str) -> (Client, u16) {
    let mut client = Client::connect(proxy.address());
    client.send(format!("GET {path} HTTP/1.0\r\n\r\n"));
    let (status, _) = client.head().expect("a head").expect("an answer");
    (client, status)
}

fn paths(key: &str) -> [String; 2] {
    [format!("/sse/environments/{key}/stream"), format!("/ofrep/v1/environments/{key}/stream")]
}

/// Reads until the stream ends; fails if it does not.
fn until_closed(client: Client) {
    let mut stream = client.into_stream();
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    stream.read_to_end(&mut Vec::new()).expect("the stream ends");
}

#[test]
fn streams_open_for_valid_keys_only_and_end_with_their_environment() {
    let upstream = upstream_with(&[("a", "ser.a"), ("b", "ser.b")]);
    let over = || json!("2020-01-01T00:00:00Z");
    let good = |soon: Value| {
        list(&[
            (
                "a",
                &[
                    ("ser.a", Value::Null),
                    ("ser.over", over()),
                    ("ser.revoked", Value::Null),
                    ("ser.soon", soon),
                ],
            ),
            ("b", &[("ser.b", Value::Null)]),
        ])
    };
    // Long enough to open the streams on a busy machine.
    let soon = ends_in(Duration::from_secs(20));
    upstream.on(CONFIG, good(soon));
    let proxy = start(&upstream).ready();
    eventually("both are served", || {
        (status(&proxy, "a") == 200 && status(&proxy, "b") == 200).then_some(())
    });
    for path in paths("ser.over") {
        assert_eq!(status(&proxy, "ser.over"), 401);
        let answer = proxy.get(&path, "");
        assert_eq!(
            answer.text(),
            r#"{"status":"unauthorized","message":"unknown key 'ser.over'"}"#,
            "{path}"
        );
        assert_eq!(answer.status, 401, "{path}");
    }
    let open = |key: &str| {
        paths(key).map(|path| {
            let (client, status) = subscribe(&proxy, &path);
            assert_eq!(status, 200, "{path}");
            client
        })
    };
    let (of_a, revoked, soon, of_b) = (open("a"), open("ser.revoked"), open("ser.soon"), open("b"));
    soon.into_iter().for_each(until_closed);
    // First only the key is removed, then the environment.
    upstream.on(CONFIG, list(&[("a", &[("ser.a", Value::Null)]), ("b", &[("ser.b", Value::Null)])]));
    revoked.into_iter().for_each(until_closed);
    upstream.on(CONFIG, list(&[("b", &[("ser.b", Value::Null)])]));
    of_a.into_iter().for_each(until_closed);
    upstream.document("ser.b", for_key("b", 2).to_string());
    for mut client in of_b {
        let mut events = 0;
        while events < 2 {
            events += usize::from(client.line().expect("b's streams stay open").starts_with("data: "));
        }
    }
}

#[test]
fn stream_ends_when_a_reload_removes_its_environment() {
    let upstream = upstream_with(&[(CLIENT_KEY, SERVER_KEY), ("b", "ser.b")]);
    let proxy = Start::serve()
        .set("api_url", upstream.api_url())
        .environment(CLIENT_KEY, SERVER_KEY)
        .environment("b", "ser.b")
        .ready();
    let streams = [CLIENT_KEY, SERVER_KEY].map(paths).concat();
    let streams: Vec<Client> = streams.iter().map(|path| subscribe(&proxy, path).0).collect();
    let (mut other, _) = subscribe(&proxy, &paths("b")[0]);
    let mut config = proxy.config().clone();
    config["environment_key_pairs"].as_array_mut().expect("a list").remove(0);
    proxy.scratch().write("config.json", config.to_string());
    proxy.signal("HUP");
    streams.into_iter().for_each(until_closed);
    assert!(other.line().expect("the other one stays").starts_with("retry"));
}

// --- discovered and static environments, usage ---

const USAGE: &str = "/api/v1/proxy/usage/";

/// A server-side key: its text, whether it is active, its expiry.
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
fn adds_and_removes_discovered_environments_and_keeps_static_ones() {
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
        Start::polling(&upstream.api_url())
            .set("proxy_key", "proxy-key-of-a-test")
            .set("cache_dir", cache.path().to_str().expect("a plain path"))
    };
    let mut proxy = start().ready();
    eventually("a is served", || proxy.version_of("a"));
    let status = |proxy: &Proxy, key: &str| proxy.get("/api/v1/flags/", key).status;
    assert_eq!(status(&proxy, "ser.a"), 200);
    assert_eq!(status(&proxy, "ser.off"), 401, "not active");
    assert_eq!(status(&proxy, "none"), 401, "no usable key");
    assert_eq!(status(&proxy, SERVER_KEY), 200, "the static pair is unchanged");
    assert_eq!(status(&proxy, "ser.of-another"), 401);
    eventually("the key has expired", || (status(&proxy, "ser.a2") == 401).then_some(()));
    for request in upstream.requests() {
        assert_eq!(request.header("x-proxy-key"), Some("proxy-key-of-a-test"), "{}", request.target);
    }
    // A failed fetch changes nothing. Then one environment is added and one removed.
    upstream.on(CONFIG, Reply::new(500, ""));
    proxy.wait_for_log("discovery_failed");
    assert_eq!(status(&proxy, "a"), 200);
    upstream.on(CONFIG, listed(&[("b", &[("ser.b", true, Value::Null)])]));
    eventually("b is served", || proxy.version_of("b"));
    assert_eq!((status(&proxy, "a"), status(&proxy, CLIENT_KEY)), (401, 200));
    // A restart while upstream is down serves them all.
    proxy.signal("TERM");
    assert!(proxy.wait().success());
    upstream.refuse();
    let proxy = start().ready();
    assert_eq!((proxy.version_of("b"), proxy.version_of(CLIENT_KEY)), (Some(1), Some(1)));
}

#[test]
fn tries_the_next_key_when_upstream_rejects_one() {
    let upstream = Upstream::start();
    upstream.on("/api/v1/environment-document/", Reply::new(403, r#"{"detail":"no"}"#));
    upstream.document("ser.good", for_key("a", 1).to_string());
    // A client-side key that is listed twice is one environment, and not fetched again at each refresh.
    let list =
        [("a", &[("ser.refused", true, Value::Null)][..]), ("a", &[("ser.good", true, Value::Null)][..])];
    upstream.on(CONFIG, listed(&list));
    let proxy = Start::serve()
        .set("api_url", upstream.api_url())
        .set("proxy_key", "proxy-key-of-a-test")
        .set("api_poll_frequency_seconds", 0.2)
        .start();
    eventually("a is served", || proxy.version_of("a"));
    for key in ["ser.refused", "ser.good"] {
        assert_eq!(
            proxy.get("/api/v1/flags/", key).status,
            200,
            "{key} is valid, though upstream rejects one"
        );
    }
    let is_whole = |request: &&crate::support::Recorded| {
        request.key() == "ser.good" && request.header("if-modified-since").is_none()
    };
    let whole = upstream.requests().iter().filter(is_whole).count();
    let refreshes = upstream.requests_for(CONFIG).len();
    upstream.wait("five more refreshes", |requests| {
        requests.iter().filter(|request| request.path() == CONFIG).count() >= refreshes + 5
    });
    assert_eq!(upstream.requests().iter().filter(is_whole).count(), whole, "it is not re-keyed");
}

#[test]
fn uploads_usage_exactly_once_with_an_idempotency_key() {
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
    // The last counts are sent at shutdown.
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
    // Includes the probes until `a` was served, and no 404.
    assert!((1..10).contains(&sums["flags"]), "{sums:?}");
}

#[test]
fn drops_and_logs_usage_that_upstream_rejects() {
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
