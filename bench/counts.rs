//! The fixed work that `make bench-gate` counts: from request bytes to response bytes, without sockets.
//!
//! `counts CASE TIMES DIRECTORY` runs one case TIMES times, with the documents and bodies that `bench/gate.py`
//! wrote to the directory. Under callgrind, the difference between two values of TIMES is the cost of requests
//! without start-up. Without arguments it lists its cases.
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::BytesMut;
use edge_proxy::clock;
use edge_proxy::config::{RootSampler, Sampler};
use edge_proxy::handlers::{HandlerSettings, HandlerState, handle};
use edge_proxy::http::ResponseWriter;
use edge_proxy::http::h2::connection::Http2;
use edge_proxy::http::h2::event::{Http2Event, Http2Limits, WrittenResponse};
use edge_proxy::http::h2::frame;
use edge_proxy::http::hpack::encoder;
use edge_proxy::http::request::{Progress, RequestReader};
use edge_proxy::reactor::request_spans::{RequestSpans, SpanOutcome};
use edge_proxy::snapshot::{Environment, Snapshot};
use edge_proxy::spans;

use crate::kept_traits::KeptTraits;

#[path = "../tests/support/handler.rs"]
mod handler;
mod kept_traits;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const KEY: &str = "ser.BenchServerKey000000";
const CLIENT_KEY: &str = "BenchClientKey00000000";
const FLAGS: &str = "/api/v1/flags/";
const IDENTITIES: &str = "/api/v1/identities/";
const DOCUMENT: &str = "/api/v1/environment-document/";
const GET_ONE: &str = "/api/v1/identities/?identifier=bench-user";
const GET_OTHER: &str = "/api/v1/identities/?identifier=other-user";

/// Name, document, path, body, gzip accepted. `compile-heavy` and `read-*` do less than a request; `kept-*`
/// have a store of traits.
const CASES: &[(&str, &str, &str, Option<&str>, bool)] = &[
    ("liveness", "simple", "/proxy/health/liveness", None, false),
    ("flags-simple", "simple", FLAGS, None, false),
    ("flags-simple-pipelined", "simple", FLAGS, None, false),
    // With a sampler: of 1 in 1,000, of the same behind a caller that has not sampled, and of every request.
    ("flags-simple-sampler", "simple", FLAGS, None, false),
    ("flags-simple-traceparent", "simple", FLAGS, None, false),
    ("flags-simple-span", "simple", FLAGS, None, false),
    ("flags-one", "simple", "/api/v1/flags/?feature=feature_07", None, false),
    ("identities-simple", "simple", IDENTITIES, Some("simple"), false),
    ("identities-heavy-match", "heavy", IDENTITIES, Some("heavy-match"), false),
    ("identities-heavy-none", "heavy", IDENTITIES, Some("heavy-none"), false),
    ("identities-heavy-gzip", "heavy", IDENTITIES, Some("heavy-match"), true),
    ("identities-simple-gzip", "simple", IDENTITIES, Some("simple"), true),
    ("identities-heavy-gzip-varied", "heavy", IDENTITIES, Some("varied"), true),
    ("identities-heavy-varied", "heavy", IDENTITIES, Some("changed"), false),
    ("identities-get-heavy", "heavy", GET_ONE, None, false),
    ("identities-get-gzip", "simple", "/api/v1/identities/?identifier=user-000000", None, true),
    ("identities-splits-gzip-varied", "splits", IDENTITIES, Some("varied-few"), true),
    ("ofrep-heavy-gzip-varied", "heavy", "/ofrep/v1/evaluate/flags", Some("context"), true),
    ("identities-wide", "wide", "/api/v1/identities/?identifier=user-000000", None, false),
    ("identities-wide-gzip", "wide", "/api/v1/identities/?identifier=user-000000", None, true),
    ("identities-500-overrides", "overrides", IDENTITIES, Some("overridden"), false),
    // With kept traits: sent again, of a new identity each time, one of them another one each time, in another order
    // than that in which they are kept, not sent.
    ("kept-heavy", "heavy", IDENTITIES, Some("heavy-match"), false),
    ("kept-heavy-new-varied", "heavy", IDENTITIES, Some("varied"), false),
    ("kept-heavy-changed-varied", "heavy", IDENTITIES, Some("changed"), false),
    ("kept-heavy-merged-varied", "heavy", IDENTITIES, Some("changed"), false),
    ("kept-get-heavy", "heavy", GET_ONE, None, false),
    ("kept-get-none", "heavy", GET_OTHER, None, false),
    ("document-heavy", "heavy", DOCUMENT, None, false),
    ("read-get", "simple", FLAGS, None, false),
    ("read-get-new", "simple", FLAGS, None, false),
    ("read-post", "simple", IDENTITIES, Some("heavy-match"), false),
    ("http2-flags-gzip", "simple", FLAGS, None, true),
    ("http2-identities-heavy-gzip", "heavy", IDENTITIES, Some("heavy-match"), true),
    ("compile-heavy", "heavy", FLAGS, None, false),
];

