//! Polling: schedules, conditional requests, pagination, cache files, document files, reloads.
use std::time::{Duration, Instant};

use serde_json::json;

use crate::conformance::count_of;
use crate::support::document::{CLIENT_KEY, SERVER_KEY, document, for_key, override_of, value};
use crate::support::{Client, Delivery, Proxy, Reply, Scratch, Start, Upstream, eventually, fixture};

const DOCUMENT: &str = "/api/v1/environment-document/";

fn colour(proxy: &Proxy, identifier: &str) -> String {
    let answer =
        proxy.get(&format!("/api/v1/identities/?identifier={identifier}&feature=colour"), CLIENT_KEY);
    answer.json()["flags"][0]["feature_state_value"].as_str().expect("a text").to_string()
}

fn environments(proxy: &Proxy) -> serde_json::Value {
    proxy.get("/proxy/health", "").json()["environments"].clone()
}

#[test]
fn polls_are_counted_by_their_result_and_a_change_has_its_delay() {
    let upstream = Upstream::start();
    upstream.document(SERVER_KEY, document(1));
    let proxy = Start::polling(&upstream.api_url()).with_admin().ready();
    let label = format!("environment=\"{}...\"", &CLIENT_KEY[..6]);
    let polls = |result: &str| {
        proxy.metric(&format!("edge_proxy_environment_polls_total{{{label},result=\"{result}\"}}"))
    };
    eventually("two polls found no change", || (polls("unchanged") >= 2.0).then_some(()));
    assert_eq!((polls("changed"), polls("failed")), (1.0, 0.0));
    upstream.document(SERVER_KEY, document(2));
    eventually("a poll found the change", || (polls("changed") == 2.0).then_some(()));
    // The document was edited at the beginning of 2026.
    let delay = proxy.metric(&format!("edge_proxy_environment_propagation_seconds{{{label}}}"));
    assert!(delay > 3600.0, "{delay}");
    upstream.on(DOCUMENT, Reply::new(500, ""));
    eventually("a poll failed", || (polls("failed") >= 1.0).then_some(()));
}

#[test]
fn polls_are_conditional_as_core_expects() {
    let upstream = Upstream::start();
    upstream.document(SERVER_KEY, document(1));
    let proxy = Start::polling(&upstream.api_url()).ready();
    upstream.wait("three polls", |requests| requests.len() >= 3);
    let requests = upstream.requests();
    assert_eq!(requests[0].header("if-modified-since"), None);
    for request in &requests[1..] {
        assert_eq!(request.header("if-modified-since"), Some("Thu, 01 Jan 2026 00:00:01 GMT"));
        assert_eq!((request.path(), request.key()), (DOCUMENT, SERVER_KEY));
        assert!(request.header("accept-encoding").is_some_and(|codings| codings.contains("gzip")));
    }
    // A 304 is a success: the document stays fresh.
    assert_eq!(environments(&proxy)[0]["state"], "fresh");
}

#[test]
fn sends_updated_at_without_last_modified_and_echoes_etag() {
    let upstream = Upstream::start();
    upstream.on(DOCUMENT, Reply::json(document(7)).with("etag", "\"seven\""));
    let _proxy = Start::polling(&upstream.api_url()).ready();
    upstream.wait("a second poll", |requests| requests.len() >= 2);
    let second = &upstream.requests()[1];
    assert_eq!(second.header("if-modified-since"), Some("Thu, 01 Jan 2026 00:00:07 GMT"));
    assert_eq!(second.header("if-none-match"), Some("\"seven\""));
}

#[test]
fn full_refresh_finds_an_edit_hidden_by_304() {
    let upstream = Upstream::start();
    upstream.document(SERVER_KEY, document(1));
    let proxy = Start::polling(&upstream.api_url()).set("api_full_refresh_seconds", 0.5).ready();
    // The same `updated_at` with other content: every conditional poll is answered 304.
    let mut hidden = value(1);
    hidden["feature_states"][0]["feature_state_value"] = json!(5);
    upstream.document(SERVER_KEY, hidden.to_string());
    eventually("the hidden edit is served", || (proxy.version_of(CLIENT_KEY) == Some(5)).then_some(()));
    assert!(upstream.requests().iter().any(|request| request.header("if-modified-since").is_some()));
}

