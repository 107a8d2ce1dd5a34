//! Events over HTTP/2, requests that wait for the disk, and what the access log says of them.
use std::collections::BTreeMap;
use std::process::Command;

use serde_json::json;

use super::{PATH, accept, events, names_sent, post, start, with_key};
use crate::support::http2::{self, END_STREAM, Http2Client};
use crate::support::shim::Shim;
use crate::support::tls::Authority;
use crate::support::{Proxy, Scratch, Start, Upstream, eventually};
use crate::surface::{CLIENT, SERVER};

const FLAGS: &str = "/api/v1/flags/";
const CANCEL: u32 = 8;

/// How often a step is repeated whose writes may take longer than events may wait.
const ATTEMPTS: usize = 10;

fn logged(start: Start) -> Start {
    start.set("logging", json!({"enable_access_log": true})).with_admin()
}

/// How many requests to the route of events were logged, by status.
fn logged_statuses(proxy: &Proxy) -> BTreeMap<u16, usize> {
    let mut statuses = BTreeMap::new();
    for line in proxy.log().lines().filter(|line| line.contains("http_request") && line.contains(PATH)) {
        let status = logged_field(line, "status").parse().expect("a status");
        *statuses.entry(status).or_default() += 1;
    }
    statuses
}

fn logged_field<'a>(line: &'a str, name: &str) -> &'a str {
    let found = line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    found.unwrap_or_else(|| panic!("{name} in {line}"))
}

