//! [`Exporter`]: sends one export after the other to a collector, and retries those that may succeed later.
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::{Level, OtlpEndpoint};
use crate::limits::{FAILURE_REMINDER, OTLP_BACKOFF_MAX, RETRY_AFTER_MAX};
use crate::log::Log;
use crate::metrics::{OtlpSignal, TelemetryMetrics};
use crate::schedule::jitter;
use crate::telemetry::stop::StopSignal;
use crate::upstream::{Collector, ExportOutcome, PollError};

/// Wait after the first failure; it doubles with each further one.
const BACKOFF_MIN: Duration = Duration::from_secs(1);

/// What a collector did not take of an export that it accepted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartialSuccess {
    pub rejected: u64,
    /// One line of the collector; it may be set without rejected items.
    pub message: String,
}

pub struct Exporter {
    signal: OtlpSignal,
    collector: Collector,
    timeout: Duration,
    metrics: Arc<TelemetryMetrics>,
    log: Log,
    stop: Arc<StopSignal>,
    /// Consecutive failed attempts.
    failures: u32,
    /// No attempt is made before.
    retry_at: Option<Instant>,
    /// When a partial success was last logged.
    partial_logged: Option<Instant>,
}

impl Exporter {
    pub fn new(
        signal: OtlpSignal,
        collector: Collector,
        endpoint: &OtlpEndpoint,
        metrics: Arc<TelemetryMetrics>,
        log: Log,
        stop: Arc<StopSignal>,
    ) -> Self {
        let (failures, retry_at, partial_logged) = (0, None, None);
        let timeout = endpoint.timeout;
        Self { signal, collector, timeout, metrics, log, stop, failures, retry_at, partial_logged }
    }

    pub fn metrics(&self) -> &TelemetryMetrics {
        &self.metrics
    }

    pub fn stop(&self) -> &StopSignal {
        &self.stop
    }

    /// Sends an export within `OTEL_EXPORTER_OTLP_TIMEOUT` and `time_max`, with retries. Returns the body of
    /// the response, or `None` if the export is given up.
    pub fn export(&mut self, body: &[u8], time_max: Duration) -> Option<Vec<u8>> {
        let until = Instant::now() + time_max.min(self.timeout);
        let answer = self.attempts(body, until);
        self.metrics.exported(self.signal, answer.is_some());
        answer
    }

    fn attempts(&mut self, body: &[u8], until: Instant) -> Option<Vec<u8>> {
        loop {
            let retry_at = self.retry_at.unwrap_or(until).min(until);
            if self.retry_at.is_some() {
                self.stop.wait(retry_at.saturating_duration_since(Instant::now()));
            }
            let stop_at = self.stop.deadline();
            let now = Instant::now();
            let until = stop_at.map_or(until, |stop_at| stop_at.min(now + self.timeout));
            let is_early = stop_at.is_none() && self.retry_at.is_some_and(|at| at > now);
            if now >= until || is_early {
                return None;
            }
            match self.collector.export(body, until - now) {
                ExportOutcome::Accepted(answer) => {
                    self.recovered();
                    return Some(answer);
                }
                ExportOutcome::Refused(error) => {
                    self.failed(&error);
                    // The next export may be accepted.
                    self.retry_at = None;
                    return None;
                }
                ExportOutcome::Failed(error) => self.failed(&error),
            }
            if stop_at.is_some() {
                return None;
            }
        }
    }

    fn recovered(&mut self) {
        if std::mem::take(&mut self.failures) > 0 {
            self.log.event(Level::Info, "otlp_export_recovered", &[("signal", &self.signal.name())]);
        }
        self.retry_at = None;
    }

    /// Logs the first failure of an outage, and sets when the next attempt is made.
    fn failed(&mut self, error: &PollError) {
        if self.failures == 0 {
            let hint = "requests are not affected; edge_proxy_otlp_exports_total and \
                        edge_proxy_spans_dropped_total count what is lost";
            let fields: [(_, &dyn std::fmt::Display); 3] =
                [("signal", &self.signal.name()), ("error", error), ("hint", &hint)];
            self.log.event(Level::Warning, "otlp_export_failed", &fields);
        }
        let doubled = BACKOFF_MIN.saturating_mul(1 << self.failures.min(16)).min(OTLP_BACKOFF_MAX);
        self.failures = self.failures.saturating_add(1);
        let backoff = doubled.mul_f64(1.0 - 0.2 * jitter());
        let retry_after = error.retry_after.unwrap_or_default().min(RETRY_AFTER_MAX);
        self.retry_at = Some(Instant::now() + backoff.max(retry_after));
    }

    /// Logs what the collector did not take, at most once in `FAILURE_REMINDER`.
    pub fn report_partial(&mut self, partial: &PartialSuccess) {
        let now = Instant::now();
        let is_recent = self.partial_logged.is_some_and(|last| now.duration_since(last) < FAILURE_REMINDER);
        if is_recent || *partial == PartialSuccess::default() {
            return;
        }
        self.partial_logged = Some(now);
        let message = self.collector.without_secrets(&partial.message);
        let fields: [(_, &dyn std::fmt::Display); 3] =
            [("signal", &self.signal.name()), ("rejected_count", &partial.rejected), ("error", &message)];
        self.log.event(Level::Warning, "otlp_partial_success", &fields);
    }
}
