//! A deterministic simulation of the whole proxy: hours of faults in milliseconds, from a seed.
//!
//! The supervisor, uploads, discovery, storage, the channel, the connections and the handlers are those of
//! production. Time, upstream, the disk, callers, signals and the order of tasks are played. A failure prints
//! its seed; `SEED=` plays it again, step for step (docs/reliability.md).
mod caller;
mod disk;
mod documents;
mod model;
mod process;
mod random;
mod scenario;
mod sown;
mod storage;
mod trait_threads;
mod traits;
mod upstream;
mod world;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use edge_proxy::log::Log;

use crate::scenario::{defaults, disturbances};
use crate::world::{EVENTS_MIN, Outcome, play};

/// The seeds of `make test`: a seed takes seconds in a debug build.
const SEEDS_DEFAULT: u64 = 3;

/// What all threads found.
#[derive(Default)]
struct Totals {
    seeds: u64,
    events: u64,
    events_min: u64,
    answers: u64,
    kills: u64,
    virtual_time: Duration,
    pairs: BTreeSet<(String, String)>,
    failures: Vec<(u64, Vec<String>)>,
}

fn silent_log() -> Log {
    let config = defaults();
    Log::start_to(&config.logging, std::io::sink(), None).expect("a thread")
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: a number")))
}

/// Plays seeds from `first` on until there were `count`, or until `stop`, with this many threads.
fn play_all(first: u64, count: u64, threads: usize, stop: &AtomicBool) -> Totals {
    let (next, totals) = (AtomicU64::new(first), Mutex::new(Totals::default()));
    let is_first_enough = variable("FIRST_FAILURE").is_some();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let (log, defaults) = (silent_log(), defaults());
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count || stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let outcome = play(seed, &defaults, &log, false);
                    if is_first_enough && !outcome.offences.is_empty() {
                        stop.store(true, Ordering::Relaxed);
                    }
                    add(&mut totals.lock().unwrap_or_else(PoisonError::into_inner), seed, outcome);
                }
            });
        }
    });
    totals.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn add(totals: &mut Totals, seed: u64, outcome: Outcome) {
    totals.events_min =
        if totals.seeds == 0 { outcome.events } else { totals.events_min.min(outcome.events) };
    totals.seeds += 1;
    totals.events += outcome.events;
    totals.answers += outcome.answers;
    totals.kills += outcome.kills;
    totals.virtual_time += outcome.virtual_time;
    totals.pairs.extend(outcome.pairs);
    if !outcome.offences.is_empty() {
        totals.failures.push((seed, outcome.offences));
    }
}

fn print(totals: &Totals, took: Duration) {
    let names = disturbances().len();
    let possible = names * (names + 1) / 2;
    println!(
        "simulation | seeds {} in {:.1} s, {:.0} a second | {:.1} days | {} events, at least {} a seed | {} answers \
         checked | {} kills | {} of {possible} pairs of faults",
        totals.seeds,
        took.as_secs_f64(),
        totals.seeds as f64 / took.as_secs_f64().max(0.001),
        totals.virtual_time.as_secs_f64() / 86_400.0,
        totals.events,
        totals.events_min,
        totals.answers,
        totals.kills,
        totals.pairs.len(),
    );
}

fn assert_sound(totals: &Totals) {
    for (seed, offences) in totals.failures.iter().take(20) {
        println!("simulation | SEED={seed} | {}", offences.join(" | "));
    }
    let seeds: Vec<u64> = totals.failures.iter().map(|(seed, _)| *seed).collect();
    assert!(seeds.is_empty(), "{} of {} seeds fail: {seeds:?}", seeds.len(), totals.seeds);
}

/// `SEEDS=` seeds from `FIRST_SEED=` on, with `SIMULATION_THREADS=` threads; a few by default.
#[test]
fn seeds_keep_all_promises() {
    if let Some(seed) = variable("SEED") {
        return replay(seed);
    }
    if variable("FOREVER").is_some() {
        return play_on();
    }
    let count = variable("SEEDS").unwrap_or(SEEDS_DEFAULT);
    let threads = variable("SIMULATION_THREADS").unwrap_or(2) as usize;
    let started = Instant::now();
    let totals = play_all(variable("FIRST_SEED").unwrap_or(1), count, threads, &AtomicBool::new(false));
    print(&totals, started.elapsed());
    write_table("simulate", &table(&totals, started.elapsed()));
    assert_sound(&totals);
    assert!(totals.events_min >= EVENTS_MIN, "a seed has only {} events", totals.events_min);
}

/// Plays seeds until the process is stopped, or one fails.
fn play_on() {
    let (mut first, started) = (variable("FIRST_SEED").unwrap_or(1), Instant::now());
    let mut pairs = BTreeSet::new();
    loop {
        let began = Instant::now();
        let mut totals = play_all(first, 500, 2, &AtomicBool::new(false));
        pairs.append(&mut totals.pairs);
        totals.pairs.clone_from(&pairs);
        print(&totals, began.elapsed());
        println!("simulation | for {:.0} s, seeds {first} and on", started.elapsed().as_secs_f64());
        assert_sound(&totals);
        first += 500;
    }
}

fn table(totals: &Totals, took: Duration) -> String {
    let names = disturbances().len();
    format!(
        "| seeds | time | simulated | events | answers checked | kills and losses of power | pairs of faults | failed |\n\
         |---:|---:|---:|---:|---:|---:|---:|---:|\n\
         | {} | {:.0} s | {:.0} days | {} | {} | {} | {} of {} | {} |\n",
        totals.seeds,
        took.as_secs_f64(),
        totals.virtual_time.as_secs_f64() / 86_400.0,
        totals.events,
        totals.answers,
        totals.kills,
        totals.pairs.len(),
        names * (names + 1) / 2,
        totals.failures.len()
    )
}

/// Replaces what is between the marks `name` of the page that `TABLES=` names.
fn write_table(name: &str, table: &str) {
    let Some(path) = std::env::var_os("TABLES") else { return };
    let page = std::fs::read_to_string(&path).expect("the page");
    let (open, close) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
    let (head, rest) = page.split_once(&open).expect("the first mark");
    let (_, tail) = rest.split_once(&close).expect("the second mark");
    std::fs::write(&path, format!("{head}{open}{table}{close}{tail}")).expect("the page is written");
}

/// Prints each step of one seed.
fn replay(seed: u64) {
    let outcome = play(seed, &defaults(), &silent_log(), true);
    outcome.trace.iter().for_each(|line| println!("{line}"));
    println!("simulation | SEED={seed} | {:016x} | {} events", outcome.hash, outcome.events);
    assert!(outcome.offences.is_empty(), "SEED={seed}: {}", outcome.offences.join("\n"));
}

#[test]
fn a_seed_repeats_itself() {
    let (log, defaults) = (silent_log(), defaults());
    let first = play(1, &defaults, &log, true);
    let second = play(1, &defaults, &log, true);
    let differs = first.trace.iter().zip(&second.trace).find(|(one, other)| one != other);
    assert_eq!(differs, None);
    assert_eq!((first.hash, first.trace.len()), (second.hash, second.trace.len()));
}
