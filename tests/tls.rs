//! TLS for clients: both versions, resumption, client certificates, renewal without interruption.
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, ProtocolVersion, RootCertStore, StreamOwned,
    SupportedProtocolVersion,
};

use crate::support::{PATIENCE, Proxy, Start, eventually};
use crate::surface::{CLIENT, SERVER, document};

pub type Pair = CertifiedKey<KeyPair>;
pub type Stream = StreamOwned<ClientConnection, TcpStream>;

pub fn pair() -> Pair {
    generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate")
}

/// Installs a pair as an administrator would: written to a temporary file, then renamed.
fn put(folder: &Path, pair: &Pair) -> (PathBuf, PathBuf) {
    let write = |name: &str, text: String| {
        let beside = folder.join(format!("{name}.new"));
        std::fs::write(&beside, text).expect("scratch space");
        std::fs::rename(&beside, folder.join(name)).expect("scratch space");
        folder.join(name)
    };
    (write("cert.pem", pair.cert.pem()), write("key.pem", pair.signing_key.serialize_pem()))
}

fn start(pair: &Pair, client_ca: Option<&Pair>) -> Proxy {
    start_with(pair, client_ca, &[])
}

pub fn start_with(pair: &Pair, client_ca: Option<&Pair>, settings: &[(&str, serde_json::Value)]) -> Proxy {
    let start = settings.iter().fold(Start::serve(), |start, (path, value)| start.set(path, value.clone()));
    serve(start, pair, client_ca)
}

/// Starts a proxy with one document and this certificate.
pub fn serve(start: Start, pair: &Pair, client_ca: Option<&Pair>) -> Proxy {
    let folder = start.scratch().path().to_owned();
    let (cert, key) = put(&folder, pair);
    let document = start.scratch().write("document.json", document(0).to_string());
    let mut tls = serde_json::json!({"cert": cert, "key": key});
    if let Some(ca) = client_ca {
        tls["client_ca"] = start.scratch().write("ca.pem", ca.cert.pem()).to_str().into();
    }
    let proxy = start.set("server.tls", tls).document(CLIENT, SERVER, document).spawn();
    proxy.wait_for_log("reactor_started");
    // The document is published after it was logged.
    proxy.wait_for_log("ready ");
    proxy
}

pub fn client(
    trusted: &Pair,
    own: Option<&Pair>,
    versions: &[&'static SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(trusted.cert.der().clone()).expect("a root");
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
    let builder = builder.with_root_certificates(roots);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some(own) => {
            let key = PrivateKeyDer::from_pem_slice(own.signing_key.serialize_pem().as_bytes()).unwrap();
            builder.with_client_auth_cert(vec![own.cert.der().clone()], key).expect("a client certificate")
        }
    };
    config.alpn_protocols = vec![b"spdy/3".to_vec(), b"http/1.1".to_vec()];
    Arc::new(config)
}

pub fn connect(proxy: &Proxy, config: &Arc<ClientConfig>) -> Stream {
    let socket = TcpStream::connect(proxy.address()).expect("the port is bound");
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    StreamOwned::new(ClientConnection::new(config.clone(), name).unwrap(), socket)
}

/// One exchange on a persistent connection; returns the response.
fn get(stream: &mut Stream, path: &str) -> std::io::Result<String> {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nX-Environment-Key: {SERVER}\r\n\r\n")?;
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let field = head.lines().find_map(|line| line.strip_prefix("content-length:"));
            let length: usize = field.map_or(0, |length| length.trim().parse().unwrap());
            if body.len() >= length {
                return Ok(text);
            }
        }
        let mut piece = [0; 4096];
        match stream.read(&mut piece)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            length => bytes.extend_from_slice(&piece[..length]),
        }
    }
}

pub fn is_served(stream: &mut Stream) {
    let answer = eventually("the document is served", || {
        Some(get(stream, "/api/v1/flags/").expect("answered over TLS"))
            .filter(|text| !text.contains("HTTP/1.1 502"))
    });
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("banner"), "{answer}");
}

