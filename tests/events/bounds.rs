//! What upstream answers, where the route is, and the bounds of what waits.
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use edge_proxy::limits;
use serde_json::{Value, json};

use super::{PATH, accept, batches, events, names_sent, post, start, with_key};
use crate::support::{Client, Recorded, Reply, Scratch, Shim, Upstream, eventually, get, request};
use crate::surface::{CLIENT, SERVER};

#[test]
fn each_answer_of_upstream_is_retried_or_final() {
    let (upstream, cache) = (Upstream::start(), Scratch::new());
    let answered: Arc<Mutex<BTreeMap<String, usize>>> = Arc::default();
    let seen = Arc::clone(&answered);
    // The name of the event is what is answered first; then it is accepted.
    upstream.rule(move |sent: &Recorded| {
        let body = (sent.path() == PATH).then(|| sent.json())?;
        let name = body["events"][0]["event"].as_str()?.to_owned();
        let mut seen = seen.lock().expect("no panic");
        let times = seen.entry(name.clone()).or_default();
        *times += 1;
        let status = if *times == 1 { name.parse().ok()? } else { 202 };
        Some(Reply::new(status, "{}").with("retry-after", "0").with("location", "https://127.0.0.1:1/"))
    });
    let proxy = start(&upstream, &cache).with_admin().ready();
    let times = |status: &str| answered.lock().expect("no panic").get(status).copied().unwrap_or_default();
    for status in ["408", "429", "500", "502", "503", "504", "302"] {
        assert_eq!(post(&proxy, &with_key(CLIENT), events(&[status])).status, 202);
        eventually(status, || (times(status) == 2).then_some(()));
    }
    let of = |status: &str| -> Vec<Recorded> {
        let is_of = |batch: &Recorded| batch.json()["events"][0]["event"] == status;
        batches(&upstream).into_iter().filter(is_of).collect()
    };
    for status in ["408", "503"] {
        let keys: Vec<_> =
            of(status).iter().map(|sent| sent.header("idempotency-key").map(str::to_owned)).collect();
        assert!(keys.len() == 2 && keys[0] == keys[1] && keys[0].is_some(), "{keys:?}");
    }
    eventually("all are sent", || (proxy.metric("edge_proxy_events_sent_total") == 7.0).then_some(()));
    let dropped = || proxy.metric("edge_proxy_events_dropped_total{reason=\"refused\"}");
    assert_eq!(dropped(), 0.0);
    for (count, status) in (1..).zip(["401", "403", "404", "405", "410"]) {
        assert_eq!(post(&proxy, &with_key(CLIENT), events(&[status])).status, 202);
        eventually(status, || (dropped() == f64::from(count)).then_some(()));
        assert_eq!(times(status), 1);
        proxy.wait_for_log(&format!("answered {status}"));
    }
    assert_eq!(proxy.metric("edge_proxy_events_queued"), 0.0);
    assert_eq!(proxy.metric("edge_proxy_events_queued_bytes_max"), f64::from(256 << 20));
}

#[test]
fn the_route_is_below_the_base_path_and_follows_the_lists_and_keys() {
    let (upstream, cache) = (Upstream::start(), Scratch::new());
    upstream.rule(accept);
    let proxy = start(&upstream, &cache).set("server.base_path", "/edge").ready();
    let send = |path: &str| {
        proxy.client().request("POST", path, &with_key(CLIENT), events(&["a"]).as_bytes()).status
    };
    assert_eq!((send("/edge/v1/events"), send("/edge/v1/events/"), send(PATH)), (202, 202, 404));
    eventually("both", || (names_sent(&upstream) == ["a", "a"]).then_some(()));
    let denied = Scratch::new();
    let proxy = start(&upstream, &denied).set("server.deny_list", json!(["127.0.0.0/8"])).ready();
    assert_eq!(post(&proxy, &with_key(CLIENT), events(&["denied"])).status, 403);
    assert_eq!(names_sent(&upstream), ["a", "a"]);
}

