//! Kept traits that are sent upstream: a fake core has exactly the last values, through outages and kills.
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::support::{Client, Proxy, Recorded, Reply, Scratch, Start, Upstream, eventually};
use crate::surface::{CLIENT, SERVER, document};

const BULK: &str = "/api/v1/traits/bulk/";
const SINGLE: &str = "/api/v1/traits/";
const IDENTITIES: &str = "/api/v1/identities/";

/// The traits that the fake core has: by identifier and key.
type Stored = Arc<Mutex<BTreeMap<(String, String), Value>>>;

/// Stores items as core does: deletions first, then the others, unless one of them is `poison`.
fn store_bulk(stored: &Stored, sent: &Recorded) -> Reply {
    let body = sent.json();
    let items = body.as_array().expect("a list");
    let names: BTreeSet<(&str, &str)> = items
        .iter()
        .map(|item| {
            let identifier = item["identity"]["identifier"].as_str().expect("an identifier");
            (identifier, item["trait_key"].as_str().expect("a key"))
        })
        .collect();
    assert_eq!(names.len(), items.len(), "one item for each identity and key");
    let identifiers: BTreeSet<&str> = names.iter().map(|(identifier, _)| *identifier).collect();
    assert!(identifiers.len() <= 100, "{} identities", identifiers.len());
    assert_eq!(sent.key(), SERVER);
    let mut stored = stored.lock().expect("no panic");
    for item in items.iter().filter(|item| item["trait_value"].is_null()) {
        stored.remove(&name_of(item));
    }
    if items.iter().any(|item| item["trait_key"] == "poison") {
        return Reply::new(400, "[{}]");
    }
    for item in items.iter().filter(|item| !item["trait_value"].is_null()) {
        stored.insert(name_of(item), item["trait_value"].clone());
    }
    Reply::new(200, "[]")
}

fn name_of(item: &Value) -> (String, String) {
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    (text(&item["identity"]["identifier"]), text(&item["trait_key"]))
}

fn core() -> (Upstream, Stored) {
    let (upstream, stored) = (Upstream::start(), Stored::default());
    upstream.document(SERVER, document(1).to_string());
    answer_bulk(&upstream, &stored);
    (upstream, stored)
}

fn answer_bulk(upstream: &Upstream, stored: &Stored) {
    let stored = Arc::clone(stored);
    upstream.rule(move |sent| (sent.path() == BULK).then(|| store_bulk(&stored, sent)));
}

fn start(upstream: &Upstream, cache: Option<&Scratch>) -> Start {
    let start = Start::serve()
        .set("api_url", upstream.api_url())
        .set("traits", json!({"store": "memory", "forward": true, "forward_interval_seconds": 0.05}));
    let start = match cache {
        Some(cache) => start.set("cache_dir", cache.path().to_string_lossy().into_owned()),
        None => start,
    };
    start.environment(CLIENT, SERVER).with_admin()
}

