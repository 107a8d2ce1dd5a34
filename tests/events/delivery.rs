//! Every event that was answered 202 arrives, even if the proxy or upstream fails in between.
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{PATH, accept, batches, events, names_sent, post, start, with_key};
use crate::support::{
    Client, Delivery, Proxy, Recorded, Reply, Scratch, Shim, Start, Upstream, eventually, fixture, request,
};
use crate::surface::CLIENT;

/// SIGKILL: nothing is flushed, no destructor runs.
fn kill(proxy: &mut Proxy) {
    proxy.signal("KILL");
    assert!(!proxy.wait().success());
}

#[test]
fn a_kill_between_the_answer_and_the_delivery_loses_nothing() {
    for fsync in ["group", "second"] {
        let (upstream, cache) = (Upstream::start(), Scratch::new());
        upstream.on(PATH, Reply::new(503, "{}"));
        let begin = || start(&upstream, &cache).set("events.fsync", fsync);
        let mut proxy = begin().ready();
        let names: Vec<String> = (0..50).map(|number| format!("e{number:02}")).collect();
        let mut client = proxy.client();
        for name in &names {
            let answer = client.request("POST", PATH, &with_key(CLIENT), events(&[name]).as_bytes());
            assert_eq!(answer.status, 202);
        }
        kill(&mut proxy);
        let before = batches(&upstream);
        upstream.rule(accept);
        let mut proxy = begin().ready();
        proxy.wait_for_log("events_recovered");
        let arrived = eventually("the events of the killed process", || {
            let sent: Vec<Recorded> = batches(&upstream).split_off(before.len());
            let names: Vec<String> = sent.iter().flat_map(names_of).collect();
            (names.len() >= 50).then_some(names)
        });
        assert_eq!(arrived.iter().cloned().collect::<BTreeSet<_>>(), names.iter().cloned().collect());
        assert_eq!(arrived.len(), 50, "each once");
        proxy.signal("TERM");
        assert!(proxy.wait().success());
        let segments = std::fs::read_dir(cache.path().join("events/0")).expect("the spool").count();
        assert_eq!(segments, 1, "only the lock is left");
    }
}

fn names_of(batch: &Recorded) -> Vec<String> {
    let body = batch.json();
    let events = body["events"].as_array().expect("a list");
    events.iter().map(|event| event["event"].as_str().expect("a name").to_owned()).collect()
}

/// Upstream has the batch, but the process is killed before it reads the answer.
#[test]
fn a_kill_during_a_delivery_repeats_one_batch_with_the_same_key() {
    let (upstream, cache) = (Upstream::start(), Scratch::new());
    upstream.on(PATH, Reply::new(202, "{}").delivered(Delivery::HangBeforeHead));
    let mut proxy = start(&upstream, &cache).ready();
    assert_eq!(post(&proxy, &with_key(CLIENT), events(&["first"])).status, 202);
    let first = eventually("the first batch", || batches(&upstream).into_iter().next());
    // These wait, and must not join the batch that is on its way.
    assert_eq!(post(&proxy, &with_key(CLIENT), events(&["second", "third"])).status, 202);
    kill(&mut proxy);
    upstream.rule(accept);
    let _proxy = start(&upstream, &cache).ready();
    let all = eventually("all batches", || Some(batches(&upstream)).filter(|all| all.len() >= 3));
    assert_eq!(
        (all[1].header("idempotency-key"), &all[1].body),
        (first.header("idempotency-key"), &first.body)
    );
    assert_eq!(names_of(&all[2]), ["second", "third"]);
    assert_ne!(all[2].header("idempotency-key"), first.header("idempotency-key"));
}

#[test]
fn a_stop_forwards_what_waits_and_leaves_the_rest_on_disk() {
    let (upstream, cache) = (Upstream::start(), Scratch::new());
    upstream.rule(accept);
    let begin = || start(&upstream, &cache).set("events.flush_interval_seconds", 3600);
    let mut proxy = begin().ready();
    assert_eq!(post(&proxy, &with_key(CLIENT), events(&["a"])).status, 202);
    proxy.signal("TERM");
    assert!(proxy.wait().success(), "{}", proxy.log());
    assert_eq!(names_sent(&upstream), ["a"]);
    let mut proxy = begin().ready();
    upstream.refuse();
    assert_eq!(post(&proxy, &with_key(CLIENT), events(&["b"])).status, 202);
    proxy.signal("TERM");
    assert!(proxy.wait().success(), "{}", proxy.log());
    upstream.listen();
    let _proxy = begin().ready();
    eventually("the event of the last process", || (names_sent(&upstream) == ["a", "b"]).then_some(()));
}

