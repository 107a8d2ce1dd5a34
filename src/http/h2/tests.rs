use std::time::{Duration, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};

use super::connection::Http2;
use super::event::{Http2Event, Http2Limits, WaitLimits, WrittenResponse};
use super::frame::{self, ErrorCode, FrameHead};
use super::outgoing::SharedTail;
use crate::http::error::ParseError;
use crate::http::hpack::decoder::HpackDecoder;
use crate::http::hpack::encoder;
use crate::http::method::Method;
use crate::http::response::{Body, ContentType, ResponseContext, ResponseWriter};
use crate::http::status::Status;
use crate::limits::{
    BATCH_BYTES_MAX, BODY_BYTES_MAX, HTTP2_BODIES_WINDOW, HTTP2_CONNECTION_WINDOW, HTTP2_CONTINUATIONS_MAX,
    HTTP2_IDLE_FRAMES_MAX, HTTP2_RESETS_MAX, HTTP2_STREAM_WINDOW,
};

const GET: &[(&str, &str)] =
    &[(":method", "GET"), (":scheme", "http"), (":path", "/p?q"), (":authority", "a")];
const POST: &[(&str, &str)] =
    &[(":method", "POST"), (":scheme", "http"), (":path", "/p"), (":authority", "a")];
const LIMITS: Http2Limits = Http2Limits { head_bytes_max: 16 * 1024, streams_max: 100 };
const WAITS: WaitLimits = WaitLimits { body_ticks: 30, write_ticks: 20 };

/// A connection whose requests are answered with a body of this many bytes.
struct Simulation {
    http2: Http2,
    buffer: BytesMut,
    writer: ResponseWriter,
    body: Bytes,
    /// What the requests were, and the errors of those that were refused.
    requests: Vec<String>,
    refused: Vec<ParseError>,
    is_closed: bool,
    now: u32,
    decoder: HpackDecoder,
}

/// A frame that the connection has sent.
#[derive(Clone, Debug, PartialEq, Eq)]
struct SentFrame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Simulation {
    fn new(body_bytes: usize) -> Self {
        let mut writer = ResponseWriter::default();
        writer.set_date(UNIX_EPOCH + Duration::from_secs(784_111_777));
        let mut simulation = Self {
            http2: Http2::new(LIMITS, &mut writer.bytes),
            buffer: BytesMut::new(),
            writer,
            body: Bytes::from(vec![b'x'; body_bytes]),
            requests: Vec::new(),
            refused: Vec::new(),
            is_closed: false,
            now: 0,
            decoder: HpackDecoder::default(),
        };
        let mut preface = frame::PREFACE.to_vec();
        frame::append(frame::SETTINGS, 0, 0, b"", &mut preface);
        let kinds: Vec<u8> = simulation.receive(&preface).iter().map(|frame| frame.kind).collect();
        assert_eq!(kinds, [frame::SETTINGS, frame::WINDOW_UPDATE, frame::SETTINGS]);
        simulation
    }

    /// Receives bytes in one read; returns the frames sent.
    fn receive(&mut self, bytes: &[u8]) -> Vec<SentFrame> {
        self.buffer.extend_from_slice(bytes);
        let mut sent = Vec::new();
        loop {
            let out = &mut self.writer.bytes;
            let mut event = self.http2.expire(self.now, WAITS, out);
            if event == Http2Event::NeedBytes {
                event = self.http2.advance(&mut self.buffer, self.now, out);
            }
            match event {
                Http2Event::NeedBytes => {
                    let has_more = self.http2.streams.flush(self.now, out);
                    let is_full = out.len() >= BATCH_BYTES_MAX;
                    sent.append(&mut frames(&std::mem::take(out)));
                    if !has_more && !is_full && self.http2.streams.waiting().is_none() {
                        return sent;
                    }
                }
                Http2Event::Close => {
                    self.is_closed = true;
                    sent.append(&mut frames(&std::mem::take(out)));
                    return sent;
                }
                Http2Event::Head => {
                    if self.http2.request().expect("a head").path == b"/excluded" {
                        self.answer();
                    } else {
                        let out = &mut self.writer.bytes;
                        assert_eq!(self.http2.accept(self.now, out), Http2Event::NeedBytes);
                    }
                }
                Http2Event::Request => self.answer(),
                Http2Event::Refused(error) => self.refuse(error),
            }
        }
    }

