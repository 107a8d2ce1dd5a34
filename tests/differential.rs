//! Differential test: for random documents and requests, the value, state, variant and reason of every flag
//! equal those of the reference engine.
//!
//! `tests/python/evaluations.py` generates them and evaluates them with `flagsmith-flag-engine`. `make
//! differential` runs 200,000 evaluations; `EVALUATIONS=` sets another number, `SEED=` replays a run,
//! `AUTHORITY=` names another Python with the packages of `tests/requirements.txt`.
use std::collections::HashMap;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use edge_proxy::engine::evaluate::{EvaluationScratch, Identity, Trait, TraitValue, evaluate, evaluate_on};
use edge_proxy::engine::program::Role;
use edge_proxy::engine::render;
use edge_proxy::engine::trace::explain;
use edge_proxy::snapshot::Environment;
use serde_json::Value as Json;
use serde_json::value::RawValue;

use crate::support::fixture::root;
use crate::support::python;

/// The result of one process of the reference.
#[derive(Default)]
struct Tally {
    evaluated: u64,
    left_out: String,
    differences: Vec<String>,
}

#[test]
fn engine_agrees_with_the_reference() {
    let setting = |name: &str, default: u64| {
        std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}: {text}")))
    };
    let (seed, count) = (setting("SEED", 1), setting("EVALUATIONS", 3000));
    let processes = std::thread::available_parallelism().map_or(2, |count| count.get() as u64);
    let started = Instant::now();
    let tallies: Vec<Tally> = std::thread::scope(|scope| {
        let ask =
            |part: u64| scope.spawn(move || compare(&format!("{seed}.{part}"), count.div_ceil(processes)));
        let threads: Vec<_> = (0..processes).map(ask).collect();
        threads.into_iter().map(|thread| thread.join().expect("no thread panics")).collect()
    });
    let evaluated: u64 = tallies.iter().map(|tally| tally.evaluated).sum();
    let differences: Vec<&String> = tallies.iter().flat_map(|tally| &tally.differences).collect();
    for tally in &tallies {
        println!("left out by rule of differences.md: {}", tally.left_out);
    }
    println!(
        "{evaluated} evaluations, {} differences, {:?}, SEED={seed}",
        differences.len(),
        started.elapsed()
    );
    let shown: Vec<&str> = differences.iter().take(10).map(|text| text.as_str()).collect();
    assert!(differences.is_empty(), "SEED={seed}, the first of them:\n{}", shown.join("\n\n"));
    assert!(evaluated >= count, "every evaluation was run");
}

