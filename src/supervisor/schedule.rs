//! When one environment is polled next.
//!
//! In: what became of the last poll, and the time. Out: the next due time. Invariants: success
//! keeps the interval, failure backs off and never beyond `limits::BACKOFF_MAX` unless upstream
//! asked for more. Pure: no clock, no randomness, both are arguments. A monotonic clock, so that
//! a jump of the wall clock moves nothing.
use std::time::{Duration, Instant};

use crate::limits;

/// The schedule of one environment.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    interval: Duration,
    due: Instant,
    /// Failures in a row.
    failures: u32,
}

impl Schedule {
    /// Due at once.
    pub fn new(interval: Duration, now: Instant) -> Self {
        Self { interval, due: now, failures: 0 }
    }

    /// When to ask next.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Between two rounds that succeed.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// Takes a new interval from now on; a poll that would come later than it comes earlier.
    /// The same one changes nothing: not the wait that upstream asked for either.
    pub fn set_interval(&mut self, interval: Duration, now: Instant) {
        if self.interval == interval {
            return;
        }
        self.interval = interval;
        self.due = self.due.min(now + interval);
    }

    /// Makes the next poll due no later than `at`.
    pub fn hasten(&mut self, at: Instant) {
        self.due = self.due.min(at);
    }

    /// Counted from the start of the poll, so that a slow upstream does not stretch the interval.
    pub fn succeeded(&mut self, started: Instant, now: Instant, jitter: f64) {
        self.failures = 0;
        self.due = (started + spread(self.interval, jitter)).max(now);
    }

    /// Doubles from the interval, or from a second while nothing is held, to `BACKOFF_MAX`;
    /// longer only if upstream said so by `Retry-After`. Returns the delay.
    pub fn failed(
        &mut self,
        now: Instant,
        held: bool,
        retry_after: Option<Duration>,
        jitter: f64,
    ) -> Duration {
        let first = if held { self.interval } else { self.interval.min(limits::BACKOFF_EMPTY_MIN) };
        let doubled = first.saturating_mul(1 << self.failures.min(16)).min(limits::BACKOFF_MAX);
        self.failures = self.failures.saturating_add(1);
        let asked = retry_after.unwrap_or_default().min(limits::RETRY_AFTER_MAX);
        let delay = spread(doubled, jitter).max(asked);
        self.due = now + delay;
        delay
    }
}

/// `span` within 10 % to either side: `jitter` is in [0, 1).
fn spread(span: Duration, jitter: f64) -> Duration {
    span.mul_f64(0.9 + 0.2 * jitter.clamp(0.0, 1.0))
}

/// Uniform in [0, 1). Zero if the system has no randomness to give, which only takes the jitter away.
pub fn jitter() -> f64 {
    getrandom::u32().map_or(0.0, |random| f64::from(random) / (f64::from(u32::MAX) + 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(10);
    const MIDDLE: f64 = 0.5;

    fn at(start: Instant, seconds: f64) -> Instant {
        start + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn success_is_counted_from_the_start_of_the_poll() {
        let start = Instant::now();
        let mut schedule = Schedule::new(INTERVAL, start);
        assert_eq!(schedule.due(), start);
        schedule.succeeded(start, at(start, 4.0), MIDDLE);
        assert_eq!(schedule.due(), at(start, 10.0));
        schedule.succeeded(start, at(start, 14.0), MIDDLE);
        assert_eq!(schedule.due(), at(start, 14.0), "overdue is due now, not in the past");
    }

    #[test]
    fn jitter_is_ten_percent() {
        let start = Instant::now();
        let mut schedule = Schedule::new(INTERVAL, start);
        schedule.succeeded(start, start, 0.0);
        assert_eq!(schedule.due(), at(start, 9.0));
        schedule.succeeded(start, start, 1.0);
        assert_eq!(schedule.due(), at(start, 11.0));
        assert!((0..100).all(|_| (0.0..1.0).contains(&jitter())));
    }

    #[test]
    fn failures_back_off_to_a_minute_and_success_forgets_them() {
        let start = Instant::now();
        let mut schedule = Schedule::new(INTERVAL, start);
        let delays: Vec<u64> = (0..5).map(|_| schedule.failed(start, true, None, MIDDLE).as_secs()).collect();
        assert_eq!(delays, [10, 20, 40, 60, 60]);
        schedule.succeeded(start, start, MIDDLE);
        assert_eq!(schedule.failed(start, true, None, MIDDLE), INTERVAL);
    }

    #[test]
    fn an_environment_without_a_document_is_retried_from_a_second() {
        let start = Instant::now();
        let mut schedule = Schedule::new(INTERVAL, start);
        let delays: Vec<u64> =
            (0..4).map(|_| schedule.failed(start, false, None, MIDDLE).as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 8]);
    }

    #[test]
    fn retry_after_is_respected_within_reason() {
        let start = Instant::now();
        let mut schedule = Schedule::new(INTERVAL, start);
        let asked = Duration::from_secs(90);
        assert_eq!(schedule.failed(start, true, Some(asked), MIDDLE), asked);
        assert_eq!(
            schedule.failed(start, true, Some(Duration::from_secs(1 << 40)), MIDDLE),
            limits::RETRY_AFTER_MAX
        );
        let mut schedule = Schedule::new(INTERVAL, start);
        assert_eq!(schedule.failed(start, true, Some(Duration::ZERO), MIDDLE), INTERVAL);
    }

    #[test]
    fn a_nudge_only_ever_hastens() {
        let start = Instant::now();
        let mut schedule = Schedule::new(INTERVAL, start);
        schedule.succeeded(start, start, MIDDLE);
        schedule.hasten(at(start, 30.0));
        assert_eq!(schedule.due(), at(start, 10.0));
        schedule.hasten(start);
        assert_eq!(schedule.due(), start);
        schedule.succeeded(start, start, MIDDLE);
        schedule.set_interval(Duration::from_secs(2), start);
        assert_eq!(schedule.due(), at(start, 2.0));
    }
}