    fn answer(&mut self) {
        let request = self.http2.request().expect("a request");
        let path = String::from_utf8_lossy(request.path).into_owned();
        self.requests.push(format!("{:?} {path} {}", request.method, request.body.len()));
        let mut context = request.context();
        context.head = request.method == Method::Head;
        let start = self.writer.bytes.len();
        self.writer.respond(context, Status(200), Some(ContentType::Json), b"", Body::Ready(&self.body));
        self.respond(start);
    }

    fn refuse(&mut self, error: ParseError) {
        self.refused.push(error);
        let (context, _) = self.http2.refused().expect("a request");
        let start = self.writer.bytes.len();
        self.writer.reject(context, error, b"");
        self.respond(start);
    }

    fn respond(&mut self, start: usize) {
        let tail = self.writer.tail.take().map(|bytes| SharedTail { bytes, owner: std::rc::Rc::new(()) });
        let body_start = self.writer.body_start;
        let bytes = &mut self.writer.bytes;
        self.http2.respond(WrittenResponse { bytes, start, body_start, tail, is_last: true }, self.now);
    }

    /// The code of the GOAWAY frame among these.
    fn goaway(&self, sent: &[SentFrame]) -> Option<u32> {
        let frame = sent.iter().find(|frame| frame.kind == frame::GOAWAY)?;
        Some(frame::number(&frame.payload[4..]))
    }

    fn fields(&mut self, block: &[u8]) -> String {
        let mut text = String::new();
        let add = |name: &[u8], value: &[u8]| {
            text += &format!("{}={}\n", String::from_utf8_lossy(name), String::from_utf8_lossy(value));
            true
        };
        self.decoder.decode(block, add).expect("a valid block");
        text
    }
}

fn frames(mut bytes: &[u8]) -> Vec<SentFrame> {
    let mut frames = Vec::new();
    while let Some(FrameHead { length, kind, flags, stream }) = FrameHead::read(bytes) {
        frames.push(SentFrame { kind, flags, stream, payload: bytes[9..9 + length].to_vec() });
        bytes = &bytes[9 + length..];
    }
    assert!(bytes.is_empty(), "only whole frames are sent");
    frames
}

fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    fields.iter().for_each(|(name, value)| encoder::field(name.as_bytes(), value.as_bytes(), &mut block));
    block
}

fn sent(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::append(kind, flags, stream, payload, &mut bytes);
    bytes
}

fn get(stream: u32) -> Vec<u8> {
    sent(frame::HEADERS, frame::END_HEADERS | frame::END_STREAM, stream, &block(GET))
}

fn post(stream: u32, body: &[u8]) -> Vec<u8> {
    let head = sent(frame::HEADERS, frame::END_HEADERS, stream, &block(POST));
    [head, sent(frame::DATA, frame::END_STREAM, stream, body)].concat()
}

fn window_setting(window: u32) -> Vec<u8> {
    sent(frame::SETTINGS, 0, 0, &[&[0, 4][..], &window.to_be_bytes()].concat())
}

fn data(frames: &[SentFrame], stream: u32) -> usize {
    let is_data = |frame: &&SentFrame| frame.kind == frame::DATA && frame.stream == stream;
    frames.iter().filter(is_data).map(|frame| frame.payload.len()).sum()
}

#[test]
fn answers_the_requests_of_a_read_together() {
    let mut simulation = Simulation::new(700);
    let received: Vec<u8> = (0..32).flat_map(|index| get(2 * index + 1)).collect();
    let answers = simulation.receive(&received);
    assert_eq!(answers.len(), 64);
    for (index, pair) in answers.chunks(2).enumerate() {
        let id = 2 * u32::try_from(index).unwrap() + 1;
        assert_eq!((pair[0].kind, pair[0].flags, pair[0].stream), (frame::HEADERS, frame::END_HEADERS, id));
        assert_eq!((pair[1].kind, pair[1].flags, pair[1].stream), (frame::DATA, frame::END_STREAM, id));
        assert_eq!(pair[1].payload, &simulation.body[..]);
    }
    let fields = simulation.fields(&answers[0].payload);
    assert_eq!(
        fields,
        ":status=200\ndate=Sun, 06 Nov 1994 08:49:37 GMT\ncontent-type=application/json\ncontent-length=700\n"
    );
    assert!(simulation.requests.iter().all(|request| request == "Get /p 0"));
}