/// The second process has its own spool, and takes over that of the first one.
#[test]
fn a_takeover_delivers_the_events_of_both_processes() {
    let (upstream, cache) = (Upstream::start(), Scratch::new());
    upstream.on(PATH, Reply::new(503, "{}"));
    let mut first = start(&upstream, &cache).ready();
    assert_eq!(post(&first, &with_key(CLIENT), events(&["first"])).status, 202);
    let second = start(&upstream, &cache).ready();
    assert_eq!(post(&second, &with_key(CLIENT), events(&["second"])).status, 202);
    assert!(cache.path().join("events/1").is_dir());
    kill(&mut first);
    let before = batches(&upstream).len();
    upstream.rule(accept);
    eventually("both", || {
        let sent: BTreeSet<String> = batches(&upstream)[before..].iter().flat_map(names_of).collect();
        (sent == ["first", "second"].map(str::to_owned).into()).then_some(())
    });
}

#[test]
fn a_full_disk_is_answered_503_and_everything_else_goes_on() {
    let shim = Shim::new();
    let (upstream, cache) = (Upstream::start(), Scratch::new());
    upstream.on(PATH, Reply::new(503, "{}"));
    let proxy = shim.preload(start(&upstream, &cache).with_admin()).ready();
    assert_eq!(post(&proxy, &with_key(CLIENT), events(&["before"])).status, 202);
    shim.disk_is_full(true);
    for _ in 0..3 {
        let answer = post(&proxy, &with_key(CLIENT), events(&["refused"]));
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("5")), "{}", answer.text());
    }
    assert!(proxy.wait_for_log("events_not_stored").contains("reason=disk"));
    assert_eq!(proxy.metric("edge_proxy_events_refused_total{reason=\"disk\"}"), 3.0);
    assert_eq!(proxy.get("/api/v1/flags/", CLIENT).status, 200);
    // What was stored is delivered from a full disk, which marks it as done in place.
    upstream.rule(accept);
    eventually("the event from before", || {
        (proxy.metric("edge_proxy_events_sent_total") == 1.0).then_some(())
    });
    shim.disk_is_full(false);
    assert_eq!(post(&proxy, &with_key(CLIENT), events(&["after"])).status, 202);
    proxy.wait_for_log("events_stored_again");
    eventually("the event from after", || {
        (proxy.metric("edge_proxy_events_sent_total") == 2.0).then_some(())
    });
    let sent: BTreeSet<String> = names_sent(&upstream).into_iter().collect();
    assert_eq!(sent, ["after", "before"].map(str::to_owned).into());
}

/// A small file system of memory, which only root can mount.
#[test]
fn a_file_system_that_fills_up_loses_nothing_that_was_answered() {
    let (upstream, cache) = (Upstream::start(), Scratch::new());
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=6m", "none"]).arg(cache.path()).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        return fixture::say("SKIPPED: a tmpfs cannot be mounted here, so no real file system was filled");
    }
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| fill_and_kill(&upstream, &cache)));
    let _ = Command::new("umount").args(["-l"]).arg(cache.path()).status();
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn fill_and_kill(upstream: &Upstream, cache: &Scratch) {
    upstream.on(PATH, Reply::new(503, "{}"));
    let mut proxy = start(upstream, cache).ready();
    let (mut client, mut names) = (proxy.client(), BTreeSet::new());
    loop {
        let name = format!("e{:03}", names.len());
        let body = json!({"events": [{"event": name, "value": "v".repeat(100_000)}]}).to_string();
        match client.request("POST", PATH, &with_key(CLIENT), body.as_bytes()).status {
            202 => names.insert(name),
            status => break assert_eq!(status, 503),
        };
    }
    assert!((30..70).contains(&names.len()), "{}", names.len());
    kill(&mut proxy);
    let before = batches(upstream).len();
    upstream.rule(accept);
    let _proxy = start(upstream, cache).ready();
    eventually("all that was answered 202", || {
        let sent: BTreeSet<String> = batches(upstream)[before..].iter().flat_map(names_of).collect();
        assert!(sent.is_subset(&names), "an event that was answered 503");
        (sent == names).then_some(())
    });
}

// --- the long run ---

