//! Tests of the queue and of rounds, with an upstream that is a function.
use std::cell::RefCell;
use std::fs;
use std::time::Duration;

use super::*;
use crate::events::EventPart;
use crate::forwarding::round::{ForwardResult, forward_round};
use crate::storage::test_folder::TestFolder;
use crate::upstream::{EventsOutcome, PollError, PollErrorKind};

impl TestFolder {
    fn open(&self) -> SharedQueue {
        let options = SpoolOptions { bytes_max: 4 << 20, syncs: false };
        let (queue, _) = EventQueue::open(&self.0, options, Arc::default()).unwrap();
        let shared = SharedQueue::default();
        *shared.lock() = Some(queue);
        shared
    }
}

fn source(key: &str, sdk: &str) -> EventSource {
    EventSource { client_side_key: key.into(), sdk: sdk.into() }
}

/// Stores a post with these events.
fn store(queue: &SharedQueue, source: EventSource, events: &[String]) -> Result<(), EventRefusal> {
    let part = EventPart { count: events.len() as u32, events: events.join(",").into_bytes() };
    let mut queue = queue.lock();
    let queue = queue.as_mut().unwrap();
    queue.append(&EventPost { source, parts: vec![part] }, 1_800_000_000)?;
    queue.commit().unwrap();
    Ok(())
}

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| format!("{{\"event\":\"e{number}\"}}")).collect()
}

fn later() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

fn accepted() -> EventsOutcome {
    EventsOutcome::Accepted { rejected: BTreeMap::new() }
}

fn refused(status: u16) -> EventsOutcome {
    EventsOutcome::Refused { why: status.to_string(), status }
}

fn failed(status: u16) -> EventsOutcome {
    EventsOutcome::Failed(PollError::new(PollErrorKind::Status(status), "x"))
}

fn names(body: &[u8]) -> Vec<String> {
    let body: serde_json::Value = serde_json::from_slice(body).unwrap();
    let events = body["events"].as_array().unwrap();
    events.iter().map(|event| event["event"].as_str().unwrap().to_owned()).collect()
}

/// Runs a round; returns what upstream was sent: source, key, names.
fn run(
    queue: &SharedQueue,
    answer: impl Fn(&EventBatch, &[u8]) -> EventsOutcome,
) -> (ForwardResult, Vec<(String, String, Vec<String>)>) {
    let sent = RefCell::new(Vec::new());
    let result = forward_round(queue, later(), |batch, body| {
        let key = batch.source.client_side_key.to_string();
        sent.borrow_mut().push((key, batch.idempotency_key.clone(), names(body)));
        answer(batch, body)
    });
    (result, sent.into_inner())
}

fn queued(queue: &SharedQueue) -> u64 {
    queue.lock().as_ref().unwrap().metrics.queued.value()
}

#[test]
fn batches_have_one_source_and_a_bounded_size_and_sources_take_turns() {
    let folder = TestFolder::new("queue-turns");
    let queue = folder.open();
    let large: Vec<String> =
        (0..10).map(|_| format!("{{\"event\":\"x\",\"value\":\"{}\"}}", "v".repeat(20_000))).collect();
    (0..8).for_each(|_| store(&queue, source("flood", ""), &large).unwrap());
    store(&queue, source("a", "sdk/1"), &numbers(0..2)).unwrap();
    store(&queue, source("a", "sdk/2"), &numbers(2..3)).unwrap();
    store(&queue, source("a", "sdk/1"), &numbers(3..4)).unwrap();
    assert_eq!(queued(&queue), 84);
    let (result, sent) = run(&queue, |_, body| {
        assert!(body.len() <= limits::EVENT_BATCH_BYTES_MAX + 20, "{}", body.len());
        accepted()
    });
    let order: Vec<(&str, usize)> = sent.iter().map(|(key, _, names)| (key.as_str(), names.len())).collect();
    assert_eq!(order, [("a", 3), ("a", 1), ("flood", 40), ("flood", 40)]);
    assert_eq!(sent[0].2, ["e0", "e1", "e3"]);
    assert_eq!((result.sent, queued(&queue)), (84, 0));
    assert!(fs::read_dir(folder.0.join("events/0")).unwrap().count() == 1, "only the lock is left");
}

