//! Plain requests allocate nothing, measured from request bytes to response.
//!
//! After a warm-up, GET flags and GET and POST identities are answered a thousand times each with a document
//! that has every kind of condition, variants and identity overrides, under a counting allocator. The last
//! test lists the inputs that may allocate, and how much.
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use edge_proxy::handlers::{HandlerSettings, HandlerState, handle};
use edge_proxy::http::ResponseWriter;
use edge_proxy::http::h2::connection::Http2;
use edge_proxy::http::h2::event::{Http2Event, Http2Limits};
use edge_proxy::http::h2::frame;
use edge_proxy::http::request::{Progress, RequestReader};
use edge_proxy::limits::{
    BODY_BYTES_MAX, HEAD_BYTES_MAX, HTTP2_FRAME_BYTES_MAX, HTTP2_STATE_BYTES_MAX, HTTP2_STREAMS_MAX,
};
use edge_proxy::snapshot::{Environment, Snapshot};

#[path = "support/handler.rs"]
mod handler;

/// The system's allocator; counts the calls of this thread.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
    /// Allocated by this thread and not freed, bytes.
    static LIVE_BYTES: Cell<usize> = const { Cell::new(0) };
    /// The most of it since the test reset this, bytes.
    static PEAK_BYTES: Cell<usize> = const { Cell::new(0) };
}

fn count_live(freed: usize, allocated: usize) {
    LIVE_BYTES.set(LIVE_BYTES.get().wrapping_sub(freed).wrapping_add(allocated));
    PEAK_BYTES.set(PEAK_BYTES.get().max(LIVE_BYTES.get()));
}

// SAFETY: every call is forwarded unchanged; the counter has no destructor and allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        count_live(0, layout.size());
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count_live(layout.size(), 0);
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        count_live(layout.size(), size);
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const KEY: &str = "ser.allocation";
const CLIENT_KEY: &str = "client";
/// What a body of 1 MiB may take while it is parsed and evaluated, bytes.
const REQUEST_MEMORY_MAX: usize = 36 * 1024 * 1024;

/// Twelve features; twelve segments, one condition each, of every operator; two of three multivariate.
fn document() -> String {
    let state = |number: usize, priority: &str| {
        let variant = |id: usize| {
            format!(
                r#"{{"id":{id},"percentage_allocation":30.0,"multivariate_feature_option":{{"value":"v{id}"}}}}"#
            )
        };
        let variants =
            if number.is_multiple_of(3) { String::new() } else { [variant(1), variant(2)].join(",") };
        format!(
            r#"{{"feature":{{"id":{number},"name":"f{number}","type":"STANDARD"}},"enabled":true,"django_id":9{number},
            "feature_state_value":"on","feature_segment":{priority},"multivariate_feature_state_values":[{variants}]}}"#
        )
    };
    let conditions = [
        ("plan", "EQUAL", "gold"),
        ("plan", "NOT_EQUAL", "silver"),
        ("age", "GREATER_THAN", "30"),
        ("score", "LESS_THAN", "50.5"),
        ("country", "IN", "NL,DE,FR"),
        ("email", "CONTAINS", "@example"),
        ("email", "NOT_CONTAINS", "@test"),
        ("device", "REGEX", "iphone-\\\\d+$"),
        ("version", "GREATER_THAN_INCLUSIVE", "4.2.0:semver"),
        ("age", "MODULO", "7|0"),
        ("", "PERCENTAGE_SPLIT", "50"),
        ("$.identity.identifier", "IS_SET", ""),
    ];
    let segments: Vec<String> = conditions
        .iter()
        .enumerate()
        .map(|(number, (property, operator, value))| {
            let condition = format!(r#"{{"property_":"{property}","operator":"{operator}","value":"{value}"}}"#);
            let states: Vec<String> = (0..12)
                .filter(|feature| feature % 4 != number % 4)
                .map(|feature| state(feature, &format!(r#"{{"priority":{}}}"#, (feature + number) % 12)))
                .collect();
            format!(
                r#"{{"id":{number},"name":"s{number}","rules":[{{"type":"ALL","rules":[{{"type":"ANY","rules":[],
                "conditions":[{condition}]}}]}}],"feature_states":[{}]}}"#,
                states.join(",")
            )
        })
        .collect();
    let states: Vec<String> = (0..12).map(|number| state(number, "null")).collect();
    format!(
        r#"{{"api_key":"client","name":"E","updated_at":"2026-01-15T10:30:00Z","feature_states":[{}],
        "project":{{"segments":[{}]}},"identity_overrides":[{{"identifier":"vip","identity_features":[{}]}}]}}"#,
        states.join(","),
        segments.join(","),
        state(3, "null")
    )
}

