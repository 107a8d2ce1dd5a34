//! SDKs that are not run here: the requests of each, byte by byte, and what it requires of the responses
//! (compatibility.md 1 and 2).
//!
//! Every row is one SDK. A check is named after the failure of that SDK.
use serde_json::{Value, json};

use crate::support::{Answer, Client, Proxy, Start};
use crate::surface::{CLIENT, SERVER, document};

/// A requirement of an SDK on a response.
type Check = fn(&Answer) -> Result<(), String>;

struct Sdk {
    name: &'static str,
    /// Request fields besides the key.
    fields: &'static [(&'static str, &'static str)],
    /// The body of `POST identities/`, as the SDK serialises it.
    identities: &'static str,
    /// `GET identities/`, if the SDK uses it.
    query: Option<&'static str>,
    checks: &'static [(&'static str, Check)],
}

const JSON: (&str, &str) = ("Content-Type", "application/json");
const JSON_UTF_8: (&str, &str) = ("Content-Type", "application/json; charset=utf-8");
const ACCEPT: (&str, &str) = ("Accept", "application/json");

const SDKS: &[Sdk] = &[
    Sdk {
        name: "go",
        fields: &[("User-Agent", "flagsmith-go-sdk/5.0.0"), ACCEPT, JSON],
        identities: r#"{"identifier":"u1","traits":[{"trait_key":"plan","trait_value":"gold"},{"trait_key":"age","trait_value":42,"transient":true}],"transient":true}"#,
        query: None,
        checks: &[("an id of 0 is not a flag", ids_are_not_zero)],
    },
    Sdk {
        name: "go without traits",
        fields: &[("User-Agent", "flagsmith-go-sdk/5.0.0"), ACCEPT, JSON],
        identities: r#"{"identifier":"u1"}"#,
        query: None,
        checks: &[("an id of 0 is not a flag", ids_are_not_zero)],
    },
    Sdk {
        name: "java",
        fields: &[("User-Agent", "flagsmith-java-sdk/8.1.0"), ACCEPT, JSON_UTF_8],
        identities: r#"{"identifier":"u1","traits":[{"trait_key":"plan","trait_value":"gold"}]}"#,
        query: None,
        checks: &[("any 2xx, with JSON", is_json)],
    },
    Sdk {
        name: ".NET",
        fields: &[
            ("User-Agent", "flagsmith-dotnet-sdk/9.0.0"),
            ("Content-Type", "application/json; charset=utf-8"),
        ],
        identities: r#"{"identifier":"u1","traits":[{"trait_key":"plan","trait_value":"gold","transient":false}],"transient":false}"#,
        query: None,
        checks: &[("non-null id and enabled", ids_are_not_zero)],
    },
    Sdk {
        name: "ruby",
        fields: &[("User-Agent", "flagsmith-ruby-sdk/4.3.0"), ACCEPT, JSON],
        identities: r#"{"identifier":"u1","traits":[{"trait_key":"plan","trait_value":"gold"}],"transient":false}"#,
        query: None,
        checks: &[
            ("the body is parsed only with a JSON content type", is_json),
            ("feature_segment absent or null", no_feature_segment),
        ],
    },
    Sdk {
        name: "php",
        fields: &[("User-Agent", "flagsmith-php-sdk/unknown"), ACCEPT, JSON],
        identities: r#"{"identifier":"u1","traits":[{"trait_key":"plan","trait_value":"gold"}]}"#,
        query: None,
        checks: &[("exactly 200, no redirect", has_status_200), ("non-null ids", ids_are_not_zero)],
    },
    Sdk {
        name: "elixir",
        fields: &[("User-Agent", "flagsmith-elixir-sdk/2.3.1"), JSON],
        identities: r#"{"identifier":"u1","traits":[{"trait_key":"plan","trait_value":{"value":"gold","type":"string"}},{"trait_key":"n","trait_value":{"value":"1.5","type":"decimal"}},{"trait_key":"b","trait_value":{"value":true,"type":"boolean"}},{"trait_key":"v","trait_value":{"value":"1.2.3","type":"semver"}}]}"#,
        query: None,
        checks: &[("identifier is there", has_identifier), ("a JSON content type", is_json)],
    },
    Sdk {
        name: "flutter",
        fields: &[("User-Agent", "flagsmith-flutter-sdk/6.1.0"), ACCEPT, JSON_UTF_8],
        identities: r#"{"identifier":"u1","traits":[{"trait_key":"plan","trait_value":"gold"}],"transient":true}"#,
        query: Some("identifier=u1&transient=true"),
        checks: &[
            ("status is 200", has_status_200),
            ("no null trait value that was not sent", trait_values_are_not_null),
        ],
    },
    Sdk {
        name: "kotlin",
        fields: &[("User-Agent", "flagsmith-kotlin-android-sdk/1.9.0"), ACCEPT, JSON_UTF_8],
        identities: r#"{"identifier":"u1","traits":[{"identifier":"u1","trait_key":"plan","trait_value":"gold"},{"trait_key":"n","trait_value":"10"}],"transient":false}"#,
        query: Some("identifier=u1&transient=true"),
        checks: &[("traits is a list", has_traits), ("the time is a double", time_is_a_double)],
    },
    Sdk {
        name: "ios",
        fields: &[("User-Agent", "flagsmith-swift-ios-sdk/3.10.0"), JSON],
        identities: r#"{"traits":[{"trait_key":"plan","trait_value":"gold","transient":false}],"identifier":"u1","transient":false}"#,
        query: Some("identifier=u1"),
        checks: &[("traits is a list", has_traits), ("transient is not null", no_null_transient)],
    },
];

