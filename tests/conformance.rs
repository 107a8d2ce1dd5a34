//! Public conformance data, and how other parsers read the same bytes.
use std::path::Path;

use crate::support::{Start, fixture, python};
use crate::surface::{CLIENT, SERVER, document};

/// How many, from a variable of the environment; the long form of a test is asked for by one.
pub fn count_of(variable: &str, short: u64) -> u64 {
    std::env::var(variable)
        .map_or(short, |text| text.parse().unwrap_or_else(|_| panic!("{variable}={text}: expected a number")))
}

fn play(suite: &Path) {
    let printed =
        python::run("conformance.py", &[env!("CARGO_BIN_EXE_edge-proxy"), suite.to_str().expect("UTF-8")]);
    let total = printed.lines().last().expect("totals");
    fixture::say(&format!("conformance: {total}"));
    printed.lines().filter(|line| line.starts_with("waived")).for_each(fixture::say);
}

#[test]
fn http_1_1_is_spoken_as_the_conformance_data_has_it() {
    play(&fixture::path("conformance/http1.jsonl"));
}

/// Its licence is another, so it is read from where it lies.
#[test]
fn json_is_read_as_the_conformance_data_has_it() {
    if let Some(suite) = fixture::shared("conformance/json.jsonl") {
        play(&suite);
    }
}

/// `PAYLOADS=86585 SEED=7` is the long form.
#[test]
fn mutated_payloads_are_framed_as_two_other_parsers_frame_them() {
    let start = Start::serve();
    let path = start.scratch().write("document.json", document(0).to_string());
    let proxy = start.document(CLIENT, SERVER, path).ready();
    let (payloads, seed) = (count_of("PAYLOADS", 2000).to_string(), count_of("SEED", 1).to_string());
    let port = proxy.address().port().to_string();
    let printed = python::run("parsers.py", &[&port, SERVER, &payloads, &seed]);
    fixture::say(&format!("parsers: {}", printed.lines().last().expect("totals")));
}
