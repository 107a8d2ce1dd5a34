//! Fuzz target: every response on a connection is complete, whatever the client sends.
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
use edge_proxy::snapshot::{DocumentSource, Environment, KeyAccess, Slot, Snapshot};
use edge_proxy::work;
use serde::de::IgnoredAny;

/// Keys of the environment that is served, of one that has no document, and the demo's.
const PAIRS: &str = r#"[{"server_side_key": "ser.k", "client_side_key": "k"},
    {"server_side_key": "ser.n", "client_side_key": "n"},
    {"server_side_key": "ser.demo-server-side-key", "client_side_key": "demo-client-side-key"}]"#;

/// An answer to a caller without a valid key, bytes, and what any answer may have beside the flags in it and
/// what it repeats of the request.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// What one byte of a body may become: a control character is sent as `\\u0001` and comes back as six bytes,
/// and a short number such as `1e15` in full.
const BYTES_PER_BYTE_MAX: usize = 8;
/// The flags of one identity of the environment that is served, or their explanation.
const FLAGS_BYTES_MAX: usize = 64 * 1024;

/// Evaluating an identity of the environment that is served, writing its flags and explaining them.
const IDENTITY_STEPS_MAX: u64 = 4096;

struct House {
    settings: HandlerSettings,
    snapshot: Snapshot,
    now: SystemTime,
}

static HOUSE: LazyLock<House> = LazyLock::new(|| {
    let variables =
        [("ENVIRONMENT_KEY_PAIRS", PAIRS), ("PROXY_KEY", "p"), ("ALLOW_ORIGINS", r#"["https://a"]"#)];
    let variables = variables.map(|(name, text)| (name.to_owned(), text.to_owned())).into();
    let inputs = Inputs { without_file: true, variables, ..Inputs::default() };
    let (config, _) = config::load(&inputs).unwrap_or_else(|error| panic!("{error}"));
    let document = include_bytes!("../../fixtures/environments/HideDisabled.json");
    let (environment, _) =
        Environment::compile(document).unwrap_or_else(|error| panic!("{} {}", error.path, error.message));
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let slot = |key: &str, environment| Slot {
        client_side_key: key.into(),
        environment,
        source: DocumentSource::File,
        freshness: Arc::default(),
        last_error: None,
    };
    let access = |slot, role| KeyAccess { slot, role, expires_at: None };
    let keys = [
        ("k", 0, Role::Client),
        ("ser.k", 0, Role::Server),
        ("n", 1, Role::Client),
        ("ser.n", 1, Role::Server),
    ];
    House {
        settings: HandlerSettings::new(&config),
        snapshot: Snapshot::new(
            1,
            vec![slot("k", Some(Arc::new(environment))), slot("n", None)],
            keys.map(|(key, at, role)| (key.as_bytes().into(), access(at, role))),
        ),
        now,
    }
});

/// A connection's bytes. An answer is judged as a client would; one that is made with used buffers, or was
/// asked for before, is the same as one that is made with new ones.
pub fn answer(data: &[u8]) {
    let house = &*HOUSE;
    let mut reader = RequestReader::default();
    let mut buffer = BytesMut::from(data);
    let (mut room, mut output) = (HandlerState::default(), ResponseWriter::default());
    while let Ok(Progress::Ready) = reader.advance(&mut buffer) {
        let Some(request) = reader.request(&mut buffer) else { panic!("ready, but no request") };
        let (is_head, keep_alive) = (request.method == Method::Head, request.keep_alive);
        // The body is parsed in place.
        let body = request.body.to_vec();
        let ask = |room: &mut HandlerState, output: &mut ResponseWriter| {
            let mut body = body.clone();
            work::take();
            let (outcome, bytes) = house.ask(&mut Request { body: &mut body, ..request }, room, output);
            let identities =
                if outcome.route == Route::BulkIdentities { outcome.body_bytes.min(100) } else { 1 };
            let read = outcome.body_bytes + request.path.len() + request.query.len();
            super::assert_work("an answer", read, IDENTITY_STEPS_MAX * identities as u64);
            (outcome, bytes)
        };
        let (outcome, new) = ask(&mut HandlerState::default(), &mut ResponseWriter::default());
        bounded(new.len(), &outcome, &body, request.coding, request.path.len() + request.query.len());
        let is_random = judge(&new, &outcome, is_head, keep_alive);
        for round in 0..3 {
            let (_, again) = ask(&mut room, &mut output);
            assert!(is_random || new == again, "round {round}:\n{}\n{}", shown(&new), shown(&again));
        }
        reader.consume(&mut buffer);
    }
}

/// The work oracle: what an answer cost, in bytes read of the plain body and in bytes sent, stays within what
/// the request and the caller's key allow.
fn bounded(answer_bytes: usize, outcome: &RequestOutcome, body: &[u8], coding: Coding, target_bytes: usize) {
    let (read, sent) = (outcome.body_bytes, body.len());
    let is_coded = coding != Coding::Identity && sent > 0;
    assert!(read <= if is_coded { BODY_BYTES_MAX } else { sent }, "{read} bytes read of {sent}");
    // A 422 comes before the key where the body is plain, so a slot says that the caller is known, and a
    // coded body that was read says so too.
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

fn shown(answer: &[u8]) -> String {
    String::from_utf8_lossy(answer).into_owned()
}

impl House {
    fn ask(
        &self,
        request: &mut Request<'_>,
        room: &mut HandlerState,
        output: &mut ResponseWriter,
    ) -> (RequestOutcome, Vec<u8>) {
        output.set_date(self.now);
        output.is_only_response = true;
        let outcome =
            edge_proxy::handlers::handle(&self.settings, &self.snapshot, self.now, request, room, output);
        let mut bytes = std::mem::take(&mut output.bytes);
        bytes.extend(output.tail.take().iter().flat_map(|tail| tail.iter()));
        (outcome, bytes)
    }
}

/// Whether an identity in an answer got a random identifier: 32 hex digits, as `uuid4` has them. Such an
/// identity has variants of its own.
fn has_random_identity(plain: &[u8]) -> bool {
    plain.windows(46).any(|window| {
        let digits = window.strip_prefix(b"\"identifier\":\"").filter(|digits| digits[12] == b'4');
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    })
}

/// Reads an answer as a client does. True: another time it may be another one.
fn judge(answer: &[u8], outcome: &RequestOutcome, is_head: bool, keep_alive: bool) -> bool {
    let shown = || shown(answer);
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4);
    let Some(end) = end else { panic!("no head: {}", shown()) };
    let (head, body) = answer.split_at(end);
    let is_field_byte = |byte: &u8| !byte.is_ascii_control() || matches!(byte, b'\r' | b'\n' | b'\t');
    assert!(head.iter().all(is_field_byte), "a control character in a head: {}", shown());
    // A preflight's answer repeats what was asked for, bytes above ASCII as they are (RFC 9110 5.5).
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
        assert!(body.is_empty(), "a body where none may be: {}", shown());
        return outcome.route == Route::Identities;
    }
    // An event stream: it goes on after this.
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
        Some(other) => panic!("a coding that nobody asked for: {other}"),
    };
    if field("content-type").is_some_and(|kind| kind.starts_with("application/json")) {
        let read: Result<IgnoredAny, _> = serde_json::from_slice(&plain);
        assert!(read.is_ok(), "no JSON: {}", String::from_utf8_lossy(&plain));
    }
    has_random_identity(&plain)
}
