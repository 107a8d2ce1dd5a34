//! One round of uploads: each pending batch is sent once, and rejected batches are split.
//!
//! The order is round-robin over environments with the smallest batches first, so that a flood of one
//! environment or label does not delay the others. A batch is split in two if one row (400, 422) or the size
//! (413) may be the reason for its rejection, so that only the invalid row is lost; the number of splits is
//! bounded. A batch that fails with 500 repeatedly while others are accepted is split too.
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use crate::analytics::batch::{ReportKind, UploadBatch};
use crate::{clock, limits};

/// Rejected batches in a round in which none was accepted. Beyond: rejected batches are lost instead of
/// split, because no single row is the cause.
const REJECTIONS_MAX: u32 = 64;
/// Environments whose batch did not reach upstream in a round. Beyond: all other batches wait for the next
/// round.
const UNREACHABLE_MAX: usize = 3;
/// Responses of 500 to one batch, in rounds in which others were accepted. Then the batch is split; a single
/// row is lost.
const FAULTS_MAX: u32 = 3;
use crate::upstream::{PollError, PollErrorKind, PostOutcome};

/// A batch that upstream has not accepted yet.
#[derive(Clone, Debug)]
pub struct PendingBatch {
    pub batch: Arc<UploadBatch>,
    /// Failed attempts.
    pub failures: u32,
    /// Rounds in which upstream answered 500 to this batch and accepted others.
    pub faults: u32,
    /// The end of `Retry-After`.
    pub retry_at: Option<Instant>,
}

impl PendingBatch {
    pub fn new(batch: UploadBatch) -> Self {
        Self { batch: Arc::new(batch), failures: 0, faults: 0, retry_at: None }
    }
}

/// The result of a round.
#[derive(Debug)]
pub struct RoundResult {
    pub kind: ReportKind,
    pub started: Instant,
    /// To be uploaded again.
    pub kept: Vec<PendingBatch>,
    /// Accepted counts.
    pub sent: u64,
    /// Whether any batch was accepted.
    pub is_any_accepted: bool,
    /// Lost counts: upstream rejected them.
    pub lost: u64,
    /// The last reason for a loss.
    pub rejection: Option<String>,
    /// Number of splits.
    pub divided: u64,
    pub failure: Option<PollError>,
}

impl RoundResult {
    pub fn new(kind: ReportKind) -> Self {
        Self {
            kind,
            started: clock::instant(),
            kept: Vec::new(),
            sent: 0,
            is_any_accepted: false,
            lost: 0,
            rejection: None,
            divided: 0,
            failure: None,
        }
    }

    /// A round in which all batches are lost.
    pub fn lost(kind: ReportKind, waiting: &[PendingBatch], why: &str) -> Self {
        let lost = waiting.iter().map(|waiting| waiting.batch.count).sum();
        Self { lost, rejection: Some(why.into()), ..Self::new(kind) }
    }
}

/// The order of a round: the first batch of each environment, then the second of each, and so on. Within an
/// environment the batches that have not failed come first, in order of their size.
fn interleaved(mut waiting: Vec<PendingBatch>) -> VecDeque<PendingBatch> {
    waiting.sort_by_key(|one| (one.failures.min(1), one.batch.body.len()));
    let mut ranks: HashMap<String, usize> = HashMap::new();
    let mut keyed: Vec<(usize, PendingBatch)> = Vec::with_capacity(waiting.len());
    for one in waiting {
        let rank = ranks.entry(one.batch.client_side_key.clone()).or_default();
        keyed.push((*rank, one));
        *rank += 1;
    }
    keyed.sort_by_key(|(rank, _)| *rank);
    keyed.into_iter().map(|(_, one)| one).collect()
}

/// The state of a round.
struct Round {
    posted: RoundResult,
    queue: VecDeque<PendingBatch>,
    /// Environments of which a batch did not reach upstream: their other batches wait for the next round.
    unreachable: HashSet<String>,
    /// Splits by environment.
    splits: HashMap<String, u32>,
    rejections: u32,
    /// Indices in `posted.kept` of batches that were answered 500.
    faulty: Vec<usize>,
}