fn start() -> Proxy {
    let start = Start::serve();
    let path = start.scratch().write("surface.json", document(0).to_string());
    start.document(CLIENT, SERVER, path).ready()
}

#[test]
fn responses_satisfy_every_sdk() {
    let proxy = start();
    for sdk in SDKS {
        let mut client = Client::connect(proxy.address());
        let mut fields =
            vec![(if sdk.name == "kotlin" { "X-environment-key" } else { "X-Environment-Key" }, CLIENT)];
        fields.extend(sdk.fields);
        let flags = client.request("GET", "/api/v1/flags/", &fields, b"");
        let posted = client.request("POST", "/api/v1/identities/", &fields, sdk.identities.as_bytes());
        let mut answers = vec![("flags", flags), ("identities", posted)];
        if let Some(query) = sdk.query {
            answers.push((
                "identities",
                client.request("GET", &format!("/api/v1/identities/?{query}"), &fields, b""),
            ));
        }
        for (route, answer) in &answers {
            assert_eq!(answer.status, 200, "{} {route}: {}", sdk.name, answer.text());
            for (what, check) in sdk.checks.iter().filter(|(what, _)| {
                *route == "identities" || !what.contains("trait") && !what.contains("identifier")
            }) {
                check(answer).unwrap_or_else(|error| panic!("{} {route}: {what}: {error}", sdk.name));
            }
        }
        if sdk.identities.contains("gold") {
            let banner = answers[1].1.json()["flags"][0]["feature_state_value"].clone();
            assert_eq!(banner, "golden", "{}: the trait was evaluated", sdk.name);
        }
    }
}

