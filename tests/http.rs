//! HTTP semantics over real sockets: targets, conditional requests, caching, and CORS fields of every response,
//! including errors before routing.
use crate::support::{Answer, Client, Proxy, Start, eventually};
use crate::surface::{CLIENT, SERVER, document};

const ORIGIN: &str = "https://app.example";
const FLAGS: &str = "/api/v1/flags/";
const DOCUMENT: &str = "/api/v1/environment-document/";

fn prepare() -> Start {
    let start = Start::serve();
    // Large enough to be compressed.
    let mut large = document(0);
    large["feature_states"][0]["feature_state_value"] = serde_json::json!("x".repeat(2000));
    let path = start.scratch().write("document.json", large.to_string());
    start.document(CLIENT, SERVER, path)
}

fn get(proxy: &Proxy, target: &str, fields: &[(&str, &str)]) -> Answer {
    let fields = [&[("X-Environment-Key", SERVER)], fields].concat();
    proxy.client().request("GET", target, &fields, b"")
}

/// Sends bytes unchanged and reads one response.
fn exchange(proxy: &Proxy, bytes: &str) -> Answer {
    let mut client = proxy.client();
    // The server may answer and close before it has read everything.
    let _ = client.try_send(bytes);
    client.answer("GET")
}

#[test]
fn options_asterisk_lists_methods() {
    let proxy = prepare().ready();
    let mut client = proxy.client();
    for _ in 0..2 {
        let answer = client.request("OPTIONS", "*", &[], b"");
        assert_eq!((answer.status, answer.header("content-length")), (200, Some("0")));
        assert_eq!(answer.header("allow"), Some("GET, HEAD, POST, OPTIONS"));
    }
    let preflight = [("Origin", ORIGIN), ("Access-Control-Request-Method", "GET")];
    assert_eq!(client.request("OPTIONS", "*", &preflight, b"").text(), "OK");
    for method in ["GET", "HEAD", "POST"] {
        assert_eq!(proxy.client().request(method, "*", &[], b"").status, 400, "{method} *");
    }
}