/// Runs a round: calls `send` for each batch in `waiting`. No upload starts after `until`.
pub fn run_round(
    kind: ReportKind,
    waiting: Vec<PendingBatch>,
    until: Instant,
    send: impl Fn(&UploadBatch) -> PostOutcome,
) -> RoundResult {
    let mut round = Round {
        posted: RoundResult::new(kind),
        queue: interleaved(waiting),
        unreachable: HashSet::new(),
        splits: HashMap::new(),
        rejections: 0,
        faulty: Vec::new(),
    };
    while let Some(waiting) = round.queue.pop_front() {
        let is_over = clock::instant() >= until;
        let is_unreachable = round.unreachable.len() >= UNREACHABLE_MAX
            || round.unreachable.contains(&waiting.batch.client_side_key);
        if is_over || is_unreachable {
            round.posted.kept.push(waiting);
            continue;
        }
        match send(&waiting.batch) {
            PostOutcome::Accepted => {
                round.posted.sent += waiting.batch.count;
                round.posted.is_any_accepted = true;
            }
            PostOutcome::Refused { why, may_divide } => round.rejected(&waiting, why, may_divide),
            PostOutcome::Failed(failure) => round.failed(waiting, failure),
        }
    }
    round.split_faulty();
    round.posted
}

impl Round {
    fn rejected(&mut self, waiting: &PendingBatch, why: String, may_divide: bool) {
        self.rejections += 1;
        // If upstream rejects everything, no single row is the cause.
        let are_all_rejected = !self.posted.is_any_accepted && self.rejections > REJECTIONS_MAX;
        let halves = if may_divide && !are_all_rejected { self.split(&waiting.batch) } else { None };
        match halves {
            Some(halves) => self.queue.extend(halves.map(PendingBatch::new)),
            None => self.lose(&waiting.batch, why),
        }
    }

    fn lose(&mut self, batch: &UploadBatch, why: String) {
        self.posted.lost += batch.count;
        self.posted.rejection = Some(why);
    }

    /// Splits a batch in two. `None` if it has a single row, or if its environment has reached
    /// `DIVISIONS_MAX`.
    fn split(&mut self, batch: &UploadBatch) -> Option<[UploadBatch; 2]> {
        let splits = self.splits.entry(batch.client_side_key.clone()).or_default();
        if *splits >= limits::DIVISIONS_MAX {
            return None;
        }
        let halves = batch.halves()?;
        *splits += 1;
        self.posted.divided += 1;
        Some(halves)
    }

    fn failed(&mut self, mut waiting: PendingBatch, failure: PollError) {
        match failure.kind {
            PollErrorKind::Status(500) => self.faulty.push(self.posted.kept.len()),
            PollErrorKind::Status(_) => {}
            _ => drop(self.unreachable.insert(waiting.batch.client_side_key.clone())),
        }
        waiting.failures = waiting.failures.saturating_add(1);
        let wait = failure.retry_after.map(|wait| wait.min(limits::RETRY_AFTER_MAX));
        waiting.retry_at = wait.and_then(|wait| clock::instant().checked_add(wait));
        self.posted.failure = Some(failure);
        self.posted.kept.push(waiting);
    }

