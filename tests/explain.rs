//! Why a flag has its value: on the command line and over HTTP, both from the same explanation.
//!
//! What is explained is compared with the model by `differential`; here it is about who may ask,
//! how, and what a mistake looks like.
use crate::support::proxy::{Proxy, Start};

const CLIENT: &str = "demo-client-side-key";
const SERVER: &str = "ser.demo-server-side-key";
const BODY: &str = r#"{"identifier":"alice","traits":[{"trait_key":"spend","trait_value":"1500"},
    {"trait_key":"country","trait_value":"DE"}]}"#;

fn demo() -> Proxy {
    Start::demo().ready()
}

#[test]
fn a_server_key_is_told_why() {
    let proxy = demo();
    let answer = proxy.post("/proxy/explain/?feature=welcome_message", SERVER, BODY);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let told = answer.json();
    assert_eq!(told["flags"].as_array().map(Vec::len), Some(1));
    assert_eq!(told["flags"][0]["reason"], "TARGETING_MATCH; segment=premium customers");
    let segment = &told["segments"][0];
    assert_eq!((&segment["name"], &segment["matches"]), (&"premium customers".into(), &true.into()));
    let condition = &segment["rules"][0]["rules"][0]["conditions"][0];
    assert_eq!((&condition["seen"], &condition["seen_as"]), (&1500.into(), &"integer".into()));
}

#[test]
fn a_client_key_is_not_told_the_rules() {
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
fn the_command_line_says_the_same() {
    let traits = ["--identifier", "alice", "--trait", "spend=1500", "--trait", "country=DE"];
    let (code, text) = run(&traits);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("welcome_message") && text.contains("matched by: premium customers"), "{text}");
    assert!(text.contains(r#"yes spend GREATER_THAN_INCLUSIVE "1000"   seen: 1500 (integer)"#), "{text}");
    let (code, text) = run(&[&traits[..], &["--json", "--feature", "welcome_message"]].concat());
    assert_eq!(code, Some(0), "{text}");
    let told: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(told["flags"][0]["matching_segments"][0], "premium customers");
}

#[test]
fn mistakes_name_what_was_typed() {
    let (code, text) = run(&["--identifier", "u", "--feature", "nope"]);
    assert!(code == Some(1) && text.contains(r#"--feature "nope""#), "{code:?} {text}");
    let (code, text) = run(&["--identifier", "u", "--trait", "plan"]);
    assert!(code == Some(1) && text.contains("expected KEY=VALUE"), "{code:?} {text}");
    let (code, text) = Start::command(&["explain", "--document", "/does/not/exist"]).run();
    assert!(code == Some(1) && text.contains("cannot read /does/not/exist"), "{code:?} {text}");
}
