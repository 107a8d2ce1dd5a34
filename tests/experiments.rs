//! Features of core beyond the engine: metadata of experiments, and variants chosen for one identity.
use std::process::Command;

use serde_json::{Value, json};

use crate::support::{Answer, Client, Proxy, Scratch, Start, executable};
use crate::surface::{CLIENT, SERVER, document};

fn serve(document: &str) -> Proxy {
    let start = Start::serve();
    let path = start.scratch().write("experiments.json", document);
    start.document(CLIENT, SERVER, path).ready()
}

fn post(proxy: &Proxy, path: &str, key: &str, body: &str) -> Answer {
    Client::connect(proxy.address()).request("POST", path, &[("X-Environment-Key", key)], body.as_bytes())
}

/// The metadata of the environment's state: with an unknown member, forms of numbers and text that JSON
/// parsers normalise, and `in_experiment` false.
const OUTSIDE: &str = r#"{"experiment":{"id":7,"name":"Größe \"a\"/b","in_experiment":false},"x":[1.50,1e3,{"b":null,"a":[]}]}"#;
/// The served form of [`OUTSIDE`]: without whitespace, with orjson's form of numbers.
const OUTSIDE_SERVED: &str = r#"{"experiment":{"id":7,"name":"Größe \"a\"/b","in_experiment":false},"x":[1.5,1000.0,{"b":null,"a":[]}]}"#;
/// The metadata of the rollout segment's state.
const INSIDE: &str = r#"{"experiment":{"id":7,"name":"Size","in_experiment":true}}"#;

/// `banner` and `split` are in an experiment whose rollout segment is `gold plan`; `own` has a
/// separate `banner`. Metadata that is empty, null or not an object is ignored.
fn running() -> Value {
    let mut document = document(0);
    document["feature_states"][0]["metadata"] = json!("OUTSIDE");
    document["feature_states"][1]["metadata"] = json!({});
    document["feature_states"][2]["metadata"] = Value::Null;
    document["feature_states"][3]["metadata"] = json!("text");
    document["feature_states"][5]["metadata"] = json!("INSIDE");
    document["project"]["segments"][0]["feature_states"][0]["metadata"] = json!("INSIDE");
    let mut own = document["feature_states"][0].clone();
    own["feature_state_value"] = json!("own");
    document["identity_overrides"] = json!([{"identifier": "own", "identity_features": [own]}]);
    document
}

fn experiments() -> Proxy {
    let text = running().to_string();
    serve(&text.replace("\"OUTSIDE\"", OUTSIDE).replace("\"INSIDE\"", INSIDE))
}

fn flag(name: &str, value: &str, variant: &str, reason: &str, metadata: Option<&str>) -> String {
    let id = if name == "banner" { 1 } else { 6 };
    let metadata = metadata.map(|metadata| format!(",\"metadata\":{metadata}")).unwrap_or_default();
    format!(
        r#"{{"feature":{{"id":{id},"name":"{name}","type":"STANDARD"}},"enabled":true,"feature_state_value":"{value}","variant":{variant},"reason":"{reason}"{metadata}}}"#
    )
}

const PLAIN: &str = r#"{"identifier":"u","traits":[]}"#;
const GOLD: &str = r#"{"identifier":"u","traits":[{"trait_key":"plan","trait_value":"gold"}]}"#;
const OWN: &str = r#"{"identifier":"own","traits":[{"trait_key":"plan","trait_value":"gold"}]}"#;

