//! Malformed requests over real sockets: the responses, their order, and whether the connection is closed.
//!
//! The tables of valid requests are beside the parser (`src/http/request/tests.rs`); these tests cover the same
//! rules from outside, with preceding and following requests.
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;

use crate::support::{PATIENCE, Proxy, Start};
use crate::surface::{CLIENT, SERVER, document};

const LIVE: &str = "GET /proxy/health/liveness HTTP/1.1\r\nHost: a\r\n\r\n";

fn start() -> Proxy {
    let start = Start::serve();
    let path = start.scratch().write("document.json", document(0).to_string());
    start.document(CLIENT, SERVER, path).ready()
}

/// The response bytes to `bytes`, after which the client shuts down its side.
fn exchange(proxy: &Proxy, bytes: &[u8]) -> String {
    let mut stream = proxy.client().into_stream();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(bytes).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    }
    String::from_utf8_lossy(&answer).into_owned()
}

fn statuses(text: &str) -> Vec<u16> {
    text.split("HTTP/1.1 ").skip(1).map(|answer| answer[..3].parse().expect("a status")).collect()
}

#[test]
fn answers_in_order_until_a_request_closes_the_connection() {
    let proxy = start();
    let post = |fields: &str, body: &str| {
        format!(
            "POST /api/v1/identities/ HTTP/1.1\r\nHost: a\r\nX-Environment-Key: {CLIENT}\r\n{fields}\r\n{body}"
        )
    };
    let chunked = |body: &str| post("Transfer-Encoding: chunked\r\n", body);
    let identity = r#"{"identifier": "a"}"#;
    let long_trailer = format!("0\r\nX: {}\r\n\r\n", "y".repeat(5000));
    let many_trailers = format!("0\r\n{}\r\n", "X: y\r\n".repeat(1000));
    let rows: &[(&str, String, &[u16])] = &[
        ("an error in the middle", format!("{LIVE}{LIVE}BAD\r\n\r\n{LIVE}"), &[200, 200, 400]),
        (
            "no such path in the middle",
            format!("{LIVE}GET /no HTTP/1.1\r\nHost: a\r\n\r\n{LIVE}"),
            &[200, 404, 200],
        ),
        (
            "nothing after a close",
            format!("GET /proxy/health/liveness HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n{LIVE}"),
            &[200],
        ),
        ("nothing after a 1.0", format!("GET /proxy/health/liveness HTTP/1.0\r\n\r\n{LIVE}"), &[200]),
        (
            "1.0 may stay",
            format!("GET /proxy/health/liveness HTTP/1.0\r\nConnection: keep-alive\r\n\r\n{LIVE}"),
            &[200, 200],
        ),
        (
            "a body that GET does not need",
            format!("{}hello{LIVE}", LIVE.replace("a\r\n\r\n", "a\r\nContent-Length: 5\r\n\r\n")),
            &[200, 200],
        ),
        (
            "an upgrade is declined",
            LIVE.replace(
                "a\r\n\r\n",
                "a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n\r\n",
            ) + LIVE,
            &[200, 200],
        ),
        ("another preface", "PRI * HTTP/2.1\r\n\r\nSM\r\n\r\n".to_owned(), &[505]),
        ("the PROXY protocol", format!("PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n{LIVE}"), &[400]),
        ("its binary form", format!("\r\n\r\n\0\r\nQUIT\n!\u{11}\0\u{c}{LIVE}"), &[400]),
        ("TLS on a plain port", "\u{16}\u{3}\u{1}\0\u{7f}".to_owned(), &[400]),
        ("SSH", "SSH-2.0-OpenSSH_9\r\n".to_owned(), &[400]),
        ("absolute form, another host", LIVE.replace("GET ", "GET http://other") + LIVE, &[200, 200]),
        ("OPTIONS *", format!("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n{LIVE}"), &[200, 200]),
        ("CONNECT", format!("CONNECT other:443 HTTP/1.1\r\nHost: a\r\n\r\n{LIVE}"), &[400]),
        ("a zero byte, encoded", format!("GET /proxy/%00 HTTP/1.1\r\nHost: a\r\n\r\n{LIVE}"), &[404, 200]),
        ("a wrong encoding", format!("GET /%zz?%u12 HTTP/1.1\r\nHost: a\r\n\r\n{LIVE}"), &[404, 200]),
        (
            "a long query",
            format!("{}{LIVE}", LIVE.replace("liveness", &format!("liveness?{}", "q".repeat(8000)))),
            &[200, 200],
        ),
        ("one too long", LIVE.replace("liveness", &format!("liveness?{}", "q".repeat(8200))), &[414]),
        ("chunks", chunked(&format!("13;name=\"v\"\r\n{identity}\r\n0\r\nX: y\r\n\r\n{LIVE}")), &[200, 200]),
        (
            "an extension too long",
            chunked(&format!("13;{}\r\n{identity}\r\n0\r\n\r\n{LIVE}", "x".repeat(300))),
            &[400],
        ),
        ("a trailer too long", chunked(&format!("13\r\n{identity}\r\n{long_trailer}{LIVE}")), &[431]),
        ("trailers too many", chunked(&format!("13\r\n{identity}\r\n{many_trailers}{LIVE}")), &[431]),
        (
            "a length in a trailer",
            chunked(&format!("13\r\n{identity}\r\n0\r\nContent-Length: 9\r\n\r\n{LIVE}")),
            &[400],
        ),
        (
            "both lengths",
            post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", &format!("0\r\n\r\n{LIVE}")),
            &[400],
        ),
        ("a length with a sign", post("Content-Length: +19\r\n", &format!("{identity}{LIVE}")), &[400]),
        (
            "a continue without a body to come",
            post("Expect: 100-continue\r\nContent-Length: 19\r\n", &format!("{identity}{LIVE}")),
            &[200, 200],
        ),
        (
            "a continue with a wrong length",
            post("Expect: 100-continue\r\nContent-Length: x\r\n", LIVE),
            &[400],
        ),
        (
            "a continue for too much",
            post("Expect: 100-continue\r\nContent-Length: 2000000\r\n", LIVE),
            &[413],
        ),
        (
            "another expectation",
            post("Expect: 200-ok\r\nContent-Length: 19\r\n", &format!("{identity}{LIVE}")),
            &[417],
        ),
        (
            "a list of addresses that is none",
            LIVE.replace("a\r\n\r\n", "a\r\nX-Forwarded-For: ,,;\u{ff}\r\nForwarded: for=\"\r\n\r\n") + LIVE,
            &[200, 200],
        ),
        ("half a request", LIVE[..30].to_owned(), &[]),
        ("half a body", post("Content-Length: 19\r\n", "{"), &[]),
        ("half after a whole one", format!("{LIVE}{}", &LIVE[..30]), &[200]),
        ("a hundred pipelined", LIVE.repeat(100), &[200; 100]),
    ];
    for (name, bytes, expected) in rows {
        let text = exchange(&proxy, bytes.as_bytes());
        assert_eq!(statuses(&text), *expected, "{name}: {text}");
        let refused = expected.last().is_some_and(|status| matches!(status, 400 | 413..=417 | 431 | 505));
        assert!(!refused || text.contains("\r\nconnection: close\r\n"), "{name}: {text}");
    }
    assert_eq!(proxy.get("/api/v1/flags/", CLIENT).status, 200, "still serving");
}