fn request(path: &str, body: Option<&[u8]>, gzip: bool) -> Vec<u8> {
    let method = if body.is_some() { "POST" } else { "GET" };
    let mut head =
        format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nX-Environment-Key: {KEY}\r\n");
    if gzip {
        head.push_str("Accept-Encoding: gzip\r\n");
    }
    if let Some(body) = body {
        head.push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
    }
    [head.as_bytes(), b"\r\n", body.unwrap_or_default()].concat()
}

fn snapshot(document: &[u8]) -> Snapshot {
    let (environment, _) = Environment::compile(document).expect("a good document");
    handler::snapshot(CLIENT_KEY, KEY, environment)
}

fn settings() -> HandlerSettings {
    handler::settings(CLIENT_KEY, KEY)
}

/// The properties of a case besides its request.
#[derive(Clone, Copy)]
struct Way<'a> {
    /// `None`: the request is only parsed.
    snapshot: Option<&'a Snapshot>,
    /// Each request is the first of its connection, so that its head is not cached.
    is_new: bool,
    /// Responses are written in batches, so that they cannot be sent without a copy.
    is_pipelined: bool,
    /// Each request has another number in the place of the digits of [`VARIED`].
    is_varied: bool,
    /// Which requests have a span.
    sampler: Option<Sampler>,
    /// Traits are kept, and this is the first request.
    kept_first: Option<&'a [u8]>,
}

/// An unsampled caller.
const TRACEPARENT: &str = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00\r\n\r\n";
/// More spans than are recorded.
const SPANS_MAX: usize = 4096;

/// The identifier that is varied. The key has zeros too.
const VARIED: &[u8] = b"user-000000";
const DIGITS: usize = 6;

/// Writes the number of the round over the digits that begin at `place`.
fn vary(request: &mut [u8], place: usize, round: u64) {
    let text = format!("{round:06}");
    request[place..place + DIGITS].copy_from_slice(&text.as_bytes()[..DIGITS]);
}

/// Parses and answers the request `times` times; returns the response bytes.
fn serve(way: Way<'_>, request: &[u8], times: u64) -> u64 {
    let mut kept = way.kept_first.map(|_| KeptTraits::new());
    let mut state = HandlerState::new(kept.as_ref().map(|kept| kept.view.clone()));
    let (settings, mut output) = (settings(), ResponseWriter::default());
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    output.set_date(now);
    output.is_only_response = !way.is_pipelined;
    let (mut reader, mut buffer) = (RequestReader::default(), BytesMut::with_capacity(16 * 1024));
    let mut sent = 0;
    let mut request = request.to_vec();
    let found = request.windows(VARIED.len()).position(|window| window == VARIED);
    let number = found.filter(|_| way.is_varied).map(|at| at + VARIED.len() - DIGITS);
    // The same random numbers each time.
    clock::fix(Instant::now(), now, 1);
    let (sender, _receiver) = spans::queue::queue(SPANS_MAX, Arc::default());
    let spans = way.sampler.map(|sampler| RequestSpans::new(sender, sampler));
    for round in 0..times {
        if let Some(place) = number {
            vary(&mut request, place, round);
        }
        if way.is_new {
            reader = RequestReader::default();
        }
        buffer.extend_from_slice(way.kept_first.filter(|_| round == 0).unwrap_or(&request));
        assert_eq!(reader.advance(&mut buffer), Ok(Progress::Ready));
        let mut read = reader.request(&mut buffer).expect("ready");
        if let Some(snapshot) = way.snapshot {
            let outcome = handle(&settings, snapshot, now, &mut read, &mut state, &mut output);
            assert_eq!(outcome.status, 200);
            if let Some(spans) = &spans
                && let Some(trace) = spans.sample(&read)
            {
                let (status, route) = (outcome.status, outcome.route);
                let (client, environment) = (Some(Ipv4Addr::LOCALHOST.into()), Some(CLIENT_KEY));
                let outcome = SpanOutcome { status, route, began: now, client, environment, is_tls: false };
                spans.record(trace, &read, outcome);
            }
            sent += (output.bytes.len() + output.tail.take().map_or(0, |tail| tail.len())) as u64;
            output.bytes.clear();
        }
        kept.iter_mut().for_each(KeptTraits::after_request);
        reader.consume(&mut buffer);
    }
    sent
}

/// The frames that open a connection, with a window that is never used up.
fn http2_opening() -> Vec<u8> {
    let mut bytes = frame::PREFACE.to_vec();
    frame::append(frame::SETTINGS, 0, 0, b"", &mut bytes);
    frame::append_window(0, 0x7000_0000, &mut bytes);
    bytes
}