#[test]
fn requests_mean_the_same_in_any_pieces() {
    let received = [get(1), post(3, b"{\"a\":1}"), get(5)].concat();
    let mut whole = Simulation::new(10);
    let expected = whole.receive(&received);
    let mut pieces = Simulation::new(10);
    let mut answers: Vec<SentFrame> = received.iter().flat_map(|byte| pieces.receive(&[*byte])).collect();
    // A body that does not arrive with its head is allowed to be long.
    answers.retain(|frame| frame.kind != frame::WINDOW_UPDATE);
    assert_eq!(answers, expected);
    assert_eq!(pieces.requests, ["Get /p 0", "Post /p 7", "Get /p 0"]);
}

#[test]
fn sends_what_the_windows_allow() {
    let mut simulation = Simulation::new(200_000);
    // The window of the connection is 65,535 bytes.
    let answers = simulation.receive(&[window_setting(1 << 20), get(1)].concat());
    assert_eq!(data(&answers, 1), 65_535);
    assert_eq!(simulation.http2.take_counts().window_stalls, 1);
    let answers = simulation.receive(&sent(frame::WINDOW_UPDATE, 0, 0, &1_000_u32.to_be_bytes()));
    assert_eq!(data(&answers, 1), 1_000);
    let answers = simulation.receive(&sent(frame::WINDOW_UPDATE, 0, 0, &1_000_000_u32.to_be_bytes()));
    assert_eq!(data(&answers, 1), 200_000 - 66_535);
    assert_eq!(answers.last().map(|frame| frame.flags), Some(frame::END_STREAM));
    assert!(simulation.http2.streams.table.is_empty());
}

/// RFC 9113 6.9.2: a lowered initial window makes those of open streams negative.
#[test]
fn a_lowered_window_counts_for_open_streams() {
    let mut simulation = Simulation::new(1_000);
    let answers = simulation.receive(&[window_setting(300), get(1)].concat());
    assert_eq!(data(&answers, 1), 300);
    assert_eq!(data(&simulation.receive(&window_setting(100)), 1), 0);
    assert_eq!(data(&simulation.receive(&sent(frame::WINDOW_UPDATE, 0, 1, &200_u32.to_be_bytes())), 1), 0);
    assert_eq!(data(&simulation.receive(&sent(frame::WINDOW_UPDATE, 0, 1, &50_u32.to_be_bytes())), 1), 50);
    assert_eq!(data(&simulation.receive(&window_setting(1_000)), 1), 650);
}

#[test]
fn streams_take_turns() {
    let mut simulation = Simulation::new(100_000);
    simulation.receive(&[window_setting(0), get(1), get(3)].concat());
    let answers = simulation.receive(&window_setting(1 << 20));
    let turns: Vec<u32> =
        answers.iter().filter(|frame| frame.kind == frame::DATA).map(|frame| frame.stream).collect();
    assert_eq!(turns, [1, 3, 1, 3], "65,535 bytes in frames of 16 KiB");
}

#[test]
fn a_large_header_block_is_continued() {
    let mut simulation = Simulation::new(10);
    let context = ResponseContext::HTTP2;
    let value = "y".repeat(40_000);
    simulation.buffer.extend_from_slice(&get(1));
    let event = simulation.http2.advance(&mut simulation.buffer, 0, &mut simulation.writer.bytes);
    assert_eq!(event, Http2Event::Request);
    let fields = format!("x: {value}\r\n");
    simulation.writer.respond(context, Status(200), None, fields.as_bytes(), Body::Copy(b"body"));
    simulation.respond(0);
    simulation.http2.streams.flush(0, &mut simulation.writer.bytes);
    let answers = frames(&std::mem::take(&mut simulation.writer.bytes));
    let kinds: Vec<(u8, u8)> = answers.iter().map(|frame| (frame.kind, frame.flags)).collect();
    let (headers, last) = ((frame::HEADERS, 0), (frame::CONTINUATION, frame::END_HEADERS));
    assert_eq!(kinds, [headers, (frame::CONTINUATION, 0), last, (frame::DATA, frame::END_STREAM)]);
    let blocks: Vec<u8> = answers[..3].iter().flat_map(|frame| frame.payload.clone()).collect();
    assert!(simulation.fields(&blocks).contains(&value));
}

