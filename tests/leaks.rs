//! Leaks: upstream's addresses and file paths on the public port, keys in the access log, control characters of
//! documents, files and arguments on a terminal.
use serde_json::{Value, json};

use crate::support::{Client, Start, Upstream, eventually, fixture, get};
use crate::surface::{CLIENT, SERVER, document};

const KEY: &str = "ser.this-key-must-not-be-in-a-log";
/// Escape, bell, DEL, CSI (C1), right-to-left override, isolate, line separator.
const UNSAFE: &str = "\u{1b}[2J\u{7}\u{7f}\u{9b}31m\u{202e}\u{2066}\u{2028}";

fn assert_safe(text: &str) {
    let is_unsafe =
        |c: char| (c.is_control() && c != '\n') || ('\u{2028}'..='\u{202e}').contains(&c) || c == '\u{2066}';
    let found: Vec<char> = text.chars().filter(|c| is_unsafe(*c)).collect();
    assert!(found.is_empty(), "{found:?} in {text:?}");
}

#[test]
fn public_health_shows_only_error_kinds() {
    let upstream = Upstream::start();
    upstream.refuse();
    let start = Start::serve().with_admin().set("api_url", upstream.api_url()).environment(CLIENT, SERVER);
    let missing = start.scratch().write("no-such-document.json", "{}");
    let proxy = start.document("FileClientKey", "ser.of-a-file", &missing).start();
    std::fs::remove_file(&missing).expect("it was written");
    let errors = |health: &Value| -> Vec<Value> {
        let environments = health["environments"].as_array().expect("a list").iter();
        environments.map(|environment| environment["last_error"].clone()).collect()
    };
    for path in ["/health", "/proxy/health", "/proxy/health/readiness", "/health/"] {
        eventually("both have failed", || {
            (errors(&proxy.get(path, "").json()) == [json!("connection_refused"), json!("file")])
                .then_some(())
        });
    }
    let text = get(proxy.admin(), "/proxy/health/readiness", "").text();
    let address = upstream.address().to_string();
    assert!(text.contains(&address) && text.contains("no-such-document.json"), "{text}");
    for (path, key) in [
        ("/health", ""),
        ("/api/v1/flags/", CLIENT),
        ("/api/v1/environment-document/", SERVER),
        ("/api/v1/flags/", "FileClientKey"),
        ("/openapi.json", ""),
        ("/docs", ""),
        ("/nope", ""),
    ] {
        let answer = proxy.get(path, key);
        let whole = format!("{:?} {}", answer.headers, answer.text());
        for secret in [address.as_str(), "no-such-document", SERVER] {
            assert!(!whole.contains(secret), "{path}: {whole}");
        }
    }
    for path in ["/ofrep/v1/evaluate/flags", "/ofrep/v1/evaluate/flags/x", "/api/v1/identities/"] {
        let answer = proxy.post(path, CLIENT, r#"{"identifier":"a","context":{"targetingKey":"a"}}"#);
        assert!(answer.status == 502 && !answer.text().contains(&address), "{path}: {}", answer.text());
    }
}

#[test]
fn access_log_contains_no_key_in_any_encoding() {
    let start = Start::serve().set("logging", json!({"enable_access_log": true, "log_format": "json"}));
    let proxy = start.document(CLIENT, SERVER, fixture::path("environments/Main.json")).ready();
    let encoded = |text: &str, upper: bool| -> String {
        text.bytes().map(|b| if upper { format!("%{b:02X}") } else { format!("%{b:02x}") }).collect()
    };
    let (lower, upper) = (encoded(KEY, false), encoded(KEY, true));
    let paths = [
        format!("/sse/environments/{KEY}/stream"),
        format!("/sse/%65nvironments/{KEY}/stream"),
        format!("/sse/environment%73/{KEY}/stream"),
        format!("/sse%2fenvironments%2f{KEY}%2Fstream"),
        format!("/sse/%2565nvironments/{KEY}/stream"),
        format!("/sse/%25%36%35nvironments/{KEY}/stream"),
        format!("/sse/environments/{lower}/stream"),
        format!("/sse/environments/{upper}/stream"),
        format!("/sse/environments/{}/stream", lower.replace('%', "%25")),
        format!("/ofrep/v1/%45nvironments/{KEY}/stream"),
        format!("/ofrep/v1/environments/{KEY}"),
        format!("/api/v1/flags/{KEY}"),
        format!("/{upper}"),
        format!("/api/v1/flags/?key={KEY}"),
        format!("/api/v1/flags/?{lower}"),
    ];
    for path in &paths {
        let fields = [("Referer", format!("http://x/{KEY}")), ("X-Environment-Key", KEY.to_owned())];
        let fields = fields.each_ref().map(|(name, value)| (*name, value.as_str()));
        let answer = Client::connect(proxy.address()).request("GET", path, &fields, b"");
        assert!(matches!(answer.status, 401 | 404), "{path}: {}", answer.status);
    }
    proxy.get("/the-last-one%0Aforged=1", "");
    proxy.wait_for_log("the-last-one");
    let log = proxy.log();
    assert_eq!(log.matches("http_request").count(), log.matches("\"status\":40").count() + readiness(&log));
    for secret in [KEY, &KEY[4..], &lower, &upper, "must-not"] {
        assert!(!log.contains(secret), "{secret} in {log}");
    }
    assert!(log.matches("ser.th...").count() >= 10, "{log}");
    log.lines().for_each(assert_safe);
}

fn readiness(log: &str) -> usize {
    log.lines().filter(|line| line.contains("/proxy/health/")).count()
}

#[test]
fn escapes_control_characters_of_documents_and_arguments() {
    let start = Start::command(&["explain"]);
    let mut document = document(0);
    let name = format!("banner{UNSAFE}\nyes forged");
    document["feature_states"][0]["feature"]["name"] = json!(name);
    document["feature_states"][0]["feature_state_value"] = json!(name);
    document["project"]["segments"] = json!([{
        "id": 1, "name": name, "feature_states": [document["feature_states"][0].clone()],
        "rules": [{"type": "ALL", "conditions": [{"property_": name, "operator": "EQUAL", "value": name}], "rules": []}],
    }]);
    let path = start.scratch().write("document.json", document.to_string());
    let path = path.to_str().expect("UTF-8");
    for json in [false, true] {
        let hostile = format!("{name}={name}");
        let start =
            Start::command(&["explain", "--document", path, "--identifier", &name, "--trait", &hostile]);
        let (code, text) = if json { start.arg("--json").run() } else { start.run() };
        assert_eq!(code, Some(0), "{text}");
        assert_safe(&text);
        assert!(
            text.contains("\\u202e") && text.contains("\\u009b31m") && text.contains("\\u007f"),
            "{text}"
        );
        assert!(!text.lines().any(|line| line.trim_start().starts_with("yes forged")), "{text}");
        if json {
            let value: Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!(value["segments"][0]["name"], name.as_str());
        }
    }
}

#[test]
fn escapes_control_characters_in_errors() {
    let hostile = format!("x{UNSAFE}y");
    let config = |value: Value| {
        let start = Start::command(&["check"]);
        let path = start.scratch().write("config.json", value.to_string());
        let path = path.to_str().expect("UTF-8").to_owned();
        start.arg("--config").arg(path)
    };
    let missing = format!("/no/{hostile}\nFAIL  forged");
    for (start, code) in [
        (Start::command(&["explain", "--document", &missing]), 1),
        (Start::command(&["explain", "--feature", &hostile, "--document", "/dev/null"]), 1),
        (Start::command(&["explain", "--trait", &hostile, "--identifier", &hostile]), 1),
        (Start::command(&["serve", &format!("--{hostile}")]), 64),
        (Start::command(&["serve", "--port", &hostile]), 64),
        (Start::command(&[&hostile]), 64),
        (config(json!({"api_url": hostile, &hostile: 1, "environment_key_pairs": [{&hostile: 1}]})), 64),
        (config(json!({"documents": [missing], &hostile: 1, "cache_dir": missing})), 1),
    ] {
        let (found, text) = start.run();
        assert_eq!(found, Some(code), "{text}");
        assert_safe(&text);
        assert!(!text.lines().any(|line| line == "FAIL  forged"), "{text}");
    }
}

/// Both formats of the log, with text from a document and from a configuration.
#[test]
fn escapes_control_characters_in_the_log() {
    for format in ["generic", "json"] {
        let start = Start::serve().set("logging", json!({"log_format": format, "enable_access_log": true}));
        let mut document = document(0);
        document["project"]["segments"] = json!([{
            "id": 1, "name": UNSAFE, "feature_states": [],
            "rules": [{"type": "ALL", "rules": [], "conditions": [
                {"property_": UNSAFE, "operator": "REGEX", "value": format!("({UNSAFE}\nforged")}]}],
        }]);
        let path = start.scratch().write(&format!("a{UNSAFE}\nforged.json"), document.to_string());
        let proxy = start.document(CLIENT, SERVER, path).set(&format!("no{UNSAFE}\nforged"), 1).start();
        proxy.wait_for_log("unknown_setting_ignored");
        proxy.get("/%1b%5b2J%c2%9b31m%e2%80%ae", "");
        proxy.get("/last", "");
        proxy.wait_for_log("/last");
        let log = proxy.log();
        log.lines().for_each(assert_safe);
        assert!(!log.lines().any(|line| line.starts_with("forged")), "{log}");
    }
}