#[test]
fn a_failed_batch_is_sent_again_with_the_same_key_also_after_a_restart() {
    let folder = TestFolder::new("queue-again");
    let queue = folder.open();
    store(&queue, source("a", "sdk/1"), &numbers(0..2)).unwrap();
    let (result, first) = run(&queue, |_, _| failed(503));
    assert!(result.failure.is_some() && result.sent == 0 && !result.is_any_accepted);
    store(&queue, source("a", "sdk/1"), &numbers(2..3)).unwrap();
    let (_, second) = run(&queue, |_, _| failed(503));
    assert_eq!(first, second, "a batch is not changed");
    // As if the process was killed.
    drop(queue);
    let queue = folder.open();
    assert_eq!(queued(&queue), 3);
    let (result, third) = run(&queue, |_, _| accepted());
    assert_eq!(
        (third[0].clone(), third[1].2.clone(), result.sent),
        (first[0].clone(), vec!["e2".to_owned()], 3)
    );
    drop(queue);
    assert_eq!(queued(&folder.open()), 0);
}

#[test]
fn failing_sources_do_not_stop_the_others_until_there_are_several() {
    let folder = TestFolder::new("queue-failing");
    let queue = folder.open();
    for key in ["a", "b", "c"] {
        store(&queue, source(key, ""), &numbers(0..1)).unwrap();
    }
    let (result, sent) =
        run(&queue, |batch, _| if &*batch.source.client_side_key == "a" { failed(429) } else { accepted() });
    assert_eq!((sent.len(), result.sent, queued(&queue)), (3, 2, 1));
    for key in ["b", "c", "d", "e"] {
        store(&queue, source(key, ""), &numbers(0..1)).unwrap();
    }
    let (result, sent) = run(&queue, |_, _| failed(503));
    assert_eq!((sent.len(), result.sent, queued(&queue)), (3, 0, 5));
}

#[test]
fn retry_after_delays_a_source() {
    let folder = TestFolder::new("queue-retry-after");
    let queue = folder.open();
    store(&queue, source("a", ""), &numbers(0..1)).unwrap();
    let wait = |_: &EventBatch, _: &[u8]| {
        let failure = PollError::new(PollErrorKind::Status(429), "x");
        EventsOutcome::Failed(PollError { retry_after: Some(Duration::from_secs(60)), ..failure })
    };
    assert_eq!(run(&queue, wait).1.len(), 1);
    assert_eq!(run(&queue, wait).1.len(), 0);
    assert_eq!(queued(&queue), 1);
}

#[test]
fn a_refused_batch_is_divided_down_to_the_event_that_is_the_reason() {
    let folder = TestFolder::new("queue-divided");
    let queue = folder.open();
    (0..5).for_each(|post| store(&queue, source("a", ""), &numbers(post * 20..post * 20 + 20)).unwrap());
    let has_bad = |body: &[u8]| names(body).iter().any(|name| name == "e37");
    let (result, sent) = run(&queue, |_, body| if has_bad(body) { refused(422) } else { accepted() });
    assert_eq!((result.sent, &result.lost[..], queued(&queue)), (99, &[(EventLoss::Refused, 1)][..], 0));
    assert!(sent.len() < 20, "{}", sent.len());
    let keys: HashSet<&String> = sent.iter().map(|(_, key, _)| key).collect();
    assert_eq!(keys.len(), sent.len(), "each part has its own key");
    // By its size: nothing is lost.
    store(&queue, source("a", ""), &numbers(0..100)).unwrap();
    let (result, _) = run(&queue, |_, body| if names(body).len() > 10 { refused(413) } else { accepted() });
    assert_eq!((result.sent, result.lost.len(), result.divided), (100, 0, 15));
    store(&queue, source("a", ""), &numbers(0..1)).unwrap();
    assert_eq!(run(&queue, |_, _| refused(413)).0.lost, [(EventLoss::TooLarge, 1)]);
}

