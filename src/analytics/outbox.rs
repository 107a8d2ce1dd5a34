//! The outbox: packs counts into batches, and stores them until upstream has accepted them.
//!
//! While a batch of an environment, label and version is pending, no further batch is packed for these: their
//! counts accumulate in [`Counts`], which is bounded. The pending batches of an environment are bounded in
//! bytes, in memory and in `cache_dir`. Lost counts are counted and logged.
use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};
use std::{fmt, io};

use crate::analytics::batch::{ReportKind, UploadBatch, pack_evaluations, pack_usage, path_of};
use crate::analytics::upload::{PendingBatch, RoundResult};
use crate::counts::{Counts, Labels};
use crate::limits;
use crate::schedule::{Retry, Schedule, jitter};
use crate::storage::{RecordChange, StorageError, Store, StoredDocument, StoredRecord};
use crate::upstream::PollErrorKind;

/// Why saved batches cannot be loaded.
#[derive(Debug)]
pub enum OutboxError {
    /// The file of an earlier release.
    Storage(StorageError),
    Spool(io::Error),
    /// The record or file is intact, but its content is not a batch.
    Json(serde_json::Error),
    /// This number of records is damaged.
    Damaged(u64),
}

impl fmt::Display for OutboxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Storage(error) => error.fmt(f),
            Self::Spool(error) => write!(f, "counts: {error}"),
            Self::Json(error) => write!(f, "invalid pending counts: {error}"),
            Self::Damaged(count) => write!(f, "{count} damaged records"),
        }
    }
}

impl std::error::Error for OutboxError {}

/// The batches that earlier processes saved.
#[derive(Debug, Default)]
pub struct SavedBatches {
    pub batches: Vec<UploadBatch>,
    /// What could not be loaded.
    pub errors: Vec<OutboxError>,
}

/// Loads the batches that earlier processes saved. Those in the file of release 0.1.0 are moved to the
/// spool, with their keys.
pub fn load(kind: ReportKind, store: &Store) -> SavedBatches {
    let (records, file) = (store.load_records(kind.name()), store.load(kind.storage_name()));
    let (saved, change) = saved(kind, records, file);
    if let Some(change) = change {
        store.change_records(kind.name(), change);
    }
    saved
}

/// The batches in a set of records, and in the file of release 0.1.0 if there is one; what to change in the
/// set, so that it has those of the file.
pub fn saved(
    kind: ReportKind,
    records: io::Result<(Vec<StoredRecord>, u64)>,
    file: Result<Option<StoredDocument>, StorageError>,
) -> (SavedBatches, Option<RecordChange>) {
    let (mut saved, mut change) = (SavedBatches::default(), None);
    match records {
        Ok((records, damaged)) => {
            saved.errors.extend((damaged > 0).then_some(OutboxError::Damaged(damaged)));
            for record in records {
                match serde_json::from_slice(&record.payload) {
                    Ok(batch) => saved.batches.push(batch),
                    Err(error) => saved.errors.push(OutboxError::Json(error)),
                }
            }
        }
        Err(error) => saved.errors.push(OutboxError::Spool(error)),
    }
    match batches_in(file) {
        Ok(Some(batches)) => {
            let known: HashSet<String> =
                saved.batches.iter().map(|batch| batch.idempotency_key.clone()).collect();
            let moved: Vec<UploadBatch> =
                batches.into_iter().filter(|batch| !known.contains(&batch.idempotency_key)).collect();
            let add = moved.iter().map(record_of).collect();
            saved.batches.extend(moved);
            let keep = saved.batches.iter().map(|batch| batch.idempotency_key.clone()).collect();
            let replaces = Some(kind.storage_name().to_owned());
            change = Some(RecordChange { keep, add, replaces });
        }
        Ok(None) => {}
        Err(error) => saved.errors.push(error),
    }
    (saved, change)
}

