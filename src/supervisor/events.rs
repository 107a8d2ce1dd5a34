//! When stored experiment events are forwarded, and what becomes of a round.
use std::fmt::Display;
use std::time::Instant;

use crate::config::{Config, Level};
use crate::forwarding::round::ForwardResult;
use crate::limits;
use crate::schedule::{Retry, Schedule};
use crate::supervisor::action::Action;
use crate::supervisor::context::EventContext;
use crate::upstream::PollErrorKind;

/// The schedule of forwarding.
#[derive(Debug)]
pub struct Forwarding {
    schedule: Schedule,
    is_in_flight: bool,
    /// Of the last round.
    failure: Option<PollErrorKind>,
    has_disk_error: bool,
}

impl Forwarding {
    /// `None` if events are not accepted.
    pub fn new(config: &Config, now: Instant) -> Option<Self> {
        let schedule = Schedule::new(config.events.flush_interval, now);
        let is_used = config.events.enabled && config.cache_dir.is_some();
        is_used.then_some(Self { schedule, is_in_flight: false, failure: None, has_disk_error: false })
    }

    pub fn set_interval(&mut self, config: &Config, now: Instant) {
        self.schedule.set_interval(config.events.flush_interval, now);
    }

    /// When the next round is due; `None` while one is in progress.
    pub fn due(&self) -> Option<Instant> {
        (!self.is_in_flight).then(|| self.schedule.due())
    }

    pub fn is_in_flight(&self) -> bool {
        self.is_in_flight
    }

    /// Starts the round that is due.
    pub fn tick(&mut self, context: &mut EventContext<'_>) {
        if self.due().is_some_and(|due| due <= context.now.instant) {
            self.start(None, context);
        }
    }

    /// Starts the last round before the process ends, unless one is in progress.
    pub fn start_last(&mut self, until: Instant, context: &mut EventContext<'_>) {
        if !self.is_in_flight {
            self.start(Some(until), context);
        }
    }

    fn start(&mut self, until: Option<Instant>, context: &mut EventContext<'_>) {
        self.is_in_flight = true;
        context.actions.push(Action::ForwardEvents { until });
    }

    /// No thread could be started for a round.
    pub fn not_started(&mut self, error: &str, context: &mut EventContext<'_>) {
        self.is_in_flight = false;
        let now = context.now;
        self.schedule.failed(now.instant, Retry::Serving(limits::RETRY_AFTER_DEFAULT_MAX), None, now.jitter);
        context.actions.log(Level::Error, "no_thread", &[("error", &error)]);
    }

    /// Applies the result of a round.
    pub fn forwarded(&mut self, result: &ForwardResult, context: &mut EventContext<'_>) {
        let now = context.now;
        self.is_in_flight = false;
        let retry = Retry::Serving(limits::RETRY_AFTER_DEFAULT_MAX);
        match &result.failure {
            // If upstream has accepted other batches, a failure does not delay the next round.
            Some(failure) if !result.is_any_accepted => {
                self.schedule.failed(now.instant, retry, failure.retry_after, now.jitter);
            }
            None if result.disk_error.is_some() => {
                self.schedule.failed(now.instant, retry, None, now.jitter);
            }
            _ => self.schedule.succeeded(result.started, now.instant, now.jitter),
        }
        if result.is_cut {
            self.schedule.hasten_after_retry_after(now.instant);
        }
        self.record(result, context);
    }

    /// Counts the result in the metrics, and logs losses and changes between success and failure.
    fn record(&mut self, result: &ForwardResult, context: &mut EventContext<'_>) {
        let metrics = &context.metrics.events;
        metrics.divided.add(result.divided);
        result.lost.iter().for_each(|(loss, count)| metrics.lost(*loss, *count));
        result.rejected.iter().for_each(|(reason, count)| metrics.rejected(reason, *count));
        // Last, after what the same round lost: who waits for it then reads the others.
        metrics.sent.add(result.sent);
        if let Some(why) = &result.refusal {
            let lost: u64 = result.lost.iter().map(|(_, count)| count).sum();
            let fields: [(_, &dyn Display); 2] = [("error", why), ("lost_count", &lost)];
            context.actions.log(Level::Error, "events_refused", &fields);
        }
        let has_disk_error = result.disk_error.is_some();
        if let Some(error) = result.disk_error.as_ref().filter(|_| !self.has_disk_error) {
            let hint = "events wait until the spool in cache_dir can be read and written";
            context.actions.log(Level::Error, "events_spool_failed", &[("error", error), ("hint", &hint)]);
        }
        self.has_disk_error = has_disk_error;
        let kind = result.failure.as_ref().map(|failure| failure.kind);
        let has_changed = std::mem::replace(&mut self.failure, kind) != kind;
        match &result.failure {
            Some(failure) if has_changed => {
                let hint = "the events are kept and sent again";
                let fields: [(_, &dyn Display); 2] = [("error", &failure.message), ("hint", &hint)];
                context.actions.log(Level::Warning, "events_not_sent", &fields);
            }
            None if has_changed => context.actions.log(Level::Info, "events_sent_again", &[]),
            _ => {}
        }
    }
}
