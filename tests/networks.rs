//! Outbound proxies, redirects, credentials in an address, environment variables of other programs, names of
//! the executable, shared ports.
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::process::Command;
use std::sync::{Arc, Mutex};

use serde_json::json;

use crate::support::document::{CLIENT_KEY, SERVER_KEY, document};
use crate::support::tls::{Authority, TlsFront};
use crate::support::{Port, Proxy, Reply, Scratch, Start, Upstream, eventually, executable, fixture, get};

fn is_served(proxy: &Proxy) -> bool {
    proxy.get("/api/v1/flags/", CLIENT_KEY).status == 200
}

fn count_in_log(proxy: &Proxy, text: &str) -> usize {
    proxy.log().lines().filter(|line| line.contains(text)).count()
}

// --- outgoing proxies ---

/// A forward proxy: tunnels (CONNECT), and requests in absolute form. With `refusal` it answers every request
/// with that.
struct ForwardProxy {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

impl ForwardProxy {
    fn start(refusal: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let heads = Arc::new(Mutex::new(Vec::new()));
        let recorded = Arc::clone(&heads);
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let recorded = Arc::clone(&recorded);
                std::thread::spawn(move || relay(connection, refusal, &recorded));
            }
        });
        Self { address, heads }
    }

    fn url(&self) -> String {
        format!("http://us%40er:word@{}", self.address)
    }

    fn take_heads(&self) -> Vec<String> {
        std::mem::take(&mut self.heads.lock().expect("not poisoned"))
    }
}

