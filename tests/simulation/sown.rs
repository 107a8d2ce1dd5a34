//! Bugs that the simulation must find: small changes of the sources, each of which breaks one promise.
//!
//! The sources of the program know nothing of them. `SOWN_TREE=` writes a copy of the crate in which each
//! change is behind a switch; built from there, `SOWN=1` looks for all of them (`make simulate`).
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many seeds are played for a bug before it counts as not found.
const SEEDS_MAX: u64 = 4000;

/// A change: where `code` is in the file, `bug` is used instead while the bug is switched on.
struct SownBug {
    name: &'static str,
    file: &'static str,
    code: &'static str,
    bug: &'static str,
}

const fn bug(name: &'static str, file: &'static str, code: &'static str, bug: &'static str) -> SownBug {
    SownBug { name, file, code, bug }
}

/// `SOWN` in a bug is true while it is switched on.
const BUGS: [SownBug; 45] = [
    bug(
        "a stored document is not synced before its rename",
        "src/storage/mod.rs",
        ".and_then(|()| file.sync());",
        ".and_then(|()| if SOWN { Ok(()) } else { file.sync() });",
    ),
    bug(
        "the rename of a stored document is not synced",
        "src/storage/mod.rs",
        "    folder.disk.sync_folder(&folder.path)\n}",
        "    if SOWN { Ok(()) } else { folder.disk.sync_folder(&folder.path) }\n}",
    ),
    bug(
        "a failed write of a document is not repeated",
        "src/storage/mod.rs",
        "                true\n            })\n        });",
        "                !SOWN\n            })\n        });",
    ),
    bug(
        "stored events are not synced",
        "src/storage/spool/segment.rs",
        "            self.file.sync()?;",
        "            if !SOWN { self.file.sync()?; }",
    ),
    bug(
        "the name of a new segment is not synced",
        "src/storage/spool/segment.rs",
        "if !self.is_name_synced {",
        "if !self.is_name_synced && !SOWN {",
    ),
    bug(
        "off by one: a segment with one record left is deleted",
        "src/storage/spool/mod.rs",
        "        if segment.live_records == 0 {\n            self.delete_segment(location.segment);",
        "        if segment.live_records <= u64::from(SOWN) {\n            self.delete_segment(location.segment);",
    ),
    bug(
        "off by one: the number of a recovered record is used again",
        "src/storage/spool/mod.rs",
        "self.next_record.max(number.saturating_add(1))",
        "self.next_record.max(number.saturating_add(u64::from(!SOWN)))",
    ),
    bug(
        "events are accepted although the disk refused them",
        "src/forwarding/writer.rs",
        "                    .filter(|result| result.is_ok())",
        "                    .filter(|result| result.is_ok() && !SOWN)",
    ),
    bug(
        "events are given up when upstream fails",
        "src/forwarding/round.rs",
        "                self.with_queue(|queue| queue.keep(batch, retry_at));",
        "                if SOWN { self.with_queue(|queue| queue.remove(&batch)); } else { self.with_queue(|queue| queue.keep(batch, retry_at)); }",
    ),
    bug(
        "a repeated batch of events has a new idempotency key",
        "src/forwarding/queue.rs",
        "if is_new || batch.idempotency_key.is_empty() {",
        "if is_new || SOWN || batch.idempotency_key.is_empty() {",
    ),
    bug(
        "a repeated upload of counts has a new idempotency key",
        "src/analytics/upload.rs",
        "        waiting.failures = waiting.failures.saturating_add(1);",
        "        waiting.failures = waiting.failures.saturating_add(1);\n        if SOWN { let b = &waiting.batch; waiting.batch = Arc::new(UploadBatch::new(&b.path, b.client_side_key.clone(), b.labels.clone(), b.body.clone(), b.count)); }",
    ),
    bug(
        "counts are dropped when upstream fails",
        "src/analytics/upload.rs",
        "        self.posted.failure = Some(failure);\n        self.posted.kept.push(waiting);",
        "        self.posted.failure = Some(failure);\n        if SOWN { self.faulty.clear(); } else { self.posted.kept.push(waiting); }",
    ),
    bug(
        "counts since the last upload are lost at the exit",
        "src/analytics/outbox.rs",
        "        self.pack(counts, true);",
        "        if !SOWN { self.pack(counts, true); }",
    ),
    bug(
        "uploads that wait are not stored",
        "src/supervisor/uploads.rs",
        "    if let Some(change) = outbox.save() {",
        "    if let Some(change) = outbox.save().filter(|_| !SOWN) {",
    ),
    bug(
        "a new document is not published",
        "src/supervisor/environment/mod.rs",
        "is_new || has_recovered || is_confirmed",
        "(is_new && !SOWN) || has_recovered || is_confirmed",
    ),
    bug(
        "two snapshots that wait are applied in reverse order",
        "src/reactor/context.rs",
        "                    self.metrics.snapshot_taken(snapshot.version);",
        "                    if SOWN && let Ok(Some(ReactorMessage::Publish(newer))) = inbox.try_next() { *self.worker_state.lease.borrow_mut() = Some(inbox.lease(newer)); }\n                    self.metrics.snapshot_taken(snapshot.version);",
    ),
    bug(
        "lost wake-up: the byte is not written for each third snapshot",
        "src/channel.rs",
        "            let _ = wake.write(&[1]);",
        "            if !(SOWN && matches!(message, ReactorMessage::Publish(one) if one.version % 3 == 0)) { let _ = wake.write(&[1]); }",
    ),
    bug(
        "a returned snapshot is never freed",
        "src/channel.rs",
        "            let _ = self.retire.send(snapshot);",
        "            if SOWN { std::mem::forget(snapshot); } else { let _ = self.retire.send(snapshot); }",
    ),
    bug(
        "the edit of the same second is hidden by a 304",
        "src/validators.rs",
        "let is_weak = self.is_last_modified_weak();",
        "let is_weak = !SOWN && self.is_last_modified_weak();",
    ),
    bug(
        "Retry-After is honoured beyond the grace period",
        "src/schedule.rs",
        "left.saturating_sub(timeout).min(limits::RETRY_AFTER_MAX)",
        "if SOWN { limits::RETRY_AFTER_MAX } else { left.saturating_sub(timeout).min(limits::RETRY_AFTER_MAX) }",
    ),
    bug(
        "Retry-After has no limit",
        "src/schedule.rs",
        "retry_after.unwrap_or_default().min(retry_after_max)",
        "if SOWN { retry_after.unwrap_or_default() } else { retry_after.unwrap_or_default().min(retry_after_max) }",
    ),
    bug(
        "failed polls are repeated without a wait",
        "src/schedule.rs",
        "let delay = shorten(doubled, jitter).max(honoured);",
        "let delay = if SOWN { honoured } else { shorten(doubled, jitter).max(honoured) };",
    ),
    bug(
        "the wait after failures grows without a limit",
        "src/schedule.rs",
        "first.saturating_mul(1 << self.failures.min(16)).min(delay_max)",
        "first.saturating_mul(1 << self.failures.min(16)).min(if SOWN { first * 65_536 } else { delay_max })",
    ),
    bug(
        "after a failed poll none is started again",
        "src/supervisor/environment/mod.rs",
        "        self.in_flight = false;",
        "        self.in_flight = SOWN && refreshed.result.is_err();",
    ),
    bug(
        "a failed poll drops the document",
        "src/supervisor/environment/mod.rs",
        "        self.full_at = None;\n        if matches!",
        "        self.full_at = None;\n        if SOWN { self.document = None; }\n        if matches!",
    ),
    bug(
        "whole fetches never come: a scheduled change stays hidden",
        "src/supervisor/environment/mod.rs",
        "now.instant.duration_since(at) >= interval);",
        "!SOWN && now.instant.duration_since(at) >= interval);",
    ),
    bug(
        "the event stream announces in vain",
        "src/supervisor/environment/mod.rs",
        "        if self.announcements.add(updated_at, self.upstream_updated_at(), now.instant) {",
        "        if self.announcements.add(updated_at, self.upstream_updated_at(), now.instant) && !SOWN {",
    ),
    bug(
        "an unchanged document does not count as fresh",
        "src/supervisor/environment/mod.rs",
        "                self.freshness.confirm(now.instant, now.wall);",
        "                if !SOWN || matches!(polled, Polled::New(_)) { self.freshness.confirm(now.instant, now.wall); }",
    ),
    bug(
        "readiness stays green although the document is stale",
        "src/handlers/readiness.rs",
        "if age > age_max => EnvironmentHealth::Stale,",
        "if age > age_max && !SOWN => EnvironmentHealth::Stale,",
    ),
    bug(
        "off by one: the grace period of one environment too many",
        "src/handlers/readiness.rs",
        "        let age_max = self.staleness.age_max(snapshot.slots.len());",
        "        let age_max = self.staleness.age_max(snapshot.slots.len() + usize::from(SOWN));",
    ),
    bug(
        "readiness stays green during a shutdown",
        "src/handlers/readiness.rs",
        "if snapshot.draining {",
        "if snapshot.draining && !SOWN {",
    ),
    bug(
        "the key follows a redirect to another origin",
        "src/upstream/api.rs",
        "let trusted = self.is_trusted(&uri);",
        "let trusted = SOWN || self.is_trusted(&uri);",
    ),
    bug(
        "an empty list of environments is applied immediately",
        "src/supervisor/discovery/mod.rs",
        "if !is_empty || !has_discovered ||",
        "if SOWN || !is_empty || !has_discovered ||",
    ),
    bug(
        "a slow reader keeps its connection",
        "src/reactor/connections.rs",
        "> self.ticks_max(state.phase.get()) {",
        "> self.ticks_max(state.phase.get()) && !SOWN {",
    ),
    bug(
        "a failed commit of traits is not repeated",
        "src/traits/disk/writer.rs",
        "self.state.unwritten = Some(batch);",
        "self.state.unwritten = Some(batch).filter(|_| !SOWN);",
    ),
    bug(
        "an erased identity stays in the file",
        "src/traits/disk/file.rs",
        "                        None => table.remove(&*change.key)?,",
        "                        None if SOWN => None,\n                        None => table.remove(&*change.key)?,",
    ),
    bug(
        "traits are committed without a sync",
        "src/traits/disk/file.rs",
        "transaction.set_durability(Durability::Immediate);",
        "transaction.set_durability(if SOWN { Durability::None } else { Durability::Immediate });",
    ),
    bug(
        "the name of the file of traits is not synced",
        "src/traits/disk/file.rs",
        "    folder.disk.sync_folder(&folder.path).map_err(io)?;",
        "    if !SOWN { folder.disk.sync_folder(&folder.path).map_err(io)?; }",
    ),
    bug(
        "a reactor does not see its own write",
        "src/trait_table/view.rs",
        "        if let Some(record) = record {\n            let hash",
        "        if let Some(record) = record.filter(|_| !SOWN) {\n            let hash",
    ),
    bug(
        "an increment is merged twice",
        "src/traits/memory.rs",
        "= self.sum(&environment, identifier, key, *amount);",
        "= self.sum(&environment, identifier, key, if SOWN { *amount * 2 } else { *amount });",
    ),
    bug(
        "traits that upstream did not accept are not sent again",
        "src/trait_forwarding/round.rs",
        "                self.failure = Some(error);\n                BatchStep::Wait\n            }\n        }\n    }",
        "                self.failure = Some(error);\n                if SOWN { self.queue.lock().finish(environment, items); }\n                BatchStep::Wait\n            }\n        }\n    }",
    ),
    bug(
        "erased traits are forwarded",
        "src/traits/forward.rs",
        "ChangeKind::Erased | ChangeKind::ErasedElsewhere => {",
        "ChangeKind::Erased if SOWN => {}\n            ChangeKind::Erased | ChangeKind::ErasedElsewhere => {",
    ),
    bug(
        "deleted traits are not forwarded",
        "src/traits/forward.rs",
        "for entry in changes.entries.iter() {",
        "for entry in changes.entries.iter().filter(|entry| !SOWN || entry.value.is_some()) {",
    ),
    bug(
        "the journal of traits is not written",
        "src/trait_forwarding/journal.rs",
        "                self.append(chunks(parts))",
        "                if SOWN { Ok(()) } else { self.append(chunks(parts)) }",
    ),
    bug(
        "a reactor keeps all connections",
        "src/channel/spread.rs",
        "let is_above = (own",
        "let is_above = !SOWN && (own",
    ),
];