#[test]
fn repeated_date_of_an_earlier_document_is_not_304() {
    let upstream = Upstream::start();
    upstream.document(SERVER_KEY, document(1));
    let proxy = Start::polling(&upstream.api_url()).set("api_full_refresh_seconds", 0.3).ready();
    let paths = ["/api/v1/flags/", "/api/v1/flags/?feature=version", "/api/v1/environment-document/"];
    let since = |path: &str, second: u8| {
        let date = format!("Thu, 01 Jan 2026 00:00:0{second} GMT");
        let fields = [("X-Environment-Key", SERVER_KEY), ("If-Modified-Since", date.as_str())];
        let answer = Client::connect(proxy.address()).request("GET", path, &fields, b"");
        if answer.status == 200 {
            assert!(answer.header("last-modified").is_some(), "{path}");
        }
        answer.status
    };
    assert_eq!(paths.map(|path| since(path, 1)), [304; 3]);
    // The same `updated_at` with other content, then an older one, as after a restored backup.
    for hidden in [(1, 5), (0, 6)] {
        let mut edited = value(1);
        edited["updated_at"] = json!(format!("2026-01-01T00:00:0{}.9+00:00", hidden.0));
        edited["feature_states"][0]["feature_state_value"] = json!(hidden.1);
        upstream.document(SERVER_KEY, edited.to_string());
        eventually("the edit is served", || (proxy.version_of(CLIENT_KEY) == Some(hidden.1)).then_some(()));
        assert_eq!(paths.map(|path| since(path, 1)), [200; 3], "{hidden:?}");
    }
    upstream.document(SERVER_KEY, document(2));
    eventually("a later one is served", || (proxy.version_of(CLIENT_KEY) == Some(2)).then_some(()));
    assert_eq!(paths.map(|path| since(path, 2)), [304; 3]);
    assert_eq!(paths.map(|path| since(path, 1)), [200; 3]);
}

#[test]
fn slow_environment_does_not_delay_others() {
    let upstream = Upstream::start();
    let mut start = Start::serve()
        .set("api_url", upstream.api_url())
        .set("api_poll_frequency_seconds", 1)
        .set("api_poll_timeout_seconds", 20);
    for number in 0..10 {
        let (client, server) = (format!("{number}-client"), format!("ser.{number}"));
        upstream.document(&server, for_key(&client, 1).to_string());
        start = start.environment(&client, &server);
    }
    upstream.on_key("ser.0", Reply::json(for_key("0-client", 1).to_string()).after(Duration::from_secs(5)));
    let proxy = start.start();
    eventually("the fast environments are served", || {
        (1..10).all(|number| proxy.version_of(&format!("{number}-client")) == Some(1)).then_some(())
    });
    assert_eq!(proxy.version_of("0-client"), None);
    assert_eq!(proxy.get("/api/v1/flags/", "0-client").status, 502);
    eventually("the slow environment is reported", || {
        proxy
            .log()
            .lines()
            .any(|l| l.contains("environment_poll_slow") && l.contains("0-clie..."))
            .then_some(())
    });
}

#[test]
fn an_upstream_that_stays_slow_is_logged_once() {
    let upstream = Upstream::start();
    let slow = || Reply::json(document(1)).after(Duration::from_millis(300));
    upstream.on(DOCUMENT, slow());
    let proxy = Start::polling(&upstream.api_url()).ready();
    let polls = |count: usize| upstream.wait("polls", |requests| requests.len() >= count);
    let logged = || proxy.log().matches("environment_poll_slow").count();
    polls(5);
    assert_eq!(logged(), 1, "{}", proxy.log());
    upstream.on(DOCUMENT, Reply::json(document(1)));
    polls(upstream.requests().len() + 3);
    upstream.on(DOCUMENT, slow());
    eventually("it is slow again", || (logged() == 2).then_some(()));
}

#[test]
fn two_hundred_environments_behind_a_slow_upstream_are_all_fresh() {
    let upstream = Upstream::start();
    let mut start = Start::serve()
        .set("api_url", upstream.api_url())
        .set("api_poll_frequency_seconds", 10)
        .set("health_check.environment_update_grace_period_seconds", 0);
    for number in 0..200 {
        start = start.environment(&format!("client-{number}"), &format!("ser.{number}"));
    }
    upstream.rule(|request| {
        let number = request.key().strip_prefix("ser.")?;
        let document = for_key(&format!("client-{number}"), 1).to_string();
        Some(Reply::json(document).after(Duration::from_secs(1)))
    });
    let proxy = start.start();
    let started = Instant::now();
    eventually("every environment has its document", || {
        // Each status response is large.
        std::thread::park_timeout(Duration::from_millis(100));
        environments(&proxy)
            .as_array()?
            .iter()
            .all(|environment| environment["state"] == "fresh")
            .then_some(())
    });
    let took = started.elapsed();
    println!("200 environments, 1 s upstream: all fresh after {took:?}");
    // Sequential fetches would take 200 s. A busy machine is not judged.
    let is_bench = !cfg!(debug_assertions);
    assert!(!is_bench || took < Duration::from_secs(10), "a round takes {took:?}, longer than the interval");
}

