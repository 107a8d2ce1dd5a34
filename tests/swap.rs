//! Big documents: what it costs to take one up while requests are served.
//!
//! `make bench-swap` runs this in the optimised profile, with 20 MB and 50,000 overrides, and prints the
//! numbers. In an ordinary test run a tenth of that is swapped, so that the bench cannot rot; there
//! only the answers are judged, not the times.
use std::time::{Duration, Instant};

use crate::support::document::{CLIENT_KEY, SERVER_KEY, override_of, value};
use crate::support::{Client, Proxy, Reply, Start, Upstream, eventually, request};

const IS_BENCH: bool = !cfg!(debug_assertions);
const OVERRIDES: u32 = if IS_BENCH { 50_000 } else { 5_000 };
const SWAPS: u32 = if IS_BENCH { 8 } else { 3 };

fn big(version: u32) -> Vec<u8> {
    let mut document = value(version);
    let overrides = (0..OVERRIDES).map(|number| override_of(&format!("identity-{number}"), number));
    document["identity_overrides"] = overrides.collect();
    document.to_string().into_bytes()
}

/// Kilobytes of a line of /proc/PID/status, such as `VmHWM`.
fn memory_kb(proxy: &Proxy, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.pid())).expect("it runs");
    let line = status.lines().find(|line| line.starts_with(name)).expect("a line of that name");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

/// Asks one after another until `until`; the times in microseconds, sorted.
fn ask(client: &mut Client, until: impl Fn() -> bool) -> Vec<u64> {
    let bytes = request(
        "GET",
        "/api/v1/identities/?identifier=identity-77&feature=colour",
        &[("X-Environment-Key", CLIENT_KEY)],
        b"",
    );
    let mut took = Vec::new();
    while !until() {
        let started = Instant::now();
        client.send(&bytes);
        let answer = client.answer("GET");
        took.push(u64::try_from(started.elapsed().as_micros()).expect("short"));
        assert_eq!(answer.status, 200);
        assert!(answer.text().contains("gold-77"), "{}", answer.text());
    }
    took.sort_unstable();
    took
}

fn quantile(sorted: &[u64], share: f64) -> u64 {
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}

fn compile_ms(proxy: &Proxy) -> Vec<u64> {
    let log = proxy.log();
    let lines = log.lines().filter(|line| line.contains("environment_updated"));
    lines.filter_map(|line| line.split("took_ms=").nth(1)?.split_whitespace().next()?.parse().ok()).collect()
}

#[test]
fn a_big_document_is_swapped_under_load() {
    let upstream = Upstream::start();
    let bodies: Vec<Reply> = (0..2).map(|version| Reply::json(big(version))).collect();
    let json_kb = bodies[0].body.len() as u64 / 1024;
    upstream.on_key(SERVER_KEY, bodies[0].clone());
    let small = memory_kb_of_small();
    let proxy = Start::serve()
        .environment(CLIENT_KEY, SERVER_KEY)
        .set("api_url", upstream.api_url())
        .set("api_poll_frequency_seconds", 3600)
        .set("realtime", serde_json::json!({"enabled": true, "url": format!("{}/", upstream.origin())}))
        .ready();
    let first = (memory_kb(&proxy, "VmHWM"), memory_kb(&proxy, "VmRSS"));
    let mut client = proxy.client();
    let quiet_until = Instant::now() + Duration::from_secs(SWAPS.into());
    let quiet = ask(&mut client, || Instant::now() >= quiet_until);

    // One swap a second, told of by an event, while the same is asked.
    let stream = format!("/sse/environments/{CLIENT_KEY}/stream");
    upstream.on(&stream, Reply::events(""));
    upstream.close_connections();
    eventually("the stream is open", || (upstream.streams(&stream) == 1).then_some(()));
    let swapping = std::thread::spawn({
        let stream = stream.clone();
        move || {
            for swap in 1..=SWAPS {
                let started = Instant::now();
                let mut reply = bodies[swap as usize % 2].clone();
                reply.body = newer(&reply.body, swap);
                upstream.on_key(SERVER_KEY, reply);
                let seconds = 1_767_225_600 + u64::from(swap) + 10;
                upstream.push(&stream, &format!("data: {{\"updated_at\": {seconds}.0}}\n\n"));
                std::thread::park_timeout(Duration::from_secs(1).saturating_sub(started.elapsed()));
            }
            upstream
        }
    });
    let busy = ask(&mut client, || swapping.is_finished());
    let upstream = swapping.join().expect("the swaps went well");
    let last = format!("{}.0", 1_767_225_600 + u64::from(SWAPS) + 10);
    eventually("the last document is served", || {
        let answer = proxy.get("/api/v1/flags/", CLIENT_KEY);
        (answer.header("x-flagsmith-document-updated-at") == Some(&last)).then_some(())
    });
    // At rest: the old document has been given back, and its memory to the system.
    std::thread::park_timeout(Duration::from_secs(if IS_BENCH { 3 } else { 0 }));
    let swapped = (memory_kb(&proxy, "VmHWM"), memory_kb(&proxy, "VmRSS"));
    drop(upstream);

    let times = |sorted: &[u64]| {
        format!(
            "p50 {} us, p99 {} us, p99.9 {} us, worst {} us",
            quantile(sorted, 0.5),
            quantile(sorted, 0.99),
            quantile(sorted, 0.999),
            quantile(sorted, 1.0)
        )
    };
    let share = |kb: u64| kb.saturating_sub(small) as f64 / json_kb as f64;
    println!("swap | document {:.1} MB, {OVERRIDES} overrides", json_kb as f64 / 1024.0);
    println!("swap | fetch, check and compile, ms: {:?}", compile_ms(&proxy));
    println!("swap | first load: peak {:.1} x the JSON, at rest {:.1} x", share(first.0), share(first.1));
    println!(
        "swap | {SWAPS} swaps: peak {:.1} x the JSON, at rest {:.1} x",
        share(swapped.0),
        share(swapped.1)
    );
    println!("swap | quiet:    {} requests, {}", quiet.len(), times(&quiet));
    println!("swap | swapping: {} requests, {}", busy.len(), times(&busy));
    println!(
        "swap | p99.9 while swapping / quiet: {:.2}",
        quantile(&busy, 0.999) as f64 / quantile(&quiet, 0.999) as f64
    );
}

/// The same document with a time of its own, and so another one.
fn newer(document: &[u8], swap: u32) -> std::sync::Arc<[u8]> {
    let text = String::from_utf8(document.to_vec()).expect("JSON");
    let start = text.find("\"updated_at\":\"").expect("it has a time");
    let (before, after) = text.split_at(start + "\"updated_at\":\"".len());
    format!("{before}2026-01-01T00:00:{:02}.000000{}", swap + 10, &after[26..]).into_bytes().into()
}

/// What a proxy takes with hardly any document.
fn memory_kb_of_small() -> u64 {
    let upstream = Upstream::start();
    upstream.document(SERVER_KEY, value(1).to_string());
    let proxy = Start::serve().environment(CLIENT_KEY, SERVER_KEY).set("api_url", upstream.api_url()).ready();
    memory_kb(&proxy, "VmRSS")
}