/// The module of the copy that has the switch.
const SWITCH: &str = r#"//! Which sown bug is switched on: the number in the variable `SOWN_BUG`.
use std::sync::OnceLock;

static ON: OnceLock<usize> = OnceLock::new();

pub fn is(number: usize) -> bool {
    *ON.get_or_init(|| std::env::var("SOWN_BUG").ok().and_then(|text| text.parse().ok()).unwrap_or(usize::MAX)) == number
}
"#;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The text of a file with all its bugs behind switches.
fn with_bugs(file: &str, mut text: String) -> String {
    for (number, bug) in BUGS.iter().enumerate().filter(|(_, bug)| bug.file == file) {
        let switch = bug.bug.replace("SOWN", &format!("crate::sown::is({number})"));
        text = text.replacen(bug.code, &switch, 1);
    }
    text
}

/// Each bug changes one place of the sources as they are now.
#[test]
fn each_sown_bug_has_its_place() {
    for bug in &BUGS {
        let path = root().join(bug.file);
        let Ok(text) = std::fs::read_to_string(&path) else { panic!("{}: no file", bug.file) };
        // In the copy the code has its switch.
        let count = if is_copy() { 1 } else { text.matches(bug.code).count() };
        assert_eq!(
            count, 1,
            "{}: {:?} is there {count} times: update tests/simulation/sown.rs",
            bug.file, bug.code
        );
    }
}

