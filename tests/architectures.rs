//! Answers depend neither on the architecture nor on the driver: the same bytes from two proxies with the same
//! documents.
//!
//! One is the executable of this build, on its default driver. The other uses epoll; with `EDGE_PROXY_EXECUTABLE`
//! it is for another architecture. `ANSWERS=3000` is the number of random evaluations, `SEED=7` another start of them.
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Command;

use edge_proxy::snapshot::Environment;
use serde_json::{Value as Json, json};

use crate::conformance::count_of;
use crate::support::{PATIENCE, Proxy, Scratch, Start, fixture, python, request};

/// Of a UUID without hyphens.
const UUID_LENGTH: usize = 32;

/// The proxy of this build, and the other one.
struct Pair([Proxy; 2]);

impl Pair {
    /// Both with these documents; the keys end in their numbers.
    fn start(scratch: &Scratch, documents: &[String]) -> Self {
        let files: Vec<_> = (documents.iter().enumerate())
            .map(|(at, document)| scratch.write(&format!("document-{at}.json"), document))
            .collect();
        let configured = || {
            let add = |start: Start, (at, path): (usize, &std::path::PathBuf)| {
                start.document(&format!("client-{at}"), &server_key(at), path)
            };
            files.iter().enumerate().fold(Start::serve(), add)
        };
        Self([configured().of_this_build().ready(), configured().set("server.driver", "epoll").ready()])
    }

    /// Sends a request to both. The difference, if there is one.
    fn differ(&self, request: &[u8]) -> Option<String> {
        let [own, other] = self.0.each_ref().map(|proxy| exchange(proxy, request));
        assert!(own.starts_with(b"HTTP/1.1 "), "{}", shown(&own));
        (own != other).then(|| {
            format!("{}\n--- this build:\n{}\n--- the other:\n{}", shown(request), shown(&own), shown(&other))
        })
    }
}

fn server_key(at: usize) -> String {
    format!("ser.server-{at}")
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().take(1000).collect()
}

/// All bytes that answer these, without the value of `date` and an identifier that was made up, as for an empty one.
fn exchange(proxy: &Proxy, request: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(proxy.address()).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    // The proxy may have answered and closed before it has read everything.
    let _ = stream.write_all(request);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    const DATE: &[u8] = b"\r\ndate: ";
    if let Some(at) = answer.windows(DATE.len()).position(|window| window == DATE) {
        let end = at + DATE.len() + "Fri, 20 Nov 2026 10:00:00 GMT".len();
        answer.drain(at..end.min(answer.len()));
    }
    const IDENTIFIER: &[u8] = b"\r\n\r\n{\"identifier\":\"";
    if let Some(at) = answer.windows(IDENTIFIER.len()).position(|window| window == IDENTIFIER) {
        let value = at + IDENTIFIER.len()..at + IDENTIFIER.len() + UUID_LENGTH;
        let is_hex = |bytes: &[u8]| bytes.iter().all(u8::is_ascii_hexdigit);
        if answer.get(value.clone()).is_some_and(is_hex) && answer.get(value.end) == Some(&b'"') {
            answer.drain(value);
        }
    }
    answer
}

/// Fails with the first of them.
fn assert_none(differences: &[String], requests: usize) {
    let first: Vec<&str> = differences.iter().take(5).map(String::as_str).collect();
    assert!(differences.is_empty(), "{} of {requests} differ:\n{}", differences.len(), first.join("\n\n"));
}

fn get(at: usize, target: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let key = server_key(at);
    request("GET", target, &[&[("X-Environment-Key", key.as_str())], headers].concat(), b"")
}

fn post(at: usize, body: &str) -> Vec<u8> {
    let (key, kind) = (server_key(at), ("Content-Type", "application/json"));
    request("POST", "/api/v1/identities/", &[("X-Environment-Key", &key), kind], body.as_bytes())
}

/// What is served of an environment without an identity.
fn of_environment(at: usize) -> Vec<Vec<u8>> {
    ["/api/v1/flags/", "/api/v1/environment-document/", "/ofrep/v1/evaluate/flags"]
        .iter()
        .map(|target| get(at, target, &[]))
        .collect()
}

/// A document with one condition, as in `tests/fixtures/cases/conditions.jsonl`.
fn with_condition(case: &Json) -> Json {
    let state = |id: u32, value: &str| json!({"feature": {"id": 1, "name": "f"}, "enabled": true, "feature_state_value": value, "django_id": id});
    let condition =
        json!({"operator": case["operator"], "value": case["value"], "property_": case["property"]});
    json!({
        "api_key": case["environment"][0], "name": case["environment"][1], "feature_states": [state(1, "no")],
        "project": {"segments": [{
            "id": 7, "name": "s", "rules": [{"type": "ALL", "rules": [], "conditions": [condition]}],
            "feature_states": [state(2, "yes")],
        }]},
    })
}

