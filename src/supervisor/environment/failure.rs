//! A failure that goes on: since when, how often, and when to tell of it again.
//!
//! In: each failed poll. Out: whether it deserves a line in the log. Invariant: a failure of
//! another kind is told at once, the same one no more often than `limits::FAILURE_REMINDER`, so
//! that a log of the last hour shows it and nothing is flooded. Time is an argument.
use std::time::{Duration, Instant, SystemTime};

use crate::config::Level;
use crate::limits;
use crate::log::Log;
use crate::schedule::jitter;
use crate::supervisor::environment::{Change, Deadlines, PolledEnvironment};
use crate::upstream::{PollError, PollErrorKind};

/// From the first failed poll to the next good one.
#[derive(Debug)]
pub struct FailureState {
    /// Of the last poll.
    pub error: PollError,
    pub since: SystemTime,
    /// Failed polls in a row.
    pub count: u64,
    began: Instant,
    told: Instant,
}

impl FailureState {
    /// The first failure, which is told.
    pub fn new(error: PollError, now: Instant, clock: SystemTime) -> Self {
        Self { error, since: clock, count: 1, began: now, told: now }
    }

    /// How long it has been so.
    pub fn lasted(&self, now: Instant) -> Duration {
        now.duration_since(self.began)
    }

    /// Takes one more failure: whether its text is another, and whether it is to be told.
    pub fn goes_on(&mut self, error: PollError, now: Instant) -> (bool, bool) {
        let is_other = self.error.message != error.message;
        let is_told =
            self.error.kind != error.kind || now.duration_since(self.told) >= limits::FAILURE_REMINDER;
        self.error = error;
        self.count += 1;
        if is_told {
            self.told = now;
        }
        (is_other, is_told)
    }
}

impl PolledEnvironment {
    /// What was wrong with the last poll.
    pub(super) fn error(&self) -> Option<&PollError> {
        self.failing.as_ref().map(|failing| &failing.error)
    }

    /// Takes note of a poll that failed; whatever is held stays.
    pub(super) fn failed(
        &mut self,
        error: PollError,
        deadlines: Deadlines,
        log: &Log,
        now: Instant,
        clock: SystemTime,
    ) -> Change {
        self.full_at = None;
        if matches!(error.kind, PollErrorKind::Status(401 | 403)) {
            self.refused_keys = self.refused_keys.wrapping_add(1);
        }
        let is_file = self.config.document_path.is_some();
        let delay = if is_file {
            self.schedule.succeeded(now, now, self.spread());
            self.schedule.interval()
        } else {
            self.schedule.failed(now, self.retry(deadlines), error.retry_after, jitter())
        };
        let (is_other, is_told) = match &mut self.failing {
            Some(failing) => failing.goes_on(error, now),
            None => {
                self.failing = Some(FailureState::new(error, now, clock));
                (true, true)
            }
        };
        if let Some(failing) = self.failing.as_ref().filter(|_| is_told) {
            let event = if is_file { "document_refused" } else { "environment_poll_failed" };
            let serving = if self.held.is_some() { "the last good document" } else { "nothing (502)" };
            log.event(
                Level::Error,
                event,
                &[
                    ("client_side_key", &self.name()),
                    ("error", &failing.error.message),
                    ("serving", &serving),
                    ("failures_count", &failing.count),
                    ("failing_seconds", &failing.lasted(now).as_secs()),
                    ("retry_seconds", &format_args!("{:.1}", delay.as_secs_f64())),
                ],
            );
        }
        if is_other { Change::Content } else { Change::Nothing }
    }

    /// Takes note of a good poll; true if the one before had failed.
    pub(super) fn recovered(&mut self, log: &Log, now: Instant) -> bool {
        let Some(failing) = self.failing.take() else { return false };
        log.event(
            Level::Info,
            "environment_recovered",
            &[
                ("client_side_key", &self.name()),
                ("failures_count", &failing.count),
                ("failing_seconds", &failing.lasted(now).as_secs()),
            ],
        );
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_failure_is_told_now_and_then_and_another_at_once() {
        let (start, clock) = (Instant::now(), SystemTime::UNIX_EPOCH);
        let refused = || PollError::new(PollErrorKind::Status(403), "refused");
        let mut failing = FailureState::new(refused(), start, clock);
        let at = |part: u32| start + limits::FAILURE_REMINDER / 4 * part;
        let told: Vec<bool> = (1..=9).map(|part| failing.goes_on(refused(), at(part)).1).collect();
        assert_eq!(told, [false, false, false, true, false, false, false, true, false]);
        assert_eq!(failing.goes_on(PollError::new(PollErrorKind::Tls, "x"), at(9)), (true, true));
        assert_eq!(failing.goes_on(PollError::new(PollErrorKind::Tls, "y"), at(12)), (true, false));
        assert_eq!((failing.count, failing.error.message.as_str(), failing.since), (12, "y", clock));
        assert_eq!(failing.lasted(at(12)), limits::FAILURE_REMINDER * 3);
    }
}
