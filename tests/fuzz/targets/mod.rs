//! Fuzz targets: functions of bytes that must not panic, whose assertions must hold, and whose time is limited.
//!
//! `make fuzz` (the package in this folder) runs them guided by coverage; `tests/fuzzing.rs` runs them on the corpus
//! and on mutations of it, in `make test`. A finding becomes a file of the corpus.
mod answers;
mod gzip;
mod hpack;
mod http2;
mod spool;
mod syntax;
mod upstream;

use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use edge_proxy::engine::evaluate::{EvaluationScratch, Identity, Trait, TraitValue, evaluate};
use edge_proxy::engine::program::Role;
use edge_proxy::engine::trace::explain;
use edge_proxy::http::head_cache::HeadCache;
use edge_proxy::http::request::{Progress, RequestReader};
use edge_proxy::identity::{IdentityError, IdentityReader, transient, validation_errors};
use edge_proxy::limits::{
    FLAG_CYCLE_STEPS_MAX, JSON_DEPTH_MAX, JSONPATH_STEPS_MAX, PATTERN_STEPS_REQUEST_MAX,
};
use edge_proxy::python::json;
use edge_proxy::snapshot::Environment;
use edge_proxy::work;
use serde::de::IgnoredAny;
use serde_json::{Value as Json, json};

/// A target: its name is that of its folder in the corpus.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
}

/// Every target.
pub const TARGETS: &[Target] = &[
    Target { name: "request", run: request },
    Target { name: "identity", run: identity },
    Target { name: "document", run: document },
    Target { name: "evaluator", run: evaluator },
    Target { name: "answer", run: answers::answer },
    Target { name: "spool", run: spool::spool },
    Target { name: "http2", run: http2::http2 },
    Target { name: "hpack", run: hpack::hpack },
    Target { name: "syntax", run: syntax::syntax },
    Target { name: "upstream", run: upstream::upstream },
    Target { name: "gzip", run: gzip::gzip },
];

impl Target {
    /// Runs the target on `data`. A run that takes longer than `longest` by `clock` is repeated, because the machine
    /// may be busy; too slow three times is a finding.
    pub fn run_within(&self, data: &[u8], longest: Duration, clock: fn() -> Duration) {
        let is_slow = |_: &u32| {
            let started = clock();
            (self.run)(data);
            clock() - started > longest
        };
        assert!((0..3).take_while(is_slow).count() < 3, "{} takes more than {longest:?}", self.name);
    }
}

/// Steps for each byte of an input: a value takes two bytes, and is read and visited a few times.
const STEPS_PER_BYTE_MAX: u64 = 4;
/// Uncharged steps per charged step.
const STEPS_PER_CHARGED_MAX: u64 = 4;
/// The sum of the budgets of a request.
const CHARGED_MAX: u64 =
    JSONPATH_STEPS_MAX as u64 + PATTERN_STEPS_REQUEST_MAX as u64 + FLAG_CYCLE_STEPS_MAX as u64;

/// Checks that the work since the last `work::take` is limited by the bytes of the input, the budgets, and `fixed`
/// steps for what is not part of the input.
fn assert_work(what: &str, bytes: usize, fixed: u64) {
    let work::Work { free, charged } = work::take();
    assert!(charged <= CHARGED_MAX, "{what}: {charged} steps of budgets");
    let allowed = fixed + STEPS_PER_BYTE_MAX * bytes as u64 + STEPS_PER_CHARGED_MAX * charged;
    assert!(free <= allowed, "{what}: {free} steps for {bytes} bytes and {charged} steps of budgets");
}

/// The bytes of a connection: the parsed requests do not depend on the segmentation into reads and on cached heads.
fn request(data: &[u8]) {
    let read = |reads: &[&[u8]]| requests(RequestReader::default(), reads);
    let whole = read(&[data]);
    let number = data.iter().take(2).fold(0, |number, byte| number << 8 | usize::from(*byte));
    // Pseudo-random positions, early and anywhere.
    let cuts = [number >> 8, number, data.len() / 2].map(|place| data.split_at(place % data.len().max(1)));
    for (first, second) in cuts {
        assert_eq!(whole, read(&[first, second]), "the segmentation changed the requests");
    }
    // A head is cached when it is repeated.
    let heads = Rc::new(HeadCache::default());
    for round in 0..4 {
        let found = requests(RequestReader::with_cache(heads.clone()), &[data]);
        assert_eq!(whole, found, "cached heads changed the requests in round {round}");
    }
    for (first, second) in cuts {
        let found = requests(RequestReader::with_cache(heads.clone()), &[first, second]);
        assert_eq!(whole, found, "the segmentation of a cached head changed the requests");
    }
}

fn requests(mut reader: RequestReader, reads: &[&[u8]]) -> Vec<String> {
    let mut buffer = BytesMut::new();
    let mut found = Vec::new();
    for read in reads {
        buffer.extend_from_slice(read);
        loop {
            match reader.advance(&mut buffer) {
                Ok(Progress::Ready) => {
                    let Some(request) = reader.request(&mut buffer) else { panic!("ready, but no request") };
                    found.push(format!("{request:?}"));
                    reader.consume(&mut buffer);
                }
                Ok(_) => break,
                Err(reject) => {
                    found.push(format!("{reject:?}"));
                    return found;
                }
            }
        }
    }
    found
}