#[test]
fn supports_both_tls_versions_and_resumption() {
    let own = pair();
    let proxy = start(&own, None);
    for (version, number) in [
        (&rustls::version::TLS12, ProtocolVersion::TLSv1_2),
        (&rustls::version::TLS13, ProtocolVersion::TLSv1_3),
    ] {
        let config = client(&own, None, &[version]);
        for expected in [HandshakeKind::Full, HandshakeKind::Resumed] {
            let mut stream = connect(&proxy, &config);
            is_served(&mut stream);
            is_served(&mut stream);
            assert_eq!(stream.conn.handshake_kind(), Some(expected), "{number:?}");
            assert_eq!(stream.conn.protocol_version(), Some(number));
            assert_eq!(stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
        }
    }
}

#[test]
fn pipelined_and_closed_over_tls() {
    let own = pair();
    let proxy = start(&own, None);
    let mut stream = connect(&proxy, &client(&own, None, rustls::ALL_VERSIONS));
    is_served(&mut stream);
    let request = format!("GET /api/v1/flags/ HTTP/1.1\r\nHost: a\r\nX-Environment-Key: {SERVER}\r\n");
    let bytes = format!("{}{request}Connection: close\r\n\r\n", format!("{request}\r\n").repeat(50));
    stream.write_all(bytes.as_bytes()).unwrap();
    let mut text = String::new();
    // close_notify precedes the end, so that truncation is detectable.
    stream.read_to_string(&mut text).expect("a clean end");
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 51);
}

