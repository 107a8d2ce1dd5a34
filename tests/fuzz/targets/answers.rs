//! Fuzz target: every response on a connection is complete for any input.
use std::io::Read as _;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use edge_proxy::config;
use edge_proxy::config::Inputs;
use edge_proxy::engine::program::Role;
use edge_proxy::handlers::{HandlerSettings, HandlerState, RequestOutcome};
use edge_proxy::http::request::{Progress, RequestReader};
use edge_proxy::http::route::Route;
use edge_proxy::http::{Coding, Method, Request, ResponseWriter};
use edge_proxy::limits::BODY_BYTES_MAX;
use edge_proxy::snapshot::{DocumentSource, Environment, KeyAccess, PublishedDocument, Slot, Snapshot};
use edge_proxy::work;
use serde::de::IgnoredAny;

/// Keys of an environment with a document, of one without, and of the demo.
const PAIRS: &str = r#"[{"server_side_key": "ser.k", "client_side_key": "k"},
    {"server_side_key": "ser.n", "client_side_key": "n"},
    {"server_side_key": "ser.demo-server-side-key", "client_side_key": "demo-client-side-key"}]"#;

/// The largest response to a client without a valid key, bytes, and the largest overhead of any response besides
/// its flags and echoed input.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// The growth of an echoed byte: a control character is returned as `\\u0001`, and a short number such as `1e15`
/// in full.
const BYTES_PER_BYTE_MAX: usize = 8;
/// The flags of one identity, or their explanation.
const FLAGS_BYTES_MAX: usize = 64 * 1024;

/// Evaluating an identity with a document, rendering its flags and explaining them.
const IDENTITY_STEPS_MAX: u64 = 4096;

struct FuzzedProxy {
    settings: HandlerSettings,
    snapshot: Snapshot,
    now: SystemTime,
}