fn head_of(connection: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        connection.read(&mut byte).ok().filter(|count| *count == 1)?;
        head.push(byte[0]);
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

fn relay(mut inner: TcpStream, refusal: Option<&str>, recorded: &Mutex<Vec<String>>) {
    while let Some(head) = head_of(&mut inner) {
        recorded.lock().expect("not poisoned").push(head.clone());
        if let Some(status) = refusal {
            let _ = write!(inner, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
            continue;
        }
        let target = head.split_whitespace().nth(1).unwrap_or_default();
        if let Some(rest) = target.strip_prefix("http://") {
            let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
            let Ok(mut outer) = TcpStream::connect(authority) else { return };
            let sent = head.replacen(target, &format!("/{path}"), 1);
            outer.write_all(sent.as_bytes()).expect("the origin reads");
            let Some(mut answer) = head_of(&mut outer) else { return };
            let lower = answer.to_ascii_lowercase();
            let length = lower.split("content-length:").nth(1).and_then(|rest| rest.lines().next());
            let mut body = vec![0; length.map_or(0, |length| length.trim().parse().expect("a number"))];
            outer.read_exact(&mut body).expect("the origin sends it");
            answer.push_str(&String::from_utf8_lossy(&body));
            if inner.write_all(answer.as_bytes()).is_err() {
                return;
            }
        } else {
            let Ok(outer) = TcpStream::connect(target) else { return };
            let _ = inner.write_all(b"HTTP/1.1 200 Connected\r\n\r\n");
            let (mut from, mut to) =
                (inner.try_clone().expect("a socket"), outer.try_clone().expect("a socket"));
            std::thread::spawn(move || std::io::copy(&mut from, &mut to));
            let _ = std::io::copy(&mut &outer, &mut inner);
            return;
        }
    }
}

#[test]
fn requests_http_upstream_through_proxy_in_absolute_form() {
    let upstream = Upstream::start();
    upstream.document(SERVER_KEY, document(1));
    let own_port = format!("127.0.0.1:{}", upstream.address().port());
    let closed = "http://127.0.0.1:1";
    for (variables, is_used) in [
        (&[("HTTP_PROXY", "FORWARD")][..], true),
        (&[("all_proxy", "FORWARD")], true),
        (&[("HTTP_PROXY", closed), ("http_proxy", "FORWARD")], true),
        (&[("HTTPS_PROXY", closed)], false),
        (&[("HTTP_PROXY", closed), ("http_proxy", "")], false),
        (&[("HTTP_PROXY", closed), ("NO_PROXY", "example.com,127.0.0.1")], false),
        (&[("HTTP_PROXY", closed), ("NO_PROXY", own_port.as_str())], false),
        (&[("HTTP_PROXY", closed), ("no_proxy", "*")], false),
        (&[("HTTP_PROXY", "FORWARD"), ("NO_PROXY", "27.0.0.1,127.0.0.1:1,localhost")], true),
    ] {
        let forward = ForwardProxy::start(None);
        let start = variables.iter().fold(Start::polling(&upstream.api_url()), |start, (name, value)| {
            start.env(name, &value.replace("FORWARD", &forward.url()))
        });
        let proxy = start.ready();
        assert!(is_served(&proxy), "{variables:?}");
        if is_used {
            // Each request of a persistent connection is in absolute form.
            eventually("three polls", || {
                (forward.heads.lock().expect("not poisoned").len() >= 3).then_some(())
            });
        }
        let heads = forward.take_heads();
        assert_eq!(!heads.is_empty(), is_used, "{variables:?}");
        let line = format!("GET http://{}/api/v1/environment-document/ HTTP/1.1\r\n", upstream.address());
        for head in heads {
            assert!(head.starts_with(&line), "{head}");
            let head = head.to_ascii_lowercase();
            assert!(head.contains(&format!("\r\nhost: {}\r\n", upstream.address())), "{head}");
            // us@er:word
            assert!(head.contains("\r\nproxy-authorization: basic dxnazxi6d29yza==\r\n"), "{head}");
        }
    }
    for request in upstream.requests() {
        assert_eq!(request.target, "/api/v1/environment-document/");
    }
}

fn with_authority(start: Start, authority: &Authority) -> Start {
    let path = start.scratch().write("ca.pem", authority.pem());
    start.set("api_ca_file", path.to_str().expect("a plain path"))
}

#[test]
fn requests_https_upstream_through_a_tunnel_without_revealing_the_key() {
    let (authority, upstream) = (Authority::new(), Upstream::start());
    upstream.document(SERVER_KEY, document(1));
    let front = TlsFront::start(upstream.address(), &authority.issue("127.0.0.1"), None);
    for (variable, is_used) in [("HTTPS_PROXY", true), ("https_proxy", true), ("HTTP_PROXY", false)] {
        let forward = ForwardProxy::start(None);
        let start = with_authority(Start::polling(&front.api_url()), &authority);
        let proxy = start.env(variable, &forward.url()).ready();
        assert!(is_served(&proxy));
        let heads = forward.take_heads();
        assert_eq!(!heads.is_empty(), is_used, "{variable}");
        for head in heads {
            assert!(head.starts_with(&format!("CONNECT {} ", front.address())), "{head}");
            assert!(head.contains("Proxy-Authorization: Basic dXNAZXI6d29yZA=="), "{head}");
            assert!(!head.contains(SERVER_KEY), "a key was shown to the outgoing proxy");
        }
    }
}

/// Log and `check` name the variable that is set and the proxy, and show no password.
#[test]
fn names_an_outbound_proxy_that_rejects() {
    let closed = Port::free();
    let closed = format!("http://user:word@{}", closed.address());
    let forbidding = ForwardProxy::start(Some("403 Forbidden"));
    let asking = ForwardProxy::start(Some("407 Proxy Authentication Required"));
    let (http, https) = ("http://flags.internal/api/v1/", "https://flags.internal/api/v1/");
    for (api_url, variable, value, words) in [
        (https, "https_proxy", forbidding.url(), &["(https_proxy): CONNECT was refused", "403"][..]),
        (https, "HTTPS_PROXY", closed.clone(), &["(HTTPS_PROXY): connection refused", "and HTTPS_PROXY"]),
        (http, "ALL_PROXY", closed.clone(), &["(ALL_PROXY): connection refused", "and ALL_PROXY"]),
        (
            http,
            "HTTP_PROXY",
            asking.url(),
            &["answered 407", "(HTTP_PROXY)", "requires a user and a password"],
        ),
        (http, "http_proxy", forbidding.url(), &["answered 403", "(sent through", "(http_proxy)"]),
    ] {
        let proxy = Start::polling(api_url).env(variable, &value).start();
        let line = proxy.wait_for_log("environment_poll_failed");
        let name = format!("the outgoing proxy http://{}", value.rsplit('@').next().expect("an address"));
        let (code, checked) = Start::polling(api_url).check().arg("--online").env(variable, &value).run();
        assert_eq!(code, Some(1), "{checked}");
        for text in [&line, &checked] {
            for words in words.iter().chain([&name.as_str()]) {
                assert!(text.contains(words), "{words} in {text}");
            }
            assert!(!text.contains(":word@") && !text.contains(SERVER_KEY), "{text}");
        }
    }
}

#[test]
fn rejects_invalid_proxy_variables_by_name() {
    for variable in ["HTTP_PROXY", "http_proxy", "all_proxy"] {
        let (code, text) =
            Start::polling("http://127.0.0.1:1/").env(variable, "socks5://127.0.0.1:1080").run();
        assert_eq!(code, Some(64), "{text}");
        assert!(text.contains(&format!("{variable}: SOCKS is not supported")), "{text}");
    }
}

// --- addresses of the API ---

#[test]
fn sends_decoded_credentials_of_the_url() {
    let upstream = Upstream::start();
    upstream.document(SERVER_KEY, document(1));
    let url = format!("http://us%40er:w%3Ard@{}/api/v1/", upstream.address());
    let proxy = Start::polling(&url).ready();
    assert!(is_served(&proxy));
    for request in upstream.requests() {
        // us@er:w:rd
        assert_eq!(request.header("authorization"), Some("Basic dXNAZXI6dzpyZA=="));
    }
    upstream.refuse();
    assert!(!proxy.wait_for_log("environment_poll_failed").contains("us%40er"));
}

/// nginx in front of an API often redirects http this way. The Python proxy follows with its key.
#[test]
fn follows_redirect_to_https_of_the_same_host_with_the_key() {
    let (authority, upstream, plain) = (Authority::new(), Upstream::start(), Upstream::start());
    upstream.document(SERVER_KEY, document(1));
    upstream.on("/api/v1/analytics/flags/", Reply::json("{}"));
    let front = TlsFront::start(upstream.address(), &authority.issue("127.0.0.1"), None);
    let target = format!("https://{}", front.address());
    plain.rule(move |request| Some(Reply::redirect(301, &format!("{target}{}", request.target))));
    let proxy = with_authority(Start::polling(&plain.api_url()), &authority)
        .set("analytics.flush_interval_seconds", 0.1)
        .ready();
    assert!(is_served(&proxy));
    assert_eq!(proxy.post("/api/v1/analytics/flags/", CLIENT_KEY, r#"{"version": 3}"#).status, 200);
    upstream.wait("the counts", |requests| {
        requests
            .iter()
            .any(|request| request.path() == "/api/v1/analytics/flags/" && request.body.ends_with(b"3}"))
    });
    for request in upstream.requests_for("/api/v1/environment-document/") {
        assert_eq!(request.key(), SERVER_KEY);
    }
}

#[test]
fn follows_redirect_to_another_host_without_the_key() {
    let (authority, upstream, plain) = (Authority::new(), Upstream::start(), Upstream::start());
    upstream.document(SERVER_KEY, document(1));
    let front = TlsFront::start(upstream.address(), &authority.issue("localhost"), None);
    let target = format!("https://localhost:{}", front.address().port());
    plain.rule(move |request| Some(Reply::redirect(301, &format!("{target}{}", request.target))));
    let proxy = with_authority(Start::polling(&plain.api_url()), &authority).start();
    let line = proxy.wait_for_log("environment_poll_failed");
    assert!(line.contains("keys are not sent to another origin"), "{line}");
    for request in upstream.requests() {
        assert_eq!(request.header("x-environment-key"), None);
    }
}

// --- keys ---

#[test]
fn second_pair_rotates_a_server_side_key() {
    let upstream = Upstream::start();
    upstream.on_key("ser.old", Reply::new(403, r#"{"detail":"no"}"#));
    upstream.document("ser.new", document(1));
    let pairs = |start: Start| {
        let start = start.environment(CLIENT_KEY, "ser.old").environment(CLIENT_KEY, "ser.new");
        start.environment(CLIENT_KEY, "ser.old").set("api_url", upstream.api_url())
    };
    let mut proxy = pairs(Start::serve()).set("api_poll_frequency_seconds", 0.1).ready();
    for key in [CLIENT_KEY, "ser.old", "ser.new"] {
        assert_eq!(proxy.get("/api/v1/flags/", key).status, 200, "{key}");
    }
    assert_eq!(count_in_log(&proxy, "client_side_key_repeated"), 2, "{}", proxy.log());
    proxy.signal("TERM");
    assert!(proxy.wait().success());
    let (code, text) = pairs(Start::serve()).check().arg("--online").run();
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("one of its server-side keys failed"), "{text}");
}

// --- variables ---

#[test]
fn ignores_variables_of_other_programs() {
    let upstream = Upstream::start();
    upstream.document(SERVER_KEY, document(1));
    let start = Start::polling(&upstream.api_url())
        .env("DOCUMENTS", "/home/x")
        .env("SSE_MAX_STREAM_SECONDS", "0,5")
        .env("ADMIN_PORT", "tcp://10.0.0.1:8001")
        .env("REALTIME", "on")
        .env("PORT", "80")
        .env("SSL_CERT_FILE", "")
        .env("CACHE_DIR", "")
        .env("ANALYTICS_FLUSH_INTERVAL_SECONDS", "7")
        .env("EDGE_PROXY_HEALTH_CHECK_REQUIRE", "any");
    let mut proxy = start.ready();
    assert!(is_served(&proxy));
    proxy.wait_for_log("unprefixed_variable_used");
    for (event, words) in [
        ("variable_ignored", "variable=DOCUMENTS"),
        ("variable_ignored", "variable=SSE_MAX_STREAM_SECONDS"),
        ("variable_ignored", "variable=REALTIME"),
        ("service_link_variable_ignored", "variable=ADMIN_PORT"),
        ("unknown_variable_ignored", "set EDGE_PROXY_SERVER_PORT"),
        (
            "unprefixed_variable_used",
            "variable=ANALYTICS_FLUSH_INTERVAL_SECONDS prefixed=EDGE_PROXY_ANALYTICS_FLUSH_INTERVAL_SECONDS",
        ),
    ] {
        let log = proxy.log();
        let lines = log.lines().filter(|line| line.contains(event) && line.contains(words));
        // PORT is hinted at only if server.port is not set, as here.
        let expected = usize::from(event != "unknown_variable_ignored");
        assert_eq!(lines.count(), expected, "{event} {words} in\n{log}");
    }
    assert!(!proxy.log().contains("/home/x"), "a value of another program may be a secret");
    proxy.signal("HUP");
    proxy.wait_for_log("configuration_reloaded");
    assert_eq!(count_in_log(&proxy, "unprefixed_variable_used"), 1, "once, at start");
    proxy.signal("TERM");
    assert!(proxy.wait().success());
}

#[test]
fn rejects_invalid_variables_of_the_python_proxy() {
    for (name, value) in [
        ("API_URL", ""),
        ("API_POLL_FREQUENCY_SECONDS", "often"),
        ("LOGGING", "debug"),
        ("SERVER", "8000"),
        ("HEALTH_CHECK", "true"),
        ("EDGE_PROXY_CORES", "0.5"),
        ("EDGE_PROXY_SERVER_PORT", "web"),
    ] {
        let (code, text) = Start::command(&["serve", "--document", "x.json"]).env(name, value).run();
        assert_eq!(code, Some(64), "{name}: {text}");
        assert!(text.contains(name), "{text}");
    }
}

#[test]
fn no_color_disables_colour() {
    for (value, is_coloured) in [("", true), ("1", false)] {
        let start = Start::demo_document().env("EDGE_PROXY_LOGGING_COLOURS", "true").env("NO_COLOR", value);
        let proxy = start.start();
        let line = proxy.wait_for_log("reactor_started");
        assert_eq!(line.contains('\x1b'), is_coloured, "NO_COLOR={value:?}: {line:?}");
    }
}

// --- names of the executable ---

#[test]
fn executable_name_selects_subcommand() {
    let scratch = Scratch::new();
    let executable = std::path::Path::new(executable());
    for kind in ["symlink", "hard link"] {
        let link = |name: &str| {
            let path = scratch.path().join(name);
            let _ = std::fs::remove_file(&path);
            if kind == "symlink" {
                symlink(executable, &path).expect("scratch space");
            } else if std::fs::hard_link(executable, &path).is_err() {
                // Another file system.
                std::fs::copy(executable, &path).expect("scratch space");
            }
            path
        };
        let run = |name: &str, args: &[&str]| {
            let mut command = Command::new(link(name));
            let output =
                command.args(args).env_clear().current_dir(scratch.path()).output().expect("it starts");
            let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            (output.status.code(), text)
        };
        let _ = std::fs::remove_file(scratch.path().join("config.json"));
        let (code, text) = run("edge-proxy-render-config", &[]);
        assert_eq!(code, Some(0), "{kind}: {text}");
        assert!(scratch.path().join("config.json").exists() && text.contains("environment_key_pairs"));
        std::fs::write(scratch.path().join("config.json"), "{}").expect("scratch space");
        let (code, text) = run("edge-proxy-serve", &["--port", "0"]);
        assert_eq!(code, Some(64), "it would serve, but has nothing to: {text}");
        assert!(text.contains("environment_key_pairs: not set"), "{text}");
        let (code, text) = run("edge-proxy-serve", &["--cores", "x", "--no-such-flag"]);
        assert_eq!((code, text.contains("edge-proxy-serve serve")), (Some(64), true), "{text}");
    }
}

#[test]
fn version_includes_the_commit() {
    let run = |args: &[&str]| Start::command(args).run();
    let expected = format!("edge-proxy {} (", env!("CARGO_PKG_VERSION"));
    for args in [&["--version"][..], &["-V"]] {
        let (code, text) = run(args);
        assert_eq!(code, Some(0));
        assert!(text.starts_with(&expected) && text.trim_end().ends_with(')'), "{text}");
    }
    // Variables of a release build: runs the build script as cargo does.
    let scratch = Scratch::new();
    let script = scratch.path().join("build");
    let mut rustc = Command::new("rustc");
    rustc.args(["--edition", "2024", "-o"]).arg(&script).arg("build.rs").current_dir(fixture::root());
    assert!(rustc.status().expect("rustc is there").success());
    let sha = |directory: &std::path::Path, variables: &[(&str, &str)]| {
        let mut command = Command::new(&script);
        command.current_dir(directory).env("CARGO_MANIFEST_DIR", directory).env_remove("EDGE_PROXY_GIT_SHA");
        let output = command.envs(variables.iter().copied()).output().expect("it starts");
        let text = String::from_utf8(output.stdout).expect("text");
        let line = text.lines().find_map(|line| line.strip_prefix("cargo:rustc-env=EDGE_PROXY_GIT_SHA="));
        line.expect("a line").to_owned()
    };
    let release = ("PROFILE", "release");
    assert_eq!(sha(fixture::root(), &[release, ("EDGE_PROXY_GIT_SHA", "abc123")]), "abc123");
    assert_eq!(sha(scratch.path(), &[release]), "unknown");
    assert_eq!(sha(scratch.path(), &[release, ("EDGE_PROXY_GIT_SHA", "")]), "unknown");
    let git = Command::new("git").args(["rev-parse", "HEAD"]).current_dir(fixture::root()).output();
    if let Some(head) = git.ok().filter(|output| output.status.success()) {
        let (head, own) =
            (String::from_utf8_lossy(&head.stdout).into_owned(), sha(fixture::root(), &[release]));
        assert!(own.len() >= 12 && head.starts_with(&own), "{own} of {head}");
    }
}

// --- two processes at one port ---

#[test]
fn second_process_on_the_port_serves_and_warns() {
    let upstream = Upstream::start();
    upstream.document(SERVER_KEY, document(1));
    let first = Start::polling(&upstream.api_url()).ready();
    let port = first.address().port();
    let second = |start: Start| start.set("server.port", port).with_admin().spawn();
    let shared = second(Start::polling(&upstream.api_url()));
    let line = shared.wait_for_log("port_shared");
    assert!(line.contains("warning") && line.contains("--take-over"), "{line}");
    let status = get(shared.admin(), "/status.json", "").json();
    let errors = status["errors"].as_array().expect("a list");
    assert!(errors.iter().any(|error| error["event"] == "port_shared"), "{status}");
    eventually("the second process serves", || (shared.metric("edge_proxy_ready") == 1.0).then_some(()));
    assert_eq!(get(first.address(), "/api/v1/flags/", CLIENT_KEY).status, 200);
    let (code, text) = Start::polling(&upstream.api_url()).set("server.port", port).check().run();
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("warn  server.port: port_shared"), "{text}");
    drop(shared);
    for start in [
        Start::polling(&upstream.api_url()).arg("--take-over"),
        Start::polling(&upstream.api_url()).set("server.take_over", true),
        Start::polling(&upstream.api_url()).env("EDGE_PROXY_SERVER_TAKE_OVER", "true"),
    ] {
        let successor = second(start);
        successor.wait_for_log("reactor_started");
        // Longer than the check takes.
        std::thread::park_timeout(std::time::Duration::from_millis(1500));
        assert_eq!(count_in_log(&successor, "port_shared"), 0, "{}", successor.log());
    }
    let (code, text) =
        Start::polling(&upstream.api_url()).set("server.port", port).check().arg("--take-over").run();
    assert!(code == Some(0) && !text.contains("port_shared"), "{text}");
}

#[test]
fn demo_does_not_share_its_port() {
    let demo = Start::demo().start();
    let port = demo.address().port().to_string();
    let (code, text) = Start::command(&["demo", "--port", &port]).run();
    assert_eq!(code, Some(69), "{text}");
    assert!(text.contains(&port) && text.contains("--port"), "{text}");
}

// --- check ---

#[test]
fn check_changes_nothing_on_disk() {
    let scratch = Scratch::new();
    let list = || {
        let mut command = Command::new("find");
        let found =
            command.arg(scratch.path()).args(["-printf", "%p %T@ %C@\n"]).output().expect("find is there");
        String::from_utf8(found.stdout).expect("text")
    };
    let there = scratch.path().join("there");
    std::fs::create_dir(&there).expect("scratch space");
    let socket = there.join("proxy.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("scratch space"));
    let before = list();
    let (own, missing) = (there.clone(), there.join("a/b"));
    for (cache, words) in [(&own, "is writable"), (&missing, "will be created in")] {
        let start =
            Start::polling("http://127.0.0.1:1/").set("cache_dir", cache.to_str().expect("a plain path"));
        let start = start.set("server.unix_socket", socket.to_str().expect("a plain path"));
        let (code, text) = start.check().run();
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains(words), "{text}");
        assert_eq!(list(), before);
    }
    let file = scratch.write("file", "");
    let start = Start::polling("http://127.0.0.1:1/").set("cache_dir", format!("{}/cache", file.display()));
    let (code, text) = start.check().run();
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("FAIL  cache_dir:") && text.contains("cannot be created"), "{text}");
}

#[test]
fn check_warns_of_the_keys_of_the_example() {
    let warning = "the keys are those of an example";
    for (client, server, is_example) in [
        ("environment_key", "ser.environment_key", true),
        ("your_client_side_key_1", "ser.your_server_side_key_1", true),
        (CLIENT_KEY, "ser.environment_key", true),
        (CLIENT_KEY, SERVER_KEY, false),
    ] {
        let (code, text) = Start::serve().environment(client, server).check().run();
        assert_eq!((code, text.contains(warning)), (Some(0), is_example), "{text}");
    }
    let rendered =
        json!(serde_json::from_str::<serde_json::Value>(edge_proxy::config::DEFAULT_JSON).expect("JSON"));
    assert_eq!(rendered["environment_key_pairs"][0]["client_side_key"], "environment_key");
}