/// Posts traits of one identity; `null` deletes.
fn post(client: &mut Client, identifier: &str, traits: &Value) {
    let list: Vec<Value> = traits
        .as_object()
        .expect("an object")
        .iter()
        .map(|(key, value)| json!({"trait_key": key, "trait_value": value}))
        .collect();
    let body = json!({"identifier": identifier, "traits": list}).to_string();
    let headers = [("X-Environment-Key", CLIENT), ("Content-Type", "application/json")];
    let answer = client.request("POST", IDENTITIES, &headers, body.as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
}

fn forwarded(proxy: &Proxy) -> f64 {
    proxy.metric("edge_proxy_traits_forwarded_total")
}

fn dropped(proxy: &Proxy, reason: &str) -> f64 {
    proxy.metric(&format!("edge_proxy_traits_forward_dropped_total{{reason=\"{reason}\"}}"))
}

fn is_empty(proxy: &Proxy) -> Option<()> {
    (proxy.metric("edge_proxy_traits_forward_queued") == 0.0).then_some(())
}

/// Whether the journal has this text.
fn journal_has(cache: &Path, text: &str) -> bool {
    let Ok(slots) = std::fs::read_dir(cache.join("traits-forward")) else { return false };
    let files = slots.flatten().filter_map(|slot| std::fs::read_dir(slot.path()).ok());
    let files: Vec<_> = files.flat_map(Iterator::flatten).collect();
    files.iter().any(|file| {
        let bytes = std::fs::read(file.path()).unwrap_or_default();
        bytes.windows(text.len()).any(|window| window == text.as_bytes())
    })
}

#[test]
fn it_needs_a_store() {
    let (code, output) = Start::demo_document().set("traits", json!({"forward": true})).run();
    assert_eq!(code, Some(64), "{output}");
    assert!(output.contains("traits.forward") && output.contains("traits.store is none"), "{output}");
}

#[test]
fn core_gets_the_last_value_of_each_identity_and_key() {
    let (upstream, stored) = core();
    let proxy = start(&upstream, None).ready();
    let mut client = proxy.client();
    post(
        &mut client,
        "ada",
        &json!({"plan": "silver", "age": 36, "beta": true, "x": 1.0, "long": 1735229888000_u64}),
    );
    post(&mut client, "ada", &json!({"plan": "gold", "age": null}));
    post(&mut client, "bob", &json!({"plan": "Größe \"x\""}));
    let expected = |pairs: &[(&str, &str, Value)]| -> BTreeMap<(String, String), Value> {
        pairs.iter().map(|(one, key, value)| (((*one).into(), (*key).into()), value.clone())).collect()
    };
    let expected = expected(&[
        ("ada", "plan", json!("gold")),
        ("ada", "beta", json!(true)),
        ("ada", "x", json!(1.0)),
        // Beyond core's 32 bits.
        ("ada", "long", json!(1735229888000.0)),
        ("bob", "plan", json!("Größe \"x\"")),
    ]);
    eventually("the last values", || (*stored.lock().expect("no panic") == expected).then_some(()));
    eventually("nothing waits", || is_empty(&proxy));
    // A request of traits/, an increment, and what only this request has.
    let headers = [("X-Environment-Key", SERVER), ("Content-Type", "application/json")];
    for (method, path, body) in [
        ("POST", SINGLE, json!({"identity": {"identifier": "cyd"}, "trait_key": "a", "trait_value": 1})),
        (
            "POST",
            "/api/v1/traits/increment-value/",
            json!({"identifier": "cyd", "trait_key": "n", "increment_by": 5}),
        ),
        (
            "POST",
            IDENTITIES,
            json!({"identifier": "cyd", "traits": [{"trait_key": "t", "trait_value": 1, "transient": true}]}),
        ),
        (
            "POST",
            IDENTITIES,
            json!({"identifier": "transient", "transient": true, "traits": [{"trait_key": "t", "trait_value": 1}]}),
        ),
    ] {
        let answer = client.request(method, path, &headers, body.to_string().as_bytes());
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    }
    post(&mut client, "cyd", &json!({"huge": 9_007_199_254_740_993_u64, "end": 1}));
    eventually("the others", || {
        let stored = stored.lock().expect("no panic");
        let of_cyd = stored.iter().filter(|((one, _), _)| one == "cyd");
        let of_cyd: BTreeMap<&str, &Value> = of_cyd.map(|((_, key), value)| (&**key, value)).collect();
        (of_cyd == [("a", &json!(1)), ("n", &json!(5)), ("end", &json!(1))].into()).then_some(())
    });
    assert!(stored.lock().expect("no panic").keys().all(|(one, key)| one != "transient" && key != "t"));
    assert_eq!(dropped(&proxy, "invalid"), 1.0);
    eventually("nothing waits", || is_empty(&proxy));
    let status = crate::support::get(proxy.admin(), "/status.json", "").json();
    assert_eq!(status["traits"]["forward_queued"], 0, "{status}");
    assert_eq!(status["traits"]["forwarded"].as_f64(), Some(forwarded(&proxy)));
}

/// Values overwrite each other while upstream fails in each way and the proxy is killed: the sums are exact.
#[test]
fn sums_are_exact_through_outages_and_kills() {
    let ((upstream, stored), cache) = (core(), Scratch::new());
    let mut proxy = start(&upstream, Some(&cache)).ready();
    let mut expected: BTreeMap<(String, String), Value> = BTreeMap::new();
    for round in 0..6_usize {
        match round {
            1 => upstream.on(BULK, Reply::new(503, "{}").with("retry-after", "0")),
            2 => upstream.refuse(),
            4 => upstream.on(BULK, Reply::new(403, "{}")),
            _ => {}
        }
        let mut client = proxy.client();
        for number in 0..150_usize {
            // The store of a proxy that was killed is empty, and a deletion of what is not kept is not
            // forwarded: other identities after each kill.
            let identifier =
                format!("user-{}-{:03}", [0, 0, 0, 1, 1, 2][round], (number * 7 + round * 13) % 180);
            let (key, other) = (format!("k{}", number % 3), format!("k{}", (number + 1) % 3));
            post(&mut client, &identifier, &json!({&key: round * 1000 + number, &other: null}));
            expected.insert((identifier.clone(), key), json!(round * 1000 + number));
            expected.remove(&(identifier, other));
        }
        let mark = format!("mark-{round}");
        post(&mut client, &mark, &json!({"k": round}));
        expected.insert((mark.clone(), "k".into()), json!(round));
        if round == 2 || round == 4 {
            // What is in the journal survives.
            eventually("the journal", || journal_has(cache.path(), &mark).then_some(()));
            proxy.signal("KILL");
            proxy.wait();
            proxy = start(&upstream, Some(&cache)).start();
            eventually("it answers", || Client::try_connect(proxy.address()).ok());
            if round == 2 {
                upstream.listen();
            }
            proxy.wait_until_ready();
        }
        if round == 4 {
            answer_bulk(&upstream, &stored);
        }
        if round % 2 == 1 {
            answer_bulk(&upstream, &stored);
        }
    }
    eventually("the last values", || (*stored.lock().expect("no panic") == expected).then_some(()));
    eventually("nothing waits", || is_empty(&proxy));
    assert_eq!(dropped(&proxy, "refused") + dropped(&proxy, "faulty") + dropped(&proxy, "full"), 0.0);
}

#[test]
fn one_item_does_not_spoil_a_batch() {
    let (upstream, stored) = core();
    let proxy = start(&upstream, None).set("traits.forward_interval_seconds", 1).ready();
    let mut client = proxy.client();
    for number in 0..60 {
        let traits = if number == 31 { json!({"poison": 1, "good": 1}) } else { json!({"good": 1}) };
        post(&mut client, &format!("user-{number}"), &traits);
    }
    eventually("the others", || (stored.lock().expect("no panic").len() == 60).then_some(()));
    eventually("one is dropped", || (dropped(&proxy, "refused") == 1.0).then_some(()));
    assert!(proxy.wait_for_log("traits_refused").contains("lost_count=1"));
    assert_eq!(forwarded(&proxy), 60.0);
    eventually("nothing waits", || is_empty(&proxy));
}

#[test]
fn without_the_bulk_route_each_trait_is_sent_by_itself() {
    for status in [404, 405] {
        let (upstream, stored) = core();
        let copy = Arc::clone(&stored);
        upstream.rule(move |sent| {
            let mut stored = copy.lock().expect("no panic");
            match sent.path() {
                BULK => return Some(Reply::new(status, "{}")),
                SINGLE => {
                    let item = sent.json();
                    assert!(!item["trait_value"].is_null() && sent.key() == SERVER);
                    stored.insert(name_of(&item), item["trait_value"].clone());
                }
                IDENTITIES => {
                    let body = sent.json();
                    let one = body["identifier"].as_str().expect("text").to_owned();
                    assert_eq!(body["traits"].as_array().map(Vec::len), Some(1));
                    assert!(body["traits"][0]["trait_value"].is_null());
                    stored.remove(&(one, body["traits"][0]["trait_key"].as_str().expect("text").into()));
                }
                _ => return None,
            }
            Some(Reply::new(200, "{}"))
        });
        let proxy = start(&upstream, None).ready();
        let mut client = proxy.client();
        post(&mut client, "ada", &json!({"a": 1, "b": 2}));
        eventually("both", || (stored.lock().expect("no panic").len() == 2).then_some(()));
        post(&mut client, "ada", &json!({"a": null, "c": 3}));
        eventually("the deletion", || {
            let stored = stored.lock().expect("no panic");
            let keys: Vec<&str> = stored.keys().map(|(_, key)| &**key).collect();
            (keys == ["b", "c"]).then_some(())
        });
        proxy.wait_for_log("traits_forwarded_singly");
        assert_eq!(upstream.requests_for(BULK).len(), 1, "remembered");
    }
}

#[test]
fn what_is_not_kept_or_not_served_upstream_is_not_forwarded() {
    let (upstream, stored) = (Upstream::start(), Stored::default());
    let mut sent = document(1);
    sent["project"]["organisation"]["persist_trait_data"] = json!(false);
    upstream.document(SERVER, sent.to_string());
    answer_bulk(&upstream, &stored);
    let start = start(&upstream, None);
    let path = start.scratch().write("document.json", document(1).to_string());
    let proxy = start.document("file-key", "ser.file", path).ready();
    let mut client = proxy.client();
    post(&mut client, "ada", &json!({"a": 1}));
    let headers = [("X-Environment-Key", "file-key"), ("Content-Type", "application/json")];
    let body = json!({"identifier": "bob", "traits": [{"trait_key": "a", "trait_value": 1}]}).to_string();
    assert_eq!(client.request("POST", IDENTITIES, &headers, body.as_bytes()).status, 200);
    eventually("that of the file is dropped", || (dropped(&proxy, "not_served") == 1.0).then_some(()));
    assert!(stored.lock().expect("no panic").is_empty() && upstream.requests_for(BULK).is_empty());
    assert_eq!(forwarded(&proxy), 0.0);
}

#[test]
fn what_was_erased_is_not_forwarded_and_not_on_disk() {
    let ((upstream, stored), cache) = (core(), Scratch::new());
    upstream.on(BULK, Reply::new(503, "{}"));
    let proxy = start(&upstream, Some(&cache)).ready();
    let mut client = proxy.client();
    post(&mut client, "erased-person", &json!({"a": 1}));
    post(&mut client, "other-person", &json!({"a": 1}));
    eventually("the journal", || journal_has(cache.path(), "other-person").then_some(()));
    assert!(journal_has(cache.path(), "erased-person"));
    let path = "/proxy/traits/?identifier=erased-person";
    assert_eq!(client.request("DELETE", path, &[("X-Environment-Key", SERVER)], b"").status, 204);
    eventually("the journal is written anew", || (!journal_has(cache.path(), "erased-person")).then_some(()));
    answer_bulk(&upstream, &stored);
    eventually("the other arrives", || (!stored.lock().expect("no panic").is_empty()).then_some(()));
    eventually("nothing waits", || is_empty(&proxy));
    let stored = stored.lock().expect("no panic");
    assert_eq!(stored.keys().map(|(one, _)| &**one).collect::<Vec<_>>(), ["other-person"]);
}

#[test]
fn a_stop_forwards_what_waits() {
    let (upstream, stored) = core();
    let mut proxy = start(&upstream, None).set("traits.forward_interval_seconds", 3600).ready();
    let mut client = proxy.client();
    for number in 0..30 {
        post(&mut client, &format!("user-{number}"), &json!({"a": 1}));
    }
    drop(client);
    proxy.signal("TERM");
    assert!(proxy.wait().success(), "{}", proxy.log());
    assert_eq!(stored.lock().expect("no panic").len(), 30);
}
