//! `edge-proxy explain` and `POST /proxy/explain/`, which return the same explanation.
//!
//! `differential` compares explanations with the reference; these tests cover access, arguments and errors.
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::support::proxy::{Proxy, Start};
use crate::support::{Reply, Scratch, Upstream, executable};
use crate::surface;

const CLIENT: &str = "demo-client-side-key";
const SERVER: &str = "ser.demo-server-side-key";
const BODY: &str = r#"{"identifier":"alice","traits":[{"trait_key":"spend","trait_value":"1500"},
    {"trait_key":"country","trait_value":"DE"}]}"#;

fn demo() -> Proxy {
    Start::demo().ready()
}

#[test]
fn explains_to_server_side_keys() {
    let proxy = demo();
    let answer = proxy.post("/proxy/explain/?feature=welcome_message", SERVER, BODY);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let explanation = answer.json();
    assert_eq!(explanation["flags"].as_array().map(Vec::len), Some(1));
    assert_eq!(explanation["flags"][0]["reason"], "TARGETING_MATCH; segment=premium customers");
    let segment = &explanation["segments"][0];
    assert_eq!((&segment["name"], &segment["matches"]), (&"premium customers".into(), &true.into()));
    let condition = &segment["rules"][0]["rules"][0]["conditions"][0];
    assert_eq!((&condition["seen"], &condition["seen_as"]), (&1500.into(), &"integer".into()));
}

#[test]
fn rejects_client_side_keys() {
    let proxy = demo();
    for key in [CLIENT, "nope", ""] {
        let answer = proxy.post("/proxy/explain/", key, BODY);
        assert_eq!(answer.status, 401, "{key:?}: {}", answer.text());
        assert!(!answer.text().contains("premium"), "{}", answer.text());
    }
    assert_eq!(proxy.post("/proxy/explain", SERVER, "{").status, 422);
    assert_eq!(proxy.get("/proxy/explain", SERVER).status, 405);
}

fn run(args: &[&str]) -> (Option<i32>, String) {
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/src/demo/environment.json");
    let mut all = vec!["explain", "--document", document];
    all.extend_from_slice(args);
    Start::command(&all).run()
}

