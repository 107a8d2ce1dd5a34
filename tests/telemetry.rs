//! OpenTelemetry: what the executable sends, decoded with the protocol's definitions from PyPI, and what it does
//! when a collector fails.
use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    Http2Client, Proxy, Recorded, Reply, Scratch, Start, Upstream, document, eventually, get, python, request,
};

const TRACES: &str = "/v1/traces";
const METRICS: &str = "/v1/metrics";
const SECRET: &str = "Bearer+of-a-test";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const UNSAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

/// A collector that accepts everything.
fn collector() -> Upstream {
    let collector = Upstream::start();
    for path in [TRACES, METRICS] {
        collector.on(path, Reply::new(200, "").with("content-type", "application/x-protobuf"));
    }
    collector
}

fn export_to(start: Start, collector: &Upstream) -> Start {
    start
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.origin())
        .env("OTEL_EXPORTER_OTLP_HEADERS", &format!("authorization={SECRET},x-tenant=a%20b"))
        .env("OTEL_BSP_SCHEDULE_DELAY", "50")
        .env("OTEL_METRIC_EXPORT_INTERVAL", "100")
}

/// The exports that the collector accepted or refused, as spans and as sets of metrics.
fn decode(requests: &[Recorded]) -> (Vec<Value>, Vec<Value>) {
    let scratch = Scratch::new();
    for (number, request) in requests.iter().enumerate() {
        if request.path().starts_with("/v1/") {
            let name = format!("{number:06}-{}", request.path().rsplit('/').next().expect("a name"));
            scratch.write(&name, &request.body);
        }
    }
    let lines = python::run("otlp.py", &[scratch.path().to_str().expect("UTF-8")]);
    let mut lists = lines.lines().map(|line| serde_json::from_str::<Vec<Value>>(line).expect("a list"));
    (lists.next().expect("spans"), lists.next().expect("metrics"))
}

/// Waits until a span has been exported that `is_expected`; returns all.
fn spans_until(collector: &Upstream, what: &str, is_expected: impl Fn(&Value) -> bool) -> Vec<Value> {
    let mut seen = 0;
    eventually(what, || {
        let requests = collector.requests_for(TRACES);
        if requests.len() == std::mem::replace(&mut seen, requests.len()) {
            return None;
        }
        let (spans, _) = decode(&requests);
        spans.iter().any(&is_expected).then_some(spans)
    })
}

fn named<'a>(spans: &'a [Value], name: &str) -> Vec<&'a Value> {
    spans.iter().filter(|span| span["name"] == name).collect()
}

fn send(proxy: &Proxy, target: &str, fields: &[(&str, &str)]) -> u16 {
    proxy.client().request("GET", target, fields, b"").status
}