#[test]
fn other_refusals_lose_the_batch_without_dividing_it() {
    let folder = TestFolder::new("queue-refused");
    let queue = folder.open();
    store(&queue, source("a", ""), &numbers(0..7)).unwrap();
    let (result, sent) = run(&queue, |_, _| refused(403));
    assert_eq!((result.lost, sent.len(), queued(&queue)), (vec![(EventLoss::Refused, 7)], 1, 0));
}

#[test]
fn divisions_are_bounded() {
    let folder = TestFolder::new("queue-divisions");
    let queue = folder.open();
    store(&queue, source("a", ""), &numbers(0..2000)).unwrap();
    let (result, sent) = run(&queue, |_, _| refused(400));
    let lost: u64 = result.lost.iter().map(|(_, count)| count).sum();
    assert_eq!((lost, queued(&queue)), (2000, 0));
    assert!(sent.len() <= 3 * limits::DIVISIONS_MAX as usize, "{}", sent.len());
}

#[test]
fn an_event_that_upstream_fails_on_is_found_but_an_outage_loses_nothing() {
    let folder = TestFolder::new("queue-faulty");
    let queue = folder.open();
    store(&queue, source("a", ""), &numbers(0..50)).unwrap();
    for _ in 0..10 {
        let (result, _) = run(&queue, |_, _| failed(500));
        assert_eq!((result.divided, result.lost.len()), (0, 0));
    }
    let (mut sent, mut lost, mut rounds) = (0, 0, 0);
    while queued(&queue) > 0 {
        store(&queue, source("b", ""), &numbers(0..1)).unwrap();
        let has_bad = |body: &[u8]| names(body).iter().any(|name| name == "e37");
        let (result, _) = run(&queue, |_, body| if has_bad(body) { failed(500) } else { accepted() });
        (sent, lost, rounds) =
            (sent + result.sent, lost + result.lost.iter().map(|(_, count)| count).sum::<u64>(), rounds + 1);
        assert!(rounds < 30);
    }
    assert_eq!((sent, lost), (49 + rounds, 1));
}

#[test]
fn a_division_that_a_kill_interrupted_repeats_no_event() {
    let segment_of = |folder: &TestFolder| folder.0.join("events/0/0000000000000001.segment");
    let place = |bytes: &[u8], number: u64| {
        let header = |at: &usize| bytes[*at..].starts_with(b"\xffEP\x01") && bytes[*at + 8] == number as u8;
        (0..bytes.len()).step_by(8).find(header).unwrap()
    };
    // What is on disk, and the events of the batches after a restart.
    for (is_marked, second_bytes, expected) in [
        (true, usize::MAX, vec!["e0 e1", "e2"]),
        (false, usize::MAX, vec!["e0 e1", "e2"]),
        (false, 40, vec!["e0 e1 e2"]),
        (false, 0, vec!["e0 e1 e2"]),
    ] {
        let folder = TestFolder::new("queue-interrupted");
        let queue = folder.open();
        store(&queue, source("a", ""), &numbers(0..3)).unwrap();
        let (result, sent) =
            run(&queue, |_, body| if names(body).len() == 3 { refused(413) } else { failed(503) });
        assert_eq!((result.divided, sent.len()), (1, 2));
        drop(queue);
        let mut bytes = fs::read(segment_of(&folder)).unwrap();
        let (divided, second) = (place(&bytes, 1), place(&bytes, 3));
        if !is_marked {
            bytes[divided + 16..divided + 24].fill(0);
        }
        bytes.truncate(second.saturating_add(second_bytes).min(bytes.len()));
        fs::write(segment_of(&folder), &bytes).unwrap();

        let queue = folder.open();
        assert_eq!(queued(&queue), 3, "{is_marked} {second_bytes}");
        let (_, sent) = run(&queue, |_, _| failed(503));
        drop(queue);
        // Once more: what was repeated is removed from the disk too.
        let queue = folder.open();
        let (result, again) = run(&queue, |_, _| accepted());
        assert_eq!(again[0], sent[0], "a batch is not changed");
        let mut batches: Vec<String> = again.iter().map(|(_, _, names)| names.join(" ")).collect();
        batches.sort();
        assert_eq!((batches.join(", "), result.sent), (expected.join(", "), 3));
    }
}