/// The sum of the window updates of a stream.
fn increments(answers: &[SentFrame], stream: u32) -> u32 {
    let updates = answers.iter().filter(|frame| frame.kind == frame::WINDOW_UPDATE && frame.stream == stream);
    updates.map(|frame| frame::increment(&frame.payload)).sum()
}

/// Uploads bodies in turns of one frame a stream, within the windows. Returns the memory that they took.
fn upload(lengths: &[usize], has_length: bool) -> usize {
    let mut simulation = Simulation::new(10);
    let mut connection = HTTP2_CONNECTION_WINDOW;
    let mut windows = vec![HTTP2_STREAM_WINDOW; lengths.len()];
    let mut left = lengths.to_vec();
    let mut memory = 0;
    let stream = |at: usize| 2 * at as u32 + 1;
    let learn = |answers: &[SentFrame], connection: &mut u32, windows: &mut [u32]| {
        *connection += increments(answers, 0);
        for (at, window) in windows.iter_mut().enumerate() {
            *window += increments(answers, stream(at));
        }
    };
    for (at, bytes) in lengths.iter().enumerate() {
        let length = bytes.to_string();
        let fields = [POST, &[("content-length", length.as_str())]].concat();
        let head = block(if has_length { &fields } else { POST });
        let answers = simulation.receive(&sent(frame::HEADERS, frame::END_HEADERS, stream(at), &head));
        learn(&answers, &mut connection, &mut windows);
    }
    while left.iter().any(|left| *left > 0) {
        let mut progress = 0;
        for at in 0..left.len() {
            let part = left[at].min(windows[at] as usize).min(connection as usize).min(16 * 1024);
            if part == 0 {
                continue;
            }
            left[at] -= part;
            windows[at] -= part as u32;
            connection -= part as u32;
            progress += part;
            let flags = if left[at] == 0 { frame::END_STREAM } else { 0 };
            let answers = simulation.receive(&sent(frame::DATA, flags, stream(at), &vec![b'x'; part]));
            learn(&answers, &mut connection, &mut windows);
            memory = memory.max(simulation.http2.streams.table.body_bytes());
        }
        assert!(progress > 0, "every upload waits for a window: {left:?}");
    }
    assert_eq!(simulation.requests.len(), lengths.len());
    assert!(simulation.refused.is_empty());
    memory
}

#[test]
fn uploads_that_exceed_the_window_together_wait_and_do_not_block_each_other() {
    let reserved = (LIMITS.streams_max * HTTP2_STREAM_WINDOW as usize) + HTTP2_BODIES_WINDOW as usize;
    for has_length in [true, false] {
        for lengths in [
            vec![100_000; 50],
            vec![BODY_BYTES_MAX; 3],
            vec![HTTP2_STREAM_WINDOW as usize; 100],
            (1..=100).map(|at| at * 10_007 % 70_000 + 1).collect(),
            [vec![BODY_BYTES_MAX], vec![20_000; 98], vec![BODY_BYTES_MAX]].concat(),
        ] {
            let memory = upload(&lengths, has_length);
            // The capacity of a buffer is up to twice what is in it.
            assert!(memory <= 2 * reserved, "{memory} bytes for {} bodies", lengths.len());
        }
    }
}

#[test]
fn bodies_that_were_sent_before_the_settings_arrived_do_not_block_each_other() {
    let mut simulation = Simulation::new(10);
    let streams = [1, 3, 5];
    let mut answers = Vec::new();
    for stream in streams {
        let head = sent(frame::HEADERS, frame::END_HEADERS, stream, &block(POST));
        answers.append(&mut simulation.receive(&head));
        for _ in 0..2 {
            answers.append(&mut simulation.receive(&sent(frame::DATA, 0, stream, &[b'x'; 10_000])));
        }
    }
    let mut left = [BODY_BYTES_MAX - 20_000; 3];
    while left.iter().any(|left| *left > 0) {
        let connection = i64::from(HTTP2_CONNECTION_WINDOW + increments(&answers, 0));
        let sent_bytes: usize = left.iter().map(|left| BODY_BYTES_MAX - left).sum();
        let at = left.iter().zip(streams).position(|(left, stream)| {
            let window = HTTP2_STREAM_WINDOW + increments(&answers, stream);
            *left > 0 && (BODY_BYTES_MAX - left) < window as usize
        });
        let at = at.expect("one upload may go on");
        let part = left[at].min(8_000).min((connection - sent_bytes as i64).max(0) as usize);
        assert!(part > 0, "the window of the connection is never empty: {left:?}");
        left[at] -= part;
        let flags = if left[at] == 0 { frame::END_STREAM } else { 0 };
        answers.append(&mut simulation.receive(&sent(frame::DATA, flags, streams[at], &vec![b'x'; part])));
    }
    assert_eq!(simulation.requests.len(), 3);
}

