//! The short form of `make abuse`: the cost of abusive clients in bytes, counters and memory, never in time.
//!
//! Each sends a few requests that cost more to process than to send. The test checks the response bytes, the
//! counter of the limit and the peak memory, and that another client is answered.
use std::io::Write as _;

use serde_json::{Value, json};

use crate::support::proxy::metric;
use crate::support::{Client, Proxy, Start, document, eventually, get, request};
use crate::surface::{CLIENT, SERVER};

/// An eighth of the largest body, because this build is not optimised.
const BYTES: usize = 1 << 17;
const ERROR_BYTES_MAX: usize = 64 * 1024;
const MB: u64 = 1_000_000;

struct Abuser {
    name: &'static str,
    /// Memory that clients of this kind may use, bytes.
    growth_max: u64,
    requests: Vec<Vec<u8>>,
    status: u16,
    /// The response to one request.
    bytes_max: usize,
    /// The metric that counts each of its requests.
    counter: Option<&'static str>,
}

fn filled(start: &str, item: impl Fn(usize) -> String, end: &str) -> Vec<u8> {
    let mut text = start.to_owned();
    for number in 0.. {
        let item = item(number);
        if text.len() + item.len() + end.len() + 1 > BYTES {
            break;
        }
        if number > 0 {
            text.push(',');
        }
        text.push_str(&item);
    }
    (text + end).into_bytes()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

fn post(path: &str, key: Option<&str>, fields: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut all = vec![("Content-Type", "application/json")];
    all.extend(key.map(|key| ("X-Environment-Key", key)));
    all.extend(fields);
    request("POST", path, &all, body)
}

const CODED: [(&str, &str); 1] = [("Content-Encoding", "gzip")];

/// Bodies in which every value is invalid, for each route that reads a body.
fn broken() -> Vec<(&'static str, Vec<u8>)> {
    let empty = |_: usize| "{}".to_owned();
    vec![
        ("/api/v1/identities/", filled(r#"{"identifier":"a","traits":["#, empty, "]}")),
        ("/api/v1/bulk-identities/", filled(r#"{"data":["#, empty, "]}")),
        ("/api/v1/traits/", filled(r#"{"identity":{"identifier":7},"x":["#, empty, "]}")),
        ("/proxy/explain/", filled(r#"{"identifier":"a","traits":["#, empty, "]}")),
        ("/ofrep/v1/evaluate/flags", filled(r#"{"context":["#, empty, "]}")),
        ("/api/v2/analytics/flags/", filled(r#"{"evaluations":["#, empty, "]}")),
    ]
}

fn anonymous() -> Vec<Abuser> {
    let abuser = |name, requests, status, counter| Abuser {
        name,
        growth_max: 32 * MB,
        requests,
        status,
        bytes_max: ERROR_BYTES_MAX,
        counter,
    };
    let coded = broken().iter().map(|(path, body)| post(path, None, &CODED, &gzip(body))).collect();
    let truncated = Some("edge_proxy_errors_truncated_total");
    let errors = [&broken()[0], &broken()[3]].map(|(path, body)| post(path, None, &[], body)).to_vec();
    let large = filled(r#"{"identifier":"a","traits":["#, |n| trait_of(n, "1"), "]}");
    let head = "\\".repeat(15_000);
    vec![
        abuser("422 without a key", errors, 422, truncated),
        abuser("gzip without a key", coded, 401, None),
        abuser(
            "a valid body without a key",
            vec![post("/api/v1/identities/", None, &[], &large); 4],
            401,
            None,
        ),
        abuser(
            "deep JSON without a key",
            vec![post("/api/v1/identities/", None, &[], &[b'['; BYTES]); 4],
            401,
            None,
        ),
        abuser(
            "a long unknown key",
            vec![request("GET", "/api/v1/flags/", &[("X-Environment-Key", &head)], b""); 20],
            401,
            None,
        ),
    ]
}

fn trait_of(number: usize, value: &str) -> String {
    format!(r#"{{"trait_key":"{number:x}","trait_value":{value}}}"#)
}

fn keyed() -> Vec<Abuser> {
    let abuser = |name, requests, status, bytes_max, counter| Abuser {
        name,
        growth_max: 64 * MB,
        requests,
        status,
        bytes_max,
        counter,
    };
    let key = Some(CLIENT);
    let row = |identifier: &str| {
        json!({"feature_name": "version", "identity_identifier": identifier,
            "enabled_when_evaluated": true, "count": 1})
    };
    let counts = |number: usize| {
        let rows = json!({"evaluations": [row(&format!("{number}{}", "x".repeat(1_000_000)))]});
        post("/api/v2/analytics/flags/", key, &[], rows.to_string().as_bytes())
    };
    let agent = |number: usize| {
        let agent = format!("{number}{}", "a".repeat(15_000));
        post("/api/v1/analytics/flags/", key, &[("User-Agent", &agent)], br#"{"version":1}"#)
    };
    let many = filled(r#"{"identifier":"a","traits":["#, |n| trait_of(n, "1"), "]}");
    let numbers = filled(r#"{"identifier":"a","traits":["#, |n| trait_of(n, &"9".repeat(4300)), "]}");
    let fields = filled(r#"{"context":{"targetingKey":"a","#, |n| format!(r#""{n:x}":1"#), "}}");
    let bulk: Vec<Value> = (0..100).map(|n| json!({"identifier": format!("{n:x>2000}")})).collect();
    let bulk = json!({"data": bulk}).to_string();
    let errors = gzip(&broken()[0].1);
    let identities = |body: &[u8]| vec![post("/api/v1/identities/", key, &[], body); 3];
    let cut = Some("edge_proxy_counts_cut_total{field=\"identifier\"}");
    let exceeded = Some("edge_proxy_jsonpath_budget_exceeded_total");
    vec![
        abuser(
            "a gzip bomb with a key",
            vec![post("/api/v1/identities/", key, &CODED, &errors); 4],
            422,
            ERROR_BYTES_MAX,
            Some("edge_proxy_errors_truncated_total"),
        ),
        abuser("identifiers of 1 MB in counts", (0..10).map(counts).collect(), 204, 1000, cut),
        abuser(
            "agents of 15 kB",
            (0..200).map(agent).collect(),
            200,
            1000,
            Some("edge_proxy_counts_cut_total{field=\"label\"}"),
        ),
        abuser("JSONPaths over many traits", identities(&many), 200, 2 * BYTES, exceeded),
        abuser(
            "JSONPaths over a context",
            vec![post("/ofrep/v1/evaluate/flags", key, &[], &fields); 3],
            200,
            ERROR_BYTES_MAX,
            exceeded,
        ),
        abuser("huge numbers", identities(&numbers), 200, 2 * BYTES, None),
        abuser(
            "an identifier of 1 MB",
            identities(json!({"identifier": "x".repeat(1_000_000)}).to_string().as_bytes()),
            422,
            ERROR_BYTES_MAX,
            None,
        ),
        abuser(
            "bulk with long identifiers",
            vec![post("/api/v1/bulk-identities/", key, &[], bulk.as_bytes()); 3],
            400,
            ERROR_BYTES_MAX,
            Some("edge_proxy_bulk_refused_total"),
        ),
    ]
}

/// One environment with conditions that query the traits, backtrack, and hash the identifier.
fn prepare() -> Start {
    let mut whole = document::for_key(CLIENT, 1);
    let segments = whole["project"]["segments"].as_array_mut().expect("a list");
    let conditions = ["$.identity.traits[?count($.identity.traits[?@ > 0]) == 7]", "$.identity.traits.*"]
        .into_iter()
        .map(|property| json!({"operator": "EQUAL", "property_": property, "value": "nothing"}));
    let splits = (0..100).map(|_| json!({"operator": "PERCENTAGE_SPLIT", "property_": "", "value": "0.001"}));
    for (number, condition) in conditions.chain(splits).enumerate() {
        let rules = json!([{"type": "ALL", "conditions": [condition], "rules": []}]);
        segments.push(json!({"id": 100 + number, "name": "s", "feature_states": [], "rules": rules}));
    }
    let start = Start::serve().with_admin().set("analytics", json!({"flush_interval_seconds": 3600}));
    let path = start.scratch().write("document.json", whole.to_string());
    start.document(CLIENT, SERVER, path)
}

/// The peak of resident memory since [`forget_peak`], bytes.
pub fn peak_bytes(proxy: &Proxy) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.pid())).expect("our own child");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a size");
    line.trim_end_matches("kB").trim().parse::<u64>().expect("a number") * 1024
}

/// See proc_pid_clear_refs(5).
pub fn forget_peak(proxy: &Proxy) {
    std::fs::write(format!("/proc/{}/clear_refs", proxy.pid()), "5").expect("our own child");
}

fn exchange(client: &mut Client, bytes: &[u8]) -> (u16, usize, bool) {
    client.send(bytes);
    let answer = client.answer(if bytes.starts_with(b"POST") { "POST" } else { "GET" });
    (answer.status, answer.body.len(), answer.header("connection") == Some("close"))
}

#[test]
fn abusive_requests_stay_within_their_limits() {
    let proxy = prepare().ready();
    let value = |sample: Option<&str>| {
        let page = get(proxy.admin(), "/metrics", "").text();
        sample.map_or(0.0, |sample| metric(&page, sample).unwrap_or_else(|| panic!("{sample} in {page}")))
    };
    assert_eq!(proxy.get("/api/v1/flags/", CLIENT).status, 200);
    for abuser in anonymous().into_iter().chain(keyed()) {
        let Abuser { name, growth_max, requests, status, bytes_max, counter } = abuser;
        let (before, counted) = (proxy.resident_bytes(), value(counter));
        forget_peak(&proxy);
        let mut client = proxy.client();
        for bytes in &requests {
            let (found, length, closes) = exchange(&mut client, bytes);
            assert_eq!(found, status, "{name}");
            assert!(length <= bytes_max, "{name}: {length} bytes for {}", bytes.len());
            if closes {
                client = proxy.client();
            }
        }
        let growth = peak_bytes(&proxy).saturating_sub(before);
        assert!(growth <= growth_max, "{name}: memory grew by {growth} bytes");
        let count = requests.len() as f64;
        eventually("each request is counted", || {
            (counter.is_none() || value(counter) - counted == count).then_some(())
        });
        assert_eq!(proxy.get("/api/v1/flags/", CLIENT).status, 200, "another client after: {name}");
    }
}

/// Waiting connections: their memory is limited, and other clients are answered.
#[test]
fn waiting_clients_use_little_memory() {
    let proxy = prepare().ready();
    assert_eq!(proxy.get("/api/v1/flags/", CLIENT).status, 200);
    let body = vec![b' '; 1 << 20];
    let half = post("/api/v1/identities/", None, &[], &body)[..1 << 19].to_vec();
    let stream = request("GET", &format!("/sse/environments/{CLIENT}/stream"), &[], b"");
    for (name, count, bytes, growth_max) in [
        ("slow heads", 200, b"GET / HTTP/1.1\r\nHost: a\r\nX: ".to_vec(), 32 * MB),
        ("slow bodies", 100, half, 32 * MB),
        ("event streams", 200, stream, 64 * MB),
    ] {
        let before = proxy.resident_bytes();
        forget_peak(&proxy);
        let mut clients: Vec<Client> = Vec::new();
        for _ in 0..count {
            let mut client = proxy.client();
            // The connection that has waited longest is closed for the next one.
            let _ = client.try_send(&bytes);
            clients.push(client);
        }
        assert_eq!(proxy.get("/api/v1/flags/", CLIENT).status, 200, "another client beside: {name}");
        let growth = peak_bytes(&proxy).saturating_sub(before);
        assert!(growth <= growth_max, "{name}: memory grew by {growth} bytes");
    }
    assert!(proxy.metric("edge_proxy_connections_shed_total") >= 1.0, "slow bodies are ended and counted");
}
