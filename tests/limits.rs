//! `docs/limits.md` against the code and the running executable: the documented values are those of the code,
//! and limits that can be reached over a socket are tested at the limit and one beyond.
mod connections;
mod sockets;
mod upstream;

use std::collections::{BTreeMap, BTreeSet};

use edge_proxy::config::settings::SETTINGS;

use crate::support::{Start, fixture, get};
use crate::surface::{CLIENT, SERVER, document};

// --- the page ---

/// One row: input, limit, beyond, setting, counter.
struct Row {
    cells: Vec<String>,
}

fn page() -> String {
    std::fs::read_to_string(fixture::root().join("docs/limits.md")).expect("docs/limits.md")
}

fn rows(page: &str) -> Vec<Row> {
    let lines = page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| input |"));
    let rows = lines.map(|line| Row {
        cells: line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect(),
    });
    rows.filter(|row| row.cells.len() == 5).collect()
}

/// Checks what the page says of an input beyond its bound.
fn says(input: &str, text: &str) {
    let rows = rows(&page());
    let row = rows.iter().find(|row| row.cells[0] == input).unwrap_or_else(|| panic!("no row {input:?}"));
    assert!(row.cells[2].contains(text), "{input}: the page says {:?}", row.cells[2]);
}

fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

fn is_constant(text: &str) -> bool {
    text.contains('_')
        && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_' || byte.is_ascii_digit())
}

/// The number before `` (`NAME`) `` with its unit: bytes, milliseconds, or a count.
fn stated(before: &str) -> u64 {
    let words: Vec<&str> = before.split_whitespace().collect();
    let is_number = |word: &&&str| word.bytes().all(|byte| byte.is_ascii_digit() || byte == b',');
    let number =
        words.iter().rposition(|word| is_number(&word)).unwrap_or_else(|| panic!("no number: {before}"));
    let value: u64 = words[number].replace(',', "").parse().expect("a number");
    value
        * match words.get(number + 1).copied() {
            Some("KiB") => 1 << 10,
            Some("MiB") => 1 << 20,
            Some("GiB") => 1 << 30,
            Some("MB") => 1_000_000,
            Some("s") => 1000,
            _ => 1,
        }
}

/// The constants of `src/limits.rs` and its child: numbers, and durations in milliseconds.
fn constants() -> BTreeMap<String, u64> {
    let read = |path| std::fs::read_to_string(fixture::root().join(path)).expect(path);
    let text = read("src/limits.rs") + &read("src/limits/operations.rs");
    let mut found = BTreeMap::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("pub const ")) {
        let (name, rest) = line.split_once(": ").expect("a type");
        let (_, expression) = rest.split_once(" = ").expect("a value");
        if let Some(value) = evaluate(expression.trim_end_matches(';'), &found) {
            found.insert(name.to_owned(), value);
        }
    }
    found
}

fn evaluate(expression: &str, known: &BTreeMap<String, u64>) -> Option<u64> {
    let expression = expression.strip_suffix(" as u64").unwrap_or(expression);
    for (call, factor) in [("Duration::from_secs(", 1000), ("Duration::from_millis(", 1)] {
        if let Some(inside) = expression.strip_prefix(call) {
            return Some(evaluate(inside.trim_end_matches(')'), known)? * factor);
        }
    }
    if let Some(value) = known.get(expression) {
        return Some(*value);
    }
    if let Some((left, right)) = expression.split_once(" + ") {
        return Some(evaluate(left, known)? + evaluate(right, known)?);
    }
    expression.split(" * ").try_fold(1, |product, factor| {
        factor.replace('_', "").parse::<u64>().ok().map(|factor| product * factor)
    })
}

/// Constants that limit no input: tunings and waits.
const INTERNAL: &[&str] = &[
    "ACCESS_BATCH_RECORDS",
    "BACKLOG_MAX",
    "BACKOFF_MAX",
    "DRAIN_IDLE_TIMEOUT",
    "KEPT_BODY_BYTES_MAX",
    "LAST_COUNTS_TIMEOUT",
    "PROBE_TIMEOUT",
    "WRITE_PARTS_MAX",
    "SPOOL_SEGMENT_BYTES_MAX",
    "STREAM_WINDOW",
];

#[test]
fn page_states_the_values_of_the_code() {
    let (page, constants) = (page(), constants());
    let mut cited = BTreeSet::new();
    for line in page.lines().filter(|line| line.starts_with('|')) {
        let pieces: Vec<&str> = line.split('`').collect();
        for at in (1..pieces.len()).step_by(2).filter(|&at| is_constant(pieces[at])) {
            let name = pieces[at];
            let value = constants.get(name).unwrap_or_else(|| panic!("{name} is not in src/limits.rs"));
            let before =
                pieces[at - 1].strip_suffix('(').unwrap_or_else(|| panic!("value (`{name}`): {line}"));
            assert_eq!(stated(before), *value, "{name} in: {line}");
            cited.insert(name.to_owned());
        }
    }
    assert!(cited.len() > 70, "{}", cited.len());
    let is_bound = |name: &&String| name.ends_with("_MAX") || name.ends_with("_TIMEOUT");
    let missing: Vec<_> = constants
        .keys()
        .filter(is_bound)
        .filter(|name| !cited.contains(*name) && !INTERNAL.contains(&name.as_str()))
        .collect();
    assert!(missing.is_empty(), "docs/limits.md does not state {missing:?}");
    let removed: Vec<_> = INTERNAL.iter().filter(|name| !constants.contains_key(**name)).collect();
    assert!(removed.is_empty(), "{removed:?} are not in src/limits.rs");
}

#[test]
fn page_names_existing_settings_events_and_metrics() {
    let proxy = prepare().ready();
    // An error response, so that each metric has samples.
    proxy.client().send("nonsense\r\n\r\n");
    let metrics = get(proxy.admin(), "/metrics", "").text();
    let sources = sources();
    let rows = rows(&page());
    assert!(rows.len() > 70, "{}", rows.len());
    for row in &rows {
        for name in quoted(&row.cells[3]) {
            assert!(SETTINGS.iter().any(|setting| setting.path == name), "{name} is not a setting");
        }
        for sample in quoted(&row.cells[4]) {
            let (name, labels) = sample.split_once('{').unwrap_or((sample, ""));
            assert!(metrics.contains(&format!("# TYPE {name} ")), "{name} is not a metric");
            let label = labels.trim_end_matches('}');
            let has_label = |line: &str| line.starts_with(name) && line.contains(label);
            assert!(metrics.lines().any(has_label), "{sample} has no sample");
        }
        for name in quoted(&row.cells[2])
            .into_iter()
            .filter(|name| row.cells[2].contains(&format!("`{name}` is logged")))
        {
            assert!(sources.contains(&format!("\"{name}\"")), "{name} is not an event");
        }
    }
}

/// All of `src`, which contains the names of events.
fn sources() -> String {
    let mut folders = vec![fixture::root().join("src")];
    let mut text = String::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path())
        {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_some_and(|extension| extension == "rs") {
                text.push_str(&std::fs::read_to_string(entry).expect("a source"));
            }
        }
    }
    text
}

fn prepare() -> Start {
    let start = Start::serve().with_admin();
    let path = start.scratch().write("document.json", document(0).to_string());
    start.document(CLIENT, SERVER, path)
}
