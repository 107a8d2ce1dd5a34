//! Each fuzz target on its corpus and on mutations of it: the short form of `make fuzz`, which runs the same
//! targets guided by coverage.
//!
//! `SEED=` replays a run, `MUTATIONS=` sets the number of mutations of each target.
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use edge_proxy::python::json;
use edge_proxy::step_budget::StepBudget;
use edge_proxy::work;
use edge_proxy::work::Work;

use crate::support::fixture::root;

#[path = "fuzz/targets/mod.rs"]
mod targets;

/// Bytes that are special to one of the parsers.
const PIECES: &[&str] = &[
    "\r\n",
    "\n",
    "0",
    "-1",
    "{",
    "}",
    "[",
    "]",
    "\"",
    "\\u0000",
    "\\ud800",
    ":",
    ",",
    "null",
    "true",
    "1e400",
    "99999999999999999999",
    "chunked",
    "Content-Length: 5\r\n",
    "Transfer-Encoding: chunked\r\n",
    "(?:",
    "(a|",
    ")*",
    "\\1",
    "$.",
    "$..",
    "[?@",
    "é",
    "😀",
    "\u{0}",
    "%00",
    " ",
    ";",
];

/// Xorshift, seeded so that a finding can be reproduced.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound.max(1) as u64).unwrap_or(0)
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}: {text}")))
}

fn mutate(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        let end = at + random.below((bytes.len() - at).min(16) + 1);
        match random.below(6) {
            0 => drop(bytes.drain(at..end)),
            1 => bytes.insert(at, u8::try_from(random.below(256)).unwrap_or(0)),
            2 => drop(bytes.splice(at..at, PIECES[random.below(PIECES.len())].bytes()).count()),
            3 => bytes.get_mut(at).into_iter().for_each(|byte| *byte ^= 1 << random.below(8)),
            4 => {
                let from = random.below(other.len() + 1);
                let to = from + random.below((other.len() - from).min(64) + 1);
                drop(bytes.splice(at..end, other[from..to].iter().copied()));
            }
            _ => {
                let copy = bytes[at..end].to_vec();
                drop(bytes.splice(end..end, copy));
            }
        }
    }
}

/// Generous, for a build without optimisation on a busy machine.
const LONGEST: Duration = Duration::from_secs(20);

/// Time since the first call.
fn time() -> Duration {
    static FIRST: LazyLock<Instant> = LazyLock::new(Instant::now);
    FIRST.elapsed()
}

fn fuzz(name: &str) {
    let target = targets::TARGETS.iter().find(|target| target.name == name);
    let target = target.unwrap_or_else(|| panic!("no target {name}"));
    let folder = root().join("tests/fuzz/corpus").join(name);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    let corpus: Vec<Vec<u8>> = paths.iter().map(|path| std::fs::read(path).expect("a file")).collect();
    assert!(corpus.len() > 3, "the corpus of {name} is there");
    let seed = setting("SEED", 1);
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mutations = usize::try_from(setting("MUTATIONS", 400)).expect("a small number");
    for round in 0..corpus.len() + mutations {
        let mut bytes = corpus[round % corpus.len()].clone();
        if round >= corpus.len() {
            let other = &corpus[random.below(corpus.len())];
            mutate(&mut bytes, other, &mut random);
        }
        if catch_unwind(AssertUnwindSafe(|| target.run_within(&bytes, LONGEST, time))).is_err() {
            panic!("{name} fails, SEED={seed}, on {:?}", String::from_utf8_lossy(&bytes));
        }
    }
    println!("{name}: {} inputs, {mutations} mutations, SEED={seed}", corpus.len());
}

#[test]
fn request_parsing_is_independent_of_segmentation() {
    fuzz("request");
}

#[test]
fn fast_path_and_full_parser_agree() {
    fuzz("identity");
}

#[test]
fn documents_do_not_panic() {
    fuzz("document");
}

#[test]
fn conditions_do_not_panic() {
    fuzz("evaluator");
}

#[test]
fn responses_are_complete() {
    fuzz("answer");
}

#[test]
fn frames_are_read_the_same_however_they_arrive() {
    fuzz("http2");
}

#[test]
fn header_blocks_do_not_panic() {
    fuzz("hpack");
}

#[test]
fn expressions_do_not_panic() {
    fuzz("syntax");
}

#[test]
fn upstream_responses_do_not_panic() {
    fuzz("upstream");
}

#[test]
fn a_body_compressed_in_two_parts_decodes_to_both() {
    fuzz("gzip");
}

#[test]
fn a_damaged_spool_yields_only_what_was_written() {
    fuzz("spool");
}

#[test]
fn every_target_is_run() {
    let source = include_str!("fuzzing.rs");
    for target in targets::TARGETS {
        assert!(source.contains(&format!("fuzz(\"{}\");", target.name)), "{} is run here", target.name);
    }
}

/// Without counting, the work limits would never fail.
#[test]
fn work_is_counted_in_this_build() {
    work::take();
    assert!(json::loads(br#"{"a":[1,2,3]}"#).is_ok());
    let read = work::take();
    assert!((6..20).contains(&read.free) && read.charged == 0, "{read:?}");
    let budget = StepBudget::new(10);
    assert!(budget.spend(3) && !budget.spend(8));
    assert_eq!(work::take(), Work { free: 0, charged: 10 });
    assert_eq!(work::take(), Work::default());
}
