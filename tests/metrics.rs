//! Metric names: they follow the conventions of Prometheus, and every reference to a metric is valid.
use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use crate::support::{Client, Port, Start, fixture, get, request};
use crate::surface::{CLIENT, SERVER};

/// A scrape: the type of each metric, and the labels of its samples.
struct Scrape {
    kinds: BTreeMap<String, String>,
    labels: BTreeMap<String, BTreeSet<String>>,
    helps: BTreeSet<String>,
}

fn scrape() -> Scrape {
    let admin = Port::free();
    let start = Start::serve().document(CLIENT, SERVER, fixture::path("environments/Main.json"));
    let proxy = start.set("admin", json!({"port": admin.number()})).ready();
    assert_eq!(proxy.get("/api/v1/flags/", CLIENT).status, 200);
    // Malformed bytes, so that an error is counted.
    proxy.client().send("nonsense\r\n\r\n");
    let text = get(admin.address(), "/metrics", "").text();
    let (mut kinds, mut labels, mut helps) =
        (BTreeMap::new(), BTreeMap::<_, BTreeSet<_>>::new(), BTreeSet::new());
    for line in text.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            kinds.insert(name.to_owned(), kind.to_owned());
        } else if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' '))
        {
            assert!(help.ends_with('.'), "{line}");
            helps.insert(name.to_owned());
        } else if let Some((name, rest)) = line.split_once('{') {
            labels.entry(name.to_owned()).or_default().extend(labels_in(rest));
        }
    }
    Scrape { kinds, labels, helps }
}

#[test]
fn open_metrics_is_sent_where_accept_prefers_it() {
    let proxy = Start::demo_document().with_admin().ready();
    let scrape = |accept: &str| {
        let mut client = Client::connect(proxy.admin());
        client.send(request("GET", "/metrics", &[("Accept", accept)], b""));
        client.answer("GET")
    };
    let plain = scrape("text/plain;version=0.0.4");
    assert_eq!(plain.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert!(!plain.text().contains("# EOF"));
    let open = scrape("application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3");
    let expected = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(open.header("content-type"), Some(expected));
    let text = open.text();
    assert!(text.ends_with("\n# EOF\n"));
    let mut family = "";
    let mut families = BTreeSet::new();
    for line in text.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            assert!(families.insert(name) && !name.ends_with("_total"), "{line}");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            family = name;
        } else if !line.starts_with('#') {
            assert!(line.starts_with(family), "{line} in {family}");
        }
    }
    assert!(families.len() > 50);
}

/// The label names in matchers such as `name="` or `name=~"`.
fn labels_in(text: &str) -> impl Iterator<Item = String> {
    let inside = text.split('}').next().unwrap_or_default().replace("\\\"", "\"");
    let pieces: Vec<String> = inside.split("\",").map(str::to_owned).collect();
    pieces.into_iter().filter_map(|piece| {
        let name: String = piece.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        (!name.is_empty()).then_some(name)
    })
}

/// Every `edge_proxy_...` in a text, with the text after it.
fn named(text: &str) -> Vec<(String, &str)> {
    let parts = text.match_indices("edge_proxy_").filter(|(at, _)| {
        !text[..*at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '/' || c == '.')
    });
    let ends = |c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    parts
        .map(|(at, _)| {
            let rest = &text[at..];
            let end = rest.find(ends).unwrap_or(rest.len());
            (rest[..end].to_owned(), &rest[end..])
        })
        .collect()
}

fn family<'a>(scrape: &Scrape, name: &'a str) -> Option<&'a str> {
    let stripped = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
    let is_histogram = |name: &&str| scrape.kinds.get(*name).is_some_and(|kind| kind == "histogram");
    scrape.kinds.contains_key(name).then_some(name).or(stripped.filter(is_histogram))
}

#[test]
fn names_follow_the_conventions() {
    let scrape = scrape();
    assert!(scrape.kinds.len() > 40, "{:?}", scrape.kinds.keys());
    for (name, kind) in &scrape.kinds {
        assert!(name.starts_with("edge_proxy_"), "{name}");
        assert!(scrape.helps.contains(name), "{name} has no help");
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
        for unit in ["ms", "us", "ns", "milliseconds", "minutes", "kib", "kb", "mb"] {
            assert!(!name.split('_').any(|word| word == unit), "{name}: base units are seconds and bytes");
        }
        for (what, unit) in
            [("duration", "_seconds"), ("age", "_seconds"), ("lag", "_seconds"), ("timestamp", "_seconds")]
        {
            assert!(!name.split('_').any(|word| word == what) || name.contains(unit), "{name} has no unit");
        }
    }
}

#[test]
fn references_name_existing_metrics_and_labels() {
    let scrape = scrape();
    let mut count = 0;
    for path in [
        "README.md",
        "CHANGELOG.md",
        "deploy/README.md",
        "deploy/grafana/edge-proxy.json",
        "deploy/prometheus/alerts.yml",
        "deploy/prometheus/alerts_test.yml",
    ] {
        let text = std::fs::read_to_string(fixture::root().join(path)).expect("a file of the tree");
        for (name, rest) in named(&text) {
            let family = family(&scrape, &name).unwrap_or_else(|| panic!("{path}: {name} is not a metric"));
            count += 1;
            let Some(selector) = rest.strip_prefix('{') else { continue };
            for label in labels_in(selector).filter(|label| label != "instance" && label != "job") {
                let known = scrape.labels.get(&name).or_else(|| scrape.labels.get(family));
                assert!(
                    known.is_some_and(|known| known.contains(&label)),
                    "{path}: {name} has no label {label}"
                );
            }
        }
    }
    assert!(count > 60, "{count}");
}

#[test]
fn every_metric_is_described() {
    let text = std::fs::read_to_string(fixture::root().join("deploy/README.md")).expect("a file of the tree");
    let described: BTreeSet<String> = named(&text).into_iter().map(|(name, _)| name).collect();
    let missing: Vec<String> = scrape().kinds.into_keys().filter(|name| !described.contains(name)).collect();
    assert!(missing.is_empty(), "deploy/README.md does not describe {missing:?}");
}
