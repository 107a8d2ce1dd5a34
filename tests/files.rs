//! Unexpected files: FIFOs, devices and links in place of regular files, names similar to temporary files of
//! the proxy, and files that an earlier release wrote.
//!
//! `fixtures/cache-0.1.0/` is the `cache_dir` of release 0.1.0 after a stop while upstream answered 503
//! to counts: documents of a configured and a discovered environment, the list of discovered
//! environments, and pending counts of both kinds.
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::support::{Reply, Scratch, Start, Upstream, fixture, get};
use crate::surface::{CLIENT, SERVER, document};

const CACHED_CLIENT: &str = "CachedClientKey";
/// SHA-256 of `CACHED_CLIENT`, the first 32 digits.
const CACHED_FILE: &str = "78951c720fa4aba89c48891ad790d8d2.document";

/// A copy of the cache directory that release 0.1.0 wrote.
fn cache_of_0_1_0() -> Scratch {
    let cache = Scratch::new();
    for entry in std::fs::read_dir(fixture::path("cache-0.1.0")).expect("a fixture").flatten() {
        std::fs::copy(entry.path(), cache.path().join(entry.file_name())).expect("scratch space");
    }
    cache
}

fn make_fifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().expect("mkfifo is there").success());
}

/// Paths of a FIFO without a writer, and of links to endless devices.
fn endless(folder: &Path) -> Vec<PathBuf> {
    let paths: Vec<PathBuf> = ["fifo", "zero", "stdin"].iter().map(|name| folder.join(name)).collect();
    make_fifo(&paths[0]);
    symlink("/dev/zero", &paths[1]).expect("scratch space");
    symlink("/dev/stdin", &paths[2]).expect("scratch space");
    paths
}

#[test]
fn cached_documents_of_release_0_1_0_are_served() {
    let (upstream, cache) = (Upstream::refusing(), cache_of_0_1_0());
    let proxy = Start::serve()
        .environment(CACHED_CLIENT, "ser.cached")
        .set("api_url", upstream.api_url())
        .set("proxy_key", "proxy.fixture")
        .set("cache_dir", cache.path().to_str())
        .start();
    for (key, value) in
        [(CACHED_CLIENT, "kept on disk"), ("ser.cached", "kept on disk"), ("FoundClientKey", "kept on disk")]
    {
        let answer = proxy.get("/api/v1/flags/?feature=banner", key);
        assert_eq!(answer.status, 200, "{key}: {}", answer.text());
        assert!(answer.text().contains(value), "{}", answer.text());
    }
}

#[test]
fn pending_counts_of_release_0_1_0_are_sent_with_their_keys() {
    let (upstream, cache) = (Upstream::start(), cache_of_0_1_0());
    for path in ["/api/v1/analytics/flags/", "/api/v2/analytics/flags/", "/api/v1/proxy/usage/"] {
        // The path of version 2 contains `..`, which may be resolved before upstream reads it.
        upstream.on(path, Reply::json("{}"));
    }
    let mut proxy = Start::serve()
        .environment(CACHED_CLIENT, "ser.cached")
        .set("api_url", upstream.api_url())
        .set("proxy_key", "proxy.fixture")
        .set("cache_dir", cache.path().to_str())
        .start();
    let sent = || -> Vec<_> {
        let mut posts = upstream.requests();
        posts.retain(|request| request.method == "POST");
        posts
    };
    upstream.wait("five pending uploads", |requests| {
        requests.iter().filter(|request| request.method == "POST").count() >= 5
    });
    let mut shown: Vec<String> = sent()
        .iter()
        .map(|request| {
            let header = |name| request.header(name).unwrap_or_default();
            format!(
                "{} {} {} {} {}",
                request.path(),
                header("x-environment-key"),
                header("user-agent"),
                header("idempotency-key"),
                request.json()
            )
        })
        .collect();
    shown.sort();
    let version_2 = r#"{"evaluations":[{"count":5,"enabled_when_evaluated":true,"feature_name":"banner","identity_identifier":"ann"},{"count":6,"enabled_when_evaluated":false,"feature_name":"on"}]}"#;
    let agent = concat!("edge-proxy/", env!("CARGO_PKG_VERSION"));
    assert_eq!(
        shown,
        [
            "/api/v1/analytics/flags/ CachedClientKey fixture/1 8066bd61-9a48-44a8-b47e-55db6f6aef7b {\"banner\":3,\"on\":4}".to_owned(),
            "/api/v1/analytics/flags/ CachedClientKey fixture/1 9acc6d0c-6cd1-4d46-a975-07487a2cf7f8 {\"banner\":10}".to_owned(),
            "/api/v1/analytics/flags/ CachedClientKey fixture/3 9c49e8d7-c68e-43f0-90d8-a76e176a8bc1 {\"banner\":20}".to_owned(),
            format!("/api/v1/proxy/usage/  {agent} 067122e3-020c-4014-a81d-0de939c475d9 [{{\"client_side_key\":\"CachedClientKey\",\"count\":3,\"resource\":\"flags\"}}]"),
            format!("/api/v2/analytics/flags/ CachedClientKey fixture/2 4e07c0f1-a262-4288-827b-3c4cfafc7c73 {version_2}"),
        ]
    );
    proxy.signal("TERM");
    assert!(proxy.wait().success());
    assert_eq!(sent().len(), 5, "no count is uploaded twice");
    let files = |folder: &str| -> Vec<String> {
        let entries = std::fs::read_dir(cache.path().join(folder)).expect("a folder");
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
    };
    let documents = files("").into_iter().filter(|name| name.ends_with(".document")).count();
    assert_eq!(documents, 3, "the files of the pending counts are removed");
    for kind in ["analytics", "usage"] {
        assert_eq!(files(&format!("counts/{kind}/0")), ["lock"], "the spool of {kind} is empty");
    }
}