fn snapshot() -> Snapshot {
    let (environment, warnings) = Environment::compile(document().as_bytes()).expect("a good document");
    assert!(warnings.is_empty(), "{warnings:?}");
    handler::snapshot(CLIENT_KEY, KEY, environment)
}

fn settings() -> HandlerSettings {
    handler::settings(CLIENT_KEY, KEY)
}

fn request(path: &str, body: Option<&str>) -> Vec<u8> {
    let method = if body.is_some() { "POST" } else { "GET" };
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: a\r\nX-Environment-Key: {KEY}\r\n");
    if let Some(body) = body {
        head.push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
    }
    format!("{head}\r\n{}", body.unwrap_or_default()).into_bytes()
}

fn with_gzip(request: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(request);
    text.replacen("Host: a\r\n", "Host: a\r\nAccept-Encoding: gzip\r\n", 1).into_bytes()
}

/// Allocations of a thousand responses, after ten for warm-up.
fn allocations(request: &[u8]) -> usize {
    let (snapshot, settings) = (snapshot(), settings());
    let (mut state, mut output) = (HandlerState::default(), ResponseWriter::default());
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    output.set_date(now);
    let (mut reader, mut buffer) = (RequestReader::default(), BytesMut::with_capacity(16 * 1024));
    let mut counted = 0;
    for round in 0..1010 {
        let before = ALLOCATIONS.get();
        buffer.extend_from_slice(request);
        assert_eq!(reader.advance(&mut buffer), Ok(Progress::Ready));
        let mut read = reader.request(&mut buffer).expect("ready");
        let outcome = handle(&settings, &snapshot, now, &mut read, &mut state, &mut output);
        if round >= 10 {
            counted += ALLOCATIONS.get() - before;
        }
        assert_eq!(outcome.status, 200, "{}", String::from_utf8_lossy(&output.bytes));
        output.bytes.clear();
        output.tail = None;
        reader.consume(&mut buffer);
    }
    counted
}

