//! Counts of SDKs arrive upstream exactly, across restarts of the proxy and of upstream.
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::json;

use crate::support::{Client, Proxy, Recorded, Reply, Scratch, Start, Upstream, eventually, request};
use crate::surface::{CLIENT, SERVER, document};

const SENDERS: usize = 8;
const POSTS_EACH: u64 = 2_500;
/// 5 per request, 20,000 requests.
const COUNTS: u64 = 100_000;
const BODY: &[u8] = br#"{"banner":3,"on":2}"#;

/// What upstream has accepted: one entry for each idempotency key.
type Taken = Arc<Mutex<HashMap<String, u64>>>;

fn upstream(taken: &Taken) -> Upstream {
    let upstream = Upstream::start();
    upstream.document(SERVER, document(1).to_string());
    let taken = Arc::clone(taken);
    upstream.rule(move |sent: &Recorded| {
        if sent.path() != "/api/v1/analytics/flags/" {
            return None;
        }
        let body = sent.json();
        let sum = body.as_object().expect("an object").values().filter_map(serde_json::Value::as_u64).sum();
        let key = sent.header("idempotency-key").expect("an idempotency key").to_owned();
        let before = taken.lock().expect("no panic").insert(key, sum);
        assert!(before.is_none_or(|before| before == sum), "an upload never changes");
        Some(Reply::json("{}"))
    });
    upstream
}

fn proxy(upstream: &Upstream, cache: &Scratch) -> Proxy {
    Start::serve()
        .set("api_url", upstream.api_url())
        .set("cache_dir", cache.path().to_string_lossy().into_owned())
        .set("analytics", json!({"flush_interval_seconds": 1}))
        .environment(CLIENT, SERVER)
        .cores(2)
        .ready()
}

/// Posts until all are answered, to the proxy that is running at the time.
fn send_all(address: &Mutex<std::net::SocketAddr>, progress: &Mutex<u64>) {
    let mut client: Option<Client> = None;
    let mut answered = 0;
    while answered < POSTS_EACH {
        let address = *address.lock().expect("no panic");
        let mut connection = match client.take() {
            Some(client) => client,
            None => match Client::try_connect(address) {
                Ok(client) => client,
                Err(_) => continue,
            },
        };
        let sent = connection.try_send(request(
            "POST",
            "/api/v1/analytics/flags/",
            &[("X-Environment-Key", CLIENT)],
            BODY,
        ));
        // A connection that was closed without a response did not accept the request: retry.
        let Some(answer) = sent.ok().and_then(|()| connection.try_answer("POST").ok().flatten()) else {
            continue;
        };
        assert_eq!(answer.text(), "{}");
        answered += 1;
        *progress.lock().expect("no panic") += 1;
        if answer.header("connection") != Some("close") {
            client = Some(connection);
        }
    }
}

/// A second signal ends open requests, not what was answered before.
#[test]
fn counts_survive_a_second_signal_while_a_request_is_open() {
    let (taken, cache) = (Taken::default(), Scratch::new());
    let upstream = upstream(&taken);
    let mut proxy = proxy(&upstream, &cache);
    let (mut open, mut client) = (Client::connect(proxy.address()), Client::connect(proxy.address()));
    let post = request("POST", "/api/v1/analytics/flags/", &[("X-Environment-Key", CLIENT)], BODY);
    open.send(&post[..post.len() - 1]);
    client.send(&post);
    assert_eq!(client.answer("POST").status, 200);
    proxy.signal("TERM");
    proxy.wait_for_log("draining");
    proxy.signal("TERM");
    proxy.wait_for_log("open requests are ended");
    assert!(proxy.wait().success(), "{}", proxy.log());
    assert!(!proxy.log().contains("shutdown_timeout"), "{}", proxy.log());
    assert_eq!(taken.lock().expect("no panic").values().sum::<u64>(), 5, "{}", proxy.log());
}

