//! Real SDKs, unchanged, against the running executable: `make sdk`.
//!
//! Each test starts a fake upstream, the proxy, and a program in the SDK's language from this folder. A program
//! prints what it has completed; when it prints `change`, the document upstream is changed. Not part of `make
//! test`: it fetches packages from PyPI, npm and crates.io and requires node and npm. Without Chromium the browser
//! tests are skipped with a message.
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

#[path = "../support/mod.rs"]
mod support;
#[path = "../surface/document.rs"]
mod surface_document;

use support::tls::Authority;
use support::{Proxy, Reply, Start, Upstream, eventually, fixture, get};
use surface_document::{CLIENT, SERVER};

/// The document that all tests share, with an experiment that every identity is in.
fn document(revision: u64) -> Value {
    let mut document = surface_document::document(revision);
    document["feature_states"][5]["metadata"] =
        json!({"experiment": {"id": 7, "name": "Split", "in_experiment": true}});
    document
}

/// An upstream with the first revision of the document, and a proxy that polls it.
fn start(origins: &[String]) -> (Upstream, Proxy) {
    let (upstream, start) = prepare(origins);
    (upstream, start.ready())
}

/// As [`start`], with TLS and an access log.
fn start_with_tls(origins: &[String]) -> (Upstream, Proxy) {
    let (upstream, start) = prepare(origins);
    let issued = Authority::new().issue("localhost");
    let cert = start.scratch().write("cert.pem", issued.certificate);
    let key = start.scratch().write("key.pem", issued.key);
    let start = start.set("server.tls", json!({"cert": cert, "key": key}));
    let proxy = start.set("logging", json!({"enable_access_log": true, "log_format": "json"})).spawn();
    // The harness's own client does not speak TLS.
    proxy.wait_for_log("environment_updated");
    proxy.wait_for_log("reactor_started");
    (upstream, proxy)
}

fn prepare(origins: &[String]) -> (Upstream, Start) {
    let upstream = Upstream::start();
    upstream.document(SERVER, document(1).to_string());
    upstream.on("/api/v1/analytics/flags/", Reply::json("{}"));
    upstream.on(EVENTS, Reply::new(202, r#"{"accepted":1,"rejected":[]}"#));
    let start = Start::serve()
        .set("api_url", upstream.api_url())
        .set("api_poll_frequency", 1)
        .set("analytics", json!({"flush_interval_seconds": 1}))
        .set("allow_origins", origins.to_vec())
        .set("cache_dir", "cache")
        .set("events", json!({"enabled": true, "url": upstream.origin(), "flush_interval_seconds": 0.2}))
        .environment(CLIENT, SERVER)
        .cores(2);
    (upstream, start)
}

/// Where experiment events go: at the proxy, and upstream.
const EVENTS: &str = "/v1/events";

/// Waits until upstream has exactly these events, in any order: the name, the feature, the value.
fn wait_for_events(upstream: &Upstream, sdk: &str, expected: &[(&str, Value, Value)]) {
    let sent = || -> Vec<Value> {
        let batches = upstream.requests_for(EVENTS);
        assert!(batches.iter().all(|batch| batch.key() == CLIENT));
        let has_sdk = |field: Option<&str>| field.is_some_and(|field| field.starts_with(sdk));
        assert!(batches.iter().all(|batch| has_sdk(batch.header("flagsmith-sdk-user-agent"))), "{batches:?}");
        batches
            .iter()
            .flat_map(|batch| batch.json()["events"].as_array().cloned().unwrap_or_default())
            .collect()
    };
    eventually("the SDK's events upstream", || (sent().len() >= expected.len()).then_some(()));
    let mut found: Vec<String> = sent()
        .iter()
        .map(|event| json!([event["event"], event["feature_name"], event["value"]]).to_string())
        .collect();
    let mut expected: Vec<String> =
        expected.iter().map(|(event, feature, value)| json!([event, feature, value]).to_string()).collect();
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
}

fn everyone() -> Vec<String> {
    vec!["*".to_owned()]
}

fn folder() -> PathBuf {
    fixture::root().join("tests/sdk")
}

fn origin(proxy: &Proxy) -> String {
    format!("http://{}", proxy.address())
}

fn secure_origin(proxy: &Proxy) -> String {
    format!("https://{}", proxy.address())
}

fn run(command: Command, upstream: &Upstream) -> Vec<String> {
    run_and_change(command, || upstream.document(SERVER, document(2).to_string()))
}

/// Runs a program to its end; changes the document when it prints `change`. Returns its output.
fn run_and_change(command: Command, change: impl Fn()) -> Vec<String> {
    converse(command, |line| {
        if line == "change" {
            change();
        }
        None
    })
}

/// Runs a program that serves a page: it prints `page ORIGIN` and then reads the address of the proxy, which is
/// started only then, because its allow list may contain the origin.
fn run_with_page(
    script: &str,
    arguments: &[&str],
    allowed: impl Fn(&str) -> Vec<String>,
) -> (Vec<String>, Upstream) {
    let mut started = None;
    let printed = converse(node(script, &[&[CLIENT], arguments].concat()), |line| {
        if let Some(page) = line.strip_prefix("page ") {
            let (_, proxy) = started.insert(start(&allowed(page)));
            return Some(origin(proxy));
        }
        if let (Some((upstream, _)), "change") = (&started, line) {
            upstream.document(SERVER, document(2).to_string());
        }
        None
    });
    (printed, started.expect("it said where its page is").0)
}

/// Runs a program to its end. The first result of `hear` for a line is written to its stdin. Returns its output.
fn converse(mut command: Command, mut hear: impl FnMut(&str) -> Option<String>) -> Vec<String> {
    let what = format!("{command:?}");
    command.current_dir(folder()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{what}: {error}"));
    let mut stdin = child.stdin.take();
    let errors = child.stderr.take().expect("piped");
    let errors = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = BufReader::new(errors).read_to_string(&mut text);
        text
    });
    let mut printed = Vec::new();
    for line in BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok) {
        if let Some(answer) = hear(&line) {
            // Closes stdin after one line. The exit status shows a program that has ended.
            let _ = stdin.take().map(|mut stdin| writeln!(stdin, "{answer}"));
        }
        printed.push(line);
    }
    let status = child.wait().expect("it ends");
    let errors = errors.join().unwrap_or_default();
    assert!(status.success(), "{what} {status}\n{}\n{errors}", printed.join("\n"));
    printed
}

