//! Snapshots: all environments at one instant, immutable once published.
//!
//! Requests are answered from a snapshot. Everything that depends only on the document is computed before it
//! is published ([`Environment::compile`]).
pub mod environment;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hashbrown::HashMap;

use crate::clock;
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

/// A document in the order of its environment's publications. `updated_at` does not give that order:
/// overrides may change without it, and so may a second edit within one second (compatibility.md 4.1).
#[derive(Clone, Debug)]
pub struct PublishedDocument {
    pub environment: Arc<Environment>,
    pub source: DocumentSource,
    /// In seconds since the epoch: `updated_at` of the document, or when its file was edited if that is
    /// later.
    pub updated_at: Option<f64>,
    /// `updated_at`, if no earlier document has the same second or a later one: a strong `Last-Modified`
    /// (RFC 9110 8.8.2.2).
    pub last_modified: Option<f64>,
    /// The number of earlier documents. It identifies the document within its environment.
    pub edition: u64,
    /// The latest `updated_at` of all earlier documents.
    earlier: Option<f64>,
}

impl PublishedDocument {
    /// The first document of an environment.
    pub fn first(environment: Arc<Environment>, source: DocumentSource) -> Self {
        let updated_at = environment.updated_at();
        Self { environment, source, updated_at, last_modified: updated_at, edition: 0, earlier: None }
    }

    /// The document that follows this one. `edited_at` is when its file was edited: the authors of files
    /// rarely maintain `updated_at`.
    pub fn next(
        &self,
        environment: Arc<Environment>,
        source: DocumentSource,
        edited_at: Option<f64>,
    ) -> Self {
        let latest = |times: [Option<f64>; 2]| times.into_iter().flatten().reduce(f64::max);
        let earlier = latest([self.updated_at, self.earlier]);
        let updated_at = latest([environment.updated_at(), edited_at]);
        let is_later = |time: &f64| earlier.is_none_or(|earlier| time.floor() > earlier.floor());
        let last_modified = updated_at.filter(is_later);
        Self { environment, source, updated_at, last_modified, edition: self.edition + 1, earlier }
    }
}

/// Whether it was already logged that a request exceeded its budget, for each kind of step. Memory ordering:
/// relaxed, because the swap itself finds the first; nothing is read after it.
#[derive(Debug, Default)]
pub struct ReportedOnce {
    pub jsonpath: AtomicBool,
    pub patterns: AtomicBool,
    pub flag_cycles: AtomicBool,
}

/// When an environment was last confirmed by its source. The supervisor and all snapshots share it, so a poll
/// that finds the same document updates it without publishing a snapshot.
///
/// Memory ordering: relaxed. Each of the two times is complete by itself, and no reader combines them.
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
        Self::new(clock::instant())
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
        self.age_at(clock::instant())
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
    pub document: Option<PublishedDocument>,
    pub freshness: Arc<Freshness>,
    /// Shared with all snapshots, so that each kind is logged once per environment.
    pub reported: Arc<ReportedOnce>,
    pub last_error: Option<LastError>,
    /// Of the environment, counted from 1 and never reused: metrics have a row for each of the first ones.
    pub number: u64,
}

impl Slot {
    /// The compiled document, if there is one.
    pub fn environment(&self) -> Option<&Environment> {
        self.document.as_ref().map(|document| &*document.environment)
    }
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
    /// Whether the store of kept traits is available. `None`: readiness does not depend on it.
    pub trait_store: Option<Arc<AtomicBool>>,
}

impl Snapshot {
    pub fn new(
        version: u64,
        slots: Vec<Slot>,
        keys: impl IntoIterator<Item = (Box<[u8]>, KeyAccess)>,
    ) -> Self {
        let keys = keys.into_iter().collect();
        Self { version, slots, keys, is_complete: true, draining: false, trait_store: None }
    }

    /// What the key gives access to; `None` if it is unknown. Includes expired keys.
    pub fn access(&self, key: &[u8]) -> Option<KeyAccess> {
        self.keys.get(key).copied()
    }

    /// The server-side keys of a slot that have not expired at `now`, in any order. Not for requests: it
    /// looks at all keys.
    pub fn server_keys(&self, slot: usize, now: SystemTime) -> impl Iterator<Item = &[u8]> {
        let is_of_slot = move |access: &KeyAccess| {
            access.slot == slot
                && access.role == Role::Server
                && access.expires_at.is_none_or(|expires_at| expires_at > now)
        };
        self.keys.iter().filter(move |(_, access)| is_of_slot(access)).map(|(key, _)| &**key)
    }

    /// As [`access`](Self::access), but a key that has expired at `now` is unknown. Routes use this.
    pub fn access_at(&self, key: &[u8], now: SystemTime) -> Option<KeyAccess> {
        self.access(key).filter(|access| access.expires_at.is_none_or(|expires_at| expires_at > now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(updated_at: f64) -> Arc<Environment> {
        let second = format!("\"2026-01-15T10:30:{updated_at:09.6}Z\"");
        let text = include_str!("../demo/environment.json");
        let mut document: serde_json::Value = serde_json::from_str(text).expect("JSON");
        document["updated_at"] = serde_json::from_str(&second).expect("a string");
        let text = document.to_string().into_bytes();
        Arc::new(Environment::compile(text).expect("a valid document").0)
    }

    /// A date has whole seconds: it cannot distinguish two edits within one second.
    #[test]
    fn last_modified_is_only_of_a_document_whose_second_is_later_than_all_before() {
        let first = PublishedDocument::first(environment(10.25), DocumentSource::Upstream);
        let at = |second: f64| first.environment.updated_at().map(|time| time - 10.25 + second);
        assert_eq!((first.updated_at, first.last_modified, first.edition), (at(10.25), at(10.25), 0));
        let next = |before: &PublishedDocument, second: f64, edited_at| {
            before.next(environment(second), DocumentSource::File, edited_at)
        };
        let same_second = next(&first, 10.75, None);
        assert_eq!((same_second.updated_at, same_second.last_modified), (at(10.75), None));
        let older = next(&same_second, 9.0, None);
        assert_eq!((older.updated_at, older.last_modified, older.edition), (at(9.0), None, 2));
        assert_eq!(next(&older, 10.5, None).last_modified, None, "the second of the first document");
        assert_eq!(next(&older, 11.0, None).last_modified, at(11.0));
        let edited = next(&older, 9.0, at(12.5));
        assert_eq!((edited.updated_at, edited.last_modified), (at(12.5), at(12.5)));
    }

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