fn is_copy() -> bool {
    root().join("src/sown.rs").exists()
}

/// Writes the copy that `SOWN_TREE=` names.
#[test]
fn writes_the_tree_with_the_sown_bugs() {
    let Some(tree) = std::env::var_os("SOWN_TREE").map(PathBuf::from) else { return };
    for folder in ["src", "tests/simulation"] {
        copy(&root().join(folder), &tree.join(folder), Path::new(folder));
    }
    for file in ["build.rs", "Cargo.lock"] {
        write(&tree.join(file), &std::fs::read(root().join(file)).expect("a file of the crate"));
    }
    // Only the library and the simulation: the executable has the name of the real one.
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).expect("the manifest");
    let is_kept = |section: &&str| {
        let is_target = ["[[bin]]", "[[test]]", "[[bench]]"].iter().any(|kind| section.starts_with(kind));
        !is_target || section.contains("\"simulation\"")
    };
    let sections = manifest.split_inclusive("\n\n").filter(is_kept).collect::<String>();
    let manifest = sections.replace("autotests = false", "autotests = false\nautobins = false");
    write(&tree.join("Cargo.toml"), manifest.as_bytes());
    let lib = tree.join("src/lib.rs");
    let text = std::fs::read_to_string(&lib).expect("it was copied");
    write(&lib, text.replace("pub mod storage;", "pub mod sown;\npub mod storage;").as_bytes());
    write(&tree.join("src/sown.rs"), SWITCH.as_bytes());
}

