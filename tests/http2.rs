//! HTTP/2: the same answers as HTTP/1.1, conformance, real clients, and how a connection ends.
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use edge_proxy::http::hpack::decoder::HpackDecoder;
use serde_json::{Value, json};

use crate::reverse_proxies::program;
use crate::support::http2::{self, END_STREAM, Http2Client};
use crate::support::tls::Authority;
use crate::support::translated::{self, Parts};
use crate::support::{
    Answer, Client, PATIENCE, Proxy, Scratch, Start, Upstream, eventually, fixture, python,
};
use crate::surface::{CLIENT, SERVER, document};

const FLAGS: &str = "/api/v1/flags/";
const KEY: (&str, &str) = ("X-Environment-Key", SERVER);
const STREAM: &str = "/sse/environments/SurfaceClientKey/stream";
const NO_ERROR: u32 = 0;
const CANCEL: u32 = 8;

fn prepare() -> Start {
    let start = Start::serve();
    let path = start.scratch().write("document.json", document(0).to_string());
    start.document(CLIENT, SERVER, path)
}

fn with_tls(start: Start) -> Start {
    let issued = Authority::new().issue("localhost");
    let cert = start.scratch().write("cert.pem", issued.certificate);
    let key = start.scratch().write("key.pem", issued.key);
    start.set("server.tls", json!({"cert": cert, "key": key}))
}

/// Waits without the HTTP client of the harness, which does not speak TLS.
fn spawn(start: Start) -> Proxy {
    let proxy = start.spawn();
    proxy.wait_for_log("ready ");
    proxy.wait_for_log("reactor_started");
    eventually("it listens", || TcpStream::connect(proxy.address()).ok());
    proxy
}

// --- conformance ---

fn play(proxy: &Proxy, options: &[&str]) {
    let (cases, server) = (fixture::path("conformance/http2.jsonl"), proxy.address().to_string());
    let field = format!("x-environment-key:{SERVER}");
    let arguments = [cases.to_str().expect("UTF-8"), &server, "--path", FLAGS, "--field", &field];
    let printed = python::run("http2_conformance.py", &[&arguments[..], options].concat());
    let total = printed.lines().last().expect("totals");
    assert!(total.starts_with("202 cases, 202 pass"), "{printed}");
    fixture::say(&format!("conformance of HTTP/2 {options:?}: {total}"));
}

#[test]
fn conformance_cases_pass_in_cleartext() {
    play(&prepare().ready(), &[]);
}

#[test]
fn conformance_cases_pass_over_tls() {
    play(&spawn(with_tls(prepare())), &["--tls"]);
}

fn bytes_of(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).expect("ASCII"));
    digits.map(|pair| u8::from_str_radix(pair, 16).expect("hex")).collect()
}

/// The fields of a block in order, a character for each byte.
fn decoded(decoder: &mut HpackDecoder, hex: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let text = |bytes: &[u8]| bytes.iter().map(|byte| char::from(*byte)).collect::<String>();
    let result = decoder.decode(&bytes_of(hex), |name, value| {
        found.push((text(name), text(value)));
        true
    });
    assert_eq!(result, Ok(()), "{hex}");
    found
}

/// The stories of the HPACK test suite, which the package httlib-hpack contains.
fn story_folder() -> PathBuf {
    let arguments = ["metadata", "--format-version", "1", "--locked", "--offline"];
    let output = Command::new(env!("CARGO")).args(arguments).current_dir(fixture::root()).output();
    let output = output.expect("cargo is there");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let package = packages.iter().find(|package| package["name"] == "httlib-hpack").expect("a dependency");
    Path::new(package["manifest_path"].as_str().expect("a path")).with_file_name("fixtures")
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths
}

