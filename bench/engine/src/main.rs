//! Evaluations with rendering to JSON, by this engine or the official crate.
//!
//! `engine-bench WHAT DOCUMENT BODY TIMES` with WHAT one of `ours`, `official`, `copy` (only copies the bytes of the
//! response), `compile` or `memory` (peak and final memory of one compilation). Prints nanoseconds per evaluation,
//! the best of ten rounds, and the size of the response. Under callgrind, the difference between two values of
//! TIMES is the cost of evaluations.
use std::alloc::{GlobalAlloc, Layout};
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use edge_proxy::engine::render;
use edge_proxy::engine::evaluate::{Identity, EvaluationScratch, Trait, TraitValue, evaluate};
use edge_proxy::snapshot::Environment;
use edge_proxy::engine::program::Role;
use flagsmith_flag_engine::engine::get_evaluation_result;
use flagsmith_flag_engine::engine_eval::{add_identity_to_context, environment_to_context};
use flagsmith_flag_engine::environments::builders::build_environment_struct;
use flagsmith_flag_engine::types::{FlagsmithValue, FlagsmithValueType};
use serde_json::Value;

const ROUNDS: u32 = 10;

/// mimalloc; counts the allocated bytes and their maximum.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is forwarded to mimalloc unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let bytes = ALLOCATED.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(bytes, Relaxed);
        unsafe { mimalloc::MiMalloc.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Relaxed);
        unsafe { mimalloc::MiMalloc.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let bytes = ALLOCATED.fetch_add(size, Relaxed) + size;
        PEAK.fetch_max(bytes, Relaxed);
        ALLOCATED.fetch_sub(layout.size(), Relaxed);
        unsafe { mimalloc::MiMalloc.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn trait_value(value: &Value) -> TraitValue<'_> {
    match value {
        Value::Bool(bool) => TraitValue::Bool(*bool),
        Value::String(text) => TraitValue::Text(text),
        Value::Number(number) => match number.as_i64() {
            Some(number) => TraitValue::Int(number),
            None => TraitValue::Float(number.as_f64().expect("a double")),
        },
        _ => TraitValue::Null,
    }
}

fn official_value(value: &Value) -> FlagsmithValue {
    let (value, value_type) = match value {
        Value::Bool(bool) => (bool.to_string(), FlagsmithValueType::Bool),
        Value::Number(number) if number.is_i64() => (number.to_string(), FlagsmithValueType::Integer),
        Value::Number(number) => (number.to_string(), FlagsmithValueType::Float),
        Value::String(text) => (text.clone(), FlagsmithValueType::String),
        _ => (String::new(), FlagsmithValueType::None),
    };
    FlagsmithValue { value, value_type }
}

/// Best of some rounds of `times`, in nanoseconds each.
fn time(times: u32, mut work: impl FnMut()) -> f64 {
    let mut best = f64::MAX;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for _ in 0..times {
            work();
        }
        best = best.min(start.elapsed().as_nanos() as f64 / f64::from(times));
    }
    best
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, what, document, body, times] = &arguments[..] else {
        eprintln!("engine-bench ours|official|copy|compile|memory DOCUMENT BODY TIMES");
        std::process::exit(64);
    };
    let document = std::fs::read(document).expect("a document");
    let body: Value = serde_json::from_slice(&std::fs::read(body).expect("a body")).expect("JSON");
    let times: u32 = times.parse().expect("a number");
    let identifier = body["identifier"].as_str().expect("an identifier");
    let sent: Vec<(&str, &Value)> = body["traits"]
        .as_array()
        .expect("traits")
        .iter()
        .map(|sent| (sent["trait_key"].as_str().expect("a key"), &sent["trait_value"]))
        .collect();
    let (nanoseconds, bytes) = match what.as_str() {
        "compile" => (time(times, || drop(black_box(Environment::compile(&document)))), document.len()),
        "memory" => return memory(&document),
        "official" => official(&document, identifier, &sent, times),
        _ => {
            let (environment, _) = Environment::compile(&document).expect("a good document");
            let traits: Vec<Trait<'_>> =
                sent.iter().map(|(key, value)| Trait { key, value: trait_value(value) }).collect();
            let identity = Identity { identifier, traits: &traits };
            let (mut scratch, mut out) = (EvaluationScratch::default(), Vec::new());
            let mut answer = |out: &mut Vec<u8>| {
                out.clear();
                evaluate(environment.program(), black_box(&identity), &mut scratch);
                render::write(environment.program(), Role::Server, &scratch, None, out);
            };
            answer(&mut out);
            let bytes = out.len();
            if what == "copy" {
                let answered = out.clone();
                (time(times, || { out.clear(); out.extend_from_slice(black_box(&answered)); black_box(&mut out); }), bytes)
            } else {
                (time(times, || answer(black_box(&mut out))), bytes)
            }
        }
    };
    println!("{nanoseconds:.1} {bytes}");
}

fn official(document: &[u8], identifier: &str, sent: &[(&str, &Value)], times: u32) -> (f64, usize) {
    let environment = build_environment_struct(serde_json::from_slice(document).expect("JSON"));
    let context = environment_to_context(environment);
    let mut bytes = 0;
    let work = || {
        let traits: Vec<_> = sent
            .iter()
            .map(|(key, value)| flagsmith_flag_engine::identities::Trait {
                trait_key: (*key).to_owned(),
                trait_value: official_value(value),
            })
            .collect();
        let context = add_identity_to_context(&context, identifier, &traits);
        let result = get_evaluation_result(&context);
        let json = serde_json::to_vec(&result.flags).expect("JSON");
        bytes = json.len();
        black_box(json);
    };
    (time(times, work), bytes)
}

/// Peak and final memory of one compilation, as multiples of the document's size.
fn memory(document: &[u8]) {
    let before = ALLOCATED.load(Relaxed);
    PEAK.store(before, Relaxed);
    let start = Instant::now();
    let environment = Environment::compile(document).expect("a good document");
    let seconds = start.elapsed().as_secs_f64();
    let size = document.len() as f64;
    // The caller keeps the document during compilation.
    let peak = (PEAK.load(Relaxed) - before) as f64 / size + 1.0;
    let rest = (ALLOCATED.load(Relaxed) - before) as f64 / size;
    drop(environment);
    println!("{:.1} MB: {seconds:.3} s, peak {peak:.2}, rest {rest:.2} times its size", size / 1e6);
}
