//! Invariants over many requests: isolation of client-side keys, and one document revision per response.
//! Environment variables select the long forms.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::json;

use crate::conformance::count_of;
use crate::support::document::{CLIENT_KEY, SERVER_KEY, override_of, value};
use crate::support::{Answer, Client, Start, Upstream, eventually, fixture, request};
use crate::surface::{CLIENT, SERVER, document};

// --- the boundary of a key ---

/// Data that only the server-side key may read.
const MARKERS: [&str; 5] =
    ["marker-feature", "marker-value", "marker-segment", "marker-identity", "marker-override"];

/// A document with `MARKERS` in place of each kind of secret.
fn marked() -> serde_json::Value {
    let mut marked = document(0);
    marked["feature_states"][4]["feature"]["name"] = json!("marker-feature");
    marked["feature_states"][4]["feature_state_value"] = json!("marker-value");
    marked["project"]["segments"][0]["name"] = json!("marker-segment");
    let mut hidden = override_of("marker-identity", 1);
    hidden["identity_features"][0]["feature"] = json!({"id": 1, "name": "banner", "type": "STANDARD"});
    hidden["identity_features"][0]["feature_state_value"] = json!("marker-override");
    marked["identity_overrides"] = json!([hidden]);
    marked
}

/// Every path that depends on a key, and a body for it.
const ROUTES: [(&str, &str); 14] = [
    ("/api/v1/flags/", ""),
    ("/api/v1/flags/?feature=marker-feature", ""),
    ("/api/v1/identities/?identifier=u", ""),
    ("/api/v1/identities/", r#"{"identifier":"u","traits":[{"trait_key":"plan","trait_value":"gold"}]}"#),
    ("/api/v1/identities/?feature=marker-feature", r#"{"identifier":"u"}"#),
    ("/api/v1/environment-document/", ""),
    ("/api/v1/environment-document/?environment_key=ser.surface", ""),
    (
        "/api/v1/bulk-identities/",
        r#"{"data":[{"identifier":"u","traits":[{"trait_key":"plan","trait_value":"gold"}]}]}"#,
    ),
    ("/api/v1/traits/", r#"{"identity":{"identifier":"u"},"trait_key":"plan","trait_value":"gold"}"#),
    ("/api/v1/analytics/flags/", r#"{"banner":1}"#),
    ("/ofrep/v1/evaluate/flags", r#"{"context":{"targetingKey":"u","plan":"gold"}}"#),
    ("/ofrep/v1/evaluate/flags/marker-feature", r#"{"context":{"targetingKey":"u"}}"#),
    ("/proxy/explain/", r#"{"identifier":"u","traits":[{"trait_key":"plan","trait_value":"gold"}]}"#),
    ("/proxy/health", ""),
];

/// The same path in other spellings: without and with another slash, letters and slashes encoded, doubled, as
/// a URL, behind dots.
fn spellings(target: &str) -> Vec<String> {
    let (path, query) = target.split_at(target.find('?').unwrap_or(target.len()));
    let encode = |byte: u8| format!("%{byte:02x}");
    let letters: String = path
        .bytes()
        .map(|byte| if b"eidp".contains(&byte) { encode(byte) } else { char::from(byte).to_string() })
        .collect();
    [
        path.to_owned(),
        path.trim_end_matches('/').to_owned(),
        format!("{path}/"),
        letters,
        path.replacen("/v1/", "%2Fv1%2f", 1),
        path.replacen("/v1/", "//v1/", 1),
        path.replacen("/v1/", "/v1/./", 1),
        path.to_ascii_uppercase(),
        format!("http://a{path}"),
    ]
    .iter()
    .map(|path| format!("{path}{query}"))
    .collect()
}

/// A marker in the response that was not in the request.
fn leak(answer: &Answer, target: &str) -> Option<&'static str> {
    let shown = [format!("{:?}", answer.headers).as_bytes(), &answer.plain()].concat();
    let shown = String::from_utf8_lossy(&shown).into_owned();
    let is_leaked = |marker: &&&str| shown.contains(**marker) && !target.contains(**marker);
    MARKERS.iter().chain(&[SERVER]).find(is_leaked).copied()
}

#[test]
fn client_side_key_reads_no_server_side_data() {
    let start = Start::serve();
    let path = start.scratch().write("document.json", marked().to_string());
    let proxy = start.document(CLIENT, SERVER, path).ready();
    // The server-side key reads the markers; otherwise their absence would prove nothing.
    let whole = proxy.get("/api/v1/environment-document/", SERVER);
    assert!(MARKERS.iter().all(|marker| whole.text().contains(marker)), "{}", whole.text());
    let bearer = format!("Bearer {CLIENT}");
    let keys: [&[(&str, &str)]; 5] = [
        &[("X-Environment-Key", CLIENT)],
        &[("x-environment-key", CLIENT), ("X-Environment-Key", SERVER)],
        &[("X-API-Key", CLIENT)],
        &[("Authorization", &bearer)],
        &[("X-Environment-Key", CLIENT), ("X-API-Key", SERVER), ("Cookie", "X-Environment-Key=ser.surface")],
    ];
    let codings: [&[(&str, &str)]; 2] = [&[], &[("Accept-Encoding", "gzip"), ("If-None-Match", "\"a\"")]];
    let (mut client, mut requests, mut served) = (proxy.client(), 0_u64, 0_u64);
    for (target, body) in ROUTES {
        for spelling in spellings(target) {
            for method in ["GET", "HEAD", "POST", "OPTIONS", "PUT"] {
                for (key, coding) in keys.iter().flat_map(|key| codings.map(|coding| (*key, coding))) {
                    let fields = [key, coding, &[("Content-Type", "application/json")]].concat();
                    let answer = client.request(method, &spelling, &fields, body.as_bytes());
                    let found = leak(&answer, target);
                    assert_eq!(found, None, "{method} {spelling} {fields:?}: {}", answer.text());
                    requests += 1;
                    served += u64::from(answer.status == 200);
                    if answer.header("connection") == Some("close") {
                        client = proxy.client();
                    }
                }
            }
        }
    }
    fixture::say(&format!("boundary of the key: {requests} requests, {served} of them served, no leak"));
    assert!(requests >= 6_000 && served >= 400, "{requests} {served}");
}

// --- swaps ---

/// A document in which every value contains its revision.
fn revision(number: u32) -> String {
    let (mut document, text) = (value(number), json!(format!("r{number}")));
    for state in 0..2 {
        document["feature_states"][state]["feature_state_value"] = text.clone();
    }
    document["project"]["segments"][0]["feature_states"][0]["feature_state_value"] = text.clone();
    document["identity_overrides"][0]["identity_features"][0]["feature_state_value"] = text;
    document.to_string()
}

/// The revisions in a response.
fn revisions(body: &[u8]) -> BTreeSet<u32> {
    let text = String::from_utf8_lossy(body).into_owned();
    let number = |rest: &str| rest.split('"').next().and_then(|digits| digits.parse().ok());
    text.split("\"r").skip(1).filter_map(number).collect()
}

/// Requests every route in turn until `stop`, and counts the responses. `tags` has the revision of each entity
/// tag.
fn read_on(
    client: &mut Client,
    stop: &AtomicBool,
    tags: &Mutex<BTreeMap<String, u32>>,
    requests: &AtomicU64,
) {
    let traits = r#"{"identifier":"u","traits":[{"trait_key":"age","trait_value":20}]}"#;
    let bulk = r#"{"data":[{"identifier":"vip"},{"identifier":"u","traits":[{"trait_key":"age","trait_value":20}]},{"identifier":"v"}]}"#;
    let context = r#"{"context":{"targetingKey":"vip","age":20}}"#;
    let key = [("X-Environment-Key", SERVER_KEY), ("Content-Type", "application/json")];
    let gzip = [&key[..], &[("Accept-Encoding", "gzip")]].concat();
    let mut newest = 0;
    while !stop.load(Ordering::Relaxed) {
        for (method, target, body) in [
            ("GET", "/api/v1/flags/", ""),
            ("POST", "/api/v1/identities/", traits),
            ("GET", "/api/v1/environment-document/", ""),
            ("POST", "/api/v1/bulk-identities/", bulk),
            ("POST", "/ofrep/v1/evaluate/flags", context),
        ] {
            for fields in [&key[..], &gzip] {
                client.send(request(method, target, fields, body.as_bytes()));
                let answer = client.answer(method);
                assert_eq!(answer.status, 200, "{method} {target}: {}", answer.text());
                let plain = answer.plain();
                let found = revisions(&plain);
                assert_eq!(found.len(), 1, "mixed: {found:?} in {}", String::from_utf8_lossy(&plain));
                let number = *found.first().expect("one");
                assert!(number >= newest, "{number} after {newest} on one connection");
                newest = number;
                if let Some(tag) = answer.header("etag") {
                    let before = *tags.lock().unwrap().entry(format!("{target} {tag}")).or_insert(number);
                    assert_eq!(before, number, "{target} {tag} was another revision's");
                }
                requests.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// `SWAPS=35` is the long form.
#[test]
fn responses_come_from_one_document() {
    let upstream = Upstream::start();
    upstream.document(SERVER_KEY, revision(1));
    let proxy = Start::serve()
        .cores(2)
        .environment(CLIENT_KEY, SERVER_KEY)
        .set("api_url", upstream.api_url())
        .set("api_poll_frequency_seconds", 0.1)
        .ready();
    let (stop, requests, tags) = (AtomicBool::new(false), AtomicU64::new(0), Mutex::default());
    let swaps = u32::try_from(count_of("SWAPS", 12)).expect("a few");
    std::thread::scope(|scope| {
        let readers: Vec<_> =
            (0..3).map(|_| scope.spawn(|| read_on(&mut proxy.client(), &stop, &tags, &requests))).collect();
        for number in 2..swaps + 2 {
            upstream.document(SERVER_KEY, revision(number));
            eventually("the revision is served", || {
                let answer = proxy.get("/api/v1/flags/", SERVER_KEY);
                revisions(&answer.body).contains(&number).then_some(())
            });
            let goal = requests.load(Ordering::Relaxed) + 50;
            eventually("it is read", || (requests.load(Ordering::Relaxed) >= goal).then_some(()));
        }
        stop.store(true, Ordering::Relaxed);
        readers.into_iter().for_each(|reader| reader.join().expect("no mixed response"));
    });
    let requests = requests.into_inner();
    fixture::say(&format!("swaps: {requests} requests across {swaps} swaps, none mixed"));
    assert!(requests >= u64::from(swaps) * 50);
}