#[test]
fn header_blocks_of_the_hpack_test_suite_are_decoded() {
    const TABLE_BYTES_MAX: u64 = 4096;
    let (mut played, mut passed_over, mut blocks) = (0, 0, 0);
    for encoder in entries(&story_folder()).into_iter().filter(|path| path.is_dir()) {
        for path in entries(&encoder) {
            let story: Value =
                serde_json::from_slice(&std::fs::read(&path).expect("a story")).expect("a story is JSON");
            let cases = story["cases"].as_array().expect("cases");
            // Encoders that were allowed a larger table than the one this proxy offers.
            if cases.iter().any(|case| case["header_table_size"].as_u64() > Some(TABLE_BYTES_MAX)) {
                passed_over += 1;
                continue;
            }
            let mut decoder = HpackDecoder::default();
            for case in cases {
                let headers = case["headers"].as_array().expect("headers");
                let fields = headers.iter().flat_map(|header| header.as_object().expect("a field"));
                let expected: Vec<(String, String)> = fields
                    .map(|(name, value)| (name.clone(), value.as_str().expect("a value").to_owned()))
                    .collect();
                let wire = case["wire"].as_str().expect("a block");
                assert_eq!(decoded(&mut decoder, wire), expected, "{}: {wire}", path.display());
                blocks += 1;
            }
            played += 1;
        }
    }
    fixture::say(&format!("HPACK stories: {played} played, {passed_over} passed over, {blocks} blocks"));
    assert!(played >= 300 && blocks >= 3_000, "{played} stories, {blocks} blocks");
}

/// The decoder reads what another encoder has written, with Huffman codes, a dynamic table and changes of its size.
#[test]
fn header_blocks_of_another_encoder_are_decoded() {
    let seed = u64::from(std::process::id()).to_string();
    let printed = python::run("hpack_stories.py", &[&seed, "150"]);
    let mut fields = 0;
    for story in printed.lines() {
        let blocks: Vec<(String, Vec<(String, String)>)> = serde_json::from_str(story).expect("a story");
        let mut decoder = HpackDecoder::default();
        for (hex, expected) in blocks {
            let found = decoded(&mut decoder, &hex);
            assert_eq!(found, expected, "seed {seed}: {hex}");
            fields += found.len();
        }
    }
    assert!(fields > 5_000, "{fields}");
}

// --- the same answers ---

/// What must be the same: all but the fields of a connection, and an identifier that was made for the answer.
fn essence(answer: &Answer) -> (u16, Vec<(String, String)>, String) {
    let of_connection = ["connection", "transfer-encoding", "date"];
    let mut headers = answer.headers.clone();
    headers.retain(|(name, _)| !of_connection.contains(&name.as_str()));
    if answer.header("content-encoding").is_some() {
        // The second answer may come from the cache of compressed results, which compresses better.
        headers.retain(|(name, _)| name != "content-length");
    }
    let plain = answer.plain();
    let is_random = plain.windows(46).any(|window| {
        window.strip_prefix(b"\"identifier\":\"").is_some_and(|rest| rest.iter().all(u8::is_ascii_hexdigit))
    });
    if is_random {
        headers.retain(|(name, _)| name != "content-length");
        return (answer.status, headers, String::new());
    }
    (answer.status, headers, String::from_utf8_lossy(&plain).into_owned())
}

