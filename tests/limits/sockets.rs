//! Limits that can be reached over a socket, tested at the limit and one beyond.
use std::io::Write as _;

use edge_proxy::limits::*;
use serde_json::{Value, json};

use super::{Row, page, prepare, rows, says};
use crate::support::{Answer, Client, Proxy, Start, Upstream, eventually, request};
use crate::surface::{CLIENT, SERVER, document};

const IDENTITIES: &str = "/api/v1/identities/";
const LIVENESS: &str = "/proxy/health/liveness";

/// What the page states for an input beyond its limit.
fn beyond(rows: &[Row], input: &str) -> String {
    let row = rows.iter().find(|row| row.cells[0] == input);
    row.unwrap_or_else(|| panic!("no row {input:?}")).cells[2].clone()
}

struct Probe {
    /// The first cell of the row.
    input: &'static str,
    at: (Vec<u8>, u16),
    beyond: (Vec<u8>, u16),
}

fn head_of(bytes: usize) -> Vec<u8> {
    let head = format!("GET {LIVENESS} HTTP/1.1\r\nHost: a\r\nX: ");
    let padding = "a".repeat(bytes - head.len() - 4);
    format!("{head}{padding}\r\n\r\n").into_bytes()
}

fn target_of(bytes: usize) -> Vec<u8> {
    format!("GET {LIVENESS}?{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(bytes - LIVENESS.len() - 1))
        .into_bytes()
}

fn fields_of(count: usize) -> Vec<u8> {
    format!("GET {LIVENESS} HTTP/1.1\r\nHost: a\r\n{}\r\n", "A: b\r\n".repeat(count - 1)).into_bytes()
}

fn after_lines(count: usize) -> Vec<u8> {
    format!("{}GET {LIVENESS} HTTP/1.1\r\nHost: a\r\n\r\n", "\r\n".repeat(count)).into_bytes()
}

fn post(path: &str, key: &str, coding: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let mut fields = vec![("Content-Type", "application/json")];
    fields.extend((!key.is_empty()).then_some(("X-Environment-Key", key)));
    fields.extend((!coding.is_empty()).then_some(("Content-Encoding", coding)));
    request("POST", path, &fields, body.as_ref())
}

fn identity(body: impl AsRef<[u8]>) -> Vec<u8> {
    post(IDENTITIES, CLIENT, "", body)
}

/// A body for identities of exactly `bytes` bytes.
fn padded(bytes: usize) -> String {
    let body = r#"{"identifier":"a","traits":[]}"#;
    format!("{body}{}", " ".repeat(bytes - body.len()))
}

fn gzip(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes.as_ref()).expect("memory");
    encoder.finish().expect("memory")
}

fn chunked(chunks: &str) -> Vec<u8> {
    let head = format!("POST {IDENTITIES} HTTP/1.1\r\nHost: a\r\nX-Environment-Key: {CLIENT}\r\n");
    format!("{head}Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}").into_bytes()
}

/// A chunk whose line has `bytes` bytes, including its CRLF.
fn chunk_line(bytes: usize) -> Vec<u8> {
    let body = padded(64);
    let extension = "a".repeat(bytes - 5);
    chunked(&format!("40;{extension}\r\n{body}\r\n0\r\n\r\n"))
}

fn trailer(bytes: usize) -> Vec<u8> {
    let body = padded(64);
    chunked(&format!("40\r\n{body}\r\n0\r\nX-T: {}\r\n\r\n", "a".repeat(bytes - 7)))
}

