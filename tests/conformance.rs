//! Public conformance suites, and comparison with other parsers.
use std::path::Path;
use std::process::Command;

use crate::support::{Start, executable, fixture, python};
use crate::surface::{CLIENT, SERVER, document};

/// A count from an environment variable, which selects the long form of a test.
pub fn count_of(variable: &str, short: u64) -> u64 {
    std::env::var(variable)
        .map_or(short, |text| text.parse().unwrap_or_else(|_| panic!("{variable}={text}: expected a number")))
}

fn play(suite: &Path) {
    let printed = python::run("conformance.py", &[executable(), suite.to_str().expect("UTF-8")]);
    let total = printed.lines().last().expect("totals");
    fixture::say(&format!("conformance: {total}"));
    printed.lines().filter(|line| line.starts_with("waived")).for_each(fixture::say);
}

#[test]
fn passes_the_http_conformance_suite() {
    play(&fixture::path("conformance/http1.jsonl"));
}

/// The suite has another licence, so it is not part of this repository.
#[test]
fn passes_the_json_conformance_suite() {
    if let Some(suite) = fixture::shared("conformance/json.jsonl") {
        play(&suite);
    }
}

/// The suite has another licence, so it is not part of this repository.
#[test]
fn passes_the_jsonpath_compliance_suite_as_the_python_engine_does() {
    if let Some(suite) = fixture::shared("conformance/jsonpath/cts.json") {
        let arguments = [executable(), suite.to_str().expect("UTF-8")];
        let printed = python::run("../conform/jsonpath.py", &arguments);
        fixture::say(&format!("conformance: {}", printed.lines().last().expect("totals")));
    }
}

/// `make conform` is the long form: 100,000 mutants at all servers. Here they are sent to those that are installed.
#[test]
fn mutated_requests_are_judged_as_strictly_as_by_other_servers() {
    if Command::new("node").arg("--version").output().is_err() {
        return fixture::say(
            "SKIPPED: node is not installed, the strictest of the servers that are compared",
        );
    }
    let mutants = count_of("MUTANTS", 2000).to_string();
    let printed = python::run("../conform/mutants.py", &[executable(), &mutants]);
    fixture::say(printed.lines().last().expect("totals"));
}

/// `PAYLOADS=86585 SEED=7` is the long form.
#[test]
fn mutated_payloads_are_framed_as_by_two_other_parsers() {
    let start = Start::serve();
    let path = start.scratch().write("document.json", document(0).to_string());
    let proxy = start.document(CLIENT, SERVER, path).ready();
    let (payloads, seed) = (count_of("PAYLOADS", 2000).to_string(), count_of("SEED", 1).to_string());
    let port = proxy.address().port().to_string();
    let printed = python::run("parsers.py", &[&port, SERVER, &payloads, &seed]);
    fixture::say(&format!("parsers: {}", printed.lines().last().expect("totals")));
}
