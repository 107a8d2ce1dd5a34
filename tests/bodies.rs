//! Bodies that cost more to process than to send: many errors, compression, long texts.
use std::io::Write;

use serde_json::{Value, json};

use crate::support::{Answer, Client, Proxy, Start, eventually};
use crate::surface::{CLIENT, SERVER, document};

const MIB: usize = 1 << 20;
/// The largest response to a client without a key, bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Each route that reads a body, with a valid key.
const ROUTES: [(&str, &str); 8] = [
    ("/api/v1/identities/", CLIENT),
    ("/api/v1/bulk-identities/", CLIENT),
    ("/api/v1/traits/", CLIENT),
    ("/api/v1/analytics/flags/", CLIENT),
    ("/api/v2/analytics/flags/", CLIENT),
    ("/ofrep/v1/evaluate/flags", CLIENT),
    ("/ofrep/v1/evaluate/flags/f", CLIENT),
    ("/proxy/explain/", SERVER),
];

fn prepare() -> Proxy {
    let start = Start::serve().with_admin();
    let path = start.scratch().write("document.json", document(0).to_string());
    start.document(CLIENT, SERVER, path).ready()
}

/// `start` and `end` around as many `item`s as fit into a body of 1 MiB.
fn large(start: &str, item: &str, end: &str) -> Vec<u8> {
    sized(MIB, start, item, end)
}

fn sized(bytes: usize, start: &str, item: &str, end: &str) -> Vec<u8> {
    let count = (bytes - start.len() - end.len() + 1) / (item.len() + 1);
    format!("{start}{}{end}", vec![item; count].join(",")).into_bytes()
}

