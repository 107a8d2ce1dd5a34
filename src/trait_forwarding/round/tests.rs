use std::cell::RefCell;
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::Value;

use super::*;
use crate::engine::evaluate::TraitValue;
use crate::trait_forwarding::queue::TraitQueue;

fn queue(identities: i64) -> SharedTraitQueue {
    let mut queue = TraitQueue::new(1 << 20, false, Arc::default());
    for number in 0..identities {
        let identifier = format!("i{number:03}");
        queue.add("env", &identifier, "k", Some(TraitValue::Int(number)), SystemTime::now());
    }
    SharedTraitQueue::new(queue)
}

fn status(status: u16) -> PollError {
    PollError::new(PollErrorKind::Status(status), format!("answered {status}"))
}

fn refused() -> TraitsOutcome {
    TraitsOutcome::Refused { why: "answered 400".into(), may_divide: true }
}

/// Runs a round against `answer`, which gets the identifiers of a bulk; returns the bodies.
fn run(
    queue: &SharedTraitQueue,
    memory: &mut RoundMemory,
    answer: impl Fn(TraitRequest, &[String]) -> TraitsOutcome,
) -> (TraitRoundResult, Vec<(TraitRequest, String, String)>) {
    let sent = RefCell::new(Vec::new());
    let until = Instant::now() + Duration::from_secs(600);
    let keys = || Destination::Keys(vec![Secret::new("ser.1"), Secret::new("ser.2")]);
    let result = forward_round(
        queue,
        memory,
        until,
        |_| keys(),
        |request, key, body, _| {
            let text = String::from_utf8(body.to_vec()).expect("text");
            sent.borrow_mut().push((request, key.expose().to_owned(), text.clone()));
            let items: Value = serde_json::from_str(&text).expect("JSON");
            let items = items.as_array().cloned().unwrap_or_else(|| vec![items]);
            let name = |item: &Value| item["identity"]["identifier"].as_str().unwrap_or_default().to_owned();
            answer(request, &items.iter().map(name).collect::<Vec<_>>())
        },
    );
    (result, sent.into_inner())
}

#[test]
fn batches_are_sent_until_nothing_is_left() {
    let (queue, mut memory) = (queue(250), RoundMemory::default());
    queue.lock().add("env", "i000", "del", None, SystemTime::now());
    let (result, sent) = run(&queue, &mut memory, |_, _| TraitsOutcome::Accepted);
    assert_eq!((result.sent, sent.len(), queue.lock().size().0), (251, 3, 0));
    assert!(sent[0].2.starts_with(
        r#"[{"identity":{"identifier":"i000"},"trait_key":"del","trait_value":null},{"identity":{"identifier":"i000"},"trait_key":"k","trait_value":0},"#
    ));
    assert_eq!(sent[0].1, "ser.1");
}

#[test]
fn a_failure_keeps_everything_and_a_refused_key_is_followed_by_another() {
    let (queue, mut memory) = (queue(150), RoundMemory::default());
    for (code, keys) in [(503, "ser.1"), (403, "ser.1"), (403, "ser.2"), (429, "ser.1")] {
        let (result, sent) = run(&queue, &mut memory, |_, _| TraitsOutcome::Failed(status(code)));
        assert_eq!((result.sent, sent.len(), &*sent[0].1), (0, 1, keys));
        assert!(result.failure.is_some() && result.lost.is_empty());
    }
    assert_eq!(queue.lock().size().0, 150);
}

#[test]
fn a_refused_batch_is_divided_down_to_the_trait_that_is_the_reason() {
    let (queue, mut memory) = (queue(100), RoundMemory::default());
    let (result, sent) = run(&queue, &mut memory, |_, names| {
        if names.contains(&"i037".to_owned()) { refused() } else { TraitsOutcome::Accepted }
    });
    assert_eq!((result.sent, &result.lost[..]), (99, &[(TraitForwardLoss::Refused, 1)][..]));
    assert!(sent.len() < 20 && queue.lock().size().0 == 0, "{}", sent.len());
    let other = |_, _: &[String]| TraitsOutcome::Refused { why: "answered 410".into(), may_divide: false };
    let (queue, mut memory) = (self::queue(3), RoundMemory::default());
    let (result, sent) = run(&queue, &mut memory, other);
    assert_eq!((sent.len(), &result.lost[..]), (1, &[(TraitForwardLoss::Refused, 3)][..]));
}

#[test]
fn a_trait_that_upstream_fails_on_is_found_but_an_outage_loses_nothing() {
    let (queue, mut memory) = (queue(100), RoundMemory::default());
    let poison = |_, names: &[String]| match names.contains(&"i061".to_owned()) {
        true => TraitsOutcome::Failed(status(500)),
        false => TraitsOutcome::Accepted,
    };
    for _ in 0..2 {
        let (result, sent) = run(&queue, &mut memory, poison);
        assert_eq!((result.sent, sent.len()), (0, 1));
    }
    let (result, _) = run(&queue, &mut memory, poison);
    assert_eq!((result.sent, &result.lost[..]), (99, &[(TraitForwardLoss::Faulty, 1)][..]));
    assert_eq!(queue.lock().size().0, 0);
    let (queue, mut memory) = (self::queue(100), RoundMemory::default());
    for _ in 0..6 {
        let (result, sent) = run(&queue, &mut memory, |_, _| TraitsOutcome::Failed(status(500)));
        assert!(result.lost.is_empty() && sent.len() < 40, "{}", sent.len());
    }
    assert_eq!(queue.lock().size().0, 100);
}

