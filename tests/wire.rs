//! Requests at the edge of what is allowed, byte by byte, and the Python proxy's answers to them.
//!
//! Each row was sent to the model first: uvicorn 0.29 with h11, FastAPI 0.110.1 and its middleware.
//! What a row expects is what the model answered, but for the numbered differences.
use crate::support::{Answer, Client, Proxy, Start};
use crate::surface::{CLIENT, SERVER, document};

fn start() -> Proxy {
    let start = Start::serve();
    let path = start.scratch().write("surface.json", document(0).to_string());
    start.document(CLIENT, SERVER, path).ready()
}

/// Sends `METHOD TARGET` with these lines, each with its end, as they are.
fn ask(proxy: &Proxy, request: &[u8], lines: &str) -> Answer {
    let mut bytes = request.to_vec();
    bytes.extend_from_slice(b" HTTP/1.1\r\nHost: h.example\r\n");
    bytes.extend_from_slice(lines.as_bytes());
    bytes.extend_from_slice(b"\r\n");
    let mut client = Client::connect(proxy.address());
    client.send(bytes);
    client.answer(if request.starts_with(b"HEAD") { "HEAD" } else { "GET" })
}

#[test]
fn a_target_is_taken_as_it_was_sent() {
    let proxy = start();
    for (request, status, body) in [
        // Unencoded, as curl and scripts send them.
        (&b"GET /api/v1/flags/?feature=a\"b"[..], 404, r#""message":"feature 'a\"b' not found""#),
        (b"GET /api/v1/flags/?feature=<b>", 404, r#""message":"feature '<b>' not found""#),
        (b"GET /api/v1/flags/?feature=a#b", 404, r#""message":"feature 'a#b' not found""#),
        (b"GET /api/v1/flags/?feature=a\\b", 404, r#""message":"feature 'a\\b' not found""#),
        (b"GET /api/v1/flags/?feature={a|b^c`d}", 404, r#""message":"feature '{a|b^c`d}' not found""#),
        (b"GET /api/v1/flags/?x=<b>&feature=banner", 200, r#""feature_state_value":"hello""#),
        (b"GET /api/v1/identities/?identifier=a#<\">b", 200, r#"{"identifier":"a#<\">b","traits":[]"#),
        (b"GET /api/v1/identities?x=\"", 422, r#""loc":["query","identifier"]"#),
        (b"GET /api/v1/flags/#", 404, r#"{"detail":"Not Found"}"#),
        (b"GET /api/v1/flags<b>/", 404, r#"{"detail":"Not Found"}"#),
        (b"POST /api/v1/flags/?\"", 405, r#"{"detail":"Method Not Allowed"}"#),
        // Not visible ASCII: no request at all.
        (b"GET /api/v1/flags/?feature=\xc3\xa9", 400, "{"),
        (b"GET /\xc3\xa9", 400, "{"),
        (b"GET /api/v1/flags/?feature=\x7f", 400, "{"),
        (b"GET /api/v1/flags/?feature=\x01", 400, "{"),
    ] {
        let answer = ask(&proxy, request, &format!("X-Environment-Key: {CLIENT}\r\n"));
        let shown = String::from_utf8_lossy(request);
        assert!(
            answer.status == status && answer.text().contains(body),
            "{shown}: {} {}",
            answer.status,
            answer.text()
        );
    }
}

#[test]
fn what_follows_an_odd_target_is_the_next_request() {
    let proxy = start();
    let mut client = Client::connect(proxy.address());
    let key = format!("HTTP/1.1\r\nHost: h\r\nX-Environment-Key: {CLIENT}\r\n\r\n");
    client.send(format!("GET /api/v1/flags/?feature=<a> {key}GET /api/v1/flags/?feature=banner {key}"));
    assert!(client.answer("GET").text().contains("feature '<a>' not found"));
    assert!(client.answer("GET").text().contains("hello"));
    client.send(format!("GET /api/v1/flags/?feature=b#c {key}"));
    assert!(client.answer("GET").text().contains("feature 'b#c' not found"));
}

#[test]
fn a_long_refusal_is_compressed_as_any_long_answer() {
    let proxy = start();
    let long = "x".repeat(1_000);
    let not_found = format!("GET /api/v1/flags/?feature={long}");
    for (encoding, expected) in
        [("gzip", Some("gzip")), ("br, gzip;q=0.5", Some("gzip")), ("gzip;q=0", None), ("br", None)]
    {
        let lines = format!("X-Environment-Key: {CLIENT}\r\nAccept-Encoding: {encoding}\r\n");
        let answer = ask(&proxy, not_found.as_bytes(), &lines);
        assert_eq!((answer.status, answer.header("content-encoding")), (404, expected), "{encoding}");
        let varies = answer.headers.iter().any(|(name, value)| name == "vary" && value == "Accept-Encoding");
        assert_eq!(varies, expected.is_some(), "{encoding}");
        let plain = String::from_utf8_lossy(&answer.plain()).into_owned();
        assert_eq!(plain, format!(r#"{{"status":"not_found","message":"feature '{long}' not found"}}"#));
    }
    let lines = format!("X-Environment-Key: {long}\r\nAccept-Encoding: gzip\r\n");
    let unknown = ask(&proxy, b"GET /api/v1/flags/", &lines);
    assert_eq!((unknown.status, unknown.header("content-encoding")), (401, Some("gzip")));
    let body = format!(r#"{{"identifier":["{long}"]}}"#);
    let fields = [("X-Environment-Key", CLIENT), ("Accept-Encoding", "gzip")];
    let invalid =
        Client::connect(proxy.address()).request("POST", "/api/v1/identities/", &fields, body.as_bytes());
    assert_eq!((invalid.status, invalid.header("content-encoding")), (422, Some("gzip")));
    assert!(String::from_utf8_lossy(&invalid.plain()).contains("string_type"));
}
