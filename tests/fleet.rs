//! A fleet of proxies: a simulation by the real schedule, and a tree of real proxies that checks it.
//!
//! `make fleet` prints the table of `docs/fleet.md`; `make test` runs fewer proxies.
mod simulation;

use std::time::{Duration, Instant};

use crate::conformance::count_of;
use crate::support::document::{CLIENT_KEY, SERVER_KEY, override_of, value};
use crate::support::{Proxy, Reply, Start, Upstream};
use simulation::{Document, Fleet, Outage, Shape};

const DOCUMENT: &str = "/api/v1/environment-document/";

/// 46,000 identity overrides, as `OVERRIDES=46000 deltas::an_edit` measures them; with the head of an answer.
/// Compilation takes 0.35 to 0.48 s (profile `quick`), the deltas 0.1 s.
const LARGE: Document = Document {
    name: "22 MB",
    bytes: 22_151_000,
    compressed: 1_486_000,
    delta: 3_000,
    compile: Duration::from_millis(500),
};
const SMALL: Document = Document {
    name: "12 kB",
    bytes: 12_000,
    compressed: 1_500,
    delta: 600,
    compile: Duration::from_millis(2),
};

/// `FLEET=1000` is the long form: an hour with twelve edits. Of 100 proxies ten minutes, with two.
#[test]
fn simulated_fleets() {
    let proxies = count_of("FLEET", 100) as usize;
    let is_long = proxies >= 1000;
    let time = Duration::from_secs(if is_long { 3600 } else { 600 });
    let tree = |first: usize| Shape { tiers: vec![first, proxies - first] };
    let shapes = [
        ("all at the API", Shape { tiers: vec![proxies] }),
        ("two tiers", tree(proxies / 100 + 9)),
        ("three tiers", Shape { tiers: vec![3, 27, proxies - 30] }),
    ];
    let mut rows = vec![
        "| document | shape | edits by | deltas | failures | API: polls a second | API: MB an edit | a first-tier proxy: MB an edit | fleet: MB an hour | edit to half of the leaves | to 99 % | to the last |".to_owned(),
        "|---|---|---|---|---|---:|---:|---:|---:|---:|---:|---:|".to_owned(),
    ];
    for document in [LARGE, SMALL] {
        for (name, shape) in &shapes {
            for events in [false, true] {
                for deltas in [false, true] {
                    // The API makes no deltas.
                    if deltas && shape.tiers.len() == 1 {
                        continue;
                    }
                    let fleet =
                        Fleet { shape: shape.clone(), document, events, deltas, outage: Outage::None };
                    let report = fleet.run(time);
                    assert_eq!(report.missing, 0, "{name}: every edit reaches every leaf");
                    // Of 10 s, shortened by a tenth at most; with an event one more for each edit.
                    let most = shape.tiers[0] as f64 * (1.0 / 9.0 + 2.0 / 300.0);
                    assert!(report.api_polls_per_second <= most, "{name}: {}", report.api_polls_per_second);
                    let depth = shape.tiers.len() as u32;
                    let slowest =
                        (Duration::from_secs(11) + document.compile * 3) * depth + report.longest_transfer;
                    assert!(report.last <= slowest, "{name}: {:?} of {slowest:?}", report.last);
                    rows.push(report.row(document.name, name, events, deltas, "none"));
                }
            }
        }
    }
    let two_tiers = shapes[1].1.clone();
    for (outage, words) in [
        (Outage::Polls(0.05), "5 % of polls"),
        (Outage::Parent(Duration::from_secs(60)), "a first-tier proxy is down for 60 s"),
        (Outage::Api(Duration::from_secs(120)), "the API is down for 120 s"),
    ] {
        let fleet = Fleet { shape: two_tiers.clone(), document: LARGE, events: true, deltas: true, outage };
        let report = fleet.run(time);
        assert_eq!(report.missing, 0, "{words}: every edit reaches every leaf");
        rows.push(report.row(LARGE.name, "two tiers", true, true, words));
    }
    for row in &rows {
        println!("fleet {row}");
    }
    let without = Fleet {
        shape: two_tiers.clone(),
        document: LARGE,
        events: true,
        deltas: false,
        outage: Outage::None,
    };
    let with = Fleet { deltas: true, ..without.clone() };
    let (without, with) = (without.run(time), with.run(time));
    assert!(with.parent_bytes_per_edit * 4.0 < without.parent_bytes_per_edit, "deltas save three quarters");
    let tolerance = Duration::from_secs(1);
    assert!(with.last <= without.last + tolerance, "and no time is lost");
    if is_long {
        let page = std::fs::read_to_string(crate::support::fixture::root().join("docs/fleet.md"));
        let page = page.expect("a file of the tree");
        let absent: Vec<&String> = rows.iter().filter(|row| !page.contains(row.as_str())).collect();
        assert!(absent.is_empty(), "docs/fleet.md lacks these rows of its table: {absent:#?}");
    }
}

