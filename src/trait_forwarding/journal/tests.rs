use std::sync::Arc;
use std::time::SystemTime;

use super::*;
use crate::engine::evaluate::TraitValue;
use crate::storage::test_folder::TestFolder;
use crate::trait_forwarding::queue::TraitQueue;

impl TestFolder {
    /// Whether any file has this text.
    fn has(&self, text: &str) -> bool {
        let slots = std::fs::read_dir(self.0.join(FOLDER)).unwrap().flatten();
        let files = slots.flat_map(|slot| std::fs::read_dir(slot.path()).unwrap().flatten());
        files.into_iter().any(|file| {
            std::fs::read(file.path()).unwrap().windows(text.len()).any(|window| window == text.as_bytes())
        })
    }
}

fn queue() -> SharedTraitQueue {
    SharedTraitQueue::new(TraitQueue::new(1 << 24, true, Arc::default()))
}

fn add(queue: &SharedTraitQueue, identifier: &str, number: i64) {
    queue.lock().add("env", identifier, "k", Some(TraitValue::Int(number)), SystemTime::now());
}

fn values(queue: &SharedTraitQueue) -> Vec<(String, String)> {
    let batch = queue.lock().batch("env", u64::MAX, |_| true);
    batch.into_iter().map(|item| (item.identifier.into(), item.json.into())).collect()
}

fn value(identifier: &str, json: &str) -> (String, String) {
    (identifier.into(), json.into())
}

/// The process ends by a signal: nothing is written at the end.
fn reopened(folder: &TestFolder) -> (Journal, SharedTraitQueue) {
    let queue = queue();
    let (mut journal, recovery) = Journal::open(&DiskFolder::from(&folder.0), &queue).unwrap();
    assert_eq!((recovery.damaged, recovery.ignored), (0, 0));
    journal.write(&queue).unwrap();
    while journal.adopt(&queue).unwrap().is_some() {}
    (journal, queue)
}

#[test]
fn what_waits_is_there_after_a_restart_and_what_was_delivered_is_not() {
    let folder = TestFolder::new("journal-replay");
    let (mut journal, queue) = reopened(&folder);
    add(&queue, "b", 1);
    add(&queue, "a", 1);
    journal.write(&queue).unwrap();
    let batch = queue.lock().batch("env", u64::MAX, |_| true);
    add(&queue, "b", 2);
    queue.lock().finish("env", &batch);
    add(&queue, "c", 3);
    queue.lock().add("env", "d", "k", None, SystemTime::now());
    journal.write(&queue).unwrap();
    add(&queue, "lost", 1);
    drop(journal);
    for _ in 0..2 {
        let (journal, queue) = reopened(&folder);
        assert_eq!(values(&queue), [value("b", "2"), value("c", "3"), value("d", "null")]);
        drop(journal);
    }
}

#[test]
fn it_does_not_grow_while_values_are_replaced() {
    let folder = TestFolder::new("journal-growth");
    let (mut journal, queue) = reopened(&folder);
    for round in 0..200 {
        for identity in 0..100 {
            add(&queue, &format!("identity-{identity}"), round);
        }
        journal.write(&queue).unwrap();
    }
    let (_, waiting) = queue.lock().size();
    assert!(journal.spool.bytes() <= 2 * waiting + 2 * SLACK_BYTES, "{}", journal.spool.bytes());
    drop(journal);
    let (mut journal, queue) = reopened(&folder);
    assert_eq!(values(&queue).len(), 100);
    assert!(values(&queue).iter().all(|(_, json)| json == "199"));
    let batch = queue.lock().batch("env", u64::MAX, |_| true);
    queue.lock().finish("env", &batch);
    journal.write(&queue).unwrap();
    drop(journal);
    assert!(values(&reopened(&folder).1).is_empty());
}

#[test]
fn an_erased_identity_is_not_in_any_file() {
    let folder = TestFolder::new("journal-erase");
    let (mut journal, queue) = reopened(&folder);
    for identifier in ["a", "person@example.com", "z"] {
        add(&queue, identifier, 1);
    }
    journal.write(&queue).unwrap();
    assert!(folder.has("person@example.com"));
    queue.lock().erase("env", "person@example.com");
    add(&queue, "later", 1);
    journal.write(&queue).unwrap();
    assert!(!folder.has("person@example.com"));
    drop(journal);
    let (_journal, queue) = reopened(&folder);
    assert_eq!(values(&queue), [value("a", "1"), value("z", "1"), value("later", "1")]);
}

#[test]
fn the_journal_of_a_process_that_ended_is_taken_over_and_does_not_replace_newer_values() {
    let folder = TestFolder::new("journal-adopt");
    let (mut first, first_queue) = reopened(&folder);
    add(&first_queue, "a", 1);
    add(&first_queue, "b", 1);
    first.write(&first_queue).unwrap();
    let (mut second, second_queue) = reopened(&folder);
    add(&second_queue, "a", 2);
    assert!(second.adopt(&second_queue).unwrap().is_none(), "the first process still runs");
    drop(first);
    assert!(second.adopt(&second_queue).unwrap().is_some());
    assert_eq!(values(&second_queue), [value("a", "2"), value("b", "1")]);
    drop(second);
    assert_eq!(values(&reopened(&folder).1), [value("a", "2"), value("b", "1")]);
}

#[test]
fn values_that_were_delivered_while_the_disk_failed_are_not_sent_again() {
    let folder = TestFolder::new("journal-failed");
    let (mut journal, first) = reopened(&folder);
    add(&first, "a", 1);
    journal.write(&first).unwrap();
    drop(journal);
    let queue = queue();
    let (mut journal, _) = Journal::open(&DiskFolder::from(&folder.0), &queue).unwrap();
    // The next file cannot be created.
    std::fs::write(folder.0.join(FOLDER).join("0").join("0000000000000002.segment"), b"").unwrap();
    assert!(journal.write(&queue).is_err());
    let deliver = || {
        let batch = queue.lock().batch("env", u64::MAX, |_| true);
        queue.lock().finish("env", &batch);
        batch.len()
    };
    assert_eq!(deliver(), 1);
    add(&queue, "a", 2);
    assert_eq!(deliver(), 1);
    journal.write(&queue).unwrap();
    assert!(values(&queue).is_empty());
    drop(journal);
    assert!(values(&reopened(&folder).1).is_empty());
}

#[test]
fn a_journal_that_opens_late_does_not_bring_back_what_has_changed() {
    let folder = TestFolder::new("journal-late");
    let (mut journal, queue) = reopened(&folder);
    for identifier in ["delivered", "erased", "waits", "old"] {
        add(&queue, identifier, 1);
    }
    journal.write(&queue).unwrap();
    drop(journal);
    // The next process cannot open it for a while.
    let queue = self::queue();
    add(&queue, "delivered", 2);
    let batch = queue.lock().batch("env", u64::MAX, |_| true);
    queue.lock().finish("env", &batch);
    add(&queue, "waits", 2);
    queue.lock().erase("env", "erased");
    let (mut journal, _) = Journal::open(&DiskFolder::from(&folder.0), &queue).unwrap();
    assert_eq!(values(&queue), [value("waits", "2"), value("old", "1")]);
    journal.write(&queue).unwrap();
    drop(journal);
    assert_eq!(values(&reopened(&folder).1), [value("waits", "2"), value("old", "1")]);
}
