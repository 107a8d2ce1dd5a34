//! curl as a client, and nginx and HAProxy from Debian as reverse proxies with persistent connections.
//!
//! A test whose program is not installed is skipped with a message.
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::conformance::count_of;
use crate::support::{Client, Port, Proxy, Start, eventually, fixture};
use crate::surface::{CLIENT, SERVER, document};

fn start() -> Proxy {
    let start = Start::serve().with_admin();
    let path = start.scratch().write("document.json", document(0).to_string());
    start.document(CLIENT, SERVER, path).ready()
}

/// The program's path; prints a message if it is not installed.
pub fn program(name: &str) -> Option<String> {
    let places = ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"];
    let found =
        places.iter().map(|place| format!("{place}/{name}")).find(|path| std::path::Path::new(path).exists());
    if found.is_none() {
        fixture::say(&format!("SKIPPED: {name} is not installed (apt-get install {name})"));
    }
    found
}

/// A program in the foreground, which is stopped when this handle is dropped.
struct Running(Child);

impl Running {
    fn start(program: &str, args: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().expect("the program starts"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // nginx's master stops its worker on SIGTERM, not when it is killed.
        let _ = Command::new("kill").arg("-TERM").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

/// Many exchanges of every kind over one connection to the reverse proxy.
fn exercise(front: SocketAddr) {
    let connected = eventually("the reverse proxy answers", || {
        let mut client = Client::try_connect(front).ok()?;
        let answer = client.request("GET", "/proxy/health/liveness", &[], b"");
        (answer.status == 200).then_some(client)
    });
    let mut client = connected;
    let key = [("X-Environment-Key", SERVER), ("Content-Type", "application/json")];
    let body = format!(r#"{{"identifier": "u", "traits": [], "unknown": "{}"}}"#, "i".repeat(10_000));
    for _ in 0..100 {
        let flags = client.request("GET", "/api/v1/flags/", &key, b"");
        assert_eq!(flags.status, 200, "{}", flags.text());
        assert!(flags.text().contains("banner"), "{}", flags.text());
        let identity = client.request("POST", "/api/v1/identities/", &key, body.as_bytes());
        assert_eq!(identity.status, 200, "{}", identity.text());
        assert_eq!(client.request("HEAD", "/api/v1/flags/", &key, b"").status, 200);
        assert_eq!(client.request("GET", "/unknown", &key, b"").status, 404);
    }
}

/// Obfuscated lengths and codings, and payloads that hide a second request.
const FRAMINGS: [&str; 24] = [
    "Content-Length: 5\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: chunked\r\nContent-Length: 5",
    "Transfer-Encoding: xchunked",
    "Transfer-Encoding : chunked",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: x",
    "Transfer-Encoding: x\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding:\tchunked",
    "Transfer-Encoding: \u{b}chunked",
    " Transfer-Encoding: chunked",
    "X: y\nTransfer-Encoding: chunked",
    "X: y\rTransfer-Encoding: chunked",
    "Transfer-Encoding\n: chunked",
    "Transfer-Encoding: chunked, identity",
    "Transfer-Encoding: \"chunked\"",
    "Transfer-Encoding: chunKed",
    "Content-Length: +0",
    "Content-Length: 0\r\nContent-Length: 50",
    "Content-Length: 0, 0",
    "Content-Length: 0x5",
    "Content-Length:",
    "Content-Length: 5\r\nExpect: 100-continue",
    "Content-Length: 5\r\nConnection: Content-Length",
    "Transfer-Encoding: chunked\r\nConnection: Transfer-Encoding",
    "Content-Length: 5\r\nContent-Encoding: gzip",
];
const BODIES: [&str; 10] = [
    "0\r\n\r\n",
    "0\r\n\r\nx",
    "0;a=b\r\n\r\n",
    "0\n\r\n",
    "00\r\nContent-Length: 90\r\n\r\n",
    "1\r\nZ\r\n0\r\nHost: b\r\n\r\n",
    "5;\nabcde\r\n0\r\n\r\n",
    "fffffffffffffff0\r\n",
    "",
    "0\r\n \r\n",
];

/// Requests that try to smuggle another one, each followed by another client's request on a separate
/// connection: the response must be that client's. `SMUGGLING=2000` is the long form.
fn smuggle(name: &str, front: SocketAddr) {
    let payloads = count_of("SMUGGLING", 240);
    let hidden = format!(
        "GET /api/v1/identities/?identifier=smuggled HTTP/1.1\r\nX-Environment-Key: {SERVER}\r\nHost: a\r\n\r\n"
    );
    let key = [("X-Environment-Key", SERVER)];
    let (mut honest, mut served, mut refused) = (Client::connect(front), 0, 0);
    for number in 0..payloads {
        let at = usize::try_from(number).expect("few");
        let (framing, body) = (FRAMINGS[at % 24], BODIES[at / 24 % 10]);
        // From the second round on, a part of the hidden request is the body of the first one.
        let cut = at / 240 * 7 % hidden.len();
        let method = ["POST", "GET"][(at + at / 24) % 2];
        let payload = format!(
            "{method} /api/v1/identities/?identifier=a HTTP/1.1\r\nHost: a\r\nX-Environment-Key: {SERVER}\r\n\
             Content-Type: application/json\r\n{framing}\r\n\r\n{}{body}{}",
            &hidden[..cut],
            &hidden[cut..],
        );
        let mut attacker = Client::connect(front);
        let _ = attacker.try_send(&payload);
        // An incomplete payload gets no response. The connection stays open, because reverse proxies treat a
        // half-closed client as disconnected.
        attacker.stream().set_read_timeout(Some(Duration::from_millis(20))).expect("a timeout");
        match attacker.try_answer(method) {
            Ok(Some(answer)) if answer.status == 200 => served += 1,
            Ok(Some(_)) => refused += 1,
            Ok(None) | Err(_) => {}
        }
        for round in 0..2 {
            let identifier = format!("honest-{number}-{round}");
            let target = format!("/api/v1/identities/?identifier={identifier}");
            let answer = honest.request("GET", &target, &key, b"");
            assert_eq!(answer.status, 200, "{name}: after {payload:?}: {}", answer.text());
            assert_eq!(answer.json()["identifier"], *identifier, "{name}: after {payload:?}");
            if answer.header("connection") == Some("close") {
                honest = Client::connect(front);
            }
        }
    }
    fixture::say(&format!(
        "smuggling behind {name}: {payloads} payloads, {served} served, {refused} refused, none misplaced"
    ));
    // If no payload were forwarded, or none rejected, the test would prove nothing.
    assert!(served > 0 && refused > 0, "{served} {refused}");
}

/// It stops on SIGTERM although connections of the reverse proxy are open.
fn assert_ends(proxy: &mut Proxy) {
    proxy.signal("TERM");
    assert!(proxy.wait().success(), "{}", proxy.log());
    assert!(proxy.log().contains("connections_cut_count=0"), "{}", proxy.log());
}

#[test]
fn serves_curl() {
    let Some(curl) = program("curl") else { return };
    let proxy = start();
    let url = format!("{}flags/", proxy.api_url());
    let key = format!("X-Environment-Key: {SERVER}");
    let run = |args: &[&str]| {
        let output = Command::new(&curl).args(["-sS", "--max-time", "10", "-H", &key]).args(args).output();
        let output = output.expect("curl runs");
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    for args in [vec![], vec!["--http1.0"], vec!["--compressed"], vec!["-H", "Connection: close"]] {
        let mut args = args;
        args.push(&url);
        assert!(run(&args).contains("banner"), "{args:?}");
    }
    assert!(run(&["-I", &url]).starts_with("HTTP/1.1 200 OK"));
    // Both use one connection, according to curl.
    let twice = run(&["-w", "%{num_connects};", "-o", "/dev/null", &url, "-o", "/dev/null", &url]);
    assert_eq!(twice, "1;0;");
    let identities = format!("{}identities/", proxy.api_url());
    let body = format!(r#"{{"identifier": "u", "unknown": "{}"}}"#, "i".repeat(3000));
    let json = "Content-Type: application/json";
    // For a body of that size curl sends `Expect: 100-continue`.
    for more in [["-H", "Expect: 100-continue"], ["-H", "Transfer-Encoding: chunked"]] {
        let answer = run(&[more[0], more[1], "-H", json, "-d", &body, &identities]);
        assert!(answer.contains("\"flags\""), "{more:?}: {answer}");
    }
}

fn nginx(proxy: &Proxy, port: &Port, pass: &str) -> Option<Running> {
    let nginx = program("nginx")?;
    let folder = proxy.scratch().path().display().to_string();
    let config = format!(
        "daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log;\n\
         events {{ worker_connections 64; }}\n\
         http {{ access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p;\n\
         fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;\n\
         upstream edge {{ server {}; keepalive 8; }}\n\
         server {{ listen {} reuseport; keepalive_requests 10000; location / {{ {pass} }} }} }}\n",
        proxy.address(),
        port.address(),
    );
    let path = proxy.scratch().write("nginx.conf", config);
    Some(Running::start(&nginx, &["-c", path.to_str().expect("UTF-8"), "-p", &folder]))
}

#[test]
fn serves_nginx_over_persistent_connections() {
    let (mut proxy, port) = (start(), Port::free());
    let pass = "proxy_pass http://edge; proxy_http_version 1.1; proxy_set_header Connection \"\"; \
                proxy_next_upstream off;";
    let Some(_running) = nginx(&proxy, &port, pass) else { return };
    exercise(port.address());
    smuggle("nginx", port.address());
    assert_ends(&mut proxy);
}

/// nginx's client of HTTP/2 is that of its gRPC module, before 1.29.4.
#[test]
fn serves_nginx_over_http_2() {
    let (mut proxy, port) = (start(), Port::free());
    let Some(_running) = nginx(&proxy, &port, "grpc_pass grpc://edge; grpc_next_upstream off;") else {
        return;
    };
    exercise(port.address());
    assert_spoke_http2(&proxy);
    smuggle("nginx with HTTP/2", port.address());
    assert_ends(&mut proxy);
}

fn haproxy(proxy: &Proxy, port: &Port, options: &str) -> Option<Running> {
    let haproxy = program("haproxy")?;
    let config = format!(
        "defaults\n mode http\n timeout connect 5s\n timeout client 20s\n timeout server 20s\n \
         http-reuse always\nlisten edge\n bind {}\n option httpchk GET /proxy/health/readiness\n \
         server one {} {options} check inter 200ms\n",
        port.address(),
        proxy.address(),
    );
    let path = proxy.scratch().write("haproxy.cfg", config);
    Some(Running::start(&haproxy, &["-db", "-f", path.to_str().expect("UTF-8")]))
}

#[test]
fn serves_haproxy_over_persistent_connections() {
    let (mut proxy, port) = (start(), Port::free());
    let Some(_running) = haproxy(&proxy, &port, "") else { return };
    exercise(port.address());
    smuggle("HAProxy", port.address());
    assert_ends(&mut proxy);
}

#[test]
fn serves_haproxy_over_http_2() {
    let (mut proxy, port) = (start(), Port::free());
    let Some(_running) = haproxy(&proxy, &port, "proto h2") else { return };
    exercise(port.address());
    assert_spoke_http2(&proxy);
    smuggle("HAProxy with HTTP/2", port.address());
    assert_ends(&mut proxy);
}

/// The 400 requests of [`exercise`] were streams.
fn assert_spoke_http2(proxy: &Proxy) {
    let streams = proxy.metric("edge_proxy_http2_streams_total");
    assert!(streams >= 400.0, "{streams}");
    assert_eq!(proxy.metric("edge_proxy_http2_goaway_total{code=\"protocol_error\"}"), 0.0);
}