/// The batches in the file of release 0.1.0; `None` if there is none.
fn batches_in(
    file: Result<Option<StoredDocument>, StorageError>,
) -> Result<Option<Vec<UploadBatch>>, OutboxError> {
    let Some(file) = file.map_err(OutboxError::Storage)? else { return Ok(None) };
    serde_json::from_slice(&file.document).map(Some).map_err(OutboxError::Json)
}

fn record_of(batch: &UploadBatch) -> StoredRecord {
    // Strings and integers cannot fail to be written.
    let payload = serde_json::to_vec(batch).unwrap_or_default();
    StoredRecord { key: batch.idempotency_key.clone(), payload }
}

/// The pending batches of one kind.
#[derive(Debug)]
pub struct Outbox {
    kind: ReportKind,
    schedule: Schedule,
    pending: Vec<PendingBatch>,
    /// Being uploaded. Stored here too, so that they can be saved if the process exits meanwhile.
    in_flight: Vec<PendingBatch>,
    failure: Option<PollErrorKind>,
    /// The keys of the batches on disk.
    saved: BTreeSet<String>,
}

impl Outbox {
    /// An outbox with the batches that were saved on disk ([`load`]).
    pub fn new(kind: ReportKind, interval: Duration, batches: Vec<UploadBatch>, now: Instant) -> Self {
        let mut schedule = Schedule::new(interval, now);
        if batches.is_empty() {
            schedule.succeeded(now, now, jitter());
        }
        let saved = batches.iter().map(|batch| batch.idempotency_key.clone()).collect();
        let pending = batches.into_iter().map(PendingBatch::new).collect();
        Self { kind, schedule, pending, in_flight: Vec::new(), failure: None, saved }
    }

    pub fn kind(&self) -> ReportKind {
        self.kind
    }

    pub fn set_interval(&mut self, interval: Duration, now: Instant) {
        self.schedule.set_interval(interval, now);
    }

    /// When the next round is due; `None` while one is in progress.
    pub fn due(&self) -> Option<Instant> {
        self.in_flight.is_empty().then(|| self.schedule.due())
    }

    /// The number of counts in pending batches.
    pub fn count(&self) -> u64 {
        self.pending.iter().chain(&self.in_flight).map(|waiting| waiting.batch.count).sum()
    }

    /// Starts a round: packs `counts`, and returns the batches to upload. `None` if there are none, or if no
    /// round is due. Call [`finish_round`](Self::finish_round) or [`cancel_round`](Self::cancel_round)
    /// afterwards.
    pub fn start_round(&mut self, counts: &mut Counts, now: Instant) -> Option<Vec<PendingBatch>> {
        if self.due().is_none_or(|due| due > now) {
            return None;
        }
        self.pack(counts, false);
        let is_due = |waiting: &mut PendingBatch| waiting.retry_at.is_none_or(|at| at <= now);
        self.in_flight = self.pending.extract_if(.., is_due).collect();
        if self.in_flight.is_empty() {
            self.schedule.succeeded(now, now, jitter());
            return None;
        }
        Some(self.in_flight.clone())
    }

    /// Starts the last round before the process exits: packs all counts, and returns all pending batches.
    /// Batches in flight are not uploaded again: the next process uploads them with the same keys.
    pub fn start_last_round(&mut self, counts: &mut Counts) -> Vec<PendingBatch> {
        self.pack(counts, true);
        std::mem::take(&mut self.pending)
    }

    /// Cancels a round whose task could not be started.
    pub fn cancel_round(&mut self, now: Instant) {
        self.pending.append(&mut self.in_flight);
        self.schedule.failed(now, Retry::Serving(limits::RETRY_AFTER_DEFAULT_MAX), None, jitter());
    }

    fn pack(&mut self, counts: &mut Counts, is_last: bool) {
        match self.kind {
            ReportKind::Analytics => self.pack_analytics(counts, is_last),
            ReportKind::Usage if is_last || self.pending.is_empty() => {
                let rows = std::mem::take(&mut counts.usage).into_iter().collect();
                self.pending.extend(pack_usage(rows).into_iter().map(PendingBatch::new));
            }
            ReportKind::Usage => {}
        }
    }