/// Runs one process of the reference, and the engine on the same requests.
fn compare(seed: &str, count: u64) -> Tally {
    let python = std::env::var_os("AUTHORITY").map_or_else(python::interpreter, PathBuf::from);
    let mut child = Command::new(&python)
        .arg(root().join("tests/python/evaluations.py"))
        .args([seed, &count.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {}: {error}", python.display()));
    let mut lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
    let mut tally = Tally::default();
    let mut scratch = EvaluationScratch::default();
    while let Some(document) = lines.next() {
        let document = document.expect("the reference writes UTF-8");
        let Some(requests) = lines.next() else {
            tally.left_out = document;
            break;
        };
        let requests: Vec<Json> =
            serde_json::from_str(&requests.expect("the reference writes UTF-8")).expect("a list of requests");
        let environment = match Environment::compile(document.as_bytes()) {
            Ok((environment, _)) => environment,
            Err(error) => {
                tally.differences.push(format!("refused: {} {}\n{document}", error.path, error.message));
                continue;
            }
        };
        tally.evaluated += requests.len() as u64;
        // One difference per document: the others mostly have the same cause.
        let differing = |(at, request): (usize, &Json)| {
            // An explanation costs far more than an evaluation.
            let found = answer(&environment, request, at < 4, &mut scratch)?;
            Some((found, request.clone()))
        };
        if let Some((difference, request)) = requests.iter().enumerate().find_map(differing) {
            tally.differences.push(format!("{difference}\nrequest: {request}\ndocument: {document}"));
        }
    }
    assert!(child.wait().expect("the reference exits").success(), "the reference failed");
    tally
}

/// The first difference. `request` is `[identifier, traits, flags, segments]`.
fn answer(
    environment: &Environment,
    request: &Json,
    explains: bool,
    scratch: &mut EvaluationScratch,
) -> Option<String> {
    let traits: Vec<Trait<'_>> = request[1].as_array().expect("traits").iter().map(trait_of).collect();
    match request[0].as_str() {
        Some(identifier) => {
            evaluate(environment.program(), &Identity { identifier, traits: &traits }, scratch)
        }
        None => evaluate_on(environment.program(), None, None, scratch),
    }
    if explains && let Some(contradiction) = contradiction(environment, request, &traits) {
        return Some(contradiction);
    }
    let expected = request[2].as_array().expect("flags");
    let found: Vec<render::Flag<'_>> =
        render::results(environment.program(), Role::Server, scratch).collect();
    if found.len() != expected.len() {
        return Some(format!("{} flags, the model has {}", found.len(), expected.len()));
    }
    let differing = found.iter().zip(expected).find_map(|(found, expected)| {
        let is_same = found.name == text(&expected[0])
            && same_value(found.enabled, text(&expected[1]))
            && same_value(found.value, text(&expected[2]))
            && parsed(found.variant) == expected[3]
            && parsed(&format!("\"{}\"", found.reason)) == expected[4];
        (!is_same).then(|| format!("{found:?}\nthe model: {expected}"))
    });
    differing.or_else(|| {
        [Role::Server, Role::Client]
            .into_iter()
            .find_map(|role| wrong_array(environment, role, scratch, expected))
    })
}

/// The first error in the rendered array: the flags that a key may read, their ids and types, and for clients
/// the reason without the segment's name (differences.md 10 and 17).
fn wrong_array(
    environment: &Environment,
    role: Role,
    scratch: &EvaluationScratch,
    expected: &[Json],
) -> Option<String> {
    let mut out = Vec::new();
    render::write(environment.program(), role, scratch, None, &mut out);
    // Raw, because a value may be a number beyond the range of a double.
    let sent: Vec<HashMap<&str, &RawValue>> = serde_json::from_slice(&out).expect("the engine writes JSON");
    let rendered = |flag: &HashMap<&str, &RawValue>| {
        let (feature, reason) = (parsed(flag["feature"].get()), parsed(flag["reason"].get()));
        (feature["name"].clone(), feature["id"].clone(), feature["type"].clone(), text(&reason).to_owned())
    };
    let modelled = |flag: &&Json| {
        let is_cut = role == Role::Client && text(&flag[4]).starts_with("TARGETING_MATCH; ");
        let reason = if is_cut { "TARGETING_MATCH" } else { text(&flag[4]) };
        (flag[0].clone(), flag[5].clone(), flag[6].clone(), reason.to_owned())
    };
    let seen: Vec<&Json> = expected.iter().filter(|flag| role == Role::Server || flag[7] == true).collect();
    let is_same = sent.iter().map(rendered).eq(seen.iter().map(modelled));
    (!is_same).then(|| format!("a {role:?} key gets {}\nthe model: {seen:?}", String::from_utf8_lossy(&out)))
}

/// The first contradiction between `explain` and the reference: the same segments must match, and a flag is
/// targeted only by one of them, except for flags that keep an earlier result.
fn contradiction(environment: &Environment, request: &Json, traits: &[Trait<'_>]) -> Option<String> {
    let identity = request[0].as_str().map(|identifier| Identity { identifier, traits });
    let explanation =
        match explain(environment.program(), &environment.document().plain, identity.as_ref(), None) {
            Ok(explanation) => explanation,
            Err(error) => return Some(format!("explain: {} {}", error.path, error.message)),
        };
    let matching: Vec<&str> =
        explanation.segments.iter().filter(|segment| segment.matches).map(|segment| &*segment.name).collect();
    let expected: Vec<&str> = request[3].as_array().expect("segments").iter().map(text).collect();
    if matching != expected {
        return Some(format!("explain says {matching:?} match, the model {expected:?}"));
    }
    explanation.flags.iter().zip(request[2].as_array().expect("flags")).find_map(|(flag, model)| {
        let reason = text(&model[4]);
        let agrees = match reason.strip_prefix("TARGETING_MATCH; segment=") {
            Some("identity_overrides") => flag.identity_override,
            Some(name) => flag.note.is_some() || flag.matching_segments.iter().any(|segment| segment == name),
            // A variant's reason names no segment; a cyclic flag may have an override.
            None => {
                flag.note.is_some()
                    || !matches!(reason, "STATIC" | "DEFAULT")
                    || flag.matching_segments.is_empty()
            }
        };
        (!agrees).then(|| format!("explain returns {flag:?}, the reference {model}"))
    })
}

fn text(json: &Json) -> &str {
    json.as_str().expect("a text")
}

fn parsed(raw: &str) -> Json {
    let raw = with_large_numbers_quoted(raw);
    serde_json::from_str(&raw).unwrap_or_else(|error| panic!("the engine wrote {raw}: {error}"))
}

/// Integers of over 300 digits as strings: they exceed the doubles that `serde_json` stores them in.
fn with_large_numbers_quoted(raw: &str) -> String {
    let mut quoted = String::with_capacity(raw.len());
    let (mut is_string, mut is_escaped) = (false, false);
    let mut rest = raw;
    while let Some(char) = rest.chars().next() {
        let sign = usize::from(char == '-');
        let digits = sign + rest.bytes().skip(sign).take_while(u8::is_ascii_digit).count();
        if !is_string && digits > 300 {
            quoted.push('"');
            quoted.push_str(&rest[..digits]);
            quoted.push('"');
            rest = &rest[digits..];
            continue;
        }
        quoted.push(char);
        rest = &rest[char.len_utf8()..];
        is_string ^= char == '"' && !is_escaped;
        is_escaped = is_string && char == '\\' && !is_escaped;
    }
    quoted
}

/// Equal as JSON, and of the same kind of number: `1` is not `1.0`.
fn same_value(found: &str, expected: &str) -> bool {
    let is_float = |raw: &str| !raw.starts_with(['"', '[', '{']) && raw.contains(['.', 'e', 'E']);
    found == expected || (parsed(found) == parsed(expected) && is_float(found) == is_float(expected))
}

/// `[name, Python's type, text]`.
fn trait_of(entry: &Json) -> Trait<'_> {
    let written = text(&entry[2]);
    let value = match text(&entry[1]) {
        "bool" => TraitValue::Bool(written == "True"),
        "int" => written.parse().map_or(TraitValue::BigInt(written), TraitValue::Int),
        "float" => TraitValue::Float(f64::from_bits(written.parse().expect("the bits of a double"))),
        "str" => TraitValue::Text(written),
        _ => TraitValue::Null,
    };
    Trait { key: text(&entry[0]), value }
}