#[test]
fn bodies_are_complete_for_every_record_size() {
    let own = pair();
    let proxy = start(&own, None);
    let body = format!(r#"{{"identifier": "a", "unknown": "{}"}}"#, "x".repeat(500_000));
    let head = format!(
        "POST /api/v1/identities/ HTTP/1.1\r\nHost: a\r\nX-Environment-Key: {SERVER}\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let config = client(&own, None, &[version]);
        // Two arrive with one read: more than the plaintext buffer of rustls.
        for record_bytes in [1, 500, 8_200, 12_000, 16_384] {
            let mut stream = connect(&proxy, &config);
            is_served(&mut stream);
            stream.conn.set_buffer_limit(None);
            let text = head.clone() + &body;
            let (small, rest) = text.as_bytes().split_at(if record_bytes == 1 { 2000 } else { 0 });
            for record in small.chunks(1).chain(rest.chunks(record_bytes.max(100))) {
                stream.conn.writer().write_all(record).unwrap();
            }
            // In one write, so that reads split the records.
            let mut bytes = Vec::new();
            while stream.conn.wants_write() {
                stream.conn.write_tls(&mut bytes).unwrap();
            }
            stream.sock.write_all(&bytes).expect("it reads on");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("a clean end");
            assert!(answer.starts_with("HTTP/1.1 200 OK"), "{version:?} {record_bytes}: {answer}");
        }
    }
}

#[test]
fn closes_connections_that_do_not_speak_tls() {
    let proxy = start(&pair(), None);
    let mut socket = TcpStream::connect(proxy.address()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut bytes = Vec::new();
    let _ = socket.read_to_end(&mut bytes);
    assert!(!String::from_utf8_lossy(&bytes).contains("HTTP/1.1"), "plain text was answered");
}

#[test]
fn rejects_invalid_handshakes_with_an_alert() {
    let own = pair();
    let proxy = start_with(&own, None, &[("server.timeout_head", "1s".into())]);
    let hello = b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03";
    let record = [&b"\x16\x03\x01\xff\xff"[..], &[b'a'; 70_000]].concat();
    // Nothing, half a hello, an invalid one, an old one, a record that is too long.
    for bytes in [&b""[..], hello, &[&hello[..], &[7; 194]].concat(), b"\x80\x2e\x01\x00\x02", &record] {
        let mut socket = TcpStream::connect(proxy.address()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        // The end may be a reset, because not everything was read.
        let ended = socket.read_to_end(&mut answer);
        assert!(ended.map_or_else(|error| error.kind() == ErrorKind::ConnectionReset, |_| true));
        assert!(answer.is_empty() || answer[0] == 21, "an alert or nothing, not {answer:?}");
    }
    let mut other = ClientConfig::clone(&client(&own, None, rustls::ALL_VERSIONS));
    other.alpn_protocols = vec![b"spdy/3".to_vec()];
    let error = get(&mut connect(&proxy, &Arc::new(other)), "/api/v1/flags/").unwrap_err();
    assert!(error.to_string().contains("NoApplicationProtocol"), "{error}");
    // No server name, as for an address; the certificate is the same for every name.
    let mut nameless = ClientConfig::clone(&client(&own, None, rustls::ALL_VERSIONS));
    nameless.enable_sni = false;
    is_served(&mut connect(&proxy, &Arc::new(nameless)));
}

#[test]
fn sends_close_notify_before_closing() {
    let own = pair();
    let proxy = start_with(&own, None, &[("server.timeout_keep_alive", "1s".into())]);
    for half_closed in [true, false] {
        let mut stream = connect(&proxy, &client(&own, None, rustls::ALL_VERSIONS));
        is_served(&mut stream);
        if half_closed {
            // Requests before the end are answered.
            write!(stream, "GET /proxy/health/liveness HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
            stream.flush().unwrap();
            stream.sock.shutdown(Shutdown::Write).unwrap();
        }
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("close_notify before the end");
        assert_eq!(text.starts_with("HTTP/1.1 200 OK"), half_closed, "{text}");
    }
}

#[test]
fn requires_client_certificates_if_configured() {
    let (own, theirs, foreign) = (pair(), pair(), pair());
    let proxy = start(&own, Some(&theirs));
    is_served(&mut connect(&proxy, &client(&own, Some(&theirs), rustls::ALL_VERSIONS)));
    for wrong in [None, Some(&foreign)] {
        let mut stream = connect(&proxy, &client(&own, wrong, rustls::ALL_VERSIONS));
        assert!(get(&mut stream, "/api/v1/flags/").is_err());
    }
}

#[test]
fn renews_certificates_without_dropping_connections() {
    let (first, second, third) = (pair(), pair(), pair());
    let proxy = start(&first, None);
    let folder = proxy.scratch().path().to_owned();
    let mut kept = connect(&proxy, &client(&first, None, rustls::ALL_VERSIONS));
    is_served(&mut kept);
    put(&folder, &second);
    proxy.wait_for_log("certificates_renewed");
    let trusts_second = client(&second, None, rustls::ALL_VERSIONS);
    eventually("the new certificate is used", || {
        get(&mut connect(&proxy, &trusts_second), "/api/v1/flags/").ok()
    });
    is_served(&mut kept);
    // A key of another certificate is rejected, and the current pair stays in use.
    std::fs::write(folder.join("key.pem"), third.signing_key.serialize_pem()).unwrap();
    let line = proxy.wait_for_log("certificates_refused");
    assert!(line.contains("must belong together"), "{line}");
    is_served(&mut connect(&proxy, &trusts_second));
    is_served(&mut kept);
    // SIGHUP reads the files even if they have not changed.
    put(&folder, &third);
    proxy.signal("HUP");
    let trusts_third = client(&third, None, rustls::ALL_VERSIONS);
    eventually("the third certificate is used", || {
        get(&mut connect(&proxy, &trusts_third), "/api/v1/flags/").ok()
    });
    is_served(&mut kept);
}

#[test]
fn rejects_invalid_certificate_pair_at_start() {
    let start = Start::serve();
    let cert = start.scratch().write("cert.pem", "no certificate");
    let key = start.scratch().write("key.pem", pair().signing_key.serialize_pem());
    let document = start.scratch().write("document.json", document(0).to_string());
    let start = start.document(CLIENT, SERVER, document);
    let (code, log) = start.set("server.tls", serde_json::json!({"cert": cert, "key": key})).run();
    assert_eq!(code, Some(64), "{log}");
    assert!(log.contains("server.tls.cert") && log.contains("cert.pem"), "{log}");
}
