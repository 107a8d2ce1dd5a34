//! OpenFeature's Remote Evaluation Protocol against the running executable.
use serde_json::{Value, json};

use crate::support::{Answer, Client, Proxy, Start};
use crate::surface::{CLIENT, SERVER, document};

fn start() -> Proxy {
    let start = Start::serve();
    let path = start.scratch().write("surface.json", document(0).to_string());
    start.document(CLIENT, SERVER, path).ready()
}

fn post(proxy: &Proxy, path: &str, fields: &[(&str, &str)], body: &str) -> Answer {
    Client::connect(proxy.address()).request("POST", path, fields, body.as_bytes())
}

const GOLD: &str = r#"{"context":{"targetingKey":"u","plan":"gold","nested":{"a":1},"list":[1]}}"#;
const PLAIN: &str = r#"{"context":{"targetingKey":"u"}}"#;

#[test]
fn flag_has_value_and_reason() {
    let proxy = start();
    let key = [("X-Environment-Key", SERVER)];
    for (flag, body, expected) in [
        (
            "banner",
            PLAIN,
            json!({"key": "banner", "value": "hello", "reason": "DEFAULT", "variant": "default", "metadata": {"enabled": true}}),
        ),
        (
            "banner",
            GOLD,
            json!({"key": "banner", "value": "golden", "reason": "TARGETING_MATCH", "variant": "default", "metadata": {"enabled": true}}),
        ),
        (
            "on",
            PLAIN,
            json!({"key": "on", "value": true, "reason": "STATIC", "variant": "default", "metadata": {"enabled": true}}),
        ),
        (
            "off",
            PLAIN,
            json!({"key": "off", "value": false, "reason": "DISABLED", "variant": "default", "metadata": {"enabled": false}}),
        ),
        (
            "dark",
            PLAIN,
            json!({"key": "dark", "reason": "DISABLED", "variant": "default", "metadata": {"enabled": false}}),
        ),
        (
            "secret",
            PLAIN,
            json!({"key": "secret", "value": 5, "reason": "STATIC", "variant": "default", "metadata": {"enabled": true}}),
        ),
        (
            "split",
            PLAIN,
            json!({"key": "split", "value": "variant-value", "reason": "SPLIT", "variant": "b", "metadata": {"enabled": true}}),
        ),
    ] {
        let answer = post(&proxy, &format!("/ofrep/v1/evaluate/flags/{flag}"), &key, body);
        assert_eq!((answer.status, answer.json()), (200, expected));
    }
}