fn nested(depth: usize) -> String {
    // The enclosing object is one level.
    format!(r#"{{"identifier":"a","x":{}{}}}"#, "[".repeat(depth - 1), "]".repeat(depth - 1))
}

fn one_trait(value: &str) -> String {
    format!(r#"{{"identifier":"a","traits":[{{"trait_key":"k","trait_value":{value}}}]}}"#)
}

fn named(identifier: &str) -> String {
    json!({"identifier": identifier, "traits": []}).to_string()
}

fn context(identifier: &str, text: &str) -> Vec<u8> {
    let body = json!({"context": {"targetingKey": identifier, "k": text}}).to_string();
    post("/ofrep/v1/evaluate/flags", CLIENT, "", body)
}

fn bulk(count: usize) -> Vec<u8> {
    let data: Vec<Value> = (0..count).map(|number| json!({"identifier": number.to_string()})).collect();
    post("/api/v1/bulk-identities/", CLIENT, "", json!({"data": data}).to_string())
}

/// A body with an error after `bytes` bytes.
fn error_after(bytes: usize) -> Vec<u8> {
    post(IDENTITIES, "", "", format!("{}}}", " ".repeat(bytes)))
}

fn query(identifier: &str) -> Vec<u8> {
    request("GET", &format!("{IDENTITIES}?identifier={identifier}"), &[("X-Environment-Key", CLIENT)], b"")
}

fn framing() -> Vec<Probe> {
    let members = [gzip(&padded(64)[..9]), gzip(&padded(64)[9..])].concat();
    let trailing = [&members[..], b"x"].concat();
    let probe = |input, at, beyond| Probe { input, at, beyond };
    vec![
        probe(
            "head: request line and fields",
            (head_of(HEAD_BYTES_MAX), 200),
            (head_of(HEAD_BYTES_MAX + 1), 431),
        ),
        probe("target", (target_of(HEAD_BYTES_MAX / 2), 200), (target_of(HEAD_BYTES_MAX / 2 + 1), 414)),
        probe("header fields", (fields_of(HEADERS_MAX), 200), (fields_of(HEADERS_MAX + 1), 431)),
        probe(
            "empty lines before a request",
            (after_lines(EMPTY_LINES_MAX), 200),
            (after_lines(EMPTY_LINES_MAX + 1), 400),
        ),
        probe("query: identifier", (query(&"a".repeat(2000)), 200), (query(&"a".repeat(2001)), 422)),
        probe(
            "body, plain or inflated",
            (identity(padded(BODY_BYTES_MAX)), 200),
            (identity(padded(BODY_BYTES_MAX + 1)), 413),
        ),
        probe(
            "body, plain or inflated",
            (post(IDENTITIES, CLIENT, "gzip", gzip(padded(BODY_BYTES_MAX))), 200),
            (post(IDENTITIES, CLIENT, "gzip", gzip(padded(BODY_BYTES_MAX + 1))), 413),
        ),
        probe(
            "body with a `Content-Encoding`, no valid key",
            (post(IDENTITIES, CLIENT, "gzip", gzip("{")), 422),
            (post(IDENTITIES, "unknown", "gzip", gzip("{")), 401),
        ),
        probe(
            "plain body, no valid key",
            (error_after(UNKNOWN_CALLER_BODY_BYTES_MAX - 1), 422),
            (error_after(UNKNOWN_CALLER_BODY_BYTES_MAX), 401),
        ),
        probe(
            "gzip members",
            (post(IDENTITIES, CLIENT, "gzip", members), 200),
            (post(IDENTITIES, CLIENT, "gzip", trailing), 400),
        ),
        probe(
            "other content codings",
            (post(IDENTITIES, CLIENT, "identity", padded(64)), 200),
            (post(IDENTITIES, CLIENT, "br", padded(64)), 415),
        ),
        probe(
            "line of a chunk, with its extensions and CRLF",
            (chunk_line(CHUNK_LINE_BYTES_MAX), 200),
            (chunk_line(CHUNK_LINE_BYTES_MAX + 1), 400),
        ),
        probe("trailer fields", (trailer(TRAILER_BYTES_MAX), 200), (trailer(TRAILER_BYTES_MAX + 1), 431)),
    ]
}

fn bodies() -> Vec<Probe> {
    let text = |count: usize| format!("\"{}\"", "é".repeat(count));
    let (fits, long) = ("é".repeat(IDENTIFIER_CHARS_MAX), "é".repeat(IDENTIFIER_CHARS_MAX + 1));
    let digits = |count: usize| identity(one_trait(&"1".repeat(count)));
    let errors = |count: usize| identity(format!(r#"{{"traits":[{}]}}"#, vec!["{}"; count].join(",")));
    let probe = |input, at, beyond| Probe { input, at, beyond };
    vec![
        probe(
            "JSON: nesting",
            (identity(nested(JSON_DEPTH_MAX)), 200),
            (identity(nested(JSON_DEPTH_MAX + 1)), 400),
        ),
        probe(
            "JSON: digits of an integer",
            (digits(INTEGER_DIGITS_MAX), 200),
            (digits(INTEGER_DIGITS_MAX + 1), 400),
        ),
        probe("errors in a 422", (errors(ERRORS_MAX), 422), (errors(ERRORS_MAX + 1), 422)),
        probe("identifier; `targetingKey`", (identity(named(&fits)), 200), (identity(named(&long)), 422)),
        probe("identifier; `targetingKey`", (context(&fits, ""), 200), (context(&long, ""), 400)),
        probe(
            "text of a trait; of an OFREP context",
            (identity(one_trait(&text(TRAIT_VALUE_CHARS_MAX))), 200),
            (identity(one_trait(&text(TRAIT_VALUE_CHARS_MAX + 1))), 422),
        ),
        probe(
            "text of a trait; of an OFREP context",
            (context("a", &"é".repeat(TRAIT_VALUE_CHARS_MAX)), 200),
            (context("a", &"é".repeat(TRAIT_VALUE_CHARS_MAX + 1)), 400),
        ),
        probe(
            "identities in `bulk-identities/`",
            (bulk(BULK_IDENTITIES_MAX), 200),
            (bulk(BULK_IDENTITIES_MAX + 1), 400),
        ),
    ]
}

fn exchange(proxy: &Proxy, bytes: &[u8]) -> (Answer, bool) {
    let mut client = proxy.client();
    // The server may close before it has read all of a rejected request.
    let _ = client.try_send(bytes);
    let method = if bytes.starts_with(b"POST") { "POST" } else { "GET" };
    let answer = client.answer(method);
    let closes = answer.header("connection") == Some("close");
    (answer, closes)
}

#[test]
fn request_limits_apply_at_the_limit_and_one_beyond() {
    let proxy = prepare().ready();
    let rows = rows(&page());
    for Probe { input, at, beyond: over } in framing().into_iter().chain(bodies()) {
        let says = beyond(&rows, input);
        let (answer, _) = exchange(&proxy, &at.0);
        assert_eq!(answer.status, at.1, "{input}, at the bound: {:.200}", answer.text());
        let (answer, closes) = exchange(&proxy, &over.0);
        assert_eq!(answer.status, over.1, "{input}, beyond: {:.200}", answer.text());
        let status = answer.status.to_string();
        assert!(says.contains(&status), "{input}: the page says {says:?}, the answer is {status}");
        let is_close =
            says.contains(&format!("{status}, close")) || says.contains(&format!("{status} and close"));
        assert_eq!(closes, is_close, "{input}: the page says {says:?}");
        assert!(answer.body.len() <= 64 * 1024, "{input}: {} bytes", answer.body.len());
    }
    assert_eq!(proxy.metric("edge_proxy_errors_truncated_total"), 1.0);
    for reason in [
        "head_too_large",
        "target_too_long",
        "bad_request",
        "body_too_large",
        "trailing_bytes",
        "unsupported_coding",
    ] {
        assert!(
            proxy.metric(&format!("edge_proxy_http_rejects_total{{reason=\"{reason}\"}}")) > 0.0,
            "{reason}"
        );
    }
}

#[test]
fn a_bulk_answer_holds_at_the_bound_and_one_beyond() {
    const COUNT: usize = 16;
    let serve = |value: usize| {
        let mut document = document(0);
        document["feature_states"][0]["feature_state_value"] = json!("x".repeat(value));
        let start = Start::serve().with_admin();
        let path = start.scratch().write("document.json", document.to_string());
        start.document(CLIENT, SERVER, path).ready()
    };
    let ask = |proxy: &Proxy| {
        let data: Vec<Value> = (10..10 + COUNT).map(|it| json!({"identifier": it.to_string()})).collect();
        let body = json!({"data": data}).to_string();
        exchange(proxy, &post("/api/v1/bulk-identities/", CLIENT, "", body)).0
    };
    let around = ask(&serve(0)).body.len();
    // The last bracket is not counted.
    let rest = BULK_ANSWER_BYTES_MAX + 1 - around;
    let (fits, beyond) = (serve(rest / COUNT), serve(rest / COUNT + 1));
    let answer = ask(&fits);
    assert_eq!((answer.status, answer.body.len()), (200, around + rest / COUNT * COUNT));
    let answer = ask(&beyond);
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("send fewer identities"), "{}", answer.text());
    assert_eq!(beyond.metric("edge_proxy_bulk_refused_total"), 1.0);
    assert_eq!(fits.metric("edge_proxy_bulk_refused_total"), 0.0);
    says("answer to `bulk-identities/`, for more than one identity", "400");
}

#[test]
fn request_timeouts_follow_the_settings() {
    let start = prepare().set("server.timeout_head", 0.3).set("server.timeout_body", 0.3);
    let proxy = start.set("server.connections_max", 2).ready();
    for (input, bytes) in [
        ("time for a head, from its first byte; for a TLS handshake", b"GET / HTTP/1.1\r\n".to_vec()),
        ("time for a body, from the end of its head", identity(padded(64))[..150].to_vec()),
    ] {
        let (answer, closes) = exchange(&proxy, &bytes);
        assert_eq!((answer.status, closes), (408, true), "{input}");
        assert!(beyond(&rows(&page()), input).contains("408, close"), "{input}");
    }
    eventually("the connections are closed", || {
        (proxy.metric("edge_proxy_connections_open") == 0.0).then_some(())
    });
    let mut clients = [proxy.client(), proxy.client()];
    for client in &mut clients {
        assert_eq!(client.request("GET", LIVENESS, &[], b"").status, 200);
    }
    assert!(proxy.client().is_closed());
    proxy.wait_for_log("connection_limit_reached");
    assert!(proxy.metric("edge_proxy_connections_refused_total") >= 1.0);
}

#[test]
fn counts_are_truncated_and_merged_at_the_limits() {
    let upstream = Upstream::start();
    upstream.document(SERVER, document(0).to_string());
    let start = Start::serve().with_admin().set("api_url", upstream.api_url()).environment(CLIENT, SERVER);
    let proxy = start.set("analytics", json!({"flush_interval_seconds": 3600})).ready();
    let cut = |field: &str| proxy.metric(&format!("edge_proxy_counts_cut_total{{field=\"{field}\"}}"));
    let merged = || proxy.metric("edge_proxy_counts_merged_total{without=\"label\"}");
    let mut client = proxy.client();
    let mut count = |agent: &str, identifier: &str| {
        let body = json!({"evaluations": [{"feature_name": "banner", "identity_identifier": identifier,
            "enabled_when_evaluated": true, "count": 1}]});
        let fields =
            [("X-Environment-Key", CLIENT), ("Content-Type", "application/json"), ("User-Agent", agent)];
        let answer = client.request("POST", "/api/v2/analytics/flags/", &fields, body.to_string().as_bytes());
        assert_eq!(answer.status, 204, "{}", answer.text());
    };
    let (fits, long) = ("é".repeat(IDENTIFIER_CHARS_MAX), "é".repeat(IDENTIFIER_CHARS_MAX + 1));
    count("a", &fits);
    count("a", &long);
    eventually("one identifier is cut", || (cut("identifier") == 1.0).then_some(()));
    count(&"b".repeat(LABEL_BYTES_MAX), "u");
    count(&"c".repeat(LABEL_BYTES_MAX + 1), "u");
    eventually("one label is cut", || (cut("label") >= 1.0).then_some(()));
    assert_eq!(merged(), 0.0);
    (4..=COUNT_LABELS_MAX).for_each(|number| count(&format!("agent-{number}"), "u"));
    count("one too many", "u");
    eventually("it is merged", || (merged() == 1.0).then_some(()));
    assert_eq!(cut("identifier"), 1.0);
}

#[test]
fn document_and_configuration_limits_apply_at_the_limit_and_one_beyond() {
    let text = document(0).to_string();
    let deep = |depth: usize| {
        // The enclosing object is one level.
        let (open, close) = ("[".repeat(depth - 1), "]".repeat(depth - 1));
        format!(r#"{{"x":{open}0{close},{}"#, &text[1..])
    };
    for (bytes, document, is_served) in [
        (text.len(), text.clone(), true),
        (text.len() - 1, text.clone(), false),
        (text.len() + 4 * DOCUMENT_DEPTH_MAX, deep(DOCUMENT_DEPTH_MAX), true),
        (text.len() + 4 * DOCUMENT_DEPTH_MAX, deep(DOCUMENT_DEPTH_MAX + 1), false),
    ] {
        let start = Start::serve().with_admin().set("api_document_bytes_max", bytes);
        let path = start.scratch().write("document.json", document);
        let proxy = start.document(CLIENT, SERVER, path).start();
        if is_served {
            eventually("it is served", || (proxy.get("/api/v1/flags/", CLIENT).status == 200).then_some(()));
        } else {
            proxy.wait_for_log("document_refused");
            assert_eq!(proxy.get("/api/v1/flags/", CLIENT).status, 502);
        }
    }
    let bytes = usize::try_from(CONFIG_BYTES_MAX).expect("it fits");
    for (length, code) in [(bytes, Some(0)), (bytes + 1, Some(64))] {
        let start = Start::command(&["check"]);
        let path = start.scratch().write("document.json", &text);
        let pair = json!({"client_side_key": CLIENT, "server_side_key": SERVER, "document_path": path});
        let mut config = json!({"environment_key_pairs": [pair]}).to_string();
        config.push_str(&" ".repeat(length - config.len()));
        let file = start.scratch().write("large.json", config);
        let (ended, printed) = start.env("CONFIG_PATH", file.to_str().expect("a plain path")).run();
        assert_eq!(ended, code, "{length} bytes: {printed}");
    }
}

#[test]
fn admin_listener_limits_apply() {
    let proxy = prepare().ready();
    let admin = proxy.admin();
    let closed = || proxy.metric("edge_proxy_admin_connections_closed_total");
    let head = |bytes: usize| {
        let head = format!("GET {LIVENESS} HTTP/1.1\r\nHost: localhost\r\nX: ");
        format!("{head}{}\r\n\r\n", "a".repeat(bytes - head.len() - 4))
    };
    let mut client = Client::connect(admin);
    client.send(head(ADMIN_HEAD_BYTES_MAX));
    assert_eq!(client.answer("GET").status, 200);
    let mut client = Client::connect(admin);
    let _ = client.try_send(head(ADMIN_HEAD_BYTES_MAX + 1));
    assert!(client.is_closed(), "a head beyond the limit is not answered");
    let before = closed();
    let _idle: Vec<Client> = (0..=ADMIN_CONNECTIONS_MAX).map(|_| Client::connect(admin)).collect();
    eventually("one is closed", || (closed() > before).then_some(()));
    let mut client = Client::connect(admin);
    client.send(format!("GET {LIVENESS} HTTP/1.1\r\nHost: evil.example\r\n\r\n"));
    assert_eq!(client.answer("GET").status, 421);
    assert!(proxy.metric("edge_proxy_admin_hosts_refused_total") == 1.0);
    proxy.wait_for_log("admin_host_refused");
}