/// 8 MiB wait at most while the disk does not write; the next request is refused immediately.
#[test]
fn too_many_events_that_wait_are_refused_and_the_others_are_kept() {
    let shim = Shim::new();
    let (upstream, cache) = (Upstream::start(), Scratch::new());
    upstream.rule(accept);
    let start = start(&upstream, &cache).set("logging", json!({"enable_access_log": true}));
    let proxy = shim.preload(start.with_admin().cores(1)).ready();
    shim.disk_is_stuck(true);
    let large: Vec<Value> =
        (0..10).map(|_| json!({"event": "large", "value": "v".repeat(100_000)})).collect();
    let body = json!({"events": large}).to_string();
    let sent = request("POST", PATH, &with_key(SERVER), body.as_bytes());
    let mut clients: Vec<Client> = Vec::new();
    for number in 0..9 {
        if number == 4 {
            // All bodies together exceed the memory of connections until they are in the queue.
            std::thread::sleep(2 * limits::SWEEP_INTERVAL);
            let buffers = || proxy.metric("edge_proxy_connection_buffers_bytes");
            eventually("the first are in the queue", || (buffers() < 1e6).then_some(()));
        }
        let mut client = proxy.client();
        client.send(&sent);
        clients.push(client);
    }
    let refused =
        |reason: &str| proxy.metric(&format!("edge_proxy_events_refused_total{{reason=\"{reason}\"}}"));
    eventually("one is refused", || (refused("queue_full") == 10.0).then_some(()));
    assert_eq!(proxy.get("/api/v1/flags/", CLIENT).status, 200);
    shim.disk_is_stuck(false);
    let statuses: Vec<u16> = clients.iter_mut().map(|client| client.answer("POST").status).collect();
    let accepted = statuses.iter().filter(|status| **status == 202).count();
    assert!(statuses.iter().all(|status| [202, 503].contains(status)) && accepted <= 8, "{statuses:?}");
    let accepted = 10.0 * f64::from(u32::try_from(accepted).expect("few"));
    assert_eq!(proxy.metric("edge_proxy_events_accepted_total"), accepted);
    assert_eq!(accepted + refused("timeout"), 80.0);
    eventually("all that waited are upstream", || (names_sent(&upstream).len() == 80).then_some(()));
    let is_refused = |line: &&str| line.contains(PATH) && line.contains("status=503");
    let refused_in_log = || proxy.log().lines().filter(is_refused).count();
    let answered_503 = statuses.iter().filter(|status| **status == 503).count();
    eventually("the access log", || (refused_in_log() == answered_503).then_some(()));
    let status: Value = get(proxy.admin(), "/status.json", "").json();
    assert_eq!(status["events"]["accepted"].as_f64(), Some(accepted), "{status}");
    assert_eq!(status["events"]["refused"].as_f64(), Some(90.0 - accepted));
    eventually("all are sent", || {
        let status: Value = get(proxy.admin(), "/status.json", "").json();
        (status["events"]["sent"] == 80 && status["events"]["queued"] == 0).then_some(())
    });
}

/// One byte of one record is damaged while the process is down.
#[test]
fn a_damaged_record_costs_its_events_and_no_others() {
    let (upstream, cache) = (Upstream::start(), Scratch::new());
    upstream.on(PATH, Reply::new(503, "{}"));
    let mut proxy = start(&upstream, &cache).ready();
    for name in ["first", "second", "third"] {
        assert_eq!(post(&proxy, &with_key(CLIENT), events(&[name])).status, 202);
    }
    proxy.signal("KILL");
    proxy.wait();
    let folder = cache.path().join("events/0");
    let mut damaged = 0;
    for entry in std::fs::read_dir(&folder).expect("a spool").flatten() {
        let mut bytes = std::fs::read(entry.path()).expect("a file");
        let Some(at) = bytes.windows(6).position(|window| window == b"second") else { continue };
        bytes[at] = b'S';
        std::fs::write(entry.path(), bytes).expect("our own file");
        damaged += 1;
    }
    assert_eq!(damaged, 1);
    let before = batches(&upstream).len();
    upstream.rule(accept);
    let proxy = start(&upstream, &cache).with_admin().ready();
    proxy.wait_for_log("events_spool_damaged");
    eventually("the two others", || {
        let sent = batches(&upstream);
        let names: Vec<Value> = sent[before..]
            .iter()
            .flat_map(|batch| batch.json()["events"].as_array().cloned().unwrap_or_default())
            .map(|event| event["event"].clone())
            .collect();
        (names == ["first", "third"]).then_some(())
    });
    assert_eq!(proxy.metric("edge_proxy_events_dropped_total{reason=\"damaged\"}"), 1.0);
}
