//! A Python environment with pinned packages in `.venv/`.
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use super::fixture::root;

/// The interpreter with the packages of `tests/requirements.txt`, installed on first use, so that `cargo test`
/// works without `make test`.
pub fn interpreter() -> PathBuf {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let script = root().join("scripts/venv");
        let output = Command::new(&script).args(["tests", "tests/requirements.txt"]).output();
        let output = output.unwrap_or_else(|error| panic!("{}: {error}", script.display()));
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "scripts/venv failed:\n{out}{err}");
        root().join(".venv/tests/bin/python")
    });
    made.clone()
}

/// Runs a script of `tests/python` with arguments; returns its output.
pub fn run(script: &str, args: &[&str]) -> String {
    let mut command = Command::new(interpreter());
    let output =
        command.arg(root().join("tests/python").join(script)).args(args).output().expect("it starts");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{script} failed ({}):\n{out}{err}", output.status);
    out.into_owned()
}
