//! The numbers of docs/traits.md. `make test` takes each measurement in a short form and judges no time or
//! size; `make traits` takes them in full, judges them, and writes the table.
use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{count, identities, kept, on_disk, plan, settle, store, written};
use crate::support::{Client, PATIENCE, Proxy, Scratch, Start, eventually, fixture, get};

const MB: u64 = 1_000_000;

/// A row of a table.
pub struct Row {
    pub what: String,
    /// Empty: the number is only stated.
    pub bound: &'static str,
    pub found: String,
    pub is_kept: bool,
}

/// Prints the rows, and with `is_full` writes the table and judges it.
pub fn publish(mark: &str, rows: &[Row], is_full: bool) {
    let mut table = String::from("| | bound | measured | |\n|---|---|---|---|\n");
    for Row { what, bound, found, is_kept } in rows {
        let verdict = match is_kept {
            _ if bound.is_empty() => "",
            true => "kept",
            false => "**exceeded**",
        };
        let _ = writeln!(table, "| {what} | {bound} | {found} | {verdict} |");
        fixture::say(&format!("traits | {what} | {bound} | {found} | {verdict}"));
    }
    if !is_full {
        return;
    }
    write_table(mark, &table);
    let exceeded: Vec<&str> = rows.iter().filter(|row| !row.is_kept).map(|row| &*row.what).collect();
    assert!(exceeded.is_empty(), "exceeded: {}", exceeded.join("; "));
}

fn megabytes(bytes: u64) -> String {
    format!("{} MB", bytes / MB)
}

/// Resident bytes once they do not fall any more.
fn settled(proxy: &Proxy) -> u64 {
    let mut last = proxy.resident_bytes();
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let now = proxy.resident_bytes();
        if now + MB >= last {
            return now;
        }
        last = now;
    }
}

/// Most resident bytes since the start.
fn peak(proxy: &Proxy) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", proxy.pid())).expect("our own child");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a size");
    line.trim_end_matches("kB").trim().parse::<u64>().expect("a number") * 1024
}

struct LargeTable {
    identities: usize,
    live: u64,
    peak: u64,
    restarted: u64,
    start: Duration,
    file: u64,
}

/// Identities with five traits, written, killed and started again.
fn large_table(identities: usize) -> LargeTable {
    let scratch = Scratch::new();
    let folder = scratch.path().join("traits");
    let start =
        || on_disk(&folder).set("traits.identities_max", 2_000_000).set("traits.bytes_max", 1_u64 << 30);
    let mut proxy = start().cores(2).ready();
    let mut client = proxy.client();
    for from in (0..identities).step_by(500) {
        let names = (from..identities.min(from + 500)).map(|number| format!("identity-{number:08}"));
        store(&mut client, names, 5);
        settle(&proxy, (from + 500).min(identities) as f64);
    }
    let has_all = |proxy: &Proxy| proxy.metric("edge_proxy_traits_identities") == identities as f64;
    eventually("all are kept", || has_all(&proxy).then_some(()));
    assert_eq!(proxy.metric("edge_proxy_traits_not_kept_total"), 0.0);
    written(&proxy);
    let (live, peak) = (settled(&proxy), peak(&proxy));
    proxy.signal("KILL");
    proxy.wait();
    let began = Instant::now();
    let proxy = start().cores(2).ready();
    let start = began.elapsed();
    assert!(has_all(&proxy), "the table is complete before it is ready");
    let last = kept(&mut proxy.client(), &format!("identity-{:08}", identities - 1));
    assert_eq!(last.as_array().map(Vec::len), Some(5), "{last}");
    let file = fs::metadata(folder.join("traits.redb")).expect("the file").len();
    LargeTable { identities, live, peak, restarted: settled(&proxy), start, file }
}

/// Sends invented identities; returns how many were removed. None of those seen twice is.
fn invented(invented: usize) -> f64 {
    let proxy = Start::demo_document()
        .set("traits.store", "memory")
        .set("traits.identities_max", 1000)
        .set("traits.bytes_max", 8 << 20)
        .with_admin()
        .ready();
    let mut client = proxy.client();
    for round in 0..2 {
        for user in 0..300 {
            let traits = identities(&mut client, &format!("user-{user}"), &plan("gold"));
            assert_eq!(traits, plan("gold"), "round {round}");
        }
    }
    // Those that are seen again are merged before the flood.
    eventually("merged", || (proxy.metric("edge_proxy_traits_queued") == 0.0).then_some(()));
    let before = proxy.metric("edge_proxy_traits_writes_total");
    for start in (0..invented).step_by(500) {
        let names = (start..invented.min(start + 500)).map(|number| format!("invented-{number}"));
        store(&mut client, names, 1);
        settle(&proxy, before + (start + 500).min(invented) as f64);
    }
    let evicted = || proxy.metric("edge_proxy_traits_evicted_total");
    eventually("evicted", || {
        (evicted() > 0.0 && proxy.metric("edge_proxy_traits_identities") <= 1000.0).then_some(())
    });
    for user in 0..300 {
        assert_eq!(kept(&mut client, &format!("user-{user}")), plan("gold"), "user-{user} was seen twice");
    }
    proxy.wait_for_log("traits_evicted");
    evicted()
}

/// Requests that each reactor has answered.
fn answered(proxy: &Proxy) -> Vec<u64> {
    let status = get(proxy.admin(), "/status.json", "").json();
    let reactors = status["reactors"].as_array().expect("reactors").iter();
    reactors.map(|reactor| reactor["requests"].as_u64().expect("a number")).collect()
}

