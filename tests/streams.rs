//! Event streams to clients: access, events, and their order.
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Client, Proxy, Start, Upstream};
use crate::surface::{CLIENT, SERVER, document};

const STREAM: &str = "/sse/environments/SurfaceClientKey/stream";
const OFREP: &str = "/ofrep/v1/environments/SurfaceClientKey/stream";

/// Subscribes over HTTP/1.0, whose streams are not chunked and can be read line by line. Returns the client,
/// the status and the fields of the head.
fn subscribe(proxy: &Proxy, path: &str, fields: &[(&str, &str)]) -> (Client, u16, Vec<(String, String)>) {
    let mut client = Client::connect(proxy.address());
    let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    client.send(format!("GET {path} HTTP/1.0\r\n{fields}\r\n"));
    let (status, head) = client.head().expect("a head").expect("an answer");
    (client, status, head)
}

fn field<'a>(head: &'a [(String, String)], name: &str) -> Option<&'a str> {
    head.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
}

fn served_from_file() -> Start {
    let start = Start::serve();
    let path = start.scratch().write("surface.json", document(0).to_string());
    start.document(CLIENT, SERVER, path)
}

#[test]
fn streams_require_a_known_key_and_get() {
    let proxy = served_from_file().ready();
    for (path, key) in [
        ("/sse/environments/nope/stream", "nope"),
        ("/sse/environments/nope/stream/", "nope"),
        ("/ofrep/v1/environments/nope/stream", "nope"),
        ("/sse/environments/a%27b/stream", "a\'b"),
        ("/sse/environments/surfaceclientkey/stream", "surfaceclientkey"),
    ] {
        // The key of the header is ignored here: EventSource cannot send one.
        let answer = proxy.get(path, CLIENT);
        let quoted = if key.contains('\'') { format!("\\\"{key}\\\"") } else { format!("'{key}'") };
        let body = format!(r#"{{"status":"unauthorized","message":"unknown key {quoted}"}}"#);
        assert_eq!((answer.status, answer.text()), (401, body), "{path}");
    }
    for path in ["/sse/environments//stream", "/sse/environments/a/b/stream", "/sse/environments/", "/sse/"] {
        assert_eq!(proxy.get(path, "").status, 404, "{path}");
    }
    for path in [STREAM, OFREP] {
        let posted = proxy.post(path, CLIENT, "{}");
        assert_eq!((posted.status, posted.header("allow")), (405, Some("GET, HEAD")), "{path}");
        let head = Client::connect(proxy.address()).request("HEAD", path, &[], b"");
        assert_eq!((head.status, head.header("content-type")), (200, Some("text/event-stream")), "{path}");
    }
}

#[test]
fn stream_opens_before_the_document_arrives() {
    let upstream = Upstream::start();
    let proxy = Start::serve()
        .set("api_url", upstream.api_url())
        .set("api_poll_frequency", 1)
        .environment(CLIENT, SERVER)
        .start();
    let (mut client, status, _) = subscribe(&proxy, STREAM, &[]);
    assert_eq!((status, client.line().expect("a line").as_str()), (200, "retry: 15000"));
    upstream.document(SERVER, document(7).to_string());
    assert_eq!(client.line().expect("a line"), "");
    assert_eq!(client.line().expect("a line"), "event: environment_updated");
    assert_eq!(client.line().expect("a line"), r#"data: {"updated_at": 1795168807.5}"#);
}

#[test]
fn streams_follow_allow_origins() {
    let proxy = served_from_file().set("allow_origins", json!(["https://ok.example"])).ready();
    for (origin, allowed) in
        [("https://ok.example", Some("https://ok.example")), ("https://evil.example", None)]
    {
        let (_client, status, head) = subscribe(&proxy, STREAM, &[("Origin", origin)]);
        assert_eq!((status, field(&head, "access-control-allow-origin")), (200, allowed), "{origin}");
        assert_eq!(field(&head, "cache-control"), Some("no-cache"));
        assert_eq!(field(&head, "content-length"), None);
    }
}

/// An identity override may change without moving the document's time (compatibility.md 4.1).
#[test]
fn ofrep_stream_reports_changes_with_equal_updated_at() {
    let upstream = Upstream::start();
    let mut edited = document(1);
    upstream.document(SERVER, edited.to_string());
    let proxy = Start::serve()
        .set("api_url", upstream.api_url())
        .set("api_poll_frequency", 0.1)
        .set("api_full_refresh_seconds", 0.2)
        .environment(CLIENT, SERVER)
        .ready();
    let (mut flagsmith, ..) = subscribe(&proxy, STREAM, &[]);
    let (mut ofrep, ..) = subscribe(&proxy, OFREP, &[]);
    let next = |client: &mut Client| loop {
        if let Some(data) = client.line().expect("a line").strip_prefix("data: ") {
            return data.to_owned();
        }
    };
    let event = r#"{"type":"refetchEvaluation","lastModified":1795168801}"#;
    assert_eq!(next(&mut ofrep), event);
    assert_eq!(next(&mut flagsmith), r#"{"updated_at": 1795168801.5}"#);
    edited["feature_states"][0]["feature_state_value"] = json!("edited");
    upstream.document(SERVER, edited.to_string());
    assert_eq!(next(&mut ofrep), event, "the event carries no time");
    let now = proxy.get("/api/v1/flags/?feature=banner", CLIENT).json()["feature_state_value"].clone();
    assert_eq!(now, "edited", "the new document is served");
    edited["updated_at"] = serde_json::Value::Null;
    upstream.document(SERVER, edited.to_string());
    assert_eq!(next(&mut ofrep), r#"{"type":"refetchEvaluation"}"#);
    edited["updated_at"] = json!("2026-11-20T10:00:09+00:00");
    upstream.document(SERVER, edited.to_string());
    assert_eq!(next(&mut ofrep), r#"{"type":"refetchEvaluation","lastModified":1795168809}"#);
    assert_eq!(
        next(&mut flagsmith),
        r#"{"updated_at": 1795168809.0}"#,
        "Flagsmith's SDKs compare only the time"
    );
}

/// A quiet stream gets a comment every 15 seconds.
#[test]
fn stream_reports_only_its_environment() {
    let upstream = Upstream::start();
    let mut other = document(1);
    other["api_key"] = json!("OtherClientKey");
    upstream.document(SERVER, document(1).to_string());
    upstream.document("ser.other", other.to_string());
    let proxy = Start::serve()
        .set("api_url", upstream.api_url())
        .set("api_poll_frequency", 1)
        .environment(CLIENT, SERVER)
        .environment("OtherClientKey", "ser.other")
        .ready();
    let (mut quiet, ..) = subscribe(&proxy, STREAM, &[]);
    let (mut client, ..) = subscribe(&proxy, "/sse/environments/OtherClientKey/stream", &[]);
    let first =
        ["retry: 15000", "", "event: environment_updated", r#"data: {"updated_at": 1795168801.5}"#, ""];
    for line in first {
        assert_eq!(quiet.line().expect("a line"), line);
        assert_eq!(client.line().expect("a line"), line);
    }
    other["updated_at"] = json!("2026-11-20T10:00:09+00:00");
    upstream.document("ser.other", other.to_string());
    assert_eq!(client.line().expect("a line"), "event: environment_updated");
    assert_eq!(
        client.line().expect("a line"),
        r#"data: {"updated_at": 1795168809.0}"#,
        "a decimal point, always"
    );
    // The comment is the first line. A busy machine may delay it.
    quiet.stream().set_read_timeout(Some(Duration::from_secs(120))).expect("a timeout");
    let since = Instant::now();
    assert_eq!(quiet.line().expect("a comment"), ":", "after {:?}", since.elapsed());
}