/// An edit takes three polls and three compilations, and thirteen proxies share the machine with other tests.
fn patiently(what: &str, mut is_done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !is_done() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::park_timeout(Duration::from_millis(100));
    }
}

/// A real tree of 1, 3 and 9 proxies, and the same one simulated: polls, deltas and their bytes agree.
#[test]
fn a_real_tree_behaves_as_the_simulated_one() {
    let upstream = Upstream::start();
    let serve = |version: u32| {
        let mut document = value(version);
        document["identity_overrides"] =
            (0..1_000).map(|number| override_of(&format!("identity-{number}"), number)).collect();
        upstream.on(DOCUMENT, Reply::json(document.to_string()).gzip());
    };
    serve(1);
    let interval = 2.0;
    let start = |above: &str| {
        Start::polling(above)
            .with_admin()
            .set("api_poll_frequency_seconds", interval)
            .set("api_poll_timeout_seconds", 30)
            // A poll without conditions would be one more delta.
            .set("api_full_refresh_seconds", 3600)
    };
    let root = start(&upstream.api_url()).ready();
    let middle: Vec<Proxy> = (0..3).map(|_| start(&root.api_url()).ready()).collect();
    let leaves: Vec<Proxy> =
        middle.iter().flat_map(|above| (0..3).map(|_| start(&above.api_url()).ready())).collect();
    let everywhere = |version: u64| {
        patiently("the edit reaches every leaf", || {
            leaves.iter().all(|leaf| leaf.version_of(CLIENT_KEY) == Some(version))
        });
    };
    // Every parent makes deltas once every child has polled again.
    let unchanged = format!(
        "edge_proxy_environment_polls_total{{environment=\"{}...\",result=\"unchanged\"}}",
        &CLIENT_KEY[..6]
    );
    patiently("a second poll of everyone", || {
        middle.iter().chain(&leaves).all(|proxy| proxy.metric(&unchanged) >= 2.0)
    });
    let began = Instant::now();
    let (polls_before, edits) = (upstream.polls(), 3);
    let sent = |proxies: &[&Proxy]| -> f64 {
        proxies.iter().map(|proxy| proxy.metric("edge_proxy_document_deltas_sent_total")).sum()
    };
    for version in 2..2 + edits {
        serve(version);
        everywhere(u64::from(version));
    }
    let elapsed = began.elapsed().as_secs_f64();
    let polls = (upstream.polls() - polls_before) as f64;
    let parents: Vec<&Proxy> = std::iter::once(&root).chain(&middle).collect();
    let deltas = sent(&parents);
    // In the model each edit is one delta for each of the twelve children, and the root polls each interval.
    println!("fleet real tree: {polls} polls of the API in {elapsed:.1} s, {deltas} deltas");
    assert_eq!(deltas, f64::from(edits * 12), "one delta for each child and edit");
    assert!(polls <= elapsed / (interval * 0.9) + 2.0, "{polls} polls in {elapsed} s");
    for leaf in &leaves {
        assert_eq!(leaf.metric("edge_proxy_document_deltas_refused_total"), 0.0);
        assert_eq!(leaf.metric("edge_proxy_document_deltas_applied_total"), f64::from(edits));
    }
    let body = |proxy: &Proxy| proxy.get(DOCUMENT, SERVER_KEY).body;
    assert!(body(&leaves[8]) == body(&root), "byte for byte");
}