fn assert_printed(printed: &[String], expected: &[&str]) {
    for line in expected {
        assert!(printed.iter().any(|found| found == line), "not {line:?} in {printed:?}");
    }
}

/// Chromium, which `make sdk` looks for; without it `make sdk` prints what is skipped.
fn has_chromium() -> bool {
    let is_there = std::env::var_os("CHROMIUM").is_some_and(|path| !path.is_empty());
    if !is_there {
        fixture::say("SKIPPED: CHROMIUM names no browser; run this by `make sdk`");
    }
    is_there
}

fn node(script: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("node");
    command.arg(folder().join(script)).args(arguments);
    command
}

/// Waits until upstream has received exactly these counts.
fn wait_for_counts(upstream: &Upstream, expected: &[(&str, u64)]) {
    eventually("the SDK's counts upstream", || {
        let sent = upstream.requests_for("/api/v1/analytics/flags/");
        let sum = |name: &str| sent.iter().filter_map(|request| request.json()[name].as_u64()).sum::<u64>();
        expected.iter().all(|(name, count)| sum(name) == *count).then_some(())
    });
}

#[test]
fn python_receives_events_and_uploads_counts() {
    let (upstream, proxy) = start(&everyone());
    let mut command = Command::new(support::python::interpreter());
    command.arg(folder().join("events.py")).args([&origin(&proxy), SERVER]);
    assert_printed(&run(command, &upstream), &["realtime", "counted"]);
    wait_for_counts(&upstream, &[("banner", 3), ("count", 1)]);
}

#[test]
fn python_reports_exposures_and_custom_events() {
    let (upstream, proxy) = start(&everyone());
    let mut command = Command::new(support::python::interpreter());
    command.arg(folder().join("exposures.py")).args([&origin(&proxy), SERVER]);
    assert_printed(&converse(command, |_| None), &["exposed 1500"]);
    let mut expected = vec![("$flag_exposure", json!("split"), json!("b")); 1500];
    expected.push(("purchase", Value::Null, json!("9.99")));
    wait_for_events(&upstream, "flagsmith-python-sdk/", &expected);
}

#[test]
fn node_remote_and_local_evaluation_agree() {
    let (upstream, proxy) = start(&everyone());
    let printed = run(node("node.mjs", &[&proxy.api_url(), SERVER]), &upstream);
    assert_printed(&printed, &["50 identities agree", "counted"]);
    wait_for_counts(&upstream, &[("banner", 3)]);
}

#[test]
fn rust_remote_and_local_evaluation_agree() {
    let (upstream, proxy) = start(&everyone());
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["run", "--quiet", "--locked", "--offline", "--target-dir"]);
    command.arg(fixture::root().join("target/sdk-rust"));
    command.arg("--manifest-path").arg(folder().join("rust/Cargo.toml"));
    command.args(["--", &proxy.api_url(), SERVER]);
    assert_printed(&run(command, &upstream), &["50 identities agree"]);
}

