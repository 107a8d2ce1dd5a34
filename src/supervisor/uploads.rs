//! The supervisor's side of reporting: collect from reactors, hand to the pool, write down what came of it.
//!
//! In: counts of the reactors, results of posting. Out: tasks for the pool, metrics, a line in the log per
//! change of state. Invariant: counts of environments that are not upstream's are not sent there.
use std::collections::HashSet;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Instant;

use crate::analytics::batch::{ReportKind, UploadBatch};
use crate::analytics::outbox;
use crate::analytics::outbox::Outbox;
use crate::analytics::upload::{RoundResult, run_round};
use crate::config::{Config, Level};
use crate::counts::Counts;
use crate::limits;
use crate::log::Log;
use crate::storage::Store;
use crate::supervisor::environment::PolledEnvironment;
use crate::supervisor::pool::guarded;
use crate::supervisor::{Event, Supervisor};
use crate::upstream::{PostOutcome, Upstream};

/// Everything that is counted and not yet accepted upstream.
#[derive(Debug)]
pub struct Uploads {
    counts: Counts,
    pub analytics: Outbox,
    pub usage: Outbox,
}

impl Uploads {
    /// With the counts that an earlier process left on disk. A file that cannot be used is logged.
    pub fn new(config: &Config, store: Option<&Store>, log: &Log, now: Instant) -> Self {
        let pending = |kind: ReportKind| {
            let loaded = store.map_or_else(|| Ok(Vec::new()), |store| outbox::load(kind, store));
            loaded.unwrap_or_else(|reason| {
                let fields: [(_, &dyn Display); 2] = [("kind", &kind.name()), ("reason", &reason)];
                log.event(Level::Warning, "pending_counts_ignored", &fields);
                Vec::new()
            })
        };
        let (analytics, usage) = (pending(ReportKind::Analytics), pending(ReportKind::Usage));
        Self {
            counts: Counts::default(),
            analytics: Outbox::new(ReportKind::Analytics, config.analytics.flush_interval, analytics, now),
            usage: Outbox::new(ReportKind::Usage, config.usage_flush_interval, usage, now),
        }
    }

    pub fn reconfigure(&mut self, config: &Config, now: Instant) {
        self.analytics.set_interval(config.analytics.flush_interval, now);
        self.usage.set_interval(config.usage_flush_interval, now);
    }

    pub fn due(&self) -> impl Iterator<Item = Instant> + use<> {
        self.analytics.due().into_iter().chain(self.usage.due())
    }

    fn is_in_flight(&self) -> bool {
        self.analytics.due().is_none() || self.usage.due().is_none()
    }

    fn outbox(&mut self, kind: ReportKind) -> &mut Outbox {
        match kind {
            ReportKind::Analytics => &mut self.analytics,
            ReportKind::Usage => &mut self.usage,
        }
    }
}

impl Supervisor {
    /// Takes what the reactors counted.
    pub fn collect(&mut self) {
        let mut reports = self.publisher.reports().peekable();
        if reports.peek().is_none() {
            return;
        }
        let config = &self.config;
        let polled = self.watched.iter().filter(|watched| watched.is_polled() && config.analytics.enabled);
        let polled: HashSet<&str> = polled.map(PolledEnvironment::client_side_key).collect();
        for mut counts in reports {
            counts.evaluations.retain(|client_side_key| polled.contains(client_side_key));
            if config.proxy_key.is_none() {
                counts.usage.clear();
            }
            self.reports.counts.merge(counts);
        }
        self.measure_queue();
    }

    fn measure_queue(&mut self) {
        let evaluations = &mut self.reports.counts.evaluations;
        let bounded = std::mem::take(&mut evaluations.bounded);
        let waiting = evaluations.sum().saturating_add(self.reports.analytics.count());
        let metrics = &self.records.metrics.supervisor;
        metrics.analytics_lost.add(bounded.lost);
        metrics.counts_merged_identifier.add(bounded.identifiers_merged);
        metrics.counts_merged_label.add(bounded.labels_merged);
        metrics.counts_cut_identifier.add(bounded.identifiers_cut);
        metrics.counts_cut_label.add(bounded.labels_cut);
        metrics.analytics_queued.set(waiting);
    }

