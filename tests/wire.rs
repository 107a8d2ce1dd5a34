//! Requests at the limits of the syntax, byte by byte, with the responses of the Python proxy.
//!
//! Each row was executed with the reference: uvicorn 0.29 with h11, FastAPI 0.110.1 and its middleware. The
//! expected responses are those of the reference, except for the numbered differences.
use serde_json::Value;

use crate::support::{Answer, Client, Proxy, Start, fixture};
use crate::surface::{CLIENT, SERVER, document};

fn start() -> Proxy {
    let start = Start::serve();
    let path = start.scratch().write("surface.json", document(0).to_string());
    start.document(CLIENT, SERVER, path).ready()
}

/// Sends `METHOD TARGET` with these lines, each with its CRLF, unchanged.
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
fn accepts_targets_as_sent() {
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
        // Not visible ASCII: not a request.
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
fn request_after_a_nonstandard_target_is_parsed() {
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
fn compresses_long_error_responses() {
    let proxy = start();
    let long = "x".repeat(1_000);
    let not_found = format!("GET /api/v1/flags/?feature={long}");
    for (encoding, expected) in
        [("gzip", Some("gzip")), ("br, gzip;q=0.5", Some("gzip")), ("gzip;q=0", None), ("br", None)]
    {
        let lines = format!("X-Environment-Key: {CLIENT}\r\nAccept-Encoding: {encoding}\r\n");
        let answer = ask(&proxy, not_found.as_bytes(), &lines);
        assert_eq!((answer.status, answer.header("content-encoding")), (404, expected), "{encoding}");
        // Cacheable responses name the request fields that they depend on.
        let vary = answer.header("vary").unwrap_or_default();
        assert!(vary.contains("X-Environment-Key") && vary.contains("Accept-Encoding"), "{vary}");
        assert_eq!(answer.header("cache-control"), Some("no-cache"));
        let plain = String::from_utf8_lossy(&answer.plain()).into_owned();
        assert_eq!(plain, format!(r#"{{"status":"not_found","message":"feature '{long}' not found"}}"#));
    }
    let lines = format!("X-Environment-Key: {long}\r\nAccept-Encoding: gzip\r\n");
    let unknown = ask(&proxy, b"GET /api/v1/flags/", &lines);
    assert_eq!((unknown.status, unknown.header("content-encoding")), (401, Some("gzip")));
    assert_eq!(unknown.header("vary"), Some("Accept-Encoding"));
    let body = format!(r#"{{"traits":[{}]}}"#, ["{}"; 10].join(","));
    let fields = [("X-Environment-Key", CLIENT), ("Accept-Encoding", "gzip")];
    let invalid =
        Client::connect(proxy.address()).request("POST", "/api/v1/identities/", &fields, body.as_bytes());
    assert_eq!((invalid.status, invalid.header("content-encoding")), (422, Some("gzip")));
    assert!(String::from_utf8_lossy(&invalid.plain()).contains("missing"));
}

// --- random requests, recorded with the reference's responses (fixtures/wire/record.py) ---

struct Recorded {
    request: Vec<u8>,
    is_any_origin: bool,
    status: u16,
    fields: Vec<(String, String)>,
    body: Vec<u8>,
}

fn latin_1(text: &Value) -> Vec<u8> {
    text.as_str().expect("text").chars().map(|char| u8::try_from(u32::from(char)).expect("Latin-1")).collect()
}

fn recorded(line: &Value) -> Recorded {
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let fields = line[3].as_array().expect("a list").iter();
    Recorded {
        request: latin_1(&line[0]),
        is_any_origin: line[1].as_bool().expect("a truth"),
        status: line[2].as_u64().and_then(|status| status.try_into().ok()).expect("a status"),
        fields: fields.map(|field| (text(&field[0]), text(&field[1]))).collect(),
        body: latin_1(&line[4]),
    }
}

/// Whether the response lists the same errors with inputs truncated to 200 bytes (38).
fn is_cut_form(recorded: &[u8], answered: &[u8]) -> bool {
    let [recorded, answered] = [recorded, answered].map(|body| String::from_utf8_lossy(body).into_owned());
    let (mut recorded, mut is_cut) = (recorded.as_str(), false);
    for (number, part) in answered.split("...\"").enumerate() {
        if number > 0 {
            let Some(end) = recorded.find(&format!("\"{part}")) else { return false };
            is_cut |= end > 3;
            recorded = &recorded[end + 1..];
        }
        let Some(rest) = recorded.strip_prefix(part) else { return false };
        recorded = rest;
    }
    is_cut && recorded.is_empty()
}

/// The error of an identifier that is too long.
const TOO_LONG: &str = r#""type":"string_too_long","loc":["body","identifier"]"#;

impl Recorded {
    fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// Whether the body's identifier is longer than 2,000 characters (40).
    fn has_long_identifier(&self) -> bool {
        let request = String::from_utf8_lossy(&self.request);
        let Some((_, rest)) = request.split_once(r#""identifier":""#) else { return false };
        rest.split('"').next().is_some_and(|identifier| identifier.chars().count() > 2000)
    }

    fn is_identity(&self, answer: &Answer) -> bool {
        answer.status == 200 && self.body.starts_with(br#"{"identifier""#)
    }

    /// The first difference from the reference that is not documented.
    fn judge(&self, answer: &Answer) -> Result<(), String> {
        let difference = |what: &str, expected: &dyn std::fmt::Debug, got: &dyn std::fmt::Debug| {
            Err(format!("{what}: expected {expected:?}, got {got:?}"))
        };
        let is_too_long = || String::from_utf8_lossy(&answer.plain()).contains(TOO_LONG);
        if self.has_long_identifier() && answer.status == 422 && is_too_long() {
            return Ok(());
        }
        if self.request.starts_with(b"GET / ") && self.status == 404 {
            let describes_the_server =
                answer.status == 200 && answer.text().starts_with(r#"{"name":"edge-proxy""#);
            return if describes_the_server { Ok(()) } else { difference("/ (56)", &200, &answer.status) };
        }
        if answer.status != self.status {
            return difference("status", &self.status, &answer.status);
        }
        let mut body = answer.plain();
        if self.is_identity(answer) {
            body = crate::replay::without_reasons(&body);
        }
        if answer.status == 422 && is_cut_form(&self.body, &body) {
            // The body may be too short to be compressed.
            return Ok(());
        }
        if body != self.body {
            return difference("body", &String::from_utf8_lossy(&self.body), &String::from_utf8_lossy(&body));
        }
        for name in [
            "content-type",
            "access-control-allow-origin",
            "access-control-allow-methods",
            "access-control-allow-headers",
            "access-control-allow-credentials",
            "access-control-max-age",
        ] {
            if answer.header(name) != self.field(name) {
                return difference(name, &self.field(name), &answer.header(name));
            }
        }
        // Reasons make responses of identities longer (17); Allow names HEAD and each method (34).
        let coding = answer.header("content-encoding");
        if coding != self.field("content-encoding") && !(self.is_identity(answer) && coding == Some("gzip")) {
            return difference("content-encoding", &self.field("content-encoding"), &coding);
        }
        let allowed = |allow: Option<&str>| -> Vec<String> {
            allow.map(|allow| allow.split(", ").map(str::to_owned).collect()).unwrap_or_default()
        };
        let (expected, got) = (allowed(self.field("allow")), allowed(answer.header("allow")));
        if !expected.iter().all(|method| got.contains(method)) || expected.is_empty() != got.is_empty() {
            return difference("allow", &expected, &got);
        }
        let varies =
            |name: &str| answer.headers.iter().any(|(field, text)| field == "vary" && text.contains(name));
        let vary = self.field("vary").into_iter().flat_map(|vary| vary.split(", "));
        vary.filter(|name| !varies(name)).try_for_each(|name| difference("vary", &name, &answer.headers))
    }
}

/// The same request with or without the trailing slash of its path (15).
fn with_other_slash(request: &[u8]) -> Option<Vec<u8>> {
    let text: String = request.iter().map(|byte| char::from(*byte)).collect();
    let (method, rest) = text.split_once(' ')?;
    let end = rest.find(['?', ' '])?;
    let (path, rest) = rest.split_at(end);
    let other = match path {
        "/api/v1/flags/" | "/api/v1/identities/" => path.trim_end_matches('/').to_owned(),
        "/api/v1/environment-document" => format!("{path}/"),
        _ => return None,
    };
    Some(format!("{method} {other}{rest}").chars().map(|char| char as u8).collect())
}

#[test]
fn random_requests_are_answered_as_by_the_reference() {
    let start = |origins: &[&str]| {
        let path = fixture::path("wire/document.json");
        Start::serve().set("allow_origins", origins.to_vec()).document(CLIENT, SERVER, path).ready()
    };
    let proxies = [start(&["https://ok.example", "http://b.example:81"]), start(&["*"])];
    let mut clients = [0, 1].map(|at: usize| Client::connect(proxies[at].address()));
    let mut wrong = Vec::new();
    let lines = fixture::json_lines("wire/requests.jsonl");
    assert_eq!(lines.len(), 500);
    // Twice, because the second response may come from the response cache.
    for line in lines.iter().chain(&lines) {
        let recorded = recorded(line);
        let client = &mut clients[usize::from(recorded.is_any_origin)];
        for request in
            [Some(recorded.request.clone()), with_other_slash(&recorded.request)].into_iter().flatten()
        {
            client.send(&request);
            if let Err(problem) = recorded.judge(&client.answer("GET")) {
                wrong.push(format!("{}\n  {problem:.800}", String::from_utf8_lossy(&request)));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        lines.len(),
        wrong[..wrong.len().min(8)].join("\n")
    );
}