    /// Splits batches that were answered 500 repeatedly: a row that upstream cannot store fails its whole
    /// upload. In an outage nothing is accepted, and nothing is split.
    fn split_faulty(&mut self) {
        if !self.posted.is_any_accepted {
            return;
        }
        for index in std::mem::take(&mut self.faulty) {
            self.posted.kept[index].faults += 1;
            if self.posted.kept[index].faults < FAULTS_MAX {
                continue;
            }
            let batch = Arc::clone(&self.posted.kept[index].batch);
            match self.split(&batch) {
                Some([first, second]) => {
                    let again = |batch| PendingBatch { faults: FAULTS_MAX - 1, ..PendingBatch::new(batch) };
                    self.posted.kept[index] = again(first);
                    self.posted.kept.push(again(second));
                }
                // A single row is lost. A larger batch is split in the next round if splits are used up in
                // this one.
                None if batch.halves().is_none() => {
                    self.posted.kept[index].batch = Arc::new(UploadBatch { count: 0, ..(*batch).clone() });
                    self.lose(&batch, "upstream answered 500 to a single row".to_owned());
                }
                None => {}
            }
        }
        self.posted.kept.retain(|waiting| waiting.batch.count > 0);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::time::Duration;

    use serde_json::Value;

    use super::*;
    use crate::counts::Labels;

    fn plain(key: &str, rows: usize) -> PendingBatch {
        let body: Vec<String> = (0..rows).map(|number| format!("\"f{number:05}\":1")).collect();
        let body = format!("{{{}}}", body.join(","));
        PendingBatch::new(UploadBatch::new(
            "analytics/flags/",
            key.into(),
            Labels::default(),
            body,
            rows as u64,
        ))
    }

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(3600)
    }

    fn rejected() -> PostOutcome {
        PostOutcome::Refused { why: "400".into(), may_divide: true }
    }

    fn failed(status: u16) -> PostOutcome {
        PostOutcome::Failed(PollError::new(PollErrorKind::Status(status), "x"))
    }

    fn has(batch: &UploadBatch, row: &str) -> bool {
        batch.body.contains(row)
    }

    #[test]
    fn loses_only_the_invalid_row() {
        let calls = RefCell::new(0);
        let posted = run_round(ReportKind::Analytics, vec![plain("a", 10_000)], later(), |batch| {
            *calls.borrow_mut() += 1;
            if has(batch, "\"f04321\"") { rejected() } else { PostOutcome::Accepted }
        });
        assert_eq!((posted.sent, posted.lost, posted.kept.len()), (9_999, 1, 0));
        assert!(*calls.borrow() <= 2 * 14 + 1, "{}", calls.borrow());
    }

    #[test]
    fn splits_a_batch_until_it_is_small_enough() {
        let posted = run_round(ReportKind::Analytics, vec![plain("a", 10_000)], later(), |batch| {
            if batch.body.len() > 10_000 { rejected() } else { PostOutcome::Accepted }
        });
        assert_eq!((posted.sent, posted.lost), (10_000, 0));
        assert_eq!(posted.divided, 15);
    }

    #[test]
    fn splits_are_bounded_per_environment() {
        let calls = RefCell::new(0);
        // Every row of "a" is invalid, and one of "b".
        let posted = run_round(
            ReportKind::Analytics,
            vec![plain("a", 10_000), plain("b", 100), plain("c", 1)],
            later(),
            |batch| {
                *calls.borrow_mut() += 1;
                let is_invalid = batch.client_side_key == "a"
                    || (batch.client_side_key == "b" && has(batch, "\"f00007\""));
                if is_invalid { rejected() } else { PostOutcome::Accepted }
            },
        );
        assert_eq!((posted.sent, posted.lost), (100, 10_001));
        assert!(*calls.borrow() <= 2 * limits::DIVISIONS_MAX + 20, "{}", calls.borrow());
        let calls = RefCell::new(0);
        let posted = run_round(
            ReportKind::Analytics,
            (0..100).map(|n| plain(&n.to_string(), 100)).collect(),
            later(),
            |_| {
                *calls.borrow_mut() += 1;
                rejected()
            },
        );
        assert_eq!((posted.sent, posted.lost), (0, 10_000));
        assert!(*calls.borrow() <= 100 + 2 * REJECTIONS_MAX, "{}", calls.borrow());
    }