#[test]
fn merges_pages_into_one_document() {
    let upstream = Upstream::start();
    let pages = 5;
    upstream.rule(move |request| {
        let page: u32 = match request.target.split("page_id=identity_override%3A").nth(1) {
            Some(number) => number.parse().expect("a number"),
            None => 1,
        };
        let mut document = value(1);
        // Repeated identifiers are not removed; the first one is used.
        document["identity_overrides"] =
            json!([override_of(&format!("u{page}"), page), override_of("again", page)]);
        if page > 1 {
            document = json!({"identity_overrides": document["identity_overrides"], "name": "of no account"});
            assert_eq!(request.header("if-modified-since"), None, "only the first page is conditional");
        }
        let reply = Reply::json(document.to_string());
        // A title that is not ASCII must not hide the link.
        let next =
            format!("<{DOCUMENT}?page_id=identity_override%3A{}>; rel=\"next\"; title=\"é\"", page + 1);
        Some(if page < pages { reply.with("link", &next) } else { reply })
    });
    let proxy = Start::polling(&upstream.api_url()).ready();
    for page in 1..=pages {
        assert_eq!(colour(&proxy, &format!("u{page}")), format!("gold-{page}"));
    }
    assert_eq!(colour(&proxy, "again"), "gold-1");
    let served = proxy.get(DOCUMENT, SERVER_KEY);
    assert_eq!(served.header("link"), None);
    assert_eq!(served.json()["identity_overrides"].as_array().expect("a list").len(), 10);
    assert_eq!(served.json()["name"], "Test");
}

#[test]
fn serves_an_alias_and_logs_it_once() {
    let upstream = Upstream::start();
    upstream.document(SERVER_KEY, for_key("another-key", 1).to_string());
    let proxy = Start::polling(&upstream.api_url()).ready();
    assert_eq!(proxy.version_of(CLIENT_KEY), Some(1));
    let line = proxy.wait_for_log("client_side_key_is_an_alias");
    // Keys are shortened.
    assert!(
        line.contains(&CLIENT_KEY[..6]) && line.contains("anothe...") && !line.contains(CLIENT_KEY),
        "{line}"
    );
    upstream.document(SERVER_KEY, for_key("another-key", 2).to_string());
    eventually("the next document", || (proxy.version_of(CLIENT_KEY) == Some(2)).then_some(()));
    assert_eq!(proxy.log().matches("client_side_key_is_an_alias").count(), 1);
}

#[test]
fn failure_is_isolated_and_require_any_is_ready() {
    for (require, ready) in [("all", 503), ("any", 200)] {
        let upstream = Upstream::start();
        upstream.document(SERVER_KEY, document(1));
        let proxy = Start::polling(&upstream.api_url())
            .environment("refused", "ser.refused")
            .set("health_check.require", require)
            .start();
        eventually("the valid environment is served", || proxy.version_of(CLIENT_KEY));
        proxy.wait_for_log("environment_poll_failed");
        assert_eq!(proxy.get("/proxy/health/readiness", "").status, ready, "require {require}");
        assert_eq!(proxy.get("/api/v1/flags/", "refused").status, 502);
    }
}

// --- the disk ---