#[test]
fn metrics_are_those_of_the_page() {
    let collector = collector();
    let start = export_to(Start::demo_document().with_admin(), &collector)
        .env("OTEL_SERVICE_NAME", "flags")
        .env("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=a%20test,service.name=other")
        .env("OTEL_EXPORTER_OTLP_METRICS_COMPRESSION", "gzip");
    let proxy = start.ready();
    for _ in 0..3 {
        assert_eq!(proxy.get("/api/v1/flags/", "client-side-key").status, 200);
    }
    // Values that are the same before and after two exports are the same in the second.
    let page = |proxy: &Proxy| get(proxy.admin(), "/metrics", "").text();
    let before = page(&proxy);
    let seen = collector.requests_for(METRICS).len();
    collector.wait("two exports", |requests| {
        requests.iter().filter(|request| request.path() == METRICS).count() >= seen + 2
    });
    let exports = collector.requests_for(METRICS);
    let after = page(&proxy);
    let export = &exports[seen + 1];
    assert_eq!(export.header("content-type"), Some("application/x-protobuf"));
    assert_eq!(export.header("content-encoding"), Some("gzip"));
    assert_eq!(export.header("authorization"), Some(SECRET));
    assert_eq!(export.header("x-tenant"), Some("a b"));
    let (_, decoded) = decode(std::slice::from_ref(export));
    let resource = &decoded[0]["resource"];
    assert_eq!(resource["service.name"], "flags");
    assert_eq!(resource["deployment.environment.name"], "a test");
    assert_eq!(resource["process.pid"], proxy.pid());
    assert!(resource["service.instance.id"].as_str().is_some_and(|id| id.len() == 36), "{resource}");
    let metrics = &decoded[0]["metrics"];
    assert_eq!(families(&after), kinds(metrics), "the names and their kinds");
    let later: BTreeSet<&str> = after.lines().collect();
    // The listener's own thread and connection, and what may have changed twice.
    let is_stable = |line: &&str| {
        let volatile = ["#", "edge_proxy_process_", "edge_proxy_reactor_loop_lag", "edge_proxy_reactor_cpu"];
        later.contains(line) && !volatile.iter().any(|start| line.starts_with(start))
    };
    let mut compared = 0;
    for line in before.lines().filter(is_stable) {
        let (sample, value) = line.rsplit_once(' ').expect("a sample");
        let (name, labels) = sample.split_once('{').unwrap_or((sample, ""));
        let Some(points) = metrics[name]["points"].as_array() else { continue };
        let labels = labels_of(labels);
        let point = points.iter().find(|point| point["attributes"] == labels).expect(line);
        assert_eq!(point["value"].as_f64(), value.parse().ok(), "{line}");
        compared += 1;
    }
    assert!(compared > 100, "{compared}");
    let requests = &metrics["edge_proxy_http_requests_total"];
    assert_eq!((&requests["temporality"], &requests["monotonic"]), (&json!(2), &json!(true)));
    let histogram = &metrics["edge_proxy_http_request_duration_seconds"];
    let point = &histogram["points"][0];
    let counted: u64 = point["buckets"].as_array().expect("counts").iter().filter_map(Value::as_u64).sum();
    let count = crate::support::proxy::metric(&after, "edge_proxy_http_request_duration_seconds_count");
    assert_eq!((histogram["unit"].as_str(), Some(counted as f64)), (Some("s"), count));
    assert!(point["start"].as_u64() > Some(0) && point["start"].as_u64() < point["time"].as_u64());
    let log = proxy.log();
    assert!(!log.contains(SECRET) && !log.contains("a%20b") && !log.contains("otlp"), "{log}");
}

/// The names of a page and the kinds of their metrics.
fn families(page: &str) -> Vec<(String, String)> {
    let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let kind = |kind: &str| if kind == "counter" { "sum".to_owned() } else { kind.to_owned() };
    let mut families: Vec<_> = types.map(|(name, own)| (name.to_owned(), kind(own))).collect();
    families.sort();
    families
}

fn kinds(metrics: &Value) -> Vec<(String, String)> {
    let kind = |metric: &Value| metric["kind"].as_str().expect("a kind").to_owned();
    let mut kinds: Vec<_> = metrics
        .as_object()
        .expect("names")
        .iter()
        .map(|(name, metric)| (name.clone(), kind(metric)))
        .collect();
    kinds.sort();
    kinds
}