/// What happened to the events of the senders.
#[derive(Default)]
struct Ledger {
    /// Answered 202.
    accepted: Mutex<BTreeSet<String>>,
    /// Answered 503.
    refused: Mutex<BTreeSet<String>>,
    /// Answered by nothing: the connection ended. They may arrive or not.
    unknown: AtomicUsize,
    /// Senders wait while as many are accepted: each step of the run meets requests under way.
    allowed: AtomicUsize,
    is_over: AtomicBool,
}

/// What upstream took: the events of each idempotency key, and how often it came.
type Taken = Arc<Mutex<HashMap<String, (usize, Vec<String>)>>>;

/// Takes batches, and is broken in one way or another while `fault` says so.
fn upstream_that_takes(taken: &Taken, fault: &Arc<AtomicUsize>) -> Upstream {
    let upstream = Upstream::start();
    let (taken, fault) = (Arc::clone(taken), Arc::clone(fault));
    upstream.rule(move |sent: &Recorded| {
        if sent.path() != PATH {
            return None;
        }
        match fault.load(Ordering::SeqCst) {
            1 => return Some(Reply::new(503, "{}").with("retry-after", "0")),
            2 => return Some(Reply::new(429, "{}")),
            3 => return Some(Reply::new(500, "{}")),
            _ => {}
        }
        let names = names_of(sent);
        let key = sent.header("idempotency-key").expect("a key").to_owned();
        let mut taken = taken.lock().expect("no panic");
        // What it has taken before, it does not find too large now.
        if names.len() > 100 && fault.load(Ordering::SeqCst) == 4 && !taken.contains_key(&key) {
            return Some(Reply::new(413, "{}"));
        }
        let (times, before) = taken.entry(key).or_insert((0, names.clone()));
        assert!(*before == names, "a batch is never changed");
        *times += 1;
        Some(Reply::new(202, json!({"accepted": names.len(), "rejected": []}).to_string()))
    });
    upstream
}

