use super::*;
use crate::channel::{Publisher, ReactorMessage};
use crate::config::{Level, LogFormat, Logging};
use crate::http::Sdk;
use crate::http::route::Route;
use crate::log::Log;
use crate::metrics::Metrics;
use crate::snapshot::{DocumentSource, Environment, PublishedDocument, Slot, Snapshot};

fn view() -> View {
    view_and_publisher().0
}

fn view_and_publisher() -> (View, Publisher) {
    let settings = Logging {
        log_level: Level::Info,
        log_format: LogFormat::Generic,
        log_event_field_name: "message".to_owned(),
        colour: false,
        enable_access_log: false,
        access_log_file: None,
    };
    let log = Log::start_to(&settings, io::sink(), None).expect("a thread");
    let inputs = config::Inputs { without_file: true, may_serve_nothing: true, ..Default::default() };
    let config = Arc::new(config::load(&inputs).expect("valid defaults").0);
    let publisher = Publisher::new(config);
    (View::new(Arc::new(Metrics::new(&[0, 1])), log, publisher.newest()), publisher)
}

/// Publishes an environment for each key and number, with the demo's document under another name.
fn publish(publisher: &mut Publisher, environments: &[(&str, u64)]) {
    let mut document: serde_json::Value =
        serde_json::from_str(include_str!("../demo/environment.json")).expect("JSON");
    document["name"] = "a \"name\" with\nall \\ of it".into();
    let (environment, _) = Environment::compile(document.to_string().into_bytes()).expect("a valid document");
    let document = PublishedDocument::first(Arc::new(environment), DocumentSource::File);
    let slot = |(key, number): &(&str, u64)| Slot {
        client_side_key: (*key).into(),
        document: Some(document.clone()),
        freshness: Arc::default(),
        reported: Arc::default(),
        last_error: None,
        number: *number,
    };
    let snapshot = Snapshot::new(1, environments.iter().map(slot).collect(), []);
    publisher.send(&ReactorMessage::Publish(Arc::new(snapshot)));
}

fn get(path: &str, view: &View) -> String {
    String::from_utf8(respond(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes(), view))
        .expect("UTF-8")
}

#[test]
fn sums_counters_of_all_reactors() {
    let view = view();
    for reactor in &view.metrics.reactors {
        (0..3).for_each(|_| reactor.answered(Route::Flags, 200));
        reactor.batch(3, Duration::from_micros(7));
        reactor.bytes_written.add(100);
    }
    let text = get("/metrics", &view);
    for line in [
        "edge_proxy_http_requests_total{route=\"flags\",status=\"2xx\"} 6",
        "edge_proxy_http_request_duration_seconds_count 6",
        "edge_proxy_http_request_duration_seconds_bucket{le=\"0.000004\"} 0",
        "edge_proxy_http_request_duration_seconds_bucket{le=\"0.000008\"} 6",
        "edge_proxy_http_request_duration_seconds_sum 0.000042",
        "edge_proxy_http_sent_bytes_total 200",
        "edge_proxy_reactor_requests_total{reactor=\"1\"} 3",
    ] {
        assert!(text.lines().any(|shown| shown == line), "{line} in\n{text}");
    }
}

#[test]
fn samples_are_unique_and_grouped_by_family() {
    let (view, mut publisher) = view_and_publisher();
    publish(&mut publisher, &[("same-beginning-1", 1), ("same-beginning-2", 2), ("other-key-3", 3)]);
    let text = get("/metrics", &view);
    assert!(!text.contains("beginning"), "keys are truncated: {text}");
    let (_, body) = text.split_once("\r\n\r\n").expect("a body");
    let (mut families, mut samples) = (std::collections::HashSet::new(), std::collections::HashSet::new());
    let mut family = String::new();
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            family = rest.split(' ').next().unwrap_or_default().to_owned();
            assert!(families.insert(family.clone()), "{family} twice");
        } else if !line.starts_with('#') {
            let sample = line.rsplit_once(' ').expect("a value").0;
            assert!(sample.starts_with(&family), "{sample} under {family}");
            assert!(samples.insert(sample.to_owned()), "{sample} twice");
        }
    }
}

