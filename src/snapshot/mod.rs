//! Snapshots: all environments at one instant, immutable once published.
//!
//! Requests are answered from a snapshot. Everything that depends only on the document is computed before it
//! is published ([`Environment::compile`]).
pub mod environment;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hashbrown::HashMap;

use crate::engine::program::Role;
pub use crate::snapshot::environment::Environment;

/// What a key gives access to.
#[derive(Clone, Copy, Debug)]
pub struct KeyAccess {
    /// Index into [`Snapshot::slots`].
    pub slot: usize,
    pub role: Role,
    /// From discovery (compatibility.md 4.3). An expired key is unknown.
    pub expires_at: Option<SystemTime>,
}

/// Where a served document came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DocumentSource {
    Upstream,
    Cache,
    File,
    Embedded,
}

impl DocumentSource {
    /// The name in metrics and health responses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Upstream => "upstream",
            Self::Cache => "cache",
            Self::File => "file",
            Self::Embedded => "embedded",
        }
    }
}

/// When an environment was last confirmed by its source. The supervisor and all snapshots share it, so a poll
/// that finds the same document updates it without publishing a snapshot.
#[derive(Debug)]
pub struct Freshness {
    created: Instant,
    /// By the wall clock, in microseconds since the epoch, for display; 0 is never.
    wall_us: AtomicU64,
    /// By the monotonic clock, in microseconds since `created`, plus one; 0 is never.
    monotonic_us: AtomicU64,
}

impl Default for Freshness {
    fn default() -> Self {
        Self::new(Instant::now())
    }
}

impl Freshness {
    /// Never confirmed.
    pub fn new(created: Instant) -> Self {
        Self { created, wall_us: AtomicU64::new(0), monotonic_us: AtomicU64::new(0) }
    }

    /// Records a successful poll (a 304 is a success), or a read of a file.
    pub fn confirm(&self, now: Instant, clock: SystemTime) {
        self.restore(clock);
        let elapsed = now.saturating_duration_since(self.created);
        self.monotonic_us.store(microseconds(elapsed).saturating_add(1), Ordering::Relaxed);
    }

    /// Records that another process confirmed the document at that time. Its age remains unknown.
    pub fn restore(&self, clock: SystemTime) {
        let since_epoch = clock.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.wall_us.store(microseconds(since_epoch), Ordering::Relaxed);
    }

    /// The time of the last confirmation, by the wall clock.
    pub fn last_success(&self) -> Option<SystemTime> {
        let since_epoch = Some(self.wall_us.load(Ordering::Relaxed)).filter(|us| *us > 0);
        since_epoch.and_then(|us| UNIX_EPOCH.checked_add(Duration::from_micros(us)))
    }

    /// The time since the last confirmation. By the monotonic clock: a jump of the wall clock has no effect.
    pub fn age(&self) -> Option<Duration> {
        self.age_at(Instant::now())
    }

    /// As [`age`](Self::age), at a given time.
    pub fn age_at(&self, now: Instant) -> Option<Duration> {
        let at = self.monotonic_us.load(Ordering::Relaxed).checked_sub(1)?;
        Some(now.saturating_duration_since(self.created).saturating_sub(Duration::from_micros(at)))
    }
}

fn microseconds(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

/// Why the last poll of an environment failed.
#[derive(Clone, Debug)]
pub struct LastError {
    /// Such as `timeout`. The public port shows only this.
    pub kind: &'static str,
    /// One line without secrets. It may contain host names and file paths, so only the admin port shows it.
    pub text: Arc<str>,
}

/// One configured environment: its document, if there is one, and its state.
#[derive(Clone, Debug)]
pub struct Slot {
    pub client_side_key: Box<str>,
    /// `None` until the first valid document: requests are answered 502.
    pub environment: Option<Arc<Environment>>,
    pub source: DocumentSource,
    pub freshness: Arc<Freshness>,
    pub last_error: Option<LastError>,
    /// Of the environment, counted from 1 and never reused: metrics have a row for each of the first ones.
    pub number: u64,
}

/// All environments at one instant.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Incremented by each publication.
    pub version: u64,
    pub slots: Vec<Slot>,
    keys: HashMap<Box<[u8]>, KeyAccess, foldhash::fast::RandomState>,
    /// Whether all sources of keys have been read. Until then (a document on disk was never valid, or
    /// discovery has not succeeded yet) a key that is not in the snapshot may be valid.
    pub is_complete: bool,
    /// Whether the process is shutting down: readiness fails, and requests are still served.
    pub draining: bool,
}

impl Snapshot {
    pub fn new(
        version: u64,
        slots: Vec<Slot>,
        keys: impl IntoIterator<Item = (Box<[u8]>, KeyAccess)>,
    ) -> Self {
        Self { version, slots, keys: keys.into_iter().collect(), is_complete: true, draining: false }
    }

    /// What the key gives access to; `None` if it is unknown. Includes expired keys.
    pub fn access(&self, key: &[u8]) -> Option<KeyAccess> {
        self.keys.get(key).copied()
    }

    /// As [`access`](Self::access), but a key that has expired at `now` is unknown. Routes use this.
    pub fn access_at(&self, key: &[u8], now: SystemTime) -> Option<KeyAccess> {
        self.access(key).filter(|access| access.expires_at.is_none_or(|expires_at| expires_at > now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freshness_ages_by_the_monotonic_clock() {
        let freshness = Freshness::default();
        let at = |seconds| freshness.created + Duration::from_secs(seconds);
        assert_eq!((freshness.last_success(), freshness.age_at(at(9))), (None, None));
        let saved_at = UNIX_EPOCH + Duration::from_micros(1_800_000_000_000_001);
        freshness.restore(saved_at);
        assert_eq!((freshness.last_success(), freshness.age_at(at(9))), (Some(saved_at), None));
        // Meanwhile the wall clock is set back by years.
        let clock = UNIX_EPOCH + Duration::from_secs(7);
        freshness.confirm(at(10), clock);
        assert_eq!(freshness.last_success(), Some(clock));
        assert_eq!(freshness.age_at(at(50)), Some(Duration::from_secs(40)));
        assert_eq!(freshness.age_at(at(3)), Some(Duration::ZERO));
    }
}
