//! Event streams from upstream, and trees of proxies that follow each other.
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::document::{CLIENT_KEY, SERVER_KEY, document};
use crate::support::{Proxy, Reply, Start, Upstream, eventually};

const STREAM: &str = "/sse/environments/client-side-key-of-a-test/stream";

/// `updated_at` of version 0 of the test document: the beginning of 2026.
const EPOCH: u64 = 1_767_225_600;

fn event(version: u32) -> String {
    format!("event: environment_updated\ndata: {{\"updated_at\": {}.0}}\n\n", EPOCH + u64::from(version))
}

/// A proxy that follows the event stream of an environment; without the stream an edit would take an hour.
fn following(upstream: &Upstream) -> Start {
    Start::polling(&upstream.api_url())
        .set("api_poll_frequency_seconds", 3600)
        .set("realtime", json!({"enabled": true, "url": format!("{}/", upstream.origin())}))
}

/// Waits for five tries to open the stream: each waits longer than the one before.
fn assert_backs_off(upstream: &Upstream) {
    upstream.wait("five tries", |requests| {
        requests.iter().filter(|request| request.path() == STREAM).count() >= 5
    });
    let tries = upstream.requests_for(STREAM);
    // 200, 400, 800 and 1600 ms, each at least half of it.
    assert!(tries[4].at - tries[0].at >= Duration::from_millis(1500), "{:?}", tries[4].at - tries[0].at);
}

fn start_with_stream(upstream: &Upstream) -> Proxy {
    let proxy = following(upstream).ready();
    eventually("the stream is open", || (upstream.streams(STREAM) == 1).then_some(()));
    proxy
}

#[test]
fn an_event_is_served_within_milliseconds() {
    let upstream = Upstream::start();
    upstream.document(SERVER_KEY, document(1));
    upstream.on(STREAM, Reply::events("retry: 15000\n\n: hello\n\n"));
    let proxy = start_with_stream(&upstream);
    let mut took = Vec::new();
    for version in 2..32 {
        upstream.document(SERVER_KEY, document(version));
        let started = Instant::now();
        assert_eq!(upstream.push(STREAM, &event(version)), 1);
        eventually("the new document is served", || {
            (proxy.version_of(CLIENT_KEY) == Some(version.into())).then_some(())
        });
        took.push(started.elapsed());
    }
    took.sort_unstable();
    println!("event to served value: median {:?}, worst {:?}", took[took.len() / 2], took[took.len() - 1]);
    // On a busy machine only `make bench-swap` checks the time.
    let is_bench = !cfg!(debug_assertions);
    assert!(!is_bench || took[took.len() / 2] < Duration::from_millis(50), "median of {took:?}");
    assert!(
        upstream.requests_for(STREAM).iter().all(|request| request.key().is_empty()),
        "no key on the stream"
    );
}

#[test]
fn an_event_polls_until_the_document_is_current_and_older_events_do_not() {
    let upstream = Upstream::start();
    upstream.document(SERVER_KEY, document(5));
    upstream.on(STREAM, Reply::events(""));
    let proxy = start_with_stream(&upstream);
    let polls = upstream.polls();
    upstream.push(STREAM, &event(5));
    upstream.push(STREAM, &event(4));
    // The cache of upstream lags behind its events: the proxy polls until it has caught up.
    upstream.push(STREAM, &event(6));
    upstream.wait("three polls", |requests| {
        requests.iter().filter(|request| request.path().ends_with("/environment-document/")).count()
            >= polls + 3
    });
    assert_eq!(proxy.version_of(CLIENT_KEY), Some(5));
    upstream.document(SERVER_KEY, document(6));
    eventually("the new document is served", || (proxy.version_of(CLIENT_KEY) == Some(6)).then_some(()));
    let settled = upstream.polls();
    upstream.push(STREAM, &event(6));
    upstream.push(STREAM, &event(5));
    std::thread::park_timeout(Duration::from_millis(300));
    assert_eq!(upstream.polls(), settled, "an event of a known version costs no poll");
}

#[test]
fn reopens_a_closed_stream_and_keeps_polling() {
    let upstream = Upstream::start();
    upstream.document(SERVER_KEY, document(1));
    upstream.on(STREAM, Reply::events(""));
    let proxy = start_with_stream(&upstream);
    for version in 2..5 {
        upstream.close_connections();
        eventually("the stream is open again", || (upstream.streams(STREAM) == 1).then_some(()));
        upstream.document(SERVER_KEY, document(version));
        upstream.push(STREAM, &event(version));
        eventually("the new document is served", || {
            (proxy.version_of(CLIENT_KEY) == Some(version.into())).then_some(())
        });
    }
    // A rejected stream is logged once and retried.
    upstream.on(STREAM, Reply::new(500, ""));
    upstream.close_connections();
    proxy.wait_for_log("realtime_lost");
    upstream.on(STREAM, Reply::events(""));
    eventually("the stream is open again", || (upstream.streams(STREAM) == 1).then_some(()));
    proxy.wait_for_log("realtime_recovered");
}

