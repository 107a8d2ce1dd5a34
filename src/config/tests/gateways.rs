//! Settings for gateways and networks: `api_headers`, `server.base_path`, the address lists.
use serde_json::{Value, json};

use super::{Case, pair, with};
use crate::config::Secret;

fn headers(value: Value) -> Case {
    Case::new(&with("api_headers", value))
}

#[test]
fn api_headers_are_read_with_names_in_lower_case() {
    let config = headers(json!({"X-Gateway-Token": "a b=c", "authorization": "Bearer x"})).config();
    let mut read: Vec<(&str, &str)> =
        config.api_headers.iter().map(|(name, value)| (name.as_str(), value.expose())).collect();
    read.sort_unstable();
    assert_eq!(read, [("authorization", "Bearer x"), ("x-gateway-token", "a b=c")]);
    assert_eq!(headers(json!(null)).config().api_headers, []);
    let variable = Case::new(&json!({"environment_key_pairs": [pair()]}))
        .variable("EDGE_PROXY_API_HEADERS", r#"{"X-A": "b"}"#);
    assert_eq!(variable.config().api_headers, [("x-a".to_owned(), Secret::new("b"))]);
}

/// Every one is named in one run, and none is shown.
#[test]
fn invalid_api_headers_are_named_without_their_values() {
    let value = "a-secret-of-this-test";
    let long = "x".repeat(8 * 1024 + 1);
    for (name, content) in [
        ("Host", json!(value)),
        ("content-LENGTH", json!(value)),
        ("X-Environment-Key", json!(value)),
        ("X-Proxy-Key", json!(value)),
        ("Connection", json!(value)),
        ("Accept-Encoding", json!(value)),
        ("a b", json!(value)),
        ("", json!(value)),
        ("X-Line", json!(format!("{value}\r\nHost: evil"))),
        ("X-Space", json!(format!(" {value}"))),
        ("X-Empty", json!("")),
        ("X-Number", json!(7)),
        ("X-Text", json!("caf\u{e9}-a-secret-of-this-test")),
        ("X-Long", json!(long)),
    ] {
        let error = headers(json!({ name: content, "X-Also\u{7f}": value })).read().expect_err("invalid");
        let text = error.to_string();
        assert_eq!(error.issues.len(), 2, "all in one run: {text}");
        assert!(text.contains(&format!("api_headers.{name}: expected ")), "{text}");
        assert!(!text.contains(value) && !text.contains("xxxxxx"), "{text}");
    }
    let many: serde_json::Map<String, Value> = (0..33).map(|n| (format!("X-{n}"), json!("v"))).collect();
    assert_eq!(headers(Value::Object(many)).issues().len(), 1);
    assert_eq!(headers(json!(["X-A: a-secret-of-this-test"])).issues().len(), 1);
    assert_eq!(headers(json!({"X-A": "b", "x-a": "c"})).issues().len(), 1, "the same name twice");
    let both = json!({
        "environment_key_pairs": [pair()], "api_url": "https://user:word@flags.example/api/v1",
        "api_headers": {"Authorization": "Bearer a-secret-of-this-test"},
    });
    assert_eq!(Case::new(&both).issues().len(), 1, "api_url has credentials already");
    let alias =
        Case::new(&json!({"environment_key_pairs": [pair()]})).variable("API_HEADERS", r#"{"Host": "x"}"#);
    let (config, warnings) = alias.read().expect("a variable of another program");
    assert_eq!((config.api_headers, warnings[0].event), (Vec::new(), "variable_ignored"));
}

#[test]
fn base_path_begins_with_a_slash_and_does_not_end_with_it() {
    let read = |value: Value| Case::new(&with("server", json!({"base_path": value})));
    for (value, expected) in [
        (json!("/flags"), Some("/flags")),
        (json!("/a/b-c_d.e~f"), Some("/a/b-c_d.e~f")),
        (json!(""), None),
        (json!(null), None),
    ] {
        assert_eq!(read(value).config().server.base_path.as_deref(), expected);
    }
    let long = format!("/{}", "x".repeat(256));
    for value in
        ["flags", "/", "/flags/", "//flags", "/a//b", "/a/../b", "/a?b", "/a%62", "/a b", "/\u{e9}", &long]
    {
        assert_eq!(read(json!(value)).issues().len(), 1, "{value}");
    }
    assert_eq!(read(json!(7)).issues().len(), 1);
}

#[test]
fn access_log_file_enables_the_access_log() {
    let read = |logging: Value| Case::new(&with("logging", logging)).read().expect("valid");
    let (config, warnings) = read(json!({"access_log_file": "/var/log/edge-proxy/access.log"}));
    assert!(config.logging.enable_access_log && warnings.is_empty());
    let off = json!({"access_log_file": "access.log", "enable_access_log": false});
    let (config, warnings) = read(off);
    assert_eq!((config.logging.enable_access_log, config.logging.access_log_file), (false, None));
    assert_eq!(warnings[0].event, "setting_without_effect");
}
