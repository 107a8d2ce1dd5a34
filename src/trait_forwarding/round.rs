//! One round of forwarding: batches of each environment are sent until nothing is left that was there when
//! the round began.
//!
//! A batch that upstream cannot accept now stays in the queue, and its environment waits for the next round.
//! One that upstream refuses for its content is divided, so that only the trait that is the reason is lost.
//! So is one that upstream answers 500 in several rounds: core stores a part of such a batch.
use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::config::Secret;
use crate::json::write;
use crate::metrics::TraitForwardLoss;
use crate::trait_forwarding::item::DELETION;
use crate::trait_forwarding::queue::{BatchItem, SharedTraitQueue};
use crate::upstream::{PollError, PollErrorKind, TraitRequest, TraitsOutcome};
use crate::{clock, limits};

/// Divisions of an environment's batches in a round because of answers of 500: enough to find one trait among
/// those of a batch, and few in an outage.
const FAULTY_DIVISIONS_MAX: u32 = 16;

/// Where the traits of an environment go.
#[derive(Clone, Debug)]
pub enum Destination {
    /// Upstream, with one of these server-side keys.
    Keys(Vec<Secret>),
    /// It is not known yet: it waits.
    Unknown,
    /// Upstream does not serve it.
    NotServed,
}

/// What is known of environments between rounds.
#[derive(Debug, Default)]
pub struct RoundMemory {
    environments: HashMap<Box<str>, EnvironmentMemory>,
    /// Upstream has no `traits/bulk/`.
    is_single: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct EnvironmentMemory {
    /// How often upstream has refused a key; selects the next one.
    keys_refused: usize,
    /// Rounds in succession that ended with an answer of 500.
    faults: u32,
    retry_at: Option<Instant>,
}

impl RoundMemory {
    /// Upstream has changed: it may have the route, and accept the keys.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

/// The result of a round.
#[derive(Debug)]
pub struct TraitRoundResult {
    pub started: Instant,
    /// Traits that upstream accepted.
    pub sent: u64,
    pub lost: Vec<(TraitForwardLoss, u64)>,
    /// The last reason for a loss.
    pub refusal: Option<String>,
    pub failure: Option<PollError>,
    pub has_begun_singly: bool,
}

impl TraitRoundResult {
    /// A round that has sent nothing, because of this.
    pub fn failed(message: String) -> Self {
        Self { failure: Some(PollError::new(PollErrorKind::Internal, message)), ..Self::empty() }
    }

