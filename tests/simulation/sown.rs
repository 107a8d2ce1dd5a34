//! Bugs that the simulation must find: small changes of the sources, each of which breaks one promise.
//!
//! The sources of the program have none of them. `sow.py` writes a copy of the crate in which each change of
//! `sown.json` is behind a switch; built from there, `SOWN=1` looks for all of them (`make simulate`).
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde_json::Value;

/// How many seeds are played for a bug before it counts as not found.
const SEEDS_MAX: u64 = 1500;

/// A change: where `code` is in the file, `bug` is used instead while the bug is switched on. `SOWN` in it is
/// true then.
struct SownBug {
    name: String,
    file: String,
    code: String,
}

fn bugs() -> Vec<SownBug> {
    let list: Vec<Value> = serde_json::from_str(include_str!("sown.json")).expect("a list");
    let text = |bug: &Value, name: &str| bug[name].as_str().expect("a text").to_owned();
    let bug =
        |bug: &Value| SownBug { name: text(bug, "name"), file: text(bug, "file"), code: text(bug, "code") };
    list.iter().map(bug).collect()
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn is_copy() -> bool {
    root().join("src/sown.rs").exists()
}

/// Each bug changes one place of the sources as they are now.
#[test]
fn each_sown_bug_has_its_place() {
    if is_copy() {
        return;
    }
    for bug in bugs() {
        let path = root().join(&bug.file);
        let Ok(text) = std::fs::read_to_string(&path) else { panic!("{}: no file", bug.file) };
        let count = text.matches(&bug.code).count();
        assert_eq!(
            count, 1,
            "{}: {:?} is there {count} times: update tests/simulation/sown.json",
            bug.file, bug.code
        );
    }
}

/// What the search for a bug came to.
struct Search {
    number: usize,
    /// The first seed that fails, and what it says.
    found: Option<(u64, String)>,
    seconds: f64,
}

/// In the copy: plays seeds with each bug until one fails. `SOWN_ONLY=` selects bugs by their numbers.
#[test]
fn all_sown_bugs_are_found() {
    if std::env::var_os("SOWN").is_none() {
        return;
    }
    assert!(is_copy(), "SOWN=1 is for the copy that sow.py writes");
    let bugs = bugs();
    let only = std::env::var("SOWN_ONLY").ok();
    let only: Option<Vec<usize>> =
        only.map(|text| text.split(',').map(|number| number.parse().expect("a number")).collect());
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(bug) = bugs.get(number) else { return };
                    if only.as_ref().is_none_or(|only| only.contains(&number)) {
                        let search = look_for(number);
                        match &search.found {
                            Some((seed, how)) => println!("sown | {number} {} | {seed} | {how}", bug.name),
                            None => println!("sown | {number} {} | NOT FOUND in {SEEDS_MAX} seeds", bug.name),
                        }
                        done.lock().expect("no panic").push(search);
                    }
                }
            });
        }
    });
    let mut done = done.into_inner().expect("no panic");
    done.sort_by_key(|search| search.number);
    report(&bugs, &done);
}

fn report(bugs: &[SownBug], done: &[Search]) {
    let mut seeds: Vec<u64> = done.iter().filter_map(|search| Some(search.found.as_ref()?.0)).collect();
    seeds.sort_unstable();
    let mut table = "| bug | seeds | seconds | found by |\n|---|---:|---:|---|\n".to_owned();
    for Search { number, found, seconds } in done {
        let name = &bugs[*number].name;
        let (seeds, how) =
            found.as_ref().map_or(("-".to_owned(), "not found"), |(seed, how)| (seed.to_string(), how));
        table.push_str(&format!("| {name} | {seeds} | {seconds:.1} | {how} |\n"));
    }
    let median = seeds.get(seeds.len() / 2).copied().unwrap_or(0);
    let sum = format!("{} of {} are found, after {median} seeds in the median", seeds.len(), done.len());
    println!("sown bugs | {sum}");
    table.push_str(&format!("\n{sum}.\n"));
    crate::write_table("sown", &table);
    assert_eq!(seeds.len(), done.len(), "not all sown bugs are found");
}

/// Plays seeds with the bug until one fails.
fn look_for(number: usize) -> Search {
    let began = Instant::now();
    let exe = std::env::current_exe().expect("this test");
    let output = Command::new(exe)
        .args(["seeds_keep_all_promises", "--exact", "--nocapture"])
        .env("SOWN_BUG", number.to_string())
        .env("FIRST_FAILURE", "1")
        .env("SIMULATION_THREADS", "1")
        .env("SEEDS", SEEDS_MAX.to_string())
        .env_remove("SEED")
        .env_remove("TABLES")
        .output()
        .expect("this test runs again");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Search { number, found: first_failure(&text), seconds: began.elapsed().as_secs_f64() }
}

fn first_failure(text: &str) -> Option<(u64, String)> {
    let line = text.lines().find(|line| line.starts_with("simulation | SEED="))?;
    let mut parts = line.splitn(3, " | ").skip(1);
    let seed = parts.next()?.strip_prefix("SEED=")?.parse().ok()?;
    let how: String = parts.next()?.chars().take(90).collect();
    Some((seed, how.replace('|', "/").replace('\n', " ")))
}