    /// Sends what is due.
    pub fn report(&mut self, now: Instant) {
        let Uploads { counts, analytics, usage } = &mut self.reports;
        for (kind, outbox) in [(ReportKind::Analytics, analytics), (ReportKind::Usage, usage)] {
            let Some(waiting) = outbox.start_round(counts, now) else { continue };
            let (upstream, sender) = (Arc::clone(&self.upstream), self.sender.clone());
            let task = move || {
                let send = |batch: &UploadBatch| send(&upstream, batch, None);
                let until = Instant::now() + limits::ROUND_TIME_MAX;
                let posted = guarded(|| run_round(kind, waiting.clone(), until, send));
                // After a defect it is not known which were sent: none is sent twice.
                let posted = posted.unwrap_or_else(|| {
                    RoundResult::lost(kind, &waiting, "a defect of this proxy showed while counts were sent")
                });
                drop(sender.send(Event::Posted(posted)));
            };
            if let Err(error) = self.pool.give(task) {
                outbox.cancel_round(now);
                self.records.log.event(Level::Error, "no_thread", &[("error", &error)]);
            }
        }
    }

    /// Takes in what came of it.
    pub fn posted(&mut self, mut posted: RoundResult, now: Instant) {
        let has_changed = self.reports.outbox(posted.kind).finish_round(&mut posted, now);
        let store = self.records.store.as_ref();
        self.reports.outbox(posted.kind).save(store);
        self.write_down(&posted, has_changed);
        self.measure_queue();
    }

    fn write_down(&self, posted: &RoundResult, has_changed: bool) {
        let (metrics, log) = (&self.records.metrics.supervisor, &self.records.log);
        let (sent, lost) = match posted.kind {
            ReportKind::Analytics => (&metrics.analytics_sent, &metrics.analytics_lost),
            ReportKind::Usage => (&metrics.usage_sent, &metrics.usage_lost),
        };
        sent.add(posted.sent);
        lost.add(posted.lost);
        metrics.counts_divided.add(posted.divided);
        let kind = ("kind", &posted.kind.name() as &dyn Display);
        if let Some(why) = &posted.rejection {
            log.event(Level::Error, "counts_refused", &[kind, ("error", why), ("lost_count", &posted.lost)]);
        }
        match &posted.failure {
            Some(failure) if has_changed => {
                let fields =
                    [kind, ("error", &failure.message), ("hint", &"the counts are kept and sent again")];
                log.event(Level::Warning, "counts_not_sent", &fields);
            }
            None if has_changed => log.event(Level::Info, "counts_sent_again", &[kind]),
            _ => {}
        }
    }

    /// Sends all there is before the process ends; what is left goes to disk, or is lost and told.
    pub fn report_last(&mut self) {
        let until = Instant::now() + limits::LAST_POST_PATIENCE;
        while self.reports.is_in_flight() {
            let left = until.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok(Event::Posted(posted)) => self.posted(posted, Instant::now()),
                Ok(_) => {}
                Err(_) => break,
            }
        }
        self.collect();
        for (kind, share) in [(ReportKind::Usage, 2), (ReportKind::Analytics, 1)] {
            let Uploads { counts, analytics, usage } = &mut self.reports;
            let outbox = if kind == ReportKind::Analytics { analytics } else { usage };
            let waiting = outbox.start_last_round(counts);
            // Half of the time for usage, which is little, and what is left for analytics.
            let now = Instant::now();
            let until = now + until.saturating_duration_since(now) / share;
            let upstream = &self.upstream;
            let mut posted = run_round(kind, waiting, until, |batch| send(upstream, batch, Some(until)));
            let outbox = self.reports.outbox(kind);
            outbox.finish_last_round(&mut posted);
            outbox.save(self.records.store.as_ref());
            let left = outbox.count();
            self.write_down(&posted, posted.failure.is_some());
            if left > 0 && self.records.store.is_none() {
                let hint = "upstream did not take them and there is no cache_dir to keep them in";
                let fields: [(_, &dyn Display); 3] =
                    [("kind", &kind.name()), ("lost_count", &left), ("hint", &hint)];
                self.records.log.event(Level::Error, "counts_lost", &fields);
            }
        }
        self.measure_queue();
    }
}

fn send(upstream: &Upstream, batch: &UploadBatch, until: Option<Instant>) -> PostOutcome {
    let time_max = until.map(|until| until.saturating_duration_since(Instant::now()));
    let (key, body) = (&batch.idempotency_key, batch.body.as_bytes());
    upstream.post(&batch.path, &batch.fields(), key, body, time_max)
}