#[test]
fn serves_cached_documents_after_a_restart_without_upstream() {
    let (upstream, cache) = (Upstream::start(), Scratch::new());
    let folder = cache.path().join("deep/cache");
    upstream.document(SERVER_KEY, document(3));
    let start =
        || Start::polling(&upstream.api_url()).set("cache_dir", folder.to_str().expect("a plain path"));
    let mut proxy = start().ready();
    let before = proxy.get("/api/v1/flags/", CLIENT_KEY).body;
    proxy.signal("TERM");
    assert!(proxy.wait().success());
    upstream.refuse();

    let started = Instant::now();
    let mut proxy = start().ready();
    assert_eq!(proxy.get("/api/v1/flags/", CLIENT_KEY).body, before);
    println!("start to flags from the cache: {:?}", started.elapsed());
    let environment = &environments(&proxy)[0];
    assert_eq!((&environment["state"], &environment["source"]), (&json!("cache"), &json!("cache")));
    assert!(environment["last_successful_update"].is_string());
    proxy.wait_for_log("environment_poll_failed");
    assert_eq!(proxy.version_of(CLIENT_KEY), Some(3));
    // Upstream recovers: the cached document is confirmed without being compiled again.
    upstream.listen();
    eventually("the document is fresh", || (environments(&proxy)[0]["state"] == "fresh").then_some(()));
    proxy.signal("TERM");
    assert!(proxy.wait().success());

    let proxy = start().set("health_check.ready_from_cache", false);
    upstream.refuse();
    let proxy = proxy.start();
    assert_eq!(proxy.version_of(CLIENT_KEY), Some(3));
    assert_eq!(proxy.get("/proxy/health/readiness", "").status, 503);
    drop(proxy);

    // A damaged file is logged and not served.
    for entry in std::fs::read_dir(&folder).expect("the folder is there") {
        let path = entry.expect("an entry").path();
        assert!(!path.to_string_lossy().contains(CLIENT_KEY));
        if path.is_dir() {
            continue; // Spools.
        }
        let mut bytes = std::fs::read(&path).expect("scratch space");
        let last = bytes.len() - 10;
        bytes[last] ^= 1;
        std::fs::write(&path, bytes).expect("scratch space");
    }
    let proxy = start().start();
    proxy.wait_for_log("cache_file_ignored");
    assert_eq!(proxy.version_of(CLIENT_KEY), None);
}

/// `KILLS=200` is the long form.
#[test]
fn kill_while_writing_leaves_a_complete_document() {
    let (upstream, cache) = (Upstream::start(), Scratch::new());
    upstream.document(SERVER_KEY, document(1));
    let start =
        || Start::polling(&upstream.api_url()).set("cache_dir", cache.path().to_str().expect("a plain path"));
    // A new document each millisecond, so that some kills interrupt a write.
    let kills = u32::try_from(count_of("KILLS", 5)).expect("some");
    for round in 0..kills {
        let proxy = start().set("api_poll_frequency_seconds", 0.01).ready();
        for version in 1..20 {
            upstream.document(SERVER_KEY, document(round * 20 + version));
            upstream.wait_poll();
        }
        // Interrupts another part of the write each time.
        std::thread::park_timeout(Duration::from_micros(u64::from(round % 16) * 250));
        proxy.signal("KILL");
        drop(proxy);
        upstream.refuse();
        let proxy = start().ready();
        assert!(proxy.version_of(CLIENT_KEY).is_some());
        assert_eq!(proxy.log().matches("cache_file_ignored").count(), 0);
        drop(proxy);
        upstream.listen();
    }
    fixture::say(&format!("kills: {kills}, after each the cached document was served"));
}

// --- files ---

#[test]
fn rereads_document_file_and_keeps_it_after_an_invalid_edit() {
    let scratch = Scratch::new();
    let path = scratch.write("environment.json", document(1));
    let proxy = Start::serve().document(CLIENT_KEY, SERVER_KEY, &path).ready();
    assert_eq!(proxy.version_of(CLIENT_KEY), Some(1));
    scratch.write("environment.json", document(2));
    eventually("the edit is served", || (proxy.version_of(CLIENT_KEY) == Some(2)).then_some(()));
    scratch.write("environment.json", "{");
    proxy.wait_for_log("document_refused");
    assert_eq!(proxy.version_of(CLIENT_KEY), Some(2));
    std::fs::remove_file(&path).expect("scratch space");
    // As editors do: a new file is renamed over the old one.
    let new = scratch.write("new.json", document(3));
    std::fs::rename(new, &path).expect("scratch space");
    eventually("the new file is served", || (proxy.version_of(CLIENT_KEY) == Some(3)).then_some(()));
    proxy.wait_for_log("environment_recovered");
    assert_eq!(proxy.log().matches("document_refused").count(), 1, "{}", proxy.log());
}

