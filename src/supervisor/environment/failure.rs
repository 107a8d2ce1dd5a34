//! Consecutive failed polls of an environment: since when, how many, and when to log the next.
//!
//! A failure of another kind is logged immediately, the same kind once per `limits::FAILURE_REMINDER`, so
//! that the log of the last hour shows every failure and none floods it.
use std::time::{Duration, Instant, SystemTime};

use crate::limits;
use crate::snapshot::LastError;
use crate::upstream::PollError;

/// From the first failed poll to the next successful one.
#[derive(Debug)]
pub struct FailureState {
    /// Of the last poll.
    pub error: PollError,
    pub since: SystemTime,
    /// Consecutive failed polls.
    pub count: u64,
    began: Instant,
    logged: Instant,
}

impl FailureState {
    /// The first failure, which is to be logged.
    pub fn new(error: PollError, now: Instant, wall: SystemTime) -> Self {
        Self { error, since: wall, count: 1, began: now, logged: now }
    }

    pub fn lasted(&self, now: Instant) -> Duration {
        now.duration_since(self.began)
    }

    /// What responses and the status page show of it.
    pub fn last_error(&self) -> LastError {
        LastError { kind: self.error.kind.name(), text: self.error.message.as_str().into() }
    }

    /// Adds a failure. Returns whether its message differs from the last, and whether it is to be logged.
    pub fn repeat(&mut self, error: PollError, now: Instant) -> (bool, bool) {
        let is_other = self.error.message != error.message;
        let is_logged =
            self.error.kind != error.kind || now.duration_since(self.logged) >= limits::FAILURE_REMINDER;
        self.error = error;
        self.count += 1;
        if is_logged {
            self.logged = now;
        }
        (is_other, is_logged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::PollErrorKind;

    #[test]
    fn logs_a_new_kind_immediately_and_the_same_kind_once_per_interval() {
        let (start, wall) = (Instant::now(), SystemTime::UNIX_EPOCH);
        let refused = || PollError::new(PollErrorKind::Status(403), "refused");
        let mut failure = FailureState::new(refused(), start, wall);
        let at = |part: u32| start + limits::FAILURE_REMINDER / 4 * part;
        let logged: Vec<bool> = (1..=9).map(|part| failure.repeat(refused(), at(part)).1).collect();
        assert_eq!(logged, [false, false, false, true, false, false, false, true, false]);
        assert_eq!(failure.repeat(PollError::new(PollErrorKind::Tls, "x"), at(9)), (true, true));
        assert_eq!(failure.repeat(PollError::new(PollErrorKind::Tls, "y"), at(12)), (true, false));
        assert_eq!((failure.count, failure.error.message.as_str(), failure.since), (12, "y", wall));
        assert_eq!(failure.lasted(at(12)), limits::FAILURE_REMINDER * 3);
    }
}