#[test]
fn plain_requests_allocate_nothing() {
    let traits = r#"[{"trait_key":"plan","trait_value":"gold"},{"trait_key":"age","trait_value":42},
        {"trait_key":"score","trait_value":12.5},{"trait_key":"country","trait_value":"DE"},
        {"trait_key":"email","trait_value":"a@example.com"},{"trait_key":"device","trait_value":"iphone-15"},
        {"trait_key":"version","trait_value":"4.7.2"},{"trait_key":"beta","trait_value":true},
        {"trait_key":"number","trait_value":"007"},{"trait_key":"none","trait_value":null}]"#;
    let body = |identifier: &str| format!(r#"{{"identifier":"{identifier}","traits":{traits}}}"#);
    let cases = [
        ("GET flags", request("/api/v1/flags/", None)),
        ("GET one flag", request("/api/v1/flags/?feature=f3", None)),
        ("GET identities", request("/api/v1/identities/?identifier=someone", None)),
        ("GET identities, overridden", request("/api/v1/identities/?identifier=vip", None)),
        ("POST identities", request("/api/v1/identities/", Some(&body("someone")))),
        ("POST identities, overridden", request("/api/v1/identities/", Some(&body("vip")))),
        ("POST identities, no traits", request("/api/v1/identities/", Some(r#"{"identifier":"a"}"#))),
        ("GET identities, gzip", with_gzip(&request("/api/v1/identities/?identifier=someone", None))),
        ("POST identities, gzip", with_gzip(&request("/api/v1/identities/", Some(&body("someone"))))),
    ];
    for (name, request) in cases {
        let counted = allocations(&request);
        eprintln!("{name}: {counted} allocations in 1,000 responses");
        assert_eq!(counted, 0, "{name}");
    }
}

#[test]
fn remaining_allocations_are_bounded() {
    let big =
        r#"{"identifier":"a","traits":[{"trait_key":"age","trait_value":123456789012345678901234567890}]}"#;
    let anonymous = r#"{"traits":[{"trait_key":"plan","trait_value":"gold"}]}"#;
    for (name, body, allocations_max) in
        [("an integer beyond 64 bits", big, 60), ("an identity without an identifier", anonymous, 40)]
    {
        let counted = allocations(&request("/api/v1/identities/", Some(body)));
        eprintln!("{name}: {} allocations per response", counted / 1000);
        assert!(counted <= allocations_max * 1000, "{name}: {counted}");
    }
}

/// A field as a literal (RFC 7541 6.2): one that the table takes, or one that it does not.
/// The most memory that a request takes beyond what is live before it, bytes, and its status.
fn peak(request: &[u8]) -> (usize, u16) {
    let (snapshot, settings) = (snapshot(), settings());
    let (mut state, mut output) = (HandlerState::default(), ResponseWriter::default());
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    output.set_date(now);
    let (mut reader, mut buffer) = (RequestReader::default(), BytesMut::from(request));
    assert_eq!(reader.advance(&mut buffer), Ok(Progress::Ready));
    let mut read = reader.request(&mut buffer).expect("ready");
    let before = LIVE_BYTES.get();
    PEAK_BYTES.set(before);
    let outcome = handle(&settings, &snapshot, now, &mut read, &mut state, &mut output);
    (PEAK_BYTES.get() - before, outcome.status)
}

#[test]
fn the_memory_of_one_request_is_bounded() {
    let items = |item: &str, bytes: usize| vec![item; bytes / (item.len() + 1)].join(",");
    let body = |traits: String| format!(r#"{{"identifier":"a","traits":[{traits}]}}"#);
    let most = BODY_BYTES_MAX - 100;
    let cases = [
        ("empty traits", body(items("{}", most)), 422),
        ("lists", body(items("[]", most)), 422),
        ("numbers", body(items("1", most)), 422),
        ("traits without a value", body(items(r#"{"trait_key":"a"}"#, most)), 200),
        ("traits", body(items(r#"{"trait_key":"a","trait_value":1}"#, most)), 200),
    ];
    for (name, body, status) in cases {
        let (peak, answered) = peak(&request("/api/v1/identities/", Some(&body)));
        eprintln!("{name}: {} bytes of body, {peak} bytes at the peak", body.len());
        assert_eq!(answered, status, "{name}");
        assert!(peak <= REQUEST_MEMORY_MAX, "{name}: {peak}");
    }
}

fn field(is_indexed: bool, name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![if is_indexed { 0x40 } else { 0 }];
    for text in [name, value] {
        match text.len() {
            length @ ..127 => bytes.push(length as u8),
            length => bytes.extend([127, ((length - 127) % 128) as u8 | 128, ((length - 127) / 128) as u8]),
        }
        bytes.extend_from_slice(text.as_bytes());
    }
    bytes
}

/// An HTTP/2 connection whose client makes it keep what it can, without a body.
struct Http2Hoarder {
    http2: Http2,
    buffer: BytesMut,
    out: Vec<u8>,
    next: u32,
}

impl Http2Hoarder {
    fn new() -> Self {
        let limits = Http2Limits { head_bytes_max: HEAD_BYTES_MAX, streams_max: HTTP2_STREAMS_MAX };
        let mut out = Vec::new();
        let http2 = Http2::new(limits, &mut out);
        let mut hoarder = Self { http2, buffer: BytesMut::new(), out, next: 1 };
        let mut preface = frame::PREFACE.to_vec();
        frame::append(frame::SETTINGS, 0, 0, b"", &mut preface);
        assert_eq!(hoarder.receive(&preface), Http2Event::NeedBytes);
        hoarder
    }

    fn receive(&mut self, bytes: &[u8]) -> Http2Event {
        self.buffer.extend_from_slice(bytes);
        let event = self.http2.advance(&mut self.buffer, 0, &mut self.out);
        // Neither the buffer nor the output is of the connection's state.
        (self.buffer, self.out) = (BytesMut::new(), Vec::new());
        event
    }

    /// A frame with a part of a request's head. A body follows, which never comes.
    fn head(&mut self, kind: u8, flags: u8, stream: u32, fields: &[u8]) -> Http2Event {
        let mut bytes = Vec::new();
        frame::append(kind, flags, stream, fields, &mut bytes);
        self.receive(&bytes)
    }

    fn open(&mut self, fields: &[u8]) {
        let stream = self.next;
        self.next += 2;
        // POST, http, a path: from the static table.
        let block = [&[0x83, 0x86, 0x84][..], &field(false, "host", "a"), fields].concat();
        assert_eq!(self.head(frame::HEADERS, frame::END_HEADERS, stream, &block), Http2Event::NeedBytes);
    }
}

/// A header table of the smallest entries, repeated heads, streams with different heads, and a header block in
/// several frames. Without streams there is space for a larger block.
fn hoard(streams: usize, block_bytes: usize) -> Option<(usize, usize)> {
    let before = LIVE_BYTES.get();
    let mut hoarder = Http2Hoarder::new();
    for _ in 0..2 {
        hoarder.open(&field(true, "a", "").repeat(64));
        let mut reset = Vec::new();
        frame::append_reset(hoarder.next - 2, frame::ErrorCode::Cancel, &mut reset);
        assert_eq!(hoarder.receive(&reset), Http2Event::NeedBytes);
    }
    for number in 0..streams {
        hoarder.open(&field(false, "x-environment-key", &format!("{number:0>300}")));
    }
    let stream = hoarder.next;
    for (number, part) in vec![0; block_bytes].chunks(1 + block_bytes / 8).enumerate() {
        let kind = if number == 0 { frame::HEADERS } else { frame::CONTINUATION };
        if hoarder.head(kind, 0, stream, part) == Http2Event::Close {
            return None;
        }
    }
    let live = LIVE_BYTES.get().wrapping_sub(before) + size_of::<Http2>();
    Some((live, hoarder.http2.buffer_bytes_max()))
}

#[test]
fn an_http2_connection_keeps_at_most_64_kib_besides_bodies() {
    let mut largest = 0;
    for streams in [0, 1, 10, 30, 60, HTTP2_STREAMS_MAX, 2 * HTTP2_STREAMS_MAX] {
        for block_bytes in (0..=HEAD_BYTES_MAX).step_by(1024) {
            let Some((live, buffer)) = hoard(streams, block_bytes) else { continue };
            assert!(buffer > HTTP2_FRAME_BYTES_MAX, "a frame fits in the buffer");
            assert!(
                live + buffer <= HTTP2_STATE_BYTES_MAX,
                "{streams} streams, a block of {block_bytes}: {live} and a buffer of {buffer} bytes"
            );
            largest = largest.max(live + HTTP2_FRAME_BYTES_MAX);
        }
    }
    eprintln!("an HTTP/2 connection: at most {largest} bytes with a whole frame");
    assert!(largest > HTTP2_STATE_BYTES_MAX / 4 * 3, "the worst case is reached: {largest}");
}
