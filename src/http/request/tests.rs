//! Tables of valid and invalid requests, each read whole, byte by byte and in pieces.

use super::*;
use crate::limits::{BODY_BYTES_MAX, CACHED_HEAD_BYTES_MAX, CACHED_HEADS_MAX, HEAD_BYTES_MAX, HEADERS_MAX};

/// Reads these bytes as one connection would: `METHOD path?query|body|keep` for each request, then `more` for
/// an incomplete one, or the status of the error.
fn read(bytes: &[u8], piece_bytes: usize) -> Vec<String> {
    let mut reader = RequestReader::default();
    let mut buffer = BytesMut::new();
    let mut seen = Vec::new();
    let mut pieces = bytes.chunks(piece_bytes.max(1));
    loop {
        match reader.advance(&mut buffer) {
            Ok(Progress::Ready) => {
                let request = reader.request(&mut buffer).expect("ready");
                seen.push(show(&request));
                reader.consume(&mut buffer);
            }
            Ok(progress) => {
                if let Progress::Body { expects_continue: true } = progress {
                    seen.push("continue".to_owned());
                }
                match pieces.next() {
                    Some(piece) => buffer.extend_from_slice(piece),
                    None => {
                        if progress != Progress::Idle {
                            seen.push("more".to_owned());
                        }
                        return seen;
                    }
                }
            }
            Err(error) => {
                seen.push(format!("{}", error.status().0));
                return seen;
            }
        }
    }
}

fn show(request: &Request<'_>) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let keep = if request.keep_alive { "keep" } else { "close" };
    let (path, query, body) = (text(request.path), text(request.query), text(request.body));
    format!("{:?} {path}?{query}|{body}|{keep}", request.method)
}

/// Checks the result of [`read`] for one piece, single bytes, and pieces of seven.
fn check(bytes: &[u8], expected: &[&str]) {
    for piece_bytes in [usize::MAX, 1, 7] {
        let seen = read(bytes, piece_bytes);
        let text = String::from_utf8_lossy(bytes);
        assert_eq!(seen, expected, "in pieces of {piece_bytes}: {text:?}");
    }
}

#[test]
fn reads_requests() {
    let cases: &[(&str, &[&str])] = &[
        ("GET /a?b=c HTTP/1.1\r\nHost: a\r\n\r\n", &["Get /a?b=c||keep"]),
        ("HEAD / HTTP/1.1\r\nhOsT: a:80\r\n\r\n", &["Head /?||keep"]),
        ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", &["Options *?||keep"]),
        ("PATCH /%41?x=%20 HTTP/1.1\r\nHost: [::1]\r\n\r\n", &["Other /%41?x=%20||keep"]),
        ("GET http://b/a?c HTTP/1.1\r\nHost: a\r\n\r\n", &["Get /a?c||keep"]),
        ("GET http://b HTTP/1.1\r\nHost: a\r\n\r\n", &["Get /?||keep"]),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", &["Get /?||keep"]),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: x, Close\r\n\r\n", &["Get /?||close"]),
        ("GET / HTTP/1.0\r\n\r\n", &["Get /?||close"]),
        ("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", &["Get /?||keep"]),
        ("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", &["Get /?||keep"]),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET /", &["Post /?|abc|keep", "more"]),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \t 003 \r\n\r\nabc", &["Post /?|abc|keep"]),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", &["Post /?||keep"]),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nab", &["more"]),
        (
            "GET /a HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
            &["Get /a?||keep", "Get /b?||keep"],
        ),
        ("", &[]),
        ("GET", &["more"]),
    ];
    for (bytes, expected) in cases {
        check(bytes.as_bytes(), expected);
    }
}

fn chunked(body: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}")
}