#[test]
fn bulk_evaluation_returns_flags_visible_to_the_key() {
    let proxy = start();
    let bulk =
        |key: &str| post(&proxy, "/ofrep/v1/evaluate/flags", &[("X-Environment-Key", key)], GOLD).json();
    let names = |answer: &Value| -> Vec<String> {
        answer["flags"]
            .as_array()
            .unwrap()
            .iter()
            .map(|flag| flag["key"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names(&bulk(SERVER)), ["banner", "on", "off", "dark", "secret", "split", "count"]);
    let client = bulk(CLIENT);
    assert_eq!(names(&client), ["banner", "on", "off", "dark", "split", "count"]);
    assert_eq!(client["flags"][0]["value"], "golden");
    let stream = json!([{"type": "sse", "endpoint": {"requestUri": format!("/ofrep/v1/environments/{CLIENT}/stream")}, "inactivityDelaySec": 120}]);
    assert_eq!(client["eventStreams"], stream);
}

#[test]
fn bulk_evaluation_has_an_entity_tag() {
    let proxy = start();
    let ask = |body: &str, tag: Option<&str>| {
        let mut fields = vec![("X-API-Key", CLIENT)];
        fields.extend(tag.map(|tag| ("If-None-Match", tag)));
        post(&proxy, "/ofrep/v1/evaluate/flags/", &fields, body)
    };
    let plain = ask(PLAIN, None);
    let tag = plain.header("etag").expect("a tag").to_owned();
    let again = ask(PLAIN, Some(&tag));
    assert_eq!((again.status, again.body.len(), again.header("etag")), (304, 0, Some(tag.as_str())));
    // The time from an event stream is not a validator.
    let path =
        format!("/ofrep/v1/evaluate/flags?flagConfigEtag={}&flagConfigLastModified=2000000000", &tag[1..25]);
    let response = post(&proxy, &path, &[("X-API-Key", CLIENT)], PLAIN);
    assert_eq!(
        (response.status, response.text(), response.header("etag")),
        (200, plain.text(), Some(tag.as_str()))
    );
    let path = "/ofrep/v1/evaluate/flags?flagConfigEtag=x&flagConfigLastModified=2020-01-01T00:00:00Z";
    let response = post(&proxy, path, &[("X-API-Key", CLIENT), ("If-None-Match", "\"x\"")], PLAIN);
    assert_eq!((response.status, response.text()), (200, plain.text()));
    let gold = ask(GOLD, Some(&tag));
    assert!(gold.status == 200 && gold.header("etag") != Some(&tag));
}

#[test]
fn errors_use_the_codes_of_the_protocol() {
    let proxy = start();
    let key = [("X-Environment-Key", CLIENT)];
    for (body, code) in [
        ("{", "PARSE_ERROR"),
        ("", "INVALID_CONTEXT"),
        ("[]", "INVALID_CONTEXT"),
        ("{}", "INVALID_CONTEXT"),
        (r#"{"context":5}"#, "INVALID_CONTEXT"),
        (r#"{"context":{}}"#, "TARGETING_KEY_MISSING"),
        (r#"{"context":{"targetingKey":null}}"#, "TARGETING_KEY_MISSING"),
        (r#"{"context":{"targetingKey":7}}"#, "INVALID_CONTEXT"),
        (r#"{"context":{"targetingKey":true}}"#, "INVALID_CONTEXT"),
        (r#"{"context":{"targetingKey":["u"]}}"#, "INVALID_CONTEXT"),
        (r#"{"context":{"targetingKey":{"id":"u"}}}"#, "INVALID_CONTEXT"),
        (r#"{"context":{"targeting_key":"u"}}"#, "TARGETING_KEY_MISSING"),
        (r#"{"context":null}"#, "INVALID_CONTEXT"),
        (r#"{"context":[]}"#, "INVALID_CONTEXT"),
        (r#"{"context":"u"}"#, "INVALID_CONTEXT"),
        (r#"{"targetingKey":"u"}"#, "INVALID_CONTEXT"),
        ("null", "INVALID_CONTEXT"),
        (r#"{"context":{"targetingKey":"u"}} x"#, "PARSE_ERROR"),
        (r#"{"context":{"targetingKey":"u",}}"#, "PARSE_ERROR"),
        ("not JSON", "PARSE_ERROR"),
    ] {
        let one = post(&proxy, "/ofrep/v1/evaluate/flags/banner", &key, body);
        assert_eq!(
            (one.status, &one.json()["errorCode"], &one.json()["key"]),
            (400, &json!(code), &json!("banner")),
            "{body}"
        );
        let all = post(&proxy, "/ofrep/v1/evaluate/flags", &key, body);
        assert_eq!((all.status, &all.json()["errorCode"]), (400, &json!(code)), "{body}");
    }
    for flag in ["unknown", "secret", "BANNER", "banner%20", "a%2Fb", "%F0%9F%98%80", "%FF"] {
        let answer = post(&proxy, &format!("/ofrep/v1/evaluate/flags/{flag}"), &key, PLAIN);
        assert_eq!((answer.status, &answer.json()["errorCode"]), (404, &json!("FLAG_NOT_FOUND")), "{flag}");
        assert_eq!(answer.json()["metadata"], json!({}), "the Java provider requires it");
    }
}

#[test]
fn accepts_the_key_in_every_field_of_the_protocol() {
    let proxy = start();
    let bearer = format!("Bearer {SERVER}");
    for (field, status) in [
        (("X-Environment-Key", CLIENT), 200),
        (("X-API-Key", CLIENT), 200),
        (("Authorization", bearer.as_str()), 200),
        (("Authorization", "Basic abc"), 401),
        (("Authorization", "Bearer nope"), 401),
        (("X-API-Key", "nope"), 401),
        (("Authorization", CLIENT), 401),
        (("Authorization", "Bearer "), 401),
        (("Accept", "application/json"), 401),
    ] {
        let answer = post(&proxy, "/ofrep/v1/evaluate/flags", &[field], PLAIN);
        assert_eq!(answer.status, status, "{field:?}");
    }
}

#[test]
fn cyclic_flag_is_an_error() {
    let mut circular = document(0);
    let condition = json!({"operator": "EQUAL", "value": "true", "property_": "$.flags.on.enabled"});
    let mut state = circular["feature_states"][1].clone();
    state["feature_state_value"] = json!("never");
    circular["project"]["segments"][0]["rules"][0]["rules"][0]["conditions"] = json!([condition]);
    circular["project"]["segments"][0]["feature_states"] = json!([state]);
    let start = Start::serve();
    let path = start.scratch().write("circular.json", circular.to_string());
    let proxy = start.document(CLIENT, SERVER, path).ready();
    let answer = post(&proxy, "/ofrep/v1/evaluate/flags/on", &[("X-API-Key", CLIENT)], PLAIN);
    assert_eq!((answer.status, &answer.json()["reason"]), (200, &json!("ERROR")), "{}", answer.text());
    assert_eq!(answer.json()["value"], json!(true));
}

/// The limit of a trait value, beyond which `POST identities/` answers 422.
#[test]
fn context_strings_have_the_limit_of_trait_values() {
    let start = Start::serve();
    let path = start.scratch().write("document.json", document(0).to_string());
    let proxy = start.document(CLIENT, SERVER, path).ready();
    for (length, status) in [(2000, 200), (2001, 400)] {
        let context = json!({"context": {"targetingKey": "u", "note": "\u{e9}".repeat(length)}}).to_string();
        for path in ["/ofrep/v1/evaluate/flags", "/ofrep/v1/evaluate/flags/on"] {
            let answer = post(&proxy, path, &[("X-API-Key", CLIENT)], &context);
            assert_eq!(answer.status, status, "{path}: {}", answer.text());
            if status == 400 {
                let found = answer.json();
                assert_eq!(found["errorCode"], "INVALID_CONTEXT");
                assert_eq!(found["errorDetails"], "a string of the context is longer than 2000 characters");
            }
        }
    }
}

#[test]
fn context_members_are_traits() {
    let mut closed = document(0);
    closed["allow_client_traits"] = json!(false);
    let start = Start::serve();
    let path = start.scratch().write("closed.json", closed.to_string());
    let proxy = start.document(CLIENT, SERVER, path).ready();
    for (key, value) in [(CLIENT, "hello"), (SERVER, "golden")] {
        let answer = post(&proxy, "/ofrep/v1/evaluate/flags/banner", &[("X-API-Key", key)], GOLD);
        assert_eq!(answer.json()["value"], value, "{key}");
    }
    let spoofed = r#"{"context":{"targetingKey":"u","plan":["gold"]}}"#;
    let answer = post(&proxy, "/ofrep/v1/evaluate/flags/banner", &[("X-API-Key", SERVER)], spoofed);
    assert_eq!((answer.status, &answer.json()["value"]), (200, &json!("hello")), "a list is not a trait");
    for method in ["GET", "PUT"] {
        let refused = Client::connect(proxy.address()).request(method, "/ofrep/v1/evaluate/flags", &[], b"");
        assert_eq!((refused.status, refused.header("allow")), (405, Some("POST")), "{method}");
    }
}
