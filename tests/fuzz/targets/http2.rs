//! Fuzz target: an HTTP/2 connection with any frames of the client, in any pieces.
use bytes::{Bytes, BytesMut};
use edge_proxy::http::h2::connection::Http2;
use edge_proxy::http::h2::event::{Http2Event, Http2Limits, WaitLimits, WrittenResponse};
use edge_proxy::http::h2::frame::{self, FrameHead};
use edge_proxy::http::h2::outgoing::SharedTail;
use edge_proxy::http::hpack::decoder::HpackDecoder;
use edge_proxy::http::{Body, ContentType, ResponseWriter, Status};
use edge_proxy::limits::{BATCH_BYTES_MAX, HTTP2_OUTGOING_BYTES_MAX};

const LIMITS: Http2Limits = Http2Limits { head_bytes_max: 16 * 1024, streams_max: 100 };
const WAITS: WaitLimits = WaitLimits { body_ticks: 100, write_ticks: 100 };

/// With this, all streams together never have so much to send that requests wait.
const BODY_STEP: usize = 10;

/// The client's frames after its preface. The same requests come out and the same is sent, however the frames
/// are cut into reads; what is sent is whole frames with valid header blocks.
pub fn http2(data: &[u8]) {
    let body = Bytes::from(vec![b'x'; data.first().map_or(0, |byte| usize::from(*byte) * BODY_STEP)]);
    let whole = run(&[data], &body);
    let number = data.iter().take(2).fold(0, |number, byte| number << 8 | usize::from(*byte));
    for place in [number >> 8, number, data.len() / 2] {
        let (first, second) = data.split_at(place % data.len().max(1));
        let cut = run(&[first, second], &body);
        // A flood may end one of them earlier: what is sent in between counts as progress.
        let common = whole.0.len().min(cut.0.len());
        assert_eq!(whole.0[..common], cut.0[..common], "a cut between two reads changed what was read");
    }
    check(&whole.1);
}

/// The requests, as text, and what was sent. Half of the bodies need a decision, and half of those are unwanted.
fn run(reads: &[&[u8]], body: &Bytes) -> (Vec<String>, Vec<u8>) {
    let (mut writer, mut sent) = (ResponseWriter::default(), Vec::new());
    let mut http2 = Http2::new(LIMITS, &mut writer.bytes);
    http2.judges_heads = !body.len().is_multiple_of(2 * BODY_STEP);
    let (mut requests, mut buffer) = (Vec::new(), BytesMut::from(frame::PREFACE));
    frame::append(frame::SETTINGS, 0, 0, b"", &mut sent);
    buffer.extend_from_slice(&std::mem::take(&mut sent));
    for (now, read) in (0..).zip(reads) {
        buffer.extend_from_slice(read);
        loop {
            let mut event = http2.expire(now, WAITS, &mut writer.bytes);
            if event == Http2Event::NeedBytes {
                event = http2.advance(&mut buffer, now, &mut writer.bytes);
            }
            let start = writer.bytes.len();
            match event {
                Http2Event::Head if http2.request().expect("a head").path.len().is_multiple_of(2) => {
                    if http2.accept(now, &mut writer.bytes) == Http2Event::Close {
                        sent.append(&mut writer.bytes);
                        return (requests, sent);
                    }
                    continue;
                }
                Http2Event::Head | Http2Event::Request => {
                    let request = http2.request().expect("a request");
                    requests.push(format!("{request:?}"));
                    let context = request.context();
                    writer.respond(context, Status(200), Some(ContentType::Json), b"", Body::Ready(body));
                }
                Http2Event::Refused(error) => {
                    let (context, _) = http2.refused().expect("a request");
                    requests.push(format!("{error:?}"));
                    writer.reject(context, error, b"");
                }
                Http2Event::NeedBytes => {
                    let has_more = http2.streams.flush(now, &mut writer.bytes);
                    let is_large = writer.bytes.len() >= BATCH_BYTES_MAX;
                    sent.append(&mut writer.bytes);
                    bounded(&http2, body.len());
                    if has_more || is_large || http2.streams.waiting().is_some() {
                        continue;
                    }
                    break;
                }
                Http2Event::Close => {
                    sent.append(&mut writer.bytes);
                    return (requests, sent);
                }
            }
            let tail = writer.tail.take().map(|bytes| SharedTail { bytes, owner: std::rc::Rc::new(()) });
            let body_start = writer.body_start;
            let bytes = &mut writer.bytes;
            http2.respond(WrittenResponse { bytes, start, body_start, tail, is_last: true }, now);
        }
    }
    (requests, sent)
}

/// The memory of a connection, beside the request bodies that its window allows.
fn bounded(http2: &Http2, body_bytes: usize) {
    let table = &http2.streams.table;
    assert!(table.len() <= LIMITS.streams_max + 1, "{} streams", table.len());
    let outgoing = table.outgoing_bytes();
    assert!(outgoing <= HTTP2_OUTGOING_BYTES_MAX + 2 * body_bytes + 1024, "{outgoing} bytes wait");
}

/// Whole frames, whose header blocks decode.
fn check(mut sent: &[u8]) {
    let mut decoder = HpackDecoder::default();
    while let Some(head) = FrameHead::read(sent) {
        let payload = sent.get(9..9 + head.length).expect("a whole frame");
        if head.kind == frame::HEADERS {
            let mut names = 0;
            decoder
                .decode(payload, |_, _| {
                    names += 1;
                    true
                })
                .expect("a valid block");
            assert!(names > 0);
        }
        sent = &sent[9 + head.length..];
    }
    assert!(sent.is_empty());
}