#[test]
fn decodes_chunked_bodies() {
    for body in [
        "5\r\nabcde\r\n0\r\n\r\n",
        "2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n",
        "0000005\r\nabcde\r\n000\r\n\r\n",
        "5;a=b;c=\"d;e\"\r\nabcde\r\n0;x\r\n\r\n",
        "5 ; a\r\nabcde\r\n0\r\n\r\n",
        "5;a = b\t;\tc=\"\\\"\\;\u{e9}\"\r\nabcde\r\n0;x;y=z\r\n\r\n",
        "1\r\na\r\n1\r\nb\r\n1\r\nc\r\n1\r\nd\r\n1\r\ne\r\n0\r\nA: b\r\nC:\r\n\r\n",
    ] {
        let next = "GET /next HTTP/1.1\r\nHost: a\r\n\r\n";
        check(format!("{}{next}", chunked(body)).as_bytes(), &["Post /?|abcde|keep", "Get /next?||keep"]);
    }
    check(chunked("5\r\nabcde\r\n0\r\n").as_bytes(), &["more"]);
    let mixed = "POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding:\tCHUNKED \r\n\r\n1\r\na\r\n0\r\n\r\n";
    check(mixed.as_bytes(), &["Post /?|a|keep"]);
}

/// Published request smuggling vectors: by length, coding, line end, chunk, version and host, and obfuscated
/// forms of each.
#[test]
fn rejects_smuggling_vectors() {
    let fields: &[(&str, &str)] = &[
        ("400", "Content-Length: 6\r\nTransfer-Encoding: chunked"),
        ("400", "Transfer-Encoding: chunked\r\nContent-Length: 6"),
        ("400", "Content-Length: 6\r\nContent-Length: 5"),
        ("400", "Content-Length: 5\r\nContent-Length: 5"),
        ("400", "Content-Length: 5, 5"),
        ("400", "Content-Length: +5"),
        ("400", "Content-Length: -5"),
        ("400", "Content-Length: 0x5"),
        ("400", "Content-Length: 5 5"),
        ("400", "Content-Length: 5;"),
        ("400", "Content-Length: 1e1"),
        ("400", "Content-Length: ٥"),
        ("400", "Content-Length:"),
        ("400", "Content-Length: \u{b}5"),
        ("400", "Content-Length: 5\0"),
        ("400", "Content-Length : 5"),
        ("400", "Content-Length\t: 5"),
        ("400", " Content-Length: 5"),
        ("400", "X: y\r\n Content-Length: 5"),
        ("400", "X: y\r\n\tTransfer-Encoding: chunked"),
        ("400", "X: y\nTransfer-Encoding: chunked"),
        ("400", "X: y\rTransfer-Encoding: chunked"),
        ("400", "X: y\r\n\rTransfer-Encoding: chunked"),
        ("400", "Transfer-Encoding : chunked"),
        ("400", "Transfer-Encoding\r\n: chunked"),
        ("400", "Transfer-Encoding\0: chunked"),
        ("400", "\u{b}Transfer-Encoding: chunked"),
        ("400", "(Transfer-Encoding): chunked"),
        ("400", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
        ("400", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity"),
        ("400", "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked"),
        ("400", "Transfer-Encoding:"),
        ("400", "Transfer-Encoding: \0chunked"),
        ("501", "Transfer-Encoding: xchunked"),
        ("501", "Transfer-Encoding: chunkedx"),
        ("501", "Transfer-Encoding: identity"),
        ("501", "Transfer-Encoding: cow"),
        ("501", "Transfer-Encoding: gzip, chunked"),
        ("501", "Transfer-Encoding: chunked, gzip"),
        ("501", "Transfer-Encoding: chunked, identity"),
        ("501", "Transfer-Encoding: chunked, chunked"),
        ("501", "Transfer-Encoding: chunked,"),
        ("501", "Transfer-Encoding: ,chunked"),
        ("501", "Transfer-Encoding: chunked;q=1"),
        ("501", "Transfer-Encoding: \"chunked\""),
        ("400", "Host: b"),
        ("400", ": no name"),
        ("400", "no colon"),
        ("400", "X\u{e9}: y"),
        ("400", "X[: y"),
        ("417", "Expect: 100-continue, x"),
        ("417", "Expect: 200-ok"),
    ];
    for (status, field) in fields {
        let request = format!("POST / HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n0\r\n\r\nG");
        check(request.as_bytes(), &[status]);
    }
}

#[test]
fn rejects_malformed_request_lines_and_hosts() {
    for (status, head) in [
        ("400", "GET / HTTP/1.1\r\n\r\n"),
        ("400", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n"),
        ("400", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"),
        ("400", "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n"),
        ("400", "GET / HTTP/1.1\r\nHost: a,b\r\n\r\n"),
        ("400", "GET / HTTP/1.1\r\nHost: a:b\r\n\r\n"),
        ("400", "GET / HTTP/1.1\r\nHost: a:65536\r\n\r\n"),
        ("400", "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n"),
        ("400", "GET a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n"),
        ("400", "GET a/b HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("400", "GET * HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("400", "GET http:///a HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("400", "GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("400", "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("400", "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n"),
        ("400", "GET / HTTP/1.1\nHost: a\n\n"),
        ("400", "GET / HTTP/1.1\r\nHost: a\n\r\n"),
        ("400", "GET / HTTP/1.1\r\nHost: a\r\n\n"),
        ("400", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("400", "GET /  HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("400", "GET / HTTP/1.1 \r\nHost: a\r\n\r\n"),
        ("400", " GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("400", "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("400", "GET /\r\n\r\n"),
        ("400", "GET / http/1.1\r\nHost: a\r\n\r\n"),
        ("400", "GET / HTTP/1.10\r\nHost: a\r\n\r\n"),
        ("400", "GET / HTTP/+1.1\r\nHost: a\r\n\r\n"),
        ("400", "GET / HTTP/ 1.1\r\nHost: a\r\n\r\n"),
        ("400", "GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("400", "GET /\r HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("400", "G(T / HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("400", "\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("505", "GET / HTTP/2.0\r\nHost: a\r\n\r\n"),
        ("505", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ("505", "GET / HTTP/1.2\r\nHost: a\r\n\r\n"),
        ("505", "GET / HTTP/0.9\r\nHost: a\r\n\r\n"),
        ("400", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("400", "\x16\x03\x01\x02\x00\x01\x00\x01\n"),
        // Incomplete, but already invalid.
        ("400", "é / HTTP/1.1\r\nHost: a\r\nX"),
        // Rejected without waiting for the end of the line.
        ("400", "\x16\x03\x01"),
        ("400", "\r\n\0"),
    ] {
        check(head.as_bytes(), &[status]);
    }
}

#[test]
fn preserves_nonstandard_bytes_of_targets() {
    for (target, path, query) in [
        ("/a#b", "/a#b", ""),
        ("/?identifier=a#b", "/", "identifier=a#b"),
        ("/a<b>?c=\"d\"?e", "/a<b>", "c=\"d\"?e"),
        ("/a|b?{c}^`\\", "/a|b", "{c}^`\\"),
        ("/a`b\\c^d{e|f}", "/a`b\\c^d{e|f}", ""),
        ("/b\\c^d{e|f}?\\^{|}!$'()*+,;:@[]~", "/b\\c^d{e|f}", "\\^{|}!$'()*+,;:@[]~"),
        ("http://a/b?c", "/b", "c"),
        // Only targets that start with a path are split here.
        ("http://a/b#c", "/", ""),
    ] {
        let mut reader = RequestReader::default();
        let mut buffer = BytesMut::from(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
        assert_eq!(reader.advance(&mut buffer), Ok(Progress::Ready), "{target}");
        let request = reader.request(&mut buffer).unwrap();
        assert_eq!((request.path, request.query), (path.as_bytes(), query.as_bytes()), "{target}");
        reader.consume(&mut buffer);
        assert!(buffer.is_empty(), "{target}");
    }
}

#[test]
fn error_response_to_head_has_no_body() {
    for (field, head) in [("X: y", true), ("Host: a\r\nTransfer-Encoding: x", true), ("X y", false)] {
        let mut reader = RequestReader::default();
        let mut buffer = BytesMut::from(format!("HEAD / HTTP/1.1\r\n{field}\r\n\r\n").as_bytes());
        assert!(reader.advance(&mut buffer).is_err());
        // The method of a malformed head is unknown.
        assert_eq!(reader.context(), ResponseContext { head, ..ResponseContext::CLOSE }, "{field}");
    }
}

#[test]
fn rejects_malformed_chunks() {
    for (status, body) in [
        ("400", "5\nabcde\r\n0\r\n\r\n"),
        ("400", "5\r\nabcde\n0\r\n\r\n"),
        ("400", "5\r\nabcdeXX0\r\n\r\n"),
        ("400", "5\r\nabcdef\r\n0\r\n\r\n"),
        ("400", "0x5\r\nabcde\r\n0\r\n\r\n"),
        ("400", "+5\r\nabcde\r\n0\r\n\r\n"),
        ("400", "-5\r\nabcde\r\n0\r\n\r\n"),
        ("400", " 5\r\nabcde\r\n0\r\n\r\n"),
        ("400", "5 \r\nabcde\r\n0\r\n\r\n"),
        ("400", "5_0\r\nabcde\r\n0\r\n\r\n"),
        ("400", "\r\nabcde\r\n0\r\n\r\n"),
        ("400", ";x\r\nabcde\r\n0\r\n\r\n"),
        ("400", "5;\0\r\nabcde\r\n0\r\n\r\n"),
        ("400", "5;a\nb\r\nabcde\r\n0\r\n\r\n"),
        ("400", "5;a\rb\r\nabcde\r\n0\r\n\r\n"),
        ("400", "5;\r\nabcde\r\n0\r\n\r\n"),
        ("400", "5 ;\r\nabcde\r\n0\r\n\r\n"),
        ("400", "5;;a\r\nabcde\r\n0\r\n\r\n"),
        ("400", "5;a;\r\nabcde\r\n0\r\n\r\n"),
        ("400", "5;a=\r\nabcde\r\n0\r\n\r\n"),
        ("400", "5;=b\r\nabcde\r\n0\r\n\r\n"),
        ("400", "5;a[=x\r\nabcde\r\n0\r\n\r\n"),
        ("400", "5;a b\r\nabcde\r\n0\r\n\r\n"),
        ("400", "5;a \r\nabcde\r\n0\r\n\r\n"),
        ("400", "5;a=\"b\r\nabcde\r\n0\r\n\r\n"),
        ("400", "5;a=\"b\"c\r\nabcde\r\n0\r\n\r\n"),
        ("400", "5;a=\"b\\\r\nabcde\r\n0\r\n\r\n"),
        ("400", "5;a=\u{e9}\r\nabcde\r\n0\r\n\r\n"),
        ("400", "0;\r\n\r\n"),
        ("413", "10000000000000005\r\nabcde\r\n0\r\n\r\n"),
        ("413", "ffffffffffffffff\r\nabcde\r\n0\r\n\r\n"),
        ("400", "0\r\nno colon\r\n\r\n"),
        ("400", "0\r\n folded: x\r\n\r\n"),
        ("400", "0\r\nX : y\r\n\r\n"),
        ("400", "0\r\nX: y\n\r\n"),
        ("400", "0\r\n\n"),
    ] {
        check(chunked(body).as_bytes(), &[status]);
    }
    let long_line = format!("5;{}\r\nabcde\r\n0\r\n\r\n", "x".repeat(300));
    check(chunked(&long_line).as_bytes(), &["400"]);
    let long_trailer = format!("0\r\n{}\r\n", "A: b\r\n".repeat(1000));
    check(chunked(&long_trailer).as_bytes(), &["431"]);
}

/// RFC 9110 6.5.1: a gateway that merges trailers into the head would forward a different request.
#[test]
fn rejects_head_fields_in_trailers() {
    for name in [
        "Transfer-Encoding",
        "content-length",
        "HOST",
        "X-Environment-Key",
        "Authorization",
        "X-API-Key",
        "Cookie",
        "Origin",
        "Connection",
        "TE",
        "Trailer",
        "Upgrade",
        "Keep-Alive",
        "Expect",
        "Content-Encoding",
        "Content-Type",
        "Content-Range",
        "If-Match",
        "If-None-Match",
        "If-Modified-Since",
        "If-Unmodified-Since",
        "X-Forwarded-For",
    ] {
        check(chunked(&format!("1\r\na\r\n0\r\nA: b\r\n{name}: 1\r\n\r\n")).as_bytes(), &["400"]);
    }
    for name in ["X-Checksum", "Content-MD5", "Content-Lengths", "Hos", "Digest"] {
        check(chunked(&format!("1\r\na\r\n0\r\n{name}: 1\r\n\r\n")).as_bytes(), &["Post /?|a|keep"]);
    }
}

/// CORS needs the origin of an invalid request, even if the head is incomplete.
#[test]
fn finds_the_origin_of_an_invalid_request() {
    let found = |bytes: &[u8]| {
        let (mut reader, mut buffer) = (RequestReader::default(), BytesMut::from(bytes));
        assert!(reader.advance(&mut buffer).is_err());
        let fields = reader.error_fields(&buffer);
        fields.map(|fields| {
            (fields.origin.map(|origin| String::from_utf8_lossy(origin).into_owned()), fields.cookie)
        })
    };
    let origin = || Some("https://a.example".to_owned());
    let long = "x".repeat(HEAD_BYTES_MAX);
    let head = "GET / HTTP/1.1\r\nHost: a\r\norigin: https://a.example \r\n";
    assert_eq!(found(format!("{head}A: {long}").as_bytes()), Some((origin(), false)));
    assert_eq!(found(format!("{head}Cookie: {long}").as_bytes()), Some((origin(), true)));
    assert_eq!(
        found(format!("{head}{}\r\n", "A: b\r\n".repeat(HEADERS_MAX)).as_bytes()),
        Some((origin(), false))
    );
    assert_eq!(found(format!("{head}no colon\r\n\r\n").as_bytes()), Some((origin(), false)));
    assert_eq!(found(format!("{head}Content-Length: 99999999\r\n\r\n").as_bytes()), Some((origin(), false)));
    assert_eq!(
        found(format!("{head}Transfer-Encoding: chunked\r\n\r\nx\r\n").as_bytes()),
        Some((origin(), false))
    );
    let target = format!("GET /{} HTTP/1.1\r\nHost: a\r\nOrigin: https://a.example\r\n\r\n", &long[..9000]);
    assert_eq!(found(target.as_bytes()), Some((origin(), false)));
    // Only a complete head proves that there is no origin.
    assert_eq!(found(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n"), Some((None, false)));
    assert_eq!(found(format!("GET / HTTP/1.1\r\nHost: a\r\nA: {long}").as_bytes()), None);
    assert_eq!(found(b"GET / HTTP/1.1\r\nOrigin: a\rb\r\n\n"), None);
}

#[test]
fn enforces_limits_exactly() {
    let target = |bytes: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(bytes - 1));
    assert!(read(target(HEAD_BYTES_MAX / 2).as_bytes(), usize::MAX)[0].starts_with("Get /xxx"));
    check(target(HEAD_BYTES_MAX / 2 + 1).as_bytes(), &["414"]);
    check("x".repeat(HEAD_BYTES_MAX - 1).as_bytes(), &["more"]);
    check("x".repeat(HEAD_BYTES_MAX).as_bytes(), &["414"]);
    let long_target = format!("GET /{} HTTP/1.1\r\nHost: a\r\n", "x".repeat(HEAD_BYTES_MAX / 2));
    check(long_target.as_bytes(), &["more"]);
    check(format!("{long_target}{}", "A: b\r\n".repeat(1400)).as_bytes(), &["431"]);
    check(format!("{long_target}A: {}", "x".repeat(HEAD_BYTES_MAX / 2)).as_bytes(), &["414"]);
    check(format!("{}\r\n\r\n", "x".repeat(HEAD_BYTES_MAX / 2 + 100)).as_bytes(), &["414"]);

    let headers = |count: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "A: b\r\n".repeat(count - 1));
    check(headers(HEADERS_MAX).as_bytes(), &["Get /?||keep"]);
    check(headers(HEADERS_MAX + 1).as_bytes(), &["431"]);

    let rest = "GET / HTTP/1.1\r\nHost: a\r\nA: \r\n\r\n".len();
    let head = |bytes: usize| format!("GET / HTTP/1.1\r\nHost: a\r\nA: {}\r\n\r\n", "x".repeat(bytes - rest));
    check(head(HEAD_BYTES_MAX).as_bytes(), &["Get /?||keep"]);
    check(head(HEAD_BYTES_MAX + 1).as_bytes(), &["431"]);
    // This name would make the decoder panic.
    let name = format!("GET / HTTP/1.1\r\nHost: a\r\n{}: b\r\n\r\n", "x".repeat(70_000));
    check(name.as_bytes(), &["431"]);

    let length = |bytes: &str| format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {bytes}\r\n\r\n");
    check(length(&BODY_BYTES_MAX.to_string()).as_bytes(), &["more"]);
    check(length(&(BODY_BYTES_MAX + 1).to_string()).as_bytes(), &["413"]);
    check(length("99999999999999999999999999").as_bytes(), &["413"]);
    let chunk = format!("{:x}\r\n{}\r\n", BODY_BYTES_MAX / 4, "x".repeat(BODY_BYTES_MAX / 4));
    assert_eq!(read(chunked(&format!("{}1\r\n", chunk.repeat(4))).as_bytes(), 1000), ["413"]);
    assert_eq!(read(chunked(&format!("{}0\r\n\r\n", chunk.repeat(4))).as_bytes(), 1000).len(), 1);
}

#[test]
fn expects_continue_is_reported_once() {
    let head = "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 3\r\n\r\n";
    check(format!("{head}abc{head}abc").as_bytes()[..head.len()].as_ref(), &["continue", "more"]);
    // No 100 response is needed if the body has already arrived.
    assert_eq!(read(format!("{head}abc").as_bytes(), usize::MAX), ["Post /?|abc|keep"]);
    assert_eq!(read(format!("{head}abc").as_bytes(), head.len()), ["continue", "Post /?|abc|keep"]);
    let old = "POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nab";
    check(old.as_bytes(), &["more"]);
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}

fn coded(coding: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Encoding: {coding}\r\nContent-Length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

#[test]
fn does_not_decompress_bodies() {
    for (lines, expected) in [
        ("", Coding::Identity),
        ("Content-Encoding: identity\r\n", Coding::Identity),
        ("Content-Encoding: \r\n", Coding::Identity),
        ("Content-Encoding: gzip\r\n", Coding::Gzip),
        ("Content-Encoding: X-GZIP\r\n", Coding::Gzip),
        ("Content-Encoding: br\r\n", Coding::Unsupported),
        ("Content-Encoding: gzip, gzip\r\n", Coding::Unsupported),
        ("Content-Encoding: gzip\r\nContent-Encoding: gzip\r\n", Coding::Unsupported),
        ("Content-Encoding: br\r\nContent-Encoding: gzip\r\n", Coding::Unsupported),
    ] {
        let bytes = format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}Content-Length: 3\r\n\r\nabc");
        let (mut reader, mut buffer) = (RequestReader::default(), BytesMut::from(bytes.as_bytes()));
        assert_eq!(reader.advance(&mut buffer), Ok(Progress::Ready), "{lines}");
        let request = reader.request(&mut buffer).unwrap();
        assert_eq!((request.coding, &*request.body), (expected, &b"abc"[..]), "{lines}");
    }
    let next = b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n";
    check(&[&coded("br", b"xyz")[..], next].concat(), &["Post /?|xyz|keep", "Get /next?||keep"]);
}

#[test]
fn collects_the_first_field_of_each_name() {
    let names = [
        "X-Environment-Key",
        "Accept-Encoding",
        "Content-Type",
        "Origin",
        "Access-Control-Request-Method",
        "Access-Control-Request-Headers",
        "If-Match",
        "If-Unmodified-Since",
        "If-None-Match",
        "If-Modified-Since",
        "Authorization",
        "X-API-Key",
        "Flagsmith-Application-Name",
        "Flagsmith-Application-Version",
        "User-Agent",
        "Flagsmith-SDK-User-Agent",
        "X-Forwarded-For",
    ];
    let mut head = "GET / HTTP/1.1\r\nHost: a\r\nCookie: c\r\n".to_owned();
    for name in names {
        head.push_str(&format!("{name}:  first of {name} \r\n{name}: second\r\n"));
    }
    head.push_str("\r\n");
    let mut buffer = BytesMut::from(head.as_bytes());
    let mut reader = RequestReader::default();
    assert_eq!(reader.advance(&mut buffer), Ok(Progress::Ready));
    let request = reader.request(&mut buffer).unwrap();
    let fields = request.fields;
    let values = [
        fields.environment_key,
        fields.accept_encoding,
        fields.content_type,
        fields.origin,
        fields.access_control_request_method,
        fields.access_control_request_headers,
        fields.if_match,
        fields.if_unmodified_since,
        fields.if_none_match,
        fields.if_modified_since,
        fields.authorization,
        fields.api_key,
        fields.application_name,
        fields.application_version,
        fields.user_agent,
        fields.sdk_user_agent,
        fields.forwarded_for,
    ];
    for (name, value) in names.iter().zip(values) {
        assert_eq!(value, Some(format!("first of {name}").as_bytes()), "{name}");
    }
    assert!(fields.cookie);
}

#[test]
fn reuses_the_memory_of_the_buffer() {
    let request = b"GET /proxy/health HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\n";
    let mut reader = RequestReader::default();
    let mut buffer = BytesMut::with_capacity(4096);
    let mut pages = std::collections::BTreeSet::new();
    for _ in 0..1000 {
        buffer.reserve(2048);
        pages.insert(buffer.as_ptr() as usize / 8192);
        buffer.extend_from_slice(request);
        assert_eq!(reader.advance(&mut buffer), Ok(Progress::Ready));
        reader.consume(&mut buffer);
    }
    assert!(pages.len() <= 2, "the buffer moved: {pages:?}");
}

/// Randomly damaged requests, with a fixed seed: nothing panics, and the result does not depend on how the
/// bytes are split into reads.
#[test]
fn damaged_requests_are_read_alike_in_any_pieces() {
    let corpus: Vec<Vec<u8>> = vec![
        b"GET /a?b=c HTTP/1.1\r\nHost: a\r\nX-Environment-Key: k\r\n\r\n".to_vec(),
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET /b HTTP/1.1\r\nHost: a\r\n\r\n"
            .to_vec(),
        chunked("3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nA: b\r\n\r\nGET /n HTTP/1.1\r\nHost: a\r\n\r\n")
            .into_bytes(),
        b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET http://h/p HTTP/1.1\r\nHost: a\r\n\r\n"
            .to_vec(),
        coded("gzip", &gzip(b"{\"identifier\": \"a\"}")),
    ];
    let spice = b"\r\n\0 \t:;,0129afAF/HTTP.%\x7f\xff";
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    for _ in 0..20_000 {
        let mut bytes = corpus[random(corpus.len())].clone();
        for _ in 0..1 + random(3) {
            let at = random(bytes.len());
            match random(4) {
                0 => bytes[at] = spice[random(spice.len())],
                1 => bytes.insert(at, spice[random(spice.len())]),
                2 => drop(bytes.remove(at)),
                _ => {
                    let end = at + random(bytes.len() - at) / 4;
                    let piece = bytes[at..end].to_vec();
                    bytes.splice(at..at, piece);
                }
            }
        }
        let whole = read(&bytes, usize::MAX);
        for piece_bytes in [1, 7] {
            assert_eq!(read(&bytes, piece_bytes), whole, "{:?}", String::from_utf8_lossy(&bytes));
        }
    }
}

#[test]
fn cached_head_gives_the_same_request() {
    let requests: [&[u8]; 6] = [
        b"GET /api/v1/flags/?feature=a HTTP/1.1\r\nHost: a\r\nX-Environment-Key: k\r\n\r\n",
        b"HEAD /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        b"POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
        b"POST /c HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nde\r\n0\r\n\r\n",
        b"POST /d HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nOrigin: x\r\n\r\nf g",
        b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    ];
    let heads = Rc::new(HeadCache::default());
    for request in requests {
        let head_bytes = memchr::memmem::find(request, b"\r\n\r\n").unwrap() + 4;
        let mut seen = Vec::new();
        // Two connections, one with small reads; the second occurrence of the head is cached.
        for connection in 0..2 {
            let mut reader = RequestReader::with_cache(heads.clone());
            let mut buffer = BytesMut::new();
            for _ in 0..4 {
                buffer.extend_from_slice(&request[..head_bytes]);
                let progress = reader.advance(&mut buffer).unwrap();
                if connection == 0 {
                    buffer.extend_from_slice(&request[head_bytes..]);
                } else {
                    for byte in &request[head_bytes..] {
                        assert!(matches!(reader.advance(&mut buffer), Ok(Progress::Body { .. })));
                        buffer.extend_from_slice(&[*byte]);
                    }
                }
                assert_eq!(reader.advance(&mut buffer), Ok(Progress::Ready));
                let fields = format!("{:?}", reader.request(&mut buffer).unwrap().fields);
                let shown = show(&reader.request(&mut buffer).unwrap());
                seen.push((progress, shown, fields, reader.context()));
                reader.consume(&mut buffer);
                assert!(buffer.is_empty());
            }
            assert!(
                heads.hash(&request[..head_bytes]).is_some_and(|hash| heads.get(hash, request).is_some())
            );
        }
        assert!(seen.iter().all(|one| *one == seen[0]), "{seen:#?}");
    }
}

#[test]
fn cache_hit_requires_the_whole_head() {
    let head = "GET /a HTTP/1.1\r\nHost: a\r\n\r\n";
    let longer = "GET /a HTTP/1.1\r\nHost: a\r\nX-Environment-Key: k\r\n\r\n";
    let smuggled = "GET /a HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\nHost: b\r\n\r\n";
    let bytes = [head, head, head, longer, head, longer, longer, smuggled, longer, head].concat();
    let expected = read(bytes.as_bytes(), 1);
    assert_eq!(read(bytes.as_bytes(), bytes.len()), expected);
    assert_eq!(expected.iter().filter(|line| line.contains("/a")).count(), 10, "{expected:?}");
}

#[test]
fn invalid_and_long_heads_are_not_cached() {
    let refused = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: tea\r\n\r\n".to_vec();
    let long = format!("GET / HTTP/1.1\r\nHost: a\r\nA: {}\r\n\r\n", "x".repeat(CACHED_HEAD_BYTES_MAX));
    let heads = Rc::new(HeadCache::default());
    let mut reader = RequestReader::with_cache(heads.clone());
    for _ in 0..3 {
        assert!(reader.advance(&mut BytesMut::from(&*refused)).is_err());
        (reader.scan, reader.head) = (HeadScan::default(), None);
    }
    assert!(heads.get(heads.hash(&refused).unwrap(), &refused).is_none());
    for _ in 0..3 {
        let mut buffer = BytesMut::from(long.as_bytes());
        assert_eq!(reader.advance(&mut buffer), Ok(Progress::Ready));
        reader.consume(&mut buffer);
    }
    assert_eq!(heads.hash(long.as_bytes()), None);
}

#[test]
fn used_head_is_not_evicted_immediately() {
    let heads = HeadCache::default();
    let head = |bytes: &[u8]| {
        let parts = parts(&mut BytesMut::from(bytes)).unwrap();
        Rc::new(CachedHead { bytes: bytes.into(), parts, framing: Default::default(), length: Length::None })
    };
    let (first, second) = (b"GET /1 HTTP/1.1\r\n\r\n", b"GET /2 HTTP/1.1\r\n\r\n");
    // Both hashes map to one entry.
    heads.insert(1, &head(first));
    heads.insert(1 + CACHED_HEADS_MAX as u64, &head(second));
    assert!(heads.get(1, first).is_some() && heads.get(1, second).is_none());
    heads.insert(1 + CACHED_HEADS_MAX as u64, &head(second));
    assert!(heads.get(1, first).is_some());
    heads.insert(1 + CACHED_HEADS_MAX as u64, &head(second));
    heads.insert(1 + CACHED_HEADS_MAX as u64, &head(second));
    assert!(heads.get(1, first).is_none() && heads.get(1 + CACHED_HEADS_MAX as u64, second).is_some());
}
