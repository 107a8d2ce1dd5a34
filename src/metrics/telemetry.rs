//! The metrics of the exporter of OpenTelemetry.
use crate::metrics::counter::SharedCounter;

/// Why a span is not exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanLoss {
    /// Too many wait.
    Full,
    /// The collector could not be reached in time, or refused the request.
    Failed,
    /// The collector accepted the request without it.
    Rejected,
}

impl SpanLoss {
    /// All variants in declaration order, which the counters use as an index.
    pub const ALL: [Self; 3] = [Self::Full, Self::Failed, Self::Rejected];

    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
        }
    }
}

/// What is exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtlpSignal {
    Traces,
    Metrics,
}

impl OtlpSignal {
    /// All variants in declaration order, which the counters use as an index.
    pub const ALL: [Self; 2] = [Self::Traces, Self::Metrics];

    /// The name in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Traces => "traces",
            Self::Metrics => "metrics",
        }
    }
}

#[derive(Debug, Default)]
pub struct TelemetryMetrics {
    /// Spans that the collector accepted.
    pub spans_exported: SharedCounter,
    lost: [SharedCounter; SpanLoss::ALL.len()],
    sent: [SharedCounter; OtlpSignal::ALL.len()],
    failed: [SharedCounter; OtlpSignal::ALL.len()],
}

impl TelemetryMetrics {
    /// Counts spans that are not exported.
    pub fn lost(&self, loss: SpanLoss, count: u64) {
        if let Some(counter) = self.lost.get(loss as usize) {
            counter.add(count);
        }
    }

    /// Spans that are not exported for this reason (its index in `SpanLoss::ALL`).
    pub fn lost_of(&self, loss: usize) -> u64 {
        self.lost.get(loss).map_or(0, SharedCounter::value)
    }

    /// Counts an export, after its last attempt.
    pub fn exported(&self, signal: OtlpSignal, is_sent: bool) {
        let counters = if is_sent { &self.sent } else { &self.failed };
        if let Some(counter) = counters.get(signal as usize) {
            counter.add(1);
        }
    }

    /// Exports of a signal (its index in `OtlpSignal::ALL`): those that succeeded, and those that failed.
    pub fn exports_of(&self, signal: usize) -> [u64; 2] {
        [&self.sent, &self.failed].map(|counters| counters.get(signal).map_or(0, SharedCounter::value))
    }
}
