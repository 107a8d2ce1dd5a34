//! The command line apart from serving: configuration, check, health, metrics, log.
use serde_json::{Value, json};

use crate::support::upstream::{Reply, Upstream};
use crate::support::{Start, fixture, get};

const CLIENT: &str = "93SWrghdRQbEPS5xXUWWwM";
const SERVER: &str = "ser.server-key-of-the-test";

fn main_document() -> std::path::PathBuf {
    fixture::path("environments/Main.json")
}

#[test]
fn reports_every_error_with_exit_code_64_before_binding() {
    let start = Start::command(&["serve"])
        .env("EDGE_PROXY_SERVER_PORT", "no-port")
        .env("EDGE_PROXY_LOGGING_LOG_LEVEL", "LOUD");
    let (code, text) = start.env("ENVIRONMENT_KEY_PAIRS", r#"[{"server_side_key":"secret-key-1"}]"#).run();
    assert_eq!(code, Some(64), "{text}");
    for part in ["4 errors", "SERVER_PORT", "LOUD", "[0].client_side_key: not set", "[0].server_side_key"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(!text.contains("secret-key-1") && !text.contains("reactor_started"), "{text}");
    let (code, _) = Start::command(&["serve", "--no-such-flag"]).run();
    assert_eq!(code, Some(64));
}

#[test]
fn accepts_commands_of_the_python_image() {
    let start = Start::command(&["edge-proxy-render-config"]);
    let path = start.scratch().path().join("config.json");
    let mut proxy = start.spawn();
    assert!(proxy.wait().success() && path.exists());
    let (code, text) = Start::command(&["edge-proxy-serve"]).run();
    assert!(code == Some(64) && text.contains("environment_key_pairs: not set"), "{text}");
}

#[test]
fn rejects_admin_port_equal_to_server_port() {
    let port = crate::support::Port::free();
    let port = port.number().to_string();
    let (code, text) = Start::command(&["demo", "--port", &port, "--admin-port", &port]).run();
    assert_eq!(code, Some(64), "{text}");
    assert!(text.contains("admin.port: expected a port other than server.port"), "{text}");
}

#[test]
fn reload_warns_of_unknown_settings() {
    let mut proxy = Start::serve().document(CLIENT, SERVER, main_document()).ready();
    let mut config = proxy.config().clone();
    config["api_pol_frequency"] = json!(3);
    proxy.scratch().write("config.json", config.to_string());
    proxy.signal("HUP");
    let line = proxy.wait_for_log("unknown_setting_ignored");
    assert!(line.contains("did you mean api_poll_frequency_seconds?"), "{line}");
    proxy.signal("TERM");
    assert_eq!(proxy.wait().code(), Some(0));
}

#[test]
fn demo_names_a_port_in_use() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (code, text) = Start::command(&["demo", "--port", &port]).run();
    assert_eq!(code, Some(69), "{text}");
    assert!(text.contains(&format!("127.0.0.1:{port}")) && text.contains("ss -ltnp"), "{text}");
}

#[test]
fn render_config_prints_and_writes_the_default() {
    let start = Start::command(&["render-config"]);
    let path = start.scratch().path().join("config.json");
    let mut proxy = start.spawn();
    assert!(proxy.wait().success());
    let written: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&proxy.log()).unwrap(), written);
    assert_eq!(written["environment_key_pairs"][0]["client_side_key"], "environment_key");
}

#[test]
fn metrics_count_every_request() {
    let proxy = Start::serve().cores(2).document(CLIENT, SERVER, main_document()).with_admin().ready();
    let admin = proxy.admin();
    let sample = "edge_proxy_http_requests_total{route=\"flags\",status=";
    let before = proxy.metric(&format!("{sample}\"2xx\"}}"));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = proxy.client();
                for _ in 0..250 {
                    let answer =
                        client.request("GET", "/api/v1/flags/", &[("X-Environment-Key", CLIENT)], b"");
                    assert_eq!(answer.status, 200);
                }
            });
        }
    });
    (0..7).for_each(|_| assert_eq!(proxy.get("/api/v1/flags/", "unknown").status, 401));
    assert_eq!(proxy.metric(&format!("{sample}\"2xx\"}}")) - before, 1000.0);
    assert_eq!(proxy.metric(&format!("{sample}\"4xx\"}}")), 7.0);
    let all: f64 = [0, 1]
        .iter()
        .map(|reactor| proxy.metric(&format!("edge_proxy_reactor_requests_total{{reactor=\"{reactor}\"}}")))
        .sum();
    assert_eq!(proxy.metric("edge_proxy_http_request_duration_seconds_count"), all);
    assert_eq!(get(proxy.address(), "/metrics", "").status, 404, "not on the public port");
    let status = get(admin, "/status.json", "").json();
    assert_eq!(status["environments"][0]["name"], "Main");
    assert_eq!(status["environments"][0]["source"], "file");
    assert!(status["environments"][0]["features"].as_u64().unwrap() > 10);
    assert_eq!(status["requests"]["flags"]["2xx"], 1000);
}

