//! What is exported by OpenTelemetry's protocol (OTLP), to where, and how often.
use std::time::Duration;

use crate::config::secret::Secret;

/// What is exported by OTLP. Without an endpoint: nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Telemetry {
    pub traces: Option<OtlpEndpoint>,
    pub metrics: Option<OtlpEndpoint>,
    /// The attributes of the resource, among them `service.name`.
    pub resource: Vec<(String, String)>,
    pub metric_interval: Duration,
    /// Limit of the time for one export of the metrics.
    pub metric_timeout: Duration,
    pub batches: SpanBatches,
    /// `None`: requests have no spans, and all other spans are exported.
    pub sampler: Option<Sampler>,
}

/// Where one kind of telemetry is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtlpEndpoint {
    /// A URL with `http` or `https`; it may contain a user and a password.
    pub url: Secret,
    pub headers: Vec<(String, Secret)>,
    /// Limit of the time for one export.
    pub timeout: Duration,
    /// Compress with gzip.
    pub gzip: bool,
}

/// How spans are gathered (`OTEL_BSP_*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpanBatches {
    /// Time between two exports, unless a batch is full.
    pub delay: Duration,
    /// Limit of the time for one export.
    pub timeout: Duration,
    /// Spans that may wait.
    pub queue_max: usize,
    /// Spans of one export.
    pub batch_max: usize,
}

/// Which spans are recorded (`OTEL_TRACES_SAMPLER`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampler {
    /// A caller's decision is followed.
    pub is_parent_based: bool,
    /// The decision without a caller's.
    pub root: RootSampler,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootSampler {
    On,
    Off,
    /// Those whose trace id, its last 63 bits, is below this.
    Ratio(u64),
}

impl RootSampler {
    /// The sampler of a ratio in [0, 1].
    pub fn of_ratio(ratio: f64) -> Self {
        // 1.0 is 2^63, which is above every value of 63 bits.
        Self::Ratio((ratio.clamp(0.0, 1.0) * (1u64 << 63) as f64) as u64)
    }

    /// The decision for a trace with these last eight bytes of its id.
    #[inline]
    pub fn samples(self, trace_id_end: u64) -> bool {
        match self {
            Self::On => true,
            Self::Off => false,
            Self::Ratio(threshold) => trace_id_end & (u64::MAX >> 1) < threshold,
        }
    }
}