fn recorded_requests() -> Vec<(bool, Vec<u8>)> {
    let bytes = |text: &str| text.chars().map(|char| char as u8).collect::<Vec<u8>>();
    let mut requests: Vec<(bool, Vec<u8>)> = Vec::new();
    for line in fixture::json_lines("wire/requests.jsonl") {
        let request = bytes(line[0].as_str().expect("a request"));
        requests.push((line[1] == true, request));
    }
    for case in fixture::json_lines("conformance/http1.jsonl") {
        let send = &case["steps"][0]["send"];
        let Some(text) = send.as_array().filter(|send| send.len() == 1).and_then(|send| send[0].as_str())
        else {
            continue;
        };
        let text = text.replace("$HOST", "127.0.0.1:12345").replace("$KEY", SERVER);
        requests.push((true, bytes(&text)));
    }
    // One of each route, status and kind of body, which the recordings lack.
    for (method, target, fields, body) in [
        ("GET", "/proxy/health/readiness", "", ""),
        ("GET", "/proxy/health/liveness", "", ""),
        ("HEAD", FLAGS, "Accept-Encoding: gzip\r\n", ""),
        ("GET", FLAGS, "If-None-Match: *\r\n", ""),
        ("GET", FLAGS, "If-Match: \"x\"\r\n", ""),
        ("GET", "/api/v1/environment-document/", "Accept-Encoding: gzip\r\n", ""),
        ("POST", "/api/v1/bulk-identities/", "", r#"{"data": [{"identifier": "a"}]}"#),
        (
            "POST",
            "/api/v1/traits/",
            "",
            r#"{"identity": {"identifier": "a"}, "trait_key": "k", "trait_value": 1}"#,
        ),
        ("POST", "/api/v1/analytics/flags/", "", r#"{"banner": 1}"#),
        ("POST", "/api/v2/analytics/flags/", "", r#"{"evaluations": []}"#),
        ("POST", "/ofrep/v1/evaluate/flags", "", r#"{"context": {"targetingKey": "u"}}"#),
        ("POST", "/ofrep/v1/evaluate/flags/banner", "", r#"{"context": {"targetingKey": "u"}}"#),
        ("POST", "/proxy/explain", "", r#"{"identifier": "u"}"#),
        ("GET", "/openapi.json", "Accept-Encoding: gzip\r\n", ""),
        ("GET", "/docs", "", ""),
        ("GET", "/demo/", "", ""),
        ("HEAD", STREAM, "", ""),
        ("GET", "/sse/environments/nope/stream", "", ""),
        ("OPTIONS", "*", "", ""),
        ("POST", "/api/v1/identities/", "Content-Encoding: br\r\n", "{}"),
        ("POST", "/api/v1/identities/", "Content-Encoding: gzip\r\n", "{}"),
        ("DELETE", FLAGS, "", ""),
    ] {
        let length = body.len();
        let head =
            format!("{method} {target} HTTP/1.1\r\nHost: a\r\nX-Environment-Key: {SERVER}\r\n{fields}");
        let content = format!("Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}");
        requests.push((true, format!("{head}{content}").into_bytes()));
    }
    requests
}

/// The table is every request that the tests of HTTP/1.1 send as bytes and that HTTP/2 can express.
#[test]
fn answers_are_those_of_http_1_1() {
    let start = |origins: &[&str]| {
        let path = fixture::path("wire/document.json");
        Start::serve().set("allow_origins", origins.to_vec()).document(CLIENT, SERVER, path).ready()
    };
    let proxies = [start(&["https://ok.example", "http://b.example:81"]), start(&["*"])];
    let mut clients = [0, 1].map(|at: usize| Http2Client::connect(proxies[at].address()));
    let (mut wrong, mut compared) = (Vec::new(), 0);
    for (is_any_origin, request) in recorded_requests() {
        let Some(parts) = Parts::of(&request) else { continue };
        let at = usize::from(is_any_origin);
        let mut other = Client::connect(proxies[at].address());
        other.send(&request);
        let expected = essence(&other.answer(&parts.method));
        let answered = essence(&parts.send(&mut clients[at]));
        compared += 1;
        // A malformed request is reset, since the client would not have sent it.
        let is_reset = answered.0 == 0 && expected.0 == 400 && expected.2 == r#"{"detail":"Bad request"}"#;
        // HTTP/1.1 answers some before it has read whether there is an origin.
        let is_early = answered.0 == 400 && (answered.0, &answered.2) == (expected.0, &expected.2);
        if answered != expected && !is_reset && !is_early {
            wrong.push(format!("{}\n  {answered:?}\n  {expected:?}", String::from_utf8_lossy(&request)));
        }
    }
    let shown = wrong[..wrong.len().min(8)].join("\n");
    assert!(wrong.is_empty(), "{} of {compared}:\n{shown:.8000}", wrong.len());
    assert!(compared > 560, "{compared}");
    fixture::say(&format!("HTTP/2: {compared} requests are answered as on HTTP/1.1"));
}

/// The tests of these modules once more, with a client that sends over HTTP/2 what HTTP/2 can express.
const MODULES: [&str; 13] = [
    "surface::",
    "http::",
    "wire::",
    "ofrep::",
    "explain::",
    "experiments::",
    "compression::",
    "bodies::",
    "budget::",
    "sdk_requests::",
    "gateways::",
    "events::",
    "leaks::",
];

/// Those about what only HTTP/1.1 has: `Connection: close`, its name in the access log, the size of a head to the
/// byte, chunks; and kills of the proxy, which a connection does not survive.
const OF_HTTP_1: [&str; 6] = [
    "bodies::reads_compressed_bodies_within_the_limit",
    "gateways::access_record_names_environment_user_agent_request_id_and_protocol",
    "http::head_limit_is_configurable_and_logged_once",
    "surface::event_stream_reports_a_new_document_immediately",
    "surface::event_stream_ends_after_its_lifetime_and_at_shutdown",
    "events::delivery",
];

#[test]
fn tests_of_http_1_1_pass_over_http_2() {
    let scratch = Scratch::new();
    let counted = scratch.path().join("requests");
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(MODULES).args(OF_HTTP_1.iter().flat_map(|name| ["--skip", name]));
    let output = command.env(translated::VARIABLE, &counted).output().expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let results: Vec<&str> = text.lines().filter(|line| line.starts_with("test ")).collect();
    let failed: Vec<&&str> = results.iter().filter(|line| !line.ends_with(" ok")).collect();
    let reasons = text.split_once("\nfailures:\n").map_or(&*text, |(_, reasons)| reasons);
    assert!(output.status.success() && failed.len() == 1, "{failed:#?}\n{reasons:.20000}");
    let requests = std::fs::metadata(&counted).expect("some requests").len();
    let tests = results.len() - 1;
    fixture::say(&format!("HTTP/2: {tests} tests of HTTP/1.1 pass, with {requests} requests over HTTP/2"));
    assert!(tests > 100 && requests > 5_000, "{tests} tests, {requests} requests");
}

#[test]
fn limits_of_a_request_are_those_of_http_1_1() {
    let proxy = prepare().ready();
    let mut client = Http2Client::connect(proxy.address());
    let long = "x".repeat(16 * 1024);
    let origin = ("Origin", "https://ok.example");
    let body = vec![b' '; 1024 * 1024];
    let post = "/api/v1/identities/";
    assert_eq!(client.request("GET", FLAGS, &[KEY, origin, ("X", &long)], b"").status, 431);
    assert_eq!(client.request("GET", &format!("/{}", &long[..8192]), &[KEY, origin], b"").status, 414);
    assert_eq!(client.request("POST", post, &[KEY], &body).status, 422, "a body at the limit is read");
    let length = ("Content-Length", "1048577");
    let stream = client.open_head("POST", post, &[KEY, length, origin], false);
    let refused = client.answer(stream).expect("an answer before the body");
    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (413, Some("*")));
    let stream = client.open_head("POST", post, &[KEY, ("Expect", "100-continue")], false);
    client.frame(http2::DATA, END_STREAM, stream, b"{\"identifier\": \"a\"}");
    assert_eq!(client.answer(stream).expect("an answer").status, 200);
    assert_eq!(client.request("GET", FLAGS, &[("Expect", "tea")], b"").status, 417);
    let connect: [&[(&str, &str)]; 2] = [
        &[(":method", "CONNECT"), (":authority", "a:443")],
        &[
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            (":scheme", "http"),
            (":path", "/"),
            (":authority", "a"),
        ],
    ];
    for fields in connect {
        let stream = client.open_fields(fields);
        assert_eq!(client.answer(stream).expect("an answer").status, 405, "{fields:?}");
    }
    assert_eq!(client.request("GET", FLAGS, &[KEY], b"").status, 200, "the connection has stayed open");
}

// --- clients ---

fn curl(arguments: &[&str]) -> String {
    let output =
        Command::new("curl").args(["--silent", "--show-error", "--max-time", "20"]).args(arguments).output();
    let output = output.expect("curl is there");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

const CURL_FORM: [&str; 4] =
    ["--write-out", "|%{http_version} %{http_code}", "--header", "X-Environment-Key: ser.surface"];

#[test]
fn curl_is_answered_in_cleartext_over_tls_and_on_a_unix_socket() {
    assert_eq!(SERVER, "ser.surface");
    let start = prepare();
    let socket = start.scratch().path().join("socket");
    let proxy = start.set("server.unix_socket", socket.to_str()).ready();
    let url = format!("http://{}{FLAGS}", proxy.address());
    let with = |more: &[&str]| curl(&[&CURL_FORM[..], more].concat());
    assert!(with(&["--http2-prior-knowledge", &url]).ends_with("|2 200"));
    let upgrade = with(&["--http2", &url]);
    assert!(upgrade.ends_with("|1.1 200"), "Upgrade: h2c is ignored: {upgrade}");
    let path = socket.to_str().expect("UTF-8");
    assert!(
        with(&["--http2-prior-knowledge", "--unix-socket", path, "http://a/api/v1/flags/"])
            .ends_with("|2 200")
    );
    let body = format!(r#"{{"identifier": "u", "traits": [], "unknown": "{}"}}"#, "i".repeat(100_000));
    let file = proxy.scratch().write("body.json", body);
    let file = format!("@{}", file.display());
    let post = format!("http://{}/api/v1/identities/", proxy.address());
    let json = "Content-Type: application/json";
    let posted =
        with(&["--http2-prior-knowledge", "--compressed", "--header", json, "--data-binary", &file, &post]);
    assert!(posted.starts_with("{\"identifier\":\"u\"") && posted.ends_with("|2 200"), "{posted}");

    let proxy = spawn(with_tls(prepare()));
    let url = format!("https://{}{FLAGS}", proxy.address());
    assert!(with(&["--insecure", "--http2", &url]).ends_with("|2 200"));
    assert!(with(&["--insecure", "--http1.1", &url]).ends_with("|1.1 200"));
    assert!(with(&["--insecure", "--no-alpn", &url]).ends_with("|1.1 200"));
}

/// The output of a program of nghttp2.
fn nghttp2(name: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program(name)?).args(arguments).output().expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{name} {arguments:?}: {text}");
    Some(text)
}

/// nghttp sends priorities and pads; h2load has 128 streams on four connections.
#[test]
fn nghttp_and_h2load_are_answered() {
    let (plain, secure) = (prepare().ready(), spawn(with_tls(prepare())));
    let key = format!("X-Environment-Key: {SERVER}");
    let body = format!(r#"{{"identifier": "u", "unknown": "{}"}}"#, "i".repeat(100_000));
    let body = plain.scratch().write("body.json", body);
    let body = body.to_str().expect("UTF-8");
    for (scheme, address) in [("http", plain.address()), ("https", secure.address())] {
        let flags = format!("{scheme}://{address}{FLAGS}");
        let identities = format!("{scheme}://{address}/api/v1/identities/");
        let many = ["-m", "50", "--padding", "100", "-H", &key, &flags];
        let Some(text) = nghttp2("nghttp", &many) else { return };
        assert_eq!(text.matches("\"banner\"").count(), 50, "{text}");
        let posted = nghttp2("nghttp", &["-d", body, "-H", &key, "-w", "10", "-W", "10", &identities]);
        assert!(posted.expect("it is there").contains("\"identifier\":\"u\""));
        let load = ["-n", "5000", "-c", "4", "-m", "32", "-H", &key, &flags];
        let loaded = nghttp2("h2load", &load).expect("it comes with nghttp");
        assert!(loaded.contains("5000 succeeded, 0 failed") && loaded.contains("5000 2xx"), "{loaded}");
        let load = ["-n", "500", "-c", "2", "-m", "8", "-d", body, "-H", &key, &identities];
        let loaded = nghttp2("h2load", &load).expect("it comes with nghttp");
        assert!(loaded.contains("500 succeeded, 0 failed") && loaded.contains("500 2xx"), "{loaded}");
    }
}

#[test]
fn switched_off_it_is_not_offered() {
    let off = |start: Start| start.set("server.http2", false);
    let proxy = off(prepare()).ready();
    let mut stream = TcpStream::connect(proxy.address()).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").expect("it is read");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 505 ") || answer.starts_with("HTTP/1.1 400 "), "{answer}");
    let proxy = spawn(off(with_tls(prepare())));
    let url = format!("https://{}{FLAGS}", proxy.address());
    assert!(curl(&[&CURL_FORM[..], &["--insecure", "--http2", &url]].concat()).ends_with("|1.1 200"));
}

// --- streams ---

#[test]
fn streams_are_answered_in_any_order() {
    let proxy = prepare().with_admin().ready();
    let mut client = Http2Client::connect(proxy.address());
    let expected = proxy.get(FLAGS, SERVER).body;
    let slow = client.open_head("POST", "/api/v1/identities/", &[KEY], false);
    let streams: Vec<u32> = (0..99).map(|_| client.open("GET", FLAGS, &[KEY], b"")).collect();
    for stream in streams {
        assert_eq!(client.answer(stream).expect("an answer").body, expected);
    }
    client.frame(http2::DATA, END_STREAM, slow, br#"{"identifier": "slow"}"#);
    assert!(client.answer(slow).expect("an answer").text().contains("\"slow\""));
    assert!(proxy.metric("edge_proxy_http2_streams_total") >= 100.0);
    assert_eq!(proxy.metric("edge_proxy_http2_connections"), 1.0);
}

#[test]
fn event_streams_share_a_connection_and_end_with_the_proxy() {
    let upstream = Upstream::start();
    upstream.document(SERVER, document(0).to_string());
    let mut proxy = Start::serve()
        .set("api_url", upstream.api_url())
        .set("api_poll_frequency", 0.1)
        .environment(CLIENT, SERVER)
        .ready();
    let mut client = Http2Client::connect(proxy.address());
    let streams: Vec<u32> = (0..20).map(|_| client.open("GET", STREAM, &[], b"")).collect();
    let other = client.open("GET", FLAGS, &[KEY], b"");
    assert_eq!(client.answer(other).expect("an answer").status, 200);
    let has_event = |client: &Http2Client, stream: &u32, time: &str| {
        client.partial(*stream).is_some_and(|answer| answer.text().contains(time))
    };
    let wait = |client: &mut Http2Client, time: &str| {
        while !streams.iter().all(|stream| has_event(client, stream, time)) {
            let frame = client.next_frame().expect("the connection stays open");
            assert!(client.take(frame).is_none(), "a stream has ended");
        }
    };
    wait(&mut client, "1795168800.5");
    upstream.document(SERVER, document(7).to_string());
    wait(&mut client, "1795168807.5");
    let frame = client.open("GET", FLAGS, &[KEY], b"");
    assert_eq!(client.answer(frame).expect("an answer").status, 200);
    proxy.signal("TERM");
    let mut ended = 0;
    let mut goaway = None;
    while let Some(frame) = client.next_frame() {
        if frame.kind == http2::GOAWAY {
            goaway = Some(frame.code());
        }
        ended += usize::from(client.take(frame).is_some());
    }
    assert_eq!((ended, goaway), (20, Some(NO_ERROR)));
    assert!(proxy.wait().success());
}

#[test]
fn a_window_that_stays_closed_ends_its_stream_only() {
    let proxy = prepare().set("server.timeout_write", 1).with_admin().ready();
    let mut client = Http2Client::connect_with(proxy.address(), &[(4, 0)]);
    let window = |stream| http2::frame(http2::WINDOW_UPDATE, 0, stream, &100_000_u32.to_be_bytes());
    let stalled = client.open("GET", FLAGS, &[KEY], b"");
    let ended = client.answer(stalled).expect_err("no window");
    assert_eq!((ended.kind, ended.code()), (http2::RST_STREAM, CANCEL));
    // In one write, since a busy machine may take a second between two.
    let block = http2::block("GET", FLAGS, &[KEY]);
    let head = http2::frame(http2::HEADERS, END_STREAM | http2::END_HEADERS, stalled + 2, &block);
    client.send(&[head, window(stalled + 2)].concat());
    assert_eq!(client.answer(stalled + 2).expect("an answer").status, 200);
    assert!(proxy.metric("edge_proxy_http2_window_stalls_total") >= 1.0);
    assert_eq!(proxy.metric("edge_proxy_http2_resets_total{by=\"server\"}"), 1.0);
}

#[test]
fn a_slow_body_is_answered_408_and_others_are_not_affected() {
    let proxy = prepare().set("server.timeout_body", 1).ready();
    let mut client = Http2Client::connect(proxy.address());
    let slow = client.open_head("POST", "/api/v1/identities/", &[KEY], false);
    client.frame(http2::DATA, 0, slow, b"{");
    assert_eq!(client.answer(slow).expect("an answer").status, 408);
    // The rest of the body is ignored.
    client.frame(http2::DATA, END_STREAM, slow, b"}");
    assert_eq!(client.request("GET", FLAGS, &[KEY], b"").status, 200);
}

// --- the end of a connection ---

#[test]
fn an_idle_connection_ends_with_goaway() {
    let proxy = prepare().set("server.timeout_keep_alive", 1).set("server.timeout_head", 1).ready();
    let mut client = Http2Client::connect(proxy.address());
    assert_eq!(client.request("GET", FLAGS, &[KEY], b"").status, 200);
    assert_eq!(client.until(http2::GOAWAY).expect("GOAWAY").code(), NO_ERROR);
    assert!(client.next_frame().is_none(), "then the end");
    // A frame that does not end.
    let mut client = Http2Client::connect(proxy.address());
    client.send(&[0, 0, 8]);
    assert!(client.until(http2::GOAWAY).is_some());
    // PING does not keep a connection open.
    let mut client = Http2Client::connect(proxy.address());
    let mut pings = 0;
    while pings < 1_000 {
        client.frame(http2::PING, 0, 0, &[0; 8]);
        match client.next_frame() {
            Some(frame) if frame.kind == http2::GOAWAY => break,
            _ => pings += 1,
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(pings < 1_000);
}

#[test]
fn requests_max_counts_streams() {
    let proxy = prepare().set("server.requests_max", 3).ready();
    let mut client = Http2Client::connect(proxy.address());
    let streams: Vec<u32> = (0..5).map(|_| client.open("GET", FLAGS, &[KEY], b"")).collect();
    let goaway = client.until(http2::GOAWAY).expect("GOAWAY");
    assert_eq!(goaway.code(), NO_ERROR);
    assert_eq!(goaway.payload[..4], streams[2].to_be_bytes(), "the last stream that is answered");
}

#[test]
fn streams_that_were_opened_are_answered_after_sigterm() {
    let mut proxy = prepare().ready();
    let mut client = Http2Client::connect(proxy.address());
    let stream = client.open_head("POST", "/api/v1/identities/", &[KEY], false);
    assert_eq!(client.request("GET", FLAGS, &[KEY], b"").status, 200);
    proxy.signal("TERM");
    let goaway = client.until(http2::GOAWAY).expect("GOAWAY");
    assert_eq!((goaway.code(), &goaway.payload[..4]), (NO_ERROR, &(stream + 2).to_be_bytes()[..]));
    client.frame(http2::DATA, END_STREAM, stream, br#"{"identifier": "late"}"#);
    assert!(client.answer(stream).expect("an answer").text().contains("late"));
    assert!(client.next_frame().is_none());
    assert!(proxy.wait().success());
}

#[test]
fn a_flood_ends_its_connection_and_no_other() {
    let proxy = prepare().with_admin().ready();
    let mut honest = Http2Client::connect(proxy.address());
    let mut client = Http2Client::connect(proxy.address());
    client.send(&http2::frame(http2::PING, 0, 0, &[0; 8]).repeat(2_000));
    let goaway = client.until(http2::GOAWAY).expect("GOAWAY");
    assert_eq!(goaway.code(), 11, "ENHANCE_YOUR_CALM");
    assert_eq!(honest.request("GET", FLAGS, &[KEY], b"").status, 200);
    let sample = "edge_proxy_http2_goaway_total{code=\"enhance_your_calm\"}";
    eventually("the end is counted", || (proxy.metric(sample) == 1.0).then_some(()));
}

#[test]
fn the_access_log_names_the_protocol() {
    let proxy = prepare().set("logging.enable_access_log", true).set("logging.log_format", "json").ready();
    Http2Client::connect(proxy.address()).request("GET", FLAGS, &[KEY], b"");
    proxy.get(FLAGS, SERVER);
    let line = |protocol: &str| format!("\"protocol\":\"{protocol}\"");
    proxy.wait_for_log(&line("HTTP/2"));
    proxy.wait_for_log(&line("HTTP/1.1"));
}
