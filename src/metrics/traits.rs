//! The metrics of kept traits, written by the store thread.
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
    /// Commits to the disk, and those that failed.
    pub commits: Counter,
    pub commits_failed: Counter,
}
