//! One round of forwarding: batches are sent one after the other until none is due.
//!
//! A batch that upstream cannot accept now stays in the queue, and its source waits for the next round. A
//! batch that upstream refuses for its size (413) or its content (400, 422) is divided, so that only the
//! event that is the reason is lost; any other refusal loses the batch. A batch that fails with 500
//! repeatedly while others are accepted is divided too.
use std::collections::{BTreeMap, HashSet};
use std::time::Instant;

use crate::events::{EventLoss, EventSource};
use crate::forwarding::batch::EventBatch;
use crate::forwarding::queue::{EventQueue, SharedQueue};
use crate::upstream::{EventsOutcome, PollError, PollErrorKind};
use crate::{clock, limits};

/// Sources whose batch failed in a round. Beyond: all others wait for the next round.
const FAILING_SOURCES_MAX: usize = 3;

/// The result of a round.
#[derive(Debug)]
pub struct ForwardResult {
    pub started: Instant,
    /// Events that upstream accepted.
    pub sent: u64,
    /// Whether any batch was accepted.
    pub is_any_accepted: bool,
    /// Events that upstream rejected in accepted batches, by its reason.
    pub rejected: BTreeMap<String, u64>,
    /// Events that were given up.
    pub lost: Vec<(EventLoss, u64)>,
    /// The last reason for a loss.
    pub refusal: Option<String>,
    /// Number of divisions.
    pub divided: u64,
    pub failure: Option<PollError>,
    /// The spool cannot be read or written.
    pub disk_error: Option<String>,
    /// The time was over before the queue was empty.
    pub is_cut: bool,
}

impl ForwardResult {
    fn new(started: Instant) -> Self {
        Self {
            started,
            sent: 0,
            is_any_accepted: false,
            rejected: BTreeMap::new(),
            lost: Vec::new(),
            refusal: None,
            divided: 0,
            failure: None,
            disk_error: None,
            is_cut: false,
        }
    }

    /// A round that ended with a panic. What it had taken from the queue is sent after a restart.
    pub fn panicked(started: Instant) -> Self {
        let message = "forwarding panicked, which is a bug in this proxy";
        Self { failure: Some(PollError::new(PollErrorKind::Internal, message)), ..Self::new(started) }
    }
}

struct ForwardRound<'a> {
    queue: &'a SharedQueue,
    result: ForwardResult,
    /// Sources that wait for the next round.
    skipped: HashSet<EventSource>,
    /// Divisions by environment.
    divisions: BTreeMap<Box<str>, u32>,
    /// Batches that were answered 500.
    faulty: Vec<(EventSource, String)>,
}

/// Runs a round: calls `send` with each batch and its body. No batch is sent after `until`.
pub fn forward_round(
    queue: &SharedQueue,
    until: Instant,
    send: impl Fn(&EventBatch, &[u8]) -> EventsOutcome,
) -> ForwardResult {
    let mut round = ForwardRound {
        queue,
        result: ForwardResult::new(clock::instant()),
        skipped: HashSet::new(),
        divisions: BTreeMap::new(),
        faulty: Vec::new(),
    };
    while round.skipped.len() < FAILING_SOURCES_MAX && round.result.disk_error.is_none() {
        let now = clock::instant();
        let next = queue.lock().as_mut().map_or(Ok(None), |queue| queue.next_batch(now, &round.skipped));
        match next {
            Ok(Some((batch, _))) if now >= until => {
                round.result.is_cut = true;
                round.with_queue(|queue| queue.keep(batch, None));
                break;
            }
            Ok(Some((batch, body))) => {
                let outcome = send(&batch, &body);
                round.apply(batch, outcome);
            }
            Ok(None) => break,
            Err(error) => round.result.disk_error = Some(error.to_string()),
        }
    }
    round.divide_faulty();
    round.result
}

impl ForwardRound<'_> {
    fn with_queue<T>(&self, apply: impl FnOnce(&mut EventQueue) -> T) -> Option<T> {
        self.queue.lock().as_mut().map(apply)
    }

    fn apply(&mut self, batch: EventBatch, outcome: EventsOutcome) {
        match outcome {
            EventsOutcome::Accepted { rejected } => {
                self.result.is_any_accepted = true;
                self.result.sent += batch.count().saturating_sub(rejected.values().sum());
                for (reason, count) in rejected {
                    *self.result.rejected.entry(reason).or_default() += count;
                }
                self.with_queue(|queue| queue.remove(&batch));
            }
            EventsOutcome::Refused { why, status } => match status {
                400 | 413 | 422 => self.divide(
                    batch,
                    if status == 413 { EventLoss::TooLarge } else { EventLoss::Refused },
                    why,
                ),
                _ => self.lose(&batch, EventLoss::Refused, why),
            },
            EventsOutcome::Failed(failure) => {
                if failure.kind == PollErrorKind::Status(500) {
                    self.faulty.push((batch.source.clone(), batch.idempotency_key.clone()));
                }
                let wait = failure.retry_after.map(|wait| wait.min(limits::RETRY_AFTER_MAX));
                let retry_at = wait.and_then(|wait| clock::instant().checked_add(wait));
                self.skipped.insert(batch.source.clone());
                self.with_queue(|queue| queue.keep(batch, retry_at));
                self.result.failure = Some(failure);
            }
        }
    }

    fn lose(&mut self, batch: &EventBatch, loss: EventLoss, why: String) {
        self.result.lost.push((loss, batch.count()));
        self.result.refusal = Some(why);
        self.with_queue(|queue| queue.remove(batch));
    }

    /// Divides a batch. A single event is lost, and so is a batch beyond `limits::DIVISIONS_MAX`.
    fn divide(&mut self, batch: EventBatch, loss: EventLoss, why: String) {
        let divisions = self.divisions.entry(batch.source.client_side_key.clone()).or_default();
        *divisions += 1;
        // If upstream refuses everything, no single event is the reason.
        if *divisions > limits::DIVISIONS_MAX {
            return self.lose(&batch, EventLoss::Refused, why);
        }
        match self.with_queue(|queue| queue.divide(batch.clone())) {
            Some(Ok(true)) => self.result.divided += 1,
            Some(Ok(false)) => self.lose(&batch, loss, why),
            Some(Err(error)) => self.result.disk_error = Some(error.to_string()),
            None => {}
        }
    }

    /// In an outage nothing is accepted, and nothing is divided.
    fn divide_faulty(&mut self) {
        if !self.result.is_any_accepted {
            return;
        }
        for (source, key) in std::mem::take(&mut self.faulty) {
            if let Some(Some(batch)) = self.with_queue(|queue| queue.add_fault(&source, &key)) {
                self.divide(batch, EventLoss::Faulty, "upstream answered 500 to a single event".to_owned());
            }
        }
    }
}
