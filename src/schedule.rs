//! Schedules of periodic requests to upstream (polls, discovery, uploads): interval, backoff, jitter.
//!
//! After a success the next request is due an interval later. After a failure the wait doubles up to a limit
//! that depends on what is served meanwhile: see [`Retry`]. The functions are pure: clock and randomness are
//! arguments. The clock is monotonic, so a jump of the wall clock has no effect.
use std::time::{Duration, Instant};

use crate::{clock, limits};

/// First wait after a failure; the interval, if that is shorter.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
/// While a document is served the backoff grows to the poll interval, but at least to this.
const BACKOFF_SERVING_MIN: Duration = Duration::from_secs(2);
/// Default time between two unconditional fetches of a document of up to `FULL_REFRESH_BYTES`
/// (`api_full_refresh_seconds`), and the maximum for larger ones. A scheduled change of a flag changes
/// neither the document's `updated_at` nor sends an event: only an unconditional fetch finds it.
const FULL_REFRESH_MIN: Duration = Duration::from_secs(60);
const FULL_REFRESH_BYTES: usize = 1_000_000;
const FULL_REFRESH_MAX: Duration = Duration::from_secs(300);

/// The schedule of one environment, of discovery, or of one kind of upload.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    interval: Duration,
    due: Instant,
    /// The end of the honoured part of upstream's `Retry-After`.
    retry_after_until: Instant,
    /// Consecutive failures.
    failures: u32,
}

/// What limits the wait after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// There is no document: clients get errors until the next success. The limit is `BACKOFF_URGENT_MAX`.
    Empty,
    /// A document is served that is fresh for this time; `Retry-After` is honoured up to the same time. The
    /// backoff grows to the interval (at least `BACKOFF_SERVING_MIN`), or to `BACKOFF_URGENT_MAX` if the
    /// document is stale or would become stale.
    Serving(Duration),
}

impl Retry {
    /// For a document that becomes stale in `left`: one more fetch, which may take `timeout`, must fit into
    /// this time. `None`: the document never becomes stale.
    pub fn before_stale(left: Option<Duration>, timeout: Duration) -> Self {
        Self::Serving(left.map_or(limits::RETRY_AFTER_DEFAULT_MAX, |left| {
            left.saturating_sub(timeout).min(limits::RETRY_AFTER_MAX)
        }))
    }
}

impl Schedule {
    /// A schedule whose first request is due immediately.
    pub fn new(interval: Duration, now: Instant) -> Self {
        Self { interval, due: now, retry_after_until: now, failures: 0 }
    }

    /// When the next request is due.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// The time between two successful requests.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// Changes the interval; the next request is due an interval from now at the latest. Setting the same
    /// interval has no effect: it does not shorten a `Retry-After`.
    pub fn set_interval(&mut self, interval: Duration, now: Instant) {
        if self.interval == interval {
            return;
        }
        self.interval = interval;
        self.due = self.due.min(now + interval);
    }

    /// Makes the next request due no later than `at`.
    pub fn hasten(&mut self, at: Instant) {
        self.due = self.due.min(at);
    }

    /// As [`hasten`](Self::hasten), but not before the end of an honoured `Retry-After`.
    pub fn hasten_after_retry_after(&mut self, at: Instant) {
        self.hasten(at.max(self.retry_after_until));
    }

    /// Schedules the next request after a success. The interval counts from the start of the request, so a
    /// slow upstream does not lengthen it. Ends a `Retry-After`.
    pub fn succeeded(&mut self, started: Instant, now: Instant, jitter: f64) {
        self.failures = 0;
        self.retry_after_until = now;
        self.due = (started + spread(self.interval, jitter)).max(now);
    }

