//! The disk store: kills, full disks, damaged files, and a process that takes over.
use std::fs;
use std::path::Path;

use serde_json::json;

use super::{SERVER, identities, kept, of_proxy, on_disk, plan, written};
use crate::support::{Proxy, Scratch, Shim, eventually};

fn number(value: usize) -> serde_json::Value {
    json!([{"trait_key": "number", "trait_value": value}])
}

fn name(user: usize) -> String {
    format!("user-{user}")
}

/// Keeps a number of each of these users, on the disk too.
fn keep_users(proxy: &Proxy, count: usize) {
    let mut client = proxy.client();
    for user in 0..count {
        identities(&mut client, &name(user), &number(user));
    }
    written(proxy);
}

fn long_text() -> serde_json::Value {
    json!([{"trait_key": "text", "trait_value": "x".repeat(1900)}])
}

/// A proxy that has the identity `before` on the disk, which is full now, and 2,000 more than fit into the space
/// that its file has.
fn overfull(shim: &Shim, folder: &Path) -> Proxy {
    let proxy = shim.preload(on_disk(folder)).ready();
    let (mut client, long) = (proxy.client(), long_text());
    identities(&mut client, "before", &plan("gold"));
    written(&proxy);
    shim.disk_is_full(true);
    for user in 0..2000 {
        identities(&mut client, &name(user), &long);
    }
    proxy
}

/// The identities of `traits_lost`.
fn lost(proxy: &Proxy) -> Option<usize> {
    let log = proxy.log();
    let line = log.lines().find(|line| line.contains("traits_lost"))?;
    let number = line.split("identities=").nth(1).expect("a field").split(' ').next().expect("a number");
    Some(number.parse().expect("a number"))
}

fn files(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").file_name());
    names.map(|name| name.to_string_lossy().into_owned()).collect()
}

/// The engine writes its list of free pages with each commit, which must not be that of a large region.
#[test]
fn a_commit_of_one_trait_writes_little() {
    let scratch = Scratch::new();
    let proxy = on_disk(&scratch.path().join("traits")).ready();
    keep_users(&proxy, 100);
    let bytes_written = || -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/io", proxy.pid())).expect("of the same user");
        let line = text.lines().find_map(|line| line.strip_prefix("wchar: ")).expect("a count");
        line.parse().expect("a number")
    };
    let before = bytes_written();
    for value in 0..5 {
        identities(&mut proxy.client(), "one", &number(value));
        written(&proxy);
    }
    let written = (bytes_written() - before) / 5;
    assert!((1000..200_000).contains(&written), "{written} bytes for a trait");
}

#[test]
fn a_kill_loses_only_the_last_writes() {
    let scratch = Scratch::new();
    let folder = scratch.path().join("traits");
    let mut proxy = on_disk(&folder).ready();
    let mut client = proxy.client();
    let mut user = 0;
    for round in 1..=3 {
        // Several commits, which the writes do not wait for.
        let commits = proxy.metric("edge_proxy_traits_commits_total");
        while proxy.metric("edge_proxy_traits_commits_total") < commits + 2.0 {
            for _ in 0..20 {
                identities(&mut client, &name(user), &number(user));
                user += 1;
            }
        }
        written(&proxy);
        let on_disk_before = user;
        for _ in 0..200 {
            identities(&mut client, &name(user), &number(user));
            user += 1;
        }
        proxy.signal("KILL");
        proxy.wait();
        proxy = on_disk(&folder).ready();
        client = proxy.client();
        let survived = proxy.metric("edge_proxy_traits_identities") as usize;
        assert!(survived >= on_disk_before && survived <= user, "round {round}: {survived} of {user}");
        // What was written later is lost first.
        for user in [0, survived / 2, survived - 1] {
            assert_eq!(kept(&mut client, &name(user)), number(user), "round {round}, {survived} survived");
        }
        user = survived;
    }
}