#[test]
fn sends_100_continue_once_and_never_to_http_1_0() {
    let proxy = start();
    let identity = br#"{"identifier": "a"}"#;
    let head = |version: &str| {
        format!(
            "POST /api/v1/identities/ HTTP/{version}\r\nHost: a\r\nX-Environment-Key: {CLIENT}\r\n\
             Expect: 100-continue\r\nContent-Length: {}\r\n\r\n",
            identity.len()
        )
    };
    let mut client = proxy.client();
    for _ in 0..2 {
        client.send(head("1.1"));
        assert_eq!(client.head().unwrap().expect("an answer").0, 100);
        client.send(&identity[..5]);
        client.send(&identity[5..]);
        assert_eq!(client.head().unwrap().expect("an answer").0, 200, "no second 100");
        client = proxy.client();
    }
    client.send(head("1.0"));
    client.send(identity);
    assert_eq!(client.head().unwrap().expect("an answer").0, 200);
}

#[test]
fn head_has_the_fields_of_get_and_no_body() {
    let proxy = start();
    for target in
        ["/api/v1/flags/", "/api/v1/identities/?identifier=a", "/api/v1/environment-document/", "/no"]
    {
        for coding in ["identity", "gzip"] {
            let fields = [("X-Environment-Key", SERVER), ("Accept-Encoding", coding)];
            let mut client = proxy.client();
            let get = client.request("GET", target, &fields, b"");
            let head = client.request("HEAD", target, &fields, b"");
            let lines = |answer: &crate::support::Answer| {
                answer.headers.iter().filter(|(name, _)| name != "date").cloned().collect::<Vec<_>>()
            };
            assert_eq!((head.status, lines(&head)), (get.status, lines(&get)), "{target} {coding}");
            // The next response follows the head immediately.
            assert_eq!(client.request("GET", target, &fields, b"").body, get.body, "{target} {coding}");
        }
    }
}
