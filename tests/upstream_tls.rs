//! TLS to upstream: private authorities and client certificates.
use serde_json::json;

use crate::support::document::{CLIENT_KEY, SERVER_KEY, document};
use crate::support::tls::{Authority, TlsFront};
use crate::support::{Start, Upstream};

#[test]
fn sends_a_client_certificate_and_trusts_the_configured_ca() {
    let (authority, upstream) = (Authority::new(), Upstream::start());
    upstream.document(SERVER_KEY, document(1));
    let front = TlsFront::start(upstream.address(), &authority.issue("127.0.0.1"), Some(&authority));
    let with_files = |start: Start, with_certificate: bool| {
        let own = authority.issue("edge-proxy");
        let text = |name: &str, content: &str| {
            start.scratch().write(name, content).to_str().expect("a plain path").to_string()
        };
        let (ca, cert, key) =
            (text("ca.pem", &authority.pem()), text("cert.pem", &own.certificate), text("key.pem", &own.key));
        let start = start.set("api_ca_file", ca);
        if with_certificate {
            start.set("api_client_certificate", json!({"cert": cert, "key": key}))
        } else {
            start
        }
    };
    let proxy = with_files(Start::polling(&front.api_url()), true).ready();
    assert_eq!(proxy.version_of(CLIENT_KEY), Some(1));
    let proxy = with_files(Start::polling(&front.api_url()), false).start();
    proxy.wait_for_log("environment_poll_failed");
    assert_eq!(proxy.version_of(CLIENT_KEY), None);
}

#[test]
fn rejects_an_invalid_ca_file_at_startup() {
    let start = Start::polling("https://127.0.0.1:1/api/v1/");
    let path = start.scratch().write("ca.pem", "no certificate");
    let (code, text) = start.set("api_ca_file", path.to_str().expect("a plain path")).run();
    assert_eq!(code, Some(64), "{text}");
    assert!(text.contains("api_ca_file"), "{text}");
}