/// A body of `POST identities/`: the fast path and the full parser agree.
fn identity(data: &[u8]) {
    json_work(data);
    work::take();
    let careful = match validation_errors::body_value(data, true) {
        Err(refusal) => Err(format!("{refusal:?}")),
        Ok(body) => match validation_errors::identity(body.root()) {
            Err(refusal) => Err(format!("{refusal:?}")),
            Ok(identity) => {
                // Without traits the identifier is random.
                let made = transient::identifier(&identity.traits);
                let is_random = identity.identifier.is_none() && identity.traits.is_empty();
                let identifier = identity.identifier.unwrap_or(&made);
                Ok((
                    if is_random { String::new() } else { identifier.to_owned() },
                    format!("{:?}", identity.traits),
                ))
            }
        },
    };
    assert_work("the careful way", data.len(), 64);
    let mut body = data.to_vec();
    let quick = IdentityReader::default().read(&mut body, Some(b"application/json"), |sent| match sent {
        Err(refusal) => Err(format!("{refusal:?}")),
        Ok(sent) => Ok((sent.identity.identifier.to_owned(), format!("{:?}", sent.identity.traits))),
    });
    assert_work("the quick way", data.len(), 64);
    match (careful, quick) {
        (Ok((identifier, traits)), Ok((_, found))) if identifier.is_empty() => assert_eq!(traits, found),
        (careful, quick) => assert_eq!(careful, quick),
    }
}

/// Checks the cost of a body: values and bytes of errors are limited by the size of the body.
fn json_work(data: &[u8]) {
    let documents = [json::loads(data), json::loads_prefix(data)];
    for (document, open) in documents.iter().zip([0, JSON_DEPTH_MAX]) {
        // A value takes a byte, and each but the first a comma, a colon or a bracket, unless it is truncated.
        let count = document.as_ref().map_or(0, json::JsonDocument::node_count);
        assert!(count <= data.len() / 2 + 1 + open, "{count} values in {} bytes", data.len());
    }
    for refusal in
        documents.iter().flatten().filter_map(|document| validation_errors::identity(document.root()).err())
    {
        let (IdentityError::Invalid(detail) | IdentityError::Unwritable(detail)) = refusal else { continue };
        assert!(detail.body.len() <= 64 * 1024, "{} bytes of errors", detail.body.len());
    }
}

/// A document is rejected or compiled; a compiled one can be evaluated and explained.
fn document(data: &[u8]) {
    let Ok((environment, _)) = Environment::compile(data) else { return };
    let bytes = data.len();
    let traits = [
        Trait { key: "t", value: TraitValue::Text("1.50") },
        Trait { key: "age", value: TraitValue::Int(-7) },
        Trait { key: "big", value: TraitValue::BigInt("-123456789012345678901234567890") },
    ];
    ask(&environment, bytes, "user-1", &traits);
}

/// A condition: `operator`, `property`, `value`, then the trait's value, one per line; both values are parsed as JSON
/// if possible.
fn evaluator(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut lines = text.splitn(4, '\n');
    let mut next = || lines.next().unwrap_or_default();
    let (operator, property, value, sent) = (next(), next(), next(), next());
    let value = serde_json::from_str(value).unwrap_or_else(|_| Json::from(value));
    let feature = |id: u8, name: &str| {
        json!({"feature": {"id": id, "name": name, "type": "STANDARD"}, "enabled": true, "feature_state_value": sent,
               "featurestate_uuid": "00000000-0000-0000-0000-000000000001", "multivariate_feature_state_values": [],
               "django_id": id})
    };
    let condition = json!({"property_": property, "operator": operator, "value": value});
    let document = json!({
        "api_key": "env", "name": "Env", "feature_states": [feature(1, "f"), feature(2, "g")], "identity_overrides": [],
        "project": {"segments": [{"id": 1, "name": "s", "feature_states": [feature(1, "f")],
                    "rules": [{"type": "ANY", "conditions": [condition], "rules": []}]}]},
    });
    let (environment, _) = Environment::compile(document.to_string().as_bytes())
        .unwrap_or_else(|error| panic!("refused: {} {}", error.path, error.message));
    let number = serde_json::from_str::<Json>(sent).ok();
    let sent = match &number {
        Some(Json::Bool(bool)) => TraitValue::Bool(*bool),
        Some(Json::Number(number)) => match number.as_i64() {
            Some(number) => TraitValue::Int(number),
            None => TraitValue::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Some(Json::Null) => TraitValue::Null,
        _ => TraitValue::Text(sent),
    };
    let bytes = data.len();
    ask(&environment, bytes, "user-1", &[Trait { key: property, value: sent }]);
    let twice = [Trait { key: "t", value: sent }, Trait { key: "t", value: TraitValue::Null }];
    ask(&environment, bytes, "007", &twice);
}

/// Evaluates, renders and explains; a flag is targeted only by a segment that matches according to explain. `bytes`:
/// the size of document and identity.
fn ask(environment: &Environment, bytes: usize, identifier: &str, traits: &[Trait<'_>]) {
    let identity = Identity { identifier, traits };
    let mut scratch = EvaluationScratch::default();
    work::take();
    evaluate(environment.program(), &identity, &mut scratch);
    assert_work("an evaluation", bytes, 256);
    for role in [Role::Client, Role::Server] {
        let mut out = Vec::new();
        edge_proxy::engine::render::write(environment.program(), role, &scratch, None, &mut out);
        let written: Result<Vec<IgnoredAny>, _> = serde_json::from_slice(&out);
        assert!(written.is_ok(), "the flags are not JSON: {}", String::from_utf8_lossy(&out));
    }
    let explanation = explain(environment.program(), &environment.document().plain, Some(&identity), None)
        .unwrap_or_else(|error| panic!("not explained: {} {}", error.path, error.message));
    assert_work("an explanation", bytes, 256);
    for flag in &explanation.flags {
        let by = flag.reason.strip_prefix("TARGETING_MATCH; segment=");
        let is_explained = by.is_none_or(|name| {
            flag.identity_override
                || flag.note.is_some()
                || flag.matching_segments.iter().any(|segment| segment == name)
        });
        assert!(is_explained, "explain contradicts the reason: {flag:?}");
    }
}