#[test]
fn flag_has_metadata_of_its_winning_state() {
    let proxy = experiments();
    let split = flag("split", "variant-value", "\"b\"", "SPLIT; weight=100.0", Some(INSIDE));
    for (key, segment, identity) in
        [(SERVER, "; segment=gold plan", "; segment=identity_overrides"), (CLIENT, "", "")]
    {
        let target = |rest: &str| format!("TARGETING_MATCH{rest}");
        let plain = flag("banner", "hello", "null", "DEFAULT", Some(OUTSIDE_SERVED));
        let gold = flag("banner", "golden", "null", &target(segment), Some(INSIDE));
        let own = flag("banner", "own", "null", &target(identity), None);
        for (body, expected) in [(PLAIN, &plain), (GOLD, &gold), (OWN, &own)] {
            let one = post(&proxy, "/api/v1/identities/", key, body).text().to_owned();
            let flags = one.split_once("\"flags\":").expect("flags").1;
            assert!(flags.starts_with(&format!("[{expected},")), "{key} {body}: {flags}");
            assert!(flags.contains(&split), "{key} {body}: {flags}");
            assert_eq!(flags.matches("metadata").count(), 1 + usize::from(body != OWN), "{flags}");
            let all = post(&proxy, "/api/v1/bulk-identities/", key, &format!("{{\"data\":[{body},{body}]}}"));
            assert_eq!(all.text(), format!("[{one},{one}]"), "bulk");
        }
        for (identifier, expected) in [("u", &plain), ("own", &own)] {
            let got = proxy.get(&format!("/api/v1/identities/?identifier={identifier}"), key);
            assert!(got.text().contains(&format!("\"flags\":[{expected},")), "{}", got.text());
        }
        let flags = proxy.get("/api/v1/flags/", key);
        assert!(flags.status == 200 && !flags.text().contains("metadata"), "{}", flags.text());
    }
    let served = proxy.get("/api/v1/environment-document/", SERVER);
    assert!(served.text().contains(&format!("\"metadata\":{OUTSIDE_SERVED}")), "{}", served.text());
}

#[test]
fn flag_in_a_cycle_keeps_its_metadata() {
    let mut circular = running();
    let condition = json!({"operator": "EQUAL", "value": "x", "property_": "$.flags.banner.value"});
    circular["project"]["segments"][0]["rules"][0]["rules"][0]["conditions"] = json!([condition]);
    let proxy = serve(&circular.to_string().replace("\"OUTSIDE\"", OUTSIDE).replace("\"INSIDE\"", INSIDE));
    for key in [SERVER, CLIENT] {
        let answer = post(&proxy, "/api/v1/identities/", key, PLAIN);
        let banner = flag("banner", "hello", "null", "ERROR; code=CIRCULAR_DEPENDENCY", Some(OUTSIDE_SERVED));
        assert!(answer.text().contains(&format!("[{banner},")), "{}", answer.text());
    }
}