#[test]
fn access_log_is_opt_in_without_query_or_key() {
    let quiet = Start::serve().document(CLIENT, SERVER, main_document()).ready();
    assert_eq!(quiet.get("/api/v1/flags/", CLIENT).status, 200);
    let logging = json!({"enable_access_log": true, "log_format": "json", "log_event_field_name": "event"});
    let proxy = Start::serve().document(CLIENT, SERVER, main_document()).set("logging", logging).ready();
    assert_eq!(proxy.get("/api/v1/identities/?identifier=someone", CLIENT).status, 200);
    let line = proxy.wait_for_log("/api/v1/identities/");
    let record: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(record["event"], "http_request");
    assert_eq!((&record["remote_ip"], &record["method"]), (&json!("127.0.0.1"), &json!("GET")));
    assert_eq!((&record["path"], &record["status"]), (&json!("/api/v1/identities/"), &json!(200)));
    assert!(record["bytes"].as_u64().unwrap() > 100 && record["duration_us"].is_u64(), "{record}");
    assert!(!line.contains("someone") && !line.contains(CLIENT), "{line}");
    assert!(!quiet.log().contains("http_request"));
}

#[test]
fn check_reports_failures_and_successes() {
    let upstream = Upstream::start();
    upstream.document("ser.good-key-of-upstream", std::fs::read(main_document()).unwrap());
    upstream.on_key("ser.refused-key", Reply::new(403, r#"{"detail":"Invalid or missing Environment Key"}"#));
    upstream.on_key("ser.broken-key", Reply::json(r#"{"api_key": "x"}"#));
    let check = |pairs: Value, online: bool| {
        let mut args = vec!["check"];
        args.extend(online.then_some("--online"));
        Start::command(&args)
            .env("ENVIRONMENT_KEY_PAIRS", &pairs.to_string())
            .env("API_URL", &upstream.api_url())
            .run()
    };
    let good = json!({"client_side_key": CLIENT, "server_side_key": "ser.good-key-of-upstream"});
    let (code, text) = check(json!([good]), true);
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("ok    environment 93SWrg...: \"Main\"") && text.contains("ok    api_url"),
        "{text}"
    );
    let refused = json!({"client_side_key": "refused-client", "server_side_key": "ser.refused-key"});
    let broken = json!({"client_side_key": "broken-client", "server_side_key": "ser.broken-key"});
    let (code, text) = check(json!([good, refused, broken]), true);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("FAIL  environment refuse...") && text.contains("403"), "{text}");
    assert!(text.contains("FAIL  environment broken...: not an environment document"), "{text}");
    assert!(text.contains("2 checks failed"), "{text}");
    assert!(!text.contains("refused-key") && !text.contains("good-key"), "{text}");
    upstream.on_key("ser.page-key", Reply::new(200, "<!doctype html><title>Flagsmith</title>"));
    let (code, text) =
        check(json!([{"client_side_key": "page-client", "server_side_key": "ser.page-key"}]), true);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("answered with a web page") && text.contains("api_url"), "{text}");
    let start = Start::command(&["check", "--online"]).env("PROXY_KEY", "an-unknown-proxy-key");
    let (code, text) = start.env("API_URL", &upstream.api_url()).run();
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("FAIL  proxy_key: ") && !text.contains("unknown-proxy"), "{text}");
    let polls = upstream.requests().len();
    let (code, text) = check(json!([refused]), false);
    assert_eq!(code, Some(0), "no request is sent without --online: {text}");
    assert_eq!(upstream.requests().len(), polls);
    let (code, text) = Start::command(&["check", "--document", "/does-not-exist.json"]).run();
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("FAIL  document /does-not-exist.json"), "{text}");
    let start = Start::command(&["check"]).env("SERVER_UNIX_SOCKET", "/does-not-exist/socket");
    let (code, text) = start.env("DOCUMENTS", &json!([main_document()]).to_string()).run();
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("FAIL  server.unix_socket: /does-not-exist"), "{text}");
}

#[test]
fn warns_once_of_settings_without_effect() {
    let proxy = Start::serve()
        .document(CLIENT, SERVER, main_document())
        .set("endpoint_caches", json!({"flags": {"use_cache": true}}))
        .set("colour", true)
        .ready();
    proxy.wait_for_log("endpoint_caches");
    let log = proxy.log();
    assert_eq!(log.matches("endpoint_caches").count(), 1, "{log}");
    assert_eq!(log.matches("unknown_setting_ignored").count(), 1, "{log}");
}