#[test]
fn each_status_is_that_of_http_1_1() {
    let (upstream, cache) = (Upstream::start(), Scratch::new());
    upstream.rule(accept);
    let proxy = start(&upstream, &cache).set("allow_origins", json!(["https://app.example"])).ready();
    let (key, json) = (("X-Environment-Key", CLIENT), ("Content-Type", "application/json"));
    let mut client = Http2Client::connect(proxy.address());
    for (method, status, headers, body) in [
        ("POST", 202, vec![key, json], events(&["a"])),
        ("POST", 202, vec![key, json, ("Origin", "https://app.example")], events(&["b"])),
        ("POST", 202, vec![key, json], r#"{"events":[{"event":"c"},{"event":"$own"},7]}"#.into()),
        ("POST", 400, vec![key, json], r#"{"events":[]}"#.into()),
        ("POST", 401, vec![json], events(&["x"])),
        ("POST", 403, vec![("X-Environment-Key", "unknown"), json], events(&["x"])),
        ("POST", 415, vec![key, ("Content-Type", "text/plain")], events(&["x"])),
        ("POST", 422, vec![key, json], "{".into()),
        ("GET", 405, vec![key], String::new()),
    ] {
        let first = post_with(&proxy, method, &headers, &body);
        let second = client.request(method, PATH, &headers, body.as_bytes());
        assert_eq!((first.status, second.status), (status, status), "{body:.60}");
        assert_eq!(first.text(), second.text());
        let fields = |answer: &crate::support::Answer| {
            let mut fields: Vec<(String, String)> = answer
                .headers
                .iter()
                .map(|(name, value)| (name.to_ascii_lowercase(), value.clone()))
                .filter(|(name, _)| !["date", "connection", "transfer-encoding"].contains(&name.as_str()))
                .collect();
            fields.sort();
            fields
        };
        assert_eq!(fields(&first), fields(&second));
    }
    eventually("both protocols", || (names_sent(&upstream) == ["a", "a", "b", "b", "c", "c"]).then_some(()));
}

fn post_with(proxy: &Proxy, method: &str, headers: &[(&str, &str)], body: &str) -> crate::support::Answer {
    proxy.client().request(method, PATH, headers, body.as_bytes())
}

#[test]
fn many_streams_of_one_connection_are_answered_once_each() {
    let (upstream, cache) = (Upstream::start(), Scratch::new());
    upstream.rule(accept);
    let proxy = logged(start(&upstream, &cache)).ready();
    let mut client = Http2Client::connect(proxy.address());
    let names: Vec<String> = (0..80).map(|number| format!("e{number:02}")).collect();
    let streams: Vec<(u32, u32)> = names
        .iter()
        .map(|name| {
            let body = events(&[name]);
            let sent = client.open("POST", PATH, &with_key(CLIENT), body.as_bytes());
            (sent, client.open("GET", FLAGS, &with_key(CLIENT), b""))
        })
        .collect();
    let mut statuses = BTreeMap::new();
    while statuses.len() < 2 * streams.len() {
        let frame = client.next_frame().expect("all answers");
        assert!(![http2::RST_STREAM, http2::GOAWAY].contains(&frame.kind), "{frame:?}");
        if let Some((stream, answer)) = client.take(frame) {
            assert_eq!(statuses.insert(stream, answer.status), None, "answered once");
        }
    }
    assert!(streams.iter().all(|(sent, flags)| statuses[sent] == 202 && statuses[flags] == 200));
    eventually("each once upstream", || (names_sent(&upstream) == names).then_some(()));
    eventually("the access log", || (logged_statuses(&proxy) == [(202, 80)].into()).then_some(()));
    assert_eq!(proxy.metric("edge_proxy_http_requests_total{route=\"events\",status=\"2xx\"}"), 80.0);
}

/// Without this a stream of events would stop the others of its connection until it is written.
#[test]
fn other_streams_go_on_while_events_are_written() {
    let shim = Shim::new();
    let (upstream, cache) = (Upstream::start(), Scratch::new());
    upstream.rule(accept);
    let proxy = shim.preload(logged(start(&upstream, &cache)).cores(1)).ready();
    let mut client = Http2Client::connect(proxy.address());
    let is_shown = (0..ATTEMPTS).any(|attempt| {
        shim.disk_is_stuck(true);
        let body = events(&[&format!("stuck{attempt}")]);
        let sent = client.open("POST", PATH, &with_key(CLIENT), body.as_bytes());
        let flags = client.open("GET", FLAGS, &with_key(CLIENT), b"");
        let mut order = Vec::new();
        while order.len() < 2 {
            let frame = client.next_frame().expect("both answers");
            let Some((stream, answer)) = client.take(frame) else { continue };
            if stream == flags {
                assert_eq!(answer.status, 200);
                shim.disk_is_stuck(false);
            }
            order.push((stream, answer.status));
        }
        order == [(flags, 200), (sent, 202)]
    });
    assert!(is_shown, "the events were answered first, in each attempt");
}

/// Refused after the events were queued: the log and the metrics say so, over both protocols.
#[test]
fn what_waits_too_long_is_answered_and_logged_503() {
    let shim = Shim::new();
    let (upstream, cache) = (Upstream::start(), Scratch::new());
    upstream.rule(accept);
    let proxy = shim.preload(logged(start(&upstream, &cache)).cores(1)).ready();
    assert_eq!(post(&proxy, &with_key(CLIENT), events(&["before"])).status, 202);
    shim.disk_is_stuck(true);
    let mut client = Http2Client::connect(proxy.address());
    let answers = [
        post(&proxy, &with_key(CLIENT), events(&["first"])),
        client.request("POST", PATH, &with_key(CLIENT), events(&["second"]).as_bytes()),
    ];
    for answer in &answers {
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("5")), "{}", answer.text());
    }
    eventually("the log", || (logged_statuses(&proxy) == [(202, 1), (503, 2)].into()).then_some(()));
    assert_eq!(proxy.metric("edge_proxy_events_refused_total{reason=\"timeout\"}"), 2.0);
    assert_eq!(proxy.metric("edge_proxy_http_requests_total{route=\"events\",status=\"5xx\"}"), 2.0);
    assert_eq!(proxy.metric("edge_proxy_http_requests_total{route=\"events\",status=\"2xx\"}"), 1.0);
    let log = proxy.log();
    let line = log.lines().rfind(|line| line.contains(PATH)).expect("a line");
    assert_eq!((logged_field(line, "protocol"), logged_field(line, "method")), ("HTTP/2", "POST"));
    assert!(CLIENT.starts_with(logged_field(line, "environment").trim_end_matches('.')), "{line}");
    // It includes the wait for the disk.
    let took: u64 = logged_field(line, "duration_us").parse().expect("a number");
    assert!(took > 1_000_000, "{line}");
    shim.disk_is_stuck(false);
    assert_eq!(client.request("GET", FLAGS, &with_key(CLIENT), b"").status, 200);
    eventually("they are stored later", || {
        (names_sent(&upstream) == ["before", "first", "second"]).then_some(())
    });
}

#[test]
fn a_full_disk_is_logged_503() {
    let shim = Shim::new();
    let (upstream, cache) = (Upstream::start(), Scratch::new());
    let proxy = shim.preload(logged(start(&upstream, &cache))).ready();
    shim.disk_is_full(true);
    assert_eq!(post(&proxy, &with_key(SERVER), events(&["a"])).status, 503);
    let mut client = Http2Client::connect(proxy.address());
    assert_eq!(client.request("POST", PATH, &with_key(CLIENT), events(&["b"]).as_bytes()).status, 503);
    shim.disk_is_full(false);
    assert_eq!(post(&proxy, &with_key(CLIENT), events(&["c"])).status, 202);
    eventually("the log", || (logged_statuses(&proxy) == [(202, 1), (503, 2)].into()).then_some(()));
}

