//! The log of the running executable: its formats, and a reader that does not read.
use std::io::Read;
use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::support::{Client, Port, Proxy, Start, fixture, get, request};
use crate::surface::{CLIENT, SERVER};

/// Requests that are pipelined before a response is read.
const BATCH: usize = 100;

fn start(logging: Value) -> Start {
    let document = fixture::path("environments/Main.json");
    Start::serve().document(CLIENT, SERVER, document).set("logging", logging)
}

/// Sends enough requests to fill every pipe and queue of the log.
fn flood(proxy: &Proxy, requests: usize) {
    let mut client = proxy.client();
    let pipelined = request("GET", "/proxy/health/liveness", &[], b"").repeat(BATCH);
    for _ in 0..requests / BATCH {
        client.send(&pipelined);
        (0..BATCH).for_each(|_| assert_eq!(client.answer("GET").status, 200));
    }
}

fn sample(admin: SocketAddr, name: &str) -> u64 {
    let text = get(admin, "/metrics", "").text();
    let line =
        text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name} in\n{text}"));
    line.trim().parse().expect("a number")
}

#[test]
fn blocked_pipe_delays_neither_responses_nor_shutdown() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let admin = Port::free();
    let start = start(json!({"enable_access_log": true, "log_format": "json"}));
    let mut proxy = start.set("admin", json!({"port": admin.number()})).stdout(writer).ready();
    // The pipe has a capacity of some hundred records and the queue of six thousand.
    flood(&proxy, 12_000);
    assert_eq!(proxy.get("/api/v1/flags/", CLIENT).status, 200);
    assert!(sample(admin.address(), "edge_proxy_access_records_dropped_total ") > 1000);
    proxy.signal("TERM");
    assert_eq!(proxy.wait().code(), Some(0));
    drop(reader);
}

#[test]
fn closed_pipe_does_not_end_the_process() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut proxy = start(json!({"enable_access_log": true})).stdout(writer).ready();
    flood(&proxy, 500);
    assert_eq!(proxy.get("/api/v1/flags/", CLIENT).status, 200);
    proxy.signal("TERM");
    assert_eq!(proxy.wait().code(), Some(0));
}

#[test]
fn reports_dropped_records_when_the_pipe_is_read_again() {
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let admin = Port::free();
    let start = start(json!({"enable_access_log": true, "log_format": "json"}));
    let mut proxy = start.set("admin", json!({"port": admin.number()})).stdout(writer).ready();
    flood(&proxy, 12_000);
    let requests = sample(admin.address(), "edge_proxy_reactor_requests_total{reactor=\"0\"} ");
    let everything = std::thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).map(|_| text)
    });
    proxy.signal("TERM");
    assert_eq!(proxy.wait().code(), Some(0));
    let text = everything.join().expect("no panic").expect("UTF-8");
    let records: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("whole lines")).collect();
    let written = records.iter().filter(|record| record["message"] == "http_request").count();
    assert!(written > 1000 && written < 12_000, "{written}");
    let lost: u64 = records.iter().filter_map(|record| record["access_dropped_count"].as_u64()).sum();
    assert_eq!(written as u64 + lost, requests, "each record is written or counted as dropped");
    assert!(records.iter().any(|record| record["message"] == "draining"), "events are not dropped:\n{text}");
}

#[test]
fn every_record_has_the_documented_fields() {
    let logging = json!({"log_format": "json", "log_event_field_name": "event", "log_level": "debug"});
    let mut proxy = start(logging).ready();
    assert_eq!(proxy.get("/api/v1/flags/", CLIENT).status, 200);
    proxy.signal("TERM");
    assert_eq!(proxy.wait().code(), Some(0));
    let log = proxy.log();
    assert!(log.lines().count() > 5, "{log}");
    for line in log.lines() {
        let record: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"));
        let members = record.as_object().expect("an object");
        let first: Vec<&str> = members.keys().map(String::as_str).collect();
        for name in ["event", "level", "timestamp", "logger"] {
            assert!(first.contains(&name), "{name} in {line}");
        }
        let event = record["event"].as_str().expect("text");
        assert!(event.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{line}");
    }
}

#[test]
fn levels_filter_less_severe_events() {
    for (level, has_info) in
        [("debug", true), ("info", true), ("warning", false), ("ERROR", false), ("critical", false)]
    {
        let mut proxy = start(json!({"log_level": level, "enable_access_log": true})).ready();
        assert_eq!(Client::connect(proxy.address()).request("GET", "/api/v1/flags/", &[], b"").status, 401);
        proxy.signal("TERM");
        assert_eq!(proxy.wait().code(), Some(0));
        let log = proxy.log();
        assert_eq!(log.contains("[info"), has_info, "{level}:\n{log}");
        assert_eq!(log.contains("http_request"), has_info, "{level}:\n{log}");
    }
}