#[test]
fn a_full_disk_loses_nothing_and_is_logged_once() {
    let (shim, scratch) = (Shim::new(), Scratch::new());
    let folder = scratch.path().join("traits");
    let mut proxy = overfull(&shim, &folder);
    let mut client = proxy.client();
    eventually("two commits fail", || {
        (proxy.metric("edge_proxy_traits_commits_failed_total") >= 2.0).then_some(())
    });
    assert_eq!(kept(&mut client, "before"), plan("gold"), "reads go on");
    assert_eq!(proxy.log().matches("traits_not_written").count(), 1);
    assert!(proxy.metric("edge_proxy_traits_lag_seconds") > 0.0);
    shim.disk_is_full(false);
    proxy.wait_for_log("traits_written_again");
    written(&proxy);
    proxy.signal("KILL");
    proxy.wait();
    let proxy = on_disk(&folder).ready();
    assert_eq!(proxy.metric("edge_proxy_traits_identities"), 2001.0);
    assert_eq!(kept(&mut proxy.client(), &name(1999)), long_text());
    assert_eq!(files(&folder), ["traits.redb"]);
}

/// What was kept since the disk is full cannot be written any more.
#[test]
fn a_stop_reports_what_it_loses() {
    let (shim, scratch) = (Shim::new(), Scratch::new());
    let folder = scratch.path().join("traits");
    let mut proxy = overfull(&shim, &folder);
    proxy.wait_for_log("traits_not_written");
    proxy.signal("TERM");
    proxy.wait();
    let lost = lost(&proxy).expect("a line of the log");
    shim.disk_is_full(false);
    let proxy = on_disk(&folder).ready();
    let survived = proxy.metric("edge_proxy_traits_identities") as usize;
    assert!(lost > 0 && survived > 0 && survived + lost == 2001, "{survived} of 2001, {lost} lost");
}

/// A process that took over ends before the one that has the file.
#[test]
fn a_stop_before_the_file_could_be_opened_reports_what_it_loses() {
    let scratch = Scratch::new();
    let folder = scratch.path().join("traits");
    let mut first = on_disk(&folder).ready();
    keep_users(&first, 20);
    let mut second = on_disk(&folder).ready();
    second.wait_for_log("traits_file_in_use");
    let mut client = second.client();
    for user in 15..25 {
        identities(&mut client, &name(user), &number(1000 + user));
    }
    second.signal("TERM");
    second.wait();
    assert_eq!(lost(&second), Some(10), "{}", second.log());
    first.signal("TERM");
    first.wait();
    assert_eq!(lost(&first), None, "{}", first.log());
    let again = on_disk(&folder).ready();
    assert_eq!(again.metric("edge_proxy_traits_identities"), 20.0);
    assert_eq!(kept(&mut again.client(), &name(15)), number(15));
}

#[test]
fn a_file_with_damaged_pages_is_recovered_and_put_aside() {
    let scratch = Scratch::new();
    let folder = scratch.path().join("traits");
    let mut proxy = on_disk(&folder).ready();
    keep_users(&proxy, 3000);
    proxy.signal("TERM");
    proxy.wait();
    let path = folder.join("traits.redb");
    let mut bytes = fs::read(&path).expect("readable");
    // A record, with its length before the identifier, in pages that are in use and in older ones.
    let text = b"\x09user-1500";
    let places: Vec<usize> = memchr::memmem::find_iter(&bytes, text).collect();
    assert!(!places.is_empty(), "the record is in the file");
    places.iter().for_each(|at| bytes[at + 1] ^= 1);
    fs::write(&path, &bytes).expect("writable");
    let (code, output) = on_disk(&folder).check().run();
    assert!(code != Some(0) && output.contains("traits.path"), "{output}");
    let mut proxy = on_disk(&folder).ready();
    let log = proxy.wait_for_log("traits_file_damaged");
    assert!(log.contains("recovered_identities"), "{log}");
    assert_eq!(proxy.log().matches("traits_file_damaged").count(), 1);
    let recovered = proxy.metric("edge_proxy_traits_identities");
    assert!((1500.0..=3000.0).contains(&recovered), "{recovered} of 3000");
    assert_eq!(proxy.metric("edge_proxy_traits_files_damaged_total"), 1.0);
    for user in (0..3000).step_by(61) {
        let traits = kept(&mut proxy.client(), &name(user));
        assert!(traits == number(user) || traits == json!([]), "{traits}: never wrong ones");
    }
    written(&proxy);
    assert!(!proxy.log().contains("panicked"), "{}", proxy.log());
    let known = proxy.metric("edge_proxy_traits_identities");
    proxy.signal("KILL");
    proxy.wait();
    assert!(files(&folder).iter().any(|name| name.contains("damaged")));
    // What was recovered is in the new file.
    let proxy = on_disk(&folder).ready();
    assert_eq!(proxy.metric("edge_proxy_traits_identities"), known);
    assert!(!proxy.log().contains("traits_file_damaged"));
}