/// The events of a stream that the client gives up, and of a connection that it closes, are stored all the same.
#[test]
fn streams_and_connections_that_end_early_lose_nothing() {
    let shim = Shim::new();
    let (upstream, cache) = (Upstream::start(), Scratch::new());
    upstream.rule(accept);
    let proxy = shim.preload(logged(start(&upstream, &cache)).cores(1)).ready();
    let mut client = Http2Client::connect(proxy.address());
    let accepted = || proxy.metric("edge_proxy_events_accepted_total");
    let is_shown = (0..ATTEMPTS).any(|attempt| {
        let before = accepted();
        shim.disk_is_stuck(true);
        let name = format!("reset{attempt}");
        let reset = client.open("POST", PATH, &with_key(CLIENT), events(&[&name]).as_bytes());
        client.frame(http2::RST_STREAM, 0, reset, &CANCEL.to_be_bytes());
        assert_eq!(client.request("GET", FLAGS, &with_key(CLIENT), b"").status, 200);
        assert!(client.partial(reset).is_none(), "no answer to a stream that was reset");
        let mut other = Http2Client::connect(proxy.address());
        other.open("POST", PATH, &with_key(CLIENT), events(&[&format!("closed{attempt}")]).as_bytes());
        // Answered after the events were sent to be written.
        assert_eq!(other.request("GET", FLAGS, &with_key(CLIENT), b"").status, 200);
        drop(other);
        shim.disk_is_stuck(false);
        eventually("both are counted", || {
            let refused = proxy.metric("edge_proxy_events_refused_total{reason=\"timeout\"}");
            (accepted() + refused >= before + 2.0).then_some(())
        });
        accepted() == before + 2.0
    });
    assert!(is_shown, "the disk was too slow in each attempt");
    eventually("both are upstream", || {
        let names = names_sent(&upstream);
        let has = |word: &str| names.iter().any(|name| name.starts_with(word));
        (has("reset") && has("closed")).then_some(())
    });
    assert_eq!(client.request("POST", PATH, &with_key(CLIENT), events(&["after"]).as_bytes()).status, 202);
}

#[test]
fn a_stream_that_waits_is_answered_after_sigterm() {
    let shim = Shim::new();
    let (upstream, cache) = (Upstream::start(), Scratch::new());
    upstream.rule(accept);
    let is_shown = (0..ATTEMPTS).any(|attempt| {
        let mut proxy = shim.preload(start(&upstream, &cache).cores(1)).ready();
        let mut client = Http2Client::connect(proxy.address());
        assert_eq!(client.request("GET", FLAGS, &with_key(CLIENT), b"").status, 200);
        shim.disk_is_stuck(true);
        let body = events(&[&format!("drained{attempt}")]);
        let sent = client.open_head("POST", PATH, &with_key(CLIENT), false);
        client.frame(http2::DATA, END_STREAM, sent, body.as_bytes());
        assert_eq!(client.request("GET", FLAGS, &with_key(CLIENT), b"").status, 200);
        proxy.signal("TERM");
        let goaway = client.until(http2::GOAWAY).expect("GOAWAY");
        assert_eq!(goaway.code(), 0);
        let is_early = client.partial(sent).is_some();
        shim.disk_is_stuck(false);
        let status = if is_early { 0 } else { client.answer(sent).expect("an answer").status };
        assert!(proxy.wait().success(), "{}", proxy.log());
        status == 202
    });
    assert!(is_shown, "the disk was too slow in each attempt");
    eventually("it is upstream", || {
        names_sent(&upstream).iter().any(|name| name.starts_with("drained")).then_some(())
    });
}

#[test]
fn curl_posts_events_over_tls() {
    let (upstream, cache) = (Upstream::start(), Scratch::new());
    upstream.rule(accept);
    let begin = start(&upstream, &cache);
    let issued = Authority::new().issue("localhost");
    let cert = begin.scratch().write("cert.pem", issued.certificate);
    let key = begin.scratch().write("key.pem", issued.key);
    let proxy = begin.set("server.tls", json!({"cert": cert, "key": key})).spawn();
    proxy.wait_for_log("environment_updated");
    let url = format!("https://{}{PATH}", proxy.address());
    let posted = |name: &str| {
        let output = Command::new("curl")
            .args([
                "--silent",
                "--insecure",
                "--http2",
                "--max-time",
                "20",
                "--write-out",
                "|%{http_version} %{http_code}",
            ])
            .args([
                "--header",
                &format!("X-Environment-Key: {CLIENT}"),
                "--header",
                "Content-Type: application/json",
            ])
            .args(["--data-binary", &events(&[name]), &url])
            .output()
            .expect("curl is there");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let printed = eventually("it listens", || Some(posted("a")).filter(|printed| printed.contains("|2 ")));
    assert_eq!(printed, r#"{"accepted":1,"rejected":[]}|2 202"#);
    eventually("it is upstream", || (names_sent(&upstream) == ["a"]).then_some(()));
}
