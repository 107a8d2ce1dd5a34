//! [`StopSignal`]: ends the waits of the exporters' threads.
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Set once, when the process ends.
#[derive(Debug, Default)]
pub struct StopSignal {
    deadline: Mutex<Option<Instant>>,
    changed: Condvar,
}

impl StopSignal {
    /// The threads must end until then.
    pub fn set(&self, deadline: Instant) {
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner) = Some(deadline);
        self.changed.notify_all();
    }

    /// When the threads must end; `None`: they go on.
    pub fn deadline(&self) -> Option<Instant> {
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for this time, or until the signal is set.
    pub fn wait(&self, time: Duration) {
        let deadline = self.deadline.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_timeout_while(deadline, time, |deadline| deadline.is_none()));
    }
}
