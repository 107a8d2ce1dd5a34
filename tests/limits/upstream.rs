//! Bounds of what comes from upstream and from files, at the bound and one beyond.
use std::time::Duration;

use edge_proxy::limits::*;
use serde_json::json;

use super::says;
use crate::support::document::{CLIENT_KEY, SERVER_KEY, document};
use crate::support::{Proxy, Reply, Scratch, Start, Upstream, eventually};

fn version_of(proxy: &Proxy) -> Option<u64> {
    let answer = proxy.get("/api/v1/flags/?feature=version", CLIENT_KEY);
    (answer.status == 200).then(|| answer.json()["feature_state_value"].as_u64().expect("a number"))
}

/// Polls once, and again when an event says so.
fn serve(upstream: &Upstream) -> Start {
    let start = Start::serve().environment(CLIENT_KEY, SERVER_KEY).with_admin();
    let start = start.set("api_url", upstream.api_url()).set("api_poll_frequency_seconds", 3600);
    start.set("api_poll_timeout_seconds", 60)
}

/// The document in so many pages, the last of which has an override.
fn pages(count: usize) -> Upstream {
    let upstream = Upstream::start();
    upstream.rule(move |request| {
        let number: usize = request.target.split("page_id=").nth(1).map_or(1, |id| id.parse().expect("ours"));
        let reply =
            Reply::json(if number == 1 { document(1) } else { r#"{"identity_overrides":[]}"#.into() });
        let link = format!("<?page_id={}>; rel=\"next\"", number + 1);
        let is_last = number >= count;
        (request.key() == SERVER_KEY).then(|| if is_last { reply } else { reply.with("link", &link) })
    });
    upstream
}

#[test]
fn pages_of_a_document_hold_at_the_bound_and_one_beyond() {
    let upstream = pages(PAGES_MAX);
    let proxy = serve(&upstream).start();
    eventually("all pages are read", || (version_of(&proxy) == Some(1)).then_some(()));
    assert_eq!(upstream.polls(), PAGES_MAX);
    let upstream = pages(PAGES_MAX + 1);
    let proxy = serve(&upstream).start();
    let log = proxy.wait_for_log("environment_poll_failed");
    assert!(log.contains(&format!("more than {PAGES_MAX} pages")), "{log}");
    assert_eq!(proxy.get("/api/v1/flags/", CLIENT_KEY).status, 502);
    says("pages of a document, by `Link`", "refused as above");
}

#[test]
fn repeated_members_of_a_document_hold_at_the_bound_and_one_beyond() {
    let repeated =
        |times: usize| document(1).replacen('{', &format!("{{{}", r#""x":0,"#.repeat(times + 1)), 1);
    for (times, is_served) in [(DUPLICATE_MEMBERS_MAX, true), (DUPLICATE_MEMBERS_MAX + 1, false)] {
        let upstream = Upstream::start();
        upstream.document(SERVER_KEY, repeated(times));
        let proxy = serve(&upstream).start();
        if is_served {
            eventually("it is served", || (version_of(&proxy) == Some(1)).then_some(()));
        } else {
            let log = proxy.wait_for_log("environment_poll_failed");
            assert!(log.contains(&format!("more than {DUPLICATE_MEMBERS_MAX} repeated members")), "{log}");
            assert_eq!(proxy.get("/api/v1/flags/", CLIENT_KEY).status, 502);
        }
    }
    says("members of a document that are there twice", "refused as above");
}

const STREAM: &str = "/sse/environments/client-side-key-of-a-test/stream";

/// A stream that begins with these bytes.
fn stream(bytes: &str) -> (Upstream, Proxy) {
    let upstream = Upstream::start();
    upstream.document(SERVER_KEY, document(1));
    upstream.on(STREAM, Reply::events(bytes));
    let realtime = json!({"enabled": true, "url": format!("{}/", upstream.origin())});
    let proxy = serve(&upstream).set("realtime", realtime).ready();
    (upstream, proxy)
}

#[test]
fn event_streams_hold_at_the_bound_and_one_beyond() {
    let line = |bytes: usize| format!(":{}\n", "x".repeat(bytes - 1));
    let lines = |bytes: usize| line(STREAM_LINE_BYTES_MAX - 1).repeat(bytes / STREAM_LINE_BYTES_MAX);
    for (input, at, beyond, event) in [
        (
            "event stream: a line",
            line(STREAM_LINE_BYTES_MAX),
            line(STREAM_LINE_BYTES_MAX + 1),
            "realtime_lost",
        ),
        (
            "event stream: a second",
            lines(STREAM_WINDOW_BYTES_MAX),
            lines(STREAM_WINDOW_BYTES_MAX) + "\n",
            "realtime_flood",
        ),
        (
            "event stream: a second",
            "\n".repeat(STREAM_WINDOW_LINES_MAX),
            "\n".repeat(STREAM_WINDOW_LINES_MAX + 1),
            "realtime_flood",
        ),
    ] {
        let (upstream, proxy) = stream(&at);
        eventually("the stream is open", || (upstream.streams(STREAM) == 1).then_some(()));
        // What follows counts to another second.
        std::thread::sleep(STREAM_WINDOW + Duration::from_millis(100));
        upstream.document(SERVER_KEY, document(2));
        // Two seconds after the beginning of 2026, as the document's time.
        upstream.push(STREAM, "data: {\"updated_at\": 1767225602.0}\n\n");
        eventually("the event is read", || (version_of(&proxy) == Some(2)).then_some(()));
        assert_eq!(upstream.requests_for(STREAM).len(), 1, "{input}: {}", proxy.log());
        assert_eq!(proxy.metric("edge_proxy_realtime_floods_total"), 0.0, "{input}");

        let (upstream, proxy) = stream(&beyond);
        proxy.wait_for_log(event);
        upstream.wait("it is opened again", |sent| sent.iter().filter(|it| it.path() == STREAM).count() >= 2);
        let is_flood = event == "realtime_flood";
        assert_eq!(proxy.metric("edge_proxy_realtime_floods_total") > 0.0, is_flood, "{input}");
        assert_eq!(version_of(&proxy), Some(1));
        says(input, event);
    }
}

#[test]
fn a_cache_file_beyond_the_bound_is_ignored_unread() {
    let upstream = Upstream::start();
    upstream.document(SERVER_KEY, document(1));
    let cache = Scratch::new();
    let start = || serve(&upstream).set("cache_dir", cache.path().to_str());
    let mut proxy = start().ready();
    let file = eventually("the document is cached", || {
        let files = std::fs::read_dir(cache.path()).expect("ours").flatten();
        files.map(|file| file.path()).find(|path| path.extension().is_some_and(|end| end == "document"))
    });
    proxy.signal("TERM");
    assert!(proxy.wait().success());
    // At the bound it is read; a file of a gibibyte is left out here.
    let whole = std::fs::metadata(&file).expect("ours").len();
    assert!(whole < CACHE_FILE_BYTES_MAX);
    let mut proxy = start().ready();
    assert!(!proxy.log().contains("cache_file_ignored"), "{}", proxy.log());
    proxy.signal("TERM");
    assert!(proxy.wait().success());
    let sparse = std::fs::File::options().write(true).open(&file).expect("ours");
    sparse.set_len(CACHE_FILE_BYTES_MAX + 1).expect("a sparse file");
    let proxy = start().ready();
    let log = proxy.wait_for_log("cache_file_ignored");
    assert!(log.contains(&format!("larger than {CACHE_FILE_BYTES_MAX} bytes")), "{log}");
    assert_eq!(version_of(&proxy), Some(1), "it is fetched");
    assert!(proxy.resident_bytes() < 100 << 20, "{}", proxy.resident_bytes());
    says("file in the cache directory", "`cache_file_ignored` is logged, and fetched");
}