#[test]
fn conditions_match_the_selected_coding() {
    let proxy = prepare().ready();
    for path in [FLAGS, DOCUMENT] {
        let gzip = ("Accept-Encoding", "gzip");
        let plain = get(&proxy, path, &[]).header("etag").expect("a tag").to_owned();
        let coded = get(&proxy, path, &[gzip]).header("etag").expect("a tag").to_owned();
        assert_eq!(coded, format!("{}-gzip\"", plain.trim_end_matches('"')));
        for (tag, fields, status) in
            [(&plain, &[][..], 304), (&coded, &[gzip], 304), (&plain, &[gzip], 200), (&coded, &[], 200)]
        {
            let answer = get(&proxy, path, &[&[("If-None-Match", tag.as_str())], fields].concat());
            assert_eq!(answer.status, status, "{path} {tag} {fields:?}");
            assert_eq!(answer.header("etag"), Some(if fields.is_empty() { &*plain } else { &*coded }));
        }
        for (field, value, status) in [
            ("If-Match", plain.as_str(), 200),
            ("If-Match", "*", 200),
            ("If-Match", coded.as_str(), 412),
            ("If-Match", "\"other\"", 412),
            ("If-Unmodified-Since", "Fri, 20 Nov 2026 10:00:00 GMT", 200),
            ("If-Unmodified-Since", "Fri, 20 Nov 2026 09:59:59 GMT", 412),
        ] {
            let answer = get(&proxy, path, &[(field, value)]);
            assert_eq!(answer.status, status, "{path} {field}: {value}");
            if status == 412 {
                assert_eq!(answer.text(), r#"{"detail":"Precondition Failed"}"#);
                assert_eq!(answer.header("etag"), Some(plain.as_str()));
            }
        }
    }
    // A single flag has a date and no entity tag.
    let one = "/api/v1/flags/?feature=on";
    assert_eq!(get(&proxy, one, &[("If-Match", "\"any\"")]).status, 412);
    assert_eq!(get(&proxy, one, &[("If-Match", "*")]).status, 200);
}

#[test]
fn sends_cache_control_per_route() {
    let proxy = Start::demo().ready();
    for path in ["/openapi.json", "/docs", "/redoc", "/demo/", "/demo/flagsmith.js"] {
        for fields in [&[][..], &[("Accept-Encoding", "gzip")], &[("Origin", ORIGIN)]] {
            let answer = get(&proxy, path, fields);
            assert_eq!(answer.status, 200, "{path}");
            let vary: Vec<_> = answer.headers.iter().filter(|(name, _)| name == "vary").collect();
            assert!(
                matches!(&vary[..], [(_, value)] if value == "Accept-Encoding, Origin"),
                "{path} {vary:?}"
            );
            assert_eq!(answer.header("cache-control"), Some("max-age=300"), "{path}");
        }
    }
    let key = [("X-Environment-Key", "ser.demo-server-side-key")];
    let document = proxy.client().request("GET", DOCUMENT, &key, b"");
    assert_eq!(document.header("cache-control"), Some("private, no-cache"));
}

/// One error response of each kind that precedes routing, with these request fields.
fn refusals(fields: &str) -> Vec<(u16, String)> {
    let (key, long) = (format!("X-Environment-Key: {SERVER}\r\n"), "x".repeat(17_000));
    let get = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: a\r\n{key}{fields}");
    let post = format!("POST /api/v1/identities/ HTTP/1.1\r\nHost: a\r\n{key}{fields}");
    vec![
        (400, format!("{}no colon\r\n\r\n", get(FLAGS))),
        (400, format!("{post}Transfer-Encoding: chunked\r\n\r\nx\r\n")),
        (408, format!("{post}Content-Length: 10\r\n\r\n")),
        (413, format!("{post}Content-Length: 9999999\r\n\r\n")),
        (414, format!("{}\r\n", get(&format!("/{}", &long[..9000])))),
        (415, format!("{post}Content-Encoding: br\r\nContent-Length: 1\r\n\r\nx")),
        (417, format!("{post}Expect: x\r\n\r\n")),
        (431, format!("{}A: {long}\r\n\r\n", get(FLAGS))),
        (431, format!("{}{}\r\n", get(FLAGS), "A: b\r\n".repeat(100))),
        (501, format!("{post}Transfer-Encoding: gzip\r\n\r\n")),
    ]
}

#[test]
fn error_responses_have_cors_fields() {
    let any = prepare().set("server.timeout_body", 1).ready();
    let listed = prepare()
        .set("server.timeout_body", 1)
        .set("allow_origins", serde_json::json!([ORIGIN, "https://two.example"]))
        .ready();
    let field = |answer: &Answer, name: &str| answer.header(name).map(str::to_owned);
    let origin = format!("Origin: {ORIGIN}\r\n");
    for (status, bytes) in refusals(&origin) {
        let answer = exchange(&any, &bytes);
        assert_eq!(
            (answer.status, field(&answer, "access-control-allow-origin").as_deref()),
            (status, Some("*"))
        );
        assert_eq!(field(&answer, "access-control-allow-credentials").as_deref(), Some("true"), "{status}");
        let answer = exchange(&listed, &bytes);
        let allowed = field(&answer, "access-control-allow-origin");
        assert_eq!((answer.status, allowed.as_deref()), (status, Some(ORIGIN)));
        assert_eq!(field(&answer, "vary").as_deref(), Some("Origin"), "{status}");
    }
    // With a cookie the origin is named, because browsers then reject `*`.
    for (status, bytes) in refusals(&format!("{origin}Cookie: a=b\r\n")) {
        let answer = exchange(&any, &bytes);
        assert_eq!(field(&answer, "access-control-allow-origin").as_deref(), Some(ORIGIN), "{status}");
    }
    for (status, bytes) in refusals("Origin: https://evil.example\r\n") {
        let answer = exchange(&listed, &bytes);
        assert_eq!((answer.status, field(&answer, "access-control-allow-origin")), (status, None));
    }
}

/// A request with a head of `bytes` bytes.
fn with_head(bytes: usize) -> String {
    let start = format!("GET {FLAGS} HTTP/1.1\r\nHost: a\r\nX-Environment-Key: {SERVER}\r\nA: ");
    let rest = bytes - start.len() - 4;
    format!("{start}{}\r\n\r\n", "x".repeat(rest))
}

/// A request with a target of `bytes` bytes.
fn with_target(bytes: usize) -> String {
    let query = "x".repeat(bytes - FLAGS.len() - 1);
    format!("GET {FLAGS}?{query} HTTP/1.1\r\nHost: a\r\nX-Environment-Key: {SERVER}\r\n\r\n")
}

#[test]
fn head_limit_is_configurable_and_logged_once() {
    for (setting, limit) in [(None, 16 * 1024), (Some(4096), 4096), (Some(65_536), 65_536)] {
        let start = match setting {
            Some(bytes) => prepare().set("server.head_bytes_max", bytes),
            None => prepare(),
        };
        let proxy = start.with_admin().ready();
        assert_eq!(exchange(&proxy, &with_head(limit)).status, 200, "{limit}");
        assert_eq!(exchange(&proxy, &with_target(limit / 2)).status, 200, "{limit}");
        assert!(!proxy.log().contains("request_head_refused"), "{}", proxy.log());
        for _ in 0..2 {
            assert_eq!(exchange(&proxy, &with_head(limit + 1)).status, 431, "{limit}");
            assert_eq!(exchange(&proxy, &with_target(limit / 2 + 1)).status, 414, "{limit}");
        }
        let line = proxy.wait_for_log("request_head_refused");
        assert!(line.contains("setting=server.head_bytes_max"), "{line}");
        assert!(line.contains(&format!("limit_bytes={limit}")) && line.contains("status=431"), "{line}");
        assert_eq!(proxy.log().matches("request_head_refused").count(), 1, "{}", proxy.log());
    }
    for wrong in [4095, 65_537] {
        let (code, text) = prepare().set("server.head_bytes_max", wrong).run();
        assert_eq!(code, Some(64), "{text}");
        assert!(text.contains("server.head_bytes_max") && text.contains("from 4096 to 65536"), "{text}");
    }
}

/// Heads that never end use memory, and their connections are closed as those of unfinished bodies are.
#[test]
fn head_buffers_count_towards_the_memory_limit() {
    const PEERS: usize = 1400;
    let proxy =
        prepare().with_admin().set("server.head_bytes_max", 65_536).set("server.timeout_head", 60).ready();
    let start = &with_head(65_000)[..60_000];
    let mut peers = Vec::new();
    for _ in 0..PEERS {
        let mut client = Client::connect(proxy.address());
        // The first ones may be closed while the last ones still connect.
        let _ = client.try_send(start);
        peers.push(client);
    }
    eventually("connections beyond the limit are closed", || {
        (proxy.metric("edge_proxy_connections_shed_total") >= 1.0).then_some(())
    });
    assert_eq!(get(&proxy, FLAGS, &[]).status, 200);
}