/// With npm's `flagsmith`, whose last version is 10, and with its successor, which records experiments.
#[test]
fn browser_gets_flags_traits_and_events_and_uploads_counts() {
    if !has_chromium() {
        return;
    }
    let expected = ["flags", "identify", "traits", "realtime", "analytics", "refused"];
    for (package, more) in [("flagsmith", &[][..]), ("@flagsmith/flagsmith", &["experiment"][..])] {
        let (printed, upstream) = run_with_page("browser.mjs", &[package], |page| vec![page.to_owned()]);
        assert_printed(&printed, &[&expected[..], more].concat());
        if !more.is_empty() {
            let exposure = ("$flag_exposure", json!("split"), json!("b"));
            let purchase = ("purchase", Value::Null, json!("9.99"));
            wait_for_events(&upstream, "flagsmith-js-sdk/", &[exposure, purchase]);
        }
    }
}

/// An SDK sends traits once; a page that is loaded again sends the identifier only.
#[test]
fn browser_that_reloads_finds_kept_traits() {
    if !has_chromium() {
        return;
    }
    for (package, store) in [("flagsmith", "memory"), ("@flagsmith/flagsmith", "disk"), ("flagsmith", "none")]
    {
        let expected = if store == "none" { "forgotten" } else { "kept" };
        let mut started = None;
        let printed = converse(node("kept.mjs", &[CLIENT, package, expected]), |line| {
            let page = line.strip_prefix("page ")?;
            let (upstream, start) = prepare(&[page.to_owned()]);
            let (_, proxy) = started.insert((upstream, start.set("traits.store", store).ready()));
            Some(origin(proxy))
        });
        assert_printed(&printed, &["identified", &format!("reloaded: {expected}")]);
        assert_eq!(printed.contains(&"changed".to_owned()), store != "none");
    }
}

/// The protocol of each request of the API in the access log.
fn protocols(proxy: &Proxy) -> Vec<String> {
    let of = |line: &str| {
        let record: Value = serde_json::from_str(line).ok()?;
        record["protocol"].as_str().map(str::to_owned)
    };
    proxy.log().lines().filter_map(of).collect()
}

#[test]
fn browser_speaks_http_2_over_tls() {
    if !has_chromium() {
        return;
    }
    let mut started = None;
    let mut command = node("browser.mjs", &[CLIENT, "@flagsmith/flagsmith"]);
    command.env("ANY_CERTIFICATE", "1");
    let printed = converse(command, |line| {
        if let Some(page) = line.strip_prefix("page ") {
            let (_, proxy) = started.insert(start_with_tls(&[page.to_owned()]));
            return Some(secure_origin(proxy));
        }
        if let (Some((upstream, _)), "change") = (&started, line) {
            upstream.document(SERVER, document(2).to_string());
        }
        None
    });
    assert_printed(&printed, &["flags", "identify", "traits", "realtime", "analytics", "experiment"]);
    let (_, proxy) = started.expect("it said where its page is");
    let protocols = protocols(&proxy);
    assert!(protocols.len() > 5 && protocols.iter().all(|name| name == "HTTP/2"), "{protocols:?}");
}

/// In cleartext by prior knowledge, and over TLS.
#[test]
fn node_and_httpx_multiplex_over_http_2() {
    let arguments = |origin: &str| [origin.to_owned(), SERVER.to_owned(), CLIENT.to_owned()];
    for is_secure in [false, true] {
        let (upstream, proxy) = if is_secure { start_with_tls(&everyone()) } else { start(&everyone()) };
        let origin = if is_secure { secure_origin(&proxy) } else { origin(&proxy) };
        let arguments = arguments(&origin);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut command = Command::new(fixture::root().join(".venv/sdk/bin/python"));
        command.arg(folder().join("http2_client.py")).args(&arguments[..2]);
        assert_printed(&converse(command, |_| None), &["200 requests"]);
        assert_printed(&run(node("http2.mjs", &arguments), &upstream), &["300 streams", "realtime"]);
        let protocols = protocols(&proxy);
        assert!(protocols.iter().all(|name| name == "HTTP/2") && protocols.is_empty() != is_secure);
    }
}

#[test]
fn openfeature_python_providers_get_every_flag() {
    let (_upstream, proxy) = start(&everyone());
    let mut command = Command::new(fixture::root().join(".venv/sdk/bin/python"));
    command.arg(folder().join("providers.py")).args([&origin(&proxy), CLIENT, SERVER]);
    assert_printed(&converse(command, |_| None), &["ofrep", "flagsmith", "exposure"]);
}

#[test]
fn openfeature_server_provider_evaluates_single_flags() {
    let (upstream, proxy) = start(&everyone());
    assert_printed(&run(node("ofrep.mjs", &[&origin(&proxy), CLIENT]), &upstream), &["server provider"]);
}

#[test]
fn openfeature_web_provider_follows_the_event_stream() {
    if !has_chromium() {
        return;
    }
    let (printed, _upstream) = run_with_page("ofrep-web.mjs", &[], |_| everyone());
    assert_printed(&printed, &["web provider", "realtime"]);
}