#[test]
fn ignores_cache_entries_that_are_not_regular_files() {
    let upstream = Upstream::start();
    upstream.document("ser.cached", document(3).to_string());
    for target in [None, Some("/dev/zero"), Some("/dev/stdin")] {
        let cache = cache_of_0_1_0();
        // Including those of pending counts and of discovered environments.
        for entry in std::fs::read_dir(cache.path()).expect("scratch space").flatten() {
            std::fs::remove_file(entry.path()).expect("scratch space");
            match target {
                Some(target) => symlink(target, entry.path()).expect("scratch space"),
                None => make_fifo(&entry.path()),
            }
        }
        let mut proxy = Start::serve()
            .environment(CACHED_CLIENT, "ser.cached")
            .set("api_url", upstream.api_url())
            .set("cache_dir", cache.path().to_str())
            .ready();
        let line = proxy.wait_for_log("cache_file_ignored");
        assert!(line.contains("not a regular file"), "{line}");
        for kind in ["analytics", "usage"] {
            proxy.wait_for_log(&format!("pending_counts_ignored         kind={kind}"));
        }
        assert!(proxy.resident_bytes() < 100 << 20, "{}", proxy.resident_bytes());
        proxy.signal("TERM");
        assert!(proxy.wait().success());
        let file = std::fs::symlink_metadata(cache.path().join(CACHED_FILE)).expect("it is there");
        assert!(file.is_file(), "the document replaced it");
    }
}

#[test]
fn removes_and_logs_only_its_own_leftover_files() {
    let cache = Scratch::new();
    let ours = "0123456789abcdef0123456789abcdef.tmp-77-00112233445566aa";
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(7200);
    for name in [ours, "tmp-foo", "my-tmp-file.json", "notes.tmp-1"] {
        let file = std::fs::File::create(cache.path().join(name)).expect("scratch space");
        file.set_modified(old).expect("scratch space");
    }
    let path = cache.write("document.json", document(0).to_string());
    let proxy = Start::serve().document(CLIENT, SERVER, path).set("cache_dir", cache.path().to_str()).ready();
    let line = proxy.wait_for_log("cache_leftover_removed");
    assert!(line.contains(ours) && line.contains("age_seconds=72"), "{line}");
    assert_eq!(proxy.log().matches("cache_leftover").count(), 1, "{}", proxy.log());
    assert!(!cache.path().join(ours).exists());
    for name in ["tmp-foo", "my-tmp-file.json", "notes.tmp-1"] {
        assert!(cache.path().join(name).exists(), "{name}");
    }
}

#[test]
fn document_path_must_be_a_regular_file() {
    let folder = Scratch::new();
    for path in endless(folder.path()) {
        let good = folder.write("good.json", document(0).to_string());
        let mut proxy = Start::serve()
            .document(CLIENT, SERVER, good)
            .document("OtherClientKey", "ser.other", &path)
            .start();
        let line = proxy.wait_for_log("not a regular file");
        assert!(line.contains(path.to_str().expect("a plain path")), "{line}");
        let address = proxy.address();
        let is_served = || (get(address, "/api/v1/flags/", CLIENT).status == 200).then_some(());
        proxy.until("the others are served", is_served);
        assert_eq!(proxy.get("/api/v1/flags/", "OtherClientKey").status, 502);
        assert!(proxy.resident_bytes() < 100 << 20, "{}", proxy.resident_bytes());
        proxy.signal("TERM");
        assert!(proxy.wait().success());
    }
}

#[test]
fn document_file_beyond_the_limit_fails_the_poll() {
    let folder = Scratch::new();
    let text = document(0).to_string();
    let path = folder.write("document.json", &text);
    let proxy =
        Start::serve().document(CLIENT, SERVER, path).set("api_document_bytes_max", text.len() - 1).start();
    let line = proxy.wait_for_log(&format!("larger than {} bytes", text.len() - 1));
    assert!(line.contains("api_document_bytes_max"), "{line}");
}

#[test]
fn configuration_and_certificates_must_be_regular_files() {
    let folder = Scratch::new();
    for path in endless(folder.path()) {
        let shown = path.to_str().expect("a plain path");
        let (code, text) = Start::command(&["check", "--config", shown]).run();
        assert_ne!(code, Some(0), "{text}");
        assert!(text.contains("not a regular file"), "{text}");
        let files = json!({"cert": shown, "key": shown});
        let (code, text) = Start::serve().environment(CLIENT, SERVER).set("server.tls", files.clone()).run();
        assert_ne!(code, Some(0), "{text}");
        assert!(text.contains("server.tls.cert") && text.contains("not a regular file"), "{text}");
        let start = Start::serve().environment(CLIENT, SERVER);
        let (code, text) = start.set("api_ca_file", shown).set("api_client_certificate", files).run();
        assert_ne!(code, Some(0), "{text}");
        assert!(text.contains("api_ca_file") && text.contains("not a regular file"), "{text}");
    }
}
