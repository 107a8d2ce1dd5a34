use std::time::{Duration, UNIX_EPOCH};

use super::*;

const KEEP: ResponseContext = ResponseContext::PLAIN;

fn output() -> ResponseWriter {
    let mut output = ResponseWriter::default();
    output.set_date(UNIX_EPOCH + Duration::from_secs(784_111_777));
    output
}

#[test]
fn copies_a_small_body() {
    let mut output = output();
    output.respond(KEEP, Status(200), Some(ContentType::Json), b"vary: Origin\r\n", Body::Copy(b"{}"));
    assert_eq!(
        String::from_utf8_lossy(&output.bytes),
        "HTTP/1.1 200 OK\r\ndate: Sun, 06 Nov 1994 08:49:37 GMT\r\ncontent-type: application/json\r\n\
         vary: Origin\r\ncontent-length: 2\r\n\r\n{}"
    );
    assert!(output.tail.is_none() && !output.close);
}

#[test]
fn fills_in_the_length_of_a_body_rendered_in_place() {
    let mut output = output();
    output.respond_with(KEEP, Status(200), None, b"", |out| out.extend_from_slice(&[b'x'; 1234]));
    let text = String::from_utf8_lossy(&output.bytes);
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.ends_with("content-length:       1234"), "{head}");
    assert_eq!(body.len(), 1234);
}

#[test]
fn a_shared_end_is_part_of_the_body() {
    let end = Bytes::from_static(b"defg");
    let respond = |context| {
        let mut output = output();
        output.respond_with_end(context, Status(200), None, b"", |out| {
            out.extend_from_slice(b"abc");
            Some(end.clone())
        });
        output
    };
    let got = respond(KEEP);
    let text = String::from_utf8_lossy(&got.bytes);
    assert!(text.contains("content-length:          7\r\n") && text.ends_with("\r\n\r\nabc"), "{text}");
    assert_eq!(got.tail.as_ref().map(|tail| tail.as_ptr()), Some(end.as_ptr()), "it is not copied");
    let head = respond(ResponseContext { head: true, ..KEEP });
    let text = String::from_utf8_lossy(&head.bytes);
    assert!(head.tail.is_none() && text.ends_with(" 7\r\n\r\n"), "{text}");
    // In HTTP/2 it is framed with the rest.
    let framed = respond(ResponseContext::HTTP2);
    assert!(framed.tail.is_none() && framed.bytes[framed.body_start..] == *b"abcdefg");
}

#[test]
fn head_response_has_the_fields_of_get_and_no_body() {
    for build in [false, true] {
        let mut output = output();
        let context = ResponseContext { head: true, ..KEEP };
        if build {
            output.respond_with(context, Status(200), None, b"", |out| out.extend_from_slice(b"abc"));
        } else {
            output.respond(context, Status(200), None, b"", Body::Copy(b"abc"));
        }
        let text = String::from_utf8_lossy(&output.bytes);
        assert!(text.trim_end().ends_with(" 3") && text.ends_with("\r\n\r\n"), "{text}");
    }
}

#[test]
fn status_204_and_304_have_no_length_and_no_body() {
    for status in [204, 304] {
        let mut output = output();
        output.respond(KEEP, Status(status), None, b"etag: \"a\"\r\n", Body::Copy(b"x"));
        let text = String::from_utf8_lossy(&output.bytes);
        assert!(text.ends_with("etag: \"a\"\r\n\r\n") && !text.contains("content-length"), "{text}");
    }
}

#[test]
fn sends_a_large_body_without_a_copy() {
    let mut output = output();
    let body = Bytes::from(vec![7; TAIL_BYTES_MIN * 3]);
    output.respond(KEEP, Status(200), None, b"", Body::Ready(&body));
    let tail = output.tail.expect("a tail");
    assert_eq!(tail.len(), TAIL_BYTES_MIN * 2);
    assert_eq!(tail.as_ptr(), body[TAIL_BYTES_MIN..].as_ptr());
    assert!(output.bytes.ends_with(&body[..TAIL_BYTES_MIN]));
}

#[test]
fn cached_response_equals_the_rendered_one() {
    let (body, fields) = (Bytes::from(vec![b'7'; TAIL_BYTES_MIN * 3]), b"etag: \"a\"\r\n");
    let mut output = output();
    output.is_only_response = true;
    let mut responses = Vec::new();
    let mut addresses = Vec::new();
    for (round, seconds) in [(0, 0), (1, 0), (2, 0), (3, 0), (4, 1), (5, 1), (6, 1)] {
        output.set_date(UNIX_EPOCH + Duration::from_secs(784_111_777 + seconds));
        output.respond(KEEP, Status(200), Some(ContentType::Json), fields, Body::Ready(&body));
        let (mut bytes, tail) = (std::mem::take(&mut output.bytes), output.tail.take().unwrap());
        // The second request renders into one buffer; from the third on, nothing is copied.
        assert_eq!(bytes.is_empty(), ![0, 4].contains(&round), "{round}");
        addresses.push(tail.as_ptr());
        bytes.extend_from_slice(&tail);
        responses.push(bytes);
    }
    assert!(responses[0].ends_with(&body));
    assert!(responses[..4].iter().all(|response| *response == responses[0]));
    assert!(responses[0] != responses[4]);
    assert!(responses[5..].iter().all(|response| *response == responses[4]));
    assert!(addresses[1] == addresses[2] && addresses[2] == addresses[3] && addresses[5] == addresses[6]);
    // Responses to HEAD and with `Connection: close` are not cached.
    for context in [ResponseContext { head: true, ..KEEP }, ResponseContext { keep_alive: false, ..KEEP }] {
        output.respond(context, Status(200), Some(ContentType::Json), fields, Body::Ready(&body));
        assert!(!std::mem::take(&mut output.bytes).is_empty());
    }
    output.clear_cache();
    output.respond(KEEP, Status(200), Some(ContentType::Json), fields, Body::Ready(&body));
    assert!(!output.bytes.is_empty());
}

#[test]
fn announces_whether_the_connection_persists() {
    for (keep_alive, version, line, close) in [
        (true, HttpVersion::Http11, None, false),
        (true, HttpVersion::Http10, Some("connection: keep-alive\r\n"), false),
        (false, HttpVersion::Http11, Some("connection: close\r\n"), true),
        (false, HttpVersion::Http10, Some("connection: close\r\n"), true),
    ] {
        let mut output = output();
        output.respond(
            ResponseContext { head: false, keep_alive, version },
            Status(200),
            None,
            b"",
            Body::Empty,
        );
        let text = String::from_utf8_lossy(&output.bytes).into_owned();
        assert_eq!(output.close, close);
        match line {
            Some(line) => assert!(text.contains(line), "{text}"),
            None => assert!(!text.contains("connection"), "{text}"),
        }
    }
}

#[test]
fn writes_the_size_of_a_chunk_and_no_empty_chunk() {
    let mut out = b"x".to_vec();
    chunk(&mut out, |out| out.extend_from_slice(&[b'y'; 17]));
    chunk(&mut out, |_| {});
    assert_eq!(out, [b"x00000011\r\n".as_slice(), &[b'y'; 17], b"\r\n"].concat());
}

#[test]
fn error_response_is_a_json_object() {
    let mut output = output();
    output.reject(KEEP, ParseError::HeadTooLarge, b"");
    let text = String::from_utf8_lossy(&output.bytes).into_owned();
    assert!(text.starts_with("HTTP/1.1 431 ") && output.close, "{text}");
    assert!(text.ends_with("{\"detail\":\"Request header fields too large\"}"), "{text}");
}