#[test]
fn a_slow_upload_does_not_stop_others() {
    let mut simulation = Simulation::new(10);
    let fields = [POST, &[("content-length", "100000")]].concat();
    simulation.receive(&sent(frame::HEADERS, frame::END_HEADERS, 1, &block(&fields)));
    simulation.receive(&sent(frame::DATA, 0, 1, &[b'x'; 10]));
    for stream in (3..103).step_by(2) {
        let answers = simulation.receive(&sent(frame::HEADERS, frame::END_HEADERS, stream, &block(&fields)));
        assert!(increments(&answers, stream) > 100_000, "stream {stream} may send its body");
        for part in 0..10 {
            let flags = if part == 9 { frame::END_STREAM } else { 0 };
            simulation.receive(&sent(frame::DATA, flags, stream, &[b'x'; 10_000]));
        }
    }
    assert_eq!(simulation.requests.len(), 50);
}

#[test]
fn refuses_bodies_over_the_limit_and_frees_the_window() {
    let mut simulation = Simulation::new(10);
    let open = |stream| sent(frame::HEADERS, frame::END_HEADERS, stream, &block(POST));
    let part = vec![b'x'; 16 * 1024];
    let mut answers = simulation.receive(&open(1));
    assert_eq!(increments(&answers, 1), HTTP2_BODIES_WINDOW);
    for _ in 0..BODY_BYTES_MAX / part.len() {
        answers.append(&mut simulation.receive(&sent(frame::DATA, 0, 1, &part)));
    }
    assert!(answers.iter().all(|frame| frame.kind == frame::WINDOW_UPDATE));
    answers.append(&mut simulation.receive(&sent(frame::DATA, 0, 1, b"y")));
    assert_eq!(simulation.refused, [ParseError::BodyTooLarge]);
    assert!(answers.iter().any(|frame| frame.kind == frame::RST_STREAM && frame.payload == [0; 4]));
    assert_eq!(increments(&answers, 0), BODY_BYTES_MAX as u32 + 1, "all is free again");
    // The rest of the body is in flight.
    assert_eq!(simulation.receive(&sent(frame::DATA, frame::END_STREAM, 1, b"z")), []);
    let length = (BODY_BYTES_MAX + 1).to_string();
    let fields = [POST, &[("content-length", length.as_str())]].concat();
    simulation.receive(&sent(frame::HEADERS, frame::END_HEADERS, 3, &block(&fields)));
    assert_eq!(simulation.refused.len(), 2, "before the first byte of the body");
    simulation.receive(&post(5, b"{}"));
    assert_eq!(simulation.requests, ["Post /p 2"]);
}

#[test]
fn padding_is_returned_to_the_windows() {
    let mut simulation = Simulation::new(10);
    simulation.receive(&sent(frame::HEADERS, frame::END_HEADERS, 1, &block(POST)));
    let answers =
        simulation.receive(&sent(frame::DATA, frame::PADDED, 1, &[&[3][..], b"ab", &[0; 3]].concat()));
    assert_eq!(answers.len(), 1);
    assert_eq!((answers[0].stream, frame::increment(&answers[0].payload)), (1, 4));
}