#[test]
fn fifo_in_place_of_a_document_blocks_nothing() {
    let scratch = Scratch::new();
    let path = scratch.write("environment.json", document(1));
    let proxy = Start::serve().document(CLIENT_KEY, SERVER_KEY, &path).ready();
    std::fs::remove_file(&path).expect("scratch space");
    let made = std::process::Command::new("mkfifo").arg(&path).status();
    assert!(made.expect("coreutils").success());
    let line = proxy.wait_for_log("document_refused");
    assert!(line.contains("environment.json"), "{line}");
    assert_eq!(proxy.version_of(CLIENT_KEY), Some(1));
    let new = scratch.write("new.json", document(2));
    std::fs::rename(new, &path).expect("scratch space");
    eventually("the new file is served", || (proxy.version_of(CLIENT_KEY) == Some(2)).then_some(()));
}

// --- configuration ---

fn rewrite(proxy: &Proxy, change: impl FnOnce(&mut serde_json::Value)) {
    let mut config = proxy.config().clone();
    change(&mut config);
    proxy.scratch().write("config.json", config.to_string());
}

#[test]
fn reload_fails_no_request() {
    let upstream = Upstream::start();
    upstream.document(SERVER_KEY, document(1));
    upstream.document("ser.new", for_key("new", 5).to_string());
    let proxy = Start::polling(&upstream.api_url()).ready();
    let address = proxy.address();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let asking = {
        let stop = stop.clone();
        std::thread::spawn(move || {
            let mut count = 0;
            let mut client = crate::support::Client::connect(address);
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let head = [("X-Environment-Key", CLIENT_KEY)];
                client.send(crate::support::request("GET", "/api/v1/flags/", &head, b""));
                assert_eq!(client.answer("GET").status, 200);
                count += 1;
            }
            count
        })
    };
    rewrite(&proxy, |config| {
        let pair = json!({"client_side_key": "new", "server_side_key": "ser.new"});
        config["environment_key_pairs"].as_array_mut().expect("a list").push(pair);
        config["server"]["port"] = json!(1);
        config["allow_origins"] = json!(["https://only.example"]);
    });
    proxy.signal("HUP");
    eventually("the new environment is served", || (proxy.version_of("new") == Some(5)).then_some(()));
    let line = proxy.wait_for_log("configuration_needs_restart");
    assert!(line.contains("server.port"), "{line}");

    // An invalid configuration changes nothing and is logged.
    rewrite(&proxy, |config| config["api_poll_frequency_seconds"] = json!("never"));
    proxy.signal("HUP");
    let line = proxy.wait_for_log("configuration_refused");
    assert!(line.contains("api_poll_frequency"), "{line}");
    assert_eq!(proxy.version_of("new"), Some(5));

    // Without a signal, by the change of the file: one environment is removed, one gets another key.
    upstream.document("ser.rotated", document(2));
    rewrite(&proxy, |config| config["environment_key_pairs"][0]["server_side_key"] = json!("ser.rotated"));
    eventually("the new key is used", || (proxy.version_of(CLIENT_KEY) == Some(2)).then_some(()));
    assert_eq!(proxy.get("/api/v1/flags/", "new").status, 401);
    assert_eq!(proxy.get("/api/v1/flags/", SERVER_KEY).status, 401);
    assert_eq!(proxy.get("/api/v1/flags/", "ser.rotated").status, 200);
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(asking.join().expect("no request failed") > 0);
}

#[test]
fn first_signal_fails_readiness_and_second_exits() {
    let upstream = Upstream::start();
    upstream.document(SERVER_KEY, document(1));
    let mut proxy = Start::polling(&upstream.api_url()).set("server.shutdown_delay_seconds", 60).ready();
    proxy.signal("TERM");
    eventually("readiness fails", || (proxy.get("/proxy/health/readiness", "").status == 503).then_some(()));
    assert_eq!(proxy.version_of(CLIENT_KEY), Some(1), "requests are served while readiness fails");
    let signalled = Instant::now();
    proxy.signal("TERM");
    assert!(proxy.wait().success());
    assert!(signalled.elapsed() < Duration::from_secs(5));
}

#[test]
fn stops_while_upstream_hangs() {
    let upstream = Upstream::start();
    upstream.on(DOCUMENT, Reply::json("").delivered(Delivery::HangBeforeHead));
    let mut proxy = Start::polling(&upstream.api_url()).set("api_poll_timeout_seconds", 30).start();
    upstream.wait("a poll", |requests| !requests.is_empty());
    let signalled = Instant::now();
    proxy.signal("TERM");
    assert!(proxy.wait().success());
    assert!(signalled.elapsed() < Duration::from_secs(1), "{:?}", signalled.elapsed());
}
