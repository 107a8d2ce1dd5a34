//! The documented number of dependencies is correct.
use std::process::Command;

use crate::support::fixture;

#[test]
fn documented_number_of_crates_is_correct() {
    let output = Command::new("python3").arg(fixture::root().join("scripts/sbom")).arg("--count").output();
    let output = output.expect("python3 is there");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let linked = String::from_utf8(output.stdout).expect("UTF-8");
    let linked = linked.trim();
    let manifest = std::fs::read_to_string(fixture::root().join("Cargo.toml")).expect("a file of the tree");
    let (_, rest) = manifest.split_once("\n[dependencies]\n").expect("a table");
    let own = rest.split("\n[").next().unwrap_or_default();
    let chosen = own.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase())).count();
    let stated =
        std::fs::read_to_string(fixture::root().join("deploy/README.md")).expect("a file of the tree");
    let expected = format!("{linked} crates are compiled in, {chosen} of them chosen here");
    assert!(stated.contains(&expected), "deploy/README.md must contain: {expected}");
}
