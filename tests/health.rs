//! `edge-proxy health`, the health check of containers without curl, with every kind of listener.
use serde_json::json;

use crate::support::tls::Authority;
use crate::support::{Port, Proxy, Start, Upstream, fixture, get};
use crate::surface::{CLIENT, SERVER};

/// Exit code and output of the check with the configuration of this proxy.
fn check(proxy: &Proxy, args: &[&str]) -> (Option<i32>, String) {
    let config = proxy.scratch().path().join("config.json");
    let start = Start::command(&["health"]).env("CONFIG_PATH", config.to_str().expect("UTF-8"));
    args.iter().fold(start, |start, arg| start.arg(arg)).run()
}

fn is_well(proxy: &Proxy) {
    assert_eq!(check(proxy, &[]), (Some(0), "alive\n".to_owned()));
    let (code, text) = check(proxy, &["--ready"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("\"status\":\"ok\""), "{text}");
}

fn start() -> Start {
    Start::serve().document(CLIENT, SERVER, fixture::path("environments/Main.json"))
}

/// With a self-signed certificate; clients must present one if `client_ca`.
fn with_tls(start: Start, client_ca: bool) -> Start {
    let authority = Authority::new();
    let issued = authority.issue("flags.example");
    let mut tls = json!({
        "cert": start.scratch().write("cert.pem", &issued.certificate),
        "key": start.scratch().write("key.pem", &issued.key),
    });
    if client_ca {
        tls["client_ca"] = json!(start.scratch().write("ca.pem", authority.pem()));
    }
    start.set("server.tls", tls)
}

/// Waits by the log, because the client of the harness does not speak TLS.
fn spawn(start: Start) -> Proxy {
    let proxy = start.spawn();
    proxy.wait_for_log("reactor_started");
    proxy.wait_for_log("ready ");
    proxy
}

#[test]
fn queries_the_main_port() {
    let proxy = start().ready();
    is_well(&proxy);
    let free = Port::free().number().to_string();
    let (code, text) = check(&proxy, &["--port", &free]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains(&format!("127.0.0.1:{free}")), "{text}");
}

#[test]
fn liveness_succeeds_without_readiness() {
    let upstream = Upstream::start();
    let proxy = Start::serve().environment(CLIENT, SERVER).set("api_url", upstream.api_url()).start();
    assert_eq!(check(&proxy, &[]).0, Some(0));
    let (code, text) = check(&proxy, &["--ready"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("unhealthy") && text.contains("environment document(s) not updated."), "{text}");
}

#[test]
fn queries_over_tls_with_any_certificate() {
    is_well(&spawn(with_tls(start(), false)));
}

#[test]
fn queries_the_admin_port_if_client_certificates_are_required() {
    let admin = Port::free();
    let proxy = spawn(with_tls(start(), true).set("admin", json!({"port": admin.number()})));
    is_well(&proxy);
    let upstream = Upstream::start();
    let other = Port::free();
    let start = with_tls(Start::serve().environment(CLIENT, SERVER), true).set("api_url", upstream.api_url());
    let empty = start.set("admin", json!({"port": other.number()})).spawn();
    empty.wait_for_log("admin_listening");
    let (code, text) = check(&empty, &["--ready"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("environment document(s) not updated."), "{text}");
    assert_eq!(get(other.address(), "/proxy/health/readiness", "").status, 503);
    assert_eq!(get(admin.address(), "/proxy/health/readiness", "").status, 200);
}

#[test]
fn handshake_is_enough_for_liveness_only() {
    let proxy = spawn(with_tls(start(), true));
    let (code, text) = check(&proxy, &[]);
    assert_eq!(code, Some(0), "{text}");
    let (code, text) = check(&proxy, &["--ready"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("set admin.port or server.unix_socket"), "{text}");
}

#[test]
fn queries_the_unix_socket_if_configured() {
    let start = with_tls(start(), true);
    let socket = start.scratch().path().join("proxy.sock");
    let mut proxy = spawn(start.set("server.unix_socket", socket.to_str()));
    is_well(&proxy);
    proxy.signal("TERM");
    assert_eq!(proxy.wait().code(), Some(0));
    let (code, text) = check(&proxy, &[]);
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("proxy.sock: No such file") && text.contains("nothing is listening there"),
        "{text}"
    );
}

#[test]
fn distinguishes_a_stopped_from_a_hanging_proxy() {
    let ask =
        |port: u16| Start::command(&["health", "--host", "127.0.0.1", "--port", &port.to_string()]).run();
    let (code, text) = ask(Port::free().number());
    assert!(
        code == Some(1) && text.contains("nothing is listening there: check that the proxy is running"),
        "{text}"
    );
    // Its backlog accepts connections, and no request is answered.
    let hung = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let (code, text) = ask(hung.local_addr().expect("bound").port());
    assert!(code == Some(1) && text.contains("no response in time"), "{text}");
}

#[test]
fn readiness_is_the_same_on_both_ports() {
    let upstream = Upstream::start();
    let document = std::fs::read(fixture::path("environments/Main.json")).expect("a fixture");
    let admin = Port::free();
    let start = Start::serve().environment(CLIENT, SERVER).set("api_url", upstream.api_url());
    let start = start.set("admin", json!({"port": admin.number()})).env("API_POLL_FREQUENCY_SECONDS", "0.1");
    let mut proxy = start.set("server.shutdown_delay_seconds", 1.5).start();
    let ports = [proxy.address(), admin.address()];
    let both = || ports.map(|port| get(port, "/proxy/health/readiness", "").status);
    assert_eq!(both(), [503, 503]);
    upstream.document(SERVER, document);
    proxy.until("both are green", || (both() == [200, 200]).then_some(()));
    // While the proxy drains, readiness fails and requests are still served.
    proxy.signal("TERM");
    proxy.until("both are red", || (both() == [503, 503]).then_some(()));
    assert_eq!(proxy.wait().code(), Some(0));
}