#[test]
fn without_the_bulk_route_traits_are_sent_one_by_one() {
    let (queue, mut memory) = (queue(2), RoundMemory::default());
    queue.lock().add("env", "i001", "del", None, SystemTime::now());
    let answer = |request, _: &[String]| match request {
        TraitRequest::Bulk => TraitsOutcome::NotSupported(status(404)),
        _ => TraitsOutcome::Accepted,
    };
    let (result, sent) = run(&queue, &mut memory, answer);
    assert!(result.sent == 3 && result.has_begun_singly);
    let bodies: Vec<_> = sent[1..].iter().map(|(request, _, body)| (*request, &**body)).collect();
    assert_eq!(
        bodies,
        [
            (TraitRequest::Set, r#"{"identity":{"identifier":"i000"},"trait_key":"k","trait_value":0}"#),
            (
                TraitRequest::Delete,
                r#"{"identifier":"i001","traits":[{"trait_key":"del","trait_value":null}]}"#
            ),
            (TraitRequest::Set, r#"{"identity":{"identifier":"i001"},"trait_key":"k","trait_value":1}"#),
        ]
    );
    queue.lock().add("env", "i001", "k", Some(TraitValue::Bool(true)), SystemTime::now());
    let (result, sent) = run(&queue, &mut memory, answer);
    assert_eq!((result.sent, sent.len(), sent[0].0), (1, 1, TraitRequest::Set), "remembered");
    queue.lock().add("env", "i001", "k", Some(TraitValue::Bool(false)), SystemTime::now());
    let (result, _) = run(&queue, &mut memory, |_, _| TraitsOutcome::NotSupported(status(404)));
    assert!(result.failure.is_some() && queue.lock().size().0 == 1);
}

#[test]
fn what_upstream_does_not_serve_is_dropped_and_what_is_not_known_waits() {
    let queue = queue(3);
    let (mut memory, until) = (RoundMemory::default(), Instant::now() + Duration::from_secs(600));
    let send = |_: TraitRequest, _: &Secret, _: &[u8], _: Duration| TraitsOutcome::Accepted;
    let result = forward_round(&queue, &mut memory, until, |_| Destination::Unknown, send);
    assert!(result.lost.is_empty() && queue.lock().size().0 == 3);
    let result = forward_round(&queue, &mut memory, until, |_| Destination::NotServed, send);
    assert_eq!((&result.lost[..], queue.lock().size().0), (&[(TraitForwardLoss::NotServed, 3)][..], 0));
}

#[test]
fn a_failing_environment_does_not_stop_the_others_and_each_has_its_own_memory() {
    let queue = queue(3);
    for environment in ["a-first", "z-last"] {
        queue.lock().add(environment, "u", "k", Some(TraitValue::Int(1)), SystemTime::now());
    }
    let mut memory = RoundMemory::default();
    let until = Instant::now() + Duration::from_secs(600);
    let keys = |environment: &str| {
        Destination::Keys(["1", "2"].map(|key| Secret::new(format!("ser.{environment}.{key}"))).into())
    };
    let sent = RefCell::new(Vec::new());
    let round = |memory: &mut RoundMemory| {
        forward_round(&queue, memory, until, keys, |_, key, _, _| {
            sent.borrow_mut().push(key.expose().to_owned());
            if key.expose().contains("env") {
                TraitsOutcome::Accepted
            } else {
                TraitsOutcome::Failed(status(403))
            }
        })
    };
    let result = round(&mut memory);
    assert!(result.sent == 3 && result.failure.is_some());
    round(&mut memory);
    assert_eq!(
        sent.take(),
        ["ser.a-first.1", "ser.env.1", "ser.z-last.1", "ser.a-first.2", "ser.z-last.2"],
        "both try their other key"
    );
}

#[test]
fn retry_after_is_honoured_for_a_minute_at_most() {
    let (queue, mut memory) = (queue(1), RoundMemory::default());
    let (start, wall) = (Instant::now(), SystemTime::now());
    let at = |seconds| clock::fix(start + Duration::from_secs(seconds), wall, 1);
    at(0);
    let wait = Some(Duration::from_secs(7200));
    let failed = || TraitsOutcome::Failed(PollError { retry_after: wait, ..status(429) });
    let (first, _) = run(&queue, &mut memory, |_, _| failed());
    assert!(first.failure.is_some());
    at(59);
    assert_eq!(run(&queue, &mut memory, |_, _| TraitsOutcome::Accepted).0.sent, 0);
    at(61);
    assert_eq!(run(&queue, &mut memory, |_, _| TraitsOutcome::Accepted).0.sent, 1);
    clock::release();
}
