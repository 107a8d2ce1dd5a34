//! Counts going up: evaluations that SDKs reported, and usage for upstream's books.
//!
//! An outbox packs counts into parcels and holds them until upstream has accepted them. While a parcel
//! of an environment, label and version waits no more are packed for these, and what waits for an
//! environment is bounded in bytes, in memory and in `cache_dir`; meanwhile its counts add up, bounded, in
//! `counts`. What is lost is counted and logged.
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use sha2::{Digest, Sha256};

use crate::analytics::parcel::{Parcel, pack_evaluations, pack_usage, path_of};
use crate::analytics::upload::{Posted, Waiting};
use crate::counts::{Counts, Labels};
use crate::limits;
use crate::schedule::{Retry, Schedule, jitter};
use crate::storage::{Kept, Store};
use crate::upstream::PollErrorKind;
use crate::validators::Validators;

/// What is reported. Each kind has its own outbox and interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportKind {
    Analytics,
    Usage,
}

impl ReportKind {
    /// For the log.
    pub fn name(self) -> &'static str {
        match self {
            ReportKind::Analytics => "analytics",
            ReportKind::Usage => "usage",
        }
    }

    /// The name under which parcels are kept. No client-side key has a slash.
    fn kept_as(self) -> &'static str {
        match self {
            ReportKind::Analytics => "analytics/flags/",
            ReportKind::Usage => "proxy/usage/",
        }
    }
}

/// The parcels that an earlier process kept on disk.
///
/// # Errors
/// The file cannot be used; one line that says why.
pub fn load(kind: ReportKind, store: &Store) -> Result<Vec<Parcel>, String> {
    let Some(kept) = store.load(kind.kept_as())? else { return Ok(Vec::new()) };
    serde_json::from_slice(&kept.document)
        .map_err(|error| format!("pending counts are not readable: {error}"))
}

/// What waits to be reported, of one kind.
#[derive(Debug)]
pub struct Outbox {
    kind: ReportKind,
    schedule: Schedule,
    waiting: Vec<Waiting>,
    /// Being sent now; also here, so that a process that ends meanwhile can keep them.
    in_flight: Vec<Waiting>,
    failure: Option<PollErrorKind>,
    is_on_disk: bool,
}

impl Outbox {
    /// With the parcels that were kept on disk ([`load`]).
    pub fn new(kind: ReportKind, interval: Duration, parcels: Vec<Parcel>, now: Instant) -> Self {
        let mut schedule = Schedule::new(interval, now);
        if parcels.is_empty() {
            schedule.succeeded(now, now, jitter());
        }
        let (is_on_disk, in_flight) = (!parcels.is_empty(), Vec::new());
        let waiting = parcels.into_iter().map(Waiting::new).collect();
        Self { kind, schedule, waiting, in_flight, failure: None, is_on_disk }
    }

    pub fn set_interval(&mut self, interval: Duration, now: Instant) {
        self.schedule.set_interval(interval, now);
    }

    pub fn due(&self) -> Option<Instant> {
        self.in_flight.is_empty().then(|| self.schedule.due())
    }

    /// How many counts wait in parcels.
    pub fn count(&self) -> u64 {
        self.waiting.iter().chain(&self.in_flight).map(|waiting| waiting.parcel.count).sum()
    }

    /// Packs what may be packed of `counts` and hands all that waits to be sent. `None` if there is
    /// nothing, or it is not yet time.
    pub fn send(&mut self, counts: &mut Counts, now: Instant) -> Option<Vec<Waiting>> {
        if self.due().is_none_or(|due| due > now) {
            return None;
        }
        self.pack(counts, false);
        let is_due = |waiting: &mut Waiting| waiting.retry_at.is_none_or(|at| at <= now);
        self.in_flight = self.waiting.extract_if(.., is_due).collect();
        if self.in_flight.is_empty() {
            self.schedule.succeeded(now, now, jitter());
            return None;
        }
        Some(self.in_flight.clone())
    }

    /// Packs everything, as a process that ends does. Parcels that are still in flight are kept and not
    /// sent again: the next process sends them with the same keys.
    pub fn send_last(&mut self, counts: &mut Counts) -> Vec<Waiting> {
        self.pack(counts, true);
        std::mem::take(&mut self.waiting)
    }

    /// The task that was to send them could not be started.
    pub fn not_sent(&mut self, now: Instant) {
        self.waiting.append(&mut self.in_flight);
        self.schedule.failed(now, Retry::Held(limits::RETRY_AFTER_HELD_MAX), None, jitter());
    }

    fn pack(&mut self, counts: &mut Counts, is_last: bool) {
        match self.kind {
            ReportKind::Analytics => self.pack_analytics(counts, is_last),
            ReportKind::Usage if is_last || self.waiting.is_empty() => {
                let rows = std::mem::take(&mut counts.usage).into_iter().collect();
                self.waiting.extend(pack_usage(rows).into_iter().map(Waiting::new));
            }
            ReportKind::Usage => {}
        }
    }