fn copy(from: &Path, to: &Path, name: &Path) {
    for entry in std::fs::read_dir(from).expect("a folder of the crate").flatten() {
        let (path, name) = (entry.path(), name.join(entry.file_name()));
        let target = to.join(entry.file_name());
        if path.is_dir() {
            copy(&path, &target, &name);
        } else {
            let bytes = std::fs::read(&path).expect("a file of the crate");
            match String::from_utf8(bytes) {
                Ok(text) => write(&target, with_bugs(&name.to_string_lossy(), text).as_bytes()),
                Err(error) => write(&target, error.as_bytes()),
            }
        }
    }
}

/// Writes a file unless it has these bytes, so that only what changed is compiled.
fn write(path: &Path, bytes: &[u8]) {
    if std::fs::read(path).is_ok_and(|before| before == bytes) {
        return;
    }
    std::fs::create_dir_all(path.parent().expect("in the tree")).expect("a folder");
    std::fs::write(path, bytes).expect("a file");
}

/// In the copy: plays seeds with each bug until one fails.
#[test]
fn all_sown_bugs_are_found() {
    if std::env::var_os("SOWN").is_none() {
        return;
    }
    assert!(is_copy(), "SOWN=1 is for the copy that SOWN_TREE= writes");
    let only: Option<usize> = std::env::var("SOWN_ONLY").ok().and_then(|text| text.parse().ok());
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= BUGS.len() {
                        return;
                    }
                    if only.is_none_or(|only| only == number) {
                        let result = look_for(number);
                        found.lock().expect("no panic").push((number, result));
                    }
                }
            });
        }
    });
    let mut found = found.into_inner().expect("no panic");
    found.sort();
    let mut seeds: Vec<u64> =
        found.iter().filter_map(|(_, result)| result.as_ref().map(|(seeds, _)| *seeds)).collect();
    seeds.sort_unstable();
    for (number, result) in &found {
        let name = BUGS[*number].name;
        match result {
            Some((seeds, how)) => println!("sown | {name} | {seeds} | {how}"),
            None => println!("sown | {name} | NOT FOUND in {SEEDS_MAX} seeds |"),
        }
    }
    let mut table = "| bug | seeds | found by |\n|---|---:|---|\n".to_owned();
    for (number, result) in &found {
        let (seeds, how) = result
            .as_ref()
            .map_or_else(|| ("-".to_owned(), "not found"), |(seeds, how)| (seeds.to_string(), how));
        table.push_str(&format!("| {} | {seeds} | {how} |\n", BUGS[*number].name));
    }
    let median = seeds.get(seeds.len() / 2).copied().unwrap_or(0);
    println!("sown bugs | {} of {} found, by {median} seeds in the median", seeds.len(), found.len());
    table.push_str(&format!(
        "\n{} of {} are found, by {median} seeds in the median.\n",
        seeds.len(),
        found.len()
    ));
    crate::write_table("sown", &table);
    assert_eq!(seeds.len(), found.len(), "not all sown bugs are found");
}

/// How many seeds it took, and what the first failure says.
fn look_for(number: usize) -> Option<(u64, String)> {
    let exe = std::env::current_exe().expect("this test");
    let output = Command::new(exe)
        .args(["seeds_keep_all_promises", "--exact", "--nocapture"])
        .env("SOWN_BUG", number.to_string())
        .env("FIRST_FAILURE", "1")
        .env("SIMULATION_THREADS", "1")
        .env("SEEDS", SEEDS_MAX.to_string())
        .env_remove("SEED")
        .output()
        .expect("this test runs again");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|line| line.starts_with("simulation | SEED="))?;
    let mut parts = line.splitn(3, " | ").skip(1);
    let seed = parts.next()?.strip_prefix("SEED=")?.parse().ok()?;
    let how: String = parts.next()?.chars().take(90).collect();
    Some((seed, how.replace('|', "/").replace('\n', " ")))
}