    #[test]
    fn alternates_between_environments_with_small_batches_first() {
        let order = RefCell::new(Vec::new());
        let mut waiting: Vec<PendingBatch> = (0..50).map(|number| plain("flood", 1000 - number)).collect();
        waiting.extend([plain("flood", 1), plain("b", 5), plain("c", 7)]);
        let posted = run_round(ReportKind::Analytics, waiting, later(), |batch| {
            order.borrow_mut().push((batch.client_side_key.clone(), batch.count));
            PostOutcome::Accepted
        });
        let first: Vec<_> = order.borrow().iter().take(4).map(|(key, count)| (key.clone(), *count)).collect();
        let expected = [("flood", 1), ("b", 5), ("c", 7), ("flood", 951)];
        assert_eq!(first, expected.map(|(key, count)| (key.to_owned(), count)));
        assert!(posted.kept.is_empty() && posted.failure.is_none());
    }

    #[test]
    fn an_unreachable_upstream_delays_only_that_environment() {
        let waiting = || vec![plain("a", 2), plain("a", 3), plain("b", 4), plain("c", 5)];
        let lost = || PostOutcome::Failed(PollError::new(PollErrorKind::Timeout, "x"));
        let calls = RefCell::new(0);
        let posted = run_round(ReportKind::Analytics, waiting(), later(), |batch| {
            *calls.borrow_mut() += 1;
            if batch.client_side_key == "a" { lost() } else { PostOutcome::Accepted }
        });
        assert_eq!((posted.sent, posted.kept.len(), *calls.borrow()), (9, 2, 3));
        // After some environments have failed, the others are not tried.
        let calls = RefCell::new(0);
        let many = (0..100).map(|number| plain(&number.to_string(), 1)).collect();
        let posted = run_round(ReportKind::Analytics, many, later(), |_| {
            *calls.borrow_mut() += 1;
            lost()
        });
        assert_eq!((posted.kept.len(), *calls.borrow()), (100, UNREACHABLE_MAX));
    }

    #[test]
    fn sends_nothing_after_the_deadline() {
        let posted =
            run_round(ReportKind::Analytics, vec![plain("a", 2)], Instant::now(), |_| unreachable!());
        assert_eq!(posted.kept.len(), 1);
    }

    #[test]
    fn finds_the_row_that_upstream_answers_500_to() {
        let mut waiting = vec![plain("a", 1000)];
        let (mut sent, mut lost, mut rounds) = (0, 0, 0);
        while !waiting.is_empty() {
            waiting.push(plain("b", 1));
            let posted = run_round(ReportKind::Analytics, waiting, later(), |batch| {
                if has(batch, "\"f00321\"") { failed(500) } else { PostOutcome::Accepted }
            });
            (sent, lost, rounds) = (sent + posted.sent, lost + posted.lost, rounds + 1);
            waiting = posted.kept;
        }
        assert_eq!((sent, lost), (999 + rounds, 1));
        assert!(rounds <= 2 + 11, "{rounds}");
        // In an outage nothing is split or lost, however long it lasts.
        let mut waiting = vec![plain("a", 1000)];
        for _ in 0..50 {
            let posted = run_round(ReportKind::Analytics, waiting, later(), |_| failed(500));
            assert_eq!((posted.divided, posted.lost), (0, 0));
            waiting = posted.kept;
        }
        assert_eq!((waiting.len(), waiting[0].failures), (1, 50));
        let body: Value = serde_json::from_str(&waiting[0].batch.body).unwrap();
        assert_eq!(body.as_object().unwrap().len(), 1000);
    }

    #[test]
    fn stores_retry_after_with_the_batch() {
        let wait = Duration::from_secs(30);
        let posted = run_round(ReportKind::Analytics, vec![plain("a", 1)], later(), |_| {
            let mut failure = PollError::new(PollErrorKind::Status(429), "x");
            failure.retry_after = Some(wait);
            PostOutcome::Failed(failure)
        });
        assert!(posted.kept[0].retry_at.unwrap() > posted.started + wait / 2);
    }
}