/// The frames of one request.
fn http2_request(stream: u32, block: &[u8], body: Option<&[u8]>, out: &mut Vec<u8>) {
    let last = if body.is_none() { frame::END_STREAM } else { 0 };
    frame::append(frame::HEADERS, frame::END_HEADERS | last, stream, block, out);
    if let Some(body) = body {
        frame::append(frame::DATA, frame::END_STREAM, stream, body, out);
    }
}

/// As [`serve`], over HTTP/2: the head is the same each time, as most clients encode it.
fn serve_http2(snapshot: &Snapshot, path: &str, body: Option<&[u8]>, times: u64) -> u64 {
    let (settings, mut state, mut output) = (settings(), HandlerState::default(), ResponseWriter::default());
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    output.set_date(now);
    let limits = Http2Limits { head_bytes_max: 16 * 1024, streams_max: 100 };
    let mut http2 = Http2::new(limits, &mut output.bytes);
    let mut block = Vec::new();
    let method = if body.is_some() { "POST" } else { "GET" };
    for (name, value) in [
        (":method", method),
        (":scheme", "http"),
        (":path", path),
        (":authority", "127.0.0.1:8000"),
        ("x-environment-key", KEY),
        ("accept-encoding", "gzip"),
        ("content-type", "application/json"),
    ] {
        encoder::field(name.as_bytes(), value.as_bytes(), &mut block);
    }
    let (mut buffer, mut frames, mut sent) = (BytesMut::from(&http2_opening()[..]), Vec::new(), 0);
    for round in 0..times {
        frames.clear();
        http2_request(2 * round as u32 + 1, &block, body, &mut frames);
        buffer.extend_from_slice(&frames);
        assert_eq!(http2.advance(&mut buffer, 0, &mut output.bytes), Http2Event::Request);
        let start = output.bytes.len();
        let mut request = http2.request().expect("it is complete");
        let outcome = handle(&settings, snapshot, now, &mut request, &mut state, &mut output);
        assert_eq!((outcome.status, &output.tail), (200, &None));
        let body_start = output.body_start;
        let response =
            WrittenResponse { bytes: &mut output.bytes, start, body_start, tail: None, is_last: true };
        http2.respond(response, 0);
        assert_eq!(http2.advance(&mut buffer, 0, &mut output.bytes), Http2Event::NeedBytes);
        http2.streams.flush(0, &mut output.bytes);
        sent += output.bytes.len() as u64;
        output.bytes.clear();
    }
    sent
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, name, times, directory] = arguments.as_slice() else {
        CASES.iter().for_each(|case| println!("{}", case.0));
        return;
    };
    let (_, document, path, body, gzip) =
        CASES.iter().find(|case| case.0 == name).expect("a case of the list");
    let times = times.parse().expect("a number");
    let read = |file: String| std::fs::read(Path::new(directory).join(file)).expect("made by bench/gate.py");
    let document = read(format!("{document}.json"));
    let body = body.map(|body| read(format!("{body}.body.json")));
    let request = request(path, body.as_deref(), *gzip);
    // Printed, so that nothing is optimised away and equal work can be verified.
    let result = match name.as_str() {
        "compile-heavy" => (0..times).map(|_| snapshot(&document).slots.len() as u64).sum(),
        _ if name.starts_with("http2-") => serve_http2(&snapshot(&document), path, body.as_deref(), times),
        _ => {
            let is_read_only = name.starts_with("read-");
            let made = (!is_read_only).then(|| snapshot(&document));
            let (is_new, is_pipelined) = (name.ends_with("-new"), name.ends_with("-pipelined"));
            let is_varied = name.ends_with("-varied");
            let root = match name.as_str() {
                "flags-simple-sampler" | "flags-simple-traceparent" => Some(RootSampler::of_ratio(0.001)),
                "flags-simple-span" => Some(RootSampler::On),
                _ => None,
            };
            let sampler = root.map(|root| Sampler { is_parent_based: true, root });
            let mut request = request;
            if name.ends_with("-traceparent") {
                request.truncate(request.len() - 2);
                request.extend_from_slice(TRACEPARENT.as_bytes());
            }
            let first = if name.starts_with("kept-heavy-changed") { "changed" } else { "heavy-match" };
            let first = name.starts_with("kept-").then(|| read(format!("{first}.body.json")));
            let first = first.map(|body| self::request(IDENTITIES, Some(&body), false));
            let kept_first = first.as_deref();
            let way = Way { snapshot: made.as_ref(), is_new, is_pipelined, is_varied, sampler, kept_first };
            serve(way, &request, times)
        }
    };
    println!("{result}");
}