#[test]
fn malformed_requests_are_reset_and_others_answered() {
    let mut simulation = Simulation::new(10);
    let with = |fields: &[(&str, &str)]| block(&[GET, fields].concat());
    let cases = [
        with(&[("Upper", "a")]),
        with(&[("connection", "close")]),
        with(&[("te", "gzip")]),
        with(&[(":path", "/")]),
        with(&[("x", "a\nb")]),
        with(&[("x", " a")]),
        with(&[("content-length", "5")]),
        with(&[("content-length", "0x1")]),
        block(&GET[1..]),
        block(&[&GET[..2], &[(":path", "/ HTTP/1.1")]].concat()),
        block(&[&GET[..2], &[(":path", "")]].concat()),
        block(&[&[(":method", "G,T")], &GET[1..]].concat()),
        block(&[&[(":method", "")], &GET[1..]].concat()),
        block(&[&[(":scheme", "ht tp")], &GET[..1], &GET[2..]].concat()),
        block(&[&[(":scheme", "")], &GET[..1], &GET[2..]].concat()),
    ];
    for (index, block) in cases.iter().enumerate() {
        let stream = 2 * u32::try_from(index).unwrap() + 1;
        let flags = frame::END_HEADERS | frame::END_STREAM;
        let answers = simulation.receive(&sent(frame::HEADERS, flags, stream, block));
        assert_eq!(answers.len(), 1, "{index}");
        assert_eq!((answers[0].kind, answers[0].payload[3]), (frame::RST_STREAM, 1), "{index}");
    }
    assert_eq!(simulation.receive(&get(101)).len(), 2);
    assert_eq!(simulation.http2.take_counts().resets_by_server, cases.len() as u64);
}

/// Only `OPTIONS` may be about the server as a whole (RFC 9113 8.3.1).
#[test]
fn paths_without_a_slash_are_refused_except_the_asterisk_of_options() {
    let mut simulation = Simulation::new(10);
    let cases =
        [("GET", "*", true), ("OPTIONS", "*?q", true), ("OPTIONS", "x", true), ("OPTIONS", "*", false)];
    for (stream, (method, path, is_refused)) in (1..).step_by(2).zip(cases) {
        let fields = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "a")];
        let flags = frame::END_HEADERS | frame::END_STREAM;
        simulation.receive(&sent(frame::HEADERS, flags, stream, &block(&fields)));
        let refused = std::mem::take(&mut simulation.refused);
        assert_eq!(refused, vec![ParseError::BadRequest; usize::from(is_refused)], "{method} {path}");
    }
}

/// They were sent before the peer knew (RFC 9113 5.1).
#[test]
fn data_for_streams_that_were_reset_is_ignored() {
    let mut simulation = Simulation::new(10);
    let malformed = block(&[POST, &[("Upper", "a")]].concat());
    for stream in [1, 3, 5, 7] {
        let answers = simulation.receive(&sent(frame::HEADERS, frame::END_HEADERS, stream, &malformed));
        assert_eq!((answers.len(), answers[0].kind), (1, frame::RST_STREAM));
    }
    for stream in [1, 3, 5, 7] {
        let answers = simulation.receive(&sent(frame::DATA, 0, stream, b"x"));
        let is_refusal = |frame: &SentFrame| [frame::RST_STREAM, frame::GOAWAY].contains(&frame.kind);
        assert!(!answers.iter().any(is_refusal), "{stream}");
    }
    assert_eq!(simulation.receive(&get(9)).len(), 2);
}

#[test]
fn limits_of_a_head_are_those_of_http_1() {
    let most: Vec<(&str, &str)> = (0..96).map(|_| ("x", "y")).collect();
    let mut simulation = Simulation::new(10);
    let head = block(&[GET, &most].concat());
    simulation.receive(&sent(frame::HEADERS, frame::END_HEADERS | frame::END_STREAM, 1, &head));
    assert_eq!((simulation.refused, simulation.requests.len()), (Vec::new(), 1));
    let long = "a".repeat(LIMITS.head_bytes_max);
    let many: Vec<(&str, &str)> = (0..97).map(|_| ("x", "y")).collect();
    for (fields, expected) in [
        ([GET, &[("x", long.as_str())]].concat(), ParseError::HeadTooLarge),
        ([GET, &many].concat(), ParseError::HeadTooLarge),
        ([&GET[..2], &GET[3..], &[(":path", &long[..8 * 1024 + 1])]].concat(), ParseError::TargetTooLong),
        ([GET, &[("host", "b")]].concat(), ParseError::BadRequest),
        ([GET, &[("expect", "tea")]].concat(), ParseError::UnknownExpectation),
        ([&GET[..3], &[(":authority", "a b")]].concat(), ParseError::BadRequest),
    ] {
        let mut simulation = Simulation::new(10);
        let flags = frame::END_HEADERS | frame::END_STREAM;
        let answers = simulation.receive(&sent(frame::HEADERS, flags, 1, &block(&fields)));
        assert_eq!(simulation.refused, [expected]);
        assert_eq!(answers.len(), 2);
        simulation.receive(&get(3));
        assert_eq!(simulation.requests.len(), 1, "the connection goes on after {expected:?}");
    }
}

