//! Files that tests read: ours under `tests/fixtures`, and larger ones beside the repository.
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
