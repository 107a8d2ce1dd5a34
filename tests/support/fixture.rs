//! Test data: `tests/fixtures`, and larger files beside the repository.
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file under `tests/fixtures`.
pub fn path(name: &str) -> PathBuf {
    root().join("tests/fixtures").join(name)
}

pub fn text(name: &str) -> String {
    let path = path(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The lines of a `.jsonl` file, parsed.
pub fn json_lines(name: &str) -> Vec<serde_json::Value> {
    text(name).lines().map(|line| serde_json::from_str(line).expect("JSON on each line")).collect()
}

/// Data that is not part of the repository, in the directory `EDGE_PROXY_SHARED` (default `../shared`). Prints a
/// message if it does not exist; the test is then skipped.
pub fn shared(name: &str) -> Option<PathBuf> {
    let folder =
        std::env::var_os("EDGE_PROXY_SHARED").map_or_else(|| root().join("../shared"), PathBuf::from);
    let path = folder.join(name);
    if !path.exists() {
        say(&format!(
            "SKIPPED: {} is not there; EDGE_PROXY_SHARED says where such files are",
            path.display()
        ));
        return None;
    }
    Some(path)
}

/// Prints a message that is shown even if the test succeeds.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "\n!!! {text}");
}