#[test]
fn command_prints_the_same_explanation() {
    let traits = ["--identifier", "alice", "--trait", "spend=1500", "--trait", "country=DE"];
    let (code, text) = run(&traits);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("welcome_message") && text.contains("matched by: premium customers"), "{text}");
    assert!(text.contains(r#"yes spend GREATER_THAN_INCLUSIVE "1000"   seen: 1500 (integer)"#), "{text}");
    let (code, text) = run(&[&traits[..], &["--json", "--feature", "welcome_message"]].concat());
    assert_eq!(code, Some(0), "{text}");
    let explanation: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(explanation["flags"][0]["matching_segments"][0], "premium customers");
}

#[test]
fn errors_name_the_argument() {
    let (code, text) = run(&["--identifier", "u", "--feature", "nope"]);
    assert!(code == Some(1) && text.contains(r#"--feature "nope""#), "{code:?} {text}");
    let (code, text) = run(&["--identifier", "u", "--trait", "plan"]);
    assert!(code == Some(1) && text.contains("expected KEY=VALUE"), "{code:?} {text}");
    let (code, text) = Start::command(&["explain", "--document", "/does/not/exist"]).run();
    assert!(code == Some(1) && text.contains("cannot read /does/not/exist"), "{code:?} {text}");
}

// --- environments that are polled ---

/// The output on stdout and stderr, and whether the command succeeded.
struct Printed {
    out: String,
    err: String,
    code: Option<i32>,
}

impl Printed {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {} {}", self.out, self.err))
    }
}

/// `edge-proxy explain --config ...` with this configuration.
fn explain(scratch: &Scratch, config: &Value, args: &[&str]) -> Printed {
    let path = scratch.write("explain.json", config.to_string());
    let mut command = Command::new(executable());
    command.env_clear().arg("explain").arg("--config").arg(path).args(args);
    let Output { status, stdout, stderr } = command.output().expect("it starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    let printed = Printed { out: text(stdout), err: text(stderr), code: status.code() };
    assert!(!format!("{}{}", printed.out, printed.err).contains(surface::SERVER), "{}", printed.err);
    printed
}

fn polled(upstream: &Upstream) -> Value {
    json!({
        "api_url": upstream.api_url(),
        "environment_key_pairs": [
            {"client_side_key": surface::CLIENT, "server_side_key": surface::SERVER},
            {"client_side_key": "OtherClientKey", "server_side_key": "ser.other"},
        ],
    })
}

fn upstream() -> Upstream {
    let upstream = Upstream::start();
    upstream.document(surface::SERVER, surface::document(1).to_string());
    upstream
}

const GOLD: [&str; 4] = ["--identifier", "u", "--trait", "plan=gold"];

#[test]
fn fetches_polled_document_once() {
    let (upstream, scratch) = (upstream(), Scratch::new());
    let args = [&["--environment", surface::CLIENT], &GOLD[..]].concat();
    let printed = explain(&scratch, &polled(&upstream), &args);
    assert_eq!((printed.code, printed.err.as_str()), (Some(0), ""));
    assert!(
        printed.out.contains(r#"banner = "golden"   [TARGETING_MATCH; segment=gold plan]"#),
        "{}",
        printed.out
    );
    let sent = upstream.requests();
    assert_eq!(sent.len(), 1, "{sent:?}");
    assert_eq!((sent[0].path(), sent[0].key()), ("/api/v1/environment-document/", surface::SERVER));
    let one =
        explain(&scratch, &polled(&upstream), &[&args[..], &["--feature", "banner", "--json"]].concat());
    let explanation = one.json();
    assert_eq!(
        (explanation["flags"].as_array().map(Vec::len), &explanation["flags"][0]["value"]),
        (Some(1), &json!("golden"))
    );
}

#[test]
fn upstream_errors_do_not_contain_the_key() {
    let (upstream, scratch) = (upstream(), Scratch::new());
    let mut config = polled(&upstream);
    let args = ["--environment", surface::CLIENT, "--identifier", "u"];
    for (status, text) in [(401, "401"), (403, "403"), (500, "500"), (404, "404")] {
        upstream.on_key(
            surface::SERVER,
            Reply::new(status, r#"{"detail":"Invalid or missing Environment Key"}"#),
        );
        let printed = explain(&scratch, &config, &args);
        assert!(printed.code == Some(1) && printed.err.contains(text), "{:?} {}", printed.code, printed.err);
        assert_eq!(printed.out, "");
    }
    upstream.on_key(surface::SERVER, Reply::json("[]"));
    let printed = explain(&scratch, &config, &args);
    assert!(printed.code == Some(1) && printed.err.contains("document"), "{}", printed.err);
    upstream.refuse();
    let printed = explain(&scratch, &config, &args);
    assert!(printed.code == Some(1) && printed.err.contains("refused"), "{}", printed.err);
    // A cache directory without this environment is the same as none.
    config["cache_dir"] = json!(scratch.path());
    let printed = explain(&scratch, &config, &args);
    assert!(printed.code == Some(1) && printed.err.contains("refused"), "{}", printed.err);
}

#[test]
fn explains_last_good_document_while_upstream_is_down() {
    let (upstream, scratch) = (upstream(), Scratch::new());
    let mut config = polled(&upstream);
    config["cache_dir"] = json!(scratch.path());
    let mut proxy = Start::serve()
        .set("api_url", upstream.api_url())
        .set("cache_dir", json!(scratch.path()))
        .environment(surface::CLIENT, surface::SERVER)
        .ready();
    proxy.signal("TERM");
    assert!(proxy.wait().success());
    upstream.refuse();
    let args = [&["--environment", surface::CLIENT, "--json"], &GOLD[..]].concat();
    let printed = explain(&scratch, &config, &args);
    assert_eq!(printed.code, Some(0), "{}", printed.err);
    assert_eq!(printed.json()["flags"][0]["value"], "golden", "stdout contains only JSON");
    assert!(
        printed.err.contains("refused") && printed.err.contains("the document that cache_dir has from 20"),
        "{}",
        printed.err
    );
    let kept = std::fs::read_dir(scratch.path()).expect("there").map(|entry| entry.expect("readable").path());
    let kept: Vec<_> = kept.filter(|path| path.extension().is_some_and(|kind| kind == "document")).collect();
    assert_eq!(kept.len(), 1, "explain writes no files: {kept:?}");
    let mut bytes = std::fs::read(&kept[0]).expect("readable");
    bytes.pop();
    std::fs::write(&kept[0], bytes).expect("writable");
    let printed = explain(&scratch, &config, &args);
    assert!(printed.code == Some(1) && printed.err.contains("checksum mismatch"), "{}", printed.err);
}

#[test]
fn unknown_environment_lists_the_known_ones() {
    let (upstream, scratch) = (upstream(), Scratch::new());
    let config = polled(&upstream);
    for (args, text) in [
        (&["--environment", "ser.of-another"][..], r#"--environment "ser....": unknown environment"#),
        (
            &["--environment", "nope"][..],
            r#"--environment "nope": unknown environment, expected one of SurfaceClientKey, OtherClientKey"#,
        ),
        (&[], "use --environment SurfaceClientKey or OtherClientKey"),
        (&["--environment", surface::CLIENT, "--feature", "nope"], r#"--feature "nope""#),
    ] {
        let printed = explain(&scratch, &config, args);
        assert!(printed.code == Some(1) && printed.err.contains(text), "{:?} {}", printed.code, printed.err);
        assert!(!printed.err.contains("of-another"), "a key is a secret");
    }
    let by_server_key = explain(&scratch, &config, &["--environment", surface::SERVER, "--json"]);
    assert_eq!(by_server_key.code, Some(0), "{}", by_server_key.err);
    let none = explain(&scratch, &json!({"proxy_key": "k", "api_url": upstream.api_url()}), &[]);
    assert!(none.code == Some(1) && none.err.contains("404"), "{}", none.err);
}

#[test]
fn explains_discovered_environment() {
    let (upstream, scratch) = (upstream(), Scratch::new());
    let keys = json!([
        {"key": "ser.inactive", "active": false, "expires_at": null},
        {"key": "ser.over", "active": true, "expires_at": "2020-01-01T00:00:00Z"},
        {"key": surface::SERVER, "active": true, "expires_at": null},
    ]);
    let listed = json!([{"id": 1, "name": "E", "client_side_key": surface::CLIENT, "server_side_keys": keys,
        "updated_at": "2026-11-20T10:00:00Z", "project_id": 1, "organisation_id": 1}]);
    upstream.on("/api/v1/proxy/config/", Reply::json(listed.to_string()));
    let config = json!({"api_url": upstream.api_url(), "proxy_key": "the-proxy-key"});
    let printed = explain(&scratch, &config, &[&GOLD[..], &["--json"]].concat());
    assert_eq!(printed.code, Some(0), "{}", printed.err);
    assert_eq!(printed.json()["flags"][0]["value"], "golden");
}

#[test]
fn trait_type_follows_its_syntax() {
    let scratch = Scratch::new();
    let document = scratch.write("document.json", surface::document(1).to_string());
    let pair = json!({"client_side_key": surface::CLIENT, "document_path": document});
    let config = json!({"environment_key_pairs": [pair]});
    for (typed, sent, seen, seen_as) in [
        ("plan=gold", json!("gold"), json!("gold"), "text"),
        ("plan=", json!(""), json!(""), "text"),
        ("plan=a=b", json!("a=b"), json!("a=b"), "text"),
        ("plan=1500", json!(1500), json!(1500), "integer"),
        ("plan=-7", json!(-7), json!(-7), "integer"),
        (r#"plan="1500""#, json!("1500"), json!(1500), "integer"),
        (r#"plan="007""#, json!("007"), json!(7), "integer"),
        ("plan=007", json!("007"), json!(7), "integer"),
        ("plan=1.50", json!(1.5), json!(1.5), "float"),
        (r#"plan="1e3""#, json!("1e3"), json!("1e3"), "text"),
        ("plan=true", json!(true), json!(true), "boolean"),
        ("plan=True", json!("True"), json!("True"), "text"),
        ("plan=null", Value::Null, Value::Null, "not set"),
        ("plan=[1]", json!("[1]"), json!("[1]"), "text"),
        (
            "plan=99999999999999999999",
            json!("99999999999999999999"),
            json!("99999999999999999999"),
            "integer",
        ),
        ("other=gold", json!("gold"), Value::Null, "not set"),
    ] {
        let printed = explain(&scratch, &config, &["--identifier", "u", "--trait", typed, "--json"]);
        assert_eq!(printed.code, Some(0), "{typed}: {}", printed.err);
        let explanation = printed.json();
        assert_eq!(explanation["traits"][0]["trait_value"], sent, "{typed}");
        let condition = &explanation["segments"][0]["rules"][0]["rules"][0]["conditions"][0];
        assert_eq!((&condition["seen"], &condition["seen_as"]), (&seen, &json!(seen_as)), "{typed}");
        // A boolean is compared with whether the text is "False" or "false" (compatibility.md 5.7).
        let value = if ["plan=gold", "plan=true"].contains(&typed) { "golden" } else { "hello" };
        assert_eq!(explanation["flags"][0]["value"], value, "{typed}");
    }
    // The last trait of a name is used, as in a request.
    let twice = ["--identifier", "u", "--trait", "plan=gold", "--trait", "plan=silver", "--json"];
    assert_eq!(explain(&scratch, &config, &twice).json()["flags"][0]["value"], "hello");
}

#[test]
fn http_requires_a_valid_server_side_key() {
    let upstream = upstream();
    let proxy = Start::serve()
        .set("api_url", upstream.api_url())
        .environment(surface::CLIENT, surface::SERVER)
        .environment("waiting", "ser.waiting")
        .start();
    let body = r#"{"identifier":"u","traits":[{"trait_key":"plan","trait_value":"gold"}]}"#;
    let explanation = crate::support::eventually("the document", || {
        let answer = proxy.post("/proxy/explain", surface::SERVER, body);
        (answer.status == 200).then(|| answer.json())
    });
    assert_eq!(explanation["flags"][0]["value"], "golden");
    assert_eq!(explanation["flags"][0]["matching_segments"], json!(["gold plan"]));
    for (key, status, text) in [
        (surface::CLIENT, 401, "unknown key 'SurfaceClientKey'"),
        ("waiting", 401, "unknown key 'waiting'"),
        ("ser.waiting", 502, "no environment document yet"),
        ("ser.nope", 401, "unknown key 'ser.nope'"),
        ("nope", 401, "unknown key 'nope'"),
        ("", 401, "unknown key ''"),
    ] {
        let answer = proxy.post("/proxy/explain/", key, body);
        assert!(
            answer.status == status && answer.text().contains(text),
            "{key} {} {}",
            answer.status,
            answer.text()
        );
        assert!(!answer.text().contains("gold plan"), "{key}");
    }
    let without = proxy.client().request("POST", "/proxy/explain/", &[], body.as_bytes());
    assert_eq!(without.status, 401);
    let unknown = proxy.post("/proxy/explain/?feature=nope", surface::SERVER, body);
    assert!(
        unknown.status == 404 && unknown.text().contains("feature 'nope' not found"),
        "{}",
        unknown.text()
    );
    let anonymous = proxy.post("/proxy/explain/", surface::SERVER, "{}").json();
    assert_eq!(anonymous["identifier"].as_str().map(str::len), Some(32), "a transient identity");
    assert_eq!(proxy.post("/proxy/explain/", surface::SERVER, r#"{"identifier":5}"#).status, 422);
}
