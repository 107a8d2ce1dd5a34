//! Counts that go upstream: collected from the reactors, uploaded at intervals, stored while upstream is
//! down.
//!
//! Counts of environments that upstream does not serve (documents on disk) are dropped.
use std::collections::HashSet;
use std::fmt::Display;
use std::time::Instant;

use crate::analytics::batch::{ReportKind, UploadBatch};
use crate::analytics::outbox::Outbox;
use crate::analytics::upload::RoundResult;
use crate::config::{Config, Level};
use crate::counts::Counts;
use crate::supervisor::action::Action;
use crate::supervisor::context::EventContext;

/// Everything that was counted and that upstream has not accepted yet.
#[derive(Debug)]
pub struct Uploads {
    counts: Counts,
    analytics: Outbox,
    usage: Outbox,
}

/// The uploads that an earlier process stored.
#[derive(Debug, Default)]
pub struct StoredUploads {
    pub analytics: Vec<UploadBatch>,
    pub usage: Vec<UploadBatch>,
}

impl Uploads {
    pub fn new(config: &Config, stored: StoredUploads, now: Instant) -> Self {
        let StoredUploads { analytics, usage } = stored;
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

    pub fn is_in_flight(&self) -> bool {
        self.analytics.due().is_none() || self.usage.due().is_none()
    }

    fn outbox(&mut self, kind: ReportKind) -> &mut Outbox {
        match kind {
            ReportKind::Analytics => &mut self.analytics,
            ReportKind::Usage => &mut self.usage,
        }
    }

    /// Adds what a reactor counted. `polled` are the client-side keys of environments that upstream serves.
    pub fn counted(&mut self, mut counts: Counts, polled: &HashSet<&str>, context: &EventContext<'_>) {
        let is_enabled = context.config.analytics.enabled;
        counts.evaluations.retain(|client_side_key| is_enabled && polled.contains(client_side_key));
        if context.config.proxy_key.is_none() {
            counts.usage.clear();
        }
        self.counts.merge(counts);
        self.update_metrics(context);
    }

    fn update_metrics(&mut self, context: &EventContext<'_>) {
        let evaluations = &mut self.counts.evaluations;
        let bounded = std::mem::take(&mut evaluations.bounded);
        let waiting = evaluations.sum().saturating_add(self.analytics.count());
        let metrics = &context.metrics.supervisor;
        metrics.analytics_lost.add(bounded.lost);
        metrics.counts_merged_identifier.add(bounded.identifiers_merged);
        metrics.counts_merged_label.add(bounded.labels_merged);
        metrics.counts_cut_identifier.add(bounded.identifiers_cut);
        metrics.counts_cut_label.add(bounded.labels_cut);
        metrics.analytics_queued.set(waiting);
    }

    /// Starts the uploads that are due.
    pub fn tick(&mut self, context: &mut EventContext<'_>) {
        let now = context.now.instant;
        let Self { counts, analytics, usage } = self;
        for (kind, outbox) in [(ReportKind::Analytics, analytics), (ReportKind::Usage, usage)] {
            if let Some(waiting) = outbox.start_round(counts, now) {
                context.actions.push(Action::Upload { kind, waiting });
            }
        }
    }

    /// No thread could be started for an upload.
    pub fn not_started(&mut self, kind: ReportKind, error: &str, context: &mut EventContext<'_>) {
        self.outbox(kind).cancel_round(context.now.instant);
        context.actions.log(Level::Error, "no_thread", &[("error", &error)]);
    }

    /// Applies the result of an upload.
    pub fn uploaded(&mut self, mut posted: RoundResult, context: &mut EventContext<'_>) {
        let outbox = self.outbox(posted.kind);
        let has_changed = outbox.finish_round(&mut posted, context.now.instant);
        store(outbox, context);
        record(&posted, has_changed, context);
        self.update_metrics(context);
    }

    /// Uploads all counts before the process ends.
    pub fn upload_last(&mut self, kind: ReportKind, until: Instant, context: &mut EventContext<'_>) {
        let Self { counts, analytics, usage } = self;
        let outbox = if kind == ReportKind::Analytics { analytics } else { usage };
        let waiting = outbox.start_last_round(counts);
        context.actions.push(Action::UploadLast { kind, waiting, until });
    }

    /// Applies the result of the last upload: what upstream did not accept is stored, or logged as lost.
    pub fn uploaded_last(&mut self, mut posted: RoundResult, context: &mut EventContext<'_>) {
        let outbox = self.outbox(posted.kind);
        outbox.finish_last_round(&mut posted);
        store(outbox, context);
        let left = outbox.count();
        record(&posted, posted.failure.is_some(), context);
        if left > 0 && !context.has_storage {
            let hint = "upstream did not accept them and there is no cache_dir to store them in";
            let fields: [(_, &dyn Display); 3] =
                [("kind", &posted.kind.name()), ("lost_count", &left), ("hint", &hint)];
            context.actions.log(Level::Error, "counts_lost", &fields);
        }
        self.update_metrics(context);
    }
}

/// Brings the stored uploads up to date.
fn store(outbox: &mut Outbox, context: &mut EventContext<'_>) {
    if !context.has_storage {
        return;
    }
    if let Some(change) = outbox.save() {
        context.actions.push(Action::StoreBatches { kind: outbox.kind(), change });
    }
}

/// Counts the result in the metrics, and logs a change between success and failure.
fn record(posted: &RoundResult, has_changed: bool, context: &mut EventContext<'_>) {
    let metrics = &context.metrics.supervisor;
    let (sent, lost) = match posted.kind {
        ReportKind::Analytics => (&metrics.analytics_sent, &metrics.analytics_lost),
        ReportKind::Usage => (&metrics.usage_sent, &metrics.usage_lost),
    };
    metrics.counts_divided.add(posted.divided);
    lost.add(posted.lost);
    // Last, after what the same round lost: who waits for it then reads the others.
    sent.add(posted.sent);
    let kind = ("kind", &posted.kind.name() as &dyn Display);
    if let Some(why) = &posted.rejection {
        let fields = [kind, ("error", why), ("lost_count", &posted.lost)];
        context.actions.log(Level::Error, "counts_refused", &fields);
    }
    match &posted.failure {
        Some(failure) if has_changed => {
            let hint = &"the counts are kept and sent again";
            let fields = [kind, ("error", &failure.message as &dyn Display), ("hint", hint)];
            context.actions.log(Level::Warning, "counts_upload_failed", &fields);
        }
        None if has_changed => context.actions.log(Level::Info, "counts_upload_recovered", &[kind]),
        _ => {}
    }
}