/// Leaves a screenshot in `target/demo.png`.
#[test]
fn demo_page_shows_flags_and_follows_edits() {
    if !has_chromium() {
        return;
    }
    let start = Start::demo();
    let original = fixture::root().join("src/demo/environment.json");
    let text = std::fs::read_to_string(original).expect("the demo's document");
    let path = start.scratch().write("demo.json", &text);
    let proxy = start.arg("--document").arg(&path).arg("--admin-port").arg("0").ready();
    let screenshot = fixture::root().join("target/demo.png");
    let command = node("demo.mjs", &[&origin(&proxy), &screenshot.to_string_lossy()]);
    let edited = text.replace("Hello from the edge", "Edited while you watch");
    // As an editor saves it: the complete file with the same `updated_at`.
    let printed = run_and_change(command, || std::fs::write(&path, &edited).expect("written"));
    assert_printed(&printed, &["flags", "premium", "live"]);
}

// --- contracts ---

/// Runs schemathesis on a contract: every response must conform to it. The requests are deterministic, so that a
/// new version of a package does not fail unrelated changes.
fn schemathesis(proxy: &Proxy, contract: &Path, key: &str, excluded_checks: &str) {
    let mut command = Command::new(fixture::root().join(".venv/sdk/bin/schemathesis"));
    command.arg("run").arg(contract);
    command.args(["--url", &origin(proxy), "-H", &format!("X-Environment-Key: {key}")]);
    command.args(["--phases", "examples,coverage,fuzzing", "--max-examples", "60", "--no-color"]);
    command.args(["--seed", "7", "--generation-deterministic"]);
    // Times of requests are not checked.
    command.args(["--suppress-health-check", "all", "--request-timeout", "60", "--workers", "1"]);
    command.args(["--exclude-checks", excluded_checks]);
    let output = command.current_dir(proxy.scratch().path()).output().expect("`make sdk` installed it");
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{text}", contract.display());
    assert!(text.contains("passed"), "{text}");
    println!("{text}");
}

/// Flagsmith's contract omits the codes of invalid requests and describes less than Flagsmith accepts, so codes and
/// rejections of invalid data are not compared.
const ONLY_ANSWERS: &str = "status_code_conformance,negative_data_rejection,positive_data_acceptance,missing_required_header,unsupported_method,ignored_auth,content_type_conformance";

#[test]
fn flagsmith_contract_holds() {
    let Some(contract) = fixture::shared("sdk-openapi.yaml") else { return };
    let (_upstream, proxy) = start(&everyone());
    schemathesis(&proxy, &contract, SERVER, ONLY_ANSWERS);
}

#[test]
fn openfeature_contract_holds() {
    let Some(contract) = fixture::shared("ofrep-openapi.yaml") else { return };
    let contract = std::fs::read_to_string(contract).expect("the contract");
    // Its `oneOf` matches no flag with a value (`codeDefaultFlag` matches everything, an integer is a number), and
    // its reasons omit two of OpenFeature's.
    let amended = contract
        .replace(
            "- oneOf:\n            - $ref: \"#/components/schemas/booleanFlag\"",
            "- anyOf:\n            - $ref: \"#/components/schemas/booleanFlag\"",
        )
        .replace(
            "enum: [STATIC, TARGETING_MATCH, SPLIT, DISABLED, UNKNOWN]",
            "enum: [STATIC, TARGETING_MATCH, SPLIT, DEFAULT, DISABLED, ERROR, UNKNOWN]",
        )
        .replace(
            "items:\n            oneOf:\n              - $ref: \"#/components/schemas/evaluationSuccess\"",
            "items:\n            anyOf:\n              - $ref: \"#/components/schemas/evaluationSuccess\"",
        );
    assert!(amended.len() > contract.len(), "the amendments were made");
    let (_upstream, proxy) = start(&everyone());
    let path = proxy.scratch().write("ofrep-openapi.yaml", amended);
    schemathesis(
        &proxy,
        &path,
        SERVER,
        "unsupported_method,ignored_auth,missing_required_header,negative_data_rejection",
    );
}

#[test]
fn openapi_description_holds() {
    let (_upstream, proxy) = start(&everyone());
    let mut contract: Value = get(proxy.address(), "/openapi.json", "").json();
    // A stream never ends, so this client cannot test it.
    let paths = contract["paths"].as_object_mut().expect("paths");
    paths.retain(|path, _| !path.ends_with("/stream"));
    let path = proxy.scratch().write("openapi.json", contract.to_string());
    schemathesis(
        &proxy,
        &path,
        SERVER,
        "unsupported_method,ignored_auth,negative_data_rejection,missing_required_header",
    );
}
