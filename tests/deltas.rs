//! Deltas of documents between proxies (RFC 9842).
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::conformance::count_of;
use crate::support::document::{CLIENT_KEY, SERVER_KEY, override_of, value};
use crate::support::{Answer, Delivery, Proxy, Reply, Start, Upstream, eventually, request};

const DOCUMENT: &str = "/api/v1/environment-document/";

/// A document of some size whose identities have other `identity_uuid` in each fetch, as core writes them.
fn large(version: u32, identities: u32, fetch: u64) -> Value {
    let mut document = value(version);
    let entry = |number: u32| {
        let mut entry = override_of(&format!("identity-{number}"), number);
        let random = (u64::from(number) ^ (fetch << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        entry["identity_uuid"] =
            json!(format!("{:08x}-0000-4000-8000-{:012x}", random >> 32, random & 0xffff_ffff));
        entry
    };
    document["identity_overrides"] = (0..identities).map(entry).collect();
    document
}

/// Serves `large` with other `identity_uuid` for each fetch.
fn serve(upstream: &Upstream, version: u32, identities: u32) {
    let mut fetch = u64::from(version) << 16;
    upstream.rule(move |request| {
        (request.path() == DOCUMENT).then(|| {
            fetch += 1;
            Reply::json(large(version, identities, fetch).to_string())
        })
    });
}

fn root(upstream: &Upstream) -> Proxy {
    // Upstream is slow to make so large a document in a build without optimisation.
    Start::polling(&upstream.api_url())
        .with_admin()
        .set("api_poll_frequency_seconds", 0.5)
        .set("api_poll_timeout_seconds", 60)
        .start()
}

fn child(above: &Proxy) -> Start {
    Start::polling(&above.api_url()).with_admin().set("api_poll_timeout_seconds", 60)
}

/// Without optimisation a document of 20 MB takes half a minute.
fn version(proxy: &Proxy, expected: u64) {
    let deadline = Instant::now() + Duration::from_secs(180);
    while proxy.version_of(CLIENT_KEY) != Some(expected) {
        assert!(Instant::now() < deadline, "version {expected} is not served:\n{}", proxy.log());
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

fn fetch(proxy: &Proxy, fields: &[(&str, &str)]) -> Answer {
    let mut all = vec![("X-Environment-Key", SERVER_KEY)];
    all.extend_from_slice(fields);
    let mut client = proxy.client();
    client.send(request("GET", DOCUMENT, &all, b""));
    client.answer("GET")
}

/// The field that names a document as the one that the client has.
fn available(document: &[u8]) -> String {
    edge_proxy::json::base64::field_bytes(&edge_proxy::delta::digest_of(document))
}

/// Waits until the child has polled twice more, so that the next document is published with deltas.
fn wait_for_polls(child: &Proxy) {
    let polls = || {
        let unchanged = format!(
            "edge_proxy_environment_polls_total{{environment=\"{}...\",result=\"unchanged\"}}",
            &CLIENT_KEY[..6]
        );
        child.metric(&unchanged)
    };
    let before = polls();
    eventually("two polls of the child", || (polls() >= before + 2.0).then_some(()));
}

/// `OVERRIDES=` sets the size: 46,000 are 20 MB.
#[test]
fn an_edit_of_a_large_document_costs_a_child_some_kilobytes() {
    let identities = count_of("OVERRIDES", 4_600) as u32;
    let upstream = Upstream::start();
    serve(&upstream, 1, identities);
    let parent = root(&upstream);
    version(&parent, 1);
    // Each poll costs some hundred bytes, and without optimisation an edit takes many polls.
    let child = child(&parent).set("api_poll_frequency_seconds", 1).start();
    version(&child, 1);
    wait_for_polls(&child);
    let applied = || child.metric("edge_proxy_document_deltas_applied_total");
    // With the next edition the parent keeps the identities' uuids and has its first delta, unless the machine
    // is so busy that the child's request came too late.
    let mut first = 2;
    while applied() == 0.0 {
        assert!(first < 20, "no delta was applied");
        serve(&upstream, first, identities);
        version(&child, u64::from(first));
        wait_for_polls(&child);
        first += 1;
    }
    let sent = || parent.metric("edge_proxy_http_sent_bytes_total");
    for edit in first..first + 3 {
        wait_for_polls(&child);
        let before = sent();
        serve(&upstream, edit, identities);
        version(&child, u64::from(edit));
        let bytes = sent() - before;
        let size = parent.metric(&format!(
            r#"edge_proxy_environment_document_bytes{{environment="{}..."}}"#,
            &CLIENT_KEY[..6]
        ));
        println!("one flag of a document of {size} bytes: {bytes} bytes to the child, its polls included");
        assert!(bytes < 65_536.0, "{bytes}");
        let dictionary = fetch(&parent, &[]).body;
        let delta = fetch(
            &parent,
            &[("Accept-Encoding", "gzip, dcz"), ("Available-Dictionary", &available(&dictionary))],
        );
        assert_eq!(delta.header("content-encoding"), Some("dcz"));
        let gzip = fetch(&parent, &[("Accept-Encoding", "gzip")]).body.len();
        println!("the same document as a delta: {} bytes; with gzip: {gzip}", delta.body.len());
    }
    assert!(applied() >= 4.0);
    assert!(parent.metric("edge_proxy_document_deltas_sent_total") >= 3.0);
    assert_eq!(child.metric("edge_proxy_document_deltas_refused_total"), 0.0);
    let (of_child, of_parent) = (fetch(&child, &[]).body, fetch(&parent, &[]).body);
    assert!(of_child == of_parent, "the documents are the same, byte for byte");
}

#[test]
fn only_who_names_a_known_document_gets_a_delta() {
    let upstream = Upstream::start();
    serve(&upstream, 1, 200);
    let parent = root(&upstream);
    version(&parent, 1);
    let old = fetch(&parent, &[]);
    assert_eq!(
        old.header("use-as-dictionary"),
        Some(r#"match="/api/v1/environment-document/""#),
        "deltas are offered"
    );
    let available = available(&old.body);
    let fields_of_child = [("Accept-Encoding", "gzip, dcz"), ("Available-Dictionary", available.as_str())];
    // Nothing was made yet: the whole document. From now on deltas are made.
    let whole = fetch(&parent, &fields_of_child);
    assert_eq!(whole.header("content-encoding"), Some("gzip"));
    let vary = "X-Environment-Key, Accept-Encoding, Available-Dictionary";
    assert_eq!(whole.header("vary"), Some(vary));
    serve(&upstream, 2, 200);
    version(&parent, 2);

    let delta = fetch(&parent, &fields_of_child);
    assert_eq!((delta.status, delta.header("content-encoding")), (200, Some("dcz")));
    assert_eq!(delta.header("vary"), Some(vary));
    assert_eq!(delta.header("cache-control"), Some("private, no-cache"));
    let document = fetch(&parent, &[]);
    let found =
        edge_proxy::delta::decode(&delta.body, &old.body, &edge_proxy::delta::digest_of(&old.body), 1 << 20);
    assert!(found.expect("a delta") == document.body);
    let digest = format!("sha-256={}", self::available(&document.body));
    assert_eq!(delta.header("unencoded-digest"), Some(digest.as_str()));
    let tag = delta.header("etag").expect("a tag").to_owned();
    assert!(tag.contains("-dcz-"), "{tag}");
    let again = fetch(&parent, &[fields_of_child[0], fields_of_child[1], ("If-None-Match", &tag)]);
    assert_eq!((again.status, again.body.len()), (304, 0));

    // Everybody else gets the answers of before.
    let plain_tag = document.header("etag").expect("a tag").to_owned();
    let unknown = self::available(b"another document");
    for (fields, coding) in [
        (&[][..], None),
        (&[fields_of_child[1]][..], None),
        (&[("Accept-Encoding", "gzip"), fields_of_child[1]], Some("gzip")),
        (&[("Accept-Encoding", "gzip, dcz;q=0"), fields_of_child[1]], Some("gzip")),
        (&[fields_of_child[0]], Some("gzip")),
        (&[fields_of_child[0], ("Available-Dictionary", unknown.as_str())], Some("gzip")),
        (&[fields_of_child[0], ("Available-Dictionary", "")], Some("gzip")),
    ] {
        let answer = fetch(&parent, fields);
        assert_eq!((answer.status, answer.header("content-encoding")), (200, coding), "{fields:?}");
        assert_eq!(answer.header("unencoded-digest"), None);
    }
    assert_eq!(fetch(&parent, &[("If-None-Match", &tag)]).status, 200, "the tag of another coding");
    assert_eq!(fetch(&parent, &[("If-None-Match", &plain_tag)]).status, 304);
    // A client-side key gets none, as it gets no document.
    let mut client = parent.client();
    client.send(request(
        "GET",
        DOCUMENT,
        &[("X-Environment-Key", CLIENT_KEY), fields_of_child[0], fields_of_child[1]],
        b"",
    ));
    let refused = client.answer("GET");
    assert_eq!((refused.status, refused.header("use-as-dictionary")), (401, None));
}

#[test]
fn without_the_setting_there_is_neither_an_offer_nor_a_request() {
    let upstream = Upstream::start();
    serve(&upstream, 1, 200);
    let parent = Start::polling(&upstream.api_url()).set("document_deltas", false).ready();
    let old = fetch(&parent, &[]);
    assert_eq!(old.header("use-as-dictionary"), None);
    let available = available(&old.body);
    let fields_of_child = [("Accept-Encoding", "gzip, dcz"), ("Available-Dictionary", available.as_str())];
    for expected in 2..4 {
        serve(&upstream, expected, 200);
        version(&parent, u64::from(expected));
        let answer = fetch(&parent, &fields_of_child);
        assert_eq!(answer.header("content-encoding"), Some("gzip"));
        assert_eq!(answer.header("vary"), Some("X-Environment-Key, Accept-Encoding"));
    }
}

/// An API that does not offer deltas gets the requests of before.
#[test]
fn no_deltas_are_requested_from_an_api_without_an_offer() {
    let upstream = Upstream::start();
    serve(&upstream, 1, 10);
    let parent = root(&upstream);
    version(&parent, 1);
    let leaf = child(&parent).ready();
    wait_for_polls(&leaf);
    serve(&upstream, 2, 10);
    version(&leaf, 2);
    for request in upstream.requests_for(DOCUMENT) {
        assert_eq!(request.header("available-dictionary"), None);
        assert_eq!(request.header("accept-encoding"), Some("gzip"));
    }
}

/// A reply that offers deltas.
fn offering(document: &[u8]) -> Reply {
    Reply::json(document).with("use-as-dictionary", "match=\"/api/v1/environment-document/\"")
}

#[test]
fn a_delta_that_is_not_usable_costs_one_more_request() {
    let documents: Vec<Vec<u8>> = (1..4).map(|number| canonical(&large(number, 50, 0))).collect();
    let digest = edge_proxy::delta::digest_of(&documents[0]);
    let good = edge_proxy::delta::encode(&documents[0], &digest, &documents[1], 1 << 20).expect("a delta");
    let other = edge_proxy::delta::encode(&documents[2], &digest_of(&documents[2]), &documents[1], 1 << 20);
    let bomb = edge_proxy::delta::encode(&documents[0], &digest, &vec![b' '; 8_000_000], 1 << 20);
    let mut cut = good.clone();
    cut.truncate(good.len() - 5);
    let promise = |document: &[u8]| format!("sha-256={}", available(document));
    for (case, coded, digest_field, reason) in [
        ("another result", good.clone(), promise(&documents[2]), "not the document that Unencoded-Digest"),
        ("without a digest", good.clone(), String::new(), "there is no Unencoded-Digest"),
        ("another dictionary", other.expect("a delta"), promise(&documents[1]), "another document"),
        ("cut", cut, promise(&documents[1]), "damaged"),
        ("no delta", b"dcz".to_vec(), promise(&documents[1]), "does not begin as dcz"),
        ("too large", bomb.expect("a delta"), promise(&documents[1]), "larger than"),
    ] {
        let upstream = Upstream::start();
        upstream.on(DOCUMENT, offering(&documents[0]));
        let proxy =
            Start::polling(&upstream.api_url()).with_admin().set("api_document_bytes_max", 1_000_000).ready();
        let next = documents[1].clone();
        upstream.rule(move |request| {
            let is_offered = request.header("available-dictionary").is_some();
            (request.path() == DOCUMENT).then(|| {
                if !is_offered {
                    return offering(&next);
                }
                let reply = Reply::json(&coded).with("content-encoding", "dcz");
                if digest_field.is_empty() { reply } else { reply.with("unencoded-digest", &digest_field) }
            })
        });
        version(&proxy, 2);
        let line = proxy.wait_for_log("document_delta_refused");
        assert!(line.contains(reason), "{case}: {line}");
        assert!(proxy.metric("edge_proxy_document_deltas_refused_total") >= 1.0, "{case}");
        assert_eq!(proxy.metric("edge_proxy_document_deltas_applied_total"), 0.0, "{case}");
    }
}

/// A connection that breaks within a delta is a failed poll, not a damaged delta.
#[test]
fn an_interrupted_delta_is_fetched_again() {
    let documents: Vec<Vec<u8>> = (1..3).map(|number| canonical(&large(number, 50, 0))).collect();
    let digest = edge_proxy::delta::digest_of(&documents[0]);
    let good = edge_proxy::delta::encode(&documents[0], &digest, &documents[1], 1 << 20).expect("a delta");
    let upstream = Upstream::start();
    upstream.on(DOCUMENT, offering(&documents[0]));
    let proxy = Start::polling(&upstream.api_url()).with_admin().ready();
    let promise = format!("sha-256={}", available(&documents[1]));
    let mut left = 2;
    upstream.rule(move |request| {
        (request.path() == DOCUMENT && request.header("available-dictionary").is_some()).then(|| {
            let whole = offering(&good).with("content-encoding", "dcz").with("unencoded-digest", &promise);
            left -= 1;
            if left >= 0 { whole.delivered(Delivery::ResetAfter(60)) } else { whole }
        })
    });
    version(&proxy, 2);
    proxy.wait_for_log("environment_recovered");
    assert!(proxy.metric("edge_proxy_document_deltas_applied_total") >= 1.0);
    assert_eq!(proxy.metric("edge_proxy_document_deltas_refused_total"), 0.0);
}

fn digest_of(document: &[u8]) -> [u8; 32] {
    edge_proxy::delta::digest_of(document)
}

/// The document as a proxy serves it.
fn canonical(document: &Value) -> Vec<u8> {
    let compiled = edge_proxy::snapshot::Environment::compile(document.to_string().into_bytes());
    compiled.expect("valid").0.document().plain.to_vec()
}

/// A parent that starts again has other uuids and no deltas: its children fetch the document once.
#[test]
fn children_survive_a_restart_of_their_parent() {
    let upstream = Upstream::start();
    serve(&upstream, 1, 200);
    let mut parent = root(&upstream);
    let leaf = child(&parent).ready();
    wait_for_polls(&leaf);
    serve(&upstream, 2, 200);
    version(&leaf, 2);
    parent.signal("TERM");
    assert!(parent.wait().success());
    serve(&upstream, 3, 200);
    let address = parent.address();
    drop(parent);
    let parent = Start::polling(&upstream.api_url())
        .with_admin()
        .set("server.port", address.port())
        .set("api_poll_frequency_seconds", 0.5);
    let parent = parent.spawn();
    version(&leaf, 3);
    eventually("the parent's first delta", || {
        let next = upstream.polls() as u32 + 4;
        serve(&upstream, next, 200);
        std::thread::park_timeout(Duration::from_millis(200));
        (leaf.metric("edge_proxy_document_deltas_applied_total") >= 2.0).then_some(())
    });
    assert_eq!(leaf.metric("edge_proxy_document_deltas_refused_total"), 0.0);
    drop(parent);
}