    /// A round that has sent nothing.
    pub fn empty() -> Self {
        Self {
            started: clock::instant(),
            sent: 0,
            lost: Vec::new(),
            refusal: None,
            failure: None,
            has_begun_singly: false,
        }
    }
}

/// What a batch came to.
enum BatchStep {
    Done,
    /// The environment waits for the next round.
    Wait,
}

struct TraitRound<'a, S> {
    queue: &'a SharedTraitQueue,
    memory: &'a mut RoundMemory,
    send: S,
    until: Instant,
    result: TraitRoundResult,
    /// Of the current environment.
    key: Secret,
    divisions: u32,
    failure: Option<PollError>,
    /// Single traits of the current environment that were answered 500.
    faulty: Vec<BatchItem>,
    has_accepted: bool,
}

/// Runs a round. `send` sends a body within a time. No request begins after `until`.
pub fn forward_round(
    queue: &SharedTraitQueue,
    memory: &mut RoundMemory,
    until: Instant,
    destination: impl Fn(&str) -> Destination,
    send: impl Fn(TraitRequest, &Secret, &[u8], Duration) -> TraitsOutcome,
) -> TraitRoundResult {
    let result = TraitRoundResult::empty();
    let (environments, version) = {
        let queue = queue.lock();
        (queue.environments(), queue.version())
    };
    let key = Secret::new(String::new());
    let (divisions, failure, faulty, has_accepted) = (0, None, Vec::new(), false);
    let mut round =
        TraitRound { queue, memory, send, until, result, key, divisions, failure, faulty, has_accepted };
    for environment in environments {
        match destination(&environment) {
            Destination::Unknown => {}
            Destination::NotServed => {
                let count = round.queue.lock().drop_environment(&environment);
                round.result.lost.push((TraitForwardLoss::NotServed, count));
            }
            Destination::Keys(keys) => round.environment(&environment, &keys, version),
        }
    }
    round.result
}

impl<S: Fn(TraitRequest, &Secret, &[u8], Duration) -> TraitsOutcome> TraitRound<'_, S> {
    fn environment(&mut self, environment: &str, keys: &[Secret], version: u64) {
        let before = self.memory.environments.get(environment).copied().unwrap_or_default();
        let Some(key) = keys.get(before.keys_refused.checked_rem(keys.len()).unwrap_or(0)) else { return };
        if before.retry_at.is_some_and(|at| at > clock::instant()) {
            return;
        }
        self.key = key.clone();
        (self.divisions, self.has_accepted) = (0, false);
        self.faulty.clear();
        let may_divide_faulty = before.faults >= limits::EVENT_FAULTS_MAX - 1;
        loop {
            let skipped = &self.faulty;
            let batch = self.queue.lock().batch(environment, version, |item| !skipped.contains(item));
            if batch.is_empty() || clock::instant() >= self.until {
                break;
            }
            if matches!(self.send(environment, &batch, may_divide_faulty), BatchStep::Wait) {
                break;
            }
        }
        self.finish_environment(environment, before);
    }

    /// Updates what is known of the environment. Single traits that fail while others are accepted are lost.
    fn finish_environment(&mut self, environment: &str, before: EnvironmentMemory) {
        let faulty = std::mem::take(&mut self.faulty);
        if self.has_accepted && !faulty.is_empty() {
            self.lose(
                environment,
                &faulty,
                TraitForwardLoss::Faulty,
                "upstream answered 500 to a single trait",
            );
        }
        let failure = self.failure.take();
        let kind = failure.as_ref().map(|failure| failure.kind);
        let is_key_refused = matches!(kind, Some(PollErrorKind::Status(401 | 403)));
        let wait = failure.as_ref().and_then(|failure| failure.retry_after);
        let retry_at = wait.map(|wait| clock::instant() + wait.min(limits::RETRY_AFTER_DEFAULT_MAX));
        let after = EnvironmentMemory {
            keys_refused: before.keys_refused + usize::from(is_key_refused),
            faults: if kind == Some(PollErrorKind::Status(500)) { before.faults + 1 } else { 0 },
            retry_at,
        };
        self.memory.environments.insert(environment.into(), after);
        if failure.is_some() {
            self.result.failure = failure;
        }
    }

    fn send(&mut self, environment: &str, batch: &[BatchItem], may_divide_faulty: bool) -> BatchStep {
        let outcome = match self.memory.is_single {
            true => return self.send_singly(environment, batch),
            false => self.request(TraitRequest::Bulk, &bulk_body(batch)),
        };
        match outcome {
            TraitsOutcome::NotSupported(_) => {
                (self.memory.is_single, self.result.has_begun_singly) = (true, true);
                self.send_singly(environment, batch)
            }
            TraitsOutcome::Failed(error)
                if may_divide_faulty
                    && error.kind == PollErrorKind::Status(500)
                    && self.divisions < FAULTY_DIVISIONS_MAX =>
            {
                if let [item] = batch {
                    self.faulty.push(item.clone());
                    self.failure = Some(error);
                    return BatchStep::Done;
                }
                self.halves(environment, batch, may_divide_faulty)
            }
            TraitsOutcome::Refused { may_divide: true, .. } if batch.len() > 1 && self.may_divide() => {
                self.halves(environment, batch, may_divide_faulty)
            }
            outcome => self.apply(environment, batch, outcome),
        }
    }