/// A connection to each of two reactors.
fn on_two_reactors(proxy: &Proxy) -> (Client, Client) {
    let mut found: [Option<Client>; 2] = [None, None];
    loop {
        let mut client = proxy.client();
        let before = answered(proxy);
        for _ in 0..20 {
            kept(&mut client, "unknown");
        }
        let after = answered(proxy);
        let reactor = (0..2).max_by_key(|at| after[*at] - before[*at]).expect("two");
        found[reactor].get_or_insert(client);
        if let [Some(_), Some(_)] = found {
            return (found[0].take().expect("there"), found[1].take().expect("there"));
        }
    }
}

/// For each write on one reactor: how long after its answer another reactor has it.
fn propagation(writes: usize) -> Vec<Duration> {
    let proxy = Start::demo_document().set("traits.store", "memory").cores(2).with_admin().ready();
    let (mut writer, mut reader) = on_two_reactors(&proxy);
    let mut delays: Vec<Duration> = (0..writes)
        .map(|number| {
            let traits = json!([{"trait_key": "number", "trait_value": number}]);
            identities(&mut writer, "jane", &traits);
            let began = Instant::now();
            // The time at which the request that has it was sent.
            loop {
                let at = Instant::now();
                if kept(&mut reader, "jane") == traits {
                    return at - began;
                }
                assert!(began.elapsed() < PATIENCE, "the other reactor has it");
            }
        })
        .collect();
    delays.sort_unstable();
    delays
}

/// Writes until the process is killed; returns how long before the kill the oldest lost write was answered.
fn lost_by_a_kill(seconds: f64, batch: usize) -> (Duration, f64) {
    let scratch = Scratch::new();
    let folder = scratch.path().join("traits");
    let mut proxy = on_disk(&folder).set("traits.bytes_max", 1_u64 << 30).ready();
    let mut client = proxy.client();
    let began = Instant::now();
    let mut answered = Vec::new();
    while began.elapsed().as_secs_f64() < seconds {
        let from = answered.len() * batch;
        store(&mut client, (from..from + batch).map(|number| format!("identity-{number}")), 5);
        answered.push(Instant::now());
        // 5,000 writes a second.
        let due = began + Duration::from_secs_f64(((answered.len() * batch) as f64) / 5000.0);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    let rate = (answered.len() * batch) as f64 / began.elapsed().as_secs_f64();
    let killed = Instant::now();
    proxy.signal("KILL");
    proxy.wait();
    let proxy = on_disk(&folder).set("traits.bytes_max", 1_u64 << 30).ready();
    let survived = proxy.metric("edge_proxy_traits_identities") as usize;
    let first_lost = answered.get(survived / batch).copied().unwrap_or(killed);
    (killed - first_lost.min(killed), rate)
}

#[test]
fn numbers() {
    let is_full = std::env::var_os("TRAITS_IDENTITIES").is_some();
    let mut rows = vec![];
    rows.extend(of_large_table(&large_table(count("TRAITS_IDENTITIES", 3000))));
    let flood = count("TRAITS_INVENTED", 20_000);
    rows.push(Row {
        what: format!("{flood} invented identities, 1,000 are kept: identities seen twice that are removed"),
        bound: "0",
        found: format!("0; {} others were removed", invented(flood)),
        is_kept: true,
    });
    rows.push(of_propagation(&propagation(if is_full { 5000 } else { 50 })));
    let kills = if is_full { 5 } else { 1 };
    rows.push(of_kills(
        &(0..kills).map(|round| lost_by_a_kill(0.9 + 0.13 * f64::from(round), 100)).collect::<Vec<_>>(),
    ));
    publish("traits-process", &rows, is_full);
}

fn of_large_table(table: &LargeTable) -> [Row; 2] {
    let memory = Row {
        what: format!("{} identities with five traits, two reactors: resident memory", table.identities),
        bound: "250 MB",
        found: format!(
            "{} when all is written ({} at most before), {} after a start",
            megabytes(table.live),
            megabytes(table.peak),
            megabytes(table.restarted)
        ),
        is_kept: table.live.max(table.restarted) <= 250 * MB,
    };
    let start = Row {
        what: "the same: start from disk until ready".to_owned(),
        bound: "3 s",
        found: format!("{:.1} s, a file of {}", table.start.as_secs_f64(), megabytes(table.file)),
        is_kept: table.start <= Duration::from_secs(3),
    };
    [memory, start]
}

fn of_propagation(delays: &[Duration]) -> Row {
    let at = |part: f64| delays[((delays.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e3;
    Row {
        what: "a write on one reactor counts on another".to_owned(),
        bound: "p99 5 ms",
        found: format!("p50 {:.2} ms, p99 {:.2} ms, most {:.2} ms", at(0.5), at(0.99), at(1.0)),
        is_kept: at(0.99) <= 5.0,
    }
}

fn of_kills(losses: &[(Duration, f64)]) -> Row {
    let most = losses.iter().map(|(lost, _)| *lost).max().expect("a kill").as_secs_f64();
    let rate = losses.iter().map(|(_, rate)| *rate).fold(f64::MAX, f64::min);
    Row {
        what: format!(
            "{} kills (`kill -9`) at {rate:.0} writes a second: time whose writes are lost",
            losses.len()
        ),
        bound: "1 s",
        found: format!("at most {:.0} ms", most * 1e3),
        is_kept: most <= 1.0,
    }
}

/// Replaces what is between the marks in the page that `TABLES=` names.
fn write_table(mark: &str, table: &str) {
    let Some(path) = std::env::var_os("TABLES") else { return };
    let page = fs::read_to_string(&path).expect("the page");
    let (open, close) = (format!("<!-- {mark} -->\n"), format!("<!-- /{mark} -->"));
    let (head, rest) = page.split_once(&open).expect("the first mark");
    let (_, tail) = rest.split_once(&close).expect("the second mark");
    fs::write(&path, format!("{head}{open}{table}{close}{tail}")).expect("the page is written");
}