#[test]
fn analytics_responses_are_success_for_every_sdk() {
    let proxy = start();
    for sdk in SDKS {
        let mut fields = vec![("X-Environment-Key", CLIENT)];
        fields.extend(sdk.fields);
        let mut client = Client::connect(proxy.address());
        let answer = client.request("POST", "/api/v1/analytics/flags/", &fields, br#"{"banner":3}"#);
        // Flutter requires 200 to 202; Kotlin rejects an empty body; Java parses it.
        assert_eq!((answer.status, answer.json()), (200, json!({})), "{}", sdk.name);
    }
}

#[test]
fn javascript_sdk_uses_the_generated_identifier() {
    let proxy = start();
    let fields = [
        ("X-Environment-Key", CLIENT),
        ("Origin", "https://app.example"),
        ("Flagsmith-SDK-User-Agent", "flagsmith-js-sdk/12.1.0"),
        JSON_UTF_8,
    ];
    for body in [
        r#"{"identifier":null,"traits":[{"trait_key":"plan","trait_value":"gold"}]}"#,
        r#"{"traits":[{"trait_key":"plan","trait_value":"gold"}],"transient":true}"#,
    ] {
        let answer =
            Client::connect(proxy.address()).request("POST", "/api/v1/identities/", &fields, body.as_bytes());
        let answered = answer.json();
        // hashlib.sha256(b"plangold").hexdigest()
        assert_eq!(
            answered["identifier"],
            "c5501db73aba343c1859b9ec00592baa92ac6371470afd7f723821d07372c8f6"
        );
        assert_eq!(
            answered["traits"],
            json!([{"trait_key": "plan", "trait_value": "gold"}]),
            "it replaces its own by these"
        );
        let exposed = answer.header("access-control-expose-headers").unwrap_or_default().to_ascii_lowercase();
        assert!(exposed.contains("x-flagsmith-document-updated-at"), "{exposed}");
    }
    let headers = "content-type,flagsmith-sdk-user-agent,x-environment-key";
    let preflight = [
        ("Origin", "https://app.example"),
        ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", headers),
    ];
    let answer = Client::connect(proxy.address()).request("OPTIONS", "/api/v1/identities/", &preflight, b"");
    assert_eq!((answer.status, answer.header("access-control-allow-headers")), (200, Some(headers)));
}

#[test]
fn errors_are_json_objects() {
    let proxy = start();
    let requests: [(&str, &str, &str, &str); 5] = [
        ("GET", "/api/v1/flags/", "nope", ""),
        ("POST", "/api/v1/identities/", CLIENT, "{"),
        ("GET", "/api/v1/identities/", CLIENT, ""),
        ("GET", "/unknown", CLIENT, ""),
        ("POST", "/api/v1/flags/", CLIENT, "{}"),
    ];
    for (method, path, key, body) in requests {
        let answer = Client::connect(proxy.address()).request(
            method,
            path,
            &[("X-Environment-Key", key), JSON],
            body.as_bytes(),
        );
        // Ruby and iOS ignore the status: they would read an array as flags.
        assert!(answer.status >= 400 && answer.json().is_object(), "{path}: {}", answer.text());
        assert_eq!(answer.header("content-type"), Some("application/json"), "{path}");
        // The Java SDK retries these without limit.
        assert!(![413, 429, 503].contains(&answer.status), "{path}: {}", answer.status);
    }
}

// --- what SDKs need ---

fn flags(answer: &Answer) -> Vec<Value> {
    let body = answer.json();
    body.as_array().or_else(|| body["flags"].as_array()).expect("flags").clone()
}

fn require(holds: bool, answer: &Answer) -> Result<(), String> {
    holds.then_some(()).ok_or_else(|| answer.text())
}

fn has_status_200(answer: &Answer) -> Result<(), String> {
    require(answer.status == 200, answer)
}

fn is_json(answer: &Answer) -> Result<(), String> {
    require(answer.header("content-type") == Some("application/json") && !answer.body.is_empty(), answer)
}

fn ids_are_not_zero(answer: &Answer) -> Result<(), String> {
    let sound = |flag: &Value| {
        flag["feature"]["id"].as_u64().is_some_and(|id| id > 0) && flag["enabled"].is_boolean()
    };
    require(flags(answer).iter().all(sound), answer)
}

fn no_feature_segment(answer: &Answer) -> Result<(), String> {
    require(flags(answer).iter().all(|flag| flag["feature_segment"].is_null()), answer)
}

fn has_identifier(answer: &Answer) -> Result<(), String> {
    require(answer.json()["identifier"] == "u1", answer)
}

fn has_traits(answer: &Answer) -> Result<(), String> {
    require(answer.json()["traits"].is_array(), answer)
}

fn traits(answer: &Answer) -> Vec<Value> {
    answer.json()["traits"].as_array().cloned().unwrap_or_default()
}

fn trait_values_are_not_null(answer: &Answer) -> Result<(), String> {
    require(traits(answer).iter().all(|item| !item["trait_value"].is_null()), answer)
}

fn no_null_transient(answer: &Answer) -> Result<(), String> {
    require(traits(answer).iter().all(|item| item.get("transient").is_none_or(Value::is_boolean)), answer)
}

fn time_is_a_double(answer: &Answer) -> Result<(), String> {
    let time = answer.header("x-flagsmith-document-updated-at").unwrap_or_default();
    require(time.contains('.') && time.parse::<f64>().is_ok_and(|time| time > 0.0), answer)
}
