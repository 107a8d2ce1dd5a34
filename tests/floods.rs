//! Floods of counts with a client-side key: their memory, and the uploads of other counts.
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;

use crate::support::{Proxy, Recorded, Reply, Scratch, Start, Upstream, eventually};
use crate::surface::{CLIENT, SERVER, document};

const V1: &str = "/api/v1/analytics/flags/";
const V2: &str = "/api/v2/analytics/flags/";

/// Documents for an environment, and `answer` to each upload of counts.
fn upstream(answer: impl Fn(&Recorded) -> Reply + Send + 'static) -> Upstream {
    let upstream = Upstream::start();
    upstream.document(SERVER, document(1).to_string());
    upstream.rule(move |sent: &Recorded| (sent.method == "POST").then(|| answer(sent)));
    upstream
}

fn start(upstream: &Upstream) -> Start {
    Start::serve().set("api_url", upstream.api_url()).environment(CLIENT, SERVER)
}

fn uploads(upstream: &Upstream) -> Vec<Recorded> {
    upstream.requests().into_iter().filter(|request| request.method == "POST").collect()
}

/// All counts of an upload.
fn sum(sent: &Recorded) -> u64 {
    let body = sent.json();
    match body["evaluations"].as_array() {
        Some(rows) => rows.iter().filter_map(|row| row["count"].as_u64()).sum(),
        None => body.as_object().expect("counts").values().filter_map(serde_json::Value::as_u64).sum(),
    }
}

fn stop(proxy: &mut Proxy) {
    proxy.signal("TERM");
    assert!(proxy.wait().success(), "{}", proxy.log());
}

#[test]
fn truncates_long_identifiers_and_uses_little_memory() {
    let upstream = upstream(|_| Reply::json("{}"));
    let start = start(&upstream).with_admin().set("analytics", json!({"flush_interval_seconds": 3600}));
    let mut proxy = start.ready();
    let before = proxy.resident_bytes();
    let mut client = proxy.client();
    let headers = [("X-Environment-Key", CLIENT), ("Content-Type", "application/json")];
    let requests = 100_u64;
    for number in 0..requests {
        let identifier = format!("{number:03}{}", "x".repeat(1_000_000));
        let body = json!({"evaluations": [{"feature_name": "banner", "identity_identifier": identifier,
            "enabled_when_evaluated": true, "count": 1}]});
        assert_eq!(client.request("POST", V2, &headers, body.to_string().as_bytes()).status, 204);
    }
    let grown = proxy.resident_bytes().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes");
    eventually("truncations are counted", || {
        let cut = proxy.metric("edge_proxy_counts_cut_total{field=\"identifier\"}");
        (cut == requests as f64).then_some(())
    });
    stop(&mut proxy);
    let sent = uploads(&upstream);
    assert_eq!(sent.iter().map(sum).sum::<u64>(), requests);
    let body = sent[0].json();
    let identifiers: Vec<&str> = body["evaluations"]
        .as_array()
        .expect("rows")
        .iter()
        .filter_map(|row| row["identity_identifier"].as_str())
        .collect();
    assert_eq!(identifiers.len() as u64, requests);
    assert!(identifiers.iter().all(|identifier| identifier.len() == 2000));
}