#[test]
fn status_is_json_with_the_newest_errors_last() {
    let (view, mut publisher) = view_and_publisher();
    view.log.event(Level::Info, "not_an_error", &[]);
    view.log.event(Level::Error, "poll_failed", &[("error", &"it broke")]);
    view.log.flush();
    publish(&mut publisher, &[("a-client-side-key", 1)]);
    view.metrics.environment("a-client-side-key", |environment| environment.polls_changed = 7);
    let text = get("/status.json", &view);
    let (_, body) = text.split_once("\r\n\r\n").expect("a body");
    let status: serde_json::Value = serde_json::from_str(body).expect("JSON");
    assert_eq!(status["reactors"].as_array().map(Vec::len), Some(2));
    assert_eq!(status["environments"][0]["polls_changed"], 7);
    assert_eq!(status["environments"][0]["source"], "file");
    assert_eq!(status["environments"][0]["client_side_key"], "a-clie...");
    let errors = status["errors"].as_array().expect("a list");
    assert_eq!(errors.len(), 1);
    assert_eq!(errors[0]["event"], "poll_failed");
    assert_eq!(errors[0]["text"], "error=\"it broke\"");
}

#[test]
fn other_paths_are_404_and_other_methods_405() {
    let view = view();
    let status = |head: &str| {
        let answer = String::from_utf8(respond(
            head.replacen("\r\n", "\r\nHost: [::1]:8001\r\n", 1).as_bytes(),
            &view,
        ))
        .expect("UTF-8");
        answer.split(' ').nth(1).expect("a status").to_owned()
    };
    assert_eq!(status("GET / HTTP/1.1\r\n\r\n"), "200");
    assert_eq!(status("GET /?x=1 HTTP/1.1\r\n\r\n"), "200");
    assert_eq!(status("GET /api/v1/flags/ HTTP/1.1\r\n\r\n"), "404");
    assert_eq!(status("POST /metrics HTTP/1.1\r\n\r\n"), "405");
    assert_eq!(status("\r\n\r\n"), "405");
    let head = String::from_utf8(respond(b"HEAD /metrics HTTP/1.0\r\n\r\n", &view)).expect("UTF-8");
    assert!(head.ends_with("\r\n\r\n") && !head.contains("content-length: 0\r\n"), "{head}");
}

/// Inside an isolated network the page could not load anything from outside.
#[test]
fn page_loads_nothing_from_other_hosts() {
    for reference in ["http://", "https://", "//cdn", "@import", "url("] {
        let foreign = PAGE.replace("http://www.w3.org/2000/svg", "");
        assert!(!foreign.contains(reference), "{reference}");
    }
}

#[test]
fn answers_are_by_environment_and_sdk() {
    let (view, mut publisher) = view_and_publisher();
    publish(&mut publisher, &[("first-environment", 1), ("second-environment", 2), ("third", u64::MAX)]);
    let [one, two] = &view.metrics.reactors[..] else { panic!("two reactors") };
    one.answered_for(1, Sdk::Python, 200);
    two.answered_for(1, Sdk::Python, 200);
    two.answered_for(2, Sdk::Other, 404);
    two.answered_for(900, Sdk::Go, 502);
    let text = get("/metrics", &view);
    for sample in [
        "edge_proxy_environment_answers_total{environment=\"first-...\",class=\"2xx\"} 2\n",
        "edge_proxy_environment_answers_total{environment=\"second...\",class=\"4xx\"} 1\n",
        "edge_proxy_environment_answers_total{environment=\"other\",class=\"5xx\"} 1\n",
        "edge_proxy_sdk_answers_total{sdk=\"python-sdk\",class=\"2xx\"} 2\n",
        "edge_proxy_sdk_answers_total{sdk=\"other\",class=\"4xx\"} 1\n",
    ] {
        assert!(text.contains(sample), "{sample} in {text}");
    }
    let text = get("/status.json", &view);
    let status: serde_json::Value =
        serde_json::from_str(text.split_once("\r\n\r\n").expect("a body").1).expect("JSON");
    assert_eq!(status["environments"][0]["answers"], serde_json::json!({"2xx": 2}));
    assert_eq!(status["sdks"]["go-sdk"], serde_json::json!({"5xx": 1}));
}