    fn pack_analytics(&mut self, counts: &mut Counts, is_last: bool) {
        let mut pending_bytes: HashMap<String, usize> = HashMap::new();
        for waiting in self.pending.iter().chain(&self.in_flight) {
            let sum = pending_bytes.entry(waiting.batch.client_side_key.clone()).or_default();
            *sum += waiting.batch.body.len();
        }
        let taken: HashSet<(&str, &Labels, &str)> = self
            .pending
            .iter()
            .map(|PendingBatch { batch, .. }| (&*batch.client_side_key, &batch.labels, &*batch.path))
            .collect();
        let is_free = |key: &str, labels: &Labels, is_detailed: bool| {
            is_last || !taken.contains(&(key, labels, path_of(is_detailed)))
        };
        let mut packed = Vec::new();
        for group in counts.evaluations.take(is_free) {
            let (batches, rest) = pack_evaluations(&group);
            let bytes: usize = batches.iter().map(|batch| batch.body.len()).sum();
            packed.push((bytes, batches, rest, group));
        }
        // If not all groups fit, the largest ones are not packed.
        packed.sort_by_key(|(bytes, ..)| *bytes);
        let bytes_max = limits::OUTBOX_ENVIRONMENT_BYTES_MAX * if is_last { 2 } else { 1 };
        for (bytes, batches, rest, mut group) in packed {
            let sum = pending_bytes.entry(group.client_side_key.to_string()).or_default();
            if *sum + bytes <= bytes_max {
                *sum += bytes;
                self.pending.extend(batches.into_iter().map(PendingBatch::new));
                group.rows = rest;
            }
            if is_last {
                counts.evaluations.lose(&group);
            } else {
                counts.evaluations.put_back(&group);
            }
        }
    }

    /// Finishes a round. Returns true if the kind of failure has changed since the previous round.
    pub fn finish_round(&mut self, posted: &mut RoundResult, now: Instant) -> bool {
        self.in_flight.clear();
        self.pending.append(&mut posted.kept);
        match &posted.failure {
            // If upstream has accepted other batches, a failure does not delay the next round.
            Some(failure) if !posted.is_any_accepted => {
                let retry = Retry::Serving(limits::RETRY_AFTER_DEFAULT_MAX);
                self.schedule.failed(now, retry, failure.retry_after, jitter());
            }
            _ => self.schedule.succeeded(posted.started, now, jitter()),
        }
        let kind = posted.failure.as_ref().map(|failure| failure.kind);
        std::mem::replace(&mut self.failure, kind) != kind
    }

    /// Finishes the last round: what was not accepted or is still in flight becomes pending.
    pub fn finish_last_round(&mut self, posted: &mut RoundResult) {
        self.pending.append(&mut posted.kept);
        self.pending.append(&mut self.in_flight);
    }