static PROXY: LazyLock<FuzzedProxy> = LazyLock::new(|| {
    let variables =
        [("ENVIRONMENT_KEY_PAIRS", PAIRS), ("PROXY_KEY", "p"), ("ALLOW_ORIGINS", r#"["https://a"]"#)];
    let variables = variables.map(|(name, text)| (name.to_owned(), text.to_owned())).into();
    let inputs = Inputs { without_file: true, variables, ..Inputs::default() };
    let (config, _) = config::load(&inputs).unwrap_or_else(|error| panic!("{error}"));
    let document = include_bytes!("../../fixtures/environments/HideDisabled.json");
    let (environment, _) =
        Environment::compile(document).unwrap_or_else(|error| panic!("{} {}", error.path, error.message));
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let slot = |key: &str, document| Slot {
        client_side_key: key.into(),
        document,
        freshness: Arc::default(),
        reported: Arc::default(),
        last_error: None,
        number: 1,
    };
    let access = |slot, role| KeyAccess { slot, role, expires_at: None };
    let keys = [
        ("k", 0, Role::Client),
        ("ser.k", 0, Role::Server),
        ("n", 1, Role::Client),
        ("ser.n", 1, Role::Server),
    ];
    FuzzedProxy {
        settings: HandlerSettings::new(&config),
        snapshot: Snapshot::new(
            1,
            vec![
                slot("k", Some(PublishedDocument::first(Arc::new(environment), DocumentSource::File))),
                slot("n", None),
            ],
            keys.map(|(key, at, role)| (key.as_bytes().into(), access(at, role))),
        ),
        now,
    }
});

/// The bytes of a connection. A response is checked as by a client; with reused buffers or from a cache it is the
/// same as with new ones.
pub fn answer(data: &[u8]) {
    let server = &*PROXY;
    let mut reader = RequestReader::default();
    let mut buffer = BytesMut::from(data);
    let (mut state, mut output) = (HandlerState::default(), ResponseWriter::default());
    while let Ok(Progress::Ready) = reader.advance(&mut buffer) {
        let Some(request) = reader.request(&mut buffer) else { panic!("ready, but no request") };
        let (is_head, keep_alive) = (request.method == Method::Head, request.keep_alive);
        // The body is parsed in place.
        let body = request.body.to_vec();
        let ask = |state: &mut HandlerState, output: &mut ResponseWriter| {
            let mut body = body.clone();
            work::take();
            let (outcome, bytes) = server.ask(&mut Request { body: &mut body, ..request }, state, output);
            let identities =
                if outcome.route == Route::BulkIdentities { outcome.body_bytes.min(100) } else { 1 };
            let read = outcome.body_bytes + request.path.len() + request.query.len();
            super::assert_work("a response", read, IDENTITY_STEPS_MAX * identities as u64);
            (outcome, bytes)
        };
        let (outcome, new) = ask(&mut HandlerState::default(), &mut ResponseWriter::default());
        bounded(new.len(), &outcome, &body, request.coding, request.path.len() + request.query.len());
        let is_random = judge(&new, &outcome, is_head, keep_alive);
        for round in 0..3 {
            let (_, again) = ask(&mut state, &mut output);
            let is_same =
                is_random || new == again || decoded(&new).is_some_and(|new| decoded(&again) == Some(new));
            assert!(is_same, "round {round}:\n{}\n{}", shown(&new), shown(&again));
        }
        reader.consume(&mut buffer);
    }
}

/// Checks the cost of a response: the bytes read of the plain body and the bytes sent are limited by the request
/// and the key.
fn bounded(answer_bytes: usize, outcome: &RequestOutcome, body: &[u8], coding: Coding, target_bytes: usize) {
    let (read, sent) = (outcome.body_bytes, body.len());
    let is_coded = coding != Coding::Identity && sent > 0;
    assert!(read <= if is_coded { BODY_BYTES_MAX } else { sent }, "{read} bytes read of {sent}");
    // For a plain body a 422 precedes the check of the key, so only a slot, or a compressed body that was read,
    // proves a valid key.
    let is_known = outcome.slot.is_some() || (is_coded && read > 0);
    let bound = match is_known {
        false => {
            let judged = if is_coded { 0 } else { BODY_BYTES_MAX.min(sent) };
            assert!(read <= judged, "{read} bytes read for an unknown caller, {outcome:?}");
            ANSWER_BYTES_MAX
        }
        true => {
            let identities = if outcome.route == Route::BulkIdentities { read.min(100) } else { 1 };
            ANSWER_BYTES_MAX + BYTES_PER_BYTE_MAX * (read + target_bytes) + identities * FLAGS_BYTES_MAX
        }
    };
    assert!(answer_bytes <= bound, "{answer_bytes} bytes for {sent}, {read} of them read: {outcome:?}");
}

/// The head without the length, and the plain body, of a compressed answer: one from a cache has other bytes.
fn decoded(answer: &[u8]) -> Option<(String, Vec<u8>)> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = shown(&answer[..end]);
    if !head.contains("content-encoding: gzip") {
        return None;
    }
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(&answer[end..]).read_to_end(&mut plain).ok()?;
    let lines: Vec<&str> = head.lines().filter(|line| !line.starts_with("content-length:")).collect();
    Some((lines.join("\n"), plain))
}

fn shown(answer: &[u8]) -> String {
    String::from_utf8_lossy(answer).into_owned()
}

impl FuzzedProxy {
    fn ask(
        &self,
        request: &mut Request<'_>,
        state: &mut HandlerState,
        output: &mut ResponseWriter,
    ) -> (RequestOutcome, Vec<u8>) {
        output.set_date(self.now);
        output.is_only_response = true;
        let outcome =
            edge_proxy::handlers::handle(&self.settings, &self.snapshot, self.now, request, state, output);
        let mut bytes = std::mem::take(&mut output.bytes);
        bytes.extend(output.tail.take().iter().flat_map(|tail| tail.iter()));
        (outcome, bytes)
    }
}

/// Whether an identity in a response has a random identifier: 32 hex digits, as of `uuid4`. Its variants are
/// random too.
fn has_random_identity(plain: &[u8]) -> bool {
    plain.windows(46).any(|window| {
        let digits = window.strip_prefix(b"\"identifier\":\"").filter(|digits| digits[12] == b'4');
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    })
}

/// Parses a response as a client does. True: the next response may differ.
fn judge(answer: &[u8], outcome: &RequestOutcome, is_head: bool, keep_alive: bool) -> bool {
    let shown = || shown(answer);
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4);
    let Some(end) = end else { panic!("no head: {}", shown()) };
    let (head, body) = answer.split_at(end);
    let is_field_byte = |byte: &u8| !byte.is_ascii_control() || matches!(byte, b'\r' | b'\n' | b'\t');
    assert!(head.iter().all(is_field_byte), "a control character in a head: {}", shown());
    // A preflight response repeats the requested fields, including bytes above ASCII (RFC 9110 5.5).
    let head = String::from_utf8_lossy(head);
    let mut lines = head.trim_end().split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    assert!(status_line.starts_with(&format!("HTTP/1.1 {}", outcome.status)), "{}", shown());
    assert!((200..500).contains(&outcome.status) || matches!(outcome.status, 502 | 503), "{}", shown());
    let lines: Vec<(&str, &str)> = lines
        .map(|line| line.split_once(": ").unwrap_or_else(|| panic!("no field: {line:?} in {}", shown())))
        .collect();
    let field = |name: &str| {
        lines.iter().find(|(given, _)| given.eq_ignore_ascii_case(name)).map(|(_, value)| *value)
    };
    assert_eq!(
        lines.iter().filter(|(name, _)| name.eq_ignore_ascii_case("content-length")).count(),
        usize::from(field("content-length").is_some())
    );
    if !keep_alive {
        assert_eq!(field("connection"), Some("close"), "{}", shown());
    }
    if is_head || matches!(outcome.status, 204 | 304) {
        assert!(body.is_empty(), "an unexpected body: {}", shown());
        return outcome.route == Route::Identities;
    }
    // An event stream, which continues.
    let Some(length) = field("content-length") else { return false };
    assert_eq!(length.trim().parse(), Ok(body.len()), "{}", shown());
    let plain = match field("content-encoding") {
        None => body.to_vec(),
        Some("gzip") => {
            let mut plain = Vec::new();
            flate2::read::GzDecoder::new(body)
                .read_to_end(&mut plain)
                .unwrap_or_else(|error| panic!("{error}"));
            plain
        }
        Some(other) => panic!("an unrequested coding: {other}"),
    };
    if field("content-type").is_some_and(|kind| kind.starts_with("application/json")) {
        let read: Result<IgnoredAny, _> = serde_json::from_slice(&plain);
        assert!(read.is_ok(), "no JSON: {}", String::from_utf8_lossy(&plain));
    }
    has_random_identity(&plain)
}
