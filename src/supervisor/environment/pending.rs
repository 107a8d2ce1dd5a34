//! What upstream's event stream told of, and is not held yet.
//!
//! In: the `updated_at` of an event. Out: polls without delay until the document is that new. Invariants:
//! an event only ever hastens polling; one that no document ever bears out is given up and said so,
//! and never asked for again. Time is an argument.
use std::time::{Duration, Instant};

use crate::config::Level;
use crate::limits;
use crate::snapshot::DocumentSource;
use crate::supervisor::environment::{PolledEnvironment, Records};

/// What an event said is there and is not held yet.
#[derive(Clone, Copy, Debug)]
pub struct PendingUpdate {
    updated_at: f64,
    since: Instant,
    retry: Duration,
}

impl PolledEnvironment {
    /// Upstream says that the document of this time is there.
    pub fn nudge(&mut self, updated_at: f64, now: Instant) {
        let is_old = self.wanted.is_some_and(|wanted| wanted.updated_at >= updated_at);
        if is_old || self.has(updated_at) || self.disbelieved == Some(updated_at) {
            return;
        }
        self.wanted = Some(PendingUpdate { updated_at, since: now, retry: limits::EVENT_RETRY_MIN });
        self.full_next = true;
        self.schedule.hasten_after_retry_after(now);
    }

    /// Whether the document held is as new as that. Times travel as floats: half a millisecond is equal.
    fn has(&self, updated_at: f64) -> bool {
        let held = self.held.as_ref().filter(|held| held.source == DocumentSource::Upstream);
        held.and_then(|held| held.environment.updated_at()).is_some_and(|held| held >= updated_at - 0.0005)
    }

    /// After a poll: is what an event told of there now? Else asks again, and in the end gives up.
    pub(super) fn check_wanted(&mut self, records: &Records, now: Instant) {
        let Some(mut wanted) = self.wanted else { return };
        if self.failing.is_some() {
            // Upstream is asked again by the rules of back-off, and says nothing about the event.
            self.full_next = true;
            self.wanted = Some(PendingUpdate { since: now, ..wanted });
            return;
        }
        if self.has(wanted.updated_at) {
            self.wanted = None;
        } else if now.duration_since(wanted.since) > limits::EVENT_PATIENCE {
            self.wanted = None;
            self.disbelieved = Some(wanted.updated_at);
            let hint = "the event stream told of a document that upstream does not serve";
            let fields: [(_, &dyn std::fmt::Display); 3] =
                [("client_side_key", &self.name()), ("updated_at", &wanted.updated_at), ("hint", &hint)];
            records.log.event(Level::Warning, "realtime_event_disbelieved", &fields);
        } else {
            self.full_next = true;
            self.schedule.hasten(now + wanted.retry);
            wanted.retry = (wanted.retry * 2).min(limits::EVENT_RETRY_MAX);
            self.wanted = Some(wanted);
        }
    }
}
