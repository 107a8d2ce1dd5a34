//! The metrics of kept traits, written by the store thread.
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::metrics::counter::Counter;

/// Gauges are as of the last group of writes.
#[derive(Debug, Default)]
pub struct TraitMetrics {
    /// A store is configured.
    pub is_enabled: Counter,
    /// Identities whose traits are kept.
    pub identities: Counter,
    /// Bytes of their records.
    pub bytes: Counter,
    /// Writes that were merged.
    pub writes: Counter,
    /// Identities removed for a limit.
    pub evicted: Counter,
    /// Identities removed for their age.
    pub expired: Counter,
    /// Identities erased on request.
    pub erased: Counter,
    /// Messages of reactors that wait for the store thread.
    pub queued: Counter,
    /// Whole tables sent to reactors that missed an update.
    pub tables_sent: Counter,
    /// Records that are not on the disk yet.
    pub unwritten: Counter,
    /// How long the oldest of them has waited, milliseconds.
    pub lag_ms: Counter,
    /// Removals that will not reach the disk, because too many waited.
    pub removals_dropped: Counter,
    /// Damaged files that were put aside.
    pub files_damaged: Counter,
    /// Commits to the disk, and those that failed.
    pub commits: Counter,
    pub commits_failed: Counter,
    /// Redis is configured; it is available.
    pub has_redis: Counter,
    pub is_available: Arc<AtomicBool>,
    /// Age of the last change that was read, milliseconds; 0 if none waits.
    pub redis_lag_ms: Counter,
    /// Ends of outages.
    pub redis_reconnects: Counter,
    /// Times that all identities were read.
    pub redis_reloads: Counter,
    /// Identities whose changes Redis does not have yet.
    pub redis_unsent: Counter,
    /// Identities that were removed before Redis had their changes.
    pub redis_dropped: Counter,
    /// Changes of proxies whose clock is wrong.
    pub redis_refused: Counter,
}