#[test]
fn ofrep_metadata_is_flat() {
    let proxy = experiments();
    let ask = |context: &str| {
        let body = format!("{{\"context\":{context}}}");
        post(&proxy, "/ofrep/v1/evaluate/flags/banner", CLIENT, &body).json()["metadata"].clone()
    };
    let experiment = |name: &str, inside: bool| json!({"enabled": true, "experiment.id": 7, "experiment.name": name, "experiment.in_experiment": inside});
    assert_eq!(ask(r#"{"targetingKey":"u"}"#), experiment("Größe \"a\"/b", false));
    assert_eq!(ask(r#"{"targetingKey":"u","plan":"gold"}"#), experiment("Size", true));
    assert_eq!(ask(r#"{"targetingKey":"own"}"#), json!({"enabled": true}));
    // Only scalars, because the metadata of the protocol is flat.
    let odd =
        r#"{"experiment":{"id":null,"name":["a"],"in_experiment":true,"more":1},"experiment.id":"outside"}"#;
    let none = r#"{"experiment":"text"}"#;
    let proxy = serve(&running().to_string().replace("\"OUTSIDE\"", odd).replace("\"INSIDE\"", none));
    let all = post(&proxy, "/ofrep/v1/evaluate/flags", SERVER, r#"{"context":{"targetingKey":"u"}}"#).json();
    assert_eq!(all["flags"][0]["metadata"], json!({"enabled": true, "experiment.in_experiment": true}));
    assert_eq!(all["flags"][5]["metadata"], json!({"enabled": true}));
}

#[test]
fn explain_shows_metadata_unchanged() {
    let proxy = experiments();
    let response = post(&proxy, "/proxy/explain/?feature=banner", SERVER, PLAIN);
    assert!(response.text().contains(&format!("\"metadata\":{OUTSIDE_SERVED}")), "{}", response.text());
    let own = post(&proxy, "/proxy/explain/?feature=banner", SERVER, OWN);
    assert_eq!(own.json()["flags"][0].get("metadata"), None);
    let path = proxy.scratch().path().join("experiments.json");
    let output = Command::new(executable())
        .args(["explain", "--identifier", "u", "--document"])
        .arg(path)
        .output()
        .expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains(&format!("\n      metadata {OUTSIDE_SERVED}\n")), "{text}");
}

// --- identity overrides of multivariate features ---

fn option(id: u64, value: &str, key: Option<&str>, weight: f64) -> Value {
    json!({"id": id, "percentage_allocation": weight, "mv_fs_value_uuid": format!("00000000-0000-4000-8000-{id:012}"),
        "multivariate_feature_option": {"id": id, "value": value, "key": key}})
}

/// `split` for these identities, by the weights of A, B and C. C has no key.
fn chosen(weights: &[(&str, [f64; 3])]) -> Value {
    let mut document = document(0);
    let state = document["feature_states"][5].clone();
    let overrides = weights.iter().map(|(identifier, [a, b, c])| {
        let mut own = state.clone();
        own["feature_state_value"] = json!("own control");
        own["django_id"] = json!(900);
        own["multivariate_feature_state_values"] =
            json!([option(3, "C", None, *c), option(1, "A", Some("a"), *a), option(2, "B", Some("b"), *b)]);
        json!({"identifier": identifier, "identity_features": [own]})
    });
    document["identity_overrides"] = overrides.collect();
    document
}

/// Value, variant and reason of `split`.
fn split_of(answer: &Answer) -> Value {
    let answer = answer.json();
    let flags = answer["flags"].as_array().expect("flags");
    let flag = flags.iter().find(|flag| flag["feature"]["name"] == "split").expect("split");
    json!([flag["feature_state_value"], flag["variant"], flag["reason"]])
}

#[test]
fn identity_override_selects_the_variant() {
    let weights = [
        ("a", [100.0, 0.0, 0.0]),
        ("b", [0.0, 100.0, 0.0]),
        ("c", [0.0, 0.0, 100.0]),
        ("none", [0.0, 0.0, 0.0]),
        ("over", [0.0, 250.0, 100.0]),
    ];
    let proxy = serve(&chosen(&weights).to_string());
    for (identifier, value, variant, ofrep) in [
        ("a", "A", json!("a"), "a"),
        ("b", "B", json!("b"), "b"),
        ("c", "C", Value::Null, "control"),
        ("none", "own control", json!("control"), "control"),
        ("over", "B", json!("b"), "b"),
    ] {
        let path = format!("/api/v1/identities/?identifier={identifier}");
        let server = split_of(&proxy.get(&path, SERVER));
        assert_eq!(server, json!([value, variant, "TARGETING_MATCH; segment=identity_overrides"]));
        let body = json!({"identifier": identifier, "traits": []}).to_string();
        assert_eq!(
            split_of(&post(&proxy, "/api/v1/identities/", CLIENT, &body)),
            json!([value, variant, "TARGETING_MATCH"])
        );
        let flag = post(&proxy, "/proxy/explain/?feature=split", SERVER, &body).json()["flags"][0].clone();
        assert_eq!((&flag["value"], &flag["variant"]), (&json!(value), &variant));
        assert_eq!(flag["identity_override"], true);
        let context = json!({"context": {"targetingKey": identifier}}).to_string();
        let found = post(&proxy, "/ofrep/v1/evaluate/flags/split", CLIENT, &context).json();
        let expected = (json!(value), json!(ofrep), json!("TARGETING_MATCH"));
        assert_eq!((found["value"].clone(), found["variant"].clone(), found["reason"].clone()), expected);
    }
    // Any text makes the identity transient; its overrides are then ignored.
    for (transient, value) in [
        ("true", "variant-value"),
        ("false", "variant-value"),
        ("0", "variant-value"),
        ("%20", "variant-value"),
        ("", "A"),
    ] {
        let answer = proxy.get(&format!("/api/v1/identities/?identifier=a&transient={transient}"), SERVER);
        assert_eq!(split_of(&answer)[0], value, "transient={transient}");
    }
    // A transient identity of a POST has its overrides.
    let body = r#"{"identifier":"a","transient":true}"#;
    assert_eq!(split_of(&post(&proxy, "/api/v1/identities/", SERVER, body))[0], "A");
}

#[test]
fn other_weights_hash_override_id_and_identity() {
    let halves = [30.0, 0.0, 30.0];
    let identities = ["i1", "i2", "i3", "i4", "i5", "i6", "i7", "i8"];
    let weights: Vec<(&str, [f64; 3])> = identities.iter().map(|identity| (*identity, halves)).collect();
    let proxy = serve(&chosen(&weights).to_string());
    for identifier in identities {
        let seed = format!("900,{CLIENT}_{identifier}");
        let hash = edge_proxy::engine::evaluate::hashing::hash(&["900", &format!("{CLIENT}_{identifier}")]);
        let expected = match hash {
            hash if hash < 30.0 => json!(["A", "a"]),
            hash if hash < 60.0 => json!(["C", null]),
            _ => json!(["own control", "control"]),
        };
        let found = split_of(&proxy.get(&format!("/api/v1/identities/?identifier={identifier}"), SERVER));
        assert_eq!(json!([found[0], found[1]]), expected, "{seed}: {hash}");
        assert_eq!(found[2], "TARGETING_MATCH; segment=identity_overrides");
    }
}

#[test]
fn invalid_variants_keep_the_override_value() {
    for broken in [json!("text"), json!([5]), json!([{"percentage_allocation": 100}]), json!({})] {
        let mut document = chosen(&[("a", [100.0, 0.0, 0.0])]);
        document["identity_overrides"][0]["identity_features"][0]["multivariate_feature_state_values"] =
            broken;
        let proxy = serve(&document.to_string());
        let found = split_of(&proxy.get("/api/v1/identities/?identifier=a", SERVER));
        assert_eq!(found, json!(["own control", null, "TARGETING_MATCH; segment=identity_overrides"]));
    }
}

/// Without an identifier one is derived from the traits, which are dropped here.
#[test]
fn dropped_traits_do_not_derive_an_identifier() {
    let mut closed = document(0);
    closed["allow_client_traits"] = json!(false);
    let proxy = serve(&closed.to_string());
    let traits = r#"[{"trait_key":"plan","trait_value":"gold"}]"#;
    let body = format!("{{\"traits\":{traits}}}");
    let ask = |key: &str| post(&proxy, "/api/v1/identities/", key, &body).json();
    let (first, second) = (ask(CLIENT), ask(CLIENT));
    assert_eq!((&first["traits"], &first["flags"][0]["feature_state_value"]), (&json!([]), &json!("hello")));
    let identifier = first["identifier"].as_str().expect("an identifier");
    assert!(identifier.len() == 32 && first["identifier"] != second["identifier"], "{first} {second}");
    let bulk = post(&proxy, "/api/v1/bulk-identities/", CLIENT, &format!("{{\"data\":[{body}]}}")).json();
    assert_eq!((bulk[0]["identifier"].as_str().map(str::len), &bulk[0]["traits"]), (Some(32), &json!([])));
    // With an identifier they are echoed; traits sent with a server-side key are evaluated.
    let named = post(&proxy, "/api/v1/identities/", CLIENT, GOLD).json();
    assert_eq!((&named["identifier"], named["traits"].to_string()), (&json!("u"), traits.to_owned()));
    let server = ask(SERVER);
    assert_eq!(server["identifier"].as_str().map(str::len), Some(64));
    assert_eq!(
        (server["traits"].to_string(), &server["flags"][0]["feature_state_value"]),
        (traits.to_owned(), &json!("golden"))
    );
}

/// Core then hashes other ids, which matters only where an identity is hashed.
#[test]
fn check_warns_of_percentages_that_differ() {
    let check = |document: &Value| {
        let scratch = Scratch::new();
        let path = scratch.write("document.json", document.to_string());
        let pair = json!({"client_side_key": CLIENT, "document_path": path});
        let config = scratch.write("config.json", json!({"environment_key_pairs": [pair]}).to_string());
        let config = config.to_string_lossy().into_owned();
        Start::command(&["check", "--config", &config]).run().1
    };
    let text = "percentage splits differ from those of core: use_identity_composite_key_for_hashing is false";
    let mut hashed = document(0);
    for (value, is_warned) in [(json!(false), true), (json!(true), false), (Value::Null, false)] {
        hashed["use_identity_composite_key_for_hashing"] = value;
        assert_eq!(check(&hashed).contains(text), is_warned, "{}", check(&hashed));
    }
    hashed["use_identity_composite_key_for_hashing"] = json!(false);
    hashed["feature_states"][5]["multivariate_feature_state_values"] = json!([]);
    assert!(!check(&hashed).contains(text), "nothing is hashed");
    let condition =
        |property: &str| json!({"operator": "PERCENTAGE_SPLIT", "value": "50", "property_": property});
    for (property, is_warned) in [("", true), ("$.identity.key", true), ("plan", false)] {
        hashed["project"]["segments"][0]["rules"][0]["rules"][0]["conditions"] = json!([condition(property)]);
        assert_eq!(check(&hashed).contains(text), is_warned, "{property:?}");
    }
}
