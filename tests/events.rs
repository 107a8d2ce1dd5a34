//! Experiment events: every status, and that none is lost once it was answered 202.
mod bounds;
mod delivery;
mod http2;

use std::io::Write;

use serde_json::{Value, json};

use crate::support::{Answer, Client, Proxy, Recorded, Reply, Scratch, Start, Upstream, eventually, request};
use crate::surface::{CLIENT, SERVER, document};

const PATH: &str = "/v1/events";

/// Polls `upstream` and forwards events to it, from the spool in `cache`.
pub fn start(upstream: &Upstream, cache: &Scratch) -> Start {
    upstream.document(SERVER, document(1).to_string());
    Start::serve()
        .set("api_url", upstream.api_url())
        .set("cache_dir", cache.path().to_string_lossy().into_owned())
        .set("events", json!({"enabled": true, "url": upstream.origin(), "flush_interval_seconds": 0.05}))
        .environment(CLIENT, SERVER)
}

pub fn events(names: &[&str]) -> String {
    let events: Vec<Value> = names.iter().map(|name| json!({"event": name, "identifier": "u"})).collect();
    json!({"events": events}).to_string()
}

fn post(proxy: &Proxy, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Answer {
    Client::connect(proxy.address()).request("POST", PATH, headers, body.as_ref())
}

fn with_key(key: &'static str) -> [(&'static str, &'static str); 2] {
    [("X-Environment-Key", key), ("Content-Type", "application/json; charset=utf-8")]
}

/// Accepts everything, as the events API does.
pub fn accept(sent: &Recorded) -> Option<Reply> {
    let is_batch = sent.path() == PATH;
    is_batch.then(|| {
        let count = sent.json()["events"].as_array().expect("a list").len();
        Reply::new(202, json!({"accepted": count, "rejected": []}).to_string())
    })
}

/// The batches that upstream got.
fn batches(upstream: &Upstream) -> Vec<Recorded> {
    upstream.requests_for(PATH)
}

#[test]
fn the_route_is_unknown_unless_it_is_enabled() {
    let proxy = Start::demo_document().ready();
    for method in ["POST", "GET"] {
        let answer = proxy.client().request(method, PATH, &with_key("client-side-key"), b"{}");
        assert_eq!((answer.status, answer.text().as_str()), (404, r#"{"detail":"Not Found"}"#), "{method}");
    }
    let (code, output) = Start::demo_document().set("events", json!({"enabled": true})).run();
    assert_eq!(code, Some(64), "{output}");
    assert!(output.contains("events.enabled") && output.contains("cache_dir is not set"), "{output}");
}

#[test]
fn each_status_of_the_events_api() {
    let (upstream, cache) = (Upstream::start(), Scratch::new());
    upstream.rule(accept);
    let proxy = start(&upstream, &cache).with_admin().ready();
    let json = ("Content-Type", "application/json");
    let answer = post(&proxy, &with_key(CLIENT), events(&["a"]));
    assert_eq!((answer.status, answer.text().as_str()), (202, r#"{"accepted":1,"rejected":[]}"#));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    // A server-side key opens the same environment; a path with a slash is the same path.
    let headers = with_key(SERVER);
    assert_eq!(
        proxy.client().request("POST", "/v1/events/", &headers, events(&["b"]).as_bytes()).status,
        202
    );
    let mixed = r#"{"events":[{"event":"c"},{"event":"$own"},{"event":"$flag_exposure"},7]}"#;
    let answer = post(&proxy, &with_key(CLIENT), mixed);
    assert_eq!(answer.status, 202);
    let rejected = &answer.json()["rejected"];
    assert_eq!(rejected.as_array().map(Vec::len), Some(3), "{rejected}");
    assert_eq!(rejected[0]["index"], 1);
    assert_eq!(rejected[1], json!({"index": 2, "error": "feature_name: required for $flag_exposure"}));
    for (status, headers, body) in [
        (400, vec![("X-Environment-Key", CLIENT), json], r#"{"events":[{"event":"$own"}]}"#.to_owned()),
        (400, vec![("X-Environment-Key", CLIENT), json], r#"{"events":[]}"#.into()),
        (401, vec![json], events(&["x"])),
        (403, vec![("X-Environment-Key", "unknown"), json], events(&["x"])),
        (403, vec![("X-Environment-Key", "unknown"), json], "x".repeat(100_000)),
        (403, vec![("X-Environment-Key", "unknown"), json, ("Content-Encoding", "gzip")], "x".into()),
        (415, vec![("X-Environment-Key", CLIENT), ("Content-Type", "text/plain")], events(&["x"])),
        (415, vec![("X-Environment-Key", CLIENT), json, ("Content-Encoding", "br")], events(&["x"])),
        (422, vec![("X-Environment-Key", CLIENT), json], "{".into()),
        (422, vec![("X-Environment-Key", CLIENT), json], "[]".into()),
        (422, vec![("X-Environment-Key", CLIENT), json], r#"{"events":{}}"#.into()),
        (413, vec![("X-Environment-Key", CLIENT), json], "x".repeat((1 << 20) + 1)),
    ] {
        let answer = post(&proxy, &headers, &body);
        assert_eq!(answer.status, status, "{headers:?} {body:.60}: {}", answer.text());
        assert!(answer.json().is_object(), "{}", answer.text());
    }
    let wrong = proxy.client().request("GET", PATH, &with_key(CLIENT), b"");
    assert_eq!((wrong.status, wrong.header("allow")), (405, Some("POST")));
    eventually("the accepted events upstream", || {
        let names = names_sent(&upstream);
        (names == ["a", "b", "c"]).then_some(())
    });
    assert_eq!(proxy.metric("edge_proxy_events_accepted_total"), 3.0);
    assert_eq!(proxy.metric("edge_proxy_events_rejected_total{member=\"event\"}"), 2.0);
    assert_eq!(proxy.metric("edge_proxy_events_rejected_total{member=\"json\"}"), 1.0);
    assert_eq!(proxy.metric("edge_proxy_http_requests_total{route=\"events\",status=\"2xx\"}"), 3.0);
    eventually("all are counted as sent", || {
        (proxy.metric("edge_proxy_events_sent_total") == 3.0).then_some(())
    });
    assert_eq!(proxy.metric("edge_proxy_events_queued"), 0.0);
}

/// The names of all events that upstream got, in order of their names.
pub fn names_sent(upstream: &Upstream) -> Vec<String> {
    let events = batches(upstream).into_iter().flat_map(|batch| batch.json()["events"].as_array().cloned());
    let mut names: Vec<String> =
        events.flatten().map(|event| event["event"].as_str().expect("a name").to_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_browser_may_post_compressed_events_from_another_origin() {
    let (upstream, cache) = (Upstream::start(), Scratch::new());
    upstream.rule(accept);
    let proxy = start(&upstream, &cache).set("allow_origins", json!(["https://app.example"])).ready();
    let preflight = [
        ("Origin", "https://app.example"),
        ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", "content-type,flagsmith-sdk-user-agent,x-environment-key"),
    ];
    let answer = proxy.client().request("OPTIONS", PATH, &preflight, b"");
    assert_eq!(
        (answer.status, answer.header("access-control-allow-origin")),
        (200, Some("https://app.example"))
    );
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(events(&["zipped"]).as_bytes()).expect("in memory");
    let headers = [
        &with_key(CLIENT)[..],
        &[
            ("Origin", "https://app.example"),
            ("Content-Encoding", "gzip"),
            ("Flagsmith-SDK-User-Agent", "sdk/1"),
        ],
    ]
    .concat();
    let answer = post(&proxy, &headers, encoder.finish().expect("in memory"));
    assert_eq!(
        (answer.status, answer.header("access-control-allow-origin")),
        (202, Some("https://app.example"))
    );
    let batch = eventually("the batch", || batches(&upstream).into_iter().next());
    assert_eq!((batch.key(), batch.header("flagsmith-sdk-user-agent")), (CLIENT, Some("sdk/1")));
    assert_eq!(batch.header("content-type"), Some("application/json"));
    assert!(batch.header("idempotency-key").is_some_and(|key| key.len() == 36), "{batch:?}");
}

#[test]
fn events_are_forwarded_as_they_were_sent_and_grouped_by_sdk() {
    let (upstream, cache) = (Upstream::start(), Scratch::new());
    upstream.rule(accept);
    let proxy = start(&upstream, &cache).set("events.flush_interval_seconds", 1).ready();
    let odd = r#"{"event":"$flag_exposure","feature_name":"Größe","identifier":"u","value":null,"traits":{"a":1.50,"b":1e3},"metadata":{"experiment_id":7},"timestamp":1735229888000,"later":[1]}"#;
    for sdk in ["python/6", "js/12"] {
        let headers = [&with_key(SERVER)[..], &[("Flagsmith-SDK-User-Agent", sdk)]].concat();
        for _ in 0..3 {
            assert_eq!(post(&proxy, &headers, format!("{{\"events\":[ {odd} ,{odd}]}}")).status, 202);
        }
    }
    let sent = eventually("both SDKs", || {
        Some(batches(&upstream)).filter(|sent| {
            sent.iter().map(|batch| batch.json()["events"].as_array().map_or(0, Vec::len)).sum::<usize>()
                == 12
        })
    });
    for batch in &sent {
        let text = String::from_utf8(batch.body.clone()).expect("text");
        assert_eq!(
            text.matches(odd).count(),
            batch.json()["events"].as_array().expect("a list").len(),
            "{text}"
        );
        assert_eq!(batch.key(), CLIENT, "not the server-side key");
    }
    let sdks: std::collections::BTreeSet<_> =
        sent.iter().map(|batch| batch.header("flagsmith-sdk-user-agent").map(str::to_owned)).collect();
    assert_eq!(sdks.len(), 2);
}

#[test]
fn pipelined_requests_are_answered_in_order_around_events() {
    let (upstream, cache) = (Upstream::start(), Scratch::new());
    upstream.rule(accept);
    let proxy = start(&upstream, &cache).ready();
    let mut client = proxy.client();
    let flags = request("GET", "/api/v1/flags/", &with_key(CLIENT), b"");
    let sent = request("POST", PATH, &with_key(CLIENT), events(&["a"]).as_bytes());
    client.send([&flags[..], &sent, &flags, &sent, &sent, &flags].concat());
    let statuses: Vec<u16> = ["GET", "POST", "GET", "POST", "POST", "GET"]
        .iter()
        .map(|method| client.answer(method).status)
        .collect();
    assert_eq!(statuses, [200, 202, 200, 202, 202, 200]);
}

#[test]
fn a_spool_that_is_full_is_answered_503_and_never_202() {
    let (upstream, cache) = (Upstream::start(), Scratch::new());
    upstream.on(PATH, Reply::new(503, "{}"));
    let proxy = start(&upstream, &cache).set("events.spool_bytes_max", 4 << 20).with_admin().ready();
    let large = json!({"events": [{"event": "x", "value": "v".repeat(100_000)}, {"event": "y", "value": "v".repeat(100_000)}]});
    let (mut accepted, mut client) = (0, proxy.client());
    let refused = loop {
        let answer = client.request("POST", PATH, &with_key(CLIENT), large.to_string().as_bytes());
        if answer.status != 202 {
            break answer;
        }
        accepted += 2;
        assert!(accepted < 100, "it is never full");
    };
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("5")), "{}", refused.text());
    assert!((38..=42).contains(&accepted), "{accepted}");
    assert_eq!(proxy.metric("edge_proxy_events_refused_total{reason=\"spool_full\"}"), 2.0);
    assert_eq!(proxy.metric("edge_proxy_events_accepted_total"), f64::from(accepted));
    assert_eq!(proxy.metric("edge_proxy_http_requests_total{route=\"events\",status=\"5xx\"}"), 1.0);
    proxy.wait_for_log("events_not_stored");
    // The connection is still usable, and flags are answered.
    assert_eq!(client.request("GET", "/api/v1/flags/", &with_key(CLIENT), b"").status, 200);
    upstream.rule(accept);
    eventually("the spool is empty", || (proxy.metric("edge_proxy_events_queued") == 0.0).then_some(()));
    assert_eq!(client.request("POST", PATH, &with_key(CLIENT), large.to_string().as_bytes()).status, 202);
    proxy.wait_for_log("events_stored_again");
    assert_eq!(proxy.metric("edge_proxy_events_dropped_total{reason=\"refused\"}"), 0.0);
}

#[test]
fn what_upstream_rejects_and_refuses_is_counted_by_reason() {
    let (upstream, cache) = (Upstream::start(), Scratch::new());
    upstream.rule(|sent: &Recorded| {
        let body = sent.json();
        let names: Vec<&str> =
            body["events"].as_array()?.iter().filter_map(|event| event["event"].as_str()).collect();
        Some(match names[..] {
            _ if sent.path() != PATH => return None,
            _ if names.contains(&"poison") => Reply::new(422, "{}"),
            _ if names.contains(&"old") => {
                let rejected = json!([{"index": 0, "error": "timestamp too old"}]);
                Reply::new(202, json!({"accepted": names.len() - 1, "rejected": rejected}).to_string())
            }
            _ => Reply::new(202, "{}"),
        })
    });
    let proxy = start(&upstream, &cache).set("events.flush_interval_seconds", 1).with_admin().ready();
    assert_eq!(post(&proxy, &with_key(CLIENT), events(&["a", "poison", "b", "old", "c"])).status, 202);
    eventually("all but two are sent", || {
        (proxy.metric("edge_proxy_events_sent_total") == 3.0).then_some(())
    });
    assert_eq!(proxy.metric("edge_proxy_events_dropped_total{reason=\"refused\"}"), 1.0);
    assert_eq!(proxy.metric("edge_proxy_events_rejected_upstream_total{reason=\"timestamp too old\"}"), 1.0);
    assert!(proxy.metric("edge_proxy_events_divided_total") >= 2.0);
    assert!(proxy.wait_for_log("events_refused").contains("lost_count=1"));
    let status: Value = crate::support::get(proxy.admin(), "/status.json", "").json();
    assert_eq!(status["events"]["dropped"], 1);
}

#[test]
fn an_outage_of_upstream_is_logged_once_and_so_is_its_end() {
    let (upstream, cache) = (Upstream::start(), Scratch::new());
    upstream.on(PATH, Reply::new(503, "").with("retry-after", "0"));
    let proxy = start(&upstream, &cache).set("events.flush_interval_seconds", 0.2).ready();
    assert_eq!(post(&proxy, &with_key(CLIENT), events(&["a"])).status, 202);
    upstream.wait("three attempts", |requests| {
        requests.iter().filter(|request| request.path() == PATH).count() >= 3
    });
    let line = proxy.wait_for_log("events_not_sent");
    assert!(line.contains("503") && line.contains("kept and sent again"), "{line}");
    upstream.on(PATH, Reply::new(202, "{}"));
    proxy.wait_for_log("events_sent_again");
    assert_eq!(proxy.log().matches("events_not_sent").count(), 1, "{}", proxy.log());
}

#[test]
fn keys_that_are_not_known_yet_are_answered_503() {
    let (upstream, cache) = (Upstream::start(), Scratch::new());
    let start = start(&upstream, &cache);
    upstream.on("/api/v1/environment-document/", Reply::new(500, "{}"));
    let proxy = start.start();
    let answer = post(&proxy, &with_key(SERVER), events(&["early"]));
    // The environment is configured, so that its events are accepted before its document.
    assert_eq!(answer.status, 202, "{}", answer.text());
}

#[test]
fn check_online_tries_the_events_url_without_sending_an_event() {
    let (upstream, cache) = (Upstream::start(), Scratch::new());
    for (status, code, words) in [
        (400, 0, "events are accepted"),
        (403, 1, "the client-side key is refused"),
        (404, 1, "check events.url"),
        (503, 1, "down or overloaded"),
    ] {
        upstream.on(PATH, Reply::new(status, "{}"));
        let (exit, output) = start(&upstream, &cache).check().arg("--online").run();
        assert_eq!(exit, Some(code), "{status}: {output}");
        assert!(output.contains(words) && output.contains("events.url"), "{status}: {output}");
    }
    assert!(batches(&upstream).iter().all(|sent| sent.body == br#"{"events":[]}"#));
}