    /// What to change on disk, so that it has the pending batches. `None` if it has. Call this after each
    /// round.
    pub fn save(&mut self) -> Option<RecordChange> {
        let keep: BTreeSet<String> =
            self.pending.iter().map(|waiting| waiting.batch.idempotency_key.clone()).collect();
        if keep == self.saved {
            return None;
        }
        let is_new = |waiting: &&PendingBatch| !self.saved.contains(&waiting.batch.idempotency_key);
        let add = self.pending.iter().filter(is_new).map(|waiting| record_of(&waiting.batch)).collect();
        self.saved.clone_from(&keep);
        Some(RecordChange { keep, add, replaces: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counts::{AnalyticsVersion, Evaluation, Names};
    use crate::upstream::PollError;

    fn labels(name: &str) -> Labels {
        Labels { application_name: name.into(), ..Labels::default() }
    }

    /// With an identifier the evaluation is of version 2; an empty identifier is omitted.
    fn count(
        counts: &mut Counts,
        key: &str,
        feature: &str,
        name: &str,
        identifier: Option<&str>,
        count: u64,
    ) {
        let version = if identifier.is_some() {
            AnalyticsVersion::Two { is_enabled: true }
        } else {
            AnalyticsVersion::One
        };
        let identifier = identifier.filter(|identifier| !identifier.is_empty());
        let evaluation = Evaluation { feature, version, identifier };
        counts.evaluations.tally(key, &labels(name), Names::Known).add(evaluation, count);
    }

    fn outbox(kind: ReportKind) -> (Outbox, Instant) {
        let now = Instant::now();
        let outbox = Outbox::new(kind, Duration::from_secs(10), Vec::new(), now);
        assert!(outbox.due().unwrap() > now, "nothing is due at the start");
        (outbox, now + Duration::from_secs(20))
    }

    fn failed(kept: Vec<PendingBatch>) -> RoundResult {
        let failure = Some(PollError::new(PollErrorKind::Status(503), "x"));
        RoundResult { kept, failure, ..RoundResult::new(ReportKind::Analytics) }
    }

    fn shown(waiting: &[PendingBatch]) -> Vec<String> {
        let show = |p: &UploadBatch| {
            let name = &p.labels.application_name;
            format!("{} {} {name} {} {}", p.path, p.client_side_key, p.count, p.body)
        };
        let mut shown: Vec<String> = waiting.iter().map(|waiting| show(&waiting.batch)).collect();
        shown.sort();
        shown
    }

    #[test]
    fn packs_environments_labels_and_versions_separately() {
        let (mut outbox, later) = outbox(ReportKind::Analytics);
        let mut counts = Counts::default();
        count(&mut counts, "a", "f", "", None, 2);
        count(&mut counts, "a", "g", "", None, 3);
        count(&mut counts, "a", "f", "shop", None, 4);
        count(&mut counts, "a", "f", "", Some("i"), 5);
        count(&mut counts, "a", "f", "", Some(""), 6);
        count(&mut counts, "b", "f", "", None, 7);
        assert!(
            outbox.start_round(&mut counts, later - Duration::from_secs(20)).is_none(),
            "before its time"
        );
        let waiting = outbox.start_round(&mut counts, later).unwrap();
        assert_eq!(
            shown(&waiting),
            [
                r#"../v2/analytics/flags/ a  11 {"evaluations":[{"count":6,"enabled_when_evaluated":true,"feature_name":"f"},{"count":5,"enabled_when_evaluated":true,"feature_name":"f","identity_identifier":"i"}]}"#,
                r#"analytics/flags/ a  5 {"f":2,"g":3}"#,
                r#"analytics/flags/ a shop 4 {"f":4}"#,
                r#"analytics/flags/ b  7 {"f":7}"#,
            ]
        );
        assert!(counts.is_empty());
        assert_eq!(outbox.count(), 27, "batches in flight are counted");
    }

    #[test]
    fn packs_nothing_for_a_label_with_a_pending_batch() {
        let (mut outbox, later) = outbox(ReportKind::Analytics);
        let mut counts = Counts::default();
        count(&mut counts, "a", "f", "", None, 1);
        let first = outbox.start_round(&mut counts, later).unwrap();
        assert!(outbox.start_round(&mut counts, later).is_none(), "one round at a time");
        assert!(outbox.finish_round(&mut failed(first.clone()), later));
        count(&mut counts, "a", "f", "", None, 2);
        count(&mut counts, "a", "f", "shop", None, 3);
        count(&mut counts, "b", "f", "", None, 4);
        assert!(outbox.start_round(&mut counts, later).is_none(), "it backs off");
        let sent = outbox.start_round(&mut counts, later + Duration::from_secs(60)).unwrap();
        assert_eq!(sent[0].batch, first[0].batch, "the same batch with the same key");
        let rest = [r#"analytics/flags/ a shop 3 {"f":3}"#, r#"analytics/flags/ b  4 {"f":4}"#];
        assert_eq!(shown(&sent[1..]), rest);
        assert_eq!(counts.evaluations.sum(), 2);
        // The process exits while these are in flight: all are kept, and none is uploaded again.
        let last = outbox.start_last_round(&mut counts);
        assert_eq!(shown(&last), [r#"analytics/flags/ a  2 {"f":2}"#]);
        outbox.finish_last_round(&mut failed(last));
        assert_eq!(outbox.count(), 10);
    }

    #[test]
    fn a_failure_beside_a_success_does_not_delay_the_next_round() {
        let (mut outbox, later) = outbox(ReportKind::Analytics);
        let mut counts = Counts::default();
        count(&mut counts, "a", "f", "", None, 1);
        count(&mut counts, "b", "f", "", None, 1);
        let mut kept = outbox.start_round(&mut counts, later).unwrap();
        kept.truncate(1);
        kept[0].retry_at = Some(later + Duration::from_secs(300));
        let mut posted = failed(kept);
        posted.is_any_accepted = true;
        posted.started = later;
        outbox.finish_round(&mut posted, later);
        assert!(outbox.due().unwrap() <= later + Duration::from_secs(11), "the usual interval");
        count(&mut counts, "c", "f", "", None, 9);
        let sent = outbox.start_round(&mut counts, later + Duration::from_secs(20)).unwrap();
        assert_eq!(shown(&sent), [r#"analytics/flags/ c  9 {"f":9}"#], "Retry-After is obeyed");
        assert_eq!(outbox.count(), 10);
    }

    #[test]
    fn pending_batches_are_bounded_and_no_count_is_lost() {
        let (mut outbox, mut now) = outbox(ReportKind::Analytics);
        let mut counts = Counts::default();
        let mut expected = 0;
        for round in 0..20 {
            for number in 0..2000 {
                let identifier = format!("{round}-{number}-{}", "\u{1}".repeat(1900));
                count(&mut counts, "flood", "f", &round.to_string(), Some(&identifier), 1);
                expected += 1;
            }
            now += Duration::from_secs(120);
            let sent = outbox.start_round(&mut counts, now).unwrap();
            let bytes: usize = sent.iter().map(|waiting| waiting.batch.body.len()).sum();
            assert!(bytes <= limits::OUTBOX_ENVIRONMENT_BYTES_MAX, "{bytes}");
            assert!(sent.iter().all(|waiting| waiting.batch.body.len() <= limits::UPLOAD_BYTES_MAX));
            outbox.finish_round(&mut failed(sent), now);
            assert_eq!(counts.evaluations.sum() + outbox.count(), expected);
        }
        // Another environment, and a small label of the same one.
        count(&mut counts, "b", "f", "", None, 7);
        now += Duration::from_secs(120);
        let sent = outbox.start_round(&mut counts, now).unwrap();
        assert!(shown(&sent).contains(&r#"analytics/flags/ b  7 {"f":7}"#.to_owned()));
        outbox.finish_round(&mut failed(sent), now);
        let last = outbox.start_last_round(&mut counts);
        let bytes: usize = last.iter().map(|waiting| waiting.batch.body.len()).sum();
        assert!(bytes <= 2 * limits::OUTBOX_ENVIRONMENT_BYTES_MAX + 100, "{bytes}");
        let kept: u64 = last.iter().map(|waiting| waiting.batch.count).sum();
        assert_eq!(kept + counts.evaluations.bounded.lost, expected + 7);
    }

    #[test]
    fn honours_retry_after_up_to_a_minute() {
        let now = Instant::now();
        let interval = Duration::from_secs(10);
        let wait = |retry_after: Option<u64>| {
            let mut outbox = Outbox::new(ReportKind::Analytics, interval, Vec::new(), now);
            let mut posted = RoundResult::lost(ReportKind::Analytics, &[], "");
            let failure = PollError::new(PollErrorKind::Status(503), "down");
            posted.failure = Some(PollError { retry_after: retry_after.map(Duration::from_secs), ..failure });
            assert!(outbox.finish_round(&mut posted, now));
            outbox.due().unwrap() - now
        };
        assert_eq!(wait(Some(120)), Duration::from_secs(60));
        assert_eq!(wait(Some(30)), Duration::from_secs(30));
        let first = wait(None);
        assert!((0.8..=1.0).contains(&first.as_secs_f64()), "{first:?}");
    }
}
