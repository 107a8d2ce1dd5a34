//! What a connection does while Redis cannot be used: reports it, waits longer each time, tries again.
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::thread;
use std::time::{Duration, Instant};

use crate::clock;
use crate::limits::BACKOFF_URGENT_MAX;
use crate::schedule::{Retry, Schedule, jitter};
use crate::traits::redis::client::RedisFault;
use crate::traits::redis::link::{RedisReport, SharedState, Side, report};

/// How often a waiting thread checks whether the process ends.
const STOP_CHECK: Duration = Duration::from_millis(100);

/// The attempts of one connection.
pub struct Outage {
    side: Side,
    shared: Arc<SharedState>,
    reports: SyncSender<RedisReport>,
    schedule: Schedule,
    /// Until the first success too.
    is_reported: bool,
}

impl Outage {
    pub fn new(side: Side, shared: Arc<SharedState>, reports: SyncSender<RedisReport>) -> Self {
        let schedule = Schedule::new(BACKOFF_URGENT_MAX, clock::instant());
        Self { side, shared, reports, schedule, is_reported: true }
    }

    /// An attempt failed: returns when the next one is due.
    ///
    /// # Errors
    /// The store thread has ended.
    pub fn failed(&mut self, fault: RedisFault) -> Result<(), RedisFault> {
        if matches!(fault, RedisFault::Stopped) {
            return Err(fault);
        }
        self.is_reported = true;
        report(&self.reports, RedisReport::Failed(self.side, fault))?;
        self.schedule.failed(clock::instant(), Retry::Empty, None, jitter());
        pause(self.schedule.due(), &self.shared);
        Ok(())
    }

    /// Redis can be used: reports the end of an outage.
    ///
    /// # Errors
    /// The store thread has ended.
    pub fn ended(&mut self) -> Result<(), RedisFault> {
        match std::mem::take(&mut self.is_reported) {
            true => report(&self.reports, RedisReport::Recovered(self.side)),
            false => Ok(()),
        }
    }

    /// The next failure is the first one again.
    pub fn reset(&mut self) {
        self.schedule.succeeded(clock::instant(), clock::instant(), 0.0);
    }
}

/// Waits until then, or until the process ends.
pub fn pause(until: Instant, shared: &SharedState) {
    while !shared.is_stopped() {
        let left = until.saturating_duration_since(clock::instant());
        if left.is_zero() {
            return;
        }
        thread::sleep(left.min(STOP_CHECK));
    }
}