#[test]
fn a_record_of_an_adopted_spool_is_divided_in_its_own_spool() {
    let folder = TestFolder::new("queue-adopted-halves");
    let first = folder.open();
    let second = folder.open();
    store(&first, source("a", ""), &numbers(0..2)).unwrap();
    drop(first);
    assert!(second.lock().as_mut().unwrap().adopt().unwrap().is_some());
    let (result, _) = run(&second, |_, body| if names(body).len() == 2 { refused(413) } else { failed(503) });
    assert_eq!(result.divided, 1);
    drop(second);
    let queue = folder.open();
    assert_eq!(queued(&queue), 2, "the first process's spool has both halves");
    let (result, sent) = run(&queue, |_, _| accepted());
    assert_eq!((result.sent, sent.len()), (2, 2));
}

#[test]
fn a_damaged_record_costs_its_events_only() {
    let folder = TestFolder::new("queue-damage");
    let queue = folder.open();
    (0..3).for_each(|post| store(&queue, source("a", ""), &numbers(post * 2..post * 2 + 2)).unwrap());
    let segment = folder.0.join("events/0/0000000000000001.segment");
    let mut bytes = fs::read(&segment).unwrap();
    let at = bytes.windows(2).position(|window| window == b"e2").unwrap();
    bytes[at] ^= 1;
    fs::write(&segment, &bytes).unwrap();
    let (result, sent) = run(&queue, |_, _| accepted());
    assert_eq!(
        (sent[0].2.clone(), result.sent),
        (vec!["e0".to_owned(), "e1".into(), "e4".into(), "e5".into()], 4)
    );
    assert_eq!(queue.lock().as_ref().unwrap().metrics.lost_of(EventLoss::Damaged as usize), 2);
}

#[test]
fn too_many_sdks_share_a_source() {
    let folder = TestFolder::new("queue-sdks");
    let queue = folder.open();
    (0..60).for_each(|sdk| store(&queue, source("a", &format!("sdk/{sdk}")), &numbers(0..1)).unwrap());
    store(&queue, source("b", "sdk/x"), &numbers(0..1)).unwrap();
    let (result, sent) = run(&queue, |_, _| accepted());
    assert_eq!(result.sent, 61);
    assert_eq!(sent.len(), limits::EVENT_SDKS_MAX + 2, "{sent:?}");
}

#[test]
fn a_full_spool_refuses_a_post_as_a_whole() {
    let folder = TestFolder::new("queue-whole");
    let queue = folder.open();
    let event = format!("{{\"event\":\"x\",\"value\":\"{}\"}}", "v".repeat(100_000));
    let part = || EventPart { count: 1, events: event.clone().into_bytes() };
    let post = EventPost { source: source("a", ""), parts: (0..10).map(|_| part()).collect() };
    let mut count = 0;
    while queue.lock().as_mut().unwrap().append(&post, 1).is_ok() {
        queue.lock().as_mut().unwrap().commit().unwrap();
        count += 10;
    }
    assert_eq!(queued(&queue), count);
    assert_eq!(count, 40, "no part of the last post");
    // A full spool is forwarded, and divided where it must be.
    let (result, _) = run(&queue, |_, body| if names(body).len() > 1 { refused(413) } else { accepted() });
    assert_eq!((result.sent, queued(&queue)), (40, 0));
}

#[test]
fn the_spool_of_a_process_that_ended_is_forwarded_too() {
    let folder = TestFolder::new("queue-adopted");
    let first = folder.open();
    let second = folder.open();
    store(&first, source("a", ""), &numbers(0..2)).unwrap();
    let (_, sent) = run(&first, |_, _| failed(503));
    store(&second, source("a", ""), &numbers(2..4)).unwrap();
    assert!(second.lock().as_mut().unwrap().adopt().unwrap().is_none());
    drop(first);
    assert!(second.lock().as_mut().unwrap().adopt().unwrap().is_some());
    let (result, again) = run(&second, |_, _| accepted());
    assert_eq!((result.sent, again.len()), (4, 2));
    assert!(again.contains(&sent[0]), "with its key: {again:?}");
    assert_eq!(second.lock().as_ref().unwrap().spools.len(), 1, "closed when it is empty");
}