#[test]
fn a_request_may_have_no_authority() {
    let mut simulation = Simulation::new(10);
    let flags = frame::END_HEADERS | frame::END_STREAM;
    simulation.receive(&sent(frame::HEADERS, flags, 1, &block(&GET[..3])));
    assert_eq!((simulation.requests.len(), simulation.refused.len()), (1, 0));
}

#[test]
fn floods_end_the_connection() {
    let calm = Some(ErrorCode::EnhanceYourCalm as u32);
    let open = sent(frame::HEADERS, frame::END_HEADERS, 1, &block(POST));
    let floods: [(&str, Vec<u8>); 7] = [
        ("PING", sent(frame::PING, 0, 0, &[0; 8])),
        ("SETTINGS", sent(frame::SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100])),
        ("PRIORITY", sent(frame::PRIORITY, 0, 3, &[0; 5])),
        ("WINDOW_UPDATE", sent(frame::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("empty DATA", sent(frame::DATA, 0, 1, b"")),
        ("unknown", sent(22, 0, 0, &[0; 8])),
        ("GOAWAY", sent(frame::GOAWAY, 0, 0, &[0; 8])),
    ];
    for (name, frame) in floods {
        let mut simulation = Simulation::new(10);
        simulation.receive(&open);
        let flood = frame.repeat(HTTP2_IDLE_FRAMES_MAX as usize + 1);
        let answers = simulation.receive(&flood);
        assert_eq!(simulation.goaway(&answers), calm, "{name}");
        assert!(simulation.is_closed, "{name}");
    }
    let mut simulation = Simulation::new(10);
    let start = sent(frame::HEADERS, frame::END_STREAM, 1, &block(GET));
    let flood = sent(frame::CONTINUATION, 0, 1, b"").repeat(HTTP2_CONTINUATIONS_MAX + 1);
    let answers = simulation.receive(&[start, flood].concat());
    assert_eq!(simulation.goaway(&answers), calm);
    // Fields of 64 KiB and more from a block of 16 KiB.
    let mut bomb = block(GET);
    bomb.extend_from_slice(&[0x40, 1, b'x', 0x7f, 0xa1, 0x1e]);
    bomb.extend_from_slice(&[b'a'; 4000]);
    bomb.extend_from_slice(&[0xbe; 12_000]);
    let mut simulation = Simulation::new(10);
    let answers = simulation.receive(&sent(frame::HEADERS, frame::END_HEADERS, 1, &bomb));
    assert_eq!(simulation.goaway(&answers), calm);
}

#[test]
fn resets_beyond_half_of_the_streams_end_the_connection() {
    let reset = |stream| sent(frame::RST_STREAM, 0, stream, &8_u32.to_be_bytes());
    let mut simulation = Simulation::new(10);
    let mut stream = 1;
    while !simulation.is_closed {
        simulation.receive(&[get(stream), reset(stream)].concat());
        stream += 2;
        assert!(stream < 1_000, "rapid resets go on");
    }
    assert!(u64::from(stream) > HTTP2_RESETS_MAX * 2, "{stream}");
    let mut simulation = Simulation::new(10);
    for stream in (1..4_000).step_by(4) {
        simulation.receive(&[get(stream), get(stream + 2), reset(stream)].concat());
    }
    assert!(!simulation.is_closed, "a client may cancel half of its requests");
}

#[test]
fn an_unwanted_head_is_answered_before_its_body() {
    let mut simulation = Simulation::new(10);
    simulation.http2.judges_heads = true;
    let excluded = block(&[(":method", "POST"), (":scheme", "http"), (":path", "/excluded")]);
    let head = sent(frame::HEADERS, frame::END_HEADERS, 1, &excluded);
    let kinds: Vec<u8> = simulation.receive(&head).iter().map(|frame| frame.kind).collect();
    assert_eq!(kinds, [frame::HEADERS, frame::DATA, frame::RST_STREAM]);
    // What was under way is ignored, and others are waited for.
    assert!(simulation.receive(&sent(frame::DATA, frame::END_STREAM, 1, b"late")).is_empty());
    let answers = simulation.receive(&sent(frame::HEADERS, frame::END_HEADERS, 3, &block(POST)));
    assert!(answers.iter().all(|frame| frame.kind == frame::WINDOW_UPDATE));
    assert_eq!(simulation.receive(&sent(frame::DATA, frame::END_STREAM, 3, b"body")).len(), 2);
    assert_eq!(simulation.requests, ["Post /excluded 0", "Post /p 4"]);
    assert_eq!(simulation.http2.streams.table.len(), 0);
}

#[test]
fn slow_streams_end_without_the_connection() {
    let mut simulation = Simulation::new(50_000);
    let opened = sent(frame::HEADERS, frame::END_HEADERS, 1, &block(POST));
    simulation.receive(&[window_setting(0), opened, get(3)].concat());
    assert_eq!(simulation.http2.streams.deadline(0, WAITS), Some(WAITS.write_ticks));
    simulation.now = WAITS.write_ticks + 1;
    let answers = simulation.receive(b"");
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert_eq!((answers[0].kind, answers[0].stream, answers[0].payload[3]), (frame::RST_STREAM, 3, 8));
    simulation.now = WAITS.body_ticks + 1;
    let answers = simulation.receive(b"");
    assert_eq!((answers[0].kind, answers[0].stream), (frame::HEADERS, 1));
    assert_eq!(simulation.refused, [ParseError::Timeout]);
    assert!(!simulation.is_closed);
}

#[test]
fn later_streams_are_ignored_after_the_end_was_announced() {
    let mut simulation = Simulation::new(10);
    simulation.receive(&[window_setting(5), get(1)].concat());
    simulation.http2.shut_down(&mut simulation.writer.bytes);
    let answers = simulation.receive(&[get(3), post(5, b"{}")].concat());
    assert_eq!((simulation.goaway(&answers), simulation.requests.len()), (Some(0), 1));
    assert!(!simulation.http2.is_finished());
    let answers = simulation.receive(&window_setting(100));
    assert_eq!(data(&answers, 1), 5);
    assert!(simulation.http2.is_finished());
}

#[test]
fn requests_wait_while_much_is_to_be_sent() {
    let mut simulation = Simulation::new(16 * 1024);
    let received: Vec<u8> = (0..40).flat_map(|index| get(2 * index + 1)).collect();
    simulation.receive(&[window_setting(0), received].concat());
    let answered = simulation.requests.len();
    assert!((16..20).contains(&answered), "{answered} of 16 KiB");
    simulation.receive(&sent(frame::WINDOW_UPDATE, 0, 0, &(1_u32 << 24).to_be_bytes()));
    simulation.receive(&window_setting(1 << 20));
    assert_eq!(simulation.requests.len(), 40);
    assert!(simulation.http2.streams.table.is_empty());
}

/// Any bytes: no panic, only whole frames, and bounded memory.
#[test]
fn random_frames_keep_the_connection_within_its_bounds() {
    let mut state = 7_u64;
    let mut random = |bound: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % bound
    };
    for _ in 0..300 {
        let mut simulation = Simulation::new(usize::try_from(random(40_000)).unwrap());
        while !simulation.is_closed && random(400) > 0 {
            let stream = u32::try_from(random(40)).unwrap();
            let flags = u8::try_from(random(64)).unwrap();
            let bytes = match random(6) {
                0 => get(stream | 1),
                1 => post(stream | 1, b"{}"),
                2 => window_setting(u32::try_from(random(70_000)).unwrap()),
                3 => sent(frame::WINDOW_UPDATE, 0, stream, &[0, 0, 1, 1]),
                4 => sent(frame::DATA, flags & 1, stream | 1, &[b'x'; 100]),
                _ => {
                    let kind = u8::try_from(random(11)).unwrap();
                    let payload: Vec<u8> =
                        (0..random(20)).map(|_| u8::try_from(random(256)).unwrap()).collect();
                    sent(kind, flags, stream, &payload)
                }
            };
            simulation.receive(&bytes);
            assert!(simulation.http2.streams.table.len() <= LIMITS.streams_max);
        }
    }
}