#[test]
fn waits_longer_after_each_failed_stream() {
    let upstream = Upstream::start();
    upstream.document(SERVER_KEY, document(1));
    upstream.on(STREAM, Reply::new(500, ""));
    let _proxy = following(&upstream).ready();
    assert_backs_off(&upstream);
}

#[test]
fn logs_a_hint_for_a_response_that_is_not_an_event_stream() {
    for (reply, hint) in [
        (Reply::new(200, "<html>sign in</html>").with("content-type", "text/html"), "check realtime.url"),
        (Reply::new(204, ""), "answered 204"),
        (Reply::redirect(302, "/elsewhere"), "set realtime.url to the final URL"),
    ] {
        let upstream = Upstream::start();
        upstream.document(SERVER_KEY, document(1));
        upstream.on(STREAM, reply);
        let proxy = following(&upstream).ready();
        let line = proxy.wait_for_log("realtime_lost");
        assert!(line.contains(hint), "{line}");
        upstream.on(STREAM, Reply::events(""));
        proxy.wait_for_log("realtime_recovered");
        upstream.document(SERVER_KEY, document(2));
        eventually("the event is pushed", || (upstream.push(STREAM, &event(2)) == 1).then_some(()));
        eventually("it is served", || (proxy.version_of(CLIENT_KEY) == Some(2)).then_some(()));
        assert_eq!(proxy.log().matches("realtime_lost").count(), 1, "{}", proxy.log());
    }
}

#[test]
fn logs_an_invalid_stream_once_until_it_recovers() {
    let upstream = Upstream::start();
    upstream.document(SERVER_KEY, document(1));
    upstream.on(STREAM, Reply::events("x".repeat(100_000)));
    let proxy = following(&upstream).ready();
    upstream.wait("four tries", |requests| {
        requests.iter().filter(|request| request.path() == STREAM).count() >= 4
    });
    let count = |what: &str| proxy.log().matches(what).count();
    assert_eq!((count("realtime_lost"), count("realtime_recovered")), (1, 0), "{}", proxy.log());
    upstream.on(STREAM, Reply::events(": recovered\n\n"));
    proxy.wait_for_log("realtime_recovered");
    assert_eq!(count("realtime_lost"), 1, "{}", proxy.log());
}

/// Endless comments, events or short lines: the stream is closed, reopened with backoff, and logged once.
#[test]
fn closes_a_flooding_stream_logs_it_once_and_backs_off() {
    let upstream = Upstream::start();
    upstream.document(SERVER_KEY, document(1));
    let floods =
        [": x\n".repeat(20_000), event(1).repeat(5_000), format!("{}\n", "y".repeat(9_000)).repeat(60)];
    let mut next = floods.into_iter().cycle();
    upstream.rule(move |request| {
        (request.path() == STREAM).then(|| Reply::events(next.next().unwrap_or_default()))
    });
    let proxy = following(&upstream).with_admin().ready();
    assert_backs_off(&upstream);
    assert!(proxy.metric("edge_proxy_realtime_floods_total") >= 4.0);
    let count = |what: &str| proxy.log().matches(what).count();
    assert_eq!((count("realtime_flood"), count("realtime_lost"), count("realtime_recovered")), (1, 0, 0));
    assert_eq!(proxy.version_of(CLIENT_KEY), Some(1));
    assert!(upstream.polls() < 20, "events within a flood cost no poll each: {}", upstream.polls());
    upstream.on(STREAM, Reply::events(""));
    eventually("the stream has recovered", || {
        upstream.push(STREAM, ": ping\n\n");
        (count("realtime_recovered") == 1).then_some(())
    });
    upstream.document(SERVER_KEY, document(2));
    upstream.push(STREAM, &event(2));
    eventually("events are processed again", || (proxy.version_of(CLIENT_KEY) == Some(2)).then_some(()));
    assert_eq!(count("realtime_flood"), 1, "{}", proxy.log());
}

// --- trees of proxies ---

#[test]
fn a_tree_of_thirteen_proxies_costs_upstream_one_poll_an_interval() {
    let upstream = Upstream::start();
    upstream.document(SERVER_KEY, document(1));
    let realtime = |start: Start, above: &str| start.set("realtime", json!({"enabled": true, "url": above}));
    let child = |above: &Proxy| {
        let origin = format!("http://{}/", above.address());
        realtime(Start::polling(&above.api_url()).set("api_poll_frequency_seconds", 1), &origin)
    };
    let root = Start::polling(&upstream.api_url()).set("api_poll_frequency_seconds", 1).ready();
    let middle: Vec<Proxy> = (0..3).map(|_| child(&root).ready()).collect();
    let leaves: Vec<Proxy> = middle.iter().flat_map(|above| (0..3).map(|_| child(above).ready())).collect();
    for leaf in &leaves {
        assert_eq!(leaf.version_of(CLIENT_KEY), Some(1));
    }
    let (polls, started) = (upstream.polls(), Instant::now());
    upstream.document(SERVER_KEY, document(2));
    eventually("the edit reaches every leaf", || {
        leaves.iter().all(|leaf| leaf.version_of(CLIENT_KEY) == Some(2)).then_some(())
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