    /// Schedules the next request after a failure, and returns the wait. The wait starts at `BACKOFF_MIN` (or
    /// the interval, if that is shorter), doubles with each failure up to the limit of `retry`, and is
    /// shortened by jitter. A longer `Retry-After` is honoured within the limit of `retry`.
    pub fn failed(
        &mut self,
        now: Instant,
        retry: Retry,
        retry_after: Option<Duration>,
        jitter: f64,
    ) -> Duration {
        let (delay_max, retry_after_max) = match retry {
            Retry::Empty => (limits::BACKOFF_URGENT_MAX, limits::BACKOFF_URGENT_MAX),
            Retry::Serving(retry_after_max) => {
                let delay_max = self.interval.clamp(BACKOFF_SERVING_MIN, limits::BACKOFF_MAX);
                // The document is stale, or would be after the next wait.
                let is_urgent = retry_after_max < delay_max;
                (
                    if is_urgent { delay_max.min(limits::BACKOFF_URGENT_MAX) } else { delay_max },
                    retry_after_max,
                )
            }
        };
        let first = self.interval.min(BACKOFF_MIN);
        let doubled = first.saturating_mul(1 << self.failures.min(16)).min(delay_max);
        self.failures = self.failures.saturating_add(1);
        let honoured = retry_after.unwrap_or_default().min(retry_after_max);
        let delay = shorten(doubled, jitter).max(honoured);
        self.retry_after_until = now + honoured;
        self.due = now + delay;
        delay
    }
}

/// The time from an unconditional fetch of `bytes` bytes to the next one: `setting`, or by default
/// `FULL_REFRESH_MIN` for up to `FULL_REFRESH_BYTES`, proportionally longer for larger documents, at most
/// `FULL_REFRESH_MAX`. `jitter` shortens it, so that replicas do not fetch in step.
pub fn full_refresh(setting: Option<Duration>, bytes: usize, jitter: f64) -> Duration {
    let default = || {
        let parts = bytes as f64 / FULL_REFRESH_BYTES as f64;
        FULL_REFRESH_MIN.mul_f64(parts.clamp(1.0, 1000.0)).min(FULL_REFRESH_MAX)
    };
    shorten(setting.unwrap_or_else(default), jitter)
}

/// `span` plus or minus up to 10 %: `jitter` is in [0, 1).
fn spread(span: Duration, jitter: f64) -> Duration {
    span.mul_f64(0.9 + 0.2 * jitter.clamp(0.0, 1.0))
}

/// `span` shortened by up to 20 %: `jitter` is in [0, 1).
fn shorten(span: Duration, jitter: f64) -> Duration {
    span.mul_f64(1.0 - 0.2 * jitter.clamp(0.0, 1.0))
}