/// The file is overwritten while the process runs: it has everything in memory.
#[test]
fn a_file_that_is_damaged_while_it_is_open_is_written_anew() {
    let scratch = Scratch::new();
    let folder = scratch.path().join("traits");
    let mut proxy = on_disk(&folder).ready();
    let mut client = proxy.client();
    // More than the engine caches, so that it must read pages.
    let long = |number| json!({"trait_key": format!("text-{number}"), "trait_value": "x".repeat(1900)});
    let long: serde_json::Value = (0..30).map(long).collect();
    for user in 0..300 {
        identities(&mut client, &name(user), &long);
    }
    written(&proxy);
    let path = folder.join("traits.redb");
    let length = fs::metadata(&path).expect("a file").len();
    fs::write(&path, vec![b'x'; length as usize]).expect("writable");
    let mut writes = 0;
    eventually("it is noticed", || {
        // In all parts of the table.
        for _ in 0..100 {
            writes += 1;
            identities(&mut client, &name(writes % 300), &number(writes));
        }
        proxy.log().contains("traits_file_damaged").then_some(())
    });
    written(&proxy);
    let known = proxy.metric("edge_proxy_traits_identities");
    assert_eq!(known, 300.0);
    proxy.signal("KILL");
    proxy.wait();
    let proxy = on_disk(&folder).ready();
    assert_eq!(proxy.metric("edge_proxy_traits_identities"), known, "nothing is lost");
    let last = kept(&mut proxy.client(), &name(writes % 300));
    assert!(last.as_array().expect("traits").contains(&number(writes)[0]), "{last}");
}

#[test]
fn a_process_that_takes_over_has_what_the_other_one_keeps() {
    let scratch = Scratch::new();
    let folder = scratch.path().join("traits");
    let mut first = on_disk(&folder).ready();
    keep_users(&first, 500);
    let mut client = first.client();
    let (code, output) = on_disk(&folder).check().run();
    assert!(code == Some(0) && output.contains("a running process has the file"), "{output}");
    let mut second = on_disk(&folder).arg("--take-over").ready();
    let mut other = second.client();
    second.wait_for_log("traits_file_in_use");
    assert_eq!(second.metric("edge_proxy_traits_identities"), 500.0, "read before it is ready");
    assert_eq!(kept(&mut other, &name(7)), number(7));
    // Both are written until the first one ends.
    identities(&mut client, &name(1), &number(1001));
    identities(&mut client, "late", &number(1));
    assert_eq!(of_proxy(&mut client, "DELETE", &name(2), SERVER).status, 204);
    identities(&mut other, &name(3), &number(1003));
    identities(&mut other, &name(4), &json!([{"trait_key": "number", "trait_value": null}]));
    identities(&mut other, "new", &number(2));
    first.signal("TERM");
    first.wait();
    second.wait_for_log("traits_file_opened");
    let has = |proxy: &Proxy| {
        let mut client = proxy.client();
        let expected =
            [(name(1), 1001), (name(3), 1003), (name(7), 7), ("late".into(), 1), ("new".into(), 2)];
        for (identifier, value) in expected {
            assert_eq!(kept(&mut client, &identifier), number(value), "{identifier}");
        }
        assert_eq!(kept(&mut client, &name(4)), json!([]), "the file does not bring a deleted key back");
        assert_eq!(of_proxy(&mut client, "GET", &name(2), SERVER).status, 404, "it was erased");
        assert_eq!(proxy.metric("edge_proxy_traits_identities"), 501.0);
    };
    // The reactor is informed after the log.
    eventually("it is merged", || {
        let mut client = second.client();
        let is_erased = of_proxy(&mut client, "GET", &name(2), SERVER).status == 404;
        (is_erased && kept(&mut client, &name(1)) == number(1001)).then_some(())
    });
    has(&second);
    written(&second);
    second.signal("KILL");
    second.wait();
    let (code, output) = on_disk(&folder).check().run();
    assert!(code == Some(0) && output.contains("intact, with 501 identities"), "{output}");
    has(&on_disk(&folder).ready());
}