fn identity_bomb() -> Vec<u8> {
    large(r#"{"identifier":"a","traits":["#, "{}", "]}")
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

fn post(client: &mut Client, path: &str, key: Option<&str>, coding: Option<&str>, body: &[u8]) -> Answer {
    let mut fields = vec![("Content-Type", "application/json")];
    fields.extend(key.map(|key| ("X-Environment-Key", key)));
    fields.extend(coding.map(|coding| ("Content-Encoding", coding)));
    client.request("POST", path, &fields, body)
}

/// The types of the errors that a response lists.
fn types(answer: &Answer) -> Vec<String> {
    let body = answer.json();
    let errors = body["detail"].as_array().unwrap_or_else(|| panic!("no errors: {body}"));
    errors.iter().map(|error| error["type"].as_str().expect("a type").to_owned()).collect()
}

#[test]
fn rejects_compressed_body_of_unknown_key_unread() {
    let proxy = prepare();
    let bomb = gzip(&identity_bomb());
    assert!(bomb.len() < 1200, "{} bytes", bomb.len());
    let mut client = proxy.client();
    for (path, key) in ROUTES {
        for unknown in [None, Some("unknown")] {
            for (coding, body) in [("gzip", &bomb[..]), ("gzip", b"not gzip"), ("br", b"x")] {
                let answer = post(&mut client, path, unknown, Some(coding), body);
                assert_eq!(
                    (answer.status, answer.body.len() < 200),
                    (401, true),
                    "{path}: {}",
                    answer.text()
                );
            }
        }
        // The connection stays open, and the same bytes are read for a valid key.
        assert_ne!(post(&mut client, path, Some(key), Some("gzip"), &bomb).status, 401, "{path}");
    }
    let explain = post(&mut client, "/proxy/explain/", Some(CLIENT), Some("gzip"), &bomb);
    assert_eq!(explain.status, 401, "a client-side key is not accepted there");
}

#[test]
fn lists_at_most_100_errors() {
    let proxy = prepare();
    let truncated = || proxy.metric("edge_proxy_errors_truncated_total");
    let mut count = 0.0;
    let rows = [
        ("/api/v1/identities/", identity_bomb(), "missing"),
        ("/proxy/explain/", identity_bomb(), "missing"),
        ("/api/v1/identities/", large(r#"{"traits":["#, "[[0]]", "]}"), "model_attributes_type"),
        ("/api/v1/identities/", large(r#"{"traits":["#, r#"{"trait_key":0}"#, "]}"), "string_type"),
        ("/api/v1/bulk-identities/", large(r#"{"data":["#, "0", "]}"), "model_attributes_type"),
        (
            "/api/v1/bulk-identities/",
            large(r#"{"data":[{"identifier":"a","traits":["#, "{}", "]}]}"),
            "missing",
        ),
    ];
    for (path, body, kind) in rows {
        for (key, coding) in [(None, None), (Some(SERVER), None), (Some(SERVER), Some("gzip"))] {
            let sent = if coding.is_some() { gzip(&body) } else { body.clone() };
            let answer = post(&mut proxy.client(), path, key, coding, &sent);
            assert_eq!(answer.status, 422, "{path} {key:?} {coding:?}: {:.300}", answer.text());
            assert!(answer.body.len() <= ANSWER_BYTES_MAX, "{path}: {} bytes", answer.body.len());
            let types = types(&answer);
            assert_eq!(types.len(), 101, "{path}");
            assert!(types[..100].iter().all(|found| found == kind), "{path}: {types:?}");
            assert_eq!(
                answer.json()["detail"][100],
                json!({
                    "type": "too_many_errors", "loc": ["body"], "input": null, "ctx": {"max_errors": 100},
                    "msg": "More than 100 errors: only the first 100 are listed",
                })
            );
            count += 1.0;
        }
    }
    eventually("each response is counted", || (truncated() == count).then_some(()));
    // A list of exactly 100 errors is complete.
    let hundred = format!(r#"{{"traits":[{}]}}"#, ["{}"; 100].join(","));
    assert_eq!(types(&proxy.post("/api/v1/identities/", "", &hundred)), vec!["missing"; 100]);
    assert_eq!(truncated(), count);
}

#[test]
fn longest_error_list_is_below_64_kib() {
    let proxy = prepare();
    let long = format!("\"{}\"", "\\u0001\\\"é".repeat(900));
    let item = format!(r#"{{"trait_key":{{"a":{long}}},"trait_value":[{long}]}}"#);
    let inside = vec![item; 40].join(",");
    for (path, body) in [
        ("/api/v1/identities/", format!(r#"{{"identifier":[{long}],"traits":[{inside}]}}"#)),
        ("/api/v1/bulk-identities/", format!(r#"{{"data":[{{"traits":[{inside}]}}]}}"#)),
    ] {
        let answer = proxy.post(path, CLIENT, &body);
        assert_eq!((answer.status, types(&answer).len()), (422, 101));
        assert!(answer.body.len() <= ANSWER_BYTES_MAX, "{path}: {} bytes", answer.body.len());
        let body = answer.json();
        for error in body["detail"].as_array().expect("a list").iter().take(100) {
            let input = error["input"].as_str().unwrap_or_else(|| panic!("{error}"));
            assert!(input.ends_with("...") && error["input"].to_string().len() <= 200, "{error}");
        }
    }
}

#[test]
fn validates_first_64_kib_for_unknown_keys() {
    let proxy = prepare();
    let mut client = proxy.client();
    let trait_item = r#"{"trait_key":"k","trait_value":1}"#;
    let good = large(r#"{"identifier":"a","traits":["#, trait_item, "]}");
    let late = large(r#"{"identifier":"a","traits":["#, trait_item, ",{}]}");
    let one = large(r#"{"identifier":7,"traits":["#, trait_item, "]}");
    for body in [&good, &late, &one] {
        assert_eq!(post(&mut client, "/api/v1/identities/", None, None, body).status, 401);
    }
    assert_eq!(post(&mut client, "/api/v1/identities/", Some(CLIENT), None, &good).status, 200);
    for (body, kind) in [(&late, "missing"), (&one, "string_type")] {
        let answer = post(&mut client, "/api/v1/identities/", Some(CLIENT), None, body);
        assert_eq!((answer.status, types(&answer)), (422, vec![kind.to_owned()]));
    }
    // An error that the rest of the body cannot change is reported immediately; small bodies are validated
    // before the key.
    let broken = large("{\"identifier\":}", " ", "");
    for body in [&broken[..], b"{\"identifier\":}"] {
        let answer = post(&mut client, "/api/v1/identities/", None, None, body);
        assert_eq!((answer.status, types(&answer)), (422, vec!["json_invalid".to_owned()]));
    }
    assert_eq!(post(&mut client, "/api/v1/identities/", None, None, b"{\"identifier\":7}").status, 422);
}

#[test]
fn answers_large_bodies_of_valid_keys_in_few_bytes() {
    // A quarter of the limit, because this build is not optimised.
    const BYTES: usize = MIB / 4;
    let proxy = prepare();
    let shapes = [
        sized(BYTES, "[", "[]", "]"),
        sized(BYTES, "[", "[0]", "]"),
        sized(BYTES, "[", "{}", "]"),
        sized(BYTES, "{", "\"\":0", "}"),
        sized(BYTES, "[", "1e5", "]"),
        sized(BYTES, "[", &"1".repeat(4300), "]"),
        sized(BYTES, "\"", "\\n", "\""),
        vec![b'['; BYTES],
        vec![b' '; BYTES],
        sized(BYTES, r#"{"identifier":"a","x":["#, "[[],{}]", "]}"),
        sized(BYTES, r#"{"context":{"targetingKey":"a","x":["#, "[[],{}]", "]}}"),
        sized(BYTES, r#"{"evaluations":["#, "{}", "]}"),
    ];
    for (path, key) in ROUTES {
        for body in &shapes {
            let answer = post(&mut proxy.client(), path, Some(key), None, body);
            let start = String::from_utf8_lossy(&body[..20]);
            assert!((200..500).contains(&answer.status), "{path} {start}: {}", answer.status);
            assert!(answer.body.len() <= ANSWER_BYTES_MAX, "{path} {start}: {} bytes", answer.body.len());
        }
    }
}

#[test]
fn reads_compressed_bodies_within_the_limit() {
    let proxy = prepare();
    let body = br#"{"identifier":"a","traits":[]}"#;
    let (front, back) = (gzip(&body[..9]), gzip(&body[9..]));
    let members = [&front[..], &gzip(b""), &back].concat();
    let key = Some(CLIENT);
    for (path, _) in [ROUTES[0], ROUTES[7]] {
        let mut client = proxy.client();
        let mut ask = |coding, sent: &[u8]| post(&mut client, path, Some(SERVER), Some(coding), sent).status;
        assert_eq!(ask("gzip", &members), 200, "{path}");
        assert_eq!(ask("X-GZIP", &gzip(body)), 200);
        assert_eq!(ask("identity", body), 200);
        assert_eq!(ask("gzip", b"not gzip"), 400, "and the connection stays open");
        assert_eq!(ask("br", body), 415, "and the connection stays open");
        assert_eq!(ask("gzip, gzip", body), 415);
        assert_eq!(ask("gzip", &gzip(body)), 200);
    }
    let bomb = gzip(&vec![b' '; 2 * MIB]);
    for (path, key) in ROUTES {
        let mut client = proxy.client();
        let unsupported = post(&mut client, path, Some(key), Some("br"), body);
        assert_eq!((unsupported.status, unsupported.header("connection")), (415, None), "{path}");
        let trailing = post(&mut client, path, Some(key), Some("gzip"), &[&front[..], &back, b"x"].concat());
        assert_eq!((trailing.status, trailing.header("connection")), (400, Some("close")), "{path}");
        assert!(client.is_closed(), "{path}");
        let too_large = post(&mut proxy.client(), path, Some(key), Some("gzip"), &bomb);
        assert_eq!(too_large.status, 413, "{path}");
    }
    let halves = [gzip(&vec![b' '; MIB - body.len()]), gzip(body)].concat();
    assert_eq!(post(&mut proxy.client(), "/api/v1/identities/", key, Some("gzip"), &halves).status, 200);
    for reason in ["trailing_bytes", "unsupported_coding", "body_too_large", "bad_coding"] {
        let sample = format!("edge_proxy_http_rejects_total{{reason=\"{reason}\"}}");
        assert!(proxy.metric(&sample) > 0.0, "{sample}");
    }
}

/// A path, a body with an identifier, and the expected location of the error.
type IdentifierRow<'a> = (&'a str, &'a dyn Fn(&str) -> Value, Value);

#[test]
fn limits_identifiers_to_2000_characters() {
    let proxy = prepare();
    let (fits, long) = ("é".repeat(2000), "é".repeat(2001));
    let error = |loc: Value| {
        json!({
            "type": "string_too_long", "loc": loc, "msg": "String should have at most 2000 characters",
            "input": format!("{}...", "é".repeat(97)), "ctx": {"max_length": 2000, "actual_length": 2001},
        })
    };
    let query = |text: &str| format!("/api/v1/identities/?identifier={}", text.replace('é', "x"));
    assert_eq!(proxy.get(&query(&fits), CLIENT).status, 200);
    let refused = proxy.get(&query(&long), CLIENT);
    assert_eq!((refused.status, types(&refused)), (422, vec!["string_too_long".to_owned()]));
    assert_eq!(refused.json()["detail"][0]["loc"], json!(["query", "identifier"]));
    let identity = |text: &str| json!({"identifier": text, "traits": []});
    let rows: [IdentifierRow<'_>; 4] = [
        ("/api/v1/identities/", &identity, json!(["body", "identifier"])),
        ("/proxy/explain/", &identity, json!(["body", "identifier"])),
        (
            "/api/v1/bulk-identities/",
            &|text| json!({"data": [identity("a"), identity(text)]}),
            json!(["body", "data", 1, "identifier"]),
        ),
        (
            "/api/v1/traits/",
            &|text| json!({"identity": {"identifier": text}, "trait_key": "k", "trait_value": 1}),
            json!(["body", "identity", "identifier"]),
        ),
    ];
    for (path, body, loc) in rows {
        assert_eq!(proxy.post(path, SERVER, &body(&fits).to_string()).status, 200, "{path}");
        let refused = proxy.post(path, SERVER, &body(&long).to_string());
        assert_eq!((refused.status, refused.json()), (422, json!({"detail": [error(loc)]})), "{path}");
    }
    let context = |key: &str, value: &str| json!({"context": {"targetingKey": key, "k": value}}).to_string();
    for path in ["/ofrep/v1/evaluate/flags", "/ofrep/v1/evaluate/flags/f"] {
        assert_ne!(proxy.post(path, CLIENT, &context(&fits, &fits)).status, 400, "{path}");
        for (key, value) in [(&long, &fits), (&fits, &long)] {
            let refused = proxy.post(path, CLIENT, &context(key, value));
            assert_eq!((refused.status, &refused.json()["errorCode"]), (400, &json!("INVALID_CONTEXT")));
        }
    }
}

#[test]
fn truncates_long_unknown_key_in_error() {
    let proxy = prepare();
    let key = "\\".repeat(12_000);
    let answer = proxy.get("/api/v1/flags/", &key);
    assert_eq!(answer.status, 401);
    assert!(answer.body.len() < 10_000 && answer.text().ends_with("...'\"}"), "{} bytes", answer.body.len());
}

#[test]
fn returns_memory_after_large_bodies() {
    let proxy = prepare();
    let (plain, coded) = (identity_bomb(), gzip(&identity_bomb()));
    let traits = large(r#"{"identifier":"\u0061","traits":["#, r#"{"trait_key":"k","trait_value":1}"#, "]}");
    let nested = large(r#"{"data":[{"identifier":"a","x":["#, "[0]", "]}]}");
    let before = proxy.resident_bytes();
    for _ in 0..10 {
        assert_eq!(post(&mut proxy.client(), "/api/v1/identities/", None, None, &plain).status, 422);
        assert_eq!(post(&mut proxy.client(), "/api/v1/identities/", None, Some("gzip"), &coded).status, 401);
    }
    eventually("requests without a key leave little memory behind", || {
        (proxy.resident_bytes().saturating_sub(before) < 8 * MIB as u64).then_some(())
    });
    for (path, key, body) in [
        ("/api/v1/identities/", CLIENT, &plain),
        ("/api/v1/identities/", CLIENT, &traits),
        ("/api/v1/bulk-identities/", CLIENT, &nested),
        ("/proxy/explain/", SERVER, &traits),
    ] {
        for coding in [None, Some("gzip")] {
            let sent = if coding.is_some() { gzip(body) } else { body.clone() };
            for _ in 0..3 {
                let status = post(&mut proxy.client(), path, Some(key), coding, &sent).status;
                assert!(matches!(status, 200 | 422), "{path}: {status}");
            }
        }
    }
    eventually("requests with a key leave little memory behind", || {
        (proxy.resident_bytes().saturating_sub(before) < 64 * MIB as u64).then_some(())
    });
}