/// A random number, uniform in [0, 1); 0 if the system's random generator fails.
pub fn jitter() -> f64 {
    clock::random().map_or(0.0, |random| f64::from((random >> 32) as u32) / (f64::from(u32::MAX) + 1.0))
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
    fn the_interval_counts_from_the_start_of_the_poll() {
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

    fn waits(interval: Duration, retry: Retry, jitter: f64, count: usize) -> Vec<u64> {
        let start = Instant::now();
        let mut schedule = Schedule::new(interval, start);
        let mut wait = || schedule.failed(start, retry, None, jitter).as_millis() as u64;
        std::iter::repeat_with(&mut wait).take(count).collect()
    }

    #[test]
    fn with_a_document_the_wait_grows_to_the_interval_or_two_seconds() {
        let serving = Retry::Serving(Duration::from_secs(60));
        assert_eq!(waits(INTERVAL, serving, 0.0, 7), [1000, 2000, 4000, 8000, 10_000, 10_000, 10_000]);
        assert_eq!(waits(INTERVAL / 100, serving, 0.0, 7), [100, 200, 400, 800, 1600, 2000, 2000]);
        let stale = Retry::Serving(Duration::ZERO);
        assert_eq!(waits(INTERVAL, stale, 0.0, 5), [1000, 2000, 4000, 5000, 5000], "stale, or soon");
        assert_eq!(waits(INTERVAL / 5, stale, 0.0, 4), [1000, 2000, 2000, 2000]);
        let hour = Duration::from_secs(3600);
        assert_eq!(waits(hour, serving, 0.0, 8)[4..], [16_000, 32_000, 60_000, 60_000]);
        // Jitter shortens only.
        assert_eq!(waits(INTERVAL, serving, 1.0, 6), [800, 1600, 3200, 6400, 8000, 8000]);
        assert_eq!(waits(INTERVAL, serving, MIDDLE, 5), [900, 1800, 3600, 7200, 9000]);
    }

    #[test]
    fn success_ends_retry_after() {
        let start = Instant::now();
        let mut schedule = Schedule::new(INTERVAL, start);
        let minute = Duration::from_secs(60);
        schedule.failed(start, Retry::Serving(minute), Some(minute), MIDDLE);
        schedule.hasten_after_retry_after(at(start, 1.0));
        assert_eq!(schedule.due(), at(start, 60.0));
        // A reload of the configuration makes the request due.
        schedule.hasten(at(start, 2.0));
        schedule.succeeded(at(start, 2.0), at(start, 2.1), MIDDLE);
        schedule.hasten_after_retry_after(at(start, 3.0));
        assert_eq!(schedule.due(), at(start, 3.0), "an event of the stream is not delayed");
    }

    #[test]
    fn success_resets_the_backoff() {
        let start = Instant::now();
        let serving = Retry::Serving(Duration::ZERO);
        let mut schedule = Schedule::new(INTERVAL, start);
        (0..5).for_each(|_| assert!(!schedule.failed(start, serving, None, 0.0).is_zero()));
        schedule.succeeded(start, start, MIDDLE);
        assert_eq!(schedule.failed(start, serving, None, 0.0), Duration::from_secs(1));
    }

    #[test]
    fn without_a_document_the_wait_grows_to_five_seconds() {
        assert_eq!(waits(INTERVAL, Retry::Empty, 0.0, 5), [1000, 2000, 4000, 5000, 5000]);
        assert_eq!(waits(INTERVAL / 100, Retry::Empty, 0.0, 8)[5..], [3200, 5000, 5000]);
        let start = Instant::now();
        let mut schedule = Schedule::new(INTERVAL, start);
        let retry_after = Some(Duration::from_secs(120));
        assert_eq!(schedule.failed(start, Retry::Empty, retry_after, 0.0), Duration::from_secs(5));
    }

    #[test]
    fn retry_after_is_honoured_until_one_fetch_before_the_document_is_stale() {
        let (start, timeout) = (Instant::now(), Duration::from_secs(5));
        let wait = |left: Option<u64>, retry_after: Duration| {
            let retry = Retry::before_stale(left.map(Duration::from_secs), timeout);
            Schedule::new(INTERVAL, start).failed(start, retry, Some(retry_after), 0.0).as_secs()
        };
        let seconds = Duration::from_secs;
        assert_eq!(wait(Some(30), seconds(120)), 25, "limited to the time left, less one fetch");
        assert_eq!(wait(Some(30), seconds(20)), 20, "honoured in full");
        assert_eq!(wait(Some(30), Duration::ZERO), 1, "never shorter than the backoff");
        assert_eq!(wait(Some(5), seconds(120)), 1, "no time left");
        assert_eq!(wait(Some(0), seconds(120)), 1, "stale already");
        assert_eq!(wait(None, seconds(120)), 60, "never stale: a minute");
        assert_eq!(wait(None, seconds(1 << 40)), 60);
        assert_eq!(wait(Some(86_400), seconds(1 << 40)), limits::RETRY_AFTER_MAX.as_secs());
    }

    #[test]
    fn an_event_does_not_shorten_a_retry_after() {
        let start = Instant::now();
        let mut schedule = Schedule::new(INTERVAL, start);
        schedule.failed(start, Retry::Serving(INTERVAL), Some(Duration::from_secs(7)), 0.0);
        schedule.hasten_after_retry_after(start);
        assert_eq!(schedule.due(), at(start, 7.0));
        schedule.hasten(start);
        assert_eq!(schedule.due(), start, "a new key or address does shorten it");
        schedule.failed(start, Retry::Serving(INTERVAL), None, 0.0);
        schedule.hasten_after_retry_after(start);
        assert_eq!(schedule.due(), start, "there was no Retry-After");
    }

    #[test]
    fn the_full_refresh_interval_grows_with_the_document() {
        let due = |bytes| full_refresh(None, bytes, 0.0).as_secs();
        assert_eq!([0, 10_000, 1_000_000].map(due), [60, 60, 60]);
        assert_eq!(
            [1_500_000, 2_500_000, 5_000_000, 50_000_000, usize::MAX].map(due),
            [90, 150, 300, 300, 300]
        );
        assert_eq!(full_refresh(None, 0, 1.0), Duration::from_secs(48), "jitter shortens by up to a fifth");
        let set = Some(Duration::from_secs(10));
        assert_eq!(full_refresh(set, usize::MAX, 0.0), Duration::from_secs(10), "a setting is not limited");
        assert_eq!(full_refresh(set, 0, MIDDLE), Duration::from_secs(9));
    }

    #[test]
    fn hasten_never_delays() {
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