#[test]
fn merges_user_agents_beyond_50_into_one_upload() {
    let upstream = upstream(|_| Reply::json("{}"));
    let start = start(&upstream).with_admin().set("analytics", json!({"flush_interval_seconds": 3600}));
    let mut proxy = start.ready();
    let before = proxy.resident_bytes();
    let mut client = proxy.client();
    let requests = 2000;
    for number in 0..requests {
        let agent = format!("{number}{}", "a".repeat(15_000));
        let headers =
            [("X-Environment-Key", CLIENT), ("Content-Type", "application/json"), ("User-Agent", &agent)];
        assert_eq!(client.request("POST", V1, &headers, br#"{"banner":1}"#).status, 200);
    }
    let grown = proxy.resident_bytes().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes");
    stop(&mut proxy);
    let sent = uploads(&upstream);
    assert_eq!(sent.iter().map(sum).sum::<u64>(), requests);
    assert_eq!(sent.len(), 51);
    let merged: Vec<&Recorded> = sent
        .iter()
        .filter(|sent| sent.header("user-agent").is_some_and(|agent| agent.starts_with("edge-proxy/")))
        .collect();
    assert_eq!(merged.iter().map(|sent| sum(sent)).sum::<u64>(), requests - 50);
    let labelled =
        sent.iter().filter(|sent| sent.header("user-agent").is_some_and(|agent| agent.len() == 256));
    assert_eq!(labelled.count(), 50);
}

#[test]
fn splits_rejected_uploads_to_lose_only_invalid_rows() {
    let upstream = upstream(|sent| {
        let text = String::from_utf8_lossy(&sent.body);
        match () {
            () if sent.body.len() > 3000 => Reply::new(413, "{}"),
            () if text.contains("identity-7\"") => Reply::new(400, "{}"),
            () => Reply::json("{}"),
        }
    });
    let start = start(&upstream).with_admin().set("analytics", json!({"flush_interval_seconds": 0.2}));
    let mut proxy = start.ready();
    let rows: Vec<_> = (0..100)
        .map(|number| {
            json!({"feature_name": "banner", "identity_identifier": format!("identity-{number}"),
                "enabled_when_evaluated": true, "count": 10})
        })
        .collect();
    assert_eq!(proxy.post(V2, CLIENT, &json!({"evaluations": rows}).to_string()).status, 204);
    proxy.wait_for_log("counts_refused");
    eventually("all other counts arrive", || {
        (proxy.metric("edge_proxy_analytics_sent_total") == 990.0).then_some(())
    });
    assert_eq!(proxy.metric("edge_proxy_analytics_lost_total"), 10.0);
    let divided = proxy.metric("edge_proxy_counts_divided_total");
    assert!((4.0..20.0).contains(&divided), "{divided}");
    stop(&mut proxy);
}

#[test]
fn failing_uploads_do_not_delay_other_environments() {
    let upstream = upstream(|sent| match sent.key() {
        CLIENT => Reply::new(503, "{}"),
        _ => Reply::json("{}"),
    });
    let mut other = document(1);
    other["api_key"] = json!("OtherClientKey");
    upstream.document("ser.other", other.to_string());
    let start = start(&upstream).environment("OtherClientKey", "ser.other");
    let proxy = start.set("analytics", json!({"flush_interval_seconds": 0.2})).ready();
    for round in 1..=5 {
        for (key, agent) in [(CLIENT, "flood"), ("OtherClientKey", "honest")] {
            let headers =
                [("X-Environment-Key", key), ("Content-Type", "application/json"), ("User-Agent", agent)];
            let answer = proxy.client().request("POST", V1, &headers, br#"{"banner":1}"#);
            assert_eq!(answer.status, 200);
        }
        upstream.wait("the honest count", |requests| {
            let honest =
                requests.iter().filter(|sent| sent.method == "POST" && sent.key() == "OtherClientKey");
            honest.map(sum).sum::<u64>() == round
        });
    }
}

#[test]
fn last_uploads_finish_in_time_with_a_slow_upstream() {
    const ENVIRONMENTS: usize = 30;
    let is_slow = Arc::new(AtomicUsize::new(1));
    let taken: Arc<Mutex<HashMap<String, u64>>> = Arc::default();
    let (slow, accepted) = (Arc::clone(&is_slow), Arc::clone(&taken));
    let upstream = upstream(move |sent| {
        // An upstream that accepts a count and answers late counts by the idempotency key.
        let key = sent.header("idempotency-key").expect("a key").to_owned();
        accepted.lock().expect("no panic").insert(key, sum(sent));
        match slow.load(Ordering::SeqCst) {
            0 => Reply::json("{}"),
            _ => Reply::json("{}").after(Duration::from_secs(3)),
        }
    });
    let cache = Scratch::new();
    let serve = |interval: f64| {
        let mut start = start(&upstream).set("cache_dir", cache.path().to_str());
        for number in 0..ENVIRONMENTS {
            let (client, server) = (format!("Client{number}"), format!("ser.number{number}"));
            let mut document = document(1);
            document["api_key"] = json!(client);
            upstream.document(&server, document.to_string());
            start = start.environment(&client, &server);
        }
        start.set("analytics", json!({"flush_interval_seconds": interval})).ready()
    };
    let mut proxy = serve(3600.0);
    for number in 0..ENVIRONMENTS {
        assert_eq!(proxy.post(V1, &format!("Client{number}"), r#"{"banner":1}"#).status, 200);
    }
    // Within the timeout of the harness; sequential uploads would take 90 s.
    stop(&mut proxy);
    let tried = uploads(&upstream).len();
    assert!((1..=3).contains(&tried), "{tried} uploads in five seconds");
    is_slow.store(0, Ordering::SeqCst);
    let mut proxy = serve(0.2);
    proxy.until("all arrive", || {
        (taken.lock().expect("no panic").values().sum::<u64>() == ENVIRONMENTS as u64).then_some(())
    });
    stop(&mut proxy);
    assert_eq!(taken.lock().expect("no panic").values().sum::<u64>(), ENVIRONMENTS as u64);
}