/// `a="1",b="2"}` as an object.
fn labels_of(text: &str) -> Value {
    let pairs = text.trim_end_matches('}').split("\",").filter(|pair| !pair.is_empty());
    let pairs = pairs.map(|pair| pair.split_once("=\"").expect("a label"));
    pairs
        .map(|(name, value)| (name.to_owned(), json!(value.trim_end_matches('"'))))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

#[test]
fn polls_compilations_and_uploads_have_spans_without_keys() {
    let (collector, upstream) = (collector(), Upstream::start());
    upstream.document(document::SERVER_KEY, document::document(1));
    upstream.on("/api/v1/analytics/flags/", Reply::new(200, "{}"));
    let start = Start::polling(&upstream.api_url()).set("analytics.flush_interval_seconds", 0.1);
    let proxy = export_to(start, &collector).ready();
    let body = r#"{"version": 3}"#;
    assert_eq!(proxy.post("/api/v1/analytics/flags/", document::CLIENT_KEY, body).status, 200);
    let has_upload =
        |span: &Value| span["name"] == "upload" && span["attributes"]["edge_proxy.upload.sent"] == 3;
    let spans = spans_until(&collector, "an upload", has_upload);
    let first = |name: &str| *named(&spans, name).first().unwrap_or_else(|| panic!("{name}: {spans:#?}"));
    let (poll, compile) = (first("poll"), first("compile"));
    assert_eq!(poll["attributes"]["edge_proxy.environment"], "client...");
    assert_eq!(
        (&poll["attributes"]["edge_proxy.poll.result"], &poll["kind"]),
        (&json!("changed"), &json!(1))
    );
    assert_eq!((&compile["parent"], &compile["trace"]), (&poll["span"], &poll["trace"]));
    let get =
        named(&spans, "GET").into_iter().find(|get| get["parent"] == poll["span"]).expect("its request");
    let port = upstream.address().port();
    let url = format!("http://127.0.0.1:{port}/api/v1/environment-document/");
    let expected = json!({
        "http.request.method": "GET", "url.full": url, "server.address": "127.0.0.1", "server.port": port,
        "http.response.status_code": 200,
    });
    assert_eq!((&get["attributes"], &get["kind"], &get["status"]), (&expected, &json!(3), &json!(0)));
    // Upstream can join the trace.
    let parent = |request: &Recorded| request.header("traceparent").map(str::to_owned);
    let (trace, span) = (get["trace"].as_str().expect("an id"), get["span"].as_str().expect("an id"));
    let sent = Some(format!("00-{trace}-{span}-01"));
    assert!(upstream.requests().iter().any(|request| parent(request) == sent), "{sent:?}");
    let upload = spans.iter().find(|span| has_upload(span)).expect("found");
    assert_eq!(upload["attributes"]["edge_proxy.upload.kind"], "analytics");
    assert!(named(&spans, "POST").iter().any(|post| post["parent"] == upload["span"]));
    assert!(spans.iter().all(|span| span["kind"] != 2), "requests have no spans without a sampler");
    // A failure has its kind.
    upstream.on_key(document::SERVER_KEY, Reply::new(502, ""));
    let spans =
        spans_until(&collector, "a failed poll", |span| span["name"] == "poll" && span["status"] == 2);
    let failed = spans.iter().find(|span| span["name"] == "poll" && span["status"] == 2).expect("found");
    assert_eq!(failed["attributes"]["error.type"], "http_status");
    let get = spans.iter().find(|span| span["parent"] == failed["span"]).expect("its request");
    assert_eq!((&get["attributes"]["error.type"], &get["status"]), (&json!("502"), &json!(2)));
    for export in collector.requests() {
        for key in [document::SERVER_KEY, document::CLIENT_KEY] {
            let has_key = export.body.windows(key.len()).any(|window| window == key.as_bytes());
            assert!(!has_key, "{key} in an export to {}", export.target);
        }
    }
}

#[test]
fn requests_join_the_trace_of_a_sampled_caller_over_both_protocols() {
    let collector = collector();
    let start =
        export_to(Start::demo_document().set("logging", json!({"enable_access_log": true})), &collector)
            .env("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
            .env("OTEL_TRACES_SAMPLER_ARG", "0");
    let proxy = start.ready();
    let key = ("x-environment-key", "client-side-key");
    let agent = "a".repeat(300);
    let sampled = [key, ("traceparent", SAMPLED), ("user-agent", agent.as_str())];
    assert_eq!(send(&proxy, "/api/v1/flags/?feature=welcome_message", &sampled), 200);
    assert_eq!(send(&proxy, "/api/v1/flags/", &[key, ("traceparent", UNSAMPLED)]), 200);
    assert_eq!(send(&proxy, "/api/v1/flags/", &[key, ("traceparent", "00-0-0-01")]), 200);
    assert_eq!(send(&proxy, "/api/v1/flags/", &[key]), 200);
    assert_eq!(send(&proxy, "/nothing/ser.a-key-of-a-test/", &[("traceparent", SAMPLED)]), 404);
    let mut client = Http2Client::connect(proxy.address());
    assert_eq!(client.request("GET", "/api/v1/flags/", &[key, ("traceparent", SAMPLED)], b"").status, 200);
    let is_http2 = |span: &Value| span["attributes"]["network.protocol.version"] == "2";
    let spans = spans_until(&collector, "a span over HTTP/2", is_http2);
    let servers: Vec<&Value> = spans.iter().filter(|span| span["kind"] == 2).collect();
    assert_eq!(servers.len(), 3, "{servers:#?}");
    for server in &servers {
        assert_eq!((&server["trace"], &server["parent"]), (&json!(TRACE), &json!("00f067aa0ba902b7")));
        assert_eq!(server["flags"], 0x301, "sampled, and the parent is remote");
    }
    let flags = servers[0];
    assert_eq!(flags["name"], "GET /api/v1/flags/");
    let expected = json!({
        "http.request.method": "GET", "url.scheme": "http", "url.path": "/api/v1/flags/",
        "network.protocol.version": "1.1", "http.route": "/api/v1/flags/", "client.address": "127.0.0.1",
        "user_agent.original": format!("{}...", &agent[..200]), "edge_proxy.environment": "client...",
        "http.response.status_code": 200,
    });
    assert_eq!((&flags["attributes"], &flags["status"]), (&expected, &json!(0)));
    assert_eq!(servers[1]["name"], "GET");
    assert_eq!(servers[1]["attributes"]["url.path"], "/nothing/ser.a-.../");
    assert_eq!(servers[1]["attributes"]["http.route"], Value::Null);
    // The log has the trace of each valid field, sampled or not.
    proxy.wait_for_log("HTTP/2");
    let log = proxy.log();
    let requests: Vec<&str> =
        log.lines().filter(|line| line.contains("http_request ") && !line.contains("health")).collect();
    let traced = requests.iter().filter(|line| line.contains(&format!("trace_id={TRACE}"))).count();
    assert_eq!((requests.len(), traced), (6, 4), "{requests:#?}");
}

#[test]
fn nothing_is_sent_without_an_endpoint_and_invalid_variables_are_warnings() {
    let collector = collector();
    let threads = |proxy: &Proxy| {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", proxy.pid())).expect("our own child");
        let name = |task: std::io::Result<std::fs::DirEntry>| {
            std::fs::read_to_string(task.ok()?.path().join("comm")).ok()
        };
        tasks.filter_map(name).filter(|name| name.starts_with("otlp")).count()
    };
    let off = Start::demo_document()
        .env("OTEL_TRACES_SAMPLER", "nonsense")
        .env("OTEL_SERVICE_NAME", "flags")
        .env("OTEL_EXPORTER_OTLP_HEADERS", SECRET);
    let disabled = export_to(Start::demo_document(), &collector).env("OTEL_SDK_DISABLED", "TRUE");
    let none = export_to(Start::demo_document(), &collector)
        .env("OTEL_TRACES_EXPORTER", "none")
        .env("OTEL_METRICS_EXPORTER", "none");
    for start in [off, disabled, none] {
        let proxy = start.ready();
        assert_eq!(send(&proxy, "/api/v1/flags/", &[("traceparent", SAMPLED)]), 401);
        assert_eq!(threads(&proxy), 0);
        assert!(!proxy.log().to_lowercase().contains("otel"), "{}", proxy.log());
    }
    assert_eq!(collector.requests().len(), 0);
    let wrong = export_to(Start::demo_document(), &collector)
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        .env("OTEL_EXPORTER_OTLP_HEADERS", &format!("{SECRET},content-type=x,x-a=1"))
        .env("OTEL_EXPORTER_OTLP_TIMEOUT", "soon")
        .env("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "0")
        .env("OTEL_TRACES_SAMPLER", "sometimes")
        .env("OTEL_RESOURCE_ATTRIBUTES", "a,b=c")
        .env("OTEL_EXPORTER_OTLP_CERTIFICATE", "/etc/ca.pem");
    let proxy = wrong.ready();
    // A thread names itself once it runs.
    eventually("a thread for each signal", || (threads(&proxy) == 2).then_some(()));
    collector.wait("exports", |requests| requests.iter().any(|request| request.header("x-a") == Some("1")));
    proxy.signal("HUP");
    proxy.wait_for_log("configuration_reloaded");
    let log = proxy.log();
    for name in ["PROTOCOL", "HEADERS", "TIMEOUT", "CERTIFICATE"]
        .map(|end| format!("OTEL_EXPORTER_OTLP_{end}"))
        .iter()
        .map(String::as_str)
        .chain(["OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "OTEL_TRACES_SAMPLER", "OTEL_RESOURCE_ATTRIBUTES"])
    {
        let count = log.lines().filter(|line| line.contains(&format!("variable={name}"))).count();
        assert_eq!(count, 1, "{name}\n{log}");
    }
    assert!(!log.contains(SECRET), "{log}");
    // It is exported after the reload too.
    let seen = collector.requests_for(METRICS).len();
    collector.wait("an export", |requests| {
        requests.iter().filter(|request| request.path() == METRICS).count() > seen
    });
}

#[test]
fn credentials_of_the_endpoint_are_sent_unless_a_header_has_some() {
    for (headers, expected) in [("x-tenant=a", "Basic dXNlcjpwYXNz"), ("authorization=Own", "Own")] {
        let collector = collector();
        let endpoint = collector.origin().replace("http://", "http://user:pass@");
        let proxy = export_to(Start::demo_document(), &collector)
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)
            .env("OTEL_EXPORTER_OTLP_HEADERS", headers)
            .ready();
        collector.wait("an export", |requests| requests.iter().any(|request| request.path() == METRICS));
        let sent = &collector.requests_for(METRICS)[0];
        assert_eq!(sent.header("authorization"), Some(expected), "{headers}");
        assert!(!proxy.log().contains("pass"), "{}", proxy.log());
    }
}

/// An answer that says why three spans were rejected, as protobuf; no more count than were sent.
fn partial_success(message: &str) -> Vec<u8> {
    let inner = [&[8, 3, 18, message.len() as u8][..], message.as_bytes()].concat();
    [&[10, inner.len() as u8][..], &inner[..]].concat()
}

#[test]
fn what_a_collector_says_of_rejected_spans_is_logged() {
    let collector = collector();
    let answer = partial_success("the quota is used up");
    collector.rule(move |request| (request.path() == TRACES).then(|| Reply::new(200, &answer)));
    let proxy = export_to(Start::demo_document(), &collector).env("OTEL_TRACES_SAMPLER", "always_on").ready();
    send(&proxy, "/api/v1/flags/", &[]);
    let line = proxy.wait_for_log("otlp_partial_success");
    assert!(line.contains("rejected_count=1") && line.contains("the quota is used up"), "{line}");
}

/// The answer of a collector is read up to its bound only.
#[test]
fn a_long_answer_of_a_collector_is_ignored() {
    let collector = collector();
    // A field that no version of the protocol has follows.
    let long = [&partial_success("too long")[..], &[122, 0x80, 0x80, 0x40], &[b'x'; 1 << 20]].concat();
    collector.rule(move |request| (request.path() == TRACES).then(|| Reply::new(200, &long)));
    let proxy = export_to(Start::demo_document(), &collector).env("OTEL_TRACES_SAMPLER", "always_on").ready();
    send(&proxy, "/api/v1/flags/", &[]);
    collector.wait("spans", |requests| requests.iter().any(|request| request.path() == TRACES));
    let short = partial_success("the quota is used up");
    collector.rule(move |request| (request.path() == TRACES).then(|| Reply::new(200, &short)));
    eventually("a short answer is logged", || {
        send(&proxy, "/api/v1/flags/", &[]);
        proxy.log().contains("the quota is used up").then_some(())
    });
    assert!(!proxy.log().contains("too long"), "{}", proxy.log());
}

#[test]
fn a_refused_export_names_its_remedy() {
    for (status, remedy) in [
        (302, "redirects are not followed"),
        (401, "check OTEL_EXPORTER_OTLP_HEADERS"),
        (404, "check OTEL_EXPORTER_OTLP_ENDPOINT"),
        (405, "check OTEL_EXPORTER_OTLP_ENDPOINT"),
        (413, "lower OTEL_BSP_MAX_EXPORT_BATCH_SIZE"),
        (415, "accepts no protobuf over HTTP"),
        (418, "unexpected status"),
        (503, "down or overloaded"),
    ] {
        let collector = Upstream::start();
        collector.rule(move |_| Some(Reply::new(status, "")));
        let proxy = export_to(Start::demo_document(), &collector).ready();
        let line = proxy.wait_for_log("otlp_export_failed");
        assert!(line.contains(&format!("answered {status}")) && line.contains(remedy), "{line}");
    }
}

#[test]
fn a_failed_export_is_sent_again_and_logged_once() {
    let collector = Upstream::start();
    let mut failures = 2;
    collector.rule(move |request| {
        let is_failing = request.path() == TRACES && failures > 0;
        failures -= u32::from(is_failing);
        Some(match is_failing {
            true => Reply::new(503, "busy").with("retry-after", "0"),
            false => Reply::new(200, "not a message of the protocol"),
        })
    });
    let start = export_to(Start::demo_document().with_admin(), &collector)
        .env("OTEL_TRACES_SAMPLER", "always_on")
        .env("OTEL_BSP_SCHEDULE_DELAY", "500");
    let proxy = start.ready();
    proxy.wait_for_log("otlp_export_recovered");
    let bodies: Vec<Vec<u8>> =
        collector.requests_for(TRACES).into_iter().map(|request| request.body).collect();
    assert!(bodies[0] == bodies[1] && bodies[1] == bodies[2], "the same batch is sent again");
    let log = proxy.log();
    assert_eq!(
        (log.matches("otlp_export_failed").count(), log.matches("recovered").count()),
        (1, 1),
        "{log}"
    );
    assert!(log.contains("503") && log.contains("signal=traces") && !log.contains(SECRET), "{log}");
    assert_eq!(proxy.metric("edge_proxy_otlp_exports_total{signal=\"traces\",result=\"failed\"}"), 0.0);
    assert!(proxy.metric("edge_proxy_spans_exported_total") > 0.0);
    // Three spans are rejected, with a message that repeats a secret.
    let answer = partial_success(&format!("quota of {SECRET}"));
    collector.rule(move |request| (request.path() == TRACES).then(|| Reply::new(200, &answer)));
    for _ in 0..10 {
        send(&proxy, "/api/v1/flags/", &[]);
    }
    let line = proxy.wait_for_log("otlp_partial_success");
    assert!(line.contains("rejected_count=") && !line.contains(SECRET), "{line}");
    assert!(line.contains("a message that contains a header field"), "{line}");
    eventually("the rejected spans are counted", || {
        (proxy.metric("edge_proxy_spans_dropped_total{reason=\"rejected\"}") >= 3.0).then_some(())
    });
    // A refusal is final, and the next export is tried at its time.
    collector.rule(|request| (request.path() == TRACES).then(|| Reply::new(400, "")));
    send(&proxy, "/api/v1/flags/", &[]);
    eventually("a refused batch is counted", || {
        (proxy.metric("edge_proxy_spans_dropped_total{reason=\"failed\"}") > 0.0).then_some(())
    });
    assert!(!proxy.log().contains(SECRET));
}

#[test]
fn requests_are_answered_while_the_collector_hangs_and_spans_are_dropped() {
    let collector = Upstream::start();
    collector.rule(|_| Some(Reply::new(200, "").after(Duration::from_secs(60))));
    let start = export_to(Start::demo_document().with_admin(), &collector)
        .env("OTEL_TRACES_SAMPLER", "always_on")
        .env("OTEL_BSP_MAX_QUEUE_SIZE", "100")
        .env("OTEL_EXPORTER_OTLP_TIMEOUT", "60000");
    let mut proxy = start.ready();
    let mut client = proxy.client();
    for _ in 0..10 {
        client.send(request("GET", "/proxy/health/liveness", &[], b"").repeat(50));
        (0..50).for_each(|_| assert_eq!(client.answer("GET").status, 200));
    }
    eventually("spans are dropped", || {
        (proxy.metric("edge_proxy_spans_dropped_total{reason=\"full\"}") > 300.0).then_some(())
    });
    // Its end does not wait for the collector, which answers after a minute.
    proxy.signal("TERM");
    assert_eq!(proxy.wait().code(), Some(0));
}

#[test]
fn what_waits_is_exported_at_the_end_also_by_the_demo() {
    let collector = collector();
    let quiet = |start: Start| {
        export_to(start, &collector)
            .env("OTEL_TRACES_SAMPLER", "parentbased_always_on")
            .env("OTEL_BSP_SCHEDULE_DELAY", "60000")
            .env("OTEL_METRIC_EXPORT_INTERVAL", "60000")
    };
    let mut instances = Vec::new();
    for start in [Start::demo_document(), Start::demo()] {
        let mut proxy = quiet(start).start();
        proxy.wait_until_ready();
        assert_eq!(send(&proxy, "/proxy/health/liveness", &[("traceparent", SAMPLED)]), 200);
        let seen = collector.requests().len();
        assert_eq!(seen, instances.len() * 2, "nothing is due yet");
        proxy.signal("TERM");
        assert_eq!(proxy.wait().code(), Some(0));
        let (spans, exports) = decode(&collector.requests()[seen..]);
        let own = spans.iter().find(|span| span["trace"] == TRACE).expect("the span of the request");
        assert_eq!(exports.len(), 1);
        assert_eq!(own["resource"], exports[0]["resource"]);
        let counted = &exports[0]["metrics"]["edge_proxy_http_requests_total"]["points"];
        let is_own =
            |point: &Value| point["attributes"]["route"] == "liveness" && point["value"].as_u64() > Some(0);
        assert!(counted.as_array().expect("points").iter().any(is_own), "{counted}");
        instances.push(own["resource"]["service.instance.id"].clone());
    }
    assert_ne!(instances[0], instances[1]);
}