    fn pack_analytics(&mut self, counts: &mut Counts, is_last: bool) {
        let mut waiting_bytes: HashMap<String, usize> = HashMap::new();
        for waiting in self.waiting.iter().chain(&self.in_flight) {
            let sum = waiting_bytes.entry(waiting.parcel.client_side_key.clone()).or_default();
            *sum += waiting.parcel.body.len();
        }
        let taken: HashSet<(&str, &Labels, &str)> = self
            .waiting
            .iter()
            .map(|Waiting { parcel, .. }| (&*parcel.client_side_key, &parcel.labels, &*parcel.path))
            .collect();
        let is_free = |key: &str, labels: &Labels, is_detailed: bool| {
            is_last || !taken.contains(&(key, labels, path_of(is_detailed)))
        };
        let mut packed = Vec::new();
        for group in counts.evaluations.take(is_free) {
            let (parcels, rest) = pack_evaluations(&group);
            let bytes: usize = parcels.iter().map(|parcel| parcel.body.len()).sum();
            packed.push((bytes, parcels, rest, group));
        }
        // What does not fit is of the largest groups.
        packed.sort_by_key(|(bytes, ..)| *bytes);
        let bytes_max = limits::OUTBOX_ENVIRONMENT_BYTES_MAX * if is_last { 2 } else { 1 };
        for (bytes, parcels, rest, mut group) in packed {
            let sum = waiting_bytes.entry(group.client_side_key.to_string()).or_default();
            if *sum + bytes <= bytes_max {
                *sum += bytes;
                self.waiting.extend(parcels.into_iter().map(Waiting::new));
                group.rows = rest;
            }
            if is_last {
                counts.evaluations.lose(&group);
            } else {
                counts.evaluations.put_back(&group);
            }
        }
    }

    /// Takes back what was not accepted. True if the failure is a new one or is over.
    pub fn posted(&mut self, posted: &mut Posted, now: Instant) -> bool {
        self.in_flight.clear();
        self.waiting.append(&mut posted.kept);
        match &posted.failure {
            // Upstream works where it took others: what failed does not slow these down.
            Some(failure) if !posted.is_any_accepted => {
                let retry = Retry::Held(limits::RETRY_AFTER_HELD_MAX);
                self.schedule.failed(now, retry, failure.retry_after, jitter());
            }
            _ => self.schedule.succeeded(posted.started, now, jitter()),
        }
        let kind = posted.failure.as_ref().map(|failure| failure.kind);
        std::mem::replace(&mut self.failure, kind) != kind
    }

    /// At the end of the process: takes back what was not accepted, and what is still in flight.
    pub fn posted_last(&mut self, posted: &mut Posted) {
        self.waiting.append(&mut posted.kept);
        self.waiting.append(&mut self.in_flight);
    }