    fn may_divide(&self) -> bool {
        self.divisions < limits::DIVISIONS_MAX
    }

    fn halves(&mut self, environment: &str, batch: &[BatchItem], may_divide_faulty: bool) -> BatchStep {
        self.divisions += 1;
        let (first, second) = batch.split_at(batch.len().div_ceil(2));
        for half in [first, second] {
            if clock::instant() >= self.until {
                return BatchStep::Wait;
            }
            if matches!(self.send(environment, half, may_divide_faulty), BatchStep::Wait) {
                return BatchStep::Wait;
            }
        }
        BatchStep::Done
    }

    fn send_singly(&mut self, environment: &str, batch: &[BatchItem]) -> BatchStep {
        for item in batch {
            if clock::instant() >= self.until {
                return BatchStep::Wait;
            }
            let request = if &*item.json == DELETION { TraitRequest::Delete } else { TraitRequest::Set };
            let outcome = match self.request(request, &single_body(request, item)) {
                // Here it is the address that is wrong.
                TraitsOutcome::NotSupported(error) => TraitsOutcome::Failed(error),
                outcome => outcome,
            };
            if matches!(self.apply(environment, std::slice::from_ref(item), outcome), BatchStep::Wait) {
                return BatchStep::Wait;
            }
        }
        BatchStep::Done
    }

    fn request(&self, request: TraitRequest, body: &[u8]) -> TraitsOutcome {
        (self.send)(request, &self.key, body, self.until.saturating_duration_since(clock::instant()))
    }

    fn apply(&mut self, environment: &str, items: &[BatchItem], outcome: TraitsOutcome) -> BatchStep {
        match outcome {
            TraitsOutcome::Accepted => {
                self.has_accepted = true;
                self.result.sent += items.len() as u64;
                self.queue.lock().finish(environment, items);
                BatchStep::Done
            }
            TraitsOutcome::Refused { why, .. } => {
                self.lose(environment, items, TraitForwardLoss::Refused, &why);
                BatchStep::Done
            }
            TraitsOutcome::NotSupported(error) | TraitsOutcome::Failed(error) => {
                self.failure = Some(error);
                BatchStep::Wait
            }
        }
    }

    fn lose(&mut self, environment: &str, items: &[BatchItem], loss: TraitForwardLoss, why: &str) {
        self.result.lost.push((loss, items.len() as u64));
        self.result.refusal = Some(why.to_owned());
        self.queue.lock().finish(environment, items);
    }
}

fn bulk_body(batch: &[BatchItem]) -> Vec<u8> {
    let mut body = vec![b'['];
    for item in batch {
        if body.len() > 1 {
            body.push(b',');
        }
        append_item(item, &mut body);
    }
    body.push(b']');
    body
}

/// `{"identity":{"identifier":"i"},"trait_key":"k","trait_value":1}`
fn append_item(item: &BatchItem, body: &mut Vec<u8>) {
    body.extend_from_slice(b"{\"identity\":{\"identifier\":");
    write::string(&item.identifier, body);
    body.push(b'}');
    body.push(b',');
    append_trait(item, body);
    body.push(b'}');
}

fn append_trait(item: &BatchItem, body: &mut Vec<u8>) {
    body.extend_from_slice(b"\"trait_key\":");
    write::string(&item.key, body);
    body.extend_from_slice(b",\"trait_value\":");
    body.extend_from_slice(item.json.as_bytes());
}

fn single_body(request: TraitRequest, item: &BatchItem) -> Vec<u8> {
    let mut body = Vec::new();
    if request != TraitRequest::Delete {
        append_item(item, &mut body);
        return body;
    }
    body.extend_from_slice(b"{\"identifier\":");
    write::string(&item.identifier, &mut body);
    body.extend_from_slice(b",\"traits\":[{");
    append_trait(item, &mut body);
    body.extend_from_slice(b"}]}");
    body
}

#[cfg(test)]
mod tests;