/// The cases of the unit tests, over the wire.
#[test]
fn cases_have_the_same_answers() {
    let (mut documents, mut requests, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    let mut add = |document: Json, identifier: &Json, traits: Vec<Json>| {
        let text = document.to_string();
        if Environment::compile(text.as_bytes()).is_err() {
            return refused.push(text);
        }
        // An empty identifier is replaced by a random one, which has other variants.
        let identifier = identifier.as_str().filter(|text| !text.is_empty()).unwrap_or("none");
        let body = json!({"identifier": identifier, "traits": traits});
        requests.push(post(documents.len(), &body.to_string()));
        requests.extend(of_environment(documents.len()));
        documents.push(text);
    };
    let sent = |key: &str, value: &Json| json!({"trait_key": key, "trait_value": value});
    for case in fixture::json_lines("cases/documents.jsonl") {
        let traits = case["traits"].as_object().into_iter().flatten();
        let traits = traits.map(|(key, value)| sent(key, value)).collect();
        add(case["document"].clone(), &case["identifier"], traits);
    }
    for case in fixture::json_lines("cases/conditions.jsonl") {
        let traits = case.get("trait").map(|value| sent("t", value)).into_iter().collect();
        add(with_condition(&case), &case["identifier"], traits);
    }
    assert!(documents.len() > 300 && refused.len() > 20, "{} and {}", documents.len(), refused.len());
    let scratch = Scratch::new();
    let pair = Pair::start(&scratch, &documents);
    let differences: Vec<String> = requests.iter().filter_map(|request| pair.differ(request)).collect();
    assert_none(&differences, requests.len());
    // What is not served has the same reasons.
    let mut reasons = 0;
    for (at, document) in refused.iter().enumerate() {
        let path = scratch.write(&format!("refused-{at}.json"), document);
        let check = || Start::command(&["check", "--document", path.to_str().expect("a plain path")]);
        // stdout and stderr arrive in either order.
        let [own, other] = [check().of_this_build().run(), check().run()].map(|(code, text)| {
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort();
            (code, lines)
        });
        assert_eq!(own, other, "{document}");
        assert_ne!(own.0, Some(0), "{document}");
        reasons += 1;
    }
    println!("architectures: {} answers of {} cases, {reasons} refusals", requests.len(), documents.len());
}

/// Bodies at the limits of JSON, which `simd-json` reads, and heads at those of HTTP.
#[test]
fn recorded_requests_have_the_same_answers() {
    let scratch = Scratch::new();
    let pair = Pair::start(&scratch, &[fixture::text("wire/document.json")]);
    let unhex = |text: &str| -> Vec<u8> {
        let byte = |at| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal");
        (0..text.len()).step_by(2).map(byte).collect()
    };
    let key = server_key(0);
    let bodies = fixture::json_lines("identities/bodies.jsonl").into_iter().map(|line| {
        let body = unhex(line[0].as_str().expect("a body"));
        let kind = line[1].as_str().map(|kind| ("Content-Type", kind));
        let fields: Vec<_> = std::iter::once(("X-Environment-Key", key.as_str())).chain(kind).collect();
        request("POST", "/api/v1/identities/", &fields, &body)
    });
    let heads = fixture::json_lines("wire/requests.jsonl").into_iter().map(|line| {
        let text = line[0].as_str().expect("a request").replace("SurfaceClientKey", "client-0");
        text.chars().map(|char| char as u8).collect()
    });
    let requests: Vec<Vec<u8>> = bodies.chain(heads).collect();
    assert!(requests.len() > 2700, "{}", requests.len());
    let differences: Vec<String> = requests.iter().filter_map(|request| pair.differ(request)).collect();
    assert_none(&differences, requests.len());
    println!("architectures: {} recorded requests", requests.len());
}

/// A trait of the generator: `[name, Python's type, text]`.
fn trait_of(entry: &Json) -> String {
    let text = |at: usize| entry[at].as_str().expect("a text");
    let value = match text(1) {
        "bool" => text(2).to_lowercase(),
        "float" => match f64::from_bits(text(2).parse().expect("the bits of a double")) {
            // As Python writes them.
            number if number.is_nan() => "NaN".to_owned(),
            f64::INFINITY => "Infinity".to_owned(),
            f64::NEG_INFINITY => "-Infinity".to_owned(),
            number => format!("{number:?}"),
        },
        "str" => entry[2].to_string(),
        "NoneType" => "null".to_owned(),
        _ => text(2).to_owned(),
    };
    format!(r#"{{"trait_key":{},"trait_value":{value}}}"#, entry[0])
}

/// Documents and identities of `make differential`, over the wire, plain and compressed.
#[test]
fn random_evaluations_have_the_same_answers() {
    let (count, seed) = (count_of("ANSWERS", 400), count_of("SEED", 1));
    let output = Command::new(python::interpreter())
        .arg(fixture::root().join("tests/python/evaluations.py"))
        .args([format!("{seed}.0"), count.to_string()])
        .output()
        .expect("Python");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).expect("UTF-8");
    let lines: Vec<&str> = lines.lines().collect();
    let (mut documents, mut requests) = (Vec::new(), Vec::new());
    for pair in lines.chunks_exact(2) {
        let at = documents.len();
        documents.push(pair[0].to_owned());
        requests.extend(of_environment(at));
        requests.push(get(at, "/api/v1/flags/", &[("Accept-Encoding", "gzip")]));
        requests.push(get(at, "/api/v1/environment-document/", &[("Accept-Encoding", "gzip")]));
        for entry in serde_json::from_str::<Vec<Json>>(pair[1]).expect("requests") {
            let Some(identifier) = entry[0].as_str().filter(|text| !text.is_empty()) else { continue };
            let traits: Vec<String> = entry[1].as_array().expect("traits").iter().map(trait_of).collect();
            let body = format!(r#"{{"identifier":{},"traits":[{}]}}"#, json!(identifier), traits.join(","));
            requests.push(post(at, &body));
        }
    }
    assert!(requests.len() as u64 >= count / 2, "{}", requests.len());
    let scratch = Scratch::new();
    let pair = Pair::start(&scratch, &documents);
    let differences: Vec<String> = requests.iter().filter_map(|request| pair.differ(request)).collect();
    assert_none(&differences, requests.len());
    println!("architectures: {} answers of {} random documents", requests.len(), documents.len());
}