    /// Brings the disk to what is in memory: after each try, and at the end.
    pub fn keep(&mut self, store: Option<&Store>) {
        let Some(store) = store else { return };
        if self.waiting.is_empty() {
            if std::mem::take(&mut self.is_on_disk) {
                store.remove(self.kind.kept_as());
            }
            return;
        }
        let parcels: Vec<&Parcel> = self.waiting.iter().map(|waiting| Arc::as_ref(&waiting.parcel)).collect();
        let Ok(document) = serde_json::to_vec(&parcels) else { return };
        let digest = Sha256::digest(&document).into();
        let validators = Validators::default();
        store.keep(self.kind.kept_as(), Kept { document, validators, digest, saved_at: SystemTime::now() });
        self.is_on_disk = true;
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

    /// An identifier makes it version 2; an empty one is left out.
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

    fn failed(kept: Vec<Waiting>) -> Posted {
        let failure = Some(PollError::new(PollErrorKind::Status(503), "x"));
        Posted { kept, failure, ..Posted::new(ReportKind::Analytics) }
    }

    fn shown(waiting: &[Waiting]) -> Vec<String> {
        let show = |p: &Parcel| {
            let name = &p.labels.application_name;
            format!("{} {} {name} {} {}", p.path, p.client_side_key, p.count, p.body)
        };
        let mut shown: Vec<String> = waiting.iter().map(|waiting| show(&waiting.parcel)).collect();
        shown.sort();
        shown
    }

    #[test]
    fn environments_labels_and_versions_travel_apart() {
        let (mut outbox, later) = outbox(ReportKind::Analytics);
        let mut counts = Counts::default();
        count(&mut counts, "a", "f", "", None, 2);
        count(&mut counts, "a", "g", "", None, 3);
        count(&mut counts, "a", "f", "shop", None, 4);
        count(&mut counts, "a", "f", "", Some("i"), 5);
        count(&mut counts, "a", "f", "", Some(""), 6);
        count(&mut counts, "b", "f", "", None, 7);
        assert!(outbox.send(&mut counts, later - Duration::from_secs(20)).is_none(), "before its time");
        let waiting = outbox.send(&mut counts, later).unwrap();
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
        assert_eq!(outbox.count(), 27, "they are counted while they are sent");
    }

    #[test]
    fn while_a_parcel_waits_its_label_packs_no_more_and_others_do() {
        let (mut outbox, later) = outbox(ReportKind::Analytics);
        let mut counts = Counts::default();
        count(&mut counts, "a", "f", "", None, 1);
        let first = outbox.send(&mut counts, later).unwrap();
        assert!(outbox.send(&mut counts, later).is_none(), "one round at a time");
        assert!(outbox.posted(&mut failed(first.clone()), later));
        count(&mut counts, "a", "f", "", None, 2);
        count(&mut counts, "a", "f", "shop", None, 3);
        count(&mut counts, "b", "f", "", None, 4);
        assert!(outbox.send(&mut counts, later).is_none(), "it backs off");
        let sent = outbox.send(&mut counts, later + Duration::from_secs(60)).unwrap();
        assert_eq!(sent[0].parcel, first[0].parcel, "the same parcel with the same key");
        let rest = [r#"analytics/flags/ a shop 3 {"f":3}"#, r#"analytics/flags/ b  4 {"f":4}"#];
        assert_eq!(shown(&sent[1..]), rest);
        assert_eq!(counts.evaluations.sum(), 2);
        // The process ends while these are sent: all is kept, and what was sent is not sent again.
        let last = outbox.send_last(&mut counts);
        assert_eq!(shown(&last), [r#"analytics/flags/ a  2 {"f":2}"#]);
        outbox.posted_last(&mut failed(last));
        assert_eq!(outbox.count(), 10);
    }

    #[test]
    fn a_failure_beside_a_success_does_not_slow_the_others_down() {
        let (mut outbox, later) = outbox(ReportKind::Analytics);
        let mut counts = Counts::default();
        count(&mut counts, "a", "f", "", None, 1);
        count(&mut counts, "b", "f", "", None, 1);
        let mut kept = outbox.send(&mut counts, later).unwrap();
        kept.truncate(1);
        kept[0].retry_at = Some(later + Duration::from_secs(300));
        let mut posted = failed(kept);
        posted.is_any_accepted = true;
        posted.started = later;
        outbox.posted(&mut posted, later);
        assert!(outbox.due().unwrap() <= later + Duration::from_secs(11), "the usual interval");
        count(&mut counts, "c", "f", "", None, 9);
        let sent = outbox.send(&mut counts, later + Duration::from_secs(20)).unwrap();
        assert_eq!(shown(&sent), [r#"analytics/flags/ c  9 {"f":9}"#], "Retry-After is obeyed");
        assert_eq!(outbox.count(), 10);
    }

    #[test]
    fn what_waits_for_an_environment_is_bounded_and_nothing_is_lost() {
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
            let sent = outbox.send(&mut counts, now).unwrap();
            let bytes: usize = sent.iter().map(|waiting| waiting.parcel.body.len()).sum();
            assert!(bytes <= limits::OUTBOX_ENVIRONMENT_BYTES_MAX, "{bytes}");
            assert!(sent.iter().all(|waiting| waiting.parcel.body.len() <= limits::UPLOAD_BYTES_MAX));
            outbox.posted(&mut failed(sent), now);
            assert_eq!(counts.evaluations.sum() + outbox.count(), expected);
        }
        // Another environment, and a small label of the same one.
        count(&mut counts, "b", "f", "", None, 7);
        now += Duration::from_secs(120);
        let sent = outbox.send(&mut counts, now).unwrap();
        assert!(shown(&sent).contains(&r#"analytics/flags/ b  7 {"f":7}"#.to_owned()));
        outbox.posted(&mut failed(sent), now);
        let last = outbox.send_last(&mut counts);
        let bytes: usize = last.iter().map(|waiting| waiting.parcel.body.len()).sum();
        assert!(bytes <= 2 * limits::OUTBOX_ENVIRONMENT_BYTES_MAX + 100, "{bytes}");
        let kept: u64 = last.iter().map(|waiting| waiting.parcel.count).sum();
        assert_eq!(kept + counts.evaluations.bounded.lost, expected + 7);
    }

    #[test]
    fn an_upload_waits_a_minute_at_most_whatever_upstream_asks_for() {
        let now = Instant::now();
        let interval = Duration::from_secs(10);
        let wait = |retry_after: Option<u64>| {
            let mut outbox = Outbox::new(ReportKind::Analytics, interval, Vec::new(), now);
            let mut posted = Posted::lost(ReportKind::Analytics, &[], "");
            let failure = PollError::new(PollErrorKind::Status(503), "down");
            posted.failure = Some(PollError { retry_after: retry_after.map(Duration::from_secs), ..failure });
            assert!(outbox.posted(&mut posted, now));
            outbox.due().unwrap() - now
        };
        assert_eq!(wait(Some(120)), Duration::from_secs(60));
        assert_eq!(wait(Some(30)), Duration::from_secs(30));
        let first = wait(None);
        assert!((0.8..=1.0).contains(&first.as_secs_f64()), "{first:?}");
    }
}