#[test]
fn uploads_100_000_counts_exactly_across_restarts() {
    let taken = Taken::default();
    let cache = Scratch::new();
    let upstream = upstream(&taken);
    let mut running = proxy(&upstream, &cache);
    let address = Arc::new(Mutex::new(running.address()));
    let progress = Arc::new(Mutex::new(0_u64));
    let senders: Vec<_> = (0..SENDERS)
        .map(|_| {
            let (address, progress) = (Arc::clone(&address), Arc::clone(&progress));
            thread::spawn(move || send_all(&address, &progress))
        })
        .collect();
    let posts = POSTS_EACH * SENDERS as u64;
    for quarter in 1..=3 {
        eventually("a part is posted", || {
            (*progress.lock().expect("no panic") >= posts * quarter / 4).then_some(())
        });
        // Upstream stops, so that the proxy stores its counts on disk when it stops.
        upstream.refuse();
        upstream.close_connections();
        if quarter == 2 {
            running.signal("TERM");
            assert!(running.wait().success(), "{}", running.log());
            upstream.listen();
            running = proxy(&upstream, &cache);
            *address.lock().expect("no panic") = running.address();
        } else {
            upstream.listen();
        }
    }
    senders.into_iter().for_each(|sender| sender.join().expect("all were answered"));
    let sum = || taken.lock().expect("no panic").values().sum::<u64>();
    eventually("every count upstream", || {
        assert!(sum() <= COUNTS, "counted twice: {}", sum());
        (sum() == COUNTS).then_some(())
    });
    running.signal("TERM");
    assert!(running.wait().success());
    assert_eq!(sum(), COUNTS, "no more counts arrive at the end");
}

#[test]
fn counts_survive_restarts_of_upstream_and_proxy() {
    const ANALYTICS: &str = "/api/v1/analytics/flags/";
    let (upstream, cache) = (Upstream::start(), Scratch::new());
    upstream.document(crate::support::document::SERVER_KEY, crate::support::document::document(1));
    upstream.on(ANALYTICS, Reply::json("{}"));
    let start = || {
        Start::polling(&upstream.api_url())
            .cores(2)
            .set("cache_dir", cache.path().to_str().expect("a plain path"))
            .set("analytics.flush_interval_seconds", 0.2)
    };
    let mut expected = 0;
    for round in 0..4 {
        let mut proxy = start().ready();
        if round == 2 {
            upstream.listen();
        }
        // The reactors receive a document one after the other; before, they cannot judge names.
        eventually("every reactor has the document", || {
            let is_served =
                |_: u32| proxy.get("/api/v1/flags/", crate::support::document::CLIENT_KEY).status == 200;
            (0..32).all(is_served).then_some(())
        });
        let (address, threads, posts) = (proxy.address(), 4, 250);
        let posting: Vec<_> = (0..threads)
            .map(|_| {
                thread::spawn(move || {
                    let mut client = Client::connect(address);
                    let headers = [
                        ("X-Environment-Key", crate::support::document::CLIENT_KEY),
                        ("Content-Type", "application/json"),
                    ];
                    for _ in 0..posts {
                        let body = br#"{"version": 20, "colour": 5, "unknown": 7}"#;
                        assert_eq!(client.request("POST", ANALYTICS, &headers, body).status, 200);
                    }
                })
            })
            .collect();
        if round == 1 {
            upstream.refuse();
        }
        for thread in posting {
            thread.join().expect("every post is answered");
        }
        expected += threads * posts * 25;
        proxy.signal("TERM");
        assert!(proxy.wait().success(), "{}", proxy.log());
    }
    assert_eq!(expected, 100_000);
    let sum: u64 = upstream
        .requests_for(ANALYTICS)
        .iter()
        .flat_map(|request| request.json().as_object().expect("counts").values().cloned().collect::<Vec<_>>())
        .map(|count| count.as_u64().expect("a number"))
        .sum();
    assert_eq!(sum, expected as u64);
}
