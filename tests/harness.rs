//! Tests of the test harness.
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

use crate::support::{Client, Port, Scratch, request};

/// Answers one connection with `bytes` after its first read, then closes it.
fn server(bytes: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let _ = stream.read(&mut [0; 1024]).expect("a request");
        stream.write_all(bytes).expect("the client reads");
    });
    address
}

#[test]
fn client_reads_a_sized_body_and_then_the_next_answer() {
    let address = server(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nOKHTTP/1.1 404 Not Found\r\nX-A: b\r\ncontent-length: 0\r\n\r\n");
    let mut client = Client::connect(address);
    let first = client.request("GET", "/", &[], b"");
    assert_eq!((first.status, first.body.as_slice()), (200, &b"OK"[..]));
    let second = client.answer("GET");
    assert_eq!((second.status, second.header("x-a"), second.body.len()), (404, Some("b"), 0));
    assert!(client.is_closed());
}

#[test]
fn client_joins_chunks_and_skips_interim_answers() {
    let address = server(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n1;x=y\r\nd\r\n0\r\n\r\n",
    );
    assert_eq!(Client::connect(address).request("POST", "/", &[], b"x").body, b"abcd");
}

#[test]
fn client_expects_no_body_after_head_204_and_304() {
    for (method, bytes) in [
        ("HEAD", &b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"[..]),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n"),
    ] {
        let mut client = Client::connect(server(bytes));
        assert_eq!(client.request(method, "/", &[], b"").body, b"");
        assert!(client.is_closed());
    }
}

#[test]
fn client_distinguishes_truncated_and_missing_responses() {
    let mut cut = Client::connect(server(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"));
    cut.send(request("GET", "/", &[], b""));
    assert!(cut.try_answer("GET").is_err());
    let mut none = Client::connect(server(b""));
    none.send(request("GET", "/", &[], b""));
    assert!(none.try_answer("GET").expect("a clean end").is_none());
}

#[test]
fn reserved_port_is_available_to_the_proxy_only() {
    let port = Port::free();
    assert!(
        TcpListener::bind(port.address()).is_err(),
        "a socket without SO_REUSEPORT must not share the port"
    );
    for _ in 0..2 {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("a socket");
        socket.set_reuse_port(true).expect("SO_REUSEPORT");
        socket.bind(&port.address().into()).expect("a reactor's socket shares the port");
    }
}

#[test]
fn scratch_directory_is_removed_on_drop() {
    let scratch = Scratch::new();
    let file = scratch.write("a.txt", "b");
    assert_eq!(std::fs::read(&file).expect("written"), b"b");
    drop(scratch);
    assert!(!file.exists());
}