/// Sends posts of one to twenty exposures until this sender's share is answered 202.
fn send(sender: usize, share: usize, address: &Mutex<SocketAddr>, ledger: &Ledger) {
    let (mut sent, mut accepted, mut client) = (0, 0, None::<Client>);
    while accepted < share && !ledger.is_over.load(Ordering::SeqCst) {
        if ledger.accepted.lock().expect("no panic").len() >= ledger.allowed.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(2));
            continue;
        }
        let count = (1 + sent * 7 % 20).min(share - accepted);
        // Each attempt has new names, so that what arrives says which attempt it was.
        let names: Vec<String> = (0..count).map(|number| format!("{sender}-{}", sent + number)).collect();
        sent += count;
        let exposures: Vec<Value> = names
            .iter()
            .map(|name| json!({"event": name, "feature_name": "split", "identifier": name, "value": "b", "traits": null, "metadata": {"experiment_id": 7}, "timestamp": 1_735_229_888_000_u64}))
            .collect();
        let sdk = format!("sdk/{}", sender % 3);
        let headers = [&with_key(CLIENT)[..], &[("Flagsmith-SDK-User-Agent", &sdk)]].concat();
        let body = json!({"events": exposures}).to_string();
        let connection =
            client.take().or_else(|| Client::try_connect(*address.lock().expect("no panic")).ok());
        let answer = connection.and_then(|mut connection| {
            connection.try_send(request("POST", PATH, &headers, body.as_bytes())).ok()?;
            let answer = connection.try_answer("POST").ok()??;
            client = (answer.header("connection") != Some("close")).then_some(connection);
            Some(answer)
        });
        match answer.map(|answer| answer.status) {
            Some(202) => {
                accepted += count;
                ledger.accepted.lock().expect("no panic").extend(names);
            }
            Some(503) => {
                ledger.refused.lock().expect("no panic").extend(names);
                thread::sleep(Duration::from_millis(20));
            }
            Some(status) => panic!("answered {status}"),
            None => {
                ledger.unknown.fetch_add(count, Ordering::SeqCst);
                thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// `EVENTS=100000` is what `make events` runs; `make test` runs a twentieth of it.
fn share_of_senders(senders: usize) -> usize {
    let events: usize =
        std::env::var("EVENTS").map_or(5_000, |text| text.parse().expect("EVENTS is a number"));
    events / senders
}

/// Ten outages of upstream, three kills of the proxy and a full disk, spread over the run.
#[test]
fn exposures_arrive_exactly_through_outages_kills_and_a_full_disk() {
    const SENDERS: usize = 8;
    let share = share_of_senders(SENDERS);
    let (taken, fault, shim, cache) = (Taken::default(), Arc::default(), Shim::new(), Scratch::new());
    let upstream = upstream_that_takes(&taken, &fault);
    let begin = || -> Proxy { shim.preload(settings(&upstream, &cache)).ready() };
    let mut running = begin();
    let address = Arc::new(Mutex::new(running.address()));
    let ledger = Arc::new(Ledger::default());
    let senders: Vec<_> = (0..SENDERS)
        .map(|sender| {
            let (address, ledger) = (Arc::clone(&address), Arc::clone(&ledger));
            thread::spawn(move || send(sender, share, &address, &ledger))
        })
        .collect();
    let total = share * SENDERS;
    let accepted = || ledger.accepted.lock().expect("no panic").len();
    // The steps are at equal parts of the run. Kills at 3, 7 and 11; the disk is full at 5.
    let allow = |step: usize| ledger.allowed.store(total * step / 13, Ordering::SeqCst);
    allow(1);
    for step in 1..=12 {
        wait_until(&running, || accepted() >= total * step / 13);
        let refused = || ledger.refused.lock().expect("no panic").len();
        let refused_before = refused();
        if step == 5 {
            shim.disk_is_full(true);
        }
        allow(step + 1);
        match step {
            3 | 7 | 11 => {
                kill(&mut running);
                running = begin();
                *address.lock().expect("no panic") = running.address();
            }
            5 => {
                wait_until(&running, || refused() > refused_before);
                shim.disk_is_full(false);
            }
            _ => {}
        }
        outage(&upstream, &fault, step);
    }
    senders.into_iter().for_each(|sender| sender.join().expect("its share was accepted"));
    judge(&running, &ledger, &taken, total);
    running.signal("TERM");
    assert!(running.wait().success(), "{}", running.log());
}

fn settings(upstream: &Upstream, cache: &Scratch) -> Start {
    start(upstream, cache).set("events.flush_interval_seconds", 0.2).cores(2)
}

/// One of ten outages: a connection that is refused, and answers that say later, in turn.
fn outage(upstream: &Upstream, fault: &AtomicUsize, step: usize) {
    if step > 10 {
        return;
    }
    match step % 5 {
        0 => {
            upstream.refuse();
            thread::sleep(Duration::from_millis(300));
            upstream.listen();
        }
        kind => {
            fault.store(kind, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(300));
            fault.store(0, Ordering::SeqCst);
        }
    }
}

/// As long as a machine under load may take for a part of 100,000 events.
fn wait_until(proxy: &Proxy, is_done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(300);
    while !is_done() {
        assert!(Instant::now() < deadline, "{}", proxy.log());
        thread::sleep(Duration::from_millis(5));
    }
}

fn judge(proxy: &Proxy, ledger: &Ledger, taken: &Taken, total: usize) {
    let accepted = ledger.accepted.lock().expect("no panic").clone();
    assert_eq!(accepted.len(), total);
    let counts = || {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for (_, names) in taken.lock().expect("no panic").values() {
            names.iter().for_each(|name| *counts.entry(name.clone()).or_default() += 1);
        }
        counts
    };
    wait_until(proxy, || {
        let counts = counts();
        accepted.iter().all(|name| counts.contains_key(name))
    });
    let counts = counts();
    let twice = counts.values().filter(|count| **count > 1).count();
    assert_eq!(twice, 0, "events in two batches with different keys");
    let refused =
        ledger.refused.lock().expect("no panic").iter().filter(|name| counts.contains_key(*name)).count();
    let unknown = ledger.unknown.load(Ordering::SeqCst);
    assert!(counts.len() <= total + unknown + refused, "{} arrived", counts.len());
    // Upstream took a batch, and its answer was lost with one of three processes or two connections.
    let repeated: usize =
        taken.lock().expect("no panic").values().map(|(times, _)| times.saturating_sub(1)).sum();
    assert!(repeated <= 3 + 2, "{repeated} batches came again");
    println!(
        "events | {total} answered 202 and arrived once; {} answered 503, {refused} of them arrived; {unknown} \
         without an answer; {} batches, {repeated} of them repeated with their key",
        ledger.refused.lock().expect("no panic").len(),
        taken.lock().expect("no panic").len(),
    );
}
